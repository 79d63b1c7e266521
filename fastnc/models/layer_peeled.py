"""What the models of Table 1 share: sizes, labels, a start, and the form of a known optimum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastnc._core.arrays import (
    check_count,
    check_matrix,
    check_positive,
    copied,
    float_dtype,
    keep_checked,
    real_numbers,
    row_major,
)
from fastnc._core.html_table import html_table
from fastnc._core.switches import check_flag

Floats = NDArray[np.float64]


# Multiplications an evaluation below which a second thread costs more than it saves: on a busy
# machine an evaluation took 16 ms instead of 0.2.
_SMALL = 1_000_000
# The smallest number with all its digits, whose reciprocal is a float too.
_SMALLEST = float(np.finfo(np.float64).tiny)


class UnknownOptimum(ValueError):
    """No global optimum is known for these parameters; the message says why."""


def gaussian_start(n_classes: int, n_samples: int, dim: int, seed: int) -> tuple[Floats, Floats]:
    """W (K, d) and H (N, d) with Gaussian entries of variance 1/d, W drawn first."""
    rng = np.random.default_rng(check_count("seed", seed, 0))
    scale = 1.0 / np.sqrt(dim)
    W = rng.standard_normal((n_classes, dim)) * scale
    H = rng.standard_normal((n_samples, dim)) * scale
    return W, H


class Gradients(NamedTuple):
    """The objective at one point, and its gradients (`bias` is None where there is none)."""

    value: float
    W: NDArray[Any]
    H: NDArray[Any]
    bias: NDArray[Any] | None


@dataclass(frozen=True, eq=False)
class Optimum:
    """A known global optimum: its value, one minimiser, and where it comes from.

    Every rotation of the feature space turns a minimiser into another one; what they have
    in common is in `gram_W` and `gram_H`. (Where d is too small for all directions of a squared
    error, the choice among equal ones is arbitrary, and so are the Gram matrices.)

    Attributes
    ----------
    value : float
    W : (K, d) float64
    means : (K, d) float64, the features: every sample's are its class's row
    y : (N,) labels
    bias : (K,) float64, or None for a model without one
    source : str, the theorem or the certificate
    certificate : float, relative duality gap of a computed optimum; 0 for a closed form
    log_value : float, or None where `value` cannot be too small for a float
    """

    value: float
    W: Floats = field(repr=False)
    means: Floats = field(repr=False)
    y: NDArray[np.int64] = field(repr=False)
    bias: Floats | None = field(repr=False, default=None)
    source: str = ""
    certificate: float = 0.0
    log_value: float | None = None

    def _repr_html_(self) -> str:
        """The value, what it rests on, and its sizes: the table for a notebook."""
        rows = {"value": f"{self.value:.9g}", "source": self.source}
        if self.log_value is not None:
            rows["log value"] = f"{self.log_value:.9g}"
        rows |= {"duality gap": f"{self.certificate:.3g}", "W": str(self.W.shape)}
        rows |= {"N": str(len(self.y)), "bias": "no" if self.bias is None else "yes"}
        return html_table("Optimum", ["", ""], list(rows.items()))

    @property
    def H(self) -> Floats:
        """The features `(N, d)` of the minimiser: within-class collapse is exact."""
        return self.means[self.y]

    @property
    def gram_W(self) -> Floats:
        """`W W^T (K, K)`."""
        return self.W @ self.W.T

    @property
    def gram_means(self) -> Floats:
        """`M M^T (K, K)` of the class means."""
        return self.means @ self.means.T

    @property
    def gram_H(self) -> Floats:
        """`H H^T (N, N)`. Cost: N^2 numbers."""
        return self.gram_means[np.ix_(self.y, self.y)]


class LayerPeeled:
    """A model of Table 1: W (K, d) and H (N, d) are free but for a penalty or a constraint.

    A model defines its objective (`value_and_grads`), its constraint (`retract`, `pullback`,
    `violation`), and its known optimum (`optimum`).
    """

    n_classes: int
    dim: int
    y: NDArray[np.int64]
    counts: NDArray[np.int64]

    paper = ""
    has_bias = False
    non_negative = False
    starts = 4
    landscape = ""
    balance = 1.0
    modulus = 1.0

    def _set_up(self, counts: NDArray[np.int64]) -> None:
        """Store what follows from the class sizes, which the model has checked."""
        y = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        y.flags.writeable = False
        counts.flags.writeable = False
        object.__setattr__(self, "dim", check_count("dim", self.dim, 1))
        object.__setattr__(self, "n_classes", len(counts))
        object.__setattr__(self, "counts", counts)
        if self.dim < len(counts) - 1:
            # Where no simplex fits there are local minima, at which about half of the starts
            # ended.
            object.__setattr__(self, "starts", max(self.starts, 64))
        object.__setattr__(self, "y", y)

    def _set_weight_decay(self, weight_decay_W: float, weight_decay_H: float) -> None:
        """Check both penalties; store the scales that make them equal, and their geometric mean."""
        for name, value in (("weight_decay_W", weight_decay_W), ("weight_decay_H", weight_decay_H)):
            if np.isscalar(value) and value == 0:
                raise ValueError(
                    f"`{name}` must be positive; got 0. Without a penalty this is the "
                    "unconstrained layer-peeled model: use `fastnc.ULPM`."
                )
            value = float(check_positive(name, value))
            if value < _SMALLEST:
                raise ValueError(
                    f"`{name}` must be at least {_SMALLEST:.1e}, below which floats have fewer "
                    f"digits and no reciprocal; got {value!r}."
                )
            object.__setattr__(self, name, value)
        weight_decay_W, weight_decay_H = float(weight_decay_W), float(weight_decay_H)
        object.__setattr__(self, "balance", (weight_decay_H / weight_decay_W) ** 0.25)
        # Their product may leave the range of floats where its root does not.
        modulus = float(np.sqrt(weight_decay_W)) * float(np.sqrt(weight_decay_H))
        object.__setattr__(self, "modulus", modulus)

    def _set_bias(self, bias: bool) -> None:
        """Check and store whether there is a free bias."""
        object.__setattr__(self, "has_bias", check_flag("bias", bias))

    @property
    def n_samples(self) -> int:
        """N, the number of samples."""
        return len(self.y)

    @property
    def is_small(self) -> bool:
        """Whether an evaluation takes less time than a second thread takes to wake."""
        return self.n_classes * self.n_samples * self.dim < _SMALL

    def init(self, seed: int = 0, dtype: str = "float64") -> tuple[NDArray[Any], NDArray[Any]]:
        """Gaussian W (K, d) and H (N, d) with entries of variance 1/d, put on the constraint.

        Drawn as the ULPM's are: the same seed and sizes give the same start, so that runs
        of different models can be compared. A free bias starts at zero.
        """
        precision = float_dtype(dtype)
        W, H = gaussian_start(self.n_classes, self.n_samples, self.dim, seed)
        W, H = self.retract(W, np.abs(H) if self.non_negative else H)
        return W.astype(precision), H.astype(precision)

    def objective(self, W: Any, H: Any, bias: ArrayLike | None = None) -> float:
        """The objective of this model at W (K, d), H (N, d) and, where it has one, bias (K,).

        A constraint is not part of it: see `violation`.

        Raises
        ------
        ValueError
            Arrays of the wrong shape; a bias for a model that has none.
        """
        check_matrix("W", W, (self.n_classes, self.dim))
        check_matrix("H", H, (self.n_samples, self.dim))
        W, H = (row_major(x) for x in (W, H))
        if W.dtype != H.dtype:
            raise TypeError(f"`W` and `H` must have one dtype; got {W.dtype} and {H.dtype}.")
        if bias is None:
            b = np.zeros(self.n_classes, W.dtype) if self.has_bias else None
        elif not self.has_bias:
            raise ValueError("this model has no bias; leave out `bias`.")
        else:
            b = real_numbers("bias", bias).astype(W.dtype)
            if b.shape != (self.n_classes,):
                raise ValueError(f"`bias` must have shape ({self.n_classes},); got {b.shape}.")
        return self.value_and_grads(W, H, b).value

    def value_and_grads(
        self, W: NDArray[Any], H: NDArray[Any], bias: NDArray[Any] | None
    ) -> Gradients:
        """The objective and its gradients; nothing is checked."""
        raise NotImplementedError

    def violation(self, W: NDArray[Any], H: NDArray[Any]) -> float:
        """How far (W, H) is outside the constraint: 0 where it holds."""
        return 0.0

    def retract(self, W: NDArray[Any], H: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """A point of the constraint near (W, H)."""
        return W, H

    def pullback(
        self, W: NDArray[Any], H: NDArray[Any], grad_W: NDArray[Any], grad_H: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Gradient at (W, H) of a function of `retract(W, H)` that has these gradients there.

        On the constraint itself this is the Riemannian gradient.
        """
        return grad_W, grad_H

    def optimum(self) -> Optimum:
        """The global optimum, or `UnknownOptimum` with the reason."""
        raise NotImplementedError


