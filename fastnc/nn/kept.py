"""The two passes over kept features and their labels, over all ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastnc._core.arrays import check_labels
from fastnc.collapse.deviations import ClassDeviations
from fastnc.collapse.labels import IGNORED
from fastnc.collapse.metrics import CollapseMetrics
from fastnc.collapse.statistics import ClassStatistics
from fastnc.nn.feature_store import FeatureStore
from fastnc.nn.rank_agreement import (
    all_or_none,
    check_inputs,
    distinct,
    largest,
    several_ranks,
)
from fastnc.nn.running import check_highest, check_negative, labels_of_rows

Classifier = tuple[Tensor | None, Tensor | None]


class Kept:
    """The rows of a layer that count, their labels as class numbers, and the classifier if any.

    `inputs` are how many rows each input brought, `n` the size of the data set.
    """

    def __init__(
        self,
        store: FeatureStore,
        inputs: list[int],
        y: Tensor,
        n: int | None,
        classifier: Classifier,
        ignore_index: int | None,
    ) -> None:
        self.store, self.ignore_index = store, ignore_index
        self.W, self.bias = classifier
        self.n_rows_of_W = 0 if self.W is None else max(len(self.W), 2)
        with all_or_none():
            if not store.n_rows:
                store.features()
            check_negative(y, ignore_index)
            y = labels_of_rows(y, store.n_rows, inputs)
            self.y = y[: sum(inputs[: check_inputs(n, len(inputs))])]
            if self.W is not None:
                kept = self.y if ignore_index is None else self.y[self.y != ignore_index]
                check_labels(kept, None, self.n_rows_of_W, more="track a layer with more rows")

    def statistics(self, renumbered: bool = False) -> ClassStatistics:
        """Of the samples of all ranks; the classes are W's rows, or the labels.

        `renumbered` are labels that serve for nothing else: the classes are those that occur.
        """
        n_classes = self.n_rows_of_W or (self._number() if renumbered else self._highest() + 1)
        found = ClassStatistics(n_classes, self.store.dim or 0, "trace", self.ignore_index)
        with all_or_none():
            self._feed(found)
        if several_ranks():
            found.all_reduce()
        return found

    def metrics(
        self, statistics: ClassStatistics, held_out: bool, min_count: int
    ) -> CollapseMetrics:
        """Of the samples about class means."""
        deviations = ClassDeviations(statistics, self.W, self.bias, held_out, min_count)
        deviations.ignore_index = self.ignore_index
        with all_or_none():
            self._feed(deviations)
        if several_ranks():
            deviations.all_reduce()
        return deviations.metrics()

    def _highest(self) -> int:
        """The highest label of any rank."""
        with all_or_none():
            kept = self.y if self.ignore_index is None else self.y[self.y != self.ignore_index]
            found = int(kept.max()) if len(kept) else 0
            check_highest(found)
        return largest(found)

    def _number(self) -> int:
        """Replace the labels by class numbers; returns the number of classes on all ranks."""
        names = distinct(self.y)
        if self.ignore_index is not None:
            names = names[names != self.ignore_index]
        places = torch.searchsorted(names, self.y)
        if self.ignore_index is not None:
            # The label may be the number of another class from here on.
            places = torch.where(self.y == self.ignore_index, IGNORED, places)
            self.ignore_index = IGNORED
        self.y = places
        return len(names)

    def _feed(self, sink: Any) -> None:
        first = 0
        for part in self.store.parts(len(self.y)):
            sink.update_from(first, part, self.y[first : first + len(part)].to(part.device))
            first += len(part)
