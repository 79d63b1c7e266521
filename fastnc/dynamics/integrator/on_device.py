"""The flow on a CUDA device: vectors, right-hand side, Hessian products and MINRES of tensors.

As `equation` and `newton` in NumPy. The kernels compute the right-hand side, in float64; torch
computes products with the Hessian over the loss, six products of matrices each. Only scalars are
fetched: the norms that end an iteration.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastnc._core.cuda import on_device_of
from fastnc.dynamics.integrator.equation import Decays, FlowEquation
from fastnc.dynamics.integrator.newton import ERROR, MOST_PRODUCTS

Array = NDArray[Any]


class OnTheDevice:
    """Vectors that are float64 tensors of a device."""

    def __init__(self, device: Any) -> None:
        self.device = device

    def placed(self, array: Array) -> Tensor:
        """A copy on the device."""
        return torch.from_numpy(np.array(array, dtype=np.float64)).to(self.device)

    def fetched(self, vector: Tensor) -> Array:
        """A copy on the host."""
        return np.array(vector.cpu().numpy())

    def zeros(self, rows: int, like: Tensor) -> Tensor:
        """Rows of 0."""
        return like.new_zeros((rows, len(like)))

    def combined(self, weights: Array, rows: Tensor) -> Tensor:
        """`weights @ rows`."""
        return self.placed(weights) @ rows

    def larger(self, a: Tensor, b: Tensor) -> Tensor:
        """The larger of each two entries."""
        return torch.maximum(a, b)

    def rms(self, x: Tensor) -> float:
        """One number is fetched."""
        return float(x.norm()) / math.sqrt(x.numel())


class Residuals:
    """Residuals and softmax weights of tensors, as `theory.residuals` has them of arrays."""

    def __init__(self, W: Tensor, H: Tensor, y: Tensor) -> None:
        self.W, self.H, self.label = W, H, y[:, None]
        gaps = H @ W.T
        gaps = (gaps - gaps.gather(1, self.label)).scatter_(1, self.label, -math.inf)
        m = gaps.amax(1, keepdim=True)
        unit = m.max().clamp(max=0.0)
        s = torch.where(m > 0.0, m, unit)
        r = torch.exp(gaps - s)
        S = r.sum(1, keepdim=True)
        # In units of e^s: a common one where a sample is separated, else its own.
        x = torch.exp(unit) * S
        den = torch.where(m > 0.0, torch.exp(-s) + S, 1.0 + x)
        ratio = torch.where(x > 1e-30, torch.log1p(x) / x, 1.0)
        losses = torch.where(m > 0.0, s + torch.log(den), S * ratio)
        own = torch.where(m > 0.0, torch.exp(-s), 1.0) / den
        total = losses.sum()
        r = r / den
        self.log_loss = unit + torch.log(total)
        self.weights = (r * torch.exp(unit)).scatter_(1, self.label, own)
        self.likely = self.weights.argmax(1, keepdim=True)
        self.scaled = r / total
        self.residuals = self.scaled.scatter(1, self.label, -S / den / total)

    def hessian_product(self, x: Tensor) -> Tensor:
        """The Hessian of (4), divided by the loss, times a direction: exact at any margin."""
        (K, d), N = self.W.shape, len(self.H)
        dW, dH = x[: K * d].view(K, d), x[K * d :].view(N, d)
        dZ = dH @ self.W.T
        dZ.addmm_(self.H, dW.T)
        # To the most likely class, so that nothing cancels there.
        dZ -= dZ.gather(1, self.likely)
        by_others = (self.scaled * dZ).sum(1, keepdim=True)
        dZ -= (self.weights * dZ).sum(1, keepdim=True)
        # By the others where the label is most likely: the mean may underflow, and over the loss
        # it does not. Where another class is, the loss is at least log 2.
        own = dZ.gather(1, self.label) * torch.exp(-self.log_loss.clamp(min=-1.0))
        rate = torch.where(self.likely == self.label, -by_others, own)
        at_label = self.weights.gather(1, self.label) * rate
        dr = (self.scaled * dZ).scatter_(1, self.label, at_label)
        out = torch.empty_like(x)
        torch.mm(dr.T, self.H, out=out[: K * d].view(K, d)).addmm_(self.residuals.T, dH)
        torch.mm(dr, self.W, out=out[K * d :].view(N, d)).addmm_(self.residuals, dW)
        return out


class DeviceJacobian(NamedTuple):
    """`J = -b Hess L / L - diag(pull_W, pull_H)` at a point."""

    at: Residuals
    b: Tensor
    pull_W: float
    pull_H: float

    def product(self, x: Tensor) -> Tensor:
        """`-J x` of a real or a complex vector."""
        if x.is_complex():
            return torch.complex(
                self.product(x.real.contiguous()), self.product(x.imag.contiguous())
            )
        out, cut = self.at.hessian_product(x) * self.b, self.at.W.numel()
        if self.pull_W or self.pull_H:
            out[:cut] += self.pull_W * x[:cut]
            out[cut:] += self.pull_H * x[cut:]
        return out


class DeviceSolver:
    """`sigma I - J` by Hessian products only, sigma real or complex."""

    def __init__(self, jacobian: DeviceJacobian, sigma: complex) -> None:
        self.jacobian, self.sigma = jacobian, sigma

    def solve(self, right: Tensor) -> Tensor:
        """The unknowns, as of `newton.KrylovSolver`; NaN where the iteration does not converge."""
        product = self.jacobian.product
        one = right[0] if len(right) == 1 else torch.complex(right[0], right[1])
        found = minimal_residual(product, complex(self.sigma), one, ERROR, MOST_PRODUCTS)
        if found is None:
            return torch.full_like(right, math.nan)
        return torch.view_as_real(found).T if found.is_complex() else found[None]


class DeviceEquation(FlowEquation):
    """The flow of W and H in one tensor of the device of the labels."""

    def __init__(self, shape: tuple[int, int], y: Array, device: Any, decays: Decays) -> None:
        super().__init__(shape, y, "krylov", decays)
        self.labels = torch.from_numpy(np.array(y)).to(device)
        self.vectors = OnTheDevice(device)

    def derivative(self, x: float, theta: Any) -> Any:
        """d theta / dx."""
        from fastnc.kernels.gpu.cross_entropy import log_loss_and_grads
        from fastnc.kernels.gpu.plan import EXACT

        self.work["evaluations"] += 1
        out, log_loss = torch.empty_like(theta), theta.new_empty(1)
        with on_device_of(theta):
            log_loss_and_grads(*self.split(theta), self.labels, log_loss, *self.split(out), EXACT)
        out *= -self._speed_of(x, log_loss[0])
        self._pull(x, theta, out)
        return out

    def jacobian(self, x: float, theta: Any) -> Any:
        """The Jacobian of `derivative`."""
        self.work["jacobians"] += 1
        at = Residuals(*self.split(theta.clone()), self.labels)
        return DeviceJacobian(at, self._speed_of(x, at.log_loss), *self._pulls(x))

    def factorise(self, jacobian: Any, sigma: complex) -> Any:
        """`sigma I - J`."""
        self.work["factorisations"] += 1
        return DeviceSolver(jacobian, sigma)

    def mean_log_loss(self, theta: Any) -> float:
        """log of the mean loss."""
        return float(Residuals(*self.split(theta), self.labels).log_loss) - math.log(self.N)

    def _speed_of(self, x: float, log_loss: Tensor) -> Tensor:
        """b, the flow's speed, from the logarithm of the summed loss."""
        return math.cosh(x) * (log_loss + (math.sinh(x) - math.log(self.N))).exp()


