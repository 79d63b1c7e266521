"""fastnc beside NumPy, torch and JAX: interleaved, medians, one table.

    python bench/compare.py --regime hundred_classes [--quick] [--csv FILE] [--plot FILE]
    python bench/compare.py --dtype float32 float64 --record
    taskset -c 0 python bench/compare.py --clock cpu

The third form is for a machine that is not idle: every library finds one CPU, starts one thread,
and is charged the time that it ran, not the time that it waited for others.

Libraries take turns. A call that counts follows a pause, in which the threads of the library before
come to rest (they spin for a while, on cores that others need), and a call that does not count.

Regimes: epochs of descent, a step of large problems, their gradients, and the torch loss where it
is smallest. Per peer: milliseconds (of an epoch, in trajectories), GFLOP/s, the share of the floor
of `roofline` (measured before, between and after the calls, the fastest of these), how many times
as long as fastnc, the peak of memory beside the arguments (Linux), and the largest relative error
of grad_H at margin 30, where p_y rounds to 1 in float32 (1 means that nothing of the label's entry
is left); the last two for gradients and steps. A peer that is not installed, or refuses, is named
with its reason.

`--csv` appends every row with the date, the command and the machine; `--record` chooses a file of
`bench/results/` for it, and `tables.py` makes the README's tables of such files.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import datetime
import gc
import re
import sys
import time
from pathlib import Path

import numpy as np
from machine import machine, warnings
from peers import PEERS, TORCH_LOSS_PEERS
from roofline import floors_beside
from suite.cases import OBJECTIVES, TORCH_LOSSES, TRAJECTORIES
from trajectory_peers import TRAJECTORY_PEERS

import fastnc
from fastnc.kernels.cpu.processor import VECTOR_BYTES

COLUMNS = ("peer", "ms", "GFLOP/s", "of floor", "x fastnc", "extra MB", "error at margin 30")
FACTS = ("date", "command", "processor", "vector_bits", "threads", "blas", "commit")
SIZES = ("regime", "operation", "K", "d", "N", "dtype")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
RESULTS = Path(__file__).parent / "results"
PAUSE = 0.05
REGIMES = {case.name: case for case in (*TRAJECTORIES, *OBJECTIVES, *TORCH_LOSSES)}
# Of a trajectory: enough epochs that what a call costs beside them is not seen.
EPOCHS = {"tiny": 20000, "middle": 1000, "middle_wide": 200}
# Calls that are timed as one, where one takes less than a clock can tell.
REPEATS = {"torch loss": 200}
ALL_PEERS = list(dict.fromkeys([*PEERS, *TRAJECTORY_PEERS, *TORCH_LOSS_PEERS]))


def peers_of(case):
    """Those who can do the operation of a case, by name: functions of (W, H, y) that prepare."""
    match case.operation:
        case "trajectory":
            n = EPOCHS.get(case.name, 2)
            return {
                name: lambda W, H, y, peer=peer: peer(W, H, y, n)
                for name, peer in TRAJECTORY_PEERS.items()
            }
        case "step" | "grads":
            step = case.operation == "step"
            return {
                name: lambda W, H, y, peer=peer: peer(W, H, y, step) for name, peer in PEERS.items()
            }
        case "torch loss":
            return {
                name: lambda W, H, y, peer=peer: peer(W, H, y, False)
                for name, peer in TORCH_LOSS_PEERS.items()
            }
        case other:
            raise ValueError(f"no peer is known for the operation {other!r}.")


def work_of(case) -> int:
    """Evaluations of the gradients in one call."""
    return EPOCHS.get(case.name, 2) if case.operation == "trajectory" else 1


def terminal_error(make, dtype) -> float:
    """Relative error of every entry of grad_H where the wrong classes have e^-30 and less."""
    K, N = 4, 64
    W, y = np.eye(K, dtype=dtype), np.arange(N) % K
    H = (30.0 * np.eye(K)[y] - 0.25 * (np.arange(N) % 8)[:, None]).astype(dtype)
    exact = fastnc.loss_and_grads(W, H, y, impl="reference")[2]
    found = np.asarray(make(W, H, y, False)()[2], np.float64)
    return float((np.abs(found - exact) / np.abs(exact)).max())


def agrees(name, case, dtype) -> None:
    """A benchmark of something else is worth nothing: the first result must be the reference's."""
    W, H, y = case.arrays(dtype)
    W, H, y = W[:64], H[:128], y[:128] % min(64, len(W))
    if case.operation == "trajectory":
        wanted = _descended(W.astype(np.float64), H.astype(np.float64), y)
        found = TRAJECTORY_PEERS[name](W, H, y, 3)()
    else:
        wanted = fastnc.loss_and_grads(W, H, y, impl="reference")
        table = TORCH_LOSS_PEERS if case.operation == "torch loss" else PEERS
        found = table[name](W, H, y, False)()
    for one, other in zip(found, wanted, strict=True):
        error = np.abs(np.asarray(one) - other).max()
        # Single precision keeps seven digits, of which sums of 128 terms cost two or three.
        if error > 1e-4 * np.abs(other).max():
            raise ValueError(f"off by {error:.1e}")


