"""The second pass over features for few directions and classes: all products in one reading.

The sums are those of `deviations`. A few samples at a time are centred, x = h - m_y in float64, and
multiplied, while they are in the level-1 cache, with the directions Q and the rows of W at once by
the register tiles of `projections`; no other product has length d. With tables made once,

    |h - g|^2 = |x|^2 + 2 <x, c_y> + |c_y|^2
    <c_p, h - g> - |c_p|^2 / 2 = <A_p, Q x> + meeting[y, p]
    z = W h + bias = W x + logits[y]

Letters: N samples, d features, P classes that occur, K rows of W, r directions. FLOP: 2 N d (r + K)
in float64; bytes: H once. Bound by memory up to about ten columns, else by multiply-adds.
"""

import numpy as np

from fastnc.kernels.cpu.aligned import aligned_doubles
from fastnc.kernels.cpu.basis import matmul_nt
from fastnc.kernels.cpu.options import INNER, njit
from fastnc.kernels.cpu.projections import (
    ROWS,
    SLICE,
    STRIDE,
    add_products,
    centre,
    packed,
    prefetch,
    sum_of_lanes,
    whole_tiles,
    whole_vectors,
)
from fastnc.kernels.cpu.sample_sums import (
    ACCURACY,
    AGREEMENT,
    DEVIATION,
    DISTANCE,
    MARGIN,
    NEAREST,
    PROJECTED,
    SQUARES,
    TILTED,
    clear_sums,
    expanded_distances,
)
from fastnc.kernels.cpu.simd import fma, mul, zeros
from fastnc.kernels.cpu.simd_blocks import add_outer, load_like, store_members

# Directions and classes up to which a sample's products are formed as it is read.
FEW = 128
# Class means up to which a table of P x P numbers stays in a cache.
MOST_MEANS = 1024
# Classes whose scores are summed at a time.
GROUP = 4


@njit(**INNER)
def _products(H, order, owner, lo, n, means, columns, X, T, squares):
    """Of n <= ROWS samples: `T[c, i] = <x_i, b_c>` for the packed columns, and |x_i|^2."""
    d = H.shape[1]
    T[:] = 0.0
    squares[:] = 0.0
    b = 0
    for j0 in range(0, d, SLICE):
        size = min(SLICE, d - j0)
        for i in range(n):
            a, p = order[lo + i], owner[lo + i]
            squares[i] += centre(H, a * d + j0, means, p * d + j0, size, X, i * STRIDE)
            if lo + ROWS + i < len(order):
                prefetch(H, order[lo + ROWS + i] * d + j0, size)
        size = whole_vectors(size)
        add_products(X, size, columns, b, T)
        b += size * len(T)


@njit(**INNER)
def _projected(T, weights, tilt, sums):
    """The contribution of ROWS samples to NC1, from their projections T (r, ROWS), as lanes."""
    square, tilted = zeros(T, 1, ROWS)[0], zeros(T, 1, ROWS)[0]
    for j in range(len(weights)):
        t = load_like(T, j * ROWS, square)
        square = fma(mul(t, weights[j]), t, square)
        tilted = fma(t, tilt[j], tilted)
    sums[PROJECTED] += sum_of_lanes(square)
    sums[TILTED] += sum_of_lanes(mul(tilted, tilted))


@njit(**INNER)
def _scores(T, A, scores):
    """`scores (P, ROWS)` = <c_p, x_i> from the projections T (r, ROWS), for A (r, P) transposed.

    P is a multiple of GROUP: so many sums at a time hide the latency of a multiply-add.
    """
    r, P = A.shape
    for p in range(0, P, GROUP):
        totals = zeros(T, GROUP, ROWS)
        for j in range(r):
            totals = add_outer(totals, A, j * P + p, load_like(T, j * ROWS, totals))
        store_members(scores, p * ROWS, ROWS, totals)


@njit(**INNER)
def _nearest_mean(scores, meeting, i, own):
    """The nearest class mean of sample i of class `own`; ties go to the smaller class.

    With `meeting[y, p] = <c_y, c_p> - |c_p|^2 / 2` a score is `<c_p, x> + meeting[y, p]`. The
    search begins with the sample's own class, mostly the nearest, so that branches are predicted.
    """
    best, nearest = scores[own, i] + meeting[own, own], own
    for p in range(meeting.shape[1]):
        score = scores[p, i] + meeting[own, p]
        if score >= best and (score > best or p < nearest):
            best, nearest = score, p
    return nearest


