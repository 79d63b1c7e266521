"""bench/gpu_report.py: a stage that hangs or fails ends, and what was known by then is kept."""

import csv
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="Triton is for Linux only")
BENCH = Path(__file__).parent.parent.parent / "bench"

# Stages in the place of `gpu_stages.py`; the one that hangs has a child that would outlive it.
STAND_IN = """
import subprocess, sys, time
name = sys.argv[1]
print(f"{name},a case,a number,1,ms,,yes", flush=True)
print("what a library says of itself, no row", flush=True)
if name == "hangs":
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    time.sleep(60)
sys.exit(name == "fails")
"""


@pytest.fixture
def gpu_report(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu_report

    yield gpu_report
    del sys.modules["gpu_report"]


def test_what_is_known_is_kept_whatever_a_stage_does(gpu_report, tmp_path):
    script, path = tmp_path / "stages.py", tmp_path / "report.csv"
    script.write_text(STAND_IN)
    stages = [gpu_report.Stage(n, 1.0) for n in ("hangs", "fails", "ends", "never")]
    stages[2] = gpu_report.Stage("ends", 30.0)
    stages[3] = gpu_report.Stage("never", 0.0)
    command = [sys.executable, str(script)]
    began = time.monotonic()
    assert gpu_report.report(stages, command, path, 60.0, False) == 1
    assert time.monotonic() - began < 30.0
    with path.open() as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == gpu_report.COLUMNS
    told = {row[0]: (row[2], row[6]) for row in rows if row[1] == ""}
    assert told["hangs"] == ("stopped at its limit", "no")
    assert told["ends"] == ("ended", "yes") and told["never"] == ("not reached", "no")
    # A busy machine may not let it fail within its second.
    assert told["fails"][1] == "no"
    assert ["ends", "a case", "a number", "1", "ms", "", "yes"] in rows


def test_the_limits_fit_into_twelve_minutes(gpu_report):
    assert sum(stage.limit for stage in gpu_report.STAGES) <= 12 * 60 - gpu_report.SPARE
    assert [stage.name for stage in gpu_report.STAGES][:4] == ["warm", "tests", "bits", "errors"]


def test_every_stage_has_a_function(gpu_report, monkeypatch):
    import gpu_stages

    assert list(gpu_stages.STAGES) == [stage.name for stage in gpu_report.STAGES]
    del sys.modules["gpu_stages"]


def test_a_dry_run_of_one_stage(tmp_path):
    command = [sys.executable, BENCH / "gpu_report.py", "--dry-run", "--only", "errors"]
    done = subprocess.run(
        [*command, "--csv", tmp_path / "report.csv"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "r by row" in (tmp_path / "report.csv").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("script", ["gpu.py", "gpu_report.py"])
def test_without_a_gpu_it_says_what_can_be_done(script):
    done = subprocess.run([sys.executable, BENCH / script], capture_output=True, text=True)
    assert done.returncode == 2
    assert "torch sees no CUDA device; --dry-run" in done.stdout
