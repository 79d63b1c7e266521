"""`fastnc flow` as a user types it: outputs, kills, resumes, failures, and its mistakes."""

import csv
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from typer.testing import CliRunner

import fastnc
from fastnc.cli import build
from fastnc.dynamics.integrator.equation import FlowEquation
from fastnc.dynamics.integrator.stepper import FlowStepper

SMALL = ["--n-classes", 3, "--n-per-class", 2, "--dim", 4, "--snapshots", 5]


def invoke(*arguments):
    return CliRunner().invoke(build(), ["flow", *map(str, arguments)])


@pytest.mark.usefixtures("rendered")
def test_writes_figures_tables_and_the_run(tmp_path):
    done = invoke(*SMALL, "--log10-time", 100, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    for name in ("flow.png", "flow.pdf", "margin.png", "margin.pdf", "run.npz", "run.csv"):
        assert (tmp_path / name).stat().st_size > 1000
        assert name in done.output
    # Exponents and constants beside the predicted, and what is conserved.
    for word in ("predicted", "within_class", "1 - margin_ratio", "conserved", "singular values"):
        assert word in done.output
    run = fastnc.Trajectory.load(tmp_path / "run.npz")
    alone = fastnc.flow(fastnc.ULPM(3, 2, 4), 100.0, snapshots=5)
    assert run.H.tobytes() == alone.H.tobytes() and run["log10_time"][-1] == 100


def test_killed_and_resumed_to_a_farther_time(tmp_path):
    """Killed without warning once it has written a checkpoint, then gone on."""
    arguments = [sys.executable, "-m", "fastnc", "flow", *map(str, SMALL), "--resume"]
    arguments += ["--log10-time", "1000", "--checkpoint-every", "0", "--out", str(tmp_path)]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    while not (tmp_path / "checkpoint.npz").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() in (0, -signal.SIGKILL)
    done = invoke(*SMALL, "--log10-time", 1000, "--resume", "--out", tmp_path)
    assert done.exit_code == 0 and "starting afresh" not in done.output
    run = fastnc.Trajectory.load(tmp_path / "run.npz")
    whole = fastnc.flow(fastnc.ULPM(3, 2, 4), 1000.0, snapshots=5)
    assert run.H.tobytes() == whole.H.tobytes()
    for name in whole.columns:
        assert run[name].tobytes() == whole[name].tobytes(), name


def test_interrupt_saves_and_says_how_to_resume(tmp_path, monkeypatch):
    measure, measured = FlowStepper.measure, []

    def measuring(self):
        measured.append(self.time)
        if len(measured) == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return measure(self)

    monkeypatch.setattr(FlowStepper, "measure", measuring)
    done = invoke(*SMALL, "--log10-time", 100, "--out", tmp_path)
    assert done.exit_code == 130 and "--resume" in done.output
    assert "stopped by Ctrl-C at log10 t" in done.output
    assert len(fastnc.Trajectory.load(tmp_path / "run.npz")) == 6
    assert (tmp_path / "checkpoint.npz").exists()
    assert (tmp_path / "run.csv").read_text().count("\n") == 7
    assert (tmp_path / "margin.png").exists() or "No margin.png: " in done.output


def test_a_failure_keeps_what_there_was(tmp_path, monkeypatch):
    derivative = FlowEquation.derivative

    def breaking(self, x, theta):
        out = derivative(self, x, theta)
        return out * np.nan if x > 2.0 else out

    monkeypatch.setattr(FlowEquation, "derivative", breaking)
    done = invoke(*SMALL, "--log10-time", 100, "--out", tmp_path)
    assert done.exit_code == 1 and "the flow stopped at log10 t = 1." in done.output
    kept = fastnc.Trajectory.load(tmp_path / "run.npz")
    assert kept.about["stopped"] == "failed" and np.isfinite(kept["log_loss"]).all()


def test_a_near_horizon_has_no_figure_but_a_run(tmp_path):
    done = invoke(*SMALL, "--log10-time", 2, "--out", tmp_path)
    assert done.exit_code == 0 and "at least" in done.output
    assert (tmp_path / "run.npz").exists() and not (tmp_path / "flow.png").exists()


def test_one_snapshot_a_decade_is_enough_for_a_run(tmp_path):
    done = invoke(*SMALL[:-1], 1, "--log10-time", 10, "--out", tmp_path)
    assert done.exit_code == 0 and "No flow.png: " in done.output and "No exponents" in done.output


@pytest.mark.parametrize("snapshots", [1, 7])
def test_the_table_says_the_times_of_its_numbers(tmp_path, snapshots):
    """At t = 100, 1000 and 10^4, where no snapshot was, it had the numbers of t = 10."""
    done = invoke(*SMALL[:-1], snapshots, "--log10-time", 5, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.output.splitlines()]
    times, values = rows[0][1:], rows[3][1:]
    assert rows[0][0] == "t" and rows[3][0] == "within_class" and times[-1] == "1e+05"
    with open(tmp_path / "run.csv", newline="") as file:
        held = {f"{10 ** float(row['log10_time']):.3g}": row for row in csv.DictReader(file)}
    assert len(set(times)) == len(times) == len(values)
    assert values == [f"{float(held[t]['within_class']):.4g}" for t in times]


def test_no_exponents_where_a_class_has_no_samples(tmp_path):
    """They were those of equal classes, and the measured ones nowhere near."""
    options = ["--class-sizes", "3,2,0", "--dim", 4, "--snapshots", 10, "--log10-time", 10]
    done = invoke(*options, "--out", tmp_path)
    assert done.exit_code == 0 and "they need d >= K, samples of every class, a" in done.output
    assert "predicted" not in done.output
    figure = fastnc.plots.long_horizon(fastnc.Trajectory.load(tmp_path / "run.npz"))
    assert not any("propto" in line.get_label() for axes in figure.axes for line in axes.lines)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--n-classes", 1], "`n_classes` must be an integer of at least 2; got 1"),
        (["--log10-time", -3], "`log10_time` must be a positive number; got -3.0"),
        (["--log10-time", "far"], "--log10-time"),
        (["--rtol", 1], "`rtol` must lie in 1e-11..1e-2"),
        (["--solver", "lu"], "--solver"),
        (["--checkpoint-every", -1], "`checkpoint_every` must be a number of at least 0"),
    ],
)
def test_bad_options_are_told_in_a_sentence(tmp_path, arguments, sentence):
    done = invoke(*arguments, "--out", tmp_path)
    assert done.exit_code == 2 and sentence in done.output and "Traceback" not in done.output
    assert list(tmp_path.iterdir()) == []


def test_figures_say_what_they_need():
    descent = fastnc.descend(fastnc.ULPM(3, 2, 4), epochs=100, snapshots=5)
    with pytest.raises(ValueError, match=r"`run` must be of `fastnc\.flow`"):
        fastnc.plots.long_horizon(descent)
    with pytest.raises(ValueError, match="must have the columns of `margin_decomposition`"):
        fastnc.plots.missing_margin(descent)
    near = fastnc.flow(fastnc.ULPM(3, 2, 4), 2.0, snapshots=5)
    with pytest.raises(ValueError, match=r"must reach t = 10\^10 at least"):
        fastnc.plots.long_horizon(near)
