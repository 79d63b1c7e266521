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

from fastnc.kernels.gpu.parts import dot_whole
from fastnc.kernels.gpu.plan import PROGRAMS, cdiv, has_large_tiles, options

ROWS, BLOCK = 1024, 64
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


@triton.jit(do_not_specialize=["n_samples", "plane", "blocks"])
def scatter_tiles(
    H, y, M, parts, n_samples: "i64", dim, plane: "i64", blocks,
    BN: tl.constexpr, BD: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    """Tile (BD, BD) of the lower triangle of `sum (h - m_y)(h - m_y)^T` over a range of samples.

    M holds the means; in float32 and what they have beyond it, `plane` entries further.
    """
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
        m_at = label[:, None] * dim
        a = tl.load(H + rows[:, None] * dim + a_at[None, :], mask=a_real, other=0.0)
        a -= tl.load(M + m_at + a_at[None, :], mask=a_real, other=0.0)
        b = tl.load(H + rows[:, None] * dim + b_at[None, :], mask=b_real, other=0.0)
        b -= tl.load(M + m_at + b_at[None, :], mask=b_real, other=0.0)
        if PRODUCTS == 6:
            # Exact where h is near its mean, so that a deviation keeps all its digits.
            a -= tl.load(M + plane + m_at + a_at[None, :], mask=a_real, other=0.0)
            b -= tl.load(M + plane + m_at + b_at[None, :], mask=b_real, other=0.0)
        acc = dot_whole(tl.trans(a), b, acc, PRODUCTS)
    at = split * dim * dim + a_at.to(tl.int64)[:, None] * dim + b_at[None, :]
    tl.store(parts + at, acc, mask=(a_at < dim)[:, None] & (b_at < dim)[None, :])


@triton.jit(do_not_specialize=["n_samples", "n_means"])
def nearest_tiles(
    H, C, half, G, nearest, n_samples: "i64", n_means, dim,
    BN: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, LOGITS: tl.constexpr,
):  # fmt: skip
    """Index of the mean nearest to each of BN samples; the first of equals.

    C holds the means less their centre, `half` half of their squares; G the centre, in float32 and
    what it has beyond it.
    """
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
        for start in range(0, dim, BD):
            inside = start + lanes < dim
            h_real = row_real[:, None] & inside[None, :]
            c_real = col_real[:, None] & inside[None, :]
            h_at = rows[:, None] * dim + (start + lanes)[None, :]
            c_at = cols[:, None].to(tl.int64) * dim + (start + lanes)[None, :]
            h = tl.load(H + h_at, mask=h_real, other=0.0)
            h -= tl.load(G + start + lanes, mask=inside, other=0.0)[None, :]
            if LOGITS == 6:
                h -= tl.load(G + dim + start + lanes, mask=inside, other=0.0)[None, :]
            # Where h is not real, c is 0, or the row is not stored.
            c = tl.load(C + c_at, mask=c_real, other=0.0)
            score = dot_whole(h, tl.trans(c), score, LOGITS)
        norm = tl.load(half + cols, mask=col_real, other=0.0)
        score = tl.where(col_real[None, :], score - norm[None, :], float("-inf"))
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
    word = H.element_size()
    large = not H.is_cuda or has_large_tiles(torch.cuda.get_device_capability(H.device))
    rows, tile, warps = scatter_tile(d, word, large)
    tiles = cdiv(d, tile) * (cdiv(d, tile) + 1) // 2
    splits = max(1, min(PROGRAMS // tiles, cdiv(N, 8 * rows)))
    parts = H.new_empty((splits, d, d))
    scatter_tiles[(cdiv(d, tile), cdiv(d, tile), splits)](
        H, y, _planes(means, H), parts, N, d, means.numel(), cdiv(cdiv(N, rows), splits),
        BN=rows, BD=tile, PRODUCTS=0 if word == 8 else 6, **options(warps, 1),
    )  # fmt: skip
    lower = parts.sum(dim=0, dtype=torch.float64).tril_()
    torch.add(lower, lower.tril(-1).T, out=scatter_out)


def scatter_tile(dim, word, large):
    """Rows a step of the scatter, features a tile and warps, of numbers of so many bytes."""
    if word == 8 or not large:
        return 16, 64, 8
    return (32, 64, 4) if dim <= 64 else (16, 128, 8)


def _planes(x, H):
    """Float64 x as H's kind: in float32 a second plane holds what it has beyond the first."""
    if H.element_size() == 8:
        return x
    high = x.float()
    return torch.stack([high, (x - high).float()])


def nearest_means(H, means, centre, nearest_out):
    """`argmin_k |h_i - m_k|` (N,) int64; means (P, d) and their centre (d,) float64."""
    N, d = H.shape
    C = means - centre
    half = (0.5 * C.square().sum(dim=1)).to(H.dtype)
    nearest_tiles[(cdiv(N, 64),)](
        H, C.to(H.dtype), half, _planes(centre, H), nearest_out, N, len(means), d,
        BN=64, BK=32, BD=32, LOGITS=0 if H.element_size() == 8 else 6, **options(4, 1),
    )  # fmt: skip
