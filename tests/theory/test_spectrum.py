"""The largest eigenvalues of the Hessian, against dense ones written from the formula."""

import numpy as np
import pytest

import fastnc
from fastnc import reference


def dense(W, H, y):
    """The Hessian of the mean loss, a column a product of the reference."""
    size, cut = W.size + H.size, W.size
    columns = []
    for e in np.eye(size):
        parts = reference.hessian_vector_product(
            W, H, y, e[:cut].reshape(W.shape), e[cut:].reshape(H.shape)
        )
        columns.append(np.concatenate([part.ravel() for part in parts]) / len(y))
    return np.array(columns)


@pytest.mark.parametrize(("K", "N", "d"), [(3, 7, 4), (5, 40, 8)])
def test_the_largest_eigenvalues(K, N, d):
    rng = np.random.default_rng(K)
    W, H, y = rng.standard_normal((K, d)), rng.standard_normal((N, d)), rng.integers(0, K, N)
    exact = np.linalg.eigvalsh(dense(W, H, y))[::-1]
    found = fastnc.hessian_spectrum(W, H, y, k=4)
    assert found.shape == (4,) and (np.diff(found) <= 0).all()
    # Lanczos is asked for 1e-12; both are sums of some hundred terms.
    np.testing.assert_allclose(found, exact[:4], rtol=1e-10)
    total = fastnc.hessian_spectrum(W.astype("float32"), H.astype("float32"), y, 1, "sum")
    # float32 inputs are rounded to 6e-8, which two factors of the eigenvalue carry.
    np.testing.assert_allclose(total, N * exact[:1], rtol=1e-6)


@pytest.mark.parametrize("k", [5, 12, 40])
def test_multiple_eigenvalues_are_complete(k):
    """At collapse: 3 of the largest, 57 of the next one, of which Lanczos by itself finds some."""
    W, H, y = fastnc.theory.collapsed(3.0, 4, 5, 20)
    exact = np.linalg.eigvalsh(dense(W, H, y))[::-1]
    assert np.ptp(exact[:3]) < 1e-12 < exact[2] - exact[3] and np.ptp(exact[3:40]) < 1e-12
    found = fastnc.hessian_spectrum(W, H, y, k=k)
    # As above.
    np.testing.assert_allclose(found, exact[:k], rtol=1e-10)


def test_too_many_eigenvalues_are_refused():
    with pytest.raises(ValueError, match="`k` must be less than the 6 unknowns; got 6"):
        fastnc.hessian_spectrum(np.ones((2, 2)), np.ones((1, 2)), np.array([0]), k=6)
    with pytest.raises(ValueError, match="`k` must be an integer of at least 1; got 0"):
        fastnc.hessian_spectrum(np.ones((2, 2)), np.ones((1, 2)), np.array([0]), k=0)
