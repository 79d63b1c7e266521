"""Products of a few rows with a few columns, in double precision by register tiles.

A BLAS packs both operands of a product first, which costs as much as the product itself where it
has a dozen columns. Here the rows were just written and are in the level-1 cache, and the columns
are packed once, by `packed`, in the order in which the tile reads them:

    T[c, i] += <x_i, b_c>     ROWS rows x COLUMNS columns, lanes over features

The tile holds its 12 or 24 sums in registers, of which a processor has 16 or 32, and loads 7 or 11
vectors for 12 or 24 multiply-adds. LANES, ROWS and N_REGISTERS are those of the processor that
Numba compiles for. Bound by the multiply-add rate. Every sum runs in one order, that of the shape.
"""

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastnc.kernels.cpu.aligned import aligned_doubles
from fastnc.kernels.cpu.emitter import LEVEL_1, Emitter, sum_each
from fastnc.kernels.cpu.options import INNER, njit
from fastnc.kernels.cpu.processor import N_REGISTERS, native_lanes
from fastnc.kernels.cpu.simd import (
    Vector,
    _fma,
    _llvm_type,
    _unpack,
    _vector_of,
    add,
    fma,
    sub,
    zeros,
)
from fastnc.kernels.cpu.simd_blocks import _pointer, load_like, store

LANES = native_lanes(np.float64)
ROWS = 8 if N_REGISTERS == 32 else 4
COLUMNS = 3
TILE_SUMS = ROWS * COLUMNS
# A slice: so many features that ROWS rows of them take 16 KB, half of a small level-1 cache.
SLICE_BYTES = 16384
SLICE = SLICE_BYTES // (8 * ROWS)
# From one row of a slice to the next; a power of two would put all rows into a few sets of a cache.
STRIDE = SLICE + LANES


