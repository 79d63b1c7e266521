"""The Hessian of equation (4) times a direction, on the CPU: section 3.2's second derivative.

Letters as in cross_entropy, `(dW, dH)` the direction. With the gaps `D_j = <w_j - w_y, h>`,
their derivatives `D'_j` along it, and `s = sum_{j != y} p_j D'_j`, the residual's derivative is
`r'_j = p_j (D'_j - s)` for j != y and `-p_y s` at the label; nothing cancels in the tail. Then

    HW = r'^T H + r^T dH        HH = r' W + r dW

Parts and chunks of samples as in chunk_pass: a chunk's logits and their derivatives, class by
class, stay in cache. `14KNd` operations in seven products (the gradients take `6KNd` in three) and
N K exponentials; H and dH are read once. Bound by the multiply-add rate. The bits depend on the
shape and the processor alone.
"""

import math

import numpy as np
from numba import prange

from fastnc.kernels.cpu import products
from fastnc.kernels.cpu import tile as tile_cpu
from fastnc.kernels.cpu.addresses import COMBINE, DERIVATIVES, call
from fastnc.kernels.cpu.aligned import aligned_rows, aligned_zeros
from fastnc.kernels.cpu.chunk_pass import (
    GRADS,
    add_in_parallel,
    forward,
    room,
    samples_of,
)
from fastnc.kernels.cpu.cross_entropy import numbers
from fastnc.kernels.cpu.options import INNER, OPTIONS, njit
from fastnc.kernels.cpu.plan import plan
from fastnc.kernels.cpu.simd_blocks import address
from fastnc.kernels.cpu.threads import one_thread


@njit(**INNER)
def _part(part, n_parts, planned, W, H, y, dW, dH, alpha, sums, shifts, HH):
    """One part: `sums[part] += r'^T H + r^T dH`, over e^shifts[part], and its rows of HH."""
    chunk, transposes = planned[0], planned[2]
    kernels = planned[3:]
    (N, d), (K, D) = H.shape, W.shape
    low, high = samples_of(part, n_parts, N, chunk)
    ld = room(chunk, W.itemsize)
    Z, V = aligned_rows(K, ld, W), aligned_rows(K, ld, W)
    height = d if transposes else 0
    HT, dHT = aligned_rows(height, ld, W), aligned_rows(height, ld, W)
    z_y, term, top = np.empty(ld, W.dtype), np.empty(ld, W.dtype), np.empty((1, ld))
    S, wide = np.empty((1, 2, ld)), np.empty((4, ld))
    factor, label_r, losses, s = wide[0], wide[1], wide[2], wide[3]
    found, zero = np.empty(1), np.int64(0)
    none = W[0, :0]
    own_H = aligned_rows(chunk if d != D else 0, D, W)
    own_dH = aligned_rows(chunk if d != D else 0, D, W)
    own_H[:], own_dH[:] = 0.0, 0.0
    running = -np.inf
    for first in range(low, high, chunk):
        rows = min(chunk, high - first)
        H_at, dH_at = address(H, first * d), address(dH, first * d)
        out_at = address(HH, first * d)
        if d != D:
            products.copy_rows(H, first, own_H, 0, rows, d)
            products.copy_rows(dH, first, own_dH, 0, rows, d)
            H_at, dH_at = address(own_H, 0), address(own_dH, 0)
            out_at = H_at
        if transposes:
            products.transpose(kernels, H, first, rows, d, HT)
            products.transpose(kernels, dH, first, rows, d, dHT)
        products.logits(kernels, W, zero, K, dH_at, dHT, rows, V, False, 2)
        products.logits(kernels, dW, zero, K, H_at, HT, rows, V, True, 2)
        forward(
            GRADS, 0, kernels, zero, K, True, W, H_at, HT, y, first, rows, none, none, Z, z_y,
            zero, top, S, s, address(term, 0),
        )  # fmt: skip
        call(
            kernels[COMBINE],
            (
                address(y, first), rows, ld, np.int64(1), K, running, address(none, 0),
                len(none), address(none, 0), len(none), 0.0, 1.0, address(z_y, 0), address(top, 0),
                address(S, 0), address(s, 0), address(factor, 0), address(label_r, 0),
                address(losses, 0), address(found, 0),
            ),
        )  # fmt: skip
        c = found[0]
        if c > running:
            if running > -np.inf:
                products.scale_rows(sums[part], math.exp(running - c))
            running = c
        call(
            kernels[DERIVATIVES],
            (
                address(Z, 0), address(V, 0), K, ld, address(y, first), rows, c, address(top, 0),
                address(S, 0), address(factor, 0), address(label_r, 0), address(losses, 0),
                address(s, 0), address(term, 0),
            ),
        )  # fmt: skip
        place = part * K * D
        products.class_sums(kernels, V, zero, K, H_at, D, rows, sums, place, 2)
        products.class_sums(kernels, Z, zero, K, dH_at, D, rows, sums, place, 2)
        ahead, lines = products.to_prefetch(0, 1, address(HH, first * d), d, rows, W.itemsize)
        products.sample_sums(kernels, V, W, zero, K, alpha, False, out_at, rows, N, ahead, lines)
        products.sample_sums(kernels, Z, dW, zero, K, alpha, True, out_at, rows, N, ahead, zero)
        if c != 0.0:
            if d != D:
                products.scale_exponentially(own_H, 0, rows, c)
            else:
                products.scale_exponentially(HH, first, rows, c)
        if d != D:
            products.copy_rows(own_H, 0, HH, first, rows, d)
    shifts[part] = running


@njit(parallel=True, **OPTIONS)
def _parts(n_parts, planned, W, H, y, dW, dH, alpha, sums, shifts, HH):
    for index in prange(n_parts):
        _part(np.int64(index), n_parts, planned, W, H, y, dW, dH, alpha, sums, shifts, HH)


def hessian_vector_product(W, H, y, dW, dH, scale, HW_out, HH_out):
    """The Hessian of `scale * sum of the losses` times `(dW, dH)`."""
    K, d = W.shape
    # Two of every matrix: a problem of twice the features, as far as caches are concerned.
    planned = plan(K, 2 * d, len(H), W.itemsize, by_samples=True)
    W, dW = tile_cpu.padded(W), tile_cpu.padded(dW)
    sums, shifts = aligned_zeros((planned.parts, *W.shape), W.dtype), np.empty(planned.parts)
    arguments = W, H, y, dW, dH, W.dtype.type(scale), sums, shifts, HH_out
    with one_thread():
        _parts(planned.parts, numbers(planned, W.dtype), *arguments)
        top = shifts.max()
        add_in_parallel(sums, shifts - top, top, scale, False, HW_out)
