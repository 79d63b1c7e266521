"""Many epochs of gradient descent on scale * (4) in one compiled call: W and H stay in cache.

Samples lie in the lanes of explicit vectors: H in contiguous blocks, each [feature][lanes]; W
lies feature-major, each entry broadcast. A chunk of samples at a time:

    1. logits of a block of samples, a group of classes in registers; its softmax by the one
       stable formula, step * (p - onehot) to R, which stays in the first-level cache;
    2. feature by feature, both sums over R: dW[:, f] += R^T h_f, and h_f += R W[:, f], which
       has then been read for the last time in this epoch.

W moves when all samples have been seen. With `W_low`, `H_low` (float32) each sum's rounding
error waits there for the next epoch (Kahan). K, the group and the block are known to the
compiler, d, N and the number of epochs are not. Large problems are parts of the samples, shared
among threads, whose sums are added in order; parts depend on the shape alone, and no sum's order
depends on threads or on how epochs are divided among calls.

No function that takes arrays may branch on a value in the sweep: across a branch Numba keeps
the counts of references, atomic additions that cost three times the arithmetic.

Letters: K classes, d features, N samples. `6 K N d` FLOP and N (K - 1) exponentials an epoch,
bound by multiply-adds and by the arithmetic of the exponentials while H stays in cache. Beyond
`FUSED_CLASSES` classes the epochs are those of `trajectory_tiles_cpu`.
"""

import functools
import threading

import numpy as np
from numba import njit, prange

from fastnc.kernels import blas_cpu, trajectory_tiles_cpu
from fastnc.kernels.simd_blocks_cpu import (
    add_outer,
    add_products,
    inner,
    label_entries,
    label_gaps,
    load_like,
    load_members,
    splats,
    store,
    store_members,
    sum_rows,
)
from fastnc.kernels.simd_cpu import (
    EXP_LIMIT,
    N_REGISTERS,
    add,
    all_within,
    div,
    exp,
    exp_wide,
    max_members,
    maximum,
    mul,
    n_lanes,
    native_lanes,
    sub,
    sum_members,
    zeros,
)

# Residuals of a chunk of samples: they stay in the first-level cache beside a row of H.
CHUNK_BYTES = 12 * 1024
# Multiply-adds of one product in a part, of those that threads share.
PART_WORK, MOST_PARTS = 500_000, 64

_OPTIONS = {"nogil": True, "error_model": "numpy", "cache": True}


@njit(forceinline=True, **_OPTIONS)
def _residuals(logits, labels, step, limit):
    """step * (p - onehot) of a block of samples, K entries, by the one stable formula.

    The label's entry is minus the sum of the others, so that every digit survives at any
    margin; the shift by the largest gap is made only where an exponential could overflow.
    """
    gaps = label_gaps(logits, labels)
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


@njit(forceinline=True, **_OPTIONS)
def _add(array, low, index, change, compensated):
    """array += change; with `compensated`, what the sum rounds away waits in `low`."""
    old = load_like(array, index, change)
    if compensated:
        due = add(change, load_like(low, index, change))
        new = add(old, due)
        store(low, index, sub(due, sub(new, old)))
        store(array, index, new)
    else:
        store(array, index, add(old, change))


@njit(forceinline=True, **_OPTIONS)
def _logits(W, H, first_class, n_classes, place, d, zero):
    """Logits of one group of classes: W feature-major, H's features a block's lanes apart."""
    z, lanes = zero, n_lanes(zero)
    for f in range(d):
        z = add_outer(z, W, f * n_classes + first_class, load_like(H, place + f * lanes, z))
    return z


