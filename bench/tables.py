"""The README's tables, in Markdown, made of what `compare.py --record` wrote.

    python bench/tables.py [FILE ...]

By default every file of `bench/results/`. For each file a line about the machine, and a row a
regime: the time of fastnc, its share of the floor, the fastest peer, and how many times as long
that one took. Where a regime was measured more than once, the last counts.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
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
    facts = rows[-1]
    lines = [
        f"{facts['processor']}, vectors of {facts['vector_bits']} bits, {facts['threads']} "
        f"threads, {facts['blas']}; {facts['date']}, commit {facts['commit']}, "
        f"`{facts['command']}`.",
        "",
        "| " + " | ".join(HEAD) + " |",
        "|" + "---|" * len(HEAD),
    ]
    for (_, dtype), peers in regimes_of(rows).items():
        ours = peers.pop("fastnc", None)
        if ours is None or not peers:
            continue
        best = min(peers.values(), key=lambda row: float(row["ms"]))
        time, of_floor = float(ours["ms"]), float(ours["of floor"])
        ratio = float(best["ms"]) / time
        case = f"{ours['operation']} {ours['K']}, {ours['d']}, {ours['N']}"
        cells = (case, dtype, duration(time), f"{of_floor:.2f}", best["peer"], f"{ratio:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print a table a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="recorded files (default: all)")
    for path in parser.parse_args().files or sorted(RESULTS.glob("*.csv")):
        print(table(rows_of(path)), end="\n\n")


if __name__ == "__main__":
    main()
