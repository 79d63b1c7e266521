"""The neural collapse margin and what is missing to collapse: section 3.1.1 of the paper."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc._core import arrays
from fastnc._core.serial import serial
from fastnc.reference import separation_constant

Floats = NDArray[np.float64]

# A block of logits of at most this many entries is formed at a time (32 MB).
_BLOCK = 1 << 22


@serial
def margins(W: Any, H: Any, y: Any) -> Any:
    """The margin of every sample, `q_i = <w_{y_i}, h_i> - max_{j != y_i} <w_j, h_i>`.

    Section 3.1.1 of the paper. Equivalent to the label's logit minus the largest other one.

    Parameters
    ----------
    W : (K, d) float32 or float64, K >= 2
        One classifier a row.
    H : (N, d), dtype and library of `W`
        One sample a row.
    y : (N,) integers in 0..K-1

    Returns
    -------
    (N,) array or tensor, in the library, on the device and in the dtype of `H`
        Computed in float64, since a margin is a small difference of large logits.

    Raises
    ------
    TypeError, ValueError
        Shapes or dtypes that do not fit, labels out of range, NaN or infinity.

    Notes
    -----
    Cost: `2KNd` operations, in blocks of samples.

    Examples
    --------
    >>> import numpy as np, fastnc
    >>> fastnc.margins(np.eye(3), 2.0 * np.eye(3), np.array([0, 1, 0]))
    array([ 2.,  2., -2.])
    """
    if arrays.is_torch(H) and arrays.home(H) == "gpu":
        return _margins_on_gpu(W, H, y)
    W64, H64, labels = arrays.checked_problem(W, H, y)
    return arrays.like(_margins(W64, H64, labels).astype(arrays.dtype_name(H)), H)


def neural_collapse_margin(W: Any, H: Any, y: Any) -> Any:
    """Definition 3.1: the smallest margin of the data set, `q_min`.

    Parameters, Raises, Cost: as `margins`. Returns a float, or for tensors a 0-d tensor.

    Examples
    --------
    >>> import numpy as np, fastnc
    >>> fastnc.neural_collapse_margin(np.eye(3), 2.0 * np.eye(3), np.arange(3))
    2.0
    """
    smallest = margins(W, H, y).min()
    return smallest if arrays.is_torch(smallest) else float(smallest)


@serial
def margin_ratio(W: Any, H: Any, y: Any) -> Any:
    """Lemma 3.1 as a number that is at most 1, and 1 exactly at collapse with |W| = |H|.

    `q_min 2 (K-1) sqrt(n) / (|W|^2 + |H|^2)`. For unequal class sizes `(K-1) sqrt(n)` becomes
    the nuclear norm of `(I - 11^T/K) diag(sqrt n_k)`, the optimal value of the separation
    problem (Thrampoulidis et al., 2022), to which it is equal when they are equal.

    Parameters: as `margins`. Returns a float, or for tensors a 0-d tensor.

    Raises
    ------
    TypeError, ValueError
        As `margins`; also where W and H are both 0, which have no ratio.

    Notes
    -----
    Cost: as `margins`. Close to collapse `margin_decomposition(...).deficit` is
    `1 - margin_ratio` without the cancellation. With `d < K - 1` no simplex ETF fits, and 1 is
    not reached: the best known of equally large classes is `(K-1) / (K - 1 + sqrt(2 (K-d) / K))`
    for d + 2 <= K <= 2d (5/6 for K = 6, d = 3), and `(K-1)/K (1 - cos(2 pi/K))` for d = 2.

    Examples
    --------
    >>> import numpy as np, fastnc
    >>> W, H, y = fastnc.theory.collapsed(radius=3.0, n_classes=4, n_per_class=2, dim=3)
    >>> round(fastnc.margin_ratio(W, H, y), 12), round(fastnc.margin_ratio(2 * W, H, y), 12)
    (1.0, 0.8)
    """
    if arrays.is_torch(H) and arrays.home(H) == "gpu":
        q_min = neural_collapse_margin(W, H, y).double()
        energy = (W.double() ** 2).sum() + (H.double() ** 2).sum()
        _check_energy(float(energy))
        constant = separation_constant(np.bincount(arrays.as_numpy(y), minlength=len(W)))
        return (2.0 * constant * q_min / energy).to(H.dtype)
    W64, H64, labels = arrays.checked_problem(W, H, y)
    # A common factor does not matter, and squares neither under- nor overflow without it.
    largest = max(float(np.abs(W64).max()), float(np.abs(H64).max()))
    unit = math.ldexp(1.0, max(math.frexp(largest)[1] - 1, -1022)) if largest > 0.0 else 1.0
    W64, H64 = W64 / unit, H64 / unit
    q_min = float(_margins(W64, H64, labels).min())
    constant = separation_constant(np.bincount(labels, minlength=len(W64)))
    energy = float(np.vdot(W64, W64) + np.vdot(H64, H64))
    _check_energy(energy)
    ratio = 2.0 * constant * q_min / energy
    if arrays.is_torch(H):
        return arrays.like(np.array(ratio), H).to(H.dtype)
    return ratio


@dataclass(frozen=True)
class MarginDecomposition:
    """What is missing to collapse: the five non-negative terms behind Lemma 3.1.

    `|W|^2 + |H|^2 = 2 c q_min + classifier_mean + feature_mean + within_class_energy
    + misalignment + uneven_margins`, exactly, with c the `separation_constant`. So Lemma 3.1
    holds, and its equality means that all five vanish: that is neural collapse.
    """

    energy: float  # |W|^2 + |H|^2
    margin: float  # q_min
    separation_constant: float  # (K-1) sqrt(n) for equal class sizes
    classifier_mean: float  # K |wbar|^2
    feature_mean: float  # N |g|^2 for equal class sizes
    within_class_energy: float  # sum_i |h_i - m_{y_i}|^2
    misalignment: float  # |W_c - sqrt(n) M_c|^2 for equal class sizes: self-duality and norms
    uneven_margins: float  # 2 c (qbar - q_min)

    @property
    def missing(self) -> float:
        """The sum of the five terms, `|W|^2 + |H|^2 - 2 c q_min`."""
        return float(sum(getattr(self, name) for name in TERMS))

    @property
    def deficit(self) -> float:
        """`1 - margin_ratio`, a sum of non-negative terms: no digit is lost near collapse."""
        return self.missing / self.energy

    def as_dict(self) -> dict[str, float]:
        """Every field by its name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __str__(self) -> str:
        lines = [f"{name:<22}{getattr(self, name) / self.energy:12.4e}" for name in TERMS]
        lines.append(f"{'1 - margin_ratio':<22}{self.deficit:12.4e}")
        return "\n".join(lines)


