"""Every model of Table 1 and of its literature, fitted, beside its known optimum."""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastnc import models as M
from fastnc._core.arrays import check_choice, check_count
from fastnc._core.environment import provenance_line
from fastnc._core.files import atomic_write, check_name
from fastnc._core.latex import tabular
from fastnc._core.results import check_names, check_results
from fastnc.models.solve import Solution, solve

METRICS = (
    "within_class",
    "nc1",
    "equinorm_classifier",
    "equiangular_classifier",
    "self_duality",
    "nc4_agreement",
    "margin_ratio",
)
# The model of the key contains every point of the other one, with the same value: without a bias,
# and with features that are not negative.
CONTAINS = {
    "cross-entropy + decay, bias": "cross-entropy + decay",
    "cross-entropy + decay, unequal": "ReLU features, unequal",
}
_SOURCE = "`fastnc.paper.table1.fit`"


@dataclass(frozen=True, eq=False)
class Row:
    """One fitted row: the model, its solution, the collapse metrics, and the seconds of the fit."""

    name: str
    paper: str
    model: Any
    solution: Solution
    metrics: dict[str, float | None] = field(repr=False)
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The columns of the table."""
        s = self.solution
        return {
            "model": self.name,
            "paper": self.paper,
            "optimum": None if s.optimum is None else s.optimum.value,
            "found": s.value,
            "gap": s.gap,
            **{name: self.metrics[name] for name in METRICS},
            "seconds": self.seconds,
            "evaluations": s.evaluations,
            "reason": s.reason,
            "parameters": repr(self.model),
        }


def rows(n_classes: int, n_per_class: int, dim: int) -> dict[str, Any]:
    """The models of the table, by name, at sizes K, n, d: balanced ones and unequal ones.

    The unequal ones have K - K//2 classes of n samples and K//2 classes of max(1, n // 5). The
    weight decays are 0.3 and 0.15 of the threshold 1/K at which the optimum collapses to zero; the
    two layers on free features have 0.3 of theirs, 0.397 / (K n^(1/3)). A softmax code has one
    vector a class, whatever the class sizes.
    """
    K = check_count("n_classes", n_classes, 2)
    n = check_count("n_per_class", n_per_class, 1)
    d = check_count("dim", dim, 2)
    sizes = (n,) * (K - K // 2) + (max(1, n // 5),) * (K // 2)
    decay = 0.3 / (K * np.sqrt(n))
    lW, lH = float(2 * decay), float(decay / 2)
    deep = float(0.3 * 0.397 / (K * np.cbrt(n)))
    gentle = float(0.15 * np.sqrt(min(sizes)) / sum(sizes))
    return {
        "ULPM": M.ULPM(K, n, d),
        "sphere": M.sphere(K, n, d, radius=float(2 * np.sqrt(K - 1) * n**0.25)),
        "separation": M.separation(K, n, d),
        "separation, unequal (SELI)": M.seli(sizes, d),
        "norm-constrained": M.norm_constrained(K, n, d, 3.0, 2.0),
        "unit rows": M.normalized(K, n, d, 5.0),
        "cross-entropy + decay": M.weight_decay(K, n, d, lW, lH),
        "cross-entropy + decay, bias": M.weight_decay(K, n, d, lW, lH, bias=True),
        "cross-entropy + decay, smoothed": M.weight_decay(K, n, d, lW, lH, label_smoothing=0.1),
        "cross-entropy + decay, unequal": M.imbalanced(sizes, d, gentle, gentle),
        "ReLU features, unequal": M.relu_features(sizes, d, gentle, gentle),
        "squared error + decay": M.squared_error(K, n, d, lW, lH),
        "squared error + decay, bias": M.squared_error(K, n, d, lW, lH, bias=True),
        "squared error + decay, unequal": M.imbalanced_squared_error(sizes, d, gentle, gentle),
        "squared error + decay, two layers": M.deep_linear(K, n, (d, d), (deep,) * 3),
        "softmax code": M.softmax_code(K, d),
    }


def fit(
    n_classes: int,
    n_per_class: int,
    dim: int,
    seed: int = 0,
    starts: int | None = None,
    only: Sequence[str] | None = None,
) -> Iterator[Row]:
    """Solve and measure the models of `rows`, one after the other.

    The ULPM has no minimiser: its row is the end of 1e5 epochs of gradient descent. In the first
    run on a machine, `seconds` of the first rows include the compilation of the kernels.
    """
    table = rows(n_classes, n_per_class, dim)
    seed = check_count("seed", seed, 0)
    if starts is not None:
        starts = check_count("starts", starts, 1)
    chosen = list(table) if only is None else check_names("only", only, "rows of the table")
    for name in chosen:
        check_choice("only", name, tuple(table))
    return _fitted(table, chosen, seed, starts)


def _fitted(
    table: dict[str, Any], chosen: Sequence[str], seed: int, starts: int | None
) -> Iterator[Row]:
    from fastnc.collapse.measurement import collapse_metrics

    solved: dict[str, Solution] = {}

    def solution(name: str) -> Solution:
        """The solution of a row; that of the row it contains is one of its starts."""
        if name not in solved:
            inner = solution(CONTAINS[name]) if name in CONTAINS else None
            beside = [] if inner is None else [(inner.W, inner.H, inner.bias)]
            solved[name] = solve(table[name], seed, starts, beside=beside)
        return solved[name]

    for name in chosen:
        model = table[name]
        begun = time.perf_counter()
        found = _descended(model, seed) if isinstance(model, M.ULPM) else solution(name)
        seconds = time.perf_counter() - begun
        with np.errstate(all="ignore"):
            measured = collapse_metrics(found.H, found.y, found.W, found.bias).as_dict()
        yield Row(name, getattr(model, "paper", "this paper, (4)"), model, found, measured, seconds)


def _descended(model: M.ULPM, seed: int) -> Solution:
    from fastnc.dynamics.descent import descend

    epochs = 100_000
    run = descend(model, lr=5.0, epochs=epochs, seed=seed)
    return Solution(
        W=run.W,
        H=run.H,
        bias=None,
        value=float(np.exp(run["log_loss"][-1])),
        gap=None,
        reason=f"{epochs} epochs of gradient descent, lr = 5; the infimum 0 is not attained",
        optimum=None,
        y=model.y,
        evaluations=epochs,
    )


def to_csv(table: list[Row], path: str | os.PathLike[str]) -> Path:
    """One line a row, every digit of every number."""
    table = check_results("table", table, Row, _SOURCE)
    check_name(path, ".csv")
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(table[0].as_dict()))
    writer.writeheader()
    for row in table:
        writer.writerow(
            {k: repr(v) if isinstance(v, float) else v for k, v in row.as_dict().items()}
        )
    return atomic_write(path, lambda file: file.write(text.getvalue().encode()))


def to_latex(table: list[Row], path: str | os.PathLike[str]) -> Path:
    """The columns of `to_text` without the seconds, as a LaTeX tabular (booktabs)."""
    table = check_results("table", table, Row, _SOURCE)
    check_name(path, ".tex")
    heads = ("model", "source", "optimum", "found", "gap", "within-class", "angles", "self-duality")
    cells = [
        (row.name, row.paper, _known(row), f"{row.solution.value:.10g}", *_smalls(row))
        for row in table
    ]
    text = f"{tabular(heads, cells)}% {provenance_line()}\n"
    return atomic_write(path, lambda file: file.write(text.encode()))


def _known(row: Row) -> str:
    if isinstance(row.model, M.ULPM):
        return "0 (infimum)"
    return f"{row.solution.optimum.value:.10g}" if row.solution.optimum else "unknown"


def _smalls(row: Row) -> list[str]:
    """The gap and three metrics, which are small after collapse."""
    gap = "" if row.solution.gap is None else f"{row.solution.gap:.0e}"
    names = ("within_class", "equiangular_classifier", "self_duality")
    return [gap, *(_short(row.metrics[name]) for name in names)]


def to_text(table: list[Row]) -> str:
    """The table for a terminal."""
    table = check_results("table", table, Row, _SOURCE)
    names = [("model", "paper"), *((row.name, row.paper) for row in table)]
    wide = [max(map(len, column)) for column in zip(*names, strict=True)]
    starts = [f"{model:{wide[0]}} {paper:{wide[1]}}" for model, paper in names]
    lines = [
        f"{starts[0]} {'optimum':>14} {'found':>14} {'gap':>8} {'within':>8} {'angles':>8} "
        f"{'duality':>8} {'seconds':>8}"
    ]
    for start, row in zip(starts[1:], table, strict=True):
        small = " ".join(f"{cell:>8}" for cell in _smalls(row))
        lines.append(
            f"{start} {_known(row):>14} {row.solution.value:14.10g} {small} {row.seconds:8.2f}"
        )
    lines.append(
        "\nULPM: after 1e5 epochs of gradient descent; its infimum 0 is not attained, `fastnc "
        "ulpm` and `fastnc flow` follow it.\n[28], the empirical row: `fastnc train` and `fastnc "
        "metrics` measure a trained network."
    )
    return "\n".join(lines)


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"
