"""Many epochs of gradient descent on scale * (4) in one compiled call: W and H stay in cache.
"""

import functools

import numpy as np
from numba import njit

from fastnc.kernels import cross_entropy_cpu
from fastnc.kernels.simd_cpu import (
    EXP_LIMIT,
    N_REGISTERS,
    accumulate_products,
    add,
    add_outer,
    all_within,
    div,
    exp,
    exp_wide,
    inner,
    label_entries,
    label_gaps,
    load_like,
    max_members,
    maximum,
    mul,
    native_lanes,
    store,
    sub,
    sum_members,
    sum_rows,
    zeros,
)

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
def _block(W, H, H_low, dW, labels, steps, first, d, logits, lanes, limit, compensated):
    """One block of samples: logits, residuals, then dW and the new H in one sweep over d."""
    K = len(logits)
    base = first * d
    z = logits
    for f in range(d):
        z = add_outer(z, W, f * K, load_like(H, base + f * lanes, logits))
    label = load_like(labels, first, logits)
    r = _residuals(z, label, load_like(steps, first, logits), limit)
    for f in range(d):
        place = base + f * lanes
        accumulate_products(dW, f * K, r, load_like(H, place, logits))
        _add(H, H_low, place, inner(W, f * K, r), compensated)


@njit(**_OPTIONS)
def _copy_blocks(H, blocks, wide, native, padded, back):
    """H (N, d) to or from blocks of samples, feature-major within a block."""
    N, d = H.shape
    n_wide = padded // wide * wide
    for i in range(N):
        lanes = wide if i < n_wide else native
        first = i // lanes * lanes if i < n_wide else n_wide + (i - n_wide) // lanes * lanes
        place = first * d + i - first
        for f in range(d):
            if back:
                H[i, f] = blocks[place + f * lanes]
            else:
                blocks[place + f * lanes] = H[i, f]


def _wide_lanes(dtype, K):
    """Samples a block: registers for K residuals, an H, its gradient, and two to spare."""
    vectors = 4
    while vectors > 1 and vectors * (K + 2) + 2 > N_REGISTERS:
        vectors //= 2
    return vectors * native_lanes(dtype)


@functools.lru_cache(maxsize=None)
def _fused_epochs(K, wide, native, limit, compensated):
    """The epoch loop for K classes: the logits and residuals of a block live in registers."""

    @njit(**_OPTIONS)
    def epochs_of(W, H, W_low, H_low, dW, labels, steps, d, epochs):
        padded = labels.size
        n_wide = padded // wide * wide
        for _ in range(epochs):
            dW[:] = 0
            for i in range(0, n_wide, wide):
                block = zeros(H, K, wide)
                _block(W, H, H_low, dW, labels, steps, i, d, block, wide, limit, compensated)
            for i in range(n_wide, padded, native):
                block = zeros(H, K, native)
                _block(W, H, H_low, dW, labels, steps, i, d, block, native, limit, compensated)
            for j in range(0, W.size, native):
                _add(W, W_low, j, sum_rows(dW, j), compensated)

    return epochs_of


def _round_up(n, multiple):
    return -(-n // multiple) * multiple


def _descend_fused(W, H, W_low, H_low, y, step, epochs):
    (K, d), N, dtype = W.shape, len(H), W.dtype
    native, wide = native_lanes(dtype), _wide_lanes(dtype, K)
    compensated = W_low.size > 0
    padded = _round_up(N, native)

    def transposed(matrix):
        flat = np.zeros(_round_up(K * d, native), dtype)
        flat[: K * d] = matrix.T.ravel()
        return flat

    def blocked(matrix):
        blocks = np.zeros(padded * d, dtype)
        _copy_blocks(matrix, blocks, wide, native, padded, False)
        return blocks

    labels, steps = np.zeros(padded, dtype), np.zeros(padded, dtype)
    labels[:N], steps[:N] = y, step
    W_flat, H_blocks = transposed(W), blocked(H)
    nothing = np.zeros(0, dtype)
    W_rest = transposed(W_low) if compensated else nothing
    H_rest = blocked(H_low) if compensated else nothing
    dW = np.zeros(W_flat.size * native, dtype)
    run = _fused_epochs(K, wide, native, EXP_LIMIT[dtype.name], compensated)
    run(W_flat, H_blocks, W_rest, H_rest, dW, labels, steps, d, epochs)

    W[:] = W_flat[: K * d].reshape(d, K).T
    _copy_blocks(H, H_blocks, wide, native, padded, True)
    if compensated:
        W_low[:] = W_rest[: K * d].reshape(d, K).T
        _copy_blocks(H_low, H_rest, wide, native, padded, True)


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
FUSED_CLASSES = 8


def descend(W, H, W_low, H_low, y, scale, lr, epochs):
    """`epochs` steps of gradient descent on scale * (4), W and H in place."""
    if len(W) <= FUSED_CLASSES:
        _descend_fused(W, H, W_low, H_low, y, -float(lr) * float(scale), epochs)
    else:
        _descend_in_chunks(W, H, W_low, H_low, y, scale, lr, epochs)
