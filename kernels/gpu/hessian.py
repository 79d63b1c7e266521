"""The Hessian of the objective (4) times a direction, on CUDA tensors, in Triton.

With the logits' derivative along (dW, dH), `dZ = dH W^T + H dW^T`, that of the gaps D'_j, and
`s = sum_{j != y} p_j D'_j`, the residual's derivative dr is `p_j (D'_j - s)`, and `-p_y s` at the
label: nothing cancels. Then `HW = dr^T H + r^T dH` and `HH = dr W + r dW`.

Flops `14 K N d`, bytes `12 N d` in float32 (H and dH read, HH written). The regimes and the second
stage are those of `cross_entropy`; in the narrow one r and dr stay in registers.
"""

import triton
import triton.language as tl

from fastnc.kernels.gpu.cross_entropy import problem, reduce_W
from fastnc.kernels.gpu.narrow import block_logits
from fastnc.kernels.gpu.parts import dot_parts, load_parts, planes, store_parts, two_parts
from fastnc.kernels.gpu.plan import Hessian, cdiv, hessian_plan, options
from fastnc.kernels.gpu.softmax import DOWN, UP, exp, gaps, lifted_exp, losses_and_weights
from fastnc.kernels.gpu.wide import COLUMNS, ROWS, Chunks, _largest_gaps, _sums


@triton.jit(do_not_specialize=["n_samples", "blocks"])
def narrow_hessian(
    W, H, y, dW, dH, W_parts, HH, scale: "fp64", n_samples: "i64", n_classes, dim, width,
    blocks,
    BN: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, LOGITS: tl.constexpr,
    PRODUCTS: tl.constexpr,
):  # fmt: skip
    """Partials of HW, lifted, and HH times scale, of one range of row blocks."""
    program = tl.program_id(0)
    rows = tl.arange(0, BN)
    cols = tl.arange(0, BK)
    lanes = tl.arange(0, BD)
    class_real = cols < n_classes
    dtype = H.dtype.element_ty
    factor = (tl.zeros((), tl.float64) + scale * DOWN).to(dtype)
    W_part = W_parts + program.to(tl.int64) * n_classes * dim
    for i in tl.range(blocks, disable_licm=True):
        first = (program.to(tl.int64) * blocks + i) * BN
        left = tl.minimum(tl.maximum(n_samples - first, 0), BN).to(tl.int32)
        real = rows < left
        base = first * dim
        zero = tl.zeros((BN, BK), dtype)
        Z = block_logits(
            W, W, H + base, rows, cols, left, n_classes, dim, width, zero, BD, LOGITS, False
        )
        dZ = block_logits(
            W, W, dH + base, rows, cols, left, n_classes, dim, width, zero, BD, PRODUCTS, False
        )
        dZ = block_logits(
            dW, dW, H + base, rows, cols, left, n_classes, dim, width, dZ, BD, PRODUCTS, False
        )
        labels = tl.load(y + first + rows, mask=real, other=0).to(tl.int32)
        label = cols[None, :] == labels[:, None]
        D, m = gaps(Z, label, class_real[None, :])
        s = tl.where(m > 0.0, m, m * 0.0)
        t = lifted_exp(D - s[:, None])
        S = tl.sum(t, axis=1)
        _loss, weight = losses_and_weights(S, s)
        p = t * weight[:, None]
        dD = dZ - tl.sum(tl.where(label, dZ, 0.0), axis=1)[:, None]
        mean = tl.sum(p * dD, axis=1)
        own = exp(-tl.abs(s)) * weight * mean
        dr = tl.where(label, -own[:, None], p * (dD - (mean * DOWN)[:, None]))
        r = tl.where(label, -(S * weight)[:, None], p)
        inside = real[:, None] & class_real[None, :]
        r = tl.where(inside, r, 0.0)
        dr = tl.where(inside, dr, 0.0)
        r0, r1 = two_parts(r, PRODUCTS)
        dr0, dr1 = two_parts(dr, PRODUCTS)
        for start in tl.range(0, dim, BD, disable_licm=True):
            features = start + lanes
            feature_real = features < dim
            at = rows[:, None] * dim + features[None, :]
            h_real = real[:, None] & feature_real[None, :]
            w_at = cols[:, None] * dim + features[None, :]
            w_real = class_real[:, None] & feature_real[None, :]
            part = tl.load(W_part + w_at, mask=w_real & (i > 0), other=0.0)
            h0, h1 = two_parts(tl.load(H + base + at, mask=h_real, other=0.0), PRODUCTS)
            part = dot_parts(tl.trans(dr0), tl.trans(dr1), h0, h1, part, PRODUCTS)
            h0, h1 = two_parts(tl.load(dH + base + at, mask=h_real, other=0.0), PRODUCTS)
            part = dot_parts(tl.trans(r0), tl.trans(r1), h0, h1, part, PRODUCTS)
            tl.store(W_part + w_at, part, mask=w_real)
        for start in tl.range(0, dim, BD, disable_licm=True):
            features = start + lanes
            feature_real = features < dim
            w_at = cols[:, None] * width + features[None, :]
            w_real = class_real[:, None] & feature_real[None, :]
            out = tl.zeros((BN, BD), dtype)
            w0, w1 = load_parts(W, w_at, n_classes * width, w_real, PRODUCTS)
            out = dot_parts(dr0, dr1, w0, w1, out, PRODUCTS)
            w0, w1 = load_parts(dW, w_at, n_classes * width, w_real, PRODUCTS)
            out = dot_parts(r0, r1, w0, w1, out, PRODUCTS)
            tl.store(
                HH + base + rows[:, None] * dim + features[None, :],
                factor * out,
                mask=real[:, None] & feature_real[None, :],
            )
        # The next block's threads read partials that other threads may have written.
        tl.debug_barrier()


