"""Both sums of a step, over samples and over classes, in one pass where classes are few.

    sums_j += sum_i r_ij h_i        h_i += alpha sum_j r_ij w_j

Letters as in tile. A vector of features at a time: its sums over the chunk, one for each class,
stay in registers, and so do those entries of W if they fit. A sample is read once, and each entry
of a residual is broadcast once, for both sums. Every element is the chain of multiply-adds that
`tile.product` makes of it, so that the bits are the same.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastnc.kernels.cpu.aligned import LINE
from fastnc.kernels.cpu.emitter import LEVEL_2, Emitter
from fastnc.kernels.cpu.processor import N_REGISTERS, VECTOR_BYTES, native_lanes
from fastnc.kernels.cpu.simd_blocks import address
from fastnc.kernels.cpu.tile import BLOCK, lanes_of, room_of

# A sum for each class, a sample, what is added to it, and a residual are in registers.
MOST_CLASSES = min(16, N_REGISTERS - 3)


def taken(planned, n_classes, dim, dtype):
    """Whether a step takes both sums at once. Rows of one vector have shorter chains elsewhere."""
    few = n_classes <= MOST_CLASSES and planned.chunk <= BLOCK
    return few and dim > native_lanes(dtype)


def _width(lanes):
    """Numbers in a row of residuals: whole vectors of classes."""
    return (MOST_CLASSES + lanes - 1) // lanes * lanes


# For the residuals of a chunk, sample by sample.
_room = room_of(lambda lanes: BLOCK * _width(lanes))


@intrinsic
def _turn(typingctx, K, Z, ld, groups, R):
    """R[i, j] = Z[j ld + i], j < K, for so many groups of samples i, a vector each."""

    def codegen(context, builder, signature, args):
        K_, Z_, ld_, groups_, R_ = args
        emit = Emitter(builder, Z.dtype)
        lanes, width = emit.lanes, _width(emit.lanes)
        down = ir.Constant(groups_.type, lanes * width)

        def of_classes(n_classes):
            def body(group, _):
                read = emit.offset(Z_, (group, ir.Constant(group.type, lanes)))
                written = emit.offset(R_, (group, down))
                for first in range(0, n_classes, lanes):
                    given = range(first, min(first + lanes, n_classes))
                    square = [emit.load(emit.offset(read, (j, ld_))) for j in given]
                    square += [emit.zero] * (lanes - len(square))
                    for i, row in enumerate(emit.transposed(square)):
                        emit.store(row, emit.skip(written, i * width + first))
                return []

            emit.accumulate(groups_, [], body)

        emit.cases(K_, range(1, MOST_CLASSES + 1), of_classes)
        return context.get_dummy_value()

    return types.none(K, Z, ld, groups, R), codegen


@intrinsic
def _column(typingctx, K, S, H, W, D, R, rows, alpha, N, n, step):
    """Both sums of one vector of features, which begins at S, H and W, whose rows are D apart.

    With each sample i, N[n + i step] is prefetched.
    """

    def codegen(context, builder, signature, args):
        K_, S_, H_, W_, D_, R_, rows_, alpha_, N_, n_, step_ = args
        emit = Emitter(builder, S.dtype)
        N_ = builder.gep(N_, [n_])
        width, scale = ir.Constant(ir.IntType(64), _width(emit.lanes)), emit.splat(alpha_)

        def of_classes(n_classes):
            entries = [emit.offset(W_, (j, D_)) for j in range(n_classes)]
            held = 2 * n_classes + 3 <= N_REGISTERS
            w = [emit.load(entry) for entry in entries] if held else None

            def body(i, sums):
                place, row = emit.offset(H_, (i, D_)), emit.offset(R_, (i, width))
                h, added, new = emit.load(place), emit.zero, []
                emit.prefetch(emit.offset(N_, (i, step_)), LEVEL_2)
                for j in range(n_classes):
                    r = emit.splat(builder.load(emit.skip(row, j)))
                    new.append(emit.multiply_add(r, h, sums[j]))
                    added = emit.multiply_add(r, w[j] if held else emit.load(entries[j]), added)
                emit.store(emit.multiply_add(scale, added, h), place)
                return new

            sums = emit.accumulate(rows_, [emit.zero] * n_classes, body)
            for j, total in enumerate(sums):
                place = emit.offset(S_, (j, D_))
                emit.store(builder.fadd(total, emit.load(place)), place)

        emit.cases(K_, range(1, MOST_CLASSES + 1), of_classes)
        return context.get_dummy_value()

    return types.none(K, S, H, W, D, R, rows, alpha, N, n, step), codegen


def both_sums(S, H, W, D, n_vectors, K, Z, ld, rows, alpha, ahead, lines):
    """`S_j += sum_i Z[j, i] h_i` and `h_i += alpha sum_j Z[j, i] w_j`, rows of D numbers.

    Of at most `BLOCK` samples. Meanwhile `lines` cache lines from `ahead` on are prefetched, one
    with each sample and vector.
    """
    R, L = _room(Z), lanes_of(Z)
    line = L * LINE // VECTOR_BYTES
    _turn(K, Z, ld, (rows + L - 1) // L, R)
    prefetched = 0
    for f in range(0, n_vectors * L, L):
        prefetches = prefetched < lines
        _column(
            K, address(S, f), address(H, f), address(W, f), D, R, rows, alpha,
            ahead if prefetches else H, prefetched * line if prefetches else 0,
            line if prefetches else 0,
        )  # fmt: skip
        prefetched += rows


def signatures(real):
    """The types of this file's function for Numba's type `real`."""
    floats, size = types.CPointer(real), types.int64
    return {both_sums: (*[floats] * 3, *[size] * 3, floats, size, size, real, floats, size)}
