"""The second pass over features whose class means are known: deviations and decisions.

With `x_i = h_i - m_{y_i}`, `c_k = m_k - g` and `C = A Q` (rows c_k; Q (r, d) orthonormal, the
eigenvectors of Sigma_B, whose eigenvalues are `1 / (P weights_j)`), a sweep over the samples sums

    |x_i|,   |x_i|^2,   |h_i - g|
    sum_j weights_j (Q x_i)_j^2                          = N tr(Sigma_W Sigma_B^+) / P
    (sum_j tilt_j (Q x_i)_j)^2                           what NC1 about another g needs
    argmax_k <c_k, h_i - g> - |c_k|^2 / 2                the nearest class mean
    argmax_k z_k and z_y - max_{j != y} z_j,  z = W (h_i - g) + (W g + bias)

how often these are each other and the label, and the pseudo-inverse is never formed. Letters: N samples, d features, P classes that occur,
K rows of W, r <= min(P - 1, d). Products run over blocks of rows on one BLAS thread each, in
the dtype of Q; their operands are centred in float64 before any rounding. Scores and logits
exist for one block and `CLASSES` classes at a time. FLOP: 2 N d (r + K) + 2 N r P; bytes: H
once. Bound by memory while r + K is below about 20, else by GEMM. Blocks are fixed and their
sums added in order: any number of threads gives the same bits.
"""

import numpy as np
from numba import prange

from fastnc.kernels.cpu.blas import _gemm
from fastnc.kernels.cpu.options import INNER, OPTIONS, njit

_SUMS = {"contract", "nsz", "arcp", "reassoc"}
RANK_CUT = 1e-12
LENGTH_CUT = 1e-14
NARROW = 32
# Classes whose scores a block holds at a time.
CLASSES = 512
# Below this part of |x|^2 + |c|^2 the expansion of |x + c|^2 has cancelled too far.
CANCELLED = 1e-3

# What a sweep sums, in the order of `sums_out`; the last is a minimum.
N_SUMS = 9
(
    DEVIATION, DISTANCE, PROJECTED, TILTED, SQUARES, NEAREST, AGREEMENT, ACCURACY, MARGIN,
) = range(N_SUMS)  # fmt: skip


@njit(**OPTIONS)
def clear_sums(sums):
    """The sums of no sample."""
    sums[:] = 0.0
    sums[MARGIN] = np.inf


@njit(fastmath=_SUMS, **OPTIONS)
def squared_norm(v):
    """`|v|^2`."""
    total = 0.0
    for j in range(len(v)):
        total += v[j] * v[j]
    return total


@njit(fastmath=_SUMS, **INNER)
def _narrow_nt(A, B, out):
    """out = A B^T for a B of few rows, by dot products of 4 x 2 rows at a time.

    BLAS packs both operands first, which costs as much as such a product itself. Features are
    taken 1024 at a time, so that B stays in the level-2 cache beside A.
    """
    m, n, d = len(A), len(B), B.shape[1]
    whole, even = m - m % 4, n - n % 2
    out[:] = 0.0
    for lo in range(0, d, 1024):
        hi = min(lo + 1024, d)
        for i in range(0, whole, 4):
            for c in range(0, even, 2):
                a0, a1, a2, a3 = 0.0, 0.0, 0.0, 0.0
                b0, b1, b2, b3 = 0.0, 0.0, 0.0, 0.0
                for j in range(lo, hi):
                    u, v = B[c, j], B[c + 1, j]
                    a0 += A[i, j] * u
                    a1 += A[i + 1, j] * u
                    a2 += A[i + 2, j] * u
                    a3 += A[i + 3, j] * u
                    b0 += A[i, j] * v
                    b1 += A[i + 1, j] * v
                    b2 += A[i + 2, j] * v
                    b3 += A[i + 3, j] * v
                out[i, c] += a0
                out[i + 1, c] += a1
                out[i + 2, c] += a2
                out[i + 3, c] += a3
                out[i, c + 1] += b0
                out[i + 1, c + 1] += b1
                out[i + 2, c + 1] += b2
                out[i + 3, c + 1] += b3
        for i in range(m):
            for c in range(even if i < whole else 0, n):
                total = 0.0
                for j in range(lo, hi):
                    total += A[i, j] * B[c, j]
                out[i, c] += total


@njit(**OPTIONS)
def matmul_nt(gemm, A, B, out):
    """out = A B^T, by the gemm of their dtype (whose address `gemm` is) where B is wide.

    A may have more columns than B; they are padding.
    """
    m, n, k = len(A), len(B), B.shape[1]
    if n <= NARROW or k == 0:
        _narrow_nt(A, B, out)
        return
    one = A.dtype.type(1.0)
    zero = A.dtype.type(0.0)
    _gemm(gemm, True, False, n, m, k, one, B, 0, k, A, 0, A.shape[1], zero, out, 0, n)


