"""The Triton Hessian products against the reference, in both regimes and tiers."""

import numpy as np
import pytest
import torch
from gpu_problems import CASES, TOLERANCE, collapsed, problem, use_small_tiles, wide
from interpreted import poison, relative, tensors

from fastnc import reference
from fastnc.kernels.gpu import hessian as hessian_gpu
from fastnc.kernels.gpu.plan import EXACT, FAST


def product(W, H, y, dW, dH, scale=1.0, tier=EXACT):
    given = tensors(W, H, y, dW, dH)
    HW, HH = poison(*given[:2])
    hessian_gpu.hessian_vector_product(*given, scale, HW, HH, tier)
    return HW, HH


def direction(W, H):
    rng = np.random.default_rng(len(H))
    return (rng.standard_normal(x.shape).astype(x.dtype) for x in (W, H))


@pytest.mark.parametrize(("regime", "sizes", "dtype"), CASES)
def test_the_product_agrees_with_the_reference(monkeypatch, regime, sizes, dtype):
    use_small_tiles(monkeypatch, hessian_gpu, regime, "hessian_plan")
    W, H, y = problem(*sizes, dtype)
    dW, dH = direction(W, H)
    exact = reference.hessian_vector_product(*wide(W, H, y, dW, dH))
    got = product(W, H, y, dW, dH, scale=1 / 7)
    for ours, theirs in zip(got, exact, strict=True):
        # dZ is a difference of two sums of products, each off by as much as TOLERANCE says.
        assert relative(ours, theirs / 7) < 2 * TOLERANCE[dtype]


@pytest.mark.parametrize("regime", ["narrow", "wide", "carried"])
@pytest.mark.parametrize(("dtype", "margin"), [("float64", 300.0), ("float32", 40.0)])
def test_it_is_exact_in_the_terminal_phase(monkeypatch, regime, dtype, margin):
    use_small_tiles(monkeypatch, hessian_gpu, regime, "hessian_plan")
    W, H, y = collapsed(5, 4, margin, dtype)
    dW, dH = direction(W, H)
    exact = reference.hessian_vector_product(*wide(W, H, y, dW, dH))
    got = product(W, H, y, dW, dH)
    # A gap is off by its rounding, margin units, and the residual by as much relatively.
    tolerance = 2 * TOLERANCE[dtype] + 2 * margin * np.finfo(dtype).eps
    for ours, theirs in zip(got, exact, strict=True):
        assert 0 < np.abs(theirs).max() < np.exp(-0.8 * margin)
        assert relative(ours, theirs) < tolerance


def test_the_fast_tier_keeps_two_digits(monkeypatch):
    use_small_tiles(monkeypatch, hessian_gpu, "narrow", "hessian_plan")
    W, H, y = problem(7, 20, 16, "float32")
    dW, dH = direction(W, H)
    exact, _ = reference.hessian_vector_product(*wide(W, H, y, dW, dH))
    ours, again, fast = (product(W, H, y, dW, dH, tier=tier)[0] for tier in (EXACT, EXACT, FAST))
    assert torch.equal(ours, again)
    # The products' factors keep 8 bits.
    assert 20 * relative(ours, exact) < relative(fast, exact) < 2e-2
