"""`fastnc compare RULE RULE ...`: several update rules on one axis, over many starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fastnc.cli._folder import HELP as OUT
from fastnc.cli._models import CLASS_SIZES, LOSS, NOISE, Loss
from fastnc.cli._rules import HELP

if TYPE_CHECKING:
    from fastnc.dynamics.trajectories import Trajectories


def compare(
    rules: Annotated[list[str], typer.Argument(help=HELP, metavar="RULE...")],
    n_classes: Annotated[int, typer.Option(help="Classes K, at least 2.")] = 5,
    n_per_class: Annotated[int, typer.Option(help="Samples a class, n.")] = 10,
    dim: Annotated[int, typer.Option(help="Features d.")] = 20,
    class_sizes: Annotated[str | None, typer.Option(help=CLASS_SIZES, show_default=False)] = None,
    loss: Annotated[Loss, typer.Option(help=LOSS)] = "cross-entropy",
    epochs: Annotated[int, typer.Option(help="Epochs of each run.")] = 10_000,
    batch_size: Annotated[
        int | None, typer.Option(help="Most samples a step; by default all.", show_default=False)
    ] = None,
    noise: Annotated[float, typer.Option(help=NOISE)] = 0.0,
    seeds: Annotated[int, typer.Option(help="Starts a rule.")] = 16,
    seed: Annotated[int, typer.Option(help="The first of the seeds, which are consecutive.")] = 0,
    dtype: Annotated[
        Literal["float64", "float32"], typer.Option(help="float32 is compensated.")
    ] = "float64",
    snapshots: Annotated[int, typer.Option(help="Snapshots a decade of epochs.")] = 20,
    threads: Annotated[
        int | None, typer.Option(help="Runs at once; by default one a core.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help=OUT)] = Path("runs/compare"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
    checkpoint_every: Annotated[
        float, typer.Option(help="Seconds between checkpoints; 0: at every opportunity.")
    ] = 60.0,
) -> None:
    """Which update rule goes to which maximum margin, and how fast: medians and bands over starts.

    Writes compare.png, compare.pdf, runs.npz, runs.csv and checkpoint.npz to --out. Margins are in
    three norms: l2 (gradient descent, momentum, normalized), max (sign, Adam), operator (spectral).
    Exit status 1 if every run diverged; if some did, a line on stderr says how many.
    """
    from fastnc._core import arrays
    from fastnc._core.interrupts import Interrupted
    from fastnc.cli._models import check_different, model_of
    from fastnc.cli._results import check_ends
    from fastnc.cli._rules import rule_of
    from fastnc.dynamics.sweep import sweep

    seeds = arrays.check_count("seeds", seeds, 1)
    seed = arrays.check_count("seed", seed, 0)
    found = [rule_of(text) for text in rules]
    check_different(rule=found)
    model = model_of(n_classes, n_per_class, dim, class_sizes, loss)
    checkpoint = out / "checkpoint.npz"
    if resume and not checkpoint.exists():
        print(f"No checkpoint in {out}: starting afresh.")
    try:
        runs = sweep(
            model, epochs=epochs, seeds=range(seed, seed + seeds), snapshots=snapshots,
            rules=found, batch_size=batch_size, noise=noise, dtype=dtype, threads=threads,
            checkpoint=checkpoint, checkpoint_every=checkpoint_every, resume=resume, progress=True,
        )  # fmt: skip
    except Interrupted as stop:
        if len(stop.run):
            print(f"The {len(stop.run)} runs so far are in {stop.run.save(out / 'runs.npz')}.")
            _report(stop.run, out)
        print("Go on with the same command and --resume.")
        raise
    kept = runs.save(out / "runs.npz")
    print("\nWritten:", kept, *_report(runs, out), sep="\n  ")
    check_ends(runs)


def _report(runs: Trajectories, folder: Path) -> list[Path]:
    """Print a summary of the runs, and write their table and figure."""
    from fastnc.cli._results import drawn, noted
    from fastnc.plots import rules_compared, rules_summary

    print(rules_summary(runs))
    written = [runs.to_csv(folder / "runs.csv")]
    return noted(folder, written + drawn(lambda: rules_compared(runs), folder / "compare"))
