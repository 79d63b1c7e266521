"""What all commands share: doors, numbers, folders, terminals that lack something."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import fastnc
from fastnc._core import progress
from fastnc.cli import COMMANDS, LONGEST, _one_line, build, whole_number
from fastnc.cli._results import noted
from fastnc.cli.cache import kept_sizes

SHORT = ["ulpm", "--n-classes", "3", "--n-per-class", "2", "--dim", "4", "--epochs", "20"]
# Too short for a figure, which takes a process as long as all else.
BARE = [*SHORT[:-1], "5"]


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


def test_kernels_that_others_remove(tmp_path, monkeypatch):
    """Between the look into their folder and the look at a file."""
    (tmp_path / "there").write_bytes(b"four")
    listed = [tmp_path / "there", tmp_path / "gone"]
    monkeypatch.setattr(Path, "iterdir", lambda folder: iter(listed))
    assert kept_sizes(tmp_path) == [4]
    monkeypatch.undo()
    assert kept_sizes(tmp_path / "gone") == []


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


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_whole(command, monkeypatch):
    """At 80 columns names such as `--classifier-scale` ended in three dots."""
    monkeypatch.setenv("COLUMNS", "80")
    said = invoke(command, "--help").output
    assert "Usage" in said and "…" not in said


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e6", 10**6),
        ("007", 7),
        ("2.50e2", 250),
        # A seed of 1e30 was that of the nearest float, 1000000000000000019884624838656.
        ("1e30", 10**30),
        ("9007199254740993.0", 9007199254740993),
    ],
)
def test_whole_numbers(text, value):
    assert whole_number(text) == value


def test_whole_numbers_of_options(tmp_path):
    done = invoke(*SHORT[:-1], "2e1", "--out", tmp_path / "o")
    assert done.exit_code == 0, done.output
    assert fastnc.Trajectory.load(tmp_path / "o" / "run.npz")["epoch"][-1] == 20
    for wrong in ("2.5", "many", "inf", "1e999999999"):
        assert invoke(*SHORT[:-1], wrong, "--out", tmp_path / "o").exit_code == 2
    assert not (tmp_path / "o" / "earlier-1").exists()


def test_earlier_results_are_moved_aside(tmp_path):
    """Without --resume a second run replaced the first, its checkpoint and another command's."""
    out = tmp_path / "o"
    first = invoke(*SHORT, "--out", out)
    assert first.exit_code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    # Names that begin with a word of ours, too.
    mine = ["notes.txt", "runners.csv", "margins.csv", "flowers.png", "depth-notes.json"]
    for name in mine:
        (out / name).write_text("mine")
    second = invoke(*SHORT, "--seed", 1, "--out", out)
    assert f"Earlier results of {out} are now in {out / 'earlier-1'}." in second.output
    assert {p.name: p.read_bytes() for p in (out / "earlier-1").iterdir()} == before
    assert all((out / name).read_text() == "mine" for name in mine)
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
        "with claimed(Path(sys.argv[1]), None):\n    print('held', flush=True); input()"
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


@pytest.mark.parametrize("command", ["ulpm", "flow", "sweep"])
def test_a_run_that_cannot_be_saved_is_saved_elsewhere(tmp_path, monkeypatch, command):
    """The last save of its state fails, or that of the run itself: on a disk that is full."""
    write, out, elsewhere = os.replace, tmp_path / "o", tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    options = {
        "ulpm": SHORT, "flow": ["flow", *SHORT[1:-2], "--log10-time", 2],
        "sweep": ["sweep", *SHORT[1:], "--seeds", 2],
    }[command]  # fmt: skip
    for name in ("checkpoint.npz", "runs.npz" if command == "sweep" else "run.npz"):
        done = []

        def full(source, target, name=name, done=done):
            done += [target] if Path(target).name == name else []
            # A sweep's first state says that nothing is done yet.
            late = len(done) > (command == "sweep" and name == "checkpoint.npz")
            if Path(target) == out / name and late:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(source, target)

        monkeypatch.setattr(os, "replace", full)
        told = invoke(*options, "--out", out)
        assert told.exit_code == 2, told.output
        assert f"{name}' cannot be written: No space left on device." in told.output
        (kept,) = elsewhere.glob("*/run*.npz")
        assert f"The run itself is in {str(kept)!r}" in told.output
        if command == "sweep":
            assert len(fastnc.Trajectories.load(kept)) == 2
        else:
            assert len(fastnc.Trajectory.load(kept)) > 5
            states = list(elsewhere.glob("*/checkpoint.npz"))
            assert len(states) == (name == "checkpoint.npz")
        shutil.rmtree(kept.parent)
    # Nowhere is room: said, and the first reason stays.
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    told = invoke(*options, "--out", out)
    assert told.exit_code == 2 and "checkpoint.npz' cannot be written: full." in told.output
    # Of a sweep that is the first save, before any run.
    assert (" could not be saved elsewhere either: " in told.output) == (command != "sweep")


