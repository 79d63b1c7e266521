"""First pass over features: class means and scatter, by chunks that Chan's formula merges.

Counts `n_k`, means `m_k` and squared deviations `s_k = sum_{i: y_i = k} |h_i - m_k|^2`
(section 2.1 of the paper; the numerators of NC1). Letters: N samples, d features, P classes
that occur among the labels given.

The samples are visited in the order of their classes. A chunk is at most 256 samples of one
class, read once: with x = h - h_0, h_0 the chunk's first sample, it sums x and |x|^2 in float64,

    m = h_0 + sum x / n,   s = sum |x|^2 - |sum x|^2 / n

Because h_0 is one of the n samples, `sum |x|^2 <= n s`: at most two or three of sixteen digits can
cancel, whatever the data are, and usually one bit does. Two chunks a, b of a class with means
apart by `D = m_b - m_a` merge as

    n = n_a + n_b,   m = m_a + D n_b / n,   s = s_a + s_b + |D|^2 n_a n_b / n

Chunks are fixed by the data alone and merged in order: any number of threads gives the same
bits. Bytes: H once (4 N d in float32); FLOP: 4 N d in float64. Bound by memory.
"""

import numpy as np
from numba import prange

from fastnc.kernels.cpu.options import INNER, OPTIONS, REASSOCIATION, njit
from fastnc.kernels.cpu.projections import LANES, load_double, prefetch, sum_of_lanes
from fastnc.kernels.cpu.simd import add, fma, sub, zeros
from fastnc.kernels.cpu.simd_blocks import load_like, store

# Rows of a chunk.
CHUNK = 256
# Features whose sums stay in the level-1 cache while a chunk's rows are read: 8 KB of them.
SLICE = 1024


@njit(**OPTIONS)
def group(y, n_classes):
    """`order (N,)` by class (stable), the classes `present (P,)`, and their `starts (P+1,)`."""
    N = len(y)
    counts = np.zeros(n_classes, np.int64)
    is_sorted = True
    for i in range(N):
        counts[y[i]] += 1
        if i > 0 and y[i] < y[i - 1]:
            is_sorted = False
    P = 0
    for k in range(n_classes):
        if counts[k] > 0:
            P += 1
    present = np.empty(P, np.int64)
    starts = np.zeros(P + 1, np.int64)
    p = 0
    for k in range(n_classes):
        if counts[k] > 0:
            present[p] = k
            starts[p + 1] = starts[p] + counts[k]
            counts[k] = starts[p]
            p += 1
    order = np.arange(N)
    if not is_sorted:
        for i in range(N):
            order[counts[y[i]]] = i
            counts[y[i]] += 1
    return order, present, starts


@njit(**INNER)
def _sum_slice(H, order, lo, hi, j0, n, sums):
    """`sums_j = sum x_j`, x = h - h_lo; returns `sum_j sum x_j^2`.

    Over the rows `order[lo:hi]` and n features, whole vectors of them, from j0 on.
    """
    d = H.shape[1]
    zero = zeros(sums, 1, LANES)[0]
    p, q, r, s = zero, zero, zero, zero
    shift = order[lo] * d + j0
    for j in range(0, n, LANES):
        store(sums, j0 + j, zero)
    i = lo + 1
    while i + 4 <= hi:
        a, b = order[i] * d + j0, order[i + 1] * d + j0
        c, e = order[i + 2] * d + j0, order[i + 3] * d + j0
        # The next four rows may be anywhere: memory is asked for them meanwhile.
        after = min(i + 4, len(order) - 4)
        next_a, next_b = order[after] * d + j0, order[after + 1] * d + j0
        next_c, next_e = order[after + 2] * d + j0, order[after + 3] * d + j0
        for j in range(0, n, LANES):
            prefetch(H, next_a + j, LANES)
            prefetch(H, next_b + j, LANES)
            prefetch(H, next_c + j, LANES)
            prefetch(H, next_e + j, LANES)
            first = load_double(H, shift + j, zero)
            u = sub(load_double(H, a + j, zero), first)
            v = sub(load_double(H, b + j, zero), first)
            w = sub(load_double(H, c + j, zero), first)
            x = sub(load_double(H, e + j, zero), first)
            p, q = fma(u, u, p), fma(v, v, q)
            r, s = fma(w, w, r), fma(x, x, s)
            total = add(load_like(sums, j0 + j, zero), add(add(u, v), add(w, x)))
            store(sums, j0 + j, total)
        i += 4
    while i < hi:
        a = order[i] * d + j0
        for j in range(0, n, LANES):
            u = sub(load_double(H, a + j, zero), load_double(H, shift + j, zero))
            p = fma(u, u, p)
            store(sums, j0 + j, add(load_like(sums, j0 + j, zero), u))
        i += 1
    return sum_of_lanes(add(add(p, q), add(r, s)))


