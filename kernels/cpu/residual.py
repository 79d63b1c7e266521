"""From logits to losses and residuals `r = p - onehot`, in place, for a chunk of samples.

`Z (classes, ld)` holds logits class by class, so that samples lie side by side, a vector of them
at a time; it has all classes, or a block of them. With the gaps `D_j = z_j - z_y`, and m the
largest of j != y in any block:

    e_j    exp(D_j - m),  j != y, in blocks of 16 classes, which are added up in float64
    S      sum_{j != y} e_j
    m > 0  den = exp(-m) + S,   loss = m + log(den),    r_j = e_j / den
    else   x = e^m S,           loss = log1p(x),        r_j = e^m e_j / (1 + x)
    r_y    minus the sum of the others, never p_y - 1

m is replaced by 0 where the label has the largest logit and m is not so small that an exponential
could be subnormal; never in the log domain. Otherwise exponents are relative to the largest logit:
one rounding, and small where e is large. A chunk in which every m is that small has a scale e^c,
c = max m rounded down to a multiple of 16: losses and residuals are divided by it, and the results
are multiplied by it. So no term of a sum underflows unless the sum does.

The options of networks (weighted_cross_entropy) enter in `combine`: a class's weight v, the mass
`B_j = uniform_j` that smoothing moves to class j, and `A = keep v_y + sum_j B_j`:

    loss = A log(1 + sum_{j != y} e^{D_j}) - sum_{j != y} B_j D_j,   r_j = A p_j - B_j  (j != y)

A NaN in W or H, and an infinity, show in the loss: `0 z_y` is added to it.
Cost: K exponentials and about 25 operations in all a logit and sample; bound by arithmetic.
"""

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastnc.kernels.cpu.elementary import Elementary, exp, log1p
from fastnc.kernels.cpu.emitter import Emitter
from fastnc.kernels.cpu.options import INNER, NO_REASSOCIATION, REASSOCIATION, njit
from fastnc.kernels.cpu.processor import VECTOR_BYTES

# If all gaps are below it, exponents are relative to the largest: at -40 (-600 in float64) an
# exponential that becomes 0 is less than e^-47 (e^-108) of the largest.
LOWEST_4, LOWEST_8 = -40.0, -600.0
# The largest gap of no class at all: finite, so that the difference of two is a number, and below
# any gap between logits that are products of floats.
NOTHING = -(2.0**1023)
# Scales are e to multiples of this, so that they seldom change from chunk to chunk.
STEP = 16.0
# Vectors of samples that are worked on side by side: rows of Z have room for a multiple of them.
WIDTH = 2
# Classes whose exponentials are added up in the dtype.
CLASSES = 16


def group(itemsize):
    """Samples that are worked on side by side."""
    return WIDTH * VECTOR_BYTES // itemsize


@intrinsic
def _largest(typingctx, Z, z, ld, K, out, o):
    """out[o + l] = max_j Z[z + j ld + l] over a group of samples l."""

    def codegen(context, builder, signature, args):
        Z_, z_, ld_, K_, out_, o_ = args
        emit = Emitter(builder, Z.dtype)
        Z_, out_ = emit.start(context, Z, Z_, z_), emit.start(context, out, out_, o_)

        def body(j, tops):
            row = emit.offset(Z_, (j, ld_))
            new = []
            for i, top in enumerate(tops):
                z = emit.load(emit.skip(row, i * emit.lanes))
                new.append(builder.select(builder.fcmp_ordered(">", z, top), z, top))
            return new

        least = ir.Constant(emit.vector, [ir.Constant(emit.element, -math.inf)] * emit.lanes)
        for i, top in enumerate(emit.accumulate(K_, [least] * WIDTH, body)):
            emit.store(top, emit.skip(out_, i * emit.lanes))
        return context.get_dummy_value()

    return types.none(Z, z, ld, K, out, o), codegen


