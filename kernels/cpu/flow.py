"""Gradient flow on the CPU: its right-hand side, and two ways to solve its Newton systems.

An implicit integrator calls these thousands of times on some hundred or thousand numbers, where
the overhead of several calls would dominate: each is one compiled call.

Letters: K classes, d features, N samples, theta = (W by rows, H by rows). The systems and methods
are described in `fastnc/dynamics/integrator/newton.py`. 6KNd operations for the right-hand side;
(7d + 3K) KN and (Kd)^2 multiply-adds, complex or real, for a direct solve; 12KNd operations for a
Hessian product, of which an iterative solve makes one or two at each of its steps. Small problems
are bound by latency, not by arithmetic: 4 us for a right-hand side and 60 us for a direct solve at
K = 5, n = 10, d = 20. Large ones are bound by the matrix products, which a BLAS computes.
"""

import math

import numpy as np

from fastnc.kernels.cpu.elementary import exp
from fastnc.kernels.cpu.options import INNER, NO_REASSOCIATION, OPTIONS, REASSOCIATION, njit


@njit(fastmath=REASSOCIATION, **INNER)
def _gaps(r, label):
    """`r_j - r_label` in place, `-inf` at the label itself; the largest."""
    z_y, largest = r[label], -np.inf
    for j in range(len(r)):
        r[j] -= z_y
    r[label] = -np.inf
    for j in range(len(r)):
        largest = max(largest, r[j])
    return largest


@njit(fastmath=REASSOCIATION, **INNER)
def _exponentials(r, shift):
    """`e^(r - shift)` in place; their sum."""
    S = 0.0
    for j in range(len(r)):
        r[j] = exp(r[j] - shift)
        S += r[j]
    return S


@njit(fastmath=NO_REASSOCIATION, **OPTIONS)
def derivative(theta, K, d, y, log_factor, out):
    """`out = -exp(log_factor + log L) grad log L` of the sum loss L of equation (4).

    Every gap is shifted by the common maximum before it is exponentiated (by its own sample's
    maximum where some sample is misclassified), so that no digit is lost at any margin.
    """
    W = theta[: K * d].reshape(K, d)
    H = theta[K * d :].reshape(-1, d)
    N = H.shape[0]
    r, largest, common = np.dot(H, W.T), np.empty(N), -np.inf
    for i in range(N):
        largest[i] = _gaps(r[i], y[i])
        common = max(common, largest[i])
    classified = common < 0.0
    unit = math.exp(common) if classified else 1.0
    total = 0.0
    for i in range(N):
        shift = common if classified else max(0.0, largest[i])
        S = _exponentials(r[i], shift)
        if classified:
            x = unit * S
            den = 1.0 + x
            total += S * (math.log1p(x) / x) if x > 0.0 else S
        else:
            den = math.exp(-shift) + S
            total += math.log1p(S) if shift == 0.0 else shift + math.log(den)
        for j in range(K):
            r[i, j] /= den
        r[i, y[i]] = -S / den
    log_loss = (common if classified else 0.0) + math.log(total)
    # The residuals are those of the loss over `unit`; `total` is the loss over it, too.
    factor = -math.exp(log_factor + log_loss) / total
    for i in range(N):
        for j in range(K):
            r[i, j] *= factor
    np.dot(r.T, H, out[: K * d].reshape(K, d))
    np.dot(r, W, out[K * d :].reshape(N, d))


@njit(fastmath=NO_REASSOCIATION, **INNER)
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


@njit(fastmath=NO_REASSOCIATION, **OPTIONS)
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
    dZ = np.dot(H, dW.T) - np.dot(r, c * np.dot(dW, W.T))
    out[:size] = b
    out[size:] = (eliminated - c * (np.dot(r, dW) + np.dot(_by_sample(T, dZ), W))).ravel()


@njit(fastmath=REASSOCIATION, **INNER)
def _hessian_product(W, H, y, scaled, weights, r, x, dZ, like_Z, out):
    """`out` = the Hessian of (4), over the loss, times `x`: as `Residuals.hessian_product`.

    `dZ` and `like_Z` (N, K) are room for what is computed on the way.
    """
    K, d = W.shape
    N = H.shape[0]
    dW, dH = x[: K * d].reshape(K, d), x[K * d :].reshape(N, d)
    np.dot(dH, W.T, dZ)
    np.dot(H, dW.T, like_Z)
    for i in range(N):
        label = y[i]
        own, mean, at_label = dZ[i, label] + like_Z[i, label], 0.0, 0.0
        # The sums leave the label out: the change of its gap is 0.
        for j in range(K):
            dZ[i, j] += like_Z[i, j] - own
        dZ[i, label] = 0.0
        for j in range(K):
            mean += weights[i, j] * dZ[i, j]
            at_label += scaled[i, j] * dZ[i, j]
        for j in range(K):
            dZ[i, j] = scaled[i, j] * (dZ[i, j] - mean)
        dZ[i, label] = -weights[i, label] * at_label
    out_W, out_H = out[: K * d].reshape(K, d), out[K * d :].reshape(N, d)
    np.dot(dZ.T, H, out_W)
    out_W += np.dot(r.T, dH)
    np.dot(dZ, W, out_H)
    out_H += np.dot(r, dW)


@njit(fastmath=REASSOCIATION, **INNER)
def _square(x):
    """The sum of squares of all entries."""
    found = 0.0
    for k in range(x.shape[0]):
        for i in range(x.shape[1]):
            found += x[k, i] ** 2
    return found


