"""Explicit LLVM vectors for Numba: values that live in registers, and arithmetic on them.

A vector of `lanes` floats is a Numba value of type `Vector(dtype, lanes)`; `register_model`
gives it an LLVM vector type, and every function below is an `@intrinsic` that emits one or
a few LLVM instructions on it. `lanes` may be any power of two: LLVM splits a vector that is
wider than a register. Wherever a vector may stand, a tuple of vectors may stand too, and
the operation is applied to each member (a lone vector or scalar is paired with every one),
written instruction by instruction across the members so that their chains overlap.

`exp` evaluates minimax polynomials (found by Remez exchange in 60 digits): x = n log 2 + r,
|r| <= log 2 / 2, of degree 11 (float64, error 4e-18 before rounding) or 6 (float32, 3e-9); the
result is within 1 ulp. It needs |x| <= EXP_LIMIT; `exp_wide` takes any x below it, subnormal
results and -inf included. Memory, labels and products are in `simd_blocks`.

Multiplications and additions are never reassociated: what is written is what is computed.
"""

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

# Largest |x| for which `exp` is within 1 ulp and sums of thousands of terms do not overflow.
EXP_LIMIT = {"float32": 80.0, "float64": 700.0}


class Vector(types.Type):
    """Numba's type of a vector of `lanes` floats."""

    def __init__(self, dtype, lanes):
        self.dtype = dtype
        self.lanes = lanes
        super().__init__(name=f"Vector({dtype}, {lanes})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        element = ir.DoubleType() if kind.dtype == types.float64 else ir.FloatType()
        super().__init__(manager, kind, ir.VectorType(element, kind.lanes))


# The following functions work on `ir` values; `kind` is the Numba type of their vectors.


def _llvm_type(kind):
    element = ir.DoubleType() if kind.dtype == types.float64 else ir.FloatType()
    return ir.VectorType(element, kind.lanes)


def _int_type(kind):
    return ir.VectorType(ir.IntType(kind.dtype.bitwidth), kind.lanes)


def _const(kind, value):
    vector = _llvm_type(kind)
    return ir.Constant(vector, [ir.Constant(vector.element, value)] * kind.lanes)


def _int_const(kind, value):
    vector = _int_type(kind)
    return ir.Constant(vector, [ir.Constant(vector.element, value)] * kind.lanes)


def _fma(builder, a, b, c):
    vector = a.type
    suffix = "f64" if isinstance(vector.element, ir.DoubleType) else "f32"
    name = f"llvm.fma.v{vector.count}{suffix}"
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(vector, [vector] * 3), name
    )
    return builder.call(function, [a, b, c])


def _splat(builder, kind, scalar):
    vector = _llvm_type(kind)
    one = builder.insert_element(
        ir.Constant(vector, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0)
    )
    mask = ir.Constant(ir.VectorType(ir.IntType(32), kind.lanes), [0] * kind.lanes)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), mask)


def _max(builder, a, b):
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _unpack(builder, kind, value):
    """The vectors of a value: itself, or a tuple's members."""
    if isinstance(kind, types.UniTuple):
        return [builder.extract_value(value, i) for i in range(kind.count)]
    return [value]


def _pack(context, builder, kind, values):
    if isinstance(kind, types.UniTuple):
        return context.make_tuple(builder, kind, values)
    return values[0]


def _vector_of(kind):
    """The `Vector` type of a vector or of a tuple of vectors; None for anything else."""
    member = kind.dtype if isinstance(kind, types.UniTuple) else kind
    return member if isinstance(member, Vector) else None


def _broadcast(context, builder, kinds, values):
    """Lists of equal length: tuples unpacked, lone vectors and scalars repeated."""
    vector = next(v for v in map(_vector_of, kinds) if v is not None)
    count = max(k.count if isinstance(k, types.UniTuple) else 1 for k in kinds)
    lists = []
    for kind, value in zip(kinds, values, strict=True):
        if _vector_of(kind) is None:
            scalar = context.cast(builder, value, kind, vector.dtype)
            members = [_splat(builder, vector, scalar)]
        else:
            members = _unpack(builder, kind, value)
        lists.append(members if len(members) == count else members * count)
    return lists


