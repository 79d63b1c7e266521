"""The Triton launchers of the objective against the reference, in both regimes and tiers."""

import numpy as np
import pytest
import torch
from interpreted import poison, relative, scalar, tensors

from fastnc import reference
from fastnc.kernels.gpu import cross_entropy as cross_entropy_gpu
from fastnc.kernels.gpu import cross_entropy_fast as cross_entropy_fast_gpu
from fastnc.kernels.gpu.plan import _TERMS, _WIDE_TERMS, Hessian, Narrow, Tile, Wide, plan

# Relative to the largest entry. float64: a few roundings a sum. float32: the factors of a
# product with the residual keep 16 bits (two of bf16), so that it is off by 2^-16 at most.
TOLERANCE = {"float64": 1e-14, "float32": 2.0**-16}
# The fewest classes, features and samples; one class and one feature beyond a tile; primes;
# all aligned; several blocks a program, and two chunks (N = 70).
CASES = [
    ("narrow", (2, 1, 1), "float32"),
    ("narrow", (2, 3, 5), "float64"),
    ("narrow", (16, 32, 64), "float32"),
    ("narrow", (17, 33, 70), "float64"),
    ("narrow", (67, 2, 3), "float32"),
    ("narrow", (67, 5, 9), "float64"),
    ("wide", (2, 1, 1), "float64"),
    ("wide", (32, 32, 32), "float64"),
    ("wide", (33, 33, 70), "float32"),
    ("wide", (67, 5, 9), "float64"),
]


@pytest.fixture(params=CASES, ids=lambda p: f"{p[0]}-{'x'.join(map(str, p[1]))}-{p[2]}")
def case(request, monkeypatch):
    """A shape in its regime; tiles are small, so that a small shape has every remainder."""
    regime, sizes, dtype = request.param
    use_small_tiles(monkeypatch, cross_entropy_gpu, regime)
    return sizes, dtype


