"""Many epochs of small problems in float64, with products by the tensor cores, in Triton.

As `trajectory.small_problems`, one program a problem, any number at once: W and H stay in registers
for all epochs of a launch. There lanes multiply and exchange sums; here products are `tl.dot` of
tiles (BN, BD) of H, (BD, BK) of W and (BN, BK) of the residual, whose operands pass through shared
memory. Flops `6 BN BD BK` an epoch for `6 K N d`: three times as many at K=5, N=50, d=20, at the
tensor cores' rate, and few exchanges between lanes.

Not in use (`trajectory.by_products`) until the two are timed on a GPU.
"""

import triton
import triton.language as tl

from fastnc.kernels.gpu.softmax import exp, gaps

WARPS = 2
# The least side of a product; an older Triton refuses a shorter one.
LEAST = 8 if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 8) else 16


@triton.jit(do_not_specialize=["n_samples", "n_classes", "dim", "epochs"])
def small_products(
    W, H, y, rates, scale: "fp64", n_samples, n_classes, dim, epochs,
    BN: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """`epochs` steps of one problem a program: W (B, K, d), H (B, N, d), rates (B,), one y."""
    problem = tl.program_id(0).to(tl.int64)
    rows = tl.arange(0, BN)
    cols = tl.arange(0, BK)
    lanes = tl.arange(0, BD)
    real = rows < n_samples
    W += problem * n_classes * dim
    H += problem * n_samples * dim
    h_at = rows[:, None] * dim + lanes[None, :]
    h_real = real[:, None] & (lanes < dim)[None, :]
    # W transposed: the product for its step has this shape.
    w_at = cols[None, :] * dim + lanes[:, None]
    w_real = (cols < n_classes)[None, :] & (lanes < dim)[:, None]
    h = tl.load(H + h_at, mask=h_real, other=0.0)
    w = tl.load(W + w_at, mask=w_real, other=0.0)
    labels = tl.load(y + rows, mask=real, other=0).to(tl.int32)
    label = cols[None, :] == labels[:, None]
    step = tl.where(real, tl.load(rates + problem) * scale, 0.0)
    for _epoch in range(epochs):
        Z = tl.dot(h, w, input_precision="ieee", out_dtype=tl.float64)
        D, m = gaps(Z, label, (cols < n_classes)[None, :])
        s = tl.maximum(m, 0.0)
        t = exp(D - s[:, None])
        S = tl.sum(t, axis=1)
        factor = step / (exp(-s) + S)
        # Minus the residual times the step, whose products are added to H and W.
        r = tl.where(label, S[:, None], -t) * factor[:, None]
        dw = tl.dot(tl.trans(h), r, input_precision="ieee", out_dtype=tl.float64)
        h = tl.dot(r, tl.trans(w), h, input_precision="ieee", out_dtype=tl.float64)
        w += dw
    tl.store(H + h_at, h, mask=h_real)
    tl.store(W + w_at, w, mask=w_real)


def product_tile(n_classes, dim, n_samples):
    """(BN, BK, BD) of a problem that fits the registers of `WARPS` warps, or None."""
    BN = max(16, 1 << (n_samples - 1).bit_length())
    BK = max(LEAST, 1 << (n_classes - 1).bit_length())
    BD = max(LEAST, 1 << (dim - 1).bit_length())
    # H, its operands, and the residual's tile: two registers each number, of 255 a thread.
    if 2 * (2 * BN * BD + 3 * BN * BK + 2 * BD * BK) > 200 * 32 * WARPS:
        return None
    return BN, BK, BD
