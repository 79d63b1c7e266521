"""A second loop decides by the weights that run in it, and by the layer that is the classifier."""

import numpy as np
import pytest
import torch
from torch import nn

import fastnc
from fastnc.nn import CollapseTracker


class Net(nn.Module):
    """Two linear layers, of which either may be declared first."""

    def __init__(self, head_first=False):
        super().__init__()
        torch.manual_seed(0)
        if head_first:
            self.head = nn.Linear(7, 4)
        self.body = nn.Linear(6, 7)
        if not head_first:
            self.head = nn.Linear(7, 4)
        self.double().eval()

    def features(self, x):
        return torch.tanh(self.body(x))

    def forward(self, x):
        return self.head(self.features(x))


def data(n, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, generator=generator).double(), torch.arange(n) % 4


X, Y = data(80, 1)
TEST, LABELS = data(40, 2)


def means(net, part=None):
    found = fastnc.ClassStatistics(4, 7 if part is None else 6)
    found.update((net.features(X) if part is None else X).detach(), Y)
    return found


def loop(tracker, forward, late=False):
    with torch.no_grad():
        for x, y in zip(TEST.split(9), LABELS.split(9), strict=True):
            if not late:
                tracker.labels(y)
            forward(x)
            if late:
                tracker.labels(y)


def same(found, wanted):
    for name, value in wanted.as_dict().items():
        told = getattr(found, name)
        if told is not None or name in ("margin", "accuracy", "nc4_agreement"):
            assert told == pytest.approx(value, rel=1e-9), name


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("how", ["whole", "parts"])
@pytest.mark.parametrize("head_first", [False, True])
@pytest.mark.parametrize("by", ["name", "module"])
def test_averaged_weights_of_a_second_loop_are_those_that_ran(how, late, head_first, by):
    """They were those at its beginning, of the linear layer that was declared last."""
    net = Net(head_first)
    about = means(net)
    own = net.head.weight.detach().clone()
    average = 0.2 - own

    def forward(x):
        return net(x) if how == "whole" else net.head(net.features(x))

    layer = "head" if by == "name" else net.head
    tracker = CollapseTracker(net, layer, keep="nothing")
    with tracker.second_pass(about=about):
        net.head.weight.data.copy_(average)
        loop(tracker, forward, late)
        net.head.weight.data.copy_(own)
    # Training goes on in place.
    net.head.weight.data.add_(5.0)
    H = net.features(TEST).detach()
    same(
        tracker.metrics(),
        fastnc.collapse_metrics(H, LABELS, average, net.head.bias.detach(), about=about),
    )


@pytest.mark.parametrize("head_first", [False, True])
def test_a_hidden_layer_is_no_classifier(head_first):
    """Its outputs were logits: an accuracy of what are no classes."""
    net = Net(head_first)
    tracker = CollapseTracker(net, "body", keep="nothing")
    with tracker.second_pass(about=means(net, "input")):
        loop(tracker, net)
    found = tracker.metrics()
    assert (found.accuracy, found.margin, found.n_rows) == (None, None, 0)


def test_one_batch_and_none():
    net = Net()
    tracker = CollapseTracker(net, "head", keep="nothing")
    with torch.no_grad():
        with tracker.second_pass(about=means(net)):
            net(TEST)
            tracker.labels(LABELS)
        H = net.features(TEST)
        W, b = net.head.weight, net.head.bias
        same(tracker.metrics(), fastnc.collapse_metrics(H, LABELS, W, b, about=means(net)))
        with tracker.second_pass(about=means(net)):
            pass
        with pytest.raises(ValueError, match="sample"):
            tracker.metrics()


def test_to_open_again_after_a_second_loop_begins_anew():
    net = Net()
    tracker = CollapseTracker(net, "head", keep="nothing", scatter="full")
    for _ in range(2):
        with tracker:
            loop(tracker, net)
        first = tracker.metrics()
        assert first.nc1 is not None and first.margin is None
        with tracker.second_pass():
            loop(tracker, net)
        H = net.features(TEST).detach()
        W, b = (x.detach() for x in (net.head.weight, net.head.bias))
        same(tracker.metrics(), fastnc.collapse_metrics(H, LABELS, W, b))


def test_deviations_keep_the_classifier_that_they_were_given():
    """A change in place gave old margins over new norms."""
    rng = np.random.default_rng(0)
    H, y, W = rng.standard_normal((40, 6)), np.arange(40) % 4, rng.standard_normal((4, 6))
    statistics = fastnc.ClassStatistics(4, 6)
    statistics.update(H, y)
    deviations = fastnc.ClassDeviations(statistics, W)
    deviations.update(H[:20], y[:20])
    wanted = fastnc.collapse_metrics(H, y, W.copy())
    W *= -3.0
    deviations.update(H[20:], y[20:])
    same(deviations.metrics(), wanted)


def test_a_layer_that_runs_twice_a_batch():
    """Its second run is no sign of a new batch: the classifier has not run yet."""
    net = Net()
    net.forward = lambda x: net.head(torch.tanh(net.body(torch.tanh(net.body(x)[:, :6]))))
    about = fastnc.ClassStatistics(4, 6)
    about.update(X, Y)
    tracker = CollapseTracker(net, "body", keep="nothing")
    with torch.no_grad(), tracker.second_pass(about=about):
        for x, y in zip(TEST.split(9), LABELS.split(9), strict=True):
            tracker.labels(y)
            tracker.labels(y)
            net(x)
    found = tracker.metrics()
    assert (found.n_samples, found.margin, found.n_rows) == (80, None, 0)
