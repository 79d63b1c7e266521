"""The objective's gradients for K <= 32 and d <= 512 with one pass over the samples, in Triton.

A program takes blocks of 16 samples, one after another. A block's rows of H are read once: each
warp holds a slice of 64 features of all of them in registers, and of W and of dW the same slice.

1. each warp's part of the logits, added up over the slices: all that warps exchange;
2. loss and residual of a block's samples, the same in every warp;
3. from the rows in registers the slice's `r^T H`, kept until the end, and `r W`, from which H's
   next value follows, or dH.

Bytes `8 N d` in float32, which bound it: the next blocks are copied to shared memory meanwhile.
Logits take two scaled fp16 parts of each factor, in three terms (`parts`).
"""

import torch
import triton
import triton.language as tl

from fastnc.kernels.gpu import narrow
from fastnc.kernels.gpu.parts import (
    dot_parts,
    dot_terms,
    load_parts,
    planes,
    scaled_halves,
    two_parts,
)
from fastnc.kernels.gpu.sample_rows import row_factor, store_rows
from fastnc.kernels.gpu.softmax import gaps, residuals


@triton.jit(do_not_specialize=["n_rows", "blocks"])
def block_gradients(
    W_half, W_scales, W_brain, H, H_low, H_out, y, loss_parts, extent, W_parts,
    scale: "fp64", lr: "fp64", n_rows: "i64", n_classes, dim, width, blocks,
    BN: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, SLICES: tl.constexpr,
    STAGES: tl.constexpr, PRODUCTS: tl.constexpr, LOG: tl.constexpr, STEP: tl.constexpr,
    COMPENSATED: tl.constexpr,
):  # fmt: skip
    """A partial of dW, lifted, and dH or H's next value, of a range of blocks; their losses.

    With LOG, `extent` holds the common shift and the loss in its units: r is divided by both.
    """
    split = tl.program_id(0).to(tl.int64)
    rows = tl.arange(0, BN)
    cols = tl.arange(0, BK)
    features = tl.arange(0, SLICES)[:, None] * BD + tl.arange(0, BD)[None, :]
    inside = features < dim
    classes = cols < n_classes
    dtype = H.dtype.element_ty
    factor = row_factor(scale, lr, dtype, STEP)
    # Read before the loop, so that W stays in shared memory; a slice is (BK, BD).
    w_at = cols[None, :, None] * width + features[:, None, :]
    w_real = classes[None, :, None] & inside[:, None, :]
    half0, half1 = load_parts(W_half, w_at, n_classes * width, w_real, 3)
    half0 = tl.trans(half0, 0, 2, 1)
    half1 = tl.trans(half1, 0, 2, 1)
    w0, w1 = load_parts(W_brain, w_at, n_classes * width, w_real, PRODUCTS)
    w_scales = tl.load(W_scales + cols, mask=classes, other=1.0)
    acc = tl.zeros((SLICES, BK, BD), dtype)
    for i in tl.range(0, blocks, num_stages=STAGES):
        first = (split * blocks + i) * BN
        left = tl.minimum(tl.maximum(n_rows - first, 0), BN).to(tl.int32)
        real = rows < left
        at = first * dim + (rows[None, :, None] * dim + features[:, None, :])
        h_real = real[None, :, None] & inside[:, None, :]
        h = tl.load(H + at, mask=h_real, other=0.0)
        h0, h1, down = scaled_halves(h)
        part = dot_terms(h0, h1, half0, half1) * down[:, :, None]
        Z = tl.sum(part, axis=0) * w_scales[None, :]

        labels = tl.load(y + first + rows, mask=real, other=0).to(tl.int32)
        label = cols[None, :] == labels[:, None]
        D, m = gaps(Z, label, classes[None, :])
        if LOG:
            loss, r = residuals(D, m, label, tl.load(extent).to(dtype))
            r = r * (1.0 / tl.load(extent + 1)).to(dtype)
        else:
            loss, r = residuals(D, m, label, m * 0.0)
        total = tl.sum(tl.where(real, loss, 0.0), axis=0)
        tl.store(loss_parts + split * blocks + i, total)
        r = tl.where(real[:, None] & classes[None, :], r, 0.0)
        r0, r1 = two_parts(tl.broadcast_to(r[None, :, :], (SLICES, BN, BK)), PRODUCTS)

        h0, h1 = two_parts(h, PRODUCTS)
        acc = dot_parts(tl.trans(r0, 0, 2, 1), tl.trans(r1, 0, 2, 1), h0, h1, acc, PRODUCTS)
        dh = dot_parts(r0, r1, w0, w1, tl.zeros((SLICES, BN, BD), dtype), PRODUCTS)
        if STEP:
            # Changes nothing; but where h itself took part in this, whose layout is that of dh, the
            # compiler would not copy the next blocks meanwhile.
            h = tl.where(h_real, h, 0.0)
        store_rows(H_low, H_out, at, h, factor * dh, h_real, STEP, COMPENSATED)
    part_at = split * n_classes * dim + (cols[None, :, None] * dim + features[:, None, :])
    tl.store(W_parts + part_at, acc, mask=w_real)


def losses(shape, W, H, y, log):
    """Sums of the losses of blocks; with `log` in units of `e^shift`, and the shifts."""
    return narrow.losses(shape.narrow, W, H, y, log)


def gradients(shape, W, H, H_low, y, scale, lr, H_out, extent, step, dW_done):
    """Partials of the loss and of lifted dW; `H_out` gets dH, or H's next value.

    `dW_done`, unless None, is called with the partials of dW: at the end, as one kernel computes
    dW and dH.
    """
    W_planes = planes(W, 2, shape.W_parts)
    loss_parts = W.new_empty(shape.programs * shape.blocks, dtype=torch.float64)
    W_parts = W.new_empty((shape.programs, *W.shape))
    block_gradients[(shape.programs,)](
        W_planes.half, W_planes.scales, W_planes.brain, H, H if H_low is None else H_low, H_out, y,
        loss_parts, loss_parts if extent is None else extent, W_parts, scale, lr, len(H), *W.shape,
        W_planes.width, shape.blocks, LOG=extent is not None, STEP=step,
        COMPENSATED=H_low is not None, **shape.tiles, **shape.options,
    )  # fmt: skip
    if dW_done is not None:
        dW_done(W_parts)
    return loss_parts, W_parts
