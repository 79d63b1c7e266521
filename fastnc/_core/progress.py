"""A progress bar with rate and time left on a terminal; elsewhere a line a minute."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

SECONDS_A_LINE = 60.0


class Bar(Protocol):
    """What a loop needs of its progress bar."""

    def update(self, n: float = 1) -> object:
        """`n` more units are done."""


class SharedBar:
    """A bar that several threads may move."""

    def __init__(self, bar: Bar, lock: threading.Lock) -> None:
        self.bar, self.lock = bar, lock

    def update(self, n: float = 1) -> None:
        """`n` more units are done."""
        with self.lock:
            self.bar.update(n)


class _Silent:
    def update(self, n: float = 1) -> None:
        pass


class _Lines:
    """Lines of a log file for a long run: amount done, rate and time left."""

    def __init__(self, total: float, unit: str, label: str, done: float) -> None:
        self.total, self.unit, self.label = total, unit, label
        self.first = self.done = done
        self.started = self.said = time.monotonic()

    def update(self, n: float = 1) -> None:
        self.done += n
        now = time.monotonic()
        if now - self.said < SECONDS_A_LINE or self.done <= self.first:
            return
        self.said = now
        rate = (self.done - self.first) / (now - self.started)
        left = max(0.0, self.total - self.done) / rate
        # A log that is closed, or full, must not end the run.
        with suppress(OSError, ValueError):
            print(
                f"{self.label}: {self.done:,.6g} of {self.total:,.6g} {self.unit}, {rate:,.4g} a "
                f"second, {_span(left)} left",
                file=sys.stderr,
                flush=True,
            )


def _span(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


@contextmanager
def progress_bar(
    total: float, unit: str, label: str, done: float = 0, show: bool = True
) -> Iterator[Bar]:
    """On stderr: a bar that appears after a second on a terminal, else a line every minute."""
    if not show or not _can_be_written(sys.stderr):
        yield _Silent()
    elif not sys.stderr.isatty():
        yield _Lines(total, unit, label, done)
    else:
        from tqdm import tqdm

        with tqdm(
            total=total,
            initial=done,
            desc=label,
            unit=f" {unit}",
            unit_scale=True,
            delay=1.0,
            dynamic_ncols=True,
            smoothing=0.1,
        ) as bar:
            yield bar


def _can_be_written(stream: Any) -> bool:
    """Python has no stderr at all where its parent closed it."""
    return stream is not None and not getattr(stream, "closed", False)
