"""The second pass over features whose class means are known: deviations and decisions.

With `x_i = h_i - m_{y_i}`, `c_k = m_k - g` and `C = A Q` (rows c_k; Q (r, d) orthonormal, the
eigenvectors of Sigma_B, whose eigenvalues are `1 / (P weights_j)`), a pass over the samples sums

    |x_i|,   |x_i|^2,   |h_i - g|
    sum_j weights_j (Q x_i)_j^2                          = N tr(Sigma_W Sigma_B^+) / P
    (sum_j tilt_j (Q x_i)_j)^2                           for NC1 with another g
    argmax_k <c_k, h_i - g> - |c_k|^2 / 2                the nearest class mean
    argmax_k z_k and z_y - max_{j != y} z_j,  z = W (h_i - g) + (W g + bias)

and how often these two classes agree with each other and with the label; the pseudo-inverse is
never formed. Letters: N samples, d features, P classes that occur, K rows of W, r <= min(P - 1, d).
Where r + K is small, `few_columns` is used. Else products run over blocks of samples on one BLAS
thread each, in the dtype of Q; their operands are centred in float64 before any rounding. Scores
and logits exist for one block and `CLASSES` classes at a time. FLOP: 2 N d (r + K) + 2 N r P;
bytes: H once. Bound by GEMM. Blocks are fixed and their sums added in order: any number of threads
gives the same bits.
"""

import numpy as np
from numba import prange

from fastnc.kernels.cpu.basis import matmul_nt
from fastnc.kernels.cpu.few_columns import few_columns_block, has_few_columns, tables_of
from fastnc.kernels.cpu.options import INNER, OPTIONS, REASSOCIATION, njit
from fastnc.kernels.cpu.projections import ROWS
from fastnc.kernels.cpu.sample_sums import (
    ACCURACY,
    AGREEMENT,
    DEVIATION,
    DISTANCE,
    MARGIN,
    N_SUMS,
    NEAREST,
    PROJECTED,
    SQUARES,
    TILTED,
    add_sums,
    clear_sums,
    expanded_distances,
)

# Classes whose scores a block holds at a time.
CLASSES = 512


@njit(fastmath=REASSOCIATION, **INNER)
def _centre(H, order, owner, lo, means, X, squares):
    """X = h - m_y for a block, and the squares of its rows."""
    for i in range(len(X)):
        a, p = order[lo + i], owner[lo + i]
        square = 0.0
        for j in range(H.shape[1]):
            x = np.float64(H[a, j]) - means[p, j]
            square += x * x
            X[i, j] = x
        squares[i] = square


@njit(fastmath=REASSOCIATION, **INNER)
def _centre_twice(H, order, owner, lo, means, g, X, squares, distances):
    """`_centre`, and the squares of h - g while the row is in cache."""
    for i in range(len(X)):
        a, p = order[lo + i], owner[lo + i]
        square, distance = 0.0, 0.0
        for j in range(H.shape[1]):
            h = np.float64(H[a, j])
            x, z = h - means[p, j], h - g[j]
            square += x * x
            distance += z * z
            X[i, j] = x
        squares[i] = square
        distances[i] = distance


@njit(fastmath=REASSOCIATION, **INNER)
def _project(gemm, X, Q, weights, tilt, T, sums):
    """T = X Q^T, the projections of x, and their contribution to NC1."""
    matmul_nt(gemm, X, Q, T)
    for i in range(len(X)):
        square, tilted = 0.0, 0.0
        for j in range(len(weights)):
            t = np.float64(T[i, j])
            square += t * weights[j] * t
            tilted += t * tilt[j]
        sums[PROJECTED] += square
        sums[TILTED] += tilted * tilted
    if len(weights) == 0:
        sums[PROJECTED] = np.nan


@njit(fastmath=REASSOCIATION, **INNER)
def _shift(T, A, owner, lo, dots):
    """`dots (n,)` = <x_i, c_y>, and T += A[y], the projections of h - g."""
    for i in range(len(T)):
        p = owner[lo + i]
        dot = 0.0
        for j in range(A.shape[1]):
            dot += np.float64(T[i, j]) * A[p, j]
            T[i, j] += A[p, j]
        dots[i] = dot


@njit(**INNER)
def _nearest_means(gemm, T, A, squares_C, nearest):
    """For each row of T the class of the highest score; ties go to the smaller class."""
    best = np.full(len(T), -np.inf)
    nearest[:] = 0
    for p0 in range(0, len(A), CLASSES):
        p1 = min(p0 + CLASSES, len(A))
        S = np.empty((len(T), p1 - p0), T.dtype)
        matmul_nt(gemm, T, A[p0:p1], S)
        for i in range(len(T)):
            for p in range(p0, p1):
                score = S[i, p - p0] - 0.5 * squares_C[p]
                if score > best[i]:
                    best[i] = score
                    nearest[i] = p


