"""The settings of a training on which the final weights depend."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from fastnc._core import arrays
from fastnc._core.switches import check_flag, check_share
from fastnc.training.augmentation import AUGMENTS, Augment
from fastnc.training.loss_scaled import LossScaled
from fastnc.training.network import HEADS, PRECISIONS, Head, Precision

# So many steps of a schedule are a fraction of a second.
_MOST_REHEARSED = 10_000
LOSS_SCALED = "loss-scaled"
# Schedules that put rates of their own in the place of `lr`.
_OWN_RATES = ("OneCycleLR", "CyclicLR")


@dataclass(frozen=True)
class Experiment:
    """All settings on which the final weights depend, beside the data.

    Whether Figure 3's quantities change depends on the start. Gradient flow of the layer-peeled
    model conserves `W^T W - H^T H` (Du, Hu and Lee, 2018): an imbalance of |W| and |H| at the start
    remains, only the smaller of the two turns, and self-duality keeps its value. The same holds for
    a network, up to the effect of its other layers. With the defaults, which are not chosen for
    balance, |H| is 2,000 |W|; with batch normalisation, a linear head, `feature_scale=0.1` and
    `classifier_scale=2` it is 17 |W|, and features and classifier change at comparable speed. The
    column `balance` of a run is |W|^2 / |H|^2.

    Parameters
    ----------
    model : str
        A classifier of torchvision's whose last layer is linear.
    head : "own" or "linear"
        With or without the model's hidden layers between the pooled features and the last layer:
        see `fastnc.training.network.network`.
    feature_dim : int
        The width of a VGG's hidden layers; the second one's output is h.
    batch_norm : bool
        A VGG's variant with it. Each of several workers normalises by its own part of a batch.
    dropout : float in [0, 1)
    augment : "none", "shift" or "shift-flip"
        Of the training images, drawn anew for each batch. Measurements have none.
    feature_scale, classifier_scale : float > 0
        Factors of the features and of W at the start.
    batch_size : int
        Of all workers together. An epoch is divided into batches of nearly equal size, none larger.
    lr, momentum : float
        Of SGD. There is no weight decay. "OneCycleLR" and "CyclicLR" have step sizes and, unless
        `cycle_momentum` is false, momenta of their own: neither can be given beside them.
    schedule : str
        "constant"; "loss-scaled", `LossScaled` with the arguments `decrease` and `batches`; or a
        class of `torch.optim.lr_scheduler`, stepped once an epoch (with the epoch's mean loss
        where it asks for a metric).
    schedule_args : dict of JSON values
        Its arguments; `CosineAnnealingLR` gets `T_max=epochs` unless another is given. The schedule
        of a run with a `start` begins anew: there, name the epochs that are left.
    seed : int
    precision : "float32", "tf32" or "bfloat16"
        Of the training's matrix products. Weights, loss and measurements are in float32.
    snapshots : int
        Measurements a decade of epochs; epochs 0, 1 and the last are always among them.

    Raises
    ------
    ValueError
        A value that makes no sense.
    """

    model: str = "vgg13"
    head: Head = "own"
    feature_dim: int = 4096
    batch_norm: bool = False
    dropout: float = 0.0
    augment: Augment = "none"
    feature_scale: float = 1.0
    classifier_scale: float = 1.0
    batch_size: int = 128
    lr: float = 0.01
    momentum: float = 0.9
    schedule: str = "constant"
    schedule_args: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    precision: Precision = "float32"
    snapshots: int = 20

    def __post_init__(self) -> None:
        arrays.keep_checked(self, arrays.check_count, "feature_dim", least=1)
        arrays.keep_checked(self, arrays.check_count, "batch_size", least=1)
        arrays.keep_checked(self, arrays.check_count, "seed", least=0)
        arrays.keep_checked(self, arrays.check_count, "snapshots", least=1)
        arrays.keep_checked(self, arrays.check_positive, "lr")
        arrays.keep_checked(self, check_share, "momentum", "dropout")
        arrays.keep_checked(self, check_flag, "batch_norm")
        if not isinstance(self.schedule_args, dict):
            raise TypeError(
                "`schedule_args` must be a dict of the schedule's arguments; got "
                f"{self.schedule_args!r}."
            )
        try:
            # Checkpoints hold them as they are: plain numbers, not NumPy's.
            plain = json.loads(json.dumps(self.schedule_args))
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"`schedule_args` must hold JSON values; got {self.schedule_args!r}: {error}."
            ) from None
        object.__setattr__(self, "schedule_args", plain)
        if self.seed >= 1 << 64:
            raise ValueError(f"`seed` must be below 2^64, as torch's are; got {self.seed}.")
        arrays.check_choice("precision", self.precision, PRECISIONS)
        arrays.check_choice("head", self.head, HEADS)
        arrays.check_choice("augment", self.augment, AUGMENTS)
        arrays.keep_checked(self, arrays.check_positive, "feature_scale", "classifier_scale")
        if self.schedule in _OWN_RATES:
            cycled = self.schedule_args.get("cycle_momentum", True)
            usual = {f.name: f.default for f in fields(self)}
            for name in ("lr", "momentum") if cycled else ("lr",):
                if getattr(self, name) != usual[name]:
                    raise ValueError(
                        f"`{name}` must be left out with schedule={self.schedule!r}, which has its "
                        f"own: see `schedule_args`; got {getattr(self, name):g}."
                    )
        if self.batch_norm and self.batch_size < 2:
            raise ValueError("`batch_size` must be at least 2 with batch normalisation; got 1.")


def schedule_of(
    optimizer: torch.optim.Optimizer, name: str, args: dict[str, Any], epochs: int, n_batches: int
) -> tuple[Any, dict[str, Any]]:
    """The learning-rate schedule of that name, None if constant, and its completed arguments."""
    if name == "constant":
        if args:
            raise ValueError(f"`schedule_args` must be empty with a constant rate; got {args}.")
        return None, {}
    if name == LOSS_SCALED:
        group = optimizer.param_groups[0]
        try:
            device = group["params"][0].device
            return LossScaled(group["lr"], group["momentum"], n_batches, device, **args), args
        except TypeError as error:
            raise ValueError(f"`schedule_args` {args} do not suit {name}: {error}.") from None
    module = torch.optim.lr_scheduler
    base = module.LRScheduler
    known = sorted(
        n for n, c in vars(module).items()
        if isinstance(c, type) and issubclass(c, base) and c is not base and not n.startswith("_")
    )  # fmt: skip
    if name not in known:
        near = difflib.get_close_matches(str(name), [*known, "constant", LOSS_SCALED], 1, 0.3)
        raise ValueError(
            f"`schedule` must be 'constant', {LOSS_SCALED!r} or one of {known}; got {name!r}."
            + (f" The nearest name is {near[0]}." if near else "")
        )
    if name == "CosineAnnealingLR":
        args = {"T_max": epochs, **args}
    try:
        _rehearse(getattr(module, name), args, optimizer.defaults, epochs)
        return getattr(module, name)(optimizer, **args), args
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise ValueError(f"`schedule_args` {args} do not suit {name}: {error}.") from None


def _rehearse(make: Any, args: dict[str, Any], defaults: dict[str, Any], epochs: int) -> None:
    """Step a schedule as often as the training will: some raise only at a late step."""
    momentum = defaults["momentum"]
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=defaults["lr"], momentum=momentum)
    schedule = make(optimizer, **args)
    optimizer.step()
    for _ in range(min(epochs, _MOST_REHEARSED)):
        if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
            schedule.step(0.0)
        else:
            schedule.step()
