"""The folder of `--out`: what is refused leaves nothing, what is replaced is moved aside."""

import errno
import inspect
import json
import os
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from typer.testing import CliRunner

import fastnc
from fastnc.cli import COMMANDS, build
from fastnc.cli._folder import PROVENANCE
from fastnc.paper import minority_collapse, table1, verify
from fastnc.plots import minority as bars

SMALL = ("--n-classes", 3, "--n-per-class", 2, "--dim", 4)
# Of each command, what is refused at once, and after its folder is there.
REFUSED = [
    ("ulpm", "--lr", -1),
    ("ulpm", "--class-sizes", "4"),
    ("ulpm", "--device", "tpu"),
    ("flow", "--rtol", 0),
    ("flow", "--loss", "focal", "--log10-time", 9),
    ("sweep", "--seeds", 0),
    ("sweep", "--method", "flow", "--lr", 2),
    ("compare", "nonsense"),
    ("compare", "gd", "--threads", 0),
    ("train", "--data", "nowhere"),
    ("train", "--schedule-args", "[]"),
    ("train", "--start", "nowhere.pt"),
    ("metrics", "nowhere.npz"),
    ("metrics", "a.npz", "--about", "b.npz", "--test", "c.npz"),
    ("verify", "--seed", -1),
    ("table1", "--n-classes", 1),
    ("table1", "--starts", 0),
    ("plot", "nowhere.npz"),
    ("plot", "."),
]


def invoke(*arguments):
    return CliRunner().invoke(build(), [str(a) for a in arguments])


