"""Cross-entropy on a constraint: closed forms against BFGS, and where there is none."""

import model_oracles as oracles
import numpy as np
import pytest

import fastnc
from fastnc import models as M


def on_the_sphere(K, n, radius):
    objective = oracles.cross_entropy([n] * K)

    def normalised(W, H):
        scale = radius / (W.square().sum() + H.square().sum()).sqrt()
        return objective(scale * W, scale * H)

    return normalised


def within_the_energies(K, n, energy_W, energy_H):
    objective = oracles.cross_entropy([n] * K)

    def normalised(W, H):
        scale_W = (K * energy_W) ** 0.5 / W.norm()
        scale_H = (n * K * energy_H) ** 0.5 / H.norm()
        return objective(scale_W * W, scale_H * H)

    return normalised


def with_unit_rows(K, n, temperature):
    objective = oracles.cross_entropy([n] * K, scale=temperature)
    return lambda W, H: objective(W / W.norm(dim=1, keepdim=True), H / H.norm(dim=1, keepdim=True))


SIZES = [(2, 2, 1), (3, 1, 2), (3, 3, 4), (4, 2, 3)]


# BFGS ends where gradients of objectives near 1 are below 1e-9: values to about 1e-12.
@pytest.mark.parametrize(("K", "n", "d"), SIZES)
@pytest.mark.parametrize("radius", [0.5, 3.0, 5.0])
def test_sphere(K, n, d, radius):
    best, _ = oracles.least(on_the_sphere(K, n, radius), [(K, d), (K * n, d)], starts=2)
    assert M.sphere(K, n, d, radius).optimum().value == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize(("K", "n", "d"), SIZES)
@pytest.mark.parametrize(("energy_W", "energy_H"), [(0.1, 3.0), (2.0, 1.0)])
def test_norm_constrained(K, n, d, energy_W, energy_H):
    shapes = [(K, d), (K * n, d)]
    best, _ = oracles.least(within_the_energies(K, n, energy_W, energy_H), shapes, starts=2)
    model = M.norm_constrained(K, n, d, energy_W, energy_H)
    assert model.optimum().value == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize(("K", "n", "d"), [(2, 2, 2), (3, 2, 2), (4, 1, 3)])
@pytest.mark.parametrize("temperature", [0.5, 2.0, 6.0])
def test_normalized(K, n, d, temperature):
    shapes = [(K, d), (K * n, d)]
    best, _ = oracles.least(with_unit_rows(K, n, temperature), shapes, starts=3)
    assert M.normalized(K, n, d, temperature).optimum().value == pytest.approx(best, rel=1e-9)


def test_energies_below_their_bounds_are_no_better():
    # The inequality of Fang et al., by SLSQP's own constraint handling in place of a boundary.
    from scipy.optimize import minimize

    K, n, d, energy_W, energy_H = 3, 1, 2, 1.0, 2.0
    y = np.repeat(np.arange(K), n)

    def split(x):
        return x[: K * d].reshape(K, d), x[K * d :].reshape(K * n, d)

    def loss(x):
        W, H = split(x)
        Z = H @ W.T
        return float(np.mean(np.log(np.exp(Z).sum(axis=1)) - Z[np.arange(len(y)), y]))

    rooms = [
        {"type": "ineq", "fun": lambda x: energy_W - (split(x)[0] ** 2).sum() / K},
        {"type": "ineq", "fun": lambda x: energy_H - (split(x)[1] ** 2).sum() / (n * K)},
    ]
    x = 0.3 * np.random.default_rng(0).standard_normal((K + K * n) * d)
    found = minimize(loss, x, method="SLSQP", constraints=rooms, options={"ftol": 1e-12})
    # Differences in place of gradients.
    best = M.norm_constrained(K, n, d, energy_W, energy_H).optimum().value
    assert found.fun == pytest.approx(best, abs=1e-6)


def test_the_geometry_is_a_simplex_of_the_stated_norms():
    model = M.norm_constrained(5, 4, 6, 2.0, 3.0)
    best = model.optimum()
    # Rounding.
    np.testing.assert_allclose(best.gram_W, 2.0 * (np.eye(5) * 5 - 1) / 4, atol=1e-14)
    np.testing.assert_allclose(best.gram_means, 3.0 * (np.eye(5) * 5 - 1) / 4, atol=1e-14)
    best = M.sphere(4, 9, 3, 5.0).optimum()
    assert (best.W**2).sum() == pytest.approx(12.5) and (best.H**2).sum() == pytest.approx(12.5)


