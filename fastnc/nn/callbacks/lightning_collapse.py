"""A Lightning callback that measures collapse in every validation loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from fastnc._core.functions import check_function
from fastnc.collapse.history import History
from fastnc.collapse.layer_table import LayerTable
from fastnc.nn.tracker import CollapseTracker


class LightningCollapse(Callback):
    """Tracks layers during validation, logs `prefix + name`, and keeps a `history` by epoch.

    Parameters
    ----------
    layer : str, optional
        Of the LightningModule; or `layers=...`, and all else that `CollapseTracker` takes.
    labels : callable of a batch
        Its labels; by default the second of a tuple, or the value of the key "labels".
    prefix : str

    Notes
    -----
    The first validation loader is measured. Lightning's samplers repeat samples to make ranks even;
    the size of the loader's data set tells which.
    """

    def __init__(
        self,
        layer: str | None = None,
        labels: Callable[[Any], Any] | None = None,
        prefix: str = "nc/",
        **options: Any,
    ) -> None:
        if labels is not None:
            check_function("labels", labels, "batch")
        self.layer, self.of_batch, self.prefix, self.options = layer, labels, prefix, options
        self.history = History()
        self.metrics: Any = None
        self._tracker: CollapseTracker | None = None

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tracker = CollapseTracker(pl_module, self.layer, **self.options)
        self._tracker.__enter__()

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._tracker is not None and dataloader_idx == 0:
            self._tracker.labels(self.of_batch(batch) if self.of_batch else labels_of(batch))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._tracker is None:
            return
        self._tracker.__exit__(None, None, None)
        tracker, self._tracker = self._tracker, None
        if trainer.sanity_checking:
            return
        self.metrics = tracker.metrics()
        flat = self.metrics.flat(self.prefix)
        pl_module.log_dict(flat, rank_zero_only=not isinstance(self.metrics, LayerTable))
        self.history.add(trainer.current_epoch, self.metrics)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: Any) -> None:
        if self._tracker is not None:
            self._tracker.__exit__(None, None, None)
            self._tracker = None


def labels_of(batch: Any) -> Any:
    """The labels of a batch: under "labels", or the second of a tuple."""
    return batch["labels"] if isinstance(batch, dict) else batch[1]
