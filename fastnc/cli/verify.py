"""`fastnc verify`: every lemma and theorem of the paper, checked numerically."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastnc.cli._folder import HELP as OUT


def verify(
    seed: Annotated[int, typer.Option(help="Seed of the random points and starts.")] = 0,
    out: Annotated[Path, typer.Option(help=OUT)] = Path("runs/verify"),
) -> None:
    """Check every claim of the paper: what was measured, how far off, whether it holds.

    Exit status 0 only if all of them hold, misprints as corrected; 1 otherwise. Takes some ten
    seconds, and once half a minute more to compile. Writes verify.csv, verify.json, verify.png
    and verify.pdf to --out.
    """
    from fastnc._core.arrays import check_count
    from fastnc.cli._results import drawn, noted
    from fastnc.paper.verify import all_hold, check, table, write_csv, write_json

    seed = check_count("seed", seed, 0)
    findings = check(seed, progress=True)
    print(table(findings))
    written = [
        write_csv(findings, out / "verify.csv"),
        write_json(findings, out / "verify.json"),
    ]
    from fastnc.plots import findings_chart

    written += drawn(lambda: findings_chart(findings), out / "verify")
    print("\nWritten:", *noted(out, written), sep="\n  ")
    failed = [finding.claim for finding in findings if not finding.holds]
    if all_hold(findings):
        print(f"\nAll {len(findings)} hold.")
        return
    print(f"\n{len(failed)} of {len(findings)} do not hold: {', '.join(failed)}.")
    raise typer.Exit(1)
