"""Sums over many classes and samples: no error that grows with their number, and none in the tail.

Logits are exact in the dtype (d = 1, H = 1, W or a bias of few digits), so that what is left is the
error of the sums themselves; what is compared with is written here, in float64 or closed form.
"""

import numpy as np
import pytest
from kernel_problems import direction, evaluate, hessian, problem, weighted

from fastnc.kernels.cpu import cross_entropy as cross_entropy_cpu
from fastnc.kernels.cpu.plan import Plan

# 1e-6 and 1e-14: two or three roundings of the exponential, the block of 16 and the quotient.
BOUND = {"float32": 1e-6, "float64": 1e-14}
COUNTS = (129, 1000, 5000, 100_000)


def equal_gaps(K, gap, dtype, N=1):
    """All gaps of N samples of class 0 are equal: collapse."""
    W = np.full((K, 1), gap, dtype)
    W[0] = 0.0
    return W, np.ones((N, 1), dtype), np.zeros(N, np.int64)


def told(K, gap, N):
    """Loss, and its two kinds of grad_W, of `equal_gaps` in closed form, with the mass e^-shift."""
    log_x = np.log(np.longdouble(K - 1)) + np.longdouble(gap)
    x = np.exp(log_x)
    p = np.exp(np.longdouble(gap)) / (1 + x)
    return N * np.log1p(x), -N * x / (1 + x), N * p, np.log(N * np.log1p(x))


def relative(got, want):
    return abs(float((np.longdouble(got) - want) / want))


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("K", COUNTS)
def test_all_gaps_equal(K, dtype):
    for gap in (-1.0, -20.0, -87.0 if dtype == "float32" else -690.0):
        for N in (1, 100):
            found = evaluate(*equal_gaps(K, gap, dtype, N))
            loss, own, other, log_loss = told(K, gap, N)
            value, grad_W, _ = found["loss_and_grads"]
            # N equal terms of a class are added in blocks.
            bound = BOUND[dtype] + (N > 1) * 8 * np.finfo(dtype).eps
            assert relative(value[0], loss) < BOUND[dtype]
            assert relative(grad_W[0, 0], own) < bound
            if other > np.finfo(dtype).tiny:
                assert relative(grad_W[1:, 0].astype(np.longdouble).mean(), other) < bound
            error = abs(float(found["log_loss_and_grads"][0][0] - log_loss))
            assert error < BOUND["float64"] * max(1.0, abs(float(log_loss)))


@pytest.mark.parametrize(
    ("dtype", "K", "gap"),
    [
        ("float32", 129, -88.0),
        ("float32", 100_000, -98.0),
        ("float32", 1000, -87.5),
        ("float64", 129, -709.0),
        ("float64", 100_000, -716.0),
    ],
)
def test_a_normal_sum_of_subnormal_terms(dtype, K, gap):
    """Every exponential is below the smallest normal number, and the loss is not."""
    assert np.exp(np.longdouble(gap)) < np.finfo(dtype).tiny
    for N in (1, 70):
        found = evaluate(*equal_gaps(K, gap, dtype, N))
        loss, own, *_ = told(K, gap, N)
        assert loss > np.finfo(dtype).tiny
        assert relative(found["loss"][0][0], loss) < BOUND[dtype]
        value, grad_W, grad_H = found["loss_and_grads"]
        assert value[0] == found["loss"][0][0]
        assert relative(grad_W[0, 0], own) < BOUND[dtype] + (N > 1) * 8 * np.finfo(dtype).eps
        # W is `gap` but for the label: the sum over classes of r_j w_j, which a product adds in
        # blocks of 256 terms, and 400 of these; equal terms are all rounded the same way.
        for entry in grad_H[:, 0]:
            bound = BOUND[dtype] + min(K, 700) / 2 * np.finfo(dtype).eps
            assert relative(entry, -own / N * np.longdouble(gap)) < bound


