"""Descent on other losses of a ULPM by every rule; what goes together with them and what not."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fastnc

R = fastnc.rules
Y = np.repeat(np.arange(4), 5)
MODELS = {
    name: fastnc.ULPM(4, 5, 6, loss=name) for name in ("squared", "focal", "smoothed")
}  # fmt: skip
RULES = (
    R.GradientDescent(0.5, weight_decay=1e-2), R.Momentum(0.1), R.Adam(1e-2), R.AdamW(1e-2),
    R.SignDescent(2e-3), R.NormalizedDescent(1e-2), R.SpectralDescent(2e-3),
    R.SharpnessAware(0.5, radius=0.1),
)  # fmt: skip


def torch_loss(name, Z, y):
    match name:
        case "squared":
            return (Z - F.one_hot(y, 4)).square().sum() / 2 / len(y)
        case "focal":
            log_p = F.log_softmax(Z, 1).gather(1, y[:, None])
            return -((1 - log_p.exp()) ** 2 * log_p).mean()
        case "smoothed":
            return F.cross_entropy(Z, y, label_smoothing=0.1)
        case "cross-entropy":
            return F.cross_entropy(Z, y)


def gradients(name, W, H, y=Y):
    blocks = [torch.from_numpy(x).requires_grad_() for x in (W, H)]
    torch_loss(name, blocks[1] @ blocks[0].T, torch.from_numpy(np.array(y))).backward()
    return tuple(block.grad.numpy() for block in blocks)


def loop(name, rule, epochs):
    """The rule's own update on torch's gradients."""
    theta = list(MODELS[name].init(0))
    state, lr = rule.init(*theta), rule.lr
    for t in range(1, epochs + 1):
        grads = gradients(name, *theta)
        if hasattr(rule, "climb"):
            there = [x + c for x, c in zip(theta, rule.climb(grads), strict=True)]
            grads = gradients(name, *there)
        changes = rule.update(tuple(theta), grads, state, (lr, lr), t)
        theta = [x + c for x, c in zip(theta, changes, strict=True)]
    return theta


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_a_rule_on_torchs_gradients(name, rule):
    run = fastnc.descend(MODELS[name], rule=rule, epochs=60, snapshots=2)
    # A few ulp an epoch, which rules that divide by gradients enlarge: these are still above 1e-5.
    for x, y in zip((run.W, run.H), loop(name, rule, 60), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-9)
    Z = torch.from_numpy(run.H @ run.W.T)
    told = torch_loss(name, Z, torch.from_numpy(Y))
    assert run["objective"][-1] == pytest.approx(told.item(), rel=1e-12)
    # Loss, margin and geometry are the ULPM's, whatever is minimised.
    plain = torch_loss("cross-entropy", Z, torch.from_numpy(Y))
    assert run["log_loss"][-1] == pytest.approx(np.log(plain.item()), rel=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_it_goes_to_the_optimum_or_to_infinity(name):
    run = fastnc.descend(MODELS[name], rule=R.Momentum(0.5), epochs=3000, snapshots=2)
    if name == "focal":
        assert run["objective"][-1] < 1e-4 and run["margin"][-1] > run["margin"][-2]
        polyak = fastnc.descend(MODELS[name], R.Polyak(), 200, snapshots=2)
        # By steps along log L, which no margin ends.
        assert polyak["log_loss"][-1] < -50
    else:
        least = MODELS[name].optimum().value
        assert run["objective"][-1] == pytest.approx(least, rel=1e-12, abs=1e-15)


def test_batches_noises_freezing_and_float32_stop_and_resume(tmp_path):
    options = {"batch_size": 7, "label_noise": 0.1, "noise": 1e-3, "freeze": "W", "snapshots": 2}
    model, path = MODELS["squared"], tmp_path / "checkpoint.npz"
    whole = fastnc.descend(model, 0.5, 60, dtype="float32", **options)
    for epochs in (1, 13, 60):
        run = fastnc.descend(
            model, 0.5, epochs, dtype="float32", **options, checkpoint=path, resume=True
        )
    assert run.H.tobytes() == whole.H.tobytes() and run.H.dtype == np.float32
    assert np.array_equal(run.W, model.init(0, "float32")[0])
    alone = fastnc.descend(model, 0.5, 60, seed=1, dtype="float32", **options)
    swept = fastnc.sweep(model, 0.5, 60, [0, 1], dtype="float32", **options)
    assert swept[1].H.tobytes() == alone.H.tobytes()
    with pytest.raises(ValueError, match=r"of another problem: its `model` is .*Squared"):
        fastnc.descend(
            MODELS["focal"], 0.5, 60, dtype="float32", **options, checkpoint=path, resume=True
        )


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("squared", {"lr": R.Polyak()}, r"Polyak\(.*\) and loss='squared' do not go together"),
        ("focal", {"schedule": "loss-scaled"}, r"LossScaled.* and loss='focal' do not go toget"),
        ("focal", {"device": "cuda"}, "device='cuda' and loss='focal' do not go together: it has"),
        ("smoothed", {"sharded": True}, "`sharded` and loss='smoothed' do not go together: ranks"),
        ("focal", {"measure": "sharpness"}, "`measure` must hold functions .* where loss='focal'"),
    ],
)
def test_what_does_not_go_together(name, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        fastnc.descend(MODELS[name], epochs=5, **options)
