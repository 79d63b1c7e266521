"""Cross-entropy with a bias, class weights, label smoothing and a scale for every sample, on the CPU.

Equation (4) as networks use it. Letters: K classes, d features, N samples, `W (K, d)`,
`H (N, d)`, `y (N,)` int64, b the bias. With `D_j = <w_j - w_y, h> + b_j - b_y`, S and den as in
cross_entropy_cpu, A the weight of a sample and B_j what smoothing puts on class j:

    loss = A log(1 + sum_{j != y} e^{D_j}) - sum_{j != y} B_j D_j
    dloss / dz_j = A e_j / den - B_j,  j != y          the label's entry is minus their sum

so nothing cancels, at any margin. `grad_W = r^T H`, `grad_H = r W`, `grad_b = sum r`, with each
sample's r multiplied by its scale.

Work: `2KNd` multiply-adds for the logits and as many for each of the two large gradients, in
one-thread BLAS calls on chunks of samples; bound by the GEMM rate, at small K by `8Nd` bytes in
float32. Samples are cut into parts, and those into chunks, by the shape alone; each part has sums
of its own that are added in order: the bits do not depend on the threads.
"""

import numpy as np
from numba import njit, prange

from fastnc.kernels.blas_cpu import class_sums, gemm_address, logits, one_thread, sample_sums
from fastnc.kernels.elementary_cpu import exp, log1p

FLAGS = {"contract", "nsz", "arcp"}
MOST_PARTS = 16
# Sums over samples of all parts together, in numbers, unless two parts need more.
PARTIAL_SUMS = 1 << 24
# A logit that no other reaches: its exponential is exactly 0.
NEVER = -1e30


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FLAGS)
def _residuals(Z, y, first, rows, bias, own, uniform, scale, losses, m, S, inverse, moved, z_y):
    """Logits Z (K, rows) become residuals; the losses of samples first, first + 1, ..."""
    K = Z.shape[0]
    one = Z.dtype.type(1.0)
    zero = Z.dtype.type(0.0)
    spread = len(uniform) > 0
    if len(bias):
        for j in range(K):
            for i in range(rows):
                Z[j, i] += bias[j]
    for i in range(rows):
        z_y[i] = Z[y[first + i], i]
        m[i] = zero
        S[i] = zero
        moved[i] = zero
    for j in range(K):
        for i in range(rows):
            Z[j, i] -= z_y[i]
            m[i] = max(m[i], Z[j, i])
    if spread:
        for j in range(K):
            for i in range(rows):
                moved[i] += uniform[j] * Z[j, i]
    for i in range(rows):
        Z[y[first + i], i] = NEVER
    for j in range(K):
        for i in range(rows):
            Z[j, i] = exp(Z[j, i] - m[i])
            S[i] += Z[j, i]
    for i in range(rows):
        # log(den) is log1p(den - 1), and m is above 0 only where den is at least 1.
        rest = exp(-m[i])
        tail = S[i] if m[i] == zero else rest + S[i] - one
        weight = own[first + i] if len(own) else one
        # A label logit that is not finite must show in the loss, whatever the others are.
        losses[first + i] = weight * (m[i] + log1p(tail)) - moved[i] + zero * z_y[i]
        inverse[i] = weight * (scale[first + i] if len(scale) > 1 else scale[0]) / (rest + S[i])
    for j in range(K):
        for i in range(rows):
            Z[j, i] *= inverse[i]
    for i in range(rows):
        Z[y[first + i], i] = -S[i] * inverse[i]
    if spread:
        total = zero
        for j in range(K):
            total += uniform[j]
        for i in range(rows):
            factor = scale[first + i] if len(scale) > 1 else scale[0]
            for j in range(K):
                Z[j, i] -= factor * uniform[j]
            Z[y[first + i], i] += factor * total


@njit(parallel=True, cache=True, nogil=True, error_model="numpy", fastmath=FLAGS)
def _sweep(gemm, W, H, y, bias, own, uniform, scale, chunk, losses, sums, bias_sums, grad_H):
    N, d = H.shape
    K = W.shape[0]
    parts = sums.shape[0]
    for p in prange(parts):
        Z = np.empty((K, chunk), W.dtype)
        m, S = np.empty(chunk, W.dtype), np.empty(chunk, W.dtype)
        inverse, moved = np.empty(chunk, W.dtype), np.empty(chunk, W.dtype)
        z_y = np.empty(chunk, W.dtype)
        first, last = N * p // parts, N * (p + 1) // parts
        while first < last:
            rows = min(chunk, last - first)
            logits(gemm, W, H, first, rows, Z, False)
            _residuals(
                Z, y, first, rows, bias, own, uniform, scale, losses, m, S, inverse, moved, z_y
            )
            if sums.shape[1]:
                class_sums(gemm, Z, H, first, rows, sums[p])
            for j in range(bias_sums.shape[1]):
                for i in range(rows):
                    bias_sums[p, j] += Z[j, i]
            if len(grad_H):
                sample_sums(gemm, Z, W, W.dtype.type(1.0), False, grad_H, first, rows)
            first += rows


@njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def _add_parts(sums, out):
    """`out = sum_p sums[p]`, in the order of p."""
    parts, K, d = sums.shape
    for j in prange(K):
        for f in range(d):
            total = sums[0, j, f]
            for p in range(1, parts):
                total += sums[p, j, f]
            out[j, f] = total


def loss_and_grads(
    W, H, y, bias, own, uniform, scale, losses_out, grad_W_out, grad_H_out, grad_bias_out
):
    """Losses of all samples, and gradients of `sum_i scale_i loss_i`.

    Of length 0 where there is none: `bias (K,)`, `own (N,)` (A of each sample), `uniform (K,)`
    (B), and each gradient that is not wanted (its first dimension). `scale` is (N,) or (1,).
    """
    N, d = H.shape
    K = len(W)
    parts = max(2, min(MOST_PARTS, PARTIAL_SUMS // (K * d), -(-N // 32)))
    chunk = min(256 if K <= 512 else 128, max(N, 1))
    sums = np.zeros((parts, len(grad_W_out), d), W.dtype)
    bias_sums = np.zeros((parts, len(grad_bias_out)), W.dtype)
    with one_thread():
        _sweep(
            gemm_address(W.dtype), W, H, y, bias, own, uniform, scale, chunk, losses_out, sums,
            bias_sums, grad_H_out,
        )  # fmt: skip
    if len(grad_W_out):
        _add_parts(sums, grad_W_out)
    if len(grad_bias_out):
        bias_sums.sum(axis=0, out=grad_bias_out)
