"""The loss with the classes divided among ranks: a `DTensor` weight that is sharded by its rows.

Each rank has logits of its own classes only. A first reduction brings every sample its label's
logit; gaps to it are taken then, and a second one joins the ranks' sums:

    loss_i = log(1 + sum_ranks sum_{j != y} e^{D_j}),    r_j = e^{D_j} / den,    r_y = -S / den

so that nothing cancels here either. Both are numbers for each sample. The gradient by the input is
a sum over ranks, N x d, which its own placement asks for; that by the weight stays where it is.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from fastnc.nn import _formula
from fastnc.nn._problem import Problem, loss_dtype, working_dtype

_ENTRIES_A_BLOCK = 1 << 20


def loss(problem: Problem) -> Tensor:
    """The loss of a checked problem; a replicated `DTensor` where the input is one.

    Raises
    ------
    NotImplementedError
        Placements or options that have no form with the classes divided.
    """
    W, b = problem.linear_weight, problem.linear_bias
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
    if problem.target.is_floating_point() or problem.label_smoothing or problem.softcap:
        raise NotImplementedError(
            "`target` must hold classes, and `label_smoothing` and `softcap` be left alone, where "
            "`linear_weight` is divided among ranks. Call `.full_tensor()` on it for those."
        )
    if b is not None and not (isinstance(b, DTensor) and b.placements == (Shard(0),)):
        raise NotImplementedError(
            "`linear_bias` must be sharded as `linear_weight` is, Shard(0); distribute it with "
            "`distribute_tensor(linear_bias, mesh, [Shard(0)])`."
        )
    H = problem.input
    if isinstance(H, DTensor) and H.placements != (Replicate(),):
        raise NotImplementedError(
            f"`input` must be replicated where `linear_weight` is sharded; got {H.placements}. "
            "Call `input.redistribute(placements=[Replicate()])`."
        )
    kind = loss_dtype(H, W, problem.target)
    given = isinstance(H, DTensor)
    whole: Any = H if given else DTensor.from_local(H, mesh, [Replicate()], run_check=False)
    # The gradient of each rank's part is a part of the whole, and its sum is taken once.
    rows = whole.to_local(grad_placements=[Partial()])
    dtype = working_dtype(H, W, problem.target)
    target, weight = (_whole(x) for x in (problem.target, problem.weight))
    first = _first_class(W)
    each = _Divided.apply(
        rows.to(dtype), W.to_local().to(dtype), None if b is None else b.to_local().to(dtype),
        target, weight, (problem.ignore_index, first, len(W), mesh.get_group()),
    )  # fmt: skip
    counted = target != problem.ignore_index
    total: Tensor = each
    if problem.reduction != "none":
        total = each.sum(dtype=torch.float64)
    if problem.reduction == "mean":
        total = _formula.mean(total, _formula.divisor(target, weight, counted))
    total = total.to(kind)
    return DTensor.from_local(total, mesh, [Replicate()], run_check=False) if given else total


def _whole(x: Tensor | None) -> Any:
    return x.full_tensor() if isinstance(x, DTensor) else x


def _first_class(W: DTensor) -> int:
    """The class of the local rows' first: rows are dealt out as torch's `chunk` does."""
    mesh = W.device_mesh
    most = -(-len(W) // mesh.size())
    return min(most * mesh.get_local_rank(), len(W))


class _Divided(torch.autograd.Function):
    """Losses of each sample, by local tensors and a group."""

    @staticmethod
    def forward(
        ctx: Any, H: Tensor, W: Tensor, b: Tensor | None, y: Tensor, weight: Tensor | None, how: Any
    ) -> Tensor:
        ignore_index, first, K, group = how
        y = y.to(torch.int64)
        counted = y != ignore_index
        bad = counted & ((y < 0) | (y >= K))
        counted = counted & ~bad
        local = torch.where(counted & (y >= first) & (y < first + len(W)), y - first, -1)
        z_y = H.new_zeros(len(H))
        mine = (local >= 0).nonzero().squeeze(1)
        z_y[mine] = (H[mine] * W[local[mine]]).sum(1) + (0.0 if b is None else b[local[mine]])
        dist.all_reduce(z_y, group=group)
        # The largest gap, and the sum beneath it, of each rank.
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
        # In the order of the ranks, so that each has the same bits.
        S = torch.stack([torch.exp(x[0] - m) * x[1] for x in every]).sum(0)
        den = torch.exp(-m) + S
        losses = torch.where(m == 0.0, torch.log1p(S), m + torch.log(den)) + 0.0 * z_y
        own = torch.ones_like(losses) if weight is None else weight.to(H.dtype)[y.clamp(0, K - 1)]
        own = torch.where(counted, own, 0.0).masked_fill(bad, torch.nan)
        ctx.save_for_backward(H, W, b, local, z_y, m, S / den, own / den, own)
        return torch.where(counted, losses, 0.0) * own

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "`create_graph` must be False where `linear_weight` is divided among ranks: second "
                "derivatives have no form there. Call `.full_tensor()` on it for those."
            )
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
            # A sample that is ignored may hold NaN, which `0 * NaN` would hand on.
            r[own[part] == 0] = 0.0
            rows = torch.where((own[part] == 0).unsqueeze(1), 0.0, H[part])
            grad_H[part] = r @ W
            grad_W.addmm_(r.T, rows)
            if grad_b is not None:
                grad_b += r.sum(0)
        return grad_H, grad_W, grad_b, None, None, None


def _parts(H: Tensor, K: int) -> list[slice]:
    n = max(1, _ENTRIES_A_BLOCK // max(1, K))
    return [slice(i, i + n) for i in range(0, len(H), n)]


def _gaps(H: Tensor, W: Tensor, b: Tensor | None, z_y: Tensor, local: Tensor) -> Tensor:
    """Of some rows: D_j of the local classes, -inf at the label."""
    D = (H @ W.T if b is None else torch.addmm(b, H, W.T)) - z_y.unsqueeze(1)
    here = (local >= 0).nonzero().squeeze(1)
    D[here, local[here]] = -torch.inf
    return D
