"""States of accumulators: tensors where the features were, NumPy arrays otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc._core.arrays import copied


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


def check_state(state: Any) -> None:
    """`state` must be a dictionary."""
    if not isinstance(state, Mapping):
        raise TypeError(
            f"`state` must be the dictionary that `state_dict` gave; got {type(state).__name__}."
        )


def arrays_of(state: Any, like: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The arrays of a state under these names, which must have the shapes and kinds of `like`."""
    check_state(state)
    found = {}
    for name, own in like.items():
        if name not in state:
            raise ValueError(f"`state` must hold what `state_dict` gave; {name!r} is missing.")
        array = copied(f"state[{name!r}]", state[name])
        if array.shape != own.shape:
            raise ValueError(f"`state[{name!r}]` must have shape {own.shape}; got {array.shape}.")
        if not np.can_cast(array.dtype, own.dtype, "same_kind"):
            raise TypeError(f"`state[{name!r}]` must hold {own.dtype}; got {array.dtype}.")
        found[name] = array.astype(own.dtype)
    return found


def plain(value: Any) -> Any:
    """The Python value that `numpy.savez` has made a 0-d array."""
    return value.item() if hasattr(value, "item") and np.ndim(value) == 0 else value
