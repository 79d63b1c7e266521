"""Momentum, Adam and gradient descent with a schedule on a CUDA device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc.dynamics.rules import Momentum, Standing
from fastnc.dynamics.rules.adam import Adam
from fastnc.dynamics.steppers.composed import rate_at
from fastnc.dynamics.steppers.cuda import CudaDescent


class CudaComposed(CudaDescent):
    """The rule's formula on tensors, the gradient by the kernels; nothing is fetched between.

    As `ComposedDescent` in NumPy, to rounding; in float32 updates are compensated as well.
    """

    def __init__(
        self,
        W: NDArray[Any],
        H: NDArray[Any],
        y: NDArray[np.int64],
        rule: Any,
        freeze: Sequence[str] | None = None,
    ) -> None:
        super().__init__(W, H, y, lr=rule.lr)
        self.rule, self.freeze = rule, freeze or ""
        loss = self.labels.new_zeros(1).double()
        self._room = (loss, *(self.tensors[n].new_zeros(self.tensors[n].shape) for n in "WH"))
        for name in "WH":
            for moment in {Momentum: "m", Adam: "mv"}.get(_kind(rule), ""):
                self.tensors[f"{moment}{name}"] = self.tensors[name].new_zeros(
                    self.tensors[name].shape
                )

    @property
    def is_small(self) -> bool:
        """Never: the kernel of small problems knows plain descent only."""
        return False

    def make(self, epochs: int) -> None:
        """That many epochs; the device is not waited for."""
        from fastnc.kernels.gpu.cross_entropy import loss_and_grads
        from fastnc.kernels.gpu.plan import EXACT

        W, H = self.tensors["W"], self.tensors["H"]
        loss, *gradients = self._room
        for epoch in range(self.epoch, self.epoch + epochs):
            loss_and_grads(W, H, self.labels, 1.0 / len(self.y), loss, *gradients, EXACT)
            pair = self.lr if isinstance(self.lr, tuple) else (self.lr, self.lr)
            standing = Standing(epoch, math.nan, math.nan, (), (), math.nan)
            for name, gradient, lr in zip("WH", gradients, pair, strict=True):
                if name not in self.freeze:
                    self._move(name, gradient, rate_at(lr, standing), epoch + 1)

    def _move(self, name: str, g: Any, lr: float, step: int) -> None:
        """One factor's step by the rule, compensated where it has a low part."""
        rule, x = self.rule, self.tensors[name]
        decay = getattr(rule, "coupled", rule.weight_decay)
        if decay:
            g = g.add(x, alpha=decay)
        match _kind(rule):
            case kind if kind is Momentum:
                m = self.tensors[f"m{name}"].mul_(rule.momentum).add_(g)
                change = (g.add(m, alpha=rule.momentum) if rule.nesterov else m).mul(-lr)
            case kind if kind is Adam:
                b1, b2 = rule.betas
                m = self.tensors[f"m{name}"].mul_(b1).add_(g, alpha=1.0 - b1)
                v = self.tensors[f"v{name}"].mul_(b2).addcmul_(g, g, value=1.0 - b2)
                root = v.sqrt().mul_(1.0 / math.sqrt(1.0 - b2**step)).add_(rule.eps)
                change = m.div(root).mul_(-lr / (1.0 - b1**step))
                if rule.weight_decay and not rule.coupled:
                    change = change.add(x, alpha=-lr * rule.weight_decay)
            case _:
                change = g.mul(-lr)
        low = self.tensors[f"{name}_low"]
        if not low.numel():
            x.add_(change)
            return
        low.add_(change)
        before = x.clone()
        x.add_(low)
        low.sub_(x - before)


def _kind(rule: Any) -> type:
    return next((k for k in (Momentum, Adam) if isinstance(rule, k)), object)