@njit(fastmath=REASSOCIATION, **INNER)
def _scaled(v, scale, out):
    """`out = v scale`; a complex scale where there are two rows, real and imaginary."""
    c, c_ = scale.real, scale.imag
    if len(v) == 1:
        for i in range(v.shape[1]):
            out[0, i] = v[0, i] * c
        return
    for i in range(v.shape[1]):
        x, x_ = v[0, i], v[1, i]
        out[0, i], out[1, i] = x * c - x_ * c_, x * c_ + x_ * c


@njit(fastmath=REASSOCIATION, **INNER)
def _shifted_and_added(by, p, by_before, p_before, unit, v, scale, step, out):
    """`p_before = (v unit - by p - by_before p_before) scale` and `out += step p_before`; |out|^2.

    `unit` is real, the other scalars are complex; of one row the vectors are real, of two (real,
    imaginary).
    """
    found = 0.0
    a, b, c = by.real, by_before.real, scale.real
    if len(v) == 1:
        for i in range(v.shape[1]):
            new = (unit * v[0, i] - a * p[0, i] - b * p_before[0, i]) * c
            p_before[0, i] = new
            out[0, i] += step.real * new
            found += out[0, i] ** 2
        return found
    a_, b_, c_ = by.imag, by_before.imag, scale.imag
    for i in range(v.shape[1]):
        x, x_, z, z_ = p[0, i], p[1, i], p_before[0, i], p_before[1, i]
        new = unit * v[0, i] - a * x + a_ * x_ - b * z + b_ * z_
        new_ = unit * v[1, i] - a * x_ - a_ * x - b * z_ - b_ * z
        new, new_ = new * c - new_ * c_, new * c_ + new_ * c
        p_before[0, i], p_before[1, i] = new, new_
        out[0, i] += step.real * new - step.imag * new_
        out[1, i] += step.real * new_ + step.imag * new
        found += out[0, i] ** 2 + out[1, i] ** 2
    return found


@njit(fastmath=REASSOCIATION, **INNER)
def _orthogonal(u, by, v, by_before, v_before):
    """`u -= by v + by_before v_before`; |u|^2."""
    found = 0.0
    for k in range(u.shape[0]):
        for i in range(u.shape[1]):
            u[k, i] -= by * v[k, i] + by_before * v_before[k, i]
            found += u[k, i] ** 2
    return found


@njit(fastmath=REASSOCIATION, **OPTIONS)
def minimal_residual(
    W, H, y, scaled, weights, r, b, pull_W, pull_H, sigma, right, tolerance, most, room, like_Z, out
):  # fmt: skip
    """`(sigma I + A) out = right` to a relative `tolerance`; False if `most` steps do not suffice.

    A is `b Hess L / L` plus a diagonal: `pull_W` for the entries of W, `pull_H` for those of H.
    `right` and `out` have a row of real parts and, with a complex sigma, one of imaginary parts.
    `room` (5, of the shape of `right`) and `like_Z` (2, N, K) are room for the iteration. A is real
    and symmetric: its Lanczos basis obeys a three-term recurrence with real coefficients, from a
    complex vector too, and sigma only shifts the diagonal of the tridiagonal matrix. So this is
    MINRES with complex Givens rotations. The vectors of the basis are kept as they come, with
    their lengths beside them, and the first one is `right`: most solves of a flow end after one
    product, and would spend half as much on copies.

    If A has no negative eigenvalue, the error is at most the residual over |sigma|, and this bound
    ends the iteration: the residual alone says little of directions that are not stiff.
    """
    (parts, size), cut = right.shape, W.size
    length = math.sqrt(_square(right))
    if length == 0.0:
        out[:] = 0.0
        return True
    # v, v_before: vectors of the basis times their lengths. p: search directions.
    v, v_before, length_before = right, right, 1.0
    p, p_before = room[3], room[4]
    beta, left, first = 0.0, complex(length), 0j
    c, s, c_before, s_before = 1.0, 0j, 1.0, 0j
    for j in range(most):
        u, alpha = room[j % 3], 0.0
        for k in range(parts):
            _hessian_product(W, H, y, scaled, weights, r, v[k], like_Z[0], like_Z[1], u[k])
            for i in range(cut):
                u[k, i] = (b * u[k, i] + pull_W * v[k, i]) / length
                alpha += v[k, i] * u[k, i]
            for i in range(cut, size):
                u[k, i] = (b * u[k, i] + pull_H * v[k, i]) / length
                alpha += v[k, i] * u[k, i]
        alpha /= length
        beta_next = math.sqrt(_orthogonal(u, alpha / length, v, beta / length_before, v_before))
        # The column (beta, alpha + sigma, beta_next) under the two rotations before, and its own.
        upper2, upper1, diagonal = s_before * beta, c_before * beta, alpha + sigma
        upper1, diagonal = c * upper1 + s * diagonal, c * diagonal - s.conjugate() * upper1
        own = abs(diagonal)
        norm = math.hypot(own, beta_next)
        if not 0.0 < norm < math.inf:
            return False
        phase = diagonal / own if own > 0.0 else 1.0 + 0j
        c_before, s_before = c, s
        c, s = own / norm, phase * (beta_next / norm)
        scale, step = 1.0 / (phase * norm), c * left
        left *= -s.conjugate()
        if j == 0:
            _scaled(v, step * scale / length, out)
            found, first = abs(step * scale) ** 2, scale / length
        else:
            if j == 1:
                # What the first step had no need of: its direction, and none before it.
                _scaled(right, first, p)
                p_before[:] = 0.0
            found = _shifted_and_added(
                upper1, p, upper2, p_before, 1.0 / length, v, scale, step, out
            )
            p, p_before = p_before, p
        if abs(left) <= tolerance * abs(sigma) * math.sqrt(found):
            return True
        v_before, v, length_before, length = v, u, length, beta_next
        beta = beta_next
    return False
