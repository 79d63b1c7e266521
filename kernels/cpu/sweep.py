"""Both products of a chunk's residuals in one sweep over W and its sums, packed in strips.

Letters as in tile_cpu: K classes, D features, a chunk of `rows` samples, `Z (>= K', ld)` its
residuals, class by class. A strip is one vector of features, L of them, of all classes:

    strips, sums (D / L, K', L)       near, near_C (D / L, rows, L): the samples, and their sums
    sums[f, j] += sum_i Z[j, i] near[f, i]        near_C[f, i] += sum_j Z[j, i] strips[f, j]

A tile of 5 classes x 4 samples reads 20 residuals, each spread over a vector, for 40 multiply-adds;
each of the two products alone would read them all. It passes through W and the sums once for a
chunk, wherever they are, which is what tells where they outgrow the second cache: there the tiles
of tile_cpu would read W once for every 6 samples. Classes go by in blocks, whose residuals stay in
that cache while all strips pass. K' is K in whole fives.

Bound by the multiply-add rate. The order of every sum depends on the shape alone.
"""

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from fastnc.kernels.cpu.options import OPTIONS, njit
from fastnc.kernels.cpu.tile import REGISTER_BYTES, Emitter, data_of

GROUP, SAMPLES = 5, 4
# Classes whose residuals stay in the second cache, and those packed or gathered at a time.
BLOCK = 240
# Numbers that are packed sooner than a second thread is woken.
ALONE = 1 << 17


@intrinsic
def _tile(typingctx, Z, z, ldz, W, w, S, s, H, h, C, c, count):
    """S[s + j L :] += sum_i Z[z + j ldz + i] H[h + i L :], C[c + i L :] += sum_j Z W[w + j L :].

    j over `GROUP` classes, i over `count` times `SAMPLES` samples.
    """

    def codegen(context, builder, signature, args):
        Z_, z_, ldz_, W_, w_, S_, s_, H_, h_, C_, c_, count_ = args
        emit = Emitter(builder, H.dtype)
        L = emit.lanes

        def start(kind, array, index):
            return builder.gep(data_of(context, builder, kind, array), [index])

        Z_, W_, S_, H_ = start(Z, Z_, z_), start(W, W_, w_), start(S, S_, s_), start(H, H_, h_)
        C_ = start(C, C_, c_)

        def body(turn, sums):
            sums = list(sums)
            step = ir.Constant(ir.IntType(64), SAMPLES * L)
            source, target = emit.offset(H_, (turn, step)), emit.offset(C_, (turn, step))
            samples = [emit.load(emit.skip(source, i * L)) for i in range(SAMPLES)]
            totals = [emit.load(emit.skip(target, i * L)) for i in range(SAMPLES)]
            column = emit.offset(Z_, (turn, ir.Constant(ir.IntType(64), SAMPLES)))
            for j in range(GROUP):
                row = emit.load(emit.skip(W_, j * L))
                residuals = emit.offset(column, (j, ldz_))
                for i in range(SAMPLES):
                    r = emit.splat(builder.load(emit.skip(residuals, i)))
                    sums[j] = emit.multiply_add(r, samples[i], sums[j])
                    totals[i] = emit.multiply_add(r, row, totals[i])
            for i in range(SAMPLES):
                emit.store(totals[i], emit.skip(target, i * L))
            return sums

        places = [emit.skip(S_, j * L) for j in range(GROUP)]
        sums = emit.accumulate(count_, GROUP, body, [emit.load(p) for p in places])
        for place, value in zip(places, sums, strict=True):
            emit.store(value, place)
        return context.get_dummy_value()

    return types.none(Z, z, ldz, W, w, S, s, H, h, C, c, count), codegen


def shape(K, D, dtype):
    """(D / L, K', L)."""
    L = REGISTER_BYTES // dtype.itemsize
    return D // L, -(-K // GROUP) * GROUP, L


@njit(**OPTIONS)
def pack_some(W, strips, low, high):
    """`strips[f, j, l] = W[j, f L + l]` for classes low to high - 1, and 0 where W ends."""
    K, d = W.shape
    n, _, L = strips.shape
    for j in range(low, high):
        for f in range(n):
            for v in range(L):
                at = f * L + v
                strips[f, j, v] = W[j, at] if j < K and at < d else W.dtype.type(0.0)


@njit(parallel=True, **OPTIONS)
def _pack(W, strips):
    for block in prange((strips.shape[1] + BLOCK - 1) // BLOCK):
        low = np.int64(block) * BLOCK
        pack_some(W, strips, low, min(low + BLOCK, strips.shape[1]))


def packed(W, D):
    """Strips of W, with zeros beside its features up to D of them, and below its classes."""
    strips = np.empty(shape(len(W), D, W.dtype), W.dtype)
    if strips.size > ALONE:
        _pack(W, strips)
    else:
        pack_some(W, strips, 0, strips.shape[1])
    return strips


@njit(**OPTIONS)
def products(Z, strips, sums, H, first, rows, near, near_C, alpha, keep, C, start):
    """`sums[f, j] += sum_i Z[j, i] h_{first + i}`, `C[start + i] = alpha sum_j Z[j, i] w_j`.

    The latter is added to C, which may be H, where `keep`. `near` and `near_C` are room for the
    strips of a chunk, rows in whole fours. Z is 0 in rows K to K'.
    """
    n, padded, L = strips.shape
    count = -(-rows // SAMPLES)
    size, ld, D = near.shape[1], Z.shape[1], n * L
    for i in range(count * SAMPLES):
        for f in range(n):
            for v in range(L):
                near[f, i, v] = H[first + i, f * L + v] if i < rows else H.dtype.type(0.0)
                near_C[f, i, v] = 0.0
    for j in range(padded if rows % SAMPLES else 0):
        # Beyond the chunk are numbers of an earlier one, or none at all.
        for i in range(rows, count * SAMPLES):
            Z[j, i] = 0.0
    for low in range(0, padded, BLOCK):
        for f in range(n):
            h = f * size * L
            for j in range(low, min(low + BLOCK, padded), GROUP):
                w = (f * padded + j) * L
                _tile(Z, j * ld, ld, strips, w, sums, w, near, h, near_C, h, count)
    for i in range(rows):
        for f in range(D // L):
            for v in range(L):
                at = f * L + v
                old = C[start + i, at] if keep else C.dtype.type(0.0)
                C[start + i, at] = old + alpha * near_C[f, i, v]
