"""Gradient flow: the exact law, rates, descent, conserved quantities, optima, both solvers."""

import math

import numpy as np
import pytest

import fastnc
from fastnc import reference
from fastnc.dynamics.integrator import newton
from fastnc.dynamics.integrator.newton import DirectSolver, FlowJacobian, KrylovSolver
from fastnc.dynamics.integrator.radau import joined, parted
from fastnc.dynamics.snapshot import COLUMNS
from fastnc.theory.aligned_flow import AlignedFlow
from fastnc.theory.margin import TERMS
from fastnc.theory.rates import constants, exponents, fitted_exponent, limits
from fastnc.theory.residuals import Residuals
from fastnc.theory.seli import NAMES

SMALL = fastnc.ULPM(n_classes=3, n_per_class=2, dim=4)
DECAYED = fastnc.models.weight_decay(3, 2, 4, 2e-2, 1e-2)


def column(run, name):
    return 1 - run[name.removeprefix("1 - ")] if name.startswith("1 - ") else run[name]


@pytest.mark.parametrize(
    ("K", "n", "d", "u", "v"), [(3, 2, 4, 0.4, 0.9), (5, 4, 6, 1.0, 0.5), (2, 1, 1, 0.7, 0.2)]
)
def test_the_exact_law_from_log_t_1_to_1e4(K, n, d, u, v):
    law = AlignedFlow(K, n, u, v)
    model = fastnc.ULPM(K, n, d)
    W, H = law.point(d)
    run = fastnc.flow(model, 1e4 / math.log(10), W=W, H=H, rtol=1e-11, snapshots=5)
    late = run["log10_time"] >= 1 / math.log(10)
    assert late.sum() > 15
    log_times = run["log10_time"][late] * math.log(10)
    exact, exact_loss = ([f(u) for u in log_times] for f in (law.gap, law.log_loss))
    np.testing.assert_allclose(run["margin"][late], exact, rtol=1e-10)
    # Its logarithm passes 0 on the way.
    np.testing.assert_allclose(run["log_loss"][late], exact_loss, rtol=1e-10, atol=1e-10)
    # At the default tolerance a tenth of it is what the docstring promises; at 1e-11, ten times it.
    coarse = fastnc.flow(model, 1e4 / math.log(10), W=W, H=H, snapshots=5)
    np.testing.assert_allclose(coarse["margin"][late], exact, rtol=1e-9)
    np.testing.assert_allclose(coarse["log_loss"][late], exact_loss, rtol=1e-9, atol=1e-9)
    end_W, end_H = law.point(d, log_time=log_times[-1])
    np.testing.assert_allclose(run.W, end_W, atol=1e-8 * np.abs(end_W).max())
    np.testing.assert_allclose(run.H, end_H, atol=1e-8 * np.abs(end_H).max())


def test_the_law_with_frozen_parts_to_an_unbalanced_norm():
    rng = np.random.default_rng(0)
    frozen = rng.standard_normal((3, 2, 2))
    frozen -= frozen.mean(axis=1, keepdims=True)
    law = AlignedFlow(3, 2, 0.5, 1.1)
    W, H = law.point(4, frozen.reshape(6, 2))
    run = fastnc.flow(SMALL, 300.0, W=W, H=H, rtol=1e-11, snapshots=2)
    exact_W, exact_H = law.point(4, frozen.reshape(6, 2), 300.0 * math.log(10))
    np.testing.assert_allclose(run.W, exact_W, atol=1e-8)
    np.testing.assert_allclose(run.H, exact_H, atol=1e-8)
    assert run["within_class_energy"][-1] == pytest.approx((frozen**2).sum(), rel=1e-9)


