"""Metrics as people read them: a table, a line, a notebook's table, and what they must not hide."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from math import log
from typing import Protocol

from fastnc._core.html_table import html_table
from fastnc._core.latex import tabular
from fastnc.collapse.codes import largest_margin_ratio, least_mean_angle

# Shares and ratios that are 1 at collapse.
_ONE = ("nc4_agreement", "margin_ratio", "accuracy", "nearest_mean_accuracy")
_SHORT = ("nc1", "equiangular_features", "self_duality", "nc4_agreement", "margin_ratio")


class Measured(Protocol):
    """What is read here of `CollapseMetrics`, whose file stands above this one."""

    @property
    def n_classes(self) -> int: ...
    @property
    def n_samples(self) -> int: ...
    @property
    def dim(self) -> int: ...
    @property
    def n_rows(self) -> int: ...
    @property
    def n_ignored(self) -> int: ...
    @property
    def n_left_out(self) -> int: ...
    @property
    def n_single(self) -> int: ...
    @property
    def balanced(self) -> bool: ...
    @property
    def biased(self) -> bool: ...
    @property
    def held_out(self) -> bool: ...
    def as_dict(self, convention: str | None = None) -> dict[str, float | None]: ...


def values_at_collapse(m: Measured) -> dict[str, float]:
    """Of the metrics that do not fall to 0 what they tend to; the margin grows and is not here.

    All pairs of K directions have r^2 = 2K/(K-1) then.
    """
    square, s = 2.0 * m.n_classes / (m.n_classes - 1), m.dim - 2
    numbers = {
        **dict.fromkeys(_ONE, 1.0),
        "effective_rank": m.n_classes - 1.0,
        "gnc2_log": -0.5 * log(square),
        "gnc2_riesz": (1 if s >= 0 else -1) * square ** (-0.5 * s),
    }
    rows = m.n_rows or m.n_classes
    if rows > 1:
        numbers["one_vs_rest_distance"] = rows / (rows - 1)
    return numbers


def at_collapse(m: Measured) -> dict[str, str]:
    """The value of each metric at collapse, as a table has it."""
    known = {name: f"{number:.4g}" for name, number in values_at_collapse(m).items()}
    return {name: known.get(name, "0") for name in m.as_dict()} | {"margin": "grows"}


def best_here(m: Measured) -> dict[str, str]:
    """What the metrics can reach at best where K > d + 1 and no simplex fits; empty otherwise."""
    best = {}
    if m.n_classes > m.dim + 1:
        best["equiangular_features"] = f">= {least_mean_angle(m.n_classes, m.dim):.4g}"
        kind = "known codes" if m.dim <= 2 or m.n_classes <= 2 * m.dim else "a bound"
        # A class between the others is told by its bias: none is known then.
        if m.balanced and m.n_rows == m.n_classes and not m.biased:
            best["margin_ratio"] = f"<= {largest_margin_ratio(m.n_classes, m.dim):.4g} ({kind})"
        best["effective_rank"] = f"<= {m.dim}"
    if m.n_rows > m.dim + 1:
        best["equiangular_classifier"] = f">= {least_mean_angle(m.n_rows, m.dim):.4g}"
    return best


def notes(m: Measured) -> list[str]:
    """What a reader must know before these numbers mean collapse; a sentence each."""
    found = []
    if m.held_out:
        found.append("held-out samples, about the class means of others")
    if m.n_ignored:
        found.append(f"ignored: {counted(m.n_ignored, 'sample')}")
    if m.n_left_out:
        found.append(f"left out: {counted(m.n_left_out, 'class')} with too few samples")
    if m.n_single:
        found.append(
            f"one sample in {m.n_single} of {counted(m.n_classes, 'class')}, whose deviation is 0 "
            "by definition: nc1 and cdnv are too small; see `min_count`"
        )
    if m.n_samples <= m.dim and not m.held_out:
        found.append(
            f"no more samples ({m.n_samples}) than features ({m.dim}): any so few points look "
            "collapsed; nothing is shown by it"
        )
    if m.n_classes > m.dim + 1:
        found.append(
            f"{m.n_classes} classes in {counted(m.dim, 'dimension')} hold no simplex (K > d + 1): "
            "0 is impossible for what compares with it"
        )
    return found


def _lines(m: Measured, convention: str | None) -> Iterator[tuple[str, str]]:
    for name, value in m.as_dict(convention).items():
        yield name, "-" if value is None else f"{value:.6g}"


def counted(number: int, noun: str) -> str:
    """`1 class`, `2 classes`, `3 samples`."""
    plural = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{plural}"


def head(m: Measured) -> str:
    """What was measured: the numbers of samples, classes and features."""
    held = "held-out " if m.held_out else ""
    samples, classes = counted(m.n_samples, f"{held}sample"), counted(m.n_classes, "class")
    return f"{samples}, {classes}, {counted(m.dim, 'feature')}"


def table(m: Measured, convention: str | None) -> str:
    """Lines of name, value and, for fastnc's own set, the value at collapse and the best here."""
    rows = list(_lines(m, convention))
    width = max(len(name) for name, _ in rows) + 2
    lines = [head(m), f"{'metric':<{width}}{'value':>14}"]
    lines += [f"{name:<{width}}{shown:>14}" for name, shown in rows]
    if convention is None:
        best = best_here(m)
        ends = ["at collapse", *at_collapse(m).values()]
        if best:
            wide = max(map(len, ends)) + 3
            bests = ["at best here", *(best.get(name, "") for name, _ in rows)]
            ends = [f"{a:<{wide}}{b}".rstrip() for a, b in zip(ends, bests, strict=True)]
        lines[1:] = [f"{line}   {end}" for line, end in zip(lines[1:], ends, strict=True)]
    return "\n".join(lines + [f"note: {note}." for note in notes(m)])


def latex(m: Measured, convention: str | None) -> str:
    """The lines as a LaTeX tabular."""
    heads, ends = ["metric", "value"], at_collapse(m)
    rows = [[name, shown] for name, shown in _lines(m, convention)]
    if convention is None:
        heads, rows = [*heads, "at collapse"], [[*row, ends[row[0]]] for row in rows]
    return tabular(heads, rows)


def line(m: Measured) -> str:
    """One line: what was measured and the metrics asked for most."""
    values = m.as_dict()
    known = {name: values[name] for name in _SHORT}
    text = ", ".join(f"{k}={v:.4g}" for k, v in known.items() if v is not None)
    return f"CollapseMetrics({head(m)}: {text})"


def html(m: Measured) -> str:
    """The table for a notebook."""
    best, ends = best_here(m), at_collapse(m)
    heads = ["metric", "value", "at collapse", *(["at best here"] if best else [])]
    rows = [
        [name, shown, ends[name], *([best.get(name, "")] if best else [])]
        for name, shown in _lines(m, None)
    ]
    below = "".join(f"<p>Note: {escape(note)}.</p>" for note in notes(m))
    return html_table(head(m), heads, rows) + below
