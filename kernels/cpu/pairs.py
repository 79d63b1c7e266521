"""Sums over all pairs of classes, by square blocks of a K x K product that is never stored.

Angles of the centred class means (section 4 of the paper), CDNV, and how far a K x K matrix
`R = A B^T` is from the simplex, `|R/|R| - E/|E||_F` with E = I - 11^T/K. The latter needs
neither |R| first nor R stored: with `a = tr R / (K-1)` the component along E (R's rows sum to 0,
so that <R, E> = tr R), only `|R - a E|^2` is summed. It loses no digit near collapse, where
`2 - 2 cos` would lose half of them.

Letters: K classes, d features; A, B (K, d) centred, float64. Cost: 2 K^2 d FLOP (half for A A^T),
a block of 256 x 256 a thread. Bound by GEMM. Rows of blocks are summed in order: any number of
threads gives the same bits.
"""

import numpy as np
from numba import prange

from fastnc.kernels.cpu.basis import matmul_nt, squared_norm
from fastnc.kernels.cpu.options import INNER, OPTIONS, REASSOCIATION, njit

BLOCK = 256
# Below this fraction of |a|^2 + |b|^2 the expansion of |a - b|^2 has cancelled too far.
CANCELLED = 1e-3

# The sums over pairs of classes, in this order.
N_PAIR_SUMS = 3
ANGLE, CDNV, RESIDUAL = range(N_PAIR_SUMS)


@njit(fastmath=REASSOCIATION, **OPTIONS)
def inner(u, v):
    """`<u, v>`."""
    total = 0.0
    for j in range(len(u)):
        total += u[j] * v[j]
    return total


@njit(fastmath=REASSOCIATION, **INNER)
def _squared_gap(u, v):
    total = 0.0
    for j in range(len(u)):
        total += (u[j] - v[j]) ** 2
    return total


@njit(**OPTIONS)
def centre_of(V):
    """The mean of the rows (d,)."""
    g = np.zeros(V.shape[1])
    for k in range(len(V)):
        for j in range(V.shape[1]):
            g[j] += V[k, j]
    for j in range(V.shape[1]):
        g[j] /= len(V)
    return g


@njit(**OPTIONS)
def centred(V, g):
    """`v_k - g` (K, d)."""
    out = np.empty(V.shape)
    for k in range(len(V)):
        for j in range(V.shape[1]):
            out[k, j] = V[k, j] - g[j]
    return out


@njit(fastmath=REASSOCIATION, **OPTIONS)
def total_of(v):
    """The sum of a vector's entries."""
    total = 0.0
    for k in range(len(v)):
        total += v[k]
    return total


@njit(**OPTIONS)
def squared_norms(V):
    """`|v_k|^2` of each row (K,)."""
    out = np.empty(len(V))
    for k in range(len(V)):
        out[k] = squared_norm(V[k])
    return out


@njit(fastmath=REASSOCIATION, **INNER)
def _row_sums(dots, square, inverse, spread, squares, inverses, spreads, target, uniform, sums):
    """Adds the pairs of one class with others; returns for how many |a - b|^2 has cancelled.

    Only sums, so that LLVM can vectorise it over the pairs.
    """
    residual, angle, cdnv, cancelled = 0.0, 0.0, 0.0, 0
    for j in range(len(dots)):
        residual += (dots[j] + target) ** 2
        angle += abs(dots[j] * inverse * inverses[j] + uniform)
        both = square + squares[j]
        gap = both - 2.0 * dots[j]
        has_cancelled = gap < CANCELLED * both
        cancelled += has_cancelled
        cdnv += 0.0 if has_cancelled else (spread + spreads[j]) / gap
    sums[RESIDUAL] += 2.0 * residual
    sums[ANGLE] += angle
    sums[CDNV] += 0.5 * cdnv
    return cancelled


@njit(fastmath=REASSOCIATION, **INNER)
def _same_side(A, i0, i1, j0, j1, D, squares, inverses, spreads, along, sums):
    """Adds a block of the Gram matrix A A^T, on or above the diagonal, to the sums."""
    K = len(A)
    target, uniform = along / K, 1.0 / (K - 1)
    for i in range(i0, i1):
        if j0 <= i:
            sums[RESIDUAL] += (D[i - i0, i - j0] - along * (1.0 - 1.0 / K)) ** 2
        first = max(i + 1, j0)
        cancelled = _row_sums(
            D[i - i0, first - j0 :], squares[i], inverses[i], spreads[i], squares[first:j1],
            inverses[first:j1], spreads[first:j1], target, uniform, sums,
        )  # fmt: skip
        # Where two means are nearly equal take the difference itself.
        for j in range(first, j1 if cancelled else first):
            both = squares[i] + squares[j]
            if both - 2.0 * D[i - i0, j - j0] < CANCELLED * both:
                sums[CDNV] += (spreads[i] + spreads[j]) / (2.0 * _squared_gap(A[i], A[j]))