def test_rates_at_the_papers_size_from_a_random_start():
    model = fastnc.ULPM(n_classes=5, n_per_class=10, dim=20)
    run = fastnc.flow(model, 1e4, seed=0, snapshots=10)
    for name, exponent in exponents(5, 20).items():
        # The next term of the expansion is 1 / log log t slower: .002 is left at these times.
        found = fitted_exponent(run["log10_time"], column(run, name), 1e3, 1e4)
        assert found == pytest.approx(exponent, abs=0.005), name
    assert run.about["gram_drift"] <= 1e-8 and run.about["mean_drift"] <= 1e-12
    assert (run["conserved_drift"] <= 1e-8).all()
    # Constants, from the end, against the columns themselves at the end.
    found, gap = constants(run.W, run.H, run.y), run["margin"][-1]
    # Corrections are O(1 / a) and a is 2e4; self-averaging makes them a few times that.
    assert run["within_class"][-1] * math.sqrt(gap) == pytest.approx(found.within_class, rel=1e-3)
    for name, limit in (
        ("1 - margin_ratio", found.margin_deficit),
        ("1 - beta", found.margin_deficit / 2),
        ("equinorm_features", found.equinorm),
        ("equinorm_classifier", found.equinorm),
    ):
        assert column(run, name)[-1] * gap == pytest.approx(limit, rel=2e-3), name
    assert found.smallest_singular_value > 0.1


def test_flow_is_what_descent_tends_to():
    """At lr = 0.02 and half of it: the difference at t = 20 halves, and vanishes in the limit."""
    model = fastnc.ULPM(n_classes=5, n_per_class=10, dim=20)
    W, H = model.init(4)
    run = fastnc.flow(model, math.log10(20.0), W=W, H=H, snapshots=3)
    coarse, fine = (
        fastnc.descend(model, lr=lr, epochs=round(20 / lr), W=W, H=H, snapshots=1)
        for lr in (0.02, 0.01)
    )
    errors = [np.abs(other.H - run.H).max() for other in (coarse, fine)]
    # First order in lr: the ratio is 2 up to lr itself.
    assert 1e-6 < errors[0] < 2e-3 and errors[0] / errors[1] == pytest.approx(2.0, abs=0.05)
    np.testing.assert_allclose(2 * fine.H - coarse.H, run.H, atol=2e-5)
    np.testing.assert_allclose(2 * fine.W - coarse.W, run.W, atol=2e-5)


def test_columns_are_those_of_descent_and_more():
    run = fastnc.flow(SMALL, 5.0, seed=1, snapshots=4)
    assert run.columns == ("log10_time", *COLUMNS, "conserved_drift", *TERMS)
    assert {"beta", "epsilon"} <= set(run.columns)
    assert run["log10_time"][0] == -math.inf and run["log10_time"][-1] == 5.0
    W, H = SMALL.init(1)
    assert run["margin"][0] == pytest.approx(reference.neural_collapse_margin(W, H, SMALL.y))
    total = sum(run[name] for name in TERMS)
    energy = run["norm_W"] ** 2 + run["norm_H"] ** 2
    # Lemma 3.1's identity along the run.
    np.testing.assert_allclose(total / energy, 1 - run["margin_ratio"], atol=1e-12)


@pytest.mark.parametrize("counts", [[3, 1, 2], [4, 0, 2]])
def test_unequal_and_absent_classes_and_a_dimension_above_all_rows(counts):
    y = np.random.default_rng(0).permutation(np.repeat(np.arange(3), counts))
    model = fastnc.ULPM(n_classes=3, dim=12, labels=y)
    W, H = model.init(0)
    run = fastnc.flow(model, 40.0, snapshots=3)
    assert run.W.shape == (3, 12) and run.H.shape == (6, 12)
    gram = W.T @ W - H.T @ H
    # Conserved to the integrator's rounding, whatever coordinates it ran in.
    np.testing.assert_allclose(run.W.T @ run.W - run.H.T @ run.H, gram, atol=1e-11)
    np.testing.assert_allclose(run.W.mean(axis=0), W.mean(axis=0), atol=1e-12)
    assert run["margin"][-1] > 60


def test_krylov_and_direct_agree():
    model = fastnc.ULPM(n_classes=4, n_per_class=3, dim=5)
    direct = fastnc.flow(model, 50.0, seed=3, snapshots=4)
    krylov = fastnc.flow(model, 50.0, seed=3, snapshots=4, solver="krylov")
    assert direct.about["solver"] == "direct" and krylov.about["solver"] == "krylov"
    # The same steps but for what the iteration leaves, each to about a tenth of rtol = 1e-8.
    for name in ("margin", "log_loss", "within_class", "self_duality"):
        np.testing.assert_allclose(krylov[name], direct[name], rtol=1e-8, err_msg=name)
    # Some hundred ulp of what the iteration leaves of each step.
    assert krylov.about["gram_drift"] < 1e-11


