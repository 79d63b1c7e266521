"""What all figures share: colours, formulas, axes of time, titles, and the writing of files."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable
from operator import methodcaller
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import ArrayLike, NDArray

from fastnc._core.environment import own_version, provenance_line
from fastnc._core.files import atomic_write, check_path
from fastnc._core.results import check_result
from fastnc.dynamics.snapshot import NORMS
from fastnc.dynamics.trajectories import Trajectories
from fastnc.dynamics.trajectory import Trajectory
from fastnc.plots.many import as_text

FEATURES = "#1f77b4"
CLASSIFIER = "#d62728"
NEUTRAL = "#444444"
# At most so many names stand below an axis.
MOST_NAMES = 12
# A metric that is 0 by symmetry (K = 2, or one sample a class) is smaller than this, and its square
# if it is a square. Nothing is known of other columns.
_ROUNDING = 1e-13
_LENGTHS = (
    "equinorm_features", "equinorm_classifier", "within_class", "equiangular_features",
    "equiangular_classifier", "self_duality", "nc2_gram_features", "nc2_gram_classifier",
    "nc3_gram", "seli_classifier", "seli_features", "seli_logits",
)  # fmt: skip
_SQUARES = ("nc1", "nc1_quotient", "cdnv", "nc3_distance", "uniform_duality", "nc0")
# A power's share of the axis of a panel, one of four in a row.
_ROOM = 0.13
# The most letters of a line of a title.
_TITLE = 130
# What a title of a training leaves out.
_USUAL = {
    "head": "own", "feature_dim": 4096, "batch_norm": False, "dropout": 0.0, "feature_scale": 1.0,
    "classifier_scale": 1.0, "momentum": 0.9, "schedule": "constant", "schedule_args": {},
    "precision": "float32", "augment": "none",
}  # fmt: skip
# Schedules of a training to which its `lr` is nothing.
_OWN_RATES = ("OneCycleLR", "CyclicLR")
# Labels of the axes of metrics.
FORMULAS = {
    "equinorm_features": r"$\mathrm{Std}_k / \mathrm{Avg}_k\;|m_k - g|$",
    "equinorm_classifier": r"$\mathrm{Std}_k / \mathrm{Avg}_k\;|w_k - \bar w|$",
    "within_class": r"$\mathrm{Avg}_i|h_i - m_{y_i}|\;/\;\mathrm{Avg}_i|h_i - g|$",
    "equiangular_features": r"$\mathrm{Avg}_{j \neq k}\,|\cos_{jk} + 1/(K-1)|$",
    "equiangular_classifier": r"$\mathrm{Avg}_{j \neq k}\,|\cos_{jk} + 1/(K-1)|$",
    "self_duality": r"$\mathrm{Avg}_k\,|\hat m_k - \hat w_k|$",
    "nc1": r"$\mathrm{tr}(\Sigma_W \Sigma_B^+)\,/\,K$",
    "nc1_quotient": r"$\mathrm{tr}\,\Sigma_W\,/\,\mathrm{tr}\,\Sigma_B$",
    "cdnv": r"$\mathrm{Avg}_{j \neq k}\,(v_j + v_k)\,/\,2|m_j - m_k|^2$",
    "nc2_gram_features": r"$|\,G/|G| - E/\sqrt{K-1}\,|_F,\;G = M_c M_c^T$",
    "nc2_gram_classifier": r"$|\,G/|G| - E/\sqrt{K-1}\,|_F,\;G = W_c W_c^T$",
    "nc3_gram": r"$|\,R/|R| - E/\sqrt{K-1}\,|_F,\;R = W_c M_c^T$",
    "nc3_distance": r"$|\,W/|W| - M_c/|M_c|\,|_F^2$",
    "uniform_duality": r"$\mathrm{Var}_k\,\langle w_k, m_k - g\rangle$",
    "nc0": r"$|\sum_k w_k|^2\,/\,K$",
    "effective_rank": r"$\exp H(\sigma / |\sigma|_1),\;\sigma$ of $M_c$",
    "gnc2_log": r"$\mathrm{Avg}_{j \neq k}\,\log(1 / r_{jk})$",
    "gnc2_riesz": r"$\mathrm{Avg}_{j \neq k}\,r_{jk}^{-(d-2)}$",
    "one_vs_rest_distance": r"$\min_k\,|\hat w_k - \mathrm{hull}(\hat w_{j \neq k})|$",
    "margin": r"$q_{\min}$",
    # E = I - 11^T/K: of equal classes this nuclear norm is (K-1) sqrt n.
    "margin_ratio": r"$2|E\,\mathrm{diag}\sqrt{n_k}|_*\,q_{\min}\,/\,(|W|^2 + |H|^2)$",
    "nc4_agreement": "share of samples, 1 at collapse",
    "accuracy": "share of samples",
    "nearest_mean_accuracy": "share of samples",
    "log_loss": r"$\log L$",
}

# Metrics with a sign, or with a limit other than 0, have a linear axis; shares have a line at 1.
_SHARES = ("accuracy", "agreement", "margin_ratio")
_LINEAR = (*_SHARES, "log_loss", "gnc2", "effective_rank", "one_vs_rest")


def save(figure: Figure, stem: str | os.PathLike[str]) -> list[Path]:
    """Write `stem`.png and `stem`.pdf, each atomically and with its provenance as metadata."""
    check_result("figure", figure, Figure, "each function of `fastnc.plots`")
    check_path("stem", stem)
    path = Path(stem)
    if not path.name:
        raise ValueError(f"`stem` must name the files; got {str(stem)!r}.")
    if path.suffix.lower() in (".png", ".pdf"):
        raise ValueError(
            f"`stem` must be a name without an ending, since .png and .pdf are both written; got "
            f"{str(stem)!r}. Leave out {path.suffix!r}."
        )
    made = provenance_line()
    metadata: dict[str, dict[str, Any]] = {
        "png": {"Software": f"fastnc {own_version()}", "Source": made},
        "pdf": {"Creator": f"fastnc {own_version()}", "Subject": made},
    }
    # A layout takes as long as a drawing, and would be computed for each file.
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)
    try:
        # Type 42: journals want text that stays text.
        with matplotlib.rc_context({"pdf.fonttype": 42, "ps.fonttype": 42}):
            written = []
            for kind in ("png", "pdf"):
                # In memory first: matplotlib answers a full disk with an error of its own.
                drawn = io.BytesIO()
                figure.savefig(drawn, format=kind, dpi=160, metadata=metadata[kind])
                target = path.with_name(f"{path.name}.{kind}")
                written.append(atomic_write(target, methodcaller("write", drawn.getvalue())))
            return written
    finally:
        if engine is not None:
            figure.set_layout_engine(engine)


def without_rounding(values: ArrayLike, name: str) -> NDArray[np.float64]:
    """The values of a metric, `1 - name` or `|name / ...|`, with 0 for the rounding of a 0."""
    x, name = np.asarray(values, dtype=np.float64), name.removeprefix("test_")
    is_length = name in _LENGTHS or name.startswith(("1 - ", "|"))
    least = _ROUNDING if is_length else _ROUNDING**2 if name in _SQUARES else 0.0
    return np.where(np.abs(x) < least, 0.0, x)


def log_values(*together: Axes) -> None:
    """Make the y axis of a panel, or of several that share it, logarithmic if any value is > 0.

    A panel of zeros, such as the within-class variation of single samples, is labelled as such; on
    an axis of its own it shows a line at 0, beside others none.
    """
    drawn = {axes: _drawn(axes) for axes in together}
    zero = [axes for axes in together if axes.lines and not (drawn[axes] > 0.0).any()]
    if len(zero) < sum(bool(axes.lines) for axes in together):
        for axes in together:
            axes.set_yscale("log")
            low, high = axes.get_ylim()
            if high < low * (1.0 + 1e-9):
                # Of values that differ in their rounding alone matplotlib's axis has no length.
                axes.set_ylim(0.5 * low, 2.0 * high)
    else:
        for axes in zero:
            axes.set_ylim(-1.0, 1.0)
            axes.set_yticks([0.0], ["0"])
    for axes in zero:
        known = np.isfinite(drawn[axes]).any()
        say_within(axes, "0 to rounding" if known else "not defined", 9)
        if not known:
            axes.set_yticks([])


def _drawn(axes: Axes) -> NDArray[np.float64]:
    """The values of all lines that are curves, not marks across the panel."""
    curves = [line for line in axes.lines if line.get_transform() == axes.transData]
    return np.concatenate([np.zeros(0), *(np.asarray(c.get_ydata(), float) for c in curves)])


def point(x: NDArray[np.float64]) -> str:
    """The marker of a line: one snapshot is a point."""
    return "o" if len(x) == 1 else ""


def say_within(axes: Axes, text: str, size: int = 8) -> None:
    """Write `text` in the middle of a panel that shows nothing, or zeros."""
    axes.annotate(text, (0.5, 0.56), xycoords="axes fraction", ha="center", size=size)


def metric_axis(axes: Axes, name: str) -> None:
    """Set the y axis of a drawn metric: logarithmic if it falls to 0, and its formula as a label.

    A dashed line shows the value at collapse if that is 1.
    """
    if not any(word in name for word in _LINEAR) and not axes.dataLim.y0 < 0.0:
        log_values(axes)
    elif any(word in name for word in _SHARES) and name not in NORMS:
        axes.axhline(1.0, color=NEUTRAL, ls="--", lw=1.0)
    axes.set_title(as_text(name), fontsize=11)
    axes.set_ylabel(FORMULAS.get(name, as_text(name)))
    grid(axes)


def grid(axes: Axes, which: str = "both", axis: str = "both") -> None:
    """A light grid behind what is drawn."""
    axes.grid(True, which=which, axis=axis, color="0.9", lw=0.6)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def check_run(run: Any, name: str = "run", least: int = 0) -> None:
    """`run` must be one run, with at least so many snapshots."""
    if not isinstance(run, Trajectory):
        several = f" Draw one of them, `{name}[0]`, or all by `sweep_bands`."
        raise TypeError(
            f"`{name}` must be a Trajectory, as runs return and `fastnc.Trajectory.load` reads; "
            f"got {type(run).__name__}." + (several if isinstance(run, Trajectories) else "")
        )
    if len(run) < least:
        raise ValueError(f"`{name}` must have at least {least} snapshot; it has none.")


def check_runs(runs: Any) -> None:
    """`runs` must be several runs."""
    if not isinstance(runs, Trajectories):
        raise TypeError(
            "`runs` must be Trajectories, as `fastnc.sweep` returns; got "
            f"{type(runs).__name__}. Of a list: `fastnc.Trajectories(runs)`."
        )


def settings(run: Trajectory) -> str:
    """The default title of a run's figure: all that was run, as a sweep names it, and the seed.

    Of a training the network, its images and its optimiser.
    """
    about = run.about
    if not about.get("model"):
        return ""
    if about.get("kind") == "training":
        size = about["image_size"]
        said = [
            about["model"],
            *([about["images"]] if about.get("images") else []),
            f"{about['n_samples']} images of {size} x {size}",
            *([] if about.get("schedule") in _OWN_RATES else [f"lr={about['lr']:g}"]),
            f"batches of {about['batch_size']}",
            *(["started from another run's checkpoint"] if about.get("start") else []),
            *(
                f"{name}={about[name]}"
                for name, usual in _USUAL.items()
                if about.get(name, usual) != usual
            ),
        ]
    else:
        said = list(Trajectories([run]).settings())
    said += [f"seed {about['seed']}"] if "seed" in about else []
    return fill(as_text(", ".join(said)), _TITLE)


def legend(axes: Axes, **options: Any) -> None:
    """A legend, if there is a label."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(**{"frameon": False, "fontsize": 8, **options})


