"""Gradient flow from an aligned start, in closed form.

Aligned start: `W = u U`, `H = v Y U + Delta`, where the rows of U (K, d) are an ETF with
`U U^T = C = I - 11^T/K`, row i of `Y U` is U's row y_i, and Delta is orthogonal to U's rows with
equal class means. Then `Delta` is constant, `c0 = u^2 - n v^2` is conserved, and the logit gap
`a = u v` obeys, for the sum loss (divide by N for the mean),

    da/dt = K R(a) / (e^a + K - 1),      R(a) = sqrt(c0^2 + 4 n a^2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.optimize import brentq

from fastnc._core import arrays
from fastnc.reference import simplex_etf

Floats = NDArray[np.float64]
# Of u and v, and of the first logit gap u v.
LARGEST, SMALLEST = 1e150, 1e-300


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
        arrays.keep_checked(self, arrays.check_count, "n_classes", least=2)
        arrays.keep_checked(self, arrays.check_count, "n_per_class", least=1)
        arrays.keep_checked(self, arrays.check_positive, "u", "v")
        if max(self.u, self.v) > LARGEST or self.u * self.v < SMALLEST:
            raise ValueError(
                f"`u` and `v` must be at most {LARGEST:g} and have a product of at least "
                f"{SMALLEST:g}, or their squares are no floats; got {self.u} and {self.v}."
            )

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
        gap = arrays.check_finite_number("gap", gap)
        start, K, n = self.u * self.v, self.n_classes, self.n_per_class
        width = gap - start
        if width <= 0.0:
            return -math.inf
        total = 0.0
        # (e^s - 1) / R(s) is bounded however close to 0 the gap begins; as e^-w (1 - e^-s) it falls
        # like e^-w, and the pieces keep the adaptive rule from missing that.
        for low, high in ((0.0, 1.0), (1.0, 8.0), (8.0, 45.0)):
            if low < width:
                total += quad(
                    lambda w: self._rest(w, max(gap - w, start)),
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
            total += K * math.exp(-gap) * spread
        return gap + math.log(n * total)

    def _rest(self, w: float, gap: float) -> float:
        """`e^-w (1 - e^-s) / R(s)` at s = gap."""
        return -math.exp(-w) * math.expm1(-gap) / self.radius(gap)

    def gap(self, log_time: float) -> float:
        """The logit gap a at a time, by inverting `log_time` up to rounding."""
        start = self.u * self.v
        if log_time == -math.inf:
            return start
        log_time = arrays.check_finite_number("log_time", log_time)
        # From a start of 1e-60 on, by doubling: a bracket over 60 decades would never close.
        low, width = start, min(start, 1.0)
        while self.log_time(start + width) < log_time:
            low, width = start + width, 2.0 * width
        return float(
            brentq(
                lambda a: self.log_time(a) - log_time, low, start + width, xtol=1e-300, rtol=1e-15
            )
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
        if arrays.check_count("dim", dim, 1) < K - 1:
            raise ValueError(f"`dim` must be at least n_classes - 1 = {K - 1}; got {dim}.")
        left = np.linalg.svd(simplex_etf(K))[0][:, : K - 1]
        U = np.zeros((K, dim))
        U[:, : K - 1] = left
        u, v = self.scales(log_time)
        H = v * np.repeat(U, n, axis=0)
        if frozen is not None:
            frozen = arrays.real_numbers("frozen", frozen)
            if frozen.shape != (n * K, dim - K + 1):
                raise ValueError(
                    f"`frozen` must have shape {(n * K, dim - K + 1)}; got {frozen.shape}."
                )
            means = frozen.reshape(K, n, -1).mean(axis=1)
            if np.abs(means - means[0]).max() > 1e-12 * (1.0 + np.abs(frozen).max()):
                raise ValueError("`frozen` must have the same mean in every class.")
            H[:, K - 1 :] = frozen
        return u * U, H
