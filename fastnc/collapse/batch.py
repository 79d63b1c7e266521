"""A batch of features and labels: what it must be, and its class moments on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastnc._core.arrays import as_numpy, check_labels, check_unmasked, dtype_name, home, is_torch

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
FEATURES = ("float16", "bfloat16", "float32", "float64")
BATCH_BYTES = 1 << 26


class Moments(NamedTuple):
    """Of the P classes in a batch: labels, counts, means (P, d), squares, and S (d, d) or None."""

    present: Counts
    counts: Counts
    means: Floats
    squares: Floats
    within: Floats | None


def check_features(H: Any, dim: int | None) -> None:
    """`H` must be (n, dim) in half, single or double precision."""
    if not hasattr(H, "dtype") or not hasattr(H, "shape"):
        raise TypeError(f"`H` must be a NumPy array or a torch tensor; got {type(H).__name__}.")
    if len(H.shape) != 2:
        raise ValueError(f"`H` must have 2 dimensions, one sample a row; got {tuple(H.shape)}.")
    if dim is not None and H.shape[1] != dim:
        raise ValueError(
            f"`H` must have {dim} columns, as the statistics have; got shape {tuple(H.shape)}."
        )
    if dtype_name(native(H[:0])) not in FEATURES:
        raise TypeError(f"`H` must hold floats ({', '.join(FEATURES)}); got {dtype_name(H)}.")
    check_unmasked("H", H)


def check_integers(y: Any, n_samples: int) -> NDArray[Any]:
    """`y` as a NumPy array; it must be one integer a sample."""
    if n_samples == 0 and as_numpy(y).shape == (0,):
        # An empty list is of no type.
        return as_numpy(y)
    return check_labels(y, n_samples, None)


def check_batch(H: Any, y: Any, n_classes: int, dim: int, first: int = 0) -> tuple[Any, Any]:
    """(H, y) ready to be summed: float32 or float64 rows and int64 labels, on one device.

    Messages count samples from `first` on.
    """
    check_features(H, dim)
    labels = check_integers(y, H.shape[0])
    if len(labels) and not (labels.min() >= 0 and labels.max() < n_classes):
        i = int(np.argmax((labels < 0) | (labels >= n_classes)))
        highest = int(labels.max())
        more = f", or pass `n_classes={highest + 1}`" if highest >= n_classes else ""
        raise ValueError(
            f"`y` must lie in 0..{n_classes - 1} ({n_classes} classes were given); "
            f"got {labels[i]} at index {first + i}. Relabel{more}."
        )
    labels = np.ascontiguousarray(labels, dtype=np.int64)
    H = native(H)
    if is_torch(H):
        H = H.detach()
        if dtype_name(H) in ("float16", "bfloat16"):
            H = H.float()
        if home(H) == "gpu":
            import torch

            return H, torch.from_numpy(labels).to(H.device)
        H = H.numpy()
    if H.dtype == np.float16:
        H = H.astype(np.float32)
    return _writable(np.ascontiguousarray(H)), labels


def native(x: Any) -> Any:
    """`x`, in the machine's order of bytes where it is a NumPy array."""
    if isinstance(x, np.ndarray) and not x.dtype.isnative:
        return x.astype(x.dtype.newbyteorder("="))
    return x


class _Memory:
    """The memory of a read-only array, offered as if it could be written."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array
        address, _ = array.__array_interface__["data"]
        self.__array_interface__ = {**array.__array_interface__, "data": (address, False)}


def _writable(array: NDArray[Any]) -> NDArray[Any]:
    # Kernels only read features, but would be compiled again for arrays that are read-only.
    return array if array.flags.writeable else np.asarray(_Memory(array))


def refuse_not_finite(H: NDArray[Any], first: int = 0) -> None:
    """Says which sample, counted from `first` on, made a sum not finite."""
    bad = ~np.isfinite(H)
    if bad.any():
        i, j = (int(v) for v in np.argwhere(bad)[0])
        raise ValueError(f"`H` must be finite; got {H[i, j]} in sample {first + i}, feature {j}.")
    raise ValueError("`H` is too large: its squares overflow. Divide the features by a constant.")


def moments_of(H: NDArray[Any], y: Counts, n_classes: int, full: bool, first: int = 0) -> Moments:
    """Moments of a NumPy batch by the row-parallel kernels."""
    from fastnc.kernels.cpu.scatter import class_moments, class_moments_serial, group

    order, present, starts = group(y, n_classes)
    means = np.empty((len(present), H.shape[1]))
    squares = np.empty(len(present))
    run = class_moments if H.size > 100_000 else class_moments_serial
    run(H, order, starts, means, squares)
    if not np.isfinite(squares.sum()):
        refuse_not_finite(H, first)
    within = None
    if full:
        dim = H.shape[1]
        within = np.zeros((dim, dim), order="F")
        owner = np.searchsorted(present, y)
        rows = max(BATCH_BYTES // (8 * dim), 1)
        for lo in range(0, len(H), rows):
            scatter_rows(H[lo : lo + rows] - means[owner[lo : lo + rows]], within)
    return Moments(present, np.diff(starts), means, squares, within)


def scatter_rows(X: Floats, S: Floats) -> None:
    """Adds X^T X to the lower triangle of S, which is in Fortran order."""
    from scipy.linalg.blas import dsyrk

    # The transpose of C-ordered rows is what Fortran reads without a copy.
    dsyrk(1.0, np.ascontiguousarray(X).T, beta=1.0, c=S, lower=1, overwrite_c=1)


def batches(H: Any, y: Any, pieces: bool = False) -> Iterator[tuple[int, Any, Any]]:
    """(number of the first sample, H, y): pieces of 64 MiB of what is on disk, else all at once.

    With `pieces`, arrays in memory come in pieces too.
    """
    base = H
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    if not (pieces or isinstance(base, np.memmap)):
        yield 0, H, y
        return
    row = H.nbytes // max(len(H), 1)
    rows = max(BATCH_BYTES // max(row, 1), 1)
    for lo in range(0, len(H), rows):
        part = H[lo : lo + rows]
        yield lo, part if is_torch(part) else np.asarray(part), y[lo : lo + rows]
