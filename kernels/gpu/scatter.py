"""Class means and scatter of features, and nearest class means, on CUDA tensors, in Triton.

Counts, means `m_k` and `s_k = sum_{i: y_i = k} |h_i - m_k|^2` (section 2.1), as in
`kernels.cpu.scatter`: samples are taken in the order of their classes, in chunks of one class. A
program takes 64 features of a chunk, 64 rows at a time: it sums their mean in float64, and squares
the deviations from it while the tile is in registers; then, with chunk means `m_c`,

    m_k = sum_c n_c m_c / n_k,    s_k = sum_c s_c + n_c |m_c - m_k|^2

in which nothing cancels; the blocks of a chunk are merged alike. Bytes: H once (4 N d in float32).
Chunks and sums have a fixed order: the same bits every time, and no atomics.
"""

import torch
import triton
import triton.language as tl

from fastnc.kernels.gpu.plan import PROGRAMS, cdiv, options
from fastnc.kernels.gpu.softmax import dot

ROWS, BLOCK = 1024, 64
# Two centred tiles in float64 and their product leave room for no more, and for eight warps.
SCATTER_ROWS = 16
_TILE = 64


@triton.jit
def chunk_moments(
    H, order, starts, first, class_of, means, squares, dim,
    ROWS: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Mean and squared deviations of one chunk over BD features, merged from BN rows at a time."""
    chunk = tl.program_id(0)
    p = tl.load(class_of + chunk)
    lo = tl.load(starts + p) + (chunk - tl.load(first + p)) * ROWS
    # The last chunks may be empty: the host knows only a bound of their number.
    hi = tl.minimum(lo + ROWS, tl.load(starts + p + 1))
    features = tl.program_id(1) * BD + tl.arange(0, BD)
    inside = (features < dim)[None, :]
    mean = tl.zeros((BD,), tl.float64)
    spread = tl.zeros((BD,), tl.float64)
    samples = tl.load(order + lo + tl.arange(0, BN), mask=lo + tl.arange(0, BN) < hi, other=0)
    for done in range(0, ROWS, BN):
        places = lo + done + tl.arange(0, BN)
        real = (places < hi)[:, None] & inside
        h = tl.load(H + samples[:, None] * dim + features[None, :], mask=real, other=0.0)
        # Loaded before the next rows' features, which would wait for these indices.
        samples = tl.load(order + places + BN, mask=places + BN < hi, other=0)
        h = h.to(tl.float64)
        count = tl.minimum(tl.maximum(hi - lo - done, 0), BN).to(tl.float64)
        all = tl.maximum(count + done, 1.0)
        block = tl.sum(h, axis=0) / tl.maximum(count, 1.0)
        x = tl.where(real, h - block[None, :], 0.0)
        gap = tl.where(count > 0.0, block - mean, 0.0)
        spread += tl.sum(x * x, axis=0) + gap * gap * (done * count / all)
        mean += gap * (count / all)
    tl.store(means + chunk.to(tl.int64) * dim + features, mean, mask=features < dim)
    total = tl.sum(spread, axis=0)
    tl.store(squares + chunk.to(tl.int64) * tl.num_programs(1) + tl.program_id(1), total)


@triton.jit
def merge_chunks(
    starts, first, chunk_means, chunk_squares, means, squares, dim,
    ROWS: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Mean of one class over BD features, and its part of the class's squares."""
    p = tl.program_id(0)
    tile = tl.program_id(1)
    n_tiles = tl.num_programs(1)
    lo = tl.load(starts + p)
    hi = tl.load(starts + p + 1)
    begin = tl.load(first + p)
    end = tl.load(first + p + 1)
    features = tile * BD + tl.arange(0, BD)
    inside = features < dim
    mean = tl.zeros((BD,), tl.float64)
    for start in range(begin, end, BC):
        chunks = start + tl.arange(0, BC)
        real = (chunks < end)[:, None] & inside[None, :]
        m = tl.load(chunk_means + chunks[:, None] * dim + features[None, :], mask=real, other=0.0)
        n = tl.minimum(hi - lo - (chunks - begin) * ROWS, ROWS).to(tl.float64)
        mean += tl.sum(tl.where(real, m * n[:, None], 0.0), axis=0)
    mean = mean / tl.maximum(hi - lo, 1).to(tl.float64)
    total = tl.zeros((BC,), tl.float64)
    for start in range(begin, end, BC):
        chunks = start + tl.arange(0, BC)
        real = (chunks < end)[:, None] & inside[None, :]
        m = tl.load(chunk_means + chunks[:, None] * dim + features[None, :], mask=real, other=0.0)
        n = tl.minimum(hi - lo - (chunks - begin) * ROWS, ROWS).to(tl.float64)
        gap = tl.where(real, m - mean[None, :], 0.0)
        total += tl.sum(gap * gap, axis=1) * n
        total += tl.load(chunk_squares + chunks * n_tiles + tile, mask=chunks < end, other=0.0)
    tl.store(means + p.to(tl.int64) * dim + features, mean, mask=inside)
    tl.store(squares + p.to(tl.int64) * n_tiles + tile, tl.sum(total, axis=0))


@triton.jit(do_not_specialize=["n_samples", "blocks"])
def scatter_tiles(
    H, y, means, parts, n_samples: "i64", dim, blocks,
    BN: tl.constexpr, BD: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    """Tile (BD, BD) of the lower triangle of `sum (h - m_y)(h - m_y)^T` over a range of samples."""
    # The matrix is symmetric: its upper triangle is copied afterwards.
    if tl.program_id(1) > tl.program_id(0):
        return
    a_at = tl.program_id(0) * BD + tl.arange(0, BD)
    b_at = tl.program_id(1) * BD + tl.arange(0, BD)
    split = tl.program_id(2).to(tl.int64)
    dtype = H.dtype.element_ty
    acc = tl.zeros((BD, BD), dtype)
    for i in range(blocks):
        rows = (split * blocks + i) * BN + tl.arange(0, BN)
        real = rows < n_samples
        label = tl.load(y + rows, mask=real, other=0)
        a_real = real[:, None] & (a_at < dim)[None, :]
        b_real = real[:, None] & (b_at < dim)[None, :]
        # Centred in float64 before any rounding: low-precision products are then safe.
        a = tl.load(H + rows[:, None] * dim + a_at[None, :], mask=a_real, other=0.0).to(tl.float64)
        a -= tl.load(means + label[:, None] * dim + a_at[None, :], mask=a_real, other=0.0)
        b = tl.load(H + rows[:, None] * dim + b_at[None, :], mask=b_real, other=0.0).to(tl.float64)
        b -= tl.load(means + label[:, None] * dim + b_at[None, :], mask=b_real, other=0.0)
        acc = dot(tl.trans(a.to(dtype)), b.to(dtype), acc, PRODUCTS)
    at = split * dim * dim + a_at.to(tl.int64)[:, None] * dim + b_at[None, :]
    tl.store(parts + at, acc, mask=(a_at < dim)[:, None] & (b_at < dim)[None, :])


@triton.jit(do_not_specialize=["n_samples", "n_means"])
def nearest_tiles(
    H, means, centre, nearest, n_samples: "i64", n_means, dim,
    BN: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, LOGITS: tl.constexpr,
):  # fmt: skip
    """Index of the mean nearest to each of BN samples; the first of equals."""
    rows = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    lanes = tl.arange(0, BD)
    row_real = rows < n_samples
    dtype = H.dtype.element_ty
    best = tl.full((BN,), float("-inf"), dtype)
    index = tl.zeros((BN,), tl.int64)
    for low in range(0, n_means, BK):
        cols = low + tl.arange(0, BK)
        col_real = cols < n_means
        score = tl.zeros((BN, BK), dtype)
        half = tl.zeros((BK,), tl.float64)
        for start in range(0, dim, BD):
            inside = start + lanes < dim
            g = tl.load(centre + start + lanes, mask=inside, other=0.0)
            h_real = row_real[:, None] & inside[None, :]
            c_real = col_real[:, None] & inside[None, :]
            h_at = rows[:, None] * dim + (start + lanes)[None, :]
            c_at = cols[:, None].to(tl.int64) * dim + (start + lanes)[None, :]
            h = tl.load(H + h_at, mask=h_real, other=0.0).to(tl.float64)
            c = tl.load(means + c_at, mask=c_real, other=0.0)
            h = tl.where(h_real, h - g[None, :], 0.0)
            c = tl.where(c_real, c - g[None, :], 0.0)
            half += tl.sum(c * c, axis=1) * 0.5
            score = dot(h.to(dtype), tl.trans(c.to(dtype)), score, LOGITS)
        score = tl.where(col_real[None, :], score - half.to(dtype)[None, :], float("-inf"))
        here = tl.max(score, axis=1)
        place = tl.min(tl.where(score == here[:, None], cols[None, :], n_means), axis=1)
        index = tl.where(here > best, place.to(tl.int64), index)
        best = tl.maximum(best, here)
    tl.store(nearest + rows, index, mask=row_real)


def class_moments(H, order, starts, means_out, squares_out):
    """Means (P, d) and summed squared deviations (P,) of the classes of `starts (P+1,)`.

    `order (N,)` lists the samples class by class; outputs are float64.
    """
    N, d = H.shape
    P = len(means_out)
    n_chunks = cdiv(N, ROWS) + P
    first = torch.zeros_like(starts)
    first[1:] = torch.cumsum((torch.diff(starts) + (ROWS - 1)) // ROWS, 0)
    chunk = torch.arange(n_chunks, device=H.device)
    class_of = torch.searchsorted(first, chunk, right=True).clamp_(max=P) - 1
    n_tiles = cdiv(d, _TILE)
    means = squares_out.new_empty((n_chunks, d))
    squares = squares_out.new_empty((n_chunks, n_tiles))
    chunk_moments[(n_chunks, n_tiles)](
        H, order, starts, first, class_of, means, squares, d,
        ROWS=ROWS, BN=BLOCK, BD=_TILE, **options(2, 1),
    )  # fmt: skip
    tiles = squares_out.new_empty((P, n_tiles))
    merge_chunks[(P, n_tiles)](
        starts, first, means, squares, means_out, tiles, d,
        ROWS=ROWS, BC=32, BD=_TILE, **options(4, 1),
    )  # fmt: skip
    torch.sum(tiles, dim=1, out=squares_out)


def centred_scatter(H, y, means, scatter_out):
    """`sum_i (h_i - m_y)(h_i - m_y)^T (d, d)`, float64; means (K, d) float64."""
    N, d = H.shape
    tile = 64
    tiles = cdiv(d, tile) * (cdiv(d, tile) + 1) // 2
    splits = max(1, min(PROGRAMS // tiles, cdiv(N, 8 * SCATTER_ROWS)))
    parts = H.new_empty((splits, d, d))
    scatter_tiles[(cdiv(d, tile), cdiv(d, tile), splits)](
        H, y, means, parts, N, d, cdiv(cdiv(N, SCATTER_ROWS), splits),
        BN=SCATTER_ROWS, BD=tile, PRODUCTS="ieee" if H.element_size() == 8 else "bf16x6",
        **options(8, 1),
    )  # fmt: skip
    lower = parts.sum(dim=0, dtype=torch.float64).tril_()
    torch.add(lower, lower.tril(-1).T, out=scatter_out)


def nearest_means(H, means, centre, nearest_out):
    """`argmin_k |h_i - m_k|` (N,) int64; means (P, d) and their centre (d,) float64."""
    N, d = H.shape
    double = H.element_size() == 8
    nearest_tiles[(cdiv(N, 64),)](
        H, means, centre, nearest_out, N, len(means), d,
        BN=64, BK=32, BD=32, LOGITS="ieee" if double else "bf16x6", **options(4, 1),
    )  # fmt: skip
