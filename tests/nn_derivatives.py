"""Every kind of derivative of a loss beside the same one of torch's own, in float64."""

import torch
import torch.autograd.forward_ad as forward_ad


def _close(a, e, bound):
    for x, y in zip(a, e, strict=True):
        # Some hundred roundings, beside the largest entry; torch's own has as many.
        torch.testing.assert_close(x, y, rtol=bound, atol=bound * float(1 + y.detach().abs().max()))


def _random(x, generator, *batch):
    return torch.randn((*batch, *x.shape), generator=generator, dtype=torch.float64)


def same_derivatives(ours, theirs, leaves, bound=1e-12, kinds=("again", "batched", "forward")):
    """Value, gradients, and the `kinds` of further derivatives of two functions of `leaves`."""
    made = torch.Generator().manual_seed(0)
    a, e = ours(*leaves), theirs(*leaves)
    assert a.shape == e.shape and a.dtype == e.dtype
    _close([a], [e], bound)
    upstream = _random(e, made).requires_grad_()
    first = [torch.autograd.grad(x, leaves, upstream, create_graph=True) for x in (a, e)]
    _close(*first, bound)
    if "again" in kinds:
        directions = [_random(x, made) for x in leaves]
        along = [sum((v * g).sum() for v, g in zip(directions, f, strict=True)) for f in first]
        wanted = [*leaves, upstream]
        graph = "third" in kinds
        second = [
            torch.autograd.grad(x, wanted, retain_graph=True, create_graph=graph, allow_unused=True)
            for x in along
        ]
        _close(*([torch.zeros(()) if g is None else g for g in s] for s in second), bound)
        if graph:
            third = [
                torch.autograd.grad(sum((g * v).sum() for g, v in zip(s, directions, strict=False)),
                                    leaves, retain_graph=True)
                for s in second
            ]  # fmt: skip
            _close(*third, bound)
    if "batched" in kinds:
        many = _random(e, made, 3)
        _close(
            *(
                torch.autograd.grad(x, leaves, many, is_grads_batched=True, retain_graph=True)
                for x in (a, e)
            ),
            bound,
        )
        many = [_random(x, made, 2) for x in leaves]
        batches = []
        for f in first:
            used = [i for i, g in enumerate(f) if g.requires_grad]
            batches.append(
                torch.autograd.grad(
                    [f[i] for i in used], leaves, [many[i] for i in used],
                    is_grads_batched=True, retain_graph=True, allow_unused=True,
                )
            )  # fmt: skip
        _close(*([torch.zeros(()) if g is None else g for g in b] for b in batches), bound)
    if "forward" in kinds:
        tangents = []
        directions = [_random(x, made) for x in leaves]
        for f in (ours, theirs):
            with forward_ad.dual_level():
                duals = [
                    forward_ad.make_dual(x.detach(), v)
                    for x, v in zip(leaves, directions, strict=True)
                ]
                tangents.append(forward_ad.unpack_dual(f(*duals)).tangent)
        assert tangents[0] is not None
        _close([tangents[0]], [tangents[1]], bound)
