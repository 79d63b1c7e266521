"""Radau IIA of order 5, Hairer & Wanner, "Solving Ordinary Differential Equations II", IV.8.

A collocation method of three stages for `theta' = f(x, theta)`, L-stable. Beside f it needs
solves with `sigma I - J`, J the Jacobian of f, for one real sigma and one complex one. With the
stages' increments `Z_i = theta(x + c_i h) - theta(x)` a step of size h is

    Z = h A F(Z),      theta_1 = theta_0 + Z_3      (c_3 = 1),

a system of 3n unknowns, solved by simplified Newton iterations. The eigenvectors of `A^-1` split it
into one real system of n unknowns and one complex one, so that three stages cost little more than
one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
# What is integrated: an array, or a tensor of a device.
Vector = Any

# The nodes, and the weights that follow from them: A integrates 1, x and x^2 exactly.
_C = np.array([(4.0 - 6.0**0.5) / 10.0, (4.0 + 6.0**0.5) / 10.0, 1.0])
_POWERS = np.vander(_C, 3, increasing=True)
_A = (_C[:, None] ** (1, 2, 3) / (1, 2, 3)) @ np.linalg.inv(_POWERS)
_values, _vectors = np.linalg.eig(np.linalg.inv(_A))
_real, _complex = int(np.argmin(abs(_values.imag))), int(np.argmax(_values.imag))
# A^-1 = V diag(mu, nu, conj nu) V^-1: the third column and row are conjugates of the second.
_MU, _NU = float(_values[_real].real), complex(_values[_complex])
_V0, _V1 = _vectors[:, _real].real, _vectors[:, _complex]
# Z = T (w, Re z, Im z), the first row of the transformed increments real, the second complex.
_T = np.stack([_V0, 2.0 * _V1.real, -2.0 * _V1.imag], axis=1)
_T_INVERSE = np.linalg.inv(_T)
# A^-1 between them: mu, and nu as it multiplies (Re z, Im z).
_BLOCKS = np.array([[_MU, 0.0, 0.0], [0.0, _NU.real, -_NU.imag], [0.0, _NU.imag, _NU.real]])
# The error: minus the embedded formula of order 3 that has f(x) with weight 1 / mu besides.
_ERROR = -np.linalg.inv(_POWERS)[0] @ np.linalg.inv(_A)

# f at the end of a step, which is a node, times h.
_SLOPE = np.linalg.inv(_A)[2]

# Coefficients of x, x^2, x^3 of the polynomial of a step, from its increments.
_THROUGH_STAGES = np.linalg.inv(_C[:, None] ** (1, 2, 3))

_MAX_ITERATIONS = 6
_LEAST_FACTOR, _MOST_FACTOR = 0.2, 10.0
# A step that would grow by less keeps its size and its factorisation.
_WORTH_A_FACTORISATION = 1.2
# Factors of a step that differs by less are used as they are: Newton's rate is what that costs.
_SAME_STEP = 0.02


class Factors(Protocol):
    """`sigma I - J`, ready to be solved with."""

    def solve(self, right: Vector) -> Vector:
        """The unknowns, NaN where there are none.

        Both have a row of real parts and, if sigma is complex, one of imaginary parts.
        """


def joined(rows: Array) -> Array:
    """One row as it is; of two, real and imaginary parts, the complex numbers."""
    return np.asarray(rows[0] if len(rows) == 1 else rows[0] + 1j * rows[1])


def parted(x: Array) -> Array:
    """The rows of which `joined` makes `x`."""
    return np.stack([x.real, x.imag]) if np.iscomplexobj(x) else x[None]


class Vectors(Protocol):
    """The operations on vectors of the unknowns, in host or device memory."""

    def placed(self, array: Array) -> Vector:
        """A vector of an array."""

    def fetched(self, vector: Vector) -> Array:
        """The array of a vector."""

    def zeros(self, rows: int, like: Vector) -> Vector:
        """So many vectors of 0."""

    def combined(self, weights: Array, rows: Vector) -> Vector:
        """`weights @ rows`: combinations of three vectors."""

    def larger(self, a: Vector, b: Vector) -> Vector:
        """The larger of each two entries."""

    def rms(self, x: Vector) -> float:
        """The root of the mean square."""


class OnTheHost:
    """Vectors that are NumPy arrays."""

    def placed(self, array: Array) -> Array:
        """Itself."""
        return array

    def fetched(self, vector: Array) -> Array:
        """Itself."""
        return vector

    def zeros(self, rows: int, like: Array) -> Array:
        """Rows of 0."""
        return np.zeros((rows, len(like)))

    def combined(self, weights: Array, rows: Array) -> Array:
        """`weights @ rows`."""
        return np.asarray(weights @ rows)

    def larger(self, a: Array, b: Array) -> Array:
        """The larger of each two entries."""
        return np.maximum(a, b)

    def rms(self, x: Array) -> float:
        """By a scalar product."""
        return math.sqrt(float(np.vdot(x, x)) / x.size)


class Equation(Protocol):
    """What is integrated."""

    vectors: Vectors

    def derivative(self, x: float, theta: Array) -> Array:
        """f(x, theta)."""

    def jacobian(self, x: float, theta: Array) -> Any:
        """J at (x, theta), in a form that `factorise` knows."""

    def factorise(self, jacobian: Any, sigma: complex) -> Factors:
        """`sigma I - J`."""


@dataclass
class RadauState:
    """The state of an integration, from which it goes on with the same bits."""

    x: float
    theta: Vector  # (n,)
    slope: Vector  # (n,), f(x, theta)
    step: float  # to try next
    last_step: float  # the last accepted one, 0 before
    last_error: float  # its error in units of the tolerance
    stages: Vector  # (3, n), its increments, by which the next Newton iteration starts
    jacobian_x: float  # where the Jacobian was formed
    jacobian_theta: Vector  # (n,)
    factored_step: float  # the step for which `sigma I - J` was factorised, 0 for none

    def arrays(self, vectors: Vectors) -> dict[str, Array]:
        """Copies of all fields, by their names."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: np.array(x if isinstance(x, float) else vectors.fetched(x))
            for name, x in found.items()
        }

    @classmethod
    def of(cls, arrays: dict[str, Array], vectors: Vectors) -> RadauState:
        """The state of `arrays()`."""
        given = {field.name: arrays[field.name] for field in fields(cls)}
        values: dict[str, Any] = {
            k: vectors.placed(np.array(v)) if v.ndim else float(v) for k, v in given.items()
        }
        return cls(**values)


