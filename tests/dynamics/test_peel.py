"""Gradient descent that starts where a network stopped."""

import numpy as np
import pytest

import fastnc
from fastnc.dynamics.peel import peel


@pytest.fixture
def trained():
    """What a training leaves: float32, features that a ReLU made, a separated data set."""
    rng = np.random.default_rng(0)
    y = np.arange(40) % 4
    W = (np.eye(4, 6) + 0.2 * rng.standard_normal((4, 6))).astype(np.float32)
    H = np.maximum(2.0 * np.eye(4, 6)[y] + 0.3 * rng.standard_normal((40, 6)), 0.0)
    return fastnc.Trajectory({"epoch": [0, 9]}, W, H.astype(np.float32), y, {"kind": "training"})


def test_the_layer_peeled_model_goes_on_where_the_network_stopped(trained):
    run = peel(trained, epochs=3000)
    assert run.H.dtype == np.float64 and run.H.shape == trained.H.shape
    start = fastnc.collapse_metrics(trained.H, trained.y, W=trained.W).as_dict()
    for name in ("within_class", "nc1", "self_duality", "margin"):
        # The same numbers, summed in float64 by two kernels.
        assert run[name][0] == pytest.approx(start[name], rel=1e-9)
    assert (np.diff(run["log_loss"]) < 0.0).all()
    assert run["log_loss"][-1] < run["log_loss"][0] - 2.0
    assert run["margin_ratio"][-1] > run["margin_ratio"][0]
    assert run["self_duality"][-1] < 0.5 * run["self_duality"][0]
    assert trained.H.min() == 0.0 and run.H.min() < 0.0


def test_the_step_may_be_given(trained):
    assert peel(trained, 10, lr=0.5).about["lr"] == 0.5
    with pytest.raises(ValueError, match=r"`lr` must be a positive number; got -1"):
        peel(trained, 10, lr=-1)


def test_a_run_that_was_stopped_has_no_features(trained):
    empty = fastnc.Trajectory({"epoch": [0]}, trained.W, trained.H[:0], trained.y[:0], {})
    with pytest.raises(ValueError, match=r"`run` must hold features; .* Train to the end"):
        peel(empty)
