"""Many epochs of gradient descent on scale * (4) in one compiled call: W and H stay in cache.
"""

import functools

import numpy as np
from numba import njit

from fastnc.kernels import cross_entropy_cpu
from fastnc.kernels.simd_cpu import (
    EXP_LIMIT,
    N_REGISTERS,
    add,
    add_outer,
    add_products,
    all_within,
    div,
    exp,
    exp_wide,
    inner,
    label_entries,
    label_gaps,
    load_like,
    load_members,
    max_members,
    maximum,
    mul,
    native_lanes,
    splats,
    store,
    store_members,
    sub,
    sum_members,
    sum_rows,
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
def _residual_block(W, H, R, labels, steps, place, sample, first, row, d, logits, limit):
    """Logits and residuals of a block of samples; its K residuals go to R.

    The block's features are `row` floats apart, from H[place] on; `sample` counts from the
    start of the data and `first` from that of the chunk.
    """
    K = len(logits)
    z = logits
    for f in range(d):
        z = add_outer(z, W, f * K, load_like(H, place + f * row, z))
    r = _residuals(z, load_like(labels, sample, z), load_like(steps, sample, z), limit)
    store_members(R, first * K, r)


@njit(forceinline=True, **_OPTIONS)
def _sweep_block(sums, w, H, H_low, R, place, first, compensated):
    """One feature of a block: the sums of r h with the old h, then the new h."""
    r = load_members(R, first * len(w), w)
    new_sums = add_products(sums, r, load_like(H, place, w))
    _add(H, H_low, place, inner(w, r), compensated)
    return new_sums


def _wide_lanes(dtype, K):
    """Samples a block: registers for K logits, or K classifiers and K sums beside H's."""
    vectors = 4
    while vectors > 1 and max(vectors * (K + 1) + 1, 2 * K + 2 * vectors + 1) > N_REGISTERS:
        vectors //= 2
    return vectors * native_lanes(dtype)


@functools.lru_cache(maxsize=None)
def _fused_epochs(K, wide, native, limit, compensated):
    """The epoch loop for K classes: the logits and residuals of a block live in registers."""

    @njit(**_OPTIONS)
    def epochs_of(W, H, W_low, H_low, dW, R, labels, steps, d, chunk, row, epochs):
        N = labels.size
        for _ in range(epochs):
            for c in range(0, N, chunk):
                end = min(chunk, N - c)
                n_wide = end // wide * wide
                h = c // chunk * d * row
                for i in range(0, n_wide, wide):
                    z = zeros(H, K, wide)
                    _residual_block(W, H, R, labels, steps, h + i, c + i, i, row, d, z, limit)
                for i in range(n_wide, end, native):
                    z = zeros(H, K, native)
                    _residual_block(W, H, R, labels, steps, h + i, c + i, i, row, d, z, limit)
                for f in range(d):
                    sums = zeros(H, K, native)
                    if c > 0:
                        sums = load_members(dW, f * K * native, sums)
                    w = splats(W, f * K, zeros(H, K, wide))
                    for i in range(0, n_wide, wide):
                        sums = _sweep_block(sums, w, H, H_low, R, h + i, i, compensated)
                    w = splats(W, f * K, zeros(H, K, native))
                    for i in range(n_wide, end, native):
                        sums = _sweep_block(sums, w, H, H_low, R, h + i, i, compensated)
                    store_members(dW, f * K * native, sums)
                    h += row
            for j in range(0, W.size, native):
                _add(W, W_low, j, sum_rows(dW, j), compensated)

    return epochs_of


def _round_up(n, multiple):
    return -(-n // multiple) * multiple


def _aligned_zeros(size, dtype):
    """Zeros that start on a cache line: a vector that straddles two costs a second access."""
    itemsize = np.dtype(dtype).itemsize
    spare = np.zeros(size + 64 // itemsize, dtype)
    first = -spare.ctypes.data % 64 // itemsize
    return spare[first : first + size]


def _descend_fused(W, H, W_low, H_low, y, step, epochs):
    (K, d), N, dtype = W.shape, len(H), W.dtype
    native, wide = native_lanes(dtype), _wide_lanes(dtype, K)
    compensated = W_low.size > 0
    line = 64 // dtype.itemsize
    padded = _round_up(N, native)
    n_chunks = -(-padded * K * dtype.itemsize // CHUNK_BYTES)
    chunk = _round_up(-(-padded // n_chunks), line)
    n_chunks = -(-padded // chunk)
    # An odd number of cache lines a row: no two rows of H then fall into the same few sets.
    row = (chunk // line | 1) * line

    def flat(matrix):
        out = _aligned_zeros(_round_up(K * d, native), dtype)
        out[: K * d] = matrix.T.ravel()
        return out

    def rows(matrix):
        out = _aligned_zeros(n_chunks * d * row, dtype)
        samples = np.zeros((n_chunks * chunk, d), dtype)
        samples[:N] = matrix
        samples = samples.reshape(n_chunks, chunk, d).transpose(0, 2, 1)
        out.reshape(n_chunks, d, row)[:, :, :chunk] = samples
        return out

    def unrows(values):
        samples = values.reshape(n_chunks, d, row)[:, :, :chunk].transpose(0, 2, 1)
        return samples.reshape(n_chunks * chunk, d)[:N]

    labels, steps = _aligned_zeros(padded, dtype), _aligned_zeros(padded, dtype)
    labels[:N], steps[:N] = y, step
    W_flat, H_rows = flat(W), rows(H)
    nothing = np.zeros(0, dtype)
    W_rest, H_rest = (flat(W_low), rows(H_low)) if compensated else (nothing, nothing)
    dW, R = _aligned_zeros(W_flat.size * native, dtype), _aligned_zeros(chunk * K, dtype)
    run = _fused_epochs(K, wide, native, EXP_LIMIT[dtype.name], compensated)
    run(W_flat, H_rows, W_rest, H_rest, dW, R, labels, steps, d, chunk, row, epochs)

    W[:], H[:] = W_flat[: K * d].reshape(d, K).T, unrows(H_rows)
    if compensated:
        W_low[:], H_low[:] = W_rest[: K * d].reshape(d, K).T, unrows(H_rest)


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


def descend(W, H, W_low, H_low, y, scale, lr, epochs):
    """`epochs` steps of gradient descent on scale * (4), W and H in place."""
    if len(W) <= FUSED_CLASSES:
        _descend_fused(W, H, W_low, H_low, y, -float(lr) * float(scale), epochs)
    else:
        _descend_in_chunks(W, H, W_low, H_low, y, scale, lr, epochs)
