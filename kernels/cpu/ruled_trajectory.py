"""Many epochs of momentum or Adam on scale * (4) in one compiled call, for small problems.

As `trajectory`: W, H and here their moments stay in the first-level caches, samples in the lanes
of explicit vectors, blocks [feature][lanes]. A feature of H is updated with its moments as soon as
its gradient is known; W is updated after all samples. `W_low` and `H_low` (float32) keep each sum's
rounding error for the next epoch.

For as many classes as one pass over H can hold and for problems that one thread alone works on
(`serves`). What an epoch's rule needs, its step size first, is a row of `numbers` (epochs, 12).

Letters: K classes, d features, N samples. `6 K N d` FLOP and N (K - 1) exponentials an epoch, and
for Adam (N + K) d square roots and divisions, which dominate on processors with wide vectors.
"""

from fastnc.kernels.cpu import trajectory as t
from fastnc.kernels.cpu.aligned import aligned
from fastnc.kernels.cpu.options import OPTIONS, njit
from fastnc.kernels.cpu.processor import native_lanes
from fastnc.kernels.cpu.ruled_epoch import (
    ADAM,
    N_NUMBERS,
    SCALED,
    TOGETHER,
    numbers_of,
    ruled_epoch,
    update,
    update_together,
)
from fastnc.kernels.cpu.simd import EXP_LIMIT, zeros
from fastnc.kernels.cpu.simd_blocks import address, store, sum_rows

_to_blocks, _from_blocks = t._to_blocks, t._from_blocks


def serves(n_classes, dim, n_samples):
    """Whether these kernels are for a problem of that shape."""
    one_pass = t._group_of_classes(n_classes) == n_classes
    return one_pass and t.stays_on_one_thread(n_classes, dim, n_samples)


@t._once
def _epochs(K, wide, native, limit, rule, coupled, decoupled, compensated):
    """The epoch loop for K classes and a rule, `wide` samples a block."""
    others = K - 1

    @njit(**OPTIONS)
    def epochs_of(
        W, H, W_low, H_low, W_m, H_m, W_v, H_v, rows, rest, first, second, dW, R, G, D, labels,
        steps, block, size, numbers,
    ):  # fmt: skip
        d = W.shape[1]
        W_rows, H_rows = rows
        W_rest, H_rest = rest
        m_W, m_H = first
        v_W, v_H = second
        _to_blocks(W, W_rows, K, K * d)
        _to_blocks(H, H_rows, wide, block)
        if compensated:
            _to_blocks(W_low, W_rest, K, K * d)
            _to_blocks(H_low, H_rest, wide, block)
        if rule != SCALED:
            _to_blocks(W_m, m_W, K, K * d)
            _to_blocks(H_m, m_H, wide, block)
        if rule == ADAM:
            _to_blocks(W_v, v_W, K, K * d)
            _to_blocks(H_v, v_H, wide, block)
        for epoch in range(len(numbers)):
            at = epoch * 2 * N_NUMBERS
            of_W = numbers_of(address(numbers, at), 0)
            of_H = numbers_of(address(numbers, at), N_NUMBERS)
            ruled_epoch(
                address(W_rows, 0), address(H_rows, 0), address(H_rest, 0), address(m_H, 0),
                address(v_H, 0), address(dW, 0), address(R, 0), address(G, 0), address(D, 0),
                address(labels, 0), address(steps, 0), d, block, size, zeros(H, K, wide),
                zeros(H, others, wide), zeros(H, K, native), zeros(H, others, native),
                limit, of_H, rule, coupled, decoupled, compensated,
            )  # fmt: skip
            for j in range(0, W_rows.size, native):
                change = (sum_rows(address(dW, 0), j),)
                if rule == ADAM:
                    store(address(G, 0), j, change[0])
                else:
                    update(
                        address(W_rows, 0), address(W_rest, 0), address(m_W, 0), j, native, change,
                        of_W, rule, coupled, compensated,
                    )  # fmt: skip
            if rule == ADAM:
                update_together(
                    address(W_rows, 0), address(W_rest, 0), address(m_W, 0), address(v_W, 0),
                    address(G, 0), native, native, W_rows.size // native, zeros(H, K, native), of_W,
                    rule, coupled, decoupled, compensated,
                )  # fmt: skip
        _from_blocks(W, W_rows, K, K * d)
        _from_blocks(H, H_rows, wide, block)
        if compensated:
            _from_blocks(W_low, W_rest, K, K * d)
            _from_blocks(H_low, H_rest, wide, block)
        if rule != SCALED:
            _from_blocks(W_m, m_W, K, K * d)
            _from_blocks(H_m, m_H, wide, block)
        if rule == ADAM:
            _from_blocks(W_v, v_W, K, K * d)
            _from_blocks(H_v, v_H, wide, block)

    return epochs_of


def prepared(W, H, low, first, second, y, rule, coupled, decoupled):
    """A function of `numbers` (epochs, 12) that makes that many epochs, all arrays in place.

    `low`, `first` and `second` are pairs (of W, of H): rounding errors, and the two moments; pairs
    of (0, 0) arrays where there are none.
    """
    (K, d), N, dtype = W.shape, len(H), W.dtype
    native = native_lanes(dtype)
    wide = t._lanes_of_block(dtype, K)
    compensated = low[0].size > 0
    line = 64 // dtype.itemsize
    padded = t._round_up(N, native)
    block = (-(-d * wide // line) | 1) * line
    labels, steps = aligned(padded, dtype), aligned(padded, dtype)
    labels[:N], labels[N:], steps[:N], steps[N:] = y, 0.0, -1.0 / N, 0.0
    W_size, H_size = t._round_up(K * d, native), -(-padded // wide) * block

    def pair(some, spare=0):
        sizes = (W_size + spare, H_size) if some else (1, 1)
        return tuple(aligned(size, dtype) for size in sizes)

    rows = pair(True, native)
    rows = (rows[0][:W_size], rows[1])
    dW = aligned(t._round_up(W_size * native, line), dtype)
    dW[K * d * native :] = 0.0
    R = aligned(t._round_up(padded, wide) * K, dtype)
    D = aligned((K - 1) * d + native, dtype)
    G = aligned(max(TOGETHER * padded, W_size), dtype)
    run = _epochs(K, wide, native, EXP_LIMIT[dtype.name], rule, coupled, decoupled, compensated)
    arguments = (
        W, H, *low, *first, *second, rows, pair(compensated), pair(rule != SCALED),
        pair(rule == ADAM), dW, R, G, D, labels, steps, block, padded,
    )  # fmt: skip

    def advance(numbers):
        run(*arguments, numbers)

    return advance
