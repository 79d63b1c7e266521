"""Neural-collapse metrics, each defined in one place: their names, values and tables."""

from __future__ import annotations

import json as _json
from dataclasses import dataclass

import numpy as np

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
CLASSIFIER = ("equinorm_classifier", "equiangular_classifier", "nc2_gram_classifier")
JOINT = ("self_duality", "nc3_gram", "nc3_distance")
DECISIONS = ("nc4_agreement", "margin", "margin_ratio")
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
