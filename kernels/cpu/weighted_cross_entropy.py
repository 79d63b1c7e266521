"""Cross-entropy with a bias, class weights, label smoothing and a scale for every sample

Equation (4) as networks use it. Letters: K classes, d features, N samples, `W (K, d)`,
`H (N, d)`, `y (N,)` int64, b the bias, v the classes' weights, t the smoothing. With
`D_j = <w_j - w_y, h> + b_j - b_y`, S and den as in residual_cpu, `B_j = t v_j / K`, and the
sample's weight `A = (1 - t) v_y + sum_j B_j`:

    loss = A log(1 + sum_{j != y} e^{D_j}) - sum_{j != y} B_j D_j
    dloss / dz_j = A e_j / den - B_j,  j != y          the label's entry is minus their sum

so nothing cancels but what the smoothing itself balances, at any margin. `grad_W = r^T H`,
`grad_H = r W`, `grad_b = sum r`, with each sample's r multiplied by its scale.

Work: as cross_entropy_cpu, whose arrangement (parts, chunks, register tiles or one-thread BLAS)
this is, with one more pass over a chunk's logits for a bias and two for smoothing; many_classes_cpu
takes over where W is so large that a sum for each part costs more than it saves. The bits do not
depend on the threads.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import prange

from fastnc.kernels.cpu import blas as blas_cpu
from fastnc.kernels.cpu import many_classes as many_classes_cpu
from fastnc.kernels.cpu import tile as tile_cpu
from fastnc.kernels.cpu.options import OPTIONS, njit
from fastnc.kernels.cpu.plan import plan
from fastnc.kernels.cpu.residual import GROUP, N_WORK, exponentials, residuals
from fastnc.kernels.cpu.threads import one_thread

FLAGS = {"contract", "nsz", "arcp"}
# Bytes of W, and classes, from which on classes are divided among the threads, and not samples.
MANY = 4 << 20
MANY_CLASSES = 4096
# Multiply-adds that a second thread would hardly hasten: waking it, and the turns it spins
# through afterwards beside torch's own threads, cost some 0.1 ms.
ONE_PART = 1 << 20
# Multiply-adds of a part, and at least 2^2 parts: each has sums for grad_W to be cleared and added.
PART = 1 << 21
LEAST_PARTS_LOG2 = 2
# Numbers that are added sooner than a second thread is woken.
ALONE = 1 << 17


@njit(**OPTIONS)
def examine(y, n_classes, ignore_index):
    """How many labels are `ignore_index`, and the place of the first that fits nothing, or -1."""
    ignored, bad = 0, -1
    for i in range(len(y)):
        if y[i] == ignore_index:
            ignored += 1
        elif (y[i] < 0 or y[i] >= n_classes) and bad < 0:
            bad = i
    return ignored, bad


@njit(fastmath=FLAGS, **OPTIONS)
def _softmax(Z, rows, y, first, weight, uniform, keep, scale, with_grads, losses, work):
    """Logits Z (K, >= rows) become residuals times their scale; returns the summed loss.

    `work` has two rows more than residual_cpu needs, for z_y and the part that smoothing moves.
    """
    real = Z.dtype.type
    zero = real(0.0)
    z_y, moved = work[N_WORK], work[N_WORK + 1]
    for i in range(rows):
        z_y[i] = Z[y[first + i], i]
        moved[i] = zero
    all_uniform = zero
    for j in range(len(uniform)):
        all_uniform += uniform[j]
        for i in range(rows):
            moved[i] += uniform[j] * (Z[j, i] - z_y[i])
    exponentials(Z, rows, y, first, False, work)
    total = 0.0
    for i in range(rows):
        own = all_uniform + keep * (weight[y[first + i]] if len(weight) else real(1.0))
        # A label logit that is not finite must show in the loss, whatever the others are.
        loss = own * work[0, i] - moved[i] + zero * z_y[i]
        total += loss
        if len(losses):
            losses[first + i] = loss
        z_y[i] = scale[first + i] if len(scale) > 1 else scale[0]
        work[3, i] *= own * z_y[i]
    if with_grads:
        residuals(Z, rows, y, first, real(1.0), work)
        for j in range(len(uniform)):
            for i in range(rows):
                Z[j, i] -= uniform[j] * z_y[i]
        if len(uniform):
            for i in range(rows):
                Z[y[first + i], i] += all_uniform * z_y[i]
    return total


@njit(**OPTIONS)
def one_part(
    gemm, part, chunk, W, H, y, bias, weight, uniform, keep, scale, losses, totals, sums,
    bias_sums, grad_H,
):  # fmt: skip
    """One part: its summed loss, `sums[part] = r^T H`, `bias_sums[part] = sum r`, rows of r W.

    `gemm` is 0 for register tiles, which need `sums` with whole vectors of features.
    """
    N, d = H.shape
    K, n_parts = W.shape[0], len(totals)
    D = sums.shape[2]
    low, high = N * part // n_parts, N * (part + 1) // n_parts
    Z = np.empty((K, chunk + GROUP), W.dtype)
    work = np.empty((N_WORK + 2, chunk + GROUP), W.dtype)
    padded = np.zeros((chunk if d != D else 0, D), W.dtype)
    if d != D:
        wide = np.zeros((K, D), W.dtype)
        tile_cpu.copy_rows(W, 0, wide, 0, K, d)
        W = wide
    one = W.dtype.type(1.0)
    with_bias = len(bias) > 0
    with_grads = sums.shape[1] + bias_sums.shape[1] + len(grad_H) > 0
    total = 0.0
    for j in range(sums.shape[1]):
        for f in range(D):
            sums[part, j, f] = 0.0
    for j in range(bias_sums.shape[1]):
        bias_sums[part, j] = 0.0
    for first in range(low, high, chunk):
        rows = min(chunk, high - first)
        source, target, start, ahead = H, grad_H, first, chunk
        if d != D:
            tile_cpu.copy_rows(H, first, padded, 0, rows, d)
            source, target, start, ahead = padded, padded, 0, 0
        for j in range(len(bias)):
            for i in range(rows):
                Z[j, i] = bias[j]
        if gemm == 0:
            tile_cpu.logits(W, source, start, rows, Z, with_bias, ahead)
        else:
            blas_cpu.logits(gemm, W, source, start, rows, Z, with_bias)
        total += _softmax(Z, rows, y, first, weight, uniform, keep, scale, with_grads, losses, work)
        for j in range(bias_sums.shape[1]):
            bias_sums[part, j] += many_classes_cpu.row_sum(Z[j], rows)
        if sums.shape[1] and gemm == 0:
            tile_cpu.class_sums(Z, source, start, rows, sums[part])
        elif sums.shape[1]:
            blas_cpu.class_sums(gemm, Z, source, start, rows, sums[part])
        if len(grad_H) and gemm == 0:
            tile_cpu.sample_sums(Z, W, one, False, target, start, rows)
        elif len(grad_H):
            blas_cpu.sample_sums(gemm, Z, W, one, False, target, start, rows)
        if len(grad_H) and d != D:
            tile_cpu.copy_rows(padded, 0, grad_H, first, rows, d)
    totals[part] = total


@njit(parallel=True, **OPTIONS)
def all_parts(
    gemm, chunk, W, H, y, bias, weight, uniform, keep, scale, losses, totals, sums, bias_sums,
    grad_H,
):  # fmt: skip
    for index in prange(len(totals)):
        # A loop's index is unsigned where it is parallel: `one_part` would be compiled twice.
        part = np.int64(index)
        one_part(
            gemm, part, chunk, W, H, y, bias, weight, uniform, keep, scale, losses, totals, sums,
            bias_sums, grad_H,
        )  # fmt: skip


@njit(**OPTIONS)
def add_rows(sums, low, high, out):
    """`out[j, f] = sum_p sums[p, j, f]` for some j, in the order of p."""
    for j in range(low, high):
        for f in range(out.shape[1]):
            total = sums[0, j, f]
            for p in range(1, sums.shape[0]):
                total += sums[p, j, f]
            out[j, f] = total


@njit(parallel=True, **OPTIONS)
def add_parts(sums, out):
    for index in prange(out.shape[0]):
        j = np.int64(index)
        add_rows(sums, j, j + 1, out)


def loss_and_grads(
    W, H, y, bias, weight, smoothing, scale, total_out, losses_out, grad_W_out, grad_H_out,
    grad_bias_out,
):  # fmt: skip
    """The sum of all losses (float64), the losses, and gradients of `sum_i scale_i loss_i`.

    Of length 0 where there is none: `bias (K,)`, `weight (K,)`, and each output but the first
    that is not wanted. `scale` is (N,) or (1,).
    """
    K, d = W.shape
    real = W.dtype.type
    uniform = weight[:0]
    if smoothing > 0.0:
        uniform = np.full(K, smoothing / K, W.dtype)
        if len(weight):
            uniform *= weight
    options = bias, weight, uniform, real(1.0 - smoothing), scale
    outs = grad_W_out, grad_H_out, grad_bias_out
    if outgrown(K, d, W.itemsize):
        many_classes_cpu.loss_and_grads(W, H, y, *options, total_out, losses_out, *outs)
        return
    blas, chunk, parts, width = arrangement(K, d, len(H), W.dtype)
    # NumPy asks for large pages.
    sums = np.empty((parts, len(grad_W_out), width), W.dtype)
    bias_sums = np.empty((parts, len(grad_bias_out)), W.dtype)
    totals = np.empty(parts)
    arguments = chunk, W, H, y, *options, losses_out, totals, sums, bias_sums, grad_H_out
    gemm = blas_cpu.gemm_address(W.dtype) if blas else 0
    with one_thread():
        if parts == 1:
            one_part(gemm, 0, *arguments)
        else:
            all_parts(gemm, *arguments)
        if sums.size > ALONE:
            add_parts(sums, grad_W_out)
        else:
            add_rows(sums, 0, len(grad_W_out), grad_W_out)
    total_out[0] = totals.sum()
    bias_sums.sum(axis=0, out=grad_bias_out)


def outgrown(K, d, itemsize):
    """Whether many_classes_cpu takes over."""
    return K * d * itemsize > MANY or K > MANY_CLASSES


class Arrangement(NamedTuple):
    """How a problem is divided; one part needs no second thread."""

    blas: bool
    chunk: int
    parts: int
    width: int  # of the sums for grad_W: whole vectors where register tiles are used


@lru_cache(maxsize=256)
def arrangement(K, d, N, dtype):
    """Of K classes, d features, N samples; `dtype` is NumPy's."""
    how = plan(K, d, N, dtype.itemsize)
    most = 1
    if K * d * N >= ONE_PART:
        # A power of two: as many parts for each of 2 or 4 threads.
        most = 1 << max((K * d * N // PART).bit_length() - 1, LEAST_PARTS_LOG2)
    lanes = tile_cpu.lanes(dtype)
    width = d if how.blas else -(-d // lanes) * lanes
    # What is cleared for a chunk should not be more than its samples need.
    chunk = min(how.chunk, max(-(-N // GROUP), 1) * GROUP)
    return Arrangement(how.blas, chunk, min(how.parts, most), width)
