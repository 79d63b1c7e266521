"""The second pass over features whose class means are known: deviations and decisions.

With `x_i = h_i - m_{y_i}`, `c_k = m_k - g` and `C = A Q` (rows c_k; Q (r, d) orthonormal, in
the eigenvectors of Sigma_B, whose eigenvalues are `lam_j / P`), a sweep over the samples sums

    |x_i|,   |h_i - g|,   sum_j (Q x_i)_j^2 / lam_j      = N tr(Sigma_W Sigma_B^+) / P
    argmax_k <c_k, h_i - g> - |c_k|^2 / 2                the nearest class mean
    argmax_k z_k and z_y - max_{j != y} z_j,  z = W (h_i - g) + (W g + bias)

and the pseudo-inverse is never formed. Letters: N samples, d features, P classes that occur,
K rows of W, r <= min(P - 1, d). Products run over blocks of rows on one BLAS thread each, in
the dtype of Q; their operands are centred in float64 before any rounding. FLOP: 2 N d (r + K)
+ 2 N r P; bytes: H once. Bound by memory while r + K is below about 20, else by GEMM. Blocks
are fixed and their sums added in order: any number of threads gives the same bits.
"""

import numpy as np
from numba import njit, prange

from fastnc.kernels.blas_cpu import _gemm

_SUMS = {"contract", "nsz", "arcp", "reassoc"}
_OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy"}
RANK_CUT = 1e-12
NARROW = 32

# What a sweep sums, in the order of `sums_out`; the last is a minimum.
N_SUMS = 5
DEVIATION, DISTANCE, PROJECTED, AGREEMENT, MARGIN = range(N_SUMS)


@njit(**_OPTIONS)
def clear_sums(sums):
    """The sums of no sample."""
    sums[:] = 0.0
    sums[MARGIN] = np.inf


@njit(**_OPTIONS)
def basis(C):
    """`Q (r, d)`, `lam (r,)` and `A (P, r)`: C = A Q from the smaller of C C^T and C^T C.

    Eigenvalues below 1e-12 of the largest are taken for zero, and one of C C^T always is,
    since the rows of C add up to nothing.
    """
    P, d = C.shape
    if d >= P:
        lam, V = np.linalg.eigh(np.dot(C, C.T))
    else:
        lam, V = np.linalg.eigh(np.dot(C.T, C))
    lo = 1 if d >= P else 0
    while lo < len(lam) and not lam[lo] > RANK_CUT * lam[-1]:
        lo += 1
    r = len(lam) - lo
    U = np.empty((r, len(lam)))
    for j in range(r):
        for k in range(len(lam)):
            U[j, k] = V[k, lo + j]
    lam = lam[lo:]
    if d < P:
        return U, lam, np.dot(C, U.T)
    Q = np.dot(U, C)
    A = np.empty((P, r))
    for j in range(r):
        root = np.sqrt(lam[j])
        for k in range(d):
            Q[j, k] /= root
        for p in range(P):
            A[p, j] = U[j, p] * root
    return Q, lam, A


@njit(fastmath=_SUMS, **_OPTIONS)
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


@njit(**_OPTIONS)
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


@njit(fastmath=_SUMS, **_OPTIONS)
def _centre(H, order, lo, hi, owner, means, g, X, Y, sums):
    """X = h - m_y and Y = h - g for a block, and the sums of their norms."""
    d = H.shape[1]
    for i in range(lo, hi):
        a, p = order[i], owner[i]
        deviation = 0.0
        distance = 0.0
        for j in range(d):
            h = np.float64(H[a, j])
            x = h - means[p, j]
            c = h - g[j]
            deviation += x * x
            distance += c * c
            X[i - lo, j] = x
        if len(Y) > 0:
            for j in range(d):
                Y[i - lo, j] = np.float64(H[a, j]) - g[j]
        sums[DEVIATION] += np.sqrt(deviation)
        sums[DISTANCE] += np.sqrt(distance)


@njit(fastmath=_SUMS, **_OPTIONS)
def _project(gemm, X, Q, A, lam, owner, lo, T, sums):
    """T = X Q^T + A[y], the projections of h - g; those of x enter NC1 before that."""
    matmul_nt(gemm, X, Q, T)
    for i in range(len(X)):
        p = owner[lo + i]
        square = 0.0
        for j in range(len(lam)):
            square += T[i, j] * T[i, j] / lam[j]
            T[i, j] += A[p, j]
        sums[PROJECTED] += square
    if len(lam) == 0:
        sums[PROJECTED] = np.nan


