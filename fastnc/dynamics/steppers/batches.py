"""Minibatch gradient descent on a small problem, epochs in one compiled call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc.dynamics.gradients import MiniBatch, streams
from fastnc.dynamics.rules import GradientDescent
from fastnc.dynamics.steppers import compiled

Array = NDArray[Any]
# Entries of the orders that are drawn for one call of the kernel.
_DRAWN = 100_000


def serves(model: Any, rule: Any, source: Any) -> bool:
    """Whether the samples of a batch alone move, all of them different, by a step of the epoch."""
    plain = type(rule) is GradientDescent and rule.weight_decay == 0.0
    dealt = type(source) is MiniBatch and not source.replacement
    return plain and dealt and compiled.serves(model, rule)


class CompiledBatches(compiled.CompiledDescent):
    """Steps of the samples of a batch, dealt out anew each epoch; in float32 compensated."""

    def __init__(
        self, W: Array, H: Array, source: MiniBatch, rule: Any, freeze: Sequence[str] = ()
    ) -> None:
        super().__init__(W, H, source.y, rule, freeze)
        self.source, self.streams = source, streams(source)

    def arrays(self) -> dict[str, Array]:
        """W, H, what rounding took from them, and the generator."""
        words = {f"random/{name}": stream.words() for name, stream in self.streams.items()}
        return {**super().arrays(), **words}

    def put(self, arrays: dict[str, Array]) -> None:
        """Overwrite all of it."""
        for name, x in super().arrays().items():
            np.copyto(x, arrays[name])
        for name, stream in self.streams.items():
            stream.put(arrays[f"random/{name}"])

    def make(self, epochs: int) -> None:
        """That many epochs."""
        n = len(self.y)
        numbers, most = self._numbers(epochs), max(1, _DRAWN // n)
        if self._epochs is None:
            self._epochs = self._prepared()
        for first in range(0, epochs, most):
            some = numbers[first : first + most]
            # The orders, and the generator's state, of as many calls of `permutation`.
            tiled = np.tile(np.arange(n), (len(some), 1))
            self._epochs(self.source.stream.draw.permuted(tiled, axis=1), some)

    def _prepared(self) -> Any:
        from fastnc.kernels.cpu.batch_trajectory import prepared

        size = min(self.source.size, len(self.y))
        return prepared(self.W, self.H, self.W_low, self.H_low, self.y, size)
