"""A progress bar with rate and time left; silent when nobody watches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Bar(Protocol):
    """What a loop needs of its progress bar."""

    def update(self, n: float = 1) -> object:
        """`n` more units are done."""


@contextmanager
def progress_bar(
    total: float, unit: str, label: str, done: float = 0, show: bool = True
) -> Iterator[Bar]:
    """A bar on stderr that appears after a second, and only on a terminal."""
    from tqdm import tqdm

    with tqdm(
        total=total,
        initial=done,
        desc=label,
        unit=f" {unit}",
        unit_scale=True,
        disable=None if show else True,
        delay=1.0,
        dynamic_ncols=True,
        smoothing=0.1,
    ) as bar:
        yield bar
