"""float32 split into sums of bf16 or fp16 numbers, which tensor cores multiply, in Triton.

A product of sums is a sum of products, of which the smallest may be left out:

    x = x0 + x1 + x2 + ...    each part the rest of those before it, rounded to 8 or 11 bits
    x y = x0 y0                                               1 term
        + (x0 y1 + x1 y0)                                     3 terms
        + (x1 y1 + x0 y2 + x2 y0)                             6 terms

bf16 has the exponents of float32: three parts hold its 24 bits, two hold 16 of them, relative to
every single number. fp16 has 11 bits and few exponents: with each row scaled by a power of two,
two parts hold 23 bits, relative to the largest number of the row, which is what a logit needs.
`TERMS` 0 stands for float64, multiplied as it is.

Tensor cores truncate their float32 sums towards zero: over a thousand steps that is an error of
1e-4 of the sum. So a product in 3 terms or more is summed apart over 16 to 64 numbers, and rounded
when it is added to the others.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from fastnc.kernels.gpu.plan import cdiv, options

# Rows of planes are padded with zeros to a multiple of this: aligned, and reduced without a mask.
WIDTH = 64
BM, BD, WARPS = 16, 128, 8


class Planes(NamedTuple):
    """The parts of a matrix (n, m): `half` of its scaled rows, in fp16, and `brain`, in bf16.

    Both are (number of parts, n, width). `scales (n,)` undo the scaling. In float64 all three are
    the matrix.
    """

    half: torch.Tensor
    brain: torch.Tensor
    scales: torch.Tensor
    width: int


@triton.jit
def rounded(x, BITS: tl.constexpr):
    """float32 x rounded to BITS bits, by integer operations: for bf16 (8) and fp16 (11).

    A conversion there and back costs eight times as much as these two operations; a conversion for
    a product alone handles two numbers at once. NaN needs the `where`: the carry would turn
    0x7FFFFFFF, the NaN that CUDA makes, into -0.
    """
    half: tl.constexpr = 1 << (23 - BITS)
    mask: tl.constexpr = -(1 << (24 - BITS))
    near = ((x.to(tl.int32, bitcast=True) + half) & mask).to(tl.float32, bitcast=True)
    return tl.where(x == x, near, x)


@triton.jit
def two_parts(x, TERMS: tl.constexpr):
    """The first two bf16 parts of float32 x."""
    if TERMS == 0:
        return x, x
    else:
        first = rounded(x, 8)
        return first.to(tl.bfloat16), (x - first).to(tl.bfloat16)


@triton.jit
def three_parts(x):
    """All bf16 parts of float32 x."""
    first = rounded(x, 8)
    rest = x - first
    # Truncated, not rounded: the rest then has 8 bits too, and nothing is lost.
    second = (rest.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)
    return first.to(tl.bfloat16), second.to(tl.bfloat16), (rest - second).to(tl.bfloat16)


@triton.jit
def powers_of_two(largest):
    """The power of two that scales a row's largest number to [2^13, 2^14), and its reciprocal."""
    # Exponents are those of float32, plus 127.
    exponent = tl.maximum(largest.to(tl.int32, bitcast=True) >> 23, 20)
    up = ((267 - exponent) << 23).to(tl.float32, bitcast=True)
    return up, ((exponent - 13) << 23).to(tl.float32, bitcast=True)


@triton.jit
def scaled_halves(x):
    """Two fp16 parts of float32 x, rows along the last axis scaled, and what undoes the scaling."""
    up, down = powers_of_two(tl.max(tl.abs(x), axis=-1))
    scaled = x * tl.expand_dims(up, -1)
    first = rounded(scaled, 11)
    return first.to(tl.float16), (scaled - first).to(tl.float16), down


@triton.jit
def load_parts(X, at, plane, real, TERMS: tl.constexpr):
    """The part at `X + at` and, for 3 terms, that in the next plane; else the first one twice."""
    first = tl.load(X + at, mask=real, other=0.0)
    second = first
    if TERMS == 3:
        second = tl.load(X + plane + at, mask=real, other=0.0)
    return first, second


@triton.jit
def load_tiles(X, row, column, BM: tl.constexpr, BN: tl.constexpr, TERMS: tl.constexpr):
    """As `load_parts`, the tiles (BM, BN) from a row and column on, by a descriptor of all parts.

    What lies beyond the matrix is 0.
    """
    first = tl.reshape(X.load([0, row, column]), (BM, BN))
    second = first
    if TERMS == 3:
        second = tl.reshape(X.load([1, row, column]), (BM, BN))
    return first, second


@triton.jit
def store_parts(X, at, x, plane, real, TERMS: tl.constexpr):
    """Store the parts of x that its products need."""
    first, second = two_parts(x, TERMS)
    tl.store(X + at, first, mask=real)
    if TERMS == 3:
        tl.store(X + plane + at, second, mask=real)


