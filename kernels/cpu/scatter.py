"""Class means and scatter of features in one sweep, by chunks that Chan's formula merges.

Counts `n_k`, means `m_k` and squared deviations `s_k = sum_{i: y_i = k} |h_i - m_k|^2`
(section 2.1 of the paper; the numerators of NC1). Letters: N samples, d features, P classes
that occur among the labels given.

The samples are visited in the order of their classes. A chunk of one class is summed in
float64, and while it lies in cache its deviations from its own mean are squared: nothing is
ever computed as `E|h|^2 - |m|^2`. Two parts a, b of a class with means apart by
`D = m_b - m_a` merge as

    n = n_a + n_b,   m = m_a + D n_b / n,   s = s_a + s_b + |D|^2 n_a n_b / n

Chunks are fixed by the data alone and merged in order: any number of threads gives the same
bits. Bytes: H once (4 N d in float32). Bound by memory from d of about 64 on.
"""

import numpy as np
from numba import prange

from fastnc.kernels.cpu.options import INNER, OPTIONS, njit

CHUNK_BYTES = 256 * 1024
# Plain sums only: the order of additions is free here, infinities and NaN keep their meaning.
_SUMS = {"contract", "nsz", "arcp", "reassoc"}


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


@njit(**OPTIONS)
def chunk_rows(H):
    """Rows of H a chunk: at most `CHUNK_BYTES`, and 4 to 256 of them."""
    return min(max(CHUNK_BYTES // (H.shape[1] * H.itemsize), 4), 256)


@njit(fastmath=_SUMS, **INNER)
def _chunk_moments(H, order, lo, hi, mean):
    """Mean of the rows `order[lo:hi]`, and the sum of their squared distances from it."""
    d = H.shape[1]
    mean[:] = 0.0
    i = lo
    while i + 4 <= hi:
        a, b, c, e = order[i], order[i + 1], order[i + 2], order[i + 3]
        for j in range(d):
            mean[j] += (np.float64(H[a, j]) + np.float64(H[b, j])) + (
                np.float64(H[c, j]) + np.float64(H[e, j])
            )
        i += 4
    while i < hi:
        a = order[i]
        for j in range(d):
            mean[j] += np.float64(H[a, j])
        i += 1
    share = 1.0 / (hi - lo)
    for j in range(d):
        mean[j] *= share
    squares = 0.0
    for i in range(lo, hi):
        a = order[i]
        for j in range(d):
            x = np.float64(H[a, j]) - mean[j]
            squares += x * x
    return squares


@njit(fastmath=_SUMS, **OPTIONS)
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
def _class_of_chunk(starts, rows):
    """For each class the number of its first chunk (P+1,); the last entry is their count."""
    P = len(starts) - 1
    first = np.zeros(P + 1, np.int64)
    for p in range(P):
        first[p + 1] = first[p] + (starts[p + 1] - starts[p] + rows - 1) // rows
    return first


@njit(**INNER)
def _chunk_bounds(starts, first, rows, chunk):
    """The range of `order` that a chunk covers."""
    p, hi = 0, len(first) - 1
    while hi - p > 1:
        mid = (p + hi) // 2
        if first[mid] <= chunk:
            p = mid
        else:
            hi = mid
    lo = starts[p] + (chunk - first[p]) * rows
    return lo, min(lo + rows, starts[p + 1])


@njit(**INNER)
def _merge_chunks(starts, first, rows, p, chunk_means, chunk_squares, mean):
    """The chunks of class p merged in order into `mean`; returns their squares."""
    for j in range(len(mean)):
        mean[j] = chunk_means[first[p], j]
    squares = chunk_squares[first[p]]
    n = float(min(rows, starts[p + 1] - starts[p]))
    for chunk in range(first[p] + 1, first[p + 1]):
        lo = starts[p] + (chunk - first[p]) * rows
        m = float(min(rows, starts[p + 1] - lo))
        squares = _merge(n, mean, squares, m, chunk_means[chunk], chunk_squares[chunk])
        n += m
    return squares


@njit(**OPTIONS)
def class_moments_serial(H, order, starts, means_out, squares_out):
    """`class_moments` on the calling thread alone: the bits are the same."""
    rows = chunk_rows(H)
    first = _class_of_chunk(starts, rows)
    means = np.empty((first[-1], H.shape[1]))
    squares = np.empty(first[-1])
    for chunk in range(first[-1]):
        lo, hi = _chunk_bounds(starts, first, rows, chunk)
        squares[chunk] = _chunk_moments(H, order, lo, hi, means[chunk])
    for p in range(len(starts) - 1):
        squares_out[p] = _merge_chunks(starts, first, rows, p, means, squares, means_out[p])


@njit(parallel=True, **OPTIONS)
def class_moments(H, order, starts, means_out, squares_out):
    """Means (P, d) and summed squared deviations (P,) of the classes that `group` found."""
    rows = chunk_rows(H)
    first = _class_of_chunk(starts, rows)
    n_chunks = first[-1]
    means = np.empty((n_chunks, H.shape[1]))
    squares = np.empty(n_chunks)
    for chunk in prange(n_chunks):
        lo, hi = _chunk_bounds(starts, first, rows, chunk)
        squares[chunk] = _chunk_moments(H, order, lo, hi, means[chunk])
    for p in prange(len(starts) - 1):
        squares_out[p] = _merge_chunks(starts, first, rows, p, means, squares, means_out[p])


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
