"""Checks of switches and shares."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastnc._core.arrays import _is_number, _shown, plain


def check_flag(name: str, value: Any) -> bool:
    """`value` must be True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"`{name}` must be True or False; got {_shown(value)}.")
    return bool(value)


def check_share(name: str, value: Any) -> float:
    """`value` must be a number in [0, 1)."""
    if not (_is_number(value) and 0.0 <= value < 1.0):
        raise ValueError(f"`{name}` must lie in [0, 1); got {_shown(value)}.")
    return plain(value)
