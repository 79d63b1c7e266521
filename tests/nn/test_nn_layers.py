"""Several layers in one loop: which, what of them, and with nothing kept."""

import numpy as np
import pytest
import torch
from torch import nn

import fastnc
from fastnc.nn import CollapseTracker, LinearCrossEntropyLoss


class Convolutional(nn.Module):
    """A small network with maps, a hidden linear layer and a classifier."""

    def __init__(self, K=3):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.block = nn.Sequential(nn.ReLU(), nn.Conv2d(4, 5, 3, stride=2, padding=1))
        self.hidden = nn.Linear(5, 6)
        self.fc = nn.Linear(6, K)

    def forward(self, x):
        h = self.block(self.stem(x)).mean(dim=(2, 3))
        return self.fc(self.hidden(h).relu())


def network():
    torch.manual_seed(0)
    return Convolutional().double().eval()


def data(N=50, K=3):
    g = torch.Generator().manual_seed(1)
    return torch.randn(N, 1, 6, 6, generator=g).double(), torch.randint(K, (N,), generator=g)


def loop(model, tracker, x, y, size=16):
    with torch.no_grad():
        for batch, labels in zip(x.split(size), y.split(size), strict=True):
            tracker.labels(labels)
            model(batch)


def maps(model, x):
    with torch.no_grad():
        stem = model.stem(x)
        block = model.block(stem)
        hidden = model.hidden(block.mean(dim=(2, 3))).relu()
    return stem, block, hidden


def same(ours, theirs, but=()):
    for name, value in theirs.as_dict().items():
        if name not in but:
            # The same sums over other batches, in float64.
            near = value if value is None else pytest.approx(value, rel=1e-9)
            assert getattr(ours, name) == near, name


def shaped(h, features):
    match features:
        case "flatten":
            return h.flatten(1)
        case "mean":
            return h.mean(dim=(2, 3))
        case "places":
            return h.movedim(1, -1).reshape(-1, h.shape[1])


