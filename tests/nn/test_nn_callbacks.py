"""The callbacks under the real libraries: ten steps each, and the metrics of what was there."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import fastnc

# These libraries warn of their own surroundings: loaders without workers, missing loggers.
pytestmark = pytest.mark.filterwarnings("ignore")


def data(N=40, K=3):
    g = torch.Generator().manual_seed(0)
    return torch.randn(N, 4, generator=g), torch.arange(N) % K


def measured(model, x, y):
    with torch.no_grad():
        return fastnc.collapse_metrics(model[:2](x), y, model[2].weight, model[2].bias)


def close(told, wanted):
    for name, value in wanted.as_dict().items():
        # The network runs in single precision, over batches of another size.
        near = value if value is None else pytest.approx(value, rel=1e-4, abs=1e-6)
        assert getattr(told, name) == near, name


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")
    from fastnc.nn.callbacks import LightningCollapse

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch, _, dataloader_idx=0):
            self.net(batch[0])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    x, y = data()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 8)
    callback, module = LightningCollapse("net.2"), Module()
    trainer = lightning.Trainer(
        max_epochs=2, callbacks=[callback], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        default_root_dir=tmp_path,
    )  # fmt: skip
    # Of two loaders, the first one is measured.
    other = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x + 1, y), 8)
    trainer.fit(module, loader, [loader, other])
    assert trainer.global_step == 10 and callback.history["epoch"] == [0, 1]
    close(callback.metrics, measured(module.net, x, y))
    logged = trainer.callback_metrics["nc/nc1"]
    assert float(logged) == pytest.approx(callback.metrics.nc1, rel=1e-6)
    assert not module.net[2]._forward_pre_hooks
    with pytest.raises(TypeError, match=r"`labels` must take what it is called with, `labels\(bat"):
        LightningCollapse("net.2", labels=lambda: y)


def test_the_hugging_face_trainer(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from fastnc.nn.callbacks import TrainerCollapse

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x=None, labels=None):
            logits = self.net(x)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    x, y = data()
    rows = [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]
    callback, model = TrainerCollapse("net.2"), Model()
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=10, per_device_train_batch_size=8, eval_steps=5,
        eval_strategy="steps", save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
        logging_strategy="no",
    )  # fmt: skip
    trainer = transformers.Trainer(
        model, arguments, train_dataset=rows, eval_dataset=rows, callbacks=[callback]
    )
    trainer.train()
    assert callback.history["epoch"] == [5, 10]
    close(callback.metrics, measured(model.net, x, y))
    assert trainer.state.log_history[-2]["nc/nc1"] == callback.metrics.nc1 or any(
        entry.get("nc/nc1") == callback.metrics.nc1 for entry in trainer.state.log_history
    )
    assert trainer.evaluate()["nc/nc1"] == pytest.approx(callback.metrics.nc1)
    # Of several sets, each one's under its name.
    found = trainer.evaluate({"a": rows, "b_c": rows[:20]})
    for of, n in (("a", len(rows)), ("b_c", 20)):
        nc1 = measured(model.net, x[:n], y[:n]).nc1
        # As near as in `close`.
        assert found[f"nc/{of}/nc1"] == pytest.approx(nc1, rel=1e-4)
        assert callback.history[f"{of}/nc1"][-1] == found[f"nc/{of}/nc1"]
    assert found["nc/a/nc1"] == pytest.approx(callback.history["nc1"][-1])


@pytest.mark.parametrize("ahead", [True, False])
def test_the_labels_of_language_models_are_those_that_their_loss_takes(ahead):
    """A causal model's loss shifts the labels; that of a masked or tagging one does not."""
    pytest.importorskip("transformers")
    from fastnc.nn.callbacks import TrainerCollapse

    K, d = 5, 6

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(3)
            self.body, self.lm_head = nn.Embedding(K, d), nn.Linear(d, K)
            # As every model of transformers has one.
            self.loss_function = nn.functional.cross_entropy

        def forward(self, input_ids=None, labels=None):
            logits = self.lm_head(self.body(input_ids))
            z, y = (logits[:, :-1], labels[:, 1:]) if ahead else (logits, labels)
            loss = nn.functional.cross_entropy(z.reshape(-1, K), y.reshape(-1))
            return {"loss": loss, "logits": logits}

    tokens = torch.randint(0, K, (12, 7), generator=torch.Generator().manual_seed(1))
    # A loader that runs only once.
    loader = ({"input_ids": x, "labels": x} for x in tokens.split(5))
    model, callback = Model(), TrainerCollapse("lm_head", loader)
    state = SimpleNamespace(log_history=[], global_step=1, epoch=0.5)
    callback.on_evaluate(SimpleNamespace(device="cpu"), state, None, model=model)
    with torch.no_grad():
        h, head = model.body(tokens), model.lm_head
    if ahead:
        h, y = h[:, :-1], tokens[:, 1:]
    else:
        y = tokens
    wanted = fastnc.collapse_metrics(h, y, head.weight, head.bias)
    assert callback.metrics.n_ignored == (12 if ahead else 0)
    close(callback.metrics, wanted)


def test_the_trainer_names_a_layer_only_where_none_is_named():
    pytest.importorskip("transformers")
    from fastnc.nn.callbacks import TrainerCollapse

    assert TrainerCollapse().layer == "classifier"
    assert TrainerCollapse(layers=["net.0", "net.2"]).layer is None


def test_torchmetrics():
    torchmetrics = pytest.importorskip("torchmetrics")
    from fastnc.nn.callbacks import TorchmetricsCollapse

    model, (x, y) = network(), data()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    metric = TorchmetricsCollapse(3, 6, classifier=model[2])
    assert isinstance(metric, torchmetrics.Metric) and not list(metric.parameters())
    for _ in range(10):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    with torch.no_grad():
        h = model[:2](x)
        for rows, labels in zip(h.split(8), y.split(8), strict=True):
            metric(rows, labels)
    wanted = measured(model, x, y)
    told = metric.compute()
    assert "margin" not in told
    for name in ("nc1", "cdnv", "self_duality", "equiangular_features", "gnc2_log"):
        assert float(told[name]) == pytest.approx(getattr(wanted, name), rel=1e-5), name
    # Two ranks' states as one, as torchmetrics brings them together.
    halves = [TorchmetricsCollapse(3, 6) for _ in range(2)]
    halves[0].update(h[:20], y[:20])
    halves[1].update(h[20:], y[20:])
    both = halves[0]._merged(torch.stack([half.gathered for half in halves]))
    np.testing.assert_allclose(both.numpy(), metric.gathered.numpy(), rtol=1e-9, atol=1e-12)
    metric.reset()
    assert float(metric.gathered.abs().sum()) == 0.0


def test_other_names():
    import fastnc.nn.callbacks as callbacks

    assert "TrainerCollapse" in callbacks.__all__
    with pytest.raises(AttributeError, match=r"has no attribute 'KerasCollapse'"):
        _ = callbacks.KerasCollapse
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        import fastnc.nn  # noqa: F401
