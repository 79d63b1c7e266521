"""How a run ends before its time, with everything it had computed still in hand."""

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


class Interrupted(KeyboardInterrupt):
    """Ctrl-C fell during a run; `run` holds the snapshots until then.

    Of a sweep, `run` is the `Trajectories` of the runs that were done.
    """

    def __init__(self, message: str, run: Any) -> None:
        super().__init__(message)
        self.run = run


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Hold Ctrl-C back, and say whether it fell, so that no state is left half updated.

    A second Ctrl-C is not held back. Outside the main thread, where Python delivers no
    signal, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    fell: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def hold(number: int, frame: object) -> None:
        fell.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, hold)
    try:
        yield lambda: bool(fell)
    finally:
        signal.signal(signal.SIGINT, before)