@njit(**INNER)
def _decision(T, logits, i, p, label):
    """The class that sample i is decided for, and its margin, from T (K, ROWS) = W x."""
    rival = -np.inf
    for k in range(label):
        rival = max(rival, T[k, i] + logits[p, k])
    for k in range(label + 1, logits.shape[1]):
        rival = max(rival, T[k, i] + logits[p, k])
    own = T[label, i] + logits[p, label]
    if own > rival:
        return label, own - rival
    for k in range(logits.shape[1]):
        if T[k, i] + logits[p, k] == rival:
            return k, own - rival
    return label, own - rival


@njit(**INNER)
def tables_of(gemm, frame, narrow):
    """For few columns: Q and W packed, A (r, P) transposed, `<c_y, c_p> - |c_p|^2 / 2` (P, P),
    and `W m_y + bias` (P, K).

    All are empty where the columns are not few.
    """
    means, g, Q, A, _, _, squares_C, W, offset = frame
    P = len(A) if narrow else 0
    meeting, logits = np.empty((P, P), Q.dtype), np.empty((P, len(W)), Q.dtype)
    across = np.zeros((A.shape[1], (P + GROUP - 1) // GROUP * GROUP))
    if P > 0:
        matmul_nt(gemm, A, A, meeting)
        C = np.empty(means.shape, W.dtype)
        for p in range(P):
            for j in range(C.shape[1]):
                C[p, j] = means[p, j] - g[j]
        matmul_nt(gemm, C, W, logits)
    for p in range(P):
        for q in range(P):
            meeting[p, q] -= 0.5 * squares_C[q]
        for k in range(len(W)):
            logits[p, k] += offset[k]
        for j in range(len(across)):
            across[j, p] = A[p, j]
    columns = packed(Q, W) if narrow else np.empty(0)
    return columns, across, meeting, logits


@njit(**INNER)
def few_columns_block(H, order, owner, present, lo, hi, frame, tables, sums):
    """One block of samples, ROWS at a time, all products by register tiles."""
    means, g, _, A, weights, tilt, squares_C, W, _ = frame
    columns, across, meeting, logits = tables
    r = len(weights)
    clear_sums(sums)
    X = aligned_doubles(ROWS * STRIDE)
    T = aligned_doubles(whole_tiles(r + len(W)) * ROWS).reshape((-1, ROWS))
    scores = aligned_doubles(across.shape[1] * ROWS).reshape((-1, ROWS))
    squares, dots, distances = np.empty(ROWS), np.empty(ROWS), np.empty(ROWS)
    for first in range(lo, hi, ROWS):
        n = min(ROWS, hi - first)
        # Rows without a sample add nothing to the sums.
        X[n * STRIDE :] = 0.0
        _products(H, order, owner, first, n, means, columns, X, T, squares)
        _projected(T, weights, tilt, sums)
        for i in range(n):
            dots[i] = 0.0
            for j in range(A.shape[1]):
                dots[i] += T[j, i] * A[owner[first + i], j]
        expanded_distances(H, order, owner, first, n, g, squares, dots, squares_C, distances)
        for i in range(n):
            sums[DEVIATION] += np.sqrt(squares[i])
            sums[SQUARES] += squares[i]
            sums[DISTANCE] += np.sqrt(distances[i])
        _scores(T, across, scores)
        for i in range(n):
            p = owner[first + i]
            nearest = _nearest_mean(scores, meeting, i, p)
            sums[NEAREST] += nearest == p
            if len(W) == 0:
                continue
            chosen, margin = _decision(T[r:], logits, i, p, present[p])
            sums[AGREEMENT] += chosen == present[nearest]
            sums[ACCURACY] += chosen == present[p]
            sums[MARGIN] = min(sums[MARGIN], margin)
    if r == 0:
        sums[PROJECTED] = np.nan


@njit(**INNER)
def has_few_columns(frame):
    """Whether the products have few columns and double precision, and A has rows."""
    Q, A, W = frame[2], frame[3], frame[7]
    few = len(A) <= MOST_MEANS and len(Q) + len(W) <= FEW
    return few and Q.itemsize == 8 and len(A) > 0
