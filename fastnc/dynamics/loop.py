"""The one loop around everything that moves: slices, snapshots, checkpoints, a stop, progress."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np

from fastnc._core.interrupts import Interrupted
from fastnc._core.progress import Bar

# Steps are made in slices of about this long, so that Ctrl-C, the clock of the checkpoints and
# the progress bar are looked at between them. Slices change no bit of the result.
_SECONDS_A_SLICE = 0.2


class Moving(Protocol):
    """What the loop drives: one run, or several that move as one."""

    @property
    def done(self) -> float:
        """What has been made, in the units of the progress bar."""

    def arrive(self) -> bool:
        """Measure where that is due; true where there is nothing left to do."""

    def move(self, steps: int) -> int:
        """Make at most so many steps, none beyond the next snapshot; how many were made."""

    def save(self) -> None:
        """Write the state to where checkpoints go, if anywhere."""

    def interrupted(self, by: str) -> Interrupted:
        """What to raise where something asked to stop; the state has been saved."""


def drive(
    moving: Moving,
    every: float,
    stop: Callable[[], str],
    bar: Bar,
    seconds: Callable[[], float] = time.monotonic,
) -> None:
    """Move to the end; the state is saved every `every` seconds meanwhile, and when stopped.

    Raises
    ------
    Interrupted
        `stop` said by what.
    """
    saved, steps = seconds(), 1
    while not moving.arrive():
        now = seconds()
        asked = stop()
        if asked or now - saved >= every:
            moving.save()
            saved = now
        if asked:
            raise moving.interrupted(asked)
        before = moving.done
        made = moving.move(steps)
        bar.update(moving.done - before)
        # Twice as many next time, unless that would take too long or this was no full slice.
        took = seconds() - now
        if took > _SECONDS_A_SLICE:
            steps = max(1, steps // 2)
        elif made == steps and took < 0.5 * _SECONDS_A_SLICE:
            steps *= 2


def snapshot_epochs(epochs: int, a_decade: int) -> list[int]:
    """The epochs 0, 1 and `epochs`, and `a_decade` log-spaced ones a decade between."""
    steps = math.floor(math.log10(epochs) * a_decade) + 1
    spaced = np.rint(10.0 ** (np.arange(steps) / a_decade)).astype(np.int64)
    return sorted({0, 1, epochs, *spaced[spaced <= epochs].tolist()})
