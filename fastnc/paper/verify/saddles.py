"""Section 3.2 checked: Example 3.1, the optimum on the sphere, negative curvature elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from fastnc._core.arrays import check_count
from fastnc.dynamics.flow import flow
from fastnc.objective import hessian_vector_product, loss, loss_and_grads
from fastnc.paper.verify._finding import Finding
from fastnc.paper.verify.stochastic import remark_33_sgd
from fastnc.theory.curvature import tangent_curvature
from fastnc.theory.example31 import Example31
from fastnc.theory.kkt import kkt
from fastnc.theory.margin import neural_collapse_margin
from fastnc.theory.sphere import along_sphere, collapsed, optimal_loss

Floats = NDArray[np.float64]

_POINT = Example31(1.0)


def section_3_2(seed: int) -> Iterator[Finding]:
    """Example 3.1 with (7) to (11), Theorems 3.3 and 3.4, Remark 3.3."""
    seed = check_count("seed", seed, 0)
    yield _point_7()
    yield _multipliers_8()
    yield _gradient_9()
    yield _path_10()
    yield _theorem_33(seed)
    yield _theorem_34()
    yield _sphere_13()
    yield _remark_33()
    yield remark_33_sgd(seed)


def _point_7() -> Finding:
    worst, curvature = 0.0, 0.0
    for C in (0.5, 1.0, 2.0):
        at = Example31(C)
        curvature, _ = tangent_curvature(at.W, at.H, at.y, "sum")
        worst = max(worst, abs(curvature / at.curvature - 1.0))
        worst = max(worst, abs(neural_collapse_margin(at.W, at.H, at.y) / at.x - 1.0))
    value, _ = tangent_curvature(_POINT.W, _POINT.H, _POINT.y, "sum")
    return Finding(
        "Example 3.1 (7)", "separates; smallest eigenvalue -2(e^x-1)/(e^x+1)^2, x = 2C^2",
        f"{value:.10f} at C = 1",
        worst, 1e-9, "a dense eigen-solver on 32 unknowns",
    )  # fmt: skip


def _multipliers_8() -> Finding:
    at = Example31(math.sqrt(0.5))
    signed = at.multipliers - np.diag(at.multipliers.sum(axis=1))
    left = max(np.abs(at.W + signed.T @ at.H).max(), np.abs(at.H + signed @ at.W).max())
    gaps = np.diag(at.H @ at.W.T)[:, None] - at.H @ at.W.T
    active = float(np.abs(gaps[at.multipliers > 0] - 1.0).max())
    objective = 0.5 * float((at.W**2).sum() + (at.H**2).sum())
    optimum = 3.0
    error = max(float(left), active, abs(objective - 4.0))
    if not objective > optimum:
        error = math.inf
    return Finding(
        "Example 3.1 (8)", "multipliers of a KKT point of (5), exactly at C^2 = 1/2; not optimal",
        f"residual {left:.1e}; objective {objective:.6f} > {optimum:.0f}",
        error, 1e-14, "rounding of C^2 = 1/2",
    )  # fmt: skip


def _gradient_9() -> Finding:
    _, grad_W, grad_H = loss_and_grads(_POINT.W, _POINT.H, _POINT.y, "sum")
    scale = np.abs(grad_W).max()
    error = max(np.abs(g - _POINT.gradient).max() for g in (grad_W, grad_H)) / scale
    printed = float(np.abs(grad_W - _POINT.printed_gradient).max() / scale)
    aligned = 1.0 - kkt(_POINT.W, _POINT.H, _POINT.y).beta
    return Finding(
        "Example 3.1 (9)", "the gradient at (7) is -2C/(1+e^x) M, parallel to (7)",
        f"{grad_W[0, 0]:.12f} in front of M",
        max(float(error), aligned) if printed > 0.01 else math.inf, 1e-14, "rounding of 16 terms",
        f"the denominator 2 + 2e^-x + 2e^x is off by {printed:.0%}; it is 2 + e^-x + e^x",
    )  # fmt: skip


def _path_10() -> Finding:
    losses = [loss(*_POINT.path(t), _POINT.y, "sum") for t in np.linspace(0.0, 0.5, 101)]
    norms = [sum(float((x**2).sum()) for x in _POINT.path(t)) for t in (0.1, 0.5)]
    error = max(abs(losses[-1] / optimal_loss(4.0, 4, 1, "sum") - 1.0), abs(norms[1] / 16.0 - 1.0))
    if not (np.diff(losses) < 0.0).all():
        error = math.inf
    rises = loss(*_POINT.printed_path(-0.1), _POINT.y, "sum") - _POINT.loss
    falls = loss(*_POINT.printed_path(-0.3), _POINT.y, "sum") - _POINT.loss
    if not (rises > 0.0 > falls):
        error = math.inf
    return Finding(
        "Example 3.1 (10), (11)", "a path of constant norm falls from (7) to the optimum",
        f"{losses[0]:.6f} -> {losses[-1]:.6f}, strictly, on M + t vv^T",
        error, 1e-13, "rounding of 4 logarithms",
        f"(10) rises for a small beta ({rises:+.1e} at -0.1, {falls:+.1e} at -0.3): lower only for "
        ".1406 < |beta| < .674 at C = 1, never for C < .6747",
    )  # fmt: skip


def _theorem_33(seed: int) -> Finding:
    K, n, d, radius = 3, 2, 4, 2.5
    y = np.repeat(np.arange(K), n)
    best = optimal_loss(radius, K, n)
    rng = np.random.default_rng(seed)

    def on_the_sphere(x: Floats) -> tuple[float, Floats]:
        norm = float(np.linalg.norm(x))
        theta = radius / norm * x
        W, H = theta[: K * d].reshape(K, d), theta[K * d :].reshape(-1, d)
        value, grad_W, grad_H = loss_and_grads(W, H, y)
        slope = np.concatenate([grad_W.ravel(), grad_H.ravel()])
        return value, (slope - theta * (theta @ slope) / radius**2) * (radius / norm)

    ends = [
        minimize(
            on_the_sphere, rng.standard_normal((K + K * n) * d), jac=True, method="L-BFGS-B",
            options={"gtol": 1e-10},
        ).fun
        for _ in range(20)
    ]  # fmt: skip
    attained = abs(loss(*collapsed(radius, K, n, d)) / best - 1.0)
    # A value below the closed form by more than rounding would refute that.
    beaten = max(0.0, 1.0 - min(ends) / best)
    error = max(attained, abs(min(ends) / best - 1.0)) if beaten < 1e-13 else math.inf
    return Finding(
        "Theorem 3.3", "least loss on a sphere: log(1+(K-1)exp(-rho^2/(2(K-1)sqrt n)))",
        f"{best:.10f}; best of 20 starts {min(ends):.10f}",
        error, 1e-8, "where L-BFGS stops; none is below the closed form",
    )  # fmt: skip


def _theorem_34() -> Finding:
    """At (7) and at a point of rank 1 the loss falls along the sphere; at collapse it does not."""
    pair = 1.3 * np.outer([1.0, -1.0, 1.0, -1.0], [1.0, 0.0])
    y = np.arange(4)
    falls, error = [], 0.0
    for W in (_POINT.W, pair):
        value, (dW, dH) = tangent_curvature(W, W, y, "sum")
        angle = 0.05
        change = loss(*along_sphere(W, W, dW, dH, angle), y, "sum") - loss(W, W, y, "sum")
        falls.append(value)
        if not (value < 0.0 and change < 0.0):
            error = math.inf
    _, grad, _ = loss_and_grads(pair, pair, y, "sum")
    Z = pair @ pair.T
    p = np.exp(Z) / np.exp(Z).sum(axis=1, keepdims=True)
    exact = -float((pair * grad).sum() / (pair**2).sum()) - float(np.linalg.norm(p - np.eye(4), 2))
    flat, _ = tangent_curvature(*collapsed(3.0, 4, 2, 4), "sum")
    error = max(error, abs(falls[1] / exact - 1.0), abs(flat))
    return Finding(
        "Theorem 3.4", "negative curvature where not optimal, lambda - |dL/dZ|_2; else 0",
        f"{falls[0]:.4f} at (7), {falls[1]:.4f} at rank 1, {flat:.0e} at collapse",
        error, 1e-9, "a dense eigen-solver",
    )  # fmt: skip


def _sphere_13() -> Finding:
    W, H, y = collapsed(3.0, 4, 2, 4)
    size = W.size
    columns = []
    for e in np.eye(size + H.size):
        parts = e[:size].reshape(W.shape), e[size:].reshape(H.shape)
        HW, HH = hessian_vector_product(W, H, y, *parts, "sum")
        columns.append(np.concatenate([HW.ravel(), HH.ravel()]))
    plain = np.array(columns)
    theta = np.concatenate([W.ravel(), H.ravel()])
    P = np.eye(len(theta)) - np.outer(theta, theta) / (theta @ theta)
    straight = float(np.linalg.eigvalsh(P @ plain @ P)[0])
    _, grad_W, grad_H = loss_and_grads(W, H, y, "sum")
    shift = float((W * grad_W).sum() + (H * grad_H).sum()) / float(theta @ theta)
    sphere = float(np.linalg.eigvalsh(P @ (plain - shift * np.eye(len(theta))) @ P)[0])
    return Finding(
        "(13), (14)", "descent on the sphere is decided by the Riemannian Hessian",
        f"smallest eigenvalue at the optimum {sphere:.0e}",
        abs(sphere) if straight < -1e-3 else math.inf, 1e-13, "rounding of a 48 x 48 matrix",
        f"a straight tangent step leaves the sphere: its Hessian has {straight:.3f} even at the "
        "optimum, which no step on the sphere improves",
    )  # fmt: skip


def _remark_33() -> Finding:
    """The time of gradient flow from (7), perturbed by a relative eps along the escape."""
    dW, dH = _POINT.escape
    times = []
    sizes = (0.2, 0.1)
    for eps in sizes:
        W, H = _POINT.W + 4.0 * eps * dW, _POINT.H + 4.0 * eps * dH
        run = flow(_POINT.model, 2.0 / eps**2, W=W, H=H, snapshots=60)
        late = run["log10_time"][1.0 - run["margin_ratio"] < 0.01]
        times.append(float(late[0]) * math.log(10.0) if len(late) else math.inf)
    # log t eps^2, and its limit for small eps.
    scaled = [t * eps**2 for t, eps in zip(times, sizes, strict=True)]
    return Finding(
        "Remark 3.3", "from (7) + eps, collapse (ratio .99) at log t ~ 2/eps^2: exponentially long",
        f"log t eps^2 = {scaled[0]:.2f}, {scaled[1]:.2f} at eps = .2, .1",
        abs(scaled[1] / 2.0 - 1.0), 0.15, "terms of higher order in eps",
        f"'a small number of iterations'; here t = e^{times[0]:.0f} and e^{times[1]:.0f}",
    )  # fmt: skip
