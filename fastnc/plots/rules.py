"""Several rules on one axis: losses, the margins in three norms, and within-class variation."""

from __future__ import annotations

from collections.abc import Callable
from textwrap import fill

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fastnc.dynamics.trajectories import Trajectories
from fastnc.plots._style import check_runs, point
from fastnc.plots.bands import early_ends, ended_early
from fastnc.plots.many import apart, colours, name_bar

# Heading, column, and what is drawn of it.
Drawn = Callable[[NDArray[np.float64]], NDArray[np.float64]]
PANELS: tuple[tuple[str, str, Drawn], ...] = (
    ("mean loss", "log_loss", lambda v: v / np.log(10.0)),
    ("margin, l2: distance to collapse", "margin_ratio", lambda v: 1.0 - v),
    ("margin, max norm: to its bound", "margin_ratio_max", lambda v: 1.0 - v),
    ("margin, operator norm: to its bound", "margin_ratio_spectral", lambda v: 1.0 - v),
    ("within-class variation", "within_class", lambda v: v),
)
_LEVELS = (0.25, 0.5, 0.75)
_MOST = 10
# Letters of a name within a panel, and of a line below all of them.
_BESIDE, _LETTERS = 40, 220


def rules_compared(runs: Trajectories, title: str | None = None) -> Figure:
    """The medians over seeds of several rules, with a band that contains half of the runs.

    Each setting (rule, batch size, shape) has one colour in all panels. x is the epoch and
    logarithmic, and so is y except for the loss, of which log10 is drawn. A margin is drawn as 1
    minus its ratio, where that is positive: 0 is collapse for l2, an upper bound for the others.
    More than 10 settings have medians alone, in the colours of a bar that names them.
    """
    check_runs(runs)
    settings = runs.settings()
    if not settings:
        raise ValueError("`runs` must hold at least one run to be drawn; got none.")
    for run in runs:
        if run.time != "epoch":
            raise ValueError(
                f"`runs` must have epochs; the time of one is {run.time!r}. Draw them with "
                "`sweep_bands`."
            )
    figure = Figure(figsize=(19.0, 4.4), layout="constrained")
    every = figure.subplots(1, len(PANELS))
    labels, shared = apart(list(settings))
    many = len(settings) > _MOST
    colour = colours(len(settings)) if many else [f"C{i}" for i in range(_MOST)]
    for axes, (heading, column, drawn) in zip(every, PANELS, strict=True):
        for i, group in enumerate(settings.values()):
            epoch = np.asarray(group.longest["epoch"], dtype=np.float64)
            low, median, high = np.sort(drawn(group.quantiles(column, _LEVELS)), axis=0)
            if column != "log_loss":
                low, median, high = (np.where(v > 0.0, v, np.nan) for v in (low, median, high))
            some = epoch >= 1.0
            x = epoch[some]
            if not many:
                axes.fill_between(x, low[some], high[some], color=colour[i], alpha=0.2, lw=0)
            width = 1.0 if many else 1.6
            axes.plot(x, median[some], marker=point(x), color=colour[i], lw=width, label=labels[i])
        axes.set_xscale("log")
        if column == "log_loss":
            axes.set_yscale("symlog", linthresh=1.0)
            axes.set_ylabel("log10 of the loss")
        else:
            axes.set_yscale("log")
        axes.set_title(heading, fontsize=10)
        axes.set_xlabel("epoch")
        axes.grid(True, color="0.9", lw=0.6)
        axes.set_axisbelow(True)
    if many:
        name_bar(figure, every, labels)
    elif (width := max(map(len, labels))) <= _BESIDE:
        every[0].legend(frameon=False, fontsize=8)
    else:
        # Long names stand below the panels.
        figure.legend(
            every[0].get_legend_handles_labels()[0], [fill(label, _LETTERS) for label in labels],
            frameon=False, fontsize=8, loc="outside lower center",
            ncols=max(_LETTERS // (width + 5), 1),
        )  # fmt: skip
    if title is None:
        counts = dict.fromkeys(map(len, settings.values()))
        said = f"{' or '.join(map(str, counts))} run{'' if [*counts] == [1] else 's'} each"
        said += ", their medians" if many else ": medians, and bands of half of the runs"
        title = "; ".join([", ".join(shared), said] if shared else [said])
    figure.suptitle(title, fontsize=12)
    return figure


def rules_summary(runs: Trajectories) -> str:
    """A text table: a setting a line, the medians of what the figure shows at the last epoch."""
    check_runs(runs)
    names = (
        "log_loss",
        "margin_ratio",
        "margin_ratio_max",
        "margin_ratio_spectral",
        "within_class",
    )
    settings = runs.settings()
    if not settings:
        raise ValueError("`runs` must hold at least one run; got none.")
    width = max(map(len, settings))
    lines = [f"{'medians at the end':<{width}}" + "".join(f"  {name:>21}" for name in names)]
    for name, group in settings.items():
        # The last snapshot of a run that diverged is not at the end.
        ended = [run for run in group if len(run) and not ended_early(run)]
        ends = [np.array([run[c][-1] for run in ended]) for c in names]
        cells = (f"{np.nanmedian(v):.6g}" if np.isfinite(v).any() else "-" for v in ends)
        more = "".join(f"  {end}" for end in early_ends(group))
        lines.append(f"{name:<{width}}" + "".join(f"  {cell:>21}" for cell in cells) + more)
    return "\n".join(lines)