def _elementwise(name, doc, emit):
    """An intrinsic that applies `emit(builder, kind, *lists)` to vectors and tuples alike."""
    arity = emit.__code__.co_argcount - 2

    def result_kind(kinds):
        tuples = [k for k in kinds if isinstance(k, types.UniTuple)]
        if tuples:
            return tuples[0]
        return next((k for k in kinds if isinstance(k, Vector)), None)

    def build(kinds):
        result = result_kind(kinds)
        if result is None:
            return None

        def codegen(context, builder, signature, args):
            lists = _broadcast(context, builder, signature.args, args)
            out = emit(builder, _vector_of(result), *lists)
            return _pack(context, builder, result, out)

        return result(*kinds), codegen

    if arity == 1:

        def typing(typingctx, a):
            return build((a,))
    elif arity == 2:

        def typing(typingctx, a, b):
            return build((a, b))
    else:

        def typing(typingctx, a, b, c):
            return build((a, b, c))

    typing.__name__ = typing.__qualname__ = name
    typing.__doc__ = doc
    return intrinsic(typing)


def _emit_exp(builder, kind, xs, wide):
    double = kind.dtype == types.float64
    magic = 1.5 * 2.0 ** (52 if double else 23)
    mantissa, bias = (52, 1023) if double else (23, 127)
    high, low = _LOG2[str(kind.dtype)]
    if wide:
        floor = _const(kind, -750.0 if double else -110.0)
        xs = [_max_keep_nan(builder, x, floor) for x in xs]
    ks = [_fma(builder, x, _const(kind, 1.0 / np.log(2.0)), _const(kind, magic)) for x in xs]
    ns = [builder.fsub(k, _const(kind, magic)) for k in ks]
    rs = [_fma(builder, n, _const(kind, -high), x) for n, x in zip(ns, xs, strict=True)]
    rs = [_fma(builder, n, _const(kind, -low), r) for n, r in zip(ns, rs, strict=True)]
    ps = _polynomial(builder, kind, rs, _EXP[str(kind.dtype)])
    integer, shift = _int_type(kind), _int_const(kind, mantissa)
    if not wide:
        # The low bits of k hold n; added to the exponent they scale by 2^n, and a NaN stays.
        out = []
        for k, p in zip(ks, ps, strict=True):
            n = builder.shl(builder.bitcast(k, integer), shift)
            bits = builder.add(builder.bitcast(p, integer), n)
            out.append(builder.bitcast(bits, _llvm_type(kind)))
        return out
    # Two factors, neither of them subnormal, so that the product underflows gradually.
    out = []
    for n, p in zip(ns, ps, strict=True):
        whole = builder.fptosi(n, integer)
        half = builder.ashr(whole, _int_const(kind, 1))
        for part in (half, builder.sub(whole, half)):
            bits = builder.shl(builder.add(part, _int_const(kind, bias)), shift)
            p = builder.fmul(p, builder.bitcast(bits, _llvm_type(kind)))
        out.append(p)
    return out


def _max_keep_nan(builder, x, floor):
    return builder.select(builder.fcmp_ordered("<", x, floor), floor, x)


def _polynomial(builder, kind, xs, coefficients):
    """Horner's rule, lowest coefficient first, one coefficient at a time over all of xs."""
    out = [_const(kind, coefficients[-1])] * len(xs)
    for c in reversed(coefficients[:-1]):
        out = [_fma(builder, p, x, _const(kind, c)) for p, x in zip(out, xs, strict=True)]
    return out


