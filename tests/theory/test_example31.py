"""Example 3.1: the point (7), its corrected gradient, and the way out that always works."""

import math

import numpy as np
import pytest

from fastnc import reference
from fastnc.theory.example31 import Example31
from fastnc.theory.margin import margin_ratio
from fastnc.theory.sphere import optimal_loss

SCALES = [0.2, math.sqrt(0.5), 1.0, 2.5]


def loss_at(point):
    return reference.loss(*point, np.arange(4))


@pytest.mark.parametrize("C", SCALES)
def test_loss_margin_and_gradient(C):
    example = Example31(C)
    W, H, y = example.W, example.H, example.y
    loss, grad_W, grad_H = reference.loss_and_grads(W, H, y)
    # Closed forms against a sum of 16 terms: a few ulp.
    assert example.loss == pytest.approx(loss, rel=1e-14)
    np.testing.assert_allclose(grad_W, example.gradient, rtol=1e-13, atol=1e-16)
    np.testing.assert_allclose(grad_H, example.gradient, rtol=1e-13, atol=1e-16)
    assert reference.neural_collapse_margin(W, H, y) == pytest.approx(example.x, rel=1e-15)
    assert example.model.n_classes == 4 and example.model.dim == 4 and example.model.n_samples == 4
    # Collapse has 3 where (7) has 4, so its margin ratio is 3/4 at every scale.
    assert margin_ratio(W, H, y) == pytest.approx(0.75, rel=1e-14)


@pytest.mark.parametrize("C", SCALES)
def test_9_as_printed_is_another_vector(C):
    example = Example31(C)
    shares = example.printed_gradient[0, 0] / example.gradient[0, 0]
    x = 2 * C**2
    down, up = math.exp(-x), math.exp(x)
    assert shares == pytest.approx((2 + down + up) / (2 + 2 * down + 2 * up), rel=1e-13)
    assert 0.49 < shares < 0.99


@pytest.mark.parametrize("C", SCALES)
def test_the_path_falls_strictly_and_ends_at_the_optimum(C):
    example = Example31(C)
    losses = [loss_at(example.path(t)) for t in np.linspace(0.0, 0.5, 201)]
    assert losses[0] == pytest.approx(example.loss, rel=1e-14)
    assert (np.diff(losses) < 0).all()
    for t in (0.1, 0.37, 0.5):
        W, H = example.path(t)
        assert (W**2).sum() == pytest.approx(8 * C**2, rel=1e-14) == pytest.approx((H**2).sum())
    assert losses[-1] == pytest.approx(optimal_loss(4 * C, 4, 1, "sum"), rel=1e-13)
    assert margin_ratio(*example.path(0.5), example.y) == pytest.approx(1.0, abs=1e-14)


def test_the_path_leaves_along_the_escape():
    example = Example31(1.0)
    dW, dH = example.escape
    assert (dW**2).sum() + (dH**2).sum() == pytest.approx(1.0, rel=1e-15)
    step = 1e-6
    tangent = (example.path(step)[0] - example.path(-step)[0]) / (2 * step)
    # Central differences: step^2 of the third derivative, and rounding over the step.
    np.testing.assert_allclose(tangent / np.linalg.norm(tangent), math.sqrt(2) * dW, atol=1e-9)
    # Curvature of the loss along it, over the arc length squared.
    length = np.linalg.norm(tangent) * math.sqrt(2)
    t = 1e-3
    bend = (loss_at(example.path(t)) + loss_at(example.path(-t)) - 2 * example.loss) / t**2
    assert bend / length**2 == pytest.approx(example.curvature, rel=1e-4)


def test_10_does_not_imply_11_for_a_small_beta():
    example = Example31(1.0)
    lower = [
        loss_at(example.printed_path(beta)) < example.loss
        for beta in (-0.01, -0.1, -0.140, -0.142, -0.4, -0.67, -0.68, -0.7)
    ]
    assert lower == [False, False, False, True, True, True, False, False]
    W, H = example.printed_path(-0.3)
    assert (W**2).sum() == pytest.approx(8.0, rel=1e-14) == pytest.approx((H**2).sum())
    # Never for C < .6747, and somewhere for a larger one.
    grid = -np.linspace(0.001, 0.707, 500)
    for C, found in ((0.67, False), (0.68, True)):
        example = Example31(C)
        assert any(loss_at(example.printed_path(b)) < example.loss for b in grid) is found


@pytest.mark.parametrize("C", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_that_is_none(C):
    with pytest.raises(ValueError, match="`C` must be a positive number"):
        Example31(C)


@pytest.mark.parametrize("beta", [0.0, 0.3, -0.71])
def test_a_beta_off_the_path(beta):
    with pytest.raises(ValueError, match=r"`beta` must lie in -0\.7071\.\.0"):
        Example31().printed_path(beta)


def test_any_scale():
    """e^x overflowed from C = 19 on, in the `math range error` of another library."""
    near, far = Example31(C=5.0), Example31(C=30.0)
    down = math.exp(-near.x)
    # At e^-50 all but the first power is below rounding.
    assert near.curvature == pytest.approx(-2.0 * down, rel=1e-14)
    assert near.gradient[0, 0] == pytest.approx(-10.0 * down, rel=1e-14)
    assert (far.curvature, far.loss, far.gradient[0, 0], far.printed_gradient[0, 0]) == (0, 0, 0, 0)
    assert Example31(C=1e200).loss == 0.0
