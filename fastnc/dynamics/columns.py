"""The further columns that `measure=` requests: curvatures, and functions of the user."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc._core.functions import check_function
from fastnc.dynamics.description import described

Array = NDArray[Any]
NAMED = ("sharpness", "tangent_curvature")
_STATE = "further/"


def listed(measure: Any) -> Any:
    """`measure` as what can be read more than once: it may be a generator."""
    if isinstance(measure, (str, Mapping)):
        return measure
    try:
        return tuple(measure)
    except TypeError:
        raise TypeError(
            f"`measure` must hold {' or '.join(map(repr, NAMED))}, or a dict of functions of "
            f"W, H and y; got {measure!r:.200}."
        ) from None


def column_names(measure: Any) -> list[str]:
    """The names of the columns that `measure` requests, checked."""
    return list(_functions(measure))


def own_columns(measure: Any) -> dict[str, str]:
    """A text of each function that `measure` has by name: a resumed run must have the same."""
    found = _functions(measure).items()
    return {name: described(function) for name, function in found if function is not None}


def _functions(measure: Any) -> dict[str, Callable[[Array, Array, Array], float] | None]:
    """A function for each name, None for those of `NAMED`."""
    found: dict[str, Callable[[Array, Array, Array], float] | None] = {}
    for one in (measure,) if isinstance(measure, (str, Mapping)) else measure:
        if isinstance(one, Mapping):
            for name, function in one.items():
                if not isinstance(name, str) or not callable(function):
                    raise TypeError(
                        "`measure` must name functions of W, H and y; got "
                        f"{name!r}: {type(function).__name__}."
                    )
                check_function(f"measure[{name!r}]", function, "W", "H", "y")
                _check_one(name, found, function)
                found[name] = function
        elif one in NAMED:
            _check_one(one, found, None)
            found[one] = None
        else:
            raise ValueError(
                f"`measure` must hold {' or '.join(map(repr, NAMED))}, or a dict of functions of "
                f"W, H and y; got {one!r}."
            )
    return found


def _check_one(name: str, found: dict[str, Any], function: Any) -> None:
    if found.get(name, function) is not function:
        raise ValueError(
            f"`measure` must have one function a name; got two of {name!r}. Choose another name."
        )


class Columns:
    """The columns that `measure` requests, at one snapshot after another.

    Lanczos for the sharpness starts from the eigenvector of the snapshot before, which is therefore
    state. So is the one before that: a run with a later end drops its last row if that is not among
    its own epochs.
    """

    def __init__(self, measure: Any = ()) -> None:
        self._functions = _functions(measure)
        self.names = tuple(self._functions)
        self._starts: dict[float, Array] = {}

    def of(self, time: float, W: Array, H: Array, y: NDArray[np.int64]) -> dict[str, float]:
        """The columns at W (K, d), H (N, d); NaN where one has no value."""
        W, H = (np.asarray(x, dtype=np.float64) for x in (W, H))
        row = {}
        for name, function in self._functions.items():
            if function is not None:
                # Copies: what a function does to its arguments must not move the run.
                row[name] = _number(name, function(W.copy(), H.copy(), y.copy()))
            elif name == "sharpness":
                last = next(reversed(self._starts.values()), None)
                row[name], vector = sharpness(W, H, y, last)
                self._starts = {**dict(list(self._starts.items())[-1:]), time: vector}
            else:
                row[name] = _curvature(W, H, y)
        return row

    def check_new(self, row: Container[str]) -> None:
        """Raise where one of the columns has the name of one that every run of this kind has."""
        for name in self.names:
            if name in row:
                raise ValueError(
                    f"`measure` must name new columns; a run has {name!r} already. Choose another "
                    "name."
                )

    def state(self) -> dict[str, Array]:
        """Where the next Lanczos iteration begins, by time."""
        if "sharpness" not in self.names:
            return {}
        starts = list(self._starts.values())
        return {
            f"{_STATE}times": np.array(list(self._starts), dtype=np.float64),
            f"{_STATE}starts": np.stack(starts) if starts else np.zeros((0, 0)),
        }

    def restored(self, state: dict[str, Array], times: Container[float]) -> dict[str, Array]:
        """Restore the starts at `times` from a state; returns the other entries of the state."""
        own = {name: x for name, x in state.items() if name.startswith(_STATE)}
        if own.keys() != self.state().keys():
            raise ValueError("a state of other columns")
        if own:
            when, starts = own[f"{_STATE}times"], own[f"{_STATE}starts"]
            if (when.ndim, starts.ndim) != (1, 2) or len(when) != len(starts):
                raise ValueError("starts without a time")
            pairs = zip(when.tolist(), starts, strict=True)
            self._starts = {time: np.array(x) for time, x in pairs if time in times}
        return {name: x for name, x in state.items() if name not in own}


def sharpness(
    W: Array, H: Array, y: NDArray[np.int64], start: Array | None = None
) -> tuple[float, Array]:
    """The largest eigenvalue of the Hessian of the mean loss (4), and its vector.

    To a relative 1e-8 by Lanczos (scipy's `eigsh`), up to 64 unknowns by a dense eigen-solver, on
    products with the Hessian over the loss, which are exact at any margin. Gradient descent is
    stable while the sharpness is below 2 / lr.

    Cost: 20 to 200 products of `12KNd` operations each.
    """
    from scipy.sparse.linalg import LinearOperator, eigsh

    from fastnc.kernels.cpu.threads import serial_blas
    from fastnc.theory.residuals import Residuals

    size = W.size + H.size
    at = Residuals(W, H, y)
    if start is None or len(start) != size or not np.isfinite(start).all():
        start = np.random.default_rng(0).standard_normal(size)
    with serial_blas:
        if size <= 64:
            matrix = np.array([at.hessian_product(e) for e in np.eye(size)])
            values, vectors = np.linalg.eigh(0.5 * (matrix + matrix.T))
            value, vector = float(values[-1]), vectors[:, -1]
        else:
            product = LinearOperator((size, size), matvec=at.hessian_product, dtype=np.float64)
            values, vectors = eigsh(product, 1, which="LA", v0=start, tol=1e-8)
            value, vector = float(values[0]), vectors[:, 0]
    log_loss = at.log_loss - math.log(len(y))
    return value * math.exp(min(log_loss, 709.0)), np.array(vector)


def _curvature(W: Array, H: Array, y: NDArray[np.int64]) -> float:
    from fastnc.theory.curvature import tangent_curvature

    try:
        return float(tangent_curvature(W, H, y)[0])
    except (ValueError, ArithmeticError):
        # The curvature of a loss below 1e-290 is not a float.
        return math.nan


def _number(name: str, value: Any) -> float:
    """What a function of `measure` returned: a number, or an array of one."""
    try:
        # Torch warns of a number that has a graph.
        return float(value.detach() if hasattr(value, "detach") else value)
    except (TypeError, ValueError):
        got = f"shape {value.shape}" if hasattr(value, "shape") else repr(value)
        raise TypeError(
            f"`measure[{name!r}]` must return one number; got {got}. Return a float."
        ) from None
