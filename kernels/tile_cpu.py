"""Three matrix products of a chunk of samples, as register tiles of explicit LLVM vectors.

For W (and sums over samples) small enough for the L2 cache, where packing operands, as a BLAS
does, costs more than it saves. Letters: K classes, D features (a multiple of `lanes`), a chunk
of `rows` samples of H from row `first` on, `Z (K, >= rows)` class by class.

    logits         Z[j, i] (+)= <w_j, h_i>           4 samples x 2 classes, lanes over features
    class_sums     S[j] += sum_i Z[j, i] h_i         6 classes x 2 vectors of features
    sample_sums    C[i] (+)= a sum_j Z[j, i] w_j     6 samples x 2 vectors of features

Each tile holds its sums in registers over the whole inner loop: 8 to 12 of AVX2's 16, enough to
hide the latency of a multiply-add, with at most 2 loads for 3 multiply-adds. Bound by the
multiply-add rate. Remainders take smaller tiles; the order of every sum depends on the shape
alone.
"""

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

REGISTER_BYTES = 32
# Half of a level-one cache holds the samples that meet every class before the next ones do.
BLOCK_BYTES = 16384
OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy"}


def lanes(dtype):
    """Floats of `dtype` in one vector."""
    return REGISTER_BYTES // dtype.itemsize