@njit(**_OPTIONS)
def _decide(S, Z, squares_C, offset, owner, present, lo, sums):
    """Nearest means from the scores S, decisions and margins from the logits Z of a block."""
    for i in range(len(S)):
        nearest = 0
        best = S[i, 0] - 0.5 * squares_C[0]
        for p in range(1, S.shape[1]):
            score = S[i, p] - 0.5 * squares_C[p]
            if score > best:
                best = score
                nearest = p
        label = present[owner[lo + i]]
        own = Z[i, label] + offset[label]
        rival = -np.inf
        chosen = label
        for k in range(Z.shape[1]):
            if k != label:
                z = Z[i, k] + offset[k]
                if z > rival:
                    rival = z
                    chosen = k
        if own > rival or (own == rival and label < chosen):
            chosen = label
        sums[AGREEMENT] += chosen == present[nearest]
        sums[MARGIN] = min(sums[MARGIN], own - rival)


@njit(**_OPTIONS)
def _block(gemm, H, order, owner, present, lo, hi, frame, sums):
    """One block of rows; W with no rows asks for no decision."""
    means, g, Q, A, lam, squares_C, W, offset = frame
    n, d = hi - lo, H.shape[1]
    clear_sums(sums)
    # Rows a power of two apart would all fall into the same few sets of a cache.
    stride = d + 8 if d % 256 == 0 else d
    X = np.empty((n, stride), Q.dtype)
    Y = np.empty((n if len(W) > 0 else 0, stride), Q.dtype)
    _centre(H, order, lo, hi, owner, means, g, X, Y, sums)
    T = np.empty((n, len(lam)), Q.dtype)
    _project(gemm, X, Q, A, lam, owner, lo, T, sums)
    if len(W) > 0:
        S = np.empty((n, len(A)), Q.dtype)
        Z = np.empty((n, len(W)), Q.dtype)
        matmul_nt(gemm, T, A, S)
        matmul_nt(gemm, Y, W, Z)
        _decide(S, Z, squares_C, offset, owner, present, lo, sums)


@njit(**_OPTIONS)
def block_rows(d, n_classes):
    """Rows a block: they fit in the level-2 cache, but a wide GEMM wants at least half its width."""
    return min(max(32768 // (d + n_classes), 16, n_classes // 2), 512)


@njit(**_OPTIONS)
def add_sums(blocks, sums_out):
    """Adds the blocks' sums in their order; the margin is the smallest."""
    for b in range(len(blocks)):
        for s in range(N_SUMS):
            if s == MARGIN:
                sums_out[s] = min(sums_out[s], blocks[b, s])
            else:
                sums_out[s] += blocks[b, s]


@njit(**_OPTIONS)
def owners(starts):
    """For each place in the order by class, the number of its class (N,)."""
    owner = np.empty(starts[-1], np.int64)
    for p in range(len(starts) - 1):
        owner[starts[p] : starts[p + 1]] = p
    return owner


@njit(**_OPTIONS)
def deviations_serial(gemm, H, order, owner, present, frame, sums_out):
    """`deviations` on the calling thread alone: the bits are the same."""
    rows = block_rows(H.shape[1], len(frame[6]))
    n_blocks = (len(order) + rows - 1) // rows
    blocks = np.empty((n_blocks, N_SUMS))
    for b in range(n_blocks):
        hi = min((b + 1) * rows, len(order))
        _block(gemm, H, order, owner, present, b * rows, hi, frame, blocks[b])
    add_sums(blocks, sums_out)


@njit(parallel=True, **_OPTIONS)
def deviations(gemm, H, order, owner, present, frame, sums_out):
    """Adds the sums of these samples to `sums_out`.

    `order` visits the samples by class, `owner` is the class of each place of that order (its
    row in `means`), `present` the row of W of each class. `frame` is the tuple (means (P, d),
    g (d,), Q (r, d), A (P, r), lam (r,), |c|^2 (P,), W (K, d) or no row for no decision,
    W g + bias (K,)), of which Q, A and W have the dtype of the products and the others float64.
    """
    rows = block_rows(H.shape[1], len(frame[6]))
    n_blocks = (len(order) + rows - 1) // rows
    blocks = np.empty((n_blocks, N_SUMS))
    for b in prange(n_blocks):
        hi = min((b + 1) * rows, len(order))
        _block(gemm, H, order, owner, present, b * rows, hi, frame, blocks[b])
    add_sums(blocks, sums_out)
