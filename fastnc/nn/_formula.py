"""The loss as differentiable torch operations: every derivative of any order follows from it.

Gaps D_j = z_j - z_y are taken first, and the label's own gap is removed before the exponential, so
that torch's derivatives keep their digits in the terminal phase:

    loss_i = A_i log(1 + sum_{j != y} e^{D_j}) - sum_j B_ij D_ij

A and B as in `fastnc.nn._torch_rows`. All logits are formed at once. This serves second and later
derivatives, forward mode, the transforms of `torch.func`, targets and class weights that are
differentiated themselves, and problems without a class or a feature; the rest has kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastnc.nn._problem import Problem, loss_dtype, working_dtype
from fastnc.nn._surroundings import recorded

# softplus is linear from here on, where e^x would overflow.
_LINEAR_FROM = {torch.float32: 80.0, torch.float64: 700.0}


def loss(problem: Problem) -> Tensor:
    """The loss of a checked problem, in its dtype."""
    kind = loss_dtype(problem.input, problem.linear_weight, problem.target)
    with torch.autocast(problem.input.device.type, enabled=False):
        each, _ = _losses(problem, logits(problem))
        return reduced(problem, each).to(kind)


def together(
    problem: Problem, z_loss_weight: float = 0.0, entropies: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The loss with its z-loss, the log-sum-exp (N,) and the entropies (N,)."""
    kind = loss_dtype(problem.input, problem.linear_weight, problem.target)
    with torch.autocast(problem.input.device.type, enabled=False):
        z = logits(problem)
        each, counted = _losses(problem, z)
        lse = torch.logsumexp(z, 1)
        spread = softmax_entropies(z) if entropies else None
        if counted is not None:
            lse = torch.where(counted, lse, 0.0)
            spread = None if spread is None else torch.where(counted, spread, 0.0)
        return reduced(problem, each, lse, z_loss_weight).to(kind), lse, spread


def reduced(
    problem: Problem, losses: Tensor, lse: Tensor | None = None, z_loss_weight: float = 0.0
) -> Tensor:
    """Losses of any shape plus z-losses of `lse`, reduced as `problem` says, sums in float64."""
    target, weight, reduction = problem.target, problem.weight, problem.reduction
    z_losses = None if lse is None or not z_loss_weight else z_loss_weight * lse.square()
    if reduction == "none":
        return losses if z_losses is None else losses + z_losses
    counted = None if target.is_floating_point() else target != problem.ignore_index
    total = losses.sum(dtype=torch.float64)
    if reduction == "mean":
        total = mean(total, divisor(losses.numel(), target, weight, counted))
    if z_losses is not None:
        of_z = z_losses.sum(dtype=torch.float64)
        if reduction == "mean":
            of_z = mean(of_z, divisor(losses.numel(), target, None, counted))
        total = total + of_z
    return total


def mean(total: Tensor, divisor: Tensor) -> Tensor:
    """`total / divisor`; without samples NaN, as torch has it, with gradients of zero."""
    none = divisor == 0
    return torch.where(none, torch.nan, total / torch.where(none, 1.0, divisor))


def divisor(n: int, target: Tensor, weight: Tensor | None, counted: Tensor | None) -> Tensor:
    """The divisor of a mean: the summed weights of the labels that count, or n.

    NaN for labels of weight 0: their mean is 0 / 0 and has no gradient, as torch has it.
    """
    if counted is None:
        return torch.full((), n, dtype=torch.float64, device=target.device)
    if weight is None:
        return counted.sum(dtype=torch.float64)
    inside = counted & (target >= 0) & (target < len(weight))
    total = (weight[target.masked_fill(~inside, 0)] * inside).sum(dtype=torch.float64)
    return torch.where((total == 0) & counted.any(), torch.nan, total)


def raw_logits(problem: Problem, input: Tensor) -> Tensor:
    """The capped logits (N, K) of `input`."""
    _, linear_weight, linear_bias, target, *_ = problem
    dtype = working_dtype(input, linear_weight, target)
    z = product(input.to(dtype), linear_weight.to(dtype).mT)
    if linear_bias is not None:
        z = z + linear_bias.to(dtype)
    if problem.softcap:
        z = problem.softcap * tanh(z / problem.softcap)
    return z