class Balanced(LayerPeeled):
    """A model of K classes with n samples each."""

    n_per_class: int

    def _set_up_balanced(self) -> None:
        keep_checked(self, check_count, "n_classes", least=2)
        keep_checked(self, check_count, "n_per_class", least=1)
        self._set_up(np.full(self.n_classes, self.n_per_class, dtype=np.int64))

    @property
    def class_sizes(self) -> NDArray[np.int64]:
        """Samples of each class (K,)."""
        return self.counts


class Unequal(LayerPeeled):
    """A model whose classes may have any sizes."""

    class_sizes: Sequence[int]

    def _set_up_unequal(self) -> None:
        sizes = checked_sizes(self.class_sizes)
        object.__setattr__(self, "class_sizes", sizes)
        self._set_up(np.array(sizes, dtype=np.int64))


def checked_sizes(given: Any) -> tuple[int, ...]:
    """The samples of each of at least two classes."""
    try:
        sizes = given if isinstance(given, (list, tuple)) else copied("class_sizes", given).tolist()
    except TypeError:
        sizes = None
    if not isinstance(sizes, (list, tuple)) or len(sizes) < 2:
        raise ValueError(
            f"`class_sizes` must list the samples of at least 2 classes; got {given!r:.200}."
        )
    return tuple(check_count(f"class_sizes[{k}]", size, 1) for k, size in enumerate(sizes))


