"""The Triton launchers of the objective against the reference, in both regimes and tiers."""

import numpy as np
import pytest
import torch
from gpu_problems import (
    CASES,
    IN_DESCRIPTORS,
    IN_DOUBLE,
    IN_HALVES,
    IN_ONE_PASS,
    REGIMES,
    TOLERANCE,
    collapsed,
    problem,
    use_small_tiles,
    wide,
)
from interpreted import poison, relative, scalar, tensors

from fastnc import reference
from fastnc.kernels.gpu import cross_entropy as cross_entropy_gpu
from fastnc.kernels.gpu.plan import EXACT, FAST, Narrow, Wide, plan


@pytest.fixture(
    params=CASES + IN_HALVES + IN_ONE_PASS + IN_DESCRIPTORS,
    ids=lambda p: f"{p[0]}-{'x'.join(map(str, p[1]))}-{p[2]}",
)
def case(request, monkeypatch):
    """A shape in its regime; tiles are small, so that a small shape has every remainder."""
    regime, sizes, dtype = request.param
    use_small_tiles(monkeypatch, cross_entropy_gpu, regime)
    return sizes, dtype


def test_all_launchers_agree_with_the_reference(case):
    sizes, dtype = case
    W, H, y = problem(*sizes, dtype)
    tW, tH, ty = tensors(W, H, y)
    exact, dW, dH = reference.loss_and_grads(*wide(W, H), y)
    scale, tolerance = 1.0 / 3.0, TOLERANCE[dtype]
    kernels = cross_entropy_gpu

    loss, (grad_W, grad_H) = scalar(), poison(tW, tH)
    kernels.loss(tW, tH, ty, scale, loss, EXACT)
    assert loss.item() == pytest.approx(scale * exact, rel=tolerance)
    loss = scalar()
    kernels.loss_and_grads(tW, tH, ty, scale, loss, grad_W, grad_H, EXACT)
    assert loss.item() == pytest.approx(scale * exact, rel=tolerance)
    assert relative(grad_W, scale * dW) < tolerance
    assert relative(grad_H, scale * dH) < tolerance

    log_loss, (log_W, log_H) = scalar(), poison(tW, tH)
    kernels.log_loss_and_grads(tW, tH, ty, log_loss, log_W, log_H, EXACT)
    assert log_loss.item() == pytest.approx(np.log(exact), rel=tolerance, abs=tolerance)
    assert relative(log_W, dW / exact) < tolerance
    assert relative(log_H, dH / exact) < tolerance

    loss = scalar()
    kernels.gradient_step(tW, tH, ty, scale, 0.25, loss, EXACT)
    assert loss.item() == pytest.approx(scale * exact, rel=tolerance)
    assert relative(tW, W - 0.25 * scale * dW) < tolerance
    assert relative(tH, H - 0.25 * scale * dH) < tolerance


def run_all(W, H, y, tier=EXACT):
    """Loss, log loss and all gradients."""
    tW, tH, ty = tensors(W, H, y)
    loss, log_loss, grads = scalar(), scalar(), poison(tW, tH, tW, tH)
    cross_entropy_gpu.loss_and_grads(tW, tH, ty, 1.0, loss, *grads[:2], tier)
    cross_entropy_gpu.log_loss_and_grads(tW, tH, ty, log_loss, *grads[2:], tier)
    return loss, log_loss, *grads


# float32 at 40: a logit of 40 is off by one unit, 2e-6, and so is e to its power.
@pytest.mark.parametrize(
    ("regime", "dtype", "margin", "tolerance"),
    [(regime, "float64", 300.0, 2e-13) for regime in IN_DOUBLE]
    + [(regime, "float32", 40.0, 1e-5) for regime in REGIMES],
)
def test_the_terminal_phase_keeps_its_digits(monkeypatch, regime, dtype, margin, tolerance):
    use_small_tiles(monkeypatch, cross_entropy_gpu, regime)
    W, H, y = collapsed(5, 4, margin, dtype)
    exact, dW, dH = reference.loss_and_grads(*wide(W, H), y)
    assert reference.neural_collapse_margin(*wide(W, H), y) > 0.9 * margin
    loss, log_loss, grad_W, grad_H, log_W, log_H = run_all(W, H, y)
    assert loss.item() == pytest.approx(exact, rel=tolerance)
    assert log_loss.item() == pytest.approx(np.log(exact), abs=tolerance)
    for got, want in ((grad_W, dW), (grad_H, dH), (log_W, dW / exact), (log_H, dH / exact)):
        assert relative(got, want) < tolerance
        # Rows of the residual sum to zero, so the classes' gradients do: nothing is biased.
    bias = grad_W.double().sum(0).abs().max().item()
    assert bias < 10 * tolerance * np.abs(dW).max()


