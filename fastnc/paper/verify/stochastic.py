"""Remark 3.3's claim for SGD checked: batches stay in a subspace, other noise leaves it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastnc.dynamics.descent import descend
from fastnc.paper.verify._finding import Finding
from fastnc.theory.example31 import Example31


def remark_33_sgd(seed: int) -> Finding:
    """Batches from (7) stay in the span of its rows, of dimension 2; Gaussian noise leaves it.

    The gradient of a sample is `r_i h_i^T` and `W^T r_i`: each row stays in the joint row space of
    W and H, whatever is drawn.
    """
    at = Example31(1.0)
    options: dict[str, Any] = {"lr": 0.5, "seed": seed, "W": at.W, "H": at.H, "snapshots": 2}
    batches = descend(at.model, epochs=1000, batch_size=2, **options)
    noisy = descend(at.model, epochs=200, noise=0.05, **options)
    third = [
        float(s[2] / s[0])
        for s in (
            np.linalg.svd(np.concatenate([run.W, run.H]), compute_uv=False)
            for run in (batches, noisy)
        )
    ]
    error = third[0] if third[1] > 1e-3 else math.inf
    return Finding(
        "Remark 3.3, SGD", "batches never leave the row space of (7), of dimension 2",
        f"third singular value {third[0]:.0e}; under Gaussian noise {third[1]:.2f}",
        error, 1e-13, "rounding of 1000 epochs",
        "'the noise of SGD has a part along the escape with probability 1': it has none for "
        f"batches (ratio {batches['margin_ratio'][-1]:.4f} after 1000 epochs), and collapse needs "
        "rank 3",
    )  # fmt: skip