TERMS = (
    "classifier_mean",
    "feature_mean",
    "within_class_energy",
    "misalignment",
    "uneven_margins",
)


@serial
def margin_decomposition(W: Any, H: Any, y: Any) -> MarginDecomposition:
    """The exact identity behind Lemma 3.1: the terms of the norm that add nothing to the margin.

    For equal class sizes, with g the mean of the class means m_k, c for centred over classes,
    and qbar the mean over samples of the mean margin over the wrong classes,

        |W|^2 + |H|^2 - 2 (K-1) sqrt(n) q_min
            = K |wbar|^2 + N |g|^2 + sum_i |h_i - m_{y_i}|^2 + |W_c - sqrt(n) M_c|^2
              + 2 (K-1) sqrt(n) (qbar - q_min).

    For unequal ones, `M_c sqrt(n)` becomes `A diag(sqrt n_k) M` with A the polar factor of
    `(I - 11^T/K) diag(sqrt n_k)`, and qbar a mean with the weights `-A_jk sqrt(n_k)`, the
    multipliers of the separation problem.

    Parameters: as `margins`.

    Raises
    ------
    TypeError, ValueError
        As `margins`; also where W and H are both 0, which have no ratio.

    Notes
    -----
    Cost: `2KNd` operations, and an SVD of K x K for unequal class sizes.

    Examples
    --------
    >>> import fastnc
    >>> W, H, y = fastnc.theory.collapsed(radius=3.0, n_classes=4, n_per_class=2, dim=3)
    >>> found = fastnc.margin_decomposition(2 * W, H, y)
    >>> round(found.misalignment / found.missing, 12)
    1.0
    """
    W64, H64, labels = arrays.checked_problem(W, H, y)
    counts = np.bincount(labels, minlength=len(W64))
    sums = np.zeros_like(W64)
    np.add.at(sums, labels, H64)
    means = sums / np.maximum(counts, 1)[:, None]
    within = H64 - means[labels]
    A = polar_factor(counts)
    q_min = float(_margins(W64, H64, labels).min())
    uneven = _uneven(W64, H64, labels, shares(A, counts), q_min)
    squares = float(np.vdot(H64, H64)), float(np.vdot(within, within))
    return decomposition(W64, means, counts, A, *squares, q_min, uneven)


