"""One epoch over a part of the samples, for at most 16 classes: the loops.

`trajectory` says what the arrays hold and why the loops take addresses. The part of a shape that
is known to the compiler comes as the types of tuples of zero vectors: `group` has a member for each
class of one pass over a block of samples, `classes` one for each of the K classes of a softmax.
Where one pass makes all logits, only the K - 1 differences to the last one are formed, from h and
the K - 1 differences of W's rows, D, and `classes` has K - 1 members.
All functions are inlined.
"""

from fastnc.kernels.cpu.options import INNER, OPTIONS, njit
from fastnc.kernels.cpu.simd import (
    add,
    all_within,
    div,
    exp,
    exp_wide,
    max_members,
    maximum,
    mul,
    n_lanes,
    sub,
    sum_members,
)
from fastnc.kernels.cpu.simd_blocks import (
    add_outer,
    address,
    both_products,
    label_entries,
    label_gaps,
    label_gaps_of_differences,
    load_like,
    load_members,
    splats,
    store,
    store_members,
)


@njit(forceinline=True, **OPTIONS)
def _residuals(gaps, labels, step, limit):
    """step * (p - onehot) of a block of samples, K entries, by the one stable formula.

    The label's entry is minus the sum of the others, so that every digit survives at any
    margin; the shift by the largest gap is made only where an exponential could overflow.
    """
    if all_within(gaps, limit):
        e = exp(gaps)
        total = sum_members(e)
        factor = div(step, add(total, 1.0))
    else:
        shift = maximum(max_members(gaps), 0.0)
        e = exp_wide(sub(gaps, shift))
        total = sum_members(e)
        factor = div(step, add(total, exp_wide(sub(0.0, shift))))
    return label_entries(mul(e, factor), sub(0.0, mul(total, factor)), labels)


@njit(forceinline=True, **INNER)
def add_change(array, low, index, change, compensated):
    """array += change; with `compensated`, `low` keeps the sum's rounding error."""
    old = load_like(array, index, change)
    if compensated:
        due = add(change, load_like(low, index, change))
        new = add(old, due)
        store(low, index, sub(due, sub(new, old)))
        store(array, index, new)
    else:
        store(array, index, add(old, change))


@njit(forceinline=True, **INNER)
def _logits(W, H, first_class, n_classes, d, stride, zero):
    """Logits of one group of classes: W feature-major, H's features `stride` floats apart."""
    z = zero
    for f in range(d):
        z = add_outer(z, W, f * n_classes + first_class, load_like(H, f * stride, z))
    return z


