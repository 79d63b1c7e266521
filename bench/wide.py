"""The objective and the torch loss with every option in wider numbers, for `accuracy.py`.

float32 is compared with float64, and float64 with `np.longdouble`, whose products go by slices:
a matrix is a sum of matrices of few bits, whose products a float64 BLAS has exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

# Logits of a chunk of samples; some ten arrays of that size are alive at once.
ENTRIES = 1 << 21


@dataclass
class Options:
    """Of the torch loss; what there is not is None or 0."""

    bias: Any = None
    weight: Any = None
    smoothing: float = 0.0
    probabilities: Any = None
    softcap: float = 0.0
    logit_scale: float = 1.0
    z_loss: float = 0.0
    # What is differentiated: "loss", "lse" or "entropies", summed, or its mean over samples.
    of: str = "loss"
    mean: bool = False


def wider(dtype) -> type:
    """float64 for float32, and for float64 what the machine has beyond it."""
    return np.float64 if np.dtype(dtype).itemsize == 4 else np.longdouble


def _slices(A, bits, count):
    """Integers below 2^bits in float64, and the power of two of each row, `count` times."""
    top = np.abs(A).max(axis=1, keepdims=True)
    scale = np.exp2(np.ceil(np.log2(np.where(top > 0, top, 1))))
    for _ in range(count):
        scale = scale * np.exp2(-np.longdouble(bits))
        part = np.rint(A / scale)
        yield part.astype(np.float64), scale
        A = A - part * scale


def product(A, B):
    """`A @ B.T` to the last place or two of the wide dtype, beside the largest terms of a row."""
    if A.dtype == np.float64:
        return A @ B.T
    terms = A.shape[1]
    bits = (53 - max(1, int(np.ceil(np.log2(terms + 1))))) // 2
    count = -(-66 // bits)
    left, right = list(_slices(A, bits, count)), list(_slices(B, bits, count))
    total = np.zeros((len(A), len(B)), np.longdouble)
    for s in reversed(range(count)):
        for t in reversed(range(count - s)):
            (P, p), (Q, q) = left[s], right[t]
            total += (P @ Q.T) * p * q.T
    return total


def sums_over_samples(r, H):
    """`r.T @ H`; by one addition a sample where H has one number a row.

    Slices would lose a residual beside a larger one of another column.
    """
    if r.dtype == np.float64 or ((H != 0).sum(axis=1) > 1).any():
        return product(np.ascontiguousarray(r.T), np.ascontiguousarray(H.T))
    out = np.zeros((r.shape[1], H.shape[1]), r.dtype)
    for row, h in zip(r, H, strict=True):
        f = int(np.abs(h).argmax())
        out[:, f] += row * h[f]
    return out


def softmax(z, label):
    """Of logits: gaps D (0 at the label), `log sum e^D`, and p, none by a late subtraction."""
    rows = np.arange(len(z))
    D = z - z[rows, label][:, None]
    others = D.copy()
    others[rows, label] = -np.inf
    m = np.maximum(others.max(axis=1), 0)
    e = np.exp(others - m[:, None])
    S = e.sum(axis=1)
    den = np.exp(-m) + S
    p = e / den[:, None]
    p[rows, label] = np.exp(-m) / den
    return D, np.where(m == 0, np.log1p(S), m + np.log(den)), p, S / den


def _masses(o, label, n, K, wide):
    """Target masses of some samples (n, K)."""
    v = np.ones(K, wide) if o.weight is None else o.weight.astype(wide)
    t = wide(o.smoothing)
    if o.probabilities is not None:
        T = o.probabilities.astype(wide)
        return (T * (1 - t) + t / K) * v
    T = np.broadcast_to(t / K * v, (n, K)).copy()
    T[np.arange(n), label] += (1 - t) * v[label]
    return T


def _values(z, label, T, o):
    """Values of the samples, sums of one sign, and their derivatives by the logits."""
    rows = np.arange(len(z))
    # By the largest logit, whatever the label is.
    top = z.argmax(axis=1)
    D, log_partition, p, _ = softmax(z, top)
    lse = log_partition + z[rows, top]
    if o.of == "lse":
        return lse, p
    log_p = D - log_partition[:, None]
    if o.of == "entropies":
        entropies = -(p * log_p).sum(axis=1)
        return entropies, -p * (log_p + entropies[:, None])
    loss = -(T * log_p).sum(axis=1)
    _, _, p, rest = softmax(z, label)
    A, own = T.sum(axis=1), T[rows, label]
    T[rows, label] = 0
    others = T.sum(axis=1)
    T[rows, label] = own
    r = A[:, None] * p - T
    # Of two forms the one that does not cancel.
    r[rows, label] = np.where(rest < 0.5, others - A * rest, A * p[rows, label] - own)
    return loss + o.z_loss * lse**2, r + 2 * o.z_loss * lse[:, None] * p


def evaluate(W, H, y, o, dtype):
    """`value` of each sample, their `total`, and its gradients by W, H and a bias."""
    wide = wider(dtype)
    K, N = len(W), len(H)
    W = W.astype(wide)
    label = y if o.probabilities is None else o.probabilities.argmax(axis=1)
    values, grad_H = np.empty(N, wide), np.empty(H.shape, wide)
    grad_W, grad_bias = np.zeros(W.shape, wide), np.zeros(K, wide)
    scale = wide(1)
    if o.mean:
        weighted = o.weight is not None and o.probabilities is None and o.of == "loss"
        scale = 1 / (o.weight.astype(wide)[y].sum() if weighted else wide(N))
    step = max(1, ENTRIES // K)
    for first in range(0, N, step):
        part = slice(first, first + step)
        h, own = H[part].astype(wide), label[part]
        z = product(h, W)
        if o.bias is not None:
            z = z + o.bias.astype(wide)
        z = z * wide(o.logit_scale)
        slope = wide(o.logit_scale)
        if o.softcap:
            z = z / wide(o.softcap)
            e = np.exp(-2 * np.abs(z))
            z, slope = wide(o.softcap) * np.tanh(z), slope * 4 * e / (1 + e) ** 2
        chunk = o
        if o.probabilities is not None:
            chunk = replace(o, probabilities=o.probabilities[part])
        T = _masses(chunk, own, len(h), K, wide)
        values[part], r = _values(z, own, T, chunk)
        r = r * (scale * slope)
        grad_H[part] = product(r, np.ascontiguousarray(W.T))
        grad_W += sums_over_samples(r, h)
        grad_bias += r.sum(axis=0)
    found = {"total": np.atleast_1d(values.sum() * scale), "grad_W": grad_W, "grad_H": grad_H}
    if o.bias is not None:
        found["grad_bias"] = grad_bias
    return values, found


def objective(W, H, y, dtype):
    """Equation (4): loss, gradients, and their log form."""
    _, found = evaluate(W, H, y, Options(), dtype)
    loss = found["total"]
    return found, {
        "log_loss": np.log(loss),
        "grad_W / loss": found["grad_W"] / loss,
        "grad_H / loss": found["grad_H"] / loss,
    }


def hessian(W, H, y, dW, dH, dtype):
    """The Hessian of (4) times a direction."""
    wide = wider(dtype)
    W, dW = W.astype(wide), dW.astype(wide)
    HW, HH = np.zeros(W.shape, wide), np.empty(H.shape, wide)
    WT, dWT = np.ascontiguousarray(W.T), np.ascontiguousarray(dW.T)
    step = max(1, ENTRIES // len(W))
    for first in range(0, len(H), step):
        part = slice(first, first + step)
        h, dh, label = H[part].astype(wide), dH[part].astype(wide), y[part]
        rows = np.arange(len(h))
        _, _, p, rest = softmax(product(h, W), label)
        rates = product(dh, W) + product(h, dW)
        rates -= rates[rows, label][:, None]
        p_y = p[rows, label].copy()
        p[rows, label] = 0
        mean = (p * rates).sum(axis=1)
        dr = p * (rates - mean[:, None])
        dr[rows, label] = -p_y * mean
        p[rows, label] = -rest
        HH[part] = product(dr, WT) + product(p, dWT)
        HW += sums_over_samples(dr, h) + sums_over_samples(p, dh)
    return {"HW": HW, "HH": HH}
