"""One step of a minibatch on the mean loss (4): the loops themselves.

Rows of H are taken where they lie, features in the lanes of explicit vectors, padded with zeros to
whole ones. A logit is then a sum over lanes: those of one or two vectors of samples are formed
together, a row each of P, whose transposed sums hold samples in lanes, where the softmax
of `epoch` makes their residuals. Both sums over those take features in lanes again, one residual in
all of them: dW needs no sum over lanes.

    D     w_k - w_K, K - 1 rows               P     products of h and D: class, sample, lane
    R     residuals: class, sample            G     what is due to rows of H, where that waits

What the arrays hold besides, and how long, stands in `batch_trajectory`.
Everything here is made to be inlined.
"""

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from fastnc.kernels.cpu.emitter import sum_each
from fastnc.kernels.cpu.epoch import _residuals
from fastnc.kernels.cpu.options import INNER, njit
from fastnc.kernels.cpu.processor import native_lanes
from fastnc.kernels.cpu.ruled_epoch import ADAM, NESTEROV, update
from fastnc.kernels.cpu.simd import (
    _fma,
    _llvm_type,
    _splat,
    _vector_of,
    add,
    fma,
    mul,
    n_lanes,
    sub,
)
from fastnc.kernels.cpu.simd_blocks import (
    _access_size,
    _pointer,
    address,
    label_gaps_of_differences,
    load_like,
    load_members,
    store,
    store_members,
)


@intrinsic
def add_rows(typingctx, sums, array, index, stride, h):
    """sums[k] + w_k h for every member, w_k the vector at array[index + k * stride]."""
    kind = _vector_of(sums)

    def codegen(context, builder, signature, args):
        _, array_type, index_type, *_ = signature.args
        base = _pointer(context, builder, array_type, args[1], index_type, args[2])
        out = []
        for k in range(sums.count):
            place = builder.gep(base, [builder.mul(args[3], ir.Constant(args[3].type, k))])
            place = builder.bitcast(place, _llvm_type(kind).as_pointer())
            w = builder.load(place, align=_access_size(array_type))
            out.append(_fma(builder, w, args[4], builder.extract_value(args[0], k)))
        return context.make_tuple(builder, sums, out)

    return sums(sums, array, index, stride, h), codegen


@intrinsic
def sums_over_lanes(typingctx, array, like):
    """For each member k the sums of n vectors of w lanes from array[k n w] on, as one of n lanes.

    w are the native lanes and n a multiple of them, the lanes of `like`.
    """
    kind = _vector_of(like)
    width, n = native_lanes(str(array.dtype)), kind.lanes

    def codegen(context, builder, signature, args):
        array_type = signature.args[0]
        base = _pointer(
            context, builder, array_type, args[0], types.intp, ir.Constant(ir.IntType(64), 0)
        )
        native = ir.VectorType(_llvm_type(kind).element, width)
        out = []
        for k in range(like.count):
            parts = []
            for first in range(k * n, (k + 1) * n, width):
                rows = []
                for i in range(first, first + width):
                    place = builder.gep(base, [ir.Constant(ir.IntType(64), i * width)])
                    place = builder.bitcast(place, native.as_pointer())
                    rows.append(builder.load(place, align=_access_size(array_type)))
                parts.append(sum_each(builder, rows))
            out.append(_joined(builder, parts))
        return context.make_tuple(builder, like, out)

    return like(array, like), codegen


def _joined(builder, parts):
    """Vectors one after the other; of each two neighbours one, until one is left."""
    while len(parts) > 1:
        lanes = ir.Constant(
            ir.VectorType(ir.IntType(32), 2 * parts[0].type.count),
            list(range(2 * parts[0].type.count)),
        )
        parts = [
            builder.shuffle_vector(a, b, lanes)
            for a, b in zip(parts[::2], parts[1::2], strict=True)
        ]
    return parts[0]


@intrinsic
def of_a_sample(typingctx, sums, factors, array, index, stride, h):
    """sums[k] + r_k h for every k and, as one more member, sum_k factors[k] r_k.

    r_k, array[index + k * stride], is in every lane.
    """
    kind = _vector_of(sums)
    result = types.UniTuple(kind, sums.count + 1)

    def codegen(context, builder, signature, args):
        _, _, array_type, index_type, _, _ = signature.args
        base = _pointer(context, builder, array_type, args[2], index_type, args[3])
        out, total = [], None
        for k in range(sums.count):
            place = builder.gep(base, [builder.mul(args[4], ir.Constant(args[4].type, k))])
            r = _splat(builder, kind, builder.load(place))
            factor = builder.extract_value(args[1], k)
            out.append(_fma(builder, r, args[5], builder.extract_value(args[0], k)))
            total = builder.fmul(factor, r) if k == 0 else _fma(builder, factor, r, total)
        return context.make_tuple(builder, result, [*out, total])

    return result(sums, factors, array, index, stride, h), codegen


