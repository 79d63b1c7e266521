"""A classifier's rows and bias: what they must be."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastnc._core.arrays import (
    as_numpy,
    check_array,
    check_finite,
    check_matrix,
    dtype_name,
    is_torch,
    real_numbers,
)
from fastnc.collapse.batch import native

Floats = NDArray[np.float64]


def check_classifier(
    W: ArrayLike | None, bias: ArrayLike | None, n_classes: int, dim: int
) -> tuple[Floats, Floats]:
    """W (K, d) and bias (K,) in float64; no row at all if there is no classifier.

    W (1, d) and bias (1,) of two classes, as a binary `Linear(d, 1)` or scikit-learn have them,
    mean the rows 0 and w.
    """
    if W is None:
        if bias is not None:
            raise ValueError("`bias` belongs to a classifier; pass its `W` too.")
        return np.empty((0, dim)), np.empty(0)
    check_array("W", W)
    W = native(W)
    if dtype_name(W) in ("float16", "bfloat16"):
        W = W.float() if is_torch(W) else W.astype(np.float32)  # type: ignore[union-attr]
    # One row is a binary classifier's: the logit of class 1, where class 0 has 0.
    binary = n_classes == 2 and len(W.shape) == 2 and W.shape[0] == 1  # type: ignore[union-attr]
    check_matrix("W", W, (1 if binary else n_classes, dim))
    rows = np.ascontiguousarray(as_numpy(W), dtype=np.float64)
    check_finite("W", rows)
    if binary:
        rows = np.vstack([np.zeros(dim), rows])
    if bias is None:
        return rows, np.zeros(n_classes)
    offsets = real_numbers("bias", bias)
    if binary and offsets.shape in ((1,), ()):
        offsets = np.array([0.0, offsets.item()])
    if offsets.shape != (n_classes,):
        raise ValueError(f"`bias` must have shape ({n_classes},); got {offsets.shape}.")
    return rows, offsets
