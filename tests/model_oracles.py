"""The rows of Table 1 written again from their formulas, with optimisers of another kind."""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import Bounds, minimize
from threadpoolctl import threadpool_limits


def labels(sizes):
    """0, ..., 0, 1, ..., 1, ... as often as `sizes` says."""
    return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))


def cross_entropy(sizes, lW=0.0, lH=0.0, scale=1.0, smoothing=0.0):
    """Mean cross-entropy of `scale H W^T + b` plus weight decay, as torch writes it."""
    y = labels(sizes)

    def objective(W, H, b=None):
        Z = scale * H @ W.T if b is None else scale * H @ W.T + b
        loss = F.cross_entropy(Z, y, label_smoothing=smoothing)
        return loss + lW / 2 * W.square().sum() + lH / 2 * H.square().sum()

    return objective


def squared_error(sizes, lW, lH):
    """Half the mean squared distance of the logits to the one-hot labels, plus weight decay."""
    Y = F.one_hot(labels(sizes), len(sizes)).double()

    def objective(W, H, b=None):
        Z = H @ W.T if b is None else H @ W.T + b
        loss = (Z - Y).square().sum() / (2 * len(Y))
        return loss + lW / 2 * W.square().sum() + lH / 2 * H.square().sum()

    return objective


def value(objective, *arrays):
    """An objective at NumPy arrays; None stays None."""
    return float(objective(*(a if a is None else torch.from_numpy(a) for a in arrays)))


def least(objective, shapes, starts=3, seed=0, non_negative=()):
    """The least value that BFGS finds from Gaussian starts, and the point, gradients by torch.

    Blocks whose index is in `non_negative` are bounded below by 0 (then by L-BFGS-B).
    """
    sizes = [int(np.prod(shape)) for shape in shapes]
    lower = np.concatenate(
        [np.full(size, 0.0 if i in non_negative else -np.inf) for i, size in enumerate(sizes)]
    )

    def fun(x):
        t = torch.from_numpy(x.copy()).requires_grad_()
        blocks = [b.reshape(shape) for b, shape in zip(torch.split(t, sizes), shapes, strict=True)]
        result = objective(*blocks)
        result.backward()
        return result.item(), t.grad.numpy()

    rng = np.random.default_rng(seed)
    found = []
    # A second thread costs such small problems far more than it gives.
    with threadpool_limits(1):
        for _ in range(starts):
            x = rng.standard_normal(sum(sizes))
            if non_negative:
                x = np.where(lower == 0.0, np.abs(x), x)
                options = {"ftol": 1e-16, "gtol": 1e-10, "maxcor": 30}
                bounds = Bounds(lower, np.inf)
                settings = {"method": "L-BFGS-B", "bounds": bounds, "options": options}
            else:
                settings = {"method": "BFGS", "options": {"gtol": 1e-9}}
            found.append(minimize(fun, x, jac=True, **settings))
    best = min(found, key=lambda r: r.fun)
    blocks = np.split(best.x, np.cumsum(sizes)[:-1])
    return best.fun, [b.reshape(shape) for b, shape in zip(blocks, shapes, strict=True)]


def central_differences(objective, W, H, b=None, step=1e-6):
    """Gradients of a plain function of NumPy arrays; the error is of order step^2."""
    result = []
    for x in (W, H) if b is None else (W, H, b):
        grad = np.empty_like(x)
        for index in np.ndindex(*x.shape):
            kept = x[index]
            x[index] = kept + step
            above = objective(W, H, b)
            x[index] = kept - step
            grad[index] = (above - objective(W, H, b)) / (2 * step)
            x[index] = kept
        result.append(grad)
    return result


def logits_program(sizes, mu, iterations=4000):
    """`min_Z sum_k (n_k/N) CE(z_k, k) + mu |Z diag(sqrt n)|_*` by accelerated proximal gradient.

    The convex form of cross-entropy with weight decay, without factors: every step soft-thresholds
    the singular values. Returns the value and X = Z diag(sqrt n).
    """
    root = np.sqrt(np.array(sizes, dtype=float))
    share = root**2 / (root**2).sum()
    K = len(sizes)
    step = 2.0 * (root**2).sum()

    def slope(X):
        Z = X / root
        p = np.exp(Z - Z.max(axis=0))
        return (p / p.sum(axis=0) - np.eye(K)) * share / root

    def prox(X):
        A, s, Bt = np.linalg.svd(X)
        return (A * np.maximum(s - step * mu, 0.0)) @ Bt

    X = momentum = np.zeros((K, K))
    t = 1.0
    for _ in range(iterations):
        new = prox(momentum - step * slope(momentum))
        # Restart where the momentum points uphill (O'Donoghue & Candes).
        if np.vdot(momentum - new, new - X) > 0.0:
            t = 1.0
        t_new = (1.0 + np.sqrt(1.0 + 4.0 * t * t)) / 2.0
        momentum = new + (t - 1.0) / t_new * (new - X)
        X, t = new, t_new
    Z = X / root
    top = Z.max(axis=0)
    losses = top + np.log(np.exp(Z - top).sum(axis=0)) - np.diag(Z)
    return float(share @ losses + mu * np.linalg.svd(X, compute_uv=False).sum()), X


def separation(sizes, dim, starts=2, seed=0):
    """The least `1/2 (|W|^2 + |H|^2)` with all margins at least 1 that SLSQP finds."""
    y = np.repeat(np.arange(len(sizes)), sizes)
    K, N = len(sizes), len(y)
    wrong = np.array([[j for j in range(K) if j != label] for label in y])

    def split(x):
        return x[: K * dim].reshape(K, dim), x[K * dim :].reshape(N, dim)

    def margins(x):
        W, H = split(x)
        return np.einsum("ijd,id->ij", W[y][:, None] - W[wrong], H).ravel() - 1.0

    def slopes(x):
        W, H = split(x)
        J = np.zeros((N, K - 1, len(x)))
        for i in range(N):
            for place, j in enumerate(wrong[i]):
                J[i, place, y[i] * dim : (y[i] + 1) * dim] = H[i]
                J[i, place, j * dim : (j + 1) * dim] = -H[i]
                J[i, place, (K + i) * dim : (K + i + 1) * dim] = W[y[i]] - W[j]
        return J.reshape(-1, len(x))

    rng = np.random.default_rng(seed)
    found = []
    for _ in range(starts):
        result = minimize(
            lambda x: (0.5 * x @ x, x),
            rng.standard_normal((K + N) * dim),
            jac=True,
            method="SLSQP",
            constraints={"type": "ineq", "fun": margins, "jac": slopes},
            options={"ftol": 1e-14, "maxiter": 500},
        )
        if margins(result.x).min() > -1e-9:
            found.append(result.fun)
    return min(found)
