"""Runs that end early: exceptions that hold what was computed, and signals held back."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Diverged(ArithmeticError):
    """W or H stopped being finite; `run` is the `Trajectory` with the snapshots until then."""

    def __init__(self, message: str, run: Any) -> None:
        super().__init__(message)
        self.run = run

    def __reduce__(self) -> tuple[Any, ...]:
        # Workers send their errors: a pool waits for ever for one that cannot be made again.
        return type(self), (str(self), self.run)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or another signal to stop came during a run, whose snapshots are in `run`.

    For a sweep, `run` is the `Trajectories` of the finished runs.
    """

    def __init__(self, message: str, run: Any) -> None:
        super().__init__(message)
        self.run = run

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.run)


# Signals to save and stop: Ctrl-C, `kill`, a terminal that closes, a batch queue's warning.
ASKING = {"SIGINT": "Ctrl-C", "SIGTERM": "SIGTERM", "SIGHUP": "SIGHUP", "SIGUSR1": "SIGUSR1"}


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], str]]:
    """Hold back the signals of `ASKING`, so that no state is left half updated.

    Yields a function that returns the name of the first that came, "" before. A second one is not
    held back. A signal that is ignored stays so, as under `nohup`; a handler that the host program
    set for another signal than SIGINT stays too. Outside the main thread, where Python delivers no
    signal, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: ""
        return
    came: list[str] = []
    before: dict[int, Any] = {}

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def hold(number: int, frame: object) -> None:
        came.append(ASKING[signal.Signals(number).name])
        put_back()

    for name in ASKING:
        # Windows has not all of them; a handler that is None was not installed from Python.
        number = getattr(signal, name, None)
        if number is None:
            continue
        handler = signal.getsignal(number)
        ours = handler == signal.SIG_DFL or (name == "SIGINT" and callable(handler))
        if ours and handler != signal.SIG_IGN:
            before[number] = handler
    for number in before:
        signal.signal(number, hold)
    try:
        yield lambda: came[0] if came else ""
    finally:
        put_back()
