"""solve: every row to its optimum and never below it, on both sides of every threshold."""

import numpy as np
import pytest

import fastnc
from fastnc import models as M
from fastnc.models.lbfgs import minimise, newton

DECAY = {"below": 0.4, "near": 0.98, "at": 1.0, "above": 1.5}
CASES = [
    *(M.sphere(K, n, d, r) for K, n, d in ((2, 3, 1), (4, 3, 3), (5, 2, 8)) for r in (0.2, 4, 30)),
    *(M.norm_constrained(K, 3, d, *e) for K, d in ((3, 2), (4, 6)) for e in ((0.1, 1), (9, 4))),
    *(M.normalized(K, 3, d, t) for K, d in ((3, 2), (4, 3), (5, 9)) for t in (0.3, 5, 60)),
    *(M.separation(K, n, d) for K, n, d in ((2, 3, 1), (3, 2, 2), (4, 3, 6))),
    *(M.seli(s, d) for s, d in (((5, 1), 1), ((6, 6, 1, 1), 3), ((8, 4, 2, 1), 5))),
]
for factor in DECAY.values():
    for K, n, d in ((2, 4, 1), (4, 3, 3), (5, 2, 7)):
        mu = factor / K / np.sqrt(n)
        for bias in (False, True):
            CASES.append(M.weight_decay(K, n, d, 3 * mu, mu / 3, bias))
            CASES.append(M.squared_error(K, n, d, 3 * mu, mu / 3, bias))
        CASES.append(M.weight_decay(K, n, d, mu, mu, label_smoothing=0.2))
    for sizes in ((6, 1), (9, 9, 2, 2), (16, 4, 2, 1)):
        # In units of where the smallest class is given up, or collapses.
        mu = factor * np.sqrt(min(sizes)) / sum(sizes)
        K = len(sizes)
        CASES.append(M.imbalanced(sizes, K, 2 * mu, mu / 2))
        CASES.append(M.imbalanced(sizes, K - 1, mu, mu))
        CASES.append(M.relu_features(sizes, K, 2 * mu, mu / 2))
        CASES.append(M.imbalanced_squared_error(sizes, K, mu, mu))
        CASES.append(M.imbalanced_squared_error(sizes, K - 1, mu, mu, True))


@pytest.mark.parametrize("model", CASES, ids=repr)
def test_every_row_is_solved(model):
    found = fastnc.solve(model, seed=0)
    assert isinstance(found.optimum.value, float) and found.evaluations > 0
    assert found.gap <= 1e-8
    # Never below the optimum: the value is a sum of terms of both signs that are rounded to
    # 2e-16 of about 1, losses in the log domain to 2e-16 of their logarithm; a computed optimum is
    # itself above the true one by up to its certificate.
    rounding = 1e-14 * max(1.0, 1.0 / max(found.optimum.value, 1e-3))
    if found.optimum.log_value is not None:
        rounding = 1e-14 * (1.0 + abs(found.optimum.log_value))
    assert found.gap >= -rounding - found.optimum.certificate
    # Constraints are normalisations or bounds, met to rounding.
    assert model.violation(found.W, found.H) < 1e-12
    assert model.objective(found.W, found.H, found.bias) == found.value
    assert (found.bias is not None) == model.has_bias


def test_the_geometry_found_is_the_stated_one():
    for model in (
        M.weight_decay(4, 5, 3, 0.01, 0.03),
        M.imbalanced((9, 9, 2, 2), 4, 0.02, 0.02),
        M.squared_error(3, 4, 5, 0.02, 0.02),
        M.seli((8, 4, 2, 1), 4),
        M.relu_features((9, 9, 2, 2), 4, 0.01, 0.01),
    ):
        found, best = fastnc.solve(model), model.optimum()
        # Points are exact to about the root of the gap.
        np.testing.assert_allclose(found.W @ found.W.T, best.gram_W, atol=2e-4)
        np.testing.assert_allclose(found.H @ found.H.T, best.gram_H, atol=2e-4)


