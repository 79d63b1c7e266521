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


def test_the_bias_is_kept(trained):
    bias = np.array([0.3, -0.2, 0.1, -0.4])
    run = peel(trained.W, trained.H, trained.y, bias, epochs=400, lr=0.3)
    W, H, y = trained.W.astype(float), trained.H.astype(float), trained.y
    start = fastnc.collapse_metrics(H, y, W=W, bias=bias).as_dict()
    assert start["margin"] != fastnc.collapse_metrics(H, y, W=W).as_dict()["margin"]
    for name in ("within_class", "self_duality", "margin", "nc4_agreement"):
        # The same numbers, summed in another order.
        assert run[name][0] == pytest.approx(start[name], rel=1e-9)
    for _ in range(400):
        logits = W @ H.T + bias[:, None]
        p = np.exp(logits - logits.max(0))
        p /= p.sum(0)
        p[y, np.arange(40)] -= 1.0
        dW, dH, db = p @ H / 40, p.T @ W / 40, p.sum(1) / 40
        W, H, bias = W - 0.3 * dW, H - 0.3 * dH, bias - 0.3 * db
    # 400 steps of float64 rounding, of weights of size 1, while they converge.
    np.testing.assert_allclose(run.W, W, rtol=0, atol=1e-11)
    np.testing.assert_allclose(run.H, H, rtol=0, atol=1e-11)
    np.testing.assert_allclose(run.bias, bias, rtol=0, atol=1e-11)
    logits = W @ H.T + bias[:, None]
    log_loss = np.log(np.mean(np.log(np.exp(logits - logits[y, np.arange(40)]).sum(0))))
    assert run["log_loss"][-1] == pytest.approx(log_loss, rel=1e-10)
    assert run["beta"][-1] > run["beta"][0] and run.about["kind"] == "peeled"


def test_a_run_brings_its_bias(trained):
    bias = np.array([0.3, -0.2, 0.1, -0.4], np.float32)
    run = fastnc.Trajectory({"epoch": [0]}, trained.W, trained.H, trained.y, {}, bias)
    straight = peel(trained.W, trained.H, trained.y, bias, epochs=10)
    assert peel(run, epochs=10).bias.tolist() == straight.bias.tolist()
    figure = fastnc.plots.peeled(straight, straight)
    assert len(figure.axes) == 4
    text = fastnc.plots.peeled_summary(straight, straight)
    assert "network, end" in text and "Without the network" in text
    # Of a network that never separated its samples the start was shown in that column.
    columns = {name: straight[name] for name in straight.columns}
    columns["margin"] = columns["margin"] - 99.0
    never = fastnc.Trajectory(columns, straight.W, straight.H, straight.y, straight.about)
    rows = fastnc.plots.peeled_summary(never, straight).splitlines()[1:6]
    assert all(row.split()[1] == "-" for row in rows)


def test_calls_that_make_no_sense(trained):
    with pytest.raises(TypeError, match=r"`peel` takes a run alone, or .*; got both"):
        peel(trained, trained.H)
    with pytest.raises(TypeError, match=r"`peel` must have `H` and `y` beside `W`"):
        peel(trained.W, trained.H)
    with pytest.raises(ValueError, match=r"`bias` must have the shape \(4,\); got \(3,\)"):
        peel(trained.W, trained.H, trained.y, np.zeros(3))


def test_the_step_may_be_given(trained):
    assert peel(trained, epochs=10, lr=0.5).about["lr"] == 0.5
    with pytest.raises(ValueError, match=r"`lr` must be a positive number; got -1"):
        peel(trained, epochs=10, lr=-1)


def test_a_run_that_was_stopped_has_no_features(trained):
    empty = fastnc.Trajectory({"epoch": [0]}, trained.W, trained.H[:0], trained.y[:0], {})
    with pytest.raises(ValueError, match=r"`run` must hold features; .* Train to the end"):
        peel(empty)
