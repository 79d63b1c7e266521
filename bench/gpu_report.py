"""Twelve minutes on a machine with a GPU: what is right, then how fast, then what would be faster.

    python bench/gpu_report.py [--csv PATH] [--minutes 12] [--only STAGE ...]
    python bench/gpu_report.py --dry-run      toy sizes on the CPU, in Triton's interpreter

A stage is a process of its own with a limit of its own (`gpu_stages.py`): one that hangs is ended
with all that it started, and the next one begins. A row is in the file as soon as it is known, so
that whatever happens to the machine, what was measured until then is there.

| stage | what it tells |
|---|---|
| warm | every kernel of the later stages compiled, by several processes at once |
| tests | the interpreter's tests on the GPU |
| bits | NaN of any pattern shows, and a second run has the same bits, in every form |
| errors | r, dH and dW, row by row, beside float64: d = 512 and 4096, margins 20, 40 and 80 |
| table | `gpu.py`: every kernel beside its floor and its peers, the compensated step too |
| descend | epochs a second of `descend(device="cuda")` beside the kernel's own time |
| tune | candidates beside what is shipped, and other tiles for the slowest kernels |
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

COLUMNS = ("stage", "case", "what", "value", "unit", "wanted", "holds")
HERE = Path(__file__).parent
# Seconds for the last rows, and for what was killed to be gone.
SPARE = 5.0


class Stage(NamedTuple):
    """Its name, and for how many seconds it may run."""

    name: str
    limit: float


STAGES = (
    Stage("warm", 75.0), Stage("tests", 130.0), Stage("bits", 40.0), Stage("errors", 90.0),
    Stage("table", 200.0), Stage("descend", 70.0), Stage("tune", 110.0),
)  # fmt: skip


def main() -> int:
    names = [stage.name for stage in STAGES]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, default=Path("gpu_report.csv"), help="where rows go")
    parser.add_argument("--minutes", type=float, default=12.0, help="for everything")
    parser.add_argument("--only", nargs="+", choices=names, help="these stages alone")
    parser.add_argument("--dry-run", action="store_true", help="toy sizes, interpreted on the CPU")
    given = parser.parse_args()
    if not given.dry_run:
        import torch

        if not torch.cuda.is_available():
            print("bench/gpu_report.py: torch sees no CUDA device; --dry-run needs none.")
            return 2
    stages = [stage for stage in STAGES if given.only is None or stage.name in given.only]
    command = [sys.executable, str(HERE / "gpu_stages.py")]
    # The limits are a GPU's: an interpreter on a busy CPU may take longer for its toys.
    patience = 10.0 if given.dry_run else 1.0
    stages = [stage._replace(limit=stage.limit * patience) for stage in stages]
    return report(stages, command, given.csv, given.minutes * 60.0 * patience, given.dry_run)


def report(stages: list[Stage], command: list[str], path: Path, seconds: float, dry: bool) -> int:
    """Run the stages within so many seconds; 1 if a row does not hold or a stage did not end."""
    end = time.monotonic() + seconds - SPARE
    bad = 0
    with path.open("w", newline="") as file:
        writer = csv.writer(file)

        def write(*row: object) -> None:
            nonlocal bad
            writer.writerow(row)
            file.flush()
            os.fsync(file.fileno())
            print("  ".join(f"{x!s:<10}" for x in row), flush=True)
            bad += row[-1] == "no"

        write(*COLUMNS)
        for stage in stages:
            limit = min(stage.limit, end - time.monotonic())
            if limit <= 0.0:
                write(stage.name, "", "not reached", "", "", "", "no")
                continue
            began = time.monotonic()
            code = run(stage, [*command, stage.name, *(["--dry-run"] if dry else [])], limit, write)
            took = round(time.monotonic() - began, 1)
            ending = {0: "ended", None: "stopped at its limit"}.get(code, f"failed with {code}")
            # To be stopped is how the tuning ends.
            fine = code == 0 or (code is None and stage.name == "tune")
            write(
                stage.name, "", ending, took, "s", f"at most {limit:.0f}", "yes" if fine else "no"
            )
    print(f"Written: {path}")
    return int(bad > 0)


def run(stage: Stage, command: list[str], limit: float, write) -> int | None:
    """One stage: its exit code, or None where it was stopped."""
    end = time.monotonic() + limit
    # Of its own group, so that a kill takes what it started too.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                lines.put(line)
        lines.put(None)

    # A thread that waits for a process which no kill ends must not keep this one.
    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    while True:
        try:
            line = lines.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            break
        if line is None:
            break
        row = next(csv.reader([line]), [])
        if len(row) == len(COLUMNS) and row[0] == stage.name:
            write(*row)
        else:
            print(f"    {line.rstrip()}", flush=True)
    try:
        code: int | None = process.wait(timeout=max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        code = None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # One that hangs in the driver may not even die: then the next stage begins beside it.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=2.0)
    reader.join(timeout=1.0)
    return code


if __name__ == "__main__":
    sys.exit(main())