def product(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b` in the dtype of its operands, as are all its derivatives."""
    # What is recorded is no call of this function.
    return a @ b if recorded() else _Product.apply(a, b)


class _Product(torch.autograd.Function):
    """A product whose derivatives, taken after the autocast that is off here, have it off too."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        with torch.autocast(a.device.type, enabled=False):
            return a @ b

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        (g,), (a, b) = grad_outputs, ctx.saved_tensors
        by_a, by_b = ctx.needs_input_grad
        return product(g, b.mT) if by_a else None, product(a.mT, g) if by_b else None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        (da, db), (a, b) = tangents, ctx.saved_tensors
        made = [product(da, b)] if da is not None else []
        made += [product(a, db)] if db is not None else []
        return made[0] + made[1] if len(made) == 2 else made[0]


def logits(problem: Problem) -> Tensor:
    """The capped logits (N, K), ignored rows as of an input of zeros."""
    input, target = problem.input, problem.target
    if not target.is_floating_point():
        # An ignored row may hold NaN, which must reach no gradient.
        counted = (target.to(torch.int64) != problem.ignore_index).unsqueeze(1)
        input = torch.where(counted, input, 0.0)
    return raw_logits(problem, input)


@torch.no_grad()
def predictions(problem: Problem) -> Tensor:
    """The class of each sample's largest logit; -1 where there is no class."""
    # Without the cap, which keeps the order and rounds large logits to one number.
    z = raw_logits(problem._replace(softcap=0.0), problem.input)
    return z.argmax(1) if z.shape[1] else z.new_full((len(z),), -1, dtype=torch.int64)


def _losses(problem: Problem, z: Tensor) -> tuple[Tensor, Tensor | None]:
    """Each sample's loss (N,), and which of them count."""
    _, _, _, target, weight, _, ignore_index, smoothing, *_ = problem
    dtype, K = z.dtype, z.shape[1]
    weight = None if weight is None else weight.to(dtype)
    counted = poison = None
    if K == 0:
        # Without a class `gather` has no index: one with the logit 0 is added.
        z = F.pad(z, (0, 1))
        weight = None if weight is None else F.pad(weight, (0, 1))
        target = F.pad(target, (0, 1)) if target.is_floating_point() else target
    B: Tensor | None
    if target.is_floating_point():
        spread = target.to(dtype)
        if smoothing:
            spread = spread * (1.0 - smoothing) + smoothing / K
        if weight is not None:
            spread = spread * weight
        label, A, B = spread.detach().argmax(1, keepdim=True), spread.sum(1), spread
    else:
        target = target.to(torch.int64)
        counted = target != ignore_index
        inside = counted & (target >= 0) & (target < K)
        poison = counted & ~inside
        label = target.masked_fill(~inside, 0).unsqueeze(1)
        z = torch.where(counted.unsqueeze(1), z, 0.0)
        own = torch.ones_like(z[:, 0]) if weight is None else weight[label.squeeze(1)]
        uniform = torch.ones_like(z[:1]) if weight is None else weight.unsqueeze(0)
        B = uniform * (smoothing / K) if smoothing else None
        A = own if B is None else own * (1.0 - smoothing) + B.sum()
    gaps = z - z.gather(1, label)
    each = A * log_partition(gaps, label)
    if B is not None:
        each = each - (B * gaps.scatter(1, label, 0.0)).sum(1)
    # A label's logit that is not finite makes the loss NaN.
    each = each + 0.0 * gaps.gather(1, label).squeeze(1)
    if counted is not None and poison is not None:
        each = torch.where(counted, each, 0.0)
        each = torch.where(poison, torch.nan, each)
    return each, counted


def log_partition(gaps: Tensor, label: Tensor) -> Tensor:
    """`log sum_j e^{D_j}`, D_y = 0; derivatives `p_j` and `p_j (delta_jk - p_k)` for j, k != y.

    Its value is `softplus(log sum_{j != y} e^{D_j})`, which keeps its digits in the tail; its
    derivatives are those of the plain sum, which keep them if the label's own entry is constant.
    """
    others = gaps.detach().scatter(1, label, torch.finfo(gaps.dtype).min / 2)
    value = F.softplus(torch.logsumexp(others, 1), threshold=_LINEAR_FROM[gaps.dtype])
    differentiated = torch.logsumexp(gaps.scatter(1, label, 0.0), 1)
    return differentiated + (value - differentiated.detach())


def softmax_entropies(z: Tensor) -> Tensor:
    """`-sum_j p_j log p_j` by gaps to the largest logit: a sum of numbers of one sign."""
    if z.shape[1] == 0:
        return z.sum(1)
    top = z.detach().argmax(1, keepdim=True)
    gaps = z - z.gather(1, top)
    # The loss of the largest logit's class, -log p.
    loss = log_partition(gaps, top)
    p = torch.exp(gaps - loss.unsqueeze(1))
    return loss - (p * gaps.masked_fill(torch.isinf(gaps), 0.0)).sum(1)


def tanh(x: Tensor) -> Tensor:
    """tanh by an expression whose derivative does not cancel for large |x|."""
    e = torch.exp(-2.0 * x.abs())
    far = x.sign() * (1.0 - e) / (1.0 + e)
    return torch.where(x.abs() < 1.0, torch.tanh(x), far)


def gradients(problem: Problem, upstream: Tensor) -> tuple[Tensor, ...]:
    """`upstream` times the derivatives of the loss by input, linear_weight (and linear_bias).

    Differentiable by all of them, in every way that torch has.
    """
    leaves = widened(problem)
    pull: Any
    _, pull = torch.func.vjp(lambda *leaves: loss(of_leaves(problem, leaves)), *leaves)  # type: ignore[misc]
    made: tuple[Tensor, ...] = pull(upstream.to(loss_dtype(leaves[0], leaves[1], problem.target)))
    return made


def hessian_products(
    problem: Problem, upstream: Tensor, directions: tuple[Tensor | None, ...]
) -> tuple[Tensor, ...]:
    """Derivatives of `sum <direction, gradient>` by upstream, input, linear_weight (and bias)."""
    leaves = widened(problem)

    def along(upstream: Tensor, *leaves: Tensor) -> Tensor:
        return inner(directions, gradients(of_leaves(problem, leaves), upstream))

    pull: Any
    value, pull = torch.func.vjp(along, upstream, *leaves)  # type: ignore[misc]
    products: tuple[Tensor, ...] = pull(torch.ones_like(value))
    return products


def by_target(
    problem: Problem, needed: Sequence[bool], value: Callable[[Problem], Tensor]
) -> list[Tensor | None]:
    """Derivatives of a number by the target's probabilities and the classes' weights."""
    names = [name for name, need in zip(("target", "weight"), needed, strict=True) if need]
    if not names:
        return [None, None]

    def along(*leaves: Tensor) -> Tensor:
        given: dict[str, Any] = dict(zip(names, leaves, strict=True))
        return value(problem._replace(**given))

    pull: Any
    made, pull = torch.func.vjp(along, *(getattr(problem, name) for name in names))  # type: ignore[misc]
    found = dict(zip(names, pull(torch.ones_like(made)), strict=True))
    return [found.get("target"), found.get("weight")]


def inner(some: Sequence[Tensor | None], others: Sequence[Tensor | None]) -> Tensor:
    """The sum of the inner products of those that are there."""
    pairs = [(a, b) for a, b in zip(some, others, strict=False) if a is not None and b is not None]
    return torch.stack([(a.to(b.dtype) * b).sum() for a, b in pairs]).sum()


def widened(problem: Problem) -> list[Tensor]:
    """Input, weight and bias in the working dtype."""
    dtype = working_dtype(problem.input, problem.linear_weight, problem.target)
    return [x.to(dtype) for x in problem[:3] if isinstance(x, Tensor)]


def of_leaves(problem: Problem, leaves: Any) -> Problem:
    bias = leaves[2] if len(leaves) == 3 else None
    return problem._replace(input=leaves[0], linear_weight=leaves[1], linear_bias=bias)
