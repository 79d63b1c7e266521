"""Unequal classes under cross-entropy: the certified program, minority collapse, ReLU features."""

import model_oracles as oracles
import numpy as np
import pytest

import fastnc
from fastnc import models as M
from fastnc.models.convex import imbalanced_cross_entropy

PROBLEMS = [((3, 1), 0.1), ((4, 2, 1), 0.02), ((4, 2, 1), 0.2), ((5, 5, 1, 1), 0.08),
            ((5, 5, 1, 1), 0.12), ((20, 3, 1), 0.01), ((2, 2, 2), 0.3)]  # fmt: skip


@pytest.mark.parametrize(("sizes", "mu"), PROBLEMS)
def test_the_program_agrees_with_proximal_gradient(sizes, mu):
    value, X = oracles.logits_program(sizes, mu)
    ours = imbalanced_cross_entropy(np.array(sizes), mu)
    # Both are exact to rounding in the value; the points to its root.
    assert ours.value == pytest.approx(value, rel=1e-10)
    np.testing.assert_allclose(ours.X, X, atol=1e-4)
    assert 0.0 <= ours.gap < 1e-12 and ours.value - ours.gap <= value + 1e-12


@pytest.mark.parametrize(("sizes", "mu"), PROBLEMS[:4])
def test_imbalanced_against_bfgs_in_factors(sizes, mu):
    K, N = len(sizes), sum(sizes)
    lW, lH = 2 * mu, mu / 2
    plain = oracles.cross_entropy(sizes, lW, lH)
    best, found = oracles.least(plain, [(K, K), (N, K)])
    optimum = M.imbalanced(sizes, K, lW, lH).optimum()
    # BFGS ends at gradients of 1e-9 against a curvature of about mu.
    assert optimum.value == pytest.approx(best, rel=1e-9)
    np.testing.assert_allclose(found[0] @ found[0].T, optimum.gram_W, atol=1e-4)
    # The rank is at most K - 1, so that a smaller dimension holds the same optimum.
    assert M.imbalanced(sizes, K - 1, lW, lH).optimum().value == optimum.value


def test_the_gap_bounds_the_distance_from_the_optimum():
    from fastnc.models.convex import _Factored

    sizes, mu = np.array([6, 3, 1]), 0.05
    best = imbalanced_cross_entropy(sizes, mu)
    problem = _Factored(sizes, mu)
    rng = np.random.default_rng(0)
    for size in (1e-3, 0.1, 1.0, 10.0):
        off = problem.certified(best.X + size * rng.standard_normal((3, 3)))
        # A certificate that is no upper bound would be worthless.
        assert off.gap >= off.value - best.value > 0.0


@pytest.mark.parametrize("decay", [1e-8, 1e-12, 1e-20, 1e-80, 1e-140])
def test_the_gap_is_one_where_the_label_has_all_but_rounding(decay):
    """`q log q` of 1 - 1e-20 was 0: a gap of 2e-2 of the value, or none at all."""
    K, n = 3, 4
    c = np.sqrt(n) * decay
    a = np.log1p(-(K - 1) * c) - np.log(c)
    exact = np.log1p((K - 1) * np.exp(-a)) + c * (K - 1) * a
    best = M.imbalanced((n,) * K, K, decay, decay).optimum()
    # The program's point is exact to the root of its gap, which is relative: here 1e-6.
    assert best.value == pytest.approx(exact, rel=1e-12, abs=0.0) and best.certificate < 1e-6
    from fastnc.models.convex import _Factored

    problem = _Factored(np.array([6, 3, 1]), decay)
    found = imbalanced_cross_entropy(np.array([6, 3, 1]), decay)
    off = problem.certified(found.X + 0.1 * np.random.default_rng(0).standard_normal((3, 3)))
    assert off.gap >= off.value - found.value > 0.0


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda: M.imbalanced((7, 4, 1), 3, 1e-200, 1e-200), "`weight_decay_W`=1e-200 and `weight"),
        (lambda: norm_constrained(1e-300), "`energy_W`=1e-300 and `energy_H`=1e-300: they are too"),
        (lambda: norm_constrained(1e-20), "`energy_W`=1e-20 and `energy_H`=1e-20: they are too"),
        (lambda: norm_constrained(1e4), "`energy_W`=10000 and `energy_H`=10000: they are too"),
    ],
)
def test_no_optimum_without_a_certificate(model, said):
    """One was returned with a gap of 5e8 of it, or the search for a multiplier never ended."""
    with pytest.raises(M.UnknownOptimum, match=rf"no optimum is certified for {said}"):
        model().optimum()


def norm_constrained(energy):
    return M.norm_constrained(3, None, 3, energy, energy, class_sizes=(7, 4, 1))


