"""Gradient flow as an equation for the integrator: its right-hand side and its Jacobian.

With the mean loss L and the weight decays l_W, l_H, 0 for the unconstrained model, the flow is
`dW/dt = -dL/dW - l_W W`, `dH/dt = -dL/dH - l_H H`. The independent variable is
`x = asinh(log(1 + t))` (`fastnc.dynamics.flow` says why), in which

    dW/dx = -b (dL/dW) / L - t' l_W W,     t' = dt/dx = cosh(x) exp(sinh(x)),     b = t' L,

and H alike. b is formed of logarithms; the Jacobian is minus `b Hess L / L` less the decays.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastnc.dynamics.integrator.newton import DirectSolver, FlowJacobian, KrylovSolver
from fastnc.dynamics.integrator.radau import OnTheHost, Vectors
from fastnc.theory.residuals import Residuals

Array = NDArray[Any]

# Up to this K N d the gradient takes at most a few milliseconds on one thread, less than the wait
# for a second one on a busy machine.
_SMALL = 10_000_000


class Decays(NamedTuple):
    """The weight decays of W and of H."""

    W: float = 0.0
    H: float = 0.0


class FlowEquation:
    """The flow with labels `y`, for W (K, d) and the N rows of H in one vector."""

    def __init__(
        self,
        shape: tuple[int, int],
        y: NDArray[np.int64],
        solver: str,
        decays: Decays = Decays(),  # noqa: B008  (it has no state)
    ) -> None:
        self.shape, self.y, self.solver, self.decays = shape, y, solver, decays
        self.N = len(y)
        self.is_small = self.N * shape[0] * shape[1] <= _SMALL
        self.vectors: Vectors = OnTheHost()
        self.work = {"steps": 0, "evaluations": 0, "jacobians": 0, "factorisations": 0}

    def split(self, theta: Any) -> tuple[Any, Any]:
        """W (K, d) and H (N, d)."""
        K, d = self.shape
        return theta[: K * d].reshape(K, d), theta[K * d :].reshape(-1, d)

    def derivative(self, x: float, theta: Array) -> Array:
        """d theta / dx."""
        from fastnc.kernels.cpu import cross_entropy as cross_entropy_cpu
        from fastnc.kernels.cpu import flow as flow_cpu

        self.work["evaluations"] += 1
        out = np.empty_like(theta)
        if self.is_small:
            log_factor = math.log(math.cosh(x)) + math.sinh(x) - math.log(self.N)
            flow_cpu.derivative(theta, *self.shape, self.y, log_factor, out)
        else:
            log_loss = np.empty(1)
            arrays = *self.split(theta), self.y, log_loss, *self.split(out)
            cross_entropy_cpu.log_loss_and_grads(*arrays)
            out *= -self._speed(x, float(log_loss[0]))
        self._pull(x, theta, out)
        return out

    def jacobian(self, x: float, theta: Array) -> FlowJacobian:
        """The Jacobian of `derivative`."""
        self.work["jacobians"] += 1
        at = Residuals(*self.split(theta.copy()), self.y)
        return FlowJacobian(at, self._speed(x, at.log_loss), *self._pulls(x))

    def factorise(self, jacobian: FlowJacobian, sigma: complex) -> DirectSolver | KrylovSolver:
        """`sigma I - J`."""
        self.work["factorisations"] += 1
        make = DirectSolver if self.solver == "direct" else KrylovSolver
        return make(jacobian, sigma)

    def mean_log_loss(self, theta: Array) -> float:
        """log of the mean loss."""
        return Residuals(*self.split(theta), self.y).log_loss - math.log(self.N)

    def _speed(self, x: float, log_loss: float) -> float:
        """b, of the logarithm of the summed loss: about log t / |theta|^2, never extreme."""
        # NumPy's exponential overflows to infinity where math's raises.
        return float(math.cosh(x) * np.exp(math.sinh(x) + log_loss - math.log(self.N)))

    def _pull(self, x: float, theta: Any, out: Any) -> None:
        """Add what the decays make of `theta` to its derivative."""
        if self.decays != (0.0, 0.0):
            cut = self.shape[0] * self.shape[1]
            pull_W, pull_H = self._pulls(x)
            out[:cut] -= pull_W * theta[:cut]
            out[cut:] -= pull_H * theta[cut:]

    def _pulls(self, x: float) -> tuple[float, float]:
        """`t' l_W` and `t' l_H`."""
        if self.decays == (0.0, 0.0):
            return 0.0, 0.0
        speed = float(math.cosh(x) * np.exp(math.sinh(x)))
        return speed * self.decays.W, speed * self.decays.H
