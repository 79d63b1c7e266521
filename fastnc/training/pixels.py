"""Resizing of images in uint8, and the mean and standard deviation of their pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

# Images that are resized at once.
_ROWS = 4096


def resized(images: NDArray[np.uint8], size: int) -> Tensor:
    """Images (N, C, S, S) as a tensor of another size, by bilinear interpolation."""
    import torch

    stack = torch.from_numpy(np.array(images, order="C"))
    if stack.shape[2:] == (size, size):
        return stack
    found = torch.empty(*stack.shape[:2], size, size, dtype=torch.uint8)
    for low in range(0, len(stack), _ROWS):
        part = torch.nn.functional.interpolate(
            stack[low : low + _ROWS].float(), (size, size), mode="bilinear", antialias=True
        )
        found[low : low + _ROWS] = part.round_().clamp_(0, 255)
    return found


def mean_and_std(images: NDArray[np.uint8]) -> tuple[float, float]:
    """Mean and standard deviation of all pixels on the scale 0..1, from their histogram."""
    counts = np.bincount(images.ravel(), minlength=256)
    values = np.arange(256) / 255.0
    mean = float(counts @ values / images.size)
    return mean, float(np.sqrt(counts @ (values - mean) ** 2 / images.size))
