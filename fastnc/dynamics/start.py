"""The start of a run: copies of the given W and H, or the model's own Gaussian start."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc._core import arrays


def start(
    model: Any, seed: int, W: Any, H: Any, dtype: str | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Copies of the given W and H, or the model's own Gaussian start, checked."""
    if not all(hasattr(model, name) for name in ("n_classes", "n_samples", "dim", "init", "y")):
        raise TypeError(
            "`model` must be a `fastnc.ULPM` or one of `fastnc.models`; "
            f"got {type(model).__name__}."
        )
    given = {name: x for name, x in (("W", W), ("H", H)) if x is not None}
    # The features of a model of several layers are not as wide as its last layer.
    width = getattr(model, "feature_dim", model.dim)
    shapes = {"W": (model.n_classes, model.dim), "H": (model.n_samples, width)}
    for name, x in given.items():
        arrays.check_matrix(name, x, shapes[name])
    dtypes = {arrays.dtype_name(x) for x in given.values()}
    if len(dtypes) > 1:
        raise TypeError(f"`W` and `H` must have one dtype; got {' and '.join(sorted(dtypes))}.")
    precision = next(iter(dtypes), "float64") if dtype is None else dtype
    own = dict(zip("WH", model.init(seed, precision), strict=True))
    for name, x in given.items():
        arrays.fill(name, own[name], x)
    return own["W"], own["H"]


def fingerprint(*arrays: NDArray[Any]) -> str:
    """A short text that differs whenever a byte of the arrays does."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:32]
