"""Neural-collapse metrics of features, labels and a classifier, each defined in one place."""

from __future__ import annotations

import json as _json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastnc._core.arrays import check_labels
from fastnc.collapse.batch import batches, check_features, check_integers
from fastnc.collapse.between_class_basis import Directions, whitening
from fastnc.collapse.conventions import (
    CONVENTIONS,
    NEEDS_FEATURES_ONLY,
    OTHER_FORMS,
    check_convention,
    classifier_forms,
    joint_forms,
    sample_mean_gap,
)
from fastnc.collapse.deviations import (
    ClassDeviations,
    check_classifier,
    present_classes,
)
from fastnc.collapse.statistics import ClassStatistics

Floats = NDArray[np.float64]

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
_CLASSIFIER = ("equinorm_classifier", "equiangular_classifier", "nc2_gram_classifier")
_JOINT = ("self_duality", "nc3_gram", "nc3_distance")
_DECISIONS = ("nc4_agreement", "margin", "margin_ratio")
_AT_COLLAPSE = {"nc4_agreement": "1", "margin": "grows", "margin_ratio": "1"}


@dataclass(frozen=True)
class CollapseMetrics:
    """Neural collapse in numbers; None where the input cannot tell, NaN where it is 0/0.

    Letters: `h_i` features, `m_k` means of the K classes that have samples, `g` their unweighted
    mean (Papyan and rhubarbwu take the same; Zhu and descendants the mean of all samples, equal
    when the classes are), `w_k` the classifier's rows, subscript c = centred over classes,
    `E = I - 11^T/K`, cos of the centred vectors, Std with ddof 0.
    `Sigma_W = (1/N) sum_i (h_i - m_y)(h_i - m_y)^T`,
    `Sigma_B = (1/K) sum_k (m_k - g)(m_k - g)^T`. Metrics that compare classifier and features use
    the rows of the classes that have samples, and centre them by their own mean; metrics of the
    classifier alone use all its rows.

    Attributes
    ----------
    equinorm_features : Std / Avg of |m_k - g|. Section 4 of the paper (Figure 2), Papyan et al.
    equinorm_classifier : Std / Avg of |w_k - wbar|. Figure 2. Needs W.
    within_class : Avg |h_i - m_y| / Avg |h_i - g|, averages over samples. Figure 2. Needs a second
        pass.
    equiangular_features : Avg over pairs of |cos + 1/(K-1)| of the m_k - g. Figure 2, Papyan; some
        packages average without the modulus, where errors cancel.
    equiangular_classifier : the same of the w_k - wbar. Figure 2. Needs W.
    self_duality : Avg_k |(m_k - g)/|m_k - g| - (w_k - wbar)/|w_k - wbar||. Figure 2. Needs W.
    nc1 : tr(Sigma_W Sigma_B^+) / K. Zhu et al., rhubarbwu, nc-toolbox; Papyan's notebook does not
        divide by K. Eigenvalues of Sigma_B below 1e-12 of the largest count as zero. Needs a
        second pass, or `ClassStatistics(scatter="full")`.
    nc1_quotient : tr Sigma_W / tr Sigma_B. Tirer and Bruna; a simplification of nc1.
    cdnv : Avg over pairs of (v_i + v_j) / (2 |m_i - m_j|^2), v_k = sum |h - m_k|^2 / n_k.
        Galanti et al.
    nc2_gram_features : |G/|G| - E/sqrt(K-1)|_F, G = M_c M_c^T. Zhu et al., for the means.
    nc2_gram_classifier : the same with G = W_c W_c^T. Zhu et al. take W raw in their code; equal
        once wbar = 0. Needs W.
    nc3_gram : |R/|R| - E/sqrt(K-1)|_F, R = W_c M_c^T. Zhu et al. (W raw there). Needs W.
    nc3_distance : |W/|W|_F - M_c/|M_c|_F|_F^2, W raw. Papyan et al.; nc-toolbox does not square.
        Needs W.
    nc4_agreement : share of samples whose largest logit `W h + bias` is that of the nearest class
        mean; ties go to the smaller class. rhubarbwu ignores the bias, Papyan reports
        1 - nc4_agreement. Needs W and a second pass.
    margin : q_min, the smallest over samples of z_y - max_{j != y} z_j, z = W h + bias. Definition
        3.1. Needs W and a second pass.
    margin_ratio : q_min 2 (K-1) sqrt n / (|W|^2 + |H|^2), at most 1 (Lemma 3.1). For unequal class
        sizes (K-1) sqrt n becomes the nuclear norm of E diag(sqrt n_k). Needs W and a second pass.
    n_classes, n_samples, dim : the K with samples, N and d that were measured.

    The forms that other sources use, for `as_dict(convention)`:

    nc1_sample_mean : nc1 with g the mean of all samples in Sigma_B. Zhu et al. Needs what nc1
        needs.
    equinorm_classifier_raw : Std / Avg of |w_k|, not centred, ddof 1. Papyan et al. Needs W.
    equiangular_classifier_raw : equiangular_classifier of the w_k, not centred. Papyan et al.
        Needs W.
    nc2_gram_classifier_raw : nc2_gram_classifier with G = W W^T. Zhu et al.'s code. Needs W.
    nc3_gram_raw : nc3_gram with R = W M_c^T, W raw. rhubarbwu. Needs W.
    nc3_gram_sample_mean : the same with the means about the mean of all samples. Zhu et al.'s code.
        Needs W.
    bias_balance : |W g_N + bias|, g_N the mean of all samples. Zhu et al. Needs W.

    Examples
    --------
    >>> import numpy as np, fastnc
    >>> H = np.array([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]])
    >>> W = np.array([[1.0, 0.0], [-1.0, 0.0]])
    >>> m = fastnc.collapse_metrics(H, np.array([0, 0, 1, 1]), W)
    >>> m.nc4_agreement, m.margin
    (1.0, 2.0)
    >>> sorted(m.as_dict("papyan"))[0]
    'NC1: tr(Sw Sb^+)'

    References
    ----------
    Papyan, Han, Donoho, "Prevalence of neural collapse" (2020). Zhu et al., "A geometric analysis
    of neural collapse with unconstrained features" (2021). Galanti, Gyorgy, Hutter, "On the role of
    neural collapse in transfer learning" (2022).
    """

    equinorm_features: float | None
    equinorm_classifier: float | None
    within_class: float | None
    equiangular_features: float | None
    equiangular_classifier: float | None
    self_duality: float | None
    nc1: float | None
    nc1_quotient: float | None
    cdnv: float | None
    nc2_gram_features: float | None
    nc2_gram_classifier: float | None
    nc3_gram: float | None
    nc3_distance: float | None
    nc4_agreement: float | None
    margin: float | None
    margin_ratio: float | None
    n_classes: int
    n_samples: int
    dim: int
    nc1_sample_mean: float | None = None
    equinorm_classifier_raw: float | None = None
    equiangular_classifier_raw: float | None = None
    nc2_gram_classifier_raw: float | None = None
    nc3_gram_raw: float | None = None
    nc3_gram_sample_mean: float | None = None
    bias_balance: float | None = None

    def as_dict(self, convention: str | None = None) -> dict[str, float | None]:
        """The metrics by name, or a source's set under its names, in exactly its forms.

        "paper": the six of Figure 2. "papyan": NC1 without /K, ddof 1, W raw, NC3 squared, NC4 as
        mismatch. "zhu": g the mean of all samples, W raw, and the balance of the bias.
        "rhubarbwu": g the mean of class means, W raw; for its NC4 measure without a bias.
        """
        if convention is None:
            return {name: getattr(self, name) for name in NAMES}
        check_convention(convention)
        table: dict[str, float | None] = {}
        for label, (name, form) in CONVENTIONS[convention].items():
            value = getattr(self, name)
            table[label] = None if value is None else form(value, self.n_classes)
        return table

    def json(self, convention: str | None = None) -> str:
        """`as_dict` as JSON; values that are not finite become null."""
        values = {
            name: value if value is not None and np.isfinite(value) else None
            for name, value in self.as_dict(convention).items()
        }
        sizes = {"n_classes": self.n_classes, "n_samples": self.n_samples, "dim": self.dim}
        return _json.dumps({**sizes, **values}, indent=2)

    def table(self, convention: str | None = None) -> str:
        """`as_dict` as lines of name, value and, for fastnc's own set, the value at collapse."""
        told = self.as_dict(convention)
        width = max(map(len, told)) + 2
        head = f"{self.n_samples} samples, {self.n_classes} classes, {self.dim} features"
        lines = [head, f"{'metric':<{width}}{'value':>14}"]
        for name, value in told.items():
            shown = "-" if value is None else f"{value:.6g}"
            lines.append(f"{name:<{width}}{shown:>14}")
        if convention is None:
            ends = ["   at collapse", *(f"   {_AT_COLLAPSE.get(name, '0')}" for name in told)]
            lines[1:] = [line + end for line, end in zip(lines[1:], ends, strict=True)]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()


