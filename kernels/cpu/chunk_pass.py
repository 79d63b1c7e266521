"""One pass over the samples, chunk by chunk: the loss (4) and those gradients that are needed.

Letters: K classes, d features, N samples, `W (K, D)`, `H (N, d)`, `y (N,)` int64; D is d rounded
up to whole vectors, for the register tiles. For a chunk of samples, block by block of the classes:

    forward     a block's logits, their exponentials e, and its contribution to S
    combine     losses, and the factors that turn e into residuals r  (residual)
    backward    the block's residuals, and `sums += r^T H`; then `out = alpha r W`

so that logits are used where they were made, in cache. Work is divided among threads in one of two
ways, which the plan chooses. `samples_divided`: each part of the samples has sums of its own, which
are added in order. `classes_divided`, for W so large that a sum for each part costs more than it
saves: all threads share a chunk, each owns some blocks of classes, and the ranges of blocks have
sums r W of their own, which are added in order.

Arguments that every function shares:

    mode      LOSS, GRADS, STEP (`out` is H, updated in place) or LOG_GRADS (in the log domain)
    planned   the plan: samples of a chunk, classes of a block, whether samples are transposed
              for the logits, and the addresses of compiled functions
    options   bias, weight, uniform, sum of uniform, keep, scale, as in `residual`; an absent
              option is an empty array

Parts, chunks and blocks depend on the shape and the processor alone, and so do the bits.
"""

import math

import numpy as np
from numba import prange

from fastnc.kernels.cpu import products
from fastnc.kernels.cpu.addresses import BOTH, COMBINE, EXPONENTIALS, RESIDUALS, call
from fastnc.kernels.cpu.aligned import aligned_rows
from fastnc.kernels.cpu.options import INNER, OPTIONS, REASSOCIATION, njit
from fastnc.kernels.cpu.processor import VECTOR_BYTES
from fastnc.kernels.cpu.residual import WIDTH, total_of
from fastnc.kernels.cpu.simd_blocks import address

LOSS, GRADS, STEP, LOG_GRADS = 0, 1, 2, 3


def row_of_logits(chunk, itemsize):
    """Numbers in a row of logits: whole groups of samples, and a spare group between rows."""
    many = WIDTH * VECTOR_BYTES // itemsize
    return (chunk + many - 1) // many * many + many


room = njit(**INNER)(row_of_logits)


@njit(**INNER)
def share_of(mode):
    """How many products prefetch samples: the last one too if it writes where it has read."""
    return 1 if mode == LOSS else 3 if mode == STEP else 2