def log_log_time(axes: Axes, low: float, high: float) -> None:
    """Make the x axis, which holds log10 t, one of log log t, from 10^low to 10^high.

    A logarithmic axis of log10 t *is* a log log t axis, and its numbers stay finite at any t.
    """
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    if high <= 12:
        ticks = spaced(np.arange(np.ceil(low), np.floor(high) + 1), low, high, _ROOM)
        if len(ticks) < 3:
            # Less than two decades: 10, 20, 50, 100, ...
            ticks = np.log10([m * 10.0**k for k in range(13) for m in (1, 2, 5)])
            ticks = ticks[(ticks >= low) & (ticks <= high)]
    else:
        ticks = 10.0 ** np.arange(np.ceil(np.log10(low)), np.floor(np.log10(high)) + 1)
    axes.xaxis.set_major_locator(FixedLocator(ticks.tolist()))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _power(x)))


def spaced(ticks: Iterable[float], low: float, high: float, room: float) -> NDArray[np.float64]:
    """Of growing ticks on a logarithmic axis those that have a share `room` of it to themselves."""
    kept: list[float] = []
    for tick in ticks:
        if not kept or math.log(tick / kept[-1]) > room * math.log(high / low):
            kept.append(tick)
    return np.array(kept)


def _power(log10_value: float) -> str:
    """The text of a power of ten, or of a number between two of them."""
    whole = abs(log10_value - round(log10_value)) < 1e-9
    return f"$10^{{{log10_value:g}}}$" if whole else f"{10.0**log10_value:.3g}"


def epochs(axes: Axes, last: float) -> None:
    """Make the x axis one of epochs from 0 on: linear up to a thousand, then logarithmic."""
    if last > 1000.0:
        axes.set_xscale("symlog", linthresh=1.0, linscale=0.3)
    axes.set_xlim(0.0, max(last, 1.0))
    axes.set_xlabel("epoch" if last <= 1000.0 else "epoch (log scale)")


def names_below(axes: Axes, names: list[str]) -> None:
    """Names below 0, 1, 2, ... on the x axis; rotated where they would touch."""
    step = max(len(names) // MOST_NAMES, 1)
    crowded = sum(map(len, names[::step])) > 40
    axes.set_xticks(
        range(0, len(names), step), [as_text(name) for name in names[::step]],
        rotation=45 if crowded else 0, ha="right" if crowded else "center",
        rotation_mode="anchor", fontsize=8,
    )  # fmt: skip
