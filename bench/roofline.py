"""The floors of this machine, measured in this process: GEMM, bandwidth, exponentials.

    python bench/roofline.py

GEMM is the fastest BLAS of the process, of NumPy's, SciPy's (which the kernels call) and, if it is
loaded, torch's: a square product that is large enough to reach its plateau, with one thread and
with all. Bandwidth is a read and a write of arrays that exceed
every cache. Exponentials are the vectors of `elementary_cpu` on a block that stays in the first
cache, so that nothing but arithmetic is counted. The best of several rounds: a floor is what the
machine can do, not what it does on average.
"""

from __future__ import annotations

import os
import sys
import time
from functools import cache
from typing import NamedTuple

import numpy as np
import scipy.linalg.blas
from numba import get_num_threads, njit, prange
from threadpoolctl import threadpool_limits

from fastnc.kernels.cpu.elementary import exp

ROUNDS = 7
OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy"}


class Floors(NamedTuple):
    """Rates of this machine in one dtype."""

    gemm_one: float  # FLOP/s of one thread
    gemm: float  # FLOP/s of all threads
    bandwidth: float  # bytes/s, one array read and one written, all threads
    exponentials: float  # a second, all threads

    def seconds(self, case, itemsize: int) -> float:
        """The least time of a case: arithmetic and exponentials, or else its memory traffic."""
        arithmetic = case.flops / self.gemm + case.exponentials / self.exponentials
        return max(arithmetic, case.bytes(itemsize) / self.bandwidth)


def best(call, clock=time.perf_counter, rounds=ROUNDS) -> float:
    """The shortest of several rounds, after one to warm up."""
    call()
    times = []
    for _ in range(rounds):
        start = clock()
        call()
        times.append(clock() - start)
    return min(times)


@njit(parallel=True, **OPTIONS)
def _exponentials(x, out, repeats):
    for part in prange(x.shape[0]):
        for _ in range(repeats):
            for i in range(x.shape[1]):
                out[part, i] = exp(x[part, i])


@njit(parallel=True, **OPTIONS)
def _copy(x, out):
    for part in prange(x.shape[0]):
        for i in range(x.shape[1]):
            out[part, i] = x[part, i]


def products(rng, n, dtype, threads):
    """A product of n x n matrices by each BLAS of this process, as calls by the library's name."""
    a = np.asfortranarray(rng.standard_normal((n, n)), dtype=dtype)
    c = np.zeros((n, n), dtype, order="F")
    gemm = scipy.linalg.blas.sgemm if dtype == "float32" else scipy.linalg.blas.dgemm
    calls = {
        "NumPy": lambda: np.matmul(a.T, a.T, out=c.T),
        "SciPy": lambda: gemm(1.0, a, a, c=c, overwrite_c=True),
    }
    # A library that no peer has loaded runs nothing here.
    torch = sys.modules.get("torch")
    if torch is not None:
        x, y = torch.from_numpy(a), torch.from_numpy(c)

        def by_torch():
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            torch.mm(x, x, out=y)
            torch.set_num_threads(before)

        calls["torch"] = by_torch
    return calls


@cache
def floors(dtype: str = "float32", clock=time.perf_counter) -> Floors:
    """Measured once in a process; about two seconds a dtype."""
    rng = np.random.default_rng(0)
    rates = []
    for threads in (1, get_num_threads()):
        with threadpool_limits(threads):
            calls = products(rng, 1536, dtype, threads)
            rates.append(2.0 * 1536**3 / min(best(call, clock) for call in calls.values()))
    workers = get_num_threads()
    x = rng.uniform(-20.0, 0.0, (4 * workers, 1024)).astype(dtype)
    out = np.empty_like(x)
    repeats = 256
    exponentials = x.size * repeats / best(lambda: _exponentials(x, out, repeats), clock)
    long = np.zeros((4 * workers, (64 << 20) // (4 * workers) // np.dtype(dtype).itemsize), dtype)
    target = np.ones_like(long)
    bandwidth = 2.0 * long.nbytes / best(lambda: _copy(long, target), clock)
    return Floors(*rates, bandwidth, exponentials)


def floors_beside(parts, dtype: str = "float32", clock=time.perf_counter):
    """What each of the calls `parts` returns, and the fastest rates of before, between and after.

    A machine that others use, or that is hot, has no one speed: a floor counts beside the calls.
    """
    found = [floors(dtype, clock)]
    done = []
    for part in parts:
        done.append(part())
        floors.cache_clear()
        found.append(floors(dtype, clock))
    return done, Floors(*map(max, *found))


def floors_around(work, dtype: str = "float32", clock=time.perf_counter):
    """What `work()` returns, and floors of before and after it: the faster rates of the two."""
    (done,), rates = floors_beside([work], dtype, clock)
    return done, rates


def main() -> None:
    """Print the floors of both dtypes."""
    print(f"{get_num_threads()} of {os.cpu_count()} threads")
    for dtype in ("float32", "float64"):
        f = floors(dtype)
        print(
            f"{dtype}: GEMM {f.gemm_one / 1e9:.1f} GFLOP/s with one thread, {f.gemm / 1e9:.1f} "
            f"with all; {f.bandwidth / 1e9:.1f} GB/s; {f.exponentials / 1e9:.2f}e9 exp/s"
        )


if __name__ == "__main__":
    main()
