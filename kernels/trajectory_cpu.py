"""Many epochs of gradient descent on scale * (4) in one compiled call: W and H stay in cache.

Samples lie in the lanes of explicit vectors, features in rows, so that H is read and written
without a gather; W lies feature-major, each entry broadcast. A chunk of samples at a time:

    1. logits of a block of samples, a group of classes in registers; its softmax by the one
       stable formula, step * (p - onehot) to R, which stays in the first-level cache;
    2. feature by feature, both sums over R: dW[:, f] += R^T h_f, and h_f += R W[:, f], which
       has then been read for the last time in this epoch.

W moves when all samples have been seen. With `W_low`, `H_low` (float32) each sum's rounding
error waits there for the next epoch (Kahan). K, the group and the block are known to the
compiler, d, N and the number of epochs are not; nothing of the order of a sum depends on how
epochs are divided among calls.

Letters: K classes, d features, N samples. `6 K N d` FLOP and N (K - 1) exponentials an epoch,
bound by multiply-adds and by the arithmetic of the exponentials while H stays in cache. Beyond
`FUSED_CLASSES` classes an epoch is a call of `cross_entropy_cpu`.
"""

import functools
import threading

import numpy as np
from numba import njit

from fastnc.kernels import cross_entropy_cpu
from fastnc.kernels.geometry_cpu import SERIAL_WORK
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
def _logits(W, H, first_class, n_classes, place, row, d, zero):
    """Logits of one group of classes: W feature-major, H's features `row` floats apart."""
    z = zero
    for f in range(d):
        z = add_outer(z, W, f * n_classes + first_class, load_like(H, place + f * row, z))
    return z


