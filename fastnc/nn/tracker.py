"""What enters or leaves layers during an evaluation loop, and how far it has collapsed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fastnc._core.arrays import check_choice
from fastnc._core.files import describe
from fastnc.collapse.layer_table import LayerTable
from fastnc.collapse.metrics import CollapseMetrics
from fastnc.collapse.statistics import ClassStatistics, Scatter
from fastnc.nn.classifier_layer import ClassifierLayer
from fastnc.nn.feature_store import FeatureStore, check_keep
from fastnc.nn.hooks import Hooks
from fastnc.nn.kept import Kept
from fastnc.nn.rank_agreement import all_or_none, check_inputs, largest, several_ranks
from fastnc.nn.running import Running, check_negative, check_paired, integers
from fastnc.nn.second_loop import CPU, SecondLoop
from fastnc.nn.tracked_layer import (
    TrackedLayer,
    layer_or_layers,
    linear_names,
    natural_names,
    one_layer,
    unwrapped,
)

About = ClassStatistics | dict[str, ClassStatistics]


class CollapseTracker:
    """Watches layers of a network while it is open, then measures what entered or left them.

    Give each batch's labels in the loop, by `tracker.labels(y)`: a shuffled loader has another
    order every time. Under `DistributedDataParallel` each rank tracks its own samples, and
    `metrics(n=len(dataset))`, called on every rank, returns those of all samples together, without
    the ones that a `DistributedSampler` repeats to make the ranks even. To open it again discards
    what was tracked. While it is open, compiled modules run eagerly: compiled code has no hooks.

    Parameters
    ----------
    module : torch.nn.Module
        The model; a `DistributedDataParallel` or `torch.compile` wrapper is looked through.
    layer : str or torch.nn.Module, optional
        The one layer to track, by its name in `module.named_modules()`; "classifier.6", the last of
        torchvision's VGG, if nothing is named. A loss that holds a linear layer is that layer.
    layers : list of str or torch.nn.Module, or a str, optional
        Several instead: names, globs (`"features.*"`), or `"linear"` for every layer with a weight
        (K, d). `metrics` and so on then give a dictionary by name.
    at : "input" or "output"
        Whether features are what enters a layer (the first argument of its `forward`) or what
        leaves it.
    features : "flatten", "mean" or "places"
        Of a tensor with more than two dimensions: all numbers of an input together, their mean over
        places, or a sample at every place, whose label is the input's unless each has its own.
        What enters a linear layer is a sample at every place also with "flatten". Channels are on
        the axis that is as wide as the layer; where that tells nothing, as of an activation, they
        come second, and last in (B, T, d).
    classifier : str, torch.nn.Module or None, optional
        Whose input, if it is tracked, is compared with its weight and bias, as they were when the
        module ran last, or first in a second loop. By default the layer with a weight (K, d) that
        ran last; None for no layer.
    keep : "memory", "device", "nothing" or a path
        Where the features stay: in CPU memory, on the model's device, in a file of that name (for
        several layers, that name and the layer's), which is overwritten, or nowhere: they are
        summed as they come, and the other metrics need a second loop, `tracker.second_pass()`.
    scatter : "trace" or "full"
        With `keep="nothing"`, whether the d x d scatter is summed, which gives NC1 in one loop.
    ignore_index : int, optional
        Samples with this label, -100 say, are left out and counted.
    min_count : int
        Classes with fewer samples are left out and counted.

    Raises
    ------
    ValueError
        The module has no such layer, or `keep` is an unknown word; later, features do not fit, or
        what leaves the classifier is not `W h + bias`.
    TypeError
        `module` is no module, a layer no name, or `keep` neither a word nor a path.
    RuntimeError
        Opened while it is open.
    MemoryError
        A copy would no longer fit; what was gathered stays.

    Cost
    ----
    A copy of every batch, N d numbers in the features' dtype; with `keep="nothing"` K d numbers a
    layer in float64 (d x d more with "full"), and the time of `ClassStatistics`.

    Examples
    --------
    >>> import torch
    >>> from fastnc.nn import CollapseTracker
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> x, y = torch.randn(100, 4), torch.arange(100) % 2
    >>> with torch.no_grad(), CollapseTracker(model.eval(), "2") as tracker:
    ...     for batch, labels in zip(x.split(30), y.split(30)):
    ...         tracker.labels(labels)
    ...         _ = model(batch)
    >>> tracker.features.shape
    torch.Size([100, 8])
    >>> tracker.metrics().n_classes
    2
    """

    def __init__(
        self,
        module: nn.Module,
        layer: str | nn.Module | None = None,
        *,
        layers: str | Iterable[str | nn.Module] | None = None,
        at: Literal["input", "output"] = "input",
        features: Literal["flatten", "mean", "places"] = "flatten",
        classifier: str | nn.Module | None = "last",
        keep: str | os.PathLike[str] = "memory",
        scatter: Scatter = "trace",
        ignore_index: int | None = None,
        min_count: int = 1,
    ) -> None:
        check_keep(keep)
        if not isinstance(module, nn.Module):
            raise TypeError(f"`module` must be a torch.nn.Module; got {type(module).__name__}.")
        check_choice("at", at, ("input", "output"))
        check_choice("features", features, ("flatten", "mean", "places"))
        self._module = unwrapped(module)
        self._several = layers is not None
        self._layers = layer_or_layers(self._module, layer, layers, at, features)
        known = natural_names(self._module)
        self._hooks = Hooks([known[name] for name in linear_names(known)])
        named = None
        if classifier is not None and classifier != "last":
            named = one_layer(self._module, classifier, at, features, "classifier").module
        self._classifier = ClassifierLayer(self._hooks, named, classifier == "last")
        self._keep, self._scatter = keep, scatter
        self._ignore_index, self._min_count = ignore_index, min_count
        self._clear()

    def __repr__(self) -> str:
        names = [layer.name for layer in self._layers]
        which = f"layers={describe(names)}" if self._several else f"layer={names[0]!r}"
        counts = [sum(self._inputs[name]) + self._running[name].n_rows for name in names]
        said = " to ".join(map(str, dict.fromkeys((min(counts), max(counts)))))
        return f"CollapseTracker({which}, keep={os.fspath(self._keep)!r}): {said} samples"

    def _clear(self) -> None:
        self._stores: dict[str, FeatureStore] = {}
        self._running = {x.name: Running(self._scatter, self._ignore_index) for x in self._layers}
        self._inputs: dict[str, list[int]] = {x.name: [] for x in self._layers}
        self._labels: list[Tensor] = []
        self._hooks.last = None
        self._classifier.clear()
        self._second: SecondLoop | None = None
        self._statistics: dict[str, ClassStatistics] = {}

    def __enter__(self) -> CollapseTracker:
        if self._hooks:
            raise RuntimeError("the tracker is open already; leave its `with` block first.")
        if self._module.training:
            warnings.warn(
                "the tracked module is in training mode: dropout and batch normalisation change "
                "what enters the layer; call `module.eval()` first.",
                stacklevel=2,
            )
        self._clear()
        if self._keep != "nothing":
            self._stores = {x.name: FeatureStore(self._place(x)) for x in self._layers}
        self._watch()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hooks.remove()
        # Training may change the weights before the metrics are computed.
        self._classifier.left(self._layers)
        for store in self._stores.values():
            store.close()

    @contextmanager
    def second_pass(
        self, n: int | None = None, about: About | None = None
    ) -> Iterator[CollapseTracker]:
        """A second loop over the same batches, for metrics that `keep="nothing"` lacks after one.

        With `about`, the statistics of training samples (`statistics()`), it is a loop over
        held-out samples and needs no first loop. `n` is the size of the data set where ranks repeat
        samples.
        """
        if self._keep != "nothing":
            raise ValueError('`second_pass` is for `keep="nothing"`; otherwise ask for `metrics`.')
        if about is None:
            found = self._of_first_pass(n)
        else:
            last = self._hooks.last or next(reversed(self._hooks.linear), None)
            self._clear()
            # Until a linear layer has run.
            self._hooks.last, found = last, self._each(about)
        held_out, least = about is not None, self._min_count
        self._labels = []
        self._second = SecondLoop(
            self._layers, self._running, found, self._classifier, held_out, least
        )
        self._watch()
        try:
            yield self
        finally:
            self._hooks.remove()
            self._begin()

    def labels(self, y: Any) -> None:
        """The labels of the batch that goes through the module next, or has just gone.

        Of a causal language model those of the next places, which its loss shifts by itself.
        """
        labels = integers(y).clone()
        check_negative(labels, self._ignore_index)
        self._labels.append(labels)
        if self._keep == "nothing" and self._hooks:
            self._pair()

    @property
    def features(self) -> Any:
        """The tracked features (N, d), in order, mapped from the file where there is one."""
        if self._keep == "nothing":
            raise ValueError('`features` are not kept with `keep="nothing"`.')
        return self._one_or_all({x.name: self._store(x).features() for x in self._layers})

    def targets(self) -> Tensor:
        """All labels given so far (N,); with `keep="nothing"` those that wait for their batch."""
        if not self._labels:
            return torch.empty(0, dtype=torch.int64)
        return torch.cat([y.reshape(-1) for y in self._labels])

    def statistics(self, y: Any = None, n: int | None = None) -> Any:
        """The class statistics of the samples, of all ranks: what `about` takes.

        Classes are the classifier's rows, or the labels, 0..K-1 of which some may be absent.
        """
        if self._keep == "nothing":
            return self._one_or_all(self._of_first_pass(n))
        return self._one_or_all({x.name: self._kept(x, y, n).statistics() for x in self._layers})

    def metrics(self, y: Any = None, *, about: About | None = None, n: int | None = None) -> Any:
        """The neural-collapse metrics of what was tracked, as `fastnc.collapse_metrics` has them.

        Parameters
        ----------
        y : (N,) integers, optional
            The labels, in the order of the samples; by default those given to `labels`. Rows of
            the classifier where the layer is one, any that are not negative otherwise.
        about : ClassStatistics, or a dictionary by layer, optional
            Of training samples; those tracked are then held out, and measured about their means.
        n : int, optional
            The size of the data set, over all ranks: samples that were repeated do not count.

        Returns
        -------
        fastnc.CollapseMetrics, or a table of them by layer where `layers` were named
            The weight and bias of the classifier's layer are its W and bias.

        Raises
        ------
        ValueError
            No features, not one label a sample, or what `fastnc.ClassStatistics` and
            `fastnc.ClassDeviations` refuse; here or on another rank.
        """
        self._classifier.check(self._layers)
        if self._keep != "nothing":
            found = {x.name: self._measured(x, y, n, about) for x in self._layers}
        elif y is not None:
            raise ValueError('`y` must be given to `tracker.labels` with `keep="nothing"`.')
        elif (second := self._second) is not None:
            found = {x.name: second.metrics(x, partial(self._finish, n)) for x in self._layers}
        elif about is not None:
            raise ValueError('`about` must be given to `second_pass` with `keep="nothing"`.')
        else:
            found = {}
            for name, statistics in self._of_first_pass(n).items():
                W, bias = self._classifier.weight_and_bias(self._layer(name), statistics.dim, CPU)
                if W is not None:
                    statistics = statistics.resized(max(len(W), 2))
                found[name] = statistics.metrics(W, bias, self._min_count)
        return LayerTable(found) if self._several else found[self._layers[0].name]

    def _watch(self) -> None:
        def ran() -> None:
            self._classifier.ran(self._layers)
            self._begin()

        self._hooks.set(self._layers, self._came, self._classifier.look)
        self._hooks.after(self._module, ran)

    def _begin(self) -> None:
        """The module of a second loop, or the parts of it that the loop calls, has run."""
        if self._second is not None and not self._second.begun:
            self._second.begin()
            self._pair()

    def _came(self, layer: TrackedLayer, h: Tensor) -> None:
        rows, count = layer.rows(h)
        if self._keep == "nothing":
            run = self._running[layer.name]
            if run.waits() and not self._hooks.inside:
                self._begin()
            run.add(rows, count)
            self._pair()
        else:
            self._store(layer).add(rows)
            self._inputs[layer.name] += [len(rows) // max(count, 1)] * count

    def _pair(self) -> None:
        """Pair waiting rows with the labels that have come for them."""
        if self._second is not None and not self._second.begun:
            return
        while self._labels and all(run.waits() for run in self._running.values()):
            for run in self._running.values():
                run.check(self._labels[0])
            y = self._labels.pop(0)
            for run in self._running.values():
                run.label(y)

    def _place(self, layer: TrackedLayer) -> str | os.PathLike[str]:
        if self._keep in ("memory", "device") or not self._several:
            return self._keep
        path = Path(self._keep)
        return path.with_name(f"{path.name}.{layer.name}")

    def _store(self, layer: TrackedLayer) -> FeatureStore:
        return self._stores.setdefault(layer.name, FeatureStore("memory"))

    def _layer(self, name: str) -> TrackedLayer:
        return next(layer for layer in self._layers if layer.name == name)

    def _one_or_all(self, found: dict[str, Any]) -> Any:
        return found if self._several else found[self._layers[0].name]

    def _each(self, about: About) -> dict[str, ClassStatistics]:
        if isinstance(about, dict):
            missing = [x.name for x in self._layers if x.name not in about]
            if missing:
                raise ValueError(f"`about` must hold every layer; {missing[0]!r} is missing.")
            return about
        return dict.fromkeys((x.name for x in self._layers), about)

    def _kept(self, layer: TrackedLayer, y: Any, n: int | None) -> Kept:
        store = self._store(layer)
        y = self.targets() if y is None else integers(y)
        classifier = self._classifier.weight_and_bias(layer, store.dim, y.device)
        return Kept(store, self._inputs[layer.name], y, n, classifier, self._ignore_index)

    def _measured(
        self, layer: TrackedLayer, y: Any, n: int | None, about: About | None
    ) -> CollapseMetrics:
        kept = self._kept(layer, y, n)
        if about is None:
            return kept.metrics(kept.statistics(renumbered=True), False, self._min_count)
        statistics = self._each(about)[layer.name]
        return kept.metrics(statistics, True, self._min_count)

    def _of_first_pass(self, n: int | None) -> dict[str, ClassStatistics]:
        if not self._statistics:
            found = {}
            for layer in self._layers:
                run = self._running[layer.name]
                with all_or_none():
                    if run.n_rows == 0 or run.waits():
                        raise ValueError(
                            "nothing entered the layer with its labels. Run the model inside the "
                            "`with` block, and call `tracker.labels(y)` once a batch."
                        )
                    self._finish(n, run)
                sink = run.sink
                if not isinstance(sink, ClassStatistics):
                    raise ValueError("a second pass is no first one; open the tracker again.")
                n_classes = int(np.flatnonzero(sink.counts).max(initial=0)) + 1
                found[layer.name] = sink.resized(largest(n_classes))
                if several_ranks():
                    found[layer.name].all_reduce()
            self._statistics = found
        return self._statistics

    def _finish(self, n: int | None, run: Running) -> None:
        check_paired(self._labels)
        run.finish(check_inputs(n, run.n_inputs) < run.n_inputs)
