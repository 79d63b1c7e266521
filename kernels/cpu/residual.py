"""From logits to losses and residuals `r = p - onehot`, in place, for a chunk of samples.

`Z (K, ld)` holds the logits class by class, so that samples lie side by side, a vector of them
at a time. With `D_j = z_j - z_y`:

    shift_i   one number for the chunk, <= 0: 0, or in the log domain the largest gap of all
              (rounded down to a multiple of 16); a sample whose own largest gap m is above
              `LIMIT`, where the exponential could overflow, is shifted by m instead
    e_j       exp(D_j - shift), j != y;     S = sum_{j != y} e_j
    ordinary  x = e^shift S,  den = 1 + x,       loss = e^-shift log1p(x),  r_j = e_j / den
    shifted   den = exp(-m) + S,                 loss = m + log(den)
    r_y       -S / den, never p_y - 1

In the log domain both come out divided by e^shift: nothing underflows, and since a gap differs
from the shift by less than a factor of two wherever it matters, `D_j - shift` is exact.

A NaN in W or H, and an infinity, show in the loss: `0 z_y` is added to it.
Cost: K exponentials and about 25 operations in all a logit and sample; bound by arithmetic.
"""

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastnc.kernels.cpu.elementary import Elementary, log1p
from fastnc.kernels.cpu.options import OPTIONS, njit
from fastnc.kernels.cpu.tile import REGISTER_BYTES, Emitter, data_of

# e^LIMIT times 10^12 classes is finite in float32.
LIMIT = 60.0
# Shifts are multiples of this, so that a shift seldom changes from chunk to chunk.
STEP = 16.0
# Samples that are worked on side by side: rows of Z and `work` have room for a multiple of it.
GROUP = 4 * REGISTER_BYTES // 8
FLAGS = {"contract", "nsz", "arcp"}
N_WORK = 5


@njit(fastmath=FLAGS | {"reassoc"}, **OPTIONS)
def _total(values, n):
    """Sum in float64; any order will do, and this one depends on n alone."""
    total = 0.0
    for i in range(n):
        total += np.float64(values[i])
    return total


@intrinsic
def _largest(typingctx, Z, z, ld, K, out, o):
    """out[o + l] = max_j Z[z + j ld + l] over `GROUP` samples l."""

    def codegen(context, builder, signature, args):
        Z_, z_, ld_, K_, out_, o_ = args
        emit = Emitter(builder, Z.dtype)
        Z_ = builder.gep(data_of(context, builder, Z, Z_), [z_])
        out_ = builder.gep(data_of(context, builder, out, out_), [o_])
        n = GROUP // emit.lanes

        def body(j, tops):
            row = emit.offset(Z_, (j, ld_))
            new = []
            for i, top in enumerate(tops):
                z = emit.load(emit.skip(row, i * emit.lanes))
                new.append(builder.select(builder.fcmp_ordered(">", z, top), z, top))
            return new

        least = ir.Constant(emit.vector, [ir.Constant(emit.element, -math.inf)] * emit.lanes)
        for i, top in enumerate(emit.accumulate(K_, n, body, least)):
            emit.store(top, emit.skip(out_, i * emit.lanes))
        return context.get_dummy_value()

    return types.none(Z, z, ld, K, out, o), codegen


@intrinsic
def _exponentiate(typingctx, n, Z, z, ld, turns, work, own, shift, total):
    """Z[z + j ld + l] becomes exp((Z - work[own + l]) - work[shift + l]), added to work[total + l].

    j over n classes in each of `turns` turns.
    """
    n_classes = getattr(n, "literal_value", None)
    if n_classes is None:
        return None

    def codegen(context, builder, signature, args):
        _, Z_, z_, ld_, turns_, work_, own_, shift_, total_ = args
        emit = Emitter(builder, Z.dtype)
        elementary = Elementary(builder, emit.vector)
        Z_ = builder.gep(data_of(context, builder, Z, Z_), [z_])
        work_ = data_of(context, builder, work, work_)
        width = GROUP // emit.lanes

        def vectors(first):
            pointer = builder.gep(work_, [first])
            return [emit.skip(pointer, i * emit.lanes) for i in range(width)]

        labels = [emit.load(p) for p in vectors(own_)]
        shifts = [emit.load(p) for p in vectors(shift_)]
        totals = vectors(total_)

        def body(turn, sums):
            first = builder.mul(turn, ir.Constant(ir.IntType(64), n_classes))
            places, gaps = [], []
            for j in range(n_classes):
                row = emit.offset(Z_, (first, ld_), (j, ld_))
                for i in range(width):
                    places.append(emit.skip(row, i * emit.lanes))
                    gap = builder.fsub(emit.load(places[-1]), labels[i])
                    gaps.append(builder.fsub(gap, shifts[i]))
            sums = list(sums)
            for k, e in enumerate(elementary.exps(gaps)):
                emit.store(e, places[k])
                sums[k % width] = builder.fadd(sums[k % width], e)
            return sums

        start = [emit.load(p) for p in totals]
        for place, value in zip(totals, emit.accumulate(turns_, width, body, start), strict=True):
            emit.store(value, place)
        return context.get_dummy_value()

    return types.none(n, Z, z, ld, turns, work, own, shift, total), codegen


