"""The loss and what it yields beside itself from one pass, as an autograd `Function`.

With a reduced loss its gradients, z-loss included, are made in the pass; those by the log-sum-exp
or the entropies, and all of "none", when they are asked for. What is differentiated again goes by
the formula in torch's operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from fastnc.nn._batched import is_batch, over_batches
from fastnc.nn._problem import Problem, working_dtype
from fastnc.nn._surroundings import recorded, transformed
from fastnc.nn._torch_rows import Asked, Upstream, one_pass

# `(loss, lse, entropies)` of a problem and its leaves by differentiable operations.
Formula = Callable[..., tuple[Tensor, ...]]


class Together(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        problem: Problem,
        asked: Asked,
        formula: Formula,
    ) -> tuple[Tensor | None, ...]:
        ctx.options, ctx.asked, ctx.formula = problem[5:], asked, formula
        ctx.save_for_backward(*problem[:5])
        ctx.set_materialize_grads(False)
        dtype = working_dtype(input, linear_weight, problem.target)
        reduced = problem.reduction != "none"
        made = one_pass(dtype, problem if reduced else problem._replace(wanted=0), asked)
        ctx.grads = made.grads if reduced and problem.wanted else None
        if made.predictions is not None:
            ctx.mark_non_differentiable(made.predictions)
        # The z-loss wants it, and nobody asked for it.
        lse = made.lse if asked.lse else None
        return made.loss, lse, made.predictions, made.entropies

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Any, ...]:
        loss, lse, _, entropies = upstream
        problem = Problem(*ctx.saved_tensors, *ctx.options)
        again = torch.is_grad_enabled() or transformed() or recorded()
        if again or any(is_batch(u) for u in upstream):
            return (*_by_formula(ctx, problem, (loss, lse, entropies)), None, None, None)
        total: list[Tensor | None] = [None] * 3
        rows = Upstream(None, lse, entropies)
        if problem.reduction == "none" and loss is not None:
            rows = _of_rows(problem, ctx.asked, loss, rows)
        elif loss is not None:
            made, ctx.grads = ctx.grads, None
            if made is None:
                made = one_pass(_dtype(problem), problem, ctx.asked).grads
            total = [None if g is None else g.mul_(loss.to(g.dtype)) for g in made]
        if any(u is not None for u in rows):
            more = one_pass(_dtype(problem), problem, ctx.asked, rows).grads
            total = [a if b is None else b if a is None else a + b
                     for a, b in zip(total, more, strict=True)]  # fmt: skip
        return (*total, None, None, None)


def _dtype(problem: Problem) -> torch.dtype:
    return working_dtype(problem.input, problem.linear_weight, problem.target)


def _of_rows(problem: Problem, asked: Asked, loss: Tensor, rows: Upstream) -> Upstream:
    """Upstream gradients by the plain losses and the log-sum-exp, which z-losses are made of."""
    if not asked.z_loss_weight:
        return rows._replace(losses=loss)
    wanted = Asked(lse=True)
    values = cast(Tensor, one_pass(_dtype(problem), problem._replace(wanted=0), wanted).lse)
    by_z = 2.0 * asked.z_loss_weight * values * loss
    return Upstream(loss, by_z if rows.lse is None else by_z + rows.lse, rows.entropies)


def _by_formula(ctx: Any, problem: Problem, upstream: tuple[Tensor | None, ...]) -> list[Any]:
    """The same by torch's own derivatives, differentiable again, or for batches."""
    dtype = _dtype(problem)
    leaves = [x.to(dtype) for x in problem[:3] if isinstance(x, Tensor)]
    used = [i for i, u in enumerate(upstream) if u is not None]

    def values(*leaves: Tensor) -> tuple[Tensor, ...]:
        bias = leaves[2] if len(leaves) == 3 else None
        of = problem._replace(input=leaves[0], linear_weight=leaves[1], linear_bias=bias)
        made = ctx.formula(of, ctx.asked)
        return tuple(made[i] for i in used)

    def pulled(*upstream: Tensor) -> tuple[Tensor, ...]:
        pull: Any
        made, pull = torch.func.vjp(values, *leaves)  # type: ignore[misc]
        grads: tuple[Tensor, ...] = pull(
            tuple(u.to(x.dtype) for u, x in zip(upstream, made, strict=True))
        )
        return grads

    given = [upstream[i] for i in used]
    batches = any(is_batch(u) for u in given)
    made = over_batches(pulled, *given) if batches else pulled(*given)  # type: ignore[arg-type]
    grads = [g if problem.wanted & bit else None for g, bit in zip(made, (1, 2, 4), strict=False)]
    return grads + [None] * (3 - len(grads))
