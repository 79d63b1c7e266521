"""Descent with a step that grows as the loss falls: its step, its speed, its bits."""

import numpy as np
import pytest

import fastnc
from fastnc import reference
from fastnc.dynamics.composition import choose_stepper, composed

MODEL = fastnc.ULPM(n_classes=5, n_per_class=10, dim=20)


def literal_step(W, H, y):
    """One step from the definition, with every logit formed and full spectral norms."""
    _, grad_W, grad_H = reference.log_loss_and_grads(W, H, y)
    D = reference.logit_gaps(W, H, y)
    losses, r, _ = reference.softmax(D, y)
    largest = np.abs(r / losses.sum()).max()
    curvature = max(np.linalg.norm(W, 2) ** 2, np.linalg.norm(H, 2) ** 2, 1.0)
    step = 0.25 / (largest * curvature)
    return W - step * grad_W, H - step * grad_H


def test_a_few_steps_are_those_of_the_definition():
    W, H = MODEL.init(0)
    parts = composed(5.0, None, "loss-scaled")
    stepper = choose_stepper(MODEL, W.copy(), H.copy(), parts, seed=0)
    for _ in range(8):
        W, H = literal_step(W, H, MODEL.y)
    stepper.make(8)
    # Eight steps of a few ulp, not yet amplified by more than ten.
    np.testing.assert_allclose(stepper.W, W, atol=1e-11)
    np.testing.assert_allclose(stepper.H, H, atol=1e-11)


def test_four_hundred_steps_reach_what_plain_descent_does_not():
    fast = fastnc.descend(MODEL, epochs=400, schedule="loss-scaled", seed=0)
    plain = fastnc.descend(MODEL, epochs=20_000, seed=0, snapshots=1)
    assert fast["margin_ratio"][-1] > 0.99 > 0.9 > plain["margin_ratio"][-1]
    assert (np.diff(fast["log_loss"]) < 0).all()
    assert "LossScaled" in fast.about["rule"]


def test_it_goes_on_where_the_loss_is_no_float_any_more():
    run = fastnc.descend(MODEL, epochs=3000, schedule="loss-scaled", seed=0, snapshots=4)
    # A loss of 1e-310 has no normal float64; the margin still grows.
    assert run["log_loss"][-1] < -1000 and np.isfinite(run["log_loss"]).all()
    assert (np.diff(run["margin"]) > 0)[run["epoch"][1:] > 10].all()
    assert run["margin_ratio"][-1] > 0.999


def test_resumed_and_in_float32(tmp_path):
    path = tmp_path / "checkpoint.npz"
    options = {"schedule": "loss-scaled", "seed": 3, "snapshots": 5}
    whole = fastnc.descend(MODEL, epochs=60, **options)
    for epochs in (1, 17, 60):
        run = fastnc.descend(MODEL, epochs=epochs, **options, checkpoint=path, resume=True)
    assert run.W.tobytes() == whole.W.tobytes() and run.H.tobytes() == whole.H.tobytes()
    single = fastnc.descend(MODEL, epochs=60, dtype="float32", **options)
    assert single.W.dtype == np.float32
    # A step is long beside rounding at 6e-8, and the direction is attracted.
    assert single["margin_ratio"][-1] == pytest.approx(whole["margin_ratio"][-1], abs=1e-3)


def test_it_does_not_lock_into_a_cycle_of_two():
    run = fastnc.descend(fastnc.ULPM(3, 10, 10), epochs=3000, schedule="loss-scaled", snapshots=10)
    # Where the direction has settled the two speak of one distance: 1 - beta = (1 - ratio) / 2, up
    # to terms of its square. In a cycle of two, beta stayed at .990 with epsilon at .49.
    gap = 1.0 - run["margin_ratio"][-1]
    assert 1.0 - run["beta"][-1] == pytest.approx(gap / 2, rel=0.02)
    assert run["beta"][-1] > 0.9995 and run["epsilon"][-1] < 0.11
    late = run["epoch"] >= 100
    # It falls like 1 / epoch: the exponent was -.01 in the cycle.
    slope = np.polyfit(np.log(run["epoch"][late]), np.log(1.0 - run["beta"][late]), 1)[0]
    assert slope == pytest.approx(-1.0, abs=0.1)


def test_what_a_larger_factor_gains():
    """1 - beta falls as 1 / (factor epochs); at .8 both are what is right after 3000 epochs."""
    rule = fastnc.rules.GradientDescent(fastnc.rules.LossScaled(0.8))
    run = fastnc.descend(fastnc.ULPM(3, 10, 10), epochs=3000, rule=rule, snapshots=10)
    quarter = fastnc.descend(fastnc.ULPM(3, 10, 10), epochs=3000, schedule="loss-scaled")
    # Two digits of a mathematician's note.
    assert run["beta"][-1] == pytest.approx(0.99987, abs=5e-6)
    assert run["epsilon"][-1] == pytest.approx(0.058, abs=5e-4)
    gained = (1.0 - quarter["beta"][-1]) / (1.0 - run["beta"][-1])
    # The first steps, from where nothing is separated, do not count in full.
    assert gained == pytest.approx(0.8 / 0.25, rel=0.02)


def test_it_goes_with_noise_no_more_than_with_a_model_that_has_a_minimum():
    with pytest.raises(ValueError, match=r"`noise` and the schedule LossScaled.* do not go toget"):
        fastnc.descend(MODEL, epochs=5, schedule="loss-scaled", noise=0.1)
