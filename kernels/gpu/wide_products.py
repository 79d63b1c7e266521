"""The three products of the wide regime (`wide`), tile by tile, in Triton.

Operands are parts (`parts`): `A` and `B` of H and W, `R` of the lifted residual. With TMA they are
descriptors of all parts: the hardware copies tiles by itself, and nobody computes addresses.
"""

import triton
import triton.language as tl

from fastnc.kernels.gpu.parts import add_carried, dot_parts, dot_terms, load_parts, load_tiles
from fastnc.kernels.gpu.sample_rows import row_factor, store_rows
from fastnc.kernels.gpu.softmax import exp


@triton.jit(do_not_specialize=["n_rows", "n_classes"])
def logits(
    A, A_scales, B, B_scales, y, Z, tile_max, tile_sum, label_logit, n_rows: "i64",
    n_classes: "i64", width, z_width,
    BM: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr, LOGITS: tl.constexpr,
    KEEP: tl.constexpr, ADD: tl.constexpr, EPILOGUE: tl.constexpr, TMA: tl.constexpr,
    CARRY: tl.constexpr,
):  # fmt: skip
    """Tile (BM, BN) of `Z = A B^T` (ADD: added to Z), and of the softmax's sums.

    With CARRY the rounding errors of the sum over slices are added up too.
    """
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    cols = tl.program_id(1) * BN + tl.arange(0, BN)
    lanes = tl.arange(0, BR)
    row_real = rows < n_rows
    col_real = cols < n_classes
    if not TMA:
        a_at = A + rows.to(tl.int64)[:, None] * width + lanes[None, :]
        b_at = B + cols.to(tl.int64)[:, None] * width + lanes[None, :]
    # A scalar of 64 bits and offsets of 32: the tile's registers leave no room for more.
    corner = tl.program_id(0).to(tl.int64) * BM * z_width + tl.program_id(1) * BN
    at = Z + corner + (tl.arange(0, BM)[:, None] * z_width + tl.arange(0, BN)[None, :])
    real = row_real[:, None] & col_real[None, :]
    acc = tl.zeros((BM, BN), Z.dtype.element_ty)
    if ADD:
        acc = tl.load(at, mask=real, other=0.0)
    if LOGITS > 0:
        a_scale = tl.load(A_scales + rows, mask=row_real, other=1.0)[:, None]
        b_scale = tl.load(B_scales + cols, mask=col_real, other=1.0)[None, :]
        if ADD:
            # Powers of two.
            acc = acc * (1.0 / a_scale) * (1.0 / b_scale)
    if CARRY:
        low = tl.zeros((BM, BN), acc.dtype)
    for start in range(0, width, BR):
        if TMA:
            a0, a1 = load_tiles(A, tl.program_id(0) * BM, start, BM, BR, LOGITS)
            b0, b1 = load_tiles(B, tl.program_id(1) * BN, start, BN, BR, LOGITS)
        else:
            a_real = row_real[:, None] & (start + lanes < width)[None, :]
            b_real = col_real[:, None] & (start + lanes < width)[None, :]
            a0, a1 = load_parts(a_at, 0, n_rows * width, a_real, LOGITS)
            b0, b1 = load_parts(b_at, 0, n_classes * width, b_real, LOGITS)
            a_at += BR
            b_at += BR
        if CARRY:
            part = dot_terms(a0, a1, tl.trans(b0), tl.trans(b1))
            acc, low = add_carried(acc, low, part)
        else:
            acc = dot_parts(a0, a1, tl.trans(b0), tl.trans(b1), acc, LOGITS)
    if CARRY:
        acc = acc + low
    if LOGITS > 0:
        acc = acc * a_scale * b_scale
    if KEEP:
        tl.store(at, acc, mask=real)
    if EPILOGUE:
        labels = tl.load(y + rows, mask=row_real, other=-1)
        label = cols[None, :] == labels[:, None]
        wrong = tl.where(col_real[None, :] & (label == 0), acc, float("-inf"))
        largest = tl.max(wrong, axis=1)
        # A tile may hold nothing but the label: its sum is 0, relative to anything finite.
        largest = tl.where(largest == float("-inf"), -1e30, largest)
        total = tl.sum(exp(wrong - largest[:, None]), axis=1)
        # In the order of tiles, so that reads of many rows of a tile are contiguous.
        place = tl.program_id(1) * n_rows + rows
        tl.store(tile_max + place, largest, mask=row_real)
        tl.store(tile_sum + place, total, mask=row_real)
        here = (labels >= tl.program_id(1) * BN) & (labels < tl.program_id(1) * BN + BN)
        own = tl.sum(tl.where(label, acc, 0.0), axis=1)
        tl.store(label_logit + rows, own, mask=row_real & here)