@njit(forceinline=True, **INNER)
def differences(W, D, f, width, group):
    """w_k - w_K of a vector of features."""
    w = load_members(W, f, width, group)
    store_members(D, f, width, sub(w[:-1], w[-1]))


@njit(forceinline=True, **INNER)
def _block(D, H, batch, count, labels, steps, P, R, width, padded, others, narrow, limit):
    """Residuals of at most as many samples as `others` has lanes; `narrow` has a register's."""
    zero = narrow[0]
    lanes, native = n_lanes(others), n_lanes(zero)
    # What is left of rows in the second half of P is that of lanes that hold no sample: zero.
    rows = address(P, 0 if count == lanes else lanes * native * len(others))
    for i in range(count):
        h = address(H, batch[i] * width)
        products = narrow
        for f in range(0, width, native):
            products = add_rows(products, D, f, width, load_like(h, f, zero))
        store_members(rows, i * native, lanes * native, products)
    if count < lanes:
        store_members(rows, count * native, lanes * native, narrow)
    z = sums_over_lanes(rows, others)
    label = load_like(labels, 0, z)
    r = _residuals(label_gaps_of_differences(z, label), label, load_like(steps, 0, z), limit)
    store_members(R, 0, padded, r)


@njit(forceinline=True, **INNER)
def residuals(D, H, batch, count, labels, steps, P, R, width, padded, others, narrow, limit):
    """step * (p - onehot) of `count` samples, to R: two vectors of samples at a time, then one."""
    lanes, native = n_lanes(others), n_lanes(narrow)
    last = address(P, 2 * lanes * native * len(others))
    for b in range(0, count, lanes):
        here = min(count - b, lanes)
        if here > native:
            _block(
                D, H, address(batch, b), here, address(labels, b), address(steps, b), P,
                address(R, b), width, padded, others, narrow, limit,
            )  # fmt: skip
        else:
            _block(
                D, H, address(batch, b), here, address(labels, b), address(steps, b), last,
                address(R, b), width, padded, narrow, narrow, limit,
            )  # fmt: skip


@njit(forceinline=True, **INNER)
def idle(H, H_low, H_m, at, width, along, kept, zero, compensated):
    """Steps without a gradient of one row at once: h += along m, m <- kept m."""
    for f in range(at, at + width, n_lanes(zero)):
        m = load_like(H_m, f, zero)
        old = load_like(H, f, zero)
        if compensated:
            due = fma(m, along, load_like(H_low, f, zero))
            new = add(old, due)
            store(H_low, f, sub(due, sub(new, old)))
            store(H, f, new)
        else:
            store(H, f, fma(m, along, old))
        store(H_m, f, mul(m, kept))


@njit(forceinline=True, **INNER)
def step_of_batch(
    W, W_low, W_m, H, H_low, H_m, G_W, G_H, D, R, batch, count, width, padded, group, of_W, of_H,
    rule, coupled, compensated, waits, repeated,
):  # fmt: skip
    """Updates the rows of the batch and W, or adds what is due to the rows to G.

    With `repeated` a row may stand in the batch twice: all are read before one is updated.
    """
    zero = group[0]
    native = n_lanes(zero)
    for f in range(0, width, native):
        sums, w = group, load_members(W, f, width, group)
        for i in range(count):
            at = batch[i] * width + f
            both = of_a_sample(sums, w, R, i, padded, load_like(H, at, zero))
            sums = both[:-1]
            if waits:
                store(G_H, at, add(load_like(G_H, at, zero), both[-1]))
            elif not repeated:
                update(H, H_low, H_m, at, native, both[-1:], of_H, rule, coupled, compensated)
        if repeated and not waits:
            for i in range(count):
                both = of_a_sample(group, w, R, i, padded, zero)
                at = batch[i] * width + f
                update(H, H_low, H_m, at, native, both[-1:], of_H, rule, coupled, compensated)
        if rule == ADAM:
            store_members(G_W, f, width, sums)
        else:
            update(W, W_low, W_m, f, width, sums, of_W, rule, coupled, compensated)
            differences(W, D, f, width, group)


@njit(forceinline=True, **INNER)
def factors_of_idleness(number, rate, first, rule, kept, along):
    """What so many steps of momentum without a gradient make of m: `kept` m, and `along` m of h."""
    kept[0], along[0] = 1.0, 0.0
    for j in range(1, number + 1):
        kept[j] = kept[j - 1] * first
        along[j] = along[j - 1] + kept[j]
    for j in range(number + 1):
        along[j] *= rate * first if rule == NESTEROV else rate
