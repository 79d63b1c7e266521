"""Three matrix products of a chunk of samples, as register tiles of explicit LLVM vectors.

For W (and sums over samples) small enough for the L2 cache, where packing operands, as a BLAS
does, costs more than it saves. Letters: K classes, D features (a multiple of `lanes`), a chunk
of `rows` samples of H from row `first` on, `Z (K, >= rows)` class by class.

    logits         Z[j, i] (+)= <w_j, h_i>           2 samples x 5 classes, lanes over features
    class_sums     S[j] += sum_i Z[j, i] h_i         6 classes x 2 vectors of features
    sample_sums    C[i] (+)= a sum_j Z[j, i] w_j     4 or 6 samples x 2 vectors of features

Each tile holds its sums in registers over the whole inner loop: 8 to 12 of AVX2's 16, enough to
hide the latency of a multiply-add, with at most 2 loads for 3 multiply-adds. Bound by the
multiply-add rate. Remainders take smaller tiles; the order of every sum depends on the shape
alone.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastnc.kernels.cpu.options import OPTIONS, njit

REGISTER_BYTES = 32
# Half of a level-one cache holds the samples that meet every class before the next ones do.
BLOCK_BYTES = 16384
FEW_CLASSES = 32


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
        """`count >= 1` rounds of `sums = body(round, sums)` from `start`, one or a list of them."""
        starts = start if isinstance(start, list) else [start] * n_sums
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
            *zip(sums, starts, new, strict=True),
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
        """Lane i of the result is the sum of the lanes of vectors[i]; `lanes` vectors.

        Neighbours are added within 16 bytes, where one instruction shuffles two vectors.
        """
        n, half = self.lanes, self.lanes // 2
        even = [q + k + i for q in (0, half) for k in (0, n) for i in range(0, half, 2)]
        odd = [i + 1 for i in even]
        low = [i if i < half else n + i for i in range(n)]
        high = [half + i for i in range(n)]

        def sums(x, y, first, second):
            return self.builder.fadd(self.shuffle(x, y, first), self.shuffle(x, y, second))

        while len(vectors) > 2:
            pairs = zip(vectors[::2], vectors[1::2], strict=True)
            vectors = [sums(x, y, even, odd) for x, y in pairs]
        return sums(*vectors, low, high)


def data_of(context, builder, kind, array):
    return context.make_array(kind)(context, builder, array).data


def constants(*kinds):
    """The values of literal arguments, None where one is not."""
    return [getattr(kind, "literal_value", None) for kind in kinds]


@intrinsic
def _outer_tile(typingctx, m, v, u, C, c, ldc, A, a, step_k, step_m, B, b, ldb, count, alpha):
    """C[c + i ldc + f] += alpha sum_k A[a + k step_k + i step_m] B[b + k ldb + f], k < u count."""
    n_rows, n_vectors, n_steps = constants(m, v, u)
    if None in (n_rows, n_vectors, n_steps):
        return None

    def codegen(context, builder, signature, args):
        C_, c_, ldc_, A_, a_, step_k_, step_m_, B_, b_, ldb_, count_, alpha_ = args[3:]
        emit = Emitter(builder, B.dtype)
        A_ = builder.gep(data_of(context, builder, A, A_), [a_])
        B_ = builder.gep(data_of(context, builder, B, B_), [b_])
        C_ = builder.gep(data_of(context, builder, C, C_), [c_])

        def body(turn, sums):
            for step in range(n_steps):
                k = builder.mul(turn, ir.Constant(ir.IntType(64), n_steps))
                row = emit.offset(B_, (k, ldb_), (step, ldb_))
                others = [emit.load(emit.skip(row, i * emit.lanes)) for i in range(n_vectors)]
                column = emit.offset(A_, (k, step_k_), (step, step_k_))
                new = []
                for i in range(n_rows):
                    factor = emit.splat(builder.load(emit.offset(column, (i, step_m_))))
                    for f, other in enumerate(others):
                        new.append(emit.multiply_add(factor, other, sums[i * n_vectors + f]))
                sums = new
            return sums

        sums = emit.accumulate(count_, n_rows * n_vectors, body, emit.zero)
        scale = emit.splat(alpha_)
        for i in range(n_rows):
            for f in range(n_vectors):
                place = emit.skip(emit.offset(C_, (i, ldc_)), f * emit.lanes)
                total = emit.multiply_add(scale, sums[i * n_vectors + f], emit.load(place))
                emit.store(total, place)
        return context.get_dummy_value()

    kinds = (m, v, u, C, c, ldc, A, a, step_k, step_m, B, b, ldb, count, alpha)
    return types.none(*kinds), codegen


@intrinsic
def _dot_tile(typingctx, m, n, Z, z, ldz, W, w, H, h, ld, count, keep):
    """Z[z + j ldz + i] = keep Z + <W[w + j ld :], H[h + i ld :]>, `count` vectors long."""
    n_samples, n_classes = constants(m, n)
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
def prefetch(typingctx, A, first, end):
    """Ask for the 64-byte lines of A from one flat index up to another."""

    def codegen(context, builder, signature, args):
        A_, first_, end_ = args
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [ir.PointerType(ir.IntType(8)), *[ir.IntType(32)] * 3]),
            "llvm.prefetch.p0",
        )
        # For reading, into all caches, data.
        flags = [ir.Constant(ir.IntType(32), x) for x in (0, 3, 1)]
        step = ir.Constant(first_.type, 64 * 8 // A.dtype.bitwidth)
        data = data_of(context, builder, A, A_)
        with cgutils.for_range_slice(builder, first_, end_, step) as (index, _):
            place = builder.bitcast(builder.gep(data, [index]), ir.PointerType(ir.IntType(8)))
            builder.call(function, [place, *flags])
        return context.get_dummy_value()

    return types.none(A, first, end), codegen


@njit(**OPTIONS)
def share_of(third, A, first, rows, D, turns):
    """A third (0, 1, 2) of some rows of A, flat: its start, its end, and a turn's share of it."""
    start, end = (first + rows * third // 3) * D, (first + rows * (third + 1) // 3) * D
    line = 64 // A.itemsize
    return start, end, -(-(end - start) // (line * max(1, turns))) * line


@njit(**OPTIONS)
def logits(W, H, first, rows, Z, keep, ahead):
    """`Z[j, i] = <w_j, h_{first + i}>`, added to Z where `keep`.

    Meanwhile a third of the rows of H that stand `ahead` rows further on is fetched, unless that
    is 0, and the other thirds in the other products: a chunk is read in a burst otherwise, and
    arithmetic and memory wait for each other.
    """
    K, D = W.shape
    ldz = Z.shape[1]
    count = D * W.itemsize // 32
    block = max(4, BLOCK_BYTES // (D * W.itemsize) // 4 * 4)
    at, end, share = share_of(0, H, first + ahead, rows if ahead else 0, D, K // 5 * (rows // 2))
    for low in range(0, rows, block):
        high = min(low + block, rows)
        twos = low + (high - low) // 2 * 2
        fours = low + (high - low) // 4 * 4
        j = 0
        while j + 5 <= K:
            w, z = j * D, j * ldz
            for i in range(low, twos, 2):
                prefetch(H, at, min(at + share, end))
                at += share
                _dot_tile(2, 5, Z, z + i, ldz, W, w, H, (first + i) * D, D, count, keep)
            for i in range(twos, high):
                _dot_tile(1, 5, Z, z + i, ldz, W, w, H, (first + i) * D, D, count, keep)
            j += 5
        while j + 2 <= K:
            w, z = j * D, j * ldz
            for i in range(low, fours, 4):
                _dot_tile(4, 2, Z, z + i, ldz, W, w, H, (first + i) * D, D, count, keep)
            for i in range(fours, high):
                _dot_tile(1, 2, Z, z + i, ldz, W, w, H, (first + i) * D, D, count, keep)
            j += 2
        if j < K:
            w, z = j * D, j * ldz
            for i in range(low, fours, 4):
                _dot_tile(4, 1, Z, z + i, ldz, W, w, H, (first + i) * D, D, count, keep)
            for i in range(fours, high):
                _dot_tile(1, 1, Z, z + i, ldz, W, w, H, (first + i) * D, D, count, keep)


@njit(**OPTIONS)
def class_sums(Z, H, first, rows, sums, ahead=0):
    """`sums[j] += sum_i Z[j, i] h_{first + i}`; `ahead` as in `logits`."""
    K, D = sums.shape
    one = sums.dtype.type(1.0)
    L = 32 // H.itemsize
    ld = Z.shape[1]
    at, end, share = share_of(1, H, first + ahead, rows if ahead else 0, D, D // (2 * L) * (K // 4))
    # A strip of H, one cache line wide, meets all classes while it is in the L1 cache.
    for f in range(0, D - 2 * L + 1, 2 * L):
        h = first * D + f
        j = 0
        while j + 6 <= K:
            prefetch(H, at, min(at + share, end))
            at += share
            _outer_tile(6, 2, 1, sums, j * D + f, D, Z, j * ld, 1, ld, H, h, D, rows, one)
            j += 6
        if j + 4 <= K:
            prefetch(H, at, min(at + share, end))
            at += share
            _outer_tile(4, 2, 1, sums, j * D + f, D, Z, j * ld, 1, ld, H, h, D, rows, one)
            j += 4
        while j < K:
            _outer_tile(1, 2, 1, sums, j * D + f, D, Z, j * ld, 1, ld, H, h, D, rows, one)
            j += 1
    if D % (2 * L):
        f = D - L
        h = first * D + f
        j = 0
        while j + 6 <= K:
            _outer_tile(6, 1, 1, sums, j * D + f, D, Z, j * ld, 1, ld, H, h, D, rows, one)
            j += 6
        while j < K:
            _outer_tile(1, 1, 1, sums, j * D + f, D, Z, j * ld, 1, ld, H, h, D, rows, one)
            j += 1


@njit(**OPTIONS)
def sample_sums(Z, W, alpha, keep, C, first, rows, ahead=0):
    """`C[first + i] = alpha sum_j Z[j, i] w_j`, added to C where `keep`; `ahead` as in `logits`."""
    K, D = W.shape
    L = 32 // W.itemsize
    ld = Z.shape[1]
    for i in range(first, first + rows if not keep else first):
        for f in range(C.shape[1]):
            C[i, f] = 0.0
    turns = rows // 6 * (D // (2 * L))
    at, end, share = share_of(2, C, first + ahead, rows if ahead else 0, D, turns)
    # A few rows of C are finished at a time, so that they are visited page by page. A sum over few
    # classes is soon done: tiles are smaller, so that the next one begins meanwhile.
    i = 0
    few = K <= FEW_CLASSES and K % 5 == 0 and D % (2 * L) == 0
    while few and i + 4 <= rows:
        for f in range(0, D, 2 * L):
            prefetch(C, at, min(at + share, end))
            at += share
            c = (first + i) * D + f
            _outer_tile(4, 2, 5, C, c, D, Z, i, ld, 1, W, f, D, K // 5, alpha)
        i += 4
    while not few and i + 6 <= rows:
        c = (first + i) * D
        for f in range(0, D - 2 * L + 1, 2 * L):
            prefetch(C, at, min(at + share, end))
            at += share
            _outer_tile(6, 2, 1, C, c + f, D, Z, i, ld, 1, W, f, D, K, alpha)
        if D % (2 * L):
            f = D - L
            _outer_tile(6, 1, 1, C, c + f, D, Z, i, ld, 1, W, f, D, K, alpha)
        i += 6
    while i < rows:
        c = (first + i) * D
        for f in range(0, D - 2 * L + 1, 2 * L):
            _outer_tile(1, 2, 1, C, c + f, D, Z, i, ld, 1, W, f, D, K, alpha)
        if D % (2 * L):
            f = D - L
            _outer_tile(1, 1, 1, C, c + f, D, Z, i, ld, 1, W, f, D, K, alpha)
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
