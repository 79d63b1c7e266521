"""Descent composed of a source of gradients, an update rule and a schedule, on a CUDA device."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc._core.cuda import on_device_of
from fastnc.dynamics.checkpoint import check_state
from fastnc.dynamics.device_gradients import Wanted, generators
from fastnc.dynamics.rules import LossScaled, Momentum, Polyak, Schedule, Standing
from fastnc.dynamics.rules.adam import Adam
from fastnc.dynamics.steppers import cuda
from fastnc.dynamics.steppers.composed import rate_at
from fastnc.dynamics.steppers.cuda import CudaDescent

# Numbers of a step: the step sizes of W and of H, and Adam's two corrections.
_COEFFICIENTS = 4
_RANDOM = "random/"


class CudaComposed(CudaDescent):
    """The rule's formula on tensors, gradients by the kernels; only snapshots fetch anything.

    As `ComposedDescent` in NumPy, to rounding; in float32 updates are compensated as well. Numbers
    that depend on the epoch alone are copied to the device as a table of some epochs, so that a
    graph can hold these; step sizes that depend on the current point are computed there.

    Parameters
    ----------
    source_of : function of the labels and W on the device that makes the source of gradients
    bias : whether there is a third factor, which starts at 0
    """

    def __init__(
        self,
        W: NDArray[Any],
        H: NDArray[Any],
        y: NDArray[np.int64],
        rule: Any,
        source_of: Callable[[Any, Any], Any],
        freeze: str | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__(W, H, y, lr=rule.lr)
        import torch

        self.rule, self.freeze = rule, freeze or ""
        self.source = source_of(self.labels, self.tensors["W"])
        self.names = ("W", "H", "bias") if bias else ("W", "H")
        if bias:
            self.tensors["bias"] = self.tensors["W"].new_zeros(len(W))
            self.tensors["bias_low"] = self.tensors["W_low"].new_zeros(len(self.tensors["W_low"]))
        for name in self.names:
            for moment in {Momentum: "m", Adam: "mv"}.get(_kind(rule), ""):
                self.tensors[f"{moment}{name}"] = torch.zeros_like(self.tensors[name])
        looks = isinstance(self.lr, Schedule) and self.lr.of_log_loss
        self.wanted = Wanted(
            of_log_loss=self.source.has_log and (looks or bool(rule.scale_free)),
            residual=isinstance(self.lr, LossScaled),
            value=isinstance(self.lr, Polyak) and not looks,
        )
        # The log of the gradients' unit in a scale-free rule's memory.
        self.tensors["unit"] = self.labels.new_full((1,), math.nan, dtype=torch.float64)
        self._table = self.labels.new_zeros(
            (cuda.EPOCHS_A_GRAPH * self.source.steps, _COEFFICIENTS), dtype=torch.float64
        )

    @property
    def is_small(self) -> bool:
        """Never: the kernel of small problems knows plain descent only."""
        return False

    def make(self, epochs: int) -> None:
        """That many epochs; the device is not waited for."""
        # The eigenvalue solver cannot be captured.
        captures = self.source.captures and not self.wanted.residual and self.work < cuda.LARGE
        with on_device_of(self.tensors["W"]):
            for first in range(self.epoch, self.epoch + epochs, cuda.EPOCHS_A_GRAPH):
                n = min(cuda.EPOCHS_A_GRAPH, self.epoch + epochs - first)
                self._fill(first, n)
                if n < cuda.EPOCHS_A_GRAPH or not captures:
                    self.descend(n)
                elif self._graph is None:
                    # These epochs compile the kernels, which a capture must not do.
                    self.descend(n)
                    self._graph = self.capture()
                else:
                    self._graph.replay()

    def _fill(self, first: int, epochs: int) -> None:
        """Fill the table for the steps of some epochs."""
        import torch

        pair = self.lr if isinstance(self.lr, tuple) else (self.lr, self.lr)
        steps, rows = self.source.steps, []
        for epoch in range(first, first + epochs):
            standing = Standing(epoch, math.nan, math.nan, (), (), math.nan)
            looks = isinstance(self.lr, (LossScaled, Polyak))
            rates = [math.nan, math.nan] if looks else [rate_at(lr, standing) for lr in pair]
            for step in range(epoch * steps + 1, (epoch + 1) * steps + 1):
                rows.append((*rates, *_corrections(self.rule, step)))
        self._table[: len(rows)].copy_(torch.tensor(rows, dtype=torch.float64))

    def descend(self, epochs: int) -> None:
        """That many epochs by single launches, with the table's numbers."""
        step = 0
        for _ in range(epochs):
            for rows in self.source.epoch():
                self._step(rows, self._table[step])
                step += 1

    def _step(self, rows: Any, coefficients: Any) -> None:
        factors = tuple(self.tensors[name] for name in self.names)
        found = self.source.at(factors, rows, self.wanted)
        moving = {
            name: g
            for name, g in zip(self.names, found.gradients, strict=True)
            if name not in self.freeze
        }
        rates = self._rates(found, moving, coefficients)
        if self.wanted.of_log_loss:
            self._rescale(found.log_loss)
        for name, g in moving.items():
            self._move(name, g, rates[name == "H"], coefficients)

    def _rates(self, found: Any, moving: dict[str, Any], coefficients: Any) -> Any:
        """The step sizes of W, which a bias has too, and of H."""
        if isinstance(self.lr, LossScaled):
            largest = max_spectral_square(self.tensors["W"], self.tensors["H"]).clamp(min=1.0)
            rate = self.lr.factor / (found.residual * largest)
            return rate, rate
        if isinstance(self.lr, Polyak):
            square: Any = sum(g.double().square().sum() for g in moving.values())
            if self.wanted.of_log_loss and not self.lr.of_log_loss:
                square = square * found.value.square()
            value: Any = 1.0 + square * 0.0 if self.lr.of_log_loss else found.value - self.lr.least
            rate = (self.lr.factor * value.clamp(min=0.0) / square).nan_to_num(0.0, 0.0)
            return rate, rate
        return coefficients[0], coefficients[1]

    def _rescale(self, log_loss: Any) -> None:
        """Rescale Adam's moments, as the unit of the gradients shrank."""
        unit = self.tensors["unit"]
        if _kind(self.rule) is Adam:
            ratio = (unit[0] - log_loss).clamp(max=700.0).exp().nan_to_num(1.0)
            for name in self.names:
                self.tensors[f"m{name}"].mul_(ratio)
                self.tensors[f"v{name}"].mul_(ratio * ratio)
        unit.copy_(log_loss.reshape(1))

    def _move(self, name: str, g: Any, lr: Any, coefficients: Any) -> None:
        """One factor's step by the rule, compensated where it has a low part."""
        import torch

        rule, x = self.rule, self.tensors[name]
        decay = getattr(rule, "coupled", rule.weight_decay)
        if decay:
            g = g.add(x, alpha=decay)
        match _kind(rule):
            case kind if kind is Momentum:
                m = self.tensors[f"m{name}"].mul_(rule.momentum).add_(g)
                change = (g.add(m, alpha=rule.momentum) if rule.nesterov else m) * -lr
            case kind if kind is Adam:
                b1, b2 = rule.betas
                m = self.tensors[f"m{name}"].mul_(b1).add_(g, alpha=1.0 - b1)
                v = self.tensors[f"v{name}"].mul_(b2).addcmul_(g, g, value=1.0 - b2)
                root = v.sqrt().mul_(coefficients[2]).add_(rule.eps)
                # An entry that never had a gradient keeps its value.
                change = torch.where(root > 0.0, m / root, root) * (-lr * coefficients[3])
                if rule.weight_decay and not rule.coupled:
                    change = change - x * (lr * rule.weight_decay)
            case _:
                change = g * -lr
        low = self.tensors[f"{name}_low"]
        if not low.numel():
            x.add_(change)
            return
        low.add_(change)
        before = x.clone()
        x.add_(low)
        low.sub_(x - before)

    def keep(self, steps: int) -> bool:
        """Copy the state on the device, and the generators' states."""
        kept = super().keep(steps)
        if kept:
            self._drawn = {n: g.get_state() for n, g in generators(self.source).items()}
        return kept

    def roll_back(self) -> None:
        """Return to what `keep` kept."""
        super().roll_back()
        for name, generator in generators(self.source).items():
            generator.set_state(self._drawn[name])

    def _random(self) -> dict[str, NDArray[Any]]:
        found = generators(self.source)
        return {f"{_RANDOM}{n}": g.get_state().cpu().numpy().copy() for n, g in found.items()}

    def state(self) -> dict[str, NDArray[Any]]:
        """Copies of the tensors on the host, the generators and the epoch."""
        return {**super().state(), **self._random()}

    def state_later(self) -> Callable[[], dict[str, NDArray[Any]]] | None:
        """As of plain descent; the generators are on the host."""
        later, random = super().state_later(), self._random()
        return None if later is None else lambda: {**later(), **random}

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Restore a state that `state` returned; ValueError where it does not fit."""
        import torch

        random = {name: x for name, x in state.items() if name.startswith(_RANDOM)}
        check_state(random, self._random())
        super().restore({name: x for name, x in state.items() if name not in random})
        for name, generator in generators(self.source).items():
            generator.set_state(torch.from_numpy(random[f"{_RANDOM}{name}"].copy()))


def max_spectral_square(*matrices: Any) -> Any:
    """The square of the largest singular value of several matrices, by Gram matrices in float64."""
    import torch

    found = []
    for A in matrices:
        if A.shape[0] <= A.shape[1]:
            A = A.T
        gram = torch.zeros((A.shape[1],) * 2, dtype=torch.float64, device=A.device)
        rows = max(1, (1 << 23) // A.shape[1])
        for low in range(0, len(A), rows):
            part = A[low : low + rows].double()
            gram.addmm_(part.T, part)
        found.append(torch.linalg.eigvalsh(gram)[-1])
    return torch.stack(found).max()


def _corrections(rule: Any, step: int) -> tuple[float, float]:
    """Of Adam after t steps: `(1 - b2^t)^-1/2`, a factor of sqrt(v), and `1 / (1 - b1^t)`, of m."""
    if _kind(rule) is not Adam:
        return 1.0, 1.0
    b1, b2 = rule.betas
    return 1.0 / math.sqrt(1.0 - b2**step), 1.0 / (1.0 - b1**step)


def _kind(rule: Any) -> type:
    return next((k for k in (Momentum, Adam) if isinstance(rule, k)), object)
