"""A run of asv's whole suite, recorded in `results/asv/`, and its numbers as a table.

    python bench/recorded_suite.py --machine NAME [asv's own options, as --quick or --bench REGEX]

Measures the checkout as it is installed, for the commit that it is at, which must be one that
stays: asv finds a result again by it. NAME is that of the processor, for people; facts about the
machine stand in `results/asv/NAME/machine.json`. asv names an environment by the path of its
Python, which says nothing to others, and is renamed to its version.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import sys
from itertools import product
from pathlib import Path

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results" / "asv"
CONFIG = FOLDER / "asv.conf.json"
UNITS = ((1e-9, "ns"), (1e-6, "us"), (1e-3, "ms"), (1.0, "s"))


def recorded() -> list[Path]:
    """The last result of each machine."""
    found = []
    for machine in sorted(RESULTS.glob("*/machine.json")):
        runs = [path for path in machine.parent.glob("*.json") if path != machine]
        if runs:
            found.append(max(runs, key=lambda path: json.loads(path.read_text())["date"]))
    return found


def with_unit(value: float, unit: str) -> str:
    """Three digits; seconds in the unit that suits them."""
    if unit != "seconds":
        return f"{value:.3g} {unit}"
    scale, name = next(((s, n) for s, n in reversed(UNITS) if value >= s), UNITS[0])
    return f"{value / scale:.3g} {name}"


def suite_table(path: Path) -> str:
    """A heading, what it was measured on, and a row a benchmark and combination of parameters."""
    run = json.loads(path.read_text())
    facts = json.loads((path.parent / "machine.json").read_text())
    units = json.loads((RESULTS / "benchmarks.json").read_text())
    lines = [
        f"{facts['cpu']}, {facts['num_cpu']} threads, {facts['os']}; commit "
        f"{run['commit_hash'][:12]}, {run['env_name']}.",
        "",
        "| benchmark | of | measured |",
        "|---|---|---|",
    ]
    columns = run["result_columns"]
    for name, row in sorted(run["results"].items()):
        held = dict(zip(columns, row, strict=False))
        # A benchmark that failed has no list of values.
        values = held.get("result") or []
        for case, value in zip(product(*held["params"]), values, strict=False):
            if value is None or math.isnan(value):
                continue
            of = ", ".join(word.strip("'") for word in case)
            lines.append(f"| {name} | {of} | {with_unit(value, units[name]['unit'])} |")
    return "\n".join(lines)


def rename(path: Path) -> Path:
    """The result's environment without the path of its Python."""
    run = json.loads(path.read_text())
    name = f"python{platform.python_version()}"
    run["env_name"], run["python"] = name, platform.python_version()
    run["params"]["python"] = platform.python_version()
    renamed = path.with_name(f"{run['commit_hash'][:8]}-{name}.json")
    renamed.write_text(json.dumps(run))
    if renamed != path:
        path.unlink()
    return renamed


def main() -> None:
    """Run the suite with the options given, and record it."""
    from asv.machine import Machine, MachineCollection

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--machine", required=True, help="a name for this machine")
    known, others = parser.parse_known_args()
    asv = [sys.executable, "-m", "asv"]
    where = ["--config", str(CONFIG)]
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=FOLDER, capture_output=True, text=True, check=True
    ).stdout.strip()
    # `asv machine --machine NAME` would keep nothing but the name.
    MachineCollection.save(known.machine, {**Machine.get_defaults(), "machine": known.machine})
    run = [*asv, "run", *where, "--python=same", "--set-commit-hash", head]
    done = subprocess.run([*run, "--machine", known.machine, *others])
    for path in (RESULTS / known.machine).glob(f"{head[:8]}-existing*.json"):
        print("Recorded:", rename(path))
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
