"""Quantile bands of many runs: Figure 2 of the paper over many seeds."""

from __future__ import annotations

from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastnc.dynamics.trajectories import Trajectories
from fastnc.dynamics.trajectory import Trajectory
from fastnc.plots._style import check_runs, grid, log_log_time, log_values, point, without_rounding
from fastnc.plots.collapse import PANELS, panel_label, summary_times, time_label, time_text
from fastnc.plots.many import apart, as_text, colours, name_bar

# Half of the runs lie in the band, nine in ten between the thin lines.
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
_MOST_ROWS = 8
# The most letters beside a row.
_LONGEST = 42
# How a run says that it did not come to its last time.
EARLY = ("diverged", "failed")


def sweep_bands(runs: Trajectories, title: str | None = None) -> Figure:
    """Figure 2's panels, with the median and quantiles of many runs.

    A band contains half of the runs, thin lines enclose nine in ten. One row of panels a setting
    (shape, step size, dtype). x is log log t, y is logarithmic, and the panels of a column share
    it. Times below 10 are left out, and settings whose runs all diverged before, which are named.
    More than 8 settings share one row, which shows their medians in the colours of a bar.
    """
    check_runs(runs)
    settings = runs.settings()
    ends = {name: _end(group) for name, group in settings.items()}
    short = [name for name, end in ends.items() if end < 1.0]
    diverged = [name for name in short if all(map(ended_early, settings[name]))]
    if len(diverged) < len(settings):
        settings = {name: group for name, group in settings.items() if name not in diverged}
        short = [name for name in short if name not in diverged]
    if not settings:
        raise ValueError("`runs` must hold at least one run to be drawn; got none.")
    if short:
        raise ValueError(
            "a figure on the log log t axis needs times of at least 10; the runs of "
            f"{short[0]} end before. Run for longer."
        )
    if len(settings) <= _MOST_ROWS:
        figure, said = _rows(settings, ends)
    else:
        figure, said = _one_row(settings, ends)
    if diverged:
        said += f"\ndiverged before t = 10: {'; '.join(map(as_text, diverged))}"
    figure.suptitle(said if title is None else f"{title}\n{said}", fontsize=11)
    return figure


def _rows(settings: dict[str, Trajectories], ends: dict[str, float]) -> tuple[Figure, str]:
    """A row of panels a setting, and what its lines mean."""
    figure = Figure(figsize=(13.0, 0.4 + 3.1 * len(settings)), layout="constrained")
    rows = figure.subplots(len(settings), len(PANELS), squeeze=False, sharey="col")
    clocks = {group.longest.time for group in settings.values()}
    for i, (name, group) in enumerate(settings.items()):
        for axes, (heading, lines) in zip(rows[i], PANELS, strict=True):
            for column, colour, label in lines:
                _bands(axes, group, column, colour, label)
            log_log_time(axes, 1.0, max(ends[name], 1.0 + 1e-3))
            grid(axes)
            if i == 0:
                axes.set_title(f"{heading}\n{panel_label(lines)}", fontsize=10)
                if len(lines) > 1:
                    axes.legend(frameon=False, fontsize=9)
            if i == len(settings) - 1 or len(clocks) > 1:
                axes.set_xlabel(time_label(group.longest))
        shape, comma, step = name.rpartition(", lr=")
        beside = [shape, f"lr={step}"] if comma and shape.count("(") == shape.count(")") else [name]
        label = "\n".join(fill(as_text(line), _LONGEST) for line in beside)
        rows[i, 0].set_ylabel(f"{label}\n{len(group)} runs", fontsize=9)
    for column_of_panels in rows.T:
        log_values(*column_of_panels)
    return figure, "line: median; band: half of the runs; thin lines: nine in ten"


