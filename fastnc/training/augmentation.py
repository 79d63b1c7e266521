"""Random shifts and reflections of the images of a batch."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Augment = Literal["none", "shift", "shift-flip"]
AUGMENTS = get_args(Augment)


def augmented(images: Tensor, augment: str, seed: np.random.SeedSequence) -> Tensor:
    """Images (N, C, S, S), each shifted by at most S / 8 pixels, and half of them reflected.

    "shift" does not reflect. New pixels at an edge are 0, as in He et al. (2016), section 4.2.
    """
    if augment == "none":
        return images
    n, _, side, _ = images.shape
    most = side // 8
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 2 * most + 1, (2, n, 1))
    rows, columns = torch.from_numpy(corners + np.arange(side)).to(images.device)
    if augment == "shift-flip":
        mirrored = torch.from_numpy(rng.random(n) < 0.5).to(images.device)
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    padded = F.pad(images, (most, most, most, most))
    every = torch.arange(n, device=images.device)[:, None, None]
    # Advanced indices on both sides of a slice move the channels to the end.
    return padded[every, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
