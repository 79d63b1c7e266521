"""The geometry of class means and classifier: every neural-collapse metric, defined once.

Section 4 of the paper and the forms of NC1 to NC4 in circulation; what each number is stands
in `fastnc/metrics.py`, whose `NAMES` give the order of `values_out`. Letters: K classes, P of
them with samples, d features, N samples; `C (P, d)` the centred class means.

A distance of a K x K matrix R from the simplex, `|R/|R| - E/|E||_F` with E = I - 11^T/K, needs
neither |R| first nor R stored: with `a = tr R / (K-1)` the part along E, which is all of
<R, E> because R's rows add up to nothing, only `|R - a E|^2` is summed, tile by tile. It loses
no digit near collapse, where `2 - 2 cos` would lose half of them.

`geometry` measures one (W, H, y) from beginning to end: at a snapshot of a small problem in a
few microseconds on the calling thread, else by the row-parallel kernels. The arithmetic and its
order are the same in both, and so are the bits.
"""

import numpy as np
from numba import njit, prange

from fastnc.kernels.deviations_cpu import (
    AGREEMENT,
    DEVIATION,
    DISTANCE,
    MARGIN,
    N_SUMS,
    PROJECTED,
    basis,
    clear_sums,
    deviations_serial,
    matmul_nt,
    owners,
)
from fastnc.kernels.scatter_cpu import class_moments, class_moments_serial, group

_SUMS = {"contract", "nsz", "arcp", "reassoc"}
_OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy"}
TILE = 256
# Below this many multiplications a second thread costs more than it brings.
SERIAL_WORK = 2_000_000

# What a sweep over pairs of classes sums, in this order.
N_PAIR_SUMS = 3
ANGLE, CDNV, RESIDUAL = range(N_PAIR_SUMS)


@njit(fastmath=_SUMS, **_OPTIONS)
def _squared_norm(v):
    total = 0.0
    for j in range(len(v)):
        total += v[j] * v[j]
    return total


@njit(fastmath=_SUMS, **_OPTIONS)
def inner(u, v):
    """`<u, v>`."""
    total = 0.0
    for j in range(len(u)):
        total += u[j] * v[j]
    return total


@njit(fastmath=_SUMS, **_OPTIONS)
def _squared_gap(u, v):
    total = 0.0
    for j in range(len(u)):
        total += (u[j] - v[j]) ** 2
    return total


@njit(**_OPTIONS)
def centre_of(V):
    """The mean of the rows (d,)."""
    g = np.zeros(V.shape[1])
    for k in range(len(V)):
        for j in range(V.shape[1]):
            g[j] += V[k, j]
    for j in range(V.shape[1]):
        g[j] /= len(V)
    return g


@njit(**_OPTIONS)
def centred(V, g):
    """`v_k - g` (K, d)."""
    out = np.empty(V.shape)
    for k in range(len(V)):
        for j in range(V.shape[1]):
            out[k, j] = V[k, j] - g[j]
    return out


@njit(fastmath=_SUMS, **_OPTIONS)
def total_of(v):
    """The sum of a vector's entries."""
    total = 0.0
    for k in range(len(v)):
        total += v[k]
    return total


@njit(**_OPTIONS)
def squared_norms(V):
    """`|v_k|^2` of each row (K,)."""
    out = np.empty(len(V))
    for k in range(len(V)):
        out[k] = _squared_norm(V[k])
    return out


@njit(fastmath=_SUMS, **_OPTIONS)
def _same_side(A, i0, i1, j0, j1, D, squares, spreads, along, sums):
    """Adds a tile of the Gram matrix A A^T on or above the diagonal to a sweep's sums."""
    K = len(A)
    for i in range(i0, i1):
        for j in range(max(i, j0), j1):
            dot = D[i - i0, j - j0]
            if i == j:
                sums[RESIDUAL] += (dot - along * (1.0 - 1.0 / K)) ** 2
                continue
            sums[RESIDUAL] += 2.0 * (dot + along / K) ** 2
            sums[ANGLE] += abs(dot / np.sqrt(squares[i] * squares[j]) + 1.0 / (K - 1))
            gap = squares[i] + squares[j] - 2.0 * dot
            # Where two means nearly meet the expansion has cancelled: take the difference.
            if gap < 1e-3 * (squares[i] + squares[j]):
                gap = _squared_gap(A[i], A[j])
            sums[CDNV] += (spreads[i] + spreads[j]) / (2.0 * gap)


@njit(fastmath=_SUMS, **_OPTIONS)
def _two_sides(K, i0, i1, j0, j1, D, along, sums):
    """Adds a tile of A B^T to the residual of a sweep."""
    for i in range(i0, i1):
        for j in range(j0, j1):
            target = along * ((1.0 if i == j else 0.0) - 1.0 / K)
            sums[RESIDUAL] += (D[i - i0, j - j0] - target) ** 2


