"""Example 3.1 of the paper: a KKT direction that is not collapse, and the way out of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastnc._core import arrays
from fastnc.models import ULPM

Floats = NDArray[np.float64]

_M = np.array([[1, -1, 0, 0], [-1, 1, 0, 0], [0, 0, 1, -1], [0, 0, -1, 1]], dtype=np.float64)
_V = np.array([1.0, 1.0, -1.0, -1.0])


@dataclass(frozen=True)
class Example31:
    """The point (7) for K = 4, n = 1, d = 4 with the *sum* loss: `W = H = C M`.

    Its gradient is parallel to the point, so that descent only scales it; it separates the classes,
    and one multiple of it is a KKT point of (5) with objective 4, where collapse has 3.

    Parameters
    ----------
    C : float > 0
        The scale of (7). `x = 2 C^2` is its margin.
    """

    C: float = 1.0

    def __post_init__(self) -> None:
        arrays.keep_checked(self, arrays.check_positive, "C")

    @property
    def model(self) -> ULPM:
        """The model of the example."""
        return ULPM(n_classes=4, n_per_class=1, dim=4)

    @property
    def W(self) -> Floats:
        """(7), (4, 4); `H` is equal to it."""
        return self.C * _M

    @property
    def H(self) -> Floats:
        """(7), (4, 4)."""
        return self.C * _M

    @property
    def y(self) -> NDArray[np.int64]:
        """The labels 0, 1, 2, 3."""
        return np.arange(4, dtype=np.int64)

    @property
    def x(self) -> float:
        """`2 C^2`, the margin, and the logit of every label."""
        return 2.0 * self.C * self.C

    @property
    def multipliers(self) -> Floats:
        """(8): one half between the two pairs. Multipliers of the KKT point at `C^2 = 1/2`."""
        return np.asarray(0.5 * np.kron(1.0 - np.eye(2), np.ones((2, 2))))

    @property
    def gradient(self) -> Floats:
        """(9) as it must read: `-2 C / (1 + e^x) M`, for W and for H.

        The paper prints the denominator `2 + 2 e^-x + 2 e^x` for `2 + e^-x + e^x`.
        """
        # In e^-x, which vanishes where e^x would overflow.
        down = math.exp(-self.x)
        return -2.0 * self.C * down / (1.0 + down) * _M

    @property
    def printed_gradient(self) -> Floats:
        """(9) as it is printed, to compare with."""
        down = math.exp(-self.x)
        return -self.C * (1.0 + down) * down / (1.0 + down + down * down) * _M

    @property
    def loss(self) -> float:
        """The sum loss at (7): `4 log(1 + 2 e^-x + e^-2x) = 8 log(1 + e^-x)`."""
        return 8.0 * math.log1p(math.exp(-self.x))

    @property
    def curvature(self) -> float:
        """The smallest eigenvalue of the Hessian on the sphere: `-2 (e^x - 1) / (e^x + 1)^2`."""
        down = math.exp(-self.x)
        return 2.0 * math.expm1(-self.x) * down / (1.0 + down) ** 2

    @property
    def escape(self) -> tuple[Floats, Floats]:
        """A unit direction (dW, dH) of that double eigenvalue: the pairs move apart, `v v^T`."""
        direction = np.outer(_V, _V) / math.sqrt(32.0)
        return direction, direction.copy()

    def path(self, t: float) -> tuple[Floats, Floats]:
        """The way out: `W' = H' = C / sqrt(1 + 2 t^2) (M + t v v^T)`, `v = (1, 1, -1, -1)`.

        The norm is that of (7), the loss falls strictly on 0 <= t <= 1/2, and t = 1/2 is the
        simplex ETF, the optimum of Theorem 3.3. It replaces (10), along which the loss rises for a
        small beta (see `printed_path`).
        """
        t = arrays.check_finite_number("t", t)
        point = self.C / math.sqrt(1.0 + 2.0 * t * t) * (_M + t * np.outer(_V, _V))
        return point, point.copy()

    def printed_path(self, beta: float) -> tuple[Floats, Floats]:
        """(10) as it is printed, with `alpha = -sqrt(1 - 2 beta^2)`, for -1/sqrt(2) < beta < 0.

        The norm is kept, but the loss *rises* while |beta| is below about `e^-x`, so that (11)
        does not follow; with C = 1 it is lower only for .1406 < |beta| < .674.
        """
        beta = arrays.check_finite_number("beta", beta)
        if not -1.0 / math.sqrt(2.0) < beta < 0.0:
            raise ValueError(f"`beta` must lie in -0.7071..0; got {beta!r}.")
        alpha = -math.sqrt(1.0 - 2.0 * beta * beta)
        block = np.array([[1.0, alpha], [alpha, 1.0]])
        point = np.block([[block, np.full((2, 2), beta)], [np.full((2, 2), beta), block]])
        return self.C * point, self.C * point
