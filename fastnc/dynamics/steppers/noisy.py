"""Gradient descent with Gaussian noise on the gradient: the escape of Example 3.1."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc._core.arrays import row_major
from fastnc.dynamics.steppers.epochs import HostEpochs


class NoisyDescent(HostEpochs):
    """`theta -= lr (dL/dtheta + noise xi)`, xi standard normal, drawn anew every epoch.

    From a saddle such as (7) plain descent only grows the norm; the noise has a part along the
    escaping direction with probability 1 (Remark 3.3). As the gradient falls like 1/t, a noise
    that stays outweighs it in the end: leave the saddle with it, then go on without. Each epoch
    draws for W first, then for H, in float64; the generator's state is part of the stepper's.
    """

    def __init__(
        self,
        W: NDArray[Any],
        H: NDArray[Any],
        y: NDArray[np.int64],
        lr: float,
        noise: float,
        seed: int,
    ) -> None:
        super().__init__(W, H, row_major(y))
        self.lr, self.noise = lr, noise
        # A stream of its own, apart from the one that the start was drawn from.
        self._bits = np.random.PCG64(np.random.SeedSequence([seed, 1]))
        self._random = np.random.Generator(self._bits)

    def make(self, epochs: int) -> None:
        from fastnc.kernels.cpu.cross_entropy import loss_and_grads

        loss, grad_W, grad_H = np.empty(1), np.empty_like(self.W), np.empty_like(self.H)
        for _ in range(epochs):
            loss_and_grads(self.W, self.H, self.y, 1.0 / len(self.y), loss, grad_W, grad_H)
            for x, gradient in ((self.W, grad_W), (self.H, grad_H)):
                step = self.lr * (gradient + self.noise * self._random.standard_normal(x.shape))
                x -= step.astype(x.dtype, copy=False)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """W, H, and the generator's state as it is now."""
        raw: dict[str, Any] = dict(self._bits.state)
        numbers = (raw["state"]["state"], raw["state"]["inc"])
        # 128-bit numbers as pairs of 64-bit words.
        words = [part for number in numbers for part in divmod(number, 1 << 64)]
        words += [raw["has_uint32"], raw["uinteger"]]
        return {"W": self.W, "H": self.H, "generator": np.array(words, dtype=np.uint64)}

    def put(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Overwrite W, H and the generator's state."""
        np.copyto(self.W, arrays["W"])
        np.copyto(self.H, arrays["H"])
        words = [int(word) for word in arrays["generator"]]
        self._bits.state = {
            "bit_generator": "PCG64",
            "state": {"state": (words[0] << 64) | words[1], "inc": (words[2] << 64) | words[3]},
            "has_uint32": words[4],
            "uinteger": words[5],
        }
