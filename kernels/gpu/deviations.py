"""The second pass over features whose class means are known, on CUDA tensors, in Triton.

The sums of `kernels.cpu.deviations`, in its letters, by three kernels:

1. a program takes BN samples and BR directions of Q at a time; it computes `T = X Q^T` together
   with the norms of x = h - m_y and of h - g; its epilogue computes the terms of NC1 from T
   and keeps `T + A[y]`, the projection of h - g;
2. the nearest mean among the rows of A, by `scatter`: r numbers a sample in the place of d;
3. the logits of BN samples by BK classes at a time, of which the decision, the largest wrong logit
   and the label's logit stay in registers.

Products have the dtype of Q: float32 in three bf16 parts, which keeps its 24 bits, or float64.
Everything is centred in float64 before it is rounded. Flops: 2 N d (r + K) + 2 N r P; bytes: H
once for each 64 directions and once for each 64 classes, the repeats from L2. Bound by memory
for few classes, else by the products. No atomics: the bits are the same every time.
"""

import torch
import triton
import triton.language as tl

from fastnc.kernels.gpu.parts import dot_whole
from fastnc.kernels.gpu.plan import SCRATCH_BYTES, cdiv, has_large_tiles, options
from fastnc.kernels.gpu.scatter import nearest_means

_BD = 32


@triton.jit(do_not_specialize=["n_samples"])
def deviation_rows(
    H, order, owner, means, g, Q, A, weights, tilt, projections, parts,
    n_samples: "i64", dim, n_directions,
    BN: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr, PRODUCTS: tl.constexpr,
    KEEP: tl.constexpr,
):  # fmt: skip
    """The five sums of BN samples that need no classifier; with KEEP also their projections."""
    places = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    lanes = tl.arange(0, BD)
    row_real = places < n_samples
    samples = tl.load(order + places, mask=row_real, other=0)
    p = tl.load(owner + places, mask=row_real, other=0)
    dtype = Q.dtype.element_ty
    within = tl.zeros((BN,), tl.float64)
    away = tl.zeros((BN,), tl.float64)
    projected = tl.zeros((BN,), tl.float64)
    tilted = tl.zeros((BN,), tl.float64)
    # Without directions the norms are still summed.
    for low in range(0, tl.maximum(n_directions, 1), BR):
        cols = low + tl.arange(0, BR)
        col_real = cols < n_directions
        T = tl.zeros((BN, BR), dtype)
        # Summed again for each tile of directions, which costs less than a branch for the first.
        within = tl.zeros((BN,), tl.float64)
        away = tl.zeros((BN,), tl.float64)
        for start in range(0, dim, BD):
            j = start + lanes
            inside = j < dim
            real = row_real[:, None] & inside[None, :]
            h = tl.load(H + samples[:, None] * dim + j[None, :], mask=real, other=0.0)
            h = h.to(tl.float64)
            centre = tl.load(g + j, mask=inside, other=0.0)
            v = tl.where(real, h - centre[None, :], 0.0)
            x = h - tl.load(means + p[:, None] * dim + j[None, :], mask=real, other=0.0)
            within += tl.sum(x * x, axis=1)
            away += tl.sum(v * v, axis=1)
            q_at = cols[:, None].to(tl.int64) * dim + j[None, :]
            q = tl.load(Q + q_at, mask=col_real[:, None] & inside[None, :], other=0.0)
            T = dot_whole(x.to(dtype), tl.trans(q), T, PRODUCTS)
        t = T.to(tl.float64)
        weight = tl.load(weights + cols, mask=col_real, other=0.0)
        projected += tl.sum(t * t * weight[None, :], axis=1)
        tilted += tl.sum(t * tl.load(tilt + cols, mask=col_real, other=0.0)[None, :], axis=1)
        if KEEP:
            real = row_real[:, None] & col_real[None, :]
            a_at = p[:, None] * n_directions + cols[None, :]
            t_at = places[:, None] * n_directions + cols[None, :]
            a = tl.load(A + a_at, mask=real, other=0.0)
            tl.store(projections + t_at, T + a, mask=real)
    at = parts + tl.program_id(0).to(tl.int64) * 5
    tl.store(at, tl.sum(tl.sqrt(within), axis=0))
    tl.store(at + 1, tl.sum(tl.sqrt(away), axis=0))
    tl.store(at + 2, tl.sum(projected, axis=0))
    tl.store(at + 3, tl.sum(tilted * tilted, axis=0))
    tl.store(at + 4, tl.sum(within, axis=0))


