"""`fastnc table1`: every model of Table 1, fitted, beside its known optimum."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from fastnc.cli._folder import HELP as OUT


def table1(
    n_classes: Annotated[int, typer.Option(help="Classes K, at least 2.")] = 3,
    n_per_class: Annotated[
        int, typer.Option(help="Samples a class, n; n // 5 in small ones.")
    ] = 10,
    dim: Annotated[int, typer.Option(help="Features d; 2 or 3 to see the vectors themselves.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the first start; the next ones count on.")] = 0,
    starts: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="At most so many starts; default what each landscape asks for."),
    ] = None,
    out: Annotated[Path, typer.Option(help=OUT)] = Path("runs/table1"),
) -> None:
    """Every model of Table 1 side by side: paper, optimum, found, gap, collapse metrics, time.

    Writes table1.csv after every row, then table1.tex (a tabular with booktabs), geometry.png and
    .pdf (the Gram matrices; in 2 and 3 dimensions the vectors themselves) and minority_collapse.png
    and .pdf to --out.
    """
    from fastnc._core.arrays import check_count
    from fastnc._core.progress import progress_bar
    from fastnc.paper.table1 import Row, fit, rows, to_csv, to_latex, to_text

    total = len(rows(n_classes, n_per_class, dim))
    seed = check_count("seed", seed, 0)
    if starts is not None:
        starts = check_count("starts", starts, 1)
    table: list[Row] = []
    path = out / "table1.csv"
    try:
        with progress_bar(total, "rows", "table1") as bar:
            for row in fit(n_classes, n_per_class, dim, seed, starts):
                table.append(row)
                to_csv(table, path)
                bar.update(1)
    except OSError:
        print(to_text(table))
        raise
    except KeyboardInterrupt:
        if table:
            print(to_text(table))
        kept = f"; they are in {str(path)!r}" if table else ""
        raise KeyboardInterrupt(
            f"stopped by Ctrl-C after {len(table)} of {total} rows{kept}."
        ) from None
    print(to_text(table))

    from fastnc.cli._results import drawn, noted
    from fastnc.paper.minority_collapse import minority_angles
    from fastnc.plots import geometry, minority_collapse

    written = [path, to_latex(table, out / "table1.tex")]
    written += drawn(lambda: geometry(table), out / "geometry")
    decays = (5e-3, 2e-3)
    ratios = (1, 2, 4, 7, 9, 11, 12, 14, 18, 22, 26, 30, 31, 35)
    with progress_bar(len(decays), "curves", "minority collapse") as bar:
        curves = []
        for decay in decays:
            curves.append(minority_angles(ratios, weight_decay=decay, seed=seed))
            bar.update(1)
    written += drawn(lambda: minority_collapse(curves), out / "minority_collapse")
    print("\nWritten:", *noted(out, written), sep="\n  ")
