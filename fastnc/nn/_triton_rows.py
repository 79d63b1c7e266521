"""The loss by the Triton kernels: CUDA tensors, a class for each sample."""

from __future__ import annotations

import torch
from torch import Tensor

from fastnc.nn._labels import misfits
from fastnc.nn._problem import Problem, Result


def evaluate(dtype: torch.dtype, problem: Problem, upstream: Tensor | None = None) -> Result:
    """The loss, in float64 if reduced, and the wanted gradients.

    The device is not waited for. Ignored rows get a negative label, for which the kernels have a
    loss and a residual of zero; if a label fits no class, its loss and all gradients are NaN.
    Kernels run on the tensors' own device, whichever is the current one.
    """
    with torch.cuda.device_of(problem.input):  # type: ignore[no-untyped-call]
        return _evaluate(dtype, problem, upstream)


def _evaluate(dtype: torch.dtype, problem: Problem, upstream: Tensor | None) -> Result:
    from fastnc.kernels.gpu.weighted_cross_entropy import loss_and_grads

    (
        input, linear_weight, linear_bias, target, weight, reduction, ignore_index,
        label_smoothing, wanted, _,
    ) = problem  # fmt: skip
    H, W = _tensor(input, dtype), _tensor(linear_weight, dtype)
    empty = W.new_empty(0)
    bias = empty if linear_bias is None else _tensor(linear_bias, dtype)
    weights = empty if weight is None else _tensor(weight, dtype)
    N, K = len(H), len(W)
    y = _tensor(target, torch.int64)
    bad = misfits(y, K, ignore_index)
    counted = (y != ignore_index) & ~bad
    # A failed assertion on the device would make every CUDA tensor of the process unusable.
    poison = torch.where(bad.any(), torch.nan, 1.0).to(dtype)
    scale = poison.reshape(1) if upstream is None else _tensor(upstream, dtype) * poison
    divisor = W.new_ones((), dtype=torch.float64)
    if reduction == "mean":
        own = counted if weight is None else weights[y.masked_fill(~counted, 0)] * counted
        divisor = own.sum(dtype=torch.float64)
        # The mean over labels of weight 0 is NaN with its gradients, as torch has it. Where no row
        # counts the gradients are 0.
        divisor.masked_fill_(divisor == 0.0, torch.nan)
        inverse = torch.where(counted.any(), divisor.reciprocal(), 0.0)
        scale = (inverse * poison).to(dtype).reshape(1)
    total = W.new_zeros(1, dtype=torch.float64)
    losses = H.new_empty(N if reduction == "none" else 0)
    grad_H = H.new_empty(H.shape if wanted & 1 else (0, H.shape[1]))
    grad_W = W.new_empty(W.shape if wanted & 2 else (0, W.shape[1]))
    grad_bias = W.new_empty(K if wanted & 4 else 0)
    if N:
        loss_and_grads(
            W, H, y.masked_fill(~counted, -1), bias, weights, label_smoothing, scale, total,
            losses, grad_W, grad_H, grad_bias,
        )  # fmt: skip
    else:
        grad_W.zero_(), grad_bias.zero_()
    return (
        losses.masked_fill_(bad, torch.nan) if reduction == "none" else total[0] * poison / divisor,
        grad_H if wanted & 1 else None,
        grad_W if wanted & 2 else None,
        grad_bias if wanted & 4 else None,
    )


def _tensor(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.detach().to(dtype).contiguous()
