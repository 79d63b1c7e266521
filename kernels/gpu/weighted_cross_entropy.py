"""Cross-entropy with a bias, class weights, label smoothing and a scale a sample, in Triton.

The formula and the letters are those of `kernels.cpu.weighted_cross_entropy`: with b the bias, v
the classes' weights, t the smoothing, `D_j = <w_j - w_y, h> + b_j - b_y`, `B_j = t v_j / K` and the
sample's weight `A = (1 - t) v_y + sum_j B_j`,

    loss = A log(1 + sum_{j != y} e^{D_j}) - sum_{j != y} B_j D_j
    dloss / dz_j = A e_j / den - B_j,  j != y          the label's entry is minus their sum

A sample with a negative label has a loss and a residual of zero. So ignored rows need not be
removed, which would wait for the device.

The chunks, products and second stages are those of `wide`, for any K: a network with few classes
has a small N d. The flops are those of `wide`; a chunk's logits are read twice more from L2, in two
passes for the softmax's sums, which `wide` gets from the product's epilogue.
"""

import triton
import triton.language as tl

from fastnc.kernels.gpu.cross_entropy import problem, reduce_W
from fastnc.kernels.gpu.parts import store_parts
from fastnc.kernels.gpu.plan import EXACT, cdiv, options, wide_plan
from fastnc.kernels.gpu.reduce import sum_losses
from fastnc.kernels.gpu.softmax import DOWN, UP, lifted_exp, losses_and_weights
from fastnc.kernels.gpu.wide import COLUMNS, ROWS, Chunks


