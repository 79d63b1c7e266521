"""The objective's pass over the samples when a row of logits is wider than a tile, in Triton.

The rows are taken in chunks, whose numbers stay in L2 where K and d allow it:

0. W once, and each chunk of H, are split (`parts`) into numbers that tensor cores multiply;
1. `Z = H W^T` by tiles; a tile's epilogue writes, for each row, the largest logit of its wrong
   classes, the sum of their exponentials relative to that, and the label's logit if it is there;
2. the tiles' numbers give each row its shift and sum (`softmax`), and Z becomes the parts of r;
3. dW: tiles of K x d, the rows split into a fixed number of partials, added up chunk by chunk;
4. dH = r W by tiles; its epilogue writes dH or steps H in place.

With `TMA` the operands are descriptors of the parts: the hardware copies tiles by itself, and
nobody computes addresses.

Flops `6 K N d`; bound by the tensor cores, which take each product of (1) in 3 terms and of (3)
and (4) in 3 or 1. The log-domain form first makes a pass of 1 alone (`8 K N d` in all). No
atomics: every number has one writer and one order.
"""

import math

import torch
import triton
import triton.language as tl

from fastnc.kernels.gpu.parts import (
    WIDTH,
    descriptor,
    dot_parts,
    load_parts,
    load_tiles,
    planes,
    store_parts,
)
from fastnc.kernels.gpu.plan import cdiv, options
from fastnc.kernels.gpu.softmax import DOWN, block_shift, exp, lifted_exp, losses_and_weights

# Rows a program of the kernels that go along rows, and columns at a time.
ROWS, COLUMNS = 8, 128


