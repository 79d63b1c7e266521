"""The reference against mpmath, by hand, and by central differences."""

import itertools
import math

import numpy as np
import oracles
import pytest

from fastnc import reference as ref
from fastnc.theory import Residuals

# Sums of at most 35 terms, each within a few roundings of 1.1e-16.
CLOSE = 1e-13


def problem(seed=0, K=4, d=3, N=7, size=1.5):
    rng = np.random.default_rng(seed)
    W, H = size * rng.standard_normal((K, d)), size * rng.standard_normal((N, d))
    return W, H, rng.integers(0, K, N), rng


@pytest.fixture(scope="module")
def exact():
    W, H, y, rng = problem()
    direction = rng.standard_normal(W.shape), rng.standard_normal(H.shape)
    return (W, H, y, *direction), oracles.cross_entropy(W, H, y, *direction)


def test_by_hand():
    """K = 2, one sample, margin log 3: p_y = 3/4."""
    W, H, y = np.eye(2), np.array([[math.log(3.0), 0.0]]), np.array([0])
    assert ref.logit_gaps(W, H, y).tolist() == [[-np.inf, -math.log(3.0)]]
    losses, r, p_y = ref.softmax(ref.logit_gaps(W, H, y), y)
    assert losses == pytest.approx(math.log(4 / 3), rel=1e-15)
    assert r == pytest.approx(np.array([[-0.25, 0.25]]), rel=1e-15)
    assert p_y == pytest.approx(0.75, rel=1e-15)
    assert ref.loss(W, H, y) == pytest.approx(math.log(4 / 3), rel=1e-15)
    # p (1 - p) = 3/16 times the change of the gap, which is that of dh_1 = 1.
    HW, HH = ref.hessian_vector_product(W, H, y, np.zeros((2, 2)), np.array([[0.0, 1.0]]))
    np.testing.assert_allclose(HH, [[-3 / 16, 3 / 16]], rtol=1e-15)
    np.testing.assert_allclose(HW, HH.T @ H + r.T @ np.array([[0.0, 1.0]]), rtol=1e-15)


def test_against_mpmath(exact):
    (W, H, y, dW, dH), told = exact
    value, grad_W, grad_H = ref.loss_and_grads(W, H, y)
    assert value == ref.loss(W, H, y) == pytest.approx(float(told["loss"]), rel=CLOSE)
    np.testing.assert_allclose(grad_W, oracles.floats(told["grad_W"]), atol=CLOSE)
    np.testing.assert_allclose(grad_H, oracles.floats(told["grad_H"]), atol=CLOSE)
    HW, HH = ref.hessian_vector_product(W, H, y, dW, dH)
    # Entries of size 10, of sums that are as long.
    np.testing.assert_allclose(HW, oracles.floats(told["HW"]), atol=10 * CLOSE)
    np.testing.assert_allclose(HH, oracles.floats(told["HH"]), atol=10 * CLOSE)
    log_value, by_W, by_H = ref.log_loss_and_grads(W, H, y)
    assert log_value == pytest.approx(float(told["log_loss"]), rel=CLOSE)
    np.testing.assert_allclose(by_W * value, grad_W, atol=CLOSE)
    np.testing.assert_allclose(by_H * value, grad_H, atol=CLOSE)


@pytest.mark.parametrize("margin", [-200.0, -30.0, 0.0, 1.0, 40.0, 300.0, 700.0, 1e3, 1e5])
def test_every_digit_at_any_margin(margin):
    """Integer logits, so that only the function itself can err: 1e-14 is some 50 roundings."""
    W, y = np.eye(3), np.array([0])
    H = np.array([[max(margin, 0.0), max(-margin, 0.0), 0.5 + max(-margin, 0.0) / 2]])
    told = oracles.cross_entropy(W, H, y)
    log_value, _, by_H = ref.log_loss_and_grads(W, H, y)
    assert oracles.worst_relative_error(log_value, told["log_loss"]) < 1e-14
    assert oracles.worst_relative_error(by_H, told["grad_H"] / told["loss"]) < 1e-14
    if margin <= 700.0:
        value, _, grad_H = ref.loss_and_grads(W, H, y)
        assert oracles.worst_relative_error(value, told["loss"]) < 1e-14
        assert oracles.worst_relative_error(grad_H, told["grad_H"]) < 1e-14


def test_log_loss_where_margins_differ():
    """Samples at margins 1000 and 1010: the first is nearly all of the loss."""
    W, y = np.eye(2), np.array([0, 0])
    H = np.array([[1000.0, 0.0], [1010.0, 0.0]])
    value, _, by_H = ref.log_loss_and_grads(W, H, y)
    share = 1 / (1 + math.exp(-10))
    assert value == pytest.approx(-1000 + math.log1p(math.exp(-10)), rel=1e-15)
    assert by_H[:, 1] == pytest.approx([share, 1 - share], rel=1e-12)


def test_derivatives_are_those_of_the_loss():
    W, H, y, rng = problem(1)
    dW, dH = rng.standard_normal(W.shape), rng.standard_normal(H.shape)

    def along(function):
        return oracles.central_difference(lambda t: function(W + t * dW, H + t * dH, y), 0.0, 1.0)

    _, grad_W, grad_H = ref.loss_and_grads(W, H, y)
    # A central difference of step 1e-6 is good to about 1e-9 of values of size 10.
    assert along(ref.loss) == pytest.approx((grad_W * dW).sum() + (grad_H * dH).sum(), abs=1e-7)
    for found, index in zip(ref.hessian_vector_product(W, H, y, dW, dH), (1, 2), strict=True):
        difference = along(lambda *a, index=index: ref.loss_and_grads(*a)[index])
        np.testing.assert_allclose(found, difference, atol=1e-7)


