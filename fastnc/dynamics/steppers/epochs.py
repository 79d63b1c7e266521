"""The base of steppers whose clock counts epochs, and of those of NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc.dynamics.checkpoint import check_state
from fastnc.dynamics.description import described
from fastnc.dynamics.snapshot import measure

# With more entries of H than this a slice of one epoch has no copy of the state, which would cost
# as much as the epoch: if it diverges, W and H are lost and the snapshots are not.
CHEAP_TO_COPY = 1_000_000


class Epochs:
    """The clock of a descent: whole epochs, each a step."""

    clock, unit, end = "epoch", "epochs", "epochs"
    epoch = 0
    lr: Any = None
    source: Any = None
    y: NDArray[np.int64]
    dim = 0

    @property
    def time(self) -> int:
        """The current epoch."""
        return self.epoch

    @property
    def done(self) -> int:
        """The epochs made."""
        return self.epoch

    def advance(self, due: float, steps: int) -> int:
        """Make at most `steps` epochs, not beyond the epoch `due`; returns how many were made."""
        made = min(steps, int(due) - self.epoch)
        self.make(made)
        self.epoch += made
        return made

    def make(self, epochs: int) -> None:
        """Make that many epochs."""
        raise NotImplementedError

    def report(self) -> dict[str, Any]:
        """The epochs made, as `about` has them."""
        return {"epochs": self.epoch}

    def place(self, last: float) -> str:
        """The current epoch and the last one."""
        return f"epoch {self.epoch} of {int(last)}"

    def why(self, good: float, bad: float) -> str:
        """That the step or the start is too large, or that one feature cannot separate."""
        if bad == 0:
            return "the loss of the start is not finite: a logit overflows. Scale `W` and `H` down."
        where = f"after epoch {bad:.0f}"
        if bad - good > 1:
            where = f"somewhere after epoch {good:.0f} and at the latest {where}"
        if self.dim == 1 and (K := len(np.unique(self.y))) > 2:
            return (
                f"W or H is not finite {where}: one feature separates at most two classes, of "
                f"{K} here, so that the loss does not vanish and W and H grow until a step is too "
                "long. Take a model with `dim` of at least 2."
            )
        return f"W or H is not finite {where}: {self.blame()}"

    def blame(self) -> str:
        """The cause of a divergence, the step or the noise as the user gave it, and the way out."""
        what, many = "the step", False
        if isinstance(self.lr, (int, float)):
            what = f"the step `lr`={self.lr:g}"
        elif self.lr is not None:
            what, many = f"the steps of `lr`={described(self.lr)}", True
        if noises := _noises(self.source):
            what += f" or the noise {' or '.join(noises)}"
        verb, way_out = ("are", "smaller ones") if many else ("is", "a smaller one")
        return f"{what} {verb} too large for this problem. Take {way_out}."


def _noises(source: Any) -> list[str]:
    """The noise of a source of gradients and of those that it wraps, as the user gave it."""
    found = []
    while source is not None:
        if noise := getattr(source, "noise", ""):
            found.append(noise)
        source = getattr(source, "source", None)
    return found


class HostEpochs(Epochs):
    """Epochs of W and H in NumPy arrays; in float32 with their low parts `W_low`, `H_low`.

    The state is then `W + W_low`, `H + H_low`: without the low parts, which hold the rounding
    errors of the updates, a run stalls at a margin of 17.5.
    """

    def __init__(self, W: NDArray[Any], H: NDArray[Any], y: NDArray[np.int64]) -> None:
        self.W, self.H, self.y, self.dim = W, H, y, W.shape[1]
        compensated = W.dtype == np.float32
        self.W_low = np.zeros_like(W) if compensated else np.zeros((0, 0), W.dtype)
        self.H_low = np.zeros_like(H) if compensated else np.zeros((0, 0), H.dtype)
        self._kept: tuple[int, dict[str, NDArray[Any]]] | None = None

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays that change, not copied, by name."""
        return {"W": self.W, "H": self.H, "W_low": self.W_low, "H_low": self.H_low}

    def measure(self) -> dict[str, float]:
        """The columns of a run at the current W and H."""
        return measure(*self.wide(), self.y)

    def wide(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """`W + W_low` and `H + H_low` in float64; W and H if there are no low parts."""
        if not self.W_low.size:
            return self.W, self.H
        return (
            np.add(self.W, self.W_low, dtype=np.float64),
            np.add(self.H, self.H_low, dtype=np.float64),
        )

    def finite(self) -> bool:
        """Whether W is finite.

        A sample whose features are not finite makes the classifier so within an epoch, and the
        classifier is the small one of the two.
        """
        return bool(np.isfinite(self.W).all())

    def keep(self, steps: int) -> bool:
        """Copy the state, if that costs less than the steps."""
        if steps == 1 and self.H.size > CHEAP_TO_COPY:
            return False
        now = self.arrays()
        if self._kept is None:
            self._kept = self.epoch, {name: x.copy() for name, x in now.items()}
            return True
        self._kept = self.epoch, self._kept[1]
        for name, x in now.items():
            np.copyto(self._kept[1][name], x)
        return True

    def roll_back(self) -> None:
        """Return to the copy of `keep`."""
        if self._kept is not None:
            self.epoch, kept = self._kept
            self.put(kept)

    def put(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Overwrite the arrays that change."""
        for name, x in self.arrays().items():
            np.copyto(x, arrays[name])

    def state(self) -> dict[str, NDArray[Any]]:
        """Copies of the arrays, and the epoch."""
        copies = {name: x.copy() for name, x in self.arrays().items()}
        return {**copies, "epoch": np.array(self.epoch)}

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Restore a state that `state` returned; ValueError where it does not fit."""
        check_state(state, {**self.arrays(), "epoch": np.array(0)})
        self.epoch = int(state["epoch"])
        self.put(state)