@triton.jit(do_not_specialize=["n_rows", "n_tiles"])
def hessian_rows(
    Z, dZ, R, dR, y, tile_max, tile_sum, label_logit, n_rows: "i64", n_classes, z_width, n_tiles,
    BM: tl.constexpr, BN: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    """The parts of r and of dr, lifted, BM rows a program; in float64 R is Z and dR is dZ."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    real = rows < n_rows
    lanes = tl.arange(0, BN)
    base = rows.to(tl.int64) * z_width
    m, z_y = _largest_gaps(tile_max, label_logit, rows, real, n_rows, n_tiles)
    s = tl.where(m > 0.0, m, m * 0.0)
    S = _sums(tile_max, tile_sum, z_y, s, rows, real, n_rows, n_tiles)
    _loss, weight = losses_and_weights(S, s)
    labels = tl.load(y + rows, mask=real, other=0)
    dz_y = tl.load(dZ + base + labels, mask=real, other=0.0)
    mean = S * 0.0
    for start in range(0, n_classes, BN):
        cols = start + lanes
        at = base[:, None] + cols[None, :]
        inside = real[:, None] & (cols < n_classes)[None, :] & (cols[None, :] != labels[:, None])
        gap = tl.load(Z + at, mask=inside, other=0.0) - z_y[:, None]
        p = lifted_exp(tl.where(inside, gap - s[:, None], float("-inf"))) * weight[:, None]
        dD = tl.load(dZ + at, mask=inside, other=0.0) - dz_y[:, None]
        mean += tl.sum(p * dD, axis=1)
    own = exp(-tl.abs(s)) * weight * mean
    # Every thread must have read the label's entry before any of them overwrites it.
    tl.debug_barrier()
    for start in range(0, z_width, BN):
        cols = start + lanes
        at = base[:, None] + cols[None, :]
        inside = real[:, None] & (cols < n_classes)[None, :]
        label = cols[None, :] == labels[:, None]
        gap = tl.load(Z + at, mask=inside, other=0.0) - z_y[:, None]
        p = lifted_exp(tl.where(inside, gap - s[:, None], float("-inf"))) * weight[:, None]
        dD = tl.load(dZ + at, mask=inside, other=0.0) - dz_y[:, None]
        r = tl.where(label, -(S * weight)[:, None], p)
        dr = tl.where(label, -own[:, None], p * (dD - (mean * DOWN)[:, None]))
        room = real[:, None] & (cols < z_width)[None, :]
        store_parts(R, at, r, n_rows * z_width, room, PRODUCTS)
        store_parts(dR, at, dr, n_rows * z_width, room, PRODUCTS)


def hessian_vector_product(W, H, y, dW, dH, scale, HW_out, HH_out, tier):
    """`HW_out, HH_out`: scale times the derivative of both gradients along (dW, dH)."""
    shape = hessian_plan(*problem(W, H, tier))
    products = _narrow if isinstance(shape, Hessian) else _wide
    W_parts = products(shape, W, H, y, dW, dH, scale, HH_out)
    reduce_W(W_parts, W, None, HW_out, scale, 1.0, False)


def _narrow(shape, W, H, y, dW, dH, scale, HH_out):
    """Partials of HW; writes HH."""
    W_parts = W.new_empty((shape.programs, *W.shape))
    W_planes, dW_planes = planes(W, 0, shape.W_parts), planes(dW, 0, shape.W_parts)
    narrow_hessian[(shape.programs,)](
        W_planes.brain, H, y, dW_planes.brain, dH, W_parts, HH_out, scale, len(H), *W.shape,
        W_planes.width, shape.blocks, **shape.tiles, **shape.options,
    )  # fmt: skip
    return W_parts


def _wide(shape, W, H, y, dW, dH, scale, HH_out):
    """Partials of HW; writes HH, chunk by chunk."""
    chunks = Chunks(shape, W, H, y)
    Z, dZ = chunks.room(), chunks.room()
    R, dR = chunks.room_for_parts(Z), chunks.room_for_parts(dZ)
    w, dw = chunks.apart(W), chunks.apart(dW)
    W_parts = W.new_empty((shape.splits, *W.shape))
    for i, (lo, hi) in enumerate(chunks.chunks):
        h, dh = chunks.apart(H[lo:hi]), chunks.apart(dH[lo:hi])
        chunks.form(lo, hi, dh, w, dZ, True, False, False)
        chunks.form(lo, hi, h, dw, dZ, True, True, False)
        chunks.form(lo, hi, h, w, Z, True, False, True)
        hessian_rows[(cdiv(hi - lo, ROWS),)](
            Z, dZ, R, dR, y[lo:hi], *chunks.tiles, chunks.label_logit, hi - lo, len(W),
            chunks.z_width, chunks.n_tiles,
            BM=ROWS, BN=COLUMNS, PRODUCTS=shape.PRODUCTS, **options(4, 1),
        )  # fmt: skip
        chunks.add_class_products(lo, hi, dR, h, W_parts, i > 0)
        chunks.add_class_products(lo, hi, R, dh, W_parts, True)
        chunks.sample_products(lo, hi, dR, w, None, HH_out, UP.value, 1.0, False, False)
        chunks.sample_products(lo, hi, R, dw, None, HH_out, scale, 1.0, False, True)
    return W_parts
