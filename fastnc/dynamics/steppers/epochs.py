"""What steppers share whose clock counts epochs, and those of them that live in NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc.dynamics.checkpoint import fitting
from fastnc.dynamics.snapshot import measure

# A slice of one epoch over more features than this is not preceded by a copy of the state, which
# would cost as much as the epoch: should it diverge, W and H are lost and the snapshots are not.
CHEAP_TO_COPY = 1_000_000


class Epochs:
    """The clock of a descent: whole epochs, each a step."""

    clock, unit, end = "epoch", "epochs", "epochs"
    epoch = 0
    lr: Any = None
    y: NDArray[np.int64]
    dim = 0

    @property
    def time(self) -> int:
        """The epoch it stands at."""
        return self.epoch

    @property
    def done(self) -> int:
        """The epochs made."""
        return self.epoch

    def advance(self, due: float, steps: int) -> int:
        """Make at most so many epochs, not beyond the epoch `due`; how many were made."""
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
        """The epoch, and how many there will be."""
        return f"epoch {self.epoch} of {int(last)}"

    def why(self, good: float, bad: float) -> str:
        """The step is too large, or the start is."""
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
        """What makes a descent diverge."""
        step = "the step is" if self.lr is None else f"the step `lr`={self.lr:g} is"
        return f"{step} too large for this problem. Take a smaller one."


class HostEpochs(Epochs):
    """Epochs of W and H in NumPy arrays; in float32 with `W_low`, `H_low`, what rounding took.

    The state is then the sum of `W` and `W_low`, without which a run stalls at a margin of 17.5.
    """

    def __init__(self, W: NDArray[Any], H: NDArray[Any], y: NDArray[np.int64]) -> None:
        self.W, self.H, self.y, self.dim = W, H, y, W.shape[1]
        compensated = W.dtype == np.float32
        self.W_low = np.zeros_like(W) if compensated else np.zeros((0, 0), W.dtype)
        self.H_low = np.zeros_like(H) if compensated else np.zeros((0, 0), H.dtype)
        self._kept: tuple[int, dict[str, NDArray[Any]]] | None = None

    def blame(self) -> str:
        """Three classes on a line, or as any other descent."""
        if self.W.shape[1] == 1 and len(np.unique(self.y)) > 2:
            return (
                "on a line, `dim`=1, at most two classes can be separated, so that the loss does "
                "not vanish while W and H grow. Take `dim` of at least 2."
            )
        return super().blame()

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays that change, as they are, by name."""
        return {"W": self.W, "H": self.H, "W_low": self.W_low, "H_low": self.H_low}

    def measure(self) -> dict[str, float]:
        """The columns of a run at the current W and H."""
        return measure(*self.wide(), self.y)

    def wide(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """W and H with what rounding took from them."""
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
        """Copy the state into room of its own, if that costs less than the steps."""
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
        """Return to what `keep` kept."""
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
        """Take up a state of `state`; ValueError where it does not fit."""
        fitting(state, {**self.arrays(), "epoch": np.array(0)})
        self.epoch = int(state["epoch"])
        self.put(state)
