"""Generators whose state is an array, so that a checkpoint can hold it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Numbers of a seed's streams; the start is drawn from the seed itself.
NOISE, BATCHES, LABELS = 1, 2, 3


class Stream:
    """A PCG64 generator, one of several of a seed."""

    def __init__(self, seed: int, stream: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence([seed, stream]))
        self.draw = np.random.Generator(self._bits)

    def words(self) -> NDArray[np.uint64]:
        """The state (6,), 128-bit numbers as pairs of 64-bit words."""
        raw: dict[str, Any] = dict(self._bits.state)
        numbers = (raw["state"]["state"], raw["state"]["inc"])
        words = [part for number in numbers for part in divmod(number, 1 << 64)]
        return np.array([*words, raw["has_uint32"], raw["uinteger"]], dtype=np.uint64)

    def put(self, state: NDArray[np.uint64]) -> None:
        """Take up a state of `words`."""
        words = [int(word) for word in state]
        self._bits.state = {
            "bit_generator": "PCG64",
            "state": {"state": (words[0] << 64) | words[1], "inc": (words[2] << 64) | words[3]},
            "has_uint32": words[4],
            "uinteger": words[5],
        }


class Draws:
    """Samples drawn by a generator that counts (`kernels.cpu.draws`): its state is one number.

    The compiled loop of minibatches draws the same.
    """

    def __init__(self, seed: int, stream: int) -> None:
        self.key = np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0]
        self.drawn = 0

    def order(self, n: int) -> NDArray[np.int64]:
        """A permutation of 0..n - 1."""
        from fastnc.kernels.cpu.draws import deal

        out = np.empty(n, np.int64)
        deal(self.key, np.uint64(self.drawn), out)
        self.drawn += n
        return out

    def numbers(self, n: int, count: int) -> NDArray[np.int64]:
        """`count` numbers of 0..n - 1, drawn with replacement."""
        from fastnc.kernels.cpu.draws import draw

        out = np.empty(count, np.int64)
        draw(self.key, np.uint64(self.drawn), n, out)
        self.drawn += count
        return out

    def words(self) -> NDArray[np.uint64]:
        """How many words were drawn."""
        return np.array([self.drawn], dtype=np.uint64)

    def put(self, state: NDArray[np.uint64]) -> None:
        """Take up a state of `words`."""
        self.drawn = int(state[0])
