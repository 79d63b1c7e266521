"""Step sizes that change with the epoch, or with the current W, H and gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastnc._core import arrays
from fastnc._core.functions import check_function
from fastnc._core.results import listed


class Standing(NamedTuple):
    """Where a descent's gradients are taken, from which `Schedule.at` computes a step size.

    This is the current point; of `SharpnessAware` the one uphill of it. `gradients` are those of
    the loss, or of its logarithm if the schedule is `of_log_loss`; then `residual` is the largest
    entry of dlog L/dZ, for `LossScaled` only.
    """

    epoch: int
    log_loss: float
    value: float
    factors: tuple[NDArray[Any], ...]
    gradients: tuple[NDArray[Any], ...]
    residual: float


class Schedule:
    """A step size for every epoch; `of_log_loss` ones are steps along the gradient of log L."""

    of_log_loss = False

    def __call__(self, epoch: float) -> float:
        """The step size of the epoch that follows `epoch` epochs."""
        raise NotImplementedError

    def at(self, standing: Standing) -> float:
        """The step size at `standing`; by default that of its epoch."""
        return self(standing.epoch)

    def looks(self) -> bool:
        """Whether a step depends on where the descent stands by more than the gradient of L."""
        kind = type(self)
        of_epoch = kind.at is Schedule.at and kind.__call__ is not Schedule.__call__
        return not of_epoch or bool(self.of_log_loss)


@dataclass(frozen=True)
class Constant(Schedule):
    """`lr`, always."""

    lr: float

    def __post_init__(self) -> None:
        arrays.keep_checked(self, arrays.check_positive, "lr")

    def __call__(self, epoch: float) -> float:
        return self.lr


@dataclass(frozen=True)
class Cosine(Schedule):
    """From `lr` to `final` along half a cosine over `epochs`, then `final`."""

    lr: float
    epochs: int
    final: float = 0.0

    def __post_init__(self) -> None:
        arrays.keep_checked(self, arrays.check_positive, "lr")
        arrays.keep_checked(self, arrays.check_count, "epochs", least=1)
        arrays.keep_checked(self, arrays.check_at_least_zero, "final")

    def __call__(self, epoch: float) -> float:
        share = min(epoch / self.epochs, 1.0)
        return self.final + 0.5 * (self.lr - self.final) * (1.0 + math.cos(math.pi * share))


@dataclass(frozen=True)
class Power(Schedule):
    """`lr (1 + epoch / scale)^-exponent`; a negative exponent grows."""

    lr: float
    exponent: float = 0.5
    scale: float = 1.0

    def __post_init__(self) -> None:
        arrays.keep_checked(self, arrays.check_positive, "lr", "scale")
        arrays.keep_checked(self, arrays.check_finite_number, "exponent")

    def __call__(self, epoch: float) -> float:
        return float(self.lr * (1.0 + epoch / self.scale) ** -self.exponent)


@dataclass(frozen=True)
class Steps(Schedule):
    """`lr`, times `factor` from each of the epochs `at_epochs` on."""

    lr: float
    at_epochs: tuple[int, ...]
    factor: float = 0.1

    def __post_init__(self) -> None:
        arrays.keep_checked(self, arrays.check_positive, "lr", "factor")
        epochs = listed(self.at_epochs)
        if epochs is None:
            raise TypeError(f"`at_epochs` must list epochs; got {self.at_epochs!r}.")
        checked = tuple(arrays.check_count("at_epochs", epoch, 0) for epoch in epochs)
        object.__setattr__(self, "at_epochs", checked)

    def __call__(self, epoch: float) -> float:
        return float(self.lr * self.factor ** sum(epoch >= e for e in self.at_epochs))


@dataclass(frozen=True)
class WarmUp(Schedule):
    """A linear rise over `epochs` to what `then` says, a number or a schedule of the epochs."""

    then: Any
    epochs: int

    def __post_init__(self) -> None:
        arrays.keep_checked(self, arrays.check_count, "epochs", least=1)
        if callable(self.then):
            check_function("then", self.then, "epoch")
        else:
            arrays.keep_checked(self, arrays.check_positive, "then")
        if isinstance(self.then, Schedule) and self.then.looks():
            raise ValueError(
                f"`then` must be a number or a schedule of the epoch; {self.then!r} needs no "
                "warm-up: it depends on the current point."
            )

    def __call__(self, epoch: float) -> float:
        full = self.then
        if callable(full):
            full = arrays.check_at_least_zero(f"then({epoch})", full(epoch))
        return float(full * min((epoch + 1.0) / self.epochs, 1.0))


@dataclass(frozen=True)
class Polyak(Schedule):
    """Polyak's step `factor (L - least) / |grad L|^2`, where the gradient is taken.

    With `least` 0 it is `factor / |grad log L|^2` along the gradient of log L, finite at any
    margin. Of a model with a positive minimum `least` is its `optimum().value`. Rules that scale
    their gradients themselves (sign, normalised, spectral, Adam) take the number as it is, and with
    `least` 0 that of log L, `L` times the limit of the others.
    """

    least: float = 0.0
    factor: float = 1.0

    def __post_init__(self) -> None:
        arrays.keep_checked(self, arrays.check_at_least_zero, "least")
        arrays.keep_checked(self, arrays.check_positive, "factor")

    @property
    def of_log_loss(self) -> bool:  # type: ignore[override]
        """Whether the least value is 0, as the ULPM's."""
        return self.least == 0.0

    def at(self, standing: Standing) -> float:
        square = sum(float(np.vdot(g, g)) for g in standing.gradients)
        excess = 1.0 if self.of_log_loss else standing.value - self.least
        return self.factor * max(excess, 0.0) / square if square > 0.0 else 0.0


@dataclass(frozen=True)
class LossScaled(Schedule):
    """A step as section 5.3 asks for, `factor / (max|G| max(|W|_2^2, |H|_2^2, 1))` along log L.

    G is dlog L/dZ. The curvature of log L in W alone, or in H alone, is at most `max|G|` times the
    squared spectral norm of the other factor; in both, with K logits a sample, up to four times
    that. So the loss falls with a factor of 1/4; on 226 random problems it always did.
    400 steps reach a margin ratio of .99, for which plain descent needs more than 3e5 epochs.
    1 - beta falls as 1 / (factor epochs): K = 3, n = d = 10 is at beta = .99958 after 3000 epochs,
    and at .99987 with a factor of .8, the largest without a cycle of two on those problems. There
    the loss rose in a step or two of 2 problems; with 1, 64 of them locked (here beta stays .990).
    """

    factor: float = 0.25
    of_log_loss = True

    def __post_init__(self) -> None:
        arrays.keep_checked(self, arrays.check_positive, "factor")

    def at(self, standing: Standing) -> float:
        largest = max(*(_spectral_norm_squared(x) for x in standing.factors[:2]), 1.0)
        return self.factor / (standing.residual * largest)


def _spectral_norm_squared(A: NDArray[Any]) -> float:
    """The largest eigenvalue of the smaller of `A A^T` and `A^T A`."""
    A = np.asarray(A, dtype=np.float64)
    gram = A @ A.T if A.shape[0] <= A.shape[1] else A.T @ A
    return float(np.linalg.eigvalsh(gram)[-1])
