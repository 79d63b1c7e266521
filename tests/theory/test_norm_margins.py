"""Margins in the l_inf and the operator norm: their bounds, beside convex solvers."""

import itertools

import numpy as np
import pytest
from scipy.optimize import linprog

from fastnc.theory import collapsed, margin_ratio_max, margin_ratio_spectral
from fastnc.theory.norm_margins import spectral_square


@pytest.mark.parametrize("sizes", [(1, 1), (1, 1, 1), (2, 1, 1), (1, 1, 1, 1)])
def test_no_entries_up_to_one_have_a_larger_margin_than_the_bound(sizes):
    """Z / d lies in the hull of sign vectors' products: a linear programme over its corners."""
    K, y = len(sizes), np.repeat(np.arange(len(sizes)), sizes)
    corners = [
        np.outer(h, w)
        for h in itertools.product((-1, 1), repeat=len(y))
        for w in itertools.product((-1, 1), repeat=K)
        if w[0] == 1
    ]
    gaps = np.array([[Z[i, y[i]] - Z[i, j] for Z in corners] for i in range(len(y))
                     for j in range(K) if j != y[i]])  # fmt: skip
    n = len(corners)
    found = linprog(
        np.append(np.zeros(n), -1.0),
        A_ub=np.column_stack([-gaps, np.ones(len(gaps))]), b_ub=np.zeros(len(gaps)),
        A_eq=[np.append(np.ones(n), 0.0)], b_eq=[1.0], bounds=[(0, None)] * n + [(None, None)],
    )  # fmt: skip
    # One logit for each feature: of d features the margin is d times this.
    bound = 4 * (K * K // 4) / (K * (K - 1))
    assert -found.fun == pytest.approx(bound, rel=1e-9)


@pytest.mark.parametrize(("sizes", "tight"), [((2, 2, 2), True), ((1,) * 4, True), ((3, 1), False)])
def test_no_factors_of_operator_norm_one_have_a_larger_margin(sizes, tight):
    """`Z = H W^T` with both norms at most 1 is any Z of norm at most 1, where d is large enough."""
    cvxpy = pytest.importorskip("cvxpy")
    K, y = len(sizes), np.repeat(np.arange(len(sizes)), sizes)
    Z, q = cvxpy.Variable((len(y), K)), cvxpy.Variable()
    apart = [Z[i, int(y[i])] - Z[i, j] >= q for i in range(len(y)) for j in range(K) if j != y[i]]
    best = cvxpy.Problem(cvxpy.Maximize(q), [*apart, cvxpy.sigma_max(Z) <= 1]).solve()
    bound = K / np.sqrt(sizes).sum()
    # What an interior-point or splitting solver leaves.
    assert best <= bound * (1 + 1e-4)
    if tight:
        assert best == pytest.approx(bound, rel=1e-4)


def test_collapse_is_the_maximum_of_the_operator_norms_margin():
    W, H, y = collapsed(3.0, 4, 5, 6)
    H *= np.linalg.norm(W, 2) / np.linalg.norm(H, 2)
    assert margin_ratio_spectral(W, H, y) == pytest.approx(1.0, rel=1e-12)
    # A margin is not linear in a scale that only one factor has.
    assert margin_ratio_spectral(W, 2 * H, y) == pytest.approx(0.5, rel=1e-12)
    assert margin_ratio_max(W, H, y) < 1.0


def test_both_are_free_of_scale_and_nan_where_there_is_nothing_to_compare():
    rng = np.random.default_rng(0)
    W, H, y = rng.standard_normal((3, 4)), rng.standard_normal((6, 4)), np.arange(6) % 3
    for ratio in (margin_ratio_max, margin_ratio_spectral):
        assert ratio(1e3 * W, 1e3 * H, y) == pytest.approx(ratio(W, H, y), rel=1e-12)
        assert np.isnan(ratio(W, H, np.zeros(6, int)))
        assert np.isnan(ratio(0 * W, 0 * H, y))


def test_the_norm_of_a_large_matrix():
    A = np.random.default_rng(1).standard_normal((400, 300))
    assert spectral_square(A) == pytest.approx(np.linalg.norm(A, 2) ** 2, rel=1e-10)
