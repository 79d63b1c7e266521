"""The loss by the Numba kernels: CPU tensors, a class for each sample."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor, empty_like

from fastnc.kernels.cpu.cross_entropy import numbers
from fastnc.kernels.cpu.plan import plan
from fastnc.kernels.cpu.threads import one_thread
from fastnc.kernels.cpu.weighted_cross_entropy import examine, loss_and_grads
from fastnc.kernels.cpu.weighted_loss import (
    BIAS,
    DONE,
    GRAD_BIAS,
    GRAD_H,
    GRAD_W,
    LOSSES,
    MEAN,
    SCALE,
    SOME_IGNORED,
    WEIGHT,
    loss_call,
)
from fastnc.nn._labels import bad_label
from fastnc.nn._problem import Problem, Result
from fastnc.nn._usual import Laid

# From this many numbers on NumPy requests large pages, which torch does not: with few classes most
# of the time goes into new memory.
_LARGE = 1 << 20
_KINDS: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype("float32"),
    torch.float64: np.dtype("float64"),
}

# Templates of scalar results: on the CPU whatever the default device is, and faster than `empty`.
_SCALARS = {dtype: torch.empty((), dtype=dtype, device="cpu") for dtype in _KINDS}


def evaluate(dtype: torch.dtype, problem: Problem, upstream: Tensor | None = None) -> Result:
    """The loss and the gradients that are wanted, in `dtype`.

    With `upstream (N,)` the gradients are those of `sum_i upstream_i loss_i`.
    """
    H, W, bias, y, weight, *_ = problem
    H, W, y = _laid(H, dtype), _laid(W, dtype), _laid(y, torch.int64)
    bias = None if bias is None else _laid(bias, dtype)
    weight = None if weight is None else _laid(weight, dtype)
    scale = None if upstream is None else _laid(upstream, dtype)
    laid = (*W.shape, H.shape[0], H.data_ptr(), W.data_ptr(), y.data_ptr())
    return evaluate_laid(Problem(H, W, bias, y, weight, *problem[5:]), scale, laid)


def evaluate_laid(problem: Problem, scale: Tensor | None, laid: Laid) -> Result:
    """The same for contiguous tensors of one dtype."""
    H, W, bias, y, weight, reduction, ignore_index, smoothing, flags, _ = problem
    K, d, N, H_at, W_at, y_at = laid
    few = N * d < _LARGE and K * d < _LARGE
    outs = (
        H.new_empty(N) if reduction == "none" else empty_like(_SCALARS[H.dtype]),
        None if not flags & GRAD_H else empty_like(H) if few else _fresh(H),
        None if not flags & GRAD_W else empty_like(W) if few else _fresh(W),
        H.new_empty(K) if flags & GRAD_BIAS else None,
    )
    one_call = _one_call(K, d, N, H.dtype)
    if one_call is None:
        found = _by_arrays(problem, scale, outs)
    else:
        call, numbers_at, _ = one_call
        if reduction != "sum":
            flags += MEAN if reduction == "mean" else LOSSES
        bias_at = weight_at = scale_at = 0
        if bias is not None:
            flags, bias_at = flags + BIAS, bias.data_ptr()
        if weight is not None:
            flags, weight_at = flags + WEIGHT, weight.data_ptr()
        if scale is not None:
            flags, scale_at = flags + SCALE, scale.data_ptr()
        loss, grad_H, grad_W, grad_bias = outs
        found = call(
            W_at, H_at, y_at, bias_at, weight_at, scale_at,
            loss.data_ptr(), 0 if grad_W is None else grad_W.data_ptr(),
            0 if grad_H is None else grad_H.data_ptr(),
            0 if grad_bias is None else grad_bias.data_ptr(), numbers_at, K, d, N, flags,
            ignore_index, smoothing,
        )  # fmt: skip
    if found == DONE:
        return outs
    if found == SOME_IGNORED:
        return _of_the_others(problem, scale)
    raise bad_label(K, ignore_index, int(y[found]), found)


@lru_cache(maxsize=256)
def _one_call(K: int, d: int, N: int, dtype: torch.dtype) -> Any:
    """The C function, the address of the plan's numbers, and the array that holds them.

    None where the plan has several threads or a BLAS.
    """
    kind = _KINDS[dtype]
    planned = plan(K, d, N, kind.itemsize)
    if planned.parts > 1 or planned.products == "blas":
        return None
    held = np.array(numbers(planned, kind), np.int64)
    return loss_call(kind), held.ctypes.data, held


def _by_arrays(problem: Problem, scale: Tensor | None, outs: Result) -> Any:
    """By several threads or a BLAS; returns what a `loss_call` returns."""
    loss, *grads = outs
    W, H, y = (x.detach().numpy() for x in (problem.linear_weight, problem.input, problem.target))
    empty = np.empty(0, W.dtype)
    bias, weight = (
        empty if x is None else x.detach().numpy() for x in (problem.linear_bias, problem.weight)
    )
    ignored, bad = examine(y, len(W), problem.ignore_index)
    if bad >= 0 or ignored:
        return bad if bad >= 0 else SOME_IGNORED
    grad_H, grad_W, grad_bias = (
        np.empty((0, *rest), W.dtype) if x is None else x.numpy()
        for x, rest in zip(grads, (H.shape[1:], W.shape[1:], ()), strict=True)
    )
    inverse = 1.0
    if problem.reduction == "mean":
        divisor = float(weight[y].sum(dtype=np.float64)) if len(weight) else len(y)
        inverse = 1.0 / divisor if divisor else math.nan
    each = np.full(1, inverse, W.dtype) if scale is None else scale.detach().numpy()
    total = np.zeros(1)
    by_sample = problem.reduction == "none"
    losses = loss.numpy() if by_sample else empty
    if len(y):
        with _torch_threads():
            loss_and_grads(
                W, H, y, bias, weight, problem.label_smoothing, each, total, losses, grad_W,
                grad_H, grad_bias,
            )  # fmt: skip
    else:
        grad_W[:], grad_bias[:] = 0.0, 0.0
    if not by_sample:
        loss.fill_(total.item() * inverse)
    return DONE


@torch.no_grad()
def _of_the_others(problem: Problem, upstream: Tensor | None) -> Result:
    """The same for the samples that are not ignored, with zeros for the ignored ones."""
    kept = torch.nonzero(problem.target != problem.ignore_index).squeeze(1)
    others = problem._replace(input=problem.input[kept], target=problem.target[kept])
    scale = None if upstream is None else upstream[kept]
    dtype = problem.input.dtype
    loss, grad_H, grad_W, grad_bias = evaluate(dtype, others, scale)

    def among_zeros(rows: Tensor) -> Tensor:
        shape = (len(problem.target), *rows.shape[1:])
        return torch.from_numpy(np.zeros(shape, _KINDS[dtype])).index_copy_(0, kept, rows)

    if problem.reduction == "none":
        loss = among_zeros(loss)
    return loss, None if grad_H is None else among_zeros(grad_H), grad_W, grad_bias


@contextmanager
def _torch_threads() -> Iterator[None]:
    """As many Numba threads as torch may use, and no other parallel loop at the same time."""
    before = numba.get_num_threads()
    threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    if threads != before:
        numba.set_num_threads(threads)
    try:
        with one_thread():
            yield
    finally:
        if threads != before:
            numba.set_num_threads(before)


def _laid(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` contiguous, in `dtype`."""
    if x.dtype is dtype and x.is_contiguous() and not x.is_neg() and (x.data_ptr() or not len(x)):
        return x
    if x._is_zerotensor():
        # It has a shape and no memory.
        return torch.zeros(x.shape, dtype=dtype, device=x.device)
    return x.detach().to(dtype).resolve_neg().contiguous()


def _fresh(like: Tensor) -> Tensor:
    if like.numel() < _LARGE:
        return torch.empty_like(like)
    return torch.from_numpy(np.empty(like.shape, _KINDS[like.dtype]))
