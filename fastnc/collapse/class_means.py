"""The metrics from class means and sums over samples, for the first and the second pass."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastnc.collapse.between_class_basis import Directions
from fastnc.collapse.codes import one_vs_rest_distance, one_vs_rest_is_cheap
from fastnc.collapse.conventions import (
    NEEDS_FEATURES_ONLY,
    OTHER_FORMS,
    classifier_forms,
    joint_forms,
    sample_mean_gap,
)
from fastnc.collapse.metrics import (
    CLASSIFIER,
    DECISIONS,
    FURTHER,
    JOINT,
    NAMES,
    SPREAD,
    CollapseMetrics,
)
from fastnc.collapse.pair_energies import pair_energies

Floats = NDArray[np.float64]
# As RANK_CUT of the kernels that find the directions of NC1.
LEAST_EIGENVALUE = 1e-12


def present_classes(counts: NDArray[np.int64], min_count: int = 1) -> NDArray[np.int64]:
    """The classes that have `min_count` samples, of which there must be two."""
    present = np.flatnonzero(counts >= max(min_count, 1))
    if len(present) < 2:
        got = "none" if len(present) == 0 else f"only class {present[0]}"
        if min_count > 1:
            got += f" of at least `min_count={min_count}`"
        raise ValueError(
            "neural collapse compares class means: at least 2 classes must have samples; "
            f"got {got}."
        )
    return present


# Features below it have squares that vanish.
VANISHING = 1e-152


class ClassMeans(NamedTuple):
    """Class means, and sums over the samples that are measured about them.

    P classes are present: `means (P, d)`, `present (P,)` their numbers, `sizes (P,)` the samples
    that each mean was made of. `counts (K,)` and `squares (P,)`, the sums of |h - m_y|^2, are of
    the samples measured, which are the same unless they are `held_out`; `energy` is their |H|^2.
    """

    means: Floats
    present: NDArray[np.int64]
    sizes: Floats
    counts: NDArray[np.int64]
    squares: Floats
    energy: float | None = None
    held_out: bool = False
    n_ignored: int = 0
    n_left_out: int = 0


def metrics_of_means(
    of: ClassMeans,
    classifier: tuple[Floats, Floats],
    found: Directions,
    sums: Floats,
    unknown: set[str] | None = None,
) -> CollapseMetrics:
    """The metrics of class means, their directions, and a pass's sums.

    `classifier` is W (K, d) and bias (K,), or has no row; `unknown` names metrics to leave None.
    """
    from fastnc.kernels.cpu.basis import unit_of
    from fastnc.kernels.cpu.deviations import ACCURACY, NEAREST, PROJECTED, TILTED
    from fastnc.kernels.cpu.pairs import centre_of, centred

    W, bias = classifier
    means, present, counts = of.means, of.present, of.counts
    measured = counts[present].astype(np.float64)
    N, P = measured.sum(), len(present)
    C = centred(means, centre_of(means))
    values = np.full(len(NAMES), np.nan)
    gap = sample_mean_gap(C, of.sizes)
    unit = unit_of(C)
    energies = pair_energies(C / unit)
    computed: dict[str, float] = {
        "nc1_sample_mean": sums[PROJECTED] / N - sums[TILTED] / (N * P * found.gain),
        "gnc2_log": energies.log,
        "gnc2_riesz": energies.riesz,
        "gnc2_log_variance": energies.log_variance,
        "gnc2_distance_variance": energies.distance_variance,
        "effective_rank": effective_rank(C / unit),
        "nearest_mean_accuracy": sums[NEAREST] / N,
        "accuracy": sums[ACCURACY] / N,
    }
    _features(of, C, measured, sums, values)
    absent = set(unknown or ())
    if np.isnan(sums[NEAREST]):
        absent.add("nearest_mean_accuracy")
    if 0.0 < unit < VANISHING and not of.squares.max() > VANISHING**2:
        # Squares of so small features are no normal numbers: better none than a wrong one.
        absent.update({"within_class", "nc1", "nc1_quotient", "cdnv", "nearest_mean_accuracy"})
    single = 0 if of.held_out else int((measured == 1).sum())
    if single == P:
        absent.update(SPREAD)
    if len(W) == 0:
        absent.update(CLASSIFIER + JOINT + DECISIONS)
        absent.update(name for name in OTHER_FORMS if name not in NEEDS_FEATURES_ONLY)
    else:
        computed |= _classifier(of, C, W, sums, gap, values)
        balance = W @ (of.sizes @ means / of.sizes.sum()) + bias
        length = unit_of(balance[None])
        computed["bias_balance"] = length * float(np.linalg.norm(balance / length))
        if not one_vs_rest_is_cheap(W):
            absent.add("one_vs_rest_distance")
    computed |= zip(NAMES, values, strict=True)
    names = NAMES + FURTHER + OTHER_FORMS
    return CollapseMetrics(
        **{name: None if name in absent else float(computed[name]) for name in names},
        n_classes=P,
        n_samples=int(N),
        dim=means.shape[1],
        n_rows=len(W),
        n_ignored=of.n_ignored,
        n_left_out=of.n_left_out,
        n_single=single,
        held_out=of.held_out,
        balanced=bool((measured == measured[0]).all()),
        biased=bool(np.any(bias)),
    )


def _features(of: ClassMeans, C: Floats, measured: Floats, sums: Floats, values: Floats) -> None:
    """The metrics of the features alone, into `values`; CDNV of the classes that have samples."""
    from fastnc.kernels.cpu.geometry import features_geometry

    with np.errstate(divide="ignore", invalid="ignore"):
        # A class without held-out samples has no spread.
        features_geometry(C, measured, of.squares, sums, values)
    seen = measured > 0
    if not seen.all():
        some = np.full(len(NAMES), np.nan)
        if seen.sum() > 1:
            features_geometry(
                np.ascontiguousarray(C[seen]), measured[seen], of.squares[seen], sums, some
            )
        values[NAMES.index("cdnv")] = some[NAMES.index("cdnv")]


def _classifier(
    of: ClassMeans, C: Floats, W: Floats, sums: Floats, gap: Floats, values: Floats
) -> dict[str, float]:
    """The metrics that need a classifier: those of `NAMES` into `values`, the others returned."""
    from fastnc.kernels.cpu.basis import unit_of
    from fastnc.kernels.cpu.deviations import MARGIN
    from fastnc.kernels.cpu.geometry import (
        classifier_geometry,
        joint_geometry,
        separation_constant,
    )
    from fastnc.kernels.cpu.pairs import N_PAIR_SUMS, RESIDUAL

    pair_sums = np.empty(N_PAIR_SUMS)
    rows = W[of.present]
    classifier_geometry(W, pair_sums, values)
    unit = unit_of(W)
    forms = classifier_forms(W / unit, pair_sums[RESIDUAL])
    joint_geometry(C, W, of.means, of.present, of.counts, of.squares, sums, pair_sums, values)
    if of.energy is not None:
        energy = of.energy + float(np.vdot(W, W))
        ratio = 2.0 * separation_constant(of.counts) * sums[MARGIN] / energy
        values[NAMES.index("margin_ratio")] = ratio
    of_C, of_rows = unit_of(C), unit_of(rows)
    forms |= joint_forms(C / of_C, rows / of_rows, gap / of_C, pair_sums[RESIDUAL])
    total = W.sum(axis=0)
    dual = float(np.einsum("kj,kj->k", rows / of_rows, C / of_C).var())
    # One factor at a time: the square of a product may overflow where the product does not.
    forms["uniform_duality"] = dual * of_rows * of_C * of_rows * of_C
    forms["nc0"] = float(total @ total) / len(W)
    if one_vs_rest_is_cheap(W):
        forms["one_vs_rest_distance"] = one_vs_rest_distance(W / unit)
    return forms


def effective_rank(C: Floats) -> float:
    """exp of the entropy of the singular values of C (P, d), as shares of their sum.

    Only those that count for NC1, above 1e-6 of the largest; their squares are eigenvalues of the
    smaller of C C^T and C^T C. NaN where C is zero.
    """
    from scipy.linalg import blas, lapack

    P, d = C.shape
    gram = blas.dsyrk(1.0, C.T, trans=int(d >= P), lower=1)
    values = lapack.dsyevd(gram, compute_v=0, lower=1, overwrite_a=1)[0]
    if not values[-1] > 0.0:
        return float("nan")
    lengths = np.sqrt(values[values > LEAST_EIGENVALUE * values[-1]])
    shares = lengths / lengths.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))
