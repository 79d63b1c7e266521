"""fastnc beside NumPy, torch and JAX: interleaved, medians, one table.

    python bench/compare.py --regime hundred_classes [--quick] [--csv FILE] [--plot FILE]
    taskset -c 0 python bench/compare.py --clock cpu

The second form is for a machine that is not idle: every library finds one CPU, starts one thread,
and is charged the time that it ran, not the time that it waited for others.

Libraries take turns. A call that counts follows a pause, in which the threads of the library before
come to rest (they spin for a while, on cores that others need), and a call that does not count.

Per peer: milliseconds, GFLOP/s, the share of the floor of `roofline` (measured before and after,
the faster of the two), how many times as long as fastnc, the peak of memory beside the arguments
(Linux), and the largest relative error of grad_H at margin 30, where p_y rounds to 1 in float32 (1
means that nothing of the label's entry is left). A peer that is not installed, or refuses, is named
with its reason.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import gc
import time

import numpy as np
from peers import PEERS
from roofline import floors_around
from suite.cases import OBJECTIVES

import fastnc

COLUMNS = ("peer", "ms", "GFLOP/s", "of floor", "x fastnc", "extra MB", "error at margin 30")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
PAUSE = 0.05
REGIMES = {case.name: case for case in OBJECTIVES}


def terminal_error(make, dtype) -> float:
    """Relative error of every entry of grad_H where the wrong classes have e^-30 and less."""
    K, N = 4, 64
    W, y = np.eye(K, dtype=dtype), np.arange(N) % K
    H = (30.0 * np.eye(K)[y] - 0.25 * (np.arange(N) % 8)[:, None]).astype(dtype)
    exact = fastnc.loss_and_grads(W, H, y, impl="reference")[2]
    found = np.asarray(make(W, H, y, False)()[2], np.float64)
    return float((np.abs(found - exact) / np.abs(exact)).max())


def agrees(make, case, dtype) -> None:
    """A benchmark of something else is worth nothing: the first result must be the reference's."""
    W, H, y = case.arrays(dtype)
    W, H, y = W[:64], H[:128], y[:128] % min(64, len(W))
    exact = fastnc.loss_and_grads(W, H, y, impl="reference")
    for found, want in zip(make(W, H, y, False)(), exact, strict=True):
        found = np.asarray(found)
        if np.abs(found - want).max() > 1e-4 * np.abs(want).max():
            raise ValueError(f"off by {np.abs(found - want).max():.1e}")


def resident(field) -> float:
    """MB of this process: `VmRSS` now, `VmHWM` at most."""
    with open("/proc/self/status") as file:
        return next(float(line.split()[1]) for line in file if line.startswith(field)) / 1024


def extra_memory(call) -> float:
    """Peak MB beside the arguments of one call that has run before, its results included."""
    gc.collect()
    try:
        # What was freed and kept for later would be taken for memory in use.
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as file:
            # 5 sets the peak back to what is in use.
            file.write("5")
        before = resident("VmRSS")
        call()
        return resident("VmHWM") - before
    except (AttributeError, OSError):
        return float("nan")


def measure(case, names, dtype, rounds, clock):
    """Rows of the table, fastest first; and sentences about who did not take part."""
    W, H, y = case.arrays(dtype)
    calls, absent = {}, []
    for name in names:
        try:
            agrees(PEERS[name], case, dtype)
            calls[name] = PEERS[name](W, H, y, case.operation == "step")
            calls[name]()
        except Exception as reason:
            absent.append(f"{name}: {type(reason).__name__}: {str(reason).splitlines()[:1]}")
            calls.pop(name, None)
    times, rates = floors_around(lambda: _in_turn(calls, rounds, clock), dtype, clock)
    floor = rates.seconds(case, W.itemsize)
    medians = {name: float(np.median(t)) for name, t in times.items()}
    rows = [
        (
            name,
            1e3 * seconds,
            case.flops / seconds / 1e9,
            floor / seconds,
            seconds / medians.get("fastnc", np.nan),
            extra_memory(calls[name]),
            terminal_error(PEERS[name], dtype),
        )
        for name, seconds in sorted(medians.items(), key=lambda item: item[1])
    ]
    return floor, rows, absent


def _in_turn(calls, rounds, clock):
    """The times of every call, in seconds."""
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(PAUSE)
            call()
            start = clock()
            call()
            times[name].append(clock() - start)
    return times


def append(path, regime, rows) -> None:
    """One regime's rows at the end of a CSV file, under a header if it is new."""
    with open(path, "a", newline="") as file:
        writer = csv.writer(file)
        if not file.tell():
            writer.writerow(("regime", *COLUMNS))
        writer.writerows((regime, *row) for row in rows)


def plot(tables, path) -> None:
    """Share of the floor of every peer, a group of bars a regime."""
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row[0] for rows in tables.values() for row in rows))
    figure, axes = plt.subplots(figsize=(1.6 * len(tables) + 4, 4), layout="constrained")
    for i, name in enumerate(names):
        shares = [next((r[3] for r in rows if r[0] == name), np.nan) for rows in tables.values()]
        axes.bar(np.arange(len(tables)) + 0.8 * i / len(names), shares, 0.8 / len(names))
    axes.legend(names, fontsize="small")
    axes.set_xticks(np.arange(len(tables)) + 0.4, list(tables), rotation=20, ha="right")
    axes.set_ylabel("share of the floor")
    figure.savefig(path)


def main() -> None:
    """Read the options, measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--regime", nargs="+", choices=REGIMES, default=list(REGIMES))
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds (default 9)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="whose time (default wall)")
    parser.add_argument("--quick", action="store_true", help="3 rounds, no compiler")
    parser.add_argument("--csv", metavar="FILE", help="append the rows, regime by regime")
    parser.add_argument("--plot", metavar="FILE", help="draw shares of the floor")
    options = parser.parse_args()
    names = [n for n in options.peers if not (options.quick and n == "torch.compile")]
    tables = {}
    for regime in options.regime:
        case = REGIMES[regime]
        floor, rows, absent = measure(
            case, names, options.dtype, 3 if options.quick else options.rounds,
            CLOCKS[options.clock],
        )  # fmt: skip
        tables[regime] = rows
        print(
            f"\n{regime}: K={case.n_classes}, d={case.dim}, N={case.n_samples}, {case.operation}, "
            f"{options.dtype}; floor {1e3 * floor:.1f} ms; wanted {case.fraction} of the floor, "
            f"{case.ratio} times the fastest peer"
        )
        print(f"{COLUMNS[0]:36s}" + "".join(f"{c:>20s}" for c in COLUMNS[1:]))
        for name, *numbers in rows:
            print(f"{name:36s}" + "".join(f"{x:20.3g}" for x in numbers), flush=True)
        for sentence in absent:
            print(f"  not taking part: {sentence}", flush=True)
        if options.csv:
            append(options.csv, regime, rows)
    if options.plot:
        plot(tables, options.plot)


if __name__ == "__main__":
    main()
