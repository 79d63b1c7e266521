"""Gradient flow of small problems on the CPU: its right-hand side, and a solve of a Newton step.

An implicit integrator asks for thousands of these on some hundred numbers each, where the
calls themselves would be what takes the time: both are one compiled call, on one thread.

Letters: K classes, d features, N samples, theta = (W by rows, H by rows). What is solved and
how stands in `fastnc/_flow_newton.py`. 6KNd operations for the right-hand side; (6d + 2K) KN
and (Kd)^2 multiply-adds, complex or real, for a solve. Bound by latency, not by arithmetic:
10 and 60 us at K = 5, n = 10, d = 20.
"""

import math

import numpy as np

from fastnc.kernels.cpu.options import OPTIONS, njit

FLAGS = {"contract", "nsz", "arcp"}


@njit(fastmath=FLAGS, **OPTIONS)
def derivative(theta, K, d, y, log_factor, out):
    """`out = -exp(log_factor + log L) grad log L` of the sum loss L of equation (4).

    Every gap is shifted by the common maximum before it is exponentiated (by its own sample's
    where one is not classified), so that no digit is lost at any margin.
    """
    W = theta[: K * d].reshape(K, d)
    H = theta[K * d :].reshape(-1, d)
    N = H.shape[0]
    r = np.dot(H, W.T)
    common = -np.inf
    for i in range(N):
        z_y = r[i, y[i]]
        for j in range(K):
            r[i, j] -= z_y
            if j != y[i]:
                common = max(common, r[i, j])
    classified = common < 0.0
    unit = math.exp(common) if classified else 1.0
    total = 0.0
    for i in range(N):
        label = y[i]
        shift = common
        if not classified:
            shift = 0.0
            for j in range(K):
                if j != label:
                    shift = max(shift, r[i, j])
        S = 0.0
        for j in range(K):
            if j != label:
                r[i, j] = math.exp(r[i, j] - shift)
                S += r[i, j]
        if classified:
            x = unit * S
            den = 1.0 + x
            total += S * (math.log1p(x) / x) if x > 0.0 else S
        else:
            den = math.exp(-shift) + S
            total += math.log1p(S) if shift == 0.0 else shift + math.log(den)
        for j in range(K):
            r[i, j] /= den
        r[i, label] = -S / den
    log_loss = (common if classified else 0.0) + math.log(total)
    # The residuals are those of the loss over `unit`; `total` is the loss over it, too.
    factor = -math.exp(log_factor + log_loss) / total
    for i in range(N):
        for j in range(K):
            r[i, j] *= factor
    out[: K * d] = np.dot(r.T, H).ravel()
    out[K * d :] = np.dot(r, W).ravel()


@njit(fastmath=FLAGS, **OPTIONS)
def _by_sample(T, x):
    """`T_i x_i` of every sample."""
    out = np.empty_like(x)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            s = T[i, j, 0] * x[i, 0]
            for k in range(1, x.shape[1]):
                s += T[i, j, k] * x[i, k]
            out[i, j] = s
    return out


@njit(fastmath=FLAGS, **OPTIONS)
def solve(W, H, r, T, c, lu, pivots, right, out):
    """`(I + c Hess L / L) out = right`, with the factors of `DirectSolver`; lu column by column.

    All arrays but `pivots` are of one dtype, float64 or complex128.
    """
    K, d = W.shape
    size = K * d
    b_H = right[size:].reshape(-1, d)
    T_b = _by_sample(T, np.dot(b_H, W.T))
    eliminated = b_H - c * np.dot(T_b, W)
    b = right[:size] - c * (np.dot(T_b.T, H) + np.dot(r.T, eliminated)).ravel()
    for i in range(size):
        b[i], b[pivots[i]] = b[pivots[i]], b[i]
    for j in range(size):
        for i in range(j + 1, size):
            b[i] -= lu[i, j] * b[j]
    for j in range(size - 1, -1, -1):
        b[j] /= lu[j, j]
        for i in range(j):
            b[i] -= lu[i, j] * b[j]
    dW = b.reshape(K, d)
    moved = np.dot(H, dW.T) - np.dot(r, c * np.dot(dW, W.T))
    out[:size] = b
    out[size:] = (eliminated - c * (np.dot(r, dW) + np.dot(_by_sample(T, moved), W))).ravel()