@pytest.mark.parametrize("regime", IN_DOUBLE)
@pytest.mark.parametrize("margin", [2e3, 1e5])
def test_the_log_domain_reaches_any_margin(monkeypatch, regime, margin):
    use_small_tiles(monkeypatch, cross_entropy_gpu, regime)
    W, H, y = collapsed(5, 4, margin, "float64")
    exact, dW, dH = reference.log_loss_and_grads(W, H, y)
    assert exact < -0.9 * margin
    _, log_loss, grad_W, grad_H, log_W, log_H = run_all(W, H, y)
    assert log_loss.item() == pytest.approx(exact, rel=1e-15)
    # A gap of `margin` is off by its rounding, and e to its power by as much relatively.
    tolerance = 4 * margin * np.finfo(np.float64).eps
    assert relative(log_W, dW) < tolerance
    assert relative(log_H, dH) < tolerance
    assert not grad_W.any() and not grad_H.any()


@pytest.mark.parametrize(
    ("regime", "dtype"),
    [(regime, "float64") for regime in IN_DOUBLE] + [(regime, "float32") for regime in REGIMES],
)
def test_samples_that_are_wrong_by_a_thousand(monkeypatch, regime, dtype):
    use_small_tiles(monkeypatch, cross_entropy_gpu, regime)
    W, H, y = collapsed(5, 4, 1000.0, dtype)
    y = (y + 1) % 5
    exact, dW, dH = reference.loss_and_grads(*wide(W, H), y)
    assert exact > 900 * len(y)
    loss, log_loss, grad_W, grad_H, _, _ = run_all(W, H, y)
    assert loss.item() == pytest.approx(exact, rel=TOLERANCE[dtype])
    assert log_loss.item() == pytest.approx(np.log(exact), rel=TOLERANCE[dtype])
    assert relative(grad_W, dW) < TOLERANCE[dtype]
    assert relative(grad_H, dH) < TOLERANCE[dtype]


@pytest.mark.parametrize("regime", REGIMES)
def test_the_fast_tier_keeps_two_digits_and_the_exact_one_more(monkeypatch, regime):
    use_small_tiles(monkeypatch, cross_entropy_gpu, regime)
    W, H, y = problem(7, 20, 16, "float32")
    exact, dW, _ = reference.loss_and_grads(*wide(W, H), y)
    _, _, exact_W, *_ = run_all(W, H, y)
    loss, log_loss, fast_W, _, log_W, _ = run_all(W, H, y, FAST)
    # Logits keep 16 bits or more, so that the loss has five digits; the factors of the
    # products keep 8 bits.
    assert loss.item() == pytest.approx(exact, rel=1e-5)
    assert 20 * relative(exact_W, dW) < relative(fast_W, dW) < 2.0**-7
    assert relative(log_W * loss, dW) < 2.0**-7
    assert log_loss.item() == pytest.approx(np.log(loss.item()), rel=1e-6)
    only = scalar()
    cross_entropy_gpu.loss(*tensors(W, H, y), 1.0, only, FAST)
    assert only.item() == pytest.approx(loss.item(), rel=1e-7)
    tW, tH, ty = tensors(W, H, y)
    cross_entropy_gpu.gradient_step(tW, tH, ty, 1.0, 0.5, only, FAST)
    assert only.item() == loss.item()
    torch.testing.assert_close(tW, torch.from_numpy(W).to(tW.device) - 0.5 * fast_W)


