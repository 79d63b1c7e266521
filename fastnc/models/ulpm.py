"""The unconstrained layer-peeled model (4): W and H are free, nothing is penalised."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastnc._core.arrays import check_count, check_labels, copied, float_dtype
from fastnc.models.layer_peeled import UnknownOptimum, gaussian_start


@dataclass(frozen=True, init=False, eq=False)
class ULPM:
    """The unconstrained layer-peeled model, equation (4) of the paper, with the mean loss.

    `min over W, H of (1/N) sum_i log(1 + sum_{j != y_i} exp(<w_j - w_{y_i}, h_i>))`

    Parameters
    ----------
    n_classes : int, K >= 2
    n_per_class : int, n >= 1
        Samples a class; labels are then 0, ..., 0, 1, ..., 1, ... Give this or `labels`.
    dim : int, d >= 1
        Features. A simplex ETF of K classes exists exactly if `d >= K - 1`.
    labels : (N,) integers in 0..K-1, optional
        Any order, any counts, absent classes allowed.

    Raises
    ------
    ValueError
        A size that is too small, labels out of range, or both of `n_per_class` and `labels`.

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
    y: NDArray[np.int64] = field(repr=False)

    def __init__(
        self,
        n_classes: int = 5,
        n_per_class: int | None = None,
        dim: int = 20,
        labels: ArrayLike | None = None,
    ) -> None:
        K = check_count("n_classes", n_classes, 2)
        if (n_per_class is None) == (labels is None):
            raise ValueError(
                "exactly one of `n_per_class` and `labels` must be given; "
                f"got n_per_class={n_per_class!r} and labels "
                f"{'missing' if labels is None else 'present'}."
            )
        if labels is None:
            n = check_count("n_per_class", n_per_class, 1)
            y = np.repeat(np.arange(K, dtype=np.int64), n)
        else:
            given = copied("labels", labels)
            if given.size == 0:
                raise ValueError("`labels` must hold at least one label; got none.")
            given = check_labels(given, None, K, "labels", "give more `n_classes`")
            y = given.astype(np.int64)
        y.flags.writeable = False
        object.__setattr__(self, "n_classes", K)
        object.__setattr__(self, "dim", check_count("dim", dim, 1))
        object.__setattr__(self, "y", y)

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

    def optimum(self) -> NoReturn:
        """Refuses: the infimum of (4) is 0, and no W and H attain it."""
        raise UnknownOptimum(
            "the infimum 0 of the unconstrained model is not attained: W and H go to infinity. "
            "Their limiting direction is the optimum of `fastnc.models.separation`; on the sphere "
            "of a given norm it is that of `fastnc.models.sphere` (Theorem 3.3)."
        )
