"""The loss on a sphere: Theorem 3.3 against an optimiser, curvature against dense Hessians."""

import math
import re

import numpy as np
import pytest
import torch
from scipy.linalg import null_space
from scipy.optimize import minimize

import fastnc
from fastnc import reference
from fastnc.theory import curvature
from fastnc.theory.curvature import SphereHessian
from fastnc.theory.example31 import Example31
from fastnc.theory.sphere import along_sphere, collapsed, optimal_loss


def complex_gradient(theta, K, d, y):
    """The gradient of the sum loss for complex theta: analytic, so a complex step is exact."""
    W, H = theta[: K * d].reshape(K, d), theta[K * d :].reshape(-1, d)
    Z = H @ W.T
    Z = Z - Z.real.max(axis=1, keepdims=True)
    p = np.exp(Z)
    p = p / p.sum(axis=1, keepdims=True)
    r = p - np.eye(K)[y]
    return np.concatenate([(r.T @ H).ravel(), (r @ W).ravel()])


def dense_hessian(W, H, y):
    """Every column by a complex step of 1e-30: exact to rounding, since nothing is subtracted."""
    K, d = W.shape
    theta = np.concatenate([W.ravel(), H.ravel()])
    steps = theta + 1e-30j * np.eye(len(theta))
    return np.stack([complex_gradient(step, K, d, y).imag / 1e-30 for step in steps])


def dense_curvature(W, H, y):
    """Smallest eigenvalue on the sphere's tangent space, from a basis of that space (sum loss)."""
    theta = np.concatenate([W.ravel(), H.ravel()])
    basis = null_space(theta[None])
    gradient = complex_gradient(theta + 0j, *W.shape, y).real
    plain = dense_hessian(W, H, y)
    inner = basis.T @ plain @ basis
    shift = theta @ gradient / (theta @ theta)
    return np.linalg.eigvalsh(inner)[0] - shift, plain, gradient


def random_point(K, n, d, seed, scale=1.0):
    model = fastnc.ULPM(K, n, d)
    W, H = model.init(seed)
    return scale * W, scale * H, model.y


@pytest.mark.parametrize(
    ("K", "n", "d", "radius"), [(3, 2, 4, 2.0), (4, 1, 3, 3.0), (2, 5, 2, 1.0)]
)
def test_theorem_33_is_reached_and_not_beaten_from_20_starts(K, n, d, radius):
    y = np.repeat(np.arange(K), n)
    best = optimal_loss(radius, K, n, "sum")

    def on_the_sphere(x):
        norm = np.linalg.norm(x)
        theta = radius * x / norm
        Z = theta[K * d :].reshape(-1, d) @ theta[: K * d].reshape(K, d).T
        gaps = Z - Z[np.arange(n * K), y][:, None]
        value = np.log(np.exp(gaps).sum(axis=1)).sum()
        gradient = complex_gradient(theta + 0j, K, d, y).real
        gradient = (gradient - theta * (theta @ gradient) / radius**2) * radius / norm
        return value, gradient

    found = []
    for seed in range(20):
        x = np.random.default_rng(seed).standard_normal((K + n * K) * d)
        end = minimize(
            on_the_sphere, x, jac=True, method="L-BFGS-B", options={"gtol": 1e-7, "maxiter": 500}
        )
        found.append(end.fun)
    # Rounding of a sum of N logarithms below, and the optimiser's own end above.
    assert min(found) >= best * (1 - 1e-13)
    assert min(found) <= best * (1 + 1e-8)
    W, H, y = collapsed(radius, K, n, d)
    assert fastnc.loss(W, H, y, "sum") == pytest.approx(best, rel=1e-13)
    assert optimal_loss(1e200, K, n) == 0.0
    assert optimal_loss(radius, K, n) == pytest.approx(best / len(y), rel=1e-15)
    assert (W**2).sum() == pytest.approx(radius**2 / 2) == pytest.approx((H**2).sum())


@pytest.mark.parametrize(("K", "n", "d"), [(3, 2, 4), (2, 1, 3), (5, 3, 4)])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_hessian_products_are_complex_steps_and_symmetric(K, n, d, scale):
    W, H, y = random_point(K, n, d, seed=1, scale=scale)
    dense = dense_hessian(W, H, y)
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((2, len(dense)))
    products = []
    for direction in directions:
        dW, dH = direction[: K * d].reshape(K, d), direction[K * d :].reshape(-1, d)
        HW, HH = fastnc.hessian_vector_product(W, H, y, dW, dH, "sum")
        products.append(np.concatenate([HW.ravel(), HH.ravel()]))
        # Two sums of the same terms in another order.
        np.testing.assert_allclose(
            products[-1], dense @ direction, atol=1e-12 * np.abs(dense).max() * len(dense)
        )
    left, right = directions[0] @ products[1], directions[1] @ products[0]
    assert abs(left - right) <= 1e-13 * np.linalg.norm(products[0]) * np.linalg.norm(directions[1])
    # On the sphere: the projected product with the sphere's own curvature, over the loss.
    on_sphere = SphereHessian(W, H, y, "sum")
    _, _, gradient = dense_curvature(W, H, y)
    theta = on_sphere.theta
    P = np.eye(len(theta)) - np.outer(theta, theta) / (theta @ theta)
    exact = P @ (dense - theta @ gradient / (theta @ theta) * np.eye(len(theta))) @ P
    found = on_sphere.loss * on_sphere(directions[0].copy())
    np.testing.assert_allclose(found, exact @ directions[0], atol=1e-11 * scale**2)


