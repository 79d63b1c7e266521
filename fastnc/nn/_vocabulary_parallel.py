"""The loss with the classes divided among ranks: a `DTensor` weight that is sharded by its rows.

Each rank has logits of its own classes only. A first reduction gives every rank the labels' logits;
each takes its gaps to them, and a second reduction joins the ranks' sums:

    loss_i = log(1 + sum_ranks sum_{j != y} e^{D_j}),    r_j = e^{D_j} / den,    r_y = -S / den

so that nothing cancels here either. Both reductions are of one or two numbers a sample. The
gradient by the input is a sum over ranks, N x d; that by the weight needs none. A Hessian product
needs two more reductions of numbers of each sample: `sum_k p_k u_k` and the change of the label's
logit. It and all further derivatives follow from `_each`, which consists of differentiable
operations and of two that are each other's derivative, a sum over ranks and its copies.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from fastnc.nn import _formula
from fastnc.nn._problem import Problem, loss_dtype, working_dtype
from fastnc.nn._surroundings import transformed

_ENTRIES_A_BLOCK = 1 << 20


def loss(problem: Problem) -> Tensor:
    """The loss of a checked problem; a replicated `DTensor` where the input is one.

    Raises
    ------
    NotImplementedError
        Placements or options that have no form with the classes divided.
    """
    W: Any
    H, W, b = problem[:3]
    mesh = _refuse(problem)
    given = isinstance(H, DTensor)
    dtype = working_dtype(H, W, problem.target)
    rows, classes, bias = (None if x is None else _local(x).to(dtype) for x in (H, W, b))
    target, weight = (_whole(x) for x in (problem.target, problem.weight))
    options = (problem.ignore_index, _first_class(W), len(W), mesh.get_group())
    each = _Divided.apply(rows, classes, bias, target, weight, options)
    total = _formula.reduced(problem._replace(target=target, weight=weight), each)
    total = total.to(loss_dtype(H, W, problem.target))
    if not given:
        return total
    joined: Tensor = _Joined.apply(
        total, _Layout(mesh, (Replicate(),), total.shape, total.stride())
    )
    return joined


def _refuse(problem: Problem) -> Any:
    """The mesh; raises where the loss has no form with the classes divided."""
    H, W, b, target, weight, *_ = problem
    if not isinstance(W, DTensor):
        raise NotImplementedError(
            "`linear_weight` must be a DTensor where `input` is one; got a plain tensor. Pass "
            "`input.to_local()`, or `DTensor.from_local(linear_weight, mesh, ...)`."
        )
    mesh = W.device_mesh
    if mesh.ndim != 1 or W.placements != (Shard(0),) or W.dim() != 2:
        raise NotImplementedError(
            "`linear_weight` must be sharded by classes, Shard(0), on a mesh of one dimension; got "
            f"{W.placements} on one of {mesh.ndim}. Redistribute it, or call `.full_tensor()`."
        )
    if target.is_floating_point() or problem.label_smoothing or problem.softcap:
        raise NotImplementedError(
            "`target` must hold classes, and `label_smoothing` and `softcap` be left alone, where "
            "`linear_weight` is divided among ranks. Call `.full_tensor()` on it for those."
        )
    if transformed() or (weight is not None and weight.requires_grad):
        raise NotImplementedError(
            "`linear_weight` must be whole under the transforms of `torch.func`, in forward mode "
            "and where `weight` is differentiated; got one divided among ranks. Call "
            "`.full_tensor()` on it."
        )
    if b is not None and not (isinstance(b, DTensor) and b.placements == (Shard(0),)):
        raise NotImplementedError(
            "`linear_bias` must be sharded as `linear_weight` is, Shard(0); distribute it with "
            "`distribute_tensor(linear_bias, mesh, [Shard(0)])`."
        )
    if isinstance(H, DTensor) and H.placements != (Replicate(),):
        raise NotImplementedError(
            f"`input` must be replicated where `linear_weight` is sharded; got {H.placements}. "
            "Call `input.redistribute(placements=[Replicate()])`."
        )
    return mesh


def _local(x: Tensor) -> Any:
    return _Local.apply(x) if isinstance(x, DTensor) else x


def _whole(x: Tensor | None) -> Any:
    return x.full_tensor() if isinstance(x, DTensor) else x


def _first_class(W: DTensor) -> int:
    """The class of the first local row; rows are divided as by torch's `chunk`."""
    mesh = W.device_mesh
    most = -(-len(W) // mesh.size())
    return min(most * mesh.get_local_rank(), len(W))


class _Layout(NamedTuple):
    """How a `DTensor` lies on its mesh."""

    mesh: Any
    placements: tuple[Any, ...]
    shape: torch.Size
    stride: tuple[int, ...]


# A DTensor's own conversions cannot be differentiated twice; these are each other's derivative.
class _Local(torch.autograd.Function):
    """This rank's part of a `DTensor`."""

    @staticmethod
    def forward(ctx: Any, x: DTensor) -> Tensor:
        ctx.layout = _Layout(x.device_mesh, x.placements, x.shape, x.stride())
        local: Tensor = x.to_local()
        return local.view_as(local)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        return _Joined.apply(grad_outputs[0], ctx.layout)


class _Joined(torch.autograd.Function):
    """The `DTensor` of the ranks' parts."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: _Layout) -> Tensor:
        ctx.layout = layout
        return DTensor.from_local(
            x, layout.mesh, layout.placements, run_check=False, shape=layout.shape,
            stride=layout.stride,
        )  # fmt: skip

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        g, layout = grad_outputs[0], ctx.layout
        if g.placements != layout.placements:
            g = g.redistribute(layout.mesh, layout.placements)
        return _Local.apply(g), None


class _Sum(torch.autograd.Function):
    """A sum over ranks, whose uses are the same on all of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        return _Copies.apply(grad_outputs[0], ctx.group), None


class _Copies(torch.autograd.Function):
    """A tensor that is the same on all ranks, for uses that differ between them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        return _Sum.apply(grad_outputs[0], ctx.group), None


class _Divided(torch.autograd.Function):
    """Losses of each sample, by local tensors and a group."""

    @staticmethod
    def forward(
        ctx: Any,
        H: Tensor,
        W: Tensor,
        b: Tensor | None,
        y: Tensor,
        weight: Tensor | None,
        options: Any,
    ) -> Tensor:
        ignore_index, first, K, group = options
        y = y.to(torch.int64)
        counted = y != ignore_index
        bad = counted & ((y < 0) | (y >= K))
        counted = counted & ~bad
        local = torch.where(counted & (y >= first) & (y < first + len(W)), y - first, -1)
        z_y = H.new_zeros(len(H))
        mine = (local >= 0).nonzero().squeeze(1)
        z_y[mine] = (H[mine] * W[local[mine]]).sum(1) + (0.0 if b is None else b[local[mine]])
        dist.all_reduce(z_y, group=group)
        # Each rank's largest gap, and its sum of exponentials relative to that.
        parts = H.new_zeros(2, len(H))
        parts[0] = -torch.inf
        for part in _parts(H, len(W)):
            D = _gaps(H[part], W, b, z_y[part], local[part])
            if len(W):
                m = D.amax(1).clamp(min=0.0)
                parts[0, part] = m
                parts[1, part] = torch.exp(D - m.unsqueeze(1)).sum(1)
        every = [torch.empty_like(parts) for _ in range(dist.get_world_size(group))]
        dist.all_gather(every, parts, group=group)
        m = torch.stack([x[0] for x in every]).amax(0).clamp(min=0.0)
        # In the order of the ranks, so that all have the same bits.
        S = torch.stack([torch.exp(x[0] - m) * x[1] for x in every]).sum(0)
        den = torch.exp(-m) + S
        losses = torch.where(m == 0.0, torch.log1p(S), m + torch.log(den)) + 0.0 * z_y
        own = torch.ones_like(losses) if weight is None else weight.to(H.dtype)[y.clamp(0, K - 1)]
        own = torch.where(counted, own, 0.0).masked_fill(bad, torch.nan)
        ctx.group = group
        ctx.save_for_backward(H, W, b, local, z_y, m, S / den, own / den, own)
        return torch.where(counted, losses, 0.0) * own

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        if torch.is_grad_enabled():
            return (*_gradients(ctx, grad_outputs[0]), None, None, None)
        H, W, b, local, z_y, m, share, own_by_den, own = ctx.saved_tensors
        upstream = grad_outputs[0]
        grad_H, grad_W = torch.zeros_like(H), torch.zeros_like(W)
        grad_b = None if b is None else torch.zeros_like(b)
        for part in _parts(H, len(W)):
            D = _gaps(H[part], W, b, z_y[part], local[part])
            r = torch.exp(D - m[part].unsqueeze(1))
            r *= (own_by_den[part] * upstream[part]).unsqueeze(1)
            here = (local[part] >= 0).nonzero().squeeze(1)
            r[here, local[part][here]] = -(share * own * upstream)[part][here]
            # Ignored rows may hold NaN, and `0 * NaN` is NaN.
            r[own[part] == 0] = 0.0
            rows = torch.where((own[part] == 0).unsqueeze(1), 0.0, H[part])
            grad_H[part] = _formula.product(r, W)
            with torch.autocast(W.device.type, enabled=False):
                grad_W.addmm_(r.T, rows)
            if grad_b is not None:
                grad_b += r.sum(0)
        if ctx.needs_input_grad[0]:
            dist.all_reduce(grad_H, group=ctx.group)
        return grad_H, grad_W, grad_b, None, None, None


def _gradients(ctx: Any, upstream: Tensor) -> list[Tensor | None]:
    """The same, differentiable once more by upstream, H, W and b."""
    H, W, b, local, _, m, _, _, own = ctx.saved_tensors
    # Views, so that the gradients are of this use alone.
    leaves = [None if x is None else x.view_as(x) for x in (H, W, b)]
    each = _each(*leaves, local, m, own, ctx.group)  # type: ignore[call-arg,arg-type]
    asked = ctx.needs_input_grad[:3]
    wanted = [x for x, needed in zip(leaves, asked, strict=True) if x is not None and needed]
    made = iter(torch.autograd.grad(each, wanted, upstream, create_graph=True))
    return [next(made) if needed else None for needed in asked]


def _each(
    H: Tensor, W: Tensor, b: Tensor | None, local: Tensor, m: Tensor, own: Tensor, group: Any
) -> Tensor:
    """Losses of each sample, differentiable; all of this rank's logits at once.

    The label's own entry is a constant, as in `fastnc.nn._formula`, so that derivatives keep their
    digits. Every rank makes the same operations, also without classes of its own: each sum needs
    all ranks.
    """
    H = _Copies.apply(torch.where((own == 0).unsqueeze(1), 0.0, H), group)
    z = _formula.product(H, W.mT)
    z = z if b is None else z + b
    at = torch.where(local >= 0, local, len(W)).unsqueeze(1)
    z_y = _Sum.apply(F.pad(z, (0, 1)).gather(1, at).squeeze(1), group)
    D = z - _Copies.apply(z_y, group).unsqueeze(1)
    e = F.pad(torch.exp(D - m.unsqueeze(1)), (0, 1)).scatter(1, at, 0.0)
    S = _Sum.apply(e.sum(1), group)
    losses: Tensor = own * torch.where(own == 0, 0.0, torch.log(torch.exp(-m) + S))
    return losses


def _parts(H: Tensor, K: int) -> list[slice]:
    n = max(1, _ENTRIES_A_BLOCK // max(1, K))
    return [slice(i, i + n) for i in range(0, len(H), n)]


def _gaps(H: Tensor, W: Tensor, b: Tensor | None, z_y: Tensor, local: Tensor) -> Tensor:
    """Of some rows: D_j of the local classes, -inf at the label."""
    z = _formula.product(H, W.T)
    D = (z if b is None else z + b) - z_y.unsqueeze(1)
    here = (local >= 0).nonzero().squeeze(1)
    D[here, local[here]] = -torch.inf
    return D
