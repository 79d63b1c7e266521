"""Rules, schedules, noise and models on a device beside the same runs on the CPU."""

import numpy as np
import pytest
import torch
from interpreted import DEVICE, play_a_gpu, play_graphs

import fastnc
from fastnc import reference
from fastnc.dynamics import device_gradients
from fastnc.dynamics.steppers import cuda, cuda_penalised
from fastnc.dynamics.steppers.cuda_composed import CudaComposed, max_spectral_square

M, R = fastnc.models, fastnc.rules
SMALL = fastnc.ULPM(3, 4, 5)
# Some epochs of a few roundings a sum, in float64, of numbers of order one.
CLOSE = {"rtol": 1e-11, "atol": 1e-12}


@pytest.fixture(autouse=True)
def device(monkeypatch):
    """Without a GPU the CPU passes for one: the kernels are interpreted."""
    if DEVICE != "cuda":
        play_a_gpu(monkeypatch.setattr)


def both(model, *arguments, **options):
    """The same run on the CPU and on the device."""
    return [
        fastnc.descend(model, *arguments, snapshots=2, device=where, **options)
        for where in ("cpu", "cuda")
    ]


def agree(cpu, gpu, names=("log_loss", "margin")):
    """Factors, and what was measured of them."""
    for factor in "WH":
        np.testing.assert_allclose(getattr(gpu, factor), getattr(cpu, factor), **CLOSE)
    for name in names:
        np.testing.assert_allclose(gpu[name], cpu[name], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "rule",
    [
        R.GradientDescent(R.LossScaled()), R.GradientDescent(R.Polyak(factor=0.1)),
        R.Momentum(R.LossScaled(0.1), momentum=0.5), R.Adam(1e-2, eps=0.0),
        R.AdamW(R.Cosine(1e-2, 5), eps=0.0), R.Adam(R.Polyak(0.01, 0.02), eps=0.0),
    ],
    ids=[
        "loss-scaled", "polyak", "momentum, loss-scaled", "adam without eps", "adamw without eps",
        "adam without eps, polyak of L",
    ],
)  # fmt: skip
def test_steps_along_log_L(rule):
    agree(*both(SMALL, rule=rule, epochs=5))


def test_the_largest_residual_and_the_largest_singular_value(monkeypatch):
    # Chunks of two rows.
    monkeypatch.setattr(device_gradients, "_CHUNK_BYTES", 2 * 8 * 8)
    W, H = SMALL.init(0)
    gap = device_gradients.largest_gap(*(torch.from_numpy(x) for x in (W, H, SMALL.y.copy())))
    Z = H @ W.T
    p = np.exp(Z) / np.exp(Z).sum(axis=1, keepdims=True)
    largest = (1.0 - p[np.arange(12), SMALL.y]).max()
    assert 1.0 / (1.0 + np.exp(-float(gap))) == pytest.approx(largest, rel=1e-14)
    square = float(max_spectral_square(torch.from_numpy(W), torch.from_numpy(H)))
    wanted = max(np.linalg.norm(x, 2) ** 2 for x in (W, H))
    assert square == pytest.approx(wanted, rel=1e-14)


MODELS = {
    "decay": M.weight_decay(3, 4, 5, 1e-2, 2e-2),
    "decay, bias": M.weight_decay(3, 4, 5, 1e-2, 2e-2, bias=True),
    "decay, smoothed": M.weight_decay(3, 4, 5, 1e-2, 2e-2, label_smoothing=0.1),
    "imbalanced": M.imbalanced((5, 3, 2), 5, 1e-2, 2e-2),
    "squared": M.squared_error(3, 4, 5, 1e-2, 2e-2),
    "squared, bias": M.squared_error(3, 4, 5, 1e-2, 2e-2, bias=True),
    "squared, imbalanced": M.imbalanced_squared_error((5, 3, 2), 5, 1e-2, 2e-2),
}


@pytest.mark.parametrize("on_host", [True, False], ids=["measured there", "measured here"])
@pytest.mark.parametrize("name", MODELS)
def test_models_with_decay(name, on_host, monkeypatch):
    if not on_host:
        for module in (cuda, cuda_penalised):
            monkeypatch.setattr(module, "ON_THE_HOST", 0)
    cpu, gpu = both(MODELS[name], rule=R.Momentum(0.5, momentum=0.5), epochs=4)
    agree(cpu, gpu, ("log_loss", "margin", "objective"))
    if MODELS[name].has_bias:
        np.testing.assert_allclose(gpu.bias, cpu.bias, **CLOSE)


def test_a_polyak_step_towards_a_known_minimum():
    model = MODELS["decay"]
    least = model.optimum().value
    agree(*both(model, rule=R.GradientDescent(R.Polyak(least, factor=0.5)), epochs=4))


def test_a_batch_of_all_is_all_and_a_flipped_label_of_two_is_the_other():
    plain, _ = both(SMALL, 0.5, epochs=3)
    dealt = fastnc.descend(SMALL, 0.5, 3, batch_size=12, snapshots=2, device="cuda")
    agree(plain, dealt)
    two = fastnc.ULPM(2, 3, 4)
    other = fastnc.ULPM(2, dim=4, labels=1 - two.y)
    flipped = fastnc.descend(two, 0.5, 3, label_noise=1.0, snapshots=2, device="cuda")
    agree(fastnc.descend(other, 0.5, 3, snapshots=2), flipped, ())


