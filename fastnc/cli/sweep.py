"""`fastnc sweep`: many seeds and settings at once, medians and quantile bands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fastnc.cli._folder import HELP as OUT
from fastnc.cli._models import CLASS_SIZES, LOSS, NOISE, Loss
from fastnc.cli._rules import HELP, SCHEDULE

if TYPE_CHECKING:
    from fastnc.dynamics.trajectories import Trajectories


def sweep(
    n_classes: Annotated[
        list[int], typer.Option(help="Classes K, at least 2; again for several.")
    ] = [5],  # noqa: B006
    n_per_class: Annotated[
        list[int], typer.Option(help="Samples a class, n; again for several.")
    ] = [10],  # noqa: B006
    dim: Annotated[list[int], typer.Option(help="Features d; again for several.")] = [20],  # noqa: B006
    class_sizes: Annotated[
        list[str] | None,
        typer.Option(help=f"{CLASS_SIZES[:-1]}; again for several.", show_default=False),
    ] = None,
    loss: Annotated[Loss, typer.Option(help=LOSS)] = "cross-entropy",
    method: Annotated[
        Literal["descend", "flow"], typer.Option(help="Descent, or gradient flow.")
    ] = "descend",
    log10_time: Annotated[
        float | None, typer.Option(help="log10 of the last time of a flow.", show_default=False)
    ] = None,
    lr: Annotated[
        list[float], typer.Option(help="Step size on the mean loss; again for several.")
    ] = [5.0],  # noqa: B006
    rule: Annotated[
        list[str] | None,
        typer.Option(help=f"In the place of --lr, again for several: {HELP}", show_default=False),
    ] = None,
    schedule: Annotated[
        list[str] | None,
        typer.Option(help=f"{SCHEDULE[:-1]}; again for several.", show_default=False),
    ] = None,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(
            help="Most samples a step, by default all; again for several.", show_default=False
        ),
    ] = None,
    noise: Annotated[float, typer.Option(help=NOISE)] = 0.0,
    epochs: Annotated[int, typer.Option(help="Epochs of gradient descent a run.")] = 100_000,
    seeds: Annotated[int, typer.Option(help="Starts a setting.")] = 256,
    seed: Annotated[int, typer.Option(help="The first of the seeds, which are consecutive.")] = 0,
    dtype: Annotated[
        Literal["float64", "float32"], typer.Option(help="float32 is compensated.")
    ] = "float64",
    snapshots: Annotated[int, typer.Option(help="Snapshots a decade of epochs.")] = 40,
    threads: Annotated[
        int | None, typer.Option(help="Runs at once; by default one a core.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help=OUT)] = Path("runs/sweep"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
    checkpoint_every: Annotated[
        float, typer.Option(help="Seconds between checkpoints; 0: at every opportunity.")
    ] = 60.0,
) -> None:
    """Many runs of `fastnc ulpm` at once: medians, and bands of half and nine in ten of the runs.

    Every combination of the given --n-classes, --n-per-class, --class-sizes, --dim, --lr or --rule,
    --schedule and --batch-size is a setting of its own, run from --seeds starts. Writes sweep.png,
    sweep.pdf, runs.npz, runs.csv and checkpoint.npz to --out. Exit status 1 if every run diverged;
    if some did, a line on stderr says how many.
    """
    from itertools import product

    from fastnc._core import arrays
    from fastnc._core.interrupts import Interrupted
    from fastnc.cli._models import check_different, model_of, sizes_of
    from fastnc.cli._results import check_ends
    from fastnc.cli._rules import lr_and_rule
    from fastnc.cli._typed import typed
    from fastnc.dynamics.sweep import sweep as run_sweep

    seeds = arrays.check_count("seeds", seeds, 1)
    seed = arrays.check_count("seed", seed, 0)
    everyone: list[None] = [None]
    models = [
        model_of(*sizes, loss)
        for sizes in product(n_classes, n_per_class, dim, class_sizes or everyone)
    ]
    if method == "flow":
        of_descent = ("lr", "rule", "schedule", "batch_size", "noise", "epochs")
        if any(map(typed, of_descent)):
            raise ValueError(
                "a flow has no step: leave out --lr, --rule, --schedule, --batch-size, --noise and "
                "--epochs, or take --method descend."
            )
        if dtype != "float64":
            raise ValueError(f"a flow must be of float64; got --dtype {dtype}.")
        options: dict[str, Any] = {"method": "flow", "log10_time": log10_time}
    else:
        if log10_time is not None:
            raise ValueError("`--log10-time` must come with --method flow; leave it out.")
        steps = [lr_and_rule(*step) for step in product(rule or everyone, schedule or everyone, lr)]
        options = {
            "epochs": epochs, "batch_size": batch_size or None, "noise": noise, "dtype": dtype
        }  # fmt: skip
        if rule:
            options["rules"] = [step["rule"] for step in steps]
        else:
            options["lr"] = [step["lr"] for step in steps]
    check_different(
        n_classes=n_classes, n_per_class=n_per_class, dim=dim,
        class_sizes=[sizes_of(text) for text in class_sizes or ()],
        rule=options.get("rules"), lr=options.get("lr"), batch_size=batch_size,
    )  # fmt: skip
    checkpoint = out / "checkpoint.npz"
    if resume and not checkpoint.exists():
        print(f"No checkpoint in {out}: starting afresh.")
    try:
        runs = run_sweep(
            models, seeds=range(seed, seed + seeds), snapshots=snapshots, threads=threads,
            checkpoint=checkpoint, checkpoint_every=checkpoint_every, resume=resume, progress=True,
            **options,
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
    from fastnc.plots import bands_summary, sweep_bands

    print(bands_summary(runs))
    written = [runs.to_csv(folder / "runs.csv")]
    return noted(folder, written + drawn(lambda: sweep_bands(runs), folder / "sweep"))