def collapse_metrics(
    H: Any,
    y: Any,
    W: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    progress: Callable[[int], object] | None = None,
) -> CollapseMetrics:
    """Every metric of `CollapseMetrics` for features, labels and, if given, a classifier.

    Parameters
    ----------
    H : (N, d) features in half, single or double precision
        NumPy array, memory map (read in pieces), or torch tensor on CPU or CUDA.
    y : (N,) integers
        Any integers without a classifier: the classes are the sorted distinct labels. With one,
        its row numbers 0..K-1.
    W : (K, d), optional
    bias : (K,), optional
    progress : callable, optional
        Called with the number of samples read, twice for each sample.

    Raises
    ------
    ValueError, TypeError
        Arrays that do not fit, labels that are no row numbers of W, features that are not finite
        (which sample), fewer than two classes with samples: one sentence each.

    Cost
    ----
    Two passes over H; 2 N d min(K - 1, d) FLOP, with a classifier 2 N d K more; memory
    O(K d + min(K, d)^2) beside the data.

    Examples
    --------
    >>> import numpy as np, fastnc
    >>> H = np.array([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]])
    >>> m = fastnc.collapse_metrics(H, np.array([3, 3, 7, 7]))
    >>> round(m.nc1_quotient, 6), m.equinorm_features
    (0.01, 0.0)
    """
    return measure(H, y, W, bias, progress)[0]