def test_hessian_products_where_any_class_is_almost_certain():
    """Rates of the logits near 500, which their mean must not cancel; entries to 1e-14."""
    W, dW = np.eye(4), np.zeros((4, 4))
    dH = np.array([[500.0, 503.0, 498.0, 507.0]])
    for label, gap in itertools.product((0, 1), (1.0, 16.5, 37.25, 60.0, 300.0)):
        H, y = np.array([[gap + 0.5, 0.5, 0.25, 0.0]]), np.array([label])
        wanted = oracles.cross_entropy(W, H, y, dW, dH)["HH"]
        at = Residuals(W, H, y)
        over_the_loss = at.hessian_product(np.concatenate([dW.ravel(), dH.ravel()]))[16:]
        for found in (
            ref.hessian_vector_product(W, H, y, dW, dH)[1],
            # e^-300 times a number of one rounding more.
            over_the_loss[None] * np.exp(at.log_loss),
        ):
            error = oracles.worst_relative_error(found, wanted, "float64")
            assert error < 1e-14 + 300 * np.finfo(float).eps, (label, gap)


def test_a_step_is_the_gradients():
    W, H, y, _ = problem(2)
    value, new_W, new_H = ref.gradient_step(W, H, y, 0.3)
    same, grad_W, grad_H = ref.loss_and_grads(W, H, y)
    assert value == same
    assert np.array_equal(new_W, W - 0.3 * grad_W) and np.array_equal(new_H, H - 0.3 * grad_H)


def test_simplex_etf():
    for K in (2, 5):
        M = ref.simplex_etf(K)
        # Unit rows, cosines -1/(K-1), sum zero: Definition 2.1.
        np.testing.assert_allclose(M @ M.T, (K * np.eye(K) - 1) / (K - 1), atol=1e-15)


def test_margins():
    W, H, y = np.eye(3), np.array([[3.0, 1.0, 2.0], [0.0, 0.0, 5.0]]), np.array([0, 1])
    assert ref.margins(W, H, y).tolist() == [1.0, -5.0]
    assert ref.neural_collapse_margin(W, H, y) == -5.0


def test_margin_ratio_is_one_at_collapse():
    K, n = 4, 3
    M, y = ref.simplex_etf(K), np.repeat(np.arange(K), n)
    # |W| = |H| asks for class means 1/sqrt n times as long.
    H = M[y] / math.sqrt(n)
    assert ref.margin_ratio(M, H, y) == pytest.approx(1.0, rel=CLOSE)
    assert ref.margin_ratio(M, 2 * H, y) < 0.9
    assert ref.separation_constant([n] * K) == pytest.approx((K - 1) * math.sqrt(n), rel=CLOSE)
    # K = 2: centring leaves one direction, (1, -1)/sqrt 2 times (sqrt a, -sqrt b)/sqrt 2.
    assert ref.separation_constant([1, 4]) == pytest.approx(math.sqrt(2.5), rel=CLOSE)


def test_quantities_of_figure_2_by_hand():
    """Two classes on a line about (0, 0): means 2 and -2, one of them spread by 1."""
    H = np.array([[3.0, 0.0], [1.0, 0.0], [-2.0, 0.0], [-2.0, 0.0]])
    y = np.array([0, 0, 1, 1])
    assert ref.class_means(H, y).tolist() == [[2.0, 0.0], [-2.0, 0.0]]
    assert ref.within_class(H, y) == pytest.approx((1 + 1) / (3 + 1 + 2 + 2), rel=1e-15)
    # Sigma_W = 1/2, Sigma_B = 4, K = 2.
    assert ref.nc1(H, y) == pytest.approx(0.5 / 4 / 2, rel=1e-14)
    V = np.array([[3.0, 0.0], [0.0, 0.0], [0.0, 3.0], [0.0, 0.0]]) + 7.0
    lengths = np.array([math.sqrt(2.25**2 + 0.75**2), math.sqrt(2 * 0.75**2)])
    both = np.repeat(lengths, 2)
    assert ref.equinorm(V) == pytest.approx(both.std() / both.mean(), rel=1e-14)
    # An ETF has every cosine at -1/(K-1); a right angle is off by 1/(K-1) = 1/2.
    assert ref.equiangular(ref.simplex_etf(5) + 3.0) == pytest.approx(0.0, abs=1e-14)
    square = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    # Four right angles off by 1/3, two opposite pairs off by 2/3.
    assert ref.equiangular(square) == pytest.approx((4 / 3 + 4 / 3) / 6, rel=1e-14)
    assert ref.self_duality(5 * V, V) == pytest.approx(0.0, abs=1e-14)
    assert ref.self_duality(-V, V) == pytest.approx(2.0, rel=1e-14)


def test_absent_classes_have_no_mean():
    H, y = np.array([[1.0], [3.0], [5.0]]), np.array([4, 4, 1])
    assert ref.class_means(H, y).tolist() == [[5.0], [2.0]]
    assert ref.within_class(H, y) == pytest.approx((1 + 1 + 0) / (2.5 + 0.5 + 1.5), rel=1e-15)
