"""The parts of a descent (gradient, rule, schedule), checked, and the stepper that joins them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property, partial
from typing import Any

from numpy.typing import NDArray

from fastnc._core import arrays
from fastnc._core.cuda import need_torch_and_triton
from fastnc._core.switches import check_flag
from fastnc.dynamics.description import described
from fastnc.dynamics.rules import (
    AdamW,
    GradientDescent,
    LossScaled,
    Momentum,
    Polyak,
    Rule,
    Schedule,
)
from fastnc.dynamics.rules.adam import Adam
from fastnc.dynamics.rules.rule import BuiltIn, check_rate
from fastnc.dynamics.steppers import Stepper
from fastnc.models import (
    ULPM,
    imbalanced,
    imbalanced_squared_error,
    squared_error,
    weight_decay,
)
from fastnc.models.deep_linear import DeepLinear
from fastnc.models.layer_peeled import LayerPeeled
from fastnc.models.minimum_norm import MinimumNorm
from fastnc.models.softmax_code import SoftmaxCode


@dataclass(frozen=True)
class Composition:
    """Gradient, rule and schedule of a descent; checked as `descend` describes them."""

    rule: Rule
    batch_size: int | None = None
    replacement: bool = False
    label_noise: float = 0.0
    noise: float = 0.0
    freeze: str | None = None
    device: str = "cpu"

    @property
    def plain_rate(self) -> float | None:
        """The constant step size of plain gradient descent; None for any other descent."""
        rule = self.rule
        if type(rule) is not GradientDescent or rule.weight_decay or self.freeze is not None:
            return None
        return rule.lr if isinstance(rule.lr, float) and self.full_batch else None

    @property
    def full_batch(self) -> bool:
        """Whether each step takes the exact gradient of all samples."""
        return self.batch_size is None and self.label_noise == 0.0 and self.noise == 0.0

    @cached_property
    def text(self) -> str:
        """The rule as it is before the first run: it may count its calls."""
        return described(self.rule)

    def about(self) -> dict[str, Any]:
        """JSON values that a resumed run must share."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        found["rule"] = self.text
        if isinstance(self.rule, BuiltIn) and isinstance(self.rule.lr, float):
            return {"lr": self.rule.lr, **found}
        return found


def composed(
    lr: Any,
    rule: Any,
    schedule: str,
    *,
    batch_size: int | None = None,
    replacement: bool = False,
    label_noise: float = 0.0,
    noise: float = 0.0,
    freeze: str | None = None,
    device: str = "cpu",
) -> Composition:
    """The composition of these parts, each checked on its own."""
    lr = check_rate(lr)
    noise = arrays.check_at_least_zero("noise", noise)
    label_noise = arrays.check_at_least_zero("label_noise", label_noise)
    if label_noise > 1.0:
        raise ValueError(f"`label_noise` must lie in 0..1, a share of labels; got {label_noise!r}.")
    replacement = check_flag("replacement", replacement)
    arrays.check_choice("device", device, ("cpu", "cuda"))
    arrays.check_choice("schedule", schedule, ("constant", "loss-scaled"))
    if batch_size is not None:
        batch_size = arrays.check_count("batch_size", batch_size, 1)
    elif replacement:
        raise ValueError("`replacement` must have batches to be drawn; give `batch_size`.")
    if freeze is not None:
        arrays.check_choice("freeze", freeze, ("W", "H"))
    if rule is None:
        rule = GradientDescent(lr if schedule == "constant" else LossScaled())
    elif isinstance(rule, type) and isinstance(rule, Rule):
        raise TypeError(
            f"`rule` must be made first; got the class {rule.__name__}. Write "
            f"`rule={rule.__name__}(...)`."
        )
    elif not isinstance(rule, Rule):
        raise TypeError(
            "`rule` must be one of `fastnc.rules` or have `init(W, H)` and `update(...)`; got "
            f"{type(rule).__name__}."
        )
    elif schedule != "constant" or not (isinstance(lr, (int, float)) and lr == 5.0):
        raise ValueError(
            "`lr` and `schedule` belong to the rule where one is given; write "
            f"`rule={type(rule).__name__}(lr=...)`, a schedule in the place of the number."
        )
    check_rate(getattr(rule, "lr", 1.0))
    if isinstance(getattr(rule, "lr", None), tuple) and any(
        isinstance(lr, Schedule) and lr.looks() for lr in rule.lr
    ):
        raise ValueError(
            "a pair (lr_W, lr_H) must hold numbers or schedules of the epoch: a step size that "
            "looks at where the descent stands is one for both factors."
        )
    return Composition(
        rule, None if batch_size is None else int(batch_size), replacement,
        float(label_noise), float(noise), freeze, device,
    )  # fmt: skip