@njit(fastmath=REASSOCIATION, **INNER)
def _squares_about(row, target):
    total = 0.0
    for j in range(len(row)):
        total += (row[j] + target) ** 2
    return total


@njit(**INNER)
def _two_sides(K, i0, i1, j0, j1, D, along, sums):
    """Adds a block of A B^T to the sum for the residual."""
    target = along / K
    for i in range(i0, i1):
        # The diagonal is never added with the others: near collapse it is nearly everything.
        own = min(max(i, j0), j1)
        sums[RESIDUAL] += _squares_about(D[i - i0, : own - j0], target)
        if j0 <= i < j1:
            sums[RESIDUAL] += (D[i - i0, i - j0] - along * (1.0 - 1.0 / K)) ** 2
            own += 1
        sums[RESIDUAL] += _squares_about(D[i - i0, own - j0 :], target)


@njit(**INNER)
def _inverse_roots(squares):
    out = np.empty(len(squares))
    for k in range(len(squares)):
        out[k] = 1.0 / np.sqrt(squares[k])
    return out


@njit(**INNER)
def _row_of_blocks(gemm, A, B, same, row, squares, inverses, spreads, along, sums):
    """One row of blocks of A B^T; with `same`, of A A^T from the diagonal on."""
    K = len(A)
    i0, i1 = row * BLOCK, min((row + 1) * BLOCK, K)
    sums[:] = 0.0
    for j0 in range(i0 if same else 0, K, BLOCK):
        j1 = min(j0 + BLOCK, K)
        D = np.empty((i1 - i0, j1 - j0))
        matmul_nt(gemm, A[i0:i1], B[j0:j1], D)
        if same:
            _same_side(A, i0, i1, j0, j1, D, squares, inverses, spreads, along, sums)
        else:
            _two_sides(K, i0, i1, j0, j1, D, along, sums)


@njit(**INNER)
def _ordered_sum(rows, sums_out):
    sums_out[:] = 0.0
    for row in range(len(rows)):
        for s in range(N_PAIR_SUMS):
            sums_out[s] += rows[row, s]


@njit(**OPTIONS)
def pairs_serial(gemm, A, B, same, squares, spreads, along, sums_out):
    """`pairs` on the calling thread alone: the bits are the same."""
    rows = np.empty(((len(A) + BLOCK - 1) // BLOCK, N_PAIR_SUMS))
    inverses = _inverse_roots(squares)
    for row in range(len(rows)):
        _row_of_blocks(gemm, A, B, same, row, squares, inverses, spreads, along, rows[row])
    _ordered_sum(rows, sums_out)


@njit(parallel=True, **OPTIONS)
def pairs(gemm, A, B, same, squares, spreads, along, sums_out):
    """Sums over pairs of rows of the centred A, B (K, d): ANGLE and CDNV if `same`, RESIDUAL.

    `squares` and `spreads` (K,) are A's squared norms and the classes' mean squared deviations,
    `along = tr(A B^T) / (K - 1)`. Cost: 2 K^2 d FLOP (half if `same`), no K x K memory.
    """
    rows = np.empty(((len(A) + BLOCK - 1) // BLOCK, N_PAIR_SUMS))
    inverses = _inverse_roots(squares)
    for index in prange(len(rows)):
        # With `same` the first rows are the longest: each thread takes from both ends.
        half = np.int64(index) // 2
        row = half if index % 2 == 0 else len(rows) - 1 - half
        _row_of_blocks(gemm, A, B, same, row, squares, inverses, spreads, along, rows[row])
    _ordered_sum(rows, sums_out)


@njit(**OPTIONS)
def along_simplex(A, B):
    """`tr(A B^T) / (K - 1)`."""
    total = 0.0
    for k in range(len(A)):
        total += inner(A[k], B[k])
    return total / (len(A) - 1)


@njit(**OPTIONS)
def simplex_distance(residual, along, K):
    """`|R/|R| - E/|E||_F` from `residual = |R - along E|^2`, E = I - 11^T/K."""
    inner = along * np.sqrt(K - 1.0)
    size = np.sqrt(residual + inner * inner)
    if inner > 0.0:
        return np.sqrt(2.0 * residual / (size * (size + inner)))
    return np.sqrt(2.0 * (size - inner) / size)
