"""Momentum, Adam, scheduled gradient descent on small problems: many epochs in a compiled call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc._core.arrays import row_major
from fastnc.dynamics.rules import AdamW, GradientDescent, Momentum, Schedule, Standing
from fastnc.dynamics.rules.adam import Adam
from fastnc.dynamics.steppers.composed import rate_at
from fastnc.dynamics.steppers.epochs import HostEpochs

Array = NDArray[Any]
# The kernel adds `adam.least` under its root, which is not negligible beside a smaller epsilon.
_LEAST_EPSILON = 1e-12
# Rows of the kernel's numbers in one call of it.
ROWS = 8192


def _settled(rule: Any, step: int) -> bool:
    """Whether the kernel's numbers are the same from that step on."""
    if any(callable(lr) for lr in (rule.lr if isinstance(rule.lr, tuple) else (rule.lr,))):
        return False
    # Adam's corrections are 1 where 1 - beta^t is.
    return not isinstance(rule, Adam) or all(1.0 - b**step == 1.0 for b in rule.betas)


def serves(model: Any, rule: Any) -> bool:
    """Whether the compiled loop knows the rule, its schedule and the size of the model."""
    from fastnc.kernels.cpu.ruled_trajectory import serves

    if type(rule) not in (GradientDescent, Momentum, Adam, AdamW) or model.logit_loss is not None:
        return False
    rates = rule.lr if isinstance(rule.lr, tuple) else (rule.lr,)
    if any(isinstance(r, Schedule) and r.looks() for r in rates):
        return False
    if isinstance(rule, Adam) and rule.eps < _LEAST_EPSILON:
        return False
    return bool(serves(model.n_classes, model.dim, model.n_samples))


class CompiledDescent(HostEpochs):
    """A rule's steps on the mean loss (4) of all samples; in float32 compensated."""

    def __init__(
        self, W: Array, H: Array, y: NDArray[np.int64], rule: Any, freeze: Sequence[str] = ()
    ) -> None:
        super().__init__(W, H, row_major(y))
        self.rule, self.lr, self.freeze = rule, rule.lr, tuple(freeze)
        none = np.zeros((0, 0), W.dtype)
        moments = 2 if isinstance(rule, Adam) else int(isinstance(rule, Momentum))
        self.first, self.second = (
            (np.zeros_like(W), np.zeros_like(H)) if moments > i else (none, none) for i in (0, 1)
        )
        self._epochs: Any = None
        self._same = np.zeros((0, 12), W.dtype)

    def arrays(self) -> dict[str, Array]:
        """W, H, their low parts, and their moments."""
        found = dict(super().arrays())
        for name, pair in (("first", self.first), ("second", self.second)):
            if pair[0].size:
                found |= {f"{name}_{x}": values for x, values in zip("WH", pair, strict=True)}
        return found

    def make(self, epochs: int) -> None:
        """That many epochs."""
        if self._epochs is None:
            self._epochs = self._prepared()
        for first in range(0, epochs, ROWS):
            self._epochs(self._numbers(self.epoch + first, min(ROWS, epochs - first)))

    def _prepared(self) -> Any:
        from fastnc.kernels.cpu import ruled_epoch

        kind = ruled_epoch.SCALED
        if isinstance(self.rule, Momentum):
            kind = ruled_epoch.NESTEROV if self.rule.nesterov else ruled_epoch.MOMENTUM
        elif isinstance(self.rule, Adam):
            kind = ruled_epoch.ADAM
        decay, apart = self.rule.weight_decay > 0.0, isinstance(self.rule, AdamW)
        return self._kernel(kind, decay and not apart, decay and apart)

    def _kernel(self, *rule: Any) -> Any:
        from fastnc.kernels.cpu.ruled_trajectory import prepared

        low = (self.W_low, self.H_low)
        return prepared(self.W, self.H, low, self.first, self.second, self.y, *rule)

    def _numbers(self, epoch: int, epochs: int, steps: int = 1) -> Array:
        """The kernel's numbers for `epochs` epochs of `steps` steps each, from `epoch` on.

        Rows of 12, a step each, six for W and six for H: see `ruled_epoch`.
        """
        rule, rows = self.rule, epochs * steps
        t = np.arange(epoch * steps + 1, epoch * steps + rows + 1)
        settled = _settled(rule, t[0])
        if settled and rows == len(self._same):
            return self._same
        out = np.zeros((rows, 2, 6))
        pair = self.lr if isinstance(self.lr, tuple) else (self.lr, self.lr)
        if isinstance(rule, Adam):
            b1, b2 = rule.betas
            start, root = (1.0 - b1) / (1.0 - b1**t), np.sqrt((1.0 - b2) / (1.0 - b2**t))
            out[:, :, 1], out[:, :, 2] = b1, b2
            out[:, :, 3] = (rule.eps / root)[:, None]
        for i, lr in enumerate(pair):
            rates = np.zeros(rows)
            if "WH"[i] not in self.freeze:
                rates[:] = np.repeat(self._rates(lr, epoch, epochs), steps)
            out[:, i, 0] = rates
            if isinstance(rule, Momentum):
                out[:, i, 1] = rule.momentum
            if isinstance(rule, Adam):
                out[:, i, 0] = rates * start / root
            out[:, i, 4] = -rule.weight_decay
            out[:, i, 5] = -rates * rule.weight_decay
        found = np.ascontiguousarray(out.reshape(rows, 12), dtype=self.W.dtype)
        if settled:
            self._same = found
        return found

    def _rates(self, lr: Any, epoch: int, epochs: int) -> Array:
        if not callable(lr):
            return np.full(epochs, float(lr))
        nothing = Standing(0, math.nan, math.nan, (), (), math.nan)
        some = range(epoch, epoch + epochs)
        return np.array([rate_at(lr, nothing._replace(epoch=epoch)) for epoch in some])