def choose_stepper(
    model: Any, W: NDArray[Any], H: NDArray[Any], parts: Composition, seed: int
) -> Stepper:
    """The stepper for these parts; imports no other one."""
    check_together(model, parts)
    if isinstance(model, ULPM) and not (W.any() or H.any() or parts.noise):
        raise ValueError(
            "`W` and `H` must not both be 0: the gradient is 0 there too, and no step leaves it. "
            "Give one of them a direction, or `noise`."
        )
    lr = parts.plain_rate
    if parts.device == "cuda":
        from fastnc.dynamics.steppers.cuda import CudaDescent

        if lr is not None:
            return CudaDescent(W, H, model.y, lr)
        return _device_stepper(model, W, H, parts, seed)
    if isinstance(model, ULPM):
        if lr is not None and model.logit_loss is None:
            from fastnc.dynamics.steppers.plain import PlainDescent

            return PlainDescent(W, H, model.y, lr)
        return _ulpm_stepper(model, W, H, parts, seed)
    return _penalised_stepper(model, W, H, parts, seed)


def _ulpm_stepper(
    model: ULPM, W: NDArray[Any], H: NDArray[Any], parts: Composition, seed: int
) -> Stepper:
    from fastnc.dynamics import gradients as g
    from fastnc.dynamics.steppers import batches, compiled
    from fastnc.dynamics.steppers.composed import ComposedDescent
    from fastnc.kernels.cpu.threads import few_threads

    other = model.logit_loss
    source: Any = g.FullBatch(model.y, other)
    if parts.batch_size is not None:
        source = g.MiniBatch(model.y, parts.batch_size, parts.replacement, seed, other)
    if parts.label_noise > 0.0:
        source = g.LabelNoise(source, model.n_classes, parts.label_noise, seed)
    if parts.noise > 0.0:
        source = g.GaussianNoise(source, parts.noise, seed)
    if parts.full_batch and compiled.serves(model, parts.rule):
        return compiled.CompiledDescent(W, H, model.y, parts.rule, parts.freeze or ())
    if batches.serves(model, parts.rule, source):
        return batches.CompiledBatches(W, H, source, parts.rule, parts.freeze or ())
    small = model.n_classes * model.dim * model.n_samples < 1_000_000
    return ComposedDescent(
        source, parts.rule, W, H, model.y, freeze=parts.freeze or (),
        guard=partial(few_threads, small, blas=True),
        objective=None if other is None else model.objective,
    )  # fmt: skip


def _penalised_stepper(
    model: Any, W: NDArray[Any], H: NDArray[Any], parts: Composition, seed: int
) -> Stepper:
    from fastnc.dynamics import gradients as g
    from fastnc.dynamics.steppers.penalised import PenalisedDescent

    deep = isinstance(model, DeepLinear)
    source: Any = g.Layered(model) if deep else g.Penalised(model)
    if parts.noise > 0.0:
        source = g.GaussianNoise(source, parts.noise, seed)
    if isinstance(model, DeepLinear):
        from fastnc.dynamics.steppers.deep import DeepDescent

        between = model.start(seed, W.dtype.name)[1:-1]
        return DeepDescent(model, source, parts.rule, W, H, between, parts.freeze or ())
    return PenalisedDescent(model, source, parts.rule, W, H, parts.freeze or ())


def _device_stepper(
    model: Any, W: NDArray[Any], H: NDArray[Any], parts: Composition, seed: int
) -> Stepper:
    need_torch_and_triton()
    from fastnc.dynamics import device_gradients as g
    from fastnc.dynamics.steppers.cuda_composed import CudaComposed
    from fastnc.dynamics.steppers.cuda_penalised import CudaPenalised

    def source_of(labels: Any, W: Any) -> Any:
        source: Any = g.FullBatch(labels)
        if parts.batch_size is not None:
            source = g.MiniBatch(labels, parts.batch_size, parts.replacement, seed)
        if parts.label_noise > 0.0:
            source = g.LabelNoise(source, model.n_classes, parts.label_noise, seed)
        if not isinstance(model, ULPM):
            from fastnc.dynamics.device_models import Penalised

            source = Penalised(labels, model)
        if parts.noise > 0.0:
            source = g.GaussianNoise(source, parts.noise, seed, W.device)
        return source

    if isinstance(model, ULPM):
        return CudaComposed(W, H, model.y, parts.rule, source_of, parts.freeze)
    return CudaPenalised(model, W, H, parts.rule, source_of, parts.freeze)


