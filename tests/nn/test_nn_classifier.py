"""The classifier of a tracker: the weights that ran, and a layer that is linear."""

import pytest
import torch
from torch import nn

import fastnc
from fastnc.nn import CollapseTracker

X = torch.randn(90, 5, generator=torch.Generator().manual_seed(0))
Y = torch.arange(90) % 3


def network(head):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), head).eval()


def tracked(model, forward=None, layer="2", **options):
    tracker = CollapseTracker(model, layer, **options)
    with torch.no_grad(), tracker:
        for x, y in zip(X.split(20), Y.split(20), strict=True):
            tracker.labels(y)
            (forward or model)(x)
    return tracker


@pytest.mark.parametrize("keep", ["memory", "nothing"])
@pytest.mark.parametrize("how", ["exchanged", "called", "a part", "a part called"])
def test_averaged_weights_are_measured_where_they_ran(how, keep):
    """Put in place for the loop and taken out again, or handed to `functional_call`."""
    model = network(nn.Linear(8, 3))
    # As in a training module whose loop calls `self.net(x)`.
    whole = (
        nn.ModuleDict({"net": model, "other": nn.Linear(2, 2)}).eval() if "part" in how else None
    )
    average = {k: torch.sin(7.0 * v) for k, v in model.state_dict().items()}
    own = {k: v.clone() for k, v in model.state_dict().items()}

    def run(x):
        if "called" in how:
            return torch.func.functional_call(model, average, (x,))
        model.load_state_dict(average)
        out = model(x)
        model.load_state_dict(own)
        return out

    metrics = tracked(whole or model, run, layer="net.2" if whole else "2", keep=keep).metrics()
    W, b = average["2.weight"], average["2.bias"]
    h = torch.relu(X @ average["0.weight"].T + average["0.bias"])
    wanted = fastnc.collapse_metrics(h, Y, W, b)
    assert (
        abs(wanted.self_duality - fastnc.collapse_metrics(h, Y, own["2.weight"]).self_duality) > 0.1
    )
    for name, value in wanted.as_dict().items():
        told = getattr(metrics, name)
        if told is not None:
            # The network runs in single precision, over batches of another size.
            assert told == pytest.approx(value, rel=1e-4, abs=1e-6), name


class Cosine(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 8) * torch.tensor([[0.1], [1.0], [5.0]]))

    def forward(self, h):
        unit = nn.functional.normalize
        return 16.0 * nn.functional.linear(unit(h), unit(self.weight))


class Scaled(nn.Linear):
    def forward(self, input):
        return super().forward(input) * torch.tensor([1.0, 2.0, -1.0])


@pytest.mark.parametrize("head", [Cosine(), Scaled(8, 3)])
def test_a_classifier_that_is_not_linear_is_refused(head):
    """Its margins and decisions were those of products that the network never forms."""
    model = network(head)
    tracker = tracked(model)
    with pytest.raises(
        ValueError, match=r"leaves the classifier, '2', must be `W h \+ bias` of its"
    ):
        tracker.metrics()
    metrics = tracked(model, classifier=None).metrics()
    assert metrics.accuracy is None and metrics.nc1 is not None


class Own(nn.Module):
    """A linear layer of one's own, whose sums torch forms in another order."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(3, 8)), nn.Parameter(torch.randn(3))

    def forward(self, h):
        return (h[..., None, :] * self.weight).sum(-1) + self.bias


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    "head", [Own(), nn.utils.parametrizations.weight_norm(nn.Linear(8, 3)), nn.Linear(8, 3)]
)
def test_classifiers_that_are_linear(head, autocast):
    model = network(head)

    def run(x):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return model(x)

    tracker = tracked(model, run)
    with torch.no_grad():
        wanted = fastnc.collapse_metrics(tracker.features, Y, head.weight, head.bias)
    # The same features and rows.
    assert tracker.metrics().as_dict() == wanted.as_dict()
