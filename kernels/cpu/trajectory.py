"""Many epochs of gradient descent on scale * (4) in one compiled call: W and H stay in cache.

Samples lie in the lanes of explicit vectors: H in contiguous blocks, each [feature][lanes]; W
lies feature-major, each entry broadcast. A chunk of samples at a time:

    1. logits of a block of samples, a group of classes in registers; its softmax by the one
       stable formula, step * (p - onehot) to R, which stays in the first-level cache;
    2. feature by feature, both sums over R: dW[:, f] += R^T h_f, and h_f += R W[:, f], which
       has then been read for the last time in this epoch.

W is updated after all samples. `W_low` and `H_low` (float32) keep each sum's rounding error for
the next epoch (Kahan). K, the classes of a group and the lanes of a block are known to the
compiler; d, N and the number of epochs are not. Large problems are divided into parts of the
samples, which threads share and whose sums are added in order; parts depend on the shape alone, and
no sum's order depends on threads or on how epochs are divided among calls.

The loops, in `epoch`, take addresses, not arrays: across a branch Numba counts references to
arrays, by atomic additions that cost three times the arithmetic. They are functions of a module,
and know the shape by the types of their arguments: a closure over another compiled function would
be compiled again in every process.

Letters: K classes, d features, N samples. `6 K N d` FLOP and N (K - 1) exponentials an epoch,
bound by multiply-adds and by the arithmetic of the exponentials while H stays in cache. Beyond
`FUSED_CLASSES` classes the epochs are those of `trajectory_tiles`.
"""

import functools
import threading

import numpy as np
from numba import prange

from fastnc.kernels.cpu import trajectory_tiles as trajectory_tiles_cpu
from fastnc.kernels.cpu.aligned import aligned
from fastnc.kernels.cpu.epoch import add_change, part_of_epoch
from fastnc.kernels.cpu.options import INNER, OPTIONS, njit
from fastnc.kernels.cpu.processor import N_REGISTERS, native_lanes
from fastnc.kernels.cpu.simd import EXP_LIMIT, add, n_lanes, zeros
from fastnc.kernels.cpu.simd_blocks import address, load_like, store, sum_rows
from fastnc.kernels.cpu.threads import one_thread

