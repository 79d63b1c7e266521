"""The loop around a stepper: snapshots, checkpoints, Ctrl-C, divergence and progress."""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc._core.interrupts import Diverged, Interrupted, deferred_interrupt
from fastnc._core.progress import Bar, progress_bar
from fastnc.dynamics.checkpoint import Checkpoint
from fastnc.dynamics.steppers import Stepper
from fastnc.dynamics.trajectory import Trajectory

Callback = Callable[[dict[str, float]], object]

# Epochs are made in slices of about this long, so that Ctrl-C, the clock of the checkpoints
# and the progress bar are looked at between them. Slices change no bit of the result.
_SECONDS_A_SLICE = 0.2
# A slice of one epoch over more features than this is not preceded by a copy of the state, which
# would cost as much as the epoch: should it diverge, W and H are lost and the snapshots are not.
_CHEAP_TO_COPY = 1_000_000


def snapshot_epochs(epochs: int, a_decade: int) -> list[int]:
    """The epochs 0, 1 and `epochs`, and `a_decade` log-spaced ones a decade between."""
    steps = math.floor(math.log10(epochs) * a_decade) + 1
    spaced = np.rint(10.0 ** (np.arange(steps) / a_decade)).astype(np.int64)
    return sorted({0, 1, epochs, *spaced[spaced <= epochs].tolist()})


class Run:
    """A descent from where `stepper` stands to `epochs`, measured at log-spaced epochs."""

    def __init__(
        self,
        stepper: Stepper,
        y: NDArray[np.int64],
        about: dict[str, Any],
        epochs: int,
        callback: Callback | None,
    ) -> None:
        self.stepper, self.y, self.about = stepper, y, about
        self.epochs, self.callback = epochs, callback
        self.due = snapshot_epochs(epochs, about["snapshots"])
        self.epoch = 0
        self.rows: list[dict[str, float]] = []

    def go(self, path: Path | None, every: float, resume: bool, progress: bool) -> Trajectory:
        """Run to the end; raises `Diverged` or `Interrupted` with what there is by then."""
        if resume and path is not None and path.exists():
            self.take_up(path)
        with (
            deferred_interrupt() as interrupted,
            progress_bar(self.epochs, "epochs", "descent", self.epoch, progress) as bar,
        ):
            run = self.loop(path, every, interrupted, bar)
        if path is not None:
            self._save(path)
        return run

    def loop(
        self, path: Path | None, every: float, interrupted: Callable[[], bool], bar: Bar
    ) -> Trajectory:
        """Run to the end on this thread; the state goes to `path` meanwhile, not at the end."""
        saved = self.now()
        slice_epochs = 1
        while True:
            if (
                self._measure_if_due()
                and self.callback is not None
                and self.callback(self.rows[-1])
            ):
                return self._trajectory("callback")
            if self.epoch == self.epochs:
                return self._trajectory("epochs")
            now = self.now()
            if path is not None and now - saved >= every:
                self._save(path)
                saved = now
            if self.stop_asked(interrupted):
                raise self._interrupted(path)
            upcoming = self.due[bisect_right(self.due, self.epoch)]
            made = min(slice_epochs, upcoming - self.epoch)
            self._advance(made)
            bar.update(made)
            # Twice as many next time, unless that would take too long or this was no full slice.
            seconds = self.now() - now
            if seconds > _SECONDS_A_SLICE:
                slice_epochs = max(1, slice_epochs // 2)
            elif made == slice_epochs and seconds < 0.5 * _SECONDS_A_SLICE:
                slice_epochs *= 2

    def now(self) -> float:
        """Seconds of a clock by which slices and checkpoints are timed."""
        return time.monotonic()

    def stop_asked(self, interrupted: Callable[[], bool]) -> bool:
        """Whether Ctrl-C fell."""
        return interrupted()

    def _measure_if_due(self) -> bool:
        measured = bool(self.rows) and self.rows[-1]["epoch"] == self.epoch
        if measured or self.epoch not in self.due:
            return False
        with np.errstate(all="ignore"):
            row = {"epoch": self.epoch, **self.stepper.measure()}
        if not math.isfinite(row["log_loss"]):
            raise self._diverged(self.epoch)
        self.rows.append(row)
        return True

    def _advance(self, made: int) -> None:
        cheap = made > 1 or self.stepper.H.size <= _CHEAP_TO_COPY
        before = self.stepper.state() if cheap else None
        self.stepper.advance(made)
        if self._is_finite():
            self.epoch += made
            return
        # Which epoch was it? Every later one is not finite either, so halve the slice.
        low, high = 0, made
        while before is not None and high - low > 1:
            middle = (low + high) // 2
            self.stepper.restore(before)
            self.stepper.advance(middle)
            low, high = (middle, high) if self._is_finite() else (low, middle)
        if before is not None:
            self.stepper.restore(before)
            self.stepper.advance(low)
        self.epoch += low
        raise self._diverged(self.epoch + high - low)

    def _diverged(self, epoch: int) -> Diverged:
        if epoch == 0:
            why = "the loss of the start is not finite: a logit overflows. Scale `W` and `H` down."
        else:
            why = (
                f"W or H is not finite after epoch {epoch}: the step `lr`={self.about['lr']:g} is "
                "too large for this problem. Take a smaller one."
            )
        return Diverged(why, self._trajectory("diverged"))

    def _is_finite(self) -> bool:
        # A sample whose features are not finite makes the classifier so within an epoch, and
        # the classifier is the small one of the two.
        return bool(np.isfinite(self.stepper.W).all())

    def _interrupted(self, path: Path | None) -> Interrupted:
        saved = ""
        if path is not None:
            self._save(path)
            saved = f"; the state is in {str(path)!r}: resume to go on with the same bits"
        return Interrupted(
            f"stopped by Ctrl-C at epoch {self.epoch} of {self.epochs}{saved}.",
            self._trajectory("interrupted"),
        )

    def _columns(self) -> dict[str, NDArray[Any]]:
        names = self.rows[0] if self.rows else ("epoch",)
        return {name: np.array([row[name] for row in self.rows]) for name in names}

    def _trajectory(self, stopped: str) -> Trajectory:
        about = {**self.about, "epochs": self.epoch, "stopped": stopped}
        # Most models have none, and their steppers do not speak of it.
        bias = getattr(self.stepper, "bias", None)
        return Trajectory(self._columns(), self.stepper.W, self.stepper.H, self.y, about, bias)

    def _save(self, path: Path) -> None:
        Checkpoint(self.epoch, self.about, self.stepper.state(), self._columns()).save(path)

    def take_up(self, path: Path) -> None:
        """Go on from the checkpoint at `path`, which must be of the same problem."""
        found = Checkpoint.load(path, self.about)
        if found.epoch > self.epochs:
            raise ValueError(
                f"`epochs` must be at least the checkpoint's; {str(path)!r} is at epoch "
                f"{found.epoch}, got {self.epochs}."
            )
        state = found.state_like(path, self.stepper.state())
        # The last row of a run that was shorter may lie off this one's grid.
        self.rows = found.rows(path, "epoch", self.due)
        self.stepper.restore(state)
        self.epoch = found.epoch
