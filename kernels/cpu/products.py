"""The three matrix products of a block of samples, by register tiles or by a one-thread BLAS.

Letters as in tile: K classes, D features in whole vectors, `Z (K, ld)`. `kernels` is the tuple of
`addresses`, with a BLAS's product for the sums over samples or 0 for tiles. The other two products
never use a BLAS, with which the bits of a row would depend on the number of rows. Logits need the
transposed samples, `HT (d, ld)`, or an empty HT where classes or samples are too few for a
transposition to pay. A step of few classes takes both sums at once, with the same bits. Samples are
passed as addresses, and classes as ranges: Numba counts references to every slice by atomic
operations.
"""

import math

import numpy as np

from fastnc.kernels.cpu import blas as blas_cpu
from fastnc.kernels.cpu.addresses import BOTH, DOTS, GEMM, PRODUCT, TRANSPOSE, call
from fastnc.kernels.cpu.aligned import LINE
from fastnc.kernels.cpu.options import INNER, njit
from fastnc.kernels.cpu.processor import VECTOR_BYTES
from fastnc.kernels.cpu.simd_blocks import address
from fastnc.kernels.cpu.tile import BLOCK

# Terms that are added in a row where a shorter chain costs little: one vector of features, or
# samples that fill no vector. Each of up to `BLOCK` such sums adds a rounding.
SHORT = 32


@njit(**INNER)
def transpose(kernels, H, first, rows, d, HT):
    """`HT[f, i] = H[first + i, f]`, f < d; the rest of a last vector of samples is 0."""
    D, L = H.shape[1], VECTOR_BYTES // H.itemsize
    call(kernels[TRANSPOSE], (address(H, first * D), D, rows, d, address(HT, 0), HT.shape[1], L))


@njit(**INNER)
def to_prefetch(number, share, rows_at, D, rows, itemsize):
    """Where part `number` of `share` of the `rows` rows after those at rows_at begins, in lines.

    Products share the lines, since a core can wait for only about a dozen at a time. None are left
    for a product from number `share` on.
    """
    if number >= share:
        return rows_at, 0
    lines = (rows * D * itemsize + share * LINE - 1) // (share * LINE)
    return address(rows_at, rows * D + number * lines * (LINE // itemsize)), lines


@njit(**INNER)
def logits(kernels, W, low, n, H_at, HT, rows, Z, keep, share):
    """`Z[j, i] = <w_j, h_i>` of n classes from `low` on, added to Z where `keep`.

    Of the next `rows` samples, one part of `share` is prefetched meanwhile.
    """
    D, ld, L = W.shape[1], Z.shape[1], VECTOR_BYTES // Z.itemsize
    following, lines = to_prefetch(0, share, H_at, D, rows, Z.itemsize)
    if HT.size:
        call(
            kernels[PRODUCT],
            (
                address(Z, low * ld), ld, n, (rows + L - 1) // L, address(W, low * D), D, 1,
                address(HT, 0), HT.shape[1], HT.shape[0], BLOCK, Z.dtype.type(1.0), np.int64(keep),
                following, lines,
            ),
        )  # fmt: skip
    else:
        call(
            kernels[DOTS],
            (
                address(Z, low * ld), ld, n, rows, address(W, low * D), H_at, D, D // L,
                np.int64(keep), following, lines,
            ),
        )  # fmt: skip


@njit(**INNER)
def class_sums(kernels, Z, low, n, H_at, D, rows, sums, place, share):
    """`sums_j += sum_i Z[j, i] h_i` of n classes from `low` on, whose sums start at `place`.

    Of the next `rows` samples, the second part of `share` is prefetched meanwhile.
    """
    ld, L = Z.shape[1], VECTOR_BYTES // Z.itemsize
    following, lines = to_prefetch(1, share, H_at, D, rows, Z.itemsize)
    if kernels[GEMM] != 0:
        blas_cpu.class_sums(kernels[GEMM], Z, low, n, H_at, D, rows, sums, place)
    else:
        call(
            kernels[PRODUCT],
            (
                address(sums, place), D, n, D // L, address(Z, low * ld), ld, 1, H_at, D, rows,
                SHORT if D == L else BLOCK, Z.dtype.type(1.0), 1, following, lines,
            ),
        )  # fmt: skip


@njit(**INNER)
def sample_sums(kernels, Z, W, low, n, alpha, keep, C_at, rows, N, ahead, lines):
    """`c_i = alpha sum_j Z[j, i] w_j` over n classes from `low` on, added to c_i where `keep`.

    For `rows` of N samples. Meanwhile `lines` cache lines from `ahead` on are prefetched.
    """
    (K, D), ld, L = W.shape, Z.shape[1], VECTOR_BYTES // Z.itemsize
    short = (N < L or D == L) and K <= SHORT * BLOCK
    call(
        kernels[PRODUCT],
        (
            C_at, D, rows, D // L, address(Z, low * ld), 1, ld, address(W, low * D), D, n,
            SHORT if short else BLOCK, alpha, np.int64(keep), ahead, lines,
        ),
    )  # fmt: skip


@njit(**INNER)
def both_sums(kernels, Z, W, H_at, rows, sums, place, alpha, share):
    """`class_sums` of all classes and `sample_sums`, added to the samples themselves, at once.

    Of the next `rows` samples, all parts of `share` but the first are prefetched meanwhile.
    """
    (K, D), ld, L = W.shape, Z.shape[1], VECTOR_BYTES // Z.itemsize
    following, lines = to_prefetch(1, share, H_at, D, rows, Z.itemsize)
    call(
        kernels[BOTH],
        (
            address(sums, place), H_at, address(W, 0), D, D // L, K, address(Z, 0), ld, rows, alpha,
            following, (share - 1) * lines,
        ),
    )  # fmt: skip


@njit(**INNER)
def copy_rows(A, a, B, b, rows, d):
    """The first d entries of `rows` rows of A from row a on, to B from row b on."""
    for i in range(rows):
        for f in range(d):
            B[b + i, f] = A[a + i, f]


@njit(**INNER)
def scale_rows(A, factor):
    """`A *= factor`, in float64: a small factor keeps its digits."""
    for j in range(A.shape[0]):
        for f in range(A.shape[1]):
            A[j, f] = np.float64(A[j, f]) * factor


@njit(**INNER)
def scale_exponentially(A, first, rows, c):
    """Some rows of A times e^c, in two steps: e^c itself may underflow."""
    root = math.exp(0.5 * c)
    for i in range(first, first + rows):
        for f in range(A.shape[1]):
            A[i, f] = np.float64(A[i, f]) * root * root
