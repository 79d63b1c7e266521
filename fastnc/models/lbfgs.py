"""Smooth minimisation to the last digits: L-BFGS from scipy, and a truncated Newton polish."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds
from scipy.optimize import minimize as _scipy_minimize
from scipy.sparse.linalg import LinearOperator, minres

Floats = NDArray[np.float64]
ValueAndGrad = Callable[[Floats], tuple[float, Floats]]


class Minimum(NamedTuple):
    """The best point, its value, the number of evaluations, and why the method stopped."""

    x: Floats
    value: float
    evaluations: int
    reason: str


def minimise(
    fun: ValueAndGrad,
    x: Floats,
    modulus: float,
    tol: float = 1e-13,
    *,
    relative: bool = True,
    max_evaluations: int = 20_000,
    lower: Floats | None = None,
) -> Minimum:
    """L-BFGS until an estimate of the further decrease, `|grad|^2 / (2 modulus)`, is below `tol`.

    `tol` is relative to the value, unless `relative` is False.
    `modulus` is a guess of the smallest curvature that matters (with a penalty: the penalty).
    Directions without curvature, such as rotations of the feature space, have no gradient
    either. `lower` bounds x from below; the estimate then takes free entries only.
    """
    best = Minimum(x, np.inf, 0, "")
    count = 0
    value = np.inf
    estimate = np.inf

    def small() -> bool:
        return estimate <= tol * (abs(best.value) if relative else 1.0)

    def counted(x: Floats) -> tuple[float, Floats]:
        nonlocal best, count, value, estimate
        count += 1
        value, grad = fun(x)
        if value < best.value:
            free = grad if lower is None else np.where((x > lower) | (grad < 0.0), grad, 0.0)
            # With a modulus that underflowed there is no estimate.
            estimate = float(free @ free) / (2.0 * modulus) if modulus > 0.0 else np.inf
            best = Minimum(x.copy(), value, count, "")
        return value, grad

    def enough(intermediate_result: object) -> None:
        if small():
            raise StopIteration

    from fastnc.kernels.cpu.threads import serial_blas

    small_problem = len(x) < 100_000
    # The method factors 20 x 20 matrices; OpenBLAS takes milliseconds to share one among threads.
    with serial_blas if small_problem else nullcontext():
        result = _scipy_minimize(
            counted,
            x,
            jac=True,
            method="L-BFGS-B",
            bounds=None if lower is None else Bounds(lower, np.inf),
            callback=enough,
            options={
                "maxiter": max_evaluations,
                "maxfun": max_evaluations,
                "ftol": 0.0,
                "gtol": 0.0,
                # Each pair costs six passes over x, which at a million entries is what an
                # evaluation costs; half as many pairs took no more evaluations there.
                "maxcor": 10 if small_problem else 4,
            },
        )
    if small():
        reason = "gradient below the tolerance"
    elif count >= max_evaluations:
        reason = f"{count} evaluations"
    else:
        reason = f"no further decrease in float64 ({str(result.message).lower()})"
    return Minimum(best.x, best.value, count, reason)


def newton(
    fun: ValueAndGrad,
    hessian_vector_product: Callable[[Floats, Floats], Floats],
    x: Floats,
    max_iterations: int = 20,
) -> Floats:
    """Newton steps by MINRES while they shrink the gradient: the last digits near a minimum.

    MINRES allows for the Hessian's null space (rotations), to which the gradient is orthogonal.
    """
    grad = fun(x)[1]
    for _ in range(max_iterations):
        operator = LinearOperator(
            (len(x), len(x)), matvec=lambda v, x=x: hessian_vector_product(x, v), dtype=np.float64
        )
        try:
            step, _ = minres(operator, -grad, rtol=1e-8, maxiter=500)
        except ZeroDivisionError:
            # SciPy divides by a coefficient that is 0 where the Hessian is a multiple of 1.
            break
        new_grad = fun(x + step)[1]
        if not np.linalg.norm(new_grad) < 0.9 * np.linalg.norm(grad):
            break
        x, grad = x + step, new_grad
    return x
