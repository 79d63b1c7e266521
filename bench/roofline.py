"""The floors of this machine, measured in this process: GEMM, bandwidth, exponentials.

    python bench/roofline.py

GEMM is the BLAS that the kernels call (SciPy's), a square product that is large enough to reach
its plateau, with one thread and with all. Bandwidth is a read and a write of arrays that exceed
every cache. Exponentials are the vectors of `elementary_cpu` on a block that stays in the first
cache, so that nothing but arithmetic is counted. The best of several rounds: a floor is what the
machine can do, not what it does on average.
"""

from __future__ import annotations

import os
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


@cache
def floors(dtype: str = "float32", clock=time.perf_counter) -> Floors:
    """Measured once in a process; about two seconds a dtype."""
    n = 1536
    rng = np.random.default_rng(0)
    a = np.asfortranarray(rng.standard_normal((n, n)), dtype=dtype)
    c = np.zeros((n, n), dtype, order="F")
    gemm = scipy.linalg.blas.sgemm if dtype == "float32" else scipy.linalg.blas.dgemm
    rates = []
    for threads in (1, get_num_threads()):
        with threadpool_limits(threads, "blas"):
            seconds = best(lambda: gemm(1.0, a, a, c=c, overwrite_c=True), clock)
        rates.append(2.0 * n**3 / seconds)
    workers = get_num_threads()
    x = rng.uniform(-20.0, 0.0, (4 * workers, 1024)).astype(dtype)
    out = np.empty_like(x)
    repeats = 256
    exponentials = x.size * repeats / best(lambda: _exponentials(x, out, repeats), clock)
    long = np.zeros((4 * workers, (64 << 20) // (4 * workers) // a.itemsize), dtype)
    target = np.ones_like(long)
    bandwidth = 2.0 * long.nbytes / best(lambda: _copy(long, target), clock)
    return Floors(*rates, bandwidth, exponentials)


def floors_around(work, dtype: str = "float32", clock=time.perf_counter):
    """What `work()` returns, and floors of before and after it: the faster rates of the two."""
    before = floors(dtype, clock)
    done = work()
    floors.cache_clear()
    return done, Floors(*map(max, before, floors(dtype, clock)))


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
