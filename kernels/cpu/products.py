"""The three matrix products of a block of samples, by register tiles or by a one-thread BLAS.

Letters as in tile: K classes, D features in whole vectors, `Z (K, ld)`. `kernels` are `addresses`:
a BLAS's product, which takes the sums over samples, or 0 where a tile does. The other two are by
tiles always: with a BLAS the bits of a row would depend on how many there are. Logits want the
samples transposed, `HT (d, ld)`, or an HT of no size, where classes are too few to pay for that.
"""

import numpy as np

from fastnc.kernels.cpu import blas as blas_cpu
from fastnc.kernels.cpu.addresses import DOTS, GEMM, PRODUCT, TRANSPOSE, call
from fastnc.kernels.cpu.options import INNER, njit
from fastnc.kernels.cpu.processor import VECTOR_BYTES
from fastnc.kernels.cpu.simd_blocks import address


@njit(**INNER)
def transpose(kernels, H, first, rows, d, HT):
    """`HT[f, i] = H[first + i, f]`, f < d; the rest of a last vector of samples is 0."""
    D, L = H.shape[1], VECTOR_BYTES // H.itemsize
    call(kernels[TRANSPOSE], (address(H, first * D), D, rows, d, address(HT, 0), HT.shape[1], L))


@njit(**INNER)
def logits(kernels, W, H, HT, first, rows, Z, keep):
    """`Z[j, i] = <w_j, h_{first + i}>`, added to Z where `keep`."""
    K, D = W.shape
    ld, L = Z.shape[1], VECTOR_BYTES // Z.itemsize
    if HT.size:
        call(
            kernels[PRODUCT],
            (
                address(Z, 0), ld, K, (rows + L - 1) // L, address(W, 0), D, 1, address(HT, 0),
                HT.shape[1], HT.shape[0], Z.dtype.type(1.0), np.int64(keep),
            ),
        )  # fmt: skip
    else:
        call(
            kernels[DOTS],
            (
                address(Z, 0), ld, K, rows, address(W, 0), address(H, first * D), D, D // L,
                np.int64(keep),
            ),
        )  # fmt: skip


@njit(**INNER)
def class_sums(kernels, Z, H, first, rows, sums):
    """`sums[j] += sum_i Z[j, i] h_{first + i}`."""
    K, D = sums.shape
    L = VECTOR_BYTES // Z.itemsize
    if kernels[GEMM] != 0:
        blas_cpu.class_sums(kernels[GEMM], Z, H, first, rows, sums)
    else:
        call(
            kernels[PRODUCT],
            (
                address(sums, 0), D, K, D // L, address(Z, 0), Z.shape[1], 1,
                address(H, first * D), D, rows, Z.dtype.type(1.0), 1,
            ),
        )  # fmt: skip


@njit(**INNER)
def sample_sums(kernels, Z, W, alpha, keep, C, first, rows):
    """`C[first + i] = alpha sum_j Z[j, i] w_j`, added to C where `keep`."""
    K, D = W.shape
    L = VECTOR_BYTES // Z.itemsize
    call(
        kernels[PRODUCT],
        (
            address(C, first * D), D, rows, D // L, address(Z, 0), 1, Z.shape[1],
            address(W, 0), D, K, alpha, np.int64(keep),
        ),
    )  # fmt: skip


@njit(**INNER)
def copy_rows(A, a, B, b, rows, d):
    """The first d entries of `rows` rows of A from row a on, to B from row b on."""
    for i in range(rows):
        for f in range(d):
            B[b + i, f] = A[a + i, f]