@njit(**INNER)
def samples_of(part, n_parts, N, chunk):
    """A part's first sample and its end: whole chunks where there are enough, or whole vectors."""
    unit = chunk if 2 * n_parts * chunk <= N else VECTOR_BYTES // 4
    units = (N + unit - 1) // unit
    return min(N, units * part // n_parts * unit), min(N, units * (part + 1) // n_parts * unit)


@njit(fastmath=REASSOCIATION, **INNER)
def _label_logits(W, H, y, bias, first, rows, z_y):
    """The labels' logits of samples from the first on."""
    for i in range(rows):
        label = y[first + i]
        total = np.float64(bias[label]) if len(bias) else 0.0
        for f in range(H.shape[1]):
            total += np.float64(W[label, f]) * np.float64(H[first + i, f])
        z_y[i] = total


@njit(**INNER)
def forward(
    mode, share, kernels, low, n, alone, W, H_at, HT, y, first, rows, bias, uniform, Z, z_y, block,
    shift, S, moved, term_at,
):  # fmt: skip
    """Logits of the n classes from `low` on, block number `block`, and their exponentials.

    `alone`: these are all the classes, so that the labels' logits are among them.
    """
    ld = Z.shape[1]
    products.logits(kernels, W, low, n, H_at, HT, rows, Z, False, share if low == 0 else 0)
    if len(bias):
        for j in range(low, low + n):
            for i in range(rows):
                Z[j, i] += bias[j]
    if alone:
        for i in range(rows):
            z_y[i] = Z[y[first + i], i]
    else:
        for i in range(rows):
            label = y[first + i]
            if low <= label < low + n:
                Z[label, i] = z_y[i]
    call(
        kernels[EXPONENTIALS],
        (
            address(Z, low * ld), n, ld, low, address(y, first), rows, np.int64(mode == LOG_GRADS),
            address(uniform, 0), len(uniform), address(z_y, 0), address(shift, block * ld),
            address(S, block * 2 * ld), address(moved, block * ld), term_at,
        ),
    )  # fmt: skip


@njit(**INNER)
def backward(
    share, kernels, low, n, H_at, D, y, first, rows, scale, uniform, Z, block, factor, label_r,
    term_at, part, sums, bias_sums, both,
):  # fmt: skip
    """Residuals of the n classes from `low` on, from exponentials, and their sums over samples.

    `sums` and `bias_sums` hold each part's sums for all classes, or for none.
    """
    ld = Z.shape[1]
    call(
        kernels[RESIDUALS],
        (
            address(Z, low * ld), n, ld, low, address(y, first), rows,
            address(scale, first if len(scale) > 1 else 0), len(scale), address(uniform, 0),
            len(uniform), address(factor, block * ld), address(label_r, 0), term_at,
            address(bias_sums, part * bias_sums.shape[1] + low), n if bias_sums.shape[1] else 0,
        ),
    )  # fmt: skip
    if sums.shape[1] and not both:
        place = (part * sums.shape[1] + low) * D
        share = share if low == 0 else 0
        products.class_sums(kernels, Z, low, n, H_at, D, rows, sums, place, share)


@njit(**INNER)
def part_of_samples(
    mode, part, n_parts, planned, W, H, y, options, alpha, out, sums, bias_sums, losses_out, totals,
    shifts, chunk_shifts,
):  # fmt: skip
    """One part: `sums[part] += r^T H`, `bias_sums[part] += sum r`, rows of `out`, `totals[part]`.

    All but the rows of `out` are divided by e^shifts[part] (-inf without samples). In the log
    domain the rows of `out` are divided by e^chunk_shifts of their chunk.
    """
    chunk, block, transposes = planned[:3]
    kernels = planned[3:]
    bias, weight, uniform, all_uniform, keep, scale = options
    (N, d), (K, D) = H.shape, W.shape
    low, high = samples_of(part, n_parts, N, chunk)
    n_blocks, ld = (K + block - 1) // block, room(chunk, W.itemsize)
    Z = aligned_rows(K, ld, W)
    HT = aligned_rows(d if transposes else 0, ld, W)
    z_y, term = np.empty(ld, W.dtype), np.empty(ld, W.dtype)
    wide = np.empty((3 + 5 * n_blocks, ld))
    label_r, losses, scales = wide[0], wide[1], wide[2]
    S = wide[3 : 3 + 2 * n_blocks].reshape((n_blocks, 2, ld))
    factor, moved = wide[3 + 2 * n_blocks : 3 + 3 * n_blocks], wide[3 + 3 * n_blocks : -n_blocks]
    tops = wide[-n_blocks:]
    padded = aligned_rows(chunk if d != D else 0, D, W)
    padded[:] = 0.0
    wanted = mode != LOSS and len(out) + bias_sums.shape[1] + sums.shape[1] > 0
    total, running, zero = 0.0, -np.inf, np.int64(0)
    share, size = share_of(mode), W.itemsize
    for first in range(low, high, chunk):
        rows = min(chunk, high - first)
        H_at = address(H, first * d)
        if d != D:
            products.copy_rows(H, first, padded, 0, rows, d)
            H_at = address(padded, 0)
        if transposes:
            products.transpose(kernels, H, first, rows, d, HT)
        if n_blocks > 1:
            _label_logits(W, H, y, bias, first, rows, z_y)
        for b in range(n_blocks):
            j, n = b * block, min(block, K - b * block)
            forward(
                mode, share, kernels, j, n, n_blocks == 1, W, H_at, HT, y, first, rows, bias,
                uniform, Z, z_y, b, tops, S, moved, address(term, 0),
            )  # fmt: skip
        call(
            kernels[COMBINE],
            (
                address(y, first), rows, ld, n_blocks, block, running, address(weight, 0),
                len(weight), address(uniform, 0), len(uniform), all_uniform, keep, address(z_y, 0),
                address(tops, 0), address(S, 0), address(moved, 0), address(factor, 0),
                address(label_r, 0), address(losses, 0), address(scales, 0),
            ),
        )  # fmt: skip
        c = scales[0]
        if c > running:
            if running > -np.inf:
                products.scale_rows(sums[part], math.exp(running - c))
                products.scale_rows(bias_sums[part : part + 1], math.exp(running - c))
                total *= math.exp(running - c)
            running = c
        loss = total_of(losses, rows)
        total += loss
        for i in range(rows if len(losses_out) else 0):
            losses_out[first + i] = losses[i] * math.exp(0.5 * c) * math.exp(0.5 * c)
        # A step leaves these rows unchanged if their loss is not finite.
        if not wanted or (mode == STEP and not math.isfinite(loss)):
            continue
        step = alpha * W.dtype.type(math.exp(c)) if mode == STEP else alpha
        both = kernels[BOTH] != 0
        for b in range(n_blocks):
            j, n = b * block, min(block, K - b * block)
            backward(
                share, kernels, j, n, H_at, D, y, first, rows, scale, uniform, Z, b, factor,
                label_r, address(term, 0), part, sums, bias_sums, both,
            )  # fmt: skip
        # Only after all blocks have read the samples: a step overwrites them.
        if len(out):
            out_at = address(out, first * d)
            C_at = H_at if d != D else out_at
            if both:
                place = part * sums.shape[1] * D
                products.both_sums(kernels, Z, W, H_at, rows, sums, place, step, share)
            else:
                # The last part of the next samples, or all rows that are written next.
                number, of = (2, share) if mode == STEP else (0, 1)
                ahead, lines = products.to_prefetch(number, of, out_at, d, rows, size)
                products.sample_sums(
                    kernels, Z, W, zero, K, step, mode == STEP, C_at, rows, N, ahead, lines
                )
            if mode == GRADS and c != 0.0:
                if d != D:
                    products.scale_exponentially(padded, 0, rows, c)
                else:
                    products.scale_exponentially(out, first, rows, c)
            if d != D:
                products.copy_rows(padded, 0, out, first, rows, d)
        if mode == LOG_GRADS:
            chunk_shifts[part, (first - low) // chunk] = c
    totals[part] = total
    shifts[part] = running


@njit(parallel=True, **OPTIONS)
def samples_divided(
    mode, n_parts, planned, W, H, y, options, alpha, out, sums, bias_sums, losses_out, totals,
    shifts, chunk_shifts,
):  # fmt: skip
    """All parts of the samples."""
    for index in prange(n_parts):
        # The index of a parallel loop is unsigned: without a cast all callees are compiled twice.
        part_of_samples(
            mode, np.int64(index), n_parts, planned, W, H, y, options, alpha, out, sums, bias_sums,
            losses_out, totals, shifts, chunk_shifts,
        )  # fmt: skip


@njit(**OPTIONS)
def one_part(
    mode, planned, W, H, y, options, alpha, out, sums, bias_sums, losses_out, totals, shifts,
    chunk_shifts,
):  # fmt: skip
    """All samples, on the calling thread."""
    first = np.int64(0)
    part_of_samples(
        mode, first, first + 1, planned, W, H, y, options, alpha, out, sums, bias_sums, losses_out,
        totals, shifts, chunk_shifts,
    )  # fmt: skip


@njit(parallel=True, **OPTIONS)
def classes_divided(
    mode, Z, range_sums, planned, W, H, y, options, alpha, out, sums, bias_sums, losses_out, totals,
    shifts, chunk_shifts,
):  # fmt: skip
    """All samples as one part; threads share the blocks of classes, in ranges.

    `Z` (K, rows of logits) and `range_sums` (ranges, a chunk or 0, D) are room for a chunk.
    """
    chunk, block, transposes = planned[:3]
    kernels = planned[3:]
    bias, weight, uniform, all_uniform, keep, scale = options
    (N, d), (K, D) = H.shape, W.shape
    n_blocks, ld = (K + block - 1) // block, Z.shape[1]
    HT = aligned_rows(d if transposes else 0, ld, W)
    n_ranges, height = range_sums.shape[:2]
    z_y, terms = np.empty(ld, W.dtype), np.empty((n_ranges, ld), W.dtype)
    tops, S = np.empty((n_blocks, ld)), np.empty((n_blocks, 2, ld))
    factor, moved = np.empty((n_blocks, ld)), np.empty((n_blocks, ld))
    origins = np.empty((n_blocks, ld), W.dtype)
    label_r, losses, scales = np.empty(ld), np.empty(ld), np.empty(1)
    padded = aligned_rows(chunk if d != D else 0, D, W)
    padded[:] = 0.0
    wanted = mode != LOSS and len(out) + bias_sums.shape[1] + sums.shape[1] > 0
    one = W.dtype.type(1.0)
    total, running, share = 0.0, -np.inf, share_of(mode)
    for first in range(0, N, chunk):
        rows = min(chunk, N - first)
        H_at = address(H, first * d)
        if d != D:
            products.copy_rows(H, first, padded, 0, rows, d)
            H_at = address(padded, 0)
        if transposes:
            products.transpose(kernels, H, first, rows, d, HT)
        _label_logits(W, H, y, bias, first, rows, z_y)
        for index in prange(n_blocks):
            b = np.int64(index)
            j, n = b * block, min(block, K - b * block)
            forward(
                mode, share, kernels, j, n, False, W, H_at, HT, y, first, rows, bias, uniform, Z,
                z_y, b, tops, S, moved, address(origins, b * ld),
            )  # fmt: skip
        call(
            kernels[COMBINE],
            (
                address(y, first), rows, ld, n_blocks, block, running, address(weight, 0),
                len(weight), address(uniform, 0), len(uniform), all_uniform, keep, address(z_y, 0),
                address(tops, 0), address(S, 0), address(moved, 0), address(factor, 0),
                address(label_r, 0), address(losses, 0), address(scales, 0),
            ),
        )  # fmt: skip
        c = scales[0]
        if c > running:
            if running > -np.inf:
                products.scale_rows(sums[0], math.exp(running - c))
                products.scale_rows(bias_sums, math.exp(running - c))
                total *= math.exp(running - c)
            running = c
        loss = total_of(losses, rows)
        total += loss
        for i in range(rows if len(losses_out) else 0):
            losses_out[first + i] = losses[i] * math.exp(0.5 * c) * math.exp(0.5 * c)
        if not wanted or (mode == STEP and not math.isfinite(loss)):
            continue
        for index in prange(n_ranges):
            p = np.int64(index)
            begin, stop = n_blocks * p // n_ranges, n_blocks * (p + 1) // n_ranges
            for b in range(begin, stop):
                j, n = b * block, min(block, K - b * block)
                backward(
                    share, kernels, j, n, H_at, D, y, first, rows, scale, uniform, Z, b, factor,
                    label_r, address(terms, p * ld), np.int64(0), sums, bias_sums, False,
                )  # fmt: skip
                if len(out):
                    products.sample_sums(
                        kernels, Z, W, j, n, one, b > begin, address(range_sums, p * height * D),
                        rows, N, H_at, np.int64(0),
                    )  # fmt: skip
        root = math.exp(0.5 * c) if mode != LOG_GRADS else 1.0
        for index in prange(rows if len(out) else 0):
            i = np.int64(index)
            for f in range(d):
                value = np.float64(range_sums[0, i, f])
                for p in range(1, n_ranges):
                    value += range_sums[p, i, f]
                old = out[first + i, f] if mode == STEP else W.dtype.type(0.0)
                out[first + i, f] = old + np.float64(alpha) * value * root * root
        if mode == LOG_GRADS:
            chunk_shifts[0, first // chunk] = c
    totals[0] = total
    shifts[0] = running


@njit(**INNER)
def add_rows(sums, shifts, top, factor, keep, low, high, out):
    """Rows of `out` (+)= factor e^top sum_p e^shifts[p] sums[p], in float64."""
    root = math.exp(0.5 * top)
    total = np.empty(out.shape[1])
    for j in range(low, high):
        for f in range(out.shape[1]):
            total[f] = 0.0
        for p in range(len(sums)):
            weight = math.exp(shifts[p])
            for f in range(out.shape[1]):
                total[f] += weight * np.float64(sums[p, j, f])
        for f in range(out.shape[1]):
            old = np.float64(out[j, f]) if keep else 0.0
            out[j, f] = old + factor * total[f] * root * root


@njit(**OPTIONS)
def add_serially(sums, shifts, top, factor, keep, out):
    """`add_rows` of all rows, on the calling thread."""
    add_rows(sums, shifts, top, factor, keep, np.int64(0), len(out), out)


@njit(parallel=True, **OPTIONS)
def add_in_parallel(sums, shifts, top, factor, keep, out):
    """`add_rows` of all rows, in blocks of 16."""
    for index in prange((len(out) + 15) // 16):
        low = np.int64(index) * 16
        add_rows(sums, shifts, top, factor, keep, low, min(low + 16, len(out)), out)


@njit(parallel=True, **OPTIONS)
def rescale(chunk, n_parts, H, chunk_shifts, top, factor):
    """Rows of H times `factor e^(their chunk's shift - top)`."""
    N = len(H)
    for part in prange(n_parts):
        low, high = samples_of(np.int64(part), n_parts, N, chunk)
        for k in range((high - low + chunk - 1) // chunk):
            by = factor * math.exp(chunk_shifts[part, k] - top)
            first = low + k * chunk
            products.scale_rows(H[first : min(first + chunk, high)], by)