@pytest.mark.usefixtures("rendered")
def test_figures_that_cannot_be_drawn(tmp_path, monkeypatch):
    """LaTeX is asked for and not there: tables and numbers come all the same, and one line."""
    monkeypatch.setenv("PATH", str(tmp_path))
    features = np.random.default_rng(0).standard_normal((9, 4))
    np.savez(tmp_path / "f.npz", features=features, labels=np.arange(9) % 3)
    with matplotlib.rc_context({"text.usetex": True}):
        told = invoke(*SHORT, "--out", tmp_path / "o")
        measured = invoke("metrics", tmp_path / "f.npz", "--out", tmp_path / "o")
    assert told.exit_code == 0, told.output
    said = told.output
    assert said.count("No figure2.png: ") == 1 and "latex" in said and "Traceback" not in said
    assert "within_class" in said and (tmp_path / "o" / "run.csv").exists()
    said = measured.output
    assert measured.exit_code == 0 and said.index("nc1") < said.index("No metrics.png: ")


def test_nobody_reads_the_output(tmp_path):
    """A pipe that was closed is no fault of the command's: what is written is whole."""
    script = 'trap "" PIPE; "$0" -m fastnc "$@" | true; exit ${PIPESTATUS[0]}'
    for arguments in ((*BARE, "--out", tmp_path / "o"), ("ulpm", "--help"), ("info",)):
        command = ["bash", "-c", script, sys.executable, *map(str, arguments)]
        # What is written waits in a buffer until the end, as for most users.
        buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
        done = subprocess.run(command, capture_output=True, text=True, env=buffered)
        assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr
    assert (tmp_path / "o" / "run.npz").exists()


def test_the_output_cannot_be_written(tmp_path):
    """A full disk behind `> log.txt`: what cannot be written is named, and what is kept."""
    out = tmp_path / "o"
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    for arguments in ((*BARE, "--out", out), ("ulpm", "--help"), ("info",)):
        with open("/dev/full", "w") as full:
            command = [sys.executable, "-m", "fastnc", *map(str, arguments)]
            done = subprocess.run(command, stdout=full, stderr=-1, text=True, env=buffered)
        assert done.stderr == (
            "fastnc: what is printed cannot be written: No space left on device.\n"
        )
        assert done.returncode == 2
    assert (out / "run.csv").exists()


@pytest.mark.parametrize("arguments", [("--epochs", "1e23"), ("--dim", "1e400"), ("--seed", "-1")])
def test_numbers_without_an_end(arguments, tmp_path):
    done = invoke("ulpm", *arguments, "--out", tmp_path / "o")
    assert done.exit_code == 2 and "Traceback" not in done.output
    if arguments[1] == "1e23":
        assert "`epochs` must be at most 10^15; got 100000000000000000000000." in done.output


def test_terminals_that_lack_something(tmp_path):
    """Letters, docstrings, a screen, a stderr."""
    ascii_only = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    assert fastnc_process("train", "--help", **ascii_only).returncode == 0
    assert b"layer-peeled" in fastnc_process("ulpm", "--help", python=["-OO"]).stdout
    plain = fastnc_process(*SHORT, "--out", tmp_path / "plain", NUMBA_DISABLE_JIT="1")
    assert plain.returncode == 2
    assert plain.stderr.startswith(b"fastnc: NUMBA_DISABLE_JIT is set, and the kernels need the")
    out = tmp_path / "é"
    done = fastnc_process(*SHORT, "--out", out, MPLBACKEND="nonsense", **ascii_only)
    assert done.returncode == 0, done.stderr
    assert b"o" in done.stdout and (out / "figure2.png").exists()
    closed = 'exec 2>&-; exec "$0" -m fastnc "$@"'
    done = subprocess.run(["bash", "-c", closed, sys.executable, *BARE, "--out", tmp_path / "c"])
    assert done.returncode == 0 and (tmp_path / "c" / "run.csv").exists()