@triton.jit
def dot_parts(a0, a1, b0, b1, acc, TERMS: tl.constexpr):
    """`acc + a b` in 1 or 3 terms, smallest first."""
    if TERMS == 3:
        return acc + dot_terms(a0, a1, b0, b1)
    else:
        return tl.dot(a0, b0, acc, input_precision="ieee", out_dtype=acc.dtype)


@triton.jit
def dot_terms(a0, a1, b0, b1):
    """`a b` in 3 terms, smallest first."""
    part = tl.dot(a1, b0)
    part = tl.dot(a0, b1, part)
    return tl.dot(a0, b0, part)


@triton.jit
def dot_six(a0, a1, a2, b0, b1, b2):
    """`a b` in 6 terms, smallest first."""
    part = tl.dot(a2, b0)
    part = tl.dot(a0, b2, part)
    part = tl.dot(a1, b1, part)
    part = tl.dot(a1, b0, part)
    part = tl.dot(a0, b1, part)
    return tl.dot(a0, b0, part)


@triton.jit
def dot_whole(a, b, acc, TERMS: tl.constexpr):
    """`acc + a b` with all digits of both: float32 in 6 terms, float64 (0) as it is.

    Not tl.dot's own "bf16x6", which converts to bf16 and back, at an eighth of the rate.
    """
    if TERMS == 6:
        a0, a1, a2 = three_parts(a)
        b0, b1, b2 = three_parts(b)
        return acc + dot_six(a0, a1, a2, b0, b1, b2)
    else:
        return tl.dot(a, b, acc, input_precision="ieee", out_dtype=acc.dtype)


@triton.jit
def add_carried(acc, low, part):
    """`acc + part`, whose rounding error is added to `low` (Fast2Sum)."""
    total = acc + part
    return total, low + (part - (total - acc))


@triton.jit(do_not_specialize=["n_rows"])
def split_rows(
    X, half, brain, scales, n_rows: "i64", n_columns, width,
    BM: tl.constexpr, BD: tl.constexpr, HALF: tl.constexpr, BRAIN: tl.constexpr,
    SCALED: tl.constexpr,
):  # fmt: skip
    """HALF fp16 parts of BM scaled rows, BRAIN bf16 parts of the rows."""
    rows = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    lanes = tl.arange(0, BD)
    real = rows < n_rows
    plane = n_rows * width
    largest = tl.zeros((BM,), tl.float32)
    if SCALED:
        for start in range(0, n_columns, BD):
            at = rows[:, None] * n_columns + (start + lanes)[None, :]
            inside = real[:, None] & (start + lanes < n_columns)[None, :]
            x = tl.abs(tl.load(X + at, mask=inside, other=0.0))
            largest = tl.maximum(largest, tl.max(x, axis=1))
    up, down = powers_of_two(largest)
    if SCALED:
        tl.store(scales + rows, down, mask=real)
    for start in range(0, width, BD):
        cols = start + lanes
        inside = real[:, None] & (cols < n_columns)[None, :]
        x = tl.load(X + rows[:, None] * n_columns + cols[None, :], mask=inside, other=0.0)
        at = rows[:, None] * width + cols[None, :]
        room = real[:, None] & (cols < width)[None, :]
        rest = x * up[:, None]
        for p in tl.static_range(HALF):
            part = rounded(rest, 11)
            tl.store(half + p * plane + at, part.to(tl.float16), mask=room)
            rest -= part
        for p in tl.static_range(BRAIN):
            part = rounded(x, 8)
            tl.store(brain + p * plane + at, part.to(tl.bfloat16), mask=room)
            x -= part


def descriptor(X, BM, BN):
    """A descriptor of parts (number of parts, n, width): the hardware copies tiles (BM, BN)."""
    return TensorDescriptor.from_tensor(X, [1, BM, BN])


def planes(X, half, brain):
    """The `Planes` of X: `half` fp16 parts of its scaled rows, `brain` bf16 parts of X."""
    n, m = X.shape
    if X.dtype == torch.float64:
        return Planes(X, X, X, m)
    width = cdiv(m, WIDTH) * WIDTH
    first = X.new_empty((half, n, width), dtype=torch.float16)
    second = X.new_empty((brain, n, width), dtype=torch.bfloat16)
    scales = X.new_empty(n if half else 0)
    split_rows[(cdiv(n, BM),)](
        X, first, second, scales, n, m, width,
        BM=BM, BD=BD, HALF=half, BRAIN=brain, SCALED=half > 0, **options(WARPS, 1),
    )  # fmt: skip
    return Planes(first, second, scales, width)
