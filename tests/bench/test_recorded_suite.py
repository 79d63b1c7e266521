"""bench/recorded_suite.py: asv's results as tables, and under a name that tells no paths."""

import importlib
import json
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent.parent / "bench"
HASH = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def suite(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCH)
    module = importlib.import_module("recorded_suite")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


def write(folder, name, date, result):
    """A file as asv writes it, as far as it is read."""
    folder.mkdir(exist_ok=True)
    (folder / "machine.json").write_text(json.dumps({"cpu": "A", "num_cpu": "2", "os": "Linux 6"}))
    run = {
        "commit_hash": HASH, "env_name": "existing-py_home_me_bin_python", "date": date,
        "python": "/home/me/bin/python", "params": {"python": "/home/me/bin/python"},
        "result_columns": ["result", "params", "version"],
        "results": result,
    }  # fmt: skip
    (folder / name).write_text(json.dumps(run))
    return folder / name


def test_the_last_run_of_each_machine_is_a_table(suite, tmp_path):
    result = {
        "bench_a.Time.time_step": [[2.5e-5, None, 3.0], [["'tiny'", "'wide'", "'huge'"]], "v"],
        "bench_b.track_share": [[1.25], [], "v"],
        "bench_c.failed": [None, [["1", "2"]], "v"],
    }
    units = {"bench_a.Time.time_step": "seconds", "bench_b.track_share": "times the floor"}
    named = {name: {"unit": unit} for name, unit in units.items()}
    (tmp_path / "benchmarks.json").write_text(json.dumps({**named, "version": 2}))
    write(tmp_path / "zen", "old.json", 1, {})
    last = write(tmp_path / "zen", "new.json", 2, result)
    assert suite.recorded() == [last]
    lines = suite.suite_table(last).splitlines()
    assert lines[0] == f"A, 2 threads, Linux 6; commit {HASH[:12]}, existing-py_home_me_bin_python."
    assert lines[4:] == [
        "| bench_a.Time.time_step | tiny | 25 us |",
        "| bench_a.Time.time_step | huge | 3 s |",
        "| bench_b.track_share |  | 1.25 times the floor |",
    ]


def test_a_path_is_no_name(suite, tmp_path):
    path = write(tmp_path / "zen", f"{HASH[:8]}-existing-py_home_me_bin_python.json", 1, {})
    renamed = suite.rename(path)
    assert not path.exists() and renamed.name.startswith(f"{HASH[:8]}-python3.")
    assert "home" not in renamed.read_text() and "home" not in renamed.name


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (3e-10, "seconds", "0.3 ns"),
        (0.0, "seconds", "0 ns"),
        (1.5e-3, "seconds", "1.5 ms"),
        (61.0, "seconds", "61 s"),
        (2, "evaluations of the gradients", "2 evaluations of the gradients"),
    ],
)
def test_units(suite, value, unit, text):
    assert suite.with_unit(value, unit) == text


def test_it_looks_where_asv_writes():
    module = BENCH / "recorded_suite.py"
    config = json.loads((BENCH / "asv.conf.json").read_text())
    assert config["results_dir"] == "results/asv" and '"results" / "asv"' in module.read_text()


def test_it_measures_all_threads():
    """A forked process has one thread for its kernels: each benchmark starts anew."""
    assert json.loads((BENCH / "asv.conf.json").read_text())["launch_method"] == "spawn"
