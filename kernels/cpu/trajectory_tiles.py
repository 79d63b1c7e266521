"""Many epochs of gradient descent on scale * (4) by chunks of samples: any number of classes.

An epoch is what `cross_entropy_cpu` does in a step: parts of the samples shared among threads,
three products of a chunk by register tiles or a BLAS, one softmax. Here all epochs are one
compiled call, and with `W_low`, `H_low` (float32) each sum's rounding error waits there for the
next epoch (Kahan): a part's rows of H move as soon as their gradient is known, while it is in
cache. A part whose loss is not finite moves no row where the sums are compensated; W then stays.

Letters: K classes, d features, N samples. `6 K N d` FLOP and N K exponentials an epoch. Parts,
chunks and the order of every sum depend on the shape alone, and so do the bits.
"""

import math

import numpy as np
from numba import prange

from fastnc.kernels.cpu import panel as panel_cpu
from fastnc.kernels.cpu import sweep as sweep_cpu
from fastnc.kernels.cpu.cross_entropy import BLOCK, GRADS, STEP, _part, add_parts, copies
from fastnc.kernels.cpu.options import OPTIONS, njit
from fastnc.kernels.cpu.plan import step_plan
from fastnc.kernels.cpu.threads import one_thread


@njit(**OPTIONS)
def _add_low(array, low, change, first, last, d):
    """Rows of array + low += change, the large part in `array` and the rest in `low`."""
    for i in range(first, last):
        for f in range(d):
            due = change[i, f] + low[i, f]
            old = array[i, f]
            new = old + due
            array[i, f] = new
            low[i, f] = due - (new - old)


@njit(**OPTIONS)
def _move_classes(W, W_low, sums, layout, ones, step, dW, block, d, compensated):
    """A block of the rows of W moves by `step` times the parts' sums, added in order."""
    low, high = block * BLOCK, min((block + 1) * BLOCK, len(W))
    if compensated:
        add_parts(sums, layout, ones, step, False, low, high, dW)
        _add_low(W, W_low, dW, low, high, d)
    else:
        add_parts(sums, layout, ones, step, True, low, high, W)


@njit(**OPTIONS)
def _pack_again(W, panels, strips, p):
    """Panel p of W, and the same share of its strips."""
    n = panel_cpu.n_panels(panels, W.shape[1])
    panel_cpu.pack_panel(W, panels, W.shape[1], p)
    K = strips.shape[1]
    sweep_cpu.pack_some(W, strips, K * p // n, K * (p + 1) // n)


@njit(**OPTIONS)
def _move_part(
    part, n_parts, chunk, W, panels, strips, H, H_low, dH, y, step, sums, losses, shifts,
    chunk_shifts, compensated,
):  # fmt: skip
    """One part's rows of H move; its sums for W and its loss are left for later."""
    N, d = H.shape
    mode = GRADS if compensated else STEP
    sums[part] = 0.0
    _part(
        mode, part, n_parts, chunk, W, panels, strips, H, y, step, dH, sums, losses, shifts,
        chunk_shifts,
    )  # fmt: skip
    if compensated and math.isfinite(losses[part]):
        _add_low(H, H_low, dH, N * part // n_parts, N * (part + 1) // n_parts, d)


@njit(**OPTIONS)
def _epochs_of_one(
    n_parts, chunk, W, panels, strips, layout, ones, H, W_low, H_low, dW, dH, y, step, sums, losses,
    shifts, chunk_shifts, epochs, compensated,
):  # fmt: skip
    n_blocks = (len(W) + BLOCK - 1) // BLOCK
    for _ in range(epochs):
        _move_part(
            0, 1, chunk, W, panels, strips, H, H_low, dH, y, step, sums, losses, shifts,
            chunk_shifts, compensated,
        )  # fmt: skip
        if math.isfinite(losses[0]):
            for b in range(n_blocks):
                _move_classes(W, W_low, sums, layout, ones, step, dW, b, H.shape[1], compensated)
            for p in range(panel_cpu.n_panels(panels, W.shape[1])):
                _pack_again(W, panels, strips, p)


@njit(parallel=True, **OPTIONS)
def _epochs(
    n_parts, chunk, W, panels, strips, layout, ones, H, W_low, H_low, dW, dH, y, step, sums, losses,
    shifts, chunk_shifts, epochs, compensated,
):  # fmt: skip
    n_blocks = (len(W) + BLOCK - 1) // BLOCK
    for _ in range(epochs):
        for index in prange(n_parts):
            # A loop's index is unsigned where it is parallel: `_part` would be compiled twice.
            _move_part(
                np.int64(index), n_parts, chunk, W, panels, strips, H, H_low, dH, y, step, sums,
                losses, shifts, chunk_shifts, compensated,
            )  # fmt: skip
        if math.isfinite(losses.sum()):
            for b in prange(n_blocks):
                _move_classes(
                    W, W_low, sums, layout, ones, step, dW, np.int64(b), H.shape[1], compensated
                )
            for p in prange(panel_cpu.n_panels(panels, W.shape[1])):
                _pack_again(W, panels, strips, np.int64(p))


def descend(W, H, W_low, H_low, y, step, epochs):
    """`epochs` times `W += step * sum of r^T H`, `H += step * r W`, in place."""
    (K, d), N = W.shape, len(H)
    how = step_plan(K, d, N, W.itemsize)
    # Strips are packed again along with panels.
    moving, panels, strips, layout = copies(how._replace(panels=how.panels or how.sweep), W)
    compensated = W_low.size > 0
    arguments = (
        how.parts,
        how.chunk,
        moving,
        panels,
        strips,
        layout,
        np.ones(how.parts, W.dtype),
        H,
        W_low,
        H_low,
        np.empty_like(moving if compensated else moving[:0]),
        np.empty_like(H) if compensated else H,
        y,
        W.dtype.type(step),
        np.empty((how.parts, strips.size or moving.size), W.dtype),
        np.empty(how.parts),
        np.empty(how.parts),
        np.empty((how.parts, 0)),
        epochs,
        compensated,
    )
    if how.parts == 1:
        _epochs_of_one(*arguments)
    else:
        with one_thread():
            _epochs(*arguments)
    if moving is not W:
        W[:] = moving[:, :d]
