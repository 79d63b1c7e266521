"""Small problems of the torch loss, torch's eager answer, and how the two must agree."""

import torch
import torch.nn.functional as F

REDUCTIONS = ("mean", "sum", "none")


def problem(N=37, K=7, d=5, dtype=torch.float64, seed=0):
    """Leaves H, W, b, and labels, weights of classes."""
    g = torch.Generator().manual_seed(seed)
    H = torch.randn(N, d, generator=g, dtype=torch.float64)
    W = torch.randn(K, d, generator=g, dtype=torch.float64)
    b = torch.randn(K, generator=g, dtype=torch.float64)
    y = torch.randint(K, (N,), generator=g)
    v = torch.rand(K, generator=g, dtype=torch.float64) + 0.1
    H, W, b, v = (x.to(dtype) for x in (H, W, b, v))
    return H.requires_grad_(), W.requires_grad_(), b.requires_grad_(), y, v


def expected(H, W, y, linear_bias=None, **options):
    """Torch's eager loss."""
    return F.cross_entropy(F.linear(H, W, linear_bias), y, **options)


def agree(ours, theirs, leaves, tolerance):
    """Losses, and gradients for the same random upstream, relative to the largest entry."""
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    upstream = torch.rand(theirs.shape, dtype=theirs.dtype, generator=torch.manual_seed(1))
    grads = torch.autograd.grad(ours, leaves, upstream)
    wanted = torch.autograd.grad(theirs, leaves, upstream)
    for a, e in zip((ours, *grads), (theirs, *wanted), strict=True):
        assert a.dtype == e.dtype
        scale = e.detach().abs().max() if e.numel() else torch.tensor(0.0)
        # Torch's own rounds `logsumexp - z_y` and `p_y - 1` to the size of the logits.
        torch.testing.assert_close(a, e, rtol=tolerance, atol=float(tolerance * (scale + 1e-3)))
