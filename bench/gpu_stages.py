"""The stages of `gpu_report.py`, each in a process that it starts: rows of CSV on standard output.

python bench/gpu_stages.py STAGE [--dry-run]
"""

from __future__ import annotations

import csv
import itertools
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TESTS = HERE.parent / "tests"
# case, what, value, unit, wanted, holds
Row = tuple[Any, ...]
# Processes that compile, or test, at once.
PROCESSES = 8


def main(name: str, dry: bool) -> int:
    writer = csv.writer(sys.stdout)
    bad = 0
    for row in STAGES[name](dry):
        writer.writerow((name, *row))
        sys.stdout.flush()
        bad += row[-1] == "no"
    return int(bad > 0)


def verdict(value: float, most: float) -> str:
    """Whether an error is at most so large; that of a NaN is not."""
    return "yes" if value <= most else "no"


def prepared(dry: bool) -> str:
    """The device; in a dry run Triton interprets, and the CPU passes for a GPU."""
    sys.path[:0] = [str(HERE), str(TESTS)]
    if not dry:
        return "cuda"
    os.environ["TRITON_INTERPRET"] = "1"
    import interpreted

    interpreted.play_a_gpu(setattr)
    return "cpu"


def warm(dry: bool) -> Iterator[Row]:
    """Each later call once, on few samples, in several processes: what compiles is then cached."""
    if not dry and os.environ.get("FASTNC_WARM") is None:
        processes = [
            subprocess.Popen(
                [sys.executable, __file__, "warm"], env={**os.environ, "FASTNC_WARM": str(i)}
            )
            for i in range(PROCESSES)
        ]
        codes = [process.wait() for process in processes]
        yield "", "processes that compiled", codes.count(0), "", PROCESSES, verdict(sum(codes), 0)
        return
    device = prepared(dry)
    import gpu_rows
    import gpu_tiles

    share = int(os.environ.get("FASTNC_WARM", "0"))
    cases = gpu_rows.DRY[:1] if dry else gpu_rows.OBJECTIVES
    n = 0
    for place, (name, K, d, N, dtype) in enumerate(cases):
        few = min(N, 4096)
        for row in gpu_rows.objective(name, K, d, few, dtype, device, dry):
            n += 1
            if row.who.startswith("fastnc") and (dry or (place + n) % PROCESSES == share):
                row.call()
        for _, _, call in gpu_tiles.of_candidates(K, d, few, dtype, device):
            n += 1
            if dry or (place + n) % PROCESSES == share:
                call()
    yield "", "calls compiled", n, "", "", "yes"


def tests(dry: bool) -> Iterator[Row]:
    """The interpreter's tests on the GPU."""
    files = sorted(str(p) for p in TESTS.rglob("test_*_gpu.py"))
    environment = {**os.environ, "FASTNC_TEST_DEVICE": "cuda"}
    options = ["-n", str(PROCESSES)]
    if dry:
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        files, options = [str(TESTS / "kernels" / "test_softmax_gpu.py")], ["-n0"]
    options += ["-v", "--tb=line", "-p", "no:cacheprovider", "-o", "addopts=--strict-markers"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, *files], env=environment, cwd=HERE.parent,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    passed = failed = 0
    for line in process.stdout:
        found = re.search(r"\b(PASSED|FAILED|ERROR)\b", line)
        test = re.search(r"tests/\S+::\S+", line)
        if not (found and test) or line.startswith(("FAILED", "ERROR")):
            if re.search(r"Error|error|assert", line):
                sys.stdout.write(line)
            continue
        passed += found.group(1) == "PASSED"
        if found.group(1) != "PASSED":
            failed += 1
            yield test.group(0), "failed", 1, "", 0, "no"
    code = process.wait()
    yield "", "tests that passed", passed, "", "all", "yes" if code == 0 and passed else "no"


# As int32: what CUDA makes, all bits, what the CPU makes.
PATTERNS = {"0x7fffffff": 0x7FFFFFFF, "0xffffffff": -1, "0x7fc00000": 0x7FC00000}


