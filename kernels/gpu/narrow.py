"""The objective's passes over the samples when a row of logits fits a tile (K <= 128), in Triton.

1. a program takes a block of samples: logits over slices of d, loss, residual; it writes the
   residual as the parts that its products need, K words a sample beside d of H;
2. a program takes a slice of d and a range of samples: it sums dW of the slice in registers, and
   from the same tile of H computes its next value, or dH.

Bytes `12 N d + 8 N K` in float32, which bound it for K <= 64; flops `6 K N d`. A single pass that
kept dW in memory and read H again from L2 would read `8 N d` bytes there, and was no faster at any
K. `reduce` adds partials of dW and of the loss in a fixed order: no atomics, the same bits every
time.
"""

import torch
import triton
import triton.language as tl

from fastnc.kernels.gpu.parts import (
    dot_parts,
    dot_six,
    dot_terms,
    load_parts,
    planes,
    scaled_halves,
    store_parts,
    three_parts,
    two_parts,
)
from fastnc.kernels.gpu.plan import cdiv
from fastnc.kernels.gpu.sample_rows import row_factor, store_rows
from fastnc.kernels.gpu.softmax import block_shift, gaps, residuals


@triton.jit
def block_logits(
    W, W_scales, H_block, rows, cols, left, n_classes, dim, width, zero, BD: tl.constexpr,
    LOGITS: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    """`H W^T` of the block of rows that starts at `H_block`, summed over slices of d.

    W is given in parts, H is split here: with HALVES both into two fp16 parts, W's rows scaled as a
    whole, those of H slice by slice. `rows` count from the block's first, so that 32 bits hold
    every offset; the block has `left` rows.
    """
    lanes = tl.arange(0, BD)
    plane = n_classes * width
    Z = zero
    for start in tl.range(0, dim, BD, disable_licm=True):
        features = start + lanes
        inside = features < dim
        h = tl.load(
            H_block + rows[:, None] * dim + features[None, :],
            mask=(rows < left)[:, None] & inside[None, :],
            other=0.0,
        )
        at = cols[:, None] * width + features[None, :]
        real = (cols < n_classes)[:, None] & inside[None, :]
        w0 = tl.trans(tl.load(W + at, mask=real, other=0.0))
        w1 = w0
        if LOGITS > 1:
            w1 = tl.trans(tl.load(W + plane + at, mask=real, other=0.0))
        if HALVES:
            h0, h1, down = scaled_halves(h)
            Z += dot_terms(h0, h1, w0, w1) * down[:, None]
        elif LOGITS == 6:
            h0, h1, h2 = three_parts(h)
            w2 = tl.trans(tl.load(W + 2 * plane + at, mask=real, other=0.0))
            Z += dot_six(h0, h1, h2, w0, w1, w2)
        else:
            h0, h1 = two_parts(h, LOGITS)
            Z = dot_parts(h0, h1, w0, w1, Z, LOGITS)
    if HALVES:
        Z = Z * tl.load(W_scales + cols, mask=cols < n_classes, other=1.0)[None, :]
    return Z


@triton.jit(do_not_specialize=["n_rows"])
def block_losses(
    W, W_scales, H, y, loss_parts, shift_parts, n_rows: "i64", n_classes, dim, width,
    BN: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, LOGITS: tl.constexpr,
    HALVES: tl.constexpr, LOG: tl.constexpr,
):  # fmt: skip
    """The sum of BN losses; with LOG in units of `e^shift`, their own largest gap at most 0."""
    D, m, label, real = _block_gaps(
        W, W_scales, H, y, n_rows, n_classes, dim, width, BN, BK, BD, LOGITS, HALVES
    )
    if LOG:
        M = tl.maximum(block_shift(m, real), -1e30)
        tl.store(shift_parts + tl.program_id(0), M.to(tl.float64))
    else:
        M = m * 0.0
    loss, _r = residuals(D, m, label, M)
    total = tl.sum(tl.where(real, loss, 0.0), axis=0)
    tl.store(loss_parts + tl.program_id(0), total)


@triton.jit(do_not_specialize=["n_rows"])
def block_residuals(
    W, W_scales, H, y, R, loss_parts, extent, n_rows: "i64", n_classes, dim, width,
    BN: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, LOGITS: tl.constexpr,
    HALVES: tl.constexpr, PRODUCTS: tl.constexpr, LOG: tl.constexpr,
):  # fmt: skip
    """The parts of the lifted r of BN samples, `R (parts, n, BK)`, and the sum of their losses.

    With LOG, `extent` holds the common shift and the loss in its units: r is divided by both.
    """
    D, m, label, real = _block_gaps(
        W, W_scales, H, y, n_rows, n_classes, dim, width, BN, BK, BD, LOGITS, HALVES
    )
    dtype = H.dtype.element_ty
    if LOG:
        loss, r = residuals(D, m, label, tl.load(extent).to(dtype))
        r = r * (1.0 / tl.load(extent + 1)).to(dtype)
    else:
        loss, r = residuals(D, m, label, m * 0.0)
    total = tl.sum(tl.where(real, loss, 0.0), axis=0)
    tl.store(loss_parts + tl.program_id(0), total)
    rows = tl.arange(0, BN)
    cols = tl.arange(0, BK)
    r = tl.where((cols < n_classes)[None, :], r, 0.0)
    at = tl.program_id(0).to(tl.int64) * BN * BK + rows[:, None] * BK + cols[None, :]
    store_parts(R, at, r, n_rows * BK, real[:, None], PRODUCTS)


@triton.jit
def _block_gaps(
    W, W_scales, H, y, n_rows, n_classes, dim, width,
    BN: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, LOGITS: tl.constexpr,
    HALVES: tl.constexpr,
):  # fmt: skip
    """A block's gaps, the largest of each row, the mask of its labels, and that of its rows."""
    rows = tl.arange(0, BN)
    cols = tl.arange(0, BK)
    first = tl.program_id(0).to(tl.int64) * BN
    left = tl.minimum(n_rows - first, BN).to(tl.int32)
    zero = tl.zeros((BN, BK), H.dtype.element_ty)
    Z = block_logits(
        W, W_scales, H + first * dim, rows, cols, left, n_classes, dim, width, zero,
        BD, LOGITS, HALVES,
    )  # fmt: skip
    labels = tl.load(y + first + rows, mask=rows < left, other=0).to(tl.int32)
    label = cols[None, :] == labels[:, None]
    D, m = gaps(Z, label, (cols < n_classes)[None, :])
    return D, m, label, rows < left


@triton.jit(do_not_specialize=["n_rows", "blocks"])
def slice_products(
    R, W, H, H_low, H_out, W_parts, scale: "fp64", lr: "fp64", n_rows: "i64", n_classes, dim, width,
    blocks, BN: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, PRODUCTS: tl.constexpr,
    STEP: tl.constexpr, COMPENSATED: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """A partial of BD features of dW, lifted as R is, and those of dH or of H's next value."""
    features = tl.program_id(0) * BD + tl.arange(0, BD)
    split = tl.program_id(1).to(tl.int64)
    rows = tl.arange(0, BN)
    cols = tl.arange(0, BK)
    inside = features < dim
    dtype = H.dtype.element_ty
    factor = row_factor(scale, lr, dtype, STEP)
    w_at = cols[:, None] * width + features[None, :]
    w_real = (cols < n_classes)[:, None] & inside[None, :]
    w0, w1 = load_parts(W, w_at, n_classes * width, w_real, PRODUCTS)
    # A tensor core's product needs 64 rows: the longer side of the tile.
    TALL: tl.constexpr = BK < 64
    part_at = W_parts + split * n_classes * dim
    if TALL:
        part_at = part_at + cols[None, :] * dim + features[:, None]
        part_real = (cols < n_classes)[None, :] & inside[:, None]
        acc = tl.zeros((BD, BK), dtype)
    else:
        part_at = part_at + cols[:, None] * dim + features[None, :]
        part_real = w_real
        acc = tl.zeros((BK, BD), dtype)
    if ADD:
        acc = tl.load(part_at, mask=part_real, other=0.0)
    for i in range(blocks):
        first = (split * blocks + i) * BN
        left = tl.minimum(tl.maximum(n_rows - first, 0), BN).to(tl.int32)
        real = rows < left
        r_at = first * BK + rows[:, None] * BK + cols[None, :]
        r0, r1 = load_parts(R, r_at, n_rows * BK, real[:, None], PRODUCTS)
        at = first * dim + rows[:, None] * dim + features[None, :]
        h_real = real[:, None] & inside[None, :]
        h = tl.load(H + at, mask=h_real, other=0.0)
        h0, h1 = two_parts(h, PRODUCTS)
        if TALL:
            acc = dot_parts(tl.trans(h0), tl.trans(h1), r0, r1, acc, PRODUCTS)
        else:
            acc = dot_parts(tl.trans(r0), tl.trans(r1), h0, h1, acc, PRODUCTS)
        dh = dot_parts(r0, r1, w0, w1, tl.zeros((BN, BD), dtype), PRODUCTS)
        store_rows(H_low, H_out, at, h, factor * dh, h_real, STEP, COMPENSATED)
    tl.store(part_at, acc, mask=part_real)


def losses(shape, W, H, y, log):
    """Sums of the losses of blocks; with `log` in units of `e^shift`, and the shifts."""
    parts = torch.empty((2, cdiv(len(H), shape.BN)), dtype=torch.float64, device=W.device)
    W_planes = planes(W, shape.W_halves, shape.W_parts)
    block_losses[(parts.shape[1],)](
        shape.of_logits(W_planes), W_planes.scales, H, y, parts[0], parts[1], len(H), *W.shape,
        W_planes.width, LOG=log, **shape.tiles, **shape.options,
    )  # fmt: skip
    return parts[0], parts[1]


def gradients(shape, W, H, H_low, y, scale, lr, H_out, extent, step, dW_done):
    """Partials of the loss and of lifted dW; `H_out` gets dH, or H's next value.

    `dW_done`, unless None, is called with the partials of dW: at the end, as one kernel computes
    dW and dH.
    """
    (K, d), N = W.shape, len(H)
    W_planes = planes(W, shape.W_halves, shape.W_parts)
    chunks = range(0, N, shape.chunk)
    blocks = cdiv(shape.chunk, shape.BN)
    left = N - chunks[-1]
    loss_parts = W.new_empty(blocks * (len(chunks) - 1) + cdiv(left, shape.BN), dtype=torch.float64)
    R = W_planes.brain.new_empty((shape.R_parts, shape.chunk, shape.BK))
    W_parts = W.new_empty((shape.splits, K, d))
    low = H if H_low is None else H_low
    for i, lo in enumerate(chunks):
        hi = min(lo + shape.chunk, N)
        n = hi - lo
        block_residuals[(cdiv(n, shape.BN),)](
            shape.of_logits(W_planes), W_planes.scales, H[lo:hi], y[lo:hi], R,
            loss_parts[i * blocks :], loss_parts if extent is None else extent, n, K, d,
            W_planes.width, PRODUCTS=shape.PRODUCTS, LOG=extent is not None, **shape.tiles,
            **shape.options,
        )  # fmt: skip
        tile = shape.slices
        slice_products[(cdiv(d, tile.BN), shape.splits)](
            R, W_planes.brain, H[lo:hi], low[lo:hi], H_out[lo:hi], W_parts, scale, lr, n, K, d,
            W_planes.width, cdiv(cdiv(n, tile.BM), shape.splits),
            BN=tile.BM, BK=shape.BK, BD=tile.BN, PRODUCTS=shape.PRODUCTS, STEP=step,
            COMPENSATED=H_low is not None, ADD=i > 0, **tile.options,
        )  # fmt: skip
    if dW_done is not None:
        dW_done(W_parts)
    return loss_parts, W_parts
