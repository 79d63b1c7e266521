"""Squared error with weight decay: thresholded singular values against BFGS."""

import model_oracles as oracles
import numpy as np
import pytest

from fastnc import models as M


def found(sizes, d, lW, lH, bias, starts=3):
    shapes = [(len(sizes), d), (sum(sizes), d), *([(len(sizes),)] if bias else [])]
    return oracles.least(oracles.squared_error(sizes, lW, lH), shapes, starts)


@pytest.mark.parametrize("strength", [0.05, 0.6, 1.4])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("K", "n", "d"), [(2, 2, 1), (3, 3, 2), (3, 2, 3), (4, 2, 5), (4, 1, 2)])
def test_balanced(K, n, d, bias, strength):
    mu = strength / K / np.sqrt(n)
    best, point = found([n] * K, d, 2 * mu, mu / 2, bias)
    optimum = M.squared_error(K, n, d, 2 * mu, mu / 2, bias).optimum()
    # BFGS ends at gradients of 1e-9 against a curvature of at least 0.01; a quadratic error.
    assert optimum.value == pytest.approx(best, rel=1e-9)
    if d >= K - bias:
        s = max(0.0, 1.0 - strength)
        expected = s * (np.eye(K) - 1 / K) if bias else s * np.eye(K)
        # Errors of the point are of the gradient's order.
        np.testing.assert_allclose(optimum.means @ optimum.W.T, expected, atol=1e-12)
        np.testing.assert_allclose(point[1] @ point[0].T, expected[optimum.y], atol=1e-5)
    if bias:
        np.testing.assert_allclose(optimum.bias, 1 / K)


# A penalty below every singular value, between them, and above them all.
@pytest.mark.parametrize("mu", [0.01, 0.2, 0.5])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("sizes", "d"), [((4, 1), 2), ((5, 2, 1), 3), ((3, 3, 1, 1), 2)])
def test_unequal(sizes, d, bias, mu):
    best, point = found(sizes, d, mu, mu, bias)
    optimum = M.imbalanced_squared_error(sizes, d, mu, mu, bias).optimum()
    assert optimum.value == pytest.approx(best, rel=1e-9)
    if bias:
        # A bias that nothing penalises fits the class frequencies.
        np.testing.assert_allclose(optimum.bias, np.array(sizes) / sum(sizes))
        np.testing.assert_allclose(point[2] + (point[1] @ point[0].T).mean(axis=0),
                                   optimum.bias, atol=1e-6)  # fmt: skip


def test_the_closed_form_of_the_docstring_and_classes_given_up():
    sizes, lam = (50, 10, 1), 0.02
    n, N = np.array(sizes), 61
    s = np.maximum(np.sqrt(n) - N * lam, 0.0)
    model = M.imbalanced_squared_error(sizes, 3, lam, lam)
    best = model.optimum()
    value = ((s - np.sqrt(n)) ** 2 / (2 * N) + lam * s).sum()
    # Rounding.
    assert best.value == pytest.approx(value, rel=1e-14)
    assert s[2] == 0.0 and not best.means[2].any() and best.means[1].any()
    np.testing.assert_allclose(best.W @ best.means.T, np.diag(s / np.sqrt(n)), atol=1e-14)


def test_equal_sizes_agree_with_the_balanced_row():
    for bias in (False, True):
        for d in (2, 3, 6):
            balanced = M.squared_error(4, 5, d, 0.01, 0.03, bias).optimum()
            unequal = M.imbalanced_squared_error((5,) * 4, d, 0.01, 0.03, bias).optimum()
            # A closed form beside a singular value decomposition.
            assert balanced.value == pytest.approx(unequal.value, rel=1e-13)


def test_bad_parameters():
    with pytest.raises(ValueError, match="`weight_decay_H` must be positive; got 0"):
        M.squared_error(3, 2, 2, 1.0, 0.0)
    with pytest.raises(TypeError, match="`bias` must be True or False; got 1"):
        M.imbalanced_squared_error((3, 2), 2, 1.0, 1.0, 1)
