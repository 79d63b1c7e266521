"""The minimum-norm separation: SELI against SLSQP, and what cannot be separated."""

import model_oracles as oracles
import numpy as np
import pytest

from fastnc import models as M


# SLSQP meets its constraints and its objective to about 1e-9.
@pytest.mark.parametrize(("K", "n", "d"), [(2, 2, 1), (3, 1, 2), (3, 2, 3)])
def test_balanced_separation(K, n, d):
    best = M.separation(K, n, d).optimum()
    assert best.value == pytest.approx(np.sqrt(n) * (K - 1), rel=1e-14)
    assert best.value == pytest.approx(oracles.separation([n] * K, d), rel=1e-7)
    np.testing.assert_allclose(best.gram_W, np.sqrt(n) * (np.eye(K) - 1 / K), atol=1e-14)


@pytest.mark.parametrize(("sizes", "d"), [((4, 1), 1), ((3, 1, 1), 2), ((4, 2, 1), 3)])
def test_unequal_separation(sizes, d):
    assert M.seli(sizes, d).optimum().value == pytest.approx(oracles.separation(sizes, d), rel=1e-7)


@pytest.mark.parametrize("sizes", [(7, 7, 1, 1), (100, 1, 1), (32, 16, 8, 4, 2, 1), (9, 9, 9)])
def test_seli_is_the_encoded_labels_geometry_with_a_dual_certificate(sizes):
    K, n = len(sizes), np.array(sizes)
    best = M.seli(sizes, K).optimum()
    # The definition, over samples: Zhat = Y - 1/K = V L U^T.
    Y = np.eye(K)[:, np.repeat(np.arange(K), n)]
    V, L, Ut = np.linalg.svd(Y - 1 / K, full_matrices=False)
    # Rounding of a decomposition of norm sqrt(N).
    assert best.value == pytest.approx(L.sum(), rel=1e-13)
    np.testing.assert_allclose(best.gram_W, (V * L) @ V.T, atol=1e-12)
    np.testing.assert_allclose(best.gram_H, (Ut.T * L) @ Ut, atol=1e-12)
    np.testing.assert_allclose(best.H @ best.W.T, (Y - 1 / K).T, atol=1e-12)
    # Weak duality: for |D|_2 <= 1 with columns of sum 0 and entries off the label <= 0,
    # |Z|_* >= <D, Z> = sum of -D_ji (z_yi - z_ji) >= sum of -D_ji.
    D = V[:, :-1] @ Ut[:-1]
    off = D[Y == 0.0]
    assert np.linalg.norm(D, 2) < 1 + 1e-12 and np.abs(D.sum(axis=0)).max() < 1e-12
    assert off.max() < 1e-12 and -off.sum() == pytest.approx(best.value, rel=1e-12)


def test_objective_and_margins():
    model = M.seli((2, 1, 1), 2)
    W = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    H = np.array([[2.0, 0.0], [2.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    assert model.objective(W, H) == 0.5 * (4 + 11)
    assert model.margin(W, H) == 1.0 and model.violation(W, H) == 0.0
    assert model.violation(W, -H) == 1.0 - model.margin(W, -H) > 1.0


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: M.separation(3, 2, 1), "`dim` must be at least 2 for 3 classes; got 1. On a line"),
        (lambda: M.seli((2, 2, 2), 1), "the constraints are infeasible"),
    ],
)
def test_infeasible_constraints(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_too_small_a_dimension_is_refused():
    with pytest.raises(M.UnknownOptimum, match="no closed form is known for dim=2"):
        M.seli((3, 2, 2, 1), 2).optimum()
