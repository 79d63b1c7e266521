"""The objective's pass over the samples when a row of logits fits one tile (K <= 128), in Triton.

A fixed number of programs each take a fixed range of row blocks. A block's logits are summed
over slices of d; its residual stays in registers; a second sweep over the slices, whose rows
of H still lie in L2, adds `r^T H` to the program's own partial of dW and turns H into its
next value, or writes dH. The second stage (reduce_gpu) adds the partials in their order: no
atomics, the same bits every time.

Bytes: H read once and written once from memory, `8 N d` in float32, `2 K N d` less of them
cached; flops `6 K N d`. K <= 32 is bound by memory, larger K by the tensor cores.
"""

import triton
import triton.language as tl

from fastnc.kernels.softmax_gpu import block_shift, dot, exp, gaps, residuals


@triton.jit
def block_logits(
    W, H_block, rows, cols, left, n_classes, dim, zero, BD: tl.constexpr, PRECISION: tl.constexpr
):
    """`H W^T` of the block of rows that starts at `H_block`, summed over slices of d.

    `rows` count from there, so that 32 bits hold every offset; `left` rows are left.
    """
    lanes = tl.arange(0, BD)
    Z = zero
    for start in tl.range(0, dim, BD, disable_licm=True):
        features = start + lanes
        inside = features < dim
        h = tl.load(
            H_block + rows[:, None] * dim + features[None, :],
            mask=(rows < left)[:, None] & inside[None, :],
            other=0.0,
        )
        w = tl.load(
            W + cols[:, None] * dim + features[None, :],
            mask=(cols < n_classes)[:, None] & inside[None, :],
            other=0.0,
        )
        Z = dot(h, tl.trans(w), Z, PRECISION)
    return Z


@triton.jit
def narrow_loss(
    W, H, y, loss_parts, shift_parts, n_samples: "i64", n_classes, dim, blocks,
    BN: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, LOGITS: tl.constexpr,
    LOG: tl.constexpr,
):  # fmt: skip
    """Each program's sum of losses; with LOG in units of `e^shift`, its own largest gap <= 0."""
    program = tl.program_id(0)
    rows = tl.arange(0, BN)
    cols = tl.arange(0, BK)
    dtype = H.dtype.element_ty
    total = tl.zeros((), tl.float64)
    shift = tl.zeros((), tl.float64)
    if LOG:
        shift -= 1e300
    for i in tl.range(blocks, disable_licm=True):
        first = (program.to(tl.int64) * blocks + i) * BN
        left = tl.minimum(tl.maximum(n_samples - first, 0), BN).to(tl.int32)
        real = rows < left
        zero = tl.zeros((BN, BK), dtype)
        Z = block_logits(W, H + first * dim, rows, cols, left, n_classes, dim, zero, BD, LOGITS)
        labels = tl.load(y + first + rows, mask=real, other=0).to(tl.int32)
        label = cols[None, :] == labels[:, None]
        D, m = gaps(Z, label, (cols < n_classes)[None, :])
        if LOG:
            M = tl.where(tl.sum(real.to(tl.int32), axis=0) > 0, block_shift(m, real), -1e30)
            loss, _r = residuals(D, m, label, M)
            block = tl.sum(tl.where(real, loss, 0.0).to(tl.float64), axis=0)
            new = tl.maximum(shift, M.to(tl.float64))
            total = total * exp(shift - new) + block * exp(M.to(tl.float64) - new)
            shift = new
        else:
            loss, _r = residuals(D, m, label, m * 0.0)
            total += tl.sum(tl.where(real, loss, 0.0).to(tl.float64), axis=0)
    tl.store(loss_parts + program, total)
    if LOG:
        tl.store(shift_parts + program, shift)


@triton.jit
def narrow_grads(
    W, H, y, H_low, H_out, loss_parts, W_parts, extent, scale: "fp64", lr: "fp64",
    n_samples: "i64", n_classes, dim, blocks,
    BN: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, LOGITS: tl.constexpr,
    PRODUCTS: tl.constexpr, LOG: tl.constexpr, STEP: tl.constexpr, COMPENSATED: tl.constexpr,
):  # fmt: skip
    """Partials of the loss and of dW; `H_out` is dH (times scale), or H itself stepped by it.

    With LOG, `extent` holds the common shift and the loss in its units: r is divided by both.
    """
    program = tl.program_id(0)
    rows = tl.arange(0, BN)
    cols = tl.arange(0, BK)
    lanes = tl.arange(0, BD)
    class_real = cols < n_classes
    dtype = H.dtype.element_ty
    factor = tl.zeros((), tl.float64) + scale
    if STEP:
        factor = factor * lr
    factor = factor.to(dtype)
    total = tl.zeros((), tl.float64)
    W_part = W_parts + program.to(tl.int64) * n_classes * dim
    for i in tl.range(blocks, disable_licm=True):
        first = (program.to(tl.int64) * blocks + i) * BN
        left = tl.minimum(tl.maximum(n_samples - first, 0), BN).to(tl.int32)
        real = rows < left
        zero = tl.zeros((BN, BK), dtype)
        Z = block_logits(W, H + first * dim, rows, cols, left, n_classes, dim, zero, BD, LOGITS)
        labels = tl.load(y + first + rows, mask=real, other=0).to(tl.int32)
        label = cols[None, :] == labels[:, None]
        D, m = gaps(Z, label, class_real[None, :])
        if LOG:
            loss, r = residuals(D, m, label, tl.load(extent).to(dtype))
            r = r * (1.0 / tl.load(extent + 1)).to(dtype)
        else:
            loss, r = residuals(D, m, label, m * 0.0)
        total += tl.sum(tl.where(real, loss, 0.0).to(tl.float64), axis=0)
        r = tl.where(real[:, None] & class_real[None, :], r, 0.0)
        for start in tl.range(0, dim, BD, disable_licm=True):
            features = start + lanes
            inside = features < dim
            h_at = rows[:, None] * dim + features[None, :]
            h_real = real[:, None] & inside[None, :]
            w_at = cols[:, None] * dim + features[None, :]
            w_real = class_real[:, None] & inside[None, :]
            h = tl.load(H + first * dim + h_at, mask=h_real, other=0.0)
            # The longer side of the tile is the tensor core's: it needs 64 rows.
            if BK >= 64:
                part = tl.load(W_part + w_at, mask=w_real & (i > 0), other=0.0)
                part = dot(tl.trans(r), h, part, PRODUCTS)
                tl.store(W_part + w_at, part, mask=w_real)
            else:
                part_at = cols[None, :] * dim + features[:, None]
                part_real = class_real[None, :] & inside[:, None]
                part = tl.load(W_part + part_at, mask=part_real & (i > 0), other=0.0)
                part = dot(tl.trans(h), r, part, PRODUCTS)
                tl.store(W_part + part_at, part, mask=part_real)
            w = tl.load(W + w_at, mask=w_real, other=0.0)
            dh = dot(r, w, tl.zeros((BN, BD), dtype), PRODUCTS)
            if STEP:
                if COMPENSATED:
                    move = tl.load(H_low + first * dim + h_at, mask=h_real, other=0.0) - factor * dh
                    new = h + move
                    tl.store(H_low + first * dim + h_at, move - (new - h), mask=h_real)
                    tl.store(H_out + first * dim + h_at, new, mask=h_real)
                else:
                    tl.store(H_out + first * dim + h_at, h - factor * dh, mask=h_real)
            else:
                tl.store(H_out + first * dim + h_at, factor * dh, mask=h_real)
        # The next block's threads read partials that other threads may have written.
        tl.debug_barrier()
    tl.store(loss_parts + program, total)
