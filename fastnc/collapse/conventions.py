"""Neural collapse as other sources measure it: their names, their forms, one table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Form = Callable[[float, int], float]

# Attributes of `CollapseMetrics` that only other sources' sets use.
OTHER_FORMS = (
    "nc1_sample_mean",
    "equinorm_classifier_raw",
    "equiangular_classifier_raw",
    "nc2_gram_classifier_raw",
    "nc3_gram_raw",
    "nc3_gram_sample_mean",
    "bias_balance",
    "gnc2_log_variance",
    "gnc2_distance_variance",
)
NEEDS_FEATURES_ONLY = ("nc1_sample_mean", "gnc2_log_variance", "gnc2_distance_variance")


def _same(value: float, n_classes: int) -> float:
    return value


def _times_classes(value: float, n_classes: int) -> float:
    return value * n_classes


def _one_less(value: float, n_classes: int) -> float:
    return value * float(np.sqrt(n_classes / (n_classes - 1)))


def _sample_variance(value: float, n_classes: int) -> float:
    return value * n_classes / (n_classes - 1)


def _complement(value: float, n_classes: int) -> float:
    return 1.0 - value


_PAPYAN: dict[str, tuple[str, Form]] = {
    "NC2: equinorm of M": ("equinorm_features", _one_less),
    "NC2: equinorm of W": ("equinorm_classifier_raw", _same),
    "NC2: equiangular of M": ("equiangular_features", _same),
    "NC2: equiangular of W": ("equiangular_classifier_raw", _same),
    "NC3: |W/|W| - M/|M||^2": ("nc3_distance", _same),
    "NC4: mismatch": ("nc4_agreement", _complement),
}
# For each source: its label, the attribute of `CollapseMetrics`, and a function of the value.
CONVENTIONS: dict[str, dict[str, tuple[str, Form]]] = {
    "paper": {
        name: (name, _same)
        for name in (
            "equinorm_features",
            "equinorm_classifier",
            "within_class",
            "equiangular_features",
            "equiangular_classifier",
            "self_duality",
        )
    },
    "papyan": {"NC1: tr(Sw Sb^+)/C": ("nc1", _same), **_PAPYAN},
    "papyan-notebook": {"NC1: tr(Sw Sb^+)": ("nc1", _times_classes), **_PAPYAN},
    "zhu": {
        "NC1: tr(Sw Sb^+)/K": ("nc1_sample_mean", _same),
        "NC2: WW^T against the ETF": ("nc2_gram_classifier_raw", _same),
        "NC3: WM^T against the ETF": ("nc3_gram_sample_mean", _same),
        "NC4: |W g + b|": ("bias_balance", _same),
    },
    "rhubarbwu": {
        "NC1: tr(Sw Sb^+)/K": ("nc1", _same),
        "NC1: tr Sw / tr Sb": ("nc1_quotient", _same),
        "NC1: CDNV": ("cdnv", _same),
        "NC2: variation of the norms": ("equinorm_features", _one_less),
        "NC2: MM^T against the ETF": ("nc2_gram_features", _same),
        "NC2: variance of distances": ("gnc2_distance_variance", _same),
        "NC2: variance of log distances": ("gnc2_log_variance", _same),
        "NC3: WM^T against the ETF": ("nc3_gram_raw", _same),
        "NC3: variance of <w, m>": ("uniform_duality", _sample_variance),
        "NC4: agreement": ("nc4_agreement", _same),
        "NC5: OOD deviation": ("nc5", _same),
    },
}


def check_convention(convention: str) -> None:
    """`convention` must be a source of the table."""
    if not isinstance(convention, str) or convention not in CONVENTIONS:
        raise ValueError(
            f"`convention` must be None or one of {', '.join(map(repr, CONVENTIONS))}; "
            f"got {convention!r}."
        )


def sample_mean_gap(C: Floats, sizes: Floats) -> Floats:
    """The mean of the class means minus the mean of all samples, `g - g_N` (d,)."""
    gap: Floats = -(sizes @ C) / sizes.sum()
    return gap


def classifier_forms(W: Floats, residual: float) -> dict[str, float]:
    """Metrics of the uncentred W (K, d); `residual = |W_c W_c^T - a E|^2` (see `pairs`).

    With w = wbar and u = W_c w, `W W^T = W_c W_c^T + u 1^T + 1 u^T + |w|^2 11^T`; the terms are
    orthogonal, and only the first has a component along E.
    """
    from fastnc.kernels.cpu.geometry import mean_angle
    from fastnc.kernels.cpu.pairs import simplex_distance

    K = len(W)
    wbar = W.mean(axis=0)
    V = W - wbar
    norms = np.linalg.norm(W, axis=1)
    residual += 2.0 * K * _square(V @ wbar) + K**2 * _square(wbar) ** 2
    return {
        "equinorm_classifier_raw": float(norms.std(ddof=1) / norms.mean()),
        "equiangular_classifier_raw": mean_angle(W),
        "nc2_gram_classifier_raw": simplex_distance(residual, _square(V) / (K - 1), K),
    }


def joint_forms(C: Floats, rows: Floats, gap: Floats, residual: float) -> dict[str, float]:
    """nc3_gram for the uncentred `rows` (P, d) of the classes present, about both means.

    With `M = C + 1 s^T`, s the difference of the centres, `W M^T` is `W_c C^T`, whose `residual`
    is given, plus three terms orthogonal to it and to E: `(W_c s) 1^T`, `1 (C w)^T` and
    `<w, s> 11^T`.
    """
    from fastnc.kernels.cpu.pairs import along_simplex, simplex_distance

    K = len(C)
    wbar = rows.mean(axis=0)
    V = rows - wbar
    along = along_simplex(V, C)
    forms = {}
    for name, s in (("nc3_gram_raw", np.zeros_like(gap)), ("nc3_gram_sample_mean", gap)):
        apart = K * (_square(V @ s) + _square(C @ wbar)) + K**2 * float(wbar @ s) ** 2
        forms[name] = simplex_distance(residual + apart, along, K)
    return forms


def _square(x: NDArray[Any]) -> float:
    return float(np.vdot(x, x))
