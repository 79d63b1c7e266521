"""The loss by the Numba kernels, for CPU tensors whose target is not a probability a class."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numba
import numpy as np
import torch
from torch import Tensor

from fastnc.kernels import cross_entropy_cpu, weighted_cross_entropy_cpu
from fastnc.nn._torch_rows import Result, Spread, Wanted


def losses_and_grads(
    H: Tensor,
    W: Tensor,
    bias: Tensor | None,
    y: Tensor,
    spread: Spread,
    scale: Tensor,
    wanted: Wanted,
) -> Result:
    """As `fastnc.nn._torch_rows.losses_and_grads`, of contiguous CPU tensors."""
    none = W.new_empty(0).numpy()
    losses = torch.empty(len(H), dtype=H.dtype)
    grad_H = torch.empty_like(H) if wanted.H else H[:0]
    grad_W = torch.empty_like(W) if wanted.W else W[:0]
    grad_bias = W.new_empty(len(W) if wanted.bias else 0)
    with _threads_of_torch():
        weighted_cross_entropy_cpu.loss_and_grads(
            W.numpy(),
            H.numpy(),
            y.numpy(),
            none if bias is None else bias.contiguous().numpy(),
            none if spread.own is None else spread.own.contiguous().numpy(),
            none if spread.uniform is None else spread.uniform.contiguous().numpy(),
            scale.reshape(-1).contiguous().numpy(),
            losses.numpy(),
            grad_W.numpy(),
            grad_H.numpy(),
            grad_bias.numpy(),
        )
    return Result(
        losses,
        grad_H if wanted.H else None,
        grad_W if wanted.W else None,
        grad_bias if wanted.bias else None,
    )


def plain_loss_and_grads(
    H: Tensor, W: Tensor, y: Tensor, scale: float, wanted: Wanted
) -> tuple[float, Tensor | None, Tensor | None]:
    """`scale` times the sum of plain losses, and its gradients: neither bias nor weights."""
    total = np.empty(1)
    arrays = W.numpy(), H.numpy(), y.numpy()
    with _threads_of_torch():
        if not any(wanted):
            cross_entropy_cpu.loss(*arrays, scale, total)
            return float(total[0]), None, None
        grad_W, grad_H = torch.empty_like(W), torch.empty_like(H)
        cross_entropy_cpu.loss_and_grads(*arrays, scale, total, grad_W.numpy(), grad_H.numpy())
    return float(total[0]), grad_H, grad_W


@contextmanager
def _threads_of_torch() -> Iterator[None]:
    """No more threads than torch was told to use; the results do not depend on them."""
    before = numba.get_num_threads()
    threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    if threads == before:
        yield
        return
    numba.set_num_threads(threads)
    try:
        yield
    finally:
        numba.set_num_threads(before)
