"""Problems on a device, and what their losses and derivatives are there in float64.

Chunk by chunk, by torch; no late subtraction, so that nothing cancels at any margin.
"""

from __future__ import annotations

import torch

DOUBLE, SINGLE = torch.float64, torch.float32


def data(K, d, N, dtype, device, seed=0):
    """W, H of entries of variance 1/d^(1/2), whose logits are of order one, and labels."""
    make = torch.Generator(device).manual_seed(seed)
    options = {"generator": make, "device": device, "dtype": dtype}
    W = torch.randn((K, d), **options) * d**-0.25
    H = torch.randn((N, d), **options) * d**-0.25
    y = torch.randint(0, K, (N,), generator=make, device=device)
    return W, H, y


def softmax(W, H, y):
    """Losses (N, 1) and residuals `p - onehot` (N, K) of float64 W and H."""
    label = y[:, None]
    gaps = H @ W.T
    gaps = (gaps - gaps.gather(1, label)).scatter_(1, label, -torch.inf)
    m = gaps.amax(1, keepdim=True).clamp_(min=0.0)
    e = torch.exp(gaps - m)
    S = e.sum(1, keepdim=True)
    den = torch.exp(-m) + S
    losses = torch.where(m == 0, torch.log1p(S), m + den.log())
    return losses, (e / den).scatter_(1, label, -S / den)


def exact_grads(W, H, y, rows=8192):
    """Mean loss and both gradients; that of H in the dtype of W."""
    W64, grad_W, grad_H, total = W.double(), 0.0, [], 0.0
    for lo in range(0, len(H), rows):
        h = H[lo : lo + rows].double()
        losses, r = softmax(W64, h, y[lo : lo + rows])
        total += losses.sum()
        r /= len(H)
        grad_W = grad_W + r.T @ h
        grad_H.append((r @ W64).to(W.dtype))
    return total / len(H), grad_W, torch.cat(grad_H)


def exact_hessian(W, H, y, dW, dH, rows=8192):
    """The Hessian of the mean loss times (dW, dH)."""
    W64, dW64, HW, HH = W.double(), dW.double(), 0.0, []
    for lo in range(0, len(H), rows):
        h, dh, label = H[lo : lo + rows].double(), dH[lo : lo + rows].double(), y[lo : lo + rows]
        _, r = softmax(W64, h, label)
        r /= len(H)
        dz = dh @ W64.T + h @ dW64.T
        dz -= dz.gather(1, label[:, None])
        # `dz` is 0 at the label, where p is 1 + r: its weight does not count.
        dr = r * (dz - (r * dz).sum(1, keepdim=True) * len(H))
        at_label = -dr.scatter(1, label[:, None], 0.0).sum(1, keepdim=True)
        dr.scatter_(1, label[:, None], at_label)
        HW = HW + dr.T @ h + r.T @ dh
        HH.append((dr @ W64 + r @ dW64).to(W.dtype))
    return HW, torch.cat(HH)
