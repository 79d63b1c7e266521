"""Cross-entropy of linear logits on the CPU where W outgrows the caches: classes in ranges.

Letters, formulas and arguments as in weighted_cross_entropy_cpu. There each part of the samples
has a sum for grad_W of its own, K x d numbers; here a thread owns a range of classes, and adds to
its rows of grad_W directly. The samples go by in chunks, each in four steps:

    z_y      the label's logits, one dot product a sample
    e_j      range by range, in blocks: logits, exponentials, and the block's sums over classes
    den      the blocks' sums together: losses, and a factor for every block and sample
    r        range by range: residuals, `grad_W += r^T H`, and the range's own sum r W

The sums r W of the ranges are added in order. A chunk's exponentials, `K x chunk` numbers, are the
largest thing kept, at most 32 MiB in float32 while K is below 130,000; the rest of its traffic
stays in cache, block by block. Ranges, blocks and chunks depend on the shape alone, and so do the
bits. Bound by the GEMM rate: `6KNd` operations, against `8Kd` bytes a chunk for grad_W.
"""

import math

import numpy as np
from numba import prange

from fastnc.kernels.cpu import blas as blas_cpu
from fastnc.kernels.cpu.elementary import exp, log1p
from fastnc.kernels.cpu.options import OPTIONS, njit
from fastnc.kernels.cpu.residual import LIMIT
from fastnc.kernels.cpu.threads import one_thread

FLAGS = {"contract", "nsz", "arcp"}
RANGES = 16
BLOCK = 512
LEAST_CHUNK, MOST_CHUNK = 64, 256
CHUNK_ENTRIES = 1 << 23


@njit(fastmath=FLAGS | {"reassoc"}, **OPTIONS)
def row_sum(z, rows):
    """`sum_i z_i` in the order that suits the machine, which `rows` alone decides."""
    total = z.dtype.type(0.0)
    for i in range(rows):
        total += z[i]
    return total


@njit(**OPTIONS)
def _label_logits(W, H, y, bias, first, rows, z_y):
    for i in range(rows):
        label = y[first + i]
        total = np.float64(bias[label]) if len(bias) else 0.0
        for f in range(W.shape[1]):
            total += np.float64(W[label, f]) * np.float64(H[first + i, f])
        z_y[i] = total


@njit(fastmath=FLAGS, **OPTIONS)
def _exponentials_of(gemm, W, H, y, bias, uniform, first, rows, low, Z, z_y, shift, S, moved):
    """Classes low, low + 1, ... (W and Z have no others): e, their shifts, sums, and sum B D."""
    real = Z.dtype.type
    zero, limit = real(0.0), real(LIMIT)
    for j in range(Z.shape[0] if len(bias) else 0):
        Z[j, :rows] = bias[low + j]
    blas_cpu.logits(gemm, W, H, first, rows, Z, len(bias) > 0)
    for i in range(rows):
        shift[i] = zero
        S[i] = zero
        moved[i] = zero
        label = y[first + i] - low
        if 0 <= label < Z.shape[0]:
            Z[label, i] = z_y[i]
    for j in range(Z.shape[0]):
        for i in range(rows):
            Z[j, i] -= z_y[i]
            shift[i] = max(shift[i], Z[j, i])
    for j in range(Z.shape[0] if len(uniform) else 0):
        for i in range(rows):
            moved[i] += uniform[low + j] * Z[j, i]
    for i in range(rows):
        shift[i] = shift[i] if shift[i] > limit else zero
        label = y[first + i] - low
        if 0 <= label < Z.shape[0]:
            Z[label, i] = -np.inf
    for j in range(Z.shape[0]):
        for i in range(rows):
            Z[j, i] = exp(Z[j, i] - shift[i])
            S[i] += Z[j, i]


