"""Labels that fit no class: refused in host memory, NaN on a device.

Labels of a device are not waited for. No assertion is launched there either, since a failed one
makes every CUDA tensor of the process unusable: the loss of such a sample, and its part of the
gradients, is NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastnc.nn._errors import LabelError

# Among them `ignore_index` would be another number: torch takes -100 for 156 beside uint8.
_OTHERS = (
    torch.int8, torch.int16, torch.int32, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
)  # fmt: skip


def as_int64(target: Tensor) -> Tensor:
    """Labels of other integers as int64; all else as it is, for the checks."""
    return target.to(torch.int64) if target.dtype in _OTHERS else target


def look(target: Tensor, n_classes: int, ignore_index: int) -> None:
    """Labels in the host's memory must fit.

    Raises
    ------
    LabelError
        One does not.
    """
    if target.is_floating_point() or not target.is_cpu:
        return
    bad = misfits(target.to(torch.int64), n_classes, ignore_index)
    if bad.any():
        first = int(bad.nonzero()[0])
        raise bad_label(n_classes, ignore_index, int(target[first]), first)


def misfits(target: Tensor, n_classes: int, ignore_index: int) -> Tensor:
    """Which int64 labels are neither a class nor `ignore_index`."""
    return (target != ignore_index) & ((target < 0) | (target >= n_classes))


def bad_label(n_classes: int, ignore_index: int, label: int, place: int) -> LabelError:
    return LabelError(
        f"`target` must lie in 0..{n_classes - 1} (`linear_weight` has {n_classes} rows) or be "
        f"`ignore_index`, {ignore_index}; got {label} at index {place}."
    )
