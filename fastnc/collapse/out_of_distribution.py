"""NC5: the mean feature of another distribution is orthogonal to the class means."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastnc._core.arrays import as_numpy, check_count
from fastnc._core.serial import quiet
from fastnc.collapse.batch import batches, check_features, readable
from fastnc.collapse.codes import units
from fastnc.collapse.measurement import class_statistics


@quiet
def nc5(
    H: Any, y: Any, ood_features: Any, *, ignore_index: int | None = None, min_count: int = 1
) -> float:
    """`Avg_k |<m_k, o>| / (|m_k| |o|)`, o the mean of the out-of-distribution features.

    Ammar et al., "NECO" (2024), and rhubarbwu: class means m_k not centred. 0 at collapse. The
    latter gives the other set classes, and takes the mean of their means for o.

    Parameters
    ----------
    H, y, ignore_index, min_count
        As `fastnc.collapse_metrics` takes them without a classifier.
    ood_features : (M, d)
        Of samples of no class.

    Returns
    -------
    float
        NaN where a mean is zero. `dataclasses.replace(m, nc5=...)` puts it beside other metrics.

    Raises
    ------
    ValueError, TypeError
        Features that do not fit each other, or are not finite; no class of `min_count` samples.

    Cost
    ----
    One pass over both.

    Examples
    --------
    >>> import numpy as np, fastnc
    >>> H, y = np.array([[1.0, 0.0], [1.0, 1.0]]), np.array([0, 1])
    >>> round(fastnc.nc5(H, y, np.array([[0.0, 3.0]])), 4)
    0.3536
    """
    min_count = check_count("min_count", min_count, 1)
    statistics, _ = class_statistics(H, y, ignore_index)
    measured = statistics.counts >= min_count
    if not measured.any():
        raise ValueError(
            f"`min_count` must leave a class; got {min_count}, and the largest has "
            f"{statistics.counts.max()} samples."
        )
    check_features(ood_features, statistics.dim, "ood_features")
    count, total = 0, np.zeros(statistics.dim)
    for first, part, _ in batches(ood_features, ood_features):
        rows = as_numpy(readable(part)).reshape(-1, statistics.dim)
        bad = ~np.isfinite(rows).all(axis=1)
        if bad.any():
            raise ValueError(
                f"`ood_features` must be finite; sample {first + int(np.argmax(bad))} is not."
            )
        total += rows.sum(axis=0, dtype=np.float64)
        count += len(rows)
    if count == 0:
        raise ValueError("`ood_features` must not be empty.")
    means = statistics.means[measured]
    if not np.isfinite(total).all():
        raise ValueError(
            "`ood_features` are too large: their sum overflows. Divide them by a number."
        )
    return float(np.abs(units(means) @ units(total[None])[0]).mean())
