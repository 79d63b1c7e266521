"""Hessian products against the reference, mpmath, and their own symmetry."""

import numpy as np
import oracles
import pytest
from kernel_problems import SHAPES, direction, hessian, problem

from fastnc import reference


def compare(W, H, y):
    """As test_cross_entropy_cpu; the products add the rounding of gaps' rates of size 20."""
    dW, dH = direction(W, H)
    wide = [x.astype(np.float64) for x in (W, H, dW, dH)]
    wanted = reference.hessian_vector_product(*wide[:2], y, *wide[2:])
    for got, want in zip(hessian(W, H, y, dW, dH), wanted, strict=True):
        bound = 400 * np.finfo(W.dtype).eps * max(1.0, np.abs(want).max())
        np.testing.assert_allclose(got, want, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_against_the_reference(by_samples, shape, dtype):
    compare(*problem(*SHAPES[shape], dtype))


@pytest.mark.parametrize("n_samples", range(1, 34, 4))
def test_remainders(by_samples, n_samples):
    for n_classes, dim in ((2, 5), (6, 9), (13, 12)):
        compare(*problem(n_classes, dim, n_samples, "float64"))


def test_badly_classified_samples(by_samples):
    """Gaps far above those where an exponential overflows; an absent class.

    Entries are multiples of 1/16 and gaps thus exact: what a gap of 3000 is rounded by, 2e-13,
    would be exponentiated, differently in two orders of its terms.
    """
    W, H, y = problem(5, 8, 40, "float64", size=30.0)
    W, H = np.round(16 * W) / 16, np.round(16 * H) / 16
    y[y == 2] = 1
    assert 700.0 < reference.logit_gaps(W, H, y).max() < 5000.0
    compare(W, H, y)


def test_symmetric(by_samples):
    """<u, Hess v> = <v, Hess u>, to the rounding of sums of 600 terms of size 10."""
    W, H, y = problem(7, 9, 60, "float64")
    u, v = direction(W, H, 1), direction(W, H, 2)
    one = sum((a * b).sum() for a, b in zip(u, hessian(W, H, y, *v), strict=True))
    other = sum((a * b).sum() for a, b in zip(v, hessian(W, H, y, *u), strict=True))
    assert abs(one) > 1.0 and one == pytest.approx(other, rel=1e-12)


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-14), ("float32", 1e-6)])
def test_exact_in_the_tail(by_samples, dtype, bound):
    """Relative error of every entry that is a normal number, margins 1 to the end of the dtype.

    W = I and dW = 0 make HH the residuals' derivative itself; rates of the gaps are integers.
    """
    W, dW, y = np.eye(4, dtype=dtype), np.zeros((4, 4), dtype), np.array([0])
    for margin in (1.0, 16.5, 37.25, 60.0, 83.0, 300.0, 700.0):
        if margin > 85.0 and dtype == "float32":
            continue
        H = np.array([[margin + 0.5, 0.5, 0.25, 0.0]], dtype)
        dH = np.array([[1.0, 3.0, -2.0, 7.0]], dtype)
        told = oracles.cross_entropy(W, H, y, dW, dH)
        _, HH = hessian(W, H, y, dW, dH)
        assert oracles.worst_relative_error(HH, told["HH"], dtype) < bound


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-14), ("float32", 1e-6)])
def test_exact_where_another_class_is_almost_certain(by_samples, dtype, bound):
    """As in the tail, for a sample of class 1 whose largest logit is that of class 0.

    The derivative of its residual is minus the sum of the others, not a difference of near-equal
    rates.
    """
    W, dW, y = np.eye(4, dtype=dtype), np.zeros((4, 4), dtype), np.array([1])
    for gap in (1.0, 16.5, 37.25, 60.0, 83.0, 300.0, 700.0):
        if gap > 85.0 and dtype == "float32":
            continue
        H = np.array([[gap + 0.5, 0.5, 0.25, 0.0]], dtype)
        dH = np.array([[500.0, 503.0, 498.0, 507.0]], dtype)
        told = oracles.cross_entropy(W, H, y, dW, dH)
        _, HH = hessian(W, H, y, dW, dH)
        assert oracles.worst_relative_error(HH, told["HH"], dtype) < bound


def test_the_same_bits_again_and_a_scale(by_samples):
    W, H, y = problem(13, 21, 95, "float64")
    u = direction(W, H)
    first, second = hessian(W, H, y, *u), hessian(W, H, y, *u)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True))
    # A power of two scales every rounding with it.
    halved = hessian(W, H, y, *u, 0.5)
    assert all(np.array_equal(0.5 * a, b) for a, b in zip(first, halved, strict=True))
