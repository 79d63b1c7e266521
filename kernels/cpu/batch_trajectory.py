"""Many epochs of minibatch gradient descent on the mean loss (4) in one compiled call.

For problems that `ruled_trajectory` serves, whose loops these are: a step gathers the rows of H of
its batch into blocks [feature][lanes], makes an epoch of them alone, and puts them back. W stays
feature-major all the time. With `W_low`, `H_low` (float32) each sum's rounding error waits there
for the next step of its row.

Letters: K classes, d features, N samples, B batches an epoch. `6 K N d` FLOP, `N (K - 1)`
exponentials and `4 N d` numbers moved an epoch, and B times the `K d` sums of W over the lanes.
"""

import numpy as np

from fastnc.kernels.cpu import trajectory as t
from fastnc.kernels.cpu.aligned import aligned
from fastnc.kernels.cpu.options import OPTIONS, njit
from fastnc.kernels.cpu.processor import native_lanes
from fastnc.kernels.cpu.ruled_epoch import SCALED, TOGETHER, move, numbers_of, ruled_epoch
from fastnc.kernels.cpu.simd import EXP_LIMIT, zeros
from fastnc.kernels.cpu.simd_blocks import address, sum_rows

_to_blocks, _from_blocks = t._to_blocks, t._from_blocks


@njit(forceinline=True, **OPTIONS)
def _gather(matrix, rows, count, blocks, wide, block, padded, d):
    """The given rows of a matrix, a lane each; lanes to spare are zero."""
    at = 0
    for i in range(0, padded, wide):
        for lane in range(min(wide, padded - i)):
            k = i + lane
            if k < count:
                row = address(matrix, rows[k] * d)
                for f in range(d):
                    blocks[at + f * wide + lane] = row[f]
            else:
                for f in range(d):
                    blocks[at + f * wide + lane] = 0.0
        at += block


@njit(forceinline=True, **OPTIONS)
def _scatter(matrix, rows, count, blocks, wide, block, d):
    at = 0
    for i in range(0, count, wide):
        for lane in range(min(wide, count - i)):
            row = address(matrix, rows[i + lane] * d)
            for f in range(d):
                row[f] = blocks[at + f * wide + lane]
        at += block


@t._once
def _epochs(K, wide, native, limit, compensated):
    """The epoch loop for K classes, `wide` samples a block."""
    others = K - 1

    @njit(**OPTIONS)
    def epochs_of(
        W, H, W_low, H_low, y, rows, rest, moments, dW, R, G, D, labels, steps, block, size,
        orders, numbers,
    ):  # fmt: skip
        d, N = W.shape[1], orders.shape[1]
        W_rows, H_rows = rows
        W_rest, H_rest = rest
        n_steps = -(-N // size)
        _to_blocks(W, W_rows, K, K * d)
        if compensated:
            _to_blocks(W_low, W_rest, K, K * d)
        for epoch in range(len(orders)):
            of_W = numbers_of(address(numbers, 0), epoch * 12)
            of_H = numbers_of(address(numbers, 0), epoch * 12 + 6)
            for step in range(n_steps):
                first = N * step // n_steps
                count = N * (step + 1) // n_steps - first
                batch = address(orders, epoch * N + first)
                padded = -(-count // native) * native
                for k in range(count):
                    labels[k], steps[k] = y[batch[k]], -1.0 / count
                for k in range(count, padded):
                    labels[k], steps[k] = 0.0, 0.0
                _gather(H, batch, count, address(H_rows, 0), wide, block, padded, d)
                if compensated:
                    _gather(H_low, batch, count, address(H_rest, 0), wide, block, padded, d)
                ruled_epoch(
                    address(W_rows, 0), address(H_rows, 0), address(H_rest, 0),
                    address(moments, 0), address(moments, 0), address(dW, 0), address(R, 0),
                    address(G, 0), address(D, 0), address(labels, 0), address(steps, 0), d, block,
                    padded, zeros(H, K, wide), zeros(H, others, wide), zeros(H, K, native),
                    zeros(H, others, native), limit, of_H, SCALED, False, False, compensated,
                )  # fmt: skip
                _scatter(H, batch, count, address(H_rows, 0), wide, block, d)
                if compensated:
                    _scatter(H_low, batch, count, address(H_rest, 0), wide, block, d)
                for j in range(0, W_rows.size, native):
                    move(
                        address(W_rows, 0), address(W_rest, 0), address(moments, 0),
                        address(moments, 0), j, native, (sum_rows(address(dW, 0), j),), of_W,
                        SCALED, False, False, compensated,
                    )  # fmt: skip
        _from_blocks(W, W_rows, K, K * d)
        if compensated:
            _from_blocks(W_low, W_rest, K, K * d)

    return epochs_of


def prepared(W, H, W_low, H_low, y, size):
    """A function of `orders` (epochs, N) and `numbers` (epochs, 12), all arrays in place.

    Each order is dealt out in batches of at most `size`, of nearly one size; of the numbers of
    `ruled_epoch` the step sizes count.
    """
    (K, d), dtype = W.shape, W.dtype
    native = native_lanes(dtype)
    wide = t._lanes_of_block(dtype, K)
    compensated = W_low.size > 0
    line = 64 // dtype.itemsize
    padded = t._round_up(size, native)
    block = (-(-d * wide // line) | 1) * line
    W_size, H_size = t._round_up(K * d, native), -(-padded // wide) * block
    W_rows = aligned(W_size + native, dtype)[:W_size]
    sizes = (W_size, H_size) if compensated else (1, 1)
    dW = aligned(t._round_up(W_size * native, line), dtype)
    dW[K * d * native :] = 0.0
    run = _epochs(K, wide, native, EXP_LIMIT[dtype.name], compensated)
    arguments = (
        W, H, W_low, H_low, y, (W_rows, aligned(H_size, dtype)),
        (aligned(sizes[0], dtype), aligned(sizes[1], dtype)), aligned(1, dtype), dW,
        aligned(t._round_up(padded, wide) * K, dtype), aligned(TOGETHER * padded, dtype),
        aligned((K - 1) * d + native, dtype), aligned(padded, dtype),
        aligned(padded, dtype), block, size,
    )  # fmt: skip

    def advance(orders, numbers):
        run(*arguments, orders, np.ascontiguousarray(numbers, dtype=dtype))

    return advance
