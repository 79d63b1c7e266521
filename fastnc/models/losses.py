"""The smooth parts the rows of Table 1 are made of: cross-entropy, squared error, penalties."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc._arrays import check_positive
from fastnc.models.layer_peeled import Gradients
from fastnc.objective import log_loss_and_grads, loss_and_grads

Array = NDArray[Any]


def cross_entropy(W: Array, H: Array, y: Array, bias: Array | None = None) -> Gradients:
    """Mean cross-entropy of the logits `H W^T + bias` on the fused kernel.

    The kernel knows no bias: it becomes one more column of W beside a column of ones of H.
    """
    if bias is None:
        value, grad_W, grad_H = loss_and_grads(W, H, y)
        return Gradients(float(value), grad_W, grad_H, None)
    d = W.shape[1]
    W1 = np.concatenate([W, bias[:, None]], axis=1)
    H1 = np.concatenate([H, np.ones((len(H), 1), H.dtype)], axis=1)
    value, grad_W, grad_H = loss_and_grads(W1, H1, y)
    return Gradients(float(value), grad_W[:, :d], grad_H[:, :d], grad_W[:, d])


def log_cross_entropy(W: Array, H: Array, y: Array) -> Gradients:
    """The logarithm of the mean cross-entropy and its gradients."""
    value, grad_W, grad_H = log_loss_and_grads(W, H, y)
    return Gradients(float(value), grad_W, grad_H, None)


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


def check_flag(name: str, value: object) -> None:
    """`value` must be True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"`{name}` must be True or False; got {value!r}.")


def check_weight_decay(lW: float, lH: float) -> None:
    """Both penalties must be there: without one the infimum escapes to infinity."""
    for name, value in (("weight_decay_W", lW), ("weight_decay_H", lH)):
        if value == 0:
            raise ValueError(
                f"`{name}` must be positive; got 0. Without a penalty this is the unconstrained "
                "layer-peeled model: use `fastnc.ULPM`."
            )
        check_positive(name, value)
