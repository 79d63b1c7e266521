"""The files of a command: figures that may fail, provenance, and another folder for a run."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastnc.cli._folder import entries, write_entries

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fastnc.dynamics.trajectories import Trajectories


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

    made = {"command": ["fastnc", *sys.argv[1:]], **provenance()}
    return [*written, write_entries(folder, {**entries(folder), **{f.name: made for f in written}})]


def check_ends(runs: Trajectories) -> None:
    """Say on stderr how many of many runs diverged.

    Raises
    ------
    Diverged
        All of them, as a run alone would: their last time is not the one that was asked for.
    """
    from fastnc._core.interrupts import Diverged
    from fastnc.plots.bands import early_ends, ended_early

    said = " and ".join(early_ends(runs))
    if not said:
        return
    if all(map(ended_early, runs)):
        raise Diverged(
            f"none of {len(runs)} runs came to its end: {said}. `fastnc ulpm`, or `flow`, with one "
            "of the settings says why.",
            runs,
        )
    if sys.stderr is not None:
        print(f"fastnc: of {len(runs)} runs {said}.", file=sys.stderr)


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
