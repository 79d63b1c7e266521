"""Problems, plans and calls that the tests of the CPU kernels share."""

import numpy as np

from fastnc.kernels.cpu import cross_entropy as cross_entropy_cpu
from fastnc.kernels.cpu import hessian as hessian_cpu
from fastnc.kernels.cpu import weighted_cross_entropy as weighted_cross_entropy_cpu
from fastnc.kernels.cpu.plan import Plan

# What `plan` would choose for a small problem, and what it chooses for large ones, made small:
# products by tiles, by dot products or by a BLAS; one part and several (the last shorter than a
# chunk, or empty); classes in one block, in several, and in ranges that threads share.
PLANS = {
    "chosen": None,
    "tiles, one part": Plan("samples", "tiles", parts=1, chunk=64, block=512),
    "tiles": Plan("samples", "tiles", parts=3, chunk=16, block=512),
    "dots": Plan("samples", "dots", parts=3, chunk=16, block=512),
    "tiles, blocks": Plan("samples", "tiles", parts=2, chunk=20, block=4),
    "blas, blocks": Plan("samples", "blas", parts=3, chunk=16, block=3),
    "tiles, classes": Plan("classes", "tiles", parts=2, chunk=32, block=2),
    "blas, classes": Plan("classes", "blas", parts=1, chunk=16, block=512),
}
# Where only samples are divided.
BY_SAMPLES = [
    name for name, planned in PLANS.items() if planned is None or planned.divides == "samples"
]

# K, d, N: tiles are up to 6 rows by 1, 2 or 4 vectors of 2 to 16 numbers; dot products up to 4
# samples by 5 classes. Samples are exponentiated in groups of 2 vectors.
SHAPES = {
    "aligned": (12, 32, 96),
    "primes": (7, 13, 101),
    "smaller than a tile": (3, 2, 5),
    "two classes": (2, 3, 40),
    "one class beyond a tile": (13, 24, 35),
    "one feature": (5, 1, 33),
    "one sample": (5, 20, 1),
    "wide": (31, 65, 50),
}


def problem(K, d, N, dtype, size=2.0, seed=0):
    """W, H and labels, with gaps of some `size`^2."""
    rng = np.random.default_rng(seed)
    W = (size * rng.standard_normal((K, d)) / np.sqrt(d)).astype(dtype)
    H = (size * rng.standard_normal((N, d))).astype(dtype)
    return W, H, rng.integers(0, K, N)


def evaluate(W, H, y, scale=1.0):
    """All launchers of the objective, their outputs poisoned first."""
    found = {}
    for name in ("loss", "loss_and_grads", "log_loss_and_grads"):
        out = np.full(1, np.nan)
        grads = [np.full_like(W, np.nan), np.full_like(H, np.nan)] if "grads" in name else []
        arguments = [out, *grads] if name.startswith("log") else [scale, out, *grads]
        getattr(cross_entropy_cpu, name)(W, H, y, *arguments)
        found[name] = [out, *grads]
    out, new_W, new_H = np.full(1, np.nan), W.copy(), H.copy()
    cross_entropy_cpu.gradient_step(new_W, new_H, y, scale, 0.5, out)
    found["gradient_step"] = [out, new_W, new_H]
    return found


def hessian(W, H, y, dW, dH, scale=1.0):
    """The Hessian product's launcher, its outputs poisoned first."""
    HW, HH = np.full_like(W, np.nan), np.full_like(H, np.nan)
    hessian_cpu.hessian_vector_product(W, H, y, dW, dH, scale, HW, HH)
    return HW, HH


def direction(W, H, seed=1):
    """Where a Hessian product points."""
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(x.shape).astype(x.dtype) for x in (W, H))


def weighted(W, H, y, bias, weight, smoothing, scale, wanted=(True, True, True, True)):
    """The launcher with options, its outputs poisoned first."""
    total = np.full(1, np.nan)
    losses = np.full(len(H) if wanted[0] else 0, np.nan, W.dtype)
    grad_W = np.full(W.shape if wanted[1] else (0, W.shape[1]), np.nan, W.dtype)
    grad_H = np.full(H.shape if wanted[2] else (0, W.shape[1]), np.nan, W.dtype)
    grad_bias = np.full(len(W) if wanted[3] else 0, np.nan, W.dtype)
    weighted_cross_entropy_cpu.loss_and_grads(
        W, H, y, bias, weight, smoothing, scale, total, losses, grad_W, grad_H, grad_bias
    )
    return total, losses, grad_W, grad_H, grad_bias