# Residuals of a chunk of samples: they stay in the first-level cache beside a row of H.
CHUNK_BYTES = 12 * 1024
# Least multiply-adds of one product in a part that threads share, and most parts.
PART_WORK, MOST_PARTS = 500_000, 64


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
    alone = group == K
    padded_K = -(-K // group) * group
    # A single group forms the logits' differences to the last one.
    members, lanes = (K - 1, wide) if alone else (K, native)

    @njit(**OPTIONS)
    def epochs_of(
        W, H, W_low, H_low, W_rows, H_rows, W_rest, H_rest, dW, R, G, D, labels, steps, block,
        chunk, bounds, epochs,
    ):  # fmt: skip
        d = W.shape[1]
        _to_blocks(W, W_rows, padded_K, padded_K * d)
        _to_blocks(H, H_rows, wide, block)
        if compensated:
            _to_blocks(W_low, W_rest, padded_K, padded_K * d)
            _to_blocks(H_low, H_rest, wide, block)
        for _ in range(epochs):
            part_of_epoch(
                address(W_rows, 0), address(H_rows, 0), address(H_rest, 0), address(dW, 0),
                address(R, 0), address(G, 0), address(D, 0), address(labels, 0), address(steps, 0),
                d, block, chunk, bounds[0], bounds[1], zeros(H, group, wide),
                zeros(H, members, lanes), zeros(H, group, native), zeros(H, members, native),
                limit, compensated, alone,
            )  # fmt: skip
            for j in range(0, W_rows.size, native):
                change = sum_rows(address(dW, 0), j)
                add_change(address(W_rows, 0), address(W_rest, 0), j, change, compensated)
        _from_blocks(W, W_rows, padded_K, padded_K * d)
        _from_blocks(H, H_rows, wide, block)
        if compensated:
            _from_blocks(W_low, W_rest, padded_K, padded_K * d)
            _from_blocks(H_low, H_rest, wide, block)

    @njit(parallel=True, **OPTIONS)
    def epochs_of_parts(
        W, H, W_low, H_low, W_rows, H_rows, W_rest, H_rest, dW, R, G, D, labels, steps, block,
        chunk, bounds, epochs,
    ):  # fmt: skip
        d, n_parts, size = W.shape[1], len(dW), W_rows.size
        _to_blocks(W, W_rows, padded_K, padded_K * d)
        _to_blocks(H, H_rows, wide, block)
        if compensated:
            _to_blocks(W_low, W_rest, padded_K, padded_K * d)
            _to_blocks(H_low, H_rest, wide, block)
        totals = np.empty((n_parts, size), W.dtype)
        for _ in range(epochs):
            for index in prange(n_parts):
                p = np.int64(index)
                part_of_epoch(
                    address(W_rows, 0), address(H_rows, 0), address(H_rest, 0), address(dW[p], 0),
                    address(R[p], 0), address(G[p], 0), address(D[p], 0), address(labels, 0),
                    address(steps, 0), d, block, chunk, bounds[p], bounds[p + 1],
                    zeros(H, group, wide), zeros(H, members, lanes), zeros(H, group, native),
                    zeros(H, members, native), limit, compensated, alone,
                )  # fmt: skip
                for j in range(0, size, native):
                    store(totals[p], j, sum_rows(dW[p], j))
            _add_parts(W_rows, W_rest, totals, zeros(W, 1, native), compensated)
        _from_blocks(W, W_rows, padded_K, padded_K * d)
        _from_blocks(H, H_rows, wide, block)
        if compensated:
            _from_blocks(W_low, W_rest, padded_K, padded_K * d)
            _from_blocks(H_low, H_rest, wide, block)

    return epochs_of, epochs_of_parts


@njit(**INNER)
def _add_parts(W, W_low, totals, zero, compensated):
    for j in range(0, W.size, n_lanes(zero)):
        change = zero[0]
        for p in range(totals.shape[0]):
            change = add(change, load_like(totals[p], j, change))
        add_change(W, W_low, j, change, compensated)


@njit(**OPTIONS)
def _to_blocks(matrix, out, wide, block):
    """Blocks of `wide` rows of a matrix, each transposed; missing rows of the last one are zero.

    A lane without a sample must not hold a NaN, not even one of an earlier call.
    """
    for j in range(matrix.shape[0] // wide * block, out.size):
        out[j] = 0.0
    for i in range(matrix.shape[0]):
        place = i // wide * block + i % wide
        for f in range(matrix.shape[1]):
            out[place + f * wide] = matrix[i, f]


@njit(**OPTIONS)
def _from_blocks(matrix, blocks, wide, block):
    for i in range(matrix.shape[0]):
        place = i // wide * block + i % wide
        for f in range(matrix.shape[1]):
            matrix[i, f] = blocks[place + f * wide]


def _round_up(n, multiple):
    return -(-n // multiple) * multiple


def _prepared_fused(W, H, W_low, H_low, y, step):
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

    labels, steps = aligned(padded, dtype), aligned(padded, dtype)
    labels[:N], labels[N:], steps[:N], steps[N:] = y, 0.0, step, 0.0
    W_size, H_size = _round_up(padded_K * d, native), -(-padded // wide) * block

    def of_parts(size):
        return aligned(parts * _round_up(size, line), dtype).reshape(parts, -1)

    dW, R, G = of_parts(W_size * native), of_parts(chunk * padded_K), of_parts(chunk)
    dW[:, padded_K * d * native :] = 0.0
    D = of_parts((K - 1) * d + native)
    # A vector may begin at W's last entry.
    rows = [aligned(W_size + native, dtype)[:W_size], aligned(H_size, dtype)]
    rest = [aligned(size if compensated else 0, dtype) for size in (W_size, H_size)]
    run = _fused_epochs(K, group, wide, native, EXP_LIMIT[dtype.name], compensated)
    arguments = (
        W, H, W_low, H_low, *rows, *rest, dW, R, G, D, labels, steps, block, chunk, bounds,
    )  # fmt: skip

    def advance(epochs):
        if parts == 1:
            run[0](*arguments, epochs)
        else:
            with one_thread():
                run[1](*arguments, epochs)

    return advance


# Most classes whose logits are held in registers.
FUSED_CLASSES = 16


def stays_on_one_thread(n_classes, dim, n_samples):
    """Whether `descend` and a snapshot run on the calling thread alone."""
    return n_classes <= FUSED_CLASSES and n_classes * dim * n_samples < 2 * PART_WORK


def prepared(W, H, W_low, H_low, y, scale, lr):
    """A function of a number of epochs that runs them, W and H in place, on buffers of its own."""
    step = -float(lr) * float(scale)
    if len(W) <= FUSED_CLASSES:
        return _prepared_fused(W, H, W_low, H_low, y, step)
    return functools.partial(trajectory_tiles_cpu.descend, W, H, W_low, H_low, y, step)


def descend(W, H, W_low, H_low, y, scale, lr, epochs):
    """`epochs` steps of gradient descent on scale * (4), W and H in place."""
    prepared(W, H, W_low, H_low, y, scale, lr)(epochs)
