"""The loss as an autograd `Function`, where a call's fixed cost counts.

Gradients of a reduced loss are computed with it; those of "none" in the backward pass. Second
derivatives and forward mode use `fastnc.nn._formula`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastnc.nn import _formula, _hessian
from fastnc.nn._batched import is_batch, over_batches
from fastnc.nn._dispatch import evaluate, numba_rows
from fastnc.nn._operator import rows_backward
from fastnc.nn._problem import Problem
from fastnc.nn._surroundings import alone, recorded, transformed
from fastnc.nn._usual import Laid


class Eager(torch.autograd.Function):
    # Each argument costs time forward and backward, so those without a gradient are packed into
    # one; with `setup_context` every call would inspect its signature.
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        problem: Problem,
        laid: Laid | None,
    ) -> Tensor:
        ctx.options = problem[5:]
        ctx.save_for_backward(input, linear_weight, linear_bias, problem[3], problem[4])
        none = problem[5] == "none"
        if none:
            problem = problem._replace(wanted=0)
        made = (
            evaluate(problem) if laid is None else numba_rows().evaluate_laid(problem, None, laid)
        )
        ctx.grads = None if none else made[1:]
        loss: Tensor = made[0]
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        (upstream,) = grad_outputs
        if not alone() or is_batch(upstream):
            return (*_exotic(ctx, upstream), None, None)
        # Given away, so that a leaf need not copy its gradient; a second pass through a retained
        # graph computes them again. Autograd itself casts to the leaf's dtype.
        made, ctx.grads = ctx.grads, None
        if made is None:
            problem = Problem(*ctx.saved_tensors, *ctx.options)
            by_sample = problem.reduction == "none"
            made = evaluate(problem, upstream if by_sample else None)[1:]
            made = made if by_sample else _times(made, upstream)
        else:
            made = _times(made, upstream)
        if torch.is_grad_enabled():
            problem = Problem(*ctx.saved_tensors, *ctx.options)
            made = _Gradients.apply(upstream, *problem[:3], problem, made)
        return (*made, None, None)


# Without the checks for transforms of `Function.apply`, which `_usual` has made.
apply_usual: Any = super(torch.autograd.Function, Eager).apply


class _Gradients(torch.autograd.Function):
    """The identity on gradients, whose own derivative is a Hessian product."""

    @staticmethod
    def forward(
        ctx: Any,
        upstream: Tensor,
        input: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        problem: Problem,
        made: Any,
    ) -> Any:
        ctx.options = problem[5:]
        ctx.save_for_backward(upstream, *problem[:5])
        ctx.set_materialize_grads(False)
        return tuple(made)

    @staticmethod
    def backward(ctx: Any, *directions: Tensor | None) -> tuple[Any, ...]:
        upstream, *tensors = ctx.saved_tensors
        problem = Problem(*tensors, *ctx.options)
        if all(v is None for v in directions):
            return (None,) * 6
        batches = any(is_batch(x) for x in (upstream, *directions))
        alone = not (torch.is_grad_enabled() or transformed() or recorded() or batches)
        made: Any
        if alone and _hessian.serves(problem):
            made = _hessian.products(problem, upstream, directions)
        elif batches:

            def products_of(upstream: Tensor, *directions: Tensor | None) -> tuple[Tensor, ...]:
                return _formula.hessian_products(problem, upstream, directions)

            made = over_batches(products_of, upstream, *directions)
        else:
            made = _formula.hessian_products(problem, upstream, directions)
        products = list(made) + [None] * (4 - len(made))
        return (*products, None, None)


def _times(made: Any, upstream: Tensor) -> Any:
    """Gradients times the upstream one, in place."""
    # On the CPU to read the scalar costs nothing, and saves a pass over N x d in the usual case.
    if upstream.is_cpu and upstream.item() == 1.0:
        return made
    return [g if g is None else g.mul_(upstream.to(g.dtype)) for g in made]


def _exotic(ctx: Any, upstream: Tensor) -> Any:
    """Gradients by a batch of upstream ones, in forward mode, or while operators are recorded."""
    again = torch.is_grad_enabled()
    if ctx.grads is not None and not again:
        return [g if g is None else g * upstream.to(g.dtype) for g in ctx.grads]
    problem = Problem(*ctx.saved_tensors, *ctx.options)
    if is_batch(upstream):
        made = over_batches(lambda upstream: _formula.gradients(problem, upstream), upstream)
    elif problem.reduction == "none" and not again and not transformed():
        made = rows_backward(upstream, *problem[:5], *problem[6:])
    else:
        made = _formula.gradients(problem, upstream)
    grads = [g if problem.wanted & bit else None for g, bit in zip(made, (1, 2, 4), strict=False)]
    return grads + [None] * (3 - len(grads))
