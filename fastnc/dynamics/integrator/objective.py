"""Gradient flow of any smooth objective without a constraint, for problems of moderate size.

As in `equation`, with the same clock, `d theta / dx = -t' grad F(theta)`; but only the gradient of
F is known. The Jacobian is formed by differences of it, and factorised as a dense matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastnc.dynamics.integrator.radau import OnTheHost, Radau, Vectors, joined, parted
from fastnc.dynamics.integrator.stepper import FlowStepper
from fastnc.dynamics.snapshot import measure
from fastnc.models.deep_linear import DeepLinear

Array = NDArray[Any]

# The most unknowns: to form and factorise their Jacobian then takes a second each time.
MOST_UNKNOWNS = 2000
# With four points the rounding is 1e-13 of a gradient, the error h^4 / 30 of its fifth derivative.
_DIFFERENCE = 1e-3


class Unknowns(NamedTuple):
    """The unknowns of a model's flow: W, H, and further factors by name."""

    model: Any
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, model: Any, seed: int, W: Array, H: Array) -> tuple[Unknowns, Array]:
        """Those of a model, and their start: a bias at 0, layers between at the model's start."""
        named = {"W": W, "H": H}
        if isinstance(model, DeepLinear):
            named |= {f"W{i}": x for i, x in enumerate(model.start(seed)[1:-1], 1)}
        elif getattr(model, "has_bias", False):
            named["bias"] = np.zeros(model.n_classes)
        theta = np.concatenate([x.ravel() for x in named.values()])
        return cls(model, tuple(named), tuple(x.shape for x in named.values())), theta

    def split(self, theta: Array) -> dict[str, Array]:
        """The factors in one vector, by name."""
        cuts = np.cumsum([math.prod(shape) for shape in self.shapes])[:-1]
        parts = zip(self.names, np.split(theta, cuts), self.shapes, strict=True)
        return {name: part.reshape(shape) for name, part, shape in parts}

    def layers(self, theta: Array) -> tuple[Array, ...]:
        """H_1, W_1, ..., W_M of a deep model."""
        W, H, *between = self.split(theta).values()
        return (H, *between, W)

    def value_and_gradient(self, theta: Array) -> tuple[float, Array]:
        """The objective and its gradient as one vector."""
        if isinstance(self.model, DeepLinear):
            value, grads = self.model.value_and_gradients(self.layers(theta))
            found: Sequence[Array] = (grads[-1], *grads[:-1])
        else:
            now = self.split(theta)
            g = self.model.value_and_grads(now["W"], now["H"], now.get("bias"))
            value, found = g.value, [g.W, g.H, *([] if g.bias is None else [g.bias])]
        return value, np.concatenate([x.ravel() for x in found])


class DenseFactors:
    """`sigma I - J` as a factorised dense matrix."""

    def __init__(self, matrix: Array) -> None:
        from scipy.linalg import lu_factor

        self.factors = lu_factor(matrix, overwrite_a=True, check_finite=False)

    def solve(self, right: Array) -> Array:
        """The unknowns."""
        from scipy.linalg import lu_solve

        return parted(lu_solve(self.factors, joined(right), check_finite=False))


class ObjectiveEquation:
    """The flow of the objective of `unknowns`."""

    decays = (math.nan, math.nan)

    def __init__(self, unknowns: Unknowns) -> None:
        self.unknowns = unknowns
        self.vectors: Vectors = OnTheHost()
        self.is_small = True
        self.work = {"steps": 0, "evaluations": 0, "jacobians": 0, "factorisations": 0}

    def derivative(self, x: float, theta: Array) -> Array:
        """d theta / dx."""
        self.work["evaluations"] += 1
        return -_speed(x) * self.unknowns.value_and_gradient(theta)[1]

    def jacobian(self, x: float, theta: Array) -> Array:
        """Minus t' times the Hessian, by four differences of the gradient for each unknown."""
        self.work["jacobians"] += 1
        n, h = len(theta), _DIFFERENCE * max(1.0, float(np.abs(theta).max()))
        hessian = np.empty((n, n))
        for i in range(n):
            shifted = theta.copy()
            row = np.zeros(n)
            for steps, weight in ((-2, 1.0), (-1, -8.0), (1, 8.0), (2, -1.0)):
                shifted[i] = theta[i] + steps * h
                row += weight * self.unknowns.value_and_gradient(shifted)[1]
            hessian[i] = row / (12.0 * h)
        return -_speed(x) * 0.5 * (hessian + hessian.T)

    def factorise(self, jacobian: Array, sigma: complex) -> DenseFactors:
        """`sigma I - J`."""
        self.work["factorisations"] += 1
        return DenseFactors(sigma * np.eye(len(jacobian)) - jacobian)


class ObjectiveFlow(FlowStepper):
    """The flow of `unknowns` from theta; all else is as for the unconstrained model."""

    def __init__(self, unknowns: Unknowns, theta: Array, rtol: float) -> None:
        self.model, self.y, self.rtol = unknowns.model, unknowns.model.y, rtol
        self.unknowns = unknowns
        self.equation: Any = ObjectiveEquation(unknowns)
        step_rtol = max(rtol / 6.0, 1e-11)
        atol = 1e-2 * step_rtol * float(np.sqrt(np.mean(theta**2)))
        with self._guard():
            self.method = Radau(self.equation, 0.0, theta, step_rtol, atol)
        self._time = -math.inf
        self._tiny_steps, self._looked_at = 0, -math.inf

    @property
    def W(self) -> Array:
        """The classifier, or the last layer (K, d)."""
        return self._now()["W"].copy()

    @property
    def H(self) -> Array:
        """The features (N, d), the input of the last layer."""
        if isinstance(self.model, DeepLinear):
            return self.model.features(self.layers)
        return self._now()["H"].copy()

    @property
    def bias(self) -> Array | None:
        """The bias (K,), of a model that has one."""
        return self._now().get("bias")

    @property
    def layers(self) -> tuple[Array, ...]:
        """H_1, W_1, ..., W_M of a deep model, else nothing."""
        deep = isinstance(self.model, DeepLinear)
        return self.unknowns.layers(self.method.state.theta.copy()) if deep else ()

    def _now(self) -> dict[str, Array]:
        return self.unknowns.split(self.method.state.theta)

    def _too_coarse(self, x: float) -> str:
        return ""

    def _does_not_vanish(self) -> str:
        return ""

    def measure(self) -> dict[str, float]:
        """The columns of every run, and the objective."""
        with self._guard():
            row = measure(self.W, self.H, self.y, self.bias)
            theta = self.method.state.theta
            row["objective"] = self.unknowns.value_and_gradient(theta)[0]
            if isinstance(self.model, DeepLinear):
                row["balancedness"] = self.model.balancedness(self.layers)
        return row

    def report(self) -> dict[str, Any]:
        """The horizon reached and the work done."""
        return {"log10_time": self._time, "work": dict(self.equation.work)}


def _speed(x: float) -> float:
    """t' = dt/dx."""
    return float(math.cosh(x) * np.exp(math.sinh(x)))
