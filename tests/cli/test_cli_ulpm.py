"""`fastnc ulpm` as a user types it: outputs, kills, resumes, and one sentence for each mistake."""

import inspect
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
from fastnc.cli.ulpm import ulpm

COMMAND = [sys.executable, "-m", "fastnc", "ulpm"]


def invoke(*arguments):
    return CliRunner().invoke(build(), ["ulpm", *map(str, arguments)])


@pytest.mark.usefixtures("rendered")
def test_writes_the_figure_the_table_and_the_run(tmp_path):
    done = invoke("--epochs", 1000, "--out", tmp_path / "new")
    assert done.exit_code == 0, done.output
    for name in ("figure2.png", "figure2.pdf", "run.npz", "run.csv"):
        assert (tmp_path / "new" / name).stat().st_size > 1000
        assert name in done.output
    assert "within_class" in done.output and "1e+03" in done.output
    run = fastnc.Trajectory.load(tmp_path / "new" / "run.npz")
    alone = fastnc.descend(fastnc.ULPM(5, 10, 20), epochs=1000)
    assert run.H.tobytes() == alone.H.tobytes()


def test_killed_anywhere_and_resumed_ends_in_the_same_bits(tmp_path):
    """Each signal falls as soon as the command has got further than where it was taken up."""
    options = ["--dim", "7", "--checkpoint-every", "0", "--resume", "--out", str(tmp_path / "cut")]
    (tmp_path / "cut").mkdir()
    checkpoint = tmp_path / "cut" / "checkpoint.npz"
    reached = -1
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        # So long that no machine ends it before the signal.
        process = subprocess.Popen([*COMMAND, "--epochs", "1" + 12 * "0", *options])
        while epoch_of(checkpoint) <= reached:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait() == (-signal.SIGKILL if number == signal.SIGKILL else 130)
        reached = epoch_of(checkpoint)
    last = str(max(20_000, reached + 1000))
    assert invoke("--epochs", last, *options).exit_code == 0
    whole = invoke("--epochs", last, *options[:-1], tmp_path / "whole")
    assert whole.exit_code == 0 and "starting afresh" in whole.output
    first, second = (fastnc.Trajectory.load(tmp_path / d / "run.npz") for d in ("whole", "cut"))
    for name in ("W", "H"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()
    for name in first.columns:
        assert first[name].tobytes() == second[name].tobytes(), name


def epoch_of(checkpoint):
    """The epoch that a checkpoint, which is always whole, stands at; -1 if there is none."""
    if not checkpoint.exists():
        return -1
    with np.load(checkpoint, allow_pickle=False) as found:
        return int(found["state/epoch"])


def test_interrupt_saves_and_says_how_to_resume(tmp_path):
    arguments = [*COMMAND, "--epochs", "1000000000000", "--checkpoint-every", "0"]
    process = subprocess.Popen(
        [*arguments, "--out", str(tmp_path)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    # From its first checkpoint on the command holds Ctrl-C back until a slice has ended.
    while epoch_of(tmp_path / "checkpoint.npz") < 1:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130 and "Traceback" not in err
    assert "stopped by Ctrl-C at epoch" in err and "--resume" in out
    assert len(fastnc.Trajectory.load(tmp_path / "run.npz")) > 1
    # What there is by then has its table, and from 10 epochs on its figure.
    assert (tmp_path / "run.csv").exists()
    assert (tmp_path / "figure2.png").exists() or "No figure: the log log t axis" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--n-classes", 1], "`n_classes` must be an integer of at least 2; got 1"),
        (["--dim", 0], "`dim` must be an integer of at least 1"),
        (["--lr", -5], "`lr` must be a positive number; got -5.0"),
        (["--lr", "nan"], "`lr` must be a positive number; got nan"),
        (["--epochs", 0], "`epochs` must be an integer of at least 1; got 0"),
        (["--seed", -1], "`seed` must be an integer of at least 0"),
        (["--checkpoint-every", -1], "`checkpoint_every` must be a number of at least 0"),
        (["--epochs", "many"], "--epochs"),
        (["--dtype", "float16"], "--dtype"),
        (["--no-such-option"], "No such option"),
    ],
)
def test_bad_options_are_told_in_a_sentence(tmp_path, arguments, sentence):
    done = invoke(*arguments, "--out", tmp_path)
    assert done.exit_code == 2 and sentence in done.output and "Traceback" not in done.output
    assert list(tmp_path.iterdir()) == []


def test_unwritable_out(tmp_path):
    (tmp_path / "file").write_text("mine")
    done = invoke("--out", tmp_path / "file")
    assert done.exit_code == 2 and "`--out` must be a writable folder" in done.output
    assert (tmp_path / "file").read_text() == "mine"


def test_a_checkpoint_of_another_problem_or_a_damaged_one_stays(tmp_path):
    assert invoke("--epochs", 50, "--out", tmp_path).exit_code == 0
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    done = invoke("--epochs", 50, "--lr", 1, "--resume", "--out", tmp_path)
    assert done.exit_code == 2 and "its `lr` is 5.0, this run's is 1.0" in done.output
    # It said that `lr` was another one.
    for option, name in (("--noise=1e-3", "noise"), ("--rule=adam", "rule")):
        done = invoke("--epochs", 50, option, "--resume", "--out", tmp_path)
        assert done.exit_code == 2 and f"its `{name}` is" in done.output
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    checkpoint = tmp_path / "checkpoint.npz"
    checkpoint.write_bytes(before["checkpoint.npz"][:500])
    done = invoke("--epochs", 50, "--resume", "--out", tmp_path)
    assert done.exit_code == 2 and "is not readable" in done.output
    assert checkpoint.read_bytes() == before["checkpoint.npz"][:500]


def test_divergence_is_told_and_keeps_what_there_was(tmp_path):
    done = invoke("--lr", 1e6, "--epochs", 5000, "--out", tmp_path)
    assert done.exit_code == 1 and "is too large for this problem" in done.output
    kept = fastnc.Trajectory.load(tmp_path / "run.npz")
    assert np.isfinite(kept["log_loss"]).all() and kept.about["stopped"] == "diverged"
    # As far as it came it has its table and its figure.
    assert (tmp_path / "run.csv").exists() and (tmp_path / "figure2.png").exists()


def test_epochs_below_ten_have_no_figure_but_a_run(tmp_path):
    done = invoke("--epochs", 5, "--out", tmp_path)
    assert done.exit_code == 0 and (tmp_path / "run.npz").exists()
    assert not (tmp_path / "figure2.png").exists() and "at least 10" in done.output


def test_help_names_every_option():
    text = CliRunner().invoke(build(), ["ulpm", "--help"], env={"COLUMNS": "200"}).output
    parameters = inspect.signature(ulpm).parameters
    for name in ("n_classes", "lr", "out", "resume", "checkpoint_every", *parameters):
        option = f"--{name.replace('_', '-')}"
        assert option in text, os.linesep + text
