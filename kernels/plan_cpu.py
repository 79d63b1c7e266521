"""Which arrangement a problem of a given shape gets on the CPU: the one place that says so.

The choice rests on measurements of 2-core AMD Zen 3 (AVX2, 512 KB L2 a core, 32 MB L3), float32,
the least milliseconds of a step, or of loss and gradients, at chunks of so many samples:

    K, d, N             tiles                                          BLAS
    10, 64, 2e5         32: 12.1  64: 11.6  128: 11.9  256: 11.0
    10, 512, 1e5        32: 32.1  64: 31.2   80: 29.8  128: 30.8
    10000, 128, 4e3                                      128: 232  256: 241  512: 232  1000: 280

Tiles read W from the second-level cache once a block of samples, so W and a part's sums must fit
it with room for the chunk: 64 KiB of W, and 160 KiB of samples and logits, are what they are given.
A BLAS packs W for every chunk, which is why a chunk is not smaller than 256; chunks of 1000 lose,
as their logits go to memory and back. Every part of the BLAS arrangement has a K x d sum of its
own: at most 32 MiB of them together, but never fewer than 4, so that threads find work to share.
"""

from typing import NamedTuple


class Plan(NamedTuple):
    """How `cross_entropy_cpu` and `hessian_cpu` divide a problem."""

    blas: bool  # one-thread BLAS calls instead of register tiles
    chunk: int  # samples whose logits are formed at a time
    parts: int  # ranges of samples with sums of their own
    panels: bool = False  # logits from W packed in panels of classes


TILES_W_BYTES = 64 << 10
TILES_H_BYTES = 100 << 10
TILES_Z_BYTES = 20 << 10
BLAS_SUMS_BYTES = 32 << 20
PANELS_CLASSES = 12
PANELS_SAMPLES = 64


def plan(n_classes, dim, n_samples, itemsize):
    """The arrangement for `n_classes`, `dim`, `n_samples`; it never depends on the machine."""
    matrix = n_classes * dim * itemsize
    blas = matrix > TILES_W_BYTES
    if blas:
        chunk = 256
        parts = max(4, min(16, BLAS_SUMS_BYTES // matrix))
    else:
        chunk = min(TILES_H_BYTES // dim, TILES_Z_BYTES // n_classes) // itemsize
        chunk = max(32, min(128, chunk // 16 * 16))
        parts = 64
    panels = n_classes >= PANELS_CLASSES and n_samples >= PANELS_SAMPLES
    return Plan(blas, chunk, max(1, min(parts, n_samples // 64)), panels)