def test_deep_samples_beside_ordinary_ones():
    """A chunk's scale is that of its largest gap; a later one is larger, and then smaller again."""
    gaps = np.repeat(np.array([-88.0, -90.0, -1.0, -89.0], np.float32), 64)
    W = np.ones((129, 1), np.float32)
    W[0] = 0.0
    H, y = gaps[:, None], np.zeros(len(gaps), np.int64)
    found = evaluate(W, H, y)
    x = 128 * np.exp(gaps.astype(np.longdouble))
    assert relative(found["loss"][0][0], np.log1p(x).sum()) < BOUND["float32"]
    grad_H = found["loss_and_grads"][2][:, 0].astype(np.longdouble)
    # Sums of 128 equal terms.
    assert (np.abs(grad_H / (x / (1 + x)) - 1) < 64 * np.finfo(np.float32).eps).all()


def smoothed(z, y, smoothing):
    """Loss and residuals of label smoothing in extended precision."""
    z = z.astype(np.longdouble)
    N, K = z.shape
    log_p = z - z.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    mass = np.full((N, K), np.longdouble(smoothing) / K)
    mass[np.arange(N), y] += 1 - np.longdouble(smoothing)
    return -(mass * log_p).sum(), np.exp(log_p) - mass


@pytest.mark.parametrize("smoothing", [0.1, 1.0])
@pytest.mark.parametrize("K", [1000, 10_000, 100_000])
def test_smoothing_over_many_classes(K, smoothing):
    """1e-6 of loss; residuals are differences of p and t/K, each within its own roundings."""
    rng = np.random.default_rng(0)
    W = (rng.integers(-64, 64, (K, 1)) / 32).astype(np.float32)
    H, y = np.ones((3, 1), np.float32), np.array([0, K // 2, K - 1])
    none = np.empty(0, np.float32)
    total, _, grad_W, *_ = weighted(W, H, y, none, none, smoothing, np.ones(1, np.float32))
    value, r = smoothed(H @ W.T, y, smoothing)
    assert relative(total[0], value) < BOUND["float32"]
    wanted = r.sum(axis=0)
    norm = np.sqrt((wanted**2).sum())
    assert np.sqrt(((grad_W[:, 0] - wanted) ** 2).sum()) < BOUND["float32"] * norm


@pytest.mark.parametrize("smoothing", [0.1, 1.0])
def test_the_smoothed_loss_of_equal_gaps(smoothing):
    """3,000 sums of 16 equal terms, which would all round the same way: 2 ulp of float64 in all.

    smoothing / K is the mass that the kernel is given, and 1 / K no number of float64.
    """
    none = np.empty(0)
    for K, gap in ((50_000, -21.75), (40_001, -3.5)):
        W, H, y = equal_gaps(K, gap, "float64", 3)
        total, *_ = weighted(W, H, y, none, none, smoothing, np.ones(1))
        assert relative(total[0], smoothed(H @ W.T, y, smoothing)[0]) < 4.5e-16


def test_a_bias_that_all_classes_share():
    """1e6 is what no logit of float32 can carry beside digits; a softmax does not see it."""
    rng = np.random.default_rng(0)
    W, H, y = problem(20, 8, 50, "float32")
    apart = (rng.integers(-32, 32, 20) / 16).astype(np.float32)
    rest = np.empty(0, np.float32), 0.0, np.ones(1, np.float32)
    plain = weighted(W, H, y, apart - apart.min(), *rest)
    for common in (1e6, -1e6):
        given = weighted(W, H, y, apart + np.float32(common), *rest)
        # The difference of two numbers near each other is exact, but not which was subtracted.
        for a, b in zip(given, plain, strict=True):
            assert np.abs(a - b).max() <= 2e-5 * np.abs(b).max()


def torch_like(W, H, y):
    """The plain formula in the arrays' own precision, sums by NumPy's pairs and a BLAS."""
    Z = H @ W.T
    Z -= Z.max(axis=1, keepdims=True)
    e = np.exp(Z)
    S = e.sum(axis=1, keepdims=True)
    loss = (np.log(S[:, 0]) - Z[np.arange(len(y)), y]).sum(dtype=np.float64)
    p = e / S
    p[np.arange(len(y)), y] -= 1
    return loss, p.T @ H, p @ W


def exactly(W, H, y):
    return torch_like(W.astype(np.longdouble), H.astype(np.longdouble), y)


def errors(found, exact):
    """Median relative error by entry, and the normwise one, of each result."""
    out = []
    for got, want in zip(found, exact, strict=True):
        got, want = np.atleast_1d(np.asarray(got, np.longdouble)), np.atleast_1d(want)
        apart = np.abs(got - want)
        nonzero = want != 0
        by_entry = np.median(apart[nonzero] / np.abs(want[nonzero]))
        out.append((float(by_entry), float(np.sqrt((apart**2).sum() / (want**2).sum()))))
    return np.array(out)


GRID = [
    (2, 1, 1000), (10, 64, 64), (100, 16, 1000), (100, 512, 64), (1000, 64, 64), (1000, 512, 1),
    (10_000, 16, 64), (10_000, 64, 1), (50_000, 16, 1), (50_000, 1, 64),
]  # fmt: skip


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("scale", [1.0, 5.0])
@pytest.mark.parametrize(("K", "d", "N"), GRID)
def test_no_worse_than_the_plain_formula_in_the_same_precision(K, d, N, scale, dtype):
    """Median relative error by entry and normwise, at most the plain formula's and 2 ulp.

    Logits are of that scale; the grid has a prime part of every size there is of K, d and N.
    """
    if dtype == "float64" and np.finfo(np.longdouble).eps > 1e-18:
        pytest.skip("needs numbers of more than 53 bits")
    rng = np.random.default_rng(K + d + N)
    W = (scale * rng.standard_normal((K, d)) / np.sqrt(d)).astype(dtype)
    H, y = rng.standard_normal((N, d)).astype(dtype), rng.integers(0, K, N)
    exact = exactly(W, H, y)
    ours = errors(evaluate(W, H, y)["loss_and_grads"], exact)
    theirs = errors(torch_like(W, H, y), exact)
    tolerance = 2 * np.finfo(dtype).eps
    if N == 1:
        # All residuals of one sample share what its largest logit was rounded by, in either order.
        tolerance += np.finfo(dtype).eps / 2 * np.abs(W @ H.T).max()
    assert (ours <= theirs + tolerance).all(), (ours, theirs)


@pytest.mark.parametrize("K", [1000, 20_000])
def test_hessian_products_over_many_classes(K):
    """Beside the same formula in float64: 2e-6 of the norm, where sums in a row had 1e-5."""
    rng = np.random.default_rng(0)
    W = (5 * rng.standard_normal((K, 16)) / 4).astype(np.float32)
    H, y = rng.standard_normal((8, 16)).astype(np.float32), rng.integers(0, K, 8)
    dW, dH = direction(W, H)
    wide = [x.astype(np.float64) for x in (W, H, dW, dH)]
    for got, want in zip(hessian(W, H, y, dW, dH), hessian(*wide[:2], y, *wide[2:]), strict=True):
        assert np.linalg.norm(got - want) < 2e-6 * np.linalg.norm(want)


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize(
    ("K", "d"), [(5, 20), (10, 300), (100, 128), (700, 30), (600, 300), (1100, 1000)]
)
def test_a_row_of_grad_H_does_not_depend_on_its_company(K, d, dtype):
    """From 64 samples on, whatever their number is and wherever the row stands."""
    W, H, y = problem(K, d, 330, dtype)

    def rows(keep):
        out = np.empty(1), np.empty_like(W), np.empty((len(keep), d), dtype)
        cross_entropy_cpu.loss_and_grads(W, H[keep], y[keep], 1.0, *out)
        return out[2]

    everything = rows(np.arange(330))
    for keep in (np.arange(64), np.arange(100, 165), np.arange(33, 300), np.arange(330)[::-1]):
        assert rows(keep).tobytes() == everything[keep].tobytes(), len(keep)


def test_the_same_bits_in_any_division():
    """What is divided among threads is not what a row of grad_H is made of."""
    W, H, y = problem(40, 16, 200, "float32")
    found = []
    for parts in (1, 3):
        with pytest.MonkeyPatch.context() as patch:
            planned = Plan("samples", "tiles", parts=parts, chunk=64, block=512)
            patch.setattr(cross_entropy_cpu, "plan", lambda *_, planned=planned: planned)
            found.append(evaluate(W, H, y)["loss_and_grads"][2])
    assert found[0].tobytes() == found[1].tobytes()
