"""The smooth terms of the models of Table 1: cross-entropy, squared error, penalties."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc._core.arrays import row_major
from fastnc.models.layer_peeled import Gradients

Array = NDArray[Any]


def cross_entropy(W: Array, H: Array, y: Array, bias: Array | None = None) -> Gradients:
    """Mean cross-entropy of the logits `H W^T + bias` on the fused kernel.

    The kernel has no bias: it becomes one more column of W, with a column of ones in H.
    """
    from fastnc.kernels.cpu.cross_entropy import loss_and_grads

    d = W.shape[1]
    if bias is not None:
        W = np.concatenate([W, bias[:, None]], axis=1)
        H = np.concatenate([H, np.ones((len(H), 1), H.dtype)], axis=1)
    value, grad_W, grad_H = np.empty(1), np.empty_like(W), np.empty_like(H)
    loss_and_grads(W, H, row_major(y), 1.0 / len(H), value, grad_W, grad_H)
    if bias is None:
        return Gradients(float(value[0]), grad_W, grad_H, None)
    return Gradients(float(value[0]), grad_W[:, :d], grad_H[:, :d], grad_W[:, d])


def log_cross_entropy(W: Array, H: Array, y: Array) -> Gradients:
    """The logarithm of the mean cross-entropy and its gradients."""
    from fastnc.kernels.cpu.cross_entropy import log_loss_and_grads

    value, grad_W, grad_H = np.empty(1), np.empty_like(W), np.empty_like(H)
    log_loss_and_grads(W, H, row_major(y), value, grad_W, grad_H)
    return Gradients(float(value[0]) - np.log(len(H)), grad_W, grad_H, None)


def smoothed(g: Gradients, W: Array, H: Array, y: Array, n: int, alpha: float) -> Gradients:
    """Add label smoothing, `alpha` times the mean of z_y - mean_j z_j, for sorted balanced `y`.

    The targets are `(1 - alpha) e_y + alpha / K`. What is added to cross-entropy is linear in
    the logits, and a bias drops out of it when the classes have one size.
    """
    scale = alpha / len(H)
    sums = H.reshape(len(W), n, -1).sum(axis=1)
    centred = W - W.mean(axis=0)
    return Gradients(
        g.value + scale * float(np.vdot(centred, sums)),
        g.W + scale * (sums - sums.mean(axis=0)),
        g.H + scale * centred[y],
        g.bias,
    )


def squared_error(W: Array, H: Array, y: Array, bias: Array | None = None) -> Gradients:
    """`(1/(2N)) sum_i |W h_i + bias - e_{y_i}|^2` and its gradients."""
    R = H @ W.T
    if bias is not None:
        R += bias
    R[np.arange(len(y)), y] -= 1.0
    value = float((R * R).sum(dtype=np.float64)) / (2 * len(H))
    R /= len(H)
    return Gradients(value, R.T @ H, R @ W, None if bias is None else R.sum(axis=0))


def penalised(g: Gradients, W: Array, H: Array, lW: float, lH: float) -> Gradients:
    """Add `lW/2 |W|^2 + lH/2 |H|^2`; a bias is never penalised."""
    energy_W, energy_H = (float(np.vdot(x, x)) for x in (W, H))
    lW, lH = float(lW), float(lH)
    value = g.value + 0.5 * lW * energy_W + 0.5 * lH * energy_H
    return Gradients(value, g.W + lW * W, g.H + lH * H, g.bias)
