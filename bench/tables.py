"""Tables in Markdown, made of what `compare.py --record` wrote.

    python bench/tables.py [--beside DTYPE] [FILE ...]

By default every file of `bench/results/`. For each file a line about the machine, and a row a
regime: the time of fastnc, its share of the floor, the fastest peer, and how many times as long
that one took. Where a regime was measured more than once, the last counts. With `--beside` one
table of the regimes that all files have, which is the README's.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
WIDTHS = {"512": "AVX-512", "256": "AVX2", "128": "NEON or SSE"}
HEAD = ("case (K, d, N)", "dtype", "fastnc", "of the floor", "fastest peer", "times fastnc")


def rows_of(path) -> list[dict[str, str]]:
    """The rows of a recorded file, by the names in its header."""
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def regimes_of(rows) -> dict[tuple[str, str], dict[str, dict[str, str]]]:
    """By regime and dtype, and there by peer, the last row."""
    found: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for row in rows:
        found.setdefault((row["regime"], row["dtype"]), {})[row["peer"]] = row
    return found


def duration(milliseconds: float) -> str:
    """A time with three digits, in the unit that suits it."""
    if milliseconds < 1.0:
        return f"{1e3 * milliseconds:.3g} us"
    return f"{milliseconds:.3g} ms" if milliseconds < 1e3 else f"{milliseconds:.0f} ms"


def table(rows) -> str:
    """The lines of one file's table, under what it was measured on."""
    lines = [machine_of(rows), "", _line(HEAD), "|" + "---|" * len(HEAD)]
    for (_, dtype), peers in regimes_of(rows).items():
        found = beside_peers(peers)
        if found is not None:
            ours, best, ratio = found
            cells = (duration(float(ours["ms"])), f"{float(ours['of floor']):.2f}", best, ratio)
            lines.append(_line((case_of(ours), dtype, *cells)))
    return "\n".join(lines)


def machine_of(rows) -> str:
    """A sentence about a recorded file: where, when and by which command."""
    facts = rows[-1]
    return (
        f"{facts['processor']}, vectors of {facts['vector_bits']} bits, {facts['threads']} "
        f"threads, {facts['blas']}; {facts['date']}, commit {facts['commit']}, "
        f"`{facts['command']}`."
    )


def case_of(row) -> str:
    """What was run, and its sizes."""
    return f"{row['operation']} {row['K']}, {row['d']}, {row['N']}"


def beside_peers(peers) -> tuple[dict[str, str], str, str] | None:
    """The row of fastnc, the fastest peer, and how many times as long that took."""
    others = [row for peer, row in peers.items() if peer != "fastnc"]
    if "fastnc" not in peers or not others:
        return None
    ours, best = peers["fastnc"], min(others, key=lambda row: float(row["ms"]))
    return ours, best["peer"], f"{float(best['ms']) / float(ours['ms']):.2f}"


def beside(files, dtype) -> str:
    """One table of what all of several files have: three columns each, the widest vectors first."""
    head, lines = ["K, d, N"], {}
    files = sorted(files, key=lambda rows: -int(rows[-1]["vector_bits"].split()[0]))
    every = [regimes_of(rows) for rows in files]
    for rows, regimes in zip(files, every, strict=True):
        bits, _, played = rows[-1]["vector_bits"].partition(" ")
        name = WIDTHS.get(bits, f"{bits} bits") + (", played" if played else "")
        head += [name, "fastest peer", "of the floor"]
        for (regime, kind), peers in regimes.items():
            found = beside_peers(peers)
            everywhere = all((regime, kind) in other for other in every)
            if kind == dtype and found is not None and everywhere:
                ours, best, ratio = found
                lines.setdefault(regime, [case_of(ours)]).extend(
                    (
                        f"**{duration(float(ours['ms']))}**",
                        f"{ratio} x ({best})",
                        f"{float(ours['of floor']):.2f}",
                    )
                )
    return "\n".join(
        [*(machine_of(rows) for rows in files), "", _line(head), "|" + "---|" * len(head)]
        + [_line(line) for line in lines.values()]
    )


def _line(cells) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print a table a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="recorded files (default: all)")
    parser.add_argument("--beside", metavar="DTYPE", help="one table of this dtype for all files")
    arguments = parser.parse_args()
    files = [rows_of(path) for path in arguments.files or sorted(RESULTS.glob("*.csv"))]
    if arguments.beside:
        print(beside(files, arguments.beside))
        return
    for rows in files:
        print(table(rows), end="\n\n")


if __name__ == "__main__":
    main()
