"""The rest of the public functions, called with arguments that make no sense: a sentence each.

As `test_bad_calls`, where the objective, the margins and the metrics are; here nothing is compared
but that what is refused is refused in a sentence of our own.
"""

from functools import partial

import numpy as np
import pytest
from hostile_arguments import (
    SEEDS,
    biases,
    labels,
    matrices,
    numbers,
    problem,
    refusal_or_result,
    spoil,
)

import fastnc
from fastnc import models, theory

CALLS = 30


def pools(make, rng, given):
    return {name: partial(make, rng, value) for name, value in given.items()}


def points(rng, **more):
    """W, H, y, and numbers beside them."""
    W, H, y = problem(rng)
    choices = pools(matrices, rng, {"W": W, "H": H}) | pools(numbers, rng, more)
    given = {"W": W, "H": H, "y": y, **more}
    return given, choices | {"y": partial(labels, rng, y, len(W))}


def plain(rng, **given):
    return given, pools(numbers, rng, given)


def directions(rng):
    given, choices = points(rng, reduction="sum")
    further = {
        f"d{name}": rng.standard_normal(given[name].shape).astype(given[name].dtype)
        for name in "WH"
    }
    return given | further, choices | pools(matrices, rng, further)


def moves(rng):
    given, choices = directions(rng)
    for name in ("y", "reduction"):
        del given[name], choices[name]
    return given | {"angle": 0.5}, choices | {"angle": partial(numbers, rng, 0.5)}


def columns(rng):
    given = {"log10_time": np.arange(9.0), "column": 1.0 / (1.0 + np.arange(9.0))}
    choices = {name: partial(biases, rng, x[:, None]) for name, x in given.items()}
    bounds, more = plain(rng, low=1.0, high=8.0)
    return given | bounds, choices | more


def features(rng):
    W, H, y = problem(rng)
    H, y = np.vstack([H, H]), np.concatenate([y, y])
    y[:2] = 0, 1
    subset = np.array([0, 1])
    given = {
        "H": H, "y": y, "W": W, "bias": W[:, 0], "ignore_index": None, "min_count": 1,
        "subset": None, "about": None,
    }  # fmt: skip
    choices = pools(numbers, rng, given) | pools(matrices, rng, {"H": H, "W": W})
    choices |= {"y": partial(labels, rng, y, len(W)), "bias": partial(biases, rng, W)}
    choices["subset"] = lambda: [*labels(rng, subset, 2), *numbers(rng, None)]
    return given, choices


def others(rng):
    given, choices = features(rng)
    told = {name: given[name] for name in ("H", "y", "ignore_index")}
    return told | {"ood_features": given["H"]}, choices | {"ood_features": choices["H"]}


def targets(rng):
    H = rng.standard_normal((7, 3))
    given = {"H": H, "targets": H[:, :2].copy(), "W": rng.standard_normal((2, 3))}
    return given, pools(matrices, rng, given)


def second_pass(rng):
    given, choices = features(rng)
    statistics = fastnc.ClassStatistics(len(given["W"]), given["H"].shape[1])
    statistics.update(given["H"], given["y"])
    told = {name: given[name] for name in ("W", "bias", "min_count")}
    choices["statistics"] = partial(numbers, rng, statistics)
    return told | {"statistics": statistics}, choices


def restored(state):
    statistics = fastnc.ClassStatistics(2, 3)
    statistics.load_state_dict(state)


def states(rng):
    state = fastnc.ClassStatistics(2, 3).state_dict()

    def spoilt():
        name = rng.choice(["means", "counts", "n_classes"])
        odd = matrices(rng, rng.standard_normal((2, 3)))
        return [*({**state, name: x} for x in odd), *numbers(rng, state)]

    return {"state": state}, {"state": spoilt}


def one(name, good):
    """The one argument of a function of an array."""
    return lambda rng: ({name: good}, {name: lambda: [*matrices(rng, good), *numbers(rng, 1)]})


def labelled(rng):
    y = np.array([0, 1, 2, 1])
    given, choices = plain(rng, n_classes=3, dim=2)
    return given | {"labels": y}, choices | {"labels": partial(labels, rng, y, 3)}


def sizes(rng, **more):
    given, choices = plain(rng, dim=3, class_sizes=[3, 1], **more)
    some = np.array([3, 1])
    return given, choices | {"class_sizes": lambda: [*labels(rng, some, 9), *numbers(rng, [3, 1])]}


def objective(W, H, bias):
    return models.weight_decay(3, 2, 4, 0.1, 0.1, bias=True).objective(W, H, bias)


