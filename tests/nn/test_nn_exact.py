"""The torch loss where torch's own has no digits left, against mpmath and float64."""

import mpmath
import numpy as np
import pytest
import torch
from nn_problem import expected, problem

from fastnc.nn import linear_cross_entropy


def exact(z, y, v, smoothing):
    """Loss of one sample and its derivatives by the logits, in 60 digits."""
    mpmath.mp.dps = 60
    z = [mpmath.mpf(x) for x in z]
    v = [mpmath.mpf(x) for x in v]
    t = mpmath.mpf(smoothing)
    K = len(z)
    mass = [t * v[j] / K + ((1 - t) * v[j] if j == y else 0) for j in range(K)]
    # Digits enough for the smallest of all probabilities beside 1.
    mpmath.mp.dps = 60 + int(2 * max(abs(a - b) for a in z for b in z))
    top = max(z)
    log_sum = top + mpmath.log(sum(mpmath.exp(a - top) for a in z))
    total = sum(mass)
    loss = sum(m * (log_sum - a) for m, a in zip(mass, z, strict=True))
    return loss, [total * mpmath.exp(a - log_sum) - m for a, m in zip(z, mass, strict=True)]


@pytest.mark.parametrize("by", ["input", "bias"])
@pytest.mark.parametrize("K", [2, 4, 9])
@pytest.mark.parametrize(
    "dtype, low, high, bound",
    # A few units in the last place: one exponential, one log1p, K terms and a division.
    [(torch.float64, -200.0, 700.0, 1e-14), (torch.float32, -80.0, 85.0, 1e-6)],
)
def test_no_digit_is_lost_at_any_margin(dtype, low, high, bound, K, by):
    least = torch.finfo(dtype).tiny
    worst = 0.0
    # Multiples of 1/8, so that every logit and every gap is exact.
    for margin in np.round(np.linspace(low, high, 41) * 8) / 8:
        z = [margin] + [-0.125 * j for j in range(K - 1)]
        column = torch.tensor(z, dtype=dtype)[:, None]
        W = (column if by == "input" else torch.zeros_like(column)).requires_grad_()
        b = (column[:, 0].clone() if by == "bias" else torch.zeros(K, dtype=dtype)).requires_grad_()
        H = torch.ones(1, 1, dtype=dtype, requires_grad=True)
        loss = linear_cross_entropy(H, W, torch.tensor([0]), linear_bias=b, reduction="sum")
        grad_W, grad_b = torch.autograd.grad(loss, [W, b])
        true_loss, true_r = exact(z, 0, [1.0] * K, 0.0)
        pairs = [(loss, true_loss), *zip(grad_W[:, 0], true_r, strict=True)]
        for got, true in [*pairs, *zip(grad_b, true_r, strict=True)]:
            if abs(true) > least:
                worst = max(worst, float(abs(mpmath.mpf(got.item()) - true) / abs(true)))
    assert worst < bound


@pytest.mark.parametrize("smoothing", [0.0, 0.125])
def test_no_digit_is_lost_with_weights_and_smoothing(smoothing):
    """Smoothing alone makes numbers cancel: where a residual crosses zero, at a small margin."""
    v = [0.5, 2.0, 1.25]
    for margin in (-200.0, -30.0, 20.0, 40.0, 300.0, 700.0):
        z = [margin, 0.0, -0.25]
        W = torch.tensor(z, dtype=torch.float64)[:, None].requires_grad_()
        H = torch.ones(1, 1, dtype=torch.float64)
        loss = linear_cross_entropy(
            H, W, torch.tensor([0]), weight=torch.tensor(v, dtype=torch.float64),
            reduction="sum", label_smoothing=smoothing,
        )  # fmt: skip
        (grad,) = torch.autograd.grad(loss, W)
        true_loss, true_r = exact(z, 0, v, smoothing)
        for got, true in [(loss, true_loss), *zip(grad[:, 0], true_r, strict=True)]:
            # A few units in the last place.
            assert abs(mpmath.mpf(got.item()) - true) <= 1e-14 * abs(true)