@triton.jit(do_not_specialize=["n_samples"])
def decision_rows(
    H, order, owner, present, g, W, offset, nearest, parts, n_samples: "i64", n_classes, dim,
    BN: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    """Of BN samples: how many decisions equal the nearest mean, and the label; the least margin."""
    places = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    lanes = tl.arange(0, BD)
    row_real = places < n_samples
    samples = tl.load(order + places, mask=row_real, other=0)
    label = tl.load(present + tl.load(owner + places, mask=row_real, other=0))
    near = tl.load(present + tl.load(nearest + places, mask=row_real, other=0))
    dtype = W.dtype.element_ty
    own = tl.zeros((BN,), tl.float64)
    rival = tl.full((BN,), float("-inf"), tl.float64)
    best = tl.full((BN,), float("-inf"), tl.float64)
    chosen = tl.zeros((BN,), tl.int64)
    for low in range(0, n_classes, BK):
        cols = low + tl.arange(0, BK)
        col_real = cols < n_classes
        acc = tl.zeros((BN, BK), dtype)
        for start in range(0, dim, BD):
            j = start + lanes
            inside = j < dim
            real = row_real[:, None] & inside[None, :]
            h = tl.load(H + samples[:, None] * dim + j[None, :], mask=real, other=0.0)
            centre = tl.load(g + j, mask=inside, other=0.0)
            v = tl.where(real, h.to(tl.float64) - centre[None, :], 0.0)
            w_at = cols[:, None].to(tl.int64) * dim + j[None, :]
            w = tl.load(W + w_at, mask=col_real[:, None] & inside[None, :], other=0.0)
            acc = dot_whole(v.to(dtype), tl.trans(w), acc, PRODUCTS)
        z = acc.to(tl.float64) + tl.load(offset + cols, mask=col_real, other=0.0)[None, :]
        z = tl.where(col_real[None, :], z, float("-inf"))
        mine = cols[None, :] == label[:, None]
        own += tl.sum(tl.where(mine, z, 0.0), axis=1)
        rival = tl.maximum(rival, tl.max(tl.where(mine, float("-inf"), z), axis=1))
        here = tl.max(z, axis=1)
        place = tl.min(tl.where(z == here[:, None], cols[None, :], n_classes), axis=1)
        chosen = tl.where(here > best, place.to(tl.int64), chosen)
        best = tl.maximum(best, here)
    agrees = tl.where(row_real & (chosen == near), 1.0, 0.0)
    right = tl.where(row_real & (chosen == label), 1.0, 0.0)
    margin = tl.where(row_real, own - rival, float("inf"))
    at = parts + tl.program_id(0).to(tl.int64) * 3
    tl.store(at, tl.sum(agrees.to(tl.float64), axis=0))
    tl.store(at + 1, tl.sum(right.to(tl.float64), axis=0))
    tl.store(at + 2, tl.min(margin, axis=0))


def rows_of(double, large):
    """Samples a program: 64 where tensor cores take their operands from shared memory, else 32."""
    return 64 if large and not double else 32


def width(n):
    """Directions or classes that a program takes at a time, for n of them in all."""
    return min(max(16, 1 << (n - 1).bit_length()), 64)


def spread(wide):
    """Options for a width: beyond the least one four warps have too few registers."""
    return options(4 if wide == 16 else 8, 1)


def deviations(H, order, owner, present, frame, sums_out):
    """Adds the sums of these samples to `sums_out (9,)`, float64 on the device of H.

    Arguments and sums are those of `kernels.cpu.deviations`, as tensors.
    """
    means, g, Q, A, weights, tilt, _, W, offset = frame
    N, (r, d), K = len(order), Q.shape, len(W)
    double = Q.element_size() == 8
    large = not H.is_cuda or has_large_tiles(torch.cuda.get_device_capability(H.device))
    BN = rows_of(double, large)
    tiles = {"BN": BN, "BD": _BD, "PRODUCTS": 0 if double else 6}
    parts = sums_out.new_empty((cdiv(N, BN), 5))
    decided = sums_out.new_empty((cdiv(N, BN), 3))
    chunk = max(SCRATCH_BYTES // (Q.element_size() * max(r, 1)) // BN, 1) * BN
    keep = len(A) > 0
    T = Q.new_empty((min(chunk, N) if keep else 0, r))
    nearest = order.new_empty(len(T))
    rows_A, origin = A.double(), g.new_zeros(r)
    near = torch.zeros((), dtype=torch.int64, device=H.device)
    for lo in range(0, N, chunk):
        n = min(chunk, N - lo)
        blocks, places, block = cdiv(n, BN), slice(lo, lo + n), lo // BN
        deviation_rows[(blocks,)](
            H, order[places], owner[places], means, g, Q, A, weights, tilt, T if keep else Q,
            parts[block:], n, d, r, BR=width(r), KEEP=keep, **tiles, **spread(width(r)),
        )  # fmt: skip
        if keep:
            nearest_means(T[:n], rows_A, origin, nearest[:n])
            near += (nearest[:n] == owner[places]).sum()
        if K:
            decision_rows[(blocks,)](
                H, order[places], owner[places], present, g, W, offset, nearest,
                decided[block:], n, K, d, BK=width(K), **tiles, **spread(width(K)),
            )  # fmt: skip
    sums_out[:5] += parts.sum(dim=0)
    if r == 0:
        sums_out[2] = float("nan")
    sums_out[5] += near if keep else float("nan")
    if K:
        sums_out[6:8] += decided[:, :2].sum(dim=0)
        sums_out[8] = torch.minimum(sums_out[8], decided[:, 2].min())
