"""Gradient flow on the CPU: its right-hand side, and two ways to solve its Newton systems.

An implicit integrator calls these thousands of times on some hundred or thousand numbers, where
the overhead of several calls would dominate: each is one compiled call.

Letters: K classes, d features, N samples, theta = (W by rows, H by rows). The systems and methods
are described in `fastnc/dynamics/integrator/newton.py`. 6KNd operations for the right-hand side;
(7d + 3K) KN and (Kd)^2 multiply-adds, complex or real, for a direct solve; 12KNd operations for a
Hessian product, of which an iterative solve makes one or two at each of its steps. Small problems
are bound by latency, not by arithmetic: 10 us for a right-hand side and 60 us for a direct solve at
K = 5, n = 10, d = 20. Large ones are bound by the matrix products, which a BLAS computes.
"""

import math

import numpy as np

from fastnc.kernels.cpu.options import INNER, OPTIONS, njit

FLAGS = {"contract", "nsz", "arcp"}


@njit(fastmath=FLAGS, **OPTIONS)
def derivative(theta, K, d, y, log_factor, out):
    """`out = -exp(log_factor + log L) grad log L` of the sum loss L of equation (4).

    Every gap is shifted by the common maximum before it is exponentiated (by its own sample's
    maximum where some sample is misclassified), so that no digit is lost at any margin.
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


@njit(fastmath=FLAGS, **INNER)
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
    dZ = np.dot(H, dW.T) - np.dot(r, c * np.dot(dW, W.T))
    out[:size] = b
    out[size:] = (eliminated - c * (np.dot(r, dW) + np.dot(_by_sample(T, dZ), W))).ravel()


@njit(fastmath=FLAGS, **INNER)
def _hessian_product(W, H, y, scaled, weights, r, x, out):
    """`out` = the Hessian of (4), over the loss, times `x`: as `Residuals.hessian_product`."""
    K, d = W.shape
    N = H.shape[0]
    dW, dH = x[: K * d].reshape(K, d), x[K * d :].reshape(N, d)
    dZ = np.dot(dH, W.T)
    dZ += np.dot(H, dW.T)
    for i in range(N):
        own, mean, label = dZ[i, y[i]], 0.0, 0.0
        for j in range(K):
            if j != y[i]:
                dZ[i, j] -= own
                mean += weights[i, j] * dZ[i, j]
                label += scaled[i, j] * dZ[i, j]
        for j in range(K):
            dZ[i, j] = scaled[i, j] * (dZ[i, j] - mean)
        dZ[i, y[i]] = -weights[i, y[i]] * label
    out[: K * d] = (np.dot(dZ.T, H) + np.dot(r.T, dH)).ravel()
    out[K * d :] = (np.dot(dZ, W) + np.dot(r, dW)).ravel()


@njit(fastmath=FLAGS, **OPTIONS)
def minimal_residual(
    W, H, y, scaled, weights, r, b, pull_W, pull_H, sigma, right, parts, tolerance, most, out
):  # fmt: skip
    """`(sigma I + A) out = right` to a relative `tolerance`; False if `most` steps do not suffice.

    A is `b Hess L / L` plus a diagonal: `pull_W` for the entries of W, `pull_H` for those of H.
    All vectors are complex128. `parts` is 1 where `right` and sigma are real, and so is every
    vector then; else 2. A is real and symmetric: its Lanczos basis obeys a three-term recurrence
    with real coefficients, from a complex vector too, and sigma only shifts the diagonal of the
    tridiagonal matrix. So this is MINRES with complex Givens rotations.

    If A has no negative eigenvalue, the error is at most the residual over |sigma|, and this bound
    ends the iteration: the residual alone says little of directions that are not stiff.
    """
    size, cut = len(right), W.size
    length = 0.0
    for i in range(size):
        length += right[i].real ** 2 + right[i].imag ** 2
    length = math.sqrt(length)
    out[:] = 0.0
    if length == 0.0:
        return True
    # v: Lanczos vectors. p: search directions.
    v, v_before = right / length, np.zeros(size, np.complex128)
    p, p_before = np.zeros(size, np.complex128), np.zeros(size, np.complex128)
    u, part, image = np.empty(size, np.complex128), np.empty(size), np.empty(size)
    beta, left = 0.0, complex(length)
    c, s, c_before, s_before = 1.0, 0j, 1.0, 0j
    for _ in range(most):
        for k in range(parts):
            for i in range(size):
                part[i] = v[i].real if k == 0 else v[i].imag
            _hessian_product(W, H, y, scaled, weights, r, part, image)
            for i in range(size):
                product = b * image[i] + (pull_W if i < cut else pull_H) * part[i]
                u[i] = complex(product, 0.0) if k == 0 else complex(u[i].real, product)
        alpha = 0.0
        for i in range(size):
            alpha += v[i].real * u[i].real + v[i].imag * u[i].imag
        beta_next = 0.0
        for i in range(size):
            u[i] -= alpha * v[i] + beta * v_before[i]
            beta_next += u[i].real ** 2 + u[i].imag ** 2
        beta_next = math.sqrt(beta_next)
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
        by, step = 1.0 / (phase * norm), c * left
        found = 0.0
        for i in range(size):
            new = (v[i] - upper1 * p[i] - upper2 * p_before[i]) * by
            p_before[i] = p[i]
            p[i] = new
            out[i] += step * new
            found += out[i].real ** 2 + out[i].imag ** 2
        left *= -s.conjugate()
        if abs(left) <= tolerance * abs(sigma) * math.sqrt(found):
            return True
        for i in range(size):
            v_before[i] = v[i]
            v[i] = u[i] / beta_next
        beta = beta_next
    return False