def measure(
    H: Any,
    y: Any,
    W: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    progress: Callable[[int], object] | None = None,
) -> tuple[CollapseMetrics, ClassStatistics]:
    """What `collapse_metrics` returns, and the statistics of the first of its two sweeps."""
    check_features(H, None)
    if H.shape[0] == 0 or H.shape[1] == 0:
        raise ValueError(f"`H` must not be empty; got shape {tuple(H.shape)}.")
    labels = check_integers(y, H.shape[0])
    if W is None:
        n_classes, labels = number_labels(labels)
    elif not hasattr(W, "shape") or len(W.shape) != 2:
        raise ValueError("`W` must be an array with 2 dimensions, one row a class.")
    else:
        n_classes = W.shape[0]
        check_labels(labels, None, n_classes)
    dim = H.shape[1]
    check_classifier(W, bias, n_classes, dim)
    statistics = ClassStatistics(n_classes, dim)
    _sweep(statistics, H, labels, progress)
    deviations = ClassDeviations(statistics, W, bias)
    _sweep(deviations, H, labels, progress)
    return deviations.metrics(), statistics


def _sweep(
    sink: ClassStatistics | ClassDeviations,
    H: Any,
    labels: NDArray[Any],
    progress: Callable[[int], object] | None,
) -> None:
    for first, part, of_part in batches(H, labels, pieces=progress is not None):
        sink.update_from(first, part, of_part)
        if progress is not None:
            progress(len(of_part))


def number_labels(labels: NDArray[Any]) -> tuple[int, NDArray[np.int64]]:
    """How many distinct labels, and for each label its place among them in rising order."""
    lo, hi = int(labels.min()), int(labels.max())
    if hi - lo >= 4 * len(labels) + 1024:
        classes, places = np.unique(labels, return_inverse=True)
        return len(classes), places.astype(np.int64)
    # A table is much cheaper than a sort where the labels' range allows it.
    # Differences of small signed integers overflow, and large unsigned ones are no int64.
    wide = labels if labels.dtype.kind == "u" else labels.astype(np.int64)
    shifted = (wide - wide.dtype.type(lo)).astype(np.int64)
    seen = np.bincount(shifted) > 0
    if seen.all():
        return len(seen), shifted
    return int(seen.sum()), (np.cumsum(seen) - 1)[shifted]


def metrics_of_statistics(
    statistics: ClassStatistics, W: ArrayLike | None, bias: ArrayLike | None
) -> CollapseMetrics:
    """What the sums of a first pass tell (see `ClassStatistics.metrics`)."""
    from fastnc.kernels.cpu.deviations import N_SUMS, PROJECTED, TILTED
    from fastnc.kernels.cpu.pairs import centre_of, centred

    counts = statistics.counts
    present = present_classes(counts)
    means = np.ascontiguousarray(statistics.means[present])
    classifier = check_classifier(W, bias, statistics.n_classes, statistics.dim)
    found = whitening(centred(means, centre_of(means)), counts[present].astype(np.float64))
    sums = np.full(N_SUMS, np.nan)
    within = statistics.within
    unknown = {"within_class", *_DECISIONS}
    if within is None:
        unknown |= {"nc1", "nc1_sample_mean"}
    elif len(found.weights):
        sums[PROJECTED] = found.weights @ ((found.Q @ within) * found.Q).sum(axis=1)
        tilt = found.tilt @ found.Q
        sums[TILTED] = tilt @ within @ tilt
    squares = statistics.squares[present]
    return metrics_of_means(means, present, counts, squares, classifier, found, sums, unknown)


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
        absent.update(_CLASSIFIER + _JOINT + _DECISIONS)
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
