"""Every neural-collapse metric of class means, a classifier and the sums over the samples.

Section 4 of the paper and the forms of NC1 to NC4 in circulation; `fastnc/collapse/metrics.py`
defines each number, and its `NAMES` give the order of `values_out`. Letters: K classes, P of
them with samples, d features, N samples; `C (P, d)` the centred class means.

`geometry` computes all of them for one (W, H, y): for a small problem in some twenty microseconds
on the calling thread, else by the sample-parallel kernels. The choice, and so the bits, depend on
the shape alone.
"""

import numpy as np

from fastnc.kernels.cpu.basis import basis, scaled, unit_of
from fastnc.kernels.cpu.blas import gemm_address
from fastnc.kernels.cpu.deviations import deviations, deviations_serial, owners
from fastnc.kernels.cpu.options import INNER, OPTIONS, REASSOCIATION, njit
from fastnc.kernels.cpu.pairs import (
    ANGLE,
    CDNV,
    N_PAIR_SUMS,
    RESIDUAL,
    along_simplex,
    centre_of,
    centred,
    inner,
    pairs,
    pairs_serial,
    simplex_distance,
    squared_norm,
    squared_norms,
    total_of,
)
from fastnc.kernels.cpu.sample_sums import (
    AGREEMENT,
    DEVIATION,
    DISTANCE,
    MARGIN,
    N_SUMS,
    PROJECTED,
    clear_sums,
)
from fastnc.kernels.cpu.scatter import class_moments, class_moments_serial, group
from fastnc.kernels.cpu.threads import one_thread

N_VALUES = 16
# Below this many multiplications a second thread costs more than it brings.
SERIAL_WORK = 2_000_000
# Below this many a BLAS uses one thread without `one_thread`.
ONE_THREAD_WORK = 50_000
DGEMM = gemm_address(np.dtype(np.float64))


@njit(**INNER)
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


@njit(**OPTIONS)
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


@njit(**INNER)
def spread_of(squares):
    """Std / Avg (ddof 0) of the norms, given their squares."""
    mean, variance = 0.0, 0.0
    for k in range(len(squares)):
        mean += np.sqrt(squares[k])
    mean /= len(squares)
    for k in range(len(squares)):
        variance += (np.sqrt(squares[k]) - mean) ** 2
    return np.sqrt(variance / len(squares)) / mean


@njit(fastmath=REASSOCIATION, **INNER)
def dual_distances(C, V, W):
    """self_duality of the centred C and V, and nc3_distance of C and the raw W."""
    size_C = np.sqrt(total_of(squared_norms(C)))
    size_W = np.sqrt(total_of(squared_norms(W)))
    duality, distance = 0.0, 0.0
    for k in range(len(C)):
        c, v = np.sqrt(squared_norm(C[k])), np.sqrt(squared_norm(V[k]))
        angle = 0.0
        for j in range(C.shape[1]):
            angle += (C[k, j] / c - V[k, j] / v) ** 2
            distance += (W[k, j] / size_W - C[k, j] / size_C) ** 2
        duality += np.sqrt(angle)
    return duality / len(C), distance


@njit(**OPTIONS)
def energy_of(W, means, sizes, squares):
    """A unit, and (|W|^2 + |H|^2) / unit^2 with `|H|^2 = sum_k s_k + n_k |m_k|^2`."""
    unit = max(unit_of(W), unit_of(means))
    total = total_of(squared_norms(scaled(W, unit)))
    rows = scaled(means, unit)
    for k in range(len(rows)):
        total += squares[k] / unit / unit + sizes[k] * squared_norm(rows[k])
    return unit, total


@njit(**OPTIONS)
def in_units(C, squares):
    """Centred means and summed squares in the unit of the means: the metrics have no scale."""
    unit = unit_of(C)
    return scaled(C, unit), squares / unit / unit


