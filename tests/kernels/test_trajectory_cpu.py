"""The trajectory kernel against a NumPy loop and, one step of it, against mpmath."""

import mpmath
import numba
import numpy as np
import pytest

from fastnc.kernels.cpu import trajectory as trajectory_cpu
from fastnc.kernels.cpu.trajectory import descend


def problem(K, d, N, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    W = (rng.standard_normal((K, d)) / np.sqrt(d)).astype(dtype)
    H = (rng.standard_normal((N, d)) / np.sqrt(d)).astype(dtype)
    # Unsorted, and the first class absent where there are two others.
    y = rng.integers(1 if K > 2 else 0, K, N)
    return W, H, y


def run(W, H, y, lr, *epochs):
    """W and H after that many epochs, in one call for each number, low parts added in float64."""
    W, H = W.copy(), H.copy()
    low = [np.zeros_like(x) if W.dtype == np.float32 else np.zeros((0, 0)) for x in (W, H)]
    for count in epochs:
        descend(W, H, *low, y, 1.0 / len(y), lr, count)
    if W.dtype == np.float32:
        return tuple(np.add(x, rest, dtype=np.float64) for x, rest in zip((W, H), low, strict=True))
    return W, H


def numpy_loop(W, H, y, lr, epochs):
    W, H = W.astype(np.float64), H.astype(np.float64)
    rows = np.arange(len(y))
    for _ in range(epochs):
        Z = H @ W.T
        p = np.exp(Z - Z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        p[rows, y] -= 1.0
        p *= lr / len(y)
        W, H = W - p.T @ H, H - p @ W
    return W, H


# A group is 6 classes with 16 registers, 12 with 32: one, two and three of them; beyond 16
# classes, register tiles.
@pytest.mark.parametrize("K", [2, 7, 13, 17])
def test_two_thousand_epochs_agree_with_the_numpy_loop(K):
    # 53 samples: whole blocks, a narrower one, and lanes that hold none.
    W, H, y = problem(K, 9, 53)
    assert (np.diff(y) < 0).any() and (K == 2 or 0 not in y)
    # Rounding differs by a few ulp an epoch, and the descent, which converges, adds them up.
    for ours, theirs in zip(run(W, H, y, 2.0, 2000), numpy_loop(W, H, y, 2.0, 2000), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-9)


@pytest.mark.parametrize(("K", "d", "N"), [(5, 1, 1), (5, 20, 50), (5, 3, 1397), (5, 1, 3)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_sample_one_feature_and_several_chunks(K, d, N, dtype):
    W, H, y = problem(K, d, N, dtype)
    # Each gradient is rounded to float32 once an epoch: 500 times 6e-8 of steps that add up to
    # about 5. The sums in between are compensated.
    tolerance = 1e-10 if dtype == "float64" else 2e-5
    for ours, theirs in zip(run(W, H, y, 1.0, 500), numpy_loop(W, H, y, 1.0, 500), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=tolerance)


@pytest.mark.parametrize(
    ("K", "d", "N", "dtype"),
    [(5, 40, 5100, "float64"), (17, 9, 530, "float64"), (17, 9, 53, "float32")],
)
def test_parts_of_the_samples_and_low_parts_of_many_classes(K, d, N, dtype):
    W, H, y = problem(K, d, N, dtype)
    # As above: about 6e-8 of every step in float32, an ulp or two an epoch in float64.
    tolerance = 1e-10 if dtype == "float64" else 2e-5
    for ours, theirs in zip(run(W, H, y, 1.0, 100), numpy_loop(W, H, y, 1.0, 100), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=tolerance)


def test_the_bits_are_those_of_one_thread():
    # 17 * 9 * 530 and 5 * 40 * 5100 are divided into parts, as many on any machine.
    for shape in ((5, 40, 5100), (17, 9, 530)):
        W, H, y = problem(*shape)
        all_threads = run(W, H, y, 1.0, 10)
        before = numba.get_num_threads()
        numba.set_num_threads(1)
        try:
            one = run(W, H, y, 1.0, 10)
        finally:
            numba.set_num_threads(before)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(all_threads, one, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_epochs_in_several_calls_have_the_bits_of_one(dtype):
    W, H, y = problem(5, 20, 50, dtype)
    whole, parts = run(W, H, y, 5.0, 300), run(W, H, y, 5.0, 1, 122, 0, 177)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(whole, parts, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nothing_is_read_before_it_is_written(dtype, monkeypatch):
    W, H, y = problem(5, 20, 50, dtype)
    clean = run(W, H, y, 5.0, 10)
    plain = trajectory_cpu.aligned

    def poisoned(size, kind):
        out = plain(size, kind)
        out[:] = np.nan
        return out

    monkeypatch.setattr(trajectory_cpu, "aligned", poisoned)
    again = run(W, H, y, 5.0, 10)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(clean, again, strict=True))
    assert np.isfinite(again[0]).all()


@pytest.mark.parametrize(
    ("dtype", "low", "high", "bound"),
    [("float64", -200, 700, 1e-14), ("float32", -80, 85, 1e-6)],
)
def test_every_residual_of_one_step_is_exact_at_any_margin(dtype, low, high, bound):
    """The bounds are those promised for logits that are exact in the dtype."""
    K, margins = 5, np.linspace(low, high, 33)
    N = len(margins)
    y = np.arange(N) % K
    rng = np.random.default_rng(1)
    # Steps of 1/4, so that every logit and every gap is exact.
    Z = np.rint(rng.uniform(-8, 0, (N, K)) * 4) / 4
    Z[np.arange(N), y] = np.rint(margins * 4) / 4
    # Feature i is sample i's own and gives its logits; features N + i, which W does not see yet,
    # and 2N + k, which H does not, then hold the residuals alone.
    W, H = np.zeros((K, 2 * N + K), dtype), np.zeros((N, 2 * N + K), dtype)
    W[:, :N], H[:, :N], H[:, N : 2 * N] = Z.T, np.eye(N), np.eye(N)
    W[:, 2 * N :] = np.eye(K)
    assert (W[:, :N].T == Z).all()
    nothing = np.zeros((0, 0), dtype)
    descend(W, H, nothing, nothing, y, 1.0, 1.0, 1)
    mpmath.mp.dps = 50
    for i in range(N):
        terms = [mpmath.exp(mpmath.mpf(z)) for z in Z[i]]
        others = [t for k, t in enumerate(terms) if k != y[i]]
        total = mpmath.fsum(terms)
        for k in range(K):
            exact = -mpmath.fsum(others) / total if k == y[i] else terms[k] / total
            if abs(exact) < np.finfo(dtype).tiny:
                continue
            for ours in (-W[k, N + i], -H[i, 2 * N + k]):
                assert abs(mpmath.mpf(float(ours)) / exact - 1) < bound, (margins[i], k)


@pytest.mark.parametrize(("dtype", "large"), [("float64", 3000.0), ("float32", 2000.0)])
def test_gaps_beyond_the_range_of_exp(dtype, large):
    W, H, y = np.zeros((5, 3), dtype), np.zeros((4, 3), dtype), np.array([0, 1, 2, 4])
    W[:, 0], H[:, 0] = [0.0, 1.0, 0.0, 0.0, 1.0], [large, large, -large, 0.0]
    # Sample 0 is lost to classes 1 and 4, sample 1 ties with 4, sample 2 with 0 and 3.
    residuals = [
        [-1.0, 0.5, 0.0, 0.0, 0.5],
        [0.0, -0.5, 0.0, 0.0, 0.5],
        [1 / 3, 0.0, -2 / 3, 1 / 3, 0.0],
        [0.2, 0.2, 0.2, 0.2, -0.8],
    ]
    after_W, after_H = run(W, H, y, 1.0, 1)
    expected_W = W - np.array(residuals).T @ H / 4
    expected_H = H - np.array(residuals) @ W / 4
    # The sums' own rounding, of terms as large as `large`.
    tolerance = 4 * np.finfo(dtype).eps * large
    np.testing.assert_allclose(after_W, expected_W, atol=tolerance)
    np.testing.assert_allclose(after_H, expected_H, atol=tolerance)


def test_what_is_not_finite_stays_so():
    W, H, y = problem(5, 20, 50)
    H[7, 3] = np.nan
    after_W, _ = run(W, H, y, 1.0, 2)
    assert np.isnan(after_W).any()
