"""`fastnc plot RUN...`: the figures of runs that were saved, without running them again."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer


def plot(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="run.npz, runs.npz, or their folder.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the figures.", show_default="that of each run")
    ] = None,
) -> None:
    """Draw the figures of saved runs again: of descents, flows, sweeps and trainings.

    Each figure is written as .png and .pdf and named after its run's file; of several files of one
    name in one --out, after their folders too. Beside the run a figure takes the place of that of
    the same name; in --out that one is moved to earlier-1, earlier-2, .... Exit status 1 if there
    is a run of which no figure could be drawn.
    """
    from fastnc.cli._folder import claimed
    from fastnc.cli._results import drawn, noted

    written: list[Path] = []
    bare: list[str] = []
    paths = [_file(given) for given in runs]
    names = [path.stem for path in paths] if out is None else _names(paths)
    of = "|".join(map(re.escape, names))
    ours = re.compile(rf"({of})-(figure2|figure3|flow|margin|sweep)\.(png|pdf)")
    with nullcontext() if out is None else claimed(out, ours):
        for path, stem in zip(paths, names, strict=True):
            run, figures = _suited(path)
            folder = path.parent if out is None else out
            made: list[Path] = []
            for name, draw in figures.items():
                made += drawn(partial(draw, run), folder / f"{stem}-{name}")
            if made:
                written += noted(folder, made)
            else:
                bare.append(str(path))
        if written:
            print("Written:", *dict.fromkeys(written), sep="\n  ")
        if bare:
            raise RuntimeError(f"no figure could be drawn of {', '.join(bare)}.")


def _names(paths: list[Path]) -> list[str]:
    """Names without an ending, made unique by the folder's name, then by a number."""
    names = [path.stem for path in paths]
    names = [
        f"{path.resolve().parent.name}-{path.stem}" if names.count(path.stem) > 1 else path.stem
        for path in paths
    ]
    return [
        f"{name}-{names[: i + 1].count(name)}" if names.count(name) > 1 else name
        for i, name in enumerate(names)
    ]


def _file(given: Path) -> Path:
    """The run that a folder holds, or the file itself."""
    if not given.is_dir():
        # Before the figures of the others are drawn.
        if not given.exists():
            raise FileNotFoundError(f"`RUN` must be a file or the folder of one; {given} is none.")
        return given
    found = [given / name for name in ("run.npz", "runs.npz") if (given / name).is_file()]
    if len(found) != 1:
        held = "no run.npz and no runs.npz" if not found else "both run.npz and runs.npz"
        raise FileNotFoundError(f"`RUN` must be a file or the folder of one; {given} holds {held}.")
    return found[0]


def _suited(path: Path) -> tuple[Any, dict[str, Callable[[Any], Any]]]:
    """The runs of a file, and the functions of their figures by name."""
    from fastnc import plots
    from fastnc.dynamics.trajectories import Trajectories
    from fastnc.dynamics.trajectory import Trajectory

    try:
        run = Trajectory.load(path)
    except ValueError:
        return Trajectories.load(path), {"sweep": plots.sweep_bands}
    match run.about.get("kind"):
        case "training":
            return run, {"figure3": plots.figure3}
        case "flow" if run.about.get("solver") != "dense":
            return run, {"flow": plots.long_horizon, "margin": plots.missing_margin}
        case _:
            return run, {"figure2": plots.figure2}