def objectives(rng):
    given = {"W": rng.standard_normal((3, 4)), "H": rng.standard_normal((6, 4))}
    choices = pools(matrices, rng, given) | {"bias": partial(biases, rng, given["W"])}
    return given | {"bias": np.ones(3)}, choices


def runs(rng, **more):
    model = fastnc.ULPM(n_classes=3, n_per_class=2, dim=2)
    start = dict(zip("WH", model.init(seed=0), strict=True))
    given, choices = plain(rng, model=model, seed=1, snapshots=2, **more)
    return given | start, choices | pools(matrices, rng, start)


def many(rng):
    model = fastnc.ULPM(n_classes=3, n_per_class=2, dim=2)
    return plain(
        rng, model=model, lr=1.0, epochs=3, seeds=[0, 1], snapshots=2, threads=1, dtype="float64"
    )


def peels(rng):
    given, choices = points(rng, epochs=3, snapshots=2, lr=1.0)
    bias = given["W"][:, 0].copy()
    return given | {"bias": bias}, choices | {"bias": partial(biases, rng, given["W"])}


FITTED = models.weight_decay(3, 2, 2, 0.1, 0.1)
MADE = {
    "hessian_vector_product": (fastnc.hessian_vector_product, directions),
    "neural_collapse_margin": (fastnc.neural_collapse_margin, points),
    "margin_decomposition": (fastnc.margin_decomposition, points),
    "tangent_curvature": (
        fastnc.tangent_curvature, lambda rng: points(rng, reduction="sum", seed=0, tol=1e-9)
    ),
    "hessian_spectrum": (
        fastnc.hessian_spectrum, lambda rng: points(rng, k=1, reduction="sum", seed=0)
    ),
    "constants": (theory.constants, points),
    "seli_distances": (theory.seli_distances, points),
    "margin_ratio_max": (theory.margin_ratio_max, points),
    "margin_ratio_spectral": (theory.margin_ratio_spectral, points),
    "exponents": (theory.exponents, lambda rng: plain(rng, n_classes=3, dim=3)),
    "limits": (theory.limits, sizes),
    "optimal_loss": (
        theory.optimal_loss, lambda rng: plain(rng, radius=1.0, n_classes=3, n_per_class=1)
    ),
    "collapsed": (
        theory.collapsed, lambda rng: plain(rng, radius=1.0, n_classes=3, n_per_class=1, dim=2)
    ),
    "along_sphere": (theory.along_sphere, moves),
    "AlignedFlow": (
        theory.AlignedFlow, lambda rng: plain(rng, n_classes=3, n_per_class=2, u=1.0, v=1.0)
    ),
    "fitted_exponent": (theory.fitted_exponent, columns),
    "load": (fastnc.Trajectory.load, lambda rng: plain(rng, path=1)),
    "Example31": (theory.Example31, lambda rng: plain(rng, C=1.0)),
    "collapse_metrics": (fastnc.collapse_metrics, features),
    "nc5": (fastnc.nc5, others),
    "regression_metrics": (fastnc.regression_metrics, targets),
    "one_vs_rest_distance": (
        fastnc.one_vs_rest_distance,
        one("W", np.eye(3)),
    ),
    "ClassDeviations": (fastnc.ClassDeviations, second_pass),
    "load_state_dict": (restored, states),
    "which": (
        fastnc.which,
        one("x", np.eye(2)),
    ),
    "plan": (
        fastnc.plan, lambda rng: plain(rng, n_classes=3, dim=2, n_samples=9, dtype="float32")
    ),
    "ULPM": (fastnc.ULPM, labelled),
    "imbalanced": (
        models.imbalanced, lambda rng: sizes(rng, weight_decay_W=0.1, weight_decay_H=0.1)
    ),
    "objective": (objective, objectives),
    "flow": (fastnc.flow, lambda rng: runs(rng, log10_time=0.1, rtol=1e-4, solver="auto")),
    "sweep": (fastnc.sweep, many),
    "peel": (fastnc.peel, peels),
    "solve": (fastnc.solve, lambda rng: plain(rng, model=FITTED, seed=0, starts=1, beside=())),
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_refused_in_a_sentence(name):
    call, made = MADE[name]
    answered = 0
    for seed in SEEDS:
        rng = np.random.default_rng((seed, 5))
        for _ in range(CALLS if name not in ("flow", "sweep", "solve", "peel") else 8):
            given, choices = made(rng)
            arguments = spoil(rng, dict(given), choices)
            answered += refusal_or_result(call, arguments, ArithmeticError, OSError) is not None
    # The draw must reach both outcomes; restoring a state answers nothing, no number is a file.
    assert answered > 0 or name in ("load_state_dict", "load")
