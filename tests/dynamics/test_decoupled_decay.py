"""Decoupled weight decay: each rule tends to the optimum of the ball of its own norm."""

import numpy as np
import pytest
from scipy.optimize import minimize

import fastnc

R = fastnc.rules
MODEL = fastnc.ULPM(3, 2, 3)
EPOCHS = 6000
# `theta <- (1 - lr) theta - lr u` with a u of norm 1: the ball has the radius 1.
STEPS = R.Cosine(2e-2, EPOCHS)


def end(rule, seed=0):
    """The last loss, theta and its gradients."""
    run = fastnc.descend(MODEL, rule=rule, epochs=EPOCHS, seed=seed, snapshots=1)
    loss, *grads = fastnc.loss_and_grads(run.W, run.H, run.y)
    return float(loss), (run.W, run.H), grads


def box_optimum():
    """The least loss with all entries within -1..1 that L-BFGS-B finds from twenty starts."""
    K, N, d = 3, 6, 3

    def value(x):
        loss, gW, gH = fastnc.loss_and_grads(
            x[: K * d].reshape(K, d), x[K * d :].reshape(N, d), MODEL.y
        )
        return float(loss), np.concatenate([gW.ravel(), gH.ravel()])

    rng = np.random.default_rng(0)
    starts = rng.uniform(-1, 1, (20, (K + N) * d))
    bounds = [(-1.0, 1.0)] * starts.shape[1]
    settings = {"jac": True, "method": "L-BFGS-B", "bounds": bounds}
    return min(minimize(value, x, **settings, options={"ftol": 1e-16}).fun for x in starts)


@pytest.mark.parametrize(
    ("rule", "rtol"),
    [
        # At rest an entry is g / (|g| + epsilon), of gradients of 1e-3 and more.
        (R.AdamW(STEPS, (0.5, 0.9), weight_decay=1.0), 1e-4),
        (R.SignDescent(STEPS, weight_decay=1.0), 1e-7),
    ],
    ids=["AdamW", "sign"],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_of_the_largest_entry(rule, rtol, seed):
    loss, theta, grads = end(rule, seed)
    assert max(np.abs(x).max() for x in theta) == pytest.approx(1.0, abs=rtol)
    # KKT on the ball: theta is dual to minus the gradient.
    dual = sum(np.abs(g).sum() for g in grads)
    inner = sum(np.vdot(x, g) for x, g in zip(theta, grads, strict=True))
    assert -inner == pytest.approx(dual, rel=rtol)
    assert loss == pytest.approx(box_optimum(), rel=rtol)


def test_adamw_rests_where_gradients_are_below_eps():
    """The ball of radius 3 allows a margin of 36: with eps = 1e-8 AdamW does not reach its edge."""
    radius = 3.0
    most = {}
    for eps in (0.0, 1e-8):
        rule = R.AdamW(STEPS, (0.5, 0.9), eps=eps, weight_decay=1 / radius)
        run = fastnc.descend(MODEL, rule=rule, epochs=EPOCHS, snapshots=1)
        most[eps] = max(np.abs(run.W).max(), np.abs(run.H).max()), run["margin_ratio_max"][-1]
    # While the gradients still fall m' / sqrt(v') is below 1: by .002 at the last epochs.
    assert most[0.0] == pytest.approx((radius, 1.0), rel=5e-3)
    assert most[1e-8][0] < 0.9 * radius and most[1e-8][1] < 0.9


def test_of_the_euclidean_norm():
    loss, theta, _ = end(R.NormalizedDescent(STEPS, weight_decay=1.0))
    # The last steps are of 1e-8.
    assert np.hypot(*map(np.linalg.norm, theta)) == pytest.approx(1.0, abs=1e-7)
    # Theorem 3.3 has the optimum on a sphere, and the loss falls outwards.
    assert loss == pytest.approx(fastnc.models.sphere(3, 2, 3, 1.0).optimum().value, rel=1e-7)


def test_of_the_operator_norm():
    _, theta, grads = end(R.SpectralDescent(STEPS, weight_decay=1.0))
    assert max(np.linalg.norm(x, 2) for x in theta) == pytest.approx(1.0, abs=1e-7)
    dual = sum(np.linalg.norm(g, "nuc") for g in grads)
    inner = sum(np.vdot(x, g) for x, g in zip(theta, grads, strict=True))
    assert -inner == pytest.approx(dual, rel=1e-7)
