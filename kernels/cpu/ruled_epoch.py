"""Vectors moved by momentum or Adam, and one epoch of that over all samples: the loops themselves.

As `epoch`, whose residuals these are, for the classes of one pass; what the arrays hold stands in
`ruled_trajectory`. A sum of residuals times a factor is here minus a gradient, g:

    SCALED      x += lr g
    MOMENTUM    m <- mu m + g                       x += lr m
    NESTEROV    m <- mu m + g                       x += lr (g + mu m)
    ADAM        m <- b1 m + g, v <- b2 v + g^2      x += c m / (sqrt(v) + e)

Adam's m and v are its own over 1 - b1 and 1 - b2, which c and e make good. A coupled decay adds
`-lambda x` to g, a decoupled one `-lr lambda x` to the change.

A square root and a division take a processor with AVX-512 some thirty cycles a vector, more than
all else of a vector together. There both are refined from its estimates of 14 bits, by Goldschmidt
and Newton, to within 2 ulp: 3.3 times the epoch of plain descent became 1.9 (5, 20, 50; float64).
"""

from llvmlite import ir
from numba.core import cgutils

from fastnc.kernels.cpu.epoch import _differences, _residual_block, add_change
from fastnc.kernels.cpu.options import OPTIONS, njit
from fastnc.kernels.cpu.processor import VECTOR_BYTES
from fastnc.kernels.cpu.simd import (
    _const,
    _elementwise,
    _fma,
    _max,
    mul,
    n_lanes,
)
from fastnc.kernels.cpu.simd_blocks import (
    address,
    both_products,
    load_like,
    splats,
    store,
    store_members,
)

SCALED, MOMENTUM, NESTEROV, ADAM = range(4)
# Numbers of an epoch and a factor: lr or c, mu or b1, b2, e, and -lambda of both decays.
N_NUMBERS = 6


