"""`fastnc flow`: the paper's model under gradient flow, to any time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fastnc.cli._folder import HELP as OUT
from fastnc.cli._models import CLASS_SIZES, LOSS, Loss

if TYPE_CHECKING:
    from fastnc.dynamics.trajectory import Trajectory


def flow(
    n_classes: Annotated[int, typer.Option(help="Classes K, at least 2.")] = 5,
    n_per_class: Annotated[int, typer.Option(help="Samples a class, n.")] = 10,
    dim: Annotated[int, typer.Option(help="Features d.")] = 20,
    class_sizes: Annotated[str | None, typer.Option(help=CLASS_SIZES, show_default=False)] = None,
    loss: Annotated[Loss, typer.Option(help=LOSS)] = "cross-entropy",
    log10_time: Annotated[
        float | None,
        typer.Option(
            help="log10 of the last time t; by default 1000, or 4 where --loss is another.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the Gaussian start.")] = 0,
    snapshots: Annotated[
        int, typer.Option(help="Snapshots a decade of t up to 10, and of log t after.")
    ] = 40,
    rtol: Annotated[float, typer.Option(help="Relative tolerance of a step.")] = 1e-8,
    solver: Annotated[
        Literal["auto", "direct", "krylov"], typer.Option(help="Of the Newton systems.")
    ] = "auto",
    out: Annotated[Path, typer.Option(help=OUT)] = Path("runs/flow"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint, also to a later time.")
    ] = False,
    checkpoint_every: Annotated[
        float, typer.Option(help="Seconds between checkpoints; 0: at every opportunity.")
    ] = 60.0,
) -> None:
    """Gradient flow on the unconstrained layer-peeled model to t = 10^log10_time.

    Prints the fitted exponents and constants beside the predicted ones. Writes flow.png,
    flow.pdf (from t = 10^10 on), margin.png, margin.pdf, run.npz, run.csv and checkpoint.npz to
    --out.
    """
    from fastnc._core.interrupts import Diverged, Interrupted
    from fastnc.cli._models import model_of
    from fastnc.dynamics.flow import flow as integrate

    model = model_of(n_classes, n_per_class, dim, class_sizes, loss)
    checkpoint = out / "checkpoint.npz"
    if resume and not checkpoint.exists():
        print(f"No checkpoint in {out}: starting afresh.")
    try:
        run = integrate(
            model, log10_time, seed, snapshots=snapshots, rtol=rtol, solver=solver,
            checkpoint=checkpoint, checkpoint_every=checkpoint_every, resume=resume, progress=True,
        )  # fmt: skip
    except (Diverged, Interrupted) as stop:
        stop.run.save(out / "run.npz")
        print(f"The snapshots so far are in {out / 'run.npz'}.")
        _report(stop.run, out)
        if isinstance(stop, Interrupted):
            print("Go on with the same command and --resume.")
        raise
    kept = run.save(out / "run.npz")
    print("\nWritten:", kept, *_report(run, out), sep="\n  ")


def _report(run: Trajectory, folder: Path) -> list[Path]:
    """Print a summary of a flow, finished or not, and write its table and figures."""
    from fastnc.cli._results import drawn, noted
    from fastnc.plots import flow_summary, long_horizon, missing_margin, summary

    followed = len(run) and run.about["solver"] != "dense"
    if len(run):
        print(summary(run))
    if followed:
        print("", flow_summary(run), sep="\n")
    elif len(run):
        print("\nNo figure: it is one of a loss that vanishes like cross-entropy.")
    written = [run.to_csv(folder / "run.csv")]
    if followed:
        written += drawn(lambda: long_horizon(run), folder / "flow")
        written += drawn(lambda: missing_margin(run), folder / "margin")
    return noted(folder, written)
