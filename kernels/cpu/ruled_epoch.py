"""Updates of vectors by momentum or Adam, and one epoch of them over all samples.

As `epoch`, whose residuals these are, for the classes of one pass; what the arrays hold stands in
`ruled_trajectory`. A sum of residuals times a factor is here minus a gradient, g:

    SCALED      x += lr g
    MOMENTUM    m <- mu m + g                       x += lr m
    NESTEROV    m <- mu m + g                       x += lr (g + mu m)
    ADAM        m <- b1 m + g, v <- b2 v + g^2      x += c m / (sqrt(v) + e)

Adam's m and v are its own over 1 - b1 and 1 - b2, which c and e make good. A coupled decay adds
`-lambda x` to g, a decoupled one `-lr lambda x` to the change.

Adam updates eight vectors together, once the gradients of eight features are there: see `adam`.
"""

from numba.core import types
from numba.extending import intrinsic

from fastnc.kernels.cpu.adam import least, rates_of_adam
from fastnc.kernels.cpu.epoch import _differences, _residual_block
from fastnc.kernels.cpu.options import OPTIONS, njit
from fastnc.kernels.cpu.simd import (
    _const,
    add,
    fma,
    n_lanes,
    sub,
)
from fastnc.kernels.cpu.simd_blocks import (
    address,
    both_products,
    load_like,
    load_members,
    splats,
    store,
    store_members,
)

SCALED, MOMENTUM, NESTEROV, ADAM = range(4)
# Numbers of an epoch and a factor: lr or c, mu or b1, b2, e, and -lambda of both decays.
N_NUMBERS = 6
# Features whose vectors are updated together.
TOGETHER = 8


def _so_many(n):
    """`n` vectors of zeros like those of a tuple."""

    @intrinsic
    def of(typingctx, members):
        kind = types.UniTuple(members.dtype, n)

        def codegen(context, builder, signature, args):
            return context.make_tuple(builder, kind, [_const(members.dtype, 0.0)] * n)

        return kind(members), codegen

    return of


_one, _two, _four, _eight = _so_many(1), _so_many(2), _so_many(4), _so_many(TOGETHER)


@njit(forceinline=True, **OPTIONS)
def _add(array, low, index, stride, factor, due, numbers, decoupled, compensated):
    """Vectors of a factor += factor due, in `array` and `low`; and the decoupled decay."""
    old = load_members(array, index, stride, due)
    base = old
    if compensated:
        base = load_members(low, index, stride, due)
    if decoupled:
        base = fma(old, numbers[5], base)
    change = fma(due, factor, base)
    if compensated:
        new = add(old, change)
        store_members(low, index, stride, sub(change, sub(new, old)))
        change = new
    store_members(array, index, stride, change)


@njit(forceinline=True, **OPTIONS)
def update(array, low, M, index, stride, g, numbers, rule, coupled, compensated):
    """Vectors of a factor, from `index` on every `stride`, with their moments at the same places.

    `g` is the tuple of minus their gradients. Any rule but Adam.
    """
    first = numbers[1]
    if coupled:
        g = fma(load_members(array, index, stride, g), numbers[4], g)
    if rule != SCALED:
        m = fma(load_members(M, index, stride, g), first, g)
        store_members(M, index, stride, m)
        g = fma(m, first, g) if rule == NESTEROV else m
    _add(array, low, index, stride, numbers[0], g, numbers, False, compensated)


@njit(forceinline=True, **OPTIONS)
def _update_by_adam(
    array, low, M, V, G, stride, G_stride, like, numbers, coupled, decoupled, compensated
):
    """As many vectors as `like` has members. First what divides them, which leaves registers."""
    rate, first, second, epsilon = numbers[:4]
    g = load_members(G, 0, G_stride, like)
    if coupled:
        g = fma(load_members(array, 0, stride, like), numbers[4], g)
    # Of a root without a number above 0 there is no estimate.
    v = fma(load_members(V, 0, stride, like), second, fma(g, g, least(g)))
    store_members(V, 0, stride, v)
    rates = rates_of_adam(v, epsilon, rate)
    g = load_members(G, 0, G_stride, like)
    if coupled:
        g = fma(load_members(array, 0, stride, like), numbers[4], g)
    m = fma(load_members(M, 0, stride, like), first, g)
    store_members(M, 0, stride, m)
    _add(array, low, 0, stride, rates, m, numbers, decoupled, compensated)


