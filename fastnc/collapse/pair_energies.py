"""Energies of all pairs of unit vectors: how evenly they cover the sphere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# Rows of a block of pairs: its few arrays of two megabytes stay in cache.
BLOCK = 512
# From so many rows on (1.3e8 pairs) the pairs are computed in single precision.
SINGLE = 16_384
# Below this |u_i - u_j|^2 the expansion 2 - 2 cos has cancelled too far.
CANCELLED = {"float64": 1e-3, "float32": 1e-2}


class PairEnergies(NamedTuple):
    """Averages over pairs of rows u_i, u_j of norm 1 in d dimensions, at distance r."""

    log: float
    riesz: float
    log_variance: float
    distance_variance: float


def pair_energies(C: Floats) -> PairEnergies:
    """Energies of the directions of the rows of C (K, d).

    `log`: Avg log(1/r); `riesz`: Avg sign(s) r^-s, s = d - 2 (sign(0) = 1), infinite where that
    overflows; `log_variance` and `distance_variance`: variances over pairs of log(1/r) and of r
    (ddof 0). Deviations are summed about the simplex, where all pairs have r^2 = 2K/(K-1): no
    digit is lost at collapse. Undefined (NaN) where a row is zero.

    Cost: K^2 d FLOP, and K^2/2 logarithms; from 16,384 rows on in single precision, which leaves
    some six digits of the averages.
    """
    from fastnc.kernels.cpu.threads import one_thread

    K, d = C.shape
    with np.errstate(divide="ignore", invalid="ignore"):
        U = C / np.linalg.norm(C, axis=1, keepdims=True)
    U = U.astype(np.float32) if K >= SINGLE else U
    starts = range(0, K, BLOCK)
    with one_thread():
        if len(starts) == 1:
            rows = [_row_sums(U, 0)]
        else:
            # NumPy releases the interpreter's lock; sums are added in the order of the rows.
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                rows = list(pool.map(lambda start: _row_sums(U, start), starts))
    totals = np.sum(rows, axis=0) / (K * (K - 1) / 2)
    log, log_square, away, away_square, powers = (float(total) for total in totals)
    variances = log_square - log * log, away_square - away * away
    return PairEnergies(
        log=log - _level(K),
        riesz=powers if d >= 2 else -powers,
        log_variance=variances[0] if not variances[0] < 0.0 else 0.0,
        distance_variance=variances[1] if not variances[1] < 0.0 else 0.0,
    )


def _level(K: int) -> float:
    """log r of the simplex."""
    return float(0.5 * np.log(2.0 * K / (K - 1)))


def _row_sums(U: NDArray[Any], i0: int) -> Floats:
    """Sums over the pairs of one row of blocks: of log(1/r) and r about the simplex, of r^-s."""
    K, d = U.shape
    # Python's floats, unlike NumPy's, do not widen arrays of single precision.
    square, level, s = 2.0 * K / (K - 1), _level(K), d - 2
    distance, sums = float(np.sqrt(square)), np.zeros(5)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        for apart in _squared_gaps(U, i0):
            r = np.sqrt(apart)
            away = (apart - square) / (r + distance)
            logs = level - 0.5 * np.log(apart)
            powers = float(len(r)) if s == 0 else np.exp(s * (logs - level)).sum()
            sums += logs.sum(), np.dot(logs, logs), away.sum(), np.dot(away, away), powers
    return sums


def _squared_gaps(U: NDArray[Any], i0: int) -> Iterator[NDArray[Any]]:
    """`|u_i - u_j|^2` of the pairs i < j with i in the rows from `i0` on, one block at a time."""
    A = U[i0 : i0 + BLOCK]
    for j0 in range(i0, len(U), BLOCK):
        B = U[j0 : j0 + BLOCK]
        gaps = A @ B.T
        gaps *= -2.0
        gaps += 2.0
        if i0 == j0:
            gaps[np.tril_indices(len(A))] = 4.0
        if gaps.min() < CANCELLED[U.dtype.name]:
            i, j = np.nonzero(gaps < CANCELLED[U.dtype.name])
            for lo in range(0, len(i), BLOCK):
                some = slice(lo, lo + BLOCK)
                gaps[i[some], j[some]] = ((A[i[some]] - B[j[some]]) ** 2).sum(axis=1)
        yield gaps[np.triu_indices(len(A), 1)] if i0 == j0 else gaps.reshape(-1)
