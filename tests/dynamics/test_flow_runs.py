"""Runs of gradient flow: stops, resumes, Ctrl-C, failures, snapshots, refusals."""

import math
import os
import re
import signal

import numpy as np
import pytest

import fastnc
from fastnc.dynamics.flow import snapshot_times
from fastnc.dynamics.integrator.equation import FlowEquation
from fastnc.dynamics.integrator.stepper import FlowStepper

SMALL = fastnc.ULPM(n_classes=3, n_per_class=2, dim=4)
DECAYED = fastnc.models.weight_decay(3, 2, 4, 2e-2, 1e-2)
BIASED = fastnc.models.weight_decay(3, 2, 4, 2e-2, 1e-2, bias=True)


@pytest.mark.parametrize("solver", ["direct", "krylov"])
def test_a_resumed_flow_has_the_same_bits(tmp_path, monkeypatch, solver):
    path = tmp_path / "checkpoint.npz"
    options = {"seed": 2, "snapshots": 3, "solver": solver}
    whole = fastnc.flow(SMALL, 30.0, **options)
    # Cut after every seventh step, from within the loop: between snapshots as well as at them.
    steps = [0]

    class Cut(Exception):
        pass

    advance = FlowStepper.advance

    def cutting(self, due, most):
        steps[0] += 1
        if steps[0] % 7 == 0:
            raise Cut
        return advance(self, due, 1)

    monkeypatch.setattr(FlowStepper, "advance", cutting)
    run, cuts = None, 0
    while run is None:
        try:
            run = fastnc.flow(
                SMALL, 30.0, **options, checkpoint=path, checkpoint_every=0.0, resume=True
            )
        except Cut:
            cuts += 1
    assert cuts > 10
    assert run.W.tobytes() == whole.W.tobytes() and run.H.tobytes() == whole.H.tobytes()
    for name in whole.columns:
        assert run[name].tobytes() == whole[name].tobytes(), name
    assert run.about == whole.about


def test_a_checkpoint_goes_on_to_a_farther_horizon_only(tmp_path):
    path = tmp_path / "checkpoint.npz"
    fastnc.flow(SMALL, 10.0, snapshots=3, checkpoint=path)
    farther = fastnc.flow(SMALL, 100.0, snapshots=3, checkpoint=path, resume=True)
    whole = fastnc.flow(SMALL, 100.0, snapshots=3)
    # 10 is a snapshot of both grids, so that not a step differs.
    assert farther.H.tobytes() == whole.H.tobytes() and len(farther) == len(whole)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="`log10_time` must be at least the checkpoint's"):
        fastnc.flow(SMALL, 50.0, snapshots=3, checkpoint=path, resume=True)
    with pytest.raises(ValueError, match="its `seed` is 0, this run's is 1"):
        fastnc.flow(SMALL, 100.0, seed=1, snapshots=3, checkpoint=path, resume=True)
    assert path.read_bytes() == before


