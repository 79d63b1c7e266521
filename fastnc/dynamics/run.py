"""One run under the loop: its snapshots, its checkpoint, and the epoch at which it diverges."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc._core.files import FOREIGN
from fastnc._core.interrupts import Diverged, Interrupted, deferred_interrupt
from fastnc._core.progress import Bar, progress_bar
from fastnc._core.serial import quiet
from fastnc.dynamics.background_writer import BackgroundWriter
from fastnc.dynamics.checkpoint import Checkpoint, foreign
from fastnc.dynamics.columns import Columns
from fastnc.dynamics.loop import drive
from fastnc.dynamics.steppers import Failed, Stepper
from fastnc.dynamics.trajectory import Trajectory

Callback = Callable[[dict[str, float]], object]


class Run:
    """A run from the time of `stepper` to the last of the times `due`.

    `about` describes the problem: a checkpoint of another one is refused. `callback` gets each
    snapshot, and ends the run by a true result. `further` columns are measured at each snapshot.
    """

    def __init__(
        self,
        stepper: Stepper,
        y: NDArray[np.int64],
        about: dict[str, Any],
        due: Sequence[float],
        callback: Callback | None = None,
        further: Columns | None = None,
    ) -> None:
        self.stepper, self.y, self.about = stepper, y, about
        self.due, self.callback, self.further = due, callback, further or Columns()
        self.path: Path | None = None
        self.rows: list[dict[str, float]] = []
        self.stopped = ""
        self._next = 0
        self._writer = BackgroundWriter()

    def go(self, path: Path | None, every: float, resume: bool, progress: bool) -> Trajectory:
        """Run to the end; raises `Diverged` or `Interrupted` with the snapshots so far."""
        if resume and path is not None and path.exists():
            self.take_up(path)
        kind = self.about.get("kind", "run")
        with (
            deferred_interrupt() as interrupted,
            progress_bar(self.total, self.stepper.unit, kind, self.done, progress) as bar,
        ):
            run = self.loop(path, every, interrupted, bar)
            self.save()
            with self.carried():
                self._writer.wait()
        return run

    @quiet
    def loop(
        self, path: Path | None, every: float, interrupted: Callable[[], str], bar: Bar
    ) -> Trajectory:
        """Run to the end on this thread; saves the state to `path` on the way, not at the end."""
        from fastnc.kernels.cpu.threads import serial_blas

        self.path = path
        # A BLAS adds in another order on two threads: a run must not depend on their number.
        with serial_blas, self.carried():
            try:
                drive(self, every, lambda: self.stop_reason(interrupted), bar, self.seconds)
            finally:
                # Messages name the file, which must be written by then.
                self._writer.wait()
        return self.trajectory(self.stopped)

    def seconds(self) -> float:
        """The clock, in seconds, of slices and checkpoints."""
        return time.monotonic()

    def stop_reason(self, interrupted: Callable[[], str]) -> str:
        """The reason to stop, empty if there is none."""
        return interrupted()

    @property
    def total(self) -> float:
        """The length of the run, in the units of the progress bar."""
        return self.due[-1]

    @property
    def done(self) -> float:
        """The progress so far."""
        return self.stepper.done

    @property
    def upcoming(self) -> float:
        """The next time that is due."""
        return self.due[self._next]

    @property
    def at_the_end(self) -> bool:
        """Whether nothing is due any more."""
        return self._next == len(self.due)

    @property
    def is_due(self) -> bool:
        """Whether a row is due where the run stands."""
        return not self.at_the_end and self.stepper.time == self.upcoming

    def arrive(self) -> bool:
        """Measure, if a snapshot is due; True at the end, or if the callback stops the run."""
        if self.is_due:
            with np.errstate(all="ignore"):
                measured = self.stepper.measure()
            self.record(measured)
            if self.callback is not None and _is_true(self.callback(dict(self.rows[-1]))):
                self.stopped = "callback"
        if self.at_the_end:
            self.stopped = self.stopped or self.stepper.end
        return bool(self.stopped)

    def record(self, measured: dict[str, float]) -> None:
        """Append the row of a time that is due; raises Diverged where the loss is not finite."""
        if not math.isfinite(measured["log_loss"]):
            raise self.diverged(self.stepper.time, self.stepper.time)
        row = {self.stepper.clock: self.upcoming, **measured}
        if self.further.names:
            self.further.check_new(row)
            row |= self.further.of(self.upcoming, self.stepper.W, self.stepper.H, self.y)
        self.rows.append(row)
        self._next += 1

    def move(self, steps: int) -> int:
        """Make at most `steps` steps; raises at the last finite state if they diverge."""
        kept, before = self.stepper.keep(steps), self.stepper.time
        try:
            made = self.stepper.advance(self.upcoming, steps)
        except Failed as failed:
            raise Diverged(str(failed), self.trajectory("failed")) from None
        if self.stepper.finite():
            return made
        if not kept:
            raise self.diverged(before, self.stepper.time)
        # Bisection for the first step that is not finite: no later one is finite either.
        low, high = 0, made
        while high - low > 1:
            middle = (low + high) // 2
            self.stepper.roll_back()
            self.stepper.advance(self.upcoming, middle)
            low, high = (middle, high) if self.stepper.finite() else (low, middle)
        self.stepper.roll_back()
        self.stepper.advance(self.upcoming, high)
        bad = self.stepper.time
        self.stepper.roll_back()
        self.stepper.advance(self.upcoming, low)
        raise self.diverged(self.stepper.time, bad)

    def diverged(self, good: float, bad: float) -> Diverged:
        """The error of a run that is not finite at `bad`, and is at `good` if that is earlier."""
        return Diverged(self.stepper.why(good, bad), self.trajectory("diverged"))

    def interrupted(self, by: str) -> Interrupted:
        """The error of a run that is stopped; the state has been saved."""
        saved = ""
        if self.path is not None:
            saved = f"; the state is in {str(self.path)!r}: resume to go on with the same bits"
        return Interrupted(
            f"stopped by {by} at {self.stepper.place(self.due[-1])}{saved}.",
            self.trajectory("interrupted"),
        )

    def trajectory(self, stopped: str) -> Trajectory:
        """The rows so far, and the current W and H."""
        about = {**self.about, **self.stepper.report(), "stopped": stopped}
        # Most steppers have neither attribute.
        bias, layers = getattr(self.stepper, "bias", None), getattr(self.stepper, "layers", ())
        W, H = self.stepper.W, self.stepper.H
        return Trajectory(self._columns(), W, H, self.y, about, bias, layers)

    def _columns(self) -> dict[str, NDArray[Any]]:
        names = self.rows[0] if self.rows else (self.stepper.clock,)
        return {name: np.array([row[name] for row in self.rows]) for name in names}

    def save(self) -> None:
        """Write the state and the rows to the run's file, if it has one."""
        if self.path is not None:
            with self.carried():
                self.write(self.path)

    @contextmanager
    def carried(self) -> Iterator[None]:
        """An OSError gets the run, which would be lost otherwise.

        `.run` is the `Trajectory` so far, `.write` writes the state to another file.
        """
        try:
            yield
        except OSError as error:
            if not hasattr(error, "run"):
                error.run = self.trajectory(self.stopped or "unsaved")  # type: ignore[attr-defined]
                error.write = self.write  # type: ignore[attr-defined]
            raise

    def write(self, path: Path) -> None:
        """Write the state and the rows to a file; a large state of a device in the background."""
        self._writer.wait()
        further, columns = self.further.state(), self._columns()

        def save(own: dict[str, NDArray[Any]]) -> None:
            Checkpoint(self.about, {**own, **further}, columns).save(path)

        # Steppers on a device have it: it starts the copy to the host.
        begin = getattr(self.stepper, "state_later", None)
        later = None if begin is None else begin()
        if later is None:
            save(self.stepper.state())
        else:
            self._writer.start(lambda: save(later()))

    def take_up(self, path: Path) -> None:
        """Go on from the checkpoint at `path`, which must be of the same problem."""
        found = Checkpoint.load(path, self.about)
        # The last row of a shorter run may not be due in this one.
        rows = found.rows(path, self.stepper.clock, set(self.due))
        try:
            times = {row[self.stepper.clock] for row in rows}
            self.stepper.restore(self.further.restored(found.state, times))
        except FOREIGN:
            raise foreign(path) from None
        if self.stepper.time > self.due[-1]:
            name = {"epoch": "epochs"}.get(self.stepper.clock, self.stepper.clock)
            raise ValueError(
                f"`{name}` must be at least the checkpoint's; {str(path)!r} is at "
                f"{self.stepper.clock} {self.stepper.time:.10g}, got {self.due[-1]:.10g}."
            )
        self.rows = rows
        self._next = bisect_left(self.due, self.stepper.time)
        if rows and rows[-1][self.stepper.clock] == self.stepper.time:
            self._next += 1


def _is_true(returned: Any) -> bool:
    """What a callback returned, as true or false."""
    try:
        return bool(returned)
    except (ValueError, TypeError, RuntimeError):
        raise TypeError(
            "`callback` must return something true, which stops the run, or false; got "
            f"{type(returned).__name__}, which is neither. Return `bool(...)`, or None."
        ) from None
