"""The objective (4) and its gradient in a snapshot, on the calling thread alone.

With `D_j = <w_j - w_y, h>`, `m = max_{j != y} D_j`, `S = sum_{j != y} exp(D_j - m)` and
`a = m + log S` a sample's loss is `log(1 + e^a)` and its residual `exp(D_j - m) e^m / (1 + e^a)`.
Both are divided by `e^shift`, shift the largest a but at most 0, so that nothing underflows at any
margin; the sums are then divided by the loss. Lemma 3.2's beta is one minus half the squared norm
of the sum of theta and the gradient, both normalised, in which nothing cancels.

Letters: K classes, d features, N samples, W (K, d), H (N, d) float64, y (N,) int64. Cost:
`6 N K d` FLOP and N K exponentials; N (K + d) numbers of memory. For problems too small to wait
for a second thread; larger ones use `cross_entropy`, whose tiles take longer to compile than a
short first run may last.
"""

import math

import numpy as np

from fastnc.kernels.cpu.options import INNER, OPTIONS, REASSOCIATION, njit

N_VALUES = 5
# Below it e^a is so small that log(1 + e^a) = e^a.
_TAIL = -37.0


@njit(fastmath=REASSOCIATION, **INNER)
def _logits(W, H, Z):
    for i in range(H.shape[0]):
        for k in range(W.shape[0]):
            z = 0.0
            for f in range(W.shape[1]):
                z += W[k, f] * H[i, f]
            Z[i, k] = z


@njit(**INNER)
def _largest_and_sum(Z, i, label):
    """m and S of sample i; its logits but the label's become exp(D_j - m)."""
    own, m = Z[i, label], -math.inf
    for k in range(Z.shape[1]):
        if k != label and not Z[i, k] - own <= m:
            m = Z[i, k] - own
    S = 0.0
    for k in range(Z.shape[1]):
        if k != label:
            Z[i, k] = math.exp((Z[i, k] - own) - m)
            S += Z[i, k]
    return m, S


@njit(**INNER)
def _scaled_residuals(Z, y, largest, sums):
    """Residuals over e^shift in place of exp(D_j - m); returns the shift and the scaled loss."""
    N, K = Z.shape
    shift = -math.inf
    for i in range(N):
        a = largest[i] + math.log(sums[i])
        if not a <= shift:
            shift = a
    shift = min(shift, 0.0)
    loss = 0.0
    for i in range(N):
        m, S = largest[i], sums[i]
        a = m + math.log(S)
        if a > 0.0:
            loss += a + math.log1p(math.exp(-a))
            factor = 1.0 / (math.exp(-m) + S)
        else:
            e, scaled = math.exp(a), math.exp(m - shift)
            loss += scaled * S * (math.log1p(e) / e if a > _TAIL else 1.0)
            factor = scaled / (1.0 + e)
        for k in range(K):
            Z[i, k] *= factor
        Z[i, y[i]] = -S * factor
    return shift, loss


@njit(fastmath=REASSOCIATION, **INNER)
def _gradients(R, W, H, dW, dH):
    for i in range(H.shape[0]):
        for f in range(H.shape[1]):
            dH[i, f] = 0.0
        for k in range(W.shape[0]):
            r = R[i, k]
            for f in range(H.shape[1]):
                dW[k, f] += r * H[i, f]
                dH[i, f] += r * W[k, f]


@njit(fastmath=REASSOCIATION, **INNER)
def _square(A):
    total = 0.0
    for i in range(A.shape[0]):
        for f in range(A.shape[1]):
            total += A[i, f] * A[i, f]
    return total


@njit(fastmath=REASSOCIATION, **INNER)
def _square_of_sum(A, a, B, b):
    """`|a A + b B|^2`."""
    total = 0.0
    for i in range(A.shape[0]):
        for f in range(A.shape[1]):
            total += (a * A[i, f] + b * B[i, f]) ** 2
    return total


@njit(**OPTIONS)
def objective(W, H, y, values_out):
    """`values_out (5,)`: log of the summed loss, |grad| over the loss, |W|, |H|, 1 - beta."""
    N, K = len(H), len(W)
    Z, largest, sums = np.empty((N, K)), np.empty(N), np.empty(N)
    _logits(W, H, Z)
    for i in range(N):
        largest[i], sums[i] = _largest_and_sum(Z, i, y[i])
    shift, loss = _scaled_residuals(Z, y, largest, sums)
    dW, dH = np.zeros(W.shape), np.empty(H.shape)
    _gradients(Z, W, H, dW, dH)
    slope = math.sqrt(_square(dW) + _square(dH))
    norm_W, norm_H = math.sqrt(_square(W)), math.sqrt(_square(H))
    norm = math.hypot(norm_W, norm_H)
    values_out[0] = shift + math.log(loss)
    values_out[1] = slope / loss
    values_out[2] = norm_W
    values_out[3] = norm_H
    values_out[4] = math.nan
    if norm > 0.0 and slope > 0.0:
        a, b = 1.0 / norm, 1.0 / slope
        values_out[4] = 0.5 * (_square_of_sum(W, a, dW, b) + _square_of_sum(H, a, dH, b))