def check_together(model: Any, parts: Composition) -> None:
    """Raise where two parts cannot be combined; the message names both and the reason."""
    ulpm, rule = isinstance(model, ULPM), parts.rule
    name, lr = type(model).__name__, getattr(parts.rule, "lr", None)
    if isinstance(model, MinimumNorm):
        raise ValueError(
            "the separation problem has no gradient to descend along: it is all constraints. "
            "Use `fastnc.solve`, or descend on `fastnc.ULPM`, whose direction tends to it."
        )
    if isinstance(model, SoftmaxCode):
        raise ValueError(
            "a softmax code has no gradient to descend along: it maximises the least of many "
            "distances. Use `fastnc.solve`, or descend on `fastnc.models.normalized` with a large "
            "`temperature`, whose minimisers tend to it."
        )
    if not (ulpm or isinstance(model, LayerPeeled)):
        raise TypeError(
            "`model` must be a `fastnc.ULPM` or one of `fastnc.models`; "
            f"got {type(model).__name__}."
        )
    of_log_loss = isinstance(lr, Schedule) and lr.of_log_loss
    other = ulpm and model.logit_loss is not None
    for conflict, what, why in (
        (
            other and of_log_loss and not (model.logit_loss.has_log and isinstance(lr, Polyak)),
            f"the schedule {lr!r} and loss={getattr(model, 'loss', '')!r}",
            "it is made for the curvature of cross-entropy, or for a loss that vanishes. Take a "
            "schedule of the epoch, or `Polyak(least=model.optimum().value)`.",
        ),
        (
            other and parts.device == "cuda",
            f"device='cuda' and loss={getattr(model, 'loss', '')!r}",
            "it has no kernel there. Use device='cpu'.",
        ),
        (
            not ulpm and of_log_loss,
            f"the schedule {lr!r} and {name}",
            "its steps are along log L, whose gradient vanishes at no rate where L has a positive "
            "minimum. Take a schedule of the epoch, or `Polyak(least=model.optimum().value)`.",
        ),
        (
            not ulpm and parts.batch_size is not None,
            f"`batch_size` and {name}",
            "its penalty or constraint belongs to all samples, not to those of a batch. Leave out "
            "`batch_size`, or take `fastnc.ULPM` with a rule that has `weight_decay`.",
        ),
        (
            not ulpm and parts.label_noise > 0.0,
            f"`label_noise` and {name}",
            "its labels are fixed by the class sizes. Take `fastnc.ULPM`.",
        ),
        (
            not ulpm and parts.freeze is not None and _constrained(model),
            f"`freeze` and {name}",
            "a step back onto its constraint moves both factors. Take a model without one.",
        ),
        (
            of_log_loss and parts.noise > 0.0,
            f"`noise` and the schedule {lr!r}",
            "the noise is that of grad L, and the schedule steps along grad log L, 1 / L times it. "
            "Take a schedule of the epoch, or leave out `noise`.",
        ),
        (
            of_log_loss and getattr(rule, "weight_decay", 0.0) > 0.0
            and not getattr(rule, "scale_free", False) and not isinstance(rule, AdamW),
            f"`weight_decay` of {type(rule).__name__} and the schedule {lr!r}",
            "the decay is a gradient beside grad L, and the schedule steps along grad log L. Take "
            "a schedule of the epoch, or leave out `weight_decay`.",
        ),
        (
            parts.device == "cuda" and not (ulpm or isinstance(model, DECAYED)),
            f"device='cuda' and {name}",
            "on a device there are `fastnc.ULPM` and models with weight decay and no constraint. "
            "Use device='cpu'.",
        ),
        (
            parts.device == "cuda" and not _on_devices(rule, lr),
            f"device='cuda' and {type(rule).__name__}",
            "on a device there are GradientDescent, Momentum, Adam and AdamW with schedules of "
            "`fastnc.rules` or functions of the epoch. Use device='cpu'.",
        ),
    ):  # fmt: skip
        if conflict:
            raise ValueError(f"{what} do not go together: {why}")
    if parts.batch_size is not None and parts.batch_size > model.n_samples:
        raise ValueError(
            f"`batch_size` must be at most the number of samples, {model.n_samples}; got "
            f"{parts.batch_size}."
        )


ON_A_DEVICE: tuple[type, ...] = (GradientDescent, Momentum, Adam, AdamW)
DECAYED = (weight_decay, imbalanced, squared_error, imbalanced_squared_error)
# Rules that need no norm of a whole gradient: each rank has some rows of it.
OF_RANKS = ON_A_DEVICE


def check_over_ranks(parts: Composition) -> None:
    """Raise where the ranks of a sharded run cannot do these parts."""
    rule, lr = parts.rule, getattr(parts.rule, "lr", None)
    looks = isinstance(lr, Schedule) and lr.looks()
    known = isinstance(rule, BuiltIn) and type(rule) in OF_RANKS and not rule.scale_free
    if known and not looks and parts.full_batch:
        return
    raise ValueError(
        "`sharded` goes with the exact gradient and GradientDescent, Momentum, Adam or AdamW with "
        "a schedule of the epoch: each rank has a part of a gradient only, and none of its norm; "
        f"got {described(rule)}"
        f"{'' if parts.full_batch else ', with noise or batches'}. Leave out `sharded`."
    )


def _on_devices(rule: Any, lr: Any) -> bool:
    """Whether a rule has a form for tensors, and its step size needs no wait for the device."""
    looks = isinstance(lr, Schedule) and type(lr).at is not Schedule.at
    return type(rule) in ON_A_DEVICE and (not looks or type(lr) in (LossScaled, Polyak))


def _constrained(model: LayerPeeled) -> bool:
    return type(model).retract is not LayerPeeled.retract