@triton.jit(do_not_specialize=["n_rows", "rows_per_split"])
def class_products(
    R, A, parts, n_rows: "i64", n_classes, dim, z_width, width, rows_per_split,
    BM: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr, PRODUCTS: tl.constexpr,
    ADD: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Tile (BM, BN) of the partial `R^T A (K, d)` of one range of the chunk's rows.

    With TMA ranges are multiples of BR, but for the last.
    """
    classes = tl.program_id(0) * BM + tl.arange(0, BM)
    features = tl.program_id(1) * BN + tl.arange(0, BN)
    lanes = tl.arange(0, BR)
    split = tl.program_id(2)
    class_real = (classes < z_width)[None, :]
    feature_real = (features < width)[None, :]
    corner = (split.to(tl.int64) * n_classes + tl.program_id(0) * BM) * dim
    at = parts + corner + (tl.arange(0, BM)[:, None] * dim + features[None, :])
    real = (classes < n_classes)[:, None] & (features < dim)[None, :]
    acc = tl.zeros((BM, BN), parts.dtype.element_ty)
    if ADD:
        acc = tl.load(at, mask=real, other=0.0)
    first = split * rows_per_split
    last = tl.minimum(first + rows_per_split, n_rows).to(tl.int32)
    if not TMA:
        rows = (first + lanes).to(tl.int64)[:, None]
        r_at = R + rows * z_width + classes[None, :]
        a_at = A + rows * width + features[None, :]
    for start in range(first, last, BR):
        if TMA:
            r0, r1 = load_tiles(R, start, tl.program_id(0) * BM, BR, BM, PRODUCTS)
            a0, a1 = load_tiles(A, start, tl.program_id(1) * BN, BR, BN, PRODUCTS)
        else:
            inside = (start + lanes < last)[:, None]
            r0, r1 = load_parts(r_at, 0, n_rows * z_width, inside & class_real, PRODUCTS)
            a0, a1 = load_parts(a_at, 0, n_rows * width, inside & feature_real, PRODUCTS)
            r_at += BR * z_width
            a_at += BR * width
        acc = dot_parts(tl.trans(r0), tl.trans(r1), a0, a1, acc, PRODUCTS)
    tl.store(at, acc, mask=real)


@triton.jit(do_not_specialize=["n_rows", "n_classes"])
def sample_products(
    R, B, H, H_low, out, scale: "fp64", lr: "fp64", n_rows: "i64", n_classes: "i64", dim, z_width,
    width, BM: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr, PRODUCTS: tl.constexpr,
    STEP: tl.constexpr, COMPENSATED: tl.constexpr, ADD: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Tile (BM, BN) of `scale R B (N, d)`, or `scale (out + R B)`: stored, or taken off H.

    R is lifted, and so is what `out` holds before.
    """
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    features = tl.program_id(1) * BN + tl.arange(0, BN)
    lanes = tl.arange(0, BR)
    row_real = rows < n_rows
    dtype = out.dtype.element_ty
    corner = tl.program_id(0).to(tl.int64) * BM * dim
    H += corner
    H_low += corner
    out += corner
    at = tl.arange(0, BM)[:, None] * dim + features[None, :]
    real = row_real[:, None] & (features < dim)[None, :]
    acc = tl.zeros((BM, BN), dtype)
    if ADD:
        acc = tl.load(out + at, mask=real, other=0.0)
    if not TMA:
        r_at = R + rows.to(tl.int64)[:, None] * z_width + lanes[None, :]
        b_at = B + lanes.to(tl.int64)[:, None] * width + features[None, :]
        feature_real = (features < width)[None, :]
    for start in range(0, z_width, BR):
        if TMA:
            r0, r1 = load_tiles(R, tl.program_id(0) * BM, start, BM, BR, PRODUCTS)
            b0, b1 = load_tiles(B, start, tl.program_id(1) * BN, BR, BN, PRODUCTS)
        else:
            r_real = row_real[:, None] & (start + lanes < z_width)[None, :]
            b_real = (start + lanes < n_classes)[:, None] & feature_real
            r0, r1 = load_parts(r_at, 0, n_rows * z_width, r_real, PRODUCTS)
            b0, b1 = load_parts(b_at, 0, n_classes * width, b_real, PRODUCTS)
            r_at += BR
            b_at += BR * width
        acc = dot_parts(r0, r1, b0, b1, acc, PRODUCTS)
    dh = row_factor(scale, lr, dtype, STEP) * acc
    h = dh
    if STEP:
        h = tl.load(H + at, mask=real, other=0.0)
    store_rows(H_low, out, at, h, dh, real, STEP, COMPENSATED)