def _call(builder, name, result, *arguments):
    kind = ir.FunctionType(result, [x.type for x in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _estimate(builder, name, x):
    """AVX-512's 14 bits of a reciprocal or of one of a root."""
    suffix = "pd" if isinstance(x.type.element, ir.DoubleType) else "ps"
    mask = ir.IntType(x.type.count)
    zero = ir.Constant(x.type, [0.0] * x.type.count)
    name = f"llvm.x86.avx512.{name}14.{suffix}.512"
    return _call(builder, name, x.type, x, zero, ir.Constant(mask, -1))


def _root_quotient(builder, kind, m, v, e):
    """m / (sqrt(v) + e), one vector."""
    if 8 * VECTOR_BYTES != 512 or kind.lanes * kind.dtype.bitwidth != 512:
        suffix = "f64" if kind.dtype.bitwidth == 64 else "f32"
        root = _call(builder, f"llvm.sqrt.v{kind.lanes}{suffix}", v.type, v)
        return builder.fdiv(m, builder.fadd(root, e))
    double = kind.dtype.bitwidth == 64
    half, one = _const(kind, 0.5), _const(kind, 1.0)
    # Below it an estimate is no number; its root is nothing beside e.
    v = _max(builder, v, _const(kind, 1e-290 if double else 1e-36))
    y = _estimate(builder, "rsqrt", v)
    s, h = builder.fmul(v, y), builder.fmul(half, y)
    rest = _fma(builder, builder.fneg(s), h, half)
    s = _fma(builder, s, rest, s)
    if double:
        h = _fma(builder, h, rest, h)
        s = _fma(builder, s, _fma(builder, builder.fneg(s), h, half), s)
    d = builder.fadd(s, e)
    r = _estimate(builder, "rcp", d)
    for _ in range(2 if double else 1):
        r = _fma(builder, r, _fma(builder, builder.fneg(d), r, one), r)
    return builder.fmul(m, r)


root_quotient = _elementwise(
    "root_quotient",
    "m / (sqrt(v) + e), within 2 ulp; v >= 0, and e well above the root of the smallest number.",
    lambda builder, kind, m, v, e: [
        _root_quotient(builder, kind, *x) for x in zip(m, v, e, strict=True)
    ],
)
fma = _elementwise(
    "fma",
    "a * b + c with one rounding.",
    lambda builder, kind, a, b, c: [_fma(builder, *x) for x in zip(a, b, c, strict=True)],
)


@njit(forceinline=True, **OPTIONS)
def move(array, low, M, V, index, g, numbers, rule, coupled, decoupled, compensated):
    """One vector of a factor at `index`, where its moments stand in M and V too."""
    rate, first, second, epsilon, joined, beside = numbers
    old = load_like(array, index, g)
    if coupled:
        g = fma(old, joined, g)
    if rule == SCALED:
        change = mul(g, rate)
    elif rule == ADAM:
        m = fma(load_like(M, index, g), first, g)
        store(M, index, m)
        v = fma(load_like(V, index, g), second, mul(g, g))
        store(V, index, v)
        change = mul(root_quotient(m, v, epsilon), rate)
    else:
        m = fma(load_like(M, index, g), first, g)
        store(M, index, m)
        if rule == NESTEROV:
            m = fma(m, first, g)
        change = mul(m, rate)
    if decoupled:
        change = fma(old, beside, change)
    add_change(array, low, index, change, compensated)


@njit(forceinline=True, **OPTIONS)
def numbers_of(numbers, at):
    """The numbers of an epoch and a factor, which then live in registers."""
    return (
        numbers[at], numbers[at + 1], numbers[at + 2], numbers[at + 3], numbers[at + 4],
        numbers[at + 5],
    )  # fmt: skip


@njit(forceinline=True, **OPTIONS)
def _feature(
    W, H, H_low, H_m, H_v, dW, R, block, R_block, wide, n_wide, size, zero, numbers, rule, coupled,
    decoupled, compensated,
):  # fmt: skip
    """A feature of all samples: the sums of r h, and its rows of H move."""
    native = n_lanes(zero)
    sums, w = zero, splats(W, 0, zero)
    h, r = 0, 0
    for i in range(0, n_wide + wide, wide):
        last = i == n_wide
        for j in range(0, size - n_wide if last else wide, native):
            both = both_products(sums, w, R, r + j, wide, load_like(H, h + j, zero))
            sums = both[:-1]
            move(
                H, H_low, H_m, H_v, h + j, both[-1], numbers, rule, coupled, decoupled,
                compensated,
            )  # fmt: skip
        h += block
        r += R_block
    store_members(dW, 0, native, sums)


@njit(forceinline=True, **OPTIONS)
def ruled_epoch(
    W, H, H_low, H_m, H_v, dW, R, D, labels, steps, d, block, size, group, classes, narrow_group,
    narrow_classes, limit, numbers, rule, coupled, decoupled, compensated,
):  # fmt: skip
    """All samples: their H moves, `dW` gets their sums."""
    wide, native, K = n_lanes(group), n_lanes(narrow_group), len(group)
    _differences(W, D, d, narrow_classes, native)
    n_wide = size // wide * wide
    for i in range(0, n_wide, wide):
        _residual_block(
            D, address(H, i // wide * block), address(R, i * K), address(labels, i),
            address(steps, i), d, wide, group, classes, limit,
        )  # fmt: skip
    for i in range(n_wide, size, native):
        _residual_block(
            D, address(H, n_wide // wide * block + i - n_wide),
            address(R, n_wide * K + i - n_wide), address(labels, i), address(steps, i), d, wide,
            narrow_group, narrow_classes, limit,
        )  # fmt: skip
    for f in range(d):
        at = f * wide
        _feature(
            address(W, f * K), address(H, at), address(H_low, at), address(H_m, at),
            address(H_v, at), address(dW, f * K * native), R, block, K * wide, wide, n_wide, size,
            narrow_group, numbers, rule, coupled, decoupled, compensated,
        )  # fmt: skip
