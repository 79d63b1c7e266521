"""A batch of features and labels: what it must be, and its class moments on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastnc._core.arrays import check_array, check_unmasked, dtype_name, home, is_torch, writable
from fastnc.collapse.labels import check_range, with_labels
from fastnc.collapse.mapped import mapped_file

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
BATCH_BYTES = 1 << 26


class Moments(NamedTuple):
    """Of the P classes in a batch: labels, counts, means (P, d), squares, and S (d, d) or None."""

    present: Counts
    counts: Counts
    means: Floats
    squares: Floats
    within: Floats | None


def check_features(H: Any, dim: int | None, name: str = "H") -> None:
    """`H` must be (n, dim), or (..., dim) with a sample at every place, of floats in memory."""
    check_array(name, H)
    if len(H.shape) < 2:
        raise ValueError(
            f"`{name}` must have 2 dimensions, one sample a row; got {tuple(H.shape)}."
        )
    if dim is not None and H.shape[-1] != dim:
        raise ValueError(
            f"`{name}` must have {dim} columns, as the statistics have; got shape {tuple(H.shape)}."
        )
    if not _holds_floats(H):
        raise TypeError(
            f"`{name}` must hold floats of half, single or double precision; got {dtype_name(H)}."
        )
    check_unmasked(name, H)


def _holds_floats(H: Any) -> bool:
    """Whether float32 or float64 can hold every number of this dtype."""
    if is_torch(H):
        return bool(H.is_floating_point())
    dtype = np.dtype(H.dtype)
    if dtype.kind in "fV" and dtype.names is None and dtype.subdtype is None:
        return np.can_cast(dtype, np.float64) and dtype.itemsize <= 8 and _is_number(dtype)
    return False


def _is_number(dtype: np.dtype[Any]) -> bool:
    # A dtype of another package, such as bfloat16 of ml_dtypes and JAX, is of NumPy's kind "V".
    return dtype.kind == "f" or dtype.type is not np.void


def check_batch(
    H: Any, y: Any, n_classes: int, dim: int, first: int = 0, ignore_index: int | None = None
) -> tuple[Any, Counts]:
    """(H, labels) ready to be summed: float32 or float64 rows, a copy of the labels in int64.

    Ignored labels are `IGNORED`. Messages count samples from `first` on.
    """
    check_features(H, dim)
    H, labels = with_labels(H, y)
    return readable(H), check_range(labels, n_classes, ignore_index, first)


def epsilon(H: Any) -> float:
    """The relative rounding of the numbers in `H`; 0 where it is no array of floats."""
    name = dtype_name(H) if hasattr(H, "dtype") else ""
    return {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10}.get(name, 2.0**-7)


def readable(H: Any) -> Any:
    """`H` as the kernels read it: float32 or float64, on CUDA or as rows in the CPU's memory."""
    if is_torch(H):
        H = H.detach()
        if H.element_size() < 4:
            H = H.float()
        if home(H) == "gpu":
            return H
        H = H.resolve_neg().numpy()
    H = native(np.asarray(H))
    if H.dtype not in (np.float32, np.float64):
        H = H.astype(np.float32)
    return writable(np.ascontiguousarray(H))


def native(x: Any) -> Any:
    """`x`, in the machine's order of bytes where it is a NumPy array."""
    if isinstance(x, np.ndarray) and not x.dtype.isnative:
        return x.astype(x.dtype.newbyteorder("="))
    return x


def kept_samples(y: Counts) -> Counts | None:
    """The places of the samples that are not ignored; None if none is."""
    return np.flatnonzero(y >= 0) if len(y) and y.min() < 0 else None


def refuse_not_finite(H: NDArray[Any], first: int = 0, kept: Counts | None = None) -> None:
    """Raises because a sum is not finite, and names the sample, counted from `first` on."""
    places = np.arange(len(H)) if kept is None else kept
    bad = ~np.isfinite(H[places])
    if bad.any():
        i, j = (int(v) for v in np.argwhere(bad)[0])
        at = int(places[i])
        raise ValueError(f"`H` must be finite; got {H[at, j]} in sample {first + at}, feature {j}.")
    raise ValueError("`H` is too large: its squares overflow. Divide the features by a constant.")


def moments_of(H: NDArray[Any], y: Counts, n_classes: int, full: bool, first: int = 0) -> Moments:
    """Moments of a NumPy batch by the row-parallel kernels; ignored samples are not read."""
    from fastnc.kernels.cpu.scatter import class_moments, class_moments_serial, group

    kept = kept_samples(y)
    if kept is not None:
        y = y[kept]
    order, present, starts = group(y, n_classes)
    if kept is not None:
        order = kept[order]
    means = np.empty((len(present), H.shape[1]))
    squares = np.empty(len(present))
    run = class_moments if H.size > 100_000 else class_moments_serial
    run(H, order, starts, means, squares)
    # A class's single sample has deviation 0 even if it is infinite: its mean shows it.
    if not (np.isfinite(squares.sum()) and np.isfinite(means).all()):
        refuse_not_finite(H, first, kept)
    within = None
    if full:
        dim = H.shape[1]
        within = np.zeros((dim, dim), order="F")
        owner = np.searchsorted(present, y)
        rows = max(BATCH_BYTES // (8 * dim), 1)
        for lo in range(0, len(y), rows):
            part = slice(lo, lo + rows)
            X = H[part] if kept is None else H[kept[part]]
            scatter_rows(X - means[owner[part]], within)
    return Moments(present, np.diff(starts), means, squares, within)


def scatter_rows(X: Floats, S: Floats) -> None:
    """Adds X^T X to the lower triangle of S, which is in Fortran order."""
    from scipy.linalg.blas import dsyrk

    # Fortran reads the transpose of C-ordered rows without a copy.
    dsyrk(1.0, np.ascontiguousarray(X).T, beta=1.0, c=S, lower=1, overwrite_c=1)


def batches(H: Any, y: Any, pieces: bool = False) -> Iterator[tuple[int, Any, Any]]:
    """(number of the first sample, H, y): features on disk in pieces of 64 MiB, else all at once.

    With `pieces`, arrays in memory come in pieces too.
    """
    file = mapped_file(H)
    if not pieces and file is None:
        yield 0, H, y
        return
    row = H.nbytes // max(len(H), 1)
    rows = max(BATCH_BYTES // max(row, 1), 1)
    for lo in range(0, len(H), rows):
        part = H[lo : lo + rows]
        if not is_torch(part):
            part = np.asarray(part)
        if file is not None:
            part = file.read(lo, part)
        yield lo, part, y[lo : lo + rows]
