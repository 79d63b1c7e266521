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

from fastnc._core.files import scalar
from fastnc.dynamics.integrator.newton import FlowJacobian
from fastnc.theory.residuals import Residuals

_NUMBER, _FACTORS, _JACOBIAN = "integrator/", "factors/", "jacobian/"


def integrator_state(integrator: Any) -> dict[str, NDArray[Any]]:
    """Copies of all that `restore_integrator` needs, after at least one step."""
    out: dict[str, NDArray[Any]] = {}
    for name, value in vars(integrator).items():
        if _is_number(value):
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
    shape: tuple[int, ...],
    y: NDArray[np.int64],
    factorise: Callable[[FlowJacobian], Any],
) -> None:
    """Bring a new integrator of the same problem to a state of `integrator_state`.

    ValueError, or what NumPy makes of it, where `state` is none of this integrator: a compiled
    derivative reads its arrays unchecked, and no attribute is replaced that holds no number.
    """
    K, d = shape
    if [state[_JACOBIAN + name].shape for name in ("W", "H")] != [(K, d), (len(y), d)]:
        raise ValueError("the Jacobian's point is not of this problem")
    fresh = vars(integrator)
    # What is not a single number of that which Radau knows after its first step.
    later = {"y_old": (integrator.n,), "Z": (3, integrator.n)}
    if not {_NUMBER + name for name, value in fresh.items() if _is_number(value)} <= state.keys():
        raise ValueError("a number of the integrator is missing")
    at = Residuals(state[_JACOBIAN + "W"], state[_JACOBIAN + "H"], y)
    integrator.J = FlowJacobian(at, float(scalar(state[_JACOBIAN + "b"])))
    for name, value in state.items():
        if name.startswith(_NUMBER):
            attribute = name.removeprefix(_NUMBER)
            _check_fits(fresh[attribute], value, later.get(attribute, ()))
            # numpy's scalars, which overflow to infinity where Python's raise.
            setattr(integrator, attribute, value[()])
        elif name.startswith(_FACTORS):
            attribute = name.removeprefix(_FACTORS)
            if fresh[attribute] is not None:
                raise ValueError("not a factorisation of this integrator")
            b, sigma = (x if np.iscomplexobj(value) else x.real for x in value)
            system = FlowJacobian(at, float(b.real), sigma)
            setattr(integrator, attribute, factorise(system))
    if getattr(integrator, "Z", None) is not None:
        # Radau starts each Newton iteration from the polynomial of the step before.
        integrator.sol = integrator._compute_dense_output()


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float, np.generic, np.ndarray))


def _check_fits(fresh: Any, value: NDArray[Any], later: tuple[int, ...]) -> None:
    """`value` must be numbers as a new integrator has them, or of shape `later` if it has none."""
    like = np.empty(later) if fresh is None else np.asarray(fresh)
    numbers = fresh is None or _is_number(fresh)
    if not numbers or (like.shape, like.dtype.kind) != (value.shape, value.dtype.kind):
        raise ValueError("not a number of this integrator")
