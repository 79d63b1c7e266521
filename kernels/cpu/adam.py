"""Adam's step of several vectors together: x + c m / (sqrt(v) + e).

A processor with AVX-512 takes 18 and 16 cycles for a root and a quotient of one vector of float64
(12 and 10 of float32), more than for all else of it. What is done here instead keeps two
multiplications a cycle going while its divider works on something else:

    roots       from the estimate of 14 bits, r, s = v r: s times the series of 1 / sqrt(s r) about
                1, to the third power of float64 and to the first of float32; of eight one in four
                (float64) by the processor itself
    quotients   of eight sums (float32: two) one, c / (d_1 ... d_8), which the others share out:
                c / d_1 = (c / (d_1 d_2)) d_2. In float64 it is NaN where their product leaves
                the range of floats: from sums of 1e36 on.

Results are within 8 ulp of m / d (`test_rules`). A vector's steps wait for each other for a hundred
cycles: all vectors take each step side by side.
"""

from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from fastnc.kernels.cpu.processor import VECTOR_BYTES
from fastnc.kernels.cpu.simd import _const, _fma, _splat, _unpack, _vector_of

# Of (1 - w)^(-1/2) in z = 1 - w: Taylor's at w = 0, highest power first.
_SERIES = {64: (-5 / 16, 21 / 16, -35 / 16, 35 / 16), 32: (-1 / 2, 3 / 2)}
# Vectors whose quotients are one; every so many-th root is the processor's.
_SHARED = {64: 8, 32: 2}
_OWN_ROOT = {64: 4, 32: 4}
# A product beyond the largest float over this one is refused, so that 1 / product is normal.
_TOO_LARGE = 2.0**66


def _call(builder, name, result, *arguments):
    kind = ir.FunctionType(result, [x.type for x in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _root(builder, kind, v):
    return _call(builder, f"llvm.sqrt.v{kind.lanes}f{kind.dtype.bitwidth}", v.type, v)


def _estimates(builder, vs):
    """AVX-512's 14 bits of 1 / sqrt(v)."""
    x = vs[0].type
    suffix = "pd" if isinstance(x.element, ir.DoubleType) else "ps"
    zero, every = ir.Constant(x, [0.0] * x.count), ir.Constant(ir.IntType(x.count), -1)
    return [_call(builder, f"llvm.x86.avx512.rsqrt14.{suffix}.512", x, v, zero, every) for v in vs]


def _sums(builder, kind, vs, e):
    """sqrt(v) + e of each vector."""
    bits = kind.dtype.bitwidth
    own = set(range(len(vs)))
    if 8 * VECTOR_BYTES == 512 == kind.lanes * bits:
        own = {i for i in own if i % _OWN_ROOT[bits] == _OWN_ROOT[bits] - 1}
    out = {i: builder.fadd(_root(builder, kind, vs[i]), e) for i in own}
    rest = [i for i in range(len(vs)) if i not in own]
    if rest:
        some = [vs[i] for i in rest]
        rs = _estimates(builder, some)
        ss = [builder.fmul(v, r) for v, r in zip(some, rs, strict=True)]
        zs = [builder.fmul(s, r) for s, r in zip(ss, rs, strict=True)]
        first, *others = (_const(kind, c) for c in _SERIES[bits])
        ps = [first] * len(some)
        for c in others:
            ps = [_fma(builder, p, z, c) for p, z in zip(ps, zs, strict=True)]
        ds = [_fma(builder, s, p, e) for s, p in zip(ss, ps, strict=True)]
        out |= dict(zip(rest, ds, strict=True))
    return [out[i] for i in range(len(vs))]


def _moved(builder, kind, xs, ms, ds, c):
    """x + c m / d of each vector, by one quotient of all."""
    if len(xs) == 1:
        return [_fma(builder, builder.fdiv(ms[0], ds[0]), c, xs[0])]
    levels = [ds]
    while len(levels[-1]) > 1:
        last = levels[-1]
        levels.append([builder.fmul(a, b) for a, b in zip(last[::2], last[1::2], strict=True)])
    product = levels.pop()[0]
    y = builder.fdiv(c, product)
    if len(xs) > 2:
        scaled = builder.fmul(product, _const(kind, _TOO_LARGE))
        y = _fma(builder, scaled, _const(kind, 0.0), y)
    shares = [y]
    for level in levels[:0:-1]:
        shares = [builder.fmul(shares[i // 2], level[i ^ 1]) for i in range(len(level))]
    tops = [builder.fmul(m, ds[i ^ 1]) for i, m in enumerate(ms)]
    return [_fma(builder, tops[i], shares[i // 2], x) for i, x in enumerate(xs)]


@intrinsic
def moved_by_adam(typingctx, x, m, v, e, c):
    """x + c m / (sqrt(v) + e) of each member of a tuple; v and e well above the smallest number."""
    kind = _vector_of(x)
    bits = kind.dtype.bitwidth
    wide = 8 * VECTOR_BYTES == 512 == kind.lanes * bits

    def codegen(context, builder, signature, args):
        xs, ms, vs = (_unpack(builder, x, a) for a in args[:3])
        number_e, number_c = (
            _splat(builder, kind, context.cast(builder, a, t, kind.dtype))
            for a, t in zip(args[3:], signature.args[3:], strict=True)
        )
        ds = _sums(builder, kind, vs, number_e)
        out, shared = [], _SHARED[bits] if wide else 1
        while len(out) < len(xs):
            n = shared
            while n > len(xs) - len(out):
                n //= 2
            part = slice(len(out), len(out) + n)
            out += _moved(builder, kind, xs[part], ms[part], ds[part], number_c)
        return context.make_tuple(builder, x, out)

    return x(x, m, v, e, c), codegen


@intrinsic
def least(typingctx, g):
    """A number beside whose root the smallest epsilon is large, in every lane."""
    kind = g.dtype

    def codegen(context, builder, signature, args):
        value = _const(kind, 1e-290 if kind.dtype.bitwidth == 64 else 1e-36)
        return context.make_tuple(builder, g, [value] * g.count)

    return g(g), codegen
