"""Cross-entropy of linear logits on the CPU: equation (4), its gradients, and a fused step.

Letters: K classes, d features, N samples, `W (K, d)`, `H (N, d)`, `y (N,)` int64. Per sample,
with `D_j = <w_j - w_y, h>` and the residual `r = p - onehot` of `residual_cpu`:

    loss = log(1 + sum_{j != y} exp(D_j))       grad_W = r^T H       grad_H = r W

The samples are divided into parts, one at a time to a thread, and a part into chunks of rows.
A chunk's logits, class by class, stay in cache: three products and one softmax in place, and
for `gradient_step` the rows of H are overwritten while they are still there, after the sums
for grad_W have read them. `plan_cpu` says which products are taken from W as it is, by tile_cpu,
and which from packed copies, by panel_cpu and sweep_cpu. Each part sums its own grad_W; parts are
added in order. Parts and chunks depend on the shape alone, and so do the bits, not on the threads.

`6KNd` operations and N K exponentials; H is read once (`4Nd` bytes in float32) and a step
writes it once. Bound by the multiply-add rate, by memory only where K is below about 8.
"""

import math

import numpy as np
from numba import prange

from fastnc.kernels.cpu import panel as panel_cpu
from fastnc.kernels.cpu import sweep as sweep_cpu
from fastnc.kernels.cpu import tile as tile_cpu
from fastnc.kernels.cpu.options import OPTIONS, njit
from fastnc.kernels.cpu.plan import step_plan
from fastnc.kernels.cpu.residual import GROUP, N_WORK, exponentials, residuals
from fastnc.kernels.cpu.threads import one_thread

LOSS, GRADS, STEP, LOG_GRADS = 0, 1, 2, 3
# Classes whose sums a thread adds at a time, and numbers that one thread adds sooner than a second
# one is woken.
BLOCK = 16
ALONE = 1 << 17