@pytest.mark.parametrize("sigma", [1.0, 0.7 + 0.4j])
def test_both_solvers_invert_the_dense_system(sigma, monkeypatch):
    monkeypatch.setattr(newton, "ERROR", 1e-9)
    W, H = (3.0 * x for x in SMALL.init(2))
    at = Residuals(W, H, SMALL.y)
    size = W.size + H.size
    dense = np.stack([at.hessian_product(row) for row in np.eye(size)])
    _, r, _ = reference.softmax(reference.logit_gaps(W, H, SMALL.y), SMALL.y)
    loss = reference.loss(W, H, SMALL.y)
    np.testing.assert_allclose(at.residuals, r / loss, rtol=1e-13)
    direction = np.random.default_rng(0).standard_normal(size)
    parts = direction[: W.size].reshape(W.shape), direction[W.size :].reshape(H.shape)
    exact = reference.hessian_vector_product(W, H, SMALL.y, *parts)
    exact = np.concatenate([x.ravel() for x in exact]) / loss
    np.testing.assert_allclose(dense @ direction, exact, atol=1e-12 * np.abs(exact).max())
    b = 0.3
    pulls = np.repeat([0.7, 0.2], [W.size, H.size])
    for make, pull in ((DirectSolver, 0.0), (KrylovSolver, 0.0), (KrylovSolver, pulls)):
        of = FlowJacobian(at, b, *((0.7, 0.2) if make is KrylovSolver and pull is pulls else ()))
        right = direction * (1.0 - 0.3j) if np.iscomplexobj(np.array(sigma)) else direction
        found = joined(make(of, sigma).solve(parted(right)))
        residual = sigma * found + pull * found + b * (dense @ found) - right
        # MINRES was asked for 1e-9, of errors; LU gives rounding.
        bound = 1e-8 if make is KrylovSolver else 1e-12
        assert np.linalg.norm(residual) < bound * np.linalg.norm(right)


@pytest.mark.parametrize("sigma", [1e-3, 1e-3 + 1e-3j])
def test_minres_needs_no_more_products_than_there_are_unknowns(sigma, monkeypatch):
    """As its Lanczos vectors are orthogonal to all before, not to the last one only."""
    W, H = (3.0 * x for x in SMALL.init(2))
    size = W.size + H.size
    monkeypatch.setattr(newton, "ERROR", 1e-6)
    monkeypatch.setattr(newton, "MOST_PRODUCTS", size)
    at = Residuals(W, H, SMALL.y)
    right = np.random.default_rng(0).standard_normal(size) * (1.0 + 0.0 * sigma)
    found = joined(KrylovSolver(FlowJacobian(at, 1.0), sigma).solve(parted(right)))
    dense = np.stack([at.hessian_product(row) for row in np.eye(size)])
    exact = np.linalg.solve(sigma * np.eye(size) + dense, right)
    # The residual over |sigma| bounds the error only where no eigenvalue is negative.
    assert np.linalg.norm(found - exact) < 1e-4 * np.linalg.norm(exact)


@pytest.mark.parametrize("model", [DECAYED, fastnc.models.imbalanced((6, 6, 2), 4, 1e-2, 2e-2)])
def test_the_flow_with_weight_decay_ends_at_the_known_optimum(model):
    run = fastnc.flow(model, seed=1, snapshots=5)
    assert run["log10_time"][-1] == pytest.approx(5.0, abs=1e-12)
    # 1000 times the reciprocal of a decay later only rounding, 1e-16 of each of 8 terms, is left
    # of the distance to a minimum of the value, and the certificate's gap.
    assert run["objective"][-1] == pytest.approx(model.optimum().value, rel=1e-12)
    # To 1e-13 where the flow is at rest: what rounding does to a value that does not change.
    assert (np.diff(run["objective"]) <= 1e-13).all()
    assert "conserved_drift" not in run.columns


