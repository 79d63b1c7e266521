"""Features, labels and a classifier measured: two passes over the samples, every metric."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastnc._core.arrays import check_labels
from fastnc.collapse.batch import batches, check_features, check_integers
from fastnc.collapse.classifier import check_classifier
from fastnc.collapse.deviations import ClassDeviations
from fastnc.collapse.metrics import CollapseMetrics
from fastnc.collapse.statistics import ClassStatistics


def collapse_metrics(
    H: Any,
    y: Any,
    W: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    progress: Callable[[int], object] | None = None,
) -> CollapseMetrics:
    """Every metric of `CollapseMetrics` for features, labels and, if given, a classifier.

    Parameters
    ----------
    H : (N, d) features in half, single or double precision
        NumPy array, memory map (read in pieces), or torch tensor on CPU or CUDA.
    y : (N,) integers
        Any integers without a classifier: the classes are the sorted distinct labels. With one,
        its row numbers 0..K-1.
    W : (K, d), optional
    bias : (K,), optional
    progress : callable, optional
        Called with the number of samples read, twice for each sample.

    Raises
    ------
    ValueError, TypeError
        Arrays that do not fit, labels that are no row numbers of W, features that are not finite
        (which sample), fewer than two classes with samples: one sentence each.

    Cost
    ----
    Two passes over H; 2 N d min(K - 1, d) FLOP, with a classifier 2 N d K more; memory
    O(K d + min(K, d)^2) beside the data.

    Examples
    --------
    >>> import numpy as np, fastnc
    >>> H = np.array([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]])
    >>> m = fastnc.collapse_metrics(H, np.array([3, 3, 7, 7]))
    >>> round(m.nc1_quotient, 6), m.equinorm_features
    (0.01, 0.0)
    """
    return measure(H, y, W, bias, progress)[0]


def measure(
    H: Any,
    y: Any,
    W: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    progress: Callable[[int], object] | None = None,
) -> tuple[CollapseMetrics, ClassStatistics]:
    """What `collapse_metrics` returns, and the statistics of the first of its two sweeps."""
    check_features(H, None)
    if H.shape[0] == 0 or H.shape[1] == 0:
        raise ValueError(f"`H` must not be empty; got shape {tuple(H.shape)}.")
    labels = check_integers(y, H.shape[0])
    if W is None:
        n_classes, labels = number_labels(labels)
    elif not hasattr(W, "shape") or len(W.shape) != 2:
        raise ValueError("`W` must be an array with 2 dimensions, one row a class.")
    else:
        n_classes = W.shape[0]
        check_labels(labels, None, n_classes)
    dim = H.shape[1]
    check_classifier(W, bias, n_classes, dim)
    statistics = ClassStatistics(n_classes, dim)
    _sweep(statistics, H, labels, progress)
    deviations = ClassDeviations(statistics, W, bias)
    _sweep(deviations, H, labels, progress)
    return deviations.metrics(), statistics


def _sweep(
    sink: ClassStatistics | ClassDeviations,
    H: Any,
    labels: NDArray[Any],
    progress: Callable[[int], object] | None,
) -> None:
    for first, part, of_part in batches(H, labels, pieces=progress is not None):
        sink.update_from(first, part, of_part)
        if progress is not None:
            progress(len(of_part))


def number_labels(labels: NDArray[Any]) -> tuple[int, NDArray[np.int64]]:
    """How many distinct labels, and for each label its place among them in rising order."""
    lo, hi = int(labels.min()), int(labels.max())
    if hi - lo >= 4 * len(labels) + 1024:
        classes, places = np.unique(labels, return_inverse=True)
        return len(classes), places.astype(np.int64)
    # A table is much cheaper than a sort where the labels' range allows it.
    # Differences of small signed integers overflow, and large unsigned ones are no int64.
    wide = labels if labels.dtype.kind == "u" else labels.astype(np.int64)
    shifted = (wide - wide.dtype.type(lo)).astype(np.int64)
    seen = np.bincount(shifted) > 0
    if seen.all():
        return len(seen), shifted
    return int(seen.sum()), (np.cumsum(seen) - 1)[shifted]
