"""Where a result was made: in every run, in its file, and never guessed for a file without it."""

import json
import subprocess
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest

import fastnc
from fastnc._core import environment

ROOT = Path(__file__).parents[2]


def test_a_run_says_where_it_was_made(tmp_path):
    run = fastnc.descend(fastnc.ULPM(3, 2, 4), epochs=2)
    made = run.about["provenance"]
    assert made["version"] == fastnc.__version__
    assert f"numpy {np.__version__}" in made["libraries"].split(", ")
    today = datetime.now(timezone.utc).date()
    assert made["date"] in {today.isoformat(), (today - timedelta(1)).isoformat()}
    assert made["processor"] and made["python"] and made["system"]
    assert fastnc.Trajectory.load(run.save(tmp_path / "run.npz")).about == run.about


def test_a_file_without_it_gets_none(tmp_path):
    run = fastnc.descend(fastnc.ULPM(3, 2, 4), epochs=2)
    with np.load(run.save(tmp_path / "run.npz")) as archive:
        arrays = dict(archive)
    about = json.loads(str(arrays["about"]))
    del about["provenance"]
    np.savez(tmp_path / "old.npz", **{**arrays, "about": np.array(json.dumps(about))})
    assert fastnc.Trajectory.load(tmp_path / "old.npz").about["provenance"] == {}


def test_commit(monkeypatch, tmp_path):
    git = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    if git.returncode:
        pytest.skip("no checkout")
    assert git.stdout.startswith(environment.commit().rstrip("+"))
    assert environment.commit()
    # An installed package stands in no checkout, and a machine may have no git.
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.commit() == ""
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "a" / "b" / "c.py"))
    assert environment.commit() == ""
    assert environment.installed("no-such-distribution") == ""
