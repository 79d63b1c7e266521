"""What Adam multiplies means of gradients with, c / (sqrt(v) + e), of several vectors together.

A processor with AVX-512 takes 18 and 16 cycles for a root and a quotient of one vector of float64
(12 and 10 of float32), more than for all else of it. Here all of it is 16 operations, two a cycle:

    roots       from the estimate of 14 bits, r, s = v r: s times the series of 1 / sqrt(s r) about
                1, to the third power of float64 and to the first of float32
    quotients   of eight sums (float32: two) one, c / (d_1 ... d_8), which the others share out:
                c / d_1 = (c / (d_1 d_2)) d_2. In float64 it is NaN where their product leaves
                the range of floats: from sums of 1e36 on.

Results are within 8 ulp (`test_compiled_rules`). A vector's steps wait for each other for a hundred
cycles: all vectors take each step side by side.
"""

from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from fastnc.kernels.cpu.processor import VECTOR_BYTES
from fastnc.kernels.cpu.simd import _const, _fma, _polynomial, _splat, _unpack, _vector_of

# Of (1 - w)^(-1/2) in z = 1 - w: Taylor's at w = 0, lowest power first.
_SERIES = {64: (35 / 16, -35 / 16, 21 / 16, -5 / 16), 32: (3 / 2, -1 / 2)}
# Vectors whose quotients are one.
_SHARED = {64: 8, 32: 2}
# A product beyond the largest float over this one is refused, so that 1 / product is normal.
_TOO_LARGE = 2.0**66


def _call(builder, name, result, *arguments):
    kind = ir.FunctionType(result, [x.type for x in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _estimates(builder, vs):
    """AVX-512's 14 bits of 1 / sqrt(v)."""
    x = vs[0].type
    suffix = "pd" if isinstance(x.element, ir.DoubleType) else "ps"
    zero, every = ir.Constant(x, [0.0] * x.count), ir.Constant(ir.IntType(x.count), -1)
    return [_call(builder, f"llvm.x86.avx512.rsqrt14.{suffix}.512", x, v, zero, every) for v in vs]


def _sums(builder, kind, vs, e, wide):
    """sqrt(v) + e of each vector."""
    if not wide:
        name = f"llvm.sqrt.v{kind.lanes}f{kind.dtype.bitwidth}"
        return [builder.fadd(_call(builder, name, v.type, v), e) for v in vs]
    rs = _estimates(builder, vs)
    ss = [builder.fmul(v, r) for v, r in zip(vs, rs, strict=True)]
    zs = [builder.fmul(s, r) for s, r in zip(ss, rs, strict=True)]
    ps = _polynomial(builder, kind, zs, _SERIES[kind.dtype.bitwidth])
    return [_fma(builder, s, p, e) for s, p in zip(ss, ps, strict=True)]


def _quotients(builder, kind, ds, c):
    """c / d of each vector, by one quotient of all."""
    levels = [ds]
    while len(levels[-1]) > 1:
        last = levels[-1]
        levels.append([builder.fmul(a, b) for a, b in zip(last[::2], last[1::2], strict=True)])
    product = levels.pop()[0]
    y = builder.fdiv(c, product)
    if len(ds) > 2:
        scaled = builder.fmul(product, _const(kind, _TOO_LARGE))
        y = _fma(builder, scaled, _const(kind, 0.0), y)
    shares = [y]
    for level in levels[::-1]:
        shares = [builder.fmul(shares[i // 2], level[i ^ 1]) for i in range(len(level))]
    return shares


@intrinsic
def rates_of_adam(typingctx, v, e, c):
    """c / (sqrt(v) + e) of each member of a tuple; v and e well above the smallest number."""
    kind = _vector_of(v)
    bits = kind.dtype.bitwidth
    wide = 8 * VECTOR_BYTES == 512 == kind.lanes * bits

    def codegen(context, builder, signature, args):
        number_e, number_c = (
            _splat(builder, kind, context.cast(builder, a, t, kind.dtype))
            for a, t in zip(args[1:], signature.args[1:], strict=True)
        )
        ds = _sums(builder, kind, _unpack(builder, v, args[0]), number_e, wide)
        out, shared = [], _SHARED[bits] if wide else 1
        while len(out) < len(ds):
            n = shared
            while n > len(ds) - len(out):
                n //= 2
            out += _quotients(builder, kind, ds[len(out) : len(out) + n], number_c)
        return context.make_tuple(builder, v, out)

    return v(v, e, c), codegen


@intrinsic
def least(typingctx, g):
    """A number beside whose root the smallest epsilon is large, in every lane."""
    kind = g.dtype

    def codegen(context, builder, signature, args):
        value = _const(kind, 1e-290 if kind.dtype.bitwidth == 64 else 1e-36)
        return context.make_tuple(builder, g, [value] * g.count)

    return g(g), codegen
