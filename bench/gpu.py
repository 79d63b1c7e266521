"""On a machine with a GPU: fastnc's CUDA kernels checked against float64, then timed beside peers.

    python bench/gpu.py [--csv PATH]     checks, then one table: less than eight minutes
    python bench/gpu.py --dry-run        toy sizes on the CPU, in Triton's interpreter
    python bench/gpu.py --compile-only   registers, stack and shared memory of every kernel

Floors are measured here, in this process: a copy, and matrix products in bf16, tf32 (what peers
may use) and float64.
`fraction` is the achieved share of the floor that bounds the case; a product in parts reaches a
part of bf16's rate, and the fraction is of that part. A case whose error is beyond its tolerance
stops the run before anything is timed.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
import time
from pathlib import Path

RESOURCES = ("registers", "stack", "shared", "wgmma", "mma", "hazards")
COLUMNS = ("case", "who", "ms", "TFLOP/s", "GB/s", "bound", "fraction", "error", "peak MiB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, help="also write the table here")
    parser.add_argument("--dry-run", action="store_true", help="toy sizes, interpreted on the CPU")
    parser.add_argument("--compile-only", action="store_true", help="no GPU is needed")
    parser.add_argument("--capability", type=int, default=90, help="of --compile-only: 80 or 90")
    given = parser.parse_args()
    if given.compile_only:
        columns, lines = ("kernel", *RESOURCES), []
        worst = compile_all(given.capability, lines)
    else:
        if given.dry_run:
            # Read where triton is imported, which is below.
            os.environ["TRITON_INTERPRET"] = "1"
        columns, lines = COLUMNS, []
        worst = measure_all(given.dry_run, lines)
    if given.csv:
        with given.csv.open("w", newline="") as file:
            csv.writer(file).writerows([columns, *lines])
        print(f"Written: {given.csv}")
    return worst


def show(line: tuple) -> None:
    print(
        "  ".join(f"{x:10.3g}" if isinstance(x, float) else f"{x!s:<10}" for x in line), flush=True
    )


def compile_all(capability: int, lines: list) -> int:
    """Every configuration ahead of time; 1 if one spills, is too large, has no tensor cores, or
    overwrites what a product still reads."""
    tests = Path(__file__).parent.parent / "tests"
    sys.path.insert(0, str(tests))
    import ahead_gpu

    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        for configuration in ahead_gpu.configurations(capability):
            compiled = ahead_gpu.compile_ahead(configuration, capability)
            found = ahead_gpu.resources(compiled, folder)
            core = configuration.core(capability)
            fits = (
                found["stack"] <= configuration.stack
                and found["shared"] <= ahead_gpu.SHARED[capability]
            )
            fits = fits and (found[core] > 0 or not configuration.tensor_cores)
            fits = fits and not found["hazards"]
            bad += not fits
            lines.append((configuration.name, *found.values()))
            show((*found.values(), "" if fits else "BAD", configuration.name))
    print(f"{len(lines)} configurations for sm_{capability}, {bad} bad.")
    return int(bad > 0)


def measure_all(dry: bool, lines: list) -> int:
    """Checks all, then times all; 1 if an error is beyond its tolerance."""
    import torch

    if not dry and not torch.cuda.is_available():
        print("bench/gpu.py: torch sees no CUDA device; --dry-run and --compile-only need none.")
        return 2
    device = "cpu" if dry else "cuda"
    if dry:
        sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
        import interpreted  # noqa: F401
    sys.path.insert(0, str(Path(__file__).parent))
    from gpu_rows import everything

    floors = measure_floors(device, dry)
    place = "the CPU, interpreted" if dry else torch.cuda.get_device_name()
    print(f"{place}: " + ", ".join(f"{k} {v:.3g}/s" for k, v in floors.items()))
    show(COLUMNS)
    bad = 0
    for row in everything(device, dry):
        # A peer that fails says so in its line; ours must not.
        try:
            line, error = measure(row, floors, dry)
        except Exception as failure:
            if row.who.startswith("fastnc"):
                raise
            line, error = (row.case, row.who, str(failure).splitlines()[0][:60]), 0.0
        lines.append(line)
        show(line)
        if row.tolerance and not error <= row.tolerance:
            print(f"BAD: an error of {error:.2g} is beyond {row.tolerance:.2g}")
            bad = 1
    return bad


def measure(row, floors: dict, dry: bool) -> tuple[tuple, float]:
    """A line of the table, and the error of the result."""
    import torch

    error, seconds = float("nan"), 0.0
    if row.result is not None:
        start = time.perf_counter()
        result = row.result()
        # Interpreted, a call takes a second: one that was made is not made again.
        seconds = time.perf_counter() - start if dry and row.result is row.call else 0.0
        error = error_of(result, row.exact)
    peak = 0.0
    if not dry:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        row.call()
        torch.cuda.synchronize()
        peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    seconds = seconds or seconds_of(row.call, dry, row.graph)
    rate = row.bytes if row.bound == "copy" else row.flops
    fraction = rate / seconds / (floors[row.bound] * row.share)
    line = (
        row.case, row.who, seconds * 1e3, row.flops / seconds / 1e12, row.bytes / seconds / 1e9,
        row.bound, fraction, error, peak,
    )  # fmt: skip
    return line, error


def error_of(result, exact) -> float:
    """The largest error of any output in units of its largest entry."""
    worst = 0.0
    for got, want in zip(result, exact, strict=True):
        scale = want.abs().max().double()
        worst = max(worst, float((got.double() - want.double()).abs().max() / scale))
    return worst


def seconds_of(call, dry: bool, graph: bool) -> float:
    """Median seconds of a call, out of a CUDA graph where asked for."""
    if dry:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    import torch
    from triton.testing import do_bench

    if graph:
        call()
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            call()
        call = captured.replay
    return do_bench(call, warmup=25, rep=150, return_mode="median") / 1e3


def measure_floors(device: str, dry: bool) -> dict[str, float]:
    """Bytes a second of a copy, FLOP a second of square products."""
    import torch

    size = 64 if dry else 8192
    source = torch.empty(size * size * 4, device=device)
    target = torch.empty_like(source)
    floors = {"copy": 8.0 * source.numel() / seconds_of(lambda: target.copy_(source), dry, False)}
    kinds = {"bf16": torch.bfloat16, "tf32": torch.float32, "float64": torch.float64}
    for name, dtype in kinds.items():
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        a = torch.randn((size, size), device=device).to(dtype)
        floors[name] = 2.0 * size**3 / seconds_of(lambda a=a: a @ a, dry, False)
        torch.backends.cuda.matmul.allow_tf32 = before
    return floors


if __name__ == "__main__":
    sys.exit(main())
