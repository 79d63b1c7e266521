"""What is trained, and how: the settings that a network's final weights depend on."""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch

from fastnc._core import arrays
from fastnc.training.network import PRECISIONS, Precision

# So many steps of a schedule are a fraction of a second.
_MOST_REHEARSED = 10_000


@dataclass(frozen=True)
class Experiment:
    """What is trained, and how: all that the final weights depend on, beside the data.

    Parameters
    ----------
    feature_dim : int
        d: the width of both hidden layers; the second one's output is h.
    batch_norm : bool
        torchvision's `vgg13_bn` instead of `vgg13`. Of several workers each normalises by its own
        part of a batch.
    dropout : float in [0, 1)
    batch_size : int
        Of all workers together. An epoch is cut into batches of nearly equal size, none larger.
    lr, momentum : float
        Of SGD. There is no weight decay.
    schedule : str
        "constant", or a class of `torch.optim.lr_scheduler`, stepped once an epoch (with the
        epoch's mean loss where it asks for a metric).
    schedule_args : dict of JSON values
        Its arguments; `CosineAnnealingLR` gets `T_max=epochs` unless told otherwise.
    seed : int
    precision : "float32", "tf32" or "bfloat16"
        Of the training's matrix products. Weights, loss and measurements are in float32.
    snapshots : int
        Measurements a decade of epochs; epochs 0, 1 and the last are always among them.

    Raises
    ------
    ValueError
        A value that makes no sense, in one sentence.
    """

    feature_dim: int = 4096
    batch_norm: bool = False
    dropout: float = 0.0
    batch_size: int = 128
    lr: float = 0.01
    momentum: float = 0.9
    schedule: str = "constant"
    schedule_args: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    precision: Precision = "float32"
    snapshots: int = 20

    def __post_init__(self) -> None:
        arrays.check_count("feature_dim", self.feature_dim, 1)
        arrays.check_count("batch_size", self.batch_size, 1)
        arrays.check_count("seed", self.seed, 0)
        arrays.check_count("snapshots", self.snapshots, 1)
        arrays.check_positive("lr", self.lr)
        for name, value in (("momentum", self.momentum), ("dropout", self.dropout)):
            if not (isinstance(value, Real) and 0.0 <= float(value) < 1.0):
                raise ValueError(f"`{name}` must lie in [0, 1); got {value!r}.")
        if self.precision not in PRECISIONS:
            raise ValueError(f"`precision` must be one of {PRECISIONS}; got {self.precision!r}.")
        if self.batch_norm and self.batch_size < 2:
            raise ValueError("`batch_size` must be at least 2 with batch normalisation; got 1.")


def schedule_of(
    optimizer: torch.optim.Optimizer, name: str, args: dict[str, Any], epochs: int
) -> tuple[Any, dict[str, Any]]:
    """The learning-rate schedule of that name, None if constant, and its completed arguments."""
    if name == "constant":
        if args:
            raise ValueError(f"`schedule_args` must be empty with a constant rate; got {args}.")
        return None, {}
    module = torch.optim.lr_scheduler
    base = module.LRScheduler
    known = sorted(
        n for n, c in vars(module).items()
        if isinstance(c, type) and issubclass(c, base) and c is not base and not n.startswith("_")
    )  # fmt: skip
    if name not in known:
        raise ValueError(f"`schedule` must be 'constant' or one of {known}; got {name!r}.")
    if name == "CosineAnnealingLR":
        args = {"T_max": epochs, **args}
    try:
        _rehearse(getattr(module, name), args, optimizer.defaults, epochs)
        return getattr(module, name)(optimizer, **args), args
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise ValueError(f"`schedule_args` {args} do not suit {name}: {error}.") from None


def _rehearse(make: Any, args: dict[str, Any], defaults: dict[str, Any], epochs: int) -> None:
    """Step a schedule as often as the training will: some refuse only then, hours into it."""
    momentum = defaults["momentum"]
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=defaults["lr"], momentum=momentum)
    schedule = make(optimizer, **args)
    optimizer.step()
    for _ in range(min(epochs, _MOST_REHEARSED)):
        if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
            schedule.step(0.0)
        else:
            schedule.step()