@njit(forceinline=True, **_OPTIONS)
def _residual_block(W, H, R, labels, steps, place, sample, to, row, d, group, all_classes, limit):
    """Residuals of a block of samples, to R[to:]: class by class, a block's lanes each.

    `group` holds zeros for the classes of one pass, `all_classes` for the K of a softmax: of
    as many lanes if one pass makes them all, else of one register.
    """
    lanes, narrow = n_lanes(group), n_lanes(all_classes)
    if lanes == narrow and len(group) == len(all_classes):
        z = _logits(W, H, 0, len(group), place, row, d, group)
        label = load_like(labels, sample, z)
        r = _residuals(z, label, load_like(steps, sample, z), limit)
        store_members(R, to, lanes, r)
        return
    n_groups = -(-len(all_classes) // len(group))
    for g in range(n_groups):
        first = g * len(group)
        z = _logits(W, H, first, n_groups * len(group), place, row, d, group)
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
    # Lanes of the second sweep: with one group the registers hold just one vector of samples
    # without a spill; with several the wider block was as fast or faster.
    stride = native if n_groups == 1 else wide

    @njit(**_OPTIONS)
    def epochs_of(W, H, W_low, H_low, dW, R, G, labels, steps, d, chunk, row, epochs):
        N = labels.size
        for _ in range(epochs):
            for c in range(0, N, chunk):
                size = min(chunk, N - c)
                n_wide = size // wide * wide
                h = c // chunk * d * row
                for i in range(0, n_wide, wide):
                    part, whole = zeros(H, group, wide), zeros(H, K, native)
                    _residual_block(
                        W,
                        H,
                        R,
                        labels,
                        steps,
                        h + i,
                        c + i,
                        i * padded_K,
                        row,
                        d,
                        part,
                        whole,
                        limit,
                    )
                for i in range(n_wide, size, native):
                    part, whole = zeros(H, group, native), zeros(H, K, native)
                    _residual_block(
                        W,
                        H,
                        R,
                        labels,
                        steps,
                        h + i,
                        c + i,
                        i * padded_K,
                        row,
                        d,
                        part,
                        whole,
                        limit,
                    )
                for f in range(d):
                    for g in range(n_groups):
                        k = f * padded_K + g * group
                        begin, end = g == 0, g == n_groups - 1
                        sums = zeros(H, group, native)
                        if c > 0:
                            sums = load_members(dW, k * native, native, sums)
                        w = splats(W, k, zeros(H, group, stride))
                        for i in range(0, n_wide, wide):
                            r = i * padded_K + g * group * wide
                            for j in range(0, wide, stride):
                                sums = _sweep_block(
                                    sums, w, H, H_low, R, G, h + i + j, i + j, r + j, wide,
                                    begin, end, compensated,
                                )  # fmt: skip
                        w = splats(W, k, zeros(H, group, native))
                        for i in range(n_wide, size, native):
                            r = i * padded_K + g * group * native
                            sums = _sweep_block(
                                sums,
                                w,
                                H,
                                H_low,
                                R,
                                G,
                                h + i,
                                i,
                                r,
                                native,
                                begin,
                                end,
                                compensated,
                            )
                        store_members(dW, k * native, native, sums)
                    h += row
            for j in range(0, W.size, native):
                _add(W, W_low, j, sum_rows(dW, j), compensated)

    return epochs_of


@njit(**_OPTIONS)
def _to_rows(matrix, rows, tile, stride):
    """Tiles of `tile` rows of a matrix, each transposed, its columns `stride` floats apart."""
    for i in range(matrix.shape[0]):
        place = i // tile * matrix.shape[1] * stride + i % tile
        for f in range(matrix.shape[1]):
            rows[place + f * stride] = matrix[i, f]


@njit(**_OPTIONS)
def _from_rows(matrix, rows, tile, stride):
    for i in range(matrix.shape[0]):
        place = i // tile * matrix.shape[1] * stride + i % tile
        for f in range(matrix.shape[1]):
            matrix[i, f] = rows[place + f * stride]


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
    n_chunks = -(-padded * padded_K * dtype.itemsize // CHUNK_BYTES)
    chunk = _round_up(-(-padded // n_chunks), line)
    # An odd number of cache lines a row: no two rows of H then fall into the same few sets.
    row = (chunk // line | 1) * line

    def rows(matrix, tile, stride):
        out = _aligned_zeros(_round_up(-(-len(matrix) // tile) * d * stride, native), dtype)
        _to_rows(matrix, out, tile, stride)
        return out

    labels, steps = _aligned_zeros(padded, dtype), _aligned_zeros(padded, dtype)
    labels[:N], steps[:N] = y, step
    W_rows, H_rows = rows(W, padded_K, padded_K), rows(H, chunk, row)
    W_rest = rows(W_low, padded_K, padded_K) if compensated else W_low.ravel()
    H_rest = rows(H_low, chunk, row) if compensated else H_low.ravel()
    dW, G = _aligned(W_rows.size * native, dtype), _aligned(chunk, dtype)
    dW[padded_K * d * native :] = 0.0
    R = _aligned(chunk * padded_K, dtype)
    run = _fused_epochs(K, group, wide, native, EXP_LIMIT[dtype.name], compensated)
    run(W_rows, H_rows, W_rest, H_rest, dW, R, G, labels, steps, d, chunk, row, epochs)

    for matrix, values, tile, stride in (
        (W, W_rows, padded_K, padded_K),
        (H, H_rows, chunk, row),
        (W_low, W_rest, padded_K, padded_K),
        (H_low, H_rest, chunk, row),
    ):
        _from_rows(matrix, values, tile, stride)


@njit(**_OPTIONS)
def _add_scaled(array, low, change, factor):
    """array + low += factor * change, the large part in `array` and the rest in `low`."""
    for i in range(array.shape[0]):
        for j in range(array.shape[1]):
            due = factor * change[i, j] + low[i, j]
            old = array[i, j]
            array[i, j] = old + due
            low[i, j] = due - (array[i, j] - old)


def _descend_in_chunks(W, H, W_low, H_low, y, scale, lr, epochs):
    loss = np.empty(1)
    if not W_low.size:
        for _ in range(epochs):
            cross_entropy_cpu.gradient_step(W, H, y, scale, lr, loss)
        return
    dW, dH, factor = np.empty_like(W), np.empty_like(H), W.dtype.type(-lr)
    for _ in range(epochs):
        cross_entropy_cpu.loss_and_grads(W, H, y, scale, loss, dW, dH)
        _add_scaled(W, W_low, dW, factor)
        _add_scaled(H, H_low, dH, factor)


# Most classes whose logits are held in registers.
FUSED_CLASSES = 16


def stays_on_one_thread(n_classes, dim, n_samples):
    """Whether `descend` and a snapshot run on the calling thread alone."""
    return n_classes <= FUSED_CLASSES and n_classes * dim * n_samples < SERIAL_WORK


def descend(W, H, W_low, H_low, y, scale, lr, epochs):
    """`epochs` steps of gradient descent on scale * (4), W and H in place."""
    if len(W) <= FUSED_CLASSES:
        _descend_fused(W, H, W_low, H_low, y, -float(lr) * float(scale), epochs)
    else:
        _descend_in_chunks(W, H, W_low, H_low, y, scale, lr, epochs)