@triton.jit(do_not_specialize=["n_rows"])
def weighted_rows(
    Z, R, y, bias, weight, uniform, scales, losses, loss_parts, n_rows: "i64", n_classes, z_width,
    smoothing: "fp64", BM: tl.constexpr, BN: tl.constexpr, BIAS: tl.constexpr, WEIGHT: tl.constexpr,
    SMOOTH: tl.constexpr, SCALES: tl.constexpr, LOSSES: tl.constexpr, GRADS: tl.constexpr,
    PRODUCTS: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """The parts of the lifted residual times its sample's scale, BM rows a program.

    KEEP: also in Z.
    """
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    lanes = tl.arange(0, BN)
    dtype = Z.dtype.element_ty
    real = rows < n_rows
    labels = tl.load(y + rows, mask=real, other=-1)
    counted = labels >= 0
    base = rows.to(tl.int64) * z_width
    z_y = tl.load(Z + base + labels, mask=counted, other=0.0)
    if BIAS:
        z_y += tl.load(bias + labels, mask=counted, other=0.0)
    own = tl.full((BM,), 1.0, dtype)
    if WEIGHT:
        own = tl.load(weight + labels, mask=counted, other=0.0)
    # First pass: the largest gap and, with smoothing, `sum_j B_j D_j` and `sum_j B_j`.
    m = z_y * 0.0
    smoothed = z_y * 0.0
    spread = tl.zeros((), dtype)
    for start in range(0, n_classes, BN):
        gap, col_real, wrong = _gaps(
            Z, bias, base, z_y, labels, counted, start + lanes, n_classes, BIAS
        )
        m = tl.maximum(m, tl.max(tl.where(wrong, gap, float("-inf")), axis=1))
        if SMOOTH:
            B = tl.load(uniform + start + lanes, mask=col_real, other=0.0)
            smoothed += tl.sum(tl.where(wrong, gap * B[None, :], 0.0), axis=1)
            spread += tl.sum(B, axis=0)
    # Second pass: the sum of exponentials relative to the largest gap.
    S = z_y * 0.0
    for start in range(0, n_classes, BN):
        gap, _col, wrong = _gaps(
            Z, bias, base, z_y, labels, counted, start + lanes, n_classes, BIAS
        )
        S += tl.sum(lifted_exp(tl.where(wrong, gap - m[:, None], float("-inf"))), axis=1)
    loss, inverse = losses_and_weights(S, m)
    if SMOOTH:
        share = (1.0 - (tl.zeros((), tl.float64) + smoothing)).to(dtype)
        own = own * share + spread
    loss = tl.where(counted, own.to(tl.float64) * loss - smoothed, 0.0)
    if LOSSES:
        tl.store(losses + rows, loss.to(dtype), mask=real)
    tl.store(loss_parts + tl.program_id(0), tl.sum(loss, axis=0))
    if GRADS:
        if SCALES:
            factor = tl.load(scales + rows, mask=real, other=0.0)
        else:
            factor = tl.load(scales) + z_y * 0.0
        factor = tl.where(counted, factor, 0.0)
        # The label's entry: minus the sum of the others, A S / den - sum_{j != y} B_j.
        label_entry = -own * S * inverse
        if SMOOTH:
            label_entry += UP * (spread - tl.load(uniform + labels, mask=counted, other=0.0))
        # Every thread must have read the labels' logits before any of them overwrites one.
        tl.debug_barrier()
        for start in range(0, z_width, BN):
            cols = start + lanes
            gap, col_real, wrong = _gaps(Z, bias, base, z_y, labels, counted, cols, n_classes, BIAS)
            r = lifted_exp(tl.where(wrong, gap - m[:, None], float("-inf")))
            r = r * (own * inverse)[:, None]
            if SMOOTH:
                B = tl.load(uniform + cols, mask=col_real, other=0.0)
                r -= tl.where(wrong, UP * B[None, :], 0.0)
            r = tl.where(cols[None, :] == labels[:, None], label_entry[:, None], r)
            r = tl.where(counted[:, None], r * factor[:, None], 0.0)
            at = base[:, None] + cols[None, :]
            room = real[:, None] & (cols < z_width)[None, :]
            if KEEP:
                tl.store(Z + at, r, mask=room)
            store_parts(R, at, r, n_rows * z_width, room, PRODUCTS)


@triton.jit
def _gaps(Z, bias, base, z_y, labels, counted, cols, n_classes, BIAS: tl.constexpr):
    """`z_j - z_y` of some classes, and the masks of existing and of wrong classes."""
    col_real = cols < n_classes
    inside = counted[:, None] & col_real[None, :]
    z = tl.load(Z + base[:, None] + cols[None, :], mask=inside, other=0.0)
    if BIAS:
        z += tl.load(bias + cols, mask=col_real, other=0.0)[None, :]
    return z - z_y[:, None], col_real, inside & (cols[None, :] != labels[:, None])


@triton.jit(do_not_specialize=["n_rows", "rows_per_split"])
def column_sums(
    R, parts, n_rows: "i64", n_classes, z_width, rows_per_split, BM: tl.constexpr,
    BN: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """`parts[p]` gets the sum over the p-th range of rows of the lifted R, BN classes a program."""
    cols = tl.program_id(0) * BN + tl.arange(0, BN)
    split = tl.program_id(1)
    col_real = cols < n_classes
    total = tl.zeros((BN,), tl.float64)
    first = split * rows_per_split
    last = tl.minimum(first + rows_per_split, n_rows)
    for start in range(first, last, BM):
        rows = start + tl.arange(0, BM)
        at = rows.to(tl.int64)[:, None] * z_width + cols[None, :]
        inside = (rows < last)[:, None] & col_real[None, :]
        total += tl.sum(tl.load(R + at, mask=inside, other=0.0).to(tl.float64), axis=0)
    total = total * DOWN
    at = parts + split.to(tl.int64) * n_classes + cols
    if ADD:
        total += tl.load(at, mask=col_real, other=0.0)
    tl.store(at, total, mask=col_real)


def loss_and_grads(
    W, H, y, bias, weight, smoothing, scale, total_out, losses_out, grad_W_out, grad_H_out,
    grad_bias_out,
):  # fmt: skip
    """The sum of all losses (float64), the losses, and gradients of `sum_i scale_i loss_i`.

    `bias (K,)` and `weight (K,)` have length 0 if there are none, as has each unwanted output but
    `total_out`. `scale` is (N,) or (1,).
    """
    K, d = W.shape
    shape = wide_plan(*problem(W, H, EXACT))
    uniform = W.new_full((K if smoothing > 0.0 else 0,), smoothing / K)
    if smoothing > 0.0 and len(weight):
        uniform *= weight
    chunks = Chunks(shape, W, H, y)
    Z = chunks.room()
    R = chunks.room_for_parts(Z)
    grads = bool(len(grad_W_out) or len(grad_H_out) or len(grad_bias_out))
    W_planes = chunks.apart(W, brain=len(grad_H_out) > 0)
    W_parts = W.new_empty((shape.splits if len(grad_W_out) else 0, K, d))
    splits = min(64, cdiv(shape.chunk, 64))
    bias_parts = total_out.new_empty((splits if len(grad_bias_out) else 0, K))
    for i, (lo, hi) in enumerate(chunks.chunks):
        H_planes = chunks.apart(H[lo:hi], brain=len(grad_W_out) > 0)
        chunks.form(lo, hi, H_planes, W_planes, Z, True, False, False)
        weighted_rows[(cdiv(hi - lo, ROWS),)](
            Z, R, y[lo:hi], bias, weight, uniform, scale if len(scale) == 1 else scale[lo:hi],
            losses_out[lo:hi], chunks.parts[0, chunks.first[i] :], hi - lo, K, chunks.z_width,
            float(smoothing), BM=ROWS, BN=COLUMNS, BIAS=len(bias) > 0, WEIGHT=len(weight) > 0,
            SMOOTH=smoothing > 0.0, SCALES=len(scale) > 1, LOSSES=len(losses_out) > 0,
            GRADS=grads, PRODUCTS=shape.PRODUCTS, KEEP=len(grad_bias_out) > 0, **options(4, 1),
        )  # fmt: skip
        if len(grad_W_out):
            chunks.add_class_products(lo, hi, R, H_planes, W_parts, i > 0)
        if len(grad_H_out):
            chunks.sample_products(lo, hi, R, W_planes, None, grad_H_out, 1.0, 1.0, False, False)
        if len(grad_bias_out):
            column_sums[(cdiv(K, 64), splits)](
                Z, bias_parts, hi - lo, K, chunks.z_width, cdiv(hi - lo, splits),
                BM=64, BN=64, ADD=i > 0, **options(4, 1),
            )  # fmt: skip
    parts = chunks.parts[0]
    sum_losses[(1,)](parts, total_out, len(parts), 1.0, BLOCK=512, **options(4, 1))
    if len(grad_W_out):
        reduce_W(W_parts, W, None, grad_W_out, 1.0, 1.0, False)
    if len(grad_bias_out):
        grad_bias_out.copy_(bias_parts.sum(0))
