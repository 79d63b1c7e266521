"""Many epochs of minibatches on the mean loss (4) in one compiled call, by the rules of `update`.

For problems that `ruled_trajectory` serves. H and its moments lie as `batch_epoch` says; an epoch
first deals its samples out, or draws them. Samples that are not in a batch have a gradient of 0:

    SCALED               they do not change
    MOMENTUM, NESTEROV   j steps without a gradient are one, made when the row is needed, or at
                         the end of its epoch: x += lr (mu + ... + mu^j) m, m <- mu^j m
    ADAM, coupled decay  all rows change in every step, by what G holds for them

With `W_low`, `H_low` (float32) each sum's rounding error waits there for the next step.

Letters: K classes, d features, N samples, B batches an epoch. `6 K N d` FLOP, `N (K - 1)`
exponentials, `N (K - 1)` sums over the lanes of a vector and B times the `2 K d` of W an epoch; of
rules that change all rows B times `N d`, for Adam with a square root and a division each.
"""

import numpy as np

from fastnc.kernels.cpu import trajectory as t
from fastnc.kernels.cpu.aligned import aligned, aligned_zeros
from fastnc.kernels.cpu.batch_epoch import (
    differences,
    factors_of_idleness,
    idle,
    residuals,
    step_of_batch,
)
from fastnc.kernels.cpu.draws import deal, draw
from fastnc.kernels.cpu.options import OPTIONS, njit
from fastnc.kernels.cpu.processor import native_lanes
from fastnc.kernels.cpu.ruled_epoch import (
    ADAM,
    MOMENTUM,
    N_NUMBERS,
    NESTEROV,
    SCALED,
    numbers_of,
    update,
    update_together,
)
from fastnc.kernels.cpu.simd import EXP_LIMIT, zeros
from fastnc.kernels.cpu.simd_blocks import address, load_members, store_members


@njit(**OPTIONS)
def _copy(matrix, rows):
    """A matrix into rows of whole vectors."""
    for i in range(matrix.shape[0]):
        for f in range(matrix.shape[1]):
            rows[i, f] = matrix[i, f]


@njit(**OPTIONS)
def _copy_back(matrix, rows):
    for i in range(matrix.shape[0]):
        for f in range(matrix.shape[1]):
            matrix[i, f] = rows[i, f]


@njit(forceinline=True, **OPTIONS)
def _bounds(step, n_steps, N, size, replacement):
    """Where the samples of a step begin and end in the order of an epoch."""
    if replacement:
        return step * size, (step + 1) * size
    return N * step // n_steps, N * (step + 1) // n_steps


