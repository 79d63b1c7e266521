"""The sums of a layer's features while a loop runs; no feature is kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastnc._core.arrays import check_unmasked
from fastnc.collapse.deviations import ClassDeviations
from fastnc.collapse.statistics import ClassStatistics, Scatter

# A larger label is taken for a mistake.
MOST_CLASSES = 10_000_000


class Running:
    """Adds batches of rows and their labels, in whichever order they come, to an accumulator.

    The last input is held back until the next one comes: with several ranks it may be a sample that
    a `DistributedSampler` repeats to make the ranks even.
    """

    def __init__(self, scatter: Scatter, ignore_index: int | None) -> None:
        self.scatter, self.ignore_index = scatter, ignore_index
        self.sink: ClassStatistics | ClassDeviations | None = None
        self.n_inputs = self.n_rows = 0
        self._waiting: list[tuple[Tensor, int]] = []
        self._last: tuple[Tensor, Tensor] | None = None

    def start(self, sink: ClassStatistics | ClassDeviations | None) -> None:
        """A new pass begins, into `sink`; None makes statistics from the first batch on."""
        self.sink, self._waiting, self._last = sink, [], None
        self.n_inputs = self.n_rows = 0

    def waits(self) -> bool:
        """Whether rows wait for their labels."""
        return bool(self._waiting)

    def add(self, rows: Tensor, count: int) -> None:
        """The rows of a batch of `count` inputs."""
        if len(self._waiting) > 1:
            raise ValueError(
                "with `keep='nothing'` each batch needs its labels in the loop: call "
                "`tracker.labels(y)` once a batch, before or after the model."
            )
        # The model may write into this tensor again before its labels come.
        self._waiting.append((rows.clone(), count))

    def check(self, y: Tensor) -> None:
        """Raise unless these labels fit the batch that has waited longest."""
        rows, count = self._waiting[0]
        labels_of_rows(y, len(rows), [len(rows) // max(count, 1)] * count)

    def label(self, y: Tensor) -> None:
        """The labels of the batch that has waited longest."""
        rows, count = self._waiting.pop(0)
        y = labels_of_rows(y, len(rows), [len(rows) // max(count, 1)] * count)
        self.n_inputs += count
        self.n_rows += len(rows)
        if count == 0:
            return
        held, each = self._last, len(rows) // count
        self._last = rows[-each:], y[-each:]
        rows, y = rows[:-each], y[:-each]
        if held is not None:
            rows, y = torch.cat([held[0], rows]), torch.cat([held[1], y])
        self._update(rows, y)

    def finish(self, drop: bool) -> None:
        """Adds the input that was held back, unless it repeats another."""
        if self._last is not None and not drop:
            self._update(*self._last)
        self._last = None

    def _update(self, rows: Tensor, y: Tensor) -> None:
        if len(rows) == 0:
            return
        if not isinstance(self.sink, ClassDeviations):
            kept = y if self.ignore_index is None else y[y != self.ignore_index]
            need = int(kept.max()) + 1 if len(kept) else 1
            check_highest(need - 1)
            if self.sink is None:
                size = max(need, 16)
                self.sink = ClassStatistics(size, rows.shape[1], self.scatter, self.ignore_index)
            elif need > self.sink.n_classes:
                self.sink = self.sink.resized(max(need, 2 * self.sink.n_classes))
        self.sink.update(rows, y)


def labels_of_rows(y: Tensor, n_rows: int, rows_of_inputs: Any) -> Tensor:
    """One label a row: as given, or each input's for all its rows."""
    y = y.reshape(-1)
    if len(y) == n_rows:
        return y
    if len(y) == len(rows_of_inputs):
        return y.repeat_interleave(torch.as_tensor(rows_of_inputs, device=y.device))
    raise ValueError(
        f"there must be one label a sample: {n_rows} samples entered the layer, and {len(y)} "
        "labels were given. Call `tracker.labels(y)` once a batch, or give all to `metrics`."
    )


def check_highest(label: int) -> None:
    """Labels of statistics are class numbers: there is a mean for each up to the highest."""
    if label >= MOST_CLASSES:
        raise ValueError(f"`y` must be class numbers from 0 on; got {label}.")


def check_paired(left: list[Tensor]) -> None:
    """Raise where labels are left that no batch has come for."""
    if left:
        raise ValueError(
            "each batch must enter the layer with its labels; some were given for a batch that did "
            "not, and from there on samples have those of others. Call `tracker.labels(y)` for "
            "batches that run, after the model if they may fail."
        )


def check_negative(y: Tensor, ignore_index: int | None) -> None:
    """Labels must not be negative, but for the one that is ignored."""
    bad = y < 0 if ignore_index is None else (y < 0) & (y != ignore_index)
    if bool(bad.any()):
        label = int(y[bad][0])
        raise ValueError(
            f"labels must not be negative; got {label}. Pass `ignore_index={label}` to the "
            "tracker if such samples are to be left out, or relabel."
        )


def integers(y: Any) -> Tensor:
    """Labels as int64, in the shape in which they were given."""
    check_unmasked("y", y)
    try:
        y = torch.as_tensor(y).detach()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"labels must be integers; got {getattr(y, 'dtype', type(y).__name__)}. Relabel: "
            "`np.unique(y, return_inverse=True)[1]`."
        ) from None
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise ValueError(f"labels must be integers; got {y.dtype}. Convert them: `y.long()`.")
    labels: Tensor = y.to(torch.int64)
    return labels
