"""`exp` and `log1p` of one number, without a branch, so that LLVM vectorises a loop of them.

    exp    x = n log 2 + r, |r| <= log 2 / 2, e^x = 2^n (1 + r + r^2 q(r)); q from a Chebyshev
           fit in 40 digits, of degree 9 (float64, error 2e-17) or 4 (float32, 8e-9).
           For x <= 60; below the smallest normal number of the dtype the result is 0.
    log1p  for x >= 0: u = 1 + x = 2^k m, m in [sqrt 1/2, sqrt 2), s = (m-1) / (m+1),
           log m = 2s + s^3 q(s^2); what the rounding of u lost, divided by u, is added back.
           (Numba divides without a branch under error_model="numpy" only: compile so.)
           Degree 6 (float64, 1e-17) or 3 (float32, 1e-11).

Both stay within 2 ulp, and NaN stays NaN. A number is rounded to an integer by adding and
subtracting 1.5 * 2^52 (2^23), which is why these must never be compiled with "reassoc".
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

_INTEGER = {types.float32: types.int32, types.float64: types.int64}
_FLOAT = {integer: real for real, integer in _INTEGER.items()}


@intrinsic
def bits_of(typingctx, x):
    """The bits of a float as an integer of the same width."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(x.bitwidth))

    return _INTEGER[x](x), codegen


@intrinsic
def float_of(typingctx, bits):
    """The float of these bits."""
    real = _FLOAT[bits]

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(real))

    return real(bits), codegen


def exp(x):
    """e^x; a compiled function only."""
    raise NotImplementedError


def log1p(x):
    """log(1 + x); a compiled function only."""
    raise NotImplementedError


@overload(exp, inline="always")
def _exp(x):
    if x == types.float32:
        f, i = np.float32, np.int32
        magic, mantissa, floor = f(1.5 * 2.0**23), i(23), f(-87.33)
        inverse, high, low = f(1.4426950408889634), f(0.693359375), f(-2.12194440e-4)
        q0, q1, q2 = f(0.5), f(0.16666576305560638), f(0.04166655376256764)
        q3, q4 = f(0.0083632927530306023), f(0.0013926325618133462)
        zero, one = f(0.0), f(1.0)

        def exp32(x):
            shifted = x * inverse + magic
            n = shifted - magic
            r = (x - n * high) - n * low
            q = (((q4 * r + q3) * r + q2) * r + q1) * r + q0
            p = one + (r + (r * r) * q)
            # The low bits of `shifted` are n; moved to the exponent they multiply by 2^n.
            e = float_of(i(bits_of(p) + i(bits_of(shifted) << mantissa)))
            return zero if x < floor else e

        return exp32
    if x == types.float64:

        def exp64(x):
            shifted = x * 1.4426950408889634 + 6755399441055744.0
            n = shifted - 6755399441055744.0
            r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10
            q = 2.5100569275813683e-8
            q = q * r + 2.7620327428268238e-7
            q = q * r + 2.7557268072890098e-6
            q = q * r + 2.4801520792572693e-5
            q = q * r + 1.9841269863303223e-4
            q = q * r + 1.3888888917538296e-3
            q = q * r + 8.3333333333300118e-3
            q = q * r + 4.1666666666623477e-2
            q = q * r + 1.6666666666666667e-1
            q = q * r + 0.5
            p = 1.0 + (r + (r * r) * q)
            e = float_of(bits_of(p) + (bits_of(shifted) << 52))
            return 0.0 if x < -708.39 else e

        return exp64
    return None


@overload(log1p, inline="always")
def _log1p(x):
    if x == types.float32:
        f, i = np.float32, np.int32
        one, two = f(1.0), f(2.0)
        root, mantissa, mask = i(0x3F3504F3), i(23), i(0x007FFFFF)
        offset, bias = i(0x3F800000 - 0x3F3504F3), i(127)
        high, low = f(0.693359375), f(-2.12194440e-4)
        q0, q1, q2 = f(0.6666666655404201), f(0.40000122211810650), f(0.28550778633191965)
        q3 = f(0.23331614471843499)

        def log1p32(x):
            u = one + x
            lost = min(x, one) - (u - max(x, one))
            bits = i(bits_of(u) + offset)
            k = f(i((bits >> mantissa) - bias))
            m = float_of(i(i(bits & mask) + root))
            g = m - one
            s = g / (two + g)
            z = s * s
            # 2s = g - s g, so that the leading term is g itself.
            tail = s * (z * (((q3 * z + q2) * z + q1) * z + q0) - g) + (k * low + lost / u)
            return k * high + (g + tail)

        return log1p32
    if x == types.float64:

        def log1p64(x):
            u = 1.0 + x
            lost = min(x, 1.0) - (u - max(x, 1.0))
            bits = bits_of(u) + (0x3FF0000000000000 - 0x3FE6A09E667F3BCD)
            # An integer below 2^52 becomes a float without a conversion, which AVX2 lacks.
            k = float_of((bits >> 52) | 0x4330000000000000) - (4503599627370496.0 + 1023.0)
            m = float_of((bits & 0x000FFFFFFFFFFFFF) + 0x3FE6A09E667F3BCD)
            g = m - 1.0
            s = g / (2.0 + g)
            z = s * s
            q = 0.14617807153417325
            q = q * z + 0.15331611722055008
            q = q * z + 0.18182892432536871
            q = q * z + 0.22222211089379496
            q = q * z + 0.28571428626253838
            q = q * z + 0.39999999999898890
            q = q * z + 0.66666666666666698
            tail = s * (z * q - g) + (k * 1.90821492927058770002e-10 + lost / u)
            return k * 0.693147180369123816490 + (g + tail)

        return log1p64
    return None
