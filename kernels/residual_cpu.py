"""From logits to losses and residuals `r = p - onehot`, in place, for a chunk of samples.

`Z (K, >= rows)` holds the logits class by class, so that samples lie side by side and every
loop below is one vector operation after another. With `D_j = z_j - z_y`:

    shift_i   one number for the chunk, <= 0: 0, or in the log domain the largest gap of all
              (rounded up to a multiple of 16); a sample whose own largest gap m is above
              `LIMIT`, where the exponential could overflow, is shifted by m instead
    e_j       exp(D_j - shift), j != y;     S = sum_{j != y} e_j
    ordinary  x = e^shift S,  den = 1 + x,       loss = e^-shift log1p(x),  r_j = e_j / den
    shifted   den = exp(-m) + S,                 loss = m + log(den)
    r_y       -S / den, never p_y - 1

In the log domain both come out divided by e^shift: nothing underflows, and since a gap differs
from the shift by less than a factor of two wherever it matters, `D_j - shift` is exact.

A NaN in W or H, and an infinity, show in the loss: `0 z_y` is added to it.
Cost: K exponentials and about 25 operations in all a logit and sample; bound by arithmetic.
"""

import math

import numpy as np
from fastnc.kernels.elementary_cpu import exp, log1p
from numba import njit

# e^LIMIT times 10^12 classes is finite in float32.
LIMIT = 60.0
# Shifts are multiples of this, so that a shift seldom changes from chunk to chunk.
STEP = 16.0
FLAGS = {"contract", "nsz", "arcp"}
N_WORK = 4


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FLAGS | {"reassoc"})
def _total(values, n):
    """Sum in float64; any order will do, and this one depends on n alone."""
    total = 0.0
    for i in range(n):
        total += np.float64(values[i])
    return total


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FLAGS)
def exponentials(Z, rows, y, first, in_log_domain, work):
    """Z becomes e (0 in the label's place); returns the chunk's shift and its summed loss.

    `work (4, >= rows)` receives z_y, the samples' shifts, S, and 1 / den.
    """
    K = Z.shape[0]
    real = Z.dtype.type
    own, shifts, S, inverse = work[0], work[1], work[2], work[3]
    for i in range(rows):
        own[i] = Z[y[first + i], i]
        inverse[i] = real(0.0) * own[i]
        Z[y[first + i], i] = -np.inf
        S[i] = real(0.0)
        shifts[i] = -np.inf
    poison = _total(inverse, rows)
    for j in range(K):
        for i in range(rows):
            shifts[i] = Z[j, i] if Z[j, i] > shifts[i] else shifts[i]
    top = real(-np.inf)
    for i in range(rows):
        shifts[i] -= own[i]
        top = max(top, shifts[i])
    shift = 0.0
    if in_log_domain:
        shift = min(0.0, STEP * np.ceil(np.float64(top) / STEP))
    unit = real(math.exp(shift))
    for i in range(rows):
        shifts[i] = shifts[i] if shifts[i] > real(LIMIT) else real(shift)
    for j in range(K):
        for i in range(rows):
            e = exp((Z[j, i] - own[i]) - shifts[i])
            Z[j, i] = e
            S[i] += e
    # Below `tiny`, log1p(x) / x rounds to 1.
    tiny = real(1e-30)
    for i in range(rows):
        x = unit * S[i]
        inverse[i] = real(1.0) / (real(1.0) + x)
        own[i] = S[i] * (log1p(x) / x if x > tiny else real(1.0))
    if top > real(LIMIT):
        for i in range(rows):
            if shifts[i] > real(LIMIT):
                den = math.exp(-shifts[i]) + S[i]
                inverse[i] = real(1.0) / den
                own[i] = shifts[i] + math.log(den)
    return shift, _total(own, rows) + poison


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FLAGS)
def residuals(Z, rows, y, first, factor, work):
    """Z, the exponentials, becomes `factor` r; `work` is as `exponentials` left it."""
    S, inverse = work[2], work[3]
    for i in range(rows):
        inverse[i] *= factor
    for j in range(Z.shape[0]):
        for i in range(rows):
            Z[j, i] *= inverse[i]
    for i in range(rows):
        Z[y[first + i], i] = -S[i] * inverse[i]
