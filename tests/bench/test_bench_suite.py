"""asv finds the whole suite: one module that fails to import would hide all others."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("asv")
BENCH = Path(__file__).parent.parent.parent / "bench"


def test_asv_finds_every_benchmark():
    config = BENCH / "asv.conf.json"
    command = [sys.executable, "-m", "asv", "check", "--config", config, "--python=same"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=BENCH)
    assert done.returncode == 0 and "No problems found" in done.stdout, done.stdout + done.stderr


def test_a_regime_is_reported_as_it_was_measured(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    objective = importlib.import_module("suite.bench_objective")
    floors = importlib.import_module("roofline").Floors(1e11, 2e11, 1e10, 1e9)
    found = {"hundred_classes": 0.1}, floors
    # 6 K N d = 7.68e9 operations in 0.1 s; at 2e11 a second 0.0384 s, and 1e7 exponentials 0.01 s.
    assert objective.Regimes().track_rate(found, "hundred_classes") == pytest.approx(76.8)
    share = objective.Regimes().track_times_the_floor(found, "hundred_classes")
    assert share == pytest.approx(0.1 / 0.0484)