def bits(dry: bool) -> Iterator[Row]:
    """NaN of any pattern shows, and a second run has the same bits, in every form."""
    device = prepared(dry)
    import torch
    from gpu_candidates import candidates, planned
    from gpu_exact import DOUBLE, SINGLE, data

    from fastnc.kernels.gpu import cross_entropy as kernels
    from fastnc.kernels.gpu import hessian as hessian_gpu
    from fastnc.kernels.gpu.plan import EXACT, FAST

    shapes = [(K, 512, 5000) for K in (10, 100, 1000)]
    if dry:
        shapes = [(3, 5, 7), (130, 4, 9)]

    def run(form: str, tier: str, W: Any, H: Any, y: Any) -> list[Any]:
        loss = torch.full((1,), torch.nan, dtype=DOUBLE, device=device)
        out = [torch.full_like(x, torch.nan) for x in (W, H)]
        scale = 1.0 / len(H)
        match form:
            case "gradients":
                kernels.loss_and_grads(W, H, y, scale, loss, *out, tier)
            case "log domain":
                kernels.log_loss_and_grads(W, H, y, loss, *out, tier)
            case "step":
                out = [W.clone(), H.clone()]
                kernels.gradient_step(*out, y, scale, 0.5, loss, tier)
            case "compensated step":
                out = [W.clone(), H.clone(), torch.zeros_like(W), torch.zeros_like(H)]
                kernels.step(*out, y, scale, 0.5, loss, tier)
            case _:
                hessian_gpu.hessian_vector_product(W, H, y, W, H, scale, *out, tier)
                return out
        return [*out, loss]

    tiers = ((EXACT, SINGLE), (FAST, SINGLE), (EXACT, DOUBLE))
    forms = ("gradients", "log domain", "step", "compensated step", "Hessian product")
    if dry:
        tiers, forms = tiers[:1], forms[:1]

    def of_form(form: str, case: str, tier: str, W: Any, H: Any, y: Any) -> Iterator[Row]:
        once, again = run(form, tier, W, H, y), run(form, tier, W, H, y)
        same = all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
        yield case, "the same bits twice", int(same), "", 1, "yes" if same else "no"
        for name, pattern in PATTERNS.items() if H.dtype == SINGLE else ():
            bad = H.clone()
            bad.view(torch.int32)[3, 2] = pattern
            found = run(form, tier, W, bad, y)
            # Every class takes part in that sample, and so does the sum of the losses.
            shows = not any(bool(x.isfinite().all(-1).any()) for x in (found[0], found[1][3:4]))
            shows = shows and not bool(found[-1].isfinite().all())
            yield case, f"NaN {name} shows", int(shows), "", 1, "yes" if shows else "no"

    for (K, d, N), (tier, dtype), form in itertools.product(shapes, tiers, forms):
        if form == "compensated step" and (tier, dtype) != (EXACT, SINGLE):
            continue
        W, H, y = data(K, d, N, dtype, device)
        case = f"{form}, K={K}, {tier}, {str(dtype).removeprefix('torch.')}"
        yield from of_form(form, case, tier, W, H, y)
        # The forms that `warm` has compiled.
        timed = tier == EXACT and form in ("gradients", "compensated step")
        others = candidates(W, H) if timed else ()
        for name, shape in others:
            with planned(shape):
                yield from of_form(form, f"{case}, {name}", tier, W, H, y)


def errors(dry: bool) -> Iterator[Row]:
    """By row beside float64."""
    device = prepared(dry)
    import gpu_errors

    for case, what, error, wanted in gpu_errors.errors(device, dry):
        holds = verdict(error, wanted)
        yield case, what, f"{error:.3g}", "relative", f"at most {wanted:.2g}", holds


