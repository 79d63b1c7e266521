"""The loop of every run: slices of steps, snapshots, checkpoints, interrupts, progress."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np

from fastnc._core.interrupts import Interrupted
from fastnc._core.progress import Bar

# Steps are made in slices of about this duration, between which Ctrl-C, the checkpoint's clock
# and the progress bar have their turn. Slices change no bit of the result.
_SECONDS_A_SLICE = 0.2


class Moving(Protocol):
    """What the loop drives: one run, or several in common steps."""

    @property
    def done(self) -> float:
        """The progress so far, in the units of the progress bar."""

    def arrive(self) -> bool:
        """Measure, if a snapshot is due; True if the run is at its end."""

    def move(self, steps: int) -> int:
        """Make at most `steps` steps, none beyond the next snapshot; returns how many were made."""

    def save(self) -> None:
        """Write the checkpoint, if the run has one."""

    def interrupted(self, by: str) -> Interrupted:
        """The error for a run that is stopped; the state has been saved."""


def drive(
    moving: Moving,
    every: float,
    stop: Callable[[], str],
    bar: Bar,
    seconds: Callable[[], float] = time.monotonic,
) -> None:
    """Run to the end; saves the state every `every` seconds, and when stopped.

    Raises
    ------
    Interrupted
        `stop` gave a reason.
    """
    saved, steps = seconds(), 1
    while not moving.arrive():
        now = seconds()
        reason = stop()
        if reason or now - saved >= every:
            moving.save()
            saved = now
        if reason:
            raise moving.interrupted(reason)
        before = moving.done
        made = moving.move(steps)
        bar.update(moving.done - before)
        # Twice as many next time, unless that would take too long or this slice was cut short.
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
