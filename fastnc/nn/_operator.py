"""The loss as operators of torch, which compilers, tracers and exporters can record.

`fastnc::linear_cross_entropy` returns the loss and, if reduced, its gradients, which its backward
pass multiplies; their own derivatives are Hessian products.
`fastnc::linear_cross_entropy_rows_backward` computes the gradients of "none".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fastnc.nn import _formula
from fastnc.nn._checks import check
from fastnc.nn._dispatch import evaluate
from fastnc.nn._errors import ShapeError
from fastnc.nn._problem import Problem, loss_dtype, working_dtype


@torch.library.custom_op("fastnc::linear_cross_entropy", mutates_args=())
def operator(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    wanted: int,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    look_again(input, linear_weight, target, linear_bias, weight)
    problem = Problem(
        input, linear_weight, linear_bias, target, weight, reduction, ignore_index,
        label_smoothing, wanted, softcap,
    )  # fmt: skip
    return _with_gradients(problem)


@torch.library.custom_op("fastnc::linear_cross_entropy_rows_backward", mutates_args=())
def rows_backward(
    upstream: Tensor,
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    wanted: int,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    look_again(input, linear_weight, target, linear_bias, weight)
    problem = Problem(
        input, linear_weight, linear_bias, target, weight, "none", ignore_index, label_smoothing,
        wanted, softcap,
    )  # fmt: skip
    _, *grads = evaluate(problem, upstream)
    return filled(input, grads)


@operator.register_fake
def _(input: Tensor, linear_weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    _, target, _, reduction, _, _, wanted, _ = rest
    shape = (input.shape[0],) if reduction == "none" else ()
    loss = input.new_empty(shape, dtype=loss_dtype(input, linear_weight, target))
    return loss, *like_gradients(input, linear_weight, target, 0 if reduction == "none" else wanted)


@rows_backward.register_fake
def _(upstream: Tensor, input: Tensor, linear_weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return like_gradients(input, linear_weight, rest[1], rest[-2])


def _with_gradients(problem: Problem) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss, and the gradients of a reduced one."""
    none = problem.reduction == "none"
    loss, *grads = evaluate(problem._replace(wanted=0) if none else problem)
    return loss, *filled(problem.input, grads)


def look_again(input: Tensor, linear_weight: Tensor, *rest: Any) -> None:
    """Check again: a recorded call may run with tensors of other shapes."""
    if input.dim() != 2 or linear_weight.dim() != 2:
        raise ShapeError(
            "`input` and `linear_weight` must be (N, d) and (K, d); got "
            f"{tuple(input.shape)} and {tuple(linear_weight.shape)}."
        )
    target, linear_bias, weight = rest
    check(input, linear_weight, target, linear_bias, weight, None)


def filled(input: Tensor, grads: Iterable[Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients as an operator returns them, with an empty tensor for each None."""
    made = [input.new_empty(0) if g is None else g for g in grads]
    return made[0], made[1], made[2]


def like_gradients(
    input: Tensor, linear_weight: Tensor, target: Tensor, wanted: int
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = working_dtype(input, linear_weight, target)
    shapes = (input.shape, linear_weight.shape, linear_weight.shape[:1])
    grads = [
        input.new_empty(shape, dtype=dtype) if wanted & bit else input.new_empty(0)
        for shape, bit in zip(shapes, (1, 2, 4), strict=True)
    ]
    return grads[0], grads[1], grads[2]


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.reduction, ignore_index, label_smoothing, wanted, softcap = inputs
    ctx.options = (ignore_index, label_smoothing, wanted, softcap)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *(() if ctx.reduction == "none" else output[1:]))


def _backward(ctx: Any, upstream: Tensor | None, *directions: Tensor | None) -> Any:
    made: Any
    tensors, made = ctx.saved_tensors[:5], ctx.saved_tensors[5:]
    (input, W, b, y, v), wanted = tensors, ctx.options[2]
    problem = Problem(input, W, b, y, v, ctx.reduction, *ctx.options)
    grads: list[Any] = [None] * 3
    if upstream is not None:
        if ctx.reduction == "none":
            made = rows_backward(upstream, *tensors, *ctx.options)
        else:
            made = [g * upstream.to(g.dtype) for g in made]
        grads = [g if wanted & bit else None for g, bit in zip(made, (1, 2, 4), strict=True)]
        # A recorded call knows what was wanted when it was recorded, not what is wanted now.
        if any(grads[i] is None and ctx.needs_input_grad[i] for i in range(3)):
            grads = [*_formula.gradients(problem, upstream), None][:3]
    asked = [v if wanted & bit else None for v, bit in zip(directions, (1, 2, 4), strict=True)]
    one = torch.ones((), dtype=torch.float64, device=tensors[0].device)
    if ctx.reduction != "none" and any(v is not None for v in asked):
        _, *products = _formula.hessian_products(problem, one, tuple(asked))
        grads = [
            product if g is None else g if product is None else g + product
            for g, product in zip(grads, [*products, None][:3], strict=True)
        ]
    kinds = [None if x is None else x.dtype for x in tensors[:3]]
    cast = [None if g is None else g.to(kind) for g, kind in zip(grads, kinds, strict=True)]

    def value(problem: Problem) -> Tensor:
        total = [] if upstream is None else [_formula.inner([upstream], [_formula.loss(problem)])]
        if ctx.reduction != "none" and any(v is not None for v in asked):
            total.append(_formula.inner(asked, _formula.gradients(problem, one)))
        return torch.stack(total).sum()

    return (*cast, *_formula.by_target(problem, ctx.needs_input_grad[3:5], value), *[None] * 5)


def _remember_rows(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ignore_index, label_smoothing, wanted, softcap = inputs
    ctx.options = (ignore_index, label_smoothing, wanted, softcap)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)


def _rows_backward_backward(ctx: Any, *directions: Tensor | None) -> Any:
    upstream, *tensors = ctx.saved_tensors
    input, W, b, y, v = tensors
    problem = Problem(input, W, b, y, v, "none", *ctx.options)
    wanted = ctx.options[2]
    asked = [v if wanted & bit else None for v, bit in zip(directions, (1, 2, 4), strict=True)]
    if all(v is None for v in asked):
        return (None,) * 10
    made = _formula.hessian_products(problem, upstream, tuple(asked))
    products = [*made, None][:4]
    kinds = [upstream.dtype, *(None if x is None else x.dtype for x in tensors[:3])]
    cast = [None if g is None else g.to(kind) for g, kind in zip(products, kinds, strict=True)]

    def value(problem: Problem) -> Tensor:
        return _formula.inner(asked, _formula.gradients(problem, upstream))

    return (*cast, *_formula.by_target(problem, ctx.needs_input_grad[4:6], value), *[None] * 4)


operator.register_autograd(_backward, setup_context=_remember)
rows_backward.register_autograd(_rows_backward_backward, setup_context=_remember_rows)


class Carried(torch.autograd.Function):
    """The operator for `torch.func.grad`, `vjp` and `jacrev`, which `register_autograd` lacks.

    Gradients are outputs, as they are of the operator, so that an outer transform can differentiate
    them.
    """

    @staticmethod
    def forward(*arguments: Any) -> Any:
        return _with_gradients(Problem(*arguments))

    setup_context = staticmethod(_remember)
    backward = staticmethod(_backward)