@njit(fastmath=FLAGS | {"reassoc"}, **OPTIONS)
def _poison(values, n):
    """0, or NaN where a value is not finite."""
    total = 0.0
    for i in range(n):
        total += 0.0 * np.float64(values[i])
    return total


@njit(fastmath=FLAGS, **OPTIONS)
def exponentials(Z, rows, y, first, in_log_domain, work):
    """Z becomes e (0 in the label's place); returns the chunk's shift and its summed loss.

    `work (5, m)`, m as the rows of Z, receives z_y, the samples' shifts, S, and 1 / den.
    """
    K, ld = Z.shape
    m = work.shape[1]
    real = Z.dtype.type
    own, shifts, S, inverse = work[0], work[1], work[2], work[3]
    for i in range(rows):
        label = y[first + i]
        own[i] = Z[label, i]
        Z[label, i] = -np.inf
    for i in range(0, rows, GROUP):
        _largest(Z, i, ld, K, work, m + i)
    for i in range(rows):
        shifts[i] -= own[i]
    shift = 0.0
    if in_log_domain:
        top = real(-np.inf)
        for i in range(rows):
            top = shifts[i] if shifts[i] > top else top
        # Down, not up: nothing is then smaller than it is divided by the loss.
        shift = min(0.0, STEP * np.floor(np.float64(top) / STEP))
    unit = real(math.exp(shift))
    above = 0
    for i in range(rows):
        above += shifts[i] > real(LIMIT)
        shifts[i] = shifts[i] if shifts[i] > real(LIMIT) else real(shift)
    poison = _poison(own, rows)
    for i in range(0, rows, GROUP):
        for k in range(i, i + GROUP):
            S[k] = real(0.0)
        if K > 1:
            _exponentiate(2, Z, i, ld, K // 2, work, i, m + i, 2 * m + i)
        if K % 2:
            _exponentiate(1, Z, (K - 1) * ld + i, ld, 1, work, i, m + i, 2 * m + i)
    # Below `tiny`, log1p(x) / x rounds to 1.
    tiny = real(1e-30)
    for i in range(rows):
        x = unit * S[i]
        inverse[i] = real(1.0) / (real(1.0) + x)
        own[i] = S[i] * (log1p(x) / x if x > tiny else real(1.0))
    if above:
        for i in range(rows):
            if shifts[i] > real(LIMIT):
                den = math.exp(-shifts[i]) + S[i]
                inverse[i] = real(1.0) / den
                own[i] = shifts[i] + math.log(den)
    return shift, _total(own, rows) + poison


@njit(fastmath=FLAGS, **OPTIONS)
def residuals(Z, rows, y, first, factor, work):
    """Z, the exponentials, becomes `factor` r; `work` is as `exponentials` left it."""
    S, inverse = work[2], work[3]
    for i in range(rows):
        inverse[i] *= factor
    for j in range(Z.shape[0]):
        for i in range(rows):
            Z[j, i] *= inverse[i]
    for i in range(rows):
        Z[y[first + i], i] = -S[i] * inverse[i]


@njit(fastmath=FLAGS, **OPTIONS)
def derivatives(Z, V, rows, y, first, work):
    """Z, the exponentials, becomes r, and V, the logits' derivatives, becomes r'.

    `work` is as `exponentials` left it; its last row receives s.
    """
    own, shifts, S, inverse, s = work[0], work[1], work[2], work[3], work[4]
    for i in range(rows):
        own[i] = V[y[first + i], i]
        s[i] = Z.dtype.type(0.0)
    # The label's exponential is 0.
    for j in range(Z.shape[0]):
        for i in range(rows):
            V[j, i] -= own[i]
            s[i] += Z[j, i] * V[j, i]
    for i in range(rows):
        s[i] *= inverse[i]
    for j in range(Z.shape[0]):
        for i in range(rows):
            p = Z[j, i] * inverse[i]
            Z[j, i] = p
            V[j, i] = p * (V[j, i] - s[i])
    for i in range(rows):
        label = y[first + i]
        # A shift of an ordinary sample is 0.
        Z[label, i] = -S[i] * inverse[i]
        V[label, i] = -math.exp(-shifts[i]) * inverse[i] * s[i]
