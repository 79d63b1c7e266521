"""The steppers, one file each, and their protocol; `dynamics.run` does everything else."""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray


class Failed(ArithmeticError):
    """A stepper cannot make a further step; the message says where and why."""


class Stepper(Protocol):
    """What a run needs of a stepper.

    A stepper has a clock, the first column of the run: an epoch, or log10 of a time. `advance`
    makes steps, between which a run can be stopped: an epoch, a batch, or a step of an integrator.
    `advance` by m and then by n steps must give the bits of one by m + n, and a new stepper after
    `restore(state())` must go on with the same bits. Only `W`, `H`, `measure` and `state` fetch
    arrays to the host.
    """

    clock: str
    """Name of the first column."""
    unit: str
    """What the progress bar counts."""
    end: str
    """The value of a run's `about["stopped"]` at its last time."""

    @property
    def time(self) -> float:
        """The current time; after `advance` to a time that is due, exactly that time."""

    @property
    def done(self) -> float:
        """The progress so far, in units of the progress bar."""

    @property
    def W(self) -> NDArray[Any]:
        """The current classifier (K, d)."""

    @property
    def H(self) -> NDArray[Any]:
        """The current features (N, d)."""

    def advance(self, due: float, steps: int) -> int:
        """Make at most `steps` steps, not beyond the time `due`; returns how many were made.

        Raises
        ------
        Failed
            No further step is possible.
        """

    def finite(self) -> bool:
        """Whether the state is finite; fetches one number at most."""

    def keep(self, steps: int) -> bool:
        """Copy the state in the same memory, for `roll_back`; False if that costs too much."""

    def roll_back(self) -> None:
        """Return to the copy of `keep`, which remains."""

    def measure(self) -> dict[str, float]:
        """The columns of a snapshot of the current state; `log_loss` among them."""

    def state(self) -> dict[str, NDArray[Any]]:
        """Copies of all that the next steps depend on, the time included."""

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Restore a state that `state` returned.

        Raises
        ------
        ValueError
            It is of another problem; then nothing was changed. (Kernels check nothing.)
        """

    def report(self) -> dict[str, Any]:
        """Entries of a run's `about` that depend on the current time."""

    def place(self, last: float) -> str:
        """The current time and `last`, for a message."""

    def why(self, good: float, bad: float) -> str:
        """Why the state is not finite at `bad`; it was finite at `good`, if that is earlier."""
