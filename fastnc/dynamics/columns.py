"""Further columns of a run, which are not free: curvatures, and functions of one's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
NAMED = ("sharpness", "tangent_curvature")
_STATE = "further/"


def column_names(asked: Any) -> list[str]:
    """The names of the columns that `measure=` asks for, checked."""
    return list(_functions(asked))


def _functions(asked: Any) -> dict[str, Callable[[Array, Array, Array], float] | None]:
    """A function for each name, None for those that are known here."""
    found: dict[str, Callable[[Array, Array, Array], float] | None] = {}
    for one in (asked,) if isinstance(asked, (str, Mapping)) else asked:
        if isinstance(one, Mapping):
            for name, function in one.items():
                if not isinstance(name, str) or not callable(function):
                    raise TypeError(
                        "`measure` must name functions of W, H and y; got "
                        f"{name!r}: {type(function).__name__}."
                    )
                found[name] = function
        elif one in NAMED:
            found[one] = None
        else:
            raise ValueError(
                f"`measure` must hold {' or '.join(map(repr, NAMED))}, or a dict of functions of "
                f"W, H and y; got {one!r}."
            )
    return found


class Columns:
    """What `measure=` asked for, at one point after another.

    The sharpness is found by Lanczos from where it was found last: that vector is state. So is the
    one before it, since a run that is prolonged forgets its last row where that is off its grid.
    """

    def __init__(self, asked: Any = ()) -> None:
        self._functions = _functions(asked)
        self.names = tuple(self._functions)
        self._starts: dict[float, Array] = {}

    def of(self, time: float, W: Array, H: Array, y: NDArray[np.int64]) -> dict[str, float]:
        """The columns at W (K, d), H (N, d); NaN where one cannot be told."""
        W, H = (np.asarray(x, dtype=np.float64) for x in (W, H))
        row = {}
        for name, function in self._functions.items():
            if function is not None:
                row[name] = _number(name, function(W, H, y))
            elif name == "sharpness":
                last = next(reversed(self._starts.values()), None)
                row[name], vector = sharpness(W, H, y, last)
                self._starts = {**dict(list(self._starts.items())[-1:]), time: vector}
            else:
                row[name] = _curvature(W, H, y)
        return row

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
        """Take up one's own part of a state, at those times that still count; the rest of it."""
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

    Lanczos (scipy's `eigsh`) on products with the Hessian over the loss, exact at any margin, to
    a relative 1e-8. Gradient descent is stable while it is below 2 / lr.

    Cost: some ten to fifty products, each `12KNd` operations.
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
        # Of a loss below 1e-290 there is no number to tell.
        return math.nan


def _number(name: str, value: Any) -> float:
    """What a function of `measure` returned: a number, or an array of one."""
    try:
        return float(value)
    except (TypeError, ValueError):
        got = f"shape {value.shape}" if hasattr(value, "shape") else repr(value)
        raise TypeError(
            f"`measure[{name!r}]` must return one number; got {got}. Return a float."
        ) from None