def test_hessian_products_are_differences_of_gradients():
    from fastnc.models.convex import _Factored

    problem = _Factored(np.array([4, 2, 1]), 0.05)
    rng = np.random.default_rng(1)
    x, dx = rng.standard_normal((2, 18))
    step = 1e-6
    differences = (
        problem.value_and_grad(x + step * dx)[1] - problem.value_and_grad(x - step * dx)[1]
    ) / (2 * step)
    np.testing.assert_allclose(problem.hessian_vector_product(x, dx), differences, atol=1e-8)


def test_minorities_share_their_classifier_exactly_beyond_the_threshold():
    sizes, N = (60, 60, 3, 3), 126
    for factor, collapsed in ((0.97, False), (1.03, True)):
        mu = factor * np.sqrt(3) / N
        model = M.imbalanced(sizes, 4, mu, mu)
        assert model.collapsed.tolist() == [False, False, collapsed, collapsed]
        best = model.optimum()
        apart = np.linalg.norm(best.W[2] - best.W[3])
        # Zero to the accuracy of the program's point, or of the order of 1 - factor.
        assert apart < 1e-6 if collapsed else apart > 1e-2
        # The same from the proximal iteration, which knows of no threshold.
        _, X = oracles.logits_program(sizes, mu)
        Z = X / np.sqrt(np.array(sizes))
        apart = abs(Z[2, 2] - Z[2, 3])
        assert apart < 1e-6 if collapsed else apart > 1e-3


def test_equal_sizes_agree_with_the_balanced_closed_form():
    for mu in (0.01, 0.09, 0.2):
        balanced = M.weight_decay(4, 6, 3, 3 * mu, mu / 3).optimum()
        program = M.imbalanced((6,) * 4, 3, 3 * mu, mu / 3).optimum()
        assert program.value == pytest.approx(balanced.value, rel=1e-12)
        # The program's point is exact to the root of its gap.
        np.testing.assert_allclose(program.gram_W, balanced.gram_W, atol=1e-6)


def test_a_rank_that_does_not_fit_is_refused():
    with pytest.raises(M.UnknownOptimum, match="have rank 3, which `dim`=2 cannot hold"):
        M.imbalanced((5, 4, 3, 2), 2, 0.01, 0.01).optimum()
    # Beyond every threshold the optimum is zero, which fits anywhere.
    best = M.imbalanced((5, 4, 3, 2), 1, 1.0, 1.0).optimum()
    assert best.value == pytest.approx(np.log(4)) and not best.W.any()


# All classes kept, the small ones given up, all given up; and equal sizes.
@pytest.mark.parametrize("mu", [0.05, 0.25, 0.6])
@pytest.mark.parametrize("sizes", [(4, 1), (5, 2, 1), (2, 2, 2)])
def test_relu_features_against_bounded_descent(sizes, mu):
    K, N = len(sizes), sum(sizes)
    lW, lH = 2 * mu, mu / 2
    plain = oracles.cross_entropy(sizes, lW, lH)
    best, _ = oracles.least(plain, [(K, K), (N, K)], starts=8, non_negative=(1,))
    optimum = M.relu_features(sizes, K, lW, lH).optimum()
    # The bounded method ends at projected gradients of 1e-10, or where values stand still.
    assert optimum.value == pytest.approx(best, rel=1e-9)
    assert optimum.means.min() >= 0.0
    off = optimum.gram_means - np.diag(np.diag(optimum.gram_means))
    assert not off.any()


def test_relu_features_need_a_direction_a_class_that_is_kept():
    with pytest.raises(
        M.UnknownOptimum, match=r"3 classes each take a direction .* Use `dim` >= 3"
    ):
        M.relu_features((5, 4, 3), 2, 0.01, 0.01).optimum()
    # 1/4 is above the threshold sqrt(n) / (N sqrt((K-1)/K)) of the smallest class alone.
    sizes = (20, 20, 1)
    mu = 2.0 * np.sqrt(1) / (41 * np.sqrt(2 / 3))
    best = M.relu_features(sizes, 2, mu, mu).optimum()
    assert not best.means[2].any() and best.means[:2].any(axis=1).all()


def test_bad_parameters():
    with pytest.raises(ValueError, match="`weight_decay_W` must be positive; got 0"):
        M.imbalanced((3, 2), 2, 0.0, 1.0)
    with pytest.raises(ValueError, match="`weight_decay_H` must be a positive number; got nan"):
        M.relu_features((3, 2), 2, 1.0, float("nan"))


def test_penalties_beyond_all_bounds():
    """Both ended in a `float division by zero`, of SciPy's MINRES and of a modulus of 0."""
    assert M.imbalanced([3, 1], 2, 1e30, 1e30).optimum().value == pytest.approx(np.log(2))
    tiny = M.norm_constrained(3, 2, 2, 1e-300, 1e-300)
    assert fastnc.solve(tiny, starts=1).value == pytest.approx(np.log(3), rel=1e-12)
