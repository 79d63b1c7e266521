"""The matrix products of a block of samples, as register tiles of explicit LLVM vectors.

For W small enough for the level-2 cache, where a BLAS would spend as long on packing its
operands as on multiplying them. Letters: K classes, D features (whole vectors of them), a block of
samples, `Z (K, >= samples)` its logits or residuals class by class.

    product      C[i] (+)= alpha sum_k A[i, k] B[k]     rows of B and C are whole vectors
    dots         Z[j, i] = <w_j, h_i>                   both operands by rows

`product` computes all three products of the objective: logits from W and the transposed samples
(`transpose`), sums over samples from Z and H, sums over classes from Z and W. Its tile is 6 rows by
an eighth of the registers, which leaves a quarter of them for a row of B and a broadcast entry of
A: 6 x 4 of 32 registers, 6 x 2 of 16. Rows are shared evenly among tiles, so that no tile is
nearly empty. Where classes or samples are few, `dots` computes logits without transposing first.

Every element of C is one chain of multiply-adds in the order of k, cut into blocks of `block`
terms, in any tile: its bits depend neither on its row nor on the number of rows.
Bound by the multiply-add rate.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastnc.kernels.cpu.aligned import LINE, aligned_zeros
from fastnc.kernels.cpu.emitter import LEVEL_2, Emitter
from fastnc.kernels.cpu.processor import N_REGISTERS, VECTOR_BYTES, native_lanes

# A tile has at most so many rows and vectors; `dots` so many samples and classes.
ROWS, VECTORS = 6, N_REGISTERS // 8
WIDTHS = sorted({1, 2, VECTORS})
DOT_SAMPLES, DOT_CLASSES = N_REGISTERS // 8, 5
# Up to this size a copy of W costs less than loads that straddle lines.
SMALL_BYTES = 1 << 19
# Terms of a sum that are added one after another, at the most.
BLOCK = 128
# A panel that maps to few sets of the cache is copied if at least so many tiles read it.
COPY_TILES = 8


@intrinsic
def lanes_of(typingctx, like):
    """Numbers in a vector."""

    def codegen(context, builder, signature, args):
        return ir.Constant(ir.IntType(64), Emitter(builder, like.dtype).lanes)

    return types.int64(like), codegen


def padded(W):
    """W, with columns of zeros up to whole vectors; a small W also starts on a cache line."""
    K, d = W.shape
    if d % native_lanes(W.dtype) == 0 and (W.ctypes.data % LINE == 0 or W.nbytes > SMALL_BYTES):
        return W
    out = aligned_zeros((K, -(-d // native_lanes(W.dtype)) * native_lanes(W.dtype)), W.dtype)
    out[:, :d] = W
    return out


@intrinsic
def _product_tile(
    typingctx, v, m, C, c, ldc, A, a, step_i, step_k, B, b, ldb, f, count, alpha, keep, N, n, step
):  # fmt: skip
    """C[c + i ldc + f + l] (+)= alpha sum_k A[a + i step_i + k step_k] B[b + k ldb + f + l].

    i < m <= ROWS, l in v vectors, k < count; f counts vectors; added to C where `keep`. With term
    k, N[n + k step] is prefetched.
    """

    def codegen(context, builder, signature, args):
        v_, m_, C_, c_, ldc_, A_, a_, step_i_, step_k_, B_, b_, ldb_, f_, count_, *others = args
        alpha_, keep_, N_, n_, step_ = others
        emit = Emitter(builder, B.dtype)
        N_ = builder.gep(N_, [n_])
        column = builder.mul(f_, ir.Constant(f_.type, emit.lanes))
        A_ = builder.gep(A_, [a_])
        B_, C_ = (
            builder.gep(B_, [builder.add(b_, column)]),
            builder.gep(C_, [builder.add(c_, column)]),
        )

        def tile(n_rows, n_vectors, across):
            """`across`: A is contiguous over its rows i, not over the terms k."""
            one = ir.Constant(ir.IntType(64), 1)
            rows = [emit.offset(A_, (i, one if across else step_i_)) for i in range(n_rows)]
            if not across:
                rows = [emit.apart(row) for row in rows]

            def body(k, sums):
                row = emit.offset(B_, (k, ldb_))
                others = [emit.load(emit.skip(row, f * emit.lanes)) for f in range(n_vectors)]
                emit.prefetch(emit.offset(N_, (k, step_)), LEVEL_2)
                new = []
                for i in range(n_rows):
                    term = emit.offset(rows[i], (k, step_k_ if across else one))
                    factor = emit.splat(builder.load(term))
                    for f, other in enumerate(others):
                        new.append(emit.multiply_add(factor, other, sums[i * n_vectors + f]))
                return new

            sums = emit.accumulate(count_, [emit.zero] * (n_rows * n_vectors), body)
            scale = emit.splat(alpha_)

            def finish(added):
                for i in range(n_rows):
                    row = emit.offset(C_, (i, ldc_))
                    for f in range(n_vectors):
                        place, total = emit.skip(row, f * emit.lanes), sums[i * n_vectors + f]
                        if added:
                            total = emit.multiply_add(scale, total, emit.load(place))
                        else:
                            total = builder.fmul(scale, total)
                        emit.store(total, place)

            # One branch: a select for each vector would become a branch each.
            with builder.if_else(keep_) as (adding, storing):
                with adding:
                    finish(True)
                with storing:
                    finish(False)

        across = builder.icmp_signed("==", step_i_, ir.Constant(step_i_.type, 1))

        def either(n_rows, n_vectors):
            with builder.if_else(across) as (columns, rows):
                with columns:
                    tile(n_rows, n_vectors, True)
                with rows:
                    tile(n_rows, n_vectors, False)

        def of_width(n_vectors):
            emit.cases(m_, range(1, ROWS + 1), lambda n_rows: either(n_rows, n_vectors))

        emit.cases(v_, WIDTHS, of_width)
        return context.get_dummy_value()

    kinds = (
        v, m, C, c, ldc, A, a, step_i, step_k, B, b, ldb, f, count, alpha, keep, N, n, step,
    )  # fmt: skip
    return types.none(*kinds), codegen


def room_of(numbers):
    """A function that gives a kernel memory for `numbers(lanes)` numbers, on the stack."""

    @intrinsic
    def room(typingctx, like):
        def codegen(context, builder, signature, args):
            emit = Emitter(builder, like.dtype)
            size = ir.Constant(ir.IntType(64), numbers(emit.lanes))
            with builder.goto_entry_block():
                found = builder.alloca(emit.element, size)
            found.align = LINE
            return found

        return like(like), codegen

    return room


# For the copy of a panel.
_room = room_of(lambda lanes: BLOCK * VECTORS * lanes)


@intrinsic
def _copy_panel(typingctx, v, B, b, ldb, f, count, P):
    """P[k v + l] = B[b + k ldb + f + l], l in v vectors, k < count; f counts vectors."""

    def codegen(context, builder, signature, args):
        v_, B_, b_, ldb_, f_, count_, P_ = args
        emit = Emitter(builder, B.dtype)
        lanes = ir.Constant(f_.type, emit.lanes)
        B_, width = (
            builder.gep(B_, [builder.add(b_, builder.mul(f_, lanes))]),
            builder.mul(v_, lanes),
        )

        def copy(n_vectors):
            def body(k, _):
                row, place = emit.offset(B_, (k, ldb_)), emit.offset(P_, (k, width))
                for i in range(n_vectors):
                    vector = emit.load(emit.skip(row, i * emit.lanes))
                    emit.store(vector, emit.skip(place, i * emit.lanes))
                return []

            emit.accumulate(count_, [], body)

        emit.cases(v_, WIDTHS, copy)
        return context.get_dummy_value()

    return types.none(v, B, b, ldb, f, count, P), codegen


def product(
    C, ldc, n_rows, n_vectors, A, step_i, step_k, B, ldb, count, block, alpha, keep, ahead, lines
):  # fmt: skip
    """`C[i] (+)= alpha sum_k A[i step_i + k step_k] B[k]`, rows of so many vectors.

    Blocks of at most `BLOCK` terms are added up, and then added to C.

    A panel of B, one tile wide, is read by every tile below it. Where its rows are a multiple of
    twice its width apart, they map to few sets of the level-1 cache, and it is copied first.

    Meanwhile `lines` cache lines from `ahead` on are prefetched, one with each term, since a core
    can wait for only about a dozen lines at a time.
    """
    tiles = (n_rows + ROWS - 1) // ROWS
    L = lanes_of(B)
    line = L * LINE // VECTOR_BYTES
    room = _room(B)
    prefetched = 0
    for low in range(0, count, block):
        terms = min(block, count - low)
        more = keep != 0 or low > 0
        f = 0
        while f < n_vectors:
            left = n_vectors - f
            width = VECTORS if left >= VECTORS else 2 if left >= 2 else 1
            copied = tiles >= COPY_TILES and ldb % (2 * width * L) == 0
            if copied:
                _copy_panel(width, B, low * ldb, ldb, f, terms, room)
            for t in range(tiles):
                i, end = n_rows * t // tiles, n_rows * (t + 1) // tiles
                prefetches = prefetched < lines
                _product_tile(
                    width, end - i, C, i * ldc, ldc, A, i * step_i + low * step_k, step_i, step_k,
                    room if copied else B, -f * L if copied else low * ldb,
                    width * L if copied else ldb, f, terms, alpha, more,
                    ahead if prefetches else A, prefetched * line if prefetches else 0,
                    line if prefetches else 0,
                )  # fmt: skip
                prefetched += terms
            f += width


@intrinsic
def _dot_tile(typingctx, m, n, Z, z, ldz, W, w, H, h, ld, count, keep, N, p, step, more):
    """Z[z + j ldz + i] (+)= <W[w + j ld :], H[h + i ld :]>, `count` vectors, i < m, j < n.

    With term k, N[p + k step] and N[p + more + k step] are prefetched.
    """

    def codegen(context, builder, signature, args):
        m_, n_, Z_, z_, ldz_, W_, w_, H_, h_, ld_, count_, keep_, *others = args
        N_, p_, step_, more_ = others
        emit = Emitter(builder, W.dtype)
        W_, H_, Z_ = builder.gep(W_, [w_]), builder.gep(H_, [h_]), builder.gep(Z_, [z_])
        N_ = builder.gep(N_, [p_])
        more_ = builder.gep(N_, [more_])
        stride = ir.Constant(ir.IntType(64), emit.lanes)

        def tile(n_samples, n_classes):
            def body(k, sums):
                w_k, h_k = emit.offset(W_, (k, stride)), emit.offset(H_, (k, stride))
                samples = [emit.load(emit.offset(h_k, (i, ld_))) for i in range(n_samples)]
                for place in (N_, more_):
                    emit.prefetch(emit.offset(place, (k, step_)), LEVEL_2)
                new = []
                for j in range(n_classes):
                    row = emit.load(emit.offset(w_k, (j, ld_)))
                    for i, sample in enumerate(samples):
                        new.append(emit.multiply_add(row, sample, sums[j * n_samples + i]))
                return new

            n_sums = n_samples * n_classes
            sums = emit.accumulate(count_, [emit.zero] * n_sums, body)
            sums += [emit.zero] * (-n_sums % emit.lanes)
            for start in range(0, n_sums, emit.lanes):
                totals = emit.sum_each(sums[start : start + emit.lanes])
                for place in range(start, min(start + emit.lanes, n_sums)):
                    j, i = divmod(place, n_samples)
                    target = emit.skip(emit.offset(Z_, (j, ldz_)), i)
                    zero = ir.Constant(emit.element, 0.0)
                    old = builder.select(keep_, builder.load(target), zero)
                    lane = ir.Constant(ir.IntType(32), place - start)
                    value = builder.extract_element(totals, lane)
                    builder.store(builder.fadd(value, old), target)

        def samples(n_samples):
            classes = range(1, DOT_CLASSES + 1)
            emit.cases(n_, classes, lambda n_classes: tile(n_samples, n_classes))

        emit.cases(m_, range(1, DOT_SAMPLES + 1), samples)
        return context.get_dummy_value()

    kinds = m, n, Z, z, ldz, W, w, H, h, ld, count, keep, N, p, step, more
    return types.none(*kinds), codegen


def dots(Z, ldz, K, rows, W, H, D, n_vectors, keep, ahead, lines):
    """`Z[j, i] (+)= <w_j, h_i>`, D numbers or `n_vectors` vectors long; prefetches as `product`."""
    across = (K + DOT_CLASSES - 1) // DOT_CLASSES
    line = lanes_of(W) * LINE // VECTOR_BYTES
    # Two with each term, where one is not enough.
    terms = (rows + DOT_SAMPLES - 1) // DOT_SAMPLES * across * n_vectors
    more = n_vectors if lines > terms else 0
    prefetched = 0
    for i in range(0, rows, DOT_SAMPLES):
        m = min(DOT_SAMPLES, rows - i)
        for t in range(across):
            j, end = K * t // across, K * (t + 1) // across
            prefetches = prefetched < lines
            _dot_tile(
                m, end - j, Z, j * ldz + i, ldz, W, j * D, H, i * D, D, n_vectors, keep != 0,
                ahead if prefetches else W, prefetched * line if prefetches else 0,
                line if prefetches else 0, more * line if prefetches else 0,
            )  # fmt: skip
            prefetched += n_vectors + more


@intrinsic
def _transpose_tile(typingctx, A, a, lda, B, b, ldb):
    """B[b + j ldb + i] = A[a + i lda + j], i and j in one vector."""

    def codegen(context, builder, signature, args):
        A_, a_, lda_, B_, b_, ldb_ = args
        emit = Emitter(builder, A.dtype)
        A_, B_ = builder.gep(A_, [a_]), builder.gep(B_, [b_])
        rows = [emit.load(emit.offset(A_, (i, lda_))) for i in range(emit.lanes)]
        for j, row in enumerate(emit.transposed(rows)):
            emit.store(row, emit.offset(B_, (j, ldb_)))
        return context.get_dummy_value()

    return types.none(A, a, lda, B, b, ldb), codegen


def transpose(A, lda, rows, d, B, ldb, L):
    """`B[f, i] = A[i, f]`, i < rows, f < d; the rest of a last vector of L samples is 0."""
    whole = rows // L * L
    for i in range(0, whole, L):
        for f in range(0, d // L * L, L):
            _transpose_tile(A, i * lda + f, lda, B, f * ldb + i, ldb)
    for f in range(d):
        for i in range(whole if f < d // L * L else 0, rows):
            B[f * ldb + i] = A[i * lda + f]
        for i in range(rows, (rows + L - 1) // L * L):
            B[f * ldb + i] = 0.0


def signatures(real):
    """The types of this file's three functions for Numba's type `real`."""
    floats, size = types.CPointer(real), types.int64
    return {
        product: (
            *(floats, size, size, size, floats, size, size, floats, size, size, size),
            *(real, size, floats, size),
        ),
        dots: (floats, *[size] * 3, floats, floats, *[size] * 3, floats, size),
        transpose: (floats, *[size] * 3, floats, *[size] * 2),
    }