@intrinsic
def _exponentiate(typingctx, n, Z, z, ld, turns, origin, at, S, lost):
    """Z[z + j ld + l] becomes exp(Z - origin[at + l]), added to S[at + l].

    j over n classes in each of `turns` turns; float64 S and what its rounding lost.
    """
    n_classes = getattr(n, "literal_value", None)
    if n_classes is None:
        return None

    def codegen(context, builder, signature, args):
        _, Z_, z_, ld_, turns_, origin_, at_, S_, lost_ = args
        emit = Emitter(builder, Z.dtype)
        elementary = Elementary(builder, emit.vector)
        Z_ = emit.start(context, Z, Z_, z_)
        origin_ = emit.start(context, origin, origin_, at_)
        origins = [emit.load(emit.skip(origin_, i * emit.lanes)) for i in range(WIDTH)]

        def body(turn, sums):
            first = builder.mul(turn, ir.Constant(ir.IntType(64), n_classes))
            places, gaps = [], []
            for j in range(n_classes):
                row = emit.offset(Z_, (first, ld_), (j, ld_))
                for i in range(WIDTH):
                    places.append(emit.skip(row, i * emit.lanes))
                    gaps.append(builder.fsub(emit.load(places[-1]), origins[i]))
            sums = list(sums)
            for k, e in enumerate(elementary.exps(gaps)):
                emit.store(e, places[k])
                sums[k % WIDTH] = builder.fadd(sums[k % WIDTH], e)
            return sums

        sums = emit.accumulate(turns_, [emit.zero] * WIDTH, body)
        wide = ir.VectorType(ir.DoubleType(), emit.lanes)
        S_, lost_ = emit.start(context, S, S_, at_), emit.start(context, lost, lost_, at_)
        for i, value in enumerate(sums):
            value = value if emit.size == 8 else builder.fpext(value, wide)
            places = [emit.skip(p, i * emit.lanes) for p in (S_, lost_)]
            places = [builder.bitcast(p, wide.as_pointer()) for p in places]
            total, error = (builder.load(p, align=8) for p in places)
            # Knuth's sum of two numbers and of what its rounding loses.
            new = builder.fadd(total, value)
            part = builder.fsub(new, total)
            rest = builder.fadd(
                builder.fsub(total, builder.fsub(new, part)), builder.fsub(value, part)
            )
            for result, place in zip((new, builder.fadd(error, rest)), places, strict=True):
                builder.store(result, place, align=8)
        return context.get_dummy_value()

    return types.none(n, Z, z, ld, turns, origin, at, S, lost), codegen


@njit(fastmath=REASSOCIATION, **INNER)
def total_of(values, n):
    """Sum in float64; any order will do, and this one depends on n alone."""
    total = 0.0
    for i in range(n):
        total += np.float64(values[i])
    return total


@njit(fastmath=NO_REASSOCIATION, **INNER)
def _lost(total, value):
    """What the rounding of `total + value` loses (Knuth); 0 if that is not finite."""
    new = total + value
    part = new - total
    found = (total - (new - part)) + (value - part)
    return found if math.isfinite(new) else 0.0


@njit(fastmath=NO_REASSOCIATION, **INNER)
def _moved(Z, low, y, rows, z_y, uniform, shift, origin, moved, base, part):
    """`moved[i] = sum_j B_j D_j` over a block's classes but the label, in float64.

    Gaps are those to the block's largest logit where the label's is smaller, so that all are of one
    sign; `base` and `part` are work arrays.
    """
    real = Z.dtype.type
    for i in range(rows):
        moved[i] = 0.0
        base[i] = origin[i] if shift[i] > 0.0 else z_y[i]
        label = y[i] - low
        if 0 <= label < Z.shape[0]:
            Z[label, i] = real(base[i])
    # Equal terms all round the same way: only a few are added in a row.
    lost = np.zeros(rows)
    for block in range(0, Z.shape[0], CLASSES):
        for i in range(rows):
            part[i] = 0.0
        for j in range(block, min(block + CLASSES, Z.shape[0])):
            mass = np.float64(uniform[low + j])
            for i in range(rows):
                part[i] += mass * (np.float64(Z[j, i]) - base[i])
        for i in range(rows):
            lost[i] += _lost(moved[i], part[i])
            moved[i] += part[i]
    for i in range(rows):
        moved[i] += lost[i]
        label = y[i] - low
        if 0 <= label < Z.shape[0]:
            Z[label, i] = -np.inf


