"""What two gloo ranks measure with trackers and with statistics; `nn_ranks` runs it.

The networks and their data are those of the tests of one process.
"""

import importlib.util
from types import SimpleNamespace

import numpy as np
import oracles
import pytest
import test_nn_layers
import test_nn_tracker
import torch
from torch import nn

import fastnc
from fastnc.nn import CollapseTracker

K, D, N = 7, 13, 101
H, Y, W, BIAS = oracles.clouds(K, D, N)
# One more than two ranks divide evenly: a `DistributedSampler` repeats a sample.
ODD = 51


def statistics(rank):
    """Both passes over unequal shares, and a class that only one of the ranks has."""
    mine = np.flatnonzero((Y == 6) if rank else (Y != 6))
    s = fastnc.ClassStatistics(K, D, scatter="full")
    for rows in np.split(mine, [len(mine) // 3]):
        s.update(H[rows], Y[rows])
    s.all_reduce()
    second = fastnc.ClassDeviations(s, W, BIAS)
    second.update(H[mine], Y[mine])
    second.all_reduce()
    found = s.state_dict() | second.metrics().as_dict()
    del found["scatter"], found["reduced"]
    return {name: torch.from_numpy(np.asarray(value)) for name, value in found.items()}


def tracked(rank):
    """Metrics of both ranks' samples, those of labels of its own, and what is refused."""
    model = test_nn_tracker.network()
    parallel = nn.parallel.DistributedDataParallel(model)
    x, y = (part[rank::2] for part in test_nn_tracker.data())
    with torch.no_grad(), CollapseTracker(parallel, "classifier.1") as tracker:
        for batch, labels in zip(x.split(16), y.split(16), strict=True):
            tracker.labels(labels)
            parallel(batch)
    with torch.no_grad(), CollapseTracker(parallel, "classifier.0") as without:
        parallel(x)
    with torch.no_grad(), CollapseTracker(parallel, "classifier.1") as broken:
        parallel(x / (1 - rank * (torch.arange(len(x)) == 7)).float()[:, None])
    said = []
    for tracker_of, labels in (
        (without, y[: len(y) - rank]), (tracker, y + 3 * rank), (broken, y),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"see there|55 samples|must lie|finite") as refused:
            tracker_of.metrics(labels)
        said.append(str(refused.value))
    # The ranks do not have the same classes; and labels need not start at 0.
    theirs = without.metrics(torch.where(y == 2, 2 - rank, y) * 5 + 3)
    return tracker.metrics().as_dict(), theirs.n_classes, theirs.n_samples, said


def validated():
    """As `sampled`, in the hooks that Lightning calls, of a whole loop and of one cut short."""
    if importlib.util.find_spec("lightning") is None:
        return []
    from fastnc.nn.callbacks import LightningCollapse

    samples = torch.utils.data.TensorDataset(*test_nn_layers.data(ODD))
    sampler = torch.utils.data.DistributedSampler(samples, shuffle=True, seed=3)
    loader, model = (
        torch.utils.data.DataLoader(samples, 8, sampler=sampler),
        test_nn_layers.network(),
    )
    model.log_dict = lambda values, **_: None
    trainer = SimpleNamespace(sanity_checking=False, current_epoch=0, val_dataloaders=[loader])
    callback, found = LightningCollapse("fc"), []
    for batches in (list(loader), list(loader)[:2]):
        callback.on_validation_epoch_start(trainer, model)
        for i, batch in enumerate(batches):
            callback.on_validation_batch_start(trainer, model, batch, i)
            with torch.no_grad():
                model(batch[0])
        callback.on_validation_epoch_end(trainer, model)
        found.append((callback.metrics.as_dict(), callback.metrics.n_samples))
    return found


def evaluated():
    """What the Trainer's callback counts of a loader that accelerate has made even."""
    if not all(importlib.util.find_spec(name) for name in ("accelerate", "transformers")):
        return []
    from accelerate import Accelerator

    from fastnc.nn.callbacks import TrainerCollapse

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = test_nn_layers.network()

        def forward(self, x, labels):
            return {"logits": self.net(x)}

    x, y = test_nn_layers.data(ODD)
    rows = [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]
    loader, found = torch.utils.data.DataLoader(rows, 7), []
    callback = TrainerCollapse("net.fc", Accelerator(cpu=True).prepare(loader))
    for _ in range(2):
        state = SimpleNamespace(log_history=[], global_step=1, epoch=0.5)
        callback.on_evaluate(SimpleNamespace(device="cpu"), state, None, model=Model())
        found.append((callback.metrics.as_dict(), callback.metrics.n_samples))
    return found


def sampled():
    """Of each way to keep features: the metrics of the layers, and of how many samples."""
    samples = torch.utils.data.TensorDataset(*test_nn_layers.data(ODD))
    sampler = torch.utils.data.DistributedSampler(samples, shuffle=True, seed=3)
    assert sampler.total_size == ODD + 1
    model, found = test_nn_layers.network(), {}

    def run(tracker):
        with torch.no_grad():
            for batch, labels in torch.utils.data.DataLoader(samples, 8, sampler=sampler):
                tracker.labels(labels)
                model(batch)

    for keep in ("memory", "nothing"):
        tracker = CollapseTracker(model, layers=["hidden", "fc"], keep=keep)
        with tracker:
            run(tracker)
        if keep == "nothing":
            with tracker.second_pass(n=ODD):
                run(tracker)
        table = tracker.metrics(n=ODD)
        found[keep] = {name: (m.as_dict(), m.n_samples) for name, m in table.items()}
    return found
