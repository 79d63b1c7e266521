"""The second stage: partials added in their order, in float64, by Triton kernels.

Each partial is read by one program, which adds them in a fixed order, so that a result has the
same bits every time. Traffic: `P K d` words for P partials, from L2.
"""

import triton
import triton.language as tl

from fastnc.kernels.gpu.softmax import exp


@triton.jit(do_not_specialize=["n_parts"])
def sum_losses(loss_parts, out, n_parts, scale: "fp64", BLOCK: tl.constexpr):
    """`out[0] = scale sum(loss_parts)`, one program."""
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, n_parts, BLOCK):
        total += tl.load(loss_parts + start + lanes, mask=start + lanes < n_parts, other=0.0)
    tl.store(out, tl.sum(total, axis=0) * scale)


@triton.jit(do_not_specialize=["n_parts"])
def sum_extents(loss_parts, shift_parts, extent, log_loss, n_parts, BLOCK: tl.constexpr):
    """The largest shift, the loss in its units (`extent`, 2 words) and the loss's logarithm."""
    lanes = tl.arange(0, BLOCK)
    largest = tl.full((BLOCK,), -1e300, tl.float64)
    for start in range(0, n_parts, BLOCK):
        inside = start + lanes < n_parts
        part = tl.load(shift_parts + start + lanes, mask=inside, other=-1e300)
        largest = tl.maximum(largest, part)
    shift = tl.max(largest, axis=0)
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, n_parts, BLOCK):
        inside = start + lanes < n_parts
        part = tl.load(shift_parts + start + lanes, mask=inside, other=-1e300)
        total += exp(part - shift) * tl.load(loss_parts + start + lanes, mask=inside, other=0.0)
    loss = tl.sum(total, axis=0)
    tl.store(extent, shift)
    tl.store(extent + 1, loss)
    tl.store(log_loss, shift + tl.log(loss))


@triton.jit(do_not_specialize=["n_parts"])
def sum_parts(
    parts, old, low, out, n_parts, size: "i64", scale: "fp64", lr: "fp64",
    STEP: tl.constexpr, COMPENSATED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`out = scale sum_p parts[p]`, or with STEP `out = old - lr scale sum_p parts[p]`."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    total = tl.zeros((BLOCK,), tl.float64)
    for p in range(n_parts):
        total += tl.load(parts + p * size + at, mask=inside, other=0.0).to(tl.float64)
    total = total * scale
    dtype = out.dtype.element_ty
    if STEP:
        before = tl.load(old + at, mask=inside, other=0.0)
        if COMPENSATED:
            move = (tl.load(low + at, mask=inside, other=0.0) - lr * total).to(dtype)
            after = before + move
            tl.store(low + at, move - (after - before), mask=inside)
            tl.store(out + at, after, mask=inside)
        else:
            tl.store(out + at, (before - lr * total).to(dtype), mask=inside)
    else:
        tl.store(out + at, total.to(dtype), mask=inside)