@njit(parallel=True, **OPTIONS)
def _exponentials(gemm, W, H, y, bias, uniform, first, rows, Z, z_y, shifts, S, moved):
    K, n_blocks = W.shape[0], S.shape[0]
    for index in prange(RANGES):
        p = np.int64(index)
        for b in range(n_blocks * p // RANGES, n_blocks * (p + 1) // RANGES):
            low, high = b * BLOCK, min((b + 1) * BLOCK, K)
            _exponentials_of(
                gemm, W[low:high], H, y, bias, uniform, first, rows, low, Z[low:high], z_y,
                shifts[b], S[b], moved[b],
            )  # fmt: skip


@njit(**OPTIONS)
def _combine(
    y, weight, uniform, keep, scale, first, rows, z_y, shifts, S, moved, losses, label_r, scales
):
    """Losses; `shifts` becomes every block's factor of e, `label_r` the label's residual."""
    real = S.dtype.type
    n_blocks = S.shape[0]
    all_uniform = uniform.sum()
    total = 0.0
    for i in range(rows):
        label = y[first + i]
        own = all_uniform + keep * (weight[label] if len(weight) else real(1.0))
        scales[i] = scale[first + i] if len(scale) > 1 else scale[0]
        m = shifts[0, i]
        for b in range(1, n_blocks):
            m = max(m, shifts[b, i])
        rest, away = real(0.0), real(0.0)
        for b in range(n_blocks):
            rest += S[b, i] if m == 0.0 else S[b, i] * math.exp(shifts[b, i] - m)
            away += moved[b, i]
        if m == 0.0:
            den = real(1.0) + rest
            loss = own * log1p(rest)
        else:
            den = math.exp(-m) + rest
            loss = own * (m + math.log(den))
        # A label logit that is not finite must show in the loss, whatever the others are.
        loss += real(0.0) * z_y[i] - away
        total += loss
        if len(losses):
            losses[first + i] = loss
        factor = own * scales[i] / den
        others = all_uniform - uniform[label] if len(uniform) else real(0.0)
        label_r[i] = others * scales[i] - rest * factor
        for b in range(n_blocks):
            shifts[b, i] = factor if m == 0.0 else factor * math.exp(shifts[b, i] - m)
    return total


@njit(fastmath=FLAGS, **OPTIONS)
def _products_of(
    gemm, W, H, y, uniform, first, rows, low, fresh, Z, factor, label_r, scales, grad_W, grad_bias,
    own_H,
):  # fmt: skip
    """Residuals of some classes, and their products; `fresh`: own_H holds nothing yet."""
    for j in range(Z.shape[0]):
        for i in range(rows):
            Z[j, i] *= factor[i]
    for j in range(Z.shape[0] if len(uniform) else 0):
        for i in range(rows):
            Z[j, i] -= uniform[low + j] * scales[i]
    for i in range(rows):
        label = y[first + i] - low
        if 0 <= label < Z.shape[0]:
            Z[label, i] = label_r[i]
    if len(grad_W):
        if first == 0:
            grad_W[:] = 0.0
        blas_cpu.class_sums(gemm, Z, H, first, rows, grad_W)
    for j in range(Z.shape[0] if len(grad_bias) else 0):
        total = row_sum(Z[j], rows)
        grad_bias[low + j] = total + (grad_bias[low + j] if first else W.dtype.type(0.0))
    if len(own_H):
        blas_cpu.sample_sums(gemm, Z, W, W.dtype.type(1.0), not fresh, own_H, 0, rows)


@njit(parallel=True, **OPTIONS)
def _products(
    gemm, W, H, y, uniform, first, rows, Z, factors, label_r, scales, grad_W, grad_H, grad_bias,
    sums_H,
):  # fmt: skip
    K, n_blocks = W.shape[0], factors.shape[0]
    for index in prange(RANGES):
        p = np.int64(index)
        start, end = n_blocks * p // RANGES, n_blocks * (p + 1) // RANGES
        if start == end:
            sums_H[p] = 0.0
        for b in range(start, end):
            low, high = b * BLOCK, min((b + 1) * BLOCK, K)
            _products_of(
                gemm, W[low:high], H, y, uniform, first, rows, low, b == start, Z[low:high],
                factors[b], label_r, scales, grad_W[low:high], grad_bias, sums_H[p],
            )  # fmt: skip
    for i in prange(rows if len(grad_H) else 0):
        for f in range(W.shape[1]):
            total = sums_H[0, i, f]
            for p in range(1, RANGES):
                total += sums_H[p, i, f]
            grad_H[first + i, f] = total


def loss_and_grads(
    W, H, y, bias, weight, uniform, keep, scale, total_out, losses_out, grad_W_out, grad_H_out,
    grad_bias_out,
):  # fmt: skip
    """As in weighted_cross_entropy_cpu; `uniform (K,)` is B, or empty, and `keep` is 1 - t."""
    N, d = H.shape
    K = len(W)
    chunk = max(LEAST_CHUNK, min(MOST_CHUNK, CHUNK_ENTRIES // K // 16 * 16))
    n_blocks = -(-K // BLOCK)
    Z = np.empty((K, chunk), W.dtype)
    shifts, S, moved = np.empty((3, n_blocks, chunk), W.dtype)
    z_y, label_r, scales = np.empty((3, chunk), W.dtype)
    sums_H = np.empty((RANGES, chunk if len(grad_H_out) else 0, d), W.dtype)
    gemm = blas_cpu.gemm_address(W.dtype)
    with_grads = len(grad_W_out) + len(grad_H_out) + len(grad_bias_out) > 0
    total = 0.0
    with one_thread():
        for first in range(0, N, chunk):
            rows = min(chunk, N - first)
            _label_logits(W, H, y, bias, first, rows, z_y)
            _exponentials(gemm, W, H, y, bias, uniform, first, rows, Z, z_y, shifts, S, moved)
            total += _combine(
                y, weight, uniform, keep, scale, first, rows, z_y, shifts, S, moved, losses_out,
                label_r, scales,
            )  # fmt: skip
            if with_grads:
                _products(
                    gemm, W, H, y, uniform, first, rows, Z, shifts, label_r, scales, grad_W_out,
                    grad_H_out, grad_bias_out, sums_H,
                )  # fmt: skip
    total_out[0] = total
