"""What `mkdocs build` puts into the site: tables of recorded measurements, formulas, asv's pages.

A hook of mkdocs.yml. Lines `<!-- compare -->` and `<!-- suite -->` of a page become the tables of
what `compare.py --record` and `recorded_suite.py` wrote; formulas become MathML, which browsers
show without a script; `<!-- commands -->` becomes what `--help` of each command says; and `asv
publish` goes to `asv/` of the site.
"""

from __future__ import annotations

import html
import re
import subprocess
import sys
from pathlib import Path

from latex2mathml.converter import convert
from recorded_suite import RESULTS as SUITE
from recorded_suite import recorded, suite_table
from tables import RESULTS, rows_of, table
from typer.testing import CliRunner

from fastnc.cli import COMMANDS, build

CONFIG = Path(__file__).parent / "asv.conf.json"
NONE = "No measurement is recorded yet."
GRAPHS = (
    'Graphs over commits are on <a href="../asv/index.html">asv\'s own pages</a>, which load their '
    "scripts from the network."
)
# What arithmatex makes of $...$ and $$...$$.
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_markdown(markdown: str, **_) -> str:
    """The page with its tables."""
    files = sorted(RESULTS.glob("*.csv"), reverse=True)
    for mark, text in (
        ("<!-- compare -->", lambda: [table(rows_of(path)) for path in files] or [NONE]),
        (
            "<!-- suite -->",
            lambda: [GRAPHS, *map(suite_table, recorded())] if recorded() else [NONE],
        ),
        ("<!-- commands -->", lambda: [commands()]),
    ):
        if mark in markdown:
            markdown = markdown.replace(mark, "\n\n".join(text()))
    return markdown


def commands() -> str:
    """The help of every command, as a terminal of 92 columns shows it."""
    app, terminal = build(), CliRunner(env={"COLUMNS": "92", "NO_COLOR": "1", "TERM": "dumb"})
    parts = []
    for name in COMMANDS:
        said = terminal.invoke(app, [name, "--help"], prog_name="fastnc")
        if said.exit_code:
            raise RuntimeError(f"`fastnc {name} --help` failed: {said.output}")
        parts.append(f"## fastnc {name}\n\n```text\n{said.stdout.strip()}\n```")
    return "\n\n".join(parts)


def on_page_content(content: str, **_) -> str:
    """The page with its formulas as MathML."""

    def drawn(found: re.Match[str]) -> str:
        display = "block" if found[2] == "[" else "inline"
        return convert(html.unescape(found[3]).strip(), display=display)

    return FORMULA.sub(drawn, content)


def on_post_build(config, **_) -> None:
    """asv's own pages, where a run of the suite is recorded."""
    if not recorded():
        return
    out = Path(config["site_dir"]) / "asv"
    command = ["publish", "--config", str(CONFIG), "--html-dir", str(out)]
    done = subprocess.run([sys.executable, "-m", "asv", *command], capture_output=True, text=True)
    if done.returncode or not (out / "index.html").is_file():
        raise RuntimeError(f"asv publish failed, with {SUITE}:\n{done.stdout}{done.stderr}")