@njit(**OPTIONS)
def features_values(squares_C, sizes, squares, sums, pair_sums, values_out):
    """The metrics of the features alone: values 0, 2, 3, 6, 7, 8, 9."""
    P = len(squares_C)
    N = total_of(sizes)
    n_pairs = P * (P - 1) / 2
    values_out[0] = spread_of(squares_C)
    values_out[2] = sums[DEVIATION] / sums[DISTANCE]
    values_out[3] = pair_sums[ANGLE] / n_pairs
    values_out[6] = sums[PROJECTED] / N
    values_out[7] = (total_of(squares) / N) / (total_of(squares_C) / P)
    values_out[8] = pair_sums[CDNV] / n_pairs
    values_out[9] = simplex_distance(pair_sums[RESIDUAL], total_of(squares_C) / (P - 1), P)


@njit(**OPTIONS)
def classifier_values(squares_V, pair_sums, values_out):
    """The metrics of the classifier alone: values 1, 4, 10."""
    K = len(squares_V)
    values_out[1] = spread_of(squares_V)
    values_out[4] = pair_sums[ANGLE] / (K * (K - 1) / 2)
    values_out[10] = simplex_distance(pair_sums[RESIDUAL], total_of(squares_V) / (K - 1), K)


@njit(**OPTIONS)
def joint_values(C, V, W, along, residual, sums, N, unit, energy, separation, values_out):
    """The metrics of both: values 5 and 11 to 15; V and W are the rows of the classes present.

    `energy` is (|W|^2 + |H|^2) / unit^2.
    """
    values_out[5], values_out[12] = dual_distances(C, V, W)
    values_out[11] = simplex_distance(residual, along, len(C))
    values_out[13] = sums[AGREEMENT] / N
    values_out[14] = sums[MARGIN]
    values_out[15] = 2.0 * separation * (sums[MARGIN] / unit / unit) / energy


@njit(**OPTIONS)
def _geometry_serial(gemm, W, H, y, values_out):
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
    rows = np.empty((P, d))
    for p in range(P):
        counts[present[p]] = starts[p + 1] - starts[p]
        sizes[p] = starts[p + 1] - starts[p]
        for j in range(d):
            rows[p, j] = W[present[p], j]
    g = centre_of(means)
    C = centred(means, g)
    Q, weights, A = basis(gemm, C)
    offset = np.empty(K)
    for k in range(K):
        offset[k] = inner(W[k], g)
    sums = np.empty(N_SUMS)
    clear_sums(sums)
    tilt = np.zeros(len(weights))
    frame = (means, g, Q, A, weights, tilt, squared_norms(C), W, offset)
    deviations_serial(gemm, H, order, owners(starts), present, frame, sums)
    pair_sums = np.empty(N_PAIR_SUMS)
    # A literal True or False would compile everything below a second time.
    same, apart = np.bool_(True), np.bool_(False)
    C, shares = in_units(C, squares)
    squares_C = squared_norms(C)
    along = total_of(squares_C) / (P - 1)
    pairs_serial(gemm, C, C, same, squares_C, shares / sizes, along, pair_sums)
    features_values(squares_C, sizes, shares, sums, pair_sums, values_out)

    V = scaled(W, unit_of(W))
    V = centred(V, centre_of(V))
    squares_V = squared_norms(V)
    along = total_of(squares_V) / (K - 1)
    pairs_serial(gemm, V, V, same, squares_V, squares_V, along, pair_sums)
    classifier_values(squares_V, pair_sums, values_out)

    rows = scaled(rows, unit_of(rows))
    V = centred(rows, centre_of(rows))
    along = along_simplex(V, C)
    pairs_serial(gemm, V, C, apart, squares_C, squares_C, along, pair_sums)
    unit, energy = energy_of(W, means, sizes, squares)
    joint_values(
        C,
        V,
        rows,
        along,
        pair_sums[RESIDUAL],
        sums,
        len(y),
        unit,
        energy,
        separation_constant(counts),
        values_out,
    )


def any_pairs(A, B, same, squares, spreads, along, sums_out):
    """`pairs` where a second thread pays, else `pairs_serial`."""
    run = pairs if len(A) * A.size > SERIAL_WORK else pairs_serial
    with one_thread():
        run(DGEMM, A, B, same, squares, spreads, along, sums_out)


