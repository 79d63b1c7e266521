"""One file for each way to move; `dynamics.run` does everything around it."""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray


class Failed(ArithmeticError):
    """A stepper cannot go on; the message says where and why."""


class Stepper(Protocol):
    """What a run needs of a way to move.

    A stepper has a clock, the first column of the run: an epoch, or log10 of a time. `advance`
    makes steps, the smallest pieces between which a run can be stopped: an epoch, a batch, a step
    of an integrator. `advance` by m and then by n steps must give the bits of one by m + n, and a
    new stepper that was given `restore(state())` must go on with the same bits. Nothing but
    `W`, `H`, `measure` and `state` brings arrays to the host.
    """

    clock: str
    """Name of the first column."""
    unit: str
    """What the progress bar counts."""
    end: str
    """What a run's `about["stopped"]` says at its last time."""

    @property
    def time(self) -> float:
        """Where it stands on its clock; after `advance` to a time that is due, exactly that."""

    @property
    def done(self) -> float:
        """What has been made, in units of the progress bar."""

    @property
    def W(self) -> NDArray[Any]:
        """The current classifier (K, d)."""

    @property
    def H(self) -> NDArray[Any]:
        """The current features (N, d)."""

    def advance(self, due: float, steps: int) -> int:
        """Make at most so many steps, not beyond the time `due`; how many were made.

        Raises
        ------
        Failed
            There is no way on.
        """

    def finite(self) -> bool:
        """Whether the state is finite; no more than a number is fetched to tell."""

    def keep(self, steps: int) -> bool:
        """Copy the state where it lives, for `roll_back` after `steps`; false if too dear."""

    def roll_back(self) -> None:
        """Return to what `keep` kept, which stays kept."""

    def measure(self) -> dict[str, float]:
        """The columns of a snapshot of the current state; `log_loss` among them."""

    def state(self) -> dict[str, NDArray[Any]]:
        """Copies of all that going on with the same bits needs, the time included."""

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Take up a state that `state` returned.

        Raises
        ------
        ValueError
            It is of another problem; then nothing was changed. (Kernels check nothing.)
        """

    def report(self) -> dict[str, Any]:
        """What a run's `about` says of where it stands."""

    def place(self, last: float) -> str:
        """Where it stands on the way to `last`, for a message."""

    def why(self, good: float, bad: float) -> str:
        """Why the state is not finite at `bad`; it was finite at `good`, if that is earlier."""
