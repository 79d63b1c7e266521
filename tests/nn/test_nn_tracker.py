"""`fastnc.nn.CollapseTracker` in ordinary evaluation loops, in wrong ones, and over two ranks."""

import numpy as np
import pytest
import torch
from torch import nn

import fastnc
from fastnc.nn import CollapseTracker, LinearCrossEntropyLoss


class Network(nn.Module):
    """Its last layer is fed by a tensor that the next forward pass overwrites."""

    def __init__(self, K=3, d=6):
        super().__init__()
        self.body = nn.Linear(4, d)
        self.classifier = nn.Sequential(nn.ReLU(), nn.Linear(d, K))
        self.buffer = torch.zeros(1000, d)

    def forward(self, x):
        h = self.buffer[: len(x)]
        h[:] = self.body(x)
        return self.classifier(h)


def network(K=3, d=6, dtype=torch.float32):
    torch.manual_seed(0)
    model = Network(K, d)
    model.buffer = model.buffer.to(dtype)
    return model.to(dtype).eval()


def data(N=110, K=3):
    g = torch.Generator().manual_seed(1)
    return torch.randn(N, 4, generator=g), torch.randint(K, (N,), generator=g)


def wanted(model, x, y):
    with torch.no_grad():
        h = model.classifier[0](model.body(x)).clone()
    last = model.classifier[1]
    return h, fastnc.collapse_metrics(
        h.numpy(), y.numpy(), last.weight.detach().numpy(), last.bias.detach().numpy()
    )


def same(ours, theirs):
    for name, value in theirs.as_dict().items():
        # The sums are those of other batches: rounding in float64.
        near = value if value is None else pytest.approx(value, rel=1e-9)
        assert ours.as_dict()[name] == near, name


@pytest.mark.parametrize("keep", ["memory", "device", "file"])
def test_an_ordinary_loop(keep, tmp_path):
    model, (x, y) = network(), data()
    keep = tmp_path / "features.bin" if keep == "file" else keep
    h, theirs = wanted(model, x, y)
    with torch.inference_mode(), CollapseTracker(model, "classifier.1", keep=keep) as tracker:
        for batch, labels in zip(x.split(32), y.split(32), strict=True):
            tracker.labels(labels)
            model(batch)
            labels[:] = -7  # What a loader does to its buffers must not matter.
    with torch.no_grad():
        model.classifier[1].weight.mul_(-1.0)  # Training goes on.
    assert torch.equal(tracker.features, h)
    same(tracker.metrics(), theirs)
    assert len(tracker.targets()) == 110
    fewer = fastnc.collapse_metrics(h.numpy(), tracker.targets().numpy() * 0 + np.arange(110) % 3)
    assert tracker.metrics(np.arange(110) % 3).within_class == pytest.approx(fewer.within_class)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes_survive_a_file(dtype, tmp_path):
    model, (x, y) = network(dtype=dtype), data()
    with torch.no_grad(), CollapseTracker(model, "classifier.1", keep=tmp_path / "f") as tracker:
        model(x.to(dtype))
        model(x[:5].to(dtype))
        assert len(tracker.features) == 115  # Also while the file is open.
    with torch.no_grad():
        h = model.classifier[0](model.body(x.to(dtype)))
    assert torch.equal(tracker.features[:110].to(dtype), h)
    assert tracker.metrics(torch.cat([y, y[:5]])).n_samples == 115


def test_sequences_are_flattened_before_a_linear_layer():
    model = nn.Sequential(nn.ReLU(), nn.Linear(5, 3)).eval()
    x = torch.randn(4, 7, 5, generator=torch.manual_seed(0))
    with CollapseTracker(model, "1") as tracker:
        tracker.labels(torch.arange(28).reshape(4, 7) % 3)
        model(x)
        tracker.labels([1])
        model(x[0, 0])
    assert torch.equal(tracker.features[:28], x.relu().reshape(28, 5))
    assert tracker.metrics().n_samples == 29


def test_a_layer_without_a_classifier_takes_any_labels():
    model, (x, y) = network(), data()
    with torch.no_grad(), CollapseTracker(model, model.classifier[0]) as tracker:
        model(x)
        h = model.body(x)
    m = tracker.metrics(y * 100 + 7)
    assert m.self_duality is None and m.n_classes == 3
    same(m, fastnc.collapse_metrics(h.numpy(), y.numpy()))


def test_a_loss_with_its_own_linear_layer():
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.loss = LinearCrossEntropyLoss(4, 3, bias=True)

        def forward(self, x, y):
            return self.loss(input=x, target=y)

    model, (x, y) = Head().eval(), data()
    with CollapseTracker(model, "loss") as tracker:
        model(x, y)
    linear = model.loss.linear
    same(
        tracker.metrics(y),
        fastnc.collapse_metrics(
            x.numpy(), y.numpy(), linear.weight.detach().numpy(), linear.bias.detach().numpy()
        ),
    )


