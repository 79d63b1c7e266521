"""bench/gpu.py at toy sizes: every case runs, agrees with float64, and is written as CSV."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is for Linux only")
SCRIPT = Path(__file__).parent.parent.parent / "bench" / "gpu.py"


def run(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True)


def test_the_dry_run_checks_and_tabulates_everything(tmp_path):
    done = run("--dry-run", "--csv", tmp_path / "gpu.csv")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    with (tmp_path / "gpu.csv").open() as file:
        header, *lines = csv.reader(file)
    assert header[:3] == ["case", "who", "ms"]
    cases = {line[0].split(",")[0].split(" ")[0] for line in lines}
    assert {
        "grads",
        "step",
        "Hessian",
        "terminal",
        "class",
        "centred",
        "nearest",
        "second",
    } <= cases
    ours = [line for line in lines if line[1].startswith("fastnc")]
    # Timed lines of ours that compare nothing with float64 are whole epochs alone.
    assert {line[0] for line in ours if line[7] == "nan"} <= {"2 epochs, K=3"}
    assert len(ours) >= 15 and all(float(line[2]) > 0.0 for line in ours)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_can_be_done():
    done = run()
    assert done.returncode == 2
    assert "torch sees no CUDA device; --dry-run and --compile-only need none" in done.stdout