def test_ctrl_c_keeps_the_snapshots_and_the_state(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.npz"
    measure, measured = FlowStepper.measure, []

    def measuring(self):
        measured.append(self.time)
        if len(measured) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return measure(self)

    monkeypatch.setattr(FlowStepper, "measure", measuring)
    with pytest.raises(
        fastnc.Interrupted, match=r"by Ctrl-C at log10 t = [-\d.]+ of 30; the state is"
    ) as cut:
        fastnc.flow(SMALL, 30.0, snapshots=3, checkpoint=path, checkpoint_every=1e9)
    assert len(cut.value.run) == 5 and cut.value.run.about["stopped"] == "interrupted"
    monkeypatch.undo()
    run = fastnc.flow(SMALL, 30.0, snapshots=3, checkpoint=path, resume=True)
    assert run.H.tobytes() == fastnc.flow(SMALL, 30.0, snapshots=3).H.tobytes()


def test_a_failure_says_where_and_why_and_keeps_what_it_had(monkeypatch):
    derivative = FlowEquation.derivative

    def breaking(self, x, theta):
        out = derivative(self, x, theta)
        return out * np.nan if x > 2.0 else out

    monkeypatch.setattr(FlowEquation, "derivative", breaking)
    with pytest.raises(fastnc.Diverged, match=r"stopped at log10 t = 1\.\d+: .*snapshots") as cut:
        fastnc.flow(SMALL, 30.0, snapshots=5)
    run = cut.value.run
    # sinh(2) = log t is log10 t = 1.57; everything before stands.
    assert run.about["stopped"] == "failed" and 1.0 <= run["log10_time"][-1] < 1.6
    assert np.isfinite(run["log_loss"]).all() and np.isfinite(run.H).all()


def test_a_loss_that_does_not_vanish_ends_the_flow_in_a_sentence():
    """On a line the middle one of three classes is never ahead: the loss stays, t grows."""
    model = fastnc.ULPM(n_classes=3, n_per_class=1, dim=1)
    said = r"at log10 t = \d+\.\d+: the mean loss is still 0\.\d+ and does not vanish"
    with pytest.raises(fastnc.Diverged, match=said) as cut:
        fastnc.flow(model, 1000.0, snapshots=20)
    assert cut.value.run["log10_time"][-1] > 4
    assert np.isfinite(cut.value.run["log_loss"]).all()


@pytest.mark.parametrize(("log10_time", "rtol"), [(1e5, 1e-3), (1e308, 1e-8)])
def test_a_tolerance_that_is_none_any_more_ends_the_flow_in_a_sentence(log10_time, rtol):
    """Of logits of the size of log t, an error of `rtol` moves their loss by a factor."""
    said = rf"of which `rtol`={rtol:g} is more than their loss forgives. Take a smaller one"
    with pytest.raises(fastnc.Diverged, match=said) as cut:
        fastnc.flow(SMALL, log10_time, snapshots=2, rtol=rtol)
    run = cut.value.run
    assert run["log10_time"][-1] * math.log(10) * rtol > 0.1 and np.isfinite(run["margin"]).all()
    if log10_time == 1e5:
        # The tolerance that the sentence asks for does.
        assert fastnc.flow(SMALL, log10_time, snapshots=2, rtol=1e-6)["log10_time"][-1] == 1e5


def test_a_checkpoint_of_a_descent_is_told_as_such(tmp_path):
    path = tmp_path / "checkpoint.npz"
    fastnc.descend(SMALL, epochs=10, checkpoint=path)
    with pytest.raises(ValueError, match=r"its `kind` is 'descent', this run's is 'flow'"):
        fastnc.flow(SMALL, 5.0, checkpoint=path, resume=True)


def test_snapshot_times():
    times = snapshot_times(1000.0, 4)
    assert times[0] == -1.0 and times[-1] == 1000.0 and (np.diff(times) > 0).all()
    np.testing.assert_allclose(times[:8], np.arange(-4, 4) / 4)
    assert 10.0 in times and 100.0 in times
    assert snapshot_times(0.1, 10)[-1] == 0.1
    assert snapshot_times(777.0, 4)[-1] == 777.0 and (np.diff(snapshot_times(777.0, 4)) > 0).all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"log10_time": 0.0}, "`log10_time` must be a positive number; got 0.0"),
        ({"log10_time": math.inf}, "`log10_time` must be a positive number; got inf"),
        ({"snapshots": 0}, "`snapshots` must be an integer of at least 1; got 0"),
        ({"rtol": 1.0}, "`rtol` must lie in 1e-11..1e-2; got 1.0"),
        ({"rtol": None}, "`rtol` must be a positive number; got None"),
        ({"solver": "lu"}, "`solver` must be 'auto', 'direct' or 'krylov'; got 'lu'"),
        ({"seed": -1}, "`seed` must be an integer of at least 0"),
        ({"resume": True}, "`resume` must have a file to go on from; give `checkpoint`"),
        ({"checkpoint": "absent/run.npz"}, "`checkpoint` must be a file in a folder that exists"),
        ({"checkpoint_every": -1.0}, "`checkpoint_every` must be a number of at least 0"),
        ({"W": np.full((3, 4), 1e160)}, "of `W` and `H` must be at most 1e100; got 1e+160"),
        ({"W": np.zeros((3, 4)), "H": np.zeros((6, 4))}, "`W` and `H` must not both be 0: there"),
        ({"W": np.ones((2, 4))}, "`W` must have 3 rows; got shape (2, 4)"),
        ({"H": np.full((6, 4), np.nan)}, "`H` must be finite; got nan at index (0, 0)"),
        ({"model": fastnc.models.separation(3, 2, 4)}, "without a constraint; got separation("),
        ({"model": BIASED, "solver": "direct"}, "`solver` must be 'auto' for weight_decay("),
        ({"model": DECAYED, "solver": "direct"}, "`solver` must be 'krylov' for a model with"),
        ({"model": DECAYED, "log10_time": 9.0}, "`log10_time` must be at most 8 with these weight"),
    ],
)
def test_bad_arguments(arguments, sentence):
    with pytest.raises((ValueError, TypeError), match=re.escape(sentence)):
        fastnc.flow(**{"model": SMALL, "log10_time": 5.0, **arguments})


def test_descent_and_flow_refuse_to_start_where_nothing_moves():
    for run in (fastnc.descend, fastnc.flow):
        with pytest.raises(ValueError, match="`W` and `H` must not both be 0"):
            run(SMALL, W=np.zeros((3, 4)), H=np.zeros((6, 4)))


def test_a_descent_of_three_classes_on_a_line_is_not_told_that_its_step_is_too_large():
    with pytest.raises(fastnc.Diverged, match="one feature separates at most two classes"):
        # From so far out the first step leaves the range of floats.
        model = fastnc.ULPM(3, 2, 1)
        W, H = (1e160 * x for x in model.init(0))
        fastnc.descend(model, lr=1e160, epochs=5, W=W / 1e80, H=H / 1e80)
