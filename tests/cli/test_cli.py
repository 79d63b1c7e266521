"""What all commands share: doors, numbers, folders, terminals that lack something."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

import fastnc
from fastnc._core import progress
from fastnc.cli import LONGEST, _one_line, build, whole_number

SHORT = ["ulpm", "--n-classes", "3", "--n-per-class", "2", "--dim", "4", "--epochs", "20"]


def invoke(*arguments):
    return CliRunner().invoke(build(), [str(a) for a in arguments])


def fastnc_process(*arguments, python=(), **environment):
    return subprocess.run(
        [sys.executable, *python, "-m", "fastnc", *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
    )


def test_version():
    done = invoke("--version")
    assert done.exit_code == 0 and done.output == f"fastnc {fastnc.__version__}\n"


def test_info():
    done = invoke("info")
    assert done.exit_code == 0, done.output
    rows = dict(line.split(maxsplit=1) for line in done.output.splitlines())
    assert rows["version"] == fastnc.__version__ and f"numpy {np.__version__}" in rows["libraries"]
    assert rows["vectors"].split()[0] in {"128", "256", "512"}
    assert {"processor", "threads", "gpu", "cache", "blas"} <= rows.keys()


def test_completion():
    """What bash asks for when somebody types `fastnc ul` and the tabulator."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys, fastnc.cli as c; sys.argv = ['fastnc']; c.main()"],
        env={**os.environ, "_FASTNC_COMPLETE": "complete_bash", "COMP_WORDS": "fastnc ul",
             "COMP_CWORD": "1"},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.stdout.split() == ["ulpm"]
    assert "--install-completion" in invoke("--help").output


@pytest.mark.parametrize(("text", "value"), [("1e6", 10**6), ("007", 7), ("2.50e2", 250)])
def test_whole_numbers(text, value):
    assert whole_number(text) == value


def test_whole_numbers_of_options(tmp_path):
    done = invoke(*SHORT[:-1], "2e1", "--out", tmp_path / "o")
    assert done.exit_code == 0, done.output
    assert fastnc.Trajectory.load(tmp_path / "o" / "run.npz")["epoch"][-1] == 20
    for wrong in ("2.5", "many", "inf"):
        assert invoke(*SHORT[:-1], wrong, "--out", tmp_path / "o").exit_code == 2
    assert not (tmp_path / "o" / "earlier-1").exists()


def test_earlier_results_are_moved_aside(tmp_path):
    """Without --resume a second run replaced the first, its checkpoint and another command's."""
    out = tmp_path / "o"
    first = invoke(*SHORT, "--out", out)
    assert first.exit_code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "notes.txt").write_text("mine")
    second = invoke(*SHORT, "--seed", 1, "--out", out)
    assert f"Earlier results of {out} are now in {out / 'earlier-1'}." in second.output
    assert {p.name: p.read_bytes() for p in (out / "earlier-1").iterdir()} == before
    assert (out / "notes.txt").read_text() == "mine"
    # What is refused, or resumes, moves nothing.
    assert invoke(*SHORT, "--lr", -1, "--out", out).exit_code == 2
    assert invoke(*SHORT, "--seed", 1, "--resume", "--out", out).exit_code == 0
    assert sorted(p.name for p in out.glob("earlier-*")) == ["earlier-1"]
    assert invoke(*SHORT, "--out", out).exit_code == 0
    assert sorted(p.name for p in out.glob("earlier-*")) == ["earlier-1", "earlier-2"]


