"""The loss and its further outputs from one pass, as an autograd `Function`.

The gradients of a reduced loss, z-loss included, are computed in the pass; those of log-sum-exp and
entropies, and all of "none", in the backward pass. Second derivatives use the formula in torch's
operations.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
from torch import Tensor

from fastnc.nn import _formula
from fastnc.nn._batched import is_batch, over_batches
from fastnc.nn._problem import Problem, working_dtype
from fastnc.nn._surroundings import recorded, transformed
from fastnc.nn._torch_rows import Asked, Pass, Upstream, one_pass

Grads = list[Tensor | None]

# Up to this many logits one thread is faster than the start of torch's operations.
_FEW_LOGITS = 1 << 16


class Together(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        problem: Problem,
        asked: Asked,
    ) -> tuple[Tensor | None, ...]:
        ctx.options, ctx.asked = problem[5:], asked
        ctx.save_for_backward(*problem[:5])
        ctx.set_materialize_grads(False)
        made = forward_pass(problem, asked)
        ctx.grads = made.grads if problem.reduction != "none" and problem.wanted else None
        if made.predictions is not None:
            ctx.mark_non_differentiable(made.predictions)
        # The z-loss may need it though it was not requested.
        lse = made.lse if asked.lse else None
        return made.loss, lse, made.predictions, made.entropies

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Any, ...]:
        loss, lse, _, entropies = grad_outputs
        upstream = Upstream(loss, lse, entropies)
        problem = Problem(*ctx.saved_tensors, *ctx.options)
        if torch.is_grad_enabled() or transformed() or recorded() or any(map(is_batch, upstream)):
            return (*_wanted(problem, pulled(problem, ctx.asked, upstream)), None, None)
        total: Grads = [None] * 3
        if problem.reduction != "none" and loss is not None:
            made, ctx.grads = ctx.grads, None
            if made is None:
                made = forward_pass(problem, ctx.asked).grads
            total = [None if g is None else g.mul_(loss.to(g.dtype)) for g in made]
            upstream = upstream._replace(losses=None)
        if any(u is not None for u in upstream):
            total = added(total, backward_pass(problem, ctx.asked, upstream))
        return (*total, None, None)


def forward_pass(problem: Problem, asked: Asked) -> Pass:
    """All requested outputs, and the gradients of a reduced loss."""
    reduced = problem.reduction != "none"
    return _pass(problem if reduced else problem._replace(wanted=0), asked)


def backward_pass(problem: Problem, asked: Asked, upstream: Upstream) -> Grads:
    """Gradients by upstream gradients of the samples' losses, log-sum-exps and entropies."""
    if asked.z_loss_weight and upstream.losses is not None:
        # The z-loss depends on the log-sum-exp.
        values = _pass(problem._replace(wanted=0), Asked(lse=True)).lse
        by_z = 2.0 * asked.z_loss_weight * cast(Tensor, values) * upstream.losses
        upstream = upstream._replace(lse=by_z if upstream.lse is None else by_z + upstream.lse)
    return _pass(problem, asked, upstream).grads


def _pass(problem: Problem, asked: Asked, upstream: Upstream | None = None) -> Pass:
    input, linear_weight, _, target, *_ = problem
    if 0 not in linear_weight.shape:
        dtype = working_dtype(input, linear_weight, target)
        few = input.shape[0] * linear_weight.shape[0] <= _FEW_LOGITS
        if few and input.is_cpu and not (target.is_floating_point() or problem.softcap):
            made = _by_numba()(dtype, problem, asked, upstream)
            if made is not None:
                return made  # type: ignore[no-any-return]
        return one_pass(dtype, problem, asked, upstream)
    # Without a class or a feature there are no logits to pass over.
    with torch.no_grad():
        values = _formula.together(problem, asked.z_loss_weight, asked.entropies)
        predictions = _formula.predictions(problem) if asked.predictions else None
        if upstream is None:
            upstream = Upstream(torch.ones_like(values[0]))
        grads = _wanted(problem, pulled(problem, asked, upstream))
    return Pass(values[0], values[1], predictions, values[2], grads)


@cache
def _by_numba() -> Any:
    from fastnc.nn import _numba_byproducts

    return _numba_byproducts.one_pass


def added(some: Grads, more: Grads) -> Grads:
    """Sums of gradients, None being 0."""
    return [a if b is None else b if a is None else a + b for a, b in zip(some, more, strict=True)]


def _wanted(problem: Problem, made: tuple[Tensor, ...]) -> Grads:
    grads: Grads = [
        g if problem.wanted & bit else None for g, bit in zip(made, (1, 2, 4), strict=False)
    ]
    return grads + [None] * (3 - len(grads))


def pulled(problem: Problem, asked: Asked, upstream: Upstream) -> tuple[Tensor, ...]:
    """The gradients by input, linear_weight (and bias), by torch's operations.

    Differentiable again, also by upstream gradients, and for batches of these.
    """
    leaves = _formula.widened(problem)
    used = [i for i, u in enumerate(upstream) if u is not None]

    def values(*leaves: Tensor) -> tuple[Tensor, ...]:
        of = _formula.of_leaves(problem, leaves)
        made = _formula.together(of, asked.z_loss_weight, asked.entropies)
        return tuple(cast(Tensor, made[i]) for i in used)

    def pull_back(*upstream: Tensor) -> tuple[Tensor, ...]:
        pull: Any
        made, pull = torch.func.vjp(values, *leaves)  # type: ignore[misc]
        grads: tuple[Tensor, ...] = pull(
            tuple(u.to(x.dtype) for u, x in zip(upstream, made, strict=True))
        )
        return grads

    given = [cast(Tensor, upstream[i]) for i in used]
    return over_batches(pull_back, *given) if any(map(is_batch, given)) else pull_back(*given)


def pulled_again(
    problem: Problem, asked: Asked, upstream: Upstream, directions: tuple[Tensor | None, ...]
) -> tuple[list[Tensor | None], Grads]:
    """Derivatives of `sum <direction, gradient>` by the upstream gradients, and by the leaves."""
    leaves = _formula.widened(problem)
    used = [i for i, u in enumerate(upstream) if u is not None]

    def along(*tensors: Tensor) -> Tensor:
        given: list[Tensor | None] = [None] * 3
        for i, u in zip(used, tensors, strict=False):
            given[i] = u
        of = _formula.of_leaves(problem, tensors[len(used) :])
        return _formula.inner(directions, pulled(of, asked, Upstream(*given)))

    pull: Any
    value, pull = torch.func.vjp(along, *(upstream[i] for i in used), *leaves)  # type: ignore[misc]
    made = list(pull(torch.ones_like(value)))
    by_upstream: list[Tensor | None] = [None] * 3
    for i in used:
        by_upstream[i] = made.pop(0)
    return by_upstream, made + [None] * (3 - len(made))