@njit(**OPTIONS)
def _part(
    mode, part, n_parts, chunk, W, panels, strips, H, y, alpha, out, sums, losses, shifts,
    chunk_shifts,
):  # fmt: skip
    """One part: `sums[part]` += r^T H, `losses[part]`, and `out` += or = alpha r W.

    `panels` and `strips` are copies of W, or empty where W itself serves; a row of `sums` is like
    the strips, or like W. In the log domain all of it is divided by e^shifts[part], rows of `out`
    by e^chunk_shifts of their chunk.
    """
    N, d = H.shape
    K, D = W.shape
    low, high = N * part // n_parts, N * (part + 1) // n_parts
    # Panels are whole vectors of classes, strips whole groups of them.
    all_Z = np.empty((max(K, len(panels) // D, strips.shape[1]), chunk + GROUP), W.dtype)
    all_Z[K:] = 0.0
    Z = all_Z[:K]
    near = np.empty((2, strips.shape[0], chunk + GROUP, strips.shape[2]), W.dtype)
    like_W = sums[part, : K * D].reshape(K, D)
    like_strips = sums[part, : strips.size].reshape(strips.shape)
    work = np.empty((N_WORK, chunk + GROUP), W.dtype)
    padded = np.zeros((chunk if d != D else 0, D), W.dtype)
    one = W.dtype.type(1.0)
    total, running = 0.0, -np.inf
    for first in range(low, high, chunk):
        rows = min(chunk, high - first)
        source, target, start, ahead = H, out, first, chunk
        if d != D:
            tile_cpu.copy_rows(H, first, padded, 0, rows, d)
            source, target, start, ahead = padded, padded, 0, 0
        if len(panels):
            panel_cpu.logits(panels, source, D, start, rows, all_Z, ahead)
        else:
            tile_cpu.logits(W, source, start, rows, Z, False, ahead)
        shift, loss = exponentials(Z, rows, y, first, mode == LOG_GRADS, work)
        if mode == LOSS:
            total += loss
            continue
        factor = one
        if mode == LOG_GRADS:
            if shift > running:
                scale = math.exp(running - shift)
                total *= scale
                tile_cpu.scale_rows(sums[part : part + 1], W.dtype.type(scale))
                running = shift
            chunk_shifts[part, (first - low) // chunk] = running
            loss *= math.exp(shift - running)
            factor = W.dtype.type(math.exp(shift - running))
        total += loss
        if not math.isfinite(loss):
            # The caller will refuse the step; these rows are still what was given.
            continue
        residuals(Z, rows, y, first, factor, work)
        keep = mode == STEP
        if strips.size:
            sweep_cpu.products(
                all_Z, strips, like_strips, source, start, rows, near[0], near[1], alpha, keep,
                target, start,
            )  # fmt: skip
        else:
            tile_cpu.class_sums(Z, source, start, rows, like_W, ahead)
            tile_cpu.sample_sums(Z, W, alpha, keep, target, start, rows, ahead)
        if d != D:
            tile_cpu.copy_rows(padded, 0, out, first, rows, d)
    losses[part] = total
    shifts[part] = running


@njit(parallel=True, **OPTIONS)
def _parts(
    mode, n_parts, chunk, W, panels, strips, H, y, alpha, out, sums, losses, shifts, chunk_shifts
):
    for index in prange(n_parts):
        # A loop's index is unsigned where it is parallel: `_part` would be compiled twice.
        part = np.int64(index)
        _part(
            mode, part, n_parts, chunk, W, panels, strips, H, y, alpha, out, sums, losses, shifts,
            chunk_shifts,
        )  # fmt: skip


@njit(**OPTIONS)
def add_parts(sums, layout, factors, scale, keep, low, high, out):
    """Rows low to high - 1 of `out` become `scale sum_p factors[p] sums[p]`, or move by it.

    A row of `sums` is an array (strips, classes, features of a strip) of shape `layout`.
    """
    n, K, width = layout
    size = (high - low) * width
    total = np.empty(size, sums.dtype)
    for f in range(n):
        start = (f * K + low) * width
        for i in range(size):
            total[i] = factors[0] * sums[0, start + i]
        for p in range(1, len(sums)):
            for i in range(size):
                total[i] += factors[p] * sums[p, start + i]
        for j in range(low, high):
            at = (j - low) * width
            for v in range(min(width, out.shape[1] - f * width)):
                old = out[j, f * width + v] if keep else sums.dtype.type(0.0)
                out[j, f * width + v] = scale * total[at + v] + old


@njit(parallel=True, **OPTIONS)
def _add_all(sums, layout, factors, scale, keep, out):
    K = len(out)
    for block in prange((K + BLOCK - 1) // BLOCK):
        low = np.int64(block) * BLOCK
        add_parts(sums, layout, factors, scale, keep, low, min(low + BLOCK, K), out)


@njit(parallel=True, **OPTIONS)
def _rescale(chunk, H, chunk_shifts, shift, factor):
    """Rows of H times `factor e^(their chunk's shift - shift)`."""
    N, n_parts = H.shape[0], chunk_shifts.shape[0]
    for part in prange(n_parts):
        low, high = N * part // n_parts, N * (part + 1) // n_parts
        for c in range((high - low + chunk - 1) // chunk):
            scale = H.dtype.type(factor * math.exp(chunk_shifts[part, c] - shift))
            for i in range(low + c * chunk, min(low + (c + 1) * chunk, high)):
                for f in range(H.shape[1]):
                    H[i, f] *= scale


def copies(how, W):
    """W in whole vectors of features, its panels and strips or none, and the layout of sums."""
    padded = tile_cpu.padded(W)
    K, D = padded.shape
    panels = panel_cpu.packed(W, D) if how.panels else np.empty(0, W.dtype)
    if not how.sweep:
        return padded, panels, np.empty((0, 0, 0), W.dtype), (1, K, D)
    strips = sweep_cpu.packed(W, D)
    return padded, panels, strips, strips.shape


def _run(mode, W, H, y, alpha, out):
    """All parts; returns their losses, sums of r^T H, shifts, and what `_rescale` needs."""
    K, d = W.shape
    N = len(H)
    how = step_plan(K, d, N, W.itemsize)
    padded, panels, strips, layout = copies(how, W)
    sums = np.zeros((how.parts, strips.size or padded.size), W.dtype)
    losses, shifts = np.empty(how.parts), np.empty(how.parts)
    # No part has more samples than this.
    most = (N + how.parts - 1) // how.parts
    per_part = (most + how.chunk - 1) // how.chunk if mode == LOG_GRADS else 0
    chunk_shifts = np.empty((how.parts, per_part))
    arguments = (
        how.parts, how.chunk, padded, panels, strips, H, y, W.dtype.type(alpha), out, sums, losses,
        shifts, chunk_shifts,
    )  # fmt: skip
    if how.parts == 1:
        _part(mode, 0, *arguments)
    else:
        _parts(mode, *arguments)
    return losses, (sums, layout), shifts, (how.chunk, chunk_shifts)


def _gather(sums, factors, scale, keep, out):
    """`out = scale sum_p factors[p] sums[p]`, added to it where `keep`, in the order of p."""
    real = out.dtype.type
    arguments = *sums, factors.astype(out.dtype), real(scale), keep
    if sums[0].size < ALONE:
        add_parts(*arguments, 0, len(out), out)
    else:
        _add_all(*arguments, out)


def loss(W, H, y, scale, loss_out):
    """`loss_out[0] = scale * sum of the losses`."""
    with one_thread():
        losses, *_ = _run(LOSS, W, H, y, 0.0, H)
    loss_out[0] = scale * losses.sum()


def loss_and_grads(W, H, y, scale, loss_out, grad_W_out, grad_H_out):
    """The loss and both gradients, times `scale`."""
    with one_thread():
        losses, sums, *_ = _run(GRADS, W, H, y, scale, grad_H_out)
        _gather(sums, np.ones(len(losses)), scale, False, grad_W_out)
    loss_out[0] = scale * losses.sum()


def log_loss_and_grads(W, H, y, log_loss_out, grad_W_out, grad_H_out):
    """log of the summed loss, and the gradients divided by the loss."""
    with one_thread():
        losses, sums, shifts, (chunk, chunk_shifts) = _run(LOG_GRADS, W, H, y, 1.0, grad_H_out)
        shift = shifts.max()
        weights = np.exp(shifts - shift)
        total = (weights * losses).sum()
        log_loss_out[0] = shift + math.log(total) if total > 0.0 else math.nan
        _gather(sums, weights / total, 1.0, False, grad_W_out)
        _rescale(chunk, grad_H_out, chunk_shifts, shift, 1.0 / total)


def gradient_step(W, H, y, scale, lr, loss_out):
    """`W -= lr * grad_W`, `H -= lr * grad_H` in place; the loss is that before the step.

    If the loss is not finite, W keeps its values, and so do the chunks of H that made it so.
    """
    with one_thread():
        losses, sums, *_ = _run(STEP, W, H, y, -lr * scale, H)
        loss_out[0] = scale * losses.sum()
        if math.isfinite(loss_out[0]):
            _gather(sums, np.ones(len(losses)), -lr * scale, True, W)