def test_ctrl_c_at_the_very_end():
    """A second one met torch's cleaning up, which showed a traceback."""
    script = (
        "import atexit, signal, sys; from fastnc.cli import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "atexit.register(signal.raise_signal, signal.SIGINT)\n"
        "sys.argv = ['fastnc', '--version']; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert done.returncode == -signal.SIGINT and done.stderr == b""


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
    # Runs of one name in one folder: none takes the place of another.
    again = tmp_path / "again"
    shutil.copytree(tmp_path / "run", again)
    done = invoke("plot", tmp_path / "run", again, again / "run.npz", "--out", tmp_path / "three")
    assert sorted(path.name for path in (tmp_path / "three").glob("*.png")) == [
        "again-run-1-figure2.png", "again-run-2-figure2.png", "run-run-figure2.png",
    ]  # fmt: skip
    assert done.output.count("provenance.json") == 1
    short = fastnc.flow(fastnc.ULPM(3, 2, 4), log10_time=2).save(tmp_path / "short.npz")
    done = invoke("plot", short, "--out", tmp_path / "figures")
    assert done.exit_code == 0 and "No short-flow.png: " in done.output
    assert "short-margin.png" in done.output
    # A flow of another loss has the figure of any run.
    other = fastnc.flow(fastnc.ULPM(3, 2, 4, loss="squared"), 2.0).save(tmp_path / "other.npz")
    done = invoke("plot", other, "--out", tmp_path / "figures")
    assert done.exit_code == 0 and "other-figure2.png" in done.output, done.output
    # Where a run has none, the exit status says so, and what stood there stays.
    early = fastnc.descend(fastnc.ULPM(3, 2, 4), epochs=3).save(tmp_path / "early.npz")
    done = invoke("plot", early, "--out", tmp_path / "no")
    assert done.exit_code == 1 and not (tmp_path / "no").exists()
    assert f"no figure could be drawn of {early}." in done.output
    done = invoke("plot", early, other, "--out", tmp_path / "figures")
    assert done.exit_code == 1 and "other-figure2.png" in done.output
    refused = invoke("plot", tmp_path)
    assert refused.exit_code == 2
    assert "`RUN` must be a file or the folder of one;" in refused.output
    assert "holds no run.npz and no runs.npz" in refused.output
    missing = invoke("plot", short, tmp_path / "gone.npz", "--out", tmp_path / "none")
    assert missing.exit_code == 2 and "gone.npz is none." in missing.output
    assert not (tmp_path / "none").exists()


@pytest.mark.usefixtures("rendered")
def test_every_file_says_what_made_it(tmp_path):
    """A run in its own file, figures in theirs, tables in one beside them."""
    assert invoke(*SHORT, "--out", tmp_path).exit_code == 0
    (tmp_path / "mine.json").write_text("[]")
    features = tmp_path / "features.npz"
    np.savez(features, features=np.eye(8)[:, :3], labels=np.arange(8) % 2)
    assert invoke("metrics", features, "--out", tmp_path).exit_code == 0
    held = json.loads((tmp_path / "provenance.json").read_text())
    assert sorted(held) == [
        "figure2.pdf", "figure2.png", "metrics.json", "metrics.pdf", "metrics.png", "metrics.tex",
        "run.csv",
    ]  # fmt: skip
    made = fastnc.Trajectory.load(tmp_path / "run.npz").about["provenance"]
    for entry in held.values():
        assert entry["command"][0] == "fastnc" and made.items() <= entry.items()
    line = f"fastnc {fastnc.__version__}; commit {made['commit']}; processor {made['processor']}; "
    with Image.open(tmp_path / "figure2.png") as image:
        assert line in image.text["Source"]
    assert f"% {line}" in (tmp_path / "metrics.tex").read_text()
    # A file that is no such list is replaced; entries of files that are gone go with them.
    (tmp_path / "provenance.json").write_text("[1]")
    (tmp_path / "run.csv").unlink()
    assert noted(tmp_path, [features])[-1] == tmp_path / "provenance.json"
    assert list(json.loads((tmp_path / "provenance.json").read_text())) == ["features.npz"]


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