def test_what_is_carried_along_is_not_lost(monkeypatch):
    """A logit of 16 and slices of 2^-21, each below half of its last bit, 3e-5 together."""
    W, H = np.zeros((2, 1024), np.float32), np.full((1, 1024), 2.0**-12, np.float32)
    W[0], y = 2.0**-13, np.zeros(1, np.int64)
    W[0, 0] = H[0, 0] = 4.0
    exact = reference.loss(*wide(W, H), y)
    error = {}
    for regime in ("descriptors", "carried"):
        use_small_tiles(monkeypatch, cross_entropy_gpu, regime)
        loss = scalar()
        cross_entropy_gpu.loss(*tensors(W, H, y), 1.0, loss, EXACT)
        error[regime] = abs(loss.item() / exact - 1.0)
    # What is left is the rounding of a logit of 16, 1e-6, and of its exponential.
    assert error["carried"] < 1.5e-6 and error["descriptors"] > 2e-5


@pytest.mark.parametrize("regime", REGIMES)
def test_the_same_bits_every_time(monkeypatch, regime):
    use_small_tiles(monkeypatch, cross_entropy_gpu, regime)
    W, H, y = problem(17, 7, 17, "float32")
    once, again = (run_all(W, H, y) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_the_shipped_tiles_too():
    cases = [
        (10, 33, 65, Narrow), (40, 9, 33, Narrow), (131, 9, 33, Wide),
    ]  # fmt: skip
    for K, d, N, regime in cases:
        assert isinstance(plan(K, d, N, "float32", "exact", True), regime)
        W, H, y = problem(K, d, N, "float32")
        exact, dW, dH = reference.loss_and_grads(*wide(W, H), y)
        loss, _, grad_W, grad_H, *_ = run_all(W, H, y)
        assert loss.item() == pytest.approx(exact, rel=TOLERANCE["float32"])
        assert relative(grad_W, dW) < TOLERANCE["float32"]
        assert relative(grad_H, dH) < TOLERANCE["float32"]


@pytest.mark.parametrize("regime", REGIMES)
def test_a_nan_of_any_pattern_shows(monkeypatch, regime):
    use_small_tiles(monkeypatch, cross_entropy_gpu, regime)
    W, H, y = problem(7, 20, 16, "float32")
    H[3, 4] = np.array(0x7FFFFFFF, np.uint32).view(np.float32)
    loss, log_loss, grad_W, grad_H, *_ = run_all(W, H, y)
    assert not torch.isfinite(loss) and not torch.isfinite(log_loss)
    assert not torch.isfinite(grad_W).any(1).any() and not torch.isfinite(grad_H[3]).any()


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("margin", [60.0, 80.0, 87.0, 95.0, 100.0])
def test_residuals_beyond_the_range_of_the_exponential(monkeypatch, regime, margin):
    """One feature and logits exact in float32: e^-margin itself is no normal number from 87.4 on.

    The gradients are, by the size of the sample's feature; the loss is a float64.
    """
    use_small_tiles(monkeypatch, cross_entropy_gpu, regime)
    W = np.zeros((5, 1), np.float32)
    W[2] = margin / 4096.0
    H, y = np.full((3, 1), 4096.0, np.float32), np.full(3, 2)
    W = W.astype(np.float16).astype(np.float32)
    exact, dW, dH = reference.loss_and_grads(*wide(W, H), y)
    loss, log_loss, grad_W, grad_H, *_ = run_all(W, H, y)
    # A residual keeps 16 bits in a product; a gap of 100 is off by half a unit, 4e-6.
    assert loss.item() == pytest.approx(exact, rel=1e-5, abs=0.0)
    assert log_loss.item() == pytest.approx(np.log(exact), rel=1e-6)
    normal = np.finfo(np.float32).tiny
    for got, want in ((grad_W, dW), (grad_H, dH)):
        seen = np.abs(want) >= normal
        np.testing.assert_allclose(got.double().cpu().numpy()[seen], want[seen], rtol=5e-5)
    assert (np.abs(dW) >= normal).all() == (margin < 96.0)
