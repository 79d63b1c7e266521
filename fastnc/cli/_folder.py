"""The folder of `--out`: for one command at a time; earlier results are moved to a subfolder."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fastnc._core.files import atomic_write, locked, out_dir

HELP = "Folder for everything written; earlier results in it are moved to earlier-1, ...."
PROVENANCE = "provenance.json"
# What the commands that can be resumed write: each of them may take up what another one left.
_RUNS = re.compile(
    r"(checkpoint|previous-checkpoint|run|runs|peeled|figure2|figure3|depth|flow|margin|sweep"
    r"|compare)(-rank\d+of\d+(-\d)?|-underway\d+|-(figure2|figure3|flow|margin|sweep))?"
    r"\.(npz|pt|csv|json|png|pdf)|tensorboard"
)
# The earlier results that a command would replace.
REPLACES = {
    **dict.fromkeys(("ulpm", "flow", "sweep", "compare", "train"), _RUNS),
    "metrics": re.compile(r"metrics\.(json|tex|png|pdf)|layers\.(json|png|pdf)"),
    "verify": re.compile(r"verify\.(csv|json|png|pdf)"),
    "table1": re.compile(r"table1\.(csv|tex)|(geometry|minority_collapse)\.(png|pdf)"),
}


@contextmanager
def claimed(out: Path, ours: re.Pattern[str] | None) -> Iterator[Path]:
    """Make and lock the folder `out`, and move earlier results, whose names `ours` matches, away.

    They go to a folder `earlier-1`, `earlier-2`, ... in `out`; `None` leaves them where they are,
    as for a command that resumes. A command that ends in an error and wrote nothing leaves nothing:
    earlier results are moved back, and folders that were made for it are removed. Of the ranks that
    torchrun starts, the first one moves for the others.
    """
    with _made(out) as folder:
        if int(os.environ.get("RANK", "0")) > 0 and "LOCAL_RANK" in os.environ:
            yield folder
            return
        handle = os.open(folder, os.O_RDONLY)
        try:
            if not locked(handle):
                raise OSError(
                    f"`--out` {str(folder)!r} is being written by another fastnc command. Wait for "
                    "it, or name another folder."
                )
            aside = None if ours is None else _move_aside(folder, ours)
            try:
                yield folder
            except BaseException:
                if aside is not None and ours is not None and not _results(folder, ours):
                    _move_back(aside)
                    aside = None
                raise
            finally:
                if aside is not None:
                    with suppress(OSError):
                        write_entries(aside, entries(aside))
                    print(f"Earlier results of {folder} are now in {aside}.")
        finally:
            os.close(handle)


def told_written(folder: Path, ours: re.Pattern[str]) -> str:
    """A sentence on the results that are in a folder; empty if there are none."""
    try:
        names = [path.name for path in _results(folder, ours)]
    except OSError:
        return ""
    return f" {str(folder)!r} holds {', '.join(names)}." if names else ""


def entries(folder: Path) -> dict[str, Any]:
    """What `provenance.json` of a folder says of each file; empty where there is none."""
    try:
        held = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}


def write_entries(folder: Path, of: dict[str, Any]) -> Path:
    """Write what `provenance.json` says of the files that are in a folder."""
    there = {name: entry for name, entry in of.items() if (folder / name).is_file()}
    text = json.dumps(there, indent=1, sort_keys=True) + "\n"
    return atomic_write(folder / PROVENANCE, lambda file: file.write(text.encode()))


@contextmanager
def _made(out: Path) -> Iterator[Path]:
    """The folder `out`, and after an error without those that were made for it and are empty."""
    new = [folder for folder in (out, *out.parents) if not os.path.lexists(folder)]
    try:
        yield out_dir(out)
    except BaseException:
        for folder in new:
            # Another command may have written into it meanwhile.
            with suppress(OSError):
                folder.rmdir()
        raise


def _results(folder: Path, ours: re.Pattern[str]) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if ours.fullmatch(path.name)]


def _move_aside(folder: Path, ours: re.Pattern[str]) -> Path | None:
    found = _results(folder, ours)
    if not found:
        return None
    number = 1
    while os.path.lexists(folder / f"earlier-{number}"):
        number += 1
    aside = folder / f"earlier-{number}"
    aside.mkdir()
    known = entries(folder)
    stay = known.keys() - {path.name for path in found}
    try:
        for path in found:
            path.rename(aside / path.name)
        if known:
            (folder / PROVENANCE).rename(aside / PROVENANCE)
        if stay:
            write_entries(folder, {name: known[name] for name in stay})
    except OSError:
        _move_back(aside)
        raise
    return aside


def _move_back(aside: Path) -> None:
    """By renames alone, which a full disk allows."""
    for path in aside.iterdir():
        path.rename(aside.parent / path.name)
    aside.rmdir()
