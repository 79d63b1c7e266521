"""Neural-collapse metrics of features, labels and a classifier, each defined in one place."""

from __future__ import annotations

NAMES = (
    "equinorm_features",
    "equinorm_classifier",
    "within_class",
    "equiangular_features",
    "equiangular_classifier",
    "self_duality",
    "nc1",
    "nc1_quotient",
    "cdnv",
    "nc2_gram_features",
    "nc2_gram_classifier",
    "nc3_gram",
    "nc3_distance",
    "nc4_agreement",
    "margin",
    "margin_ratio",
)
