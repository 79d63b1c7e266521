"""Logits of a chunk of samples as register tiles over W packed in panels of classes.

Letters as in tile_cpu: K classes, D features (a multiple of L, the numbers of a vector). A panel
holds two or three vectors of classes, [feature][class], so that a number of H, spread over a
vector, meets them without a sum across lanes at the end: 4 samples x 3 vectors, 12 sums in
registers and 7 loads for 12 multiply-adds. The tile is transposed on its way out, for logits lie
class by class: `Z[j, i] = <w_j, h_i>`.

Where classes fill vectors this is faster than the products of rows in tile_cpu, the more so the
fewer features there are; a panel of few classes is mostly padding. Bound by the multiply-add rate.
The order of every sum depends on the shape alone.
"""

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from fastnc.kernels.cpu.options import OPTIONS, njit
from fastnc.kernels.cpu.tile import REGISTER_BYTES, Emitter, constants, data_of, prefetch, share_of

# Numbers that are packed sooner than a second thread is woken.
ALONE = 1 << 17


def room(K, D, dtype):
    """Where panels of a (K, D) matrix go: whole vectors of classes, at least two."""
    L = REGISTER_BYTES // dtype.itemsize
    return np.empty(max(2, -(-K // L)) * L * D, dtype)


@njit(**OPTIONS)
def n_panels(panels, D):
    """How many panels of two or three vectors of classes there are."""
    return (len(panels) * panels.itemsize // (D * 32) + 2) // 3


@njit(**OPTIONS)
def panel(q, panels, D):
    """Panel q: its first class, and how many vectors of classes it has."""
    vectors = len(panels) * panels.itemsize // (D * 32)
    start = min(3 * q, vectors - 2)
    left = vectors - start
    return start * (32 // panels.itemsize), 2 if left == 2 or left == 4 else 3


@njit(**OPTIONS)
def pack_panel(W, panels, D, q):
    """Panel q, which starts at `panels[D * its first class]`: [feature][class]."""
    K, d = W.shape
    low, width = panel(q, panels, D)
    width *= 32 // W.itemsize
    for j in range(low, low + width):
        for f in range(D):
            value = W[j, f] if j < K and f < d else W.dtype.type(0.0)
            panels[low * D + f * width + j - low] = value


def _columns(emit, rows):
    """The transpose of 4 vectors: `lanes` vectors of 4."""
    if emit.lanes == 4:
        a, b = (emit.shuffle(x, y, [0, 4, 2, 6]) for x, y in (rows[:2], rows[2:]))
        c, d = (emit.shuffle(x, y, [1, 5, 3, 7]) for x, y in (rows[:2], rows[2:]))
        low, high = [0, 1, 4, 5], [2, 3, 6, 7]
        return [emit.shuffle(*p, m) for m in (low, high) for p in ((a, b), (c, d))]
    low, high = [0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15]
    pairs = [[emit.shuffle(x, y, m) for x, y in (rows[:2], rows[2:])] for m in (low, high)]
    first, second = [0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]
    quads = [emit.shuffle(*p, m) for p in pairs for m in (first, second)]
    return [emit.shuffle(q, q, list(range(h, h + 4))) for h in (0, 4) for q in quads]


@intrinsic
def _panel_tile(typingctx, m, Z, z, ldz, P, p, H, h, ldh, count):
    """Z[z + j ldz + i] = sum_k P[p + k m L + j] H[h + i ldh + k]: m L classes, 4 samples."""
    (n_vectors,) = constants(m)
    if n_vectors is None:
        return None

    def codegen(context, builder, signature, args):
        _, Z_, z_, ldz_, P_, p_, H_, h_, ldh_, count_ = args
        emit = Emitter(builder, H.dtype)
        Z_ = builder.gep(data_of(context, builder, Z, Z_), [z_])
        P_ = builder.gep(data_of(context, builder, P, P_), [p_])
        H_ = builder.gep(data_of(context, builder, H, H_), [h_])

        def body(k, sums):
            row = emit.offset(P_, (k, ir.Constant(ir.IntType(64), n_vectors * emit.lanes)))
            classes = [emit.load(emit.skip(row, v * emit.lanes)) for v in range(n_vectors)]
            column = builder.gep(H_, [k])
            new = []
            for i in range(4):
                value = emit.splat(builder.load(emit.offset(column, (i, ldh_))))
                for v, some in enumerate(classes):
                    new.append(emit.multiply_add(value, some, sums[i * n_vectors + v]))
            return new

        sums = emit.accumulate(count_, 4 * n_vectors, body, emit.zero)
        for v in range(n_vectors):
            for j, column in enumerate(_columns(emit, sums[v::n_vectors])):
                emit.store(column, emit.offset(Z_, (v * emit.lanes + j, ldz_)))
        return context.get_dummy_value()

    kinds = (m, Z, z, ldz, P, p, H, h, ldh, count)
    return types.none(*kinds), codegen


@njit(parallel=True, **OPTIONS)
def _pack(W, panels, D):
    for q in prange(n_panels(panels, D)):
        pack_panel(W, panels, D, np.int64(q))


@njit(**OPTIONS)
def _pack_alone(W, panels, D):
    for q in range(n_panels(panels, D)):
        pack_panel(W, panels, D, q)


def packed(W, D):
    """Panels of W, with zeros beside its features up to D of them."""
    panels = room(len(W), D, W.dtype)
    (_pack if panels.size > ALONE else _pack_alone)(W, panels, D)
    return panels


@njit(**OPTIONS)
def logits(panels, H, D, first, rows, Z, ahead):
    """`Z[j, i] = <w_j, h_{first + i}>`; Z has room for whole vectors, `ahead` as in tile_cpu."""
    ld = Z.shape[1]
    turns = n_panels(panels, D) * (rows // 4)
    at, end, share = share_of(0, H, first + ahead, rows if ahead else 0, D, turns)
    for q in range(n_panels(panels, D)):
        low, width = panel(q, panels, D)
        i = 0
        while i < rows:
            # The last four samples again, or one sample four times, rather than fewer.
            step = D
            if rows < 4:
                step = 0
            elif i + 4 > rows:
                i = rows - 4
            prefetch(H, at, min(at + share, end))
            at += share
            z, h, p = low * ld + i, (first + i) * D, low * D
            if width == 3:
                _panel_tile(3, Z, z, ld, panels, p, H, h, step, D)
            else:
                _panel_tile(2, Z, z, ld, panels, p, H, h, step, D)
            i += 4 if rows >= 4 else 1
