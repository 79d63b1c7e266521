"""The metrics of a training run, epoch by epoch: gathered, as a table, as a file."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any

from fastnc._core.arrays import plain
from fastnc._core.files import atomic_write, check_name
from fastnc._core.results import frames_of
from fastnc.collapse.layer_table import LayerTable
from fastnc.collapse.metrics import CollapseMetrics
from fastnc.collapse.regression import RegressionMetrics


class History:
    """Rows of named numbers, one an epoch; an epoch may lack some of them.

    Examples
    --------
    >>> import numpy as np, fastnc
    >>> H, y = np.array([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]]), np.arange(4) // 2
    >>> h = fastnc.History()
    >>> for epoch in (1, 2):
    ...     h.add(epoch, fastnc.collapse_metrics(H / epoch, y), test_accuracy=0.9)
    >>> len(h), h["epoch"], h["test_accuracy"]
    (2, [1, 2], [0.9, 0.9])
    """

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def add(
        self,
        epoch: float,
        metrics: CollapseMetrics
        | LayerTable
        | RegressionMetrics
        | Mapping[str, float | None]
        | None = None,
        **more: float | None,
    ) -> None:
        """A row: the epoch, the metrics that are known, and further numbers by name.

        Metrics of several layers have names such as `fc/nc1`. If the epoch has a row already, they
        are added to it, and replace those of the same names.
        """
        if isinstance(epoch, bool) or not isinstance(epoch, Real):
            raise TypeError(f"`epoch` must be a number; got {epoch!r}.")
        epoch = plain(epoch)
        if isinstance(metrics, (CollapseMetrics, LayerTable, RegressionMetrics)):
            numbers: dict[str, Any] = dict(metrics.flat())
        elif metrics is None or isinstance(metrics, Mapping):
            numbers = dict(metrics or {})
        else:
            raise TypeError(f"`metrics` must be metrics or a dictionary; got {metrics!r}.")
        numbers = {
            name: _number(name, value)
            for name, value in (numbers | more).items()
            if value is not None
        }
        for row in self._rows:
            if row["epoch"] == epoch:
                row.update(numbers)
                return
        self._rows.append({"epoch": epoch, **numbers})

    def flat(self, prefix: str = "") -> dict[str, float]:
        """The last row, under `prefix + name`: what loggers take."""
        if not self._rows:
            return {}
        return {f"{prefix}{name}": value for name, value in self._rows[-1].items()}

    def keys(self) -> list[str]:
        """The names of all columns, "epoch" first, in the order in which they came."""
        return list(dict.fromkeys(["epoch", *(name for row in self._rows for name in row)]))

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter([dict(row) for row in self._rows])

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def __getitem__(self, name: str) -> list[Any]:
        """A column, epoch by epoch; None where an epoch lacks it."""
        if name not in self:
            raise KeyError(f"no column {name!r}; there are {', '.join(self.keys())}.")
        return [row.get(name) for row in self._rows]

    def __repr__(self) -> str:
        return f"History: {len(self)} epochs of {len(self.keys()) - 1} numbers"

    def to_pandas(self) -> Any:
        """A data frame with a row an epoch; needs pandas."""
        return frames_of("pandas").DataFrame(self._rows, columns=self.keys())

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """A file of comma-separated values, written whole or not at all; missing ones are empty."""
        check_name(path, ".csv")
        names = self.keys()

        def write(file: Any) -> None:
            import io

            text = io.StringIO()
            writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(self._rows)
            file.write(text.getvalue().encode())

        atomic_write(path, write)


def _number(name: Any, value: Any) -> float:
    """A number, or an array or tensor of one, as Python's own: no tensor keeps its graph here."""
    if not isinstance(name, str) or name == "epoch":
        raise ValueError(f"a column must have a name other than 'epoch'; got {name!r}.")
    if isinstance(value, Real):
        return plain(value)
    if getattr(value, "shape", None) in ((), (1,)):
        value = value.detach() if hasattr(value, "detach") else value
        return float(value.reshape(()))
    raise TypeError(f"{name!r} must be one number; got {value!r:.200}.")
