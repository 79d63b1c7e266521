"""The directions of class means, as an orthonormal basis, and the products that find them.

Letters: P classes, d features, C (P, d) the centred class means. Cost: an eigenvalue problem of
size min(P, d) and `4 P d min(P, d)` FLOP.
"""

import math

import numpy as np

from fastnc.kernels.cpu.blas import _gemm
from fastnc.kernels.cpu.options import INNER, OPTIONS, REASSOCIATION, njit

RANK_CUT = 1e-12
LENGTH_CUT = 1e-14
# Rows of B up to which A B^T is formed without a BLAS.
NARROW = 32


@njit(fastmath=REASSOCIATION, **INNER)
def squared_norm(v):
    """`|v|^2`."""
    total = 0.0
    for j in range(len(v)):
        total += v[j] * v[j]
    return total


@njit(fastmath=REASSOCIATION, **INNER)
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


@njit(**INNER)
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
def unit_of(V):
    """The power of two at or below the largest |V|; 1 where V is 0 or not finite.

    Rows are divided by it before they are squared: nothing rounds, no square under- or overflows.
    """
    largest = 0.0
    for k in range(V.shape[0]):
        for j in range(V.shape[1]):
            largest = max(largest, abs(V[k, j]))
    if not 0.0 < largest < np.inf:
        return 1.0
    return math.ldexp(1.0, max(math.frexp(largest)[1] - 1, -1022))


@njit(**OPTIONS)
def scaled(V, unit):
    """`V / unit`."""
    out = np.empty(V.shape)
    for k in range(V.shape[0]):
        for j in range(V.shape[1]):
            out[k, j] = V[k, j] / unit
    return out


@njit(**OPTIONS)
def basis(gemm, C):
    """`Q (r, d)`, `weights (r,)`, `A (P, r)`: C = A Q, and the pseudo-inverse of C^T C is
    `sum_j weights_j q_j q_j^T`.

    The directions are eigenvectors of the smaller of C C^T and C^T C, but their lengths are
    computed from C itself, with twice the digits that the eigenvalues have. All directions longer
    than 1e-14 of the longest are kept, so that different means stay different; those whose
    eigenvalue is below 1e-12 of the largest have weight 0.
    """
    # Products by `matmul_nt`, which is compiled already; `np.dot` adds 2 s to a first run.
    unit = unit_of(C)
    C = scaled(C, unit)
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
            weights[r] = 1.0 / squares[j] / unit / unit
        for k in range(d):
            Q[r, k] = projections[j, k] / length if d >= P else U[j, k]
        for p in range(P):
            A[p, r] = (U[j, p] * length if d >= P else projections[j, p]) * unit
        r += 1
    return Q, weights, A
