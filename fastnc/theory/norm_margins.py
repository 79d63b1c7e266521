"""Margins in the norms of other update rules than gradient descent: l_inf and operator norm."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc._core.arrays import checked_problem
from fastnc._core.serial import serial
from fastnc.theory.margin import neural_collapse_margin

Floats = NDArray[np.float64]
# Up to this many rows or columns all eigenvalues of a Gram matrix are computed at once.
_DENSE = 256


@serial
def margin_ratio_max(W: Any, H: Any, y: Any) -> float:
    """The margin at largest entry 1 over its bound: `q_min / (b max(|W|_max, |H|_max)^2)`, <= 1.

    `b = 4 d floor(K^2/4) / (K (K-1))`, K the classes present: with entries up to 1, each feature's
    term of `sum_{k, j != k} <w_k - w_j, h_k>` is largest for signs that halve the classes, and
    q_min is at most the mean. (It is Plotkin's bound for codes.) 1 is attained where an equidistant
    code of that length exists, as for K = 4 and d a multiple of 3.

    Examples
    --------
    >>> import numpy as np
    >>> code = np.array([[1., 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    >>> margin_ratio_max(code, code, np.arange(4))
    1.0
    """
    W, H, y = checked_problem(W, H, y)
    largest = max(np.abs(W).max(), np.abs(H).max())
    return ratio_max(neural_collapse_margin(W, H, y), np.bincount(y), W.shape[1], float(largest))


@serial
def margin_ratio_spectral(W: Any, H: Any, y: Any) -> float:
    """The margin at operator norm 1 over its bound: `q_min / (b max(|W|_2, |H|_2)^2)`, <= 1.

    `b = K / sum_k sqrt(n_k)` over the K classes present, 1 / sqrt(n) for equal ones: the mean
    margin with weights `sqrt(n_k) / n_k` is `<H, A W>` with |A|_* = b. For equal classes it is
    attained at collapse, with |W| and |H| alike in the operator norm.

    Examples
    --------
    >>> import numpy as np
    >>> W = np.eye(3) - 1 / 3
    >>> round(margin_ratio_spectral(W, W[[0, 0, 1, 1, 2, 2]] / 2**0.5, np.arange(6) // 2), 12)
    1.0
    """
    W, H, y = checked_problem(W, H, y)
    largest = max(spectral_square(W), spectral_square(H))
    return ratio_spectral(neural_collapse_margin(W, H, y), np.bincount(y), largest)


def ratio_max(margin: float, counts: NDArray[Any], dim: int, largest: float) -> float:
    """`margin_ratio_max` of a margin, the class sizes and the largest entry."""
    K = int(np.count_nonzero(counts))
    if K < 2 or not 0.0 < largest < math.inf:
        return math.nan
    return margin / largest**2 * (K * (K - 1)) / (4.0 * dim * (K * K // 4))


def ratio_spectral(margin: float, counts: NDArray[Any], square: float) -> float:
    """`margin_ratio_spectral` of a margin, the class sizes and the larger norm's square."""
    K = int(np.count_nonzero(counts))
    if K < 2 or not 0.0 < square < math.inf:
        return math.nan
    return margin / square * float(np.sqrt(counts).sum()) / K


def spectral_square(A: Floats) -> float:
    """The square of the largest singular value of A, by its smaller Gram matrix."""
    gram = A @ A.T if A.shape[0] <= A.shape[1] else A.T @ A
    if len(gram) <= _DENSE:
        return float(np.linalg.eigvalsh(gram)[-1])
    from scipy.sparse.linalg import eigsh

    start = np.random.default_rng(0).standard_normal(len(gram))
    return float(eigsh(gram, 1, which="LA", v0=start, tol=1e-10, return_eigenvectors=False)[0])
