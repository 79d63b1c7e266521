"""The rates of gradient flow towards collapse: exponents of log t, and their constants."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastnc._core import arrays
from fastnc._core.serial import serial
from fastnc.reference import class_means, equiangular, equinorm, self_duality
from fastnc.theory.seli import encoded_labels

Floats = NDArray[np.float64]


def exponents(n_classes: int, dim: int) -> dict[str, float]:
    """The exponents with which the columns of a generic flow fall in log t, for `d >= K`.

    `within_class` falls as (log t)^-1/2: the components of h_i orthogonal to the classifier's span
    are constant, and the rest grows like sqrt(log t). The paper's 1 / log t for it is what runs up
    to log t = 13 suggest. Everything else, `1 - margin_ratio` and `1 - beta` included, falls as
    1 / log t.

    Raises
    ------
    ValueError
        `dim < n_classes`: with d = K-1 nothing is orthogonal, and `within_class` falls as
        `(t log t)^(-1 / (2K))`, a power of t.
    """
    n_classes = arrays.check_count("n_classes", n_classes, 2)
    dim = arrays.check_count("dim", dim, 1)
    if dim < n_classes:
        raise ValueError(
            f"`dim` must be at least n_classes = {n_classes} for these rates; got {dim}."
        )
    slow = (
        "equinorm_features", "equinorm_classifier", "equiangular_features",
        "equiangular_classifier", "self_duality", "1 - margin_ratio", "1 - beta",
    )  # fmt: skip
    return {"within_class": -0.5} | dict.fromkeys(slow, -1.0)


def limits(class_sizes: ArrayLike, dim: int) -> dict[str, float]:
    """What Figure 2's quantities tend to along a generic flow, for `dim >= K - 1`.

    All to 0 for equal class sizes. For unequal ones the limit is the SELI geometry
    (`fastnc.theory.seli`), in which the norms of classes differ, their angles are not those of a
    simplex, and features and classifier are not dual: their quantities do not vanish. For any sizes
    `within_class` vanishes as (log t)^-1/2 (for `dim = K - 1` as a power of t, see `exponents`),
    and `1 - margin_ratio`, `1 - beta` and the distances to SELI as 1 / log t.

    Raises
    ------
    ValueError
        A class without a sample, or `dim < K - 1`, whose limit is not known.
    """
    counts = arrays.check_labels(class_sizes, None, None, "class_sizes", "").astype(np.int64)
    K = len(counts)
    if K < 2:
        raise ValueError(f"`class_sizes` must be of at least 2 classes; got {counts.tolist()}.")
    dim = arrays.check_count("dim", dim, 1)
    if counts.min() < 1 or dim < K - 1:
        raise ValueError(
            f"every class must have a sample and `dim` must be at least {K - 1}; got class sizes "
            f"{counts.tolist()} and dim={dim}."
        )
    V, L, U = encoded_labels(counts)
    W = V * np.sqrt(L)
    means = (U * np.sqrt(L)) / np.sqrt(counts)[:, None]
    return {
        "equinorm_features": equinorm(means),
        "equinorm_classifier": equinorm(W),
        "within_class": 0.0,
        "equiangular_features": equiangular(means),
        "equiangular_classifier": equiangular(W),
        "self_duality": self_duality(W, means),
    }


@dataclass(frozen=True)
class Constants:
    """Limits of the scaled columns as t grows; a is the logit gap, the margin at late times."""

    within_class: float  # within_class * sqrt(a)
    margin_deficit: float  # (1 - margin_ratio) * a, and twice (1 - beta) * a
    equinorm: float  # equinorm_features * a and equinorm_classifier * a
    smallest_singular_value: float  # of W_c + sqrt(n) M_c: if it is small, the rates begin late


@serial
def aligned_singular_values(W: Any, H: Any, y: Any) -> Floats:
    """The K - 1 largest singular values of `W_c + sqrt(n) M_c`, descending.

    The flow amplifies this combination of W and H, and shrinks `W_c - sqrt(n) M_c`. If a singular
    value is small, a low-rank KKT point of (5) is close, near which the flow stays for a long log
    time before the rates of `exponents` show. For unequal class sizes
    `sqrt(n) M_c` becomes `(I - 11^T/K) diag(sqrt n_k) M`.

    Parameters, Raises: as `margins`.
    """
    W64, H64, labels = arrays.checked_problem(W, H, y)
    K = len(W64)
    counts = np.bincount(labels, minlength=K)
    sums = np.zeros_like(W64)
    np.add.at(sums, labels, H64)
    total = W64 + sums / np.sqrt(np.maximum(counts, 1))[:, None]
    values = np.linalg.svd(total - total.mean(axis=0), compute_uv=False)[: K - 1]
    # With fewer features than K - 1 the missing singular values are 0.
    return np.pad(values, (0, K - 1 - len(values)))


@serial
def constants(W: Any, H: Any, y: Any) -> Constants:
    """The constants of the rates, from a state of a flow at `log t >= 6` or so.

    With U (K, d) the polar factor of W_c, d_i the part of `h_i - m_{y_i}` and g_perp that of the
    mean g orthogonal to U's rows, and `r = 1 - 1/K`,

        within_class sqrt(a)      -> mean |d_i| n^(1/4) / sqrt(r)
        (1 - margin_ratio) a      -> (K |wbar|^2 + N |g_perp|^2 + sum |d_i|^2) / (2 sqrt(n) (K-1))
        equinorm a                -> Std(F_kk) / (4 sqrt(n) r)

    where `F = U (W^T W - H^T H - K wbar wbar^T) U^T`. All quantities in them are conserved or
    become constant.

    Raises
    ------
    TypeError, ValueError
        As `margins`; also class sizes that are not equal.
    """
    W64, H64, labels = arrays.checked_problem(W, H, y)
    K, N = len(W64), len(H64)
    counts = np.bincount(labels, minlength=K)
    if not (counts == counts[0]).all():
        raise ValueError(f"the classes must have equal sizes; got {counts.tolist()}.")
    n, r = N / K, 1.0 - 1.0 / K
    wbar = W64.mean(axis=0)
    left, _, right = np.linalg.svd(W64 - wbar, full_matrices=False)
    basis = right[: K - 1]
    U = left[:, : K - 1] @ basis
    means = class_means(H64, labels)
    mean = means.mean(axis=0)
    within = H64 - means[labels]
    frozen = within - (within @ basis.T) @ basis
    mean_frozen = mean - (mean @ basis.T) @ basis
    lengths = np.linalg.norm(frozen, axis=1)
    gram = W64.T @ W64 - H64.T @ H64 - K * np.outer(wbar, wbar)
    F = np.einsum("ka,ab,kb->k", U, gram, U)
    missing = K * (wbar @ wbar) + N * (mean_frozen @ mean_frozen) + (lengths**2).sum()
    return Constants(
        within_class=float(lengths.mean() * n**0.25 / math.sqrt(r)),
        margin_deficit=float(missing / (2.0 * math.sqrt(n) * (K - 1))),
        equinorm=float(F.std() / (4.0 * math.sqrt(n) * r)),
        smallest_singular_value=float(aligned_singular_values(W64, H64, labels)[-1]),
    )


def fitted_exponent(log10_time: ArrayLike, column: ArrayLike, low: float, high: float) -> float:
    """The least-squares slope of log(column) over log(log t), for log10 t in low..high."""
    given = {"log10_time": log10_time, "column": column}
    times, values = (arrays.copied(name, x) for name, x in given.items())
    for name, x in (("log10_time", times), ("column", values)):
        if x.dtype.kind not in "fiu" or x.shape != (times.size,):
            raise TypeError(f"`{name}` must be one number a snapshot; got {x.dtype} {x.shape}.")
    low = arrays.check_finite_number("low", low)
    high = arrays.check_finite_number("high", high)
    times, values = times.astype(np.float64), values.astype(np.float64)
    # log log t is defined for t > 1 only.
    chosen = (
        (times > 0.0)
        & (times >= low * (1.0 - 1e-9))
        & (times <= high * (1.0 + 1e-9))
        & (values > 0.0)
    )
    if chosen.sum() < 3:
        raise ValueError(
            f"a slope needs at least 3 snapshots between log10 t = {low:g} and {high:g}; got "
            f"{int(chosen.sum())}. Run for longer, or take more `snapshots`."
        )
    return float(np.polyfit(np.log(times[chosen]), np.log(values[chosen]), 1)[0])
