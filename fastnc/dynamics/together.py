"""Several runs under one loop: common steps, and for each run its own rows and its own end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastnc._core.interrupts import Diverged, Interrupted
from fastnc._core.progress import Bar
from fastnc.dynamics.loop import drive
from fastnc.dynamics.run import Run
from fastnc.dynamics.trajectory import Trajectory


class Many(Protocol):
    """Steps for the steppers of several runs at once."""

    def advance(self, due: float, steps: int) -> int:
        """Make at most `steps` steps of all, not beyond `due`; returns how many were made."""

    def finite(self) -> NDArray[np.bool_]:
        """Which of them are finite."""

    def roll_back(self, b: int, steps: int) -> None:
        """Return stepper b to its state before the last `advance`, which made `steps` steps."""

    def measure(self) -> list[dict[str, float]]:
        """The columns of a snapshot of each."""


class Together:
    """Runs of one shape, at one epoch, with the same epochs due; `many` makes their steps.

    A run that diverges is repeated alone from the last slice, to find the epoch, and ends there.
    """

    def __init__(self, runs: Sequence[Run], many: Many, paths: Sequence[Path | None]) -> None:
        self.runs, self.many = runs, many
        self.ended: dict[int, Trajectory] = {}
        for run, path in zip(runs, paths, strict=True):
            run.path = path

    def go(self, every: float, stop: Callable[[], str], bar: Bar) -> list[Trajectory]:
        """Run all to their ends, each with the same bits as alone."""
        drive(self, every, stop, bar)
        return [self.ended[b] for b in range(len(self.runs))]

    @property
    def done(self) -> float:
        """Epochs made of all runs together."""
        return sum(run.total if b in self.ended else run.done for b, run in enumerate(self.runs))

    def arrive(self) -> bool:
        """Measure each run where that is due; a run resumed at a snapshot has its row already."""
        left = [b for b in range(len(self.runs)) if b not in self.ended]
        due = [b for b in left if self.runs[b].is_due]
        if due:
            with np.errstate(all="ignore"):
                rows = self.many.measure()
            for b in due:
                self._until(b, self.runs[b].record, rows[b])
        for b in left:
            if b not in self.ended and self.runs[b].at_the_end:
                self.ended[b] = self.runs[b].trajectory(self.runs[b].stepper.end)
        return len(self.ended) == len(self.runs)

    def move(self, steps: int) -> int:
        """Make at most `steps` steps of all."""
        made = self.many.advance(next(self._moving()).upcoming, steps)
        for b in np.flatnonzero(~self.many.finite()).tolist():
            if b not in self.ended:
                self.many.roll_back(b, made)
                self._until(b, self.runs[b].move, made)
        return made

    def save(self) -> None:
        """Each run's state to its own file."""
        for run in self._moving():
            run.save()

    def interrupted(self, by: str) -> Interrupted:
        """The error when stopped, with the rows of the first run."""
        return self.runs[0].interrupted(by)

    def _moving(self) -> Any:
        return (run for b, run in enumerate(self.runs) if b not in self.ended)

    def _until(self, b: int, act: Callable[[Any], object], argument: Any) -> None:
        try:
            act(argument)
        except Diverged as diverged:
            self.ended[b] = diverged.run
