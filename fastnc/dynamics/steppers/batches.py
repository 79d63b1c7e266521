"""Descent by minibatches on a small problem, many epochs in one compiled call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc.dynamics.gradients import MiniBatch, streams
from fastnc.dynamics.rules.adam import Adam
from fastnc.dynamics.steppers import compiled

Array = NDArray[Any]


def serves(model: Any, rule: Any, source: Any) -> bool:
    """Whether the compiled loop knows the rule, its schedule and the size of the model."""
    return type(source) is MiniBatch and compiled.serves(model, rule)


class CompiledBatches(compiled.CompiledDescent):
    """A rule's steps on the mean loss (4) of a batch; in float32 compensated."""

    def __init__(
        self, W: Array, H: Array, source: MiniBatch, rule: Any, freeze: Sequence[str] = ()
    ) -> None:
        super().__init__(W, H, source.y, rule, freeze)
        self.source, self.stream, self.streams = source, source.stream, streams(source)
        self.size = min(source.size, len(self.y))
        self.n_steps = -(-len(self.y) // self.size)

    def arrays(self) -> dict[str, Array]:
        """W, H, their low parts, their moments, and the generator's state."""
        words = {f"random/{name}": stream.words() for name, stream in self.streams.items()}
        return {**super().arrays(), **words}

    def put(self, arrays: dict[str, Array]) -> None:
        """Overwrite all of these."""
        for name, x in super().arrays().items():
            np.copyto(x, arrays[name])
        for name, stream in self.streams.items():
            stream.put(arrays[f"random/{name}"])

    def make(self, epochs: int) -> None:
        """That many epochs."""
        if self._epochs is None:
            self._epochs = self._prepared()
        each = self.n_steps if isinstance(self.rule, Adam) else 1
        words = self.n_steps * self.size if self.source.replacement else len(self.y)
        most = max(1, compiled.ROWS // each)
        for first in range(0, epochs, most):
            some = min(most, epochs - first)
            numbers = self._numbers(self.epoch + first, some, each)
            self._epochs(self.stream.key, self.stream.drawn, some, numbers)
            self.stream.drawn += some * words

    def _kernel(self, *rule: Any) -> Any:
        from fastnc.kernels.cpu.batch_trajectory import prepared

        low = (self.W_low, self.H_low)
        return prepared(
            self.W, self.H, low, self.first, self.second, self.y, self.size,
            self.source.replacement, *rule,
        )  # fmt: skip