# log 2 in two parts, the first with enough zeros at its end that n times it is exact.
_LOG2 = {
    "float64": (0.693147180369123816490, 1.90821492927058770002e-10),
    "float32": (0.693359375, -2.12194440e-4),
}
_EXP = {
    "float64": [
        1.0,
        1.0,
        0.5000000000000011,
        0.16666666666666413,
        0.04166666666653005,
        0.00833333333349459,
        0.0013888888943662573,
        0.00019841269506377647,
        2.4801493061586292e-05,
        2.7557586481251375e-06,
        2.763026285079372e-07,
        2.500005093427801e-08,
    ],
    "float32": [
        1.0,
        1.0,
        0.4999999403953552,
        0.1666652113199234,
        0.04166838899254799,
        0.008368724025785923,
        0.0013814583653584123,
    ],
}
add = _elementwise(
    "add",
    "a + b.",
    lambda builder, kind, a, b: [builder.fadd(p, q) for p, q in zip(a, b, strict=True)],
)
sub = _elementwise(
    "sub",
    "a - b.",
    lambda builder, kind, a, b: [builder.fsub(p, q) for p, q in zip(a, b, strict=True)],
)
mul = _elementwise(
    "mul",
    "a * b.",
    lambda builder, kind, a, b: [builder.fmul(p, q) for p, q in zip(a, b, strict=True)],
)
div = _elementwise(
    "div",
    "a / b.",
    lambda builder, kind, a, b: [builder.fdiv(p, q) for p, q in zip(a, b, strict=True)],
)
fma = _elementwise(
    "fma",
    "a * b + c with one rounding.",
    lambda builder, kind, a, b, c: [_fma(builder, *x) for x in zip(a, b, c, strict=True)],
)
maximum = _elementwise(
    "maximum",
    "The larger of a and b; b where either is NaN.",
    lambda builder, kind, a, b: [_max(builder, p, q) for p, q in zip(a, b, strict=True)],
)
exp = _elementwise(
    "exp",
    "e^x within 1 ulp for |x| <= EXP_LIMIT; NaN stays NaN.",
    lambda builder, kind, xs: _emit_exp(builder, kind, xs, wide=False),
)
exp_wide = _elementwise(
    "exp_wide",
    "e^x for any x <= EXP_LIMIT: subnormal results and e^-inf = 0 too; NaN stays NaN.",
    lambda builder, kind, xs: _emit_exp(builder, kind, xs, wide=True),
)


def _literal(kind):
    return kind.literal_value if isinstance(kind, types.IntegerLiteral) else None


@intrinsic
def zeros(typingctx, array, count, lanes):
    """A tuple of `count` zero vectors of `array`'s dtype."""
    if _literal(count) is None or _literal(lanes) is None:
        return None
    kind = Vector(array.dtype, _literal(lanes))
    result = types.UniTuple(kind, _literal(count))

    def codegen(context, builder, signature, args):
        zero = _const(kind, 0.0)
        return context.make_tuple(builder, result, [zero] * result.count)

    return result(array, count, lanes), codegen


@intrinsic
def n_lanes(typingctx, values):
    """Lanes of a vector, or of each member of a tuple."""
    count = _vector_of(values).lanes

    def codegen(context, builder, signature, args):
        return ir.Constant(ir.IntType(64), count)

    return types.int64(values), codegen


@intrinsic
def sum_members(typingctx, values):
    """v[0] + v[1] + ... of a tuple, from left to right."""
    kind = _vector_of(values)

    def codegen(context, builder, signature, args):
        members = _unpack(builder, values, args[0])
        total = members[0]
        for member in members[1:]:
            total = builder.fadd(total, member)
        return total

    return kind(values), codegen


@intrinsic
def max_members(typingctx, values):
    """The larger of v[0], v[1], ... of a tuple, lane by lane."""
    kind = _vector_of(values)

    def codegen(context, builder, signature, args):
        members = _unpack(builder, values, args[0])
        largest = members[0]
        for member in members[1:]:
            largest = _max(builder, member, largest)
        return largest

    return kind(values), codegen


@intrinsic
def all_within(typingctx, values, limit):
    """Whether |v| <= limit in every lane of every member; one test, one branch.

    A lane that is NaN may pass: `exp` keeps it NaN.
    """

    def codegen(context, builder, signature, args):
        kind = _vector_of(values)
        members = _unpack(builder, values, args[0])
        integer = _int_type(kind)
        mask = _int_const(kind, (1 << (kind.dtype.bitwidth - 1)) - 1)
        magnitudes = [
            builder.bitcast(builder.and_(builder.bitcast(v, integer), mask), v.type)
            for v in members
        ]
        largest = magnitudes[0]
        for magnitude in magnitudes[1:]:
            largest = _max(builder, magnitude, largest)
        bound = context.cast(builder, args[1], limit, kind.dtype)
        above = builder.fcmp_ordered(">", largest, _splat(builder, kind, bound))
        bits = builder.bitcast(above, ir.IntType(kind.lanes))
        return builder.icmp_unsigned("==", bits, ir.Constant(bits.type, 0))

    return types.boolean(values, limit), codegen
