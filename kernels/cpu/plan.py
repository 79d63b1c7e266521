"""The plan of a shape on a processor: how the work is divided, and which products it takes.

`bench/LOG.md` has the measurements behind each rule. A plan depends on the shape and the processor
alone; so do the bits of the results.
"""

from functools import lru_cache
from typing import NamedTuple

from fastnc.kernels.cpu.processor import L1_BYTES, L2_BYTES, N_CORES, N_REGISTERS, VECTOR_BYTES

# Classes of a block; samples of a chunk by tiles, otherwise, and at the least.
BLOCK = 512
TILE_CHUNK, CHUNK, LEAST_CHUNK = 64, 256, 64
# A BLAS sums over samples faster than tiles where rows are longer and W fills the level-2 cache.
TILE_ROW_BYTES = 1 << 10
# Dot products of rows, without transposing the samples, for few classes of long rows; and for
# fewer samples than a vector holds.
DOT_CLASSES, DOT_ROW_BYTES = 32, 1 << 10
# Bytes of W, and classes, from which on threads divide the classes and not the samples.
DIVIDED_BYTES, DIVIDED_CLASSES = 4 << 20, 1024
# Most logits of a chunk that all threads share, and most bytes of all sums for grad_W.
SHARED_LOGITS, SUMS_BYTES = 1 << 24, 32 << 20
RANGES = 16
# Least samples and multiply-adds of a part, since waking a thread takes time, and most parts.
PART_SAMPLES, PART_WORK, MOST_PARTS = 128, 1 << 21, 64


class Plan(NamedTuple):
    """How a problem is divided, and which products it takes."""

    divides: str  # "samples" or "classes", among the threads
    products: str  # "tiles"; "dots": logits by rows; "blas": sums over samples by a BLAS
    parts: int  # of the samples, or ranges of classes
    chunk: int  # samples whose logits are formed at a time
    block: int  # classes whose logits are formed at a time


@lru_cache(maxsize=256)
def plan(n_classes, dim, n_samples, itemsize, by_samples=False):
    """The plan of a problem; with `by_samples`, samples and not classes are divided."""
    row = dim * itemsize
    matrix = n_classes * row
    products = "tiles"
    # Tiles hold a vector of samples; fewer leave most of it empty.
    if n_samples < VECTOR_BYTES // itemsize or (n_classes <= DOT_CLASSES and row >= DOT_ROW_BYTES):
        products = "dots"
    elif row > TILE_ROW_BYTES and matrix > L2_BYTES // 4:
        products = "blas"
    # No more room than the samples take.
    largest = -(-max(n_samples, 1) // LEAST_CHUNK) * LEAST_CHUNK
    if not by_samples and matrix > DIVIDED_BYTES and n_classes >= DIVIDED_CLASSES:
        chunk = max(LEAST_CHUNK, min(CHUNK, largest, SHARED_LOGITS // n_classes // 64 * 64))
        block = min(BLOCK, -(-n_classes // (8 * RANGES)) * 8)
        return Plan("classes", products, min(RANGES, -(-n_classes // block)), chunk, block)
    chunk = min(largest, CHUNK if products == "blas" else TILE_CHUNK)
    most = min(MOST_PARTS, max(4, SUMS_BYTES // matrix))
    parts = min(most, n_samples // PART_SAMPLES, n_classes * dim * n_samples // PART_WORK)
    return Plan("samples", products, max(1, parts), chunk, BLOCK)


FACTS = {
    "vector bytes": VECTOR_BYTES,
    "vector registers": N_REGISTERS,
    "L1 bytes": L1_BYTES,
    "L2 bytes": L2_BYTES,
    "cores": N_CORES,
}


def reasons(planned, n_classes, dim, itemsize):
    """A sentence for each field of a plan."""
    row, matrix = dim * itemsize, n_classes * dim * itemsize
    size = f"W takes {matrix:,} bytes, a row of it {row:,}"
    return {
        "divides": (
            f"{size}: a sum for grad_W for each part of the samples would cost too much"
            if planned.divides == "classes"
            else f"{size}: each part of the samples can have a sum for grad_W of its own"
        ),
        "products": {
            "tiles": f"register tiles: rows up to {TILE_ROW_BYTES:,} bytes, or W in the L2 cache",
            "dots": f"up to {DOT_CLASSES} classes of long rows, or samples that fill no vector: "
            "they need not be transposed",
            "blas": f"a BLAS sums over samples: rows above {TILE_ROW_BYTES:,} bytes, "
            "W above a quarter of the L2 cache",
        }[planned.products],
        "parts": (
            f"at most {RANGES} ranges, whose sums for grad_H are added in order"
            if planned.divides == "classes"
            else f"at least {PART_SAMPLES} samples and {PART_WORK:,} multiply-adds a part"
        ),
        "chunk": "their logits stay in cache; a BLAS, and shared chunks, want more of them",
        "block": "their logits are used where they were made",
    }