def padded(W):
    """W, followed by columns of zeros if its rows are not whole vectors."""
    K, d = W.shape
    if d % lanes(W.dtype) == 0:
        return W
    out = np.zeros((K, -(-d // lanes(W.dtype)) * lanes(W.dtype)), W.dtype)
    out[:, :d] = W
    return out


class Emitter:
    """Vectors of one element type, written into one block of LLVM code."""

    def __init__(self, builder, real):
        self.builder = builder
        self.size = real.bitwidth // 8
        self.lanes = REGISTER_BYTES // self.size
        self.element = ir.FloatType() if real.bitwidth == 32 else ir.DoubleType()
        self.vector = ir.VectorType(self.element, self.lanes)
        self.zero = ir.Constant(self.vector, [ir.Constant(self.element, 0.0)] * self.lanes)

    def offset(self, pointer, *steps):
        """pointer + sum of products of (index, stride), in elements."""
        for index, stride in steps:
            if isinstance(index, int):
                index = ir.Constant(ir.IntType(64), index)
            pointer = self.builder.gep(pointer, [self.builder.mul(index, stride)])
        return pointer

    def skip(self, pointer, count):
        """pointer + a constant number of elements."""
        return self.builder.gep(pointer, [ir.Constant(ir.IntType(64), count)])

    def load(self, pointer):
        pointer = self.builder.bitcast(pointer, self.vector.as_pointer())
        return self.builder.load(pointer, align=self.size)

    def store(self, value, pointer):
        pointer = self.builder.bitcast(pointer, value.type.as_pointer())
        self.builder.store(value, pointer, align=self.size)

    def splat(self, scalar):
        undefined = ir.Constant(self.vector, ir.Undefined)
        one = self.builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(one, undefined, mask)

    def multiply_add(self, a, b, c):
        suffix = f"v{self.lanes}f{self.size * 8}"
        function = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(self.vector, [self.vector] * 3),
            f"llvm.fmuladd.{suffix}",
        )
        return self.builder.call(function, [a, b, c])

    def accumulate(self, count, n_sums, body, start):
        """`count >= 1` rounds of `sums = body(round, sums)` from `start`, in registers."""
        builder, integer = self.builder, ir.IntType(64)
        before = builder.block
        loop = builder.append_basic_block("tile.loop")
        after = builder.append_basic_block("tile.after")
        builder.branch(loop)
        builder.position_at_end(loop)
        index = builder.phi(integer)
        sums = [builder.phi(self.vector) for _ in range(n_sums)]
        new = body(index, sums)
        following = builder.add(index, ir.Constant(integer, 1))
        for phi, first, value in (
            (index, ir.Constant(integer, 0), following),
            *((p, start, v) for p, v in zip(sums, new, strict=True)),
        ):
            phi.add_incoming(first, before)
            phi.add_incoming(value, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
        builder.position_at_end(after)
        return new

    def shuffle(self, x, y, indices):
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(indices)), indices)
        return self.builder.shuffle_vector(x, y, mask)

    def sum_each(self, vectors):
        """Lane i of the result is the sum of the lanes of vectors[i]; `lanes` vectors."""
        step = 1
        while step < self.lanes:
            keep = [i if not i & step else self.lanes + i - step for i in range(self.lanes)]
            swap = [i + step if not i & step else self.lanes + i for i in range(self.lanes)]
            vectors = [
                self.builder.fadd(self.shuffle(x, y, keep), self.shuffle(x, y, swap))
                for x, y in zip(vectors[::2], vectors[1::2], strict=True)
            ]
            step *= 2
        return vectors[0]


def data_of(context, builder, kind, array):
    return context.make_array(kind)(context, builder, array).data


def _constants(*kinds):
    return [getattr(kind, "literal_value", None) for kind in kinds]


@intrinsic
def _outer_tile(typingctx, m, v, C, c, ldc, A, a, step_k, step_m, B, b, ldb, count, alpha, keep):
    """C[c + i ldc + f] = keep C + alpha sum_k A[a + k step_k + i step_m] B[b + k ldb + f]."""
    n_rows, n_vectors = _constants(m, v)
    if n_rows is None or n_vectors is None:
        return None

    def codegen(context, builder, signature, args):
        _, _, C_, c_, ldc_, A_, a_, step_k_, step_m_, B_, b_, ldb_, count_, alpha_, keep_ = args
        emit = Emitter(builder, B.dtype)
        A_ = builder.gep(data_of(context, builder, A, A_), [a_])
        B_ = builder.gep(data_of(context, builder, B, B_), [b_])
        C_ = builder.gep(data_of(context, builder, C, C_), [c_])

        def body(k, sums):
            row = emit.offset(B_, (k, ldb_))
            others = [emit.load(emit.skip(row, i * emit.lanes)) for i in range(n_vectors)]
            column = emit.offset(A_, (k, step_k_))
            new = []
            for i in range(n_rows):
                factor = emit.splat(builder.load(emit.offset(column, (i, step_m_))))
                for f, other in enumerate(others):
                    new.append(emit.multiply_add(factor, other, sums[i * n_vectors + f]))
            return new

        sums = emit.accumulate(count_, n_rows * n_vectors, body, emit.zero)
        scale = emit.splat(alpha_)
        for i in range(n_rows):
            for f in range(n_vectors):
                place = emit.skip(emit.offset(C_, (i, ldc_)), f * emit.lanes)
                old = builder.select(keep_, emit.load(place), emit.zero)
                emit.store(emit.multiply_add(scale, sums[i * n_vectors + f], old), place)
        return context.get_dummy_value()

    kinds = (m, v, C, c, ldc, A, a, step_k, step_m, B, b, ldb, count, alpha, keep)
    return types.none(*kinds), codegen


@intrinsic
def _dot_tile(typingctx, m, n, Z, z, ldz, W, w, H, h, ld, count, keep):
    """Z[z + j ldz + i] = keep Z + <W[w + j ld :], H[h + i ld :]>, `count` vectors long."""
    n_samples, n_classes = _constants(m, n)
    if n_samples is None or n_classes is None:
        return None

    def codegen(context, builder, signature, args):
        _, _, Z_, z_, ldz_, W_, w_, H_, h_, ld_, count_, keep_ = args
        emit = Emitter(builder, W.dtype)
        W_ = builder.gep(data_of(context, builder, W, W_), [w_])
        H_ = builder.gep(data_of(context, builder, H, H_), [h_])
        Z_ = builder.gep(data_of(context, builder, Z, Z_), [z_])
        stride = ir.Constant(ir.IntType(64), emit.lanes)

        def body(k, sums):
            w_k, h_k = emit.offset(W_, (k, stride)), emit.offset(H_, (k, stride))
            samples = [emit.load(emit.offset(h_k, (i, ld_))) for i in range(n_samples)]
            new = []
            for j in range(n_classes):
                row = emit.load(emit.offset(w_k, (j, ld_)))
                for i, sample in enumerate(samples):
                    new.append(emit.multiply_add(row, sample, sums[j * n_samples + i]))
            return new

        sums = emit.accumulate(count_, n_samples * n_classes, body, emit.zero)
        sums += [emit.zero] * (-len(sums) % emit.lanes)
        n_sums = n_samples * n_classes
        for start in range(0, n_sums, emit.lanes):
            totals = emit.sum_each(sums[start : start + emit.lanes])
            for place in range(start, min(start + emit.lanes, n_sums), n_samples):
                j = place // n_samples
                indices = list(range(place - start, place - start + n_samples))
                part = emit.shuffle(totals, totals, indices)
                target = emit.offset(Z_, (j, ldz_))
                pointer = builder.bitcast(target, part.type.as_pointer())
                old = builder.load(pointer, align=emit.size)
                zero = ir.Constant(part.type, [ir.Constant(emit.element, 0.0)] * n_samples)
                old = builder.select(keep_, old, zero)
                emit.store(builder.fadd(part, old), target)
        return context.get_dummy_value()

    kinds = (m, n, Z, z, ldz, W, w, H, h, ld, count, keep)
    return types.none(*kinds), codegen


@intrinsic
def _prefetch(typingctx, A, a, first, last, ld):
    """Ask for the lines `first` to `last - 1`, 64 bytes each, of 4 rows of A from index a on."""

    def codegen(context, builder, signature, args):
        A_, a_, first_, last_, ld_ = args
        emit = Emitter(builder, A.dtype)
        A_ = builder.gep(data_of(context, builder, A, A_), [a_])
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [ir.PointerType(ir.IntType(8)), *[ir.IntType(32)] * 3]),
            "llvm.prefetch.p0",
        )
        # For reading, into all caches, data.
        flags = [ir.Constant(ir.IntType(32), x) for x in (0, 3, 1)]
        stride = ir.Constant(ir.IntType(64), 64 // emit.size)
        with cgutils.for_range_slice(builder, first_, last_, ir.Constant(first_.type, 1)) as (k, _):
            for i in range(4):
                place = emit.offset(A_, (i, ld_), (k, stride))
                place = builder.bitcast(place, ir.PointerType(ir.IntType(8)))
                builder.call(function, [place, *flags])
        return context.get_dummy_value()

    return types.none(A, a, first, last, ld), codegen


@njit(**OPTIONS)
def logits(W, H, first, rows, Z, keep, ahead):
    """`Z[j, i] = <w_j, h_{first + i}>`, added to Z where `keep`.

    Meanwhile the rows of H that stand `ahead` rows further on are fetched, unless it is 0: a
    chunk is read in a burst otherwise, and arithmetic and memory wait for each other.
    """
    K, D = W.shape
    ldz = Z.shape[1]
    count = D * W.itemsize // 32
    block = max(4, BLOCK_BYTES // (D * W.itemsize) // 4 * 4)
    # Each of the K // 2 rounds over a block asks for its share of the lines of a row.
    lines = D * W.itemsize // 64 if ahead else 0
    share = -(-lines // (K // 2))
    for low in range(0, rows, block):
        high = min(low + block, rows)
        for j in range(0, K - 1, 2):
            line, end = min(lines, j // 2 * share), min(lines, (j // 2 + 1) * share)
            i = low
            while i + 4 <= high:
                h = (first + i) * D
                _prefetch(H, h + ahead * D, line, end, D)
                _dot_tile(4, 2, Z, j * ldz + i, ldz, W, j * D, H, h, D, count, keep)
                i += 4
            while i < high:
                h = (first + i) * D
                _dot_tile(1, 2, Z, j * ldz + i, ldz, W, j * D, H, h, D, count, keep)
                i += 1
        if K % 2:
            j = K - 1
            i = low
            while i + 4 <= high:
                h = (first + i) * D
                _dot_tile(4, 1, Z, j * ldz + i, ldz, W, j * D, H, h, D, count, keep)
                i += 4
            while i < high:
                h = (first + i) * D
                _dot_tile(1, 1, Z, j * ldz + i, ldz, W, j * D, H, h, D, count, keep)
                i += 1


@njit(**OPTIONS)
def class_sums(Z, H, first, rows, sums):
    """`sums[j] += sum_i Z[j, i] h_{first + i}`."""
    K, D = sums.shape
    one = sums.dtype.type(1.0)
    L = 32 // H.itemsize
    ld = Z.shape[1]
    # A strip of H, one cache line wide, meets all classes while it is in the L1 cache.
    for f in range(0, D - 2 * L + 1, 2 * L):
        h = first * D + f
        j = 0
        while j + 6 <= K:
            _outer_tile(6, 2, sums, j * D + f, D, Z, j * ld, 1, ld, H, h, D, rows, one, True)
            j += 6
        if j + 4 <= K:
            _outer_tile(4, 2, sums, j * D + f, D, Z, j * ld, 1, ld, H, h, D, rows, one, True)
            j += 4
        while j < K:
            _outer_tile(1, 2, sums, j * D + f, D, Z, j * ld, 1, ld, H, h, D, rows, one, True)
            j += 1
    if D % (2 * L):
        f = D - L
        h = first * D + f
        j = 0
        while j + 6 <= K:
            _outer_tile(6, 1, sums, j * D + f, D, Z, j * ld, 1, ld, H, h, D, rows, one, True)
            j += 6
        while j < K:
            _outer_tile(1, 1, sums, j * D + f, D, Z, j * ld, 1, ld, H, h, D, rows, one, True)
            j += 1


@njit(**OPTIONS)
def sample_sums(Z, W, alpha, keep, C, first, rows):
    """`C[first + i] = alpha sum_j Z[j, i] w_j`, added to C where `keep`."""
    K, D = W.shape
    L = 32 // W.itemsize
    ld = Z.shape[1]
    # A few rows of C are finished at a time, so that they are visited page by page.
    i = 0
    while i + 6 <= rows:
        c = (first + i) * D
        for f in range(0, D - 2 * L + 1, 2 * L):
            _outer_tile(6, 2, C, c + f, D, Z, i, ld, 1, W, f, D, K, alpha, keep)
        if D % (2 * L):
            f = D - L
            _outer_tile(6, 1, C, c + f, D, Z, i, ld, 1, W, f, D, K, alpha, keep)
        i += 6
    while i < rows:
        c = (first + i) * D
        for f in range(0, D - 2 * L + 1, 2 * L):
            _outer_tile(1, 2, C, c + f, D, Z, i, ld, 1, W, f, D, K, alpha, keep)
        if D % (2 * L):
            f = D - L
            _outer_tile(1, 1, C, c + f, D, Z, i, ld, 1, W, f, D, K, alpha, keep)
        i += 1


@njit(**OPTIONS)
def copy_rows(A, a, B, b, rows, d):
    """The first d entries of `rows` rows of A from row a on, to B from row b on."""
    for i in range(rows):
        for f in range(d):
            B[b + i, f] = A[a + i, f]


@njit(**OPTIONS)
def scale_rows(A, factor):
    """`A *= factor`; spelled out, it compiles in a tenth of the time."""
    for i in range(A.shape[0]):
        for f in range(A.shape[1]):
            A[i, f] *= factor
