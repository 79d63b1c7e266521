"""The objective's pass over the samples when a row of logits is wider than a tile, in Triton.

The rows are taken in chunks whose logits (chunk, K) stay in L2 where K allows it:

1. `Z = H W^T` by tiles; a tile's epilogue leaves, for each row, the largest logit of its wrong
   classes, the sum of their exponentials relative to that, and the label's logit if it is there;
2. the tiles' numbers of a row become its shift and sum (softmax_gpu), and Z becomes r in place;
3. dW: tiles of K x d, the rows split into a fixed number of partials, added up chunk by chunk;
4. dH = r W by tiles; its epilogue writes dH or steps H in place, after 3 has used the old H.

Flops `6 K N d`; for small chunks bound by the tensor cores. The log-domain form first makes a
pass of 1 alone (`8 K N d` in all). No atomics: every number has one writer and one order.
"""

import torch
import triton
import triton.language as tl

from fastnc.kernels.plan_gpu import cdiv, options
from fastnc.kernels.softmax_gpu import block_shift, dot, exp, losses_and_weights


@triton.jit
def logits(
    A, B, y, Z, tile_max, tile_sum, label_logit, n_rows, n_classes, dim,
    BM: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr, LOGITS: tl.constexpr,
    KEEP: tl.constexpr, ADD: tl.constexpr, EPILOGUE: tl.constexpr,
):  # fmt: skip
    """Tile (BM, BN) of `Z = A B^T` (ADD: added to Z), and of the softmax's sums."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    cols = tl.program_id(1) * BN + tl.arange(0, BN)
    lanes = tl.arange(0, BR)
    row_real = rows < n_rows
    col_real = cols < n_classes
    at = rows.to(tl.int64)[:, None] * n_classes + cols[None, :]
    real = row_real[:, None] & col_real[None, :]
    acc = tl.zeros((BM, BN), A.dtype.element_ty)
    for start in range(0, dim, BR):
        inside = start + lanes < dim
        a = tl.load(
            A + rows.to(tl.int64)[:, None] * dim + (start + lanes)[None, :],
            mask=row_real[:, None] & inside[None, :],
            other=0.0,
        )
        b = tl.load(
            B + cols.to(tl.int64)[:, None] * dim + (start + lanes)[None, :],
            mask=col_real[:, None] & inside[None, :],
            other=0.0,
        )
        acc = dot(a, tl.trans(b), acc, LOGITS)
    if ADD:
        acc += tl.load(Z + at, mask=real, other=0.0)
    if KEEP:
        tl.store(Z + at, acc, mask=real)
    if EPILOGUE:
        labels = tl.load(y + rows, mask=row_real, other=-1)
        label = cols[None, :] == labels[:, None]
        wrong = tl.where(col_real[None, :] & (label == 0), acc, float("-inf"))
        largest = tl.max(wrong, axis=1)
        # A tile may hold nothing but the label: its sum is 0, relative to anything finite.
        largest = tl.where(largest == float("-inf"), -1e30, largest)
        total = tl.sum(exp(wrong - largest[:, None]), axis=1)
        n_tiles = tl.num_programs(1)
        place = rows.to(tl.int64) * n_tiles + tl.program_id(1)
        tl.store(tile_max + place, largest, mask=row_real)
        tl.store(tile_sum + place, total, mask=row_real)
        here = (labels >= tl.program_id(1) * BN) & (labels < tl.program_id(1) * BN + BN)
        own = tl.sum(tl.where(label, acc, 0.0), axis=1)
        tl.store(label_logit + rows, own, mask=row_real & here)


@triton.jit
def row_extents(
    tile_max, tile_sum, label_logit, loss_parts, shift_parts, n_rows, n_tiles,
    BM: tl.constexpr, LOG: tl.constexpr,
):  # fmt: skip
    """The loss of BM rows; with LOG in units of `e^shift`, their own largest gap at most 0."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    real = rows < n_rows
    m, z_y = _largest_gaps(tile_max, label_logit, rows, real, n_tiles)
    if LOG:
        M = tl.maximum(block_shift(m, real), -1e30)
    else:
        M = tl.sum(m * 0.0, axis=0)
    s = tl.where(m > 0.0, m, M)
    S = _sums(tile_max, tile_sum, z_y, s, rows, real, n_tiles)
    loss, _weight = losses_and_weights(S, s)
    tl.store(
        loss_parts + tl.program_id(0), tl.sum(tl.where(real, loss, 0.0).to(tl.float64), axis=0)
    )
    if LOG:
        tl.store(shift_parts + tl.program_id(0), M.to(tl.float64))


