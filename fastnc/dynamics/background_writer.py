"""One background thread that writes files while a run continues."""

from __future__ import annotations

import threading
from collections.abc import Callable


class BackgroundWriter:
    """One piece of work at a time; the next `wait` raises its error."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], object]) -> None:
        """Begin `work` in the background, once the work before it has ended."""
        self.wait()

        def guarded() -> None:
            try:
                work()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=guarded, name="fastnc-writer")
        self._thread.start()

    def wait(self) -> None:
        """Wait for the end of the work; raises its error."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
