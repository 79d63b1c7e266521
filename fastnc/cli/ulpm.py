"""`fastnc ulpm`: gradient descent on the paper's model, and its Figure 2."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fastnc.cli._folder import HELP as OUT
from fastnc.cli._models import CLASS_SIZES, LOSS, NOISE, Loss
from fastnc.cli._rules import HELP, SCHEDULE

if TYPE_CHECKING:
    from fastnc.dynamics.trajectory import Trajectory


def ulpm(
    n_classes: Annotated[int, typer.Option(help="Classes K, at least 2.")] = 5,
    n_per_class: Annotated[int, typer.Option(help="Samples a class, n.")] = 10,
    dim: Annotated[int, typer.Option(help="Features d.")] = 20,
    class_sizes: Annotated[str | None, typer.Option(help=CLASS_SIZES, show_default=False)] = None,
    loss: Annotated[Loss, typer.Option(help=LOSS)] = "cross-entropy",
    lr: Annotated[float, typer.Option(help="Step size on the mean loss.")] = 5.0,
    rule: Annotated[
        str | None, typer.Option(help=f"In the place of --lr: {HELP}", show_default=False)
    ] = None,
    schedule: Annotated[str | None, typer.Option(help=SCHEDULE, show_default=False)] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Most samples a step; by default all.", show_default=False)
    ] = None,
    noise: Annotated[float, typer.Option(help=NOISE)] = 0.0,
    epochs: Annotated[int, typer.Option(help="Epochs of gradient descent.")] = 100_000,
    seed: Annotated[int, typer.Option(help="Seed of the Gaussian start.")] = 0,
    dtype: Annotated[
        Literal["float64", "float32"], typer.Option(help="float32 is compensated.")
    ] = "float64",
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where it runs.")] = "cpu",
    snapshots: Annotated[int, typer.Option(help="Snapshots a decade of epochs.")] = 40,
    out: Annotated[Path, typer.Option(help=OUT)] = Path("runs/ulpm"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
    checkpoint_every: Annotated[
        float, typer.Option(help="Seconds between checkpoints; 0: at every opportunity.")
    ] = 60.0,
) -> None:
    """Gradient descent on the unconstrained layer-peeled model: the paper's Figure 2.

    Writes figure2.png, figure2.pdf, run.npz, run.csv and checkpoint.npz to --out. Under torchrun
    the rows of H are spread over the ranks, and each writes a run and checkpoints of its own.
    """
    from fastnc._core.interrupts import Diverged, Interrupted
    from fastnc.cli._models import model_of
    from fastnc.cli._rules import lr_and_rule
    from fastnc.cli._torchrun import joined_ranks
    from fastnc.dynamics.descent import descend

    model = model_of(n_classes, n_per_class, dim, class_sizes, loss)
    chosen = lr_and_rule(rule, schedule, lr)
    checkpoint = out / "checkpoint.npz"
    with joined_ranks(device) as (rank, ranks):
        kept = out / ("run.npz" if ranks == 1 else f"run-rank{rank}of{ranks}.npz")
        if resume and rank == 0 and not any(out.glob("checkpoint*.npz")):
            print(f"No checkpoint in {out}: starting afresh.")
        try:
            run = descend(
                model, epochs=epochs, seed=seed, snapshots=snapshots, dtype=dtype, device=device,
                **chosen, batch_size=batch_size, noise=noise,
                checkpoint=checkpoint, checkpoint_every=checkpoint_every, resume=resume,
                sharded=ranks > 1, progress=True,
            )  # fmt: skip
        except (Diverged, Interrupted) as stop:
            stop.run.save(kept)
            print(f"The snapshots so far are in {kept}.")
            if rank == 0:
                _report(stop.run, out)
            if isinstance(stop, Interrupted):
                print("Go on with the same command and --resume.")
            raise
    run.save(kept)
    if rank > 0:
        return
    print("\nWritten:", kept, *_report(run, out), sep="\n  ")


def _report(run: Trajectory, folder: Path) -> list[Path]:
    """Print a summary of a run, finished or not, and write its table and its figure."""
    from fastnc.cli._results import drawn, noted
    from fastnc.plots import figure2, summary

    if len(run):
        print(summary(run))
    written = [run.to_csv(folder / "run.csv")]
    if len(run) and run.log10_time[-1] >= 1.0:
        written += drawn(lambda: figure2(run), folder / "figure2")
    else:
        print("No figure: the log log t axis needs at least 10 epochs.")
    return noted(folder, written)
