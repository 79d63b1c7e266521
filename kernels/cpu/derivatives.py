"""Residuals and their derivatives along a direction, in place, for products with the Hessian.

For a chunk of samples, class by class, after `residual.combine`; the formulas are those of hessian.
"""

import math

import numpy as np

from fastnc.kernels.cpu.options import INNER, NO_REASSOCIATION, njit
from fastnc.kernels.cpu.residual import CLASSES


@njit(fastmath=NO_REASSOCIATION, **INNER)
def derivatives(Z, V, y, rows, c, shift, S, factor, label_r, losses, s, term):
    """Z, the exponentials, becomes r, and V, the logits' derivatives, becomes r', both over e^c.

    `shift`, `S`, `factor` and `label_r` are those of `combine` for all classes in one block,
    without options; `losses` (float64), `s` (float64) and `term` (the dtype) are work arrays.
    """
    real = Z.dtype.type
    n_classes = Z.shape[0]
    for i in range(rows):
        term[i] = V[y[i], i]
        s[i] = 0.0
        losses[i] = 0.0
    sums = np.empty((2, rows))
    # The label's exponential is 0.
    for block in range(0, n_classes, CLASSES):
        sums[:] = 0.0
        for j in range(block, min(block + CLASSES, n_classes)):
            for i in range(rows):
                e, v = np.float64(Z[j, i]), np.float64(V[j, i])
                sums[0, i] += e * (v - np.float64(term[i]))
                sums[1, i] += e * v
        for i in range(rows):
            s[i] += sums[0, i]
            losses[i] += sums[1, i]
    for i in range(rows):
        # Now s = sum_j p_j (V_j - V_y), divided by e^c.
        s[i] *= factor[i]
        m, x = shift[i], S[0, i] + S[1, i]
        p_y = math.exp(-m) / (math.exp(-m) + x) if m > 0.0 else 1.0 / (1.0 + x * math.exp(m))
        # r' from V_j - V_y less its mean, or from V_j less its mean: where p_y is small, V_y may
        # be large although it hardly matters.
        if p_y < 0.5:
            losses[i] = losses[i] * factor[i] * math.exp(c) + p_y * np.float64(term[i])
            term[i] = real(0.0)
        else:
            losses[i] = s[i] * math.exp(c)
        s[i] *= -p_y
    for j in range(n_classes):
        for i in range(rows):
            p = Z[j, i] * real(factor[i])
            Z[j, i] = p
            V[j, i] = p * ((V[j, i] - term[i]) - real(losses[i]))
    for i in range(rows):
        label = y[i]
        Z[label, i] = real(label_r[i])
        V[label, i] = real(s[i])
