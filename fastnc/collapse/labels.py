"""Labels of samples, one integer each, some of them ignored: checked, numbered, copied."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc._core.arrays import check_labels, copied
from fastnc.collapse.mapped import marked_alike

# The label of ignored samples within this folder.
IGNORED = -1


def check_ignore_index(ignore_index: Any) -> int | None:
    """`ignore_index` must be None or an integer."""
    if ignore_index is None:
        return None
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, (int, np.integer)):
        raise TypeError(f"`ignore_index` must be an integer or None; got {ignore_index!r}.")
    return int(ignore_index)


def with_labels(H: Any, y: Any) -> tuple[Any, NDArray[Any]]:
    """H as (N, d) rows and one integer a row: of (N,), (N, 1), or the shape of the places of H.

    The labels are a copy: they are small, and kernels use them as indices, so nobody may change
    them meanwhile.
    """
    labels = copied("y", y)
    places = tuple(H.shape[:-1])
    if labels.shape in (places, (*places, 1)):
        labels = labels.reshape(-1)
    elif len(places) > 1:
        raise ValueError(
            f"`y` must have shape {places}, one label a place of `H` {tuple(H.shape)}; "
            f"got {labels.shape}. Pass `H` as (N, d), one sample a row, for one label a sample."
        )
    elif labels.ndim == 2 and labels.shape[1] > 1:
        raise ValueError(
            f"`y` must be one integer a sample; got shape {labels.shape}, which looks one-hot. "
            "Pass `y.argmax(1)`."
        )
    if labels.size == 0 and not places[0]:
        # An empty list is of no type.
        labels = labels.astype(np.int64)
    labels = check_labels(labels, None, None)
    if len(places) > 1:
        H = marked_alike(H.reshape(-1, H.shape[-1]), H)
    return H, check_labels(labels, H.shape[0], None)


def check_range(
    labels: NDArray[Any], n_classes: int, ignore_index: int | None, first: int = 0, more: str = ""
) -> NDArray[np.int64]:
    """The labels in int64, ignored ones as `IGNORED`; all others must be class numbers.

    Messages count samples from `first` on; `more` is the alternative to relabelling that the error
    offers where a label is too large, by default more classes.
    """
    ignored = _ignored(labels, ignore_index)
    bad = (labels < 0) | (labels >= n_classes)
    if ignored is not None:
        bad &= ~ignored
    if bad.any():
        i = int(np.argmax(bad))
        if labels[i] < 0:
            way = f", or pass `ignore_index={labels[i]}` if such samples are to be left out"
        else:
            way = f", or {more or f'pass `n_classes={int(labels.max()) + 1}`'}"
        raise ValueError(
            f"`y` must lie in 0..{n_classes - 1} ({n_classes} classes were given); "
            f"got {labels[i]} at index {first + i}. Relabel{way}."
        )
    out = labels.astype(np.int64)
    if ignored is not None:
        out[ignored] = IGNORED
    return out


def number_labels(
    labels: NDArray[Any], ignore_index: int | None
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The distinct labels in rising order, and for each label its place among them.

    An ignored label has the place `IGNORED`; any other must not be negative.
    """
    ignored = _ignored(labels, ignore_index)
    kept = labels if ignored is None else labels[~ignored]
    if len(kept) and kept.min() < 0:
        negative = (labels < 0) if ignored is None else (labels < 0) & ~ignored
        i = int(np.argmax(negative))
        raise ValueError(
            f"`y` must not be negative; got {labels[i]} at index {i}. Pass "
            f"`ignore_index={labels[i]}` if such samples are to be left out; if it is a class, "
            "pass `numpy.unique(y, return_inverse=True)[1]`."
        )
    names, places = _places(kept)
    if ignored is None:
        return names, places
    out = np.full(len(labels), IGNORED)
    out[~ignored] = places
    return names, out


def _ignored(labels: NDArray[Any], ignore_index: int | None) -> NDArray[np.bool_] | None:
    """Which labels are ignored; None if none is."""
    if ignore_index is None:
        return None
    ignored: NDArray[np.bool_] = labels == ignore_index
    return ignored if ignored.any() else None


def _places(labels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    if len(labels) == 0:
        return labels, np.empty(0, np.int64)
    lo, hi = int(labels.min()), int(labels.max())
    if hi - lo >= 4 * len(labels) + 1024:
        names, places = np.unique(labels, return_inverse=True)
        return names, places.astype(np.int64)
    # A table is much cheaper than a sort where the labels' range allows it.
    shifted = (labels - labels.dtype.type(lo)).astype(np.int64)
    seen = np.bincount(shifted) > 0
    names = np.flatnonzero(seen).astype(labels.dtype) + labels.dtype.type(lo)
    if seen.all():
        return names, shifted
    return names, (np.cumsum(seen) - 1)[shifted]
