"""How the loss enters autograd: eagerly as a `Function`, under `torch.compile` as an operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastnc.nn._dispatch import evaluate, rows_backward

# What an operator may take: the loss is fully told by these, whoever calls it.
Arguments = tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None, str, int, float]


def apply(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    """The loss of checked arguments, `input (N, d)`, differentiable once."""
    wanted = 0
    if torch.is_grad_enabled():
        wanted = input.requires_grad + 2 * linear_weight.requires_grad
        wanted += 4 * (linear_bias is not None and linear_bias.requires_grad)
    arguments = (
        input, linear_weight, linear_bias, target, weight, reduction, ignore_index,
        label_smoothing, wanted,
    )  # fmt: skip
    if torch.compiler.is_compiling():
        return _operator(*arguments)[0]  # type: ignore[no-any-return]
    return _Eager.apply(*arguments)[0]  # type: ignore[no-any-return, no-untyped-call]


class _Eager(torch.autograd.Function):
    """Gradients of a reduced loss are made with the loss; those of "none" when asked for."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return evaluate(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _setup_context(ctx, inputs, output)
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        if ctx.reduction == "none":
            grads = rows_backward(grad_outputs[0], *ctx.saved_tensors[:5], *ctx.options)
        else:
            grads = _scaled(ctx, grad_outputs[0])
        if torch.is_grad_enabled():
            grads = _Once.apply(grad_outputs[0], *ctx.saved_tensors[:2], *grads)  # type: ignore[no-untyped-call]
        return _returned(ctx, grads)


class _Once(torch.autograd.Function):
    """Hands gradients through, and refuses when somebody differentiates them again."""

    @staticmethod
    def forward(upstream: Tensor, input: Tensor, linear_weight: Tensor, *grads: Any) -> Any:
        return tuple(g.clone() for g in grads)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Nothing is kept: there is no way back from here."""

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        raise NotImplementedError(
            "`fastnc.nn.linear_cross_entropy` cannot be differentiated twice; for Hessian-vector "
            "products call `fastnc.hessian_vector_product`, or use torch's own cross-entropy."
        )


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
    return evaluate(
        input, linear_weight, linear_bias, target, weight, reduction, ignore_index,
        label_smoothing, wanted,
    )  # fmt: skip


@torch.library.custom_op("fastnc::linear_cross_entropy_rows_backward", mutates_args=())
def _rows_backward_operator(
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
    return rows_backward(
        upstream, input, linear_weight, linear_bias, target, weight, ignore_index,
        label_smoothing, wanted,
    )  # fmt: skip


def _empty(input: Tensor, linear_weight: Tensor, wanted: int) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(input, memory_format=torch.contiguous_format) if wanted & 1 else input.new_empty(0),
        torch.empty_like(linear_weight, memory_format=torch.contiguous_format) if wanted & 2 else input.new_empty(0),
        linear_weight.new_empty(len(linear_weight)) if wanted & 4 else input.new_empty(0),
    )


@_operator.register_fake
def _(
    input: Tensor, linear_weight: Tensor, linear_bias: Any, target: Tensor, weight: Any,
    reduction: str, ignore_index: int, label_smoothing: float, wanted: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    from fastnc.nn._dispatch import loss_dtype

    shape = (len(input),) if reduction == "none" else ()
    loss = input.new_empty(shape, dtype=loss_dtype(input, linear_weight))
    kept = 0 if reduction == "none" else wanted
    return loss, *_empty(input, linear_weight, kept)


@_rows_backward_operator.register_fake
def _(
    upstream: Tensor, input: Tensor, linear_weight: Tensor, linear_bias: Any, target: Tensor,
    weight: Any, ignore_index: int, label_smoothing: float, wanted: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    return _empty(input, linear_weight, wanted)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, reduction, ignore_index, label_smoothing, wanted = inputs
    ctx.reduction, ctx.wanted = reduction, wanted
    ctx.options = (ignore_index, label_smoothing, wanted)
    kept = () if reduction == "none" else output[1:]
    ctx.save_for_backward(*tensors, *kept)
    ctx.set_materialize_grads(True)


def _operator_backward(ctx: Any, upstream: Tensor, *unused: Tensor) -> tuple[Any, ...]:
    if ctx.reduction == "none":
        grads = _rows_backward_operator(upstream, *ctx.saved_tensors[:5], *ctx.options)
    else:
        grads = tuple(g * upstream.to(g.dtype) for g in ctx.saved_tensors[5:])
    return _returned(ctx, grads)


_operator.register_autograd(_operator_backward, setup_context=_setup_context)


def _scaled(ctx: Any, upstream: Tensor) -> tuple[Tensor, ...]:
    grads: tuple[Tensor, ...] = ctx.saved_tensors[5:]
    # On the CPU a look at the scalar is free, and saves a pass over N x d in the usual case.
    if upstream.device.type == "cpu" and upstream.item() == 1.0:
        return grads
    return tuple(g * upstream.to(g.dtype) for g in grads)


def _returned(ctx: Any, grads: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """One entry for each of the nine arguments."""
    given = tuple(g if ctx.wanted & bit else None for g, bit in zip(grads, (1, 2, 4), strict=True))
    return (*given, None, None, None, None, None, None)
