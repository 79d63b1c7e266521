"""The Triton loss of networks against torch's own in float64, and the reference in the tail."""

import numpy as np
import pytest
import torch
from gpu_problems import TOLERANCE, collapsed, problem, use_small_tiles, wide
from interpreted import DEVICE, poison, relative, scalar, tensors
from torch.nn.functional import cross_entropy

from fastnc import reference
from fastnc.kernels.gpu import weighted_cross_entropy as kernels


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    use_small_tiles(monkeypatch, kernels, "wide", "wide_plan")


def run(W, H, y, bias, weight, smoothing, scale):
    """Total, losses and the gradients of W, H and the bias, every output poisoned."""
    empty = W[:0, 0]
    tW, tH, ty, b, v, s = tensors(
        W, H, y, empty if bias is None else bias, empty if weight is None else weight, scale
    )
    losses, grad_W, grad_H, grad_bias = poison(tH[:, 0], tW, tH, tW[:, 0])
    total = scalar()
    kernels.loss_and_grads(tW, tH, ty, b, v, smoothing, s, total, losses, grad_W, grad_H, grad_bias)
    return total, losses, grad_W, grad_H, grad_bias


def by_torch(W, H, y, bias, weight, smoothing, scale):
    """The same by torch in float64; samples of a negative label left out."""
    W, H, bias, weight, scale = (
        None if x is None else torch.from_numpy(np.array(x, np.float64))
        for x in (W, H, bias, weight, scale)
    )
    bias = torch.zeros(len(W), dtype=torch.float64) if bias is None else bias
    for x in (W, H, bias):
        x.requires_grad_()
    losses = cross_entropy(
        H @ W.T + bias, torch.from_numpy(y), weight, reduction="none",
        ignore_index=-1, label_smoothing=smoothing,
    )  # fmt: skip
    (losses * scale).sum().backward()
    return [x.detach().numpy() for x in (losses, W.grad, H.grad, bias.grad)]


@pytest.mark.parametrize(
    ("sizes", "bias", "weight", "smoothing", "many", "dtype"),
    [
        ((2, 1, 1), True, True, 0.1, True, "float64"),
        ((33, 17, 70), True, True, 0.2, True, "float32"),
        ((67, 5, 9), False, False, 0.0, True, "float64"),
        ((3, 33, 5), True, False, 0.0, False, "float32"),
        ((32, 32, 32), False, True, 0.3, False, "float64"),
    ],
)
def test_every_option_agrees_with_torch(sizes, bias, weight, smoothing, many, dtype):
    W, H, y = problem(*sizes, dtype, scale=0.7)
    rng = np.random.default_rng(sum(sizes))
    y[:: max(3, len(y) // 5)] = -1
    y[-1] = 0
    b = rng.standard_normal(len(W)).astype(dtype) if bias else None
    v = rng.uniform(0.5, 2.0, len(W)).astype(dtype) if weight else None
    scale = rng.uniform(0.1, 1.0, len(H) if many else 1).astype(dtype)
    total, *got = run(W, H, y, b, v, smoothing, scale)
    exact = by_torch(W, H, y, b, v, smoothing, scale)
    assert total.item() == pytest.approx(exact[0].sum(), rel=TOLERANCE[dtype])
    for ours, theirs in zip(got, exact, strict=True):
        assert relative(ours, theirs) < TOLERANCE[dtype]
    assert (y == -1).sum() == 0 or not got[0][torch.from_numpy(y == -1).to(DEVICE)].any()


@pytest.mark.parametrize(
    ("dtype", "margin", "tolerance"), [("float64", 300.0, 2e-13), ("float32", 40.0, 1e-5)]
)
def test_the_terminal_phase_keeps_its_digits(dtype, margin, tolerance):
    W, H, y = collapsed(5, 4, margin, dtype)
    exact, dW, dH = reference.loss_and_grads(*wide(W, H), y)
    total, losses, grad_W, grad_H, _ = run(W, H, y, None, None, 0.0, np.ones(1, dtype))
    assert total.item() == pytest.approx(exact, rel=tolerance)
    assert losses.double().sum().item() == pytest.approx(exact, rel=tolerance)
    assert relative(grad_W, dW) < tolerance
    assert relative(grad_H, dH) < tolerance


def test_only_what_is_wanted_is_written():
    W, H, y = problem(5, 6, 20, "float64")
    everything = run(W, H, y, None, None, 0.1, np.ones(1))
    tW, tH, ty, one, empty = tensors(W, H, y, np.ones(1), np.empty(0))
    total = scalar()
    nothing = (empty, tW[:0], tH[:0], empty)
    kernels.loss_and_grads(tW, tH, ty, empty, empty, 0.1, one, total, *nothing)
    assert torch.equal(total, everything[0])
    (grad_H,) = poison(tH)
    kernels.loss_and_grads(tW, tH, ty, empty, empty, 0.1, one, total, empty, tW[:0], grad_H, empty)
    assert torch.equal(grad_H, everything[3])
