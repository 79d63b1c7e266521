"""Losses of an unconstrained model other than cross-entropy: squared, focal, smoothed labels.

With the gaps `g_j = z_j - z_y` of a sample's logits and `s = log sum_{j != y} exp(g_j)`, its
cross-entropy is `softplus(s)` and the probability of the wrong classes `sigmoid(s)`. Both, and the
logarithms of both, keep their digits at any s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastnc._core.arrays import check_at_least_zero, keep_checked
from fastnc.models.layer_peeled import Floats, Gradients

Labels = NDArray[np.int64]
NAMES = ("cross-entropy", "squared", "focal", "smoothed")


class OfLogits(NamedTuple):
    """A mean loss, its logarithm, and dL/dZ (N, K), or dlog L/dZ with `of_log`."""

    log_value: float
    value: float
    residuals: Floats


class LogitLoss:
    """The mean over samples of a loss of their logits."""

    has_log = False
    """Whether the gradient of log L can be computed where L itself underflows."""

    def of_logits(self, Z: Floats, y: Labels, of_log: bool = False) -> OfLogits:
        """The loss of logits Z (N, K) in float64."""
        raise NotImplementedError

    def value_and_grads(
        self, W: NDArray[Any], H: NDArray[Any], y: Labels, of_log: bool = False
    ) -> tuple[OfLogits, Gradients]:
        """The loss at W (K, d), H (N, d) and its gradients, formed in float64."""
        W64, H64 = (x.astype(np.float64, copy=False) for x in (W, H))
        found = self.of_logits(H64 @ W64.T, y, of_log)
        grads = (found.residuals.T @ H64).astype(W.dtype), (found.residuals @ W64).astype(H.dtype)
        return found, Gradients(found.value, *grads, None)


@dataclass(frozen=True)
class Squared(LogitLoss):
    """`1/2 |z - e_y|^2`."""

    def of_logits(self, Z: Floats, y: Labels, of_log: bool = False) -> OfLogits:
        R = Z.copy()
        R[np.arange(len(y)), y] -= 1.0
        value = float(np.vdot(R, R)) / (2 * len(y))
        return OfLogits(_log(value), value, R / len(y))


@dataclass(frozen=True)
class Smoothed(LogitLoss):
    """Cross-entropy with the targets `(1 - label_smoothing) e_y + label_smoothing / K`."""

    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        keep_checked(self, check_at_least_zero, "label_smoothing")
        if not 0.0 < self.label_smoothing < 1.0:
            raise ValueError(
                f"`label_smoothing` must lie in (0, 1); got {self.label_smoothing!r}. Without any "
                "this is cross-entropy."
            )

    def of_logits(self, Z: Floats, y: Labels, of_log: bool = False) -> OfLogits:
        gaps, s, q = _wrong(Z, y)
        alpha, rows, K = self.label_smoothing, np.arange(len(y)), Z.shape[1]
        losses = np.logaddexp(0.0, s) - alpha * gaps.sum(axis=1) / K
        R = _spread(_sigmoid(s), q, y)
        R -= alpha / K
        R[rows, y] += alpha
        value = float(losses.mean())
        return OfLogits(_log(value), value, R / len(y))


@dataclass(frozen=True)
class Focal(LogitLoss):
    """`-(1 - p_y)^gamma log p_y`, Lin et al. (2017): well-classified samples count less.

    As its margins grow the loss of a sample vanishes like `exp(-(gamma + 1) margin)`.
    """

    gamma: float = 2.0
    has_log = True

    def __post_init__(self) -> None:
        keep_checked(self, check_at_least_zero, "gamma")

    def of_logits(self, Z: Floats, y: Labels, of_log: bool = False) -> OfLogits:
        _, s, q = _wrong(Z, y)
        log_wrong, log_right = -np.logaddexp(0.0, -s), -np.logaddexp(0.0, s)
        # log softplus(s), as s - e^s / 2 where softplus itself would underflow.
        low = np.minimum(s, -30.0)
        log_entropy = np.where(s < -30.0, low - 0.5 * np.exp(low), np.log(-log_right))
        losses = self.gamma * log_wrong + log_entropy
        slopes = (self.gamma + 1.0) * log_wrong + np.log1p(
            self.gamma * np.exp(log_right + log_entropy - log_wrong)
        )
        top = float(losses.max())
        log_sum = top + math.log(float(np.exp(losses - top).sum()))
        unit = log_sum if of_log else math.log(len(y))
        log_value = log_sum - math.log(len(y))
        R = _spread(np.exp(slopes - unit), q, y)
        return OfLogits(log_value, math.exp(log_value) if log_value < 709.0 else math.inf, R)


def logit_loss(name: str, gamma: Any = None, label_smoothing: Any = None) -> LogitLoss | None:
    """The loss of that name, checked; None for cross-entropy, which has kernels of its own."""
    given = {"gamma": ("focal", gamma), "label_smoothing": ("smoothed", label_smoothing)}
    for parameter, (of, value) in given.items():
        if value is not None and name != of:
            raise ValueError(
                f"`{parameter}` must come with loss={of!r}; got loss={name!r}. Leave it out."
            )
    match name:
        case "squared":
            return Squared()
        case "focal":
            return Focal() if gamma is None else Focal(gamma)
        case "smoothed":
            return Smoothed() if label_smoothing is None else Smoothed(label_smoothing)
    return None


def _wrong(Z: Floats, y: Labels) -> tuple[Floats, Floats, Floats]:
    """Gaps (N, K), 0 at the label; s (N,); the shares (N, K) of the wrong classes in s."""
    rows = np.arange(len(y))
    gaps = Z - Z[rows, y][:, None]
    top = np.where(np.arange(Z.shape[1]) == y[:, None], -np.inf, gaps).max(axis=1)
    q = np.exp(gaps - top[:, None])
    q[rows, y] = 0.0
    total = q.sum(axis=1)
    return gaps, top + np.log(total), q / total[:, None]


def _spread(weights: Floats, q: Floats, y: Labels) -> Floats:
    """`weights` times the shares, and minus their sum at the label: rows that add up to 0."""
    R = weights[:, None] * q
    R[np.arange(len(y)), y] = -weights
    return R


def _sigmoid(s: Floats) -> Floats:
    return np.asarray(np.exp(-np.logaddexp(0.0, -s)))


def _log(value: float) -> float:
    return math.log(value) if value > 0.0 else -math.inf