def test_features_by_name_wherever_they_stand():
    class Head(nn.Linear):
        def forward(self, target=None, input=None):
            return super().forward(input)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = Head(4, 3)

        def forward(self, x, y):
            return self.head(target=y, input=x)

    model, (x, y) = Network().eval(), data()
    with CollapseTracker(model, "head") as tracker:
        tracker.labels(y)
        model(x, y)
    weight, bias = model.head.weight.detach().numpy(), model.head.bias.detach().numpy()
    same(tracker.metrics(), fastnc.collapse_metrics(x.numpy(), y.numpy(), weight, bias))


def test_no_hook_stays_behind():
    model, (x, y) = network(), data()
    tracker = CollapseTracker(model, "classifier.1")
    with pytest.raises(KeyError, match=r"mine"), tracker:
        tracker.labels(y)
        model(x)
        raise KeyError("mine")
    assert not model.classifier[1]._forward_pre_hooks
    model(x)
    assert len(tracker.features) == 110
    assert tracker.metrics().n_samples == 110


def test_opening_again_starts_afresh(tmp_path):
    for keep in ("memory", tmp_path / "f"):
        model, (x, y) = network(), data()
        tracker = CollapseTracker(model, "classifier.1", keep=keep)
        for n in (110, 60):
            with torch.no_grad(), tracker:
                tracker.labels(y[:n])
                model(x[:n])
            assert tracker.metrics().n_samples == n
        with tracker:
            with pytest.raises(RuntimeError, match=r"open already; leave its `with` block first"):
                tracker.__enter__()
            model(x)
        assert not model.classifier[1]._forward_pre_hooks
        assert len(tracker.features) == 110


def test_names_that_miss():
    with pytest.raises(ValueError, match=r"'clasifier.1'. Near it, or last, are 'classifier.1"):
        CollapseTracker(network(), "clasifier.1")
    with pytest.raises(ValueError, match=r"no 'zzz'. Near it, or last, are 'classifier.1', 'body'"):
        CollapseTracker(network(), "zzz")
    # Nobody wrote this name.
    with pytest.raises(ValueError, match=r"no 'classifier.6', the default. Near .* 'classifier.1'"):
        CollapseTracker(network())
    with pytest.raises(ValueError, match=r"no 'classifier.6'. Near it, .* 'classifier.1'"):
        CollapseTracker(network(), "classifier.6")
    with pytest.raises(ValueError, match=r"`classifier` must name a layer .* there is no 'head'"):
        CollapseTracker(network(), "body", classifier="head")
    with pytest.raises(ValueError, match=r"`layer` must belong to `module`"):
        CollapseTracker(network(), nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        (
            {"layer": 2},
            TypeError,
            r"`layer` must be a string, a name in .*, or a module of it; got 2",
        ),
        ({"layers": ["body", 2]}, TypeError, r"`layers` must be a string, .*; got 2"),
        ({"layers": [["body"]]}, TypeError, r"`layers` must be a string, .*; got \['body'\]"),
        (
            {"layer": "classifier.6", "layers": ["body"]},
            ValueError,
            r"`layer` must not be given beside `layers`; got 'classifier.6'. Name it there",
        ),
        ({"layer": "classifier*"}, ValueError, r"must name one layer; .* names 3. Pass it as `lay"),
        (
            {"layer": "body", "classifier": "linear"},
            ValueError,
            r"`classifier` must name one layer",
        ),
        ({"layer": []}, ValueError, r"`layer` must name at least one layer; got none"),
        (
            {"layer": "body", "keep": "ram"},
            ValueError,
            r"'nothing' or a path; got 'ram'. .* './ram'",
        ),
        ({"layer": "body", "keep": ""}, ValueError, r"`keep` must be .*; got ''. .* './features'"),
    ],
)
def test_layers_and_places_that_are_none(options, error, sentence):
    with pytest.raises(error, match=sentence):
        CollapseTracker(network(), **options)