class StepFailed(ArithmeticError):
    """No step is small enough to be accepted."""


class Radau:
    """The method for one equation, from `x` and `theta` on.

    The error of a step in entry i is at most about `rtol * |theta_i| + atol`.
    """

    def __init__(
        self, equation: Equation, x: float, theta: Array, rtol: float, atol: float
    ) -> None:
        self.equation, self.rtol, self.atol = equation, rtol, atol
        self.vectors = equation.vectors
        # More digits than the error of a step are a waste, and below the rounding of an entry of
        # theta, some hundred ulp in a Newton residual, the iteration never ends.
        eps = float(np.finfo(np.float64).eps)
        self.newton_tol = max(1e3 * eps / rtol, min(0.03, rtol**0.5))
        slope = equation.derivative(x, theta)
        self.state = RadauState(
            x, theta, slope, self._first_step(x, theta, slope), 0.0, 0.0,
            self.vectors.zeros(3, theta), x, theta, 0.0,
        )  # fmt: skip
        self._jacobian: Any = equation.jacobian(x, theta)
        self._factors: tuple[Factors, Factors] | None = None

    def restore(self, arrays: dict[str, Array]) -> None:
        """Go on from `state.arrays()` of a method of the same equation."""
        self.state = s = RadauState.of(arrays, self.vectors)
        self._jacobian = self.equation.jacobian(s.jacobian_x, s.jacobian_theta)
        self._factors = self._factorised(s.factored_step) if s.factored_step else None

    def step(self, bound: float) -> None:
        """One step, not beyond `bound`; the steps to it are of equal size.

        Raises
        ------
        StepFailed
            The step has shrunk to the spacing of the floating-point numbers at x.
        """
        s = self.state
        rejected = False
        while True:
            if not s.step >= 10.0 * math.ulp(s.x):
                raise StepFailed("the step has shrunk to nothing")
            left = max(1, math.ceil((bound - s.x) / s.step - _SAME_STEP))
            h = (bound - s.x) / left
            found = self._collocate(h)
            if found is None:
                s.step, s.factored_step = 0.5 * h, 0.0
                continue
            Z, iterations, rate = found
            theta = s.theta + Z[2]
            error = self._error(h, Z, theta, rejected)
            safety = 0.9 * (2 * _MAX_ITERATIONS + 1) / (2 * _MAX_ITERATIONS + iterations)
            factor = safety * self._predicted(h, error)
            if error <= 1.0:
                break
            rejected = True
            s.step, s.factored_step = h * max(_LEAST_FACTOR, factor), 0.0
        s.x = bound if left == 1 else s.x + h
        # As the increments have it: what Newton's iteration leaves is no error that counts here.
        s.theta, s.slope = theta, self.vectors.combined(_SLOPE, Z) / h
        s.stages, s.last_step, s.last_error = Z, h, error
        # Slow convergence means an old Jacobian; a larger step needs new factors in any case.
        if iterations > 2 and rate > 1e-3:
            self._renew()
        elif factor < _WORTH_A_FACTORISATION:
            factor = 1.0
        s.step = h * min(_MOST_FACTOR, factor)

    def _renew(self) -> None:
        """Form the Jacobian at the current point."""
        s = self.state
        s.jacobian_x, s.jacobian_theta, s.factored_step = s.x, s.theta, 0.0
        self._jacobian = self.equation.jacobian(s.x, s.theta)

    def _factorised(self, h: float) -> tuple[Factors, Factors]:
        self.state.factored_step = h
        J = self._jacobian
        return self.equation.factorise(J, _MU / h), self.equation.factorise(J, _NU / h)

    def _collocate(self, h: float) -> tuple[Array, int, float] | None:
        """The increments Z (3, n) of a step h, how many iterations they took and at which rate."""
        s = self.state
        while True:
            if not abs(h - s.factored_step) <= _SAME_STEP * h:
                self._factors = self._factorised(h)
            found = self._newton(h)
            if found is not None or s.jacobian_x == s.x:
                return found
            self._renew()

    def _newton(self, h: float) -> tuple[Array, int, float] | None:
        """Simplified Newton iterations, or None where they do not converge."""
        s, combined = self.state, self.vectors.combined
        assert self._factors is not None
        solve_real, solve_complex = (factors.solve for factors in self._factors)
        unit = 1.0 / (self.rtol * abs(s.theta) + self.atol)
        Z, change, rate = self._extrapolated(h), 0.0, 0.0
        # The derivatives at the stages, later the change of w, and w: one product makes of both
        # the right-hand sides.
        rows = self.vectors.zeros(6, s.theta)
        F, w = rows[:3], rows[3:]
        w += combined(_T_INVERSE, Z)
        weights = np.concatenate([_T_INVERSE, -_BLOCKS / h], axis=1)
        for k in range(1, _MAX_ITERATIONS + 1):
            for i in range(3):
                F[i] = self.equation.derivative(s.x + _C[i] * h, s.theta + Z[i])
            right = combined(weights, rows)
            F[:1], F[1:] = solve_real(right[:1]), solve_complex(right[1:])
            before, change = change, self.vectors.rms(F * unit)
            if not math.isfinite(change):
                return None
            if k > 1:
                rate = change / before
                left = _MAX_ITERATIONS - k
                if rate >= 1.0 or rate**left / (1.0 - rate) * change > self.newton_tol:
                    return None
            w += F
            Z = combined(_T, w)
            if change == 0.0 or (k > 1 and rate / (1.0 - rate) * change < self.newton_tol):
                return Z, k, rate
        return None

    def _extrapolated(self, h: float) -> Vector:
        """The start of Newton's iteration: the polynomial of the step before, extrapolated."""
        s = self.state
        if s.last_step == 0.0:
            return self.vectors.zeros(3, s.theta)
        # Of degree 3, 0 at the start of that step and Z_i at its nodes.
        nodes = 1.0 + _C * (h / s.last_step)
        weights = (nodes[:, None] ** (1, 2, 3)) @ _THROUGH_STAGES
        return self.vectors.combined(weights, s.stages) - s.stages[2]

    def _error(self, h: float, Z: Array, theta: Array, rejected: bool) -> float:
        """The error of a step in units of the tolerance."""
        s = self.state
        assert self._factors is not None
        solve, part = self._factors[0].solve, self.vectors.combined(_ERROR, Z) / h
        scale = self.rtol * self.vectors.larger(abs(s.theta), abs(theta)) + self.atol
        error = solve((s.slope + part)[None])[0]
        size = self.vectors.rms(error / scale)
        if size > 1.0 and (rejected or s.last_step == 0.0):
            # A second pass through J keeps the estimate of a stiff component from being too large.
            slope = self.equation.derivative(s.x, s.theta + error)
            error = solve((slope + part)[None])[0]
            size = self.vectors.rms(error / scale)
        return size if math.isfinite(size) else math.inf

    def _predicted(self, h: float, error: float) -> float:
        """Gustafsson's controller: by which factor the next step should differ from h."""
        s = self.state
        if error == 0.0:
            return math.inf
        plain = float(error**-0.25)
        if s.last_step == 0.0 or s.last_error == 0.0:
            return plain
        ratio = float(s.last_error / error)
        return plain * min(1.0, h / s.last_step * math.sqrt(math.sqrt(ratio)))

    def _first_step(self, x: float, theta: Array, slope: Array) -> float:
        """A step whose explicit Euler step is 1 % of theta (II.4, for order 5)."""
        scale, rms = self.rtol * abs(theta) + self.atol, self.vectors.rms
        size, speed = rms(theta / scale), rms(slope / scale)
        # At x = 7.3 e^sinh(x) is no float any more: a start of a large margin hardly moves, and its
        # guess would be further than that.
        guess = 1e-6 if min(size, speed) < 1e-5 else min(0.01 * size / speed, 6.0)
        ahead = self.equation.derivative(x + guess, theta + guess * slope)
        bend = rms((ahead - slope) / scale) / guess
        largest = max(speed, bend)
        second = max(1e-6, 1e-3 * guess) if largest <= 1e-15 else (0.01 / largest) ** 0.25
        return min(100.0 * guess, second)
