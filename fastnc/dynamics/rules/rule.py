"""The protocol of an update rule, and the base class of the built-in ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fastnc._core import arrays
from fastnc._core.functions import check_function
from fastnc.dynamics.rules.schedules import Schedule

Array = NDArray[Any]
Arrays = tuple[Array, ...]
# A number, a pair of numbers, a schedule, or a function of the epoch.
Rate = Any


@runtime_checkable
class Rule(Protocol):
    """Any object with these two methods may be a rule; it needs NumPy only.

    The factors are W (K, d), H (N, d) and, of a model that has one, the bias (K,). The attribute
    `lr` is a number, a pair `(lr_W, lr_H)` or a schedule; without it the step size is 1. A resumed
    run must have a rule of the same code and values: of its attributes and class, and of what its
    methods read; packages that are installed count by name. What changes belongs into the state.
    """

    def init(self, *factors: Array) -> dict[str, Array]:
        """The state before the first step: arrays by name, which checkpoints hold.

        They are copied, and keep their shapes and dtypes: `update` finds them in its `state` alone.
        """

    def update(
        self, factors: Arrays, gradients: Arrays, state: dict[str, Array], rates: Arrays, step: int
    ) -> Arrays:
        """What is added to each factor; the state's arrays are overwritten.

        `rates` are the step sizes of the factors at this epoch, `step` counts from 1.
        """


@dataclass(frozen=True)
class BuiltIn:
    """A rule of fastnc: its step size, checked.

    The steps of a `scale_free` rule do not change when all gradients are multiplied by one number.
    It gets the gradients of log L, which neither overflow nor underflow, and works at any margin.
    """

    lr: Rate = 5.0
    scale_free: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "lr", check_rate(self.lr))

    def init(self, *factors: Array) -> dict[str, Array]:
        """Nothing is remembered."""
        return {}

    def rescale(self, state: dict[str, Array], ratio: float) -> None:
        """Multiply the state where the unit of the gradients shrank by `ratio`."""

    @property
    def name(self) -> str:
        """What tables and legends call the rule."""
        return repr(self)


def check_rate(lr: Rate) -> Rate:
    """`lr` must be a positive number, a pair of such or of schedules, or a schedule."""
    if isinstance(lr, tuple):
        if len(lr) != 2:
            raise ValueError(f"`lr` must be one number or a pair (lr_W, lr_H); got {lr!r}.")
        return tuple(check_rate(one) for one in lr)
    if isinstance(lr, Schedule):
        return lr
    if callable(lr):
        check_function("lr", lr, "epoch")
        return lr
    return arrays.check_positive("lr", lr)


def decayed(gradients: Arrays, factors: Arrays, weight_decay: float) -> Arrays:
    """Gradients of the objective with `weight_decay / 2 |theta|^2` added to it."""
    if weight_decay == 0.0:
        return gradients
    return tuple(
        g + np.asarray(weight_decay, g.dtype) * x for g, x in zip(gradients, factors, strict=True)
    )


def downhill(gradients: Arrays, factors: Arrays, rates: Arrays, weight_decay: float) -> Arrays:
    """`-lr (g + weight_decay theta)`: the step of gradient descent."""
    gradients = decayed(gradients, factors, weight_decay)
    return tuple(-lr * g for lr, g in zip(rates, gradients, strict=True))


def check_fraction(name: str, value: float) -> float:
    """`value` must lie in 0..1, 1 excluded."""
    value = arrays.check_at_least_zero(name, value)
    if value >= 1.0:
        raise ValueError(f"`{name}` must be below 1; got {value!r}.")
    return value