def held(folder):
    """Every file under a folder and its bytes; None for a folder."""
    return {
        path.relative_to(folder): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def quick(monkeypatch):
    """One claim of `verify` and one row of `table1`: their work is tested elsewhere."""
    holds = verify.Finding("Lemma 0", "one is one", "1", 0.0, 1e-3, "none", "")
    monkeypatch.setattr(verify, "check", lambda *_, **__: [holds])
    monkeypatch.setattr(table1, "fit", partial(table1.fit, only=["sphere"]))
    monkeypatch.setattr(minority_collapse, "minority_angles", lambda *_, **__: None)
    monkeypatch.setattr(bars, "minority_collapse", lambda *_: Figure())


def test_every_command_with_a_folder_is_among_them():
    with_out = {
        name
        for name in COMMANDS
        if "out" in inspect.signature(getattr(import_module(f"fastnc.cli.{name}"), name)).parameters
    }
    assert {command for command, *_ in REFUSED} == with_out


@pytest.mark.parametrize("arguments", REFUSED, ids=lambda a: "-".join(map(str, a[:2])))
def test_what_is_refused_leaves_nothing(tmp_path, monkeypatch, arguments):
    """A new folder and its parents go again; one that was there stays, with all that is in it."""
    (tmp_path / "empty").mkdir()
    used = tmp_path / "used"
    used.mkdir()
    for name in ("run.npz", "checkpoint.npz", "metrics.json", "verify.csv", "table1.csv"):
        (used / name).write_text(name)
    (used / PROVENANCE).write_text(json.dumps({"run.npz": {"version": "1"}, "verify.csv": {}}))
    monkeypatch.chdir(tmp_path)
    before = held(tmp_path)
    for out in ("new", "a/b/c", "empty", "used", "empty/../new"):
        done = invoke(*arguments, "--out", out)
        assert done.exit_code == 2, done.output
        assert held(tmp_path) == before, out


def test_a_folder_that_cannot_be_made_leaves_no_parents(tmp_path):
    done = invoke("ulpm", *SMALL, "--out", tmp_path / "a" / "b" / ("x" * 300))
    assert done.exit_code == 2 and "`--out` must be a writable folder" in done.output
    assert held(tmp_path) == {}


@pytest.mark.parametrize(
    ("command", "later", "own"),
    [
        (("metrics", "f.npz"), ("metrics", "f.npz", "--min-count", 2), "metrics.json"),
        (("verify",), ("verify", "--seed", 1), "verify.csv"),
        (("table1",), ("table1", "--seed", 1), "table1.csv"),
        (("plot", "run.npz"), ("plot", "run.npz"), "run-figure2.png"),
    ],
    ids=["metrics", "verify", "table1", "plot"],
)
def test_a_rerun_moves_its_own_earlier_files_aside(tmp_path, monkeypatch, command, later, own):
    """They were replaced without a word. Other commands' files stay where they are."""
    quick(monkeypatch)
    monkeypatch.chdir(tmp_path)
    np.savez("f.npz", features=np.eye(8)[:, :3], labels=np.arange(8) % 2)
    fastnc.descend(fastnc.ULPM(3, 2, 4), epochs=20).save("run.npz")
    assert invoke("ulpm", *SMALL, "--epochs", 20, "--out", "o").exit_code == 0
    of_ulpm = held(Path("o"))
    assert invoke(*command, "--out", "o").exit_code == 0
    # Figures of the same run are the same file names: a run's own commands replace them all.
    before = held(Path("o"))
    said = json.loads(before[Path(PROVENANCE)])
    done = invoke(*later, "--out", "o")
    assert done.exit_code == 0, done.output
    assert done.output.count("Earlier results of o are now in o/earlier-1.") == 1
    aside, now = held(Path("o/earlier-1")), held(Path("o"))
    assert Path(own) in aside and Path(own) in now
    own_files = before.keys() - of_ulpm.keys()
    assert aside.keys() == own_files | {Path(PROVENANCE)}
    assert all(aside[path] == before[path] for path in own_files)
    assert all(now[path] == of_ulpm[path] for path in of_ulpm if path.name != PROVENANCE)
    # What is said of a file goes with it.
    of_aside = json.loads(aside[Path(PROVENANCE)])
    assert of_aside == {str(path): said[str(path)] for path in own_files}
    of_now = json.loads(now[Path(PROVENANCE)])
    assert of_now["run.csv"] == said["run.csv"] and own in of_now
    if command[0] != "plot":
        assert invoke("ulpm", *SMALL, "--epochs", 20, "--out", "o").exit_code == 0
        assert Path("o/earlier-2/run.npz").exists() and Path("o", own).exists()
        assert own in json.loads(Path("o", PROVENANCE).read_text())


def test_a_full_disk_moves_nothing(tmp_path, monkeypatch):
    """Earlier results can be moved and what is said of the others cannot be written."""
    assert invoke("ulpm", *SMALL, "--epochs", 5, "--out", tmp_path).exit_code == 0
    (tmp_path / "metrics.json").write_text("{}")
    said = json.loads((tmp_path / PROVENANCE).read_text())
    (tmp_path / PROVENANCE).write_text(json.dumps({**said, "metrics.json": {}}))
    before = held(tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    done = invoke("ulpm", *SMALL, "--epochs", 5, "--out", tmp_path)
    assert done.exit_code == 2 and "provenance.json' cannot be written: No space" in done.output
    assert held(tmp_path) == before


@pytest.mark.parametrize(
    ("command", "lost", "told"),
    [
        (("ulpm", *SMALL, "--epochs", 20), "run.csv", "margin_ratio"),
        (("flow", *SMALL, "--log10-time", 2), "run.csv", "margin_ratio"),
        (("sweep", *SMALL, "--epochs", 20, "--seeds", 2), "runs.csv", "median"),
        (("compare", "sign", *SMALL, "--epochs", 20, "--seeds", 2), "runs.csv", "medians at"),
        (("metrics", "f.npz"), "metrics.json", "within_class"),
        (("metrics", "f.npz"), "metrics.pdf", "within_class"),
        (("table1",), "table1.csv", "seconds\n"),
    ],
)
def test_a_disk_that_fills_up(tmp_path, monkeypatch, command, lost, told):
    """Tables are printed before anything is written; the file is named, and what there is."""
    monkeypatch.chdir(tmp_path)
    H = np.random.default_rng(0).standard_normal((6, 4))
    np.savez("f.npz", features=H, labels=np.repeat([0, 1, 2], 2))
    quick(monkeypatch)
    replace = os.replace

    def full(source, target):
        if Path(target).name == lost:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr("os.replace", full)
    done = invoke(*command, "--out", "o")
    assert told in done.output
    assert f"{lost}' cannot be written: No space left on device." in done.output
    if lost == "metrics.pdf":
        # The numbers are whole without it.
        assert done.exit_code == 0
        return
    assert done.exit_code == 2
    names = sorted(path.name for path in Path().glob("o/*"))
    assert names or command[0] in ("metrics", "table1")
    assert not names or f"'o' holds {', '.join(names)}." in done.output


def test_what_is_stopped_before_it_wrote_leaves_everything_where_it_was(tmp_path, monkeypatch):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "verify.csv").write_text("earlier")
    before = held(tmp_path)

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(verify, "check", stopped)
    for out in ("used", "new"):
        assert invoke("verify", "--out", tmp_path / out).exit_code == 130
        assert held(tmp_path) == before
