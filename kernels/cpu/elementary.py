"""`exp` and `log1p` as straight LLVM code, for a number or for a vector of them.

    exp    x = n log 2 + r, |r| <= log 2 / 2, e^x = 2^n (1 + r + r^2 q(r)); q from a Chebyshev
           fit in 40 digits, of degree 9 (float64, error 2e-17) or 4 (float32, 8e-9).
           For x <= 60; below the smallest normal number of the dtype the result is 0.
    log1p  for x >= 0: u = 1 + x = 2^k m, m in [sqrt 1/2, sqrt 2), s = (m-1) / (m+1),
           log m = 2s + s^3 q(s^2); what the rounding of u lost, divided by u, is added back.
           Degree 6 (float64, 1e-17) or 3 (float32, 1e-11).

Both stay within 1 ulp of exact, and NaN stays NaN. A number is rounded to an integer by adding
and subtracting 1.5 * 2^52 (2^23); no instruction here may be reassociated, and none is. The
multiply-adds are LLVM's `fmuladd`: fused where the processor can.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_EXP = {
    32: (
        0.5,
        0.16666576305560638,
        0.04166655376256764,
        0.0083632927530306023,
        0.0013926325618133462,
    ),
    64: (
        0.5,
        1.6666666666666667e-1,
        4.1666666666623477e-2,
        8.3333333333300118e-3,
        1.3888888917538296e-3,
        1.9841269863303223e-4,
        2.4801520792572693e-5,
        2.7557268072890098e-6,
        2.7620327428268238e-7,
        2.5100569275813683e-8,
    ),
}
_LOG = {
    32: (0.6666666655404201, 0.40000122211810650, 0.28550778633191965, 0.23331614471843499),
    64: (
        0.66666666666666698,
        0.39999999999898890,
        0.28571428626253838,
        0.22222211089379496,
        0.18182892432536871,
        0.15331611722055008,
        0.14617807153417325,
    ),
}
# log 2 in two parts, the first with so few digits that n times it is exact.
_LOG2 = {
    32: (0.693359375, -2.12194440e-4),
    64: (0.693147180369123816490, 1.90821492927058770002e-10),
}
_MAGIC = {32: 1.5 * 2.0**23, 64: 1.5 * 2.0**52}
_MANTISSA = {32: 23, 64: 52}
_BIAS = {32: 127, 64: 1023}
_SQRT_HALF = {32: 0x3F3504F3, 64: 0x3FE6A09E667F3BCD}
_LEAST = {32: -87.33, 64: -708.39}


class Elementary:
    """Arithmetic on values of one LLVM type, float or vector of floats."""

    def __init__(self, builder, kind):
        self.builder = builder
        self.kind = kind
        vector = isinstance(kind, ir.VectorType)
        element = kind.element if vector else kind
        self.bits = 32 if isinstance(element, ir.FloatType) else 64
        word = ir.IntType(self.bits)
        self.word = ir.VectorType(word, kind.count) if vector else word
        self.suffix = (f"v{kind.count}" if vector else "") + f"f{self.bits}"

    def real(self, value):
        if isinstance(self.kind, ir.VectorType):
            return ir.Constant(self.kind, [ir.Constant(self.kind.element, value)] * self.kind.count)
        return ir.Constant(self.kind, value)

    def integer(self, value):
        if isinstance(self.word, ir.VectorType):
            return ir.Constant(self.word, [ir.Constant(self.word.element, value)] * self.word.count)
        return ir.Constant(self.word, value)

    def multiply_add(self, a, b, c):
        function = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(self.kind, [self.kind] * 3),
            f"llvm.fmuladd.{self.suffix}",
        )
        return self.builder.call(function, [a, b, c])

    def polynomial(self, coefficients, x):
        value = self.real(coefficients[-1])
        for c in reversed(coefficients[:-1]):
            value = self.multiply_add(value, x, self.real(c))
        return value

    def estrin(self, coefficients, xs, squares):
        """The polynomial of each x: a shorter dependency chain than Horner's, more operations."""
        c, out = coefficients, []
        for x, power in zip(xs, squares, strict=True):
            terms = [
                self.multiply_add(x, self.real(c[i + 1]), self.real(c[i]))
                for i in range(0, len(c) - 1, 2)
            ]
            if len(c) % 2:
                terms.append(self.real(c[-1]))
            while len(terms) > 1:
                if len(terms) % 2:
                    last = terms.pop()
                    terms[-1] = self.multiply_add(last, power, terms[-1])
                pairs = zip(terms[::2], terms[1::2], strict=True)
                terms = [self.multiply_add(v, power, u) for u, v in pairs]
                power = self.builder.fmul(power, power) if len(terms) > 1 else power
            out.append(terms[0])
        return out

    def exps(self, xs):
        """e^x of each x, in interleaved steps, so that latencies overlap."""
        builder, bits = self.builder, self.bits
        high, low = _LOG2[bits]
        magic, shift = self.real(_MAGIC[bits]), self.integer(_MANTISSA[bits])
        shifted = [self.multiply_add(x, self.real(1.4426950408889634), magic) for x in xs]
        ns = [builder.fsub(s, magic) for s in shifted]
        rs = [self.multiply_add(n, self.real(-high), x) for n, x in zip(ns, xs, strict=True)]
        rs = [self.multiply_add(n, self.real(-low), r) for n, r in zip(ns, rs, strict=True)]
        squares = [builder.fmul(r, r) for r in rs]
        qs = self.estrin(_EXP[bits], rs, squares)
        ps = [self.multiply_add(s, q, r) for s, q, r in zip(squares, qs, rs, strict=True)]
        out = []
        for x, s, p in zip(xs, shifted, ps, strict=True):
            one_more = builder.fadd(self.real(1.0), p)
            # The low bits of `shifted` are n; moved to the exponent they multiply by 2^n.
            power = builder.shl(builder.bitcast(s, self.word), shift)
            e = builder.bitcast(builder.add(builder.bitcast(one_more, self.word), power), self.kind)
            small = builder.fcmp_ordered("<", x, self.real(_LEAST[bits]))
            out.append(builder.select(small, self.real(0.0), e))
        return out

    def exp(self, x):
        return self.exps([x])[0]

    def log1p(self, x):
        builder, bits = self.builder, self.bits
        high, low = _LOG2[bits]
        one, mantissa = self.real(1.0), self.integer(_MANTISSA[bits])
        u = builder.fadd(one, x)
        above = builder.fcmp_ordered(">", x, one)
        large, little = builder.select(above, x, one), builder.select(above, one, x)
        lost = builder.fdiv(builder.fsub(little, builder.fsub(u, large)), u)
        root = _SQRT_HALF[bits]
        word = builder.bitcast(u, self.word)
        moved = builder.add(word, self.integer((_BIAS[bits] << _MANTISSA[bits]) - root))
        exponent = builder.ashr(moved, mantissa)
        # An integer below 2^23 becomes a float by its bits: AVX2 cannot convert 64-bit ones.
        two = 2.0 ** _MANTISSA[bits]
        lifted = builder.or_(exponent, builder.bitcast(self.real(two), self.word))
        k = builder.fsub(builder.bitcast(lifted, self.kind), self.real(two + _BIAS[bits]))
        fraction = builder.and_(moved, self.integer((1 << _MANTISSA[bits]) - 1))
        m = builder.bitcast(builder.add(fraction, self.integer(root)), self.kind)
        g = builder.fsub(m, one)
        s = builder.fdiv(g, builder.fadd(self.real(2.0), g))
        z = builder.fmul(s, s)
        # 2s = g - s g, so that the leading term is g itself.
        inner = builder.fsub(builder.fmul(z, self.polynomial(_LOG[bits], z)), g)
        tail = self.multiply_add(s, inner, self.multiply_add(k, self.real(low), lost))
        return self.multiply_add(k, self.real(high), builder.fadd(g, tail))


def _scalar(name):
    def typing(typingctx, x):
        if x not in (types.float32, types.float64):
            return None

        def codegen(context, builder, signature, args):
            return getattr(Elementary(builder, args[0].type), name)(args[0])

        return x(x), codegen

    typing.__name__ = typing.__qualname__ = name
    return intrinsic(typing)


exp = _scalar("exp")
log1p = _scalar("log1p")