@triton.jit(do_not_specialize=["n_rows", "n_classes"])
def logits(
    A, A_scales, B, B_scales, y, Z, tile_max, tile_sum, label_logit, n_rows: "i64",
    n_classes: "i64", width, z_width,
    BM: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr, LOGITS: tl.constexpr,
    KEEP: tl.constexpr, ADD: tl.constexpr, EPILOGUE: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Tile (BM, BN) of `Z = A B^T` (ADD: added to Z), and of the softmax's sums."""
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
        acc = dot_parts(a0, a1, tl.trans(b0), tl.trans(b1), acc, LOGITS)
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


@triton.jit(do_not_specialize=["n_rows", "n_tiles"])
def row_extents(
    tile_max, tile_sum, label_logit, loss_parts, shift_parts, n_rows: "i64", n_tiles,
    BM: tl.constexpr, LOG: tl.constexpr,
):  # fmt: skip
    """The loss of BM rows; with LOG in units of `e^shift`, their own largest gap at most 0."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    real = rows < n_rows
    m, z_y = _largest_gaps(tile_max, label_logit, rows, real, n_rows, n_tiles)
    if LOG:
        M = tl.maximum(block_shift(m, real), -1e30)
    else:
        M = tl.sum(m * 0.0, axis=0)
    s = tl.where(m > 0.0, m, M)
    S = _sums(tile_max, tile_sum, z_y, s, rows, real, n_rows, n_tiles)
    loss, _weight = losses_and_weights(S, s)
    tl.store(loss_parts + tl.program_id(0), tl.sum(tl.where(real, loss, 0.0), axis=0))
    if LOG:
        tl.store(shift_parts + tl.program_id(0), M.to(tl.float64))


@triton.jit
def _largest_gaps(tile_max, label_logit, rows, real, n_rows, n_tiles):
    """`max_{j != y} z_j - z_y` and `z_y` of some rows."""
    z_y = tl.load(label_logit + rows, mask=real, other=0.0)
    m = z_y * 0.0 - 1e30
    for tile in range(n_tiles):
        place = tile * n_rows + rows
        m = tl.maximum(m, tl.load(tile_max + place, mask=real, other=-1e30) - z_y)
    return m, z_y


@triton.jit
def _sums(tile_max, tile_sum, z_y, s, rows, real, n_rows, n_tiles):
    """`sum_{j != y} exp(z_j - z_y - s)` of some rows, lifted."""
    S = z_y * 0.0
    for tile in range(n_tiles):
        place = tile * n_rows + rows
        gap = tl.load(tile_max + place, mask=real, other=-1e30) - z_y
        S += tl.load(tile_sum + place, mask=real, other=0.0) * lifted_exp(gap - s)
    return S


@triton.jit(do_not_specialize=["n_rows", "n_tiles"])
def residual_rows(
    Z, R, y, tile_max, tile_sum, label_logit, extent, loss_parts, n_rows: "i64", n_classes, z_width,
    n_tiles, BM: tl.constexpr, BN: tl.constexpr, LOG: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    """The parts of the lifted residual, BM rows a program; and the sum of their losses."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    real = rows < n_rows
    lanes = tl.arange(0, BN)
    dtype = Z.dtype.element_ty
    m, z_y = _largest_gaps(tile_max, label_logit, rows, real, n_rows, n_tiles)
    if LOG:
        s = tl.where(m > 0.0, m, tl.load(extent).to(dtype))
    else:
        s = tl.where(m > 0.0, m, m * 0.0)
    S = _sums(tile_max, tile_sum, z_y, s, rows, real, n_rows, n_tiles)
    loss, weight = losses_and_weights(S, s)
    tl.store(loss_parts + tl.program_id(0), tl.sum(tl.where(real, loss, 0.0), axis=0))
    if LOG:
        weight = weight * (1.0 / tl.load(extent + 1)).to(dtype)
    labels = tl.load(y + rows, mask=real, other=-1)
    base = rows.to(tl.int64)[:, None] * z_width
    for start in range(0, z_width, BN):
        cols = start + lanes
        inside = real[:, None] & (cols < n_classes)[None, :]
        gap = tl.load(Z + base + cols[None, :], mask=inside, other=0.0) - z_y[:, None]
        r = lifted_exp(tl.where(inside, gap - s[:, None], float("-inf")))
        r = tl.where(cols[None, :] == labels[:, None], -S[:, None], r) * weight[:, None]
        room = real[:, None] & (cols < z_width)[None, :]
        store_parts(R, base + cols[None, :], r, n_rows * z_width, room, PRODUCTS)


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
    factor = tl.zeros((), tl.float64) + scale * DOWN
    if STEP:
        factor = factor * lr
        change = factor.to(dtype) * acc
        h = tl.load(H + at, mask=real, other=0.0)
        if COMPENSATED:
            move = tl.load(H_low + at, mask=real, other=0.0) - change
            new = h + move
            tl.store(H_low + at, move - (new - h), mask=real)
            tl.store(out + at, new, mask=real)
        else:
            tl.store(out + at, h - change, mask=real)
    else:
        tl.store(out + at, factor.to(dtype) * acc, mask=real)


class Chunks:
    """The scratch of a wide call, and its chunks of rows in order."""

    def __init__(self, shape, W, H, y):
        self.shape, self.W, self.H, self.y = shape, W, H, y
        self.K, self.d = W.shape
        self.n_tiles = cdiv(self.K, shape.logits.BN)
        # Logits and residuals, like planes, have rows of an aligned length.
        self.z_width = cdiv(self.K, WIDTH) * WIDTH
        most = min(shape.chunk, len(H))
        self.tiles = (W.new_empty(most * self.n_tiles), W.new_empty(most * self.n_tiles))
        self.label_logit = W.new_empty(most)
        self.chunks = [(lo, min(lo + shape.chunk, len(H))) for lo in range(0, len(H), shape.chunk)]
        counts = [cdiv(hi - lo, ROWS) for lo, hi in self.chunks]
        self.first = [sum(counts[:i]) for i in range(len(counts))]
        self.parts = W.new_empty((2, sum(counts)), dtype=torch.float64)

    def room(self):
        """Room for the logits of the largest chunk."""
        return self.W.new_empty((min(self.shape.chunk, len(self.H)), self.z_width))

    def room_for_parts(self, Z):
        """Room for a residual's parts; in float64 that of its logits."""
        if Z.dtype == torch.float64:
            return Z
        return Z.new_empty((self.shape.parts, *Z.shape), dtype=torch.bfloat16)

    def apart(self, X, half=True, brain=True):
        """The planes of W, or of rows of H, for the products."""
        return planes(X, 2 if half else 0, self.shape.parts if brain else 0)

    def operand(self, X, rows, columns):
        """Parts as the kernels of products take them, whose tiles are (rows, columns)."""
        return descriptor(X, rows, columns) if self.shape.TMA else X

    def residual(self, R, n, rows, columns):
        """The same of the parts of the residual of a chunk of n rows."""
        if not self.shape.TMA:
            return R
        shape = self.shape.parts, n, self.z_width
        return descriptor(R.view(-1)[: math.prod(shape)].view(shape), rows, columns)

    def form(self, lo, hi, A, B, Z, keep, add, epilogue):
        """Z of the rows lo..hi, whose planes are A, against those of B."""
        # An addition needs a second tile in registers: those of twice as many warps.
        tile = self.shape.logits if not add else self.shape.logits._replace(num_warps=8)
        logits[(cdiv(hi - lo, tile.BM), self.n_tiles)](
            self.operand(A.half, tile.BM, tile.BR), A.scales,
            self.operand(B.half, tile.BN, tile.BR), B.scales, self.y[lo:hi], Z, *self.tiles,
            self.label_logit, hi - lo, self.K, A.width, self.z_width, LOGITS=self.shape.LOGITS,
            KEEP=keep, ADD=add, EPILOGUE=epilogue, TMA=self.shape.TMA, **tile.blocks,
            **tile.options,
        )  # fmt: skip

    def add_class_products(self, lo, hi, R, A, W_parts, add):
        """`W_parts[p]` gets the p-th range of rows of `R^T A`."""
        tile = self.shape.classes
        grid = (cdiv(self.K, tile.BM), cdiv(self.d, tile.BN), self.shape.splits)
        each = cdiv(hi - lo, self.shape.splits)
        if self.shape.TMA:
            each = cdiv(each, tile.BR) * tile.BR
        class_products[grid](
            self.residual(R, hi - lo, tile.BR, tile.BM), self.operand(A.brain, tile.BR, tile.BN),
            W_parts, hi - lo, self.K, self.d, self.z_width, A.width, each,
            PRODUCTS=self.shape.PRODUCTS, ADD=add, TMA=self.shape.TMA, **tile.blocks,
            **tile.options,
        )  # fmt: skip

    def sample_products(self, lo, hi, R, B, H_low, out, scale, lr, step, add):
        """`out[lo:hi]` gets `scale R B`, with `add` `scale (out + R B)`; or H is stepped by it."""
        tile = self.shape.step(H_low is not None)
        low = self.H if H_low is None else H_low
        sample_products[(cdiv(hi - lo, tile.BM), cdiv(self.d, tile.BN))](
            self.residual(R, hi - lo, tile.BM, tile.BR), self.operand(B.brain, tile.BR, tile.BN),
            self.H[lo:hi], low[lo:hi], out[lo:hi], scale, lr, hi - lo, self.K, self.d,
            self.z_width, B.width, PRODUCTS=self.shape.PRODUCTS, STEP=step,
            COMPENSATED=H_low is not None, ADD=add, TMA=self.shape.TMA, **tile.blocks,
            **tile.options,
        )  # fmt: skip


def losses(shape, W, H, y, log):
    """Sums of the losses of blocks; with `log` in units of `e^shift`, and the shifts."""
    chunks = Chunks(shape, W, H, y)
    W_planes = chunks.apart(W, brain=False)
    parts = chunks.parts
    for (lo, hi), first in zip(chunks.chunks, chunks.first, strict=True):
        H_planes = chunks.apart(H[lo:hi], brain=False)
        chunks.form(lo, hi, H_planes, W_planes, chunks.label_logit, False, False, True)
        row_extents[(cdiv(hi - lo, ROWS),)](
            *chunks.tiles, chunks.label_logit, parts[0, first:], parts[1, first:],
            hi - lo, chunks.n_tiles, BM=ROWS, LOG=log, **options(4, 1),
        )  # fmt: skip
    return parts[0], parts[1]


def gradients(shape, W, H, H_low, y, scale, lr, H_out, extent, step, dW_done):
    """Partials of the loss and of lifted dW; `H_out` gets dH, or H's next value.

    `dW_done`, unless None, is called with the partials of dW before the last chunk's dH is
    computed.
    """
    chunks = Chunks(shape, W, H, y)
    Z = chunks.room()
    R = chunks.room_for_parts(Z)
    W_planes = chunks.apart(W)
    W_parts = W.new_empty((shape.splits, *W.shape))
    for i, (lo, hi) in enumerate(chunks.chunks):
        H_planes = chunks.apart(H[lo:hi])
        chunks.form(lo, hi, H_planes, W_planes, Z, True, False, True)
        residual_rows[(cdiv(hi - lo, ROWS),)](
            Z, R, y[lo:hi], *chunks.tiles, chunks.label_logit,
            chunks.parts if extent is None else extent, chunks.parts[0, chunks.first[i] :],
            hi - lo, len(W), chunks.z_width, chunks.n_tiles,
            BM=ROWS, BN=COLUMNS, LOG=extent is not None, PRODUCTS=shape.PRODUCTS, **options(4, 1),
        )  # fmt: skip
        chunks.add_class_products(lo, hi, R, H_planes, W_parts, i > 0)
        if dW_done is not None and hi == len(H):
            dW_done(W_parts)
        chunks.sample_products(lo, hi, R, W_planes, H_low, H_out, scale, lr, step, False)
    return chunks.parts[0], W_parts
