"""The Triton kernels without a GPU: all of test_*_gpu.py, in a process whose Triton interprets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is for Linux only")


def test_every_kernel_under_the_interpreter():
    here = Path(__file__).parent.parent
    files = sorted(str(p) for p in here.rglob("test_*_gpu.py"))
    assert len(files) >= 9
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n0", "-p", "no:cacheprovider", "--tb=short", *files],
        # Decided when triton is imported: other tests must find it compiling.
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=here.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
