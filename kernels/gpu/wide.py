"""The objective's pass over the samples when a row of logits is wider than a tile, in Triton.

The rows are taken in chunks, whose numbers stay in L2 where K and d allow it:

0. W once, and each chunk of H, are split (`parts`) into numbers that tensor cores multiply;
1. `Z = H W^T` by tiles; a tile's epilogue writes, for each row, the largest logit of its wrong
   classes, the sum of their exponentials relative to that, and the label's logit if it is there;
2. the tiles' numbers give each row its shift and sum (`softmax`), and Z becomes the parts of r;
3. dW: tiles of K x d, the rows split into a fixed number of partials, added up chunk by chunk;
4. dH = r W by tiles; its epilogue writes dH or steps H in place.

Flops `6 K N d`; bound by the tensor cores, which take each product of (1) in 3 terms and of (3)
and (4) in 3 or 1. The log-domain form first makes a pass of 1 alone (`8 K N d` in all). No
atomics: every number has one writer and one order.
"""

import math

import torch
import triton
import triton.language as tl

from fastnc.kernels.gpu.parts import WIDTH, descriptor, planes, store_parts
from fastnc.kernels.gpu.plan import cdiv, options
from fastnc.kernels.gpu.softmax import block_shift, lifted_exp, losses_and_weights
from fastnc.kernels.gpu.wide_products import class_products, logits, sample_products

# Rows a program of the kernels that go along rows, and columns at a time.
ROWS, COLUMNS = 8, 128


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
            KEEP=keep, ADD=add, EPILOGUE=epilogue, TMA=self.shape.TMA, CARRY=self.shape.CARRY,
            **tile.blocks, **tile.options,
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
