"""`fastnc metrics`: how far the features of a saved network have collapsed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def metrics(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Keys features (N, d), labels (N,), optional weight (K, d), bias (K,): .npz, "
            ".pt, .safetensors; or features.npy beside labels.npy.",
            show_default=False,
        ),
    ],
    labels: Annotated[Path | None, typer.Option(help="Labels, a .npy file.")] = None,
    weight: Annotated[Path | None, typer.Option(help="Classifier's rows, a .npy file.")] = None,
    bias: Annotated[Path | None, typer.Option(help="Classifier's bias, a .npy file.")] = None,
    convention: Annotated[
        Literal["paper", "papyan", "zhu", "rhubarbwu"] | None,
        typer.Option(help="That source's metrics, under its names and in its forms."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for everything written.")] = Path(
        "runs/metrics"
    ),
) -> None:
    """Neural-collapse metrics of saved features: table, JSON and figure.

    Reads the file twice, in pieces; features that are mapped need not fit in memory. Writes
    metrics.json, metrics.png and metrics.pdf to --out.
    """
    from fastnc._core.files import atomic_write, out_dir
    from fastnc._core.progress import progress_bar
    from fastnc.collapse.features_file import read_features
    from fastnc.collapse.measurement import measure

    held = read_features(file, labels, weight, bias)
    with progress_bar(2 * len(held.labels), "samples", "metrics") as bar:
        told, statistics, names = measure(
            held.features, held.labels, held.weight, held.bias, progress=bar.update
        )
    folder = out_dir(out)
    text = told.json(convention) + "\n"
    written = [atomic_write(folder / "metrics.json", lambda f: f.write(text.encode()))]
    from fastnc.plots import collapse_figure, save

    written += save(collapse_figure(told, statistics, names), folder / "metrics")
    print(told.table(convention))
    print("\nWritten:", *written, sep="\n  ")
