"""Loads and stores, labels, and products with a matrix for a block of samples.

The vectors and tuples of vectors are those of `simd`. Samples lie in lanes, classes are the
members of a tuple. Indices count floats, from the beginning of a contiguous array or from an
address in it; no alignment beyond that of one float is assumed.
"""

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from fastnc.kernels.cpu.emitter import sum_each
from fastnc.kernels.cpu.processor import N_REGISTERS, native_lanes
from fastnc.kernels.cpu.simd import (
    Vector,
    _const,
    _fma,
    _llvm_type,
    _splat,
    _unpack,
    _vector_of,
)


def _pointer(context, builder, array_type, array, index_type, index):
    if isinstance(array_type, types.CPointer):
        data = array
    else:
        data = context.make_array(array_type)(context, builder, array).data
    index = context.cast(builder, index, index_type, types.intp)
    return builder.gep(data, [index])


def _access_size(array_type):
    return array_type.dtype.bitwidth // 8


@intrinsic
def address(typingctx, array, index):
    """The address of array[index]. Numba counts references to arrays, but not to addresses.

    The caller must keep the array alive.
    """

    def codegen(context, builder, signature, args):
        array_type, index_type = signature.args
        return _pointer(context, builder, array_type, args[0], index_type, args[1])

    return types.CPointer(array.dtype)(array, index), codegen


@intrinsic
def load_like(typingctx, array, index, like):
    """As many floats as `like` has lanes, from a flat index on."""
    kind = _vector_of(like)

    def codegen(context, builder, signature, args):
        array_type, index_type, _ = signature.args
        pointer = _pointer(context, builder, array_type, args[0], index_type, args[1])
        pointer = builder.bitcast(pointer, _llvm_type(kind).as_pointer())
        return builder.load(pointer, align=_access_size(array_type))

    return kind(array, index, like), codegen


@intrinsic
def store(typingctx, array, index, value):
    """Write the lanes of a vector to a contiguous array from a flat index on."""
    kind = value

    def codegen(context, builder, signature, args):
        array_type, index_type, _ = signature.args
        pointer = _pointer(context, builder, array_type, args[0], index_type, args[1])
        pointer = builder.bitcast(pointer, _llvm_type(kind).as_pointer())
        builder.store(args[2], pointer, align=_access_size(array_type))
        return context.get_dummy_value()

    return types.none(array, index, value), codegen


# The entry of the label. `labels` holds each lane's label as a float.


def _is_label(builder, kind, labels, k):
    return builder.fcmp_ordered("==", labels, _const(kind, float(k)))


@intrinsic
def label_gaps(typingctx, logits, labels):
    """From K logits the K - 1 gaps z_j - z_y, j != y: that of the last class is at place y."""
    kind = _vector_of(logits)
    result = types.UniTuple(kind, logits.count - 1)

    def codegen(context, builder, signature, args):
        zs = _unpack(builder, logits, args[0])
        last = zs[-1]
        own = last
        masks = [_is_label(builder, kind, args[1], k) for k in range(len(zs) - 1)]
        for mask, z in zip(masks, zs[:-1], strict=True):
            own = builder.select(mask, z, own)
        gaps = [
            builder.fsub(builder.select(mask, last, z), own)
            for mask, z in zip(masks, zs[:-1], strict=True)
        ]
        return context.make_tuple(builder, result, gaps)

    return result(logits, labels), codegen


@intrinsic
def label_gaps_of_differences(typingctx, differences, labels):
    """`label_gaps` of K logits from the K - 1 differences z_j - z_K to the last one."""
    kind = _vector_of(differences)

    def codegen(context, builder, signature, args):
        own = zero = _const(kind, 0.0)
        zs = _unpack(builder, differences, args[0])
        masks = [_is_label(builder, kind, args[1], k) for k in range(len(zs))]
        for mask, z in zip(masks, zs, strict=True):
            own = builder.select(mask, z, own)
        gaps = [
            builder.fsub(builder.select(mask, zero, z), own)
            for mask, z in zip(masks, zs, strict=True)
        ]
        return context.make_tuple(builder, differences, gaps)

    return differences(differences, labels), codegen


@intrinsic
def label_entries(typingctx, others, own, labels):
    """The inverse arrangement: K entries from the K - 1 of j != y and the one of the label."""
    kind = _vector_of(others)
    result = types.UniTuple(kind, others.count + 1)

    def codegen(context, builder, signature, args):
        entries = _unpack(builder, others, args[0])
        own = last = args[1]
        out = []
        for k, entry in enumerate(entries):
            mask = _is_label(builder, kind, args[2], k)
            out.append(builder.select(mask, own, entry))
            last = builder.select(mask, entry, last)
        return context.make_tuple(builder, result, [*out, last])

    return result(others, own, labels), codegen


# Products of a block of samples with a row of a matrix; one broadcast serves every lane.