@njit(forceinline=True, **INNER)
def _residual_block(W, H, R, labels, steps, d, stride, group, classes, limit):
    """Residuals of a block of samples, to R: class by class, `stride` floats apart.

    `group` holds zeros for the classes of one pass, `classes` for the K of a softmax, of one
    register; or, where one pass makes them all, for the K - 1 differences, as wide as `group`.
    """
    lanes, narrow = n_lanes(group), n_lanes(classes)
    if len(group) > len(classes):
        z = _logits(W, H, 0, len(classes), d, stride, classes)
        label = load_like(labels, 0, z)
        gaps = label_gaps_of_differences(z, label)
        store_members(R, 0, stride, _residuals(gaps, label, load_like(steps, 0, z), limit))
        return
    n_groups = -(-len(classes) // len(group))
    for g in range(n_groups):
        first = g * len(group)
        z = _logits(W, H, first, n_groups * len(group), d, stride, group)
        store_members(R, first * stride, stride, z)
    for j in range(0, lanes, narrow):
        z = load_members(R, j, stride, classes)
        label = load_like(labels, j, z)
        r = _residuals(label_gaps(z, label), label, load_like(steps, j, z), limit)
        store_members(R, j, stride, r)


@njit(forceinline=True, **INNER)
def _vector_step(sums, w, H, H_low, R, G, stride, begin, end, compensated):
    """One feature of a vector of samples and a group of classes: the sums of r h, and a step of h.

    G accumulates the step over the groups, from `begin` to `end`; then h is updated.
    """
    both = both_products(sums, w, R, 0, stride, load_like(H, 0, w))
    change = both[-1]
    if not begin:
        change = add(change, load_like(G, 0, w))
    if end:
        add_change(H, H_low, 0, change, compensated)
    else:
        store(G, 0, change)
    return both[:-1]


@njit(forceinline=True, **INNER)
def _feature_step(
    W, H, H_low, dW, R, G, block, R_block, wide, n_wide, size, continued, zero, begin, end,
    compensated,
):  # fmt: skip
    """A feature and a group of classes over a chunk; `begin` and `end` are literals."""
    native = n_lanes(zero)
    sums = zero
    if continued:
        sums = load_members(dW, 0, native, zero)
    w = splats(W, 0, zero)
    h, r = 0, 0
    for i in range(0, n_wide, wide):
        for j in range(0, wide, native):
            sums = _vector_step(
                sums, w, address(H, h + j), address(H_low, h + j), address(R, r + j),
                address(G, i + j), wide, begin, end, compensated,
            )  # fmt: skip
        h += block
        r += R_block
    for j in range(0, size - n_wide, native):
        sums = _vector_step(
            sums, w, address(H, h + j), address(H_low, h + j), address(R, r + j),
            address(G, n_wide + j), wide, begin, end, compensated,
        )  # fmt: skip
    store_members(dW, 0, native, sums)


@njit(forceinline=True, **INNER)
def _differences(W, D, d, classes, native):
    """The K - 1 differences w_j - w_K of every feature; W and D end with a spare vector."""
    n = len(classes)
    for f in range(d):
        w = splats(W, f * (n + 1) + n, classes)[0]
        for j in range(0, n, native):
            store(D, f * n + j, sub(load_like(W, f * (n + 1) + j, w), w))


@njit(forceinline=True, **INNER)
def part_of_epoch(
    W, H, H_low, dW, R, G, D, labels, steps, d, block, chunk, first, last, group, classes,
    narrow_group, narrow_classes, limit, compensated, alone,
):  # fmt: skip
    """Updates the H of samples `first` to `last - 1`; their sums go to `dW`."""
    wide, native, members = n_lanes(group), n_lanes(narrow_group), len(group)
    n_groups = -(-len(classes) // members)
    logits_of = W
    if alone:
        _differences(W, D, d, narrow_classes, native)
        logits_of = D
    padded_K = n_groups * members
    for c in range(first, last, chunk):
        size = min(chunk, last - c)
        n_wide = size // wide * wide
        h = c // wide * block
        for i in range(0, n_wide, wide):
            _residual_block(
                logits_of, address(H, h + i // wide * block), address(R, i * padded_K),
                address(labels, c + i), address(steps, c + i), d, wide, group, classes, limit,
            )  # fmt: skip
        for i in range(n_wide, size, native):
            _residual_block(
                logits_of, address(H, h + n_wide // wide * block + i - n_wide),
                address(R, n_wide * padded_K + i - n_wide), address(labels, c + i),
                address(steps, c + i), d, wide, narrow_group, narrow_classes, limit,
            )  # fmt: skip
        for f in range(d):
            H_f, low_f = address(H, h + f * wide), address(H_low, h + f * wide)
            k = f * padded_K
            if alone:
                _feature_step(
                    address(W, k), H_f, low_f, address(dW, k * native), R, G, block,
                    padded_K * wide, wide, n_wide, size, c > first, narrow_group, True, True,
                    compensated,
                )  # fmt: skip
                continue
            for g in range(n_groups):
                W_g, dW_g = address(W, k + g * members), address(dW, (k + g * members) * native)
                R_g = address(R, g * members * wide)
                if g == 0:
                    _feature_step(
                        W_g, H_f, low_f, dW_g, R_g, G, block, padded_K * wide, wide, n_wide, size,
                        c > first, narrow_group, True, False, compensated,
                    )  # fmt: skip
                elif g < n_groups - 1:
                    _feature_step(
                        W_g, H_f, low_f, dW_g, R_g, G, block, padded_K * wide, wide, n_wide, size,
                        c > first, narrow_group, False, False, compensated,
                    )  # fmt: skip
                else:
                    _feature_step(
                        W_g, H_f, low_f, dW_g, R_g, G, block, padded_K * wide, wide, n_wide, size,
                        c > first, narrow_group, False, True, compensated,
                    )  # fmt: skip
