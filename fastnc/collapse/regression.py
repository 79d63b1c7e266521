"""Neural regression collapse: features in as few dimensions as there are targets."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc._core.arrays import as_numpy, check_finite, real_numbers
from fastnc._core.serial import quiet
from fastnc.collapse.batch import check_features, epsilon, readable

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RegressionMetrics:
    """NRC1 to NRC3 of Andriopoulos et al. (2024, section 3.1); 0 at collapse, None without a W.

    Letters: n targets, `e_i = h_i / |h_i|`, Sigma the targets' covariance (divided by N).

    Attributes
    ----------
    nrc1 : Avg |e_i - P e_i|^2, P on the first n principal directions of the features: of the
        features about their mean, though the e_i are not. A mean outside of those directions
        counts as no collapse. Fewer directions where the features vary in fewer.
    nrc2 : Avg |e_i - P_W e_i|^2, P_W on the rows of W.
    nrc3 : min over g in [0, least eigenvalue of Sigma] of |A/|A| - B/|B||_F^2, A = W W^T,
        B = Sigma^(1/2) - g^(1/2) I. 0 of one target, whatever W is.
    nrc3_gamma : the g that attains it.
    n_samples, dim, n_targets : N, d and n.

    Examples
    --------
    >>> import numpy as np, fastnc
    >>> targets = np.array([[1.0], [2.0], [-3.0]])
    >>> m = fastnc.regression_metrics(targets * np.array([[1.0, 2.0]]), targets)
    >>> round(m.nrc1, 9), m.nrc2
    (0.0, None)
    """

    nrc1: float
    nrc2: float | None
    nrc3: float | None
    nrc3_gamma: float | None
    n_samples: int
    dim: int
    n_targets: int

    def as_dict(self) -> dict[str, float | None]:
        """The metrics by name."""
        return {name: value for name, value in asdict(self).items() if name.startswith("nrc")}

    def flat(self, prefix: str = "") -> dict[str, float]:
        """Those that are known, under `prefix + name`."""
        return {f"{prefix}{k}": v for k, v in self.as_dict().items() if v is not None}


@quiet
def regression_metrics(H: Any, targets: Any, W: Any = None) -> RegressionMetrics:
    """How far the features of a regression network have collapsed: NRC1, NRC2 and NRC3.

    Parameters
    ----------
    H : (N, d) features
        NumPy or torch, in half, single or double precision.
    targets : (N, n) or (N,) numbers
    W : (n, d), optional
        The last layer's rows.

    Raises
    ------
    ValueError, TypeError
        Arrays that do not fit, are not finite, or targets whose covariance is singular.

    Cost
    ----
    N d min(N, d) FLOP.

    Examples
    --------
    >>> import numpy as np, fastnc
    >>> H = np.array([[1.0, 0.0], [-1.0, 0.0], [2.0, 0.0], [-2.0, 0.0]])
    >>> fastnc.regression_metrics(H, H[:, 0], np.array([[3.0, 0.0]])).as_dict()["nrc1"]
    0.0

    References
    ----------
    Andriopoulos et al., "The prevalence of neural collapse in neural multivariate regression"
    (2024).
    """
    check_features(H, None)
    if len(H.shape) != 2 or H.shape[0] < 2 or H.shape[1] < 1:
        raise ValueError(f"`H` must be (N, d) with at least 2 samples; got {tuple(H.shape)}.")
    rows = np.asarray(as_numpy(readable(H)), np.float64)
    Y = _numbers("targets", targets, (len(rows), None))
    check_finite("H", rows)
    N, d = rows.shape
    n = Y.shape[1]
    if n > d:
        raise ValueError(f"`targets` must have at most {d} columns, as `H` has; got {n}.")
    # Of each row on its own scale: squares neither overflow nor vanish.
    most = np.abs(rows).max(axis=1, keepdims=True)
    E = rows / np.where(most > 0.0, most, 1.0)
    lengths = np.linalg.norm(E, axis=1, keepdims=True)
    # Features that are all 0 have no direction, and count as collapsed.
    E /= np.where(lengths > 0.0, lengths, 1.0)
    X = rows - rows.mean(axis=0)
    lengths, principal = np.linalg.svd(X, full_matrices=False)[1:]
    # A direction in which features differ by their rounding alone is no principal one.
    largest = float(most.max()) or 1.0
    varies = lengths[:n] / largest > 4.0 * epsilon(H) * np.linalg.norm(rows / largest)
    nrc2 = nrc3 = gamma = None
    if W is not None:
        V = _numbers("W", W, (n, d))
        lengths, directions = np.linalg.svd(V, full_matrices=False)[1:]
        nrc2 = _off(E, directions[lengths > 1e-12 * lengths[0]])
        nrc3, gamma = _structure(V, np.atleast_2d(np.cov(Y.T, bias=True)))
    return RegressionMetrics(_off(E, principal[:n][varies]), nrc2, nrc3, gamma, N, d, n)


def _off(E: Floats, directions: Floats) -> float:
    """Avg of the squared distance of the rows of E from the span of orthonormal directions."""
    return float(((E - (E @ directions.T) @ directions) ** 2).sum(axis=1).mean())


def _structure(W: Floats, covariance: Floats) -> tuple[float, float]:
    """NRC3 and its gamma: A is compared with `S - c I` for c in [0, the least eigenvalue of S].

    `|A/|A| - B/|B||^2 = 2 - 2 <A, B> / (|A| |B|)`, and with a = <A, S>, t = tr A, s = |S|^2,
    u = tr S the cosine (a - c t) / sqrt(s - 2 c u + n c^2) has one stationary point.
    """
    values, vectors = np.linalg.eigh(covariance)
    if not values[0] > 1e-12 * values[-1]:
        raise ValueError(
            "`targets` must vary in every direction: their covariance is singular. Leave out "
            "columns that follow from others."
        )
    S = (vectors * np.sqrt(values)) @ vectors.T
    # Only its direction counts, and squares of very large or small entries are no numbers.
    W = W / (np.abs(W).max() or 1.0)
    A, n = W @ W.T, len(W)
    a, t, s, u = (A * S).sum(), np.trace(A), (S * S).sum(), np.trace(S)
    top = float(np.sqrt(values[0]))
    stationary = (a * u - s * t) / (n * a - u * t) if n * a != u * t else 0.0
    candidates = []
    for c in (0.0, float(np.clip(stationary, 0.0, top)), top):
        B = S - c * np.eye(n)
        size = np.linalg.norm(B)
        # If all eigenvalues are equal, B is a multiple of I that becomes 0 at the end.
        B = B / size if size > 1e-12 * np.sqrt(s) else np.eye(n) / np.sqrt(n)
        candidates.append((float(((A / np.linalg.norm(A) - B) ** 2).sum()), c * c))
    return min(candidates)


def _numbers(name: str, x: Any, shape: tuple[int, int | None]) -> Floats:
    """A matrix of finite numbers of that shape; a vector is one column."""
    array = real_numbers(name, x)
    if array.ndim == 1 and name == "targets":
        array = array[:, None]
    if array.ndim != 2 or any(
        want not in (None, got) for want, got in zip(shape, array.shape, strict=True)
    ):
        wanted = tuple("any" if want is None else want for want in shape)
        raise ValueError(f"`{name}` must have shape {wanted}; got {array.shape}.")
    return array
