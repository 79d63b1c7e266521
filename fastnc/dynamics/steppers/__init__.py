"""One file for each way to make an epoch; `fastnc.descent` does everything around it."""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray


class Stepper(Protocol):
    """What `descend` needs of a way to make epochs.

    `advance(m)` followed by `advance(n)` must give the bits of `advance(m + n)`, and a new
    stepper that was given `restore(state())` must go on with the same bits.
    """

    @property
    def W(self) -> NDArray[Any]:
        """The current classifier (K, d)."""

    @property
    def H(self) -> NDArray[Any]:
        """The current features (N, d)."""

    def advance(self, epochs: int) -> None:
        """Make that many epochs."""

    def measure(self) -> dict[str, float]:
        """The columns of a snapshot of the current state."""

    def state(self) -> dict[str, NDArray[Any]]:
        """Copies of all that going on with the same bits needs."""

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Take up a state that `state` returned."""
