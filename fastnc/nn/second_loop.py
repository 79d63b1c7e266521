"""A second loop over the batches, whose decisions are those of the weights that run in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from fastnc.collapse.deviations import ClassDeviations
from fastnc.collapse.metrics import CollapseMetrics
from fastnc.collapse.statistics import ClassStatistics
from fastnc.nn.classifier_layer import ClassifierLayer
from fastnc.nn.rank_agreement import all_or_none, several_ranks
from fastnc.nn.running import Running
from fastnc.nn.tracked_layer import TrackedLayer

CPU = torch.device("cpu")


class SecondLoop:
    """The deviations of each layer's features from the means of its `statistics`.

    The first batch waits until the module has run: only then is it known which layer the classifier
    is, and which weights it has. Sharded ones, which all ranks gather together, are taken at once.
    """

    def __init__(
        self,
        layers: list[TrackedLayer],
        running: Mapping[str, Running],
        statistics: Mapping[str, ClassStatistics],
        classifier: ClassifierLayer,
        held_out: bool,
        min_count: int,
    ) -> None:
        self._layers, self._running, self._statistics = layers, running, statistics
        self._classifier, self._held_out, self._min_count = classifier, held_out, min_count
        self._sinks: dict[str, ClassDeviations] = {}
        self._left = {layer.name for layer in layers}
        for run in running.values():
            run.start(None)
        if any(layer.is_sharded for layer in layers):
            self.begin()

    @property
    def begun(self) -> bool:
        """Whether batches may be paired with their labels."""
        return bool(self._sinks)

    def begin(self) -> None:
        """Take the classifier as it is now, unless that was done."""
        for layer in () if self.begun else self._layers:
            statistics = self._statistics[layer.name]
            W, bias = self._classifier.weight_and_bias(layer, statistics.dim, CPU)
            if W is not None:
                statistics = statistics.resized(max(len(W), 2))
            sink = ClassDeviations(statistics, W, bias, self._held_out, self._min_count)
            self._running[layer.name].sink = self._sinks[layer.name] = sink

    def metrics(self, layer: TrackedLayer, finish: Callable[[Running], None]) -> CollapseMetrics:
        """The layer's metrics; `finish` ends its sums, once."""
        self.begin()
        sink = self._sinks[layer.name]
        if layer.name in self._left:
            with all_or_none():
                finish(self._running[layer.name])
            if several_ranks():
                sink.all_reduce()
            self._left.discard(layer.name)
        return sink.metrics()
