"""Many epochs of gradient descent on scale * (4) by chunks of samples: any number of classes.

An epoch is what `cross_entropy` does in a step, by the pass of `chunk_pass`: parts of the samples
shared among threads, three products of a chunk, one softmax. Here all epochs are one compiled
call, and `W_low` and `H_low` (float32) keep each sum's rounding error for the next epoch (Kahan).
A part's rows of H are updated as soon as their gradient is known, while it is in cache. If a loss
is not finite, W stays, and so do the rows of H of its chunk (if sums are compensated, its part).

Letters: K classes, d features, N samples. `6 K N d` FLOP and N K exponentials an epoch. Parts,
chunks and the order of every sum depend on the shape and the processor alone, and so do the bits.
"""

import math

import numpy as np
from numba import prange

from fastnc.kernels.cpu import tile as tile_cpu
from fastnc.kernels.cpu.chunk_pass import GRADS, STEP, add_rows, part_of_samples, samples_of
from fastnc.kernels.cpu.cross_entropy import numbers, without_options
from fastnc.kernels.cpu.options import INNER, OPTIONS, njit
from fastnc.kernels.cpu.plan import plan
from fastnc.kernels.cpu.threads import one_thread

# Rows of W that one call updates.
ROWS = 16


@njit(**INNER)
def _add_low(array, low, change, first, last, d):
    """Rows of array + low += change, the large part in `array` and the rest in `low`."""
    for i in range(first, last):
        for f in range(d):
            due = change[i, f] + low[i, f]
            old = array[i, f]
            new = old + due
            array[i, f] = new
            low[i, f] = due - (new - old)


@njit(**INNER)
def _update_classes(W, W_low, sums, shifts, top, step, dW, block, d, compensated):
    """Adds `step` times the parts' sums, added in order, to a block of the rows of W."""
    low, high = block * ROWS, min((block + 1) * ROWS, len(W))
    if compensated:
        add_rows(sums, shifts, top, step, False, low, high, dW)
        _add_low(W, W_low, dW, low, high, d)
    else:
        add_rows(sums, shifts, top, step, True, low, high, W)


@njit(**INNER)
def _update_part(
    part, n_parts, planned, W, H, H_low, dH, y, options, step, sums, bias_sums, losses, totals,
    shifts, chunk_shifts, compensated,
):  # fmt: skip
    """Updates one part's rows of H, and leaves its sums for W and its loss for later."""
    N, d = H.shape
    mode = GRADS if compensated else STEP
    for j in range(sums.shape[1]):
        for f in range(sums.shape[2]):
            sums[part, j, f] = 0.0
    part_of_samples(
        mode, part, n_parts, planned, W, H, y, options, H.dtype.type(step), dH, sums, bias_sums,
        losses, totals, shifts, chunk_shifts,
    )  # fmt: skip
    if compensated and math.isfinite(totals[part]):
        low, high = samples_of(part, n_parts, N, planned[0])
        _add_low(H, H_low, dH, low, high, d)


@njit(**INNER)
def _top_of(shifts):
    """The largest of the parts' shifts, which become relative to it."""
    top = shifts.max()
    for part in range(len(shifts)):
        shifts[part] -= top
    return top


@njit(**OPTIONS)
def _epochs_of_one(
    n_parts, planned, W, H, W_low, H_low, dW, dH, y, options, step, sums, bias_sums, losses, totals,
    shifts, chunk_shifts, epochs, compensated,
):  # fmt: skip
    first = np.int64(0)
    for _ in range(epochs):
        _update_part(
            first, first + 1, planned, W, H, H_low, dH, y, options, step, sums, bias_sums, losses,
            totals, shifts, chunk_shifts, compensated,
        )  # fmt: skip
        if math.isfinite(totals[0]):
            top = _top_of(shifts)
            for b in range((len(W) + ROWS - 1) // ROWS):
                _update_classes(W, W_low, sums, shifts, top, step, dW, b, H.shape[1], compensated)


@njit(parallel=True, **OPTIONS)
def _epochs(
    n_parts, planned, W, H, W_low, H_low, dW, dH, y, options, step, sums, bias_sums, losses, totals,
    shifts, chunk_shifts, epochs, compensated,
):  # fmt: skip
    for _ in range(epochs):
        for index in prange(n_parts):
            # The index of a parallel loop is unsigned: without a cast all callees are compiled
            # twice.
            _update_part(
                np.int64(index), n_parts, planned, W, H, H_low, dH, y, options, step, sums,
                bias_sums, losses, totals, shifts, chunk_shifts, compensated,
            )  # fmt: skip
        if math.isfinite(totals.sum()):
            top = _top_of(shifts)
            for b in prange((len(W) + ROWS - 1) // ROWS):
                _update_classes(
                    W, W_low, sums, shifts, top, step, dW, np.int64(b), H.shape[1], compensated
                )


def descend(W, H, W_low, H_low, y, step, epochs):
    """`epochs` times `W += step * sum of r^T H`, `H += step * r W`, in place."""
    (K, d), N = W.shape, len(H)
    planned = plan(K, d, N, W.itemsize, by_samples=True)
    moving = tile_cpu.padded(W)
    compensated = W_low.size > 0
    options = without_options(W.dtype)
    arguments = (
        planned.parts,
        numbers(planned, W.dtype),
        moving,
        H,
        W_low,
        H_low,
        np.empty_like(moving if compensated else moving[:0]),
        np.empty_like(H) if compensated else H,
        y,
        options,
        float(step),
        np.empty((planned.parts, *moving.shape), W.dtype),
        np.empty((planned.parts, 0)),
        options[0],
        np.empty(planned.parts),
        np.empty(planned.parts),
        np.empty((planned.parts, 0)),
        epochs,
        compensated,
    )
    if planned.parts == 1:
        _epochs_of_one(*arguments)
    else:
        with one_thread():
            _epochs(*arguments)
    if moving is not W:
        W[:] = moving[:, :d]