@triton.jit
def _largest_gaps(tile_max, label_logit, rows, real, n_tiles):
    """`max_{j != y} z_j - z_y` and `z_y` of some rows."""
    z_y = tl.load(label_logit + rows, mask=real, other=0.0)
    m = z_y * 0.0 - 1e30
    for tile in range(n_tiles):
        place = rows.to(tl.int64) * n_tiles + tile
        m = tl.maximum(m, tl.load(tile_max + place, mask=real, other=-1e30) - z_y)
    return m, z_y


@triton.jit
def _sums(tile_max, tile_sum, z_y, s, rows, real, n_tiles):
    """`sum_{j != y} exp(z_j - z_y - s)` of some rows."""
    S = z_y * 0.0
    for tile in range(n_tiles):
        place = rows.to(tl.int64) * n_tiles + tile
        gap = tl.load(tile_max + place, mask=real, other=-1e30) - z_y
        S += tl.load(tile_sum + place, mask=real, other=0.0) * exp(gap - s)
    return S


@triton.jit
def residual_rows(
    Z, y, tile_max, tile_sum, label_logit, extent, loss_parts, n_rows, n_classes, n_tiles,
    BM: tl.constexpr, BN: tl.constexpr, LOG: tl.constexpr,
):  # fmt: skip
    """Z becomes the residual, in place, BM rows a program; and the sum of their losses."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    real = rows < n_rows
    lanes = tl.arange(0, BN)
    dtype = Z.dtype.element_ty
    m, z_y = _largest_gaps(tile_max, label_logit, rows, real, n_tiles)
    if LOG:
        s = tl.where(m > 0.0, m, tl.load(extent).to(dtype))
    else:
        s = tl.where(m > 0.0, m, m * 0.0)
    S = _sums(tile_max, tile_sum, z_y, s, rows, real, n_tiles)
    loss, weight = losses_and_weights(S, s)
    tl.store(
        loss_parts + tl.program_id(0), tl.sum(tl.where(real, loss, 0.0).to(tl.float64), axis=0)
    )
    if LOG:
        weight = weight * (1.0 / tl.load(extent + 1)).to(dtype)
    labels = tl.load(y + rows, mask=real, other=-1)
    for start in range(0, n_classes, BN):
        cols = start + lanes
        at = rows.to(tl.int64)[:, None] * n_classes + cols[None, :]
        inside = real[:, None] & (cols < n_classes)[None, :]
        gap = tl.load(Z + at, mask=inside, other=0.0) - z_y[:, None]
        r = exp(tl.where(inside, gap - s[:, None], float("-inf")))
        r = tl.where(cols[None, :] == labels[:, None], -S[:, None], r) * weight[:, None]
        tl.store(Z + at, r, mask=inside)


@triton.jit
def class_products(
    R, A, parts, n_rows, n_classes, dim, rows_per_split,
    BM: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr, PRODUCTS: tl.constexpr,
    ADD: tl.constexpr,
):  # fmt: skip
    """Tile (BM, BN) of the partial `R^T A (K, d)` of one range of the chunk's rows."""
    classes = tl.program_id(0) * BM + tl.arange(0, BM)
    features = tl.program_id(1) * BN + tl.arange(0, BN)
    split = tl.program_id(2)
    class_real = classes < n_classes
    feature_real = features < dim
    at = parts + split.to(tl.int64) * n_classes * dim
    at = at + classes.to(tl.int64)[:, None] * dim + features[None, :]
    real = class_real[:, None] & feature_real[None, :]
    acc = tl.zeros((BM, BN), A.dtype.element_ty)
    first = split * rows_per_split
    last = tl.minimum(first + rows_per_split, n_rows)
    for start in range(first, last, BR):
        rows = start + tl.arange(0, BR)
        inside = rows < last
        r = tl.load(
            R + rows.to(tl.int64)[:, None] * n_classes + classes[None, :],
            mask=inside[:, None] & class_real[None, :],
            other=0.0,
        )
        a = tl.load(
            A + rows.to(tl.int64)[:, None] * dim + features[None, :],
            mask=inside[:, None] & feature_real[None, :],
            other=0.0,
        )
        acc = dot(tl.trans(r), a, acc, PRODUCTS)
    if ADD:
        acc += tl.load(at, mask=real, other=0.0)
    tl.store(at, acc, mask=real)