def use_small_tiles(monkeypatch, module, regime, *names):
    """Whatever of these plans of `module` is asked for is the regime's, in small tiles."""

    def small(n_classes, dim, n_samples, dtype, tier, large):
        key = dtype, "exact" if dtype == "float64" else tier
        if regime == "wide":
            return Wide(64, *[Tile(32, 32, 16, 4, 1)] * 4, *_WIDE_TERMS[key], 3)
        padded = max(16, 1 << (n_classes - 1).bit_length())
        if "hessian_plan" in names:
            blocks = -(-n_samples // 16)
            each = -(-blocks // 3)
            return Hessian(16, padded, 32, 4, 1, *_TERMS[key], -(-blocks // each), each)
        return Narrow(16, padded, 32, 4, 1, Tile(16, 32, 0, 4, 1), *_TERMS[key], 40, 2)

    for name in names or ("plan",):
        monkeypatch.setattr(module, name, small)


def problem(K, d, N, dtype, scale=1.0, seed=0):
    """Gaussian W and H; some class is absent where N allows it."""
    rng = np.random.default_rng([seed, K, d, N])
    W = (scale * rng.standard_normal((K, d))).astype(dtype)
    H = (scale * rng.standard_normal((N, d))).astype(dtype)
    return W, H, rng.integers(0, max(K - 1, 1), N)


def collapsed(K, n, margin, dtype, seed=0):
    """Separated by about `margin`: a simplex in K dimensions, a little noise, y in no order."""
    rng = np.random.default_rng(seed)
    M = reference.simplex_etf(K)
    a = np.sqrt(margin * (K - 1) / K)
    y = rng.permutation(np.repeat(np.arange(K), n))
    W = a * (M + 0.01 * rng.standard_normal(M.shape))
    H = a * (M[y] + 0.01 * rng.standard_normal((len(y), K)))
    return W.astype(dtype), H.astype(dtype), y


def wide(*arrays):
    return [a if a.dtype == np.int64 else a.astype(np.float64) for a in arrays]


def test_all_launchers_agree_with_the_reference(case):
    sizes, dtype = case
    W, H, y = problem(*sizes, dtype)
    tW, tH, ty = tensors(W, H, y)
    exact, dW, dH = reference.loss_and_grads(*wide(W, H), y)
    scale, tolerance = 1.0 / 3.0, TOLERANCE[dtype]
    kernels = cross_entropy_gpu

    loss, (grad_W, grad_H) = scalar(), poison(tW, tH)
    kernels.loss(tW, tH, ty, scale, loss)
    assert loss.item() == pytest.approx(scale * exact, rel=tolerance)
    loss = scalar()
    kernels.loss_and_grads(tW, tH, ty, scale, loss, grad_W, grad_H)
    assert loss.item() == pytest.approx(scale * exact, rel=tolerance)
    assert relative(grad_W, scale * dW) < tolerance
    assert relative(grad_H, scale * dH) < tolerance

    log_loss, (log_W, log_H) = scalar(), poison(tW, tH)
    kernels.log_loss_and_grads(tW, tH, ty, log_loss, log_W, log_H)
    assert log_loss.item() == pytest.approx(np.log(exact), rel=tolerance, abs=tolerance)
    assert relative(log_W, dW / exact) < tolerance
    assert relative(log_H, dH / exact) < tolerance

    loss = scalar()
    kernels.gradient_step(tW, tH, ty, scale, 0.25, loss)
    assert loss.item() == pytest.approx(scale * exact, rel=tolerance)
    assert relative(tW, W - 0.25 * scale * dW) < tolerance
    assert relative(tH, H - 0.25 * scale * dH) < tolerance


def run_all(kernels, W, H, y):
    """Loss, log loss and all gradients."""
    tW, tH, ty = tensors(W, H, y)
    loss, log_loss, grads = scalar(), scalar(), poison(tW, tH, tW, tH)
    kernels.loss_and_grads(tW, tH, ty, 1.0, loss, *grads[:2])
    kernels.log_loss_and_grads(tW, tH, ty, log_loss, *grads[2:])
    return loss, log_loss, *grads


@pytest.mark.parametrize("regime", ["narrow", "wide"])
# float32 at 40: a logit of 40 is off by one unit, 2e-6, and so is e to its power.
@pytest.mark.parametrize(
    ("dtype", "margin", "tolerance"), [("float64", 300.0, 2e-13), ("float32", 40.0, 1e-5)]
)
def test_the_terminal_phase_keeps_its_digits(monkeypatch, regime, dtype, margin, tolerance):
    use_small_tiles(monkeypatch, cross_entropy_gpu, regime)
    W, H, y = collapsed(5, 4, margin, dtype)
    exact, dW, dH = reference.loss_and_grads(*wide(W, H), y)
    assert reference.neural_collapse_margin(*wide(W, H), y) > 0.9 * margin
    loss, log_loss, grad_W, grad_H, log_W, log_H = run_all(cross_entropy_gpu, W, H, y)
    assert loss.item() == pytest.approx(exact, rel=tolerance)
    assert log_loss.item() == pytest.approx(np.log(exact), abs=tolerance)
    for got, want in ((grad_W, dW), (grad_H, dH), (log_W, dW / exact), (log_H, dH / exact)):
        assert relative(got, want) < tolerance
        # Rows of the residual sum to zero, so the classes' gradients do: nothing is biased.
    bias = grad_W.double().sum(0).abs().max().item()
    assert bias < 10 * tolerance * np.abs(dW).max()


@pytest.mark.parametrize("regime", ["narrow", "wide"])
@pytest.mark.parametrize("margin", [2e3, 1e5])
def test_the_log_domain_reaches_any_margin(monkeypatch, regime, margin):
    use_small_tiles(monkeypatch, cross_entropy_gpu, regime)
    W, H, y = collapsed(5, 4, margin, "float64")
    exact, dW, dH = reference.log_loss_and_grads(W, H, y)
    assert exact < -0.9 * margin
    _, log_loss, grad_W, grad_H, log_W, log_H = run_all(cross_entropy_gpu, W, H, y)
    assert log_loss.item() == pytest.approx(exact, rel=1e-15)
    # A gap of `margin` is off by its rounding, and e to its power by as much relatively.
    tolerance = 4 * margin * np.finfo(np.float64).eps
    assert relative(log_W, dW) < tolerance
    assert relative(log_H, dH) < tolerance
    assert not grad_W.any() and not grad_H.any()


@pytest.mark.parametrize("regime", ["narrow", "wide"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_samples_that_are_wrong_by_a_thousand(monkeypatch, regime, dtype):
    use_small_tiles(monkeypatch, cross_entropy_gpu, regime)
    W, H, y = collapsed(5, 4, 1000.0, dtype)
    y = (y + 1) % 5
    exact, dW, dH = reference.loss_and_grads(*wide(W, H), y)
    assert exact > 900 * len(y)
    loss, log_loss, grad_W, grad_H, _, _ = run_all(cross_entropy_gpu, W, H, y)
    assert loss.item() == pytest.approx(exact, rel=TOLERANCE[dtype])
    assert log_loss.item() == pytest.approx(np.log(exact), rel=TOLERANCE[dtype])
    assert relative(grad_W, dW) < TOLERANCE[dtype]
    assert relative(grad_H, dH) < TOLERANCE[dtype]


@pytest.mark.parametrize("regime", ["narrow", "wide"])
def test_the_fast_tier_keeps_two_digits_and_the_exact_one_more(monkeypatch, regime):
    use_small_tiles(monkeypatch, cross_entropy_gpu, regime)
    W, H, y = problem(7, 20, 16, "float32")
    exact, dW, _ = reference.loss_and_grads(*wide(W, H), y)
    _, _, exact_W, *_ = run_all(cross_entropy_gpu, W, H, y)
    loss, log_loss, fast_W, _, log_W, _ = run_all(cross_entropy_fast_gpu, W, H, y)
    # Logits keep 16 bits or more, so that the loss has five digits; the factors of the
    # products keep 8 bits.
    assert loss.item() == pytest.approx(exact, rel=1e-5)
    assert 20 * relative(exact_W, dW) < relative(fast_W, dW) < 2.0**-7
    assert relative(log_W * loss, dW) < 2.0**-7
    assert log_loss.item() == pytest.approx(np.log(loss.item()), rel=1e-6)
    only = scalar()
    cross_entropy_fast_gpu.loss(*tensors(W, H, y), 1.0, only)
    assert only.item() == pytest.approx(loss.item(), rel=1e-7)
    tW, tH, ty = tensors(W, H, y)
    cross_entropy_fast_gpu.gradient_step(tW, tH, ty, 1.0, 0.5, only)
    assert only.item() == loss.item()
    torch.testing.assert_close(tW, torch.from_numpy(W).to(tW.device) - 0.5 * fast_W)


@pytest.mark.parametrize("regime", ["narrow", "wide"])
def test_the_same_bits_every_time(monkeypatch, regime):
    use_small_tiles(monkeypatch, cross_entropy_gpu, regime)
    W, H, y = problem(17, 7, 17, "float32")
    once, again = (run_all(cross_entropy_gpu, W, H, y) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_the_shipped_tiles_too():
    cases = [
        (10, 33, 65, Narrow), (40, 9, 33, Narrow), (131, 9, 33, Wide),
    ]  # fmt: skip
    for K, d, N, regime in cases:
        assert isinstance(plan(K, d, N, "float32", "exact", True), regime)
        W, H, y = problem(K, d, N, "float32")
        exact, dW, dH = reference.loss_and_grads(*wide(W, H), y)
        loss, _, grad_W, grad_H, *_ = run_all(cross_entropy_gpu, W, H, y)
        assert loss.item() == pytest.approx(exact, rel=TOLERANCE["float32"])
        assert relative(grad_W, dW) < TOLERANCE["float32"]
        assert relative(grad_H, dH) < TOLERANCE["float32"]