def _one_row(settings: dict[str, Trajectories], ends: dict[str, float]) -> tuple[Figure, str]:
    """All settings in one row of panels, and what its lines mean."""
    labels, shared = apart(list(settings))
    figure = Figure(figsize=(15.0, 4.6), layout="constrained")
    row = figure.subplots(1, len(PANELS))
    for axes, (heading, lines) in zip(row, PANELS, strict=True):
        for group, shade in zip(settings.values(), colours(len(settings)), strict=True):
            log10_time = group.longest.log10_time
            shown = log10_time >= 1.0
            x = log10_time[shown]
            for (column, *_), style in zip(lines, ("-", ":"), strict=False):
                median = without_rounding(group.quantiles(column, 0.5)[0, shown], column)
                axes.plot(x, median, style, marker=point(x), color=shade, lw=1.0)
        log_values(axes)
        log_log_time(axes, 1.0, max(max(ends[name] for name in settings), 1.0 + 1e-3))
        grid(axes)
        axes.set_title(f"{heading}\n{panel_label(lines)}", fontsize=10)
        clocks = dict.fromkeys(time_label(group.longest) for group in settings.values())
        axes.set_xlabel(" or ".join(clocks))
    name_bar(figure, row, labels)
    runs = sum(map(len, settings.values()))
    said = f"medians of {runs} runs of {len(settings)} settings"
    said = f"{', '.join(shared)}: {said}" if shared else said
    return figure, f"{said}; in (a) and (c) solid: features, dotted: classifier"


def _end(runs: Trajectories) -> float:
    """log10 of the last time, -inf where nothing was measured."""
    return float(np.max(runs.longest.log10_time, initial=-np.inf))


def _bands(axes: Axes, runs: Trajectories, column: str, colour: str, label: str) -> None:
    log10_time = runs.longest.log10_time
    shown = log10_time >= 1.0
    quantiles = without_rounding(runs.quantiles(column, LEVELS)[:, shown], column)
    low, lower, median, upper, high = quantiles
    x = log10_time[shown]
    axes.fill_between(x, lower, upper, color=colour, alpha=0.25, lw=0)
    for edge in (low, high):
        axes.plot(x, edge, marker=point(x), ms=2, color=colour, lw=0.8, alpha=0.7)
    axes.plot(x, median, marker=point(x), color=colour, lw=1.8, label=label)


def ended_early(run: Trajectory) -> bool:
    """Whether a run did not come to its last time: it diverged, or a flow's step failed."""
    return run.about.get("stopped") in EARLY


def early_ends(runs: Trajectories) -> list[str]:
    """How many of the runs diverged, and of how many flows a step failed, as "2 diverged"."""
    ends = [run.about.get("stopped") for run in runs]
    return [f"{ends.count(end)} {end}" for end in EARLY if end in ends]


def bands_summary(runs: Trajectories) -> str:
    """A text table for each setting: median [5 %, 95 %] of Figure 2's quantities and the margin."""
    check_runs(runs)
    if not len(runs):
        raise ValueError("`runs` must hold at least one run; got none.")
    names = [name for _, lines in PANELS for name, *_ in lines] + ["margin", "margin_ratio"]
    width = max(map(len, [*names, "epoch: median [5 %, 95 %]"]))
    tables = []
    for setting, group in runs.settings().items():
        head = ", ".join([f"{setting}: {len(group)} runs", *early_ends(group)])
        if not len(group.longest):
            tables.append(head)
            continue
        every = summary_times(group.longest)
        # Three times fit a terminal.
        times = sorted({every[0], every[len(every) // 2], every[-1]})
        at = np.searchsorted(group.longest.log10_time, np.asarray(times) + 1e-12, "right") - 1
        clock = "epoch" if group.longest.time == "epoch" else "t"
        clock += ": median [5 %, 95 %]"
        lines = [head, f"{clock:<{width}}" + "".join(f"  {time_text(u):>28}" for u in times)]
        for name in names:
            low, median, high = group.quantiles(name, (0.05, 0.5, 0.95))[:, np.maximum(at, 0)]
            cells = (
                f"{m:.4g} [{a:.3g}, {b:.3g}]" for m, a, b in zip(median, low, high, strict=True)
            )
            lines.append(f"{name:<{width}}" + "".join(f"  {cell:>28}" for cell in cells))
        tables.append("\n".join(lines))
    return "\n\n".join(tables)