def _descended(W, H, y, epochs=3):
    """W and H after a few epochs, by the reference."""
    from trajectory_peers import LR

    for _ in range(epochs):
        _, dW, dH = fastnc.loss_and_grads(W, H, y, impl="reference")
        W, H = W - LR * dW, H - LR * dH
    return W, H


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
    """The floor, rows of the table, fastest first; and sentences about who did not take part."""
    W, H, y = case.arrays(dtype)
    calls, absent = {}, []
    for name, make in peers_of(case).items():
        if name not in names:
            continue
        try:
            agrees(name, case, dtype)
            calls[name] = make(W, H, y)
            calls[name]()
        except Exception as reason:
            absent.append(f"{name}: {type(reason).__name__}: {str(reason).splitlines()[:1]}")
            calls.pop(name, None)
    repeats = REPEATS.get(case.operation, 1)
    turns = [rounds - rounds // 2, rounds // 2]
    halves, rates = floors_beside(
        [lambda n=n: _in_turn(calls, n, clock, repeats) for n in turns if n], dtype, clock
    )
    times = {name: [t for half in halves for t in half[name]] for name in calls}
    floor = rates.seconds(case, W.itemsize)
    medians = {name: float(np.median(t)) / work_of(case) for name, t in times.items()}
    of_gradients = case.operation in ("step", "grads")
    nan = float("nan")
    rows = [
        (
            name,
            1e3 * seconds,
            case.flops / seconds / 1e9,
            floor / seconds,
            seconds / medians.get("fastnc", nan),
            extra_memory(calls[name]) if of_gradients else nan,
            terminal_error(PEERS[name], dtype) if of_gradients else nan,
        )
        for name, seconds in sorted(medians.items(), key=lambda item: item[1])
    ]
    return floor, rows, absent


def _in_turn(calls, rounds, clock, repeats):
    """The times of every call, in seconds."""
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(PAUSE)
            call()
            start = clock()
            for _ in range(repeats):
                call()
            times[name].append((clock() - start) / repeats)
    return times


def append(path, facts, case, dtype, rows) -> None:
    """One regime's rows at the end of a CSV file, under a header if it is new."""
    sizes = (case.name, case.operation, case.n_classes, case.dim, case.n_samples, dtype)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if not file.tell():
            writer.writerow((*FACTS, *SIZES, *COLUMNS))
        writer.writerows((*(facts[name] for name in FACTS), *sizes, *row) for row in rows)


def facts_now() -> dict[str, str]:
    """The machine, the date and the command, as every recorded row holds them."""
    arguments = " ".join(sys.argv[1:])
    today = datetime.date.today().isoformat()
    return {"date": today, "command": f"python bench/compare.py {arguments}".strip(), **machine()}


def recorded_file(facts) -> Path:
    """Where `--record` writes: a file for a date, a processor and a width."""
    words = re.sub(r"[^a-z0-9]+", "-", f"{facts['processor']} {facts['vector_bits']}".lower())
    return RESULTS / f"{facts['date']}-{words.strip('-')}.csv"


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


def show(case, dtype, floor, rows, absent) -> None:
    """One regime's table."""
    unit = "ms an epoch" if case.operation == "trajectory" else "ms"
    share = case.shares[VECTOR_BYTES < 64]
    print(
        f"\n{case.name}: K={case.n_classes}, d={case.dim}, N={case.n_samples}, {case.operation}, "
        f"{dtype}; floor {1e3 * floor:.3g} {unit}; wanted {share} of the floor, "
        f"{case.ratio} times the fastest peer"
    )
    print(f"{COLUMNS[0]:36s}" + "".join(f"{c:>20s}" for c in COLUMNS[1:]))
    for name, *numbers in rows:
        print(f"{name:36s}" + "".join(f"{x:20.3g}" for x in numbers), flush=True)
    for sentence in absent:
        print(f"  not taking part: {sentence}", flush=True)


def main() -> None:
    """Read the options, measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--regime", nargs="+", choices=REGIMES, default=list(REGIMES))
    parser.add_argument("--peers", nargs="+", choices=ALL_PEERS, default=ALL_PEERS)
    dtypes = ("float32", "float64")
    parser.add_argument("--dtype", nargs="+", choices=dtypes, default=["float32"])
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds (default 9)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="whose time (default wall)")
    parser.add_argument("--quick", action="store_true", help="3 rounds, no compiler")
    parser.add_argument("--csv", metavar="FILE", help="append the rows, regime by regime")
    parser.add_argument("--record", action="store_true", help="--csv to a file of bench/results/")
    parser.add_argument("--plot", metavar="FILE", help="draw shares of the floor")
    options = parser.parse_args()
    names = [n for n in options.peers if not (options.quick and n == "torch.compile")]
    rounds = 3 if options.quick else options.rounds
    for sentence in warnings():
        print(f"warning: {sentence}")
    tables, facts = {}, {}
    for regime in options.regime:
        case = REGIMES[regime]
        for dtype in options.dtype:
            floor, rows, absent = measure(case, names, dtype, rounds, CLOCKS[options.clock])
            if not facts:
                # Now the peers have loaded every BLAS that they use.
                facts = facts_now()
                for name in ("date", "processor", "vector_bits", "threads", "blas", "commit"):
                    print(f"{name}: {facts[name]}")
            tables[f"{regime}, {dtype}"] = rows
            show(case, dtype, floor, rows, absent)
            path = recorded_file(facts) if options.record else options.csv
            if path:
                append(path, facts, case, dtype, rows)
    if options.plot:
        plot(tables, options.plot)


if __name__ == "__main__":
    main()
