"""The training of a network as a stepper: a step is a batch."""

from __future__ import annotations

import math
import operator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.modules.batchnorm import _BatchNorm

from fastnc._core.files import FOREIGN
from fastnc._core.ranks import Workers
from fastnc.collapse.layer_table import LayerTable
from fastnc.training.augmentation import augmented
from fastnc.training.data import Dataset
from fastnc.training.evaluation import depth_profile, measure
from fastnc.training.experiment import LOSS_SCALED, Experiment, schedule_of
from fastnc.training.loss_scaled import LossScaled
from fastnc.training.network import PeeledLoss, Pixels, last_layer, network
from fastnc.training.state import State


class TrainingStepper:
    """SGD on the mean loss of a network, one batch a step; its clock counts epochs."""

    clock, unit, end = "epoch", "images", "epochs"

    def __init__(
        self,
        data: Dataset,
        epochs: int,
        experiment: Experiment,
        device: torch.device,
        compile: bool = False,
    ) -> None:
        self.experiment, self.device = experiment, device
        self.workers = Workers()
        self.n_samples = len(data.train_labels)
        if experiment.batch_size < 2 * self.workers.count and self.workers.several:
            raise ValueError(
                f"`batch_size` must be at least twice the {self.workers.count} workers; "
                f"got {experiment.batch_size}."
            )
        fingerprint = data.fingerprint()
        self.data = data.to(device)
        self.net = network(
            experiment.model, data.n_classes, n_channels=data.train_images.shape[1],
            head=experiment.head, feature_dim=experiment.feature_dim,
            batch_norm=experiment.batch_norm, dropout=experiment.dropout,
            feature_scale=experiment.feature_scale, classifier_scale=experiment.classifier_scale,
            device=device,
        )  # fmt: skip
        self._check_batches()
        self.pixels = Pixels(data.mean, data.std)
        log = experiment.schedule == LOSS_SCALED
        self.loss: Any = PeeledLoss(self.net, self.pixels, experiment.precision, log)
        if self.workers.several:
            self.loss = torch.nn.parallel.DistributedDataParallel(self.loss)
        if compile:
            self.loss = torch.compile(self.loss)
        self.optimizer = torch.optim.SGD(
            self.net.parameters(), lr=experiment.lr, momentum=experiment.momentum, fused=True
        )
        self.schedule, schedule_args = schedule_of(
            self.optimizer, experiment.schedule, experiment.schedule_args, epochs, self._n_batches
        )
        self.scaled = self.schedule if isinstance(self.schedule, LossScaled) else None
        identity = {**vars(experiment), "schedule_args": schedule_args}
        identity |= {"image_size": data.train_images.shape[-1], "n_samples": self.n_samples}
        identity["n_classes"] = data.n_classes
        self.identity = identity | {"data": fingerprint}
        self.epoch = self.step = 0
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.features: tuple[int, torch.Tensor] | None = None
        self.order: torch.Tensor | None = None

    def _check_batches(self) -> None:
        least = self.n_samples // self._n_batches // self.workers.count
        if least < 2 and any(isinstance(m, _BatchNorm) for m in self.net.modules()):
            each = " of each worker" if self.workers.several else ""
            raise ValueError(
                f"`batch_size` must leave two images or more in every batch{each}, as the network "
                f"has batch normalisation; got {self.experiment.batch_size} for {self.n_samples} "
                f"images, whose smallest batch{each} has {least}."
            )

    @property
    def time(self) -> float:
        """Epochs, with the share of the current epoch's images that have been seen."""
        return self.epoch + self._edge(self.step) / self.n_samples

    @property
    def done(self) -> float:
        """Images seen."""
        return self.epoch * self.n_samples + self._edge(self.step)

    @property
    def W(self) -> NDArray[Any]:
        """The classifier (K, d)."""
        found: NDArray[Any] = last_layer(self.net)[1].weight.detach().cpu().numpy().copy()
        return found

    @property
    def bias(self) -> NDArray[Any] | None:
        """The classifier's bias (K,)."""
        bias = last_layer(self.net)[1].bias
        return None if bias is None else bias.detach().cpu().numpy().copy()

    @property
    def H(self) -> NDArray[Any]:
        """The features of all training images (N, d), in evaluation mode."""
        if self.features is None or self.features[0] != self.epoch:
            self.measure()
        assert self.features is not None
        found: NDArray[Any] = self.workers.gathered(self.features[1]).cpu().numpy()
        return found

    def advance(self, due: float, steps: int) -> int:
        """Make at most `steps` batches, none beyond the epoch `due`; no wait for the device."""
        made = 0
        while made < steps and self.epoch < due:
            self._batch()
            made += 1
        return made

    def _batch(self) -> None:
        if self.order is None:
            # Drawn from the seed and the epoch, so that a resumed run draws the same.
            rng = np.random.default_rng((self.experiment.seed, self.epoch))
            self.order = torch.from_numpy(rng.permutation(self.n_samples)).to(self.device)
        low, high = self._edge(self.step), self._edge(self.step + 1)
        share = self.workers.mine(high - low)
        rows = self.order[low + share.start : low + share.stop]
        # Seeded for each batch, so that no generator's state is saved.
        place = (self.experiment.seed, self.epoch, self.step, self.workers.rank)
        drawn = np.random.SeedSequence(place)
        torch.manual_seed(int(drawn.generate_state(1, np.uint64)[0]))
        images = augmented(self.data.train_images[rows], self.experiment.augment, drawn)
        loss = self.loss(images, self.data.train_labels[rows])
        self.optimizer.zero_grad(set_to_none=True)
        if self.scaled is None:
            # The average of the workers' gradients becomes the mean over the whole batch.
            loss = loss * (len(rows) * self.workers.count / (high - low))
            loss.backward()
            self.loss_sum += loss.detach() * ((high - low) / self.workers.count)
        else:
            whole, weight = self.scaled.share(loss, len(rows), high - low, self.workers)
            (loss * weight).backward()
            self.scaled.scale(self.net.parameters(), whole)
            self.loss_sum += whole.exp() * ((high - low) / self.workers.count)
        self.optimizer.step()
        self.step += 1
        if self.step == self._n_batches:
            self._end_epoch()

    @property
    def _n_batches(self) -> int:
        return -(-self.n_samples // self.experiment.batch_size)

    def _edge(self, step: int) -> int:
        return self.n_samples * step // self._n_batches

    def _end_epoch(self) -> None:
        mean = float(self.workers.sum(self.loss_sum)) / self.n_samples
        self.epoch, self.step, self.order = self.epoch + 1, 0, None
        self.loss_sum.zero_()
        if isinstance(self.schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
            # `finite` reports a loss that is not finite.
            self.schedule.step(mean if math.isfinite(mean) else 0.0)
        elif self.schedule is not None and self.scaled is None:
            self.schedule.step()

    def finite(self) -> bool:
        """Whether every weight is finite."""
        norms = torch.stack(list(torch._foreach_norm(list(self.net.parameters()))))
        return bool(norms.isfinite().all())

    def keep(self, steps: int) -> bool:
        """False: a copy of all weights costs too much."""
        return False

    def roll_back(self) -> None:
        """Nothing was kept."""

    def measure(self) -> dict[str, float]:
        """The columns of a row; the features stay on the device until `H` is read."""
        for buffer in self.net.buffers():
            # The ranks' batch normalisations have seen different images.
            self.workers.first(buffer)
        columns, features = measure(self.net, self.pixels, self.data, self.workers)
        self.features = (self.epoch, features)
        lr = float(self.optimizer.param_groups[0]["lr"])
        if self.scaled is not None:
            # Infinite beyond the range of float64.
            lr *= float(self.scaled.log_step.exp())
        return {**columns, "lr": lr}

    def depth_profile(self) -> LayerTable:
        """The metrics of every layer's features."""
        return depth_profile(self.net, self.pixels, self.data, self.workers)

    def save(self, path: Path, rows: list[dict[str, float]]) -> None:
        """Write everything to a file."""
        schedule = None if self.schedule is None else self.schedule.state_dict()
        State(
            self.identity, self.epoch, self.step, self.loss_sum, self.net.state_dict(),
            self.optimizer.state_dict(), schedule, rows,
        ).save(path)  # fmt: skip

    def take_up(self, state: State) -> None:
        """Restore a state.

        Raises
        ------
        ValueError
            It is of another network.
        """
        try:
            self.epoch, self.step = operator.index(state.epoch), operator.index(state.step)
            self.loss_sum.copy_(state.loss_sum)
            self.net.load_state_dict(state.net)
            self.optimizer.load_state_dict(state.optimizer)
        except (*FOREIGN, RuntimeError, AttributeError):
            raise ValueError("a state of another network") from None

    def take_up_schedule(self, state: State) -> None:
        """Restore the schedule too, where there is one."""
        if self.schedule is not None and state.schedule is not None:
            self.schedule.load_state_dict(state.schedule)

    def state(self) -> dict[str, NDArray[Any]]:
        """Not used: `save` writes torch's own format."""
        raise NotImplementedError("a network's state is written by `save`")

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Not used: `take_up` reads torch's own format."""
        raise NotImplementedError("a network's state is taken up by `take_up`")

    def report(self) -> dict[str, Any]:
        """The epochs made and the number of workers."""
        return {"epochs": self.epoch, "workers": self.workers.count}

    def place(self, last: float) -> str:
        """The current epoch and the last one, for a message."""
        return f"epoch {self.epoch} of {last:g}"

    def why(self, good: float, bad: float) -> str:
        """Why a weight is not finite."""
        rate = f"`lr`={self.experiment.lr:g}"
        if self.schedule is not None and self.scaled is None:
            now = self.optimizer.param_groups[0]["lr"]
            rate = f"the step size {now:g} of `schedule`={self.experiment.schedule!r}"
        return (
            f"the loss or a weight is not finite in epoch {math.floor(bad)}: {rate} is too large "
            "for this network. Take a smaller one, or batch normalisation."
        )
