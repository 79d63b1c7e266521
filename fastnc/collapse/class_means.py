"""From class means and a pass's sums to the metrics: one place for both passes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastnc.collapse.between_class_basis import Directions
from fastnc.collapse.conventions import (
    NEEDS_FEATURES_ONLY,
    OTHER_FORMS,
    classifier_forms,
    joint_forms,
    sample_mean_gap,
)
from fastnc.collapse.metrics import CLASSIFIER, DECISIONS, JOINT, NAMES, CollapseMetrics

Floats = NDArray[np.float64]


def present_classes(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The classes that have samples, of which there must be two."""
    present = np.flatnonzero(counts)
    if len(present) < 2:
        got = "none" if len(present) == 0 else f"only class {present[0]}"
        raise ValueError(
            "neural collapse compares class means: at least 2 classes must have samples; "
            f"got {got}."
        )
    return present


def metrics_of_means(
    means: Floats,
    present: NDArray[np.int64],
    counts: NDArray[np.int64],
    squares: Floats,
    classifier: tuple[Floats, Floats],
    found: Directions,
    sums: Floats,
    unknown: set[str] | None = None,
) -> CollapseMetrics:
    """The metrics of P class means, their squares and directions, and a sweep's sums.

    `classifier` is W (K, d) and bias (K,), or no row; `unknown` names what the sums lack.
    """
    from fastnc.kernels.cpu.deviations import PROJECTED, TILTED
    from fastnc.kernels.cpu.geometry import (
        classifier_geometry,
        features_geometry,
        joint_geometry,
    )
    from fastnc.kernels.cpu.pairs import N_PAIR_SUMS, RESIDUAL, centre_of, centred

    W, bias = classifier
    sizes = counts[present].astype(np.float64)
    C = centred(means, centre_of(means))
    values, pair_sums = np.full(len(NAMES), np.nan), np.empty(N_PAIR_SUMS)
    features_geometry(C, sizes, squares, sums, values)
    N, P = sizes.sum(), len(present)
    forms = {"nc1_sample_mean": sums[PROJECTED] / N - sums[TILTED] / (N * P * found.gain)}
    absent = set(unknown or ())
    if len(W) == 0:
        absent.update(CLASSIFIER + JOINT + DECISIONS)
        absent.update(name for name in OTHER_FORMS if name not in NEEDS_FEATURES_ONLY)
    else:
        classifier_geometry(W, pair_sums, values)
        forms |= classifier_forms(W, pair_sums[RESIDUAL])
        joint_geometry(C, W, means, present, counts, squares, sums, pair_sums, values)
        gap = sample_mean_gap(C, sizes)
        forms |= joint_forms(C, W[present], gap, pair_sums[RESIDUAL])
        balance = W @ (sizes @ means / N) + bias
        forms["bias_balance"] = np.linalg.norm(balance)
    forms |= zip(NAMES, values, strict=True)
    told = {name: None if name in absent else float(forms[name]) for name in NAMES + OTHER_FORMS}
    return CollapseMetrics(**told, n_classes=P, n_samples=int(N), dim=means.shape[1])