def test_products_in_the_tail_are_those_of_the_reference_over_the_loss():
    W, H, y = collapsed(40.0, 4, 2, 5)
    rng = np.random.default_rng(3)
    W, H = W + 0.01 * rng.standard_normal(W.shape), H + 0.01 * rng.standard_normal(H.shape)
    dW, dH = rng.standard_normal(W.shape), rng.standard_normal(H.shape)
    hessian = SphereHessian(W, H, y, "sum")
    assert hessian.loss < 1e-70
    x = hessian.tangent(np.concatenate([dW.ravel(), dH.ravel()]))
    HW, HH = reference.hessian_vector_product(W, H, y, *hessian.split(x))
    exact = hessian.tangent(np.concatenate([HW.ravel(), HH.ravel()]) / hessian.loss)
    exact += hessian.shift * x
    # Gaps of 190 rounded at 3e-14 stand in an exponent.
    np.testing.assert_allclose(hessian(x), exact, atol=1e-11 * np.abs(exact).max())


@pytest.mark.parametrize("C", [0.3, 1.0, 2.0])
def test_the_curvature_at_7_is_its_closed_form(C):
    example = Example31(C)
    value, (dW, dH) = fastnc.tangent_curvature(example.W, example.H, example.y, "sum")
    exact = -2 * math.expm1(2 * C**2) / (math.exp(2 * C**2) + 1) ** 2
    # All 32 eigenvalues of a dense matrix whose entries are rounded at 1e-16 of the largest.
    assert value == pytest.approx(exact, rel=1e-9) == pytest.approx(example.curvature, rel=1e-9)
    assert value == pytest.approx(dense_curvature(example.W, example.H, example.y)[0], rel=1e-9)
    # The direction is a unit vector, tangent, and has that curvature.
    assert (dW**2).sum() + (dH**2).sum() == pytest.approx(1.0)
    assert (example.W * dW).sum() + (example.H * dH).sum() == pytest.approx(0.0, abs=1e-12)
    # The eigenvalue is double: v a^T for W and for H, with any a orthogonal to the rows of (7).
    v = np.array([1.0, 1.0, -1.0, -1.0])
    free = np.array([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]) / math.sqrt(2)
    along = (v / math.sqrt(8)) @ (dW + dH) @ free.T
    assert along @ along == pytest.approx(1.0, abs=1e-9)
    known_W, _ = example.escape
    assert np.linalg.norm((v / math.sqrt(8)) @ (2 * known_W) @ free.T) == pytest.approx(1.0)
    # Theorem 3.4 and (14): along it the loss falls at an unchanged norm.
    before = fastnc.loss(example.W, example.H, example.y, "sum")
    for angle in (1e-3, 1e-2, 0.1):
        W, H = along_sphere(example.W, example.H, dW, dH, angle)
        assert (W**2).sum() + (H**2).sum() == pytest.approx(16 * C**2, rel=1e-13)
        assert fastnc.loss(W, H, example.y, "sum") < before


@pytest.mark.parametrize(
    ("K", "n", "d", "scale"), [(3, 2, 4, 1.0), (4, 3, 2, 2.0), (2, 2, 1, 1.0), (6, 12, 9, 1.5)]
)
def test_the_curvature_at_random_points_is_a_dense_hessians(K, n, d, scale):
    """Both ways: up to 300 unknowns all eigenvalues, above (the last case) Lanczos."""
    W, H, y = random_point(K, n, d, seed=2, scale=scale)
    exact = dense_curvature(W, H, y)[0]
    total, direction = fastnc.tangent_curvature(W, H, y, "sum")
    # `tol` is 1e-12; a backward stable dense solver leaves 1e-14 of the largest eigenvalue.
    assert total == pytest.approx(exact, rel=1e-9)
    mean, _ = fastnc.tangent_curvature(W, H, y)
    assert mean == pytest.approx(exact / len(y), rel=1e-9)
    product = SphereHessian(W, H, y, "sum")
    x = np.concatenate([part.ravel() for part in direction])
    residual = product.loss * product(x) - total * x
    assert np.linalg.norm(residual) < 1e-5 * abs(total)
    assert x @ product.gradient <= 0


