"""Features, labels and a classifier measured: two passes over the samples, every metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastnc._core.arrays import check_array, check_count, copied
from fastnc._core.functions import check_function
from fastnc._core.serial import quiet
from fastnc.collapse.batch import batches, check_features
from fastnc.collapse.classifier import check_classifier
from fastnc.collapse.deviations import ClassDeviations
from fastnc.collapse.labels import (
    IGNORED,
    check_ignore_index,
    check_range,
    number_labels,
    with_labels,
)
from fastnc.collapse.metrics import CollapseMetrics
from fastnc.collapse.statistics import ClassStatistics

Progress = Callable[[int], object]


def collapse_metrics(
    H: Any,
    y: Any,
    W: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    about: ClassStatistics | None = None,
    ignore_index: int | None = None,
    min_count: int = 1,
    subset: ArrayLike | None = None,
    progress: Progress | None = None,
) -> CollapseMetrics:
    """Every metric of `CollapseMetrics` for features, labels and, if given, a classifier.

    Parameters
    ----------
    H : (N, d) features in half, single or double precision
        NumPy array, memory map (read in pieces), or torch tensor on CPU or CUDA. Or (B, T, d), with
        y (B, T): a sample at every place.
    y : (N,) or (N, 1) integers
        Any that are not negative without a classifier: the classes are the sorted distinct labels.
        With one, its row numbers 0..K-1.
    W : (K, d), optional
        One row (1, d), of labels 0 and 1, is a binary classifier's and means [0, w].
    bias : (K,), optional
    about : ClassStatistics, optional
        Of the training samples: H, y are then held-out samples, measured about those class means;
        labels are its classes.
    ignore_index : int, optional
        Samples with that label, -100 say, are left out and counted (`n_ignored`).
    min_count : int
        Classes with fewer samples are left out and counted (`n_left_out`).
    subset : integers, optional
        Classes to measure, as if there were no others: neither their samples nor their rows of W.
    progress : callable, optional
        Called with the number of samples read, once a pass for each sample.

    Raises
    ------
    ValueError, TypeError
        Arrays that do not fit, labels that are no row numbers of W, negative labels that are not
        ignored, features that are not finite (which sample), fewer than two classes with samples:
        one sentence each.

    Cost
    ----
    Two passes over H (with `about`, one); 2 N d min(K - 1, d) FLOP, with a classifier 2 N d K more;
    K^2 d for pairs of classes; memory O(K d + min(K, d)^2) beside the data.

    Examples
    --------
    >>> import numpy as np, fastnc
    >>> H = np.array([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]])
    >>> m = fastnc.collapse_metrics(H, np.array([3, 3, 7, 7]))
    >>> round(m.nc1_quotient, 6), m.equinorm_features
    (0.01, 0.0)
    """
    return measure([(H, y)], W, bias, about, ignore_index, min_count, subset, progress)[0]


@quiet
def measure(
    parts: Sequence[tuple[Any, Any]],
    W: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    about: ClassStatistics | None = None,
    ignore_index: int | None = None,
    min_count: int = 1,
    subset: ArrayLike | None = None,
    progress: Progress | None = None,
) -> tuple[CollapseMetrics, ClassStatistics, NDArray[Any]]:
    """What `collapse_metrics` returns, the statistics of its means, and the labels of its classes.

    Features and labels may come in several parts.
    """
    ignore_index = check_ignore_index(ignore_index)
    min_count = check_count("min_count", min_count, 1)
    if progress is not None:
        check_function("progress", progress, "n_samples")
    if about is not None and not isinstance(about, ClassStatistics):
        raise TypeError(f"`about` must be ClassStatistics; got {type(about).__name__}.")
    if W is not None:
        check_array("W", W)
        if len(W.shape) != 2:  # type: ignore[union-attr]
            raise ValueError("`W` must be an array with 2 dimensions, one row a class.")
    dim = None
    rows_of, labels_of = [], []
    for H, y in parts:
        check_features(H, dim)
        if 0 in H.shape:
            raise ValueError(f"`H` must not be empty; got shape {tuple(H.shape)}.")
        dim = int(H.shape[-1])
        H, labels = with_labels(H, y)
        rows_of.append(H)
        labels_of.append(labels)
    if dim is None:
        raise ValueError("`H` must not be empty; got no part.")
    labels = labels_of[0] if len(labels_of) == 1 else np.concatenate(labels_of)
    if W is None and about is None:
        names, labels = number_labels(labels, ignore_index)
    else:
        more = "give a `W` with more rows" if about is None else "statistics of more classes"
        names = np.arange(about.n_classes if W is None else max(W.shape[0], 2))  # type: ignore[union-attr]
        labels = check_range(labels, len(names), ignore_index, more=more)
    n_ignored = int((labels == IGNORED).sum())
    rows, offsets = check_classifier(W, bias, len(names), dim)
    if about is not None and (about.n_classes, about.dim) != (len(names), dim):
        raise ValueError(
            f"`about` must be of {len(names)} classes and {dim} features; got {about.n_classes} "
            f"and {about.dim}."
        )
    if subset is not None:
        chosen = _chosen(subset, names)
        place = np.full(len(names) + 1, IGNORED)
        place[chosen] = np.arange(len(chosen))
        labels, names = place[labels], names[chosen]
        if len(rows):
            rows, offsets = rows[chosen], offsets[chosen]
        about = None if about is None else about.of_classes(chosen)
    statistics = about
    if statistics is None:
        statistics = ClassStatistics(len(names), dim, ignore_index=IGNORED)
        _pass(statistics, rows_of, labels, progress)
        statistics.n_ignored = n_ignored
    deviations = ClassDeviations(
        statistics,
        rows if len(rows) else None,
        offsets if len(rows) else None,
        held_out=about is not None,
        min_count=min_count,
    )
    deviations.ignore_index = IGNORED
    _pass(deviations, rows_of, labels, progress)
    deviations.n_ignored = n_ignored
    return deviations.metrics(), statistics, names


@quiet
def class_statistics(
    H: Any, y: Any, ignore_index: int | None = None
) -> tuple[ClassStatistics, NDArray[Any]]:
    """The first pass alone, and the labels of its classes, which may be any but negative ones."""
    check_features(H, None)
    H, labels = with_labels(H, y)
    names, labels = number_labels(labels, check_ignore_index(ignore_index))
    if len(names) == 0:
        raise ValueError("`H` must not be empty; no sample has a label that counts.")
    statistics = ClassStatistics(len(names), int(H.shape[1]), ignore_index=IGNORED)
    _pass(statistics, [H], labels, None)
    return statistics, names


def _chosen(subset: ArrayLike, names: NDArray[Any]) -> NDArray[np.int64]:
    """The places among `names` of the classes of a subset."""
    classes = copied("subset", subset)
    if classes.dtype.kind in "iu":
        classes = np.unique(classes)
    if classes.ndim != 1 or classes.dtype.kind not in "iu" or len(classes) < 2:
        raise ValueError(f"`subset` must name at least 2 classes by integers; got {subset!r}.")
    unknown = classes[~np.isin(classes, names)]
    if len(unknown):
        raise ValueError(
            f"`subset` must name classes that there are; got {unknown[0]}, which is no label."
        )
    return np.searchsorted(names, classes)


def _pass(
    sink: ClassStatistics | ClassDeviations,
    parts: Sequence[Any],
    labels: NDArray[Any],
    progress: Progress | None,
) -> None:
    start = 0
    for H in parts:
        own = labels[start : start + len(H)]
        for first, part, of_part in batches(H, own, pieces=progress is not None):
            sink.update_from(start + first, part, of_part)
            if progress is not None:
                progress(len(of_part))
        start += len(H)
