"""What kernels write to the rows of samples: dH, or H's next value, by Triton functions.

They are shared by `narrow`, `one_pass` and `wide_products`, and inlined. Bytes of an entry: 4 for
dH, 8 for a step, 16 with compensation.
"""

import triton
import triton.language as tl

from fastnc.kernels.gpu.softmax import DOWN


@triton.jit
def row_factor(scale, lr, dtype: tl.constexpr, STEP: tl.constexpr):
    """What a sum of lifted residuals is multiplied by: `scale`, with STEP `scale lr`."""
    factor = tl.zeros((), tl.float64) + scale * DOWN
    if STEP:
        factor = factor * lr
    return factor.to(dtype)


@triton.jit
def store_rows(H_low, H_out, at, h, dh, real, STEP: tl.constexpr, COMPENSATED: tl.constexpr):
    """Stores dh, or with STEP `h - dh`; with COMPENSATED what that rounds waits in H_low."""
    if STEP:
        if COMPENSATED:
            move = tl.load(H_low + at, mask=real, other=0.0) - dh
            new = h + move
            tl.store(H_low + at, move - (new - h), mask=real)
            tl.store(H_out + at, new, mask=real)
        else:
            tl.store(H_out + at, h - dh, mask=real)
    else:
        tl.store(H_out + at, dh, mask=real)
