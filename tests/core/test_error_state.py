"""NumPy's error state around a call is the caller's own: it changes no result, and stays."""

import warnings

import numpy as np
import oracles
import pytest

import fastnc
from fastnc import models, theory

MODEL = fastnc.ULPM(3, 2, 4)
# As many classes as `test_rules` compiles rules for.
FOUR = fastnc.ULPM(4, 2, 4)
W, H = MODEL.init(seed=0)
FEATURES, LABELS, ROWS, BIAS = oracles.clouds(4, 5, 60)
FAR = 30.0 * np.eye(3, 4)


def streamed():
    statistics = fastnc.ClassStatistics(4, 5, "full")
    statistics.update(FEATURES, LABELS)
    deviations = fastnc.ClassDeviations(statistics, ROWS, BIAS)
    deviations.update(FEATURES, LABELS)
    return statistics.metrics(ROWS), deviations.metrics()


CALLS = {
    "loss_and_grads": lambda: fastnc.loss_and_grads(FAR, FAR, np.arange(3)),
    "hessian_vector_product": lambda: fastnc.hessian_vector_product(W, H, MODEL.y, W, H),
    # Underflows on the way to t = 10^300, and squares of 1e-200.
    "flow": lambda: fastnc.flow(MODEL, 300.0, snapshots=4).W,
    "flow direct": lambda: fastnc.flow(MODEL, 30.0, snapshots=4, solver="direct").W,
    "flow krylov": lambda: fastnc.flow(MODEL, 30.0, snapshots=4, solver="krylov").W,
    "flow decayed": lambda: fastnc.flow(models.weight_decay(3, 2, 4, 0.05, 0.02), 2.0).W,
    "descend": lambda: fastnc.descend(MODEL, epochs=2000, snapshots=4).W,
    "descend scaled": lambda: fastnc.descend(MODEL, epochs=300, schedule="loss-scaled").W,
    "descend by Adam": lambda: fastnc.descend(FOUR, rule=fastnc.rules.Adam(0.1), epochs=99).W,
    "sweep": lambda: [run.W for run in fastnc.sweep(MODEL, epochs=50, seeds=range(2), threads=2)],
    "peel": lambda: fastnc.peel(W, H, MODEL.y, epochs=20).W,
    "collapse_metrics": lambda: fastnc.collapse_metrics(1e-200 * FEATURES, LABELS, ROWS, BIAS),
    "collapsed": lambda: fastnc.collapse_metrics(np.repeat(np.eye(3), 2, 0), np.arange(6) // 2),
    "streamed": streamed,
    "nc5": lambda: fastnc.nc5(FEATURES, LABELS, 1e-200 * FEATURES),
    "regression_metrics": lambda: fastnc.regression_metrics(FEATURES, FEATURES[:, :2]),
    "kkt": lambda: fastnc.kkt(FAR, FAR[[0, 1, 2]], np.arange(3)).multipliers,
    "constants": lambda: theory.constants(W, H, MODEL.y),
    "tangent_curvature": lambda: fastnc.tangent_curvature(W, H, MODEL.y)[0],
    "hessian_spectrum": lambda: fastnc.hessian_spectrum(FAR, FAR, np.arange(3)),
    "decay": lambda: fastnc.solve(models.weight_decay(3, 2, 2, 0.05, 0.02)).W,
    "squares": lambda: fastnc.solve(models.squared_error(3, 2, 2, 0.05, 0.02)).W,
    "unequal": lambda: fastnc.solve(models.imbalanced([3, 1], 2, 0.05, 0.02)).W,
    "relu": lambda: fastnc.solve(models.relu_features([3, 1], 2, 0.05, 0.02)).W,
    "separation": lambda: fastnc.solve(models.separation(3, 2, 2), starts=1).W,
    "unit rows": lambda: fastnc.solve(models.normalized(3, 2, 2, 5.0)).W,
    "norms": lambda: fastnc.solve(models.norm_constrained(3, 2, 2, 90.0, 90.0)).W,
    "optimum": lambda: [
        model.optimum().value
        for model in (
            models.weight_decay(3, 2, 2, 0.05, 0.02), models.squared_error(3, 2, 2, 0.9, 0.9),
            models.imbalanced([3, 1], 2, 0.05, 0.02), models.norm_constrained(3, 2, 2, 90.0, 90.0),
        )
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_errors_that_raise(name):
    """Underflows of squares ended `flow`, and warnings came before a sentence."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with np.errstate(all="warn"):
            plain = CALLS[name]()
    with np.errstate(all="raise"):
        strict = CALLS[name]()
        assert set(np.geterr().values()) == {"raise"}
    assert repr(plain) == repr(strict)
