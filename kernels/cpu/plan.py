"""Which arrangement a problem of a given shape gets on the CPU: the one place that says so.

The choice rests on measurements of a 2-core AMD Zen 3 (AVX2, 512 KB L2 a core, 32 MB L3), float32,
one thread, nanoseconds a sample in cache (in brackets GFLOP/s; a square GEMM reaches 95):

    K, d         logits of W    panels        both products: tiles   sweep        chunk
    10, 64       21 (61)        22 (57)       30 (85)                34 (74)      64
    10, 512      115 (89)       173 (59)      280 (73)               -            64
    100, 128     360 (71)       278 (92)      535 (95)               690 (77)     48
    1000, 64     2080 (61)      1410 (91)     3620 (71)              2930 (87)    64
    1000, 512    -              -             -                      22300 (92)   64
    10000, 128   -              30600 (84)    -                      58600 (87)   96

A BLAS took logits of 10000, 128 at 71 GFLOP/s and the two products at 77 and 59, in chunks of 256.

GFLOP/s of both products by tiles at a chunk of 48 and by a sweep at 64, W growing, in float32:

    K, d         KiB    tiles  sweep           K, d         KiB    tiles  sweep
    100, 128     50     90     78              300, 128     150    74     86
    200, 128     100    76     66              30, 1024     120    44     53
    400, 64      100    74     71              float64: 100, 128     100    42     38

Tiles read W once for a few samples, a sweep once for a chunk: it is for W beyond 112 KiB, and adds
to its sums in strips, so large that parts are few: at most 16, and 32 MiB of sums together, but
never fewer than 4, so that threads find work to share.

Milliseconds of a step on both threads at chunks of 16, 32, 48, 64, 96, 128: of 10, 512, 1e5: 24.3,
23.5, 23.0, 23.3, 24.4, 25.2; of 100, 128, 1e5: 68, 55.2, 53.0, 55.8, 52.9, 54.3. Of a sweep, one
thread, at 48, 64, 96, 128: 1000, 64, 2e4: 109, 108, 108, 107; 10000, 128, 4e3: 395, 384, 379, 383;
50000, 256, 1e3 at 64 and 128: 1318, 1066. So a chunk's logits take some 20 KiB by tiles, and its
samples 100 KiB; a sweep's chunk is larger where W comes from memory.
"""

from typing import NamedTuple


class Plan(NamedTuple):
    """How `hessian_cpu` and `weighted_cross_entropy_cpu` divide a problem."""

    blas: bool  # one-thread BLAS calls instead of register tiles
    chunk: int  # samples whose logits are formed at a time
    parts: int  # ranges of samples with sums of their own


class StepPlan(NamedTuple):
    """How `cross_entropy_cpu` divides a problem."""

    sweep: bool  # both products from W packed in strips instead of register tiles from W
    panels: bool  # logits from W packed in panels of classes
    chunk: int  # samples whose logits are formed at a time
    parts: int  # ranges of samples with sums of their own


TILES_W_BYTES = 64 << 10
SWEEP_W_BYTES = 112 << 10
SECOND_W_BYTES = 4 << 20
TILES_H_BYTES = 100 << 10
TILES_Z_BYTES = 20 << 10
SUMS_BYTES = 32 << 20
PANELS_CLASSES = 12
PANELS_SAMPLES = 64
PART_SAMPLES = 256
SWEEP_H_BYTES = 128 << 10


def step_plan(n_classes, dim, n_samples, itemsize):
    """How to divide the step, the gradients and the loss; it never depends on the machine."""
    matrix = n_classes * dim * itemsize
    sweep = matrix > SWEEP_W_BYTES
    if sweep:
        chunk = SWEEP_H_BYTES // (dim * itemsize) // 16 * 16
        chunk = max(32, min(128 if matrix > SECOND_W_BYTES else 64, chunk))
        parts = max(4, min(16, SUMS_BYTES // matrix))
    else:
        chunk, parts = _chunk(n_classes, dim, itemsize), 64
    panels = n_classes >= PANELS_CLASSES and n_samples >= PANELS_SAMPLES
    parts = max(1, min(parts, n_samples // 64, max(4, n_samples // PART_SAMPLES)))
    # Chunks of one part are as long as each other: the last of them would be short otherwise.
    part = -(-n_samples // parts)
    chunk = -(-part // -(-part // chunk))
    return StepPlan(sweep, panels, -(-chunk // 4) * 4, parts)


def _chunk(n_classes, dim, itemsize):
    chunk = min(TILES_H_BYTES // dim, TILES_Z_BYTES // n_classes) // itemsize
    return max(32, min(128, chunk // 16 * 16))


def plan(n_classes, dim, n_samples, itemsize):
    """How to divide a product with the Hessian, or what networks use."""
    matrix = n_classes * dim * itemsize
    blas = matrix > TILES_W_BYTES
    if blas:
        chunk = 256
        parts = max(4, min(16, SUMS_BYTES // matrix))
    else:
        chunk = _chunk(n_classes, dim, itemsize)
        parts = 64
    return Plan(blas, chunk, max(1, min(parts, n_samples // 64)))