@njit(fastmath=REASSOCIATION, **INNER)
def _chunk_moments(H, order, lo, hi, mean):
    """Mean of the rows `order[lo:hi]`, and the sum of their squared distances from it."""
    d, first = H.shape[1], order[lo]
    whole = d - d % LANES
    squares = 0.0
    for j0 in range(0, whole, SLICE):
        squares += _sum_slice(H, order, lo, hi, j0, min(SLICE, whole - j0), mean)
    for j in range(whole, d):
        mean[j] = 0.0
        for i in range(lo + 1, hi):
            x = np.float64(H[order[i], j]) - np.float64(H[first, j])
            mean[j] += x
            squares += x * x
    share = 1.0 / (hi - lo)
    apart = 0.0
    for j in range(d):
        x = mean[j] * share
        apart += mean[j] * x
        mean[j] = np.float64(H[first, j]) + x
    # Rounding may make the difference negative; NaN stays NaN.
    return 0.0 if squares < apart else squares - apart


@njit(fastmath=REASSOCIATION, **OPTIONS)
def _merge(n_a, mean_a, squares_a, n_b, mean_b, squares_b):
    """Chan's merge of (n_b, mean_b, squares_b) into `mean_a`; returns the merged squares."""
    n = n_a + n_b
    share = n_b / n
    gap = 0.0
    for j in range(len(mean_a)):
        D = mean_b[j] - mean_a[j]
        mean_a[j] += D * share
        gap += D * D
    return squares_a + squares_b + gap * (n_a * share)


@njit(**INNER)
def _first_chunks(starts):
    """For each class the number of its first chunk (P+1,); the last entry is their count."""
    P = len(starts) - 1
    first = np.zeros(P + 1, np.int64)
    for p in range(P):
        first[p + 1] = first[p] + (starts[p + 1] - starts[p] + CHUNK - 1) // CHUNK
    return first


@njit(**INNER)
def _moments_of_chunk(H, order, starts, first, chunk, means_out, squares_out, means, squares):
    """The moments of a class's first chunk to `means_out`, of a further one to `means`."""
    p, hi = 0, len(first) - 1
    while hi - p > 1:
        mid = (p + hi) // 2
        if first[mid] <= chunk:
            p = mid
        else:
            hi = mid
    lo = starts[p] + (chunk - first[p]) * CHUNK
    hi = min(lo + CHUNK, starts[p + 1])
    if chunk == first[p]:
        squares_out[p] = _chunk_moments(H, order, lo, hi, means_out[p])
    else:
        place = chunk - p - 1
        squares[place] = _chunk_moments(H, order, lo, hi, means[place])


@njit(**INNER)
def _merge_chunks(starts, first, p, means_out, squares_out, means, squares):
    """Merges the further chunks of class p in order into its first."""
    for chunk in range(first[p] + 1, first[p + 1]):
        n = (chunk - first[p]) * CHUNK
        m = min(CHUNK, starts[p + 1] - starts[p] - n)
        place = chunk - p - 1
        squares_out[p] = _merge(
            float(n), means_out[p], squares_out[p], float(m), means[place], squares[place]
        )


@njit(**OPTIONS)
def class_moments_serial(H, order, starts, means_out, squares_out):
    """`class_moments` on the calling thread alone: the bits are the same."""
    first = _first_chunks(starts)
    P, n_chunks = len(starts) - 1, first[-1]
    means, squares = np.empty((n_chunks - P, H.shape[1])), np.empty(n_chunks - P)
    for chunk in range(n_chunks):
        _moments_of_chunk(H, order, starts, first, chunk, means_out, squares_out, means, squares)
    for p in range(P):
        _merge_chunks(starts, first, p, means_out, squares_out, means, squares)


@njit(parallel=True, **OPTIONS)
def class_moments(H, order, starts, means_out, squares_out):
    """Means (P, d) and summed squared deviations (P,) of the classes that `group` found."""
    first = _first_chunks(starts)
    P, n_chunks = len(starts) - 1, first[-1]
    means, squares = np.empty((n_chunks - P, H.shape[1])), np.empty(n_chunks - P)
    for chunk in prange(n_chunks):
        _moments_of_chunk(H, order, starts, first, chunk, means_out, squares_out, means, squares)
    for p in prange(P):
        _merge_chunks(starts, first, p, means_out, squares_out, means, squares)


@njit(**OPTIONS)
def merge_moments(present, new_counts, new_means, new_squares, counts, means, squares):
    """Chan's merge of P classes' moments into the rows `present` of the running (K, ...) ones."""
    for p in range(len(present)):
        k = present[p]
        if new_counts[p] == 0:
            continue
        if counts[k] == 0:
            means[k] = new_means[p]
            squares[k] = new_squares[p]
        else:
            squares[k] = _merge(
                float(counts[k]),
                means[k],
                squares[k],
                float(new_counts[p]),
                new_means[p],
                new_squares[p],
            )
        counts[k] += new_counts[p]