@intrinsic
def add_outer(typingctx, sums, array, index, h):
    """sums[k] + array[index + k] * h for every member of the tuple `sums`."""
    kind = _vector_of(sums)

    def codegen(context, builder, signature, args):
        _, array_type, index_type, _ = signature.args
        base = _pointer(context, builder, array_type, args[1], index_type, args[2])
        out = []
        for k, total in enumerate(_unpack(builder, sums, args[0])):
            scalar = builder.load(builder.gep(base, [ir.Constant(ir.IntType(64), k)]))
            out.append(_fma(builder, _splat(builder, kind, scalar), args[3], total))
        return context.make_tuple(builder, sums, out)

    return sums(sums, array, index, h), codegen


@intrinsic
def splats(typingctx, array, index, like):
    """array[index + k] in every lane, for each k of the tuple `like`."""
    kind = _vector_of(like)

    def codegen(context, builder, signature, args):
        array_type, index_type, _ = signature.args
        base = _pointer(context, builder, array_type, args[0], index_type, args[1])
        out = []
        for k in range(like.count):
            scalar = builder.load(builder.gep(base, [ir.Constant(ir.IntType(64), k)]))
            out.append(_splat(builder, kind, scalar))
        return context.make_tuple(builder, like, out)

    return like(array, index, like), codegen


@intrinsic
def both_products(typingctx, sums, factors, array, index, stride, h):
    """sums[k] + r_k h for every k and, as one more member, sum_k factors[k] r_k.

    r_k is the vector at array[index + k * stride].
    """
    kind = _vector_of(sums)
    result = types.UniTuple(kind, sums.count + 1)

    def codegen(context, builder, signature, args):
        _, _, array_type, index_type, _, _ = signature.args
        base = _pointer(context, builder, array_type, args[2], index_type, args[3])
        out, total = [], None
        for k in range(sums.count):
            place = builder.gep(base, [builder.mul(args[4], ir.Constant(args[4].type, k))])
            place = builder.bitcast(place, _llvm_type(kind).as_pointer())
            r = builder.load(place, align=_access_size(array_type))
            factor = builder.extract_value(args[1], k)
            updated = _fma(builder, r, args[5], builder.extract_value(args[0], k))
            total = builder.fmul(factor, r) if k == 0 else _fma(builder, factor, r, total)
            updated, total = _settled(builder, updated, total)
            out.append(updated)
        return context.make_tuple(builder, result, [*out, total])

    return result(sums, factors, array, index, stride, h), codegen


def _settled(builder, a, b):
    """a and b, computed before whatever is loaded next.

    LLVM would load every r_k first and, where registers are few, spill the factors for them.
    """
    if N_REGISTERS > 16:
        return a, b
    pair = ir.LiteralStructType([a.type, b.type])
    kind = ir.FunctionType(pair, [a.type, b.type])
    both = builder.asm(kind, "", "=x,=x,0,1,~{memory}", [a, b], True)
    return builder.extract_value(both, 0), builder.extract_value(both, 1)


@intrinsic
def load_members(typingctx, array, index, stride, like):
    """The vectors at array[index + k * stride], as a tuple like `like`."""
    kind = _vector_of(like)

    def codegen(context, builder, signature, args):
        array_type, index_type, *_ = signature.args
        base = _pointer(context, builder, array_type, args[0], index_type, args[1])
        out = []
        for k in range(like.count):
            place = builder.gep(base, [builder.mul(args[2], ir.Constant(args[2].type, k))])
            place = builder.bitcast(place, _llvm_type(kind).as_pointer())
            out.append(builder.load(place, align=_access_size(array_type)))
        return context.make_tuple(builder, like, out)

    return like(array, index, stride, like), codegen


@intrinsic
def store_members(typingctx, array, index, stride, values):
    """Write the vectors of a tuple to array[index + k * stride]."""
    kind = _vector_of(values)

    def codegen(context, builder, signature, args):
        array_type, index_type, *_ = signature.args
        base = _pointer(context, builder, array_type, args[0], index_type, args[1])
        for k, value in enumerate(_unpack(builder, values, args[3])):
            place = builder.gep(base, [builder.mul(args[2], ir.Constant(args[2].type, k))])
            place = builder.bitcast(place, _llvm_type(kind).as_pointer())
            builder.store(value, place, align=_access_size(array_type))
        return context.get_dummy_value()

    return types.none(array, index, stride, values), codegen


@intrinsic
def sum_rows(typingctx, array, index):
    """The sums of the w vectors of w floats from array[index * w] on; w the native lanes."""
    width = native_lanes(str(array.dtype))
    kind = Vector(array.dtype, width)

    def codegen(context, builder, signature, args):
        array_type, index_type = signature.args
        first = builder.mul(args[1], ir.Constant(args[1].type, width))
        base = _pointer(context, builder, array_type, args[0], index_type, first)
        rows = []
        for k in range(width):
            place = builder.gep(base, [ir.Constant(ir.IntType(64), k * width)])
            place = builder.bitcast(place, _llvm_type(kind).as_pointer())
            rows.append(builder.load(place, align=_access_size(array_type)))
        return sum_each(builder, rows)

    return kind(array, index), codegen