@intrinsic
def load_double(typingctx, array, index, like):
    """As many floats of `array` as `like` has lanes, from a flat index on, in double precision."""
    kind = _vector_of(like)

    def codegen(context, builder, signature, args):
        array_type, index_type, _ = signature.args
        pointer = _pointer(context, builder, array_type, args[0], index_type, args[1])
        single = array_type.dtype == types.float32
        source = _llvm_type(Vector(array_type.dtype, kind.lanes))
        pointer = builder.bitcast(pointer, source.as_pointer())
        value = builder.load(pointer, align=array_type.dtype.bitwidth // 8)
        return builder.fpext(value, _llvm_type(kind)) if single else value

    return kind(array, index, like), codegen


@intrinsic
def add_tile(typingctx, sums, X, x, stride, B, b):
    """`sums + x_i b_c` for the vectors at X[x + i stride] and B[b + c lanes], all i for each c."""
    kind = _vector_of(sums)

    def codegen(context, builder, signature, args):
        X_type, B_type = signature.args[1], signature.args[4]
        vector = _llvm_type(kind).as_pointer()

        def load(array_type, array, index):
            pointer = _pointer(context, builder, array_type, array, types.intp, index)
            return builder.load(builder.bitcast(pointer, vector), align=8)

        def places(first, step, count):
            number = [ir.Constant(ir.IntType(64), i) for i in range(count)]
            return [builder.add(first, builder.mul(i, step)) for i in number]

        lanes = ir.Constant(ir.IntType(64), kind.lanes)
        totals = _unpack(builder, sums, args[0])
        columns = [load(B_type, args[4], c) for c in places(args[5], lanes, COLUMNS)]
        # A row at a time: with all of them there would be more vectors than registers.
        for i, place in enumerate(places(args[2], args[3], ROWS)):
            row = load(X_type, args[1], place)
            for c, column in enumerate(columns):
                m = c * ROWS + i
                totals[m] = _fma(builder, row, column, totals[m])
        return context.make_tuple(builder, sums, totals)

    return sums(sums, X, types.intp, types.intp, B, types.intp), codegen


@intrinsic
def add_sums(typingctx, T, t, sums):
    """`T[t + m] +=` the sum over the lanes of the m-th of `sums`."""
    kind = _vector_of(sums)

    def codegen(context, builder, signature, args):
        T_type, index_type, _ = signature.args
        totals = _unpack(builder, sums, args[2])
        for first in range(0, len(totals), kind.lanes):
            index = builder.add(args[1], ir.Constant(args[1].type, first))
            pointer = _pointer(context, builder, T_type, args[0], index_type, index)
            pointer = builder.bitcast(pointer, _llvm_type(kind).as_pointer())
            total = sum_each(builder, totals[first : first + kind.lanes])
            builder.store(builder.fadd(builder.load(pointer, align=8), total), pointer, align=8)
        return context.get_dummy_value()

    return types.none(T, t, sums), codegen


@intrinsic
def sum_of_lanes(typingctx, v):
    """The sum of a vector's lanes, halves first."""

    def codegen(context, builder, signature, args):
        value, width = args[0], v.lanes
        while width > 1:
            width //= 2
            index = ir.VectorType(ir.IntType(32), width)
            low = ir.Constant(index, list(range(width)))
            high = ir.Constant(index, list(range(width, 2 * width)))
            undefined = ir.Constant(value.type, ir.Undefined)
            value = builder.fadd(
                builder.shuffle_vector(value, undefined, low),
                builder.shuffle_vector(value, undefined, high),
            )
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return v.dtype(v), codegen


@intrinsic
def prefetch(typingctx, array, index, n):
    """Prefetches the cache lines of n floats of `array` from a flat index on."""

    def codegen(context, builder, signature, args):
        array_type, index_type, _ = signature.args
        emit = Emitter(builder, array_type.dtype)
        step = ir.Constant(args[2].type, 64 * 8 // array_type.dtype.bitwidth)
        zero = ir.Constant(args[2].type, 0)
        first = _pointer(context, builder, array_type, args[0], index_type, args[1])
        with cgutils.for_range_slice(builder, zero, args[2], step) as (offset, _):
            emit.prefetch(builder.gep(first, [offset]), LEVEL_1)
        return context.get_dummy_value()

    return types.none(array, index, n), codegen


@njit(**INNER)
def whole_vectors(d):
    """The number of features in the vectors that hold d of them."""
    return (d + LANES - 1) // LANES * LANES


@njit(**INNER)
def whole_tiles(n):
    """The number of columns in the tiles that hold n of them."""
    return (n + COLUMNS - 1) // COLUMNS * COLUMNS


@njit(**INNER)
def packed(A, B):
    """The rows of A and of B as columns of tiles: by slice, tile, vector of features and column."""
    d, n = A.shape[1], len(A) + len(B)
    n_tiles = whole_tiles(n) // COLUMNS
    out = aligned_doubles(whole_tiles(n) * whole_vectors(d))
    place = 0
    for j0 in range(0, whole_vectors(d), SLICE):
        j1 = min(j0 + SLICE, whole_vectors(d))
        for tile in range(n_tiles):
            for v in range(j0, j1, LANES):
                for c in range(tile * COLUMNS, (tile + 1) * COLUMNS):
                    for j in range(v, min(v + LANES, d)):
                        if c < len(A):
                            out[place + j - v] = A[c, j]
                        elif c < n:
                            out[place + j - v] = B[c - len(A), j]
                    place += LANES
    return out


@njit(**INNER)
def add_products(X, n, B, b, T):
    """`T[c, i] += <x_i, b_c>` over the n features (whole vectors) of a slice.

    X (ROWS, STRIDE) is flat, T (columns, ROWS); B is `packed`, the slice beginning at b.
    """
    for t in range(0, T.size, TILE_SUMS):
        sums = zeros(T, TILE_SUMS, LANES)
        for j in range(0, n, LANES):
            sums = add_tile(sums, X, j, STRIDE, B, b)
            b += COLUMNS * LANES
        add_sums(T, t, sums)


@njit(**INNER)
def centre(H, h, means, m, n, X, x):
    """Writes `x = h - m` of n features, and zeros up to whole vectors, to X; returns `|x|^2`.

    h, m and x are flat indices.
    """
    total, other = zeros(X, 1, LANES)[0], zeros(X, 1, LANES)[0]
    whole = n - n % LANES
    # Two sums at a time, because a multiply-add waits four cycles for the one before.
    for j in range(0, whole - LANES, 2 * LANES):
        v = sub(load_double(H, h + j, total), load_like(means, m + j, total))
        k = j + LANES
        w = sub(load_double(H, h + k, total), load_like(means, m + k, total))
        store(X, x + j, v)
        store(X, x + k, w)
        total, other = fma(v, v, total), fma(w, w, other)
    if whole % (2 * LANES):
        j = whole - LANES
        v = sub(load_double(H, h + j, total), load_like(means, m + j, total))
        store(X, x + j, v)
        total = fma(v, v, total)
    square = sum_of_lanes(add(total, other))
    for j in range(whole, n):
        v = np.float64(H.flat[h + j]) - means.flat[m + j]
        X[x + j] = v
        square += v * v
    for j in range(n, whole_vectors(n)):
        X[x + j] = 0.0
    return square
