"""What two gloo ranks do with the torch loss under `torchrun`; test_nn_ranks compares.

`torchrun --nproc-per-node 2 nn_ranks.py FOLDER` leaves `rank0.pt` and `rank1.pt` there.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import tracker_ranks
from nn_problem import problem
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from fastnc.nn import LinearCrossEntropyLoss, linear_cross_entropy

# 7 classes: the shares of two ranks differ.
SHAPE = {"N": 37, "K": 7, "d": 5}


def batch():
    H, W, b, y, v = (x.detach() for x in problem(**SHAPE))
    y[5] = -100
    # Two samples in the terminal phase, on classes of either rank.
    H[0], H[1] = 40.0 * W[y[0]], 40.0 * W[y[1]]
    return H, W, b, y, v


def divided(mesh, reduction, weighted, given):
    """Loss and whole gradients with the classes divided; `given`: the input is a DTensor too."""
    H, W, b, y, v = batch()
    W, b = (distribute_tensor(x, mesh, [Shard(0)]).requires_grad_() for x in (W, b))
    H = distribute_tensor(H, mesh, [Replicate()]) if given else H
    H.requires_grad_()
    loss = linear_cross_entropy(
        H, W, y, linear_bias=b, weight=v if weighted else None, reduction=reduction
    )
    assert isinstance(loss, DTensor) == given
    (loss * torch.linspace(1.0, 2.0, loss.numel()).reshape(loss.shape)
     if reduction == "none" and not given else loss).sum().backward()  # fmt: skip
    grads = [x.grad for x in (H, W, b)]
    assert grads[1].placements == (Shard(0),)
    return [x.full_tensor() if isinstance(x, DTensor) else x for x in (loss.detach(), *grads)]


def whole(x):
    return x.full_tensor() if isinstance(x, DTensor) else x


def again(mesh, reduction, given):
    """Gradients of a gradient penalty, and of theirs, with the classes divided."""
    H, W, b, y, v = batch()
    W, b = (distribute_tensor(x, mesh, [Shard(0)]).requires_grad_() for x in (W, b))
    H = distribute_tensor(H, mesh, [Replicate()]) if given else H
    leaves = [H.requires_grad_(), W, b]
    loss = linear_cross_entropy(H, W, y, linear_bias=b, weight=v, reduction=reduction)
    value, found = whole(loss.cos().sum()), []
    for last in (False, True):
        grads = torch.autograd.grad(value, leaves, create_graph=True)
        value = sum(whole(g.square().sum()) for g in grads)
        found.append([whole(g).detach() for g in grads])
        if last:
            found.append([whole(g).detach() for g in torch.autograd.grad(value, leaves)])
    return found


def under_autocast(mesh, inside):
    """In float32, forward under autocast; the backward pass too, or after it."""
    H, W, b, y, _ = batch()
    # Margins of its own size: float32 has none of the terminal phase's logits.
    H[:2] /= 40.0
    W, b = (distribute_tensor(x.float(), mesh, [Shard(0)]).requires_grad_() for x in (W, b))
    H = H.float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(H, W, y, linear_bias=b)
        if inside:
            loss.backward()
    if not inside:
        loss.backward()
    return [loss.detach(), H.grad, *(x.grad.full_tensor() for x in (W, b))]


def refusals(mesh):
    H, W, b, y, _ = batch()
    sharded = distribute_tensor(W, mesh, [Shard(0)])
    cases = (
        (H, distribute_tensor(W, mesh, [Replicate()]), {}),
        (H, sharded, {"label_smoothing": 0.1}),
        (H, sharded, {"linear_bias": b}),
        (distribute_tensor(H, mesh, [Shard(0)]), sharded, {}),
        (distribute_tensor(H, mesh, [Replicate()]), W, {}),
        (H, sharded, {"weight": torch.ones(SHAPE["K"], requires_grad=True)}),
        (H, sharded, {"return_lse": True}),
    )
    said = []
    for features, weight, options in cases:
        try:
            linear_cross_entropy(features, weight, y, **options)
        except NotImplementedError as error:
            said.append(str(error))
    return said


def fully_sharded(mesh):
    """One step of FSDP2 on a share of the batch for each rank."""
    H, W, b, y, _ = batch()
    head = LinearCrossEntropyLoss(SHAPE["d"], SHAPE["K"], bias=True, dtype=torch.float64)
    with torch.no_grad():
        head.linear.weight.copy_(W), head.linear.bias.copy_(b)
    fully_shard(head, mesh=mesh)
    mine = slice(6, 21) if dist.get_rank() == 0 else slice(21, 36)
    head(H[mine], y[mine]).backward()
    return [p.grad.full_tensor() for p in (head.linear.weight, head.linear.bias)]


def main(folder):
    dist.init_process_group("gloo")
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    found = {"refused": refusals(mesh), "fsdp": fully_sharded(mesh)}
    found["statistics"] = tracker_ranks.statistics(dist.get_rank())
    found["tracked"] = tracker_ranks.tracked(dist.get_rank())
    found["sampled"] = tracker_ranks.sampled()
    found["validated"] = tracker_ranks.validated()
    found["evaluated"] = tracker_ranks.evaluated()
    for reduction in ("mean", "sum", "none"):
        for weighted in (False, True):
            for given in (False, True):
                found[reduction, weighted, given] = divided(mesh, reduction, weighted, given)
        for given in (False, True):
            found["again", reduction, given] = again(mesh, reduction, given)
    for inside in (False, True):
        found["autocast", inside] = under_autocast(mesh, inside)
    torch.save(found, folder / f"rank{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
