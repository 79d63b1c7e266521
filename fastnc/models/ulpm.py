"""The unconstrained layer-peeled model (4): W and H are free, nothing is penalised."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastnc._core.arrays import check_choice, check_count, check_labels, copied, float_dtype
from fastnc.models import logit_losses, losses
from fastnc.models.layer_peeled import (
    Gradients,
    Optimum,
    UnknownOptimum,
    factors,
    gaussian_start,
    require_etf,
)

# The paper's K.
_DEFAULT = 5


@dataclass(frozen=True, init=False, eq=False, repr=False)
class ULPM:
    """The unconstrained layer-peeled model, equation (4) of the paper, with the mean loss.

    `min over W, H of (1/N) sum_i log(1 + sum_{j != y_i} exp(<w_j - w_{y_i}, h_i>))`, or of
    another loss of the logits. `descend` and `flow` take any of them; kernels, curvatures,
    devices and ranks are for cross-entropy only.

    Parameters
    ----------
    n_classes : int, K >= 2, optional
        By default 5; to be given with labels of other than 5 classes.
    n_per_class : int, n >= 1
        Samples a class; labels are then 0, ..., 0, 1, ..., 1, ... Give this or `labels`.
    dim : int, d >= 1
        Features. A simplex ETF of K classes exists exactly if `d >= K - 1`.
    labels : (N,) integers in 0..K-1, optional
        Any order, any counts, absent classes allowed.
    loss : "cross-entropy", "squared", "focal" or "smoothed"
        Of a sample's logits z: `-log p_y`; `1/2 |z - e_y|^2`; `-(1 - p_y)^gamma log p_y`;
        cross-entropy with the targets `(1 - label_smoothing) e_y + label_smoothing / K`.
    gamma : float >= 0, optional
        Of the focal loss; 2 by default.
    label_smoothing : float in (0, 1), optional
        Of the smoothed loss; 0.1 by default.

    Raises
    ------
    ValueError
        A size that is too small, labels out of range, both of `n_per_class` and `labels`, or a
        parameter of another loss.

    Examples
    --------
    >>> import fastnc
    >>> model = fastnc.ULPM(n_classes=5, n_per_class=10, dim=20)
    >>> W, H = model.init(seed=0)
    >>> W.shape, H.shape
    ((5, 20), (50, 20))
    """

    n_classes: int
    dim: int
    y: NDArray[np.int64]
    loss: str = "cross-entropy"
    logit_loss: logit_losses.LogitLoss | None = field(default=None)

    def __init__(
        self,
        n_classes: int | None = None,
        n_per_class: int | None = None,
        dim: int = 20,
        labels: ArrayLike | None = None,
        loss: str = "cross-entropy",
        *,
        gamma: float | None = None,
        label_smoothing: float | None = None,
    ) -> None:
        if (n_per_class is None) == (labels is None):
            raise ValueError(
                "exactly one of `n_per_class` and `labels` must be given; "
                f"got n_per_class={n_per_class!r} and labels "
                f"{'missing' if labels is None else 'present'}."
            )
        if labels is None:
            K = check_count("n_classes", _DEFAULT if n_classes is None else n_classes, 2)
            n = check_count("n_per_class", n_per_class, 1)
            y = np.repeat(np.arange(K, dtype=np.int64), n)
        else:
            given = copied("labels", labels)
            if given.size == 0:
                raise ValueError("`labels` must hold at least one label; got none.")
            given = check_labels(given, None, None, "labels")
            K = check_count("n_classes", _DEFAULT if n_classes is None else n_classes, 2)
            if n_classes is None and (most := int(given.max())) != K - 1:
                raise ValueError(
                    f"`n_classes` must be given with `labels` of other than {K} classes; got "
                    f"labels up to {most}. Give `n_classes={max(most + 1, 2)}`, or more."
                )
            given = check_labels(given, None, K, "labels", "give more `n_classes`")
            y = given.astype(np.int64)
        y.flags.writeable = False
        object.__setattr__(self, "n_classes", K)
        object.__setattr__(self, "dim", check_count("dim", dim, 1))
        object.__setattr__(self, "y", y)
        check_choice("loss", loss, logit_losses.NAMES)
        object.__setattr__(self, "loss", loss)
        of = logit_losses.logit_loss(loss, gamma, label_smoothing)
        object.__setattr__(self, "logit_loss", of)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ULPM) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[Any, ...]:
        """What tells two models apart; labels in their order."""
        return self.n_classes, self.dim, self.y.tobytes(), self.loss, self.logit_loss

    def __repr__(self) -> str:
        other = "" if self.logit_loss is None else f", loss={self.logit_loss!r}"
        return f"ULPM(n_classes={self.n_classes}, dim={self.dim}{other})"

    @property
    def n_samples(self) -> int:
        """N, the number of samples."""
        return len(self.y)

    @property
    def class_sizes(self) -> NDArray[np.int64]:
        """Samples of each class (K,), 0 for an absent one."""
        return np.bincount(self.y, minlength=self.n_classes)

    def init(self, seed: int = 0, dtype: str = "float64") -> tuple[NDArray[Any], NDArray[Any]]:
        """Gaussian W (K, d) and H (N, d) with entries of variance 1/d, W drawn first.

        The draw is made in float64 and then rounded, so that both dtypes start alike.
        """
        precision = float_dtype(dtype)
        W, H = gaussian_start(self.n_classes, self.n_samples, self.dim, seed)
        return W.astype(precision), H.astype(precision)

    def value_and_grads(
        self, W: NDArray[Any], H: NDArray[Any], bias: NDArray[Any] | None = None
    ) -> Gradients:
        """The mean loss and its gradients; nothing is checked, and there is no bias."""
        if self.logit_loss is None:
            return losses.cross_entropy(W, H, self.y)
        return self.logit_loss.value_and_grads(W, H, self.y)[1]

    def objective(self, W: NDArray[Any], H: NDArray[Any]) -> float:
        """The mean loss at W (K, d), H (N, d)."""
        return self.value_and_grads(W, H).value

    def optimum(self) -> Optimum:
        """The least loss and one point that has it, balanced, `W^T W = H^T H`, where there is one.

        Squared: the logits are the labels, of the d largest classes where d < K. Smoothed: the
        gap of the logits is `log(1 + K (1 - a) / a)`, a the smoothing; d >= K - 1. Every
        invertible map of the features gives other ones, as nothing is penalised.

        Raises
        ------
        UnknownOptimum
            Cross-entropy and focal, whose infimum 0 is not attained; smoothed in too small a
            dimension.
        """
        K, counts = self.n_classes, self.class_sizes
        root = np.sqrt(counts)
        match self.logit_loss:
            case logit_losses.Squared():
                kept = np.zeros(K)
                kept[np.argsort(-counts, kind="stable")[: self.dim]] = 1.0
                lost = float(((1.0 - kept) * counts).sum()) / (2 * self.n_samples)
                W, means = factors(np.diag(kept * root), np.maximum(counts, 1), self.dim, 1.0)
                return Optimum(lost, W, means, self.y, None, "closed form: the labels")
            case logit_losses.Smoothed(alpha):
                require_etf(K, self.dim)
                own, other = 1.0 - alpha + alpha / K, alpha / K
                value = -own * np.log(own) - (K - 1) * other * np.log(other)
                X = np.log(own / other) * (np.diag(root) - root / K)
                W, means = factors(X, np.maximum(counts, 1), self.dim, 1.0)
                return Optimum(float(value), W, means, self.y, None, "closed form: the targets")
        raise UnknownOptimum(
            "the infimum 0 of the unconstrained model is not attained: W and H go to infinity. "
            "Their limiting direction is the optimum of `fastnc.models.separation`; on the sphere "
            "of a given norm it is that of `fastnc.models.sphere` (Theorem 3.3)."
        )