@pytest.mark.parametrize("replacement", [False, True])
def test_each_batch_moves_its_own_rows(replacement):
    labels = torch.from_numpy(SMALL.y.copy()).to(DEVICE)
    source = device_gradients.MiniBatch(labels, 5, replacement, 0)
    W, H = (torch.from_numpy(x).to(DEVICE) for x in SMALL.init(0))
    dealt = list(source.epoch())
    assert source.steps == len(dealt) == 3
    rows = torch.cat(dealt)
    if not replacement:
        assert rows.sort().values.tolist() == list(range(12))
    rows = torch.tensor([1, 7, 1], device=DEVICE) if replacement else dealt[0]
    got = source.at((W, H), rows, device_gradients.Wanted(value=True))
    value, dW, dH = reference.loss_and_grads(
        W.cpu().numpy(), H.cpu().numpy()[rows.cpu()], SMALL.y[rows.cpu()]
    )
    assert float(got.value) == pytest.approx(value / len(rows), rel=1e-13)
    wanted = np.zeros(H.shape)
    np.add.at(wanted, rows.cpu().numpy(), dH / len(rows))
    np.testing.assert_allclose(got.gradients[0].cpu(), dW / len(rows), **CLOSE)
    np.testing.assert_allclose(got.gradients[1].cpu(), wanted, **CLOSE)


def test_noise_is_normal_and_of_the_size_that_was_asked_for():
    model, size = fastnc.ULPM(2, 200, 20), 0.3
    W, H = model.init(0)
    plain = fastnc.descend(model, 1.0, 1, device="cuda")
    noisy = fastnc.descend(model, 1.0, 1, noise=size, device="cuda")
    pairs = (plain.W, noisy.W), (plain.H, noisy.H)
    drawn = np.concatenate([((a - b) / size).ravel() for a, b in pairs])
    n = drawn.size
    assert n > 8000 and len(np.unique(drawn)) == n
    # Five standard deviations of the mean, the variance and the fourth moment of n normals.
    assert abs(drawn.mean()) < 5 / np.sqrt(n)
    assert abs((drawn**2).mean() - 1.0) < 5 * np.sqrt(2 / n)
    assert abs((drawn**4).mean() - 3.0) < 5 * np.sqrt(96 / n)
    other = fastnc.descend(model, 1.0, 1, noise=size, seed=1, W=W, H=H, device="cuda")
    assert not np.any(other.W == noisy.W)


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.5, "noise": 0.1}, {"lr": 0.5, "batch_size": 5},
        {"lr": 0.5, "label_noise": 0.3, "batch_size": 5, "replacement": True},
        {"rule": R.Adam(1e-2, eps=0.0)},
    ],
    ids=["noise", "batches", "flipped labels", "adam"],
)  # fmt: skip
def test_it_resumes_bit_for_bit(options, tmp_path):
    path, more = tmp_path / "run.npz", {"snapshots": 2, "device": "cuda", **options}
    straight = fastnc.descend(SMALL, epochs=6, **more)
    for epochs in (2, 6):
        resumed = fastnc.descend(SMALL, epochs=epochs, checkpoint=path, resume=True, **more)
    np.testing.assert_array_equal(resumed.W, straight.W)
    np.testing.assert_array_equal(resumed.H, straight.H)


def test_a_table_of_steps_changes_no_bit(monkeypatch):
    monkeypatch.setattr(cuda, "EPOCHS_A_GRAPH", 2)
    replays = play_graphs(monkeypatch, CudaComposed)

    def stepper():
        W, H = SMALL.init(0)
        rule = R.Adam(R.Cosine(1e-2, 9))
        return CudaComposed(
            W, H, SMALL.y, rule, lambda labels, W: device_gradients.FullBatch(labels)
        )

    whole, parts = stepper(), stepper()
    whole.advance(7, 7)
    for epochs in (1, 1, 3, 2):
        parts.advance(7, epochs)
    assert DEVICE == "cuda" or len(replays) == 2 + 1
    for factor in "WH":
        np.testing.assert_array_equal(getattr(whole, factor), getattr(parts, factor))


@pytest.mark.parametrize(
    ("model", "options", "sentence"),
    [
        (M.sphere(3, 4, 5, 4.0), {}, "models with weight decay and no constraint"),
        (SMALL, {"rule": R.SignDescent(0.1)}, "GradientDescent, Momentum, Adam and AdamW"),
    ],
    ids=["a constraint", "a rule"],
)  # fmt: skip
def test_what_has_no_form_there_is_refused(model, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        fastnc.descend(model, epochs=1, device="cuda", **options)


def test_steps_that_are_too_large_are_told():
    with pytest.raises(fastnc.Diverged, match=r"steps of `lr`=Power\(.*\) are too large"):
        fastnc.descend(SMALL, R.Power(1e300, 0.5), 4, device="cuda")
