"""VGG-13 on FashionMNIST, without weight decay, past zero training error: the paper's Figure 3."""

from __future__ import annotations

import math
import operator
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastnc._core import arrays
from fastnc._core.files import FOREIGN
from fastnc._core.interrupts import Diverged, Interrupted, deferred_interrupt
from fastnc._core.progress import Bar, progress_bar
from fastnc._core.ranks import Workers
from fastnc.dynamics.checkpoint import foreign
from fastnc.dynamics.loop import snapshot_epochs
from fastnc.dynamics.trajectory import Trajectory
from fastnc.training.data import Dataset, fashion_mnist
from fastnc.training.evaluation import measure
from fastnc.training.experiment import Experiment as Experiment
from fastnc.training.experiment import schedule_of
from fastnc.training.network import PeeledLoss, Pixels, vgg13
from fastnc.training.state import CHECKPOINT, State, reproducible

Callback = Callable[[dict[str, float]], object]

# How often several workers agree on whether Ctrl-C fell: every so many batches.
_BATCHES_BETWEEN_TALKS = 20


def train(
    data: Dataset | str | os.PathLike[str] = "data",
    epochs: int = 600,
    experiment: Experiment | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 300.0,
    resume: bool = False,
    device: str | None = None,
    deterministic: bool = True,
    compile: bool = False,
    tensorboard: bool = False,
    callback: Callback | None = None,
    progress: bool = False,
) -> Trajectory:
    """Train a classifier far past zero error, and measure the collapse of its last features.

    Section 4 of the paper, "Realistic Training". At log-spaced epochs the whole training set
    passes the network in evaluation mode, and every metric of `fastnc.collapse_metrics` is taken
    of its last features, with the columns of a layer-peeled run, so that whatever draws or reads
    one serves the other. `fastnc.peel(run)` goes on from there without the network.

    Parameters
    ----------
    data : Dataset, or the folder that holds `FashionMNIST/raw`
        A folder is read by `fastnc.data.fashion_mnist` with its defaults.
    epochs : int >= 1
    experiment : Experiment, optional
        By default the paper's.
    out : path, optional
        An existing folder for `checkpoint.pt` and `run.csv`.
    checkpoint_every : float, seconds
        0: after every batch.
    resume : bool
        Go on from the checkpoint in `out`, if there is one; on the same machine and build the
        end has the same bits as without a stop.
    device : str, optional
        By default CUDA where there is one.
    deterministic : bool
        Use deterministic algorithms only.
    compile : bool
        Let `torch.compile` have the training step.
    tensorboard : bool
        Write the measurements for TensorBoard too.
    callback : callable, optional
        Is called with each measurement; a true result stops the run.
    progress : bool
        Show a progress bar on a terminal.

    Returns
    -------
    Trajectory
        One row a measurement; further columns are `train_accuracy`, `test_accuracy` and `lr`.
        Under several workers all of them return the same.

    Raises
    ------
    ValueError, TypeError, OSError
        Arguments, data or a checkpoint that do not fit, or a disk that cannot be written.
    Diverged
        The loss or a weight stopped being finite; `.run` holds the measurements until then.
    Interrupted
        Ctrl-C; the checkpoint has been written, and `.run` holds the measurements until then.
    """
    arrays.check_count("epochs", epochs, 1)
    arrays.check_at_least_zero("checkpoint_every", checkpoint_every)
    if not isinstance(experiment, Experiment | None):
        raise TypeError(f"`experiment` must be an Experiment; got {type(experiment).__name__}.")
    experiment = experiment or Experiment()
    if out is not None and not Path(out).is_dir():
        raise ValueError(f"`out` must be an existing folder; got {str(out)!r}. Make it first.")
    if resume and out is None:
        raise ValueError("`resume` must have a folder to go on from; give `out`.")
    dataset = data if isinstance(data, Dataset) else fashion_mnist(data)
    place = _device(device)
    with reproducible(experiment.seed, place, experiment.precision, deterministic):
        run = _Training(dataset, epochs, experiment, place, out, compile, tensorboard)
        if resume:
            run.take_up()
        with (
            deferred_interrupt() as interrupted,
            progress_bar(
                epochs * run.n_samples, "images", "training", run.images_seen, progress
            ) as bar,
        ):
            try:
                return run.go(checkpoint_every, interrupted, bar, callback)
            finally:
                if run.writer is not None:
                    run.writer.close()


