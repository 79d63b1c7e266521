"""How the loss enters autograd: eagerly as a `Function`, elsewhere as an operator.

Gradients of a reduced loss are made together with it; those of "none" when they are asked for.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from fastnc.nn._dispatch import evaluate, loss_dtype, working_dtype
from fastnc.nn._problem import Problem

_PLAIN = (Tensor, nn.Parameter)


def apply(problem: Problem) -> Tensor:
    """The loss of a checked problem, differentiable once by what it says is wanted."""
    loss: Tensor
    if torch._C._are_functorch_transforms_active():
        loss = _Functional.apply(*problem)[0]
    elif (
        torch.compiler.is_compiling()
        or type(problem.input) not in _PLAIN
        or type(problem.linear_weight) not in _PLAIN
    ):
        loss = _operator(*problem)[0]
    elif problem.wanted:
        loss = _Eager.apply(*problem[:3], problem)
    else:
        loss = evaluate(problem)[0]
    return loss


def wanted_of(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None) -> int:
    """`Problem.wanted`: what autograd would ask for."""
    if not torch.is_grad_enabled():
        return 0
    wanted: int = input.requires_grad + 2 * linear_weight.requires_grad
    return wanted if linear_bias is None else wanted + 4 * linear_bias.requires_grad


class _Eager(torch.autograd.Function):
    # Each argument costs time both ways, so those without a gradient are one; a `setup_context`
    # would have every call look up its own signature.
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        problem: Problem,
    ) -> Tensor:
        ctx.options = problem[5:]
        ctx.save_for_backward(*problem[:5])
        loss: Tensor
        if problem.reduction == "none":
            ctx.grads = None
            loss, *_ = evaluate(problem._replace(wanted=0))
        else:
            loss, *ctx.grads = evaluate(problem)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        (upstream,) = grad_outputs
        # Handed over, not shared, so that a leaf need not copy what it receives; a second pass
        # through a retained graph makes them again. Autograd itself casts to the leaf's dtype.
        made, ctx.grads = ctx.grads, None
        if made is None:
            problem = Problem(*ctx.saved_tensors, *ctx.options)
            by_sample = problem.reduction == "none"
            made = evaluate(problem, upstream if by_sample else None)[1:]
            made = made if by_sample else _times(made, upstream)
        else:
            made = _times(made, upstream)
        if torch.is_grad_enabled():
            made = _Once.apply(upstream, *ctx.saved_tensors[:3], *made)
        return (*made, None)


class _Functional(torch.autograd.Function):
    """The form that `torch.func` can transform: its gradients are outputs too."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor | None, ...]:
        # Here `requires_grad` tells nothing: every transform has tensors of its own.
        problem = Problem(*arguments)
        wanted = 0 if problem.reduction == "none" else _all_of(arguments)
        loss, *grads = evaluate(problem._replace(wanted=wanted))
        return loss, *grads

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        ctx.options = (*inputs[5:8], _all_of(inputs))
        ctx.mark_non_differentiable(*(g for g in output[1:] if g is not None))
        ctx.save_for_backward(*inputs[:5], *output[1:])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Any, ...]:
        upstream, tensors = grad_outputs[0], ctx.saved_tensors
        if ctx.options[0] == "none":
            made = _FunctionalRows.apply(upstream, *tensors[:5], *ctx.options)
        else:
            made = tuple(g if g is None else g * upstream.to(g.dtype) for g in tensors[5:])
        grads = _Once.apply(upstream, *tensors[:3], *made)
        return (*grads, None, None, None, None, None, None)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
        _refuse_vmap()


class _FunctionalRows(torch.autograd.Function):
    """Gradients of `sum_i upstream_i loss_i`, as a transform takes them."""

    @staticmethod
    def forward(upstream: Tensor, *arguments: Any) -> tuple[Tensor | None, ...]:
        _, *grads = evaluate(Problem(*arguments), upstream)
        return tuple(grads)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Nothing is kept: there is no way back from here."""

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        _refuse()

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
        _refuse_vmap()


def _all_of(arguments: tuple[Any, ...]) -> int:
    return 3 if arguments[2] is None else 7


class _Once(torch.autograd.Function):
    """Hands gradients through, and refuses when somebody differentiates them again."""

    @staticmethod
    def forward(
        upstream: Tensor,
        input: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        *grads: Any,
    ) -> Any:
        return tuple(None if g is None else g.clone() for g in grads)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Nothing is kept: there is no way back from here."""

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        _refuse()


