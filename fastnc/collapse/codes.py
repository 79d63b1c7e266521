"""Codes on the sphere: how far each vector is from the others' hull, and what K and d allow."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc._core.arrays import as_numpy, check_array, check_matrix, is_torch
from fastnc._core.serial import quiet

Floats = NDArray[np.float64]
# Up to so many rows, and multiplications in a step of nnls, it costs less than all other metrics.
MOST_ROWS, MOST_WORK = 128, 8192


@quiet
def one_vs_rest_distance(W: Any) -> float:
    """`min_k dist(w_k, hull{w_j: j != k})` of the directions of the rows of W (K, d).

    The quantity that a softmax code maximises (Jiang et al., 2023, definition 2.1). The hull's
    point `sum_j x_j w_j / sum_j x_j` nearest to w_k solves the non-negative least squares problem
    `min |sum_j x_j (w_j - w_k)|^2 + (1 - sum_j x_j)^2`.

    Parameters
    ----------
    W : (K, d), K >= 2
        NumPy or torch.

    Returns
    -------
    float
        K / (K - 1) for a simplex; NaN where a row is zero.

    Raises
    ------
    ValueError, TypeError
        No matrix of at least two rows.

    Cost
    ----
    K least-squares problems of K columns and min(K, d) + 1 rows.

    Examples
    --------
    >>> import numpy as np, fastnc
    >>> round(fastnc.one_vs_rest_distance(np.eye(3) - 1 / 3), 12)
    1.5
    """
    check_array("W", W)
    W = as_numpy(W.detach().double() if is_torch(W) and W.is_floating_point() else W)
    check_matrix("W", W, (None, None))
    if len(W) < 2:
        raise ValueError(f"`W` must have at least 2 rows; got shape {W.shape}.")
    U = units(W.astype(np.float64))
    if not np.isfinite(U).all():
        return math.nan
    if U.shape[1] > len(U):
        # Distances need no more dimensions than there are rows.
        U = np.linalg.qr(U.T)[1].T
    return float(np.linalg.norm(from_hulls(U), axis=1).min())


def units(X: Floats) -> Floats:
    """The rows of X at length 1, whatever their scale; NaN where a row is zero."""
    # Squares of a row of 1e-200 vanish, and those of 1e200 overflow.
    X = X / np.abs(X).max(axis=1, keepdims=True)
    return np.asarray(X / np.linalg.norm(X, axis=1, keepdims=True))


def from_hulls(U: Floats) -> Floats:
    """For each row of U (K, d) the vector to it from the nearest point of the others' hull."""
    from scipy.optimize import nnls

    target = np.zeros(U.shape[1] + 1)
    target[-1] = 1.0
    out = np.empty_like(U)
    for k in range(len(U)):
        A = np.vstack([(np.delete(U, k, axis=0) - U[k]).T, np.ones(len(U) - 1)])
        x, _ = nnls(A, target)
        # Computed directly: nnls's residual is close to 1 if the code is far apart.
        out[k] = -(A[:-1] @ (x / x.sum()))
    return out


def one_vs_rest_is_cheap(W: Floats) -> bool:
    """Whether `one_vs_rest_distance` of W takes no longer than all other metrics."""
    return 2 <= len(W) <= MOST_ROWS and len(W) * min(W.shape) <= MOST_WORK


def least_mean_angle(n_classes: int, dim: int) -> float:
    """No K unit vectors in d dimensions have Avg over pairs of |cos + 1/(K-1)| below this.

    With `x = cos + 1/(K-1)`, `|G|_F^2 >= K^2 / d` and `|sum_k u_k|^2 >= 0` give
    `Avg x^2 >= K/(K-1) (1/d - 1/(K-1))`, and `|x| <= K/(K-1)`. 0 where a simplex fits, d >= K - 1.
    """
    return max(1.0 / dim - 1.0 / (n_classes - 1), 0.0)


def largest_margin_ratio(n_classes: int, dim: int) -> float:
    """The largest margin_ratio known of K equally large classes in d dimensions, or a bound on it.

    Where d >= K - 1 that of the simplex, 1 (Lemma 3.1). Below, 0 for d = 1, and for d = 2 that of
    the regular polygon, `(K-1)/K (1 - cos(2 pi/K))`. For K <= 2 d it is
    `(K-1) / (K - 1 + sqrt(2 (K-d) / K))`, of K - d pairs of opposite classes, a direction each,
    whose logits are `e_k - e_j` for the pair k, j, and 2 d - K others with `e_k - 1/K`: these K
    rows have rank d, and that denominator is their nuclear norm. Equally long vectors have
    (K-1)/K, the same only at K = 2 d; no more is possible for K > 2 d, where 2 d of the classes
    would have more than these alone.
    """
    K, d = n_classes, dim
    if d >= K - 1:
        return 1.0
    if d <= 2:
        return (K - 1) / K * (1.0 - math.cos(2.0 * math.pi / K)) if d == 2 else 0.0
    return (K - 1) / (K - 1 + math.sqrt(2.0 * (K - d) / K)) if 2 * d >= K else (K - 1) / K