@njit(forceinline=True, **OPTIONS)
def update_together(
    array, low, M, V, G, stride, G_stride, count, zero, numbers, rule, coupled, decoupled,
    compensated,
):  # fmt: skip
    """`count` vectors, `stride` apart, by those `G_stride` apart in G: of Adam eight at a time."""
    if rule != ADAM:
        for i in range(count):
            g = load_members(G, i * G_stride, G_stride, _one(zero))
            update(array, low, M, i * stride, stride, g, numbers, rule, coupled, compensated)
        return
    at, G_at = 0, 0
    for _ in range(count // TOGETHER):
        _update_by_adam(
            address(array, at), address(low, at), address(M, at), address(V, at),
            address(G, G_at), stride, G_stride, _eight(zero), numbers, coupled, decoupled,
            compensated,
        )  # fmt: skip
        at += TOGETHER * stride
        G_at += TOGETHER * G_stride
    if count & 4:
        _update_by_adam(
            address(array, at), address(low, at), address(M, at), address(V, at),
            address(G, G_at), stride, G_stride, _four(zero), numbers, coupled, decoupled,
            compensated,
        )  # fmt: skip
        at += 4 * stride
        G_at += 4 * G_stride
    if count & 2:
        _update_by_adam(
            address(array, at), address(low, at), address(M, at), address(V, at),
            address(G, G_at), stride, G_stride, _two(zero), numbers, coupled, decoupled,
            compensated,
        )  # fmt: skip
        at += 2 * stride
        G_at += 2 * G_stride
    if count & 1:
        _update_by_adam(
            address(array, at), address(low, at), address(M, at), address(V, at),
            address(G, G_at), stride, G_stride, _one(zero), numbers, coupled, decoupled,
            compensated,
        )  # fmt: skip


@njit(forceinline=True, **OPTIONS)
def numbers_of(numbers, at):
    """The numbers of an epoch and a factor, which then live in registers."""
    return (
        numbers[at], numbers[at + 1], numbers[at + 2], numbers[at + 3], numbers[at + 4],
        numbers[at + 5],
    )  # fmt: skip


@njit(forceinline=True, **OPTIONS)
def _feature(
    W, H, H_low, H_m, dW, R, G, block, R_block, wide, n_wide, size, zero, numbers, rule, coupled,
    compensated,
):  # fmt: skip
    """A feature of all samples: the sums of r h; updates its rows of H, or G gets what is due."""
    native = n_lanes(zero)
    sums, w = zero, splats(W, 0, zero)
    h, r = 0, 0
    for i in range(0, n_wide + wide, wide):
        last = i == n_wide
        for j in range(0, size - n_wide if last else wide, native):
            both = both_products(sums, w, R, r + j, wide, load_like(H, h + j, zero))
            sums = both[:-1]
            if rule == ADAM:
                store(G, i + j, both[-1])
            else:
                update(H, H_low, H_m, h + j, native, both[-1:], numbers, rule, coupled, compensated)
        h += block
        r += R_block
    store_members(dW, 0, native, sums)


@njit(forceinline=True, **OPTIONS)
def _rows(
    H, H_low, H_m, H_v, G, block, wide, n_wide, size, rows, zero, numbers, rule, coupled,
    decoupled, compensated,
):  # fmt: skip
    """Updates some features of all samples by what is due in G."""
    native, h = n_lanes(zero), 0
    for i in range(0, n_wide + wide, wide):
        for j in range(0, size - n_wide if i == n_wide else wide, native):
            update_together(
                address(H, h + j), address(H_low, h + j), address(H_m, h + j), address(H_v, h + j),
                address(G, i + j), wide, size, rows, zero, numbers, rule, coupled, decoupled,
                compensated,
            )  # fmt: skip
        h += block


@njit(forceinline=True, **OPTIONS)
def ruled_epoch(
    W, H, H_low, H_m, H_v, dW, R, G, D, labels, steps, d, block, size, group, classes, narrow_group,
    narrow_classes, limit, numbers, rule, coupled, decoupled, compensated,
):  # fmt: skip
    """Updates H of all samples; `dW` gets their sums."""
    wide, native, K = n_lanes(group), n_lanes(narrow_group), len(group)
    _differences(W, D, d, narrow_classes, native)
    n_wide = size // wide * wide
    for i in range(0, n_wide, wide):
        _residual_block(
            D, address(H, i // wide * block), address(R, i * K), address(labels, i),
            address(steps, i), d, wide, group, classes, limit,
        )  # fmt: skip
    for i in range(n_wide, size, native):
        _residual_block(
            D, address(H, n_wide // wide * block + i - n_wide),
            address(R, n_wide * K + i - n_wide), address(labels, i), address(steps, i), d, wide,
            narrow_group, narrow_classes, limit,
        )  # fmt: skip
    for first in range(0, d, TOGETHER):
        rows = min(TOGETHER, d - first)
        for f in range(first, first + rows):
            at = f * wide
            _feature(
                address(W, f * K), address(H, at), address(H_low, at), address(H_m, at),
                address(dW, f * K * native), R, address(G, (f - first) * size), block, K * wide,
                wide, n_wide, size, narrow_group, numbers, rule, coupled, compensated,
            )  # fmt: skip
        if rule == ADAM:
            at = first * wide
            _rows(
                address(H, at), address(H_low, at), address(H_m, at), address(H_v, at), G, block,
                wide, n_wide, size, rows, narrow_group, numbers, rule, coupled, decoupled,
                compensated,
            )  # fmt: skip