@pytest.mark.parametrize("temperature", [40.0, 300.0, 2000.0])
def test_values_too_small_for_a_float_have_a_logarithm(temperature):
    best = M.normalized(3, 2, 2, temperature).optimum()
    gap = temperature * 3 / 2
    # log(log(1 + 2 e^-gap)) = log 2 - gap - e^-gap + ...
    assert best.log_value == pytest.approx(np.log(2.0) - gap, rel=1e-15)
    assert best.value == pytest.approx(2 * np.exp(-gap), rel=1e-15)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: M.sphere(5, 2, 3, 1.0).optimum(), "no closed form is known for dim=3 < n_classes"),
        (lambda: M.norm_constrained(5, 2, 3, 1.0, 1.0).optimum(), "does not fit. Use `dim` >= 4"),
        (lambda: M.normalized(9, 2, 3, 1.0).optimum(), "simplex ETF of 9 classes does not fit"),
    ],
)
def test_unknown_optima_are_refused_with_the_reason(call, sentence):
    with pytest.raises(M.UnknownOptimum, match=sentence):
        call()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: M.sphere(3, 2, 2, 0.0), "`radius` must be a positive number; got 0.0"),
        (lambda: M.sphere(3, 2, 2, np.inf), "`radius` must be a positive number; got inf"),
        (lambda: M.norm_constrained(3, 2, 2, -1.0, 1.0), "`energy_W` must be a positive number"),
        (lambda: M.norm_constrained(3, 2, 2, 1.0, np.nan), "`energy_H` must be a positive number"),
        (lambda: M.normalized(3, 2, 2, 0.0), "`temperature` must be a positive number; got 0.0"),
        (lambda: M.normalized(2, 2, 1, 1.0), "`dim` must be at least 2; got 1. Unit vectors in"),
    ],
)
def test_bad_parameters(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


@pytest.mark.parametrize("average", ["class", "sample"])
def test_unequal_sizes_under_the_norm_constraint(average):
    model = M.norm_constrained(4, None, 4, 2.0, 1.5, class_sizes=(9, 4, 4, 1), average=average)
    best = model.optimum()
    assert 0.0 <= best.certificate < 1e-7
    assert model.objective(best.W, best.H) == pytest.approx(best.value, rel=1e-12)
    # Both constraints are active, to rounding; the energies written out.
    assert (best.W**2).sum() / 4 == pytest.approx(2.0, rel=1e-9)
    energies = (best.H**2).sum(axis=1)
    by_class = [energies[model.y == k].mean() for k in range(4)]
    mean = np.mean(by_class) if average == "class" else energies.mean()
    assert mean == pytest.approx(1.5, rel=1e-9)
    assert model.violation(best.W, best.H) < 1e-9 < model.violation(best.W, 1.1 * best.H)
    # L-BFGS over directions knows nothing of the convex program.
    found = fastnc.solve(model, seed=1)
    assert -1e-7 < found.gap < 1e-6


def test_equal_sizes_that_are_listed_have_the_closed_form():
    closed = M.norm_constrained(3, 5, 4, 2.0, 1.5).optimum().value
    for average in ("class", "sample"):
        listed = M.norm_constrained(3, None, 4, 2.0, 1.5, class_sizes=(5, 5, 5), average=average)
        assert listed.optimum().value == closed


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"n_per_class": 2, "class_sizes": (2, 2, 2)}, "exactly one of `n_per_class` and `class_s"),
        ({"n_per_class": None}, "exactly one of `n_per_class` and `class_sizes` must be given"),
        ({"n_per_class": None, "class_sizes": (2, 2)}, "`class_sizes` must list 3 classes; got 2"),
        (
            {"n_per_class": 2, "average": "mean"},
            "`average` must be 'class' or 'sample'; got",
        ),
    ],
)
def test_norm_constraint_of_bad_sizes(more, sentence):
    with pytest.raises(ValueError, match=sentence):
        M.norm_constrained(n_classes=3, dim=4, energy_W=1.0, energy_H=1.0, **more)
