"""States of accumulators: tensors where the features were, NumPy arrays otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np


def state_of(held: dict[str, Any], as_tensors: bool) -> dict[str, Any]:
    """The state `held`, with tensors for its arrays where the features were tensors.

    `torch.load` refuses NumPy's arrays, and a state of tensors needs torch to be read.
    """
    if not as_tensors:
        return held
    import torch

    return {
        name: torch.from_numpy(np.ascontiguousarray(value))
        if isinstance(value, np.ndarray)
        else value
        for name, value in held.items()
    }


def plain(value: Any) -> Any:
    """A Python value again, of what `numpy.savez` made a 0-d array of."""
    return value.item() if hasattr(value, "item") and np.ndim(value) == 0 else value
