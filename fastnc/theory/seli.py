"""The geometry of simplex-encoded labels (SELI), the limit for unequal class sizes; distances."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc._core import arrays
from fastnc._core.serial import serial

Floats = NDArray[np.float64]

NAMES = ("seli_classifier", "seli_features", "seli_logits")


def encoded_labels(class_sizes: Any) -> tuple[Floats, Floats, Floats]:
    """V (K, K-1), L (K-1,), U (K, K-1) with `V L U^T = (I - 11^T/K) diag(sqrt n)`.

    Thrampoulidis et al. (2022): at the optimum of the separation problem (5) for these class sizes
    `W W^T = V L V^T`, `diag(sqrt n) M M^T diag(sqrt n) = U L U^T` with the class means M, and
    `W M^T = I - 11^T/K`. For equal sizes that is the simplex ETF.
    """
    root = np.sqrt(np.asarray(class_sizes, dtype=np.float64))
    V, L, Ut = np.linalg.svd(np.diag(root) - root / len(root))
    # The last singular value is 0: every column of the matrix sums to 0.
    return V[:, :-1], L[:-1], Ut[:-1].T


@serial
def seli_distances(W: Any, H: Any, y: Any) -> dict[str, float]:
    """How far W and the class means are from the SELI geometry of their class sizes.

    `|A/|A| - B/|B||` in the Frobenius norm, B the matrix of `encoded_labels`, of A = `W W^T`
    (`seli_classifier`), of A = `diag(sqrt n) M M^T diag(sqrt n)` (`seli_features`) and of
    A = `W M^T` (`seli_logits`), with W centred: its mean is constant and enters no logit gap.
    0 at the limit of a generic flow, at most 2, NaN where A is 0.

    Parameters
    ----------
    W : (K, d), H : (N, d) float32 or float64, d >= K - 1
    y : (N,) integers in 0..K-1, every class among them

    Raises
    ------
    TypeError, ValueError
        As `margins`; also a class without a sample.
    """
    W64, H64, labels = arrays.checked_problem(W, H, y)
    counts = np.bincount(labels, minlength=len(W64))
    if not counts.min():
        raise ValueError(f"`y` must hold every class; class {int(counts.argmin())} is absent.")
    sums = np.zeros_like(W64)
    np.add.at(sums, labels, H64)
    return distances_of_sums(W64, sums, counts)


def distances_of_sums(W: Floats, sums: Floats, counts: NDArray[np.int64]) -> dict[str, float]:
    """`seli_distances` of the classes' sums (K, d) of features and their sizes."""
    K = len(W)
    V, L, U = encoded_labels(counts)
    scaled = sums / np.sqrt(counts)[:, None]
    centred = W - W.mean(axis=0)
    pairs = (
        (centred @ centred.T, (V * L) @ V.T),
        (scaled @ scaled.T, (U * L) @ U.T),
        (centred @ (sums / counts[:, None]).T, np.eye(K) - 1.0 / K),
    )
    with np.errstate(invalid="ignore"):
        return {
            name: float(np.linalg.norm(A / np.linalg.norm(A) - B / np.linalg.norm(B)))
            for name, (A, B) in zip(NAMES, pairs, strict=True)
        }