def mean_angle(V):
    """Avg over pairs of `|cos + 1/(K-1)|` of the rows of V, as they are."""
    V = scaled(V, unit_of(V))
    squares = squared_norms(V)
    pair_sums = np.empty(N_PAIR_SUMS)
    any_pairs(V, V, True, squares, squares, 0.0, pair_sums)
    return pair_sums[ANGLE] / (len(V) * (len(V) - 1) / 2)


def features_geometry(C, sizes, squares, sums, values_out):
    """The values of the features alone: centred means C (P, d), class sizes, squares (P,)."""
    C, squares = in_units(C, squares)
    squares_C = squared_norms(C)
    pair_sums = np.empty(N_PAIR_SUMS)
    along = total_of(squares_C) / (len(C) - 1)
    any_pairs(C, C, True, squares_C, squares / sizes, along, pair_sums)
    features_values(squares_C, sizes, squares, sums, pair_sums, values_out)


def classifier_geometry(W, pair_sums_out, values_out):
    """The values of the classifier alone, all its K rows; pair sums are of `W / unit_of(W)`."""
    V = scaled(W, unit_of(W))
    V = centred(V, centre_of(V))
    squares_V = squared_norms(V)
    along = total_of(squares_V) / (len(V) - 1)
    any_pairs(V, V, True, squares_V, squares_V, along, pair_sums_out)
    classifier_values(squares_V, pair_sums_out, values_out)


def joint_geometry(C, W, means, present, counts, squares, sums, pair_sums_out, values_out):
    """The values of both; `counts (K,)` of all classes, the others of the P present ones.

    Pair sums are of the rows present and of C, each divided by its `unit_of`.
    """
    rows = scaled(W[present], unit_of(W[present]))
    C = scaled(C, unit_of(C))
    V = centred(rows, centre_of(rows))
    squares_C = squared_norms(C)
    along = along_simplex(V, C)
    any_pairs(V, C, False, squares_C, squares_C, along, pair_sums_out)
    sizes = counts[present].astype(np.float64)
    unit, energy = energy_of(W, means, sizes, squares)
    joint_values(
        C,
        V,
        rows,
        along,
        pair_sums_out[RESIDUAL],
        sums,
        total_of(sizes),
        unit,
        energy,
        separation_constant(counts),
        values_out,
    )


def _geometry_parallel(W, H, y, values_out):
    values_out[:] = np.nan
    order, present, starts = group(y, len(W))
    if len(present) < 2:
        return
    means = np.empty((len(present), H.shape[1]))
    squares = np.empty(len(present))
    class_moments(H, order, starts, means, squares)
    counts = np.zeros(len(W), np.int64)
    counts[present] = np.diff(starts)
    g = centre_of(means)
    C = centred(means, g)
    Q, weights, A = basis(DGEMM, C)
    sums = np.empty(N_SUMS)
    clear_sums(sums)
    frame = (means, g, Q, A, weights, np.zeros(len(weights)), squared_norms(C), W, W @ g)
    with one_thread():
        deviations(DGEMM, H, order, owners(starts), present, frame, sums)
    features_geometry(C, counts[present].astype(np.float64), squares, sums, values_out)
    pair_sums = np.empty(N_PAIR_SUMS)
    classifier_geometry(W, pair_sums, values_out)
    joint_geometry(C, W, means, present, counts, squares, sums, pair_sums, values_out)


def geometry(W, H, y, values_out):
    """All metrics of one (W, H, y) into `values_out (16,)`, float64; NaN where undefined."""
    work = H.size * len(W)
    if work < ONE_THREAD_WORK:
        _geometry_serial(DGEMM, W, H, y, values_out)
    elif work < SERIAL_WORK:
        with one_thread():
            _geometry_serial(DGEMM, W, H, y, values_out)
    else:
        _geometry_parallel(W, H, y, values_out)