def _refuse() -> NoReturn:
    raise NotImplementedError(
        "`fastnc.nn.linear_cross_entropy` cannot be differentiated twice; for Hessian-vector "
        "products call `fastnc.hessian_vector_product`, or use torch's own cross-entropy."
    )


def _refuse_vmap() -> NoReturn:
    raise NotImplementedError(
        "`fastnc.nn.linear_cross_entropy` has no `vmap`: it takes all samples at once, (N, d); "
        'for the loss of each of them ask for `reduction="none"`.'
    )


def _times(made: Any, upstream: Tensor) -> Any:
    """Gradients times the upstream one, in place."""
    # On the CPU a look at the scalar is free, and saves a pass over N x d in the usual case.
    if upstream.is_cpu and upstream.item() == 1.0:
        return made
    return [g if g is None else g.mul_(upstream.to(g.dtype)) for g in made]


@torch.library.custom_op("fastnc::linear_cross_entropy", mutates_args=())
def _operator(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    wanted: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    problem = Problem(
        input, linear_weight, linear_bias, target, weight, reduction, ignore_index,
        label_smoothing, 0 if reduction == "none" else wanted,
    )  # fmt: skip
    loss, *grads = evaluate(problem)
    return loss, *_filled(input, grads)


@torch.library.custom_op("fastnc::linear_cross_entropy_rows_backward", mutates_args=())
def _rows_backward(
    upstream: Tensor,
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    wanted: int,
) -> tuple[Tensor, Tensor, Tensor]:
    problem = Problem(
        input, linear_weight, linear_bias, target, weight, "none", ignore_index, label_smoothing,
        wanted,
    )  # fmt: skip
    _, *grads = evaluate(problem, upstream)
    return _filled(input, grads)


@_operator.register_fake
def _(input: Tensor, linear_weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *_, reduction, _, _, wanted = rest
    shape = (len(input),) if reduction == "none" else ()
    loss = input.new_empty(shape, dtype=loss_dtype(input, linear_weight))
    return loss, *_like(input, linear_weight, 0 if reduction == "none" else wanted)


@_rows_backward.register_fake
def _(upstream: Tensor, input: Tensor, linear_weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return _like(input, linear_weight, rest[-1])


def _filled(input: Tensor, grads: list[Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
    """An operator returns tensors: empty ones where nothing was wanted."""
    made = [input.new_empty(0) if g is None else g for g in grads]
    return made[0], made[1], made[2]


def _like(input: Tensor, linear_weight: Tensor, wanted: int) -> tuple[Tensor, Tensor, Tensor]:
    dtype = working_dtype(input, linear_weight)
    shapes = (input.shape, linear_weight.shape, linear_weight.shape[:1])
    grads = [
        input.new_empty(shape, dtype=dtype) if wanted & bit else input.new_empty(0)
        for shape, bit in zip(shapes, (1, 2, 4), strict=True)
    ]
    return grads[0], grads[1], grads[2]


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.reduction, ignore_index, label_smoothing, wanted = inputs
    ctx.options = (ignore_index, label_smoothing, wanted)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *(() if ctx.reduction == "none" else output[1:]))


def _operator_backward(ctx: Any, upstream: Tensor | None, *second: Tensor | None) -> Any:
    if any(g is not None for g in second):
        _refuse()
    if upstream is None:
        return (None,) * 9
    tensors, made = ctx.saved_tensors[:5], ctx.saved_tensors[5:]
    if ctx.reduction == "none":
        made = _rows_backward(upstream, *tensors, *ctx.options)
    else:
        made = [g * upstream.to(g.dtype) for g in made]
    grads = [
        g.to(kind.dtype) if ctx.options[2] & bit else None
        for g, kind, bit in zip(made, tensors, (1, 2, 4), strict=False)
    ]
    return (*grads, None, None, None, None, None, None)


def _no_second_backward(ctx: Any, *grads: Tensor) -> Any:
    _refuse()


_operator.register_autograd(_operator_backward, setup_context=_remember)
_rows_backward.register_autograd(_no_second_backward)
