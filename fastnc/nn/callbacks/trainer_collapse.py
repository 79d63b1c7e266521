"""A callback for the Hugging Face Trainer that measures collapse at every evaluation."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback

from fastnc.collapse.history import History
from fastnc.nn.tracker import CollapseTracker


class TrainerCollapse(TrainerCallback):
    """Runs the model over a loader after each evaluation; a `history` by step, and log entries.

    The Trainer gives its callbacks no batch, so the model runs over the loader once more.

    Parameters
    ----------
    layer : str, optional
        Such as "lm_head", by default "classifier"; or `layers=...`, and all else that
        `CollapseTracker` takes.
    dataloader : iterable of dictionaries, optional
        By default the Trainer's loader of the evaluation set.
    labels : str
        The key of the labels in a batch.
    prefix : str
    """

    def __init__(
        self,
        layer: str | None = None,
        dataloader: Any = None,
        labels: str = "labels",
        prefix: str = "nc/",
        **options: Any,
    ) -> None:
        if layer is None and options.get("layers") is None:
            layer = "classifier"
        self.layer, self.dataloader, self.key = layer, dataloader, labels
        self.prefix, self.options = prefix, options
        self.history = History()
        self.metrics: Any = None

    def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        model = given["model"]
        loader = self.dataloader if self.dataloader is not None else given["eval_dataloader"]
        training = model.training
        model.eval()
        tracker = CollapseTracker(model, self.layer, **self.options)
        try:
            with torch.no_grad(), tracker:
                for batch in loader:
                    tracker.labels(batch[self.key])
                    model(**{name: value.to(args.device) for name, value in batch.items()})
        finally:
            model.train(training)
        self.metrics = tracker.metrics()
        flat = self.metrics.flat(self.prefix)
        state.log_history.append({"step": state.global_step, "epoch": state.epoch, **flat})
        if given.get("metrics") is not None:
            given["metrics"].update(flat)
        self.history.add(state.global_step, self.metrics)
