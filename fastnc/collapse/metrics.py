"""Neural-collapse metrics, each defined in one place: their names, values and tables."""

from __future__ import annotations

import json as _json
import math
from dataclasses import dataclass

from fastnc.collapse import report
from fastnc.collapse.conventions import CONVENTIONS, check_convention

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
# Metrics that snapshots of a run do not hold.
FURTHER = (
    "accuracy",
    "nearest_mean_accuracy",
    "gnc2_log",
    "gnc2_riesz",
    "uniform_duality",
    "one_vs_rest_distance",
    "effective_rank",
    "nc0",
)
CLASSIFIER = (
    "equinorm_classifier",
    "equiangular_classifier",
    "nc2_gram_classifier",
    "one_vs_rest_distance",
    "nc0",
)
JOINT = ("self_duality", "nc3_gram", "nc3_distance", "uniform_duality")
DECISIONS = ("nc4_agreement", "margin", "margin_ratio", "accuracy")
# Undefined where every class has a single sample, which is its own mean.
SPREAD = ("within_class", "nc1", "nc1_quotient", "cdnv", "nc1_sample_mean")


@dataclass(frozen=True)
class CollapseMetrics:
    """Neural collapse in numbers; None where the input is not enough, NaN where it is 0/0.

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
    nc1 : tr(Sigma_W Sigma_B^+) / K. Zhu et al., rhubarbwu, nc-toolbox, Papyan et al.; Papyan's
        notebook does not divide by K. Eigenvalues of Sigma_B below 1e-12 of the largest count as
        zero. Needs a second pass, or `ClassStatistics(scatter="full")`.
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
        mean; a tie may go to either class. rhubarbwu ignores the bias, Papyan reports
        1 - nc4_agreement. Needs W and a second pass.
    margin : q_min, the smallest over samples of z_y - max_{j != y} z_j, z = W h + bias. Definition
        3.1. Needs W and a second pass.
    margin_ratio : q_min 2 (K-1) sqrt n / (|W|^2 + |H|^2), at most 1 (Lemma 3.1). For unequal class
        sizes (K-1) sqrt n becomes the nuclear norm of E diag(sqrt n_k), and a bias, which then
        costs the small classes no norm, may lift the ratio above 1. For K > d + 1 the best ratio is
        lower, and a bias may lift it too. Needs W and a second pass.
    accuracy : share of samples whose largest logit is their label's. Needs W and a second pass.
    nearest_mean_accuracy : share of samples whose nearest class mean is their own. Needs a second
        pass; from min(K - 1, d) = 48 on, where it costs as much again, W or `about` too.
    gnc2_log : Avg over pairs of log(1/|u_i - u_j|), u_k = (m_k - g)/|m_k - g|. Liu et al. 2023, Wu
        and Papyan 2024.
    gnc2_riesz : Avg over pairs of |u_i - u_j|^-(d-2), with the sign of d - 2 (1 where d = 2): the
        Riesz energy of the same sources. Infinite where it overflows.
    uniform_duality : the variance over classes (ddof 0) of <w_k, m_k - g>. rhubarbwu (ddof 1); Wu
        and Papyan 2024 print Std / Avg of the cosines instead. Needs W.
    one_vs_rest_distance : min_k of the distance of w_k/|w_k| from the convex hull of the others.
        Jiang et al. 2023. Needs W; None beyond 128 rows or K min(K, d) = 8192, where it takes long:
        call `fastnc.one_vs_rest_distance(W)`.
    effective_rank : exp of the entropy of the singular values of M_c, as shares of their sum (those
        below 1e-6 of the largest count as zero): K - 1 at collapse. Roy and Vetterli 2007.
    nc0 : |sum_k w_k|^2 / K. Zhao et al. 2026. Needs W.
    n_classes, n_samples, dim : the K with samples, N and d that were measured.
    n_rows : the rows of W, 0 without one.
    n_ignored : samples left out because their label was `ignore_index`.
    n_left_out : classes left out because they have fewer than `min_count` samples.
    n_single : classes of one sample, whose deviation is 0 by definition; 0 of held-out samples.
    balanced : whether the classes have equally many of these samples.
    biased : whether a bias that is not 0 was given.
    held_out : whether the samples are others than those the class means were made of. Then
        `within_class`, `nc1`, `cdnv` and decisions are of the held-out samples about those means,
        `cdnv` over the classes that have some.

    `within_class`, `nc1`, `nc1_quotient` and `cdnv` are None where every class has one sample, the
    mean itself.

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
    gnc2_log_variance, gnc2_distance_variance : the variance over pairs (ddof 0) of
        log(1/|u_i - u_j|), and of |u_i - u_j|. rhubarbwu.
    nc5 : the result of `fastnc.nc5`, if it was put here; else None.

    Examples
    --------
    >>> import numpy as np, fastnc
    >>> H = np.array([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]])
    >>> W = np.array([[1.0, 0.0], [-1.0, 0.0]])
    >>> m = fastnc.collapse_metrics(H, np.array([0, 0, 1, 1]), W)
    >>> m.nc4_agreement, m.margin
    (1.0, 2.0)
    >>> sorted(m.as_dict("papyan"))[0]
    'NC1: tr(Sw Sb^+)/C'

    References
    ----------
    Papyan, Han, Donoho, "Prevalence of neural collapse" (2020). Zhu et al., "A geometric analysis
    of neural collapse with unconstrained features" (2021). Galanti, Gyorgy, Hutter, "On the role of
    neural collapse in transfer learning" (2022). Liu et al., "Generalizing and decoupling neural
    collapse via hyperspherical uniformity gap" (2023). Wu, Papyan, "Linguistic collapse" (2024).
    Jiang et al., "Generalized neural collapse for a large number of classes" (2023). Roy, Vetterli,
    "The effective rank" (2007). Zhao et al., "Optimizer choice matters for the emergence of neural
    collapse" (2026). Ammar et al., "NECO" (2024).
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
    accuracy: float | None = None
    nearest_mean_accuracy: float | None = None
    gnc2_log: float | None = None
    gnc2_riesz: float | None = None
    uniform_duality: float | None = None
    one_vs_rest_distance: float | None = None
    effective_rank: float | None = None
    nc0: float | None = None
    gnc2_log_variance: float | None = None
    gnc2_distance_variance: float | None = None
    nc5: float | None = None
    n_rows: int = 0
    n_ignored: int = 0
    n_left_out: int = 0
    n_single: int = 0
    held_out: bool = False
    balanced: bool = False
    biased: bool = False

    def as_dict(self, convention: str | None = None) -> dict[str, float | None]:
        """The metrics by name, or a source's set under its names, in exactly its forms.

        "paper": the six of Figure 2. "papyan": ddof 1, W raw, NC3 squared, NC4 as mismatch;
        "papyan-notebook" the same with NC1 as the notebook has it, not divided by K. "zhu": g the
        mean of all samples, W raw, and the balance of the bias. "rhubarbwu": g the mean of class
        means, W raw; for its NC4 measure without a bias, for its NC5 see `fastnc.nc5`. `nc5` is
        among fastnc's own if it was put here.
        """
        if convention is None:
            names = NAMES + FURTHER + (("nc5",) if self.nc5 is not None else ())
            return {name: getattr(self, name) for name in names}
        check_convention(convention)
        table: dict[str, float | None] = {}
        for label, (name, form) in CONVENTIONS[convention].items():
            value = getattr(self, name)
            table[label] = None if value is None else form(value, self.n_classes)
        return table

    def flat(self, prefix: str = "") -> dict[str, float]:
        """The metrics that are known, under `prefix + name`: what loggers take; no None."""
        return {f"{prefix}{k}": float(v) for k, v in self.as_dict().items() if v is not None}

    def json(self, convention: str | None = None) -> str:
        """`as_dict` as JSON; values that are not finite become null."""
        values = {
            name: value if value is not None and math.isfinite(value) else None
            for name, value in self.as_dict(convention).items()
        }
        return _json.dumps({**self.counts(), **values}, indent=2)

    def counts(self) -> dict[str, int]:
        """What was measured: classes, samples, features, and numbers left out if any were."""
        sizes = {"n_classes": self.n_classes, "n_samples": self.n_samples, "dim": self.dim}
        some = {"n_ignored": self.n_ignored, "n_left_out": self.n_left_out}
        return sizes | {name: count for name, count in some.items() if count}

    def table(self, convention: str | None = None) -> str:
        """`as_dict` as lines of name, value and, for fastnc's own set, the value at collapse.

        Where K > d + 1 also the best value that so many classes allow in d dimensions; below, notes
        on why the numbers may not mean collapse.
        """
        return report.table(self, convention)

    def to_latex(self, convention: str | None = None) -> str:
        """The lines of `table` as a LaTeX tabular with the rules of booktabs."""
        return report.latex(self, convention)

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return report.line(self)

    def _repr_html_(self) -> str:
        return report.html(self)
