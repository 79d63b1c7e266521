"""Errors of r, dH and dW on a GPU, row by row, where the classes are separated by some margin.

A row's error is its largest deviation from float64 in units of its own largest entry. That is
what a descent in the terminal phase sees: an error in units of the largest row of all would hide
every other one.
"""

from __future__ import annotations

import torch
from gpu_candidates import candidates, planned
from gpu_exact import DOUBLE, exact_grads, softmax

from fastnc.kernels.gpu import narrow as narrow_gpu
from fastnc.kernels.gpu import wide as wide_gpu
from fastnc.kernels.gpu.cross_entropy import loss_and_grads, problem
from fastnc.kernels.gpu.parts import planes
from fastnc.kernels.gpu.plan import EXACT, Narrow, OnePass, cdiv, options, plan
from fastnc.kernels.gpu.softmax import DOWN

SHAPES = [(10, 512), (100, 512), (1000, 512), (10, 4096), (100, 4096), (1000, 4096)]
# Last, as the one that takes longest.
SHAPES += [(50_000, 512), (50_000, 4096)]
DRY = [(10, 256), (33, 256), (130, 256)]
MARGINS = (20.0, 40.0, 80.0)
# What is wanted of r at a margin of 40; a gap is off by its own rounding, which grows with it.
WANTED = {20.0: 1e-5, 40.0: 1e-5, 80.0: 2e-5}
# A factor of dH and dW keeps 16 bits, and sums of K or N terms of both signs cancel a little.
BESIDE = 5e-5


def separated(K, d, N, margin, device):
    """float32 W and H whose smallest margin is about `margin`, every digit of them in use."""
    make = torch.Generator(device).manual_seed(0)
    W = torch.randn((K, d), generator=make, device=device, dtype=DOUBLE)
    W /= W.norm(dim=1, keepdim=True)
    y = torch.randint(0, K, (N,), generator=make, device=device)
    H = W[y] + 0.3 * torch.randn((N, d), generator=make, device=device, dtype=DOUBLE) / d
    least = smallest_margin(W, H, y)
    assert least > 0.0, "the classes are not separated"
    size = (margin / least) ** 0.5
    return (W * size).float(), (H * size).float(), y


def smallest_margin(W, H, y, rows=512):
    """q_min, chunk by chunk."""
    least = float("inf")
    for lo in range(0, len(H), rows):
        Z, label = H[lo : lo + rows] @ W.T, y[lo : lo + rows, None]
        own = Z.gather(1, label)
        Z.scatter_(1, label, -torch.inf)
        least = min(least, float((own - Z.amax(1, keepdim=True)).min()))
    return least


def kernel_residuals(W, H, y, shape):
    """r as the kernels of a plan form it, before it is taken apart; one chunk of rows."""
    (K, d), N = W.shape, len(H)
    if isinstance(shape, Narrow):
        W_planes = planes(W, shape.W_halves, shape.W_parts)
        r = W.new_empty((N, shape.BK))
        loss_parts = W.new_empty(cdiv(N, shape.BN), dtype=DOUBLE)
        narrow_gpu.block_residuals[(cdiv(N, shape.BN),)](
            shape.of_logits(W_planes), W_planes.scales, H, y, r, loss_parts, loss_parts, N, K, d,
            W_planes.width, PRODUCTS=0, LOG=False, **shape.tiles, **shape.options,
        )  # fmt: skip
    else:
        chunks = wide_gpu.Chunks(shape._replace(chunk=max(shape.chunk, N)), W, H, y)
        Z = chunks.room()
        r = torch.empty_like(Z)
        chunks.form(0, N, chunks.apart(H), chunks.apart(W), Z, True, False, True)
        wide_gpu.residual_rows[(cdiv(N, wide_gpu.ROWS),)](
            Z, r, y, *chunks.tiles, chunks.label_logit, chunks.parts, chunks.parts[0], N, K,
            chunks.z_width, chunks.n_tiles, BM=wide_gpu.ROWS, BN=wide_gpu.COLUMNS, LOG=False,
            PRODUCTS=0, **options(4, 1),
        )  # fmt: skip
    return r[:, :K].double() * DOWN.value


def by_row(got, exact):
    """The largest error of a row in units of its largest entry; rows of 0 must be 0."""
    got, exact = got.double(), exact.double()
    size = exact.abs().amax(1)
    error = (got - exact).abs().amax(1)
    error = torch.where(size > 0.0, error / size, torch.where(error > 0.0, torch.inf, 0.0))
    return float(error.max())


def errors(device, dry):
    """(case, what, error, what is wanted of it), as they become known."""
    for K, d in DRY if dry else SHAPES:
        N = 9 if dry else (512 if K > 1000 else 4096)
        for margin in MARGINS[1:2] if dry else MARGINS:
            W, H, y = separated(K, d, N, margin, device)
            case = f"K={K}, d={d}, margin {margin:.0f}"
            wanted = WANTED[margin]
            shape, exact = plan(*problem(W, H, EXACT)), softmax(W.double(), H.double(), y)[1]
            exact_loss, exact_W, exact_H = exact_grads(W.double(), H, y, 512)
            grad_W, grad_H = torch.empty_like(W), torch.empty_like(H)
            loss = torch.empty(1, dtype=DOUBLE, device=device)
            # Times a power of two: gradients at a margin of 95 are no normal numbers of float32.
            up = 2.0**40
            for name, other in [("", shape), *candidates(W, H)]:
                of = f", {name}" if name else ""
                if not isinstance(other, OnePass):
                    r = kernel_residuals(W, H, y, other)
                    yield case, f"r by row{of}", by_row(r, exact), wanted
                with planned(other):
                    loss_and_grads(W, H, y, up, loss, grad_W, grad_H, EXACT)
                yield case, f"dH by row{of}", by_row(grad_H, exact_H * N * up), wanted + BESIDE
                yield case, f"dW by row{of}", by_row(grad_W, exact_W * N * up), wanted + BESIDE
                yield case, f"loss{of}", abs(float(loss) / float(exact_loss * N * up) - 1.0), wanted