@njit(**_OPTIONS)
def _tile_row(A, B, same, row, squares, spreads, along, sums):
    """One row of tiles of A B^T; with `same`, of A A^T from the diagonal on."""
    K = len(A)
    i0, i1 = row * TILE, min((row + 1) * TILE, K)
    sums[:] = 0.0
    for j0 in range(i0 if same else 0, K, TILE):
        j1 = min(j0 + TILE, K)
        D = np.empty((i1 - i0, j1 - j0))
        matmul_nt(A[i0:i1], B[j0:j1], D)
        if same:
            _same_side(A, i0, i1, j0, j1, D, squares, spreads, along, sums)
        else:
            _two_sides(K, i0, i1, j0, j1, D, along, sums)


@njit(**_OPTIONS)
def _ordered_sum(rows, sums_out):
    sums_out[:] = 0.0
    for row in range(len(rows)):
        for s in range(N_PAIR_SUMS):
            sums_out[s] += rows[row, s]


@njit(**_OPTIONS)
def pairs_serial(A, B, same, squares, spreads, along, sums_out):
    """`pairs` on the calling thread alone: the bits are the same."""
    rows = np.empty(((len(A) + TILE - 1) // TILE, N_PAIR_SUMS))
    for row in range(len(rows)):
        _tile_row(A, B, same, row, squares, spreads, along, rows[row])
    _ordered_sum(rows, sums_out)


@njit(parallel=True, **_OPTIONS)
def pairs(A, B, same, squares, spreads, along, sums_out):
    """Sums over pairs of rows of the centred A, B (K, d): ANGLE and CDNV if `same`, RESIDUAL.

    `squares` and `spreads` (K,) are A's squared norms and the classes' mean squared deviations,
    `along = tr(A B^T) / (K - 1)`. Cost: 2 K^2 d FLOP (half if `same`), no K x K memory.
    """
    rows = np.empty(((len(A) + TILE - 1) // TILE, N_PAIR_SUMS))
    for row in prange(len(rows)):
        _tile_row(A, B, same, row, squares, spreads, along, rows[row])
    _ordered_sum(rows, sums_out)


@njit(**_OPTIONS)
def _distinct(counts, values, times):
    """The distinct counts in rising order and how often each occurs; returns how many."""
    m = 0
    for k in range(len(counts)):
        n = counts[k]
        lo, hi = 0, m
        while lo < hi:
            mid = (lo + hi) // 2
            if values[mid] < n:
                lo = mid + 1
            else:
                hi = mid
        if lo == m or values[lo] != n:
            for a in range(m, lo, -1):
                values[a] = values[a - 1]
                times[a] = times[a - 1]
            values[lo] = n
            times[lo] = 0
            m += 1
        times[lo] += 1
    return m


@njit(**_OPTIONS)
def separation_constant(counts):
    """Nuclear norm of `(I - 11^T/K) diag(sqrt n_k)`: (K-1) sqrt n for equal class sizes.

    Its squared singular values are 0 and the critical points of the polynomial
    `prod_k (x - n_k)`: each n_k, one time less than it occurs, and between neighbouring counts
    the root of `sum_k 1/(n_k - x)`, which bisection finds. No K x K matrix.
    """
    values = np.empty(len(counts), np.int64)
    times = np.empty(len(counts), np.int64)
    m = _distinct(counts, values, times)
    total = 0.0
    for a in range(m):
        total += (times[a] - 1) * np.sqrt(float(values[a]))
    for a in range(m - 1):
        # The root is sought as a distance from the lower count, so that none of it rounds away.
        lo, hi = 0.0, float(values[a + 1] - values[a])
        for _ in range(60):
            x = 0.5 * (lo + hi)
            slope = 0.0
            for b in range(m):
                slope += times[b] / (float(values[b] - values[a]) - x)
            if slope < 0.0:
                lo = x
            else:
                hi = x
        total += np.sqrt(values[a] + 0.5 * (lo + hi))
    return total


@njit(**_OPTIONS)
def spread_of(squares):
    """Std / Avg (ddof 0) of the norms, given their squares."""
    mean, variance = 0.0, 0.0
    for k in range(len(squares)):
        mean += np.sqrt(squares[k])
    mean /= len(squares)
    for k in range(len(squares)):
        variance += (np.sqrt(squares[k]) - mean) ** 2
    return np.sqrt(variance / len(squares)) / mean


@njit(**_OPTIONS)
def simplex_distance(residual, along, K):
    """`|R/|R| - E/|E||_F` from `residual = |R - along E|^2`, E = I - 11^T/K."""
    inner = along * np.sqrt(K - 1.0)
    size = np.sqrt(residual + inner * inner)
    if inner > 0.0:
        return np.sqrt(2.0 * residual / (size * (size + inner)))
    return np.sqrt(2.0 * (size - inner) / size)


@njit(fastmath=_SUMS, **_OPTIONS)
def dual_distances(C, V, W):
    """self_duality of the centred C and V, and nc3_distance of C and the raw W."""
    size_C = np.sqrt(total_of(squared_norms(C)))
    size_W = np.sqrt(total_of(squared_norms(W)))
    duality, distance = 0.0, 0.0
    for k in range(len(C)):
        c, v = np.sqrt(_squared_norm(C[k])), np.sqrt(_squared_norm(V[k]))
        angle = 0.0
        for j in range(C.shape[1]):
            angle += (C[k, j] / c - V[k, j] / v) ** 2
            distance += (W[k, j] / size_W - C[k, j] / size_C) ** 2
        duality += np.sqrt(angle)
    return duality / len(C), distance


@njit(**_OPTIONS)
def along_simplex(A, B):
    """`tr(A B^T) / (K - 1)`."""
    total = 0.0
    for k in range(len(A)):
        total += inner(A[k], B[k])
    return total / (len(A) - 1)


@njit(**_OPTIONS)
def energy_of(means, sizes, squares):
    """`|H|^2 = sum_k s_k + n_k |m_k|^2`."""
    total = total_of(squares)
    for k in range(len(means)):
        total += sizes[k] * _squared_norm(means[k])
    return total


@njit(**_OPTIONS)
def features_values(C, squares_C, sizes, squares, sums, pair_sums, values_out):
    """What the features alone tell: values 0, 2, 3, 6, 7, 8, 9."""
    P = len(C)
    N = total_of(sizes)
    n_pairs = P * (P - 1) / 2
    values_out[0] = spread_of(squares_C)
    values_out[2] = sums[DEVIATION] / sums[DISTANCE]
    values_out[3] = pair_sums[ANGLE] / n_pairs
    values_out[6] = sums[PROJECTED] / N
    values_out[7] = (total_of(squares) / N) / (total_of(squares_C) / P)
    values_out[8] = pair_sums[CDNV] / n_pairs
    values_out[9] = simplex_distance(pair_sums[RESIDUAL], total_of(squares_C) / (P - 1), P)


@njit(**_OPTIONS)
def classifier_values(squares_V, pair_sums, values_out):
    """What the classifier alone tells: values 1, 4, 10."""
    K = len(squares_V)
    values_out[1] = spread_of(squares_V)
    values_out[4] = pair_sums[ANGLE] / (K * (K - 1) / 2)
    values_out[10] = simplex_distance(pair_sums[RESIDUAL], total_of(squares_V) / (K - 1), K)


@njit(**_OPTIONS)
def joint_values(C, V, W, along, residual, sums, N, energy, separation, values_out):
    """What both tell: values 5 and 11 to 15; V and W are the rows of the classes present."""
    values_out[5], values_out[12] = dual_distances(C, V, W)
    values_out[11] = simplex_distance(residual, along, len(C))
    values_out[13] = sums[AGREEMENT] / N
    values_out[14] = sums[MARGIN]
    values_out[15] = 2.0 * separation * sums[MARGIN] / energy


@njit(**_OPTIONS)
def _geometry_serial(W, H, y, values_out):
    values_out[:] = np.nan
    K, d = W.shape
    order, present, starts = group(y, K)
    P = len(present)
    if P < 2:
        return
    means = np.empty((P, d))
    squares = np.empty(P)
    class_moments_serial(H, order, starts, means, squares)
    counts = np.zeros(K, np.int64)
    sizes = np.empty(P)
    spreads = np.empty(P)
    rows = np.empty((P, d))
    for p in range(P):
        counts[present[p]] = starts[p + 1] - starts[p]
        sizes[p] = starts[p + 1] - starts[p]
        spreads[p] = squares[p] / sizes[p]
        rows[p] = W[present[p]]
    g = centre_of(means)
    C = centred(means, g)
    squares_C = squared_norms(C)
    Q, lam, A = basis(C)
    offset = np.empty(K)
    for k in range(K):
        offset[k] = inner(W[k], g)
    sums = np.empty(N_SUMS)
    clear_sums(sums)
    deviations_serial(
        H, order, owners(starts), present, means, g, Q, A, lam, squares_C, W, offset, sums
    )
    pair_sums = np.empty(N_PAIR_SUMS)
    along = total_of(squares_C) / (P - 1)
    pairs_serial(C, C, True, squares_C, spreads, along, pair_sums)
    features_values(C, squares_C, sizes, squares, sums, pair_sums, values_out)

    V = centred(W, centre_of(W))
    squares_V = squared_norms(V)
    along = total_of(squares_V) / (K - 1)
    pairs_serial(V, V, True, squares_V, squares_V, along, pair_sums)
    classifier_values(squares_V, pair_sums, values_out)

    V = centred(rows, centre_of(rows))
    along = along_simplex(V, C)
    pairs_serial(V, C, False, squares_C, squares_C, along, pair_sums)
    energy = energy_of(means, sizes, squares) + total_of(squared_norms(W))
    joint_values(
        C, V, rows, along, pair_sums[RESIDUAL], sums, len(y), energy,
        separation_constant(counts), values_out,
    )


def geometry(W, H, y, values_out):
    """All metrics of one (W, H, y) into `values_out (16,)`, float64; NaN where undefined."""
    _geometry_serial(W, H, y, values_out)