def test_a_folder_of_one_command(tmp_path):
    """Two that wrote the same files left one's table beside the other's run."""
    holder = (
        "import sys; from pathlib import Path; from fastnc.cli._folder import claimed\n"
        "with claimed(Path(sys.argv[1]), False):\n    print('held', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"held\n"
        done = invoke(*SHORT, "--out", tmp_path)
        assert done.exit_code == 2
        assert "is being written by another fastnc command. Wait for it, or name" in done.output
        other.communicate(b"\n")
    assert list(tmp_path.iterdir()) == []
    assert invoke(*SHORT, "--out", tmp_path).exit_code == 0


def test_a_run_that_cannot_be_saved_is_saved_elsewhere(tmp_path, monkeypatch):
    from fastnc.dynamics import trajectory

    write, out, elsewhere = trajectory.write_npz, tmp_path / "o", tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))

    def full(path, arrays):
        if path.parent == out:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, arrays)

    monkeypatch.setattr(trajectory, "write_npz", full)
    done = invoke(*SHORT, "--out", out)
    (kept,) = elsewhere.glob("*/run.npz")
    assert done.exit_code == 2 and f"The run itself is in {str(kept)!r}." in done.output
    assert fastnc.Trajectory.load(kept)["epoch"][-1] == 20


def test_terminals_that_lack_something(tmp_path):
    """Letters, docstrings, a screen, a stderr."""
    ascii_only = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    assert fastnc_process("train", "--help", **ascii_only).returncode == 0
    assert b"layer-peeled" in fastnc_process("ulpm", "--help", python=["-OO"]).stdout
    out = tmp_path / "é"
    done = fastnc_process(*SHORT, "--out", out, MPLBACKEND="nonsense", **ascii_only)
    assert done.returncode == 0, done.stderr
    assert b"o" in done.stdout and (out / "figure2.png").exists()
    closed = 'exec 2>&-; exec "$0" -m fastnc "$@"'
    done = subprocess.run(["bash", "-c", closed, sys.executable, *SHORT, "--out", tmp_path / "c"])
    assert done.returncode == 0 and (tmp_path / "c" / "run.csv").exists()


def test_sentences_of_hostile_files():
    assert _one_line("a\x1b[2Jb\nc\x07") == "a\\x1b[2Jb c\\x07"
    assert len(_one_line("x" * 2_000_000)) == LONGEST + 3


def test_plot(tmp_path):
    done = invoke(*SHORT, "--out", tmp_path / "run")
    runs = fastnc.sweep(fastnc.ULPM(3, 2, 4), epochs=20, seeds=range(2))
    flow = fastnc.flow(fastnc.ULPM(3, 2, 4), log10_time=20)
    many, flowed = runs.save(tmp_path / "many.npz"), flow.save(tmp_path / "flowed.npz")
    done = invoke("plot", tmp_path / "run", many, flowed, "--out", tmp_path / "figures")
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (tmp_path / "figures").glob("*.png")) == [
        "flowed-flow.png", "flowed-margin.png", "many-sweep.png", "run-figure2.png",
    ]  # fmt: skip
    short = fastnc.flow(fastnc.ULPM(3, 2, 4), log10_time=2).save(tmp_path / "short.npz")
    done = invoke("plot", short, "--out", tmp_path / "figures")
    assert done.exit_code == 0 and "No short-flow.png: " in done.output
    assert "short-margin.png" in done.output
    refused = invoke("plot", tmp_path)
    assert refused.exit_code == 2
    assert "`RUN` must be a file or the folder of one;" in refused.output
    assert "holds no run.npz and no runs.npz" in refused.output


class Clock:
    """Seconds that pass as a test says."""

    now = 0.0

    def monotonic(self):
        return self.now


def test_a_line_a_minute(monkeypatch, capsys):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    with progress.progress_bar(1e6, "epochs", "descent", 100_000) as bar:
        for clock.now in (30.0, 59.0, 60.0, 61.0, 120.0):
            bar.update(50_000)
    # 150,000 epochs in 60 s, 250,000 in 120 s: the rest at that rate.
    assert capsys.readouterr().err.splitlines() == [
        "descent: 250,000 of 1e+06 epochs, 2,500 a second, 0:05:00 left",
        "descent: 350,000 of 1e+06 epochs, 2,083 a second, 0:05:12 left",
    ]
    monkeypatch.setattr(sys, "stderr", None)
    with progress.progress_bar(10, "epochs", "descent") as bar:
        bar.update(3)