@njit(**INNER)
def _decide(gemm, Y, W, offset, owner, present, nearest, lo, sums):
    """Decisions and margins from the logits of a block, beside its nearest means."""
    own = np.empty(len(Y))
    rival = np.full(len(Y), -np.inf)
    chosen = np.zeros(len(Y), np.int64)
    for k0 in range(0, len(W), CLASSES):
        k1 = min(k0 + CLASSES, len(W))
        Z = np.empty((len(Y), k1 - k0), Y.dtype)
        matmul_nt(gemm, Y, W[k0:k1], Z)
        for i in range(len(Y)):
            label = present[owner[lo + i]]
            for k in range(k0, k1):
                z = Z[i, k - k0] + offset[k]
                if k == label:
                    own[i] = z
                elif z > rival[i]:
                    rival[i] = z
                    chosen[i] = k
    for i in range(len(Y)):
        label = present[owner[lo + i]]
        if own[i] > rival[i] or (own[i] == rival[i] and label < chosen[i]):
            chosen[i] = label
        sums[AGREEMENT] += chosen[i] == present[nearest[i]]
        sums[ACCURACY] += chosen[i] == label
        sums[MARGIN] = min(sums[MARGIN], own[i] - rival[i])


@njit(**INNER)
def _wide_block(gemm, H, order, owner, present, lo, hi, frame, sums):
    """One block, products by BLAS; decisions if W has rows, nearest means if A has."""
    means, g, Q, A, weights, tilt, squares_C, W, offset = frame
    n, d = hi - lo, H.shape[1]
    clear_sums(sums)
    # Rows a power of two apart would all fall into the same few sets of a cache.
    stride = d + 8 if d % 256 == 0 else d
    X = np.empty((n, stride), Q.dtype)
    T = np.empty((n, len(weights)), Q.dtype)
    squares, distances = np.empty(n), np.empty(n)
    # Products in single precision are too inexact for distances.
    expands = len(A) > 0 and X.itemsize == 8
    if expands:
        _centre(H, order, owner, lo, means, X, squares)
    else:
        _centre_twice(H, order, owner, lo, means, g, X, squares, distances)
    _project(gemm, X, Q, weights, tilt, T, sums)
    if len(A) > 0:
        dots = np.empty(n)
        _shift(T, A, owner, lo, dots)
        if expands:
            expanded_distances(H, order, owner, lo, n, g, squares, dots, squares_C, distances)
    for i in range(n):
        sums[DEVIATION] += np.sqrt(squares[i])
        sums[SQUARES] += squares[i]
        sums[DISTANCE] += np.sqrt(distances[i])
    if len(A) == 0:
        sums[NEAREST] = np.nan
        return
    nearest = np.empty(n, np.int64)
    _nearest_means(gemm, T, A, squares_C, nearest)
    for i in range(n):
        sums[NEAREST] += nearest[i] == owner[lo + i]
    if len(W) > 0:
        for i in range(n):
            for j in range(d):
                X[i, j] = np.float64(H[order[lo + i], j]) - g[j]
        _decide(gemm, X, W, offset, owner, present, nearest, lo, sums)


@njit(**INNER)
def block_rows(narrow, d, width):
    """Rows of a block, for products with `width` columns.

    For a wide GEMM they fit in the level-2 cache, but are at least half its width.
    """
    if narrow:
        return 16 * ROWS
    return min(max(32768 // (d + width), 16, width // 2), 512)


@njit(**OPTIONS)
def owners(starts):
    """For each place in the order by class, the number of its class (N,)."""
    owner = np.empty(starts[-1], np.int64)
    for p in range(len(starts) - 1):
        for i in range(starts[p], starts[p + 1]):
            owner[i] = p
    return owner


@njit(**INNER)
def _block(gemm, H, order, owner, present, rows, b, narrow, frame, tables, sums):
    """The b-th block of `rows` samples."""
    lo, hi = b * rows, min((b + 1) * rows, len(order))
    if narrow:
        few_columns_block(H, order, owner, present, lo, hi, frame, tables, sums)
    else:
        _wide_block(gemm, H, order, owner, present, lo, hi, frame, sums)


@njit(**INNER)
def deviations_serial(gemm, H, order, owner, present, frame, sums_out):
    """`deviations` in double precision on the calling thread alone, for problems of any shape.

    The bits are those of `deviations` where `has_few_columns`.
    """
    tables = tables_of(gemm, frame, True)
    rows = block_rows(True, 0, 0)
    blocks = np.empty(((len(order) + rows - 1) // rows, N_SUMS))
    for b in range(len(blocks)):
        lo, hi = b * rows, min((b + 1) * rows, len(order))
        few_columns_block(H, order, owner, present, lo, hi, frame, tables, blocks[b])
    add_sums(blocks, sums_out)


@njit(parallel=True, **OPTIONS)
def deviations(gemm, H, order, owner, present, frame, sums_out):
    """Adds the sums of these samples to `sums_out`.

    `order` visits the samples, `owner` is the class of each place of that order (its row in
    `means`), `present` the row of W of each class. `frame` is the tuple (means (P, d), g (d,),
    Q (r, d), A (P, r) or no row for no nearest mean, weights (r,), tilt (r,), |c|^2 (P,), W (K, d)
    or no row for no decision, which needs A too, W g + bias (K,)), of which Q, A and W have the
    dtype of the products and the others float64.
    """
    narrow = has_few_columns(frame)
    tables = tables_of(gemm, frame, narrow)
    rows = block_rows(narrow, H.shape[1], max(len(frame[2]), len(frame[7])))
    blocks = np.empty(((len(order) + rows - 1) // rows, N_SUMS))
    for b in prange(len(blocks)):
        _block(gemm, H, order, owner, present, rows, b, narrow, frame, tables, blocks[b])
    add_sums(blocks, sums_out)
