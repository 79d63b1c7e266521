"""The Hessian of equation (4) times a direction, on the CPU: section 3.2's second derivative.

Letters as in cross_entropy_cpu, `(dW, dH)` the direction. With the gaps `D_j = <w_j - w_y, h>`,
their derivatives `D'_j` along it, and `s = sum_{j != y} p_j D'_j`, the residual moves by
`r'_j = p_j (D'_j - s)` for j != y and by `-p_y s` at the label; nothing cancels in the tail. Then

    HW = r'^T H + r^T dH        HH = r' W + r dW

Parts and chunks of samples as in cross_entropy_cpu: a chunk's logits and their derivatives, class
by class, stay in cache. `12KNd` operations in seven products and N K exponentials, twice those of
the gradients; H and dH are read once. Bound by the multiply-add rate. The bits depend on the shape
alone.
"""

import numpy as np
from numba import prange

from fastnc.kernels.cpu import blas as blas_cpu
from fastnc.kernels.cpu import tile as tile_cpu
from fastnc.kernels.cpu.options import OPTIONS, njit
from fastnc.kernels.cpu.plan import plan
from fastnc.kernels.cpu.residual import GROUP, N_WORK, derivatives, exponentials
from fastnc.kernels.cpu.threads import one_thread


@njit(**OPTIONS)
def _part(gemm, part, n_parts, chunk, W, H, y, dW, dH, alpha, sums, HH):
    """One part: `sums[part] += r'^T H + r^T dH`, and its rows of HH."""
    N, d = H.shape
    K, D = W.shape
    low, high = N * part // n_parts, N * (part + 1) // n_parts
    Z = np.empty((K, chunk + GROUP), W.dtype)
    V = np.empty((K, chunk + GROUP), W.dtype)
    work = np.empty((N_WORK, chunk + GROUP), W.dtype)
    size = chunk if d != D else 0
    own_H, own_dH = np.zeros((size, D), W.dtype), np.zeros((size, D), W.dtype)
    for first in range(low, high, chunk):
        rows = min(chunk, high - first)
        A, B, out, start = H, dH, HH, first
        if d != D:
            tile_cpu.copy_rows(H, first, own_H, 0, rows, d)
            tile_cpu.copy_rows(dH, first, own_dH, 0, rows, d)
            A, B, out, start = own_H, own_dH, own_H, 0
        if gemm == 0:
            tile_cpu.logits(W, A, start, rows, Z, False, 0)
            tile_cpu.logits(W, B, start, rows, V, False, 0)
            tile_cpu.logits(dW, A, start, rows, V, True, 0)
        else:
            blas_cpu.logits(gemm, W, A, start, rows, Z, False)
            blas_cpu.logits(gemm, W, B, start, rows, V, False)
            blas_cpu.logits(gemm, dW, A, start, rows, V, True)
        exponentials(Z, rows, y, first, False, work)
        derivatives(Z, V, rows, y, first, work)
        if gemm == 0:
            tile_cpu.class_sums(V, A, start, rows, sums[part])
            tile_cpu.class_sums(Z, B, start, rows, sums[part])
            tile_cpu.sample_sums(V, W, alpha, False, out, start, rows)
            tile_cpu.sample_sums(Z, dW, alpha, True, out, start, rows)
        else:
            blas_cpu.class_sums(gemm, V, A, start, rows, sums[part])
            blas_cpu.class_sums(gemm, Z, B, start, rows, sums[part])
            blas_cpu.sample_sums(gemm, V, W, alpha, False, out, start, rows)
            blas_cpu.sample_sums(gemm, Z, dW, alpha, True, out, start, rows)
        if d != D:
            tile_cpu.copy_rows(own_H, 0, HH, first, rows, d)


@njit(parallel=True, **OPTIONS)
def _parts(gemm, n_parts, chunk, W, H, y, dW, dH, alpha, sums, HH):
    for index in prange(n_parts):
        part = np.int64(index)
        _part(gemm, part, n_parts, chunk, W, H, y, dW, dH, alpha, sums, HH)


def hessian_vector_product(W, H, y, dW, dH, scale, HW_out, HH_out):
    """The Hessian of `scale * sum of the losses` times `(dW, dH)`."""
    K, d = W.shape
    # Two of every matrix: a problem of twice the features, as far as caches are concerned.
    how = plan(K, 2 * d, len(H), W.itemsize)
    gemm = blas_cpu.gemm_address(W.dtype) if how.blas else 0
    if not how.blas:
        W, dW = tile_cpu.padded(W), tile_cpu.padded(dW)
    sums = np.zeros((how.parts, *W.shape), W.dtype)
    arguments = (how.parts, how.chunk, W, H, y, dW, dH, W.dtype.type(scale), sums, HH_out)
    if how.parts == 1 and not how.blas:
        _part(gemm, 0, *arguments)
    else:
        with one_thread():
            _parts(gemm, *arguments)
    np.sum(sums[:, :, :d], axis=0, out=HW_out)
    HW_out *= W.dtype.type(scale)
