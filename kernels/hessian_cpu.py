"""The Hessian of equation (4) times a direction, on the CPU.

With the gaps `D_j = <w_j - w_y, h>`, their derivatives `D'_j` along `(dW, dH)`, and
`s = sum_{j != y} p_j D'_j`, the residual moves by `p_j (D'_j - s)` for j != y and by `-p_y s`
at the label; nothing cancels in the tail. Then

    HW = dr^T H + r^T dH        HH = dr W + r dW
"""

import math

import numpy as np
from numba import njit, prange

N_CHUNKS = 16
FLAGS = {"contract", "nsz", "arcp"}


@njit(parallel=True, cache=True, nogil=True, error_model="numpy", fastmath=FLAGS)
def _sweep(W, H, y, dW, dH, scale, partial, HH_out):
    """Chunk sums of HW, and HH."""
    N, d = H.shape
    K = W.shape[0]
    for c in prange(N_CHUNKS):
        r = np.empty(K, W.dtype)
        t = np.empty(K, W.dtype)
        for i in range(N * c // N_CHUNKS, N * (c + 1) // N_CHUNKS):
            label = y[i]
            for j in range(K):
                z = W.dtype.type(0.0)
                v = W.dtype.type(0.0)
                for f in range(d):
                    z += W[j, f] * H[i, f]
                    v += W[j, f] * dH[i, f] + dW[j, f] * H[i, f]
                r[j] = z
                t[j] = v
            z_y = r[label]
            t_y = t[label]
            m = W.dtype.type(0.0)
            for j in range(K):
                r[j] -= z_y
                t[j] -= t_y
                if j != label:
                    m = max(m, r[j])
            S = W.dtype.type(0.0)
            s = W.dtype.type(0.0)
            for j in range(K):
                if j != label:
                    r[j] = math.exp(r[j] - m)
                    S += r[j]
                    s += r[j] * t[j]
            den = math.exp(-m) + S
            s /= den
            for j in range(K):
                r[j] /= den
                t[j] = r[j] * (t[j] - s)
            r[label] = -S / den
            t[label] = -(math.exp(-m) / den) * s
            for f in range(d):
                HH_out[i, f] = 0.0
            for j in range(K):
                for f in range(d):
                    partial[c, j, f] += t[j] * H[i, f] + r[j] * dH[i, f]
                    HH_out[i, f] += t[j] * W[j, f] + r[j] * dW[j, f]
            for f in range(d):
                HH_out[i, f] *= scale


def hessian_vector_product(W, H, y, dW, dH, scale, HW_out, HH_out):
    """The Hessian of `scale * sum of the losses` times `(dW, dH)`."""
    partial = np.zeros((N_CHUNKS, *W.shape), W.dtype)
    _sweep(W, H, y, dW, dH, scale, partial, HH_out)
    np.multiply(partial.sum(axis=0), scale, out=HW_out)