def test_the_flow_with_weight_decay_is_that_of_an_integrator_of_scipy():
    from scipy.integrate import solve_ivp

    W, H = DECAYED.init(2)

    def derivative(t, theta):
        W, H = theta[:12].reshape(3, 4), theta[12:].reshape(6, 4)
        _, grad_W, grad_H = reference.loss_and_grads(W, H, DECAYED.y)
        return -np.concatenate([(grad_W / 6 + 2e-2 * W).ravel(), (grad_H / 6 + 1e-2 * H).ravel()])

    start = np.concatenate([W.ravel(), H.ravel()])
    exact = solve_ivp(derivative, (0.0, 50.0), start, method="DOP853", rtol=1e-12, atol=1e-13)
    run = fastnc.flow(DECAYED, math.log10(50.0), W=W, H=H, snapshots=3)
    # Each step is good to a sixth of 1e-8; the flow is contracting.
    found = np.concatenate([run.W.ravel(), run.H.ravel()])
    np.testing.assert_allclose(found, exact.y[:, -1], atol=1e-8)


def test_krylov_from_where_a_factorisation_costs_much_more():
    """The default of `solver` at two of the sizes that were measured."""
    for shape, chosen in (((5, 10, 20), "direct"), ((10, 10, 20), "krylov")):
        model = fastnc.ULPM(*shape)
        assert fastnc.flow(model, 0.2, snapshots=1).about["solver"] == chosen


def test_an_unequal_flow_tends_to_seli_and_says_so():
    model = fastnc.ULPM(3, dim=5, labels=np.repeat([0, 1, 2], [6, 6, 1]))
    run = fastnc.flow(model, 1e4, seed=0, snapshots=10)
    late = run["log10_time"] >= 1e3
    for name in NAMES:
        slope = np.polyfit(np.log(run["log10_time"][late]), np.log(run[name][late]), 1)[0]
        # The next term of the expansion, as in the balanced case.
        assert slope == pytest.approx(-1.0, abs=0.01), name
    for name, limit in limits([6, 6, 1], 5).items():
        # Some multiple of 1 / log t = 4e-5 is left; of its root within classes, 7e-3.
        assert run[name][-1] == pytest.approx(limit, abs=1e-2 if limit == 0.0 else 3e-3), name
    assert limits([6, 6, 1], 5)["equinorm_classifier"] > 0.05
    text = fastnc.plots.flow_summary(run)
    (line,) = (line for line in text.splitlines() if line.startswith("equinorm_classifier"))
    assert "stays" in line and f"{limits([6, 6, 1], 5)['equinorm_classifier']:.5f}" in line
    (line,) = (line for line in text.splitlines() if line.startswith("seli_logits"))
    assert float(line.split()[1]) == pytest.approx(-1.0, abs=0.01)
    panel = fastnc.plots.long_horizon(run).axes[0]
    dotted = [line.get_ydata()[0] for line in panel.lines if line.get_ls() == ":"]
    assert limits([6, 6, 1], 5)["equinorm_classifier"] in dotted and "lr" in panel.get_xlabel()


def test_more_classes_than_a_simplex_holds_are_told_the_best_code():
    run = fastnc.flow(fastnc.ULPM(6, 2, 3), 100.0, snapshots=5)
    # Rankin: six vectors in three dimensions are at best orthogonal, 5/6 (1 - 0).
    assert "no simplex: d = 3 < K - 1 = 5" in fastnc.plots.flow_summary(run)
    assert "0.83333" in fastnc.plots.flow_summary(run)


@pytest.mark.parametrize("gap", [6.0, 12.0, 18.0, 24.0, 40.0])
def test_a_start_of_any_margin_keeps_the_exact_law(gap):
    """The first step was a hundredth of theta, at a speed of e^-gap: beyond all floats."""
    exact = fastnc.theory.AlignedFlow(4, 2, gap**0.5, gap**0.5)
    W, H = exact.point(5)
    run = fastnc.flow(fastnc.ULPM(4, 2, 5), log10_time=100, W=W, H=H)
    # A tenth of rtol = 1e-8, of logits of up to 230.
    late = exact.log_loss(100.0 * math.log(10.0))
    assert run["log_loss"][-1] == pytest.approx(late, rel=0.0, abs=3e-7)
