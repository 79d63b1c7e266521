"""The Triton epoch loops against a plain NumPy loop: small problems, mid sizes, both dtypes."""

import numpy as np
import pytest
import torch
from gpu_problems import collapsed, problem, use_small_tiles
from interpreted import tensors

from fastnc import reference
from fastnc.kernels.gpu import cross_entropy as cross_entropy_gpu
from fastnc.kernels.gpu import trajectory as trajectory_gpu

NOTHING = np.zeros((0, 0))


def plain(W, H, y, lr, epochs):
    """The obvious loop in float64."""
    W, H = W.astype(np.float64), H.astype(np.float64)
    for _ in range(epochs):
        _, W, H = reference.gradient_step(W, H, y, lr / len(y))
    return W, H


def lows(W, H, compensated):
    if compensated:
        return np.zeros_like(W), np.zeros_like(H)
    return NOTHING.astype(W.dtype), NOTHING.astype(W.dtype)


def state(tW, tH, W_low, H_low):
    """What a run stands at: the sum of a value and what rounding took from it."""
    both = zip((tW, tH), (W_low, H_low), strict=True)
    return [(x.double() + low.double() if low.numel() else x).cpu().numpy() for x, low in both]


# The paper's shape; the least there is; slabs and rows with remainders; all aligned.
@pytest.mark.parametrize("products", [False, True], ids=["lanes", "products"])
@pytest.mark.parametrize("sizes", [(5, 20, 50), (2, 1, 1), (3, 9, 17), (4, 8, 16)], ids=str)
def test_epochs_of_a_small_problem(sizes, products, monkeypatch):
    monkeypatch.setattr(trajectory_gpu, "SHIPPED_PRODUCTS", products)
    K, d, N = sizes
    if products and trajectory_gpu.by_products(K, d, N, True) is None:
        pytest.skip("an older Triton's tiles are too large for this one")
    assert trajectory_gpu.by_products(K, d, N, False) is None
    W, H, y = problem(K, d, N, "float64")
    assert trajectory_gpu.small_tile(K, d, N, 8) is not None
    exact = plain(W, H, y, 0.7, 3)
    tW, tH, ty = tensors(W, H, y)
    low = tensors(*lows(W, H, False))
    trajectory_gpu.descend(tW, tH, *low, ty, 1.0 / N, 0.7, 3)
    for ours, theirs in zip((tW, tH), exact, strict=True):
        # Three epochs of a few roundings each.
        np.testing.assert_allclose(ours.cpu(), theirs, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("products", [False, True], ids=["lanes", "products"])
def test_many_problems_at_once_have_the_bits_of_each_alone(monkeypatch, products):
    monkeypatch.setattr(trajectory_gpu, "SHIPPED_PRODUCTS", products)
    monkeypatch.setattr(trajectory_gpu, "EPOCHS_A_LAUNCH", 2)
    B, K, d, N = 2, 3, 9, 17
    starts = [problem(K, d, N, "float64", seed=b) for b in range(B)]
    y = starts[0][2]
    W, H, rates = tensors(
        np.stack([s[0] for s in starts]),
        np.stack([s[1] for s in starts]),
        np.array([0.1, 5.0]),
    )
    (ty,) = tensors(y)
    none = W.new_empty((B, 0, 0))
    trajectory_gpu.descend_many(W, H, none, none, ty, 1.0 / N, rates, 3)
    for b, (W_b, H_b, _) in enumerate(starts):
        alone = tensors(W_b, H_b)
        low = tensors(*lows(W_b, H_b, False))
        trajectory_gpu.descend(*alone, *low, ty, 1.0 / N, float(rates[b]), 3)
        assert torch.equal(W[b], alone[0]) and torch.equal(H[b], alone[1])
        exact = plain(W_b, H_b, y, float(rates[b]), 3)
        # Roundings of the first epochs grow with the curvature times the step, up to 5.
        np.testing.assert_allclose(W[b].cpu(), exact[0], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("margin", [300.0, 1000.0])
def test_products_at_any_margin(monkeypatch, margin):
    """Separated samples, and with labels turned wrong ones, whose exponent has a shift."""
    monkeypatch.setattr(trajectory_gpu, "SHIPPED_PRODUCTS", True)
    for turned in (0, 1):
        W, H, y = collapsed(5, 4, margin, "float64")
        y = (y + turned) % 5
        tW, tH, ty = tensors(W, H, y)
        trajectory_gpu.descend(tW, tH, *tensors(*lows(W, H, False)), ty, 1.0 / len(y), 0.5, 1)
        for ours, theirs in zip((tW, tH), plain(W, H, y, 0.5, 1), strict=True):
            np.testing.assert_allclose(ours.cpu(), theirs, rtol=1e-13, atol=1e-13 * margin**0.5)


@pytest.mark.parametrize("regime", ["small", "narrow", "wide"])
def test_compensated_float32_keeps_what_rounding_takes(monkeypatch, regime):
    K, d, N = 3, 5, 8
    W, H, y = problem(K, d, N, "float32")
    if regime != "small":
        monkeypatch.setattr(trajectory_gpu, "is_small", lambda W, H, W_low: False)
        use_small_tiles(monkeypatch, cross_entropy_gpu, regime)
    # Steps so short that float32 would lose most of each: an entry's unit is 1e-7.
    lr, epochs = 1e-6, 4
    exact = plain(W, H, y, lr, epochs)
    change = np.abs(exact[0] - W).max()
    errors = {}
    for compensated in (True, False):
        tW, tH, ty = tensors(W, H, y)
        low = tensors(*lows(W, H, compensated))
        trajectory_gpu.descend(tW, tH, *low, ty, 1.0 / N, lr, epochs)
        got = state(tW, tH, *low)
        errors[compensated] = max(
            np.abs(ours - theirs).max() for ours, theirs in zip(got, exact, strict=True)
        )
    # The gradient itself has float32's digits, of two bf16 parts at least 16 bits.
    assert errors[True] < 2e-5 * change
    assert errors[False] > 1e-2 * change


@pytest.mark.parametrize("regime", ["narrow", "wide"])
def test_epochs_of_a_larger_problem_are_steps(monkeypatch, regime):
    use_small_tiles(monkeypatch, cross_entropy_gpu, regime)
    W, H, y = problem(17, 9, 20, "float64")
    tW, tH, ty = tensors(W, H, y)
    low = tensors(*lows(W, H, False))
    assert not trajectory_gpu.is_small(tW, tH, low[0])
    trajectory_gpu.descend(tW, tH, *low, ty, 1.0 / 20, 0.5, 2)
    exact = plain(W, H, y, 0.5, 2)
    for ours, theirs in zip((tW, tH), exact, strict=True):
        np.testing.assert_allclose(ours.cpu(), theirs, rtol=1e-13, atol=1e-14)


def test_what_is_small_fits_the_registers():
    # 255 registers a thread, of which a float64 takes two; a quarter more may lie in memory.
    assert trajectory_gpu.small_tile(5, 20, 50, True) == (64, 3, 1)
    assert trajectory_gpu.small_tile(5, 20, 128, True) == (128, 3, 2)
    assert trajectory_gpu.small_tile(5, 20, 50, False) == (64, 3, 1)
    assert trajectory_gpu.small_tile(17, 8, 16, True) is None
    assert trajectory_gpu.small_tile(5, 20, 5000, True) is None
    assert trajectory_gpu.small_tile(10, 64, 50, True) is None