@njit(**OPTIONS)
def basis(gemm, C):
    """`Q (r, d)`, `weights (r,)`, `A (P, r)`: C = A Q, and the pseudo-inverse of C^T C is
    `sum_j weights_j q_j q_j^T`.

    The directions are eigenvectors of the smaller of C C^T and C^T C, but their lengths are
    measured on C itself, with twice the digits that the eigenvalues of its square have. All are
    kept that C has, so that no two means are confused; those whose eigenvalue is below 1e-12 of
    the largest weigh nothing.
    """
    # Products by `matmul_nt`, which is compiled already; `np.dot` is 2 s more for a first run.
    P, d = C.shape
    D = C if d >= P else np.ascontiguousarray(C.T)
    gram = np.empty((len(D), len(D)))
    matmul_nt(gemm, D, D, gram)
    U = np.ascontiguousarray(np.linalg.eigh(gram)[1].T)
    projections = np.empty(D.shape)
    matmul_nt(gemm, U, np.ascontiguousarray(D.T), projections)
    squares = np.empty(len(U))
    largest = 0.0
    for j in range(len(U)):
        squares[j] = squared_norm(projections[j])
        largest = max(largest, squares[j])
    r = 0
    for j in range(len(U)):
        r += squares[j] > LENGTH_CUT**2 * largest
    Q, A, weights = np.empty((r, d)), np.empty((P, r)), np.zeros(r)
    r = 0
    for j in range(len(U)):
        if not squares[j] > LENGTH_CUT**2 * largest:
            continue
        length = np.sqrt(squares[j])
        if squares[j] > RANK_CUT * largest:
            weights[r] = 1.0 / squares[j]
        for k in range(d):
            Q[r, k] = projections[j, k] / length if d >= P else U[j, k]
        for p in range(P):
            A[p, r] = U[j, p] * length if d >= P else projections[j, p]
        r += 1
    return Q, weights, A


@njit(fastmath=_SUMS, **INNER)
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


@njit(fastmath=_SUMS, **INNER)
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


@njit(fastmath=_SUMS, **INNER)
def _distance(h, g):
    """`|h - g|^2`."""
    total = 0.0
    for j in range(len(g)):
        x = np.float64(h[j]) - g[j]
        total += x * x
    return total


@njit(fastmath=_SUMS, **INNER)
def _project(gemm, X, Q, weights, tilt, T, sums):
    """T = X Q^T, the projections of x, and their part in NC1."""
    matmul_nt(gemm, X, Q, T)
    for i in range(len(X)):
        square, tilted = 0.0, 0.0
        for j in range(len(weights)):
            t = np.float64(T[i, j])
            square += t * t * weights[j]
            tilted += t * tilt[j]
        sums[PROJECTED] += square
        sums[TILTED] += tilted * tilted
    if len(weights) == 0:
        sums[PROJECTED] = np.nan


@njit(fastmath=_SUMS, **INNER)
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
def _expand(H, order, owner, lo, g, squares, dots, squares_C, distances):
    """`|h - g|^2 = |x|^2 + 2 <x, c_y> + |c_y|^2`, directly where that cancels."""
    for i in range(len(squares)):
        scale = squares[i] + squares_C[owner[lo + i]]
        distances[i] = scale + 2.0 * dots[i]
        if not distances[i] > CANCELLED * scale:
            distances[i] = _distance(H[order[lo + i]], g)


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
def _block(gemm, H, order, owner, present, lo, hi, frame, sums):
    """One block of rows; W with no rows asks for no decision, A with none for no nearest mean."""
    means, g, Q, A, weights, tilt, squares_C, W, offset = frame
    n, d = hi - lo, H.shape[1]
    clear_sums(sums)
    # Rows a power of two apart would all fall into the same few sets of a cache.
    stride = d + 8 if d % 256 == 0 else d
    X = np.empty((n, stride), Q.dtype)
    T = np.empty((n, len(weights)), Q.dtype)
    squares, distances = np.empty(n), np.empty(n)
    # Rows of products in single precision are no good for distances.
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
            _expand(H, order, owner, lo, g, squares, dots, squares_C, distances)
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


@njit(**OPTIONS)
def block_rows(d, width):
    """Rows a block, for products with `width` columns.

    They fit in the level-2 cache, but a wide GEMM wants at least half its width.
    """
    return min(max(32768 // (d + width), 16, width // 2), 512)


@njit(**OPTIONS)
def add_sums(blocks, sums_out):
    """Adds the blocks' sums in their order; the margin is the smallest."""
    for b in range(len(blocks)):
        for s in range(N_SUMS):
            if s == MARGIN:
                sums_out[s] = min(sums_out[s], blocks[b, s])
            else:
                sums_out[s] += blocks[b, s]


@njit(**OPTIONS)
def owners(starts):
    """For each place in the order by class, the number of its class (N,)."""
    owner = np.empty(starts[-1], np.int64)
    for p in range(len(starts) - 1):
        for i in range(starts[p], starts[p + 1]):
            owner[i] = p
    return owner


@njit(**OPTIONS)
def deviations_serial(gemm, H, order, owner, present, frame, sums_out):
    """`deviations` on the calling thread alone: the bits are the same."""
    rows = block_rows(H.shape[1], max(len(frame[2]), len(frame[7])))
    n_blocks = (len(order) + rows - 1) // rows
    blocks = np.empty((n_blocks, N_SUMS))
    for b in range(n_blocks):
        hi = min((b + 1) * rows, len(order))
        _block(gemm, H, order, owner, present, b * rows, hi, frame, blocks[b])
    add_sums(blocks, sums_out)


@njit(parallel=True, **OPTIONS)
def deviations(gemm, H, order, owner, present, frame, sums_out):
    """Adds the sums of these samples to `sums_out`.

    `order` visits the samples, `owner` is the class of each place of that order (its row in
    `means`), `present` the row of W of each class. `frame` is the tuple (means (P, d), g (d,),
    Q (r, d), A (P, r) or no row for no nearest mean, weights (r,), tilt (r,), |c|^2 (P,),
    W (K, d) or no row for no decision, which needs A too, W g + bias (K,)), of which Q, A and W have the dtype of the products and the others float64.
    """
    rows = block_rows(H.shape[1], max(len(frame[2]), len(frame[7])))
    n_blocks = (len(order) + rows - 1) // rows
    blocks = np.empty((n_blocks, N_SUMS))
    for b in prange(n_blocks):
        hi = min((b + 1) * rows, len(order))
        _block(gemm, H, order, owner, present, b * rows, hi, frame, blocks[b])
    add_sums(blocks, sums_out)