@t._once
def _epochs(K, native, limit, rule, coupled, decoupled, compensated, replacement):
    """The epoch loop for K classes and a rule, its samples dealt out or drawn."""
    others, two = K - 1, 2 * native
    every_row = rule == ADAM or coupled
    # Momentum adds up the gradients of a row first.
    waits = every_row or (replacement and rule != SCALED)
    late = not every_row and rule in (MOMENTUM, NESTEROV)

    @njit(**OPTIONS)
    def epochs_of(
        matrices, rows, y, labels, steps, P, R, D, G_W, G, order, seen, kept, along, size, key,
        drawn, epochs, numbers,
    ):  # fmt: skip
        W, H, W_low, H_low, W_m, H_m, W_v, H_v = matrices
        W_rows, H_rows, W_rest, H_rest, m_W, m_H, v_W, v_H = rows
        N, width, padded = len(H), W_rows.shape[1], R.shape[1]
        n_steps = labels.shape[0]
        least = size if replacement else N // n_steps
        _copy(W, W_rows)
        _copy(H, H_rows)
        if compensated:
            _copy(W_low, W_rest)
            _copy(H_low, H_rest)
        if rule != SCALED:
            _copy(W_m, m_W)
            _copy(H_m, m_H)
        if rule == ADAM:
            _copy(W_v, v_W)
            _copy(H_v, v_H)
        group, of_others = zeros(H, K, native), zeros(H, others, native)
        one, wide = zeros(H, 1, native), zeros(H, others, two)
        for f in range(0, width, native):
            differences(address(W_rows, 0), address(D, 0), f, width, group)
        for epoch in range(epochs):
            if replacement:
                draw(key, drawn, N, order)
            else:
                deal(key, drawn, order)
            drawn += np.uint64(len(order))
            for step in range(n_steps):
                first, last = _bounds(step, n_steps, N, size, replacement)
                for k in range(first, last):
                    labels[step, k - first] = y[order[k]]
            at = epoch * 2 * N_NUMBERS
            of_W = numbers_of(address(numbers, 0), at)
            of_H = numbers_of(address(numbers, 0), at + N_NUMBERS)
            if late:
                factors_of_idleness(n_steps, of_H[0], of_H[1], rule, kept, along)
            for step in range(n_steps):
                first, last = _bounds(step, n_steps, N, size, replacement)
                count = last - first
                batch = address(order, first)
                if late:
                    for k in range(count):
                        i = batch[k]
                        j = step - seen[i]
                        if j > 0:
                            idle(
                                address(H_rows, 0), address(H_rest, 0), address(m_H, 0), i * width,
                                width, along[j], kept[j], one[0], compensated,
                            )  # fmt: skip
                        seen[i] = step + 1
                if rule == ADAM:
                    at = (epoch * n_steps + step) * 2 * N_NUMBERS
                    of_W = numbers_of(address(numbers, 0), at)
                    of_H = numbers_of(address(numbers, 0), at + N_NUMBERS)
                residuals(
                    address(D, 0), address(H_rows, 0), batch, count,
                    address(labels, step * padded), address(steps, (count - least) * padded),
                    address(P, 0), address(R, 0), width, padded, wide, of_others,
                    limit,
                )  # fmt: skip
                step_of_batch(
                    address(W_rows, 0), address(W_rest, 0), address(m_W, 0), address(H_rows, 0),
                    address(H_rest, 0), address(m_H, 0), address(G_W, 0), address(G, 0),
                    address(D, 0), address(R, 0), batch, count, width, padded, group, of_W, of_H,
                    rule, coupled, compensated, waits, replacement,
                )  # fmt: skip
                if every_row:
                    update_together(
                        address(H_rows, 0), address(H_rest, 0), address(m_H, 0), address(v_H, 0),
                        address(G, 0), native, native, N * width // native, group, of_H, rule,
                        coupled, decoupled, compensated,
                    )  # fmt: skip
                if rule == ADAM:
                    update_together(
                        address(W_rows, 0), address(W_rest, 0), address(m_W, 0), address(v_W, 0),
                        address(G_W, 0), native, native, K * width // native, group, of_W, rule,
                        coupled, decoupled, compensated,
                    )  # fmt: skip
                    for f in range(0, width, native):
                        differences(address(W_rows, 0), address(D, 0), f, width, group)
                if waits:
                    # A row that was drawn twice is updated once, by both gradients.
                    for k in range(count):
                        i = batch[k]
                        if replacement and not every_row:
                            if seen[i] < 0:
                                continue
                            seen[i] = -1 - seen[i]
                        for f in range(i * width, (i + 1) * width, native):
                            if not every_row:
                                update(
                                    address(H_rows, 0), address(H_rest, 0), address(m_H, 0), f,
                                    native, load_members(address(G, 0), f, native, one), of_H,
                                    rule, coupled, compensated,
                                )  # fmt: skip
                            store_members(address(G, 0), f, native, one)
                    if replacement and not every_row:
                        for k in range(count):
                            if seen[batch[k]] < 0:
                                seen[batch[k]] = -1 - seen[batch[k]]
            if late:
                for i in range(N):
                    j = n_steps - seen[i]
                    if j > 0:
                        idle(
                            address(H_rows, 0), address(H_rest, 0), address(m_H, 0), i * width,
                            width, along[j], kept[j], one[0], compensated,
                        )  # fmt: skip
                    seen[i] = 0
        _copy_back(W, W_rows)
        _copy_back(H, H_rows)
        if compensated:
            _copy_back(W_low, W_rest)
            _copy_back(H_low, H_rest)
        if rule != SCALED:
            _copy_back(W_m, m_W)
            _copy_back(H_m, m_H)
        if rule == ADAM:
            _copy_back(W_v, v_W)
            _copy_back(H_v, v_H)

    return epochs_of


def prepared(W, H, low, first, second, y, size, replacement, rule, coupled, decoupled):
    """A function of (key, drawn, epochs, numbers) that makes so many epochs, all arrays in place.

    `low`, `first`, `second`, `rule` and the decays as in `ruled_trajectory`. A batch has `size`
    samples if they are drawn, and nearly as many if they are dealt out. `key` names the sequence of
    draws, of which `drawn` were made; a row of `numbers` is an epoch's, of Adam a step's.
    """
    (K, d), N, dtype = W.shape, len(H), W.dtype
    native = native_lanes(dtype)
    compensated = low[0].size > 0
    n_steps = -(-N // size)
    width, padded = t._round_up(d, native), t._round_up(size, native)
    some = (True, compensated, rule != SCALED, rule == ADAM)
    rows = tuple(
        aligned_zeros((n, width) if there else (1, 1), dtype) for there in some for n in (K, N)
    )
    waits = rule == ADAM or coupled or (replacement and rule != SCALED)
    order = np.zeros(n_steps * size if replacement else N, np.int64)
    # Of the batches of an epoch some have a sample more.
    steps, least = aligned_zeros((2, padded), dtype), size if replacement else N // n_steps
    for count, row in zip((least, least + 1), steps, strict=True):
        row[:count] = -1.0 / count
    run = _epochs(
        K, native, EXP_LIMIT[dtype.name], rule, coupled, decoupled, compensated, replacement
    )
    matrices = (W, H, *low, *first, *second)
    arguments = (
        matrices, rows, y.astype(dtype), aligned_zeros((n_steps, padded), dtype),
        steps, aligned_zeros((6 * native * native * K,), dtype),
        aligned_zeros((K, padded), dtype), aligned_zeros((K, width), dtype),
        aligned_zeros((K, width), dtype),
        aligned_zeros((N, width) if waits else (1, 1), dtype), order, np.zeros(N, np.int64),
        aligned(n_steps + 1, dtype), aligned(n_steps + 1, dtype), size,
    )  # fmt: skip

    def advance(key, drawn, epochs, numbers):
        run(*arguments, np.uint64(key), np.uint64(drawn), epochs, numbers)

    return advance
