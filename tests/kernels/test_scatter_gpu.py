"""The Triton class moments, scatter and nearest means against NumPy in float64."""

import numpy as np
import pytest
import torch
from interpreted import DEVICE, poison, relative, tensors

from fastnc.kernels.gpu import scatter as scatter_gpu

# One sample; primes; one feature and one sample beyond a tile of 64; an aligned shape.
SHAPES = [(1, 1, 1), (3, 7, 17), (2, 65, 129), (2, 64, 64)]


def samples(K, d, N, dtype, collapse=1.0):
    """Classes of unequal sizes in no order, the last one absent; far from the origin."""
    rng = np.random.default_rng([K, d, N])
    y = rng.integers(0, K, N)
    means = 3.0 + rng.standard_normal((K + 1, d))
    H = (means[y] + collapse * rng.standard_normal((N, d))).astype(dtype)
    return H, y


def sorted_by_class(y, K):
    counts = np.bincount(y, minlength=K + 1)
    return np.argsort(y, kind="stable"), np.concatenate([[0], np.cumsum(counts)])


def moments_of(H, y, K):
    means = np.zeros((K + 1, H.shape[1]))
    squares = np.zeros(K + 1)
    for k in np.unique(y):
        rows = H[y == k].astype(np.float64)
        means[k] = rows.mean(axis=0)
        squares[k] = ((rows - means[k]) ** 2).sum()
    return means, squares


@pytest.mark.parametrize("sizes", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_moments_of_classes(sizes, dtype):
    K = sizes[0]
    # A scatter of 1e-6 beside means of 3: E[hh] - mm would not leave a digit of it in float32.
    H, y = samples(*sizes, dtype, collapse=1e-6)
    means, squares = moments_of(H, y, K)
    given = tensors(H, *sorted_by_class(y, K))
    out = poison(*tensors(means, squares))
    scatter_gpu.class_moments(*given, *out)
    # Sums in float64 of exact numbers; a deviation of 1e-6 from 3 has lost six digits.
    np.testing.assert_allclose(out[0].cpu(), means, rtol=1e-14)
    np.testing.assert_allclose(out[1].cpu(), squares, rtol=1e-8, atol=1e-28)
    again = poison(*out)
    scatter_gpu.class_moments(*given, *again)
    assert all(torch.equal(a, b) for a, b in zip(out, again, strict=True))


@pytest.mark.parametrize("sizes", SHAPES, ids=str)
# float32: centred operands in six terms keep 24 bits, sums of up to 129 terms lose a few.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("float64", 1e-13)])
def test_the_centred_scatter(sizes, dtype, tolerance):
    K, d, _ = sizes
    H, y = samples(*sizes, dtype, collapse=1e-2)
    means, _ = moments_of(H, y, K)
    X = H.astype(np.float64) - means[y]
    exact = X.T @ X
    (out,) = poison(torch.empty((d, d), dtype=torch.float64, device=DEVICE))
    scatter_gpu.centred_scatter(*tensors(H, y, means), out)
    # In units of the class means' size nothing could be told of a scatter of 1e-4.
    scale = np.abs(exact).max() or 1.0
    assert np.abs(out.cpu().numpy() - exact).max() < tolerance * scale


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("K", "d", "N"), [(2, 1, 3), (33, 7, 65), (5, 33, 9)])
def test_the_nearest_class_mean(K, d, N, dtype):
    H, _ = samples(K, d, N, dtype)
    means = np.random.default_rng(1).standard_normal((K, d)) + 3.0
    exact = ((H[:, None].astype(np.float64) - means) ** 2).sum(axis=2)
    two = np.sort(exact, axis=1)[:, :2]
    assert np.diff(two, axis=1).min() > 1e-4, "no tie that rounding could decide"
    (out,) = tensors(np.full(N, -1))
    scatter_gpu.nearest_means(*tensors(H, means, means.mean(axis=0)), out)
    np.testing.assert_array_equal(out.cpu(), exact.argmin(axis=1))


def test_of_equally_near_means_the_first():
    H, means = np.zeros((3, 4)), np.ones((40, 4))
    (out,) = tensors(np.full(3, -1))
    scatter_gpu.nearest_means(*tensors(H, means, np.zeros(4)), out)
    assert out.tolist() == [0, 0, 0]
    assert relative(tensors(means)[0], means) == 0.0


@pytest.mark.parametrize("full", [False, True])
def test_the_moments_of_a_batch_as_the_statistics_take_them(full):
    from fastnc.collapse.cuda_moments import batch_moments

    H, y = samples(4, 66, 40, "float32")
    y = 2 * y + 1
    means, squares = moments_of(H, y, 7)
    present, counts, *got, within = batch_moments(*tensors(H, y), full)
    np.testing.assert_array_equal(present.cpu(), np.unique(y))
    np.testing.assert_array_equal(counts.cpu(), np.bincount(y)[np.unique(y)])
    np.testing.assert_allclose(got[0].cpu(), means[np.unique(y)], rtol=1e-14)
    np.testing.assert_allclose(got[1].cpu(), squares[np.unique(y)], rtol=1e-12)
    if full:
        X = H.astype(np.float64) - means[y]
        assert relative(within, X.T @ X) < 2e-6
        assert torch.equal(within, within.T)
    else:
        assert within is None