@njit(fastmath=NO_REASSOCIATION, **INNER)
def exponentials(Z, low, y, rows, in_log_domain, uniform, z_y, shift, S, moved, origin):
    """Logits of the classes low, low + 1, ... become e (0 at the label), divided by e^shift.

    `z_y` are the labels' logits; `shift`, `S`, and `moved` for smoothing receive the block's
    contributions, in float64; `S (2, ld)` is sums and rounding errors. `origin` is a work array.
    """
    n_classes, ld = Z.shape
    real = Z.dtype.type
    many = WIDTH * VECTOR_BYTES // Z.itemsize
    for i in range(rows):
        label = y[i] - low
        if 0 <= label < n_classes:
            Z[label, i] = -np.inf
    for i in range(0, rows, many):
        _largest(Z, i, ld, n_classes, origin, i)
    lowest = LOWEST_4 if Z.itemsize == 4 else LOWEST_8
    if in_log_domain:
        lowest = np.inf
    whole = (rows + many - 1) // many * many
    for i in range(rows):
        # In float64: its rounding error would multiply the whole block.
        top = max(np.float64(origin[i]) - np.float64(z_y[i]), NOTHING)
        away = top < lowest or top > 0.0
        shift[i] = top if away else 0.0
        origin[i] = origin[i] if away and top > NOTHING else z_y[i]
    if len(uniform):
        _moved(Z, low, y, rows, z_y, uniform, shift, origin, moved, S[0], S[1])
    for i in range(rows, whole):
        origin[i] = real(0.0)
    for i in range(whole):
        S[0, i] = 0.0
        S[1, i] = 0.0
    for i in range(0, rows, many):
        for block in range(0, n_classes, CLASSES):
            turns = (min(block + CLASSES, n_classes) - block) // 2
            if turns:
                _exponentiate(2, Z, block * ld + i, ld, turns, origin, i, S[0], S[1])
        if n_classes % 2:
            _exponentiate(1, Z, (n_classes - 1) * ld + i, ld, 1, origin, i, S[0], S[1])


@njit(fastmath=NO_REASSOCIATION, **INNER)
def _ordinary(rows, all_of_m, z_y, shifts, S, factor, label_r, losses):
    """`combine` for one block in which no shift is negative; `losses` holds A."""
    real = z_y.dtype.type
    for i in range(rows):
        m, own, others = shifts[0, i], losses[i], S[0, 0, i] + S[0, 1, i]
        # den - 1: S where m is 0.
        x = others + (exp(-m) - 1.0)
        losses[i] = own * (all_of_m * m + log1p(x)) + 0.0 * np.float64(z_y[i])
        # Rounded as the others' residuals are: where there is one other, their sum is 0.
        g = np.float64(real(own / (1.0 + x)))
        factor[0, i] = g
        label_r[i] = -np.float64(real(others)) * g


@njit(fastmath=NO_REASSOCIATION, **INNER)
def _shifted(rows, c, all_of_m, z_y, shifts, S, factor, label_r, losses):
    """`combine` for any blocks and shifts; results are over e^c, and `losses` holds A."""
    n_blocks = len(shifts)
    for i in range(rows):
        m = shifts[0, i]
        for b in range(1, n_blocks):
            m = max(m, shifts[b, i])
        x = 0.0
        for b in range(n_blocks):
            apart = shifts[b, i] - m
            x += (S[b, 0, i] + S[b, 1, i]) * (1.0 if apart == 0.0 else math.exp(apart))
        if m > 0.0:
            den, scaled = math.exp(-m) + x, x
            loss, origin = all_of_m * m + math.log(den), m
        else:
            scaled, origin = x * math.exp(m - c), c
            x *= math.exp(m)
            den = 1.0 + x
            loss = scaled * (log1p(x) / x if x > 1e-300 else 1.0)
        # A label's logit that is not finite must show in the loss, whatever the others are.
        own = losses[i]
        losses[i] = own * loss + 0.0 * np.float64(z_y[i])
        g = own / den
        label_r[i] = -scaled * g
        for b in range(n_blocks):
            factor[b, i] = g * math.exp(shifts[b, i] - origin)


@njit(fastmath=NO_REASSOCIATION, **INNER)
def _smoothed(y, rows, block, weight, uniform, keep, shifts, moved, losses):
    """Adds `sum_j mass_j (m - D_j)` to the losses, where `moved` holds the blocks' sums.

    In each block of `block` classes gaps are to its own largest logit or to the label's.
    """
    lost = np.zeros(rows)
    for b in range(len(shifts)):
        low, high = b * block, min((b + 1) * block, len(uniform))
        mass = 0.0
        for first in range(low, high, CLASSES):
            part = 0.0
            for j in range(first, min(first + CLASSES, high)):
                part += np.float64(uniform[j])
            mass += part
        for i in range(rows):
            m = 0.0
            for other in range(len(shifts)):
                m = max(m, shifts[other, i])
            label, here = y[i], mass
            if low <= label < high:
                here -= np.float64(uniform[label])
                own = keep * (np.float64(weight[label]) if len(weight) else 1.0)
                value = (own + np.float64(uniform[label])) * m
                lost[i] += _lost(losses[i], value)
                losses[i] += value
            value = here * (m - max(shifts[b, i], 0.0)) - moved[b, i]
            lost[i] += _lost(losses[i], value)
            losses[i] += value
    for i in range(rows):
        losses[i] += lost[i]


