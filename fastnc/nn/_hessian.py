"""Hessian products of the loss by the Numba kernel, where there is one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastnc.nn._labels import look
from fastnc.nn._problem import Problem, working_dtype


def serves(problem: Problem) -> bool:
    """Whether the kernel can: a reduced loss of labels on the CPU without weights or smoothing."""
    return (
        problem.input.is_cpu
        and not problem.target.is_floating_point()
        and problem.weight is None
        and problem.reduction != "none"
        and not (problem.label_smoothing or problem.softcap)
        and 0 not in problem.linear_weight.shape
    )


def products(problem: Problem, upstream: Tensor, directions: tuple[Tensor | None, ...]) -> Any:
    """Derivatives of `sum <direction, gradient>` by upstream, input, linear_weight (and bias).

    With `u` the upstream gradient and `v` the direction: `<v, grad>` by u, and `u Hess v`.

    Cost: `14 K N d` FLOP for the Hessian product and `6 K N d` for the gradient. A bias is one more
    feature, of ones.
    """
    from fastnc.nn._dispatch import evaluate

    input, linear_weight, linear_bias, target, *_ = problem
    dtype = working_dtype(input, linear_weight, target)
    look(target, len(linear_weight), problem.ignore_index)
    y = target.to(torch.int64)
    _, *grads = evaluate(problem._replace(wanted=3 if linear_bias is None else 7))
    slope = sum(
        (v.to(dtype) * g).sum(dtype=torch.float64)
        for v, g in zip(directions, grads, strict=True)
        if v is not None and g is not None
    )
    counted = y != problem.ignore_index
    kept = None if bool(counted.all()) else counted.nonzero().squeeze(1)
    rows, labels = (input, y) if kept is None else (input[kept], y[kept])
    H, W = rows.detach().to(dtype), linear_weight.detach().to(dtype)
    v_H, v_W, v_b = directions
    dH = torch.zeros_like(H)
    if v_H is not None:
        dH = (v_H if kept is None else v_H[kept]).detach().to(dtype)
    dW = torch.zeros_like(W) if v_W is None else v_W.detach().to(dtype)
    if linear_bias is not None:
        b = linear_bias.detach().to(dtype)
        db = torch.zeros_like(b) if v_b is None else v_b.detach().to(dtype)
        H, W = _beside(H, H.new_ones(len(H))), _beside(W, b)
        dH, dW = _beside(dH, H.new_zeros(len(H))), _beside(dW, db)
    scale = float(upstream)
    if problem.reduction == "mean":
        scale /= max(len(H), 1)
    HW, HH = _by_kernel(W, H, labels, dW, dH, scale)
    d = linear_weight.shape[1]
    made_H = HH[:, :d]
    if kept is not None:
        made_H = made_H.new_zeros(input.shape).index_copy_(0, kept, made_H)
    made = [torch.as_tensor(slope).to(upstream.dtype), made_H, HW[:, :d]]
    return made if linear_bias is None else [*made, HW[:, d]]


def _beside(x: Tensor, column: Tensor) -> Tensor:
    return torch.cat([x, column.unsqueeze(1)], dim=1)


def _by_kernel(
    W: Tensor, H: Tensor, y: Tensor, dW: Tensor, dH: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    from fastnc.kernels.cpu.hessian import hessian_vector_product

    HW, HH = torch.zeros_like(W), torch.zeros_like(H)
    if len(H):
        arrays = [x.resolve_neg().contiguous().numpy() for x in (W, H, y, dW, dH)]
        hessian_vector_product(*arrays, scale, HW.numpy(), HH.numpy())
    return HW, HH
