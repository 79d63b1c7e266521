"""`fastnc sweep` as a user types it."""

import os
import subprocess
import sys
import time
from signal import SIGINT, SIGTERM, getsignal

import numpy as np
import pytest
from typer.testing import CliRunner

import fastnc
from fastnc.cli import build
from fastnc.dynamics.integrator.stepper import FlowStepper
from fastnc.dynamics.steppers import Failed
from fastnc.dynamics.steppers.plain import PlainDescent


def invoke(*arguments):
    return CliRunner().invoke(build(), ["sweep", *map(str, arguments)])


@pytest.mark.usefixtures("rendered")
def test_writes_bands_a_table_and_the_runs(tmp_path):
    done = invoke(
        "--epochs", 200, "--seeds", 3, "--seed", 4, "--lr", 5, "--lr", 1, "--out", tmp_path
    )
    assert done.exit_code == 0, done.output
    for name in ("sweep.png", "sweep.pdf", "runs.npz", "runs.csv"):
        assert (tmp_path / name).stat().st_size > 1000 and name in done.output
    assert "K=5, N=50, d=20, lr=1, float64: 3 runs" in done.output
    runs = fastnc.Trajectories.load(tmp_path / "runs.npz")
    alone = fastnc.descend(fastnc.ULPM(5, 10, 20), lr=1.0, epochs=200, seed=5)
    assert len(runs) == 6 and runs[4].H.tobytes() == alone.H.tobytes()


def test_what_diverged_is_counted_and_short_runs_have_no_figure(tmp_path):
    """Its exit status is that of `fastnc ulpm`, with everything written."""
    options = ["--epochs", 5, "--seeds", 2, "--lr", 1e200, "--out", tmp_path]
    for more in (), ("--resume",):
        done = invoke(*options, *more)
        assert done.exit_code == 1 and "2 runs, 2 diverged" in done.output
        assert "No sweep.png: a figure on the log log t axis needs times of at least" in done.output
        assert "fastnc: none of 2 runs came to its end: 2 diverged. `fastnc ulpm`, " in done.stderr
        runs = fastnc.Trajectories.load(tmp_path / "runs.npz")
        assert len(runs) == 2 and (tmp_path / "runs.csv").exists() and "runs.csv" in done.output
    some = invoke(*options, "--lr", 1)
    assert some.exit_code == 0 and some.stderr == "fastnc: of 4 runs 2 diverged.\n"
    # They do not take the others' figure with them.
    drawn = invoke(*options[2:], "--lr", 1, "--epochs", 20)
    assert drawn.exit_code == 0 and "sweep.png" in drawn.output
    figure = fastnc.plots.sweep_bands(fastnc.Trajectories.load(tmp_path / "runs.npz"))
    assert len(figure.axes) == 4 and figure.axes[0].get_ylabel().startswith("K=5, N=50, d=20\nlr=1")
    said = figure.get_suptitle()
    assert said.endswith("\ndiverged before t = 10: K=5, N=50, d=20, lr=1e+200, float64")


@pytest.mark.parametrize(
    ("twice", "said"),
    [
        (("--lr", 1, "--lr", "1.0"), "`lr` must have different values; got 1.0 twice."),
        (("--rule", "adam", "--rule", "Adam(1e-2)"), "`rule` must have different values; got Ad"),
        (("--dim", 4, "--dim", 4), "`dim` must have different values; got 4 twice. Leave out one."),
    ],
)
def test_the_same_runs_twice_are_no_more_starts(tmp_path, twice, said):
    """A setting that was given twice had twice the runs, and its bands counted each run twice."""
    done = invoke("--epochs", 5, "--seeds", 1, *twice, "--out", tmp_path)
    assert done.exit_code == 2 and said in done.output


def test_flows_whose_steps_fail_are_counted(tmp_path, monkeypatch):
    """They were counted among those that came to their end."""

    def fail(*_):
        raise Failed("the step has shrunk to nothing")

    monkeypatch.setattr(FlowStepper, "advance", fail)
    done = invoke("--method", "flow", "--log10-time", 2, "--seeds", 2, "--out", tmp_path)
    assert done.exit_code == 1 and "2 runs, 2 failed" in done.output
    assert "fastnc: none of 2 runs came to its end: 2 failed." in done.stderr


def test_interrupt_saves_and_resume_goes_on(tmp_path):
    options = ["--seeds", "2", "--checkpoint-every", "0", "--out", str(tmp_path)]
    # So long that no machine ends it; what is resumed is shorter.
    process = subprocess.Popen(
        [sys.executable, "-m", "fastnc", "sweep", "--epochs", "1000000000000", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # A run has written where it stands: from then on the command holds the signal back.
    while not list(tmp_path.glob("checkpoint-underway*.npz")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(SIGTERM)
    out, err = process.communicate()
    assert process.returncode == 130 and "Traceback" not in err
    assert "stopped by SIGTERM: 0 of 2 runs are done; the state is in" in err and "--resume" in out
    # On one core one run is underway, on two both are.
    assert list(tmp_path.glob("checkpoint-underway*.npz"))


def test_resume_takes_up_what_is_under_way(tmp_path):
    model, path = fastnc.ULPM(5, 10, 20), tmp_path / "checkpoint.npz"
    options = ["--epochs", "2000", "--seeds", "2", "--out", str(tmp_path)]
    with pytest.MonkeyPatch.context() as patch:
        make, pressed = PlainDescent.make, []

        def press(stepper, n):
            make(stepper, n)
            if stepper.epoch + n >= 1000 and not pressed:
                pressed.append(stepper.epoch)
                holding = getsignal(SIGINT)
                os.kill(os.getpid(), SIGINT)
                # The main thread hears it when it is its turn, and puts the handler back.
                while getsignal(SIGINT) is holding:
                    time.sleep(0.001)

        patch.setattr(PlainDescent, "make", press)
        assert invoke(*options, "--threads", 1).exit_code == 130
    assert path.exists() and (tmp_path / "checkpoint-underway0.npz").exists()
    assert invoke(*options, "--resume").exit_code == 0
    runs = fastnc.Trajectories.load(tmp_path / "runs.npz")
    alone = fastnc.descend(model, epochs=2000, seed=1)
    np.testing.assert_array_equal(runs[1].W, alone.W)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--n-classes", 1], "`n_classes` must be an integer of at least 2; got 1"),
        (["--seeds", 0], "`seeds` must be an integer of at least 1; got 0"),
        (["--seed", -2], "`seed` must be an integer of at least 0; got -2"),
        (["--lr", 5, "--lr", -5], "`lr` must be a positive number; got -5.0"),
        (["--epochs", 0], "`epochs` must be an integer of at least 1; got 0"),
        (["--threads", 0], "`threads` must be an integer of at least 1"),
        (["--lr", "fast"], "--lr"),
    ],
)
def test_bad_options_are_told_in_a_sentence(tmp_path, arguments, sentence):
    done = invoke(*arguments, "--out", tmp_path)
    assert done.exit_code == 2 and sentence in done.output and "Traceback" not in done.output
    assert list(tmp_path.iterdir()) == []
