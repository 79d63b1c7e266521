"""Residuals and their derivatives along a direction, in place, for products with the Hessian.

For a chunk of samples, class by class, after `residual.combine`; the formulas are those of hessian.
"""

import math

import numpy as np

from fastnc.kernels.cpu.options import INNER, NO_REASSOCIATION, njit
from fastnc.kernels.cpu.residual import CLASSES


@njit(fastmath=NO_REASSOCIATION, **INNER)
def _references(Z, V, y, shift, S, factor, p_y, largest, term):
    """`term`: V of the class with more than half of the probability, 0 where there is none.

    `p_y` receives the labels' probabilities; `largest` (float64) is a work array.
    """
    rows, any_other = len(y), False
    for i in range(rows):
        m, x = shift[i], S[0, i] + S[1, i]
        p_y[i] = math.exp(-m) / (math.exp(-m) + x) if m > 0.0 else 1.0 / (1.0 + x * math.exp(m))
        # As large as an exponential that is more than half of all; the label's is 0. The largest
        # is 1 where m > 0, and where not, the label is as likely as any.
        other = m > 0.0 and factor[i] > 0.5
        largest[i] = 0.5 / factor[i] if other else np.inf
        term[i] = 0.0 if p_y[i] < 0.5 else V[y[i], i]
        any_other |= other
    for j in range(len(Z) if any_other else 0):
        for i in range(rows):
            term[i] = V[j, i] if np.float64(Z[j, i]) > largest[i] else term[i]


@njit(fastmath=NO_REASSOCIATION, **INNER)
def derivatives(Z, V, y, rows, c, shift, S, factor, label_r, means, s, term):
    """Z, the exponentials, becomes r, and V, the logits' derivatives, becomes r', both over e^c.

    `shift`, `S`, `factor` and `label_r` are those of `combine` for all classes in one block,
    without options; `means` (float64), `s` (float64) and `term` (the dtype) are work arrays.

    V_j less its mean is formed of differences to a class that has more than half of the
    probability, so that nothing cancels there, and where none has, of V itself.
    """
    real = Z.dtype.type
    n_classes = Z.shape[0]
    p_y, sums = np.empty(rows), np.empty(rows)
    _references(Z, V, y, shift, S, factor, p_y, s, term)
    for i in range(rows):
        s[i] = 0.0
    for block in range(0, n_classes, CLASSES):
        sums[:] = 0.0
        for j in range(block, min(block + CLASSES, n_classes)):
            for i in range(rows):
                sums[i] += np.float64(Z[j, i]) * (np.float64(V[j, i]) - np.float64(term[i]))
        for i in range(rows):
            s[i] += sums[i]
    scale = math.exp(c)
    for i in range(rows):
        # Without the label, whose exponential is 0: it adds nothing where it is the reference, and
        # elsewhere c is 0.
        s[i] *= factor[i]
        own = np.float64(V[y[i], i]) - np.float64(term[i])
        means[i] = s[i] * scale + p_y[i] * own
        s[i] = p_y[i] * (own - means[i]) if p_y[i] < 0.5 else -p_y[i] * s[i]
    for j in range(n_classes):
        for i in range(rows):
            p = Z[j, i] * real(factor[i])
            Z[j, i] = p
            V[j, i] = p * ((V[j, i] - term[i]) - real(means[i]))
    for i in range(rows):
        label = y[i]
        Z[label, i] = real(label_r[i])
        V[label, i] = real(s[i])