def test_files_have_a_folder_or_an_ending(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, (x, y) = network(), data()
    for keep in ("features.bin", "./features"):
        with torch.no_grad(), CollapseTracker(model, "body", keep=keep) as tracker:
            model(x)
        assert (tmp_path / keep).stat().st_size == x.nbytes
        assert tracker.metrics(y).n_samples == 110


@pytest.mark.parametrize("keep", ["memory", "nothing"])
def test_one_line_about_itself(keep):
    model, (x, y) = network(), data()
    tracker = CollapseTracker(model, "classifier.1", keep=keep)
    head = f"CollapseTracker(layer='classifier.1', keep='{keep}')"
    assert repr(tracker) == f"{head}: 0 samples"
    with torch.no_grad(), tracker:
        tracker.labels(y)
        model(x)
        assert repr(tracker) == f"{head}: 110 samples"
    several = CollapseTracker(model, layers=["body", "classifier.1"], keep=keep)
    with torch.no_grad(), several:
        several.labels(y)
        model(x)
        several.labels(y[:1])
        model.body(x[:1])
    # The body has seen one more; its labels are told to the sums when every layer has it.
    most = "" if keep == "nothing" else " to 111"
    names = "layers=['body', 'classifier.1']"
    assert repr(several) == f"CollapseTracker({names}, keep='{keep}'): 110{most} samples"


def test_refusals():
    model, (x, y) = network(), data()
    tracker = CollapseTracker(model, "classifier.1")
    with pytest.raises(ValueError, match=r"nothing entered the layer. Run the model inside"):
        tracker.metrics(y)
    with tracker:
        model(x)
    with pytest.raises(ValueError, match=r"110 samples entered the layer, and 109 labels"):
        tracker.metrics(y[:-1])
    with pytest.raises(ValueError, match=r"110 samples entered the layer, and 0 labels"):
        tracker.metrics()
    with pytest.raises(
        ValueError, match=r"integers; got torch.float32. Convert them: `y.long\(\)`"
    ):
        tracker.metrics(y.float())
    with pytest.raises(ValueError, match=r"labels must be integers; got torch.bool"):
        tracker.labels(y > 0)
    with pytest.raises(ValueError, match=r"labels must be integers; got <U3. Relabel: `np.unique"):
        tracker.labels(np.array(["cat"] * 110))
    with pytest.raises(ValueError, match=r"labels must be integers; got list. Relabel: `np.unique"):
        tracker.labels(["cat"] * 110)
    with pytest.raises(
        ValueError, match=r"`y` must lie in 0..2 .* or track a layer with more rows"
    ):
        tracker.metrics(y + 1)
    with pytest.raises(TypeError, match=r"`keep` must be 'memory', .*'nothing' or a path; got 3"):
        CollapseTracker(network(), "classifier.1", keep=3)
    with pytest.raises(TypeError, match=r"`module` must be a torch.nn.Module; got int"):
        CollapseTracker(3)
    with pytest.raises(ValueError, match=r"`module` must not be a `DataParallel`"):
        CollapseTracker(nn.DataParallel(model), "classifier.1")


def test_features_that_do_not_fit():
    model = nn.Sequential(nn.Identity(), nn.Flatten()).eval()
    with CollapseTracker(model, "0") as tracker:
        model(torch.zeros(3, 4))
        with pytest.raises(ValueError, match=r"must bring 4 features in torch.float32; got 5 in"):
            model(torch.zeros(3, 5))
        with pytest.raises(ValueError, match=r"must bring 4 features in torch.float32; got 4 in"):
            model(torch.zeros(3, 4, dtype=torch.float64))
        with pytest.raises(ValueError, match=r"must bring 4 features in torch.float32; got 16"):
            model(torch.zeros(3, 4, 2, 2))
    assert len(tracker.features) == 3


def test_training_mode_is_pointed_out():
    model, _ = network().train(), data()
    with (
        pytest.warns(UserWarning, match=r"in training mode: dropout and batch normalisation"),
        CollapseTracker(model, "classifier.1"),
    ):
        pass


def test_a_compiled_model_is_looked_through():
    model, (x, y) = network(), data()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad(), CollapseTracker(compiled, "classifier.1") as tracker:
        model(x)
    assert tracker.metrics(y).n_samples == 110


@pytest.mark.parametrize("keep", ["memory", "nothing"])
@pytest.mark.parametrize("ignored", [0, 2])
def test_an_ignored_label_that_is_a_number_of_a_class(keep, ignored):
    """Without a classifier labels were renumbered, and another class ignored with it."""
    body = nn.Linear(4, 5).eval()
    x, y = data(80, 4)

    def loop():
        with torch.no_grad():
            tracker.labels(y)
            body(x)

    net = nn.Sequential(body).eval()
    tracker = CollapseTracker(
        net, layer="0", ignore_index=ignored,
        keep=keep, classifier=None,
    )  # fmt: skip
    with tracker:
        loop()
    if keep == "nothing":
        with tracker.second_pass():
            loop()
    found = tracker.metrics()
    wanted = fastnc.collapse_metrics(x, y, ignore_index=ignored)
    assert (found.n_samples, found.n_ignored) == (wanted.n_samples, wanted.n_ignored)
    assert found.n_classes == 3 and found.nc1 == pytest.approx(wanted.nc1, rel=1e-6)


def test_a_batch_that_did_not_run_is_told():
    """Its labels went to the next batch, and the metrics were of samples with those of others."""
    model, (x, y) = network(), data()
    tracker = CollapseTracker(model, layer="classifier.1", keep="nothing")
    with torch.no_grad(), tracker:
        for i, rows in enumerate(torch.arange(60).reshape(5, 12)):
            tracker.labels(y[rows])
            if i != 1:
                model(x[rows])
    with pytest.raises(ValueError, match="some were given for a batch that did not, and from"):
        tracker.metrics()