def frame(n_classes: int, dim: int) -> Floats:
    """E (K, d) with `E E^T = I - 11^T/K`: a simplex ETF, for d >= K - 1; else its first columns."""
    # Helmert's contrasts are an orthonormal basis of the complement of the ones.
    K = n_classes
    E = np.zeros((K, dim))
    for j in range(1, min(K, dim + 1)):
        E[:j, j - 1] = 1.0
        E[j, j - 1] = -j
        E[:, j - 1] /= np.sqrt(j * (j + 1.0))
    return E


def require_etf(n_classes: int, dim: int) -> None:
    """Raise `UnknownOptimum` where no simplex ETF of K classes fits: d < K - 1."""
    if dim < n_classes - 1:
        raise UnknownOptimum(
            f"no closed form is known for dim={dim} < n_classes - 1 = {n_classes - 1}: a simplex "
            f"ETF of {n_classes} classes does not fit. Use `dim` >= {n_classes - 1}, or "
            "`fastnc.solve` for a minimum without a certificate."
        )


def factors(X: Floats, counts: ArrayLike, dim: int, ratio: float) -> tuple[Floats, Floats]:
    """W (K, d) and class means (K, d) of least penalty whose logits are `X diag(n)^(-1/2)`.

    X (K, K) holds the logits, a column a class, times sqrt(n_k). With the thin SVD
    `X = A S B^T`: `W = ratio^(1/4) A S^(1/2)` and `m_k = ratio^(-1/4) (B S^(1/2))_k / sqrt(n_k)`,
    `ratio = weight_decay_H / weight_decay_W`, attain the penalty
    `sqrt(lW lH) |X|_*` (the variational form of the nuclear norm).
    """
    A, s, Bt = np.linalg.svd(X)
    s[s < 1e-13 * max(s[0], 1e-300)] = 0.0
    if np.count_nonzero(s) > dim:
        raise UnknownOptimum(
            f"the logits of the optimum over all dimensions have rank {np.count_nonzero(s)}, which "
            f"`dim`={dim} cannot hold, and no optimum of lower rank is known."
        )
    r = min(len(s), dim)
    W = np.zeros((len(X), dim))
    means = np.zeros((len(X), dim))
    W[:, :r] = ratio**0.25 * A[:, :r] * np.sqrt(s[:r])
    means[:, :r] = ratio**-0.25 * Bt[:r].T * np.sqrt(s[:r])
    return W, means / np.sqrt(np.asarray(counts, dtype=np.float64))[:, None]
