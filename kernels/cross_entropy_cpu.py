"""Cross-entropy of linear logits on the CPU: equation (4), its gradients, and a fused step.

Letters: K classes, d features, N samples, `W (K, d)`, `H (N, d)`, `y (N,)` int64. Per sample,
with `D_j = <w_j - w_y, h>`:

    m = max(0, max_{j != y} D_j)     e_j = exp(D_j - m), j != y     S = sum e_j
    den = exp(-m) + S                r_j = e_j / den                r_y = -S / den
    loss = log1p(S) if m == 0 else m + log(den)

and `grad_W = r^T H`, `grad_H = r W`. Rows are taken in a fixed number of chunks, each with
partial sums of its own that are added in order: the bits do not depend on the threads.
"""

import math

import numpy as np
from numba import njit, prange

N_CHUNKS = 16
FLAGS = {"contract", "nsz", "arcp"}
LOSS, GRADS, STEP = 0, 1, 2


@njit(parallel=True, cache=True, nogil=True, error_model="numpy", fastmath=FLAGS)
def _sweep(mode, W, H, y, scale, lr, losses, dW, grad_H):
    """Chunk sums of the losses and of grad_W; grad_H, or H updated in place."""
    N, d = H.shape
    K = W.shape[0]
    for c in prange(N_CHUNKS):
        r = np.empty(K, W.dtype)
        g = np.empty(d, W.dtype)
        total = 0.0
        for i in range(N * c // N_CHUNKS, N * (c + 1) // N_CHUNKS):
            label = y[i]
            for j in range(K):
                z = W.dtype.type(0.0)
                for f in range(d):
                    z += W[j, f] * H[i, f]
                r[j] = z
            z_y = r[label]
            m = W.dtype.type(0.0)
            for j in range(K):
                r[j] -= z_y
                if j != label:
                    m = max(m, r[j])
            S = W.dtype.type(0.0)
            for j in range(K):
                if j != label:
                    r[j] = math.exp(r[j] - m)
                    S += r[j]
            den = math.exp(-m) + S
            # A label logit that is not finite must show in the loss, whatever the others are.
            total += (math.log1p(S) if m == 0.0 else m + math.log(den)) + 0.0 * z_y
            if mode == LOSS:
                continue
            for j in range(K):
                r[j] /= den
            r[label] = -S / den
            for f in range(d):
                g[f] = 0.0
            for j in range(K):
                for f in range(d):
                    dW[c, j, f] += r[j] * H[i, f]
                    g[f] += r[j] * W[j, f]
            if mode == GRADS:
                for f in range(d):
                    grad_H[i, f] = scale * g[f]
            else:
                for f in range(d):
                    H[i, f] -= lr * (scale * g[f])
        losses[c] = total


@njit(parallel=True, cache=True, nogil=True, error_model="numpy", fastmath=FLAGS)
def _log_sweep(W, H, y, M, losses, dW, grad_H):
    """As `_sweep`, all of it times exp(-M), M <= 0 the largest gap (see `_largest_gap`)."""
    N, d = H.shape
    K = W.shape[0]
    unit = math.exp(M)
    for c in prange(N_CHUNKS):
        r = np.empty(K, W.dtype)
        total = 0.0
        for i in range(N * c // N_CHUNKS, N * (c + 1) // N_CHUNKS):
            label = y[i]
            for j in range(K):
                z = W.dtype.type(0.0)
                for f in range(d):
                    z += W[j, f] * H[i, f]
                r[j] = z
            z_y = r[label]
            m = W.dtype.type(M)
            for j in range(K):
                r[j] -= z_y
                if j != label:
                    m = max(m, r[j])
            shift = max(m, W.dtype.type(0.0)) if M >= 0.0 else W.dtype.type(M)
            S = W.dtype.type(0.0)
            for j in range(K):
                if j != label:
                    r[j] = math.exp(r[j] - shift)
                    S += r[j]
            if M >= 0.0:
                den = math.exp(-shift) + S
                total += math.log1p(S) if shift == 0.0 else shift + math.log(den)
            else:
                x = unit * S
                den = W.dtype.type(1.0 + x)
                total += S * (math.log1p(x) / x) if x > 0.0 else S
            total += 0.0 * z_y
            for j in range(K):
                r[j] /= den
            r[label] = -S / den
            for f in range(d):
                grad_H[i, f] = 0.0
            for j in range(K):
                for f in range(d):
                    dW[c, j, f] += r[j] * H[i, f]
                    grad_H[i, f] += r[j] * W[j, f]
        losses[c] = total


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FLAGS)
def _largest_gap(W, H, y):
    """The largest `D_j` of all samples and all j != y."""
    largest = -np.inf
    for i in range(H.shape[0]):
        z_y = W.dtype.type(0.0)
        for f in range(H.shape[1]):
            z_y += W[y[i], f] * H[i, f]
        for j in range(W.shape[0]):
            if j != y[i]:
                z = W.dtype.type(0.0)
                for f in range(H.shape[1]):
                    z += W[j, f] * H[i, f]
                largest = max(largest, z - z_y)
    return largest


def loss(W, H, y, scale, loss_out):
    """`loss_out[0] = scale * sum of the losses`."""
    losses = np.empty(N_CHUNKS)
    _sweep(LOSS, W, H, y, scale, 0.0, losses, np.empty((0, 0, 0), W.dtype), H[:0])
    loss_out[0] = scale * losses.sum()


def loss_and_grads(W, H, y, scale, loss_out, grad_W_out, grad_H_out):
    """The loss and both gradients, times `scale`."""
    losses = np.empty(N_CHUNKS)
    dW = np.zeros((N_CHUNKS, *W.shape), W.dtype)
    _sweep(GRADS, W, H, y, scale, 0.0, losses, dW, grad_H_out)
    loss_out[0] = scale * losses.sum()
    np.multiply(dW.sum(axis=0), scale, out=grad_W_out)


def log_loss_and_grads(W, H, y, log_loss_out, grad_W_out, grad_H_out):
    """log of the summed loss, and the gradients divided by the loss."""
    M = min(float(_largest_gap(W, H, y)), 0.0)
    losses = np.empty(N_CHUNKS)
    dW = np.zeros((N_CHUNKS, *W.shape), W.dtype)
    _log_sweep(W, H, y, M, losses, dW, grad_H_out)
    total = losses.sum()
    log_loss_out[0] = M + math.log(total)
    np.divide(dW.sum(axis=0), total, out=grad_W_out)
    np.divide(grad_H_out, total, out=grad_H_out)


def gradient_step(W, H, y, scale, lr, loss_out):
    """`W -= lr * grad_W`, `H -= lr * grad_H` in place; the loss is that before the step."""
    losses = np.empty(N_CHUNKS)
    dW = np.zeros((N_CHUNKS, *W.shape), W.dtype)
    _sweep(STEP, W, H, y, scale, lr, losses, dW, H[:0])
    loss_out[0] = scale * losses.sum()
    W -= lr * (scale * dW.sum(axis=0))