@pytest.mark.parametrize("features", ["flatten", "mean", "places"])
@pytest.mark.parametrize("keep", ["memory", "nothing", "file"])
def test_layers_in_one_loop(features, keep, tmp_path):
    model, (x, y) = network(), data()
    stem, block, _ = maps(model, x)
    keep = tmp_path / "features" if keep == "file" else keep
    tracker = CollapseTracker(
        model, layers=["stem", "block", "fc"], at="output", features=features, keep=keep
    )
    with tracker:
        loop(model, tracker, x, y)
    if keep == "nothing":
        first = tracker.metrics()["stem"]
        assert first.within_class is None and first.cdnv is not None
        with tracker.second_pass():
            loop(model, tracker, x, y)
    table = tracker.metrics()
    assert list(table) == ["stem", "block", "fc"]
    for name, h in (("stem", stem), ("block", block)):
        rows = shaped(h, features)
        wanted = fastnc.collapse_metrics(rows, y.repeat_interleave(len(rows) // len(x)))
        same(table[name], wanted)
        # What leaves a linear layer is not what its weight is compared with.
        assert table["fc"].self_duality is None
    lines = str(table).splitlines()
    assert lines[0].split()[:3] == ["layer", "d", "nc1"] and lines[2].split()[0] == "block"
    assert table.flat("nc/")["nc/stem/nc1"] == table["stem"].nc1


def test_globs_linear_layers_and_the_classifier():
    """A hidden linear layer was taken for the classifier of three classes: NC4 .008."""
    model, (x, y) = network(), data()
    hidden = maps(model, x)[2]
    tracker = CollapseTracker(model, layers=["block.*", "linear"])
    with tracker:
        loop(model, tracker, x, y)
    table = tracker.metrics()
    assert list(table) == ["block.0", "block.1", "hidden", "fc"]
    assert table["hidden"].nc4_agreement is None and table["hidden"].n_rows == 0
    weight, bias = model.fc.weight.detach(), model.fc.bias.detach()
    same(table["fc"], fastnc.collapse_metrics(hidden, y, weight, bias))
    none = CollapseTracker(model, "fc", classifier=None)
    with none:
        loop(model, none, x, y)
    assert none.metrics().nc4_agreement is None
    with torch.no_grad(), CollapseTracker(model, "hidden", classifier="hidden") as named:
        model(x)
    # As the user says so, its six rows are compared.
    assert named.metrics(y).n_rows == 6
    with pytest.raises(ValueError, match=r"there is no 'blocks\.\*'\. Near it, or last, are"):
        CollapseTracker(model, layers=["blocks.*"])
    with pytest.raises(ValueError, match=r"`layers` must name at least one layer; got none"):
        CollapseTracker(model, layers=[])
    with pytest.raises(ValueError, match=r"`at` must be 'input' or 'output'; got 'before'"):
        CollapseTracker(model, "fc", at="before")
    with pytest.raises(ValueError, match=r"`features` must be 'flatten', 'mean' or 'places'"):
        CollapseTracker(model, "fc", features="max")


def test_names_that_people_look_for():
    resnet18 = pytest.importorskip("torchvision").models.resnet18
    with pytest.raises(
        ValueError, match=r"no 'classifier.6', the default\. Near it, or last, are .*'fc'"
    ):
        CollapseTracker(resnet18())


def test_nothing_kept_is_what_is_kept():
    model, (x, y) = network(), data()
    kept = CollapseTracker(model, "fc")
    with kept:
        loop(model, kept, x, y)
    tracker = CollapseTracker(model, "fc", keep="nothing", scatter="full")
    with tracker, torch.no_grad():
        for batch, labels in zip(x.split(7), y.split(7), strict=True):
            model(batch)
            tracker.labels(labels)  # After the model as well as before it.
    one = tracker.metrics()
    same(one, kept.metrics(), but={"within_class", "margin", "margin_ratio", *SHARES})
    assert one.margin is None
    with tracker.second_pass():
        loop(model, tracker, x, y, 11)
    same(tracker.metrics(), kept.metrics())
    same(tracker.metrics(), kept.metrics())
    with pytest.raises(ValueError, match=r"`features` are not kept with `keep='nothing'`|not kept"):
        _ = tracker.features
    with pytest.raises(ValueError, match=r"`y` must be given to `tracker.labels`"):
        tracker.metrics(y)
    with (
        pytest.raises(ValueError, match=r"`second_pass` is for `keep=\"nothing\"`"),
        kept.second_pass(),
    ):
        pass


SHARES = {"nc4_agreement", "accuracy", "nearest_mean_accuracy"}


def test_a_second_pass_over_other_samples_is_refused():
    model, (x, y) = network(), data()
    tracker = CollapseTracker(model, "fc", keep="nothing")
    with tracker:
        loop(model, tracker, x, y)
    with tracker.second_pass():
        loop(model, tracker, 2.0 * x, y)
    with pytest.raises(ValueError, match=r"squared deviations from the class means add up to"):
        tracker.metrics()


@pytest.mark.parametrize("keep", ["memory", "nothing"])
def test_held_out_samples(keep):
    model, (x, y) = network(), data()
    tracker = CollapseTracker(model, "fc", keep=keep)
    with tracker:
        loop(model, tracker, x[:30], y[:30])
    about = tracker.statistics()
    if keep == "nothing":
        with tracker.second_pass(about=about):
            loop(model, tracker, x[30:], y[30:])
        told = tracker.metrics()
    else:
        with tracker:
            loop(model, tracker, x[30:], y[30:])
        told = tracker.metrics(about=about)
    hidden = maps(model, x)[2]
    s = fastnc.ClassStatistics(3, 6)
    s.update(hidden[:30], y[:30])
    weight, bias = model.fc.weight.detach(), model.fc.bias.detach()
    same(told, fastnc.collapse_metrics(hidden[30:], y[30:], weight, bias, about=s))


@pytest.mark.parametrize("keep", ["memory", "nothing"])
def test_tokens_of_which_some_are_ignored(keep):
    """A language model's hidden states (B, T, d), labels (B, T), -100 at padding."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 40)).double().eval()
    x = torch.randn(8, 9, 5).double()
    y = torch.randint(30, (8, 9))
    y[:, 6:] = -100
    tracker = CollapseTracker(model, "1", keep=keep, ignore_index=-100, min_count=2)
    with tracker:
        loop(model, tracker, x, y, 3)
    if keep == "nothing":
        with tracker.second_pass():
            loop(model, tracker, x, y, 3)
    h, W, b = model[0](x).detach(), model[1].weight.detach(), model[1].bias.detach()
    wanted = fastnc.collapse_metrics(h, y, W, b, ignore_index=-100, min_count=2)
    told = tracker.metrics()
    same(told, wanted)
    assert told.n_ignored == 24 and told.n_left_out == wanted.n_left_out > 0


def test_labels_in_the_loop_are_asked_for():
    model, (x, y) = network(), data()
    tracker = CollapseTracker(model, "fc", keep="nothing")
    with tracker, torch.no_grad():
        model(x[:5])
        model(x[5:9])
        with pytest.raises(ValueError, match=r"each batch needs its labels in the loop: call"):
            model(x[9:12])
        tracker.labels(y[:5])
        with pytest.raises(ValueError, match=r"4 samples entered the layer, and 3 labels"):
            tracker.labels(y[5:8])
    with pytest.raises(ValueError, match=r"nothing entered the layer with its labels"):
        CollapseTracker(model, "fc", keep="nothing").metrics()
    with pytest.raises(ValueError, match=r"labels must not be negative; got -100. Pass `ignore_in"):
        tracker.labels(torch.tensor([0, -100]))


def test_the_features_are_the_first_argument_by_name():
    """`head(target=y, input=H)` gave the labels for features."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = LinearCrossEntropyLoss(4, 3, bias=True)

        def forward(self, x, y):
            return self.head(target=y, input=x)

    model, x, y = Model().eval(), torch.randn(20, 4), torch.arange(20) % 3
    for name in ("head", "head.linear"):
        with torch.no_grad(), CollapseTracker(model, name) as tracker:
            model(x, y)
        assert torch.equal(tracker.features, x) and tracker.metrics(y).n_rows == 3


@pytest.mark.parametrize("way", ["wrapped", "in place"])
def test_compiled_models_run_eagerly_while_they_are_tracked(way):
    """Hooks were passed over where a smaller last batch was compiled anew."""
    model, (x, y) = network(), data()
    hidden = maps(model, x)[2]
    if way == "wrapped":
        compiled = torch.compile(model, backend="eager")
    else:
        model.compile(backend="eager")
        compiled = model
    with torch.no_grad():
        compiled(x[:16])
    tracker = CollapseTracker(compiled, "fc")
    with tracker:
        loop(compiled, tracker, x, y)
    # A product of other shapes may add in another order.
    torch.testing.assert_close(tracker.features, hidden, rtol=1e-12, atol=1e-14)
    assert tracker.metrics().n_samples == 50


def test_half_precision_stays_half(tmp_path):
    model, (x, y) = network().bfloat16(), data()
    for keep in ("memory", tmp_path / "f"):
        tracker = CollapseTracker(model, "fc", keep=keep)
        with tracker:
            loop(model, tracker, x.bfloat16(), y)
        assert tracker.features.dtype == torch.bfloat16
        assert tracker.metrics().n_samples == 50
    assert (tmp_path / "f").stat().st_size == 50 * 6 * 2


def test_memory_ends_in_a_sentence(monkeypatch):
    model, (x, _) = network(), data()
    monkeypatch.setattr("fastnc.nn.feature_store._free", lambda device: 600)
    tracker = CollapseTracker(model, "fc")
    with tracker, torch.no_grad():
        model(x[:3])
        with pytest.raises(MemoryError, match=r"no longer fits .* Pass `keep='nothing'`"):
            model(x)
    assert len(tracker.features) == 3


def test_a_binary_head():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 1)).double().eval()
    x, y = torch.randn(30, 4).double(), torch.arange(30) % 2
    tracker = CollapseTracker(model, "2")
    with tracker:
        loop(model, tracker, x, y)
    with torch.no_grad():
        decided = (model(x)[:, 0] > 0).long()
    assert tracker.metrics().accuracy == (decided == y).double().mean()


