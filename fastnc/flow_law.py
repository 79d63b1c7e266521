"""What gradient flow does, in closed form: the exact law from an aligned start, and the rates.

Aligned start: `W = u U`, `H = v Y U + Delta`, where the rows of U (K, d) are an ETF with
`U U^T = C = I - 11^T/K`, row i of `Y U` is U's row y_i, and Delta is orthogonal to U's rows with
equal class means. Then `Delta` is frozen, `c0 = u^2 - n v^2` is conserved, and the logit gap
`a = u v` obeys, for the sum loss (divide by N for the mean),

    da/dt = K R(a) / (e^a + K - 1),      R(a) = sqrt(c0^2 + 4 n a^2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import quad
from scipy.optimize import brentq

from fastnc import _arrays
from fastnc.margin import checked
from fastnc.reference import class_means, simplex_etf

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class AlignedFlow:
    """The exact gradient flow of the *mean* loss from an aligned start, at any time.

    Parameters
    ----------
    n_classes, n_per_class : int
    u, v : float
        Scales of W and of H at t = 0: `W = u U`, `H = v Y U`.
    """

    n_classes: int
    n_per_class: int
    u: float
    v: float

    def __post_init__(self) -> None:
        _arrays.check_count("n_classes", self.n_classes, 2)
        _arrays.check_count("n_per_class", self.n_per_class, 1)
        if not self.u > 0.0 or not self.v > 0.0:
            raise ValueError(f"`u` and `v` must be positive; got u={self.u!r}, v={self.v!r}.")

    @property
    def conserved(self) -> float:
        """`c0 = u^2 - n v^2`."""
        return self.u**2 - self.n_per_class * self.v**2

    def radius(self, gap: float) -> float:
        """`R(a) = sqrt(c0^2 + 4 n a^2) = u^2 + n v^2`."""
        return math.hypot(self.conserved, 2.0 * math.sqrt(self.n_per_class) * gap)

    def log_time(self, gap: float) -> float:
        """log t at which the logit gap is `gap`: -inf at the start.

        `t = N / K int_{a0}^{a} (e^s + K - 1) / R(s) ds`; for c0 = 0 this is
        `N [Ei(a) - Ei(a0) + (K-1) log(a/a0)] / (2 K sqrt n)`. Formed relative to e^a, so that
        it holds at any gap.
        """
        start, K, n = self.u * self.v, self.n_classes, self.n_per_class
        width = gap - start
        if width <= 0.0:
            return -math.inf
        total = 0.0
        # The integrand falls like e^-w; the pieces keep the adaptive rule from missing it.
        for low, high in ((0.0, 1.0), (1.0, 8.0), (8.0, 45.0)):
            if low < width:
                total += quad(
                    lambda w: math.exp(-w) / self.radius(gap - w),
                    low, min(high, width), epsabs=0.0, epsrel=1e-13, limit=200,
                )[0]  # fmt: skip
        if gap < 745.0:
            root, c0 = 2.0 * math.sqrt(n), abs(self.conserved)
            # int ds / R(s), whose two forms meet at c0 = 0.
            spread = (
                math.log(gap / start)
                if c0 <= 1e-14 * self.radius(start)
                else math.asinh(root * gap / c0) - math.asinh(root * start / c0)
            ) / root
            total += (K - 1) * math.exp(-gap) * spread
        return gap + math.log(n * total)

    def gap(self, log_time: float) -> float:
        """The logit gap a at a time, by inverting `log_time` to rounding."""
        start = self.u * self.v
        if log_time == -math.inf:
            return start
        high = start + 1.0
        while self.log_time(high) < log_time:
            high = start + 2.0 * (high - start)
        return float(
            brentq(lambda a: self.log_time(a) - log_time, start, high, xtol=1e-300, rtol=1e-15)
        )

    def scales(self, log_time: float) -> tuple[float, float]:
        """u and v at a time."""
        a = self.gap(log_time)
        R, c0 = self.radius(a), self.conserved
        # The larger of the two without a cancellation, the other from a = u v.
        if c0 >= 0.0:
            u = math.sqrt(0.5 * (R + c0))
            return u, a / u
        v = math.sqrt(0.5 * (R - c0) / self.n_per_class)
        return a / v, v

    def log_loss(self, log_time: float) -> float:
        """log of the mean loss `log(1 + (K-1) e^-a)` at a time, finite at any."""
        log_ratio = math.log(self.n_classes - 1) - self.gap(log_time)
        return math.log(math.log1p(math.exp(log_ratio))) if log_ratio > -36.0 else log_ratio

    def point(self, dim: int, frozen: Floats | None = None, log_time: float = -math.inf) -> Any:
        """`(W, H)` (K, d), (N, d) at a time; `frozen` (N, d - K + 1) are the coordinates of Delta.

        U takes the first K - 1 coordinates. The class means of `frozen` must be equal.
        """
        K, n = self.n_classes, self.n_per_class
        if dim < K - 1:
            raise ValueError(f"`dim` must be at least n_classes - 1 = {K - 1}; got {dim}.")
        left = np.linalg.svd(simplex_etf(K))[0][:, : K - 1]
        U = np.zeros((K, dim))
        U[:, : K - 1] = left
        u, v = self.scales(log_time)
        H = v * np.repeat(U, n, axis=0)
        if frozen is not None:
            means = frozen.reshape(K, n, -1).mean(axis=1)
            if np.abs(means - means[0]).max() > 1e-12 * (1.0 + np.abs(frozen).max()):
                raise ValueError("`frozen` must have the same mean in every class.")
            H[:, K - 1 :] = frozen
        return u * U, H


def exponents(n_classes: int, dim: int) -> dict[str, float]:
    """Exponents of log t that every column of a generic flow tends to, for `d >= K`.

    `within_class` falls as (log t)^-1/2: the parts of h_i orthogonal to the classifier's span
    never move, and the rest grows like sqrt(log t). The paper's 1 / log t for it is what a run
    to log t = 13 looks like. Everything else, `1 - margin_ratio` and `1 - beta` among it, falls
    as 1 / log t.

    Raises
    ------
    ValueError
        `dim < n_classes`: with d = K-1 nothing is orthogonal, and `within_class` falls as
        `(t log t)^(-1 / (2K))`, a power of t.
    """
    if dim < n_classes:
        raise ValueError(
            f"`dim` must be at least n_classes = {n_classes} for these rates; got {dim}."
        )
    slow = (
        "equinorm_features", "equinorm_classifier", "equiangular_features",
        "equiangular_classifier", "self_duality", "1 - margin_ratio", "1 - beta",
    )  # fmt: skip
    return {"within_class": -0.5} | dict.fromkeys(slow, -1.0)


@dataclass(frozen=True)
class Constants:
    """Limits of the scaled columns as t grows; a is the logit gap, the margin at late times."""

    within_class: float  # within_class * sqrt(a)
    margin_deficit: float  # (1 - margin_ratio) * a, and twice (1 - beta) * a
    equinorm: float  # equinorm_features * a and equinorm_classifier * a
    smallest_singular_value: float  # of W_c + sqrt(n) M_c: small means a long way to these rates


def aligned_singular_values(W: Any, H: Any, y: Any) -> Floats:
    """The K - 1 largest singular values of `W_c + sqrt(n) M_c`, descending.

    The part of a start that the flow amplifies; it shrinks `W_c - sqrt(n) M_c`. A direction in
    which it is small has a low-rank KKT point of (5) for a neighbour, near which the flow lingers
    for a long log time before the rates of `exponents` show. For unequal class sizes
    `sqrt(n) M_c` becomes `(I - 11^T/K) diag(sqrt n_k) M`.

    Parameters, Raises: as `margins`.
    """
    W64, H64, labels = checked(W, H, y)
    K = len(W64)
    counts = np.bincount(labels, minlength=K)
    sums = np.zeros_like(W64)
    np.add.at(sums, labels, H64)
    total = W64 + sums / np.sqrt(np.maximum(counts, 1))[:, None]
    values = np.linalg.svd(total - total.mean(axis=0), compute_uv=False)[: K - 1]
    # With fewer features than K - 1 the missing directions have none.
    return np.pad(values, (0, K - 1 - len(values)))


def constants(W: Any, H: Any, y: Any) -> Constants:
    """The constants of the rates, from a state of a flow at `log t >= 6` or so.

    With U (K, d) the polar factor of W_c, d_i the part of `h_i - m_{y_i}` and g_perp that of the
    mean g orthogonal to U's rows, and `r = 1 - 1/K`,

        within_class sqrt(a)      -> mean |d_i| n^(1/4) / sqrt(r)
        (1 - margin_ratio) a      -> (K |wbar|^2 + N |g_perp|^2 + sum |d_i|^2) / (2 sqrt(n) (K-1))
        equinorm a                -> Std(F_kk) / (4 sqrt(n) r)

    where `F = U (W^T W - H^T H - K wbar wbar^T) U^T`. All that they are made of is conserved or
    freezes.

    Raises
    ------
    TypeError, ValueError
        As `margins`; also class sizes that are not equal.
    """
    W64, H64, labels = checked(W, H, y)
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
    times, values = np.asarray(log10_time, float), np.asarray(column, float)
    chosen = (times >= low * (1.0 - 1e-9)) & (times <= high * (1.0 + 1e-9)) & (values > 0.0)
    if chosen.sum() < 3:
        raise ValueError(
            f"a slope needs at least 3 snapshots between log10 t = {low:g} and {high:g}; got "
            f"{int(chosen.sum())}. Run for longer, or take more `snapshots`."
        )
    return float(np.polyfit(np.log(times[chosen]), np.log(values[chosen]), 1)[0])
