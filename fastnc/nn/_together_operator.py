"""The loss and its further outputs as operators that compilers and tracers can record.

`fastnc::linear_cross_entropy_together` is the pass of `_together`, with the gradients of a reduced
loss; `fastnc::linear_cross_entropy_together_backward` computes the other gradients. Outputs that
were not requested are empty tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastnc.nn._formula import by_target, inner, together
from fastnc.nn._operator import filled, like_gradients, look_again
from fastnc.nn._problem import Problem, working_dtype
from fastnc.nn._together import added, backward_pass, forward_pass, pulled, pulled_again
from fastnc.nn._torch_rows import Asked, Upstream

_N_TENSORS = 5  # of a problem
_N_ARGUMENTS = 14  # of the operator


@torch.library.custom_op("fastnc::linear_cross_entropy_together", mutates_args=())
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
    lse: bool,
    predictions: bool,
    entropies: bool,
    z_loss_weight: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    look_again(input, linear_weight, target, linear_bias, weight)
    problem = Problem(
        input, linear_weight, linear_bias, target, weight, reduction, ignore_index,
        label_smoothing, wanted, softcap,
    )  # fmt: skip
    made = forward_pass(problem, Asked(lse, predictions, entropies, z_loss_weight))
    kept = made.grads if reduction != "none" else [None] * 3
    beside = (made.lse if lse else None, made.predictions, made.entropies)
    return made.loss, *filled(input, beside), *filled(input, kept)


@torch.library.custom_op("fastnc::linear_cross_entropy_together_backward", mutates_args=())
def backward(
    by_loss: Tensor | None,
    by_lse: Tensor | None,
    by_entropies: Tensor | None,
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
    z_loss_weight: float,
) -> tuple[Tensor, Tensor, Tensor]:
    look_again(input, linear_weight, target, linear_bias, weight)
    problem = Problem(
        input, linear_weight, linear_bias, target, weight, reduction, ignore_index,
        label_smoothing, wanted, softcap,
    )  # fmt: skip
    asked = Asked(z_loss_weight=z_loss_weight)
    return filled(input, backward_pass(problem, asked, Upstream(by_loss, by_lse, by_entropies)))


@operator.register_fake
def _(input: Tensor, linear_weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    _, target, _, reduction, _, _, wanted, _, lse, predictions, entropies, _ = rest
    N, dtype = input.shape[0], working_dtype(input, linear_weight, target)
    none = reduction == "none"
    loss = input.new_empty((N,) if none else (), dtype=dtype if none else torch.float64)
    kinds = ((lse, dtype), (predictions, torch.int64), (entropies, dtype))
    beside = [
        input.new_empty(N, dtype=kind) if asked else input.new_empty(0) for asked, kind in kinds
    ]
    return loss, *beside, *like_gradients(input, linear_weight, target, 0 if none else wanted)


@backward.register_fake
def _(
    by_loss: Any, by_lse: Any, by_entropies: Any, input: Tensor, linear_weight: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    return like_gradients(input, linear_weight, rest[1], rest[-3])


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.options, ctx.asked = inputs[_N_TENSORS:-4], Asked(*inputs[-4:])
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[2])
    made = () if inputs[_N_TENSORS] == "none" else output[4:]
    ctx.save_for_backward(*inputs[:_N_TENSORS], *made)


def _backward(ctx: Any, loss: Any, lse: Any, predictions: Any, entropies: Any, *rest: Any) -> Any:
    tensors, made = ctx.saved_tensors[:_N_TENSORS], ctx.saved_tensors[_N_TENSORS:]
    problem, asked = Problem(*tensors, *ctx.options), ctx.asked
    upstream = Upstream(loss, lse if asked.lse else None, entropies if asked.entropies else None)
    needed = ctx.needs_input_grad[:3]
    grads: list[Tensor | None] = [None] * 3
    # A recorded call knows what was wanted when it was recorded, not what is wanted now.
    known = all(problem.wanted & bit or not n for n, bit in zip(needed, (1, 2, 4), strict=True))
    if not known and any(u is not None for u in upstream):
        grads = [*pulled(problem, asked, upstream), None][:3]
    elif known:
        left = upstream
        if made and loss is not None:
            grads = [
                g * loss.to(g.dtype) if problem.wanted & bit else None
                for g, bit in zip(made, (1, 2, 4), strict=True)
            ]
            left = upstream._replace(losses=None)
        if any(u is not None for u in left):
            more = backward(*left, *problem, asked.z_loss_weight)
            grads = added(grads, _chosen(more, problem.wanted))
    directions = _chosen(rest, problem.wanted)
    one = torch.ones((), dtype=torch.float64, device=problem.input.device)
    if made and any(v is not None for v in directions):
        _, products = pulled_again(problem, asked, Upstream(one), tuple(directions))
        grads = added(grads, products)

    def value(problem: Problem) -> Tensor:
        total = []
        if any(u is not None for u in upstream):
            values = together(problem, asked.z_loss_weight, asked.entropies)
            total.append(inner(upstream, values))
        if made and any(v is not None for v in directions):
            total.append(inner(directions, pulled(problem, asked, Upstream(one))))
        return torch.stack(total).sum()

    by_y_and_v = by_target(problem, ctx.needs_input_grad[3:_N_TENSORS], value)
    return (*_cast(grads, tensors), *by_y_and_v, *[None] * (_N_ARGUMENTS - _N_TENSORS))


def _remember_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.options, ctx.asked = inputs[3 + _N_TENSORS : -1], Asked(z_loss_weight=inputs[-1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[: 3 + _N_TENSORS])


def _backward_backward(ctx: Any, *directions: Tensor | None) -> Any:
    upstream, tensors = Upstream(*ctx.saved_tensors[:3]), ctx.saved_tensors[3:]
    problem = Problem(*tensors, *ctx.options)
    asked = ctx.asked._replace(entropies=upstream.entropies is not None)
    along = _chosen(directions, problem.wanted)
    if all(v is None for v in along):
        return (None,) * _N_ARGUMENTS
    by_upstream, products = pulled_again(problem, asked, upstream, tuple(along))

    def value(problem: Problem) -> Tensor:
        return inner(along, pulled(problem, asked, upstream))

    by_y_and_v = by_target(problem, ctx.needs_input_grad[6:8], value)
    made = (*_cast(by_upstream, upstream), *_cast(products, tensors), *by_y_and_v)
    return (*made, *[None] * (_N_ARGUMENTS - len(made)))


def _chosen(made: Any, wanted: int) -> list[Tensor | None]:
    return [g if wanted & bit else None for g, bit in zip(made, (1, 2, 4), strict=True)]


def _cast(grads: Any, tensors: Any) -> list[Tensor | None]:
    """Each gradient in the dtype of its tensor."""
    pairs = zip(grads, tensors[:3], strict=True)
    return [None if g is None else g.to(x.dtype) for g, x in pairs]


operator.register_autograd(_backward, setup_context=_remember)
backward.register_autograd(_backward_backward, setup_context=_remember_backward)