@triton.jit
def sample_products(
    R, B, H, H_low, out, scale: "fp64", lr: "fp64", n_rows, n_classes, dim,
    BM: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr, PRODUCTS: tl.constexpr,
    STEP: tl.constexpr, COMPENSATED: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """Tile (BM, BN) of `scale R B (N, d)`: stored, added to `out`, or taken off H as a step."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    features = tl.program_id(1) * BN + tl.arange(0, BN)
    lanes = tl.arange(0, BR)
    row_real = rows < n_rows
    feature_real = features < dim
    at = rows.to(tl.int64)[:, None] * dim + features[None, :]
    real = row_real[:, None] & feature_real[None, :]
    dtype = out.dtype.element_ty
    acc = tl.zeros((BM, BN), dtype)
    for start in range(0, n_classes, BR):
        inside = start + lanes < n_classes
        r = tl.load(
            R + rows.to(tl.int64)[:, None] * n_classes + (start + lanes)[None, :],
            mask=row_real[:, None] & inside[None, :],
            other=0.0,
        )
        b = tl.load(
            B + (start + lanes).to(tl.int64)[:, None] * dim + features[None, :],
            mask=inside[:, None] & feature_real[None, :],
            other=0.0,
        )
        acc = dot(r, b, acc, PRODUCTS)
    factor = tl.zeros((), tl.float64) + scale
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
        acc = factor.to(dtype) * acc
        if ADD:
            acc += tl.load(out + at, mask=real, other=0.0)
        tl.store(out + at, acc, mask=real)


class Chunks:
    """The scratch of a wide call, and its chunks of rows in order."""

    def __init__(self, shape, W, H, y):
        self.shape, self.W, self.H, self.y = shape, W, H, y
        self.K, self.d = W.shape
        self.n_tiles = cdiv(self.K, shape.BN)
        rows = min(shape.chunk, len(H))
        self.tiles = (W.new_empty((rows, self.n_tiles)), W.new_empty((rows, self.n_tiles)))
        self.label_logit = W.new_empty(rows)
        self.chunks = [(lo, min(lo + shape.chunk, len(H))) for lo in range(0, len(H), shape.chunk)]
        # Row kernels take BM / 4 rows a program; each leaves one partial of the loss.
        self.rows = max(shape.BM // 4, 16)
        counts = [cdiv(hi - lo, self.rows) for lo, hi in self.chunks]
        self.first = [sum(counts[:i]) for i in range(len(counts))]
        self.parts = W.new_empty((2, sum(counts)), dtype=torch.float64)

    def room(self):
        """Room for the logits of the largest chunk."""
        return self.W.new_empty((min(self.shape.chunk, len(self.H)), self.K))

    def form(self, lo, hi, A, B, Z, keep, add, epilogue):
        """Z of the rows lo..hi of A against B."""
        shape = self.shape
        logits[(cdiv(hi - lo, shape.BM), self.n_tiles)](
            A[lo:hi], B, self.y[lo:hi], Z, *self.tiles, self.label_logit, hi - lo, self.K, self.d,
            BM=shape.BM, BN=shape.BN, BR=shape.BR, LOGITS=shape.LOGITS,
            KEEP=keep, ADD=add, EPILOGUE=epilogue, **shape.options,
        )  # fmt: skip

    def add_class_products(self, lo, hi, R, A, W_parts, add):
        """`W_parts[p]` gets the p-th range of rows of `R^T A[lo:hi]`."""
        shape = self.shape
        grid = (cdiv(self.K, shape.BM), cdiv(self.d, shape.BN), shape.splits)
        class_products[grid](
            R, A[lo:hi], W_parts, hi - lo, self.K, self.d, cdiv(hi - lo, shape.splits),
            BM=shape.BM, BN=shape.BN, BR=shape.BR, PRODUCTS=shape.PRODUCTS, ADD=add,
            **shape.options,
        )  # fmt: skip

    def sample_products(self, lo, hi, R, B, H_low, out, scale, lr, step, add):
        """`out[lo:hi]` gets `scale R B`, or H stepped by it."""
        shape = self.shape
        low = self.H if H_low is None else H_low
        BN = shape.step_width(H_low is not None)
        sample_products[(cdiv(hi - lo, shape.BM), cdiv(self.d, BN))](
            R, B, self.H[lo:hi], low[lo:hi], out[lo:hi], scale, lr, hi - lo, self.K, self.d,
            BM=shape.BM, BN=BN, BR=shape.BR, PRODUCTS=shape.PRODUCTS,
            STEP=step, COMPENSATED=H_low is not None, ADD=add, **shape.options,
        )  # fmt: skip

    def sums(self, log):
        """Losses of every block of rows, and their shifts; no logit is kept."""
        for (lo, hi), first in zip(self.chunks, self.first, strict=True):
            self.form(lo, hi, self.H, self.W, self.label_logit, False, False, True)
            row_extents[(cdiv(hi - lo, self.rows),)](
                *self.tiles, self.label_logit, self.parts[0, first:], self.parts[1, first:],
                hi - lo, self.n_tiles, BM=self.rows, LOG=log, **options(4, 1),
            )  # fmt: skip
        return self.parts[0], self.parts[1]


def losses(shape, W, H, y):
    """Partial sums of the losses."""
    return Chunks(shape, W, H, y).sums(log=False)[0]


def extents(shape, W, H, y):
    """Partial sums of the losses in units of `e^shift`, and the shifts."""
    return Chunks(shape, W, H, y).sums(log=True)


def sweep(shape, W, H, H_low, y, scale, lr, H_out, extent, step):
    """Partials of the loss and of dW; `H_out` gets dH, or H's next value."""
    chunks = Chunks(shape, W, H, y)
    Z = chunks.room()
    W_parts = W.new_empty((shape.splits, *W.shape))
    for i, (lo, hi) in enumerate(chunks.chunks):
        chunks.form(lo, hi, H, W, Z, True, False, True)
        residual_rows[(cdiv(hi - lo, chunks.rows),)](
            Z, y[lo:hi], *chunks.tiles, chunks.label_logit,
            chunks.parts if extent is None else extent, chunks.parts[0, chunks.first[i] :],
            hi - lo, *W.shape[:1], chunks.n_tiles,
            BM=chunks.rows, BN=64, LOG=extent is not None, **options(4, 1),
        )  # fmt: skip
        chunks.add_class_products(lo, hi, Z, H, W_parts, i > 0)
        chunks.sample_products(lo, hi, Z, W, H_low, H_out, scale, lr, step, False)
    return chunks.parts[0], W_parts