def test_at_the_optimum_nothing_falls():
    W, H, y = collapsed(3.0, 4, 2, 4)
    value, _ = fastnc.tangent_curvature(W, H, y, "sum")
    # Rotations are flat: the smallest eigenvalue is 0, and rounding is what is found.
    assert abs(value) < 1e-14
    # The plain Hessian of (13) does not tell: it is negative even here.
    assert np.linalg.eigvalsh(dense_hessian(W, H, y))[0] < -1e-3


def test_a_stationary_point_of_lower_rank():
    """Theorem 3.4's certificate: lambda - |dL/dZ|_2 at a sphere-stationary point with a free
    direction. Two of four classes share a classifier and their features."""
    pair = np.array([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    scale = 1.3
    W = H = scale * pair
    y = np.arange(4)
    _, grad_W, grad_H = reference.loss_and_grads(W, H, y)
    theta2, inner = (W**2).sum() + (H**2).sum(), (W * grad_W).sum() + (H * grad_H).sum()
    # Stationary on the sphere: the gradient is along the point itself.
    np.testing.assert_allclose(grad_W, inner / theta2 * W, atol=1e-14)
    np.testing.assert_allclose(grad_H, inner / theta2 * H, atol=1e-14)
    residuals = reference.softmax(reference.logit_gaps(W, H, y), y).residuals
    exact = -inner / theta2 - np.linalg.norm(residuals, 2)
    assert exact < -0.1
    assert fastnc.tangent_curvature(W, H, y, "sum")[0] == pytest.approx(exact, rel=1e-10)


def test_lanczos_says_that_it_did_not_converge(monkeypatch):
    W, H, y = random_point(6, 12, 9, seed=2)

    def stop(*_, **__):
        raise curvature.ArpackNoConvergence("none", np.empty(0), np.empty((0, 0)))

    monkeypatch.setattr(curvature, "eigsh", stop)
    with pytest.raises(ArithmeticError, match=r"within 5 Hessian products at `tol`=1e-07"):
        fastnc.tangent_curvature(W, H, y, tol=1e-7)


def test_tensors_and_float32_come_back_as_they_went_in():
    W, H, y = random_point(3, 2, 4, seed=0)
    value = fastnc.tangent_curvature(W, H, y)[0]
    tensors = [torch.from_numpy(x.astype(np.float32)) for x in (W, H)]
    single, (dW, dH) = fastnc.tangent_curvature(*tensors, torch.from_numpy(y.copy()))
    assert dW.dtype == torch.float32 and dW.shape == (3, 4) and dH.shape == (6, 4)
    # The inputs are rounded at 6e-8.
    assert single == pytest.approx(value, rel=1e-5)
    moved_W, moved_H = along_sphere(*tensors, dW, dH, 0.3)
    assert isinstance(moved_W, torch.Tensor) and moved_H.dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda W, H, y: fastnc.tangent_curvature(0 * W, 0 * H, y), "must not both be 0"),
        (lambda W, H, y: fastnc.tangent_curvature(W, H, y, "max"), "`reduction` must be 'mean'"),
        (lambda W, H, y: fastnc.tangent_curvature(W, H[:, :2], y), "`H` must have 4 columns"),
        (
            lambda W, H, y: fastnc.tangent_curvature(*collapsed(90.0, 3, 2, 4)),
            "the loss must be a normal number of float64; its logarithm is -14",
        ),
        (lambda W, H, y: collapsed(1.0, 5, 2, 3), "`dim` must be at least n_classes - 1 = 4"),
        (lambda W, H, y: optimal_loss(-1.0, 5, 2), "`radius` must be a number of at least 0"),
        (lambda W, H, y: optimal_loss(1.0, 3, 2, "max"), "`reduction` must be 'mean' or 'sum'"),
        (lambda W, H, y: collapsed(-1.0, 3, 2, 4), "`radius` must be a number of at least 0"),
        (lambda W, H, y: collapsed(1.0, 3, 2, "4"), "`dim` must be an integer of at least 1"),
        (lambda W, H, y: fastnc.tangent_curvature(W, H, y, tol=0.0), "`tol` must be a positive"),
        (lambda W, H, y: fastnc.tangent_curvature(W, H, y, seed=-1), "`seed` must be an integer"),
        (lambda W, H, y: along_sphere(W, H, W, H, 0.1), "direction of norm 1 at a right angle"),
        (
            lambda W, H, y: along_sphere(W, H, W / np.linalg.norm(W), 0 * H, 0.1),
            "as from `tangent_curvature`; got norm 1 and cosine 0.",
        ),
        (lambda W, H, y: optimal_loss(1.0, 1, 2), "`n_classes` must be an integer of at least 2"),
    ],
)
def test_bad_arguments(call, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        call(*random_point(3, 2, 4, seed=0))