def test_many_classes_are_exact_too():
    """The kernel for large W, against float64 gaps worked out one by one."""
    K, d = 9000, 128
    g = torch.Generator().manual_seed(0)
    W = (torch.randn(K, d, generator=g) / 8).requires_grad_()
    y = torch.tensor([3, 8999, 512])
    # Two samples in the terminal phase, margins near 60, and one that is wrong by as much.
    h = 4.0 * W.detach()[[3, 8999, 100]] * torch.tensor([[8.0], [8.0], [8.0]])
    h.requires_grad_()
    losses = linear_cross_entropy(h, W, y, reduction="none")
    z = h.detach().double() @ W.detach().double().T
    gaps = z - z.gather(1, y[:, None])
    gaps.scatter_(1, y[:, None], -torch.inf)
    true = torch.logsumexp(gaps, 1)
    true = torch.where(true < -30, true.exp(), torch.log1p(true.exp()))
    assert true[:2].max() < 1e-10 and true[2] > 20
    # float32 logits near 64 are 4e-6 apart, and their errors are exponentiated.
    torch.testing.assert_close(losses.double(), true, rtol=2e-4, atol=0.0)
    (grad_h,) = torch.autograd.grad(losses.sum(), h)
    r = torch.exp(gaps) / (1 + torch.exp(gaps).sum(1, keepdim=True))
    r = torch.where(torch.isnan(r), torch.softmax(z, 1), r)
    r.scatter_(1, y[:, None], 0.0)
    r.scatter_(1, y[:, None], -r.sum(1, keepdim=True))
    wanted = r @ W.detach().double()
    scale = wanted.abs().amax(1, keepdim=True)
    assert scale[:2].max() < 1e-9
    assert ((grad_h - wanted).abs() / scale).max() < 5e-4


@pytest.mark.parametrize("K, d", [(7, 5), (9001, 128)])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_shows(bad, K, d):
    H, W, _, y, _ = problem(K=K, d=d, dtype=torch.float32)
    with torch.no_grad():
        H[2, 1] = bad
    losses = linear_cross_entropy(H, W, y, reduction="none").detach()
    assert not torch.isfinite(losses[2])
    assert torch.isfinite(losses[torch.arange(len(y)) != 2]).all()
    assert not torch.isfinite(linear_cross_entropy(H, W, y).detach())


@pytest.mark.parametrize("K, d", [(7, 5), (9001, 128)])
def test_classes_masked_by_their_bias(K, d):
    H, W, b, y, _ = problem(K=K, d=d)
    y.clamp_(max=K - 2)
    with torch.no_grad():
        b[K - 1] = -torch.inf
    ours = linear_cross_entropy(H, W, y, linear_bias=b)
    theirs = expected(H, W, y, b)
    for a, e in zip(
        (ours, *torch.autograd.grad(ours, [H, W, b])),
        (theirs, *torch.autograd.grad(theirs, [H, W, b])),
        strict=True,
    ):
        # Both round some hundred times.
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-13)
    b.requires_grad_(False)
    assert torch.isinf(linear_cross_entropy(H, W, y, linear_bias=b, label_smoothing=0.1).detach())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_accumulated_in_single(dtype):
    H, W, b, y, _ = problem(N=3000, K=10, d=24, dtype=dtype)
    loss = linear_cross_entropy(H, W, y, linear_bias=b)
    assert loss.dtype == dtype
    grads = torch.autograd.grad(loss, [H, W, b])
    wide = [x.detach().double().requires_grad_() for x in (H, W, b)]
    true = expected(wide[0], wide[1], y, wide[2])
    # One rounding to the dtype at the end, of numbers that are right to 1e-5.
    half_ulp = torch.finfo(dtype).eps / 2 + 1e-5
    assert abs(loss.item() - true.item()) <= half_ulp * true.item()
    for g, t, x in zip(grads, torch.autograd.grad(true, wide), (H, W, b), strict=True):
        assert g.dtype == x.dtype
        least = torch.finfo(dtype).smallest_normal
        error = (g.double() - t).abs() - half_ulp * t.abs()
        # Below the smallest normal number half an ulp of it is what rounding may cost.
        assert error.max() <= 1e-6 * t.abs().max() + least * torch.finfo(dtype).eps


def test_gradients_stay_wide_until_the_upstream_one_has_scaled_them():
    """What a GradScaler is for: in float16 the mean's gradients alone lose their digits."""
    N = 100_000
    H = torch.ones(N, 2, dtype=torch.float16, requires_grad=True)
    W = torch.tensor([[6.0, 0.0], [0.0, 1.0]], dtype=torch.float16, requires_grad=True)
    y = torch.zeros(N, dtype=torch.int64)
    mean = linear_cross_entropy(H, W, y).float()
    (grad,) = torch.autograd.grad(mean * 32768.0, H)
    p = torch.sigmoid(torch.tensor(-5.0, dtype=torch.float64))
    wanted = 32768.0 * p / N * torch.tensor([-6.0, 1.0], dtype=torch.float64)
    lost = (wanted / 32768.0).half().double() * 32768.0
    assert ((lost - wanted).abs() / wanted.abs()).max() > 0.01
    # Half a unit in float16's last place.
    torch.testing.assert_close(grad.double(), wanted.expand(N, 2), rtol=5e-4, atol=0.0)
