"""Every row of Table 1, fitted and laid beside its known optimum."""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc import models as M
from fastnc._arrays import check_count
from fastnc._files import atomic_write
from fastnc.optimum import Solution, solve

METRICS = (
    "within_class",
    "nc1",
    "equinorm_classifier",
    "equiangular_classifier",
    "self_duality",
    "nc4_agreement",
    "margin_ratio",
)


@dataclass(frozen=True, eq=False)
class Row:
    """One fitted row: the model, what was found, its collapse metrics, and the seconds it took."""

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
    weight decays are 0.3 and 0.15 of the threshold 1/K at which the optimum collapses to zero.
    """
    K = check_count("n_classes", n_classes, 2)
    n = check_count("n_per_class", n_per_class, 1)
    d = check_count("dim", dim, 2)
    sizes = (n,) * (K - K // 2) + (max(1, n // 5),) * (K // 2)
    decay = 0.3 / (K * np.sqrt(n))
    lW, lH = float(2 * decay), float(decay / 2)
    gentle = float(0.15 * np.sqrt(min(sizes)) / sum(sizes))
    return {
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
    }


def fit(n_classes: int, n_per_class: int, dim: int, seed: int = 0) -> Iterator[Row]:
    """Solve the models of `rows` one after the other, each measured as it is done."""
    from fastnc.metrics import collapse_metrics

    for name, model in rows(n_classes, n_per_class, dim).items():
        begun = time.perf_counter()
        found = solve(model, seed)
        seconds = time.perf_counter() - begun
        with np.errstate(all="ignore"):
            measured = collapse_metrics(found.H, found.y, found.W, found.bias).as_dict()
        yield Row(name, model.paper, model, found, measured, seconds)


def to_csv(table: list[Row], path: str | os.PathLike[str]) -> Path:
    """One line a row, every digit of every number."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(table[0].as_dict()))
    writer.writeheader()
    for row in table:
        writer.writerow(
            {k: repr(v) if isinstance(v, float) else v for k, v in row.as_dict().items()}
        )
    return atomic_write(path, lambda file: file.write(text.getvalue().encode()))


def to_text(table: list[Row]) -> str:
    """The table for a terminal."""
    lines = [
        f"{'model':32} {'paper':46} {'optimum':>14} {'found':>14} {'gap':>8} "
        f"{'within':>8} {'angles':>8} {'duality':>8} {'seconds':>8}"
    ]
    for row in table:
        s, m = row.solution, row.metrics
        known = "unknown" if s.optimum is None else f"{s.optimum.value:.10g}"
        gap = "" if s.gap is None else f"{s.gap:.0e}"
        small = " ".join(
            f"{_short(m[name]):>8}"
            for name in ("within_class", "equiangular_classifier", "self_duality")
        )
        lines.append(
            f"{row.name:32} {row.paper:46} {known:>14} {s.value:14.10g} {gap:>8} {small} "
            f"{row.seconds:8.2f}"
        )
    lines.append(
        "\nULPM itself: its infimum 0 is not attained (`fastnc ulpm`, `fastnc flow` follow it). "
        "[28], the empirical row:\n`fastnc train` and `fastnc metrics` measure a trained network."
    )
    return "\n".join(lines)


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def collapse_of_minorities(
    ratios: NDArray[np.int64], n_classes: int, n_minority: int, weight_decay: float
) -> NDArray[np.float64]:
    """Cosine between minority classifiers at the certified optimum, for each imbalance ratio.

    Half of the classes have `ratio * n_minority` samples, half (rounded up to at least two)
    `n_minority`. Where the minority classifiers agree the cosine is 1, also where they vanish.
    """
    K = check_count("n_classes", n_classes, 3)
    minorities = max(2, K // 2)
    cosines = np.empty(len(ratios))
    for i, ratio in enumerate(ratios):
        sizes = (int(ratio) * n_minority,) * (K - minorities) + (n_minority,) * minorities
        best = M.imbalanced(sizes, K, weight_decay, weight_decay).optimum()
        first, second = best.W[-2], best.W[-1]
        lengths = np.linalg.norm(first) * np.linalg.norm(second)
        cosines[i] = float(first @ second / lengths) if lengths > 0.0 else 1.0
    return cosines


def collapse_ratio(n_classes: int, n_minority: int, weight_decay: float) -> float:
    """The imbalance ratio from which on minorities collapse: `sqrt(n_min) = N sqrt(lW lH)`."""
    minorities = max(2, n_classes // 2)
    majorities = n_classes - minorities
    return float((1.0 / (weight_decay * np.sqrt(n_minority)) - minorities) / majorities)
