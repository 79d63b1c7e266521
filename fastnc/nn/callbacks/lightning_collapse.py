"""A Lightning callback that measures collapse in every validation loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DistributedSampler

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
        Its labels; by default the second of a tuple, or the value of the key "labels". A causal
        language model's must be shifted here.
    prefix : str

    Notes
    -----
    The first validation loader is measured; of several validations in an epoch, `history` keeps the
    last. Lightning's samplers repeat samples to make ranks even; the size of the loader's data set
    tells which, and these do not count.
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
        self._n_inputs = 0

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._n_inputs = 0
        self._tracker = CollapseTracker(pl_module, self.layer, **self.options)
        self._tracker.__enter__()

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._tracker is None:
            return
        if dataloader_idx == 0:
            y = self.of_batch(batch) if self.of_batch else labels_of(batch)
            self._tracker.labels(y)
            self._n_inputs += len(y)
        elif dataloader_idx == 1 and batch_idx == 0:
            self._tracker.__exit__(None, None, None)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._tracker is None:
            return
        self._tracker.__exit__(None, None, None)
        tracker, self._tracker = self._tracker, None
        if trainer.sanity_checking:
            return
        self.metrics = tracker.metrics(n=_size(trainer.val_dataloaders, self._n_inputs))
        flat = self.metrics.flat(self.prefix)
        pl_module.log_dict(flat, rank_zero_only=not isinstance(self.metrics, LayerTable))
        self.history.add(trainer.current_epoch, self.metrics)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: Any) -> None:
        if self._tracker is not None:
            self._tracker.__exit__(None, None, None)
            self._tracker = None


def _size(loaders: Any, seen: int) -> int | None:
    """The size of the first loader's data set if samples were repeated; else None."""
    while isinstance(loaders, (list, tuple, dict)):
        loaders = next(iter(loaders.values() if isinstance(loaders, dict) else loaders), None)
    sampler = getattr(loaders, "sampler", None)
    # A loop that was cut short did not come to those that are repeated: they are the last ones.
    if not isinstance(sampler, DistributedSampler) or seen != sampler.num_samples:
        return None
    n = len(sampler.dataset)  # type: ignore[arg-type]
    return n if sampler.total_size > n else None


def labels_of(batch: Any) -> Any:
    """The labels of a batch: under "labels", or the second of a tuple."""
    return batch["labels"] if isinstance(batch, dict) else batch[1]
