"""The folder of `--out`: for one command at a time; earlier results are moved to a subfolder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastnc._core.files import locked, out_dir

# What the commands that can be resumed write.
RESULTS = re.compile(
    r"(checkpoint|previous-checkpoint|run|run-rank|runs|peeled"
    r"|figure2|figure3|depth|flow|margin|sweep|compare|provenance)"
    r"[-\w]*\.(npz|pt|csv|json|png|pdf)"
)
# After these errors a command that wrote nothing moves the earlier results back.
REFUSED = (ValueError, TypeError, OSError, ImportError)


@contextmanager
def prepared(out: Path) -> Iterator[Path]:
    """The folder `out`, there before what takes long, and gone again where that was refused."""
    new = not out.exists()
    folder = out_dir(out)
    try:
        yield folder
    except REFUSED:
        if new:
            with suppress(OSError):
                folder.rmdir()
        raise


@contextmanager
def claimed(out: Path, resumes: bool) -> Iterator[None]:
    """Lock `out` against other commands; unless the command `resumes`, move earlier results away.

    They go to a folder `earlier-1`, `earlier-2`, ... in `out`. Of the ranks that torchrun starts,
    the first one does all this for the others.
    """
    if int(os.environ.get("RANK", "0")) > 0 and "LOCAL_RANK" in os.environ:
        yield
        return
    folder = out_dir(out)
    handle = os.open(folder, os.O_RDONLY)
    try:
        if not locked(handle):
            raise OSError(
                f"`--out` {str(folder)!r} is being written by another fastnc command. Wait for "
                "it, or name another folder."
            )
        aside = None if resumes else _move_aside(folder)
        try:
            yield
        except REFUSED:
            if aside is not None and not _results(folder):
                _move_back(aside)
                aside = None
            raise
        finally:
            if aside is not None:
                print(f"Earlier results of {folder} are now in {aside}.")
    finally:
        os.close(handle)


def _results(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if RESULTS.fullmatch(path.name)]


def _move_aside(folder: Path) -> Path | None:
    found = _results(folder)
    if not found:
        return None
    number = 1
    while (folder / f"earlier-{number}").exists():
        number += 1
    aside = folder / f"earlier-{number}"
    aside.mkdir()
    for path in found:
        path.rename(aside / path.name)
    return aside


def _move_back(aside: Path) -> None:
    for path in aside.iterdir():
        path.rename(aside.parent / path.name)
    aside.rmdir()
