"""Which arrangement a problem of a given shape gets on the CPU: the one place that says so."""

from typing import NamedTuple


class Plan(NamedTuple):
    """How `cross_entropy_cpu` and `hessian_cpu` divide a problem."""

    blas: bool  # one-thread BLAS calls instead of register tiles
    chunk: int  # samples whose logits are formed at a time
    parts: int  # ranges of samples with sums of their own


def plan(n_classes, dim, n_samples, itemsize):
    """The arrangement for `n_classes`, `dim`, `n_samples`; it never depends on the machine."""
    matrix = n_classes * dim * itemsize
    blas = matrix > 64 * 1024
    if blas:
        chunk = 256
        parts = max(4, min(16, (32 << 20) // matrix))
    else:
        chunk = max(32, min(256, (160 << 10) // ((dim + n_classes) * itemsize) // 16 * 16))
        parts = 64
    return Plan(blas, chunk, max(1, min(parts, n_samples // 64)))