def test_the_same_seed_gives_the_same_bits():
    model = M.normalized(5, 4, 3, 20.0)
    first, again, other = (fastnc.solve(model, seed=s, starts=1) for s in (3, 3, 4))
    assert first.W.tobytes() == again.W.tobytes() and first.H.tobytes() == again.H.tobytes()
    assert first.W.tobytes() != other.W.tobytes()


def test_rows_with_local_minima_say_so_and_start_again():
    # In the plane hot classes cannot pass each other: a third of the starts is stuck.
    model = M.normalized(3, 2, 2, 60.0)
    single = [fastnc.solve(model, seed=s, starts=1).gap for s in range(8)]
    assert max(single) > 1e-3 and min(single) <= 1e-8
    several = fastnc.solve(model, seed=int(np.argmax(single)))
    assert several.gap <= 1e-8
    assert "of at most 16 starts made (local minima at high temperature" in several.reason
    assert int(several.reason.split("; ")[1].split()[0]) > 1
    relu = fastnc.solve(M.relu_features((9, 2), 2, 0.01, 0.01))
    assert "many local minima" in relu.reason


def test_minorities_with_relu_features_are_found_by_escaping():
    # From random starts alone the classes of one sample are given up, 64 times of 64.
    mu = 0.5 / 202
    found = fastnc.solve(M.relu_features((100, 100, 1, 1), 4, mu, mu), starts=1)
    assert found.gap <= 1e-8


def test_an_unknown_optimum_is_told_and_a_minimum_is_found():
    found = fastnc.solve(M.weight_decay(5, 3, 2, 0.01, 0.01), starts=3)
    assert found.gap is None and found.optimum is None
    assert "3 of at most 3 starts made" in found.reason
    assert "optimum unknown: no closed form is known for dim=2" in found.reason
    # It costs more than in a dimension with room, and less than zero logits.
    roomy = M.weight_decay(5, 3, 4, 0.01, 0.01).optimum().value
    assert roomy < found.value < np.log(5)


def test_losses_below_the_smallest_float_are_solved_in_the_log_domain():
    found = fastnc.solve(M.sphere(3, 2, 2, 80.0))
    assert found.value == found.optimum.value == 0.0
    # Rounding of a logarithm of about -1131.
    assert abs(found.gap) < 1e-11


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: fastnc.solve(fastnc.ULPM(3, 2, 2)), "the unconstrained model has no minimiser"),
        (lambda: fastnc.solve("ETF"), "`model` must be one of `fastnc.models`; got str"),
        (lambda: fastnc.solve(CASES[0], seed=-1), "`seed` must be an integer of at least 0"),
        (lambda: fastnc.solve(CASES[0], starts=0), "`starts` must be an integer of at least 1"),
    ],
)
def test_bad_arguments(call, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        call()


def test_the_ulpm_has_no_optimum():
    with pytest.raises(M.UnknownOptimum, match="the infimum 0 of the unconstrained model is not"):
        fastnc.ULPM(3, 2, 2).optimum()


def quartic(x):
    return float((x**4).sum() + x @ x), 4 * x**3 + 2 * x


def test_minimise_stops_for_the_reason_it_gives():
    x = np.array([3.0, -2.0])
    done = minimise(lambda x: (1.0 + quartic(x)[0], quartic(x)[1]), x, 2.0)
    # What is left, |grad|^2 / (2 curvature), is below 1e-13 of the value 1.
    assert done.reason == "gradient below the tolerance" and np.abs(done.x).max() < 1e-6
    few = minimise(quartic, x, 2.0, tol=0.0, max_evaluations=4)
    assert "evaluations" in few.reason and few.evaluations <= 6
    # The best point, not the last one, is returned, whatever the budget.
    assert quartic(few.x)[0] == few.value
    bounded = minimise(quartic, x, 2.0, 1e-20, relative=False, lower=np.array([1.0, -9.0]))
    np.testing.assert_allclose(bounded.x, [1.0, 0.0], atol=1e-9)


def test_newton_reaches_rounding():
    def product(x, v):
        return (12 * x**2 + 2) * v

    # Quadratic convergence from close by.
    assert np.abs(newton(quartic, product, np.array([0.1, -0.2]))).max() < 1e-15