class _Training:
    """A training between two batches: everything that the next one depends on."""

    def __init__(
        self,
        data: Dataset,
        epochs: int,
        experiment: Experiment,
        device: torch.device,
        out: str | os.PathLike[str] | None,
        compile: bool,
        tensorboard: bool,
    ) -> None:
        self.experiment, self.epochs, self.device = experiment, epochs, device
        self.workers = Workers()
        self.n_samples = len(data.train_labels)
        if experiment.batch_size < 2 * self.workers.count and self.workers.several:
            raise ValueError(
                f"`batch_size` must be at least twice the {self.workers.count} workers; "
                f"got {experiment.batch_size}."
            )
        fingerprint = data.fingerprint()
        self.data = data.to(device)
        self.net = vgg13(
            data.n_classes, experiment.feature_dim, batch_norm=experiment.batch_norm,
            dropout=experiment.dropout, device=device,
        )  # fmt: skip
        self.pixels = Pixels(data.mean, data.std)
        self.loss: Any = PeeledLoss(self.net, self.pixels, experiment.precision)
        if self.workers.several:
            self.loss = torch.nn.parallel.DistributedDataParallel(self.loss)
        if compile:
            self.loss = torch.compile(self.loss)
        self.optimizer = torch.optim.SGD(
            self.net.parameters(), lr=experiment.lr, momentum=experiment.momentum
        )
        self.schedule, schedule_args = schedule_of(
            self.optimizer, experiment.schedule, experiment.schedule_args, epochs
        )
        identity = {**vars(experiment), "schedule_args": schedule_args}
        identity |= {"image_size": data.train_images.shape[-1], "n_samples": self.n_samples}
        self.identity = identity | {"data": fingerprint}
        self.out = None if out is None else Path(out)
        self.writer = _tensorboard(self.out) if tensorboard and self.workers.rank == 0 else None
        self.due = snapshot_epochs(epochs, experiment.snapshots)
        self.epoch = self.step = 0
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.rows: list[dict[str, float]] = []
        self.features: torch.Tensor | None = None
        self.order: torch.Tensor | None = None

    @property
    def images_seen(self) -> int:
        """How many images have been trained on."""
        return self.epoch * self.n_samples + self._edge(self.step)

    def go(
        self, every: float, interrupted: Callable[[], str], bar: Bar, callback: Callback | None
    ) -> Trajectory:
        """Train to the end, or raise `Diverged` or `Interrupted` with what there is by then."""
        saved = time.monotonic()
        while True:
            if self.step == 0 and self._measure_if_due() and callback and callback(self.rows[-1]):
                break
            if self.epoch == self.epochs:
                break
            if self._agreed(interrupted):
                raise self._interrupted()
            bar.update(self._batch())
            if time.monotonic() - saved >= every:
                self.save()
                saved = time.monotonic()
        self.save()
        return self.trajectory(final=True)

    def _batch(self) -> int:
        """One step of SGD; the epoch ends with its last one. Nothing waits for the device."""
        if self.order is None:
            # Drawn from the seed and the epoch, so that a resumed run finds the same.
            rng = np.random.default_rng((self.experiment.seed, self.epoch))
            self.order = torch.from_numpy(rng.permutation(self.n_samples)).to(self.device)
        low, high = self._edge(self.step), self._edge(self.step + 1)
        share = self.workers.mine(high - low)
        rows = self.order[low + share.start : low + share.stop]
        if self.experiment.dropout > 0.0:
            # Drawn afresh for each batch, so that no generator's state need be saved.
            place = (self.experiment.seed, self.epoch, self.step, self.workers.rank)
            torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]))
        loss = self.loss(self.data.train_images[rows], self.data.train_labels[rows])
        if self.workers.several:
            # The workers' gradients are averaged: make that the mean over the whole batch.
            loss = loss * (len(rows) * self.workers.count / (high - low))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.loss_sum += loss.detach() * ((high - low) / self.workers.count)
        self.step += 1
        if self.step == self._n_batches:
            self._end_epoch()
        return high - low

    @property
    def _n_batches(self) -> int:
        return -(-self.n_samples // self.experiment.batch_size)

    def _edge(self, step: int) -> int:
        return self.n_samples * step // self._n_batches

    def _end_epoch(self) -> None:
        mean = float(self.workers.sum(self.loss_sum)) / self.n_samples
        self.epoch, self.step, self.order = self.epoch + 1, 0, None
        self.loss_sum.zero_()
        if not math.isfinite(mean):
            raise self._diverged()
        if isinstance(self.schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self.schedule.step(mean)
        elif self.schedule is not None:
            self.schedule.step()

    def _measure_if_due(self) -> bool:
        if self.epoch not in self.due or (self.rows and self.rows[-1]["epoch"] == self.epoch):
            return False
        self._check_finite()
        for buffer in self.net.buffers():
            # Each rank's batch normalisation has seen other images since the last step began.
            self.workers.first(buffer)
        columns, features = measure(self.net, self.pixels, self.data, self.workers)
        lr = float(self.optimizer.param_groups[0]["lr"])
        self.rows.append({"epoch": self.epoch, **columns, "lr": lr})
        self.features = features if self.epoch == self.epochs else None
        if self.workers.rank == 0 and self.out is not None:
            try:
                self.trajectory().to_csv(self.out / "run.csv")
            except OSError as error:
                raise OSError(
                    f"{str(self.out / 'run.csv')!r} could not be written "
                    f"({error.strerror or error}); what was written before is whole. Make room "
                    "and resume."
                ) from None
        if self.writer is not None:
            for name, value in self.rows[-1].items():
                self.writer.add_scalar(f"collapse/{name}", value, self.epoch)
        return True

    def _check_finite(self) -> None:
        norms = torch._foreach_norm(list(self.net.parameters()))
        if not bool(torch.stack(list(norms)).isfinite().all()):
            raise self._diverged()

    def _diverged(self) -> Diverged:
        kept = ""
        if self.out is not None and (self.out / CHECKPOINT).exists():
            kept = f" The last checkpoint in {str(self.out)!r} was left as it is."
        return Diverged(
            f"the loss or a weight is not finite in epoch {self.epoch}: "
            f"`lr`={self.experiment.lr:g} is too large for this network. Take a smaller one, or "
            f"batch normalisation.{kept}",
            self.trajectory(),
        )

    def _agreed(self, interrupted: Callable[[], str]) -> bool:
        if not self.workers.several:
            return bool(interrupted())
        if self.step % _BATCHES_BETWEEN_TALKS:
            return False
        return bool(self.workers.sum(torch.tensor(float(bool(interrupted())), device=self.device)))

    def _interrupted(self) -> Interrupted:
        self.save()
        saved = f" The state is in {str(self.out / CHECKPOINT)!r}: resume." if self.out else ""
        return Interrupted(
            f"stopped by Ctrl-C in epoch {self.epoch} of {self.epochs}.{saved}", self.trajectory()
        )

    def save(self) -> None:
        """Write the checkpoint, if there is a folder for it: never one that is not finite."""
        if self.out is None or self.workers.rank != 0:
            return
        self._check_finite()
        schedule = None if self.schedule is None else self.schedule.state_dict()
        State(
            self.identity, self.epoch, self.step, self.loss_sum, self.net.state_dict(),
            self.optimizer.state_dict(), schedule, self.rows,
        ).save(self.out / CHECKPOINT)  # fmt: skip

    def take_up(self) -> None:
        """Go on from the checkpoint, if there is one."""
        if self.out is None or not (self.out / CHECKPOINT).exists():
            return
        state = State.load(self.out / CHECKPOINT, self.identity, self.device)
        try:
            self.epoch, self.step = operator.index(state.epoch), operator.index(state.step)
            self.loss_sum.copy_(state.loss_sum)
            self.net.load_state_dict(state.net)
            self.optimizer.load_state_dict(state.optimizer)
            if self.schedule is not None and state.schedule is not None:
                self.schedule.load_state_dict(state.schedule)
            # The last row of a run that was shorter may lie off this one's grid.
            self.rows = [row for row in state.rows if row["epoch"] in self.due]
        except (*FOREIGN, RuntimeError, AttributeError):
            raise foreign(self.out / CHECKPOINT) from None
        if self.epoch > self.epochs:
            raise ValueError(
                f"`epochs` must be at least the checkpoint's; it is at epoch {self.epoch}, got "
                f"{self.epochs}."
            )

    def trajectory(self, final: bool = False) -> Trajectory:
        """The measurements so far; of the network W and bias, and if `final` the features H."""
        last = self.net.classifier[-1]
        W, bias = (x.detach().cpu().numpy().copy() for x in (last.weight, last.bias))
        H, y = np.empty((0, W.shape[1]), np.float32), np.empty(0, np.int64)
        if final:
            if self.features is None:
                _, self.features = measure(self.net, self.pixels, self.data, self.workers)
            H = self.workers.gathered(self.features).cpu().numpy()
            y = self.data.train_labels.cpu().numpy()
        names = self.rows[0] if self.rows else ("epoch",)
        columns = {name: np.array([row[name] for row in self.rows]) for name in names}
        about = {"kind": "training", **self.identity, "epochs": self.epoch}
        return Trajectory(columns, W, H, y, about | {"workers": self.workers.count}, bias)


def _device(device: str | None) -> torch.device:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError:
        raise ValueError(f"`device` must be 'cpu' or 'cuda'; got {device!r}.") from None
    if place.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("`device` 'cuda' must have a CUDA device; torch sees none. Use 'cpu'.")
        if place.index is None:
            place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(place)
    return place


def _tensorboard(out: Path | None) -> Any:
    if out is None:
        raise ValueError("`tensorboard` must have a folder to write to; give `out`.")
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ImportError(
            "`tensorboard` is not installed; run `pip install tensorboard`, or leave it out."
        ) from None
    return SummaryWriter(str(out / "tensorboard"))
