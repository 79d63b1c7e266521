"""The loss by the Numba kernels: CPU tensors, a class for each sample."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastnc.kernels.weighted_cross_entropy_cpu import (
    examine,
    in_one_part,
    loss_and_grads,
)

Array = NDArray[Any]
_ALONE = nullcontext()
Result = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]


def evaluate(
    dtype: torch.dtype,
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    wanted: int,
    upstream: Tensor | None = None,
) -> Result:
    """The loss and the gradients of the bits in `wanted`, in `dtype`.

    With `upstream (N,)` the gradients are those of `sum_i upstream_i loss_i`.
    """
    H, W, y = _array(input, dtype), _array(linear_weight, dtype), _array(target, torch.int64)
    empty = np.empty(0, W.dtype)
    bias = empty if linear_bias is None else _array(linear_bias, dtype)
    weights = empty if weight is None else _array(weight, dtype)
    N, K = len(H), len(W)
    ignored, bad = examine(y, K, ignore_index)
    if bad >= 0:
        raise ValueError(
            f"`target` must lie in 0..{K - 1} (`linear_weight` has {K} rows) or be "
            f"`ignore_index`, {ignore_index}; got {y[bad]} at index {bad}."
        )
    kept = None
    if ignored:
        kept = np.flatnonzero(y != ignore_index)
        H, y = H[kept], y[kept]
    inverse = 1.0
    if reduction == "mean":
        divisor = len(y) if weight is None else float(weights[y].sum(dtype=np.float64))
        inverse = 1.0 / divisor if divisor else math.inf
    if upstream is None:
        scale = np.empty(1, H.dtype)
        scale[0] = inverse
    else:
        scale = _array(upstream, dtype) if kept is None else _array(upstream, dtype)[kept]
    # NumPy asks for large pages, torch does not: fresh memory is most of a small K's cost.
    total = np.zeros(1)
    losses = np.empty(len(y) if reduction == "none" else 0, H.dtype)
    grad_H = np.empty(H.shape if wanted & 1 else (0, H.shape[1]), H.dtype)
    grad_W = np.empty(W.shape if wanted & 2 else (0, W.shape[1]), W.dtype)
    grad_bias = np.empty(K if wanted & 4 else 0, W.dtype)
    if len(y):
        with _ALONE if in_one_part(*W.shape, len(y)) else _torch_threads():
            loss_and_grads(
                W, H, y, bias, weights, label_smoothing, scale, total, losses, grad_W, grad_H,
                grad_bias,
            )  # fmt: skip
    else:
        grad_W[:], grad_bias[:] = 0.0, 0.0
    if kept is not None and wanted & 1:
        grad_H = _among(grad_H, kept, N)
    if reduction != "none":
        losses = np.array(total.item() * inverse, H.dtype)
    elif kept is not None:
        losses = _among(losses, kept, N)
    return (
        torch.from_numpy(losses),
        torch.from_numpy(grad_H) if wanted & 1 else None,
        torch.from_numpy(grad_W) if wanted & 2 else None,
        torch.from_numpy(grad_bias) if wanted & 4 else None,
    )


@contextmanager
def _torch_threads() -> Iterator[None]:
    """As many threads as torch may use."""
    before = numba.get_num_threads()
    threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    if threads != before:
        numba.set_num_threads(threads)
    try:
        yield
    finally:
        if threads != before:
            numba.set_num_threads(before)


def _array(x: Tensor, dtype: torch.dtype) -> Array:
    if x.requires_grad:
        x = x.detach()
    if x.dtype != dtype or not x.is_contiguous():
        x = x.to(dtype).contiguous()
    return x.numpy()


def _among(rows: Array, kept: Array, n_rows: int) -> Array:
    """Values of the rows that count, among zeros for those that do not."""
    all_rows = np.zeros((n_rows, *rows.shape[1:]), rows.dtype)
    all_rows[kept] = rows
    return all_rows
