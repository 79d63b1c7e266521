"""Files that are written by a thread of their own, while the run goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Behind:
    """One piece of work at a time; what it raises is raised by whoever waits for it."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], object]) -> None:
        """Do `work` meanwhile, once that before it is done."""
        self.wait()

        def guarded() -> None:
            try:
                work()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=guarded, name="fastnc-behind")
        self._thread.start()

    def wait(self) -> None:
        """Until nothing is under way; raises what went wrong."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
