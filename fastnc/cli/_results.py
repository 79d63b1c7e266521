"""The files of a command: figures that may fail, provenance, and another folder for a run."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROVENANCE = "provenance.json"


def drawn(draw: Callable[[], Figure], stem: Path) -> list[Path]:
    """Write a figure; if that fails, as without the LaTeX of a style, print the reason in a line.

    Returns its files, none if it fails: tables and numbers do not depend on it.
    """
    from fastnc.plots import save

    try:
        written: list[Path] = save(draw(), stem)
    except (ValueError, RuntimeError, OSError) as reason:
        print(f"No {stem.name}.png: {' '.join(str(reason).split())[:300]}")
        return []
    return written


def noted(folder: Path, written: Sequence[Path]) -> list[Path]:
    """`written` and `provenance.json`, which has the command, code and machine of each of them.

    A CSV file has no place for these. Other commands' files in the folder keep their entries.
    """
    from fastnc._core.environment import provenance
    from fastnc._core.files import atomic_write

    path = folder / PROVENANCE
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        held = {}
    made = {"command": ["fastnc", *sys.argv[1:]], **provenance()}
    entries = {**(held if isinstance(held, dict) else {}), **{f.name: made for f in written}}
    there = {name: entry for name, entry in entries.items() if (folder / name).is_file()}
    text = json.dumps(there, indent=1, sort_keys=True) + "\n"
    return [*written, atomic_write(path, lambda file: file.write(text.encode()))]


def rescued(error: BaseException) -> str:
    """Save the run of an error of its own folder elsewhere; returns a sentence that says where."""
    run = getattr(error, "run", None)
    if run is None or not isinstance(error, OSError):
        return ""
    written: list[Path] = []
    try:
        folder = Path(tempfile.mkdtemp(prefix="fastnc-"))
        if len(run):
            written.append(run.save(folder / ("run.npz" if hasattr(run, "W") else "runs.npz")))
        write: Any = getattr(error, "write", None)
        if write is not None and hasattr(run, "W"):
            # The network of a training is in its checkpoint only.
            suffix = ".pt" if run.about.get("kind") == "training" else ".npz"
            write(folder / f"checkpoint{suffix}")
            written += sorted(folder.glob(f"checkpoint*{suffix}"))
    except OSError as other:
        if not written:
            return f" It could not be saved elsewhere either: {other}"
    names = " and ".join(repr(str(path)) for path in written)
    return f" The run itself is in {names}." if names else ""