def polar_factor(counts: NDArray[np.int64]) -> Floats:
    """A (K, K), the polar factor of `(I - 11^T/K) diag(sqrt n_k)`."""
    A = np.eye(len(counts)) - 1.0 / len(counts)
    if (counts == counts[0]).all():
        return A
    left, values, right = np.linalg.svd(A * np.sqrt(counts))
    return np.asarray(left @ ((values > 1e-12 * values[0])[:, None] * right))


def shares(A: Floats, counts: NDArray[np.int64]) -> Floats:
    """The weights (y, j) of the margin of a sample of class y over class j, by the polar factor."""
    found = -(A * np.sqrt(counts)).T / np.maximum(counts, 1)[:, None]
    np.fill_diagonal(found, 0.0)
    return found


def decomposition(
    W: Floats,
    means: Floats,
    counts: NDArray[np.int64],
    A: Floats,
    square_H: float,
    within: float,
    q_min: float,
    uneven: float,
) -> MarginDecomposition:
    """The terms of `margin_decomposition`, of sums over samples.

    `means` (K, d) are the class means, 0 of absent classes; A is of `polar_factor`; `square_H`
    is |H|^2, `within` its part about the means, and `uneven` the sum with the weights of `shares`
    of the margins over the wrong classes, less `q_min`.
    """
    root = np.sqrt(counts)
    # sum_k sqrt(n_k) v_k m_k with v the kernel of A, proportional to 1 / sqrt(n_k).
    if counts.min() > 0:
        kernel = means.sum(axis=0) / np.sqrt((1.0 / counts).sum())
    else:
        kernel = np.zeros(W.shape[1])
    energy = float(np.vdot(W, W)) + square_H
    _check_energy(energy)
    wbar = W.mean(axis=0)
    apart = (W - wbar) - A @ (root[:, None] * means)
    return MarginDecomposition(
        energy=energy,
        margin=q_min,
        separation_constant=float(np.trace(A * root)),
        classifier_mean=len(W) * float(wbar @ wbar),
        feature_mean=float(kernel @ kernel),
        within_class_energy=within,
        misalignment=float(np.vdot(apart, apart)),
        uneven_margins=2.0 * uneven,
    )


def _check_energy(energy: float) -> None:
    if energy == 0.0:
        raise ValueError("`W` and `H` must not both be 0: a ratio to their norm is taken.")


def _blocks(W: Floats, H: Floats, y: NDArray[np.int64]) -> Any:
    """Samples in blocks, and their gaps `z_y - z_j`, infinite at the label."""
    rows = max(1, _BLOCK // len(W))
    for i in range(0, len(H), rows):
        block = slice(i, i + rows)
        Z = H[block] @ W.T
        own = np.arange(len(Z)), y[block]
        gaps = Z[own][:, None] - Z
        gaps[own] = np.inf
        yield block, gaps


def _margins(W: Floats, H: Floats, y: NDArray[np.int64]) -> Floats:
    return np.concatenate([gaps.min(axis=1) for _, gaps in _blocks(W, H, y)])


def _uneven(W: Floats, H: Floats, y: NDArray[np.int64], share: Floats, q_min: float) -> float:
    """Sum over samples and wrong classes of `share[y, j] (margin over j - q_min)`."""
    total = 0.0
    for block, gaps in _blocks(W, H, y):
        # Subtracted before the sum: near collapse the differences are small beside q_min.
        gaps -= q_min
        gaps[np.arange(len(gaps)), y[block]] = 0.0
        total += float(np.vdot(share[y[block]], gaps))
    return total


def _margins_on_gpu(W: Any, H: Any, y: Any) -> Any:
    """As `_margins`, with torch and where H lives."""
    import torch

    arrays.check_matrix("W", W, (None, None))
    arrays.check_matrix("H", H, (None, W.shape[1]))
    checked = arrays.row_major(arrays.check_labels(y, len(H), len(W)), np.int64)
    labels = torch.from_numpy(checked).to(H.device)[:, None]
    W64, rows, out = W.double().T, max(1, _BLOCK // len(W)), []
    for i in range(0, len(H), rows):
        Z = H[i : i + rows].double() @ W64
        own = Z.gather(1, labels[i : i + rows])
        out.append(own[:, 0] - Z.scatter(1, labels[i : i + rows], -torch.inf).amax(1))
    return torch.cat(out).to(H.dtype)