def test_fewer_samples_than_entered():
    x, y = data(51)
    model = network()
    tracker = CollapseTracker(model, layers=["hidden", "fc"])
    with tracker:
        loop(model, tracker, x, y)
    with pytest.raises(ValueError, match=r"of 50 samples this rank has 50, and 51 entered"):
        tracker.metrics(n=50)
    with pytest.raises(ValueError, match=r"`n` must be the number of samples of the data set; got"):
        tracker.metrics(n=-1)


@pytest.mark.parametrize("keep", ["memory", "nothing"])
def test_held_out_samples_of_labels_with_a_gap(keep):
    """Class 2 of the statistics is label 2, also where no sample has label 1 and there is no W."""
    model, (x, y) = network(), data()
    y = torch.tensor([0, 2, 3])[y]
    tracker = CollapseTracker(model, "fc", classifier=None, keep=keep)
    with tracker:
        loop(model, tracker, x[:30], y[:30])
    about, few = tracker.statistics(), y[30:] < 3
    assert about.counts.tolist() == torch.bincount(y[:30]).tolist()
    with tracker if keep == "memory" else tracker.second_pass(about=about):
        loop(model, tracker, x[30:][few], y[30:][few])
    told = tracker.metrics(about=about) if keep == "memory" else tracker.metrics()
    hidden = maps(model, x)[2]
    s = fastnc.ClassStatistics(4, 6)
    s.update(hidden[:30], y[:30])
    same(told, fastnc.collapse_metrics(hidden[30:][few], y[30:][few], about=s))


def test_labels_of_statistics_are_class_numbers():
    model, (x, y) = network(), data()
    tracker = CollapseTracker(model, "fc", classifier=None)
    with tracker:
        loop(model, tracker, x, y + 10**9)
    assert tracker.metrics().n_classes == 3
    with pytest.raises(ValueError, match=r"`y` must be class numbers from 0 on; got 1000000002"):
        tracker.statistics()


def test_a_state_goes_through_torch(tmp_path):
    model, (x, y) = network(), data()
    tracker = CollapseTracker(model, "fc", keep="nothing", scatter="full")
    with tracker:
        loop(model, tracker, x, y)
    s = tracker.statistics()
    torch.save(s.state_dict(), tmp_path / "s.pt")
    again = fastnc.ClassStatistics(s.n_classes, 6, "full")
    again.load_state_dict(torch.load(tmp_path / "s.pt"))
    assert np.array_equal(again.squares, s.squares) and np.array_equal(again.within, s.within)