@njit(fastmath=NO_REASSOCIATION, **INNER)
def _label_residuals(y, rows, weight, uniform, all_uniform, keep, shifts, factor, label_r):
    """`label_r`, so far `-A sum_{j != y} p_j`, with smoothing.

    `A p_y - B_y - keep v_y` where p_y is below 1/2, and minus the sum of the others elsewhere: of
    two forms the one that cancels less.
    """
    for i in range(rows):
        others = all_uniform - np.float64(uniform[y[i]])
        A = all_uniform + keep * (np.float64(weight[y[i]]) if len(weight) else 1.0)
        largest = 0
        for b in range(1, len(shifts)):
            if shifts[b, i] > shifts[largest, i]:
                largest = b
        # Where all shifts are negative p_y is close to 1.
        m, own = shifts[largest, i], A
        if m >= 0.0:
            own = factor[largest, i] * math.exp(-m)
        if own < 0.5 * A:
            label_r[i] = own - (A - others)
        else:
            label_r[i] += others


@njit(fastmath=NO_REASSOCIATION, **INNER)
def combine(
    y, rows, block, running, weight, uniform, all_uniform, keep, z_y, shifts, S, moved, factor,
    label_r, losses,
):  # fmt: skip
    """All blocks' `shifts`, `S` and `moved` (block, sample) to losses; returns c >= `running`.

    `losses` are divided by e^c; so are `factor`, which multiplies e of each block to make it
    A p_j, and `label_r`, the label's residual. All in float64.
    """
    top, least = -np.inf, np.inf
    for b in range(len(shifts)):
        for i in range(rows):
            top = max(top, shifts[b, i])
            least = min(least, shifts[b, i])
    c = 0.0
    # With smoothing losses are never small; with one class there is no gap.
    if NOTHING < top < 0.0 and not len(uniform):
        c = max(running, STEP * np.floor(top / STEP))
    # With smoothing `_smoothed` adds m, in sums of one sign.
    all_of_m = 0.0 if len(uniform) else 1.0
    for i in range(rows):
        losses[i] = all_uniform + keep
    if len(weight):
        for i in range(rows):
            losses[i] = all_uniform + keep * np.float64(weight[y[i]])
    if len(shifts) == 1 and least >= 0.0:
        _ordinary(rows, all_of_m, z_y, shifts, S, factor, label_r, losses)
    else:
        _shifted(rows, c, all_of_m, z_y, shifts, S, factor, label_r, losses)
    if len(uniform):
        _smoothed(y, rows, block, weight, uniform, keep, shifts, moved, losses)
        _label_residuals(y, rows, weight, uniform, all_uniform, keep, shifts, factor, label_r)
    return c


@njit(fastmath=NO_REASSOCIATION, **INNER)
def residuals(Z, low, y, rows, scale, uniform, factor, label_r, term):
    """Exponentials of the classes low, low + 1, ... become the residuals, times their scale.

    `scale` has one number, or one for every sample of H.
    """
    real = Z.dtype.type
    n_classes = Z.shape[0]
    for i in range(rows):
        term[i] = real(factor[i] * np.float64(scale[i] if len(scale) > 1 else scale[0]))
    for j in range(n_classes):
        for i in range(rows):
            Z[j, i] *= term[i]
    if len(uniform):
        for i in range(rows):
            term[i] = scale[i] if len(scale) > 1 else scale[0]
        for j in range(n_classes):
            for i in range(rows):
                Z[j, i] -= uniform[low + j] * term[i]
    for i in range(rows):
        label = y[i] - low
        if 0 <= label < n_classes:
            each = np.float64(scale[i] if len(scale) > 1 else scale[0])
            Z[label, i] = real(label_r[i] * each)


@njit(**INNER)
def add_row_sums(Z, rows, sums):
    """`sums[j] += sum_i Z[j, i]`, where `sums` has any rows."""
    for j in range(len(sums)):
        sums[j] += total_of(Z[j], rows)
