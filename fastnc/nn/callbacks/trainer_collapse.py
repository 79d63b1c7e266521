"""A callback for the Hugging Face Trainer that measures collapse at every evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from fastnc.collapse.history import History
from fastnc.nn.rank_agreement import several_ranks
from fastnc.nn.tracker import CollapseTracker

# The label that the losses of transformers leave out.
IGNORED = -100


class TrainerCollapse(TrainerCallback):
    """Runs the model over a loader after each evaluation; a `history` by step, and log entries.

    The Trainer gives its callbacks no batch, so the model runs over the loader once more. The loss
    of a causal language model of transformers compares each place with the label of the next one:
    so do the metrics then, and leave out the last place and, unless `ignore_index` is given, the
    label -100. Over several ranks the samples that the Trainer's loader repeats do not count. Of
    several evaluation sets the names begin with that of the set, as `a/nc1` (in log entries
    `nc/a/nc1`), and `metrics` are those of the last one.

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
        try:
            with torch.no_grad():
                tracker = self._measured(model, loader, args.device)
        finally:
            model.train(training)
        self.metrics = tracker.metrics()
        of = _of_set(given.get("metrics")) if self.dataloader is None else ""
        flat = self.metrics.flat(f"{self.prefix}{of}")
        state.log_history.append({"step": state.global_step, "epoch": state.epoch, **flat})
        if given.get("metrics") is not None:
            given["metrics"].update(flat)
        self.history.add(state.global_step, self.metrics.flat(of))

    def _measured(self, model: Any, loader: Any, device: Any) -> CollapseTracker:
        """A tracker that has seen the model run over the loader."""
        batches = (
            {k: (v if n is None else v[:n]).to(device) for k, v in batch.items()}
            for batch, n in _of_this_rank(loader)
            if n != 0
        )
        # The loader may be one that runs only once.
        first = next(batches, None)
        shifted = first is not None and looks_ahead(model, first, self.key)
        options = dict(self.options)
        if shifted and options.get("ignore_index") is None:
            options["ignore_index"] = IGNORED
        with CollapseTracker(model, self.layer, **options) as tracker:
            for batch in chain([] if first is None else [first], batches):
                y = batch[self.key]
                if shifted:
                    y = torch.cat([y[:, 1:], torch.full_like(y[:, :1], options["ignore_index"])], 1)
                tracker.labels(y)
                model(**batch)
        return tracker


def _of_set(metrics: Any) -> str:
    """What names of one of several evaluation sets begin with: the Trainer's own are `eval_a_...`.

    It tells no callback which set it is, but gives a run time of each.
    """
    last = "_runtime"
    timed = next((name for name in metrics or () if name.endswith(last)), last)
    name = timed.removesuffix(last).removeprefix("eval").removeprefix("_")
    return f"{name}/" if name else ""


def _of_this_rank(loader: Any) -> Iterator[tuple[Any, int | None]]:
    """The batches, and how many of their samples accelerate has not repeated to make ranks even.

    It deals whole batches out in turns, and fills the last ones up from the beginning.
    """
    size = getattr(loader, "total_dataset_length", -1)
    if not several_ranks() or size < 0:
        yield from ((batch, None) for batch in loader)
        return
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    in_turn = loader.total_batch_size
    for i, batch in enumerate(loader):
        own = in_turn // ranks
        yield batch, min(max(size - i * in_turn - rank * own, 0), own)


def looks_ahead(model: Any, batch: dict[str, Any], key: str) -> bool:
    """Whether the model's loss compares a place with the label of the next one.

    A first label alone is then compared with nothing, and a last one alone with something. Only
    models of transformers are tried, whose losses leave out the label -100.
    """
    y = batch[key]
    if getattr(model, "loss_function", None) is None:
        return False
    if not isinstance(y, Tensor) or y.dim() != 2 or y.shape[1] < 2 or y.is_floating_point():
        return False
    counts = []
    for place in (0, -1):
        alone = torch.full_like(y, IGNORED)
        alone[:, place] = 0
        made = model(**{**batch, key: alone})
        made = made.get("loss") if isinstance(made, dict) else made
        loss = made[0] if isinstance(made, tuple) else made
        if not isinstance(loss, Tensor) or loss.dim():
            return False
        counts.append(bool(loss.isfinite()) and float(loss) != 0.0)
    return counts == [False, True]
