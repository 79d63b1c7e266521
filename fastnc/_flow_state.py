"""An integrator's state as plain arrays: a flow that was stopped goes on with the same bits.

scipy's integrators keep all that they know in attributes. Numbers and arrays are stored as they
are; a Jacobian as the point it was formed at, and a factorisation as its shift, since both
follow from those deterministically.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc._flow_newton import FlowJacobian, Residuals

_NUMBER, _FACTORS, _JACOBIAN = "integrator/", "factors/", "jacobian/"


def integrator_state(integrator: Any) -> dict[str, NDArray[Any]]:
    """Copies of all that `restore_integrator` needs, after at least one step."""
    out: dict[str, NDArray[Any]] = {}
    for name, value in vars(integrator).items():
        if isinstance(value, (bool, int, float, np.generic, np.ndarray)):
            out[_NUMBER + name] = np.array(value)
        elif hasattr(value, "system"):
            out[_FACTORS + name] = np.array([value.system.b, value.system.sigma])
    at, b = integrator.J.at, integrator.J.b
    return out | {
        _JACOBIAN + "W": np.array(at.W),
        _JACOBIAN + "H": np.array(at.H),
        _JACOBIAN + "b": np.array(b),
    }


def restore_integrator(
    integrator: Any,
    state: dict[str, NDArray[Any]],
    y: NDArray[np.int64],
    factorise: Callable[[FlowJacobian], Any],
) -> None:
    """Bring a new integrator of the same problem to a state of `integrator_state`."""
    at = Residuals(state[_JACOBIAN + "W"], state[_JACOBIAN + "H"], y)
    integrator.J = FlowJacobian(at, float(state[_JACOBIAN + "b"]))
    for name, value in state.items():
        if name.startswith(_NUMBER):
            # numpy's scalars, which overflow to infinity where Python's raise.
            setattr(integrator, name.removeprefix(_NUMBER), value[()])
        elif name.startswith(_FACTORS):
            b, sigma = (x if np.iscomplexobj(value) else x.real for x in value)
            system = FlowJacobian(at, float(b.real), sigma)
            setattr(integrator, name.removeprefix(_FACTORS), factorise(system))
    if getattr(integrator, "Z", None) is not None:
        # Radau starts each Newton iteration from the polynomial of the step before.
        integrator.sol = integrator._compute_dense_output()