@njit(forceinline=True, **_OPTIONS)
def _residual_block(W, H, R, labels, steps, place, sample, to, d, group, all_classes, limit):
    """Residuals of a block of samples, to R[to:]: class by class, a block's lanes each.

    `group` holds zeros for the classes of one pass, `all_classes` for the K of a softmax: of
    as many lanes if one pass makes them all, else of one register.
    """
    lanes, narrow = n_lanes(group), n_lanes(all_classes)
    if lanes == narrow and len(group) == len(all_classes):
        z = _logits(W, H, 0, len(group), place, d, group)
        label = load_like(labels, sample, z)
        r = _residuals(z, label, load_like(steps, sample, z), limit)
        store_members(R, to, lanes, r)
        return
    n_groups = -(-len(all_classes) // len(group))
    for g in range(n_groups):
        first = g * len(group)
        z = _logits(W, H, first, n_groups * len(group), place, d, group)
        store_members(R, to + first * lanes, lanes, z)
    for j in range(0, lanes, narrow):
        z = load_members(R, to + j, lanes, all_classes)
        label = load_like(labels, sample + j, z)
        r = _residuals(z, label, load_like(steps, sample + j, z), limit)
        store_members(R, to + j, lanes, r)


@njit(forceinline=True, **_OPTIONS)
def _sweep_block(sums, w, H, H_low, R, G, place, first, r_place, lanes, begin, end, compensated):
    """One feature of a block and a group of classes: the sums of r h, and a step of h.

    The step is gathered in G over the groups, from `begin` to `end`; then h moves.
    """
    r = load_members(R, r_place, lanes, w)
    new_sums = add_products(sums, r, load_like(H, place, w))
    change = inner(w, r)
    if not begin:
        change = add(change, load_like(G, first, w))
    if end:
        _add(H, H_low, place, change, compensated)
    else:
        store(G, first, change)
    return new_sums


def _once(make):
    """One result for each set of arguments, also where several threads ask at once."""
    cached, lock = functools.cache(make), threading.Lock()

    @functools.wraps(make)
    def made(*arguments):
        with lock:
            return cached(*arguments)

    return made


def _group_of_classes(K):
    """Classes that share a pass over H, as even as the registers allow."""
    most = 6 if N_REGISTERS == 16 else 12
    return -(-K // -(-K // most))


def _lanes_of_block(dtype, group):
    """Samples a block: registers for the logits, or for a classifier and its sums, and H."""
    vectors = 4
    while vectors > 1 and max(vectors * (group + 1), 2 * (group + vectors)) > N_REGISTERS:
        vectors //= 2
    return vectors * native_lanes(dtype)


@_once
def _fused_epochs(K, group, wide, native, limit, compensated):
    """The epoch loop for K classes, `group` of them a pass, `wide` samples a block."""
    n_groups = -(-K // group)
    padded_K = n_groups * group

    @njit(forceinline=True, **_OPTIONS)
    def sweep_of(
        W, H, H_low, dW, R, G, d, block, f, g, place, rest, n_wide, size, continued, begin, end
    ):  # fmt: skip
        """Feature f and group g of a chunk; `begin` and `end` are literals at every call."""
        k = f * padded_K + g * group
        sums = zeros(H, group, native)
        if continued:
            sums = load_members(dW, k * native, native, sums)
        w = splats(W, k, sums)
        for i in range(0, n_wide, wide):
            r = i * padded_K + g * group * wide
            # One register of samples at a time: two would not leave room for sums and w.
            for j in range(0, wide, native):
                sums = _sweep_block(
                    sums, w, H, H_low, R, G, place + j, i + j, r + j, wide, begin, end, compensated
                )
            place += block
        for i in range(n_wide, size, native):
            r = i * padded_K + g * group * native
            sums = _sweep_block(
                sums, w, H, H_low, R, G, rest + (i - n_wide) * d, i, r, native, begin, end,
                compensated,
            )  # fmt: skip
        store_members(dW, k * native, native, sums)

    @njit(**_OPTIONS)
    def part_of(W, H, H_low, dW, R, G, labels, steps, d, block, chunk, first, last):
        """Samples `first` to `last - 1`: their H moves, `dW` gets their sums."""
        for c in range(first, last, chunk):
            size = min(chunk, last - c)
            n_wide = size // wide * wide
            h = c // wide * block
            rest = h + n_wide // wide * block
            for i in range(0, n_wide, wide):
                _residual_block(
                    W, H, R, labels, steps, h + i // wide * block, c + i, i * padded_K, d,
                    zeros(H, group, wide), zeros(H, K, native), limit,
                )  # fmt: skip
            for i in range(n_wide, size, native):
                _residual_block(
                    W, H, R, labels, steps, rest + (i - n_wide) * d, c + i, i * padded_K, d,
                    zeros(H, group, native), zeros(H, K, native), limit,
                )  # fmt: skip
            for f in range(d):
                place, rest_place = h + f * wide, rest + f * native
                if n_groups == 1:
                    sweep_of(
                        W, H, H_low, dW, R, G, d, block, f, 0, place, rest_place, n_wide, size,
                        c > first, True, True,
                    )  # fmt: skip
                    continue
                sweep_of(
                    W, H, H_low, dW, R, G, d, block, f, 0, place, rest_place, n_wide, size,
                    c > first, True, False,
                )  # fmt: skip
                for g in range(1, n_groups - 1):
                    sweep_of(
                        W, H, H_low, dW, R, G, d, block, f, g, place, rest_place, n_wide, size,
                        c > first, False, False,
                    )  # fmt: skip
                sweep_of(
                    W, H, H_low, dW, R, G, d, block, f, n_groups - 1, place, rest_place, n_wide,
                    size, c > first, False, True,
                )  # fmt: skip

    @njit(**_OPTIONS)
    def epochs_of(W, H, W_low, H_low, dW, R, G, labels, steps, d, block, chunk, bounds, epochs):
        for _ in range(epochs):
            part_of(W, H, H_low, dW[0], R[0], G[0], labels, steps, d, block, chunk, 0, labels.size)
            for j in range(0, W.size, native):
                _add(W, W_low, j, sum_rows(dW[0], j), compensated)

    @njit(parallel=True, **_OPTIONS)
    def epochs_of_parts(
        W, H, W_low, H_low, dW, R, G, labels, steps, d, block, chunk, bounds, epochs
    ):  # fmt: skip
        totals = np.empty((dW.shape[0], W.size), W.dtype)
        for _ in range(epochs):
            for index in prange(dW.shape[0]):
                p = np.int64(index)
                part_of(
                    W, H, H_low, dW[p], R[p], G[p], labels, steps, d, block, chunk,
                    bounds[p], bounds[p + 1],
                )  # fmt: skip
                for j in range(0, W.size, native):
                    store(totals[p], j, sum_rows(dW[p], j))
            _add_parts(W, W_low, totals, zeros(W, 1, native), compensated)

    return epochs_of, epochs_of_parts


@njit(**_OPTIONS)
def _add_parts(W, W_low, totals, zero, compensated):
    for j in range(0, W.size, n_lanes(zero)):
        change = zero[0]
        for p in range(totals.shape[0]):
            change = add(change, load_like(totals[p], j, change))
        _add(W, W_low, j, change, compensated)


@njit(**_OPTIONS)
def _place(i, d, n_wide, wide, block, narrow):
    """Where sample i's first feature is, and how far the next one: blocks of `wide`, the rest."""
    if i < n_wide:
        return i // wide * block + i % wide, wide
    j = i - n_wide
    return n_wide // wide * block + j // narrow * narrow * d + j % narrow, narrow


@njit(**_OPTIONS)
def _to_blocks(matrix, out, n_wide, wide, block, narrow):
    """Blocks of `wide` rows of a matrix, each transposed; from `n_wide` on, of `narrow`."""
    for i in range(matrix.shape[0]):
        place, stride = _place(i, matrix.shape[1], n_wide, wide, block, narrow)
        for f in range(matrix.shape[1]):
            out[place + f * stride] = matrix[i, f]


@njit(**_OPTIONS)
def _from_blocks(matrix, blocks, n_wide, wide, block, narrow):
    for i in range(matrix.shape[0]):
        place, stride = _place(i, matrix.shape[1], n_wide, wide, block, narrow)
        for f in range(matrix.shape[1]):
            matrix[i, f] = blocks[place + f * stride]


def _round_up(n, multiple):
    return -(-n // multiple) * multiple


def _aligned(size, dtype):
    """An array that starts on a cache line: a vector that straddles two costs a second access."""
    itemsize = np.dtype(dtype).itemsize
    spare = np.empty(size + 64 // itemsize, dtype)
    first = -spare.ctypes.data % 64 // itemsize
    return spare[first : first + size]


def _aligned_zeros(size, dtype):
    """Zeros, where a lane that holds no sample must not bring a NaN."""
    out = _aligned(size, dtype)
    out[:] = 0.0
    return out


def _descend_fused(W, H, W_low, H_low, y, step, epochs):
    (K, d), N, dtype = W.shape, len(H), W.dtype
    native, group = native_lanes(dtype), _group_of_classes(K)
    wide, padded_K = _lanes_of_block(dtype, group), _round_up(K, group)
    compensated = W_low.size > 0
    line = 64 // dtype.itemsize
    padded = _round_up(N, native)
    parts = max(1, min(MOST_PARTS, K * d * N // PART_WORK))
    bounds = np.array([padded * p // parts // wide * wide for p in range(parts)] + [padded])
    longest = int(np.diff(bounds).max())
    n_chunks = -(-longest * padded_K * dtype.itemsize // CHUNK_BYTES)
    chunk = _round_up(-(-longest // n_chunks), wide)
    # An odd number of cache lines a block: a feature's lines do not fall into the same few sets.
    block = (-(-d * wide // line) | 1) * line

    of_W = (padded_K, padded_K, padded_K * d, padded_K)
    of_H = (padded // wide * wide, wide, block, native)

    def blocks(matrix, size, how):
        out = _aligned_zeros(size, dtype)
        _to_blocks(matrix, out, *how)
        return out

    labels, steps = _aligned_zeros(padded, dtype), _aligned_zeros(padded, dtype)
    labels[:N], steps[:N] = y, step
    W_size = _round_up(padded_K * d, native)
    H_size = padded // wide * block + padded % wide * d
    W_rows, H_rows = blocks(W, W_size, of_W), blocks(H, H_size, of_H)
    W_rest = blocks(W_low, W_size, of_W) if compensated else W_low.ravel()
    H_rest = blocks(H_low, H_size, of_H) if compensated else H_low.ravel()

    def of_parts(size):
        return _aligned(parts * _round_up(size, line), dtype).reshape(parts, -1)

    dW, G, R = of_parts(W_rows.size * native), of_parts(chunk), of_parts(chunk * padded_K)
    dW[:, padded_K * d * native :] = 0.0
    run = _fused_epochs(K, group, wide, native, EXP_LIMIT[dtype.name], compensated)
    arguments = (
        W_rows, H_rows, W_rest, H_rest, dW, R, G, labels, steps, d, block, chunk, bounds, epochs,
    )  # fmt: skip
    if parts == 1:
        run[0](*arguments)
    else:
        with blas_cpu.one_thread():
            run[1](*arguments)

    # The low parts are empty where nothing is compensated.
    _from_blocks(W, W_rows, *of_W)
    _from_blocks(H, H_rows, *of_H)
    _from_blocks(W_low, W_rest, *of_W)
    _from_blocks(H_low, H_rest, *of_H)


# Most classes whose logits are held in registers.
FUSED_CLASSES = 16


def stays_on_one_thread(n_classes, dim, n_samples):
    """Whether `descend` and a snapshot run on the calling thread alone."""
    return n_classes <= FUSED_CLASSES and n_classes * dim * n_samples < 2 * PART_WORK


def descend(W, H, W_low, H_low, y, scale, lr, epochs):
    """`epochs` steps of gradient descent on scale * (4), W and H in place."""
    run = _descend_fused if len(W) <= FUSED_CLASSES else trajectory_tiles_cpu.descend
    run(W, H, W_low, H_low, y, -float(lr) * float(scale), epochs)