def table(dry: bool) -> Iterator[Row]:
    """What `gpu.py` measures, line by line."""
    device = prepared(dry)
    from gpu import measure, measure_floors
    from gpu_rows import DRY, everything, objective

    floors = measure_floors(device, dry)
    for name, rate in floors.items():
        yield "floor", name, f"{rate:.4g}", "1/s", "", ""

    def ordered() -> Iterator[Any]:
        """Ours first: peers are compiled too, which takes longer than all else."""
        for ours in (True, False):
            rows = everything(device, dry)
            if dry:
                name, K, d, N, dtype = DRY[0]
                rows = itertools.islice(objective(name, K, d, N, dtype, device, dry), 3)
            yield from (row for row in rows if row.who.startswith("fastnc") == ours)

    for row in ordered():
        ours = row.who.startswith("fastnc")
        try:
            line, error = measure(row, floors, dry)
        except Exception as failure:
            why = str(failure).splitlines()[0][:80]
            yield row.case, row.who, why, "", "", "no" if ours else ""
            continue
        milliseconds, fraction = line[2], line[6]
        holds = verdict(error, row.tolerance) if row.tolerance else ""
        yield row.case, f"{row.who}, time", f"{milliseconds:.4g}", "ms", "", ""
        yield row.case, f"{row.who}, of {row.bound}", f"{fraction:.3f}", "", "", ""
        yield row.case, f"{row.who}, error", f"{error:.3g}", "", f"at most {row.tolerance:g}", holds


def descend(dry: bool) -> Iterator[Row]:
    """Epochs a second of whole runs beside the kernel's own time."""
    device = prepared(dry)
    import torch

    import fastnc
    from fastnc.dynamics.steppers.cuda import CudaDescent

    cases = [(5, 10, 20), (100, 100, 128), (100, 2000, 512), (1000, 100, 512)]
    if dry:
        cases = [(17, 1, 3)]
    for (K, n, d), dtype in itertools.product(cases, ("float32", "float64")):
        model = fastnc.ULPM(K, n, d)
        stepper = CudaDescent(*model.init(0, dtype), model.y, 1.0)
        repeats = 2 if dry else 64

        def epochs_in(stepper: Any, repeats: int) -> float:
            stepper.make(repeats)
            wait(device)
            began = time.perf_counter()
            stepper.make(repeats)
            wait(device)
            return time.perf_counter() - began

        alone = repeats / epochs_in(stepper, repeats)
        epochs = 4 if dry else max(100, int(4.0 * alone))
        marks: list[tuple[float, float]] = []

        def mark(row: dict[str, float], marks: Any = marks) -> None:
            marks.append((row["epoch"], time.perf_counter()))

        run = fastnc.descend(
            model, 1.0, epochs, dtype=dtype, device="cuda", snapshots=1, callback=mark
        )
        (first, began), (last, ended) = marks[-2:]
        began_measure = time.perf_counter()
        stepper.measure()
        snapshot = time.perf_counter() - began_measure
        rate = (last - first) / max(ended - began - snapshot, 1e-9)
        case = f"K={K}, n={n}, d={d}, {dtype}"
        yield case, "epochs of the kernel", f"{alone:.5g}", "1/s", "", ""
        yield case, "epochs of the run", f"{rate:.5g}", "1/s", "", ""
        holds = "" if dry else ("yes" if rate >= 0.95 * alone else "no")
        yield case, "run over kernel", f"{rate / alone:.3f}", "", "at least 0.95", holds
        yield case, "a snapshot", f"{snapshot * 1e3:.4g}", "ms", "", ""
        yield case, "margin at the end", f"{run['margin'][-1]:.6g}", "", "", ""
        if not dry:
            peak = torch.cuda.max_memory_allocated() / 2**20
            yield case, "peak memory", f"{peak:.0f}", "MiB", "", ""


def wait(device: str) -> None:
    """Until the device has done what it was told."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def tune(dry: bool) -> Iterator[Row]:
    """Candidates, and other tiles for the slowest kernels: no row holds or fails."""
    device = prepared(dry)
    import gpu_tiles

    for case, what, milliseconds in gpu_tiles.variants(device, dry):
        yield case, what, milliseconds, "ms", "", ""


STAGES = {
    "warm": warm, "tests": tests, "bits": bits, "errors": errors, "table": table,
    "descend": descend, "tune": tune,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], "--dry-run" in sys.argv))