def minimal_residual(
    product: Callable[[Tensor], Tensor], sigma: complex, right: Tensor, tolerance: float, most: int
) -> Tensor | None:
    """`(sigma I + A) out = right` to a relative `tolerance`; None if `most` products are too few.

    A is real and symmetric, `product` multiplies by it. The method is described in
    `kernels.cpu.flow.minimal_residual`; with a real vector and a real sigma everything is real.
    """
    is_complex = right.is_complex()

    def of(z: complex) -> Any:
        return z if is_complex else z.real

    length = float(right.norm())
    out = torch.zeros_like(right)
    if length == 0.0:
        return out
    v, v_before = right / length, torch.zeros_like(right)
    p, p_before = torch.zeros_like(right), torch.zeros_like(right)
    upper1: complex
    beta, left = 0.0, complex(length)
    c, s, c_before, s_before = 1.0, 0j, 1.0, 0j
    for _ in range(most):
        u = product(v)
        along = torch.vdot(v, u).real
        u -= along * v + beta * v_before
        # Fetched together: the host waits for the device each time.
        alpha, beta_next = torch.stack([along, u.norm()]).tolist()
        # The column (beta, alpha + sigma, beta_next) under the two rotations before, and its own.
        upper2, upper1, diagonal = s_before * beta, c_before * beta, alpha + sigma
        upper1, diagonal = c * upper1 + s * diagonal, c * diagonal - s.conjugate() * upper1
        own = abs(diagonal)
        norm = math.hypot(own, beta_next)
        if not 0.0 < norm < math.inf:
            return None
        phase = diagonal / own if own > 0.0 else 1.0 + 0j
        c_before, s_before = c, s
        c, s = own / norm, phase * (beta_next / norm)
        new = (v - of(upper1) * p - of(upper2) * p_before) * of(1.0 / (phase * norm))
        p_before, p = p, new
        out += of(c * left) * new
        left *= -s.conjugate()
        if abs(left) <= tolerance * abs(sigma) * float(out.norm()):
            return out
        v_before, v, beta = v, u / beta_next, beta_next
    return None
