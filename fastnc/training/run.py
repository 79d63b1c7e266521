"""A training under the run loop: its checkpoints in torch's format, its table, its profiles."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc._core.files import FOREIGN
from fastnc._core.interrupts import Diverged
from fastnc.collapse.layer_table import LayerTable
from fastnc.dynamics.checkpoint import foreign
from fastnc.dynamics.run import Callback
from fastnc.dynamics.sharding import RankedRun
from fastnc.dynamics.trajectory import Trajectory
from fastnc.training import depth
from fastnc.training.state import CHECKPOINT, State, seal_of
from fastnc.training.stepper import TrainingStepper


class TrainingRun(RankedRun):
    """A run of a `TrainingStepper` to the last of the epochs `due`.

    Rank 0 alone writes: `checkpoint.pt`, and `run.csv` after every measurement.
    """

    stepper: TrainingStepper

    def __init__(
        self,
        stepper: TrainingStepper,
        due: Sequence[float],
        out: Path | None,
        start: Path | None,
        callback: Callback | None,
        profiles: bool = False,
    ) -> None:
        labels: NDArray[np.int64] = stepper.data.train_labels.cpu().numpy()
        if start is not None:
            stepper.identity["start"] = _named(start)
        about = {"kind": "training", "images": stepper.data.title, **stepper.identity}
        super().__init__(stepper, labels, about, due, callback)
        self.workers, self.device = stepper.workers, stepper.device
        self.out, self.start = out, start
        # TensorBoard's, which is set once the run has begun.
        self.writer: Any = None
        # The first, the middle and the last measurement, and the tables of those that were made.
        self.profiled = {due[i] for i in (0, len(due) // 2, -1)} if profiles else set()
        self.tables: dict[int, LayerTable] = {}

    @property
    def total(self) -> float:
        """Images of the whole run."""
        return self.due[-1] * self.stepper.n_samples

    @property
    def leads(self) -> bool:
        """Whether this rank writes."""
        return self.workers.rank == 0

    def begin(self, resume: bool) -> None:
        """Go on from the checkpoint in `out`, if `resume` is set and there is one, or from `start`.

        Raises
        ------
        FileNotFoundError, ValueError
            A checkpoint is missing, damaged, or of another run.
        """
        own = self.out / CHECKPOINT if resume and self.out is not None else None
        goes_on = own is not None and own.exists()
        if own is not None and goes_on:
            self.take_up(own)
        elif self.start is not None:
            self._start_from(self.start)
        if self.stepper.time > self.due[-1]:
            raise ValueError(
                f"`epochs` must be at least the checkpoint's; it is at epoch {self.stepper.epoch}, "
                f"got {self.due[-1]:g}."
            )
        if self.leads and self.out is not None:
            if self.profiled:
                depth.save(self.out, self.tables)
            elif not goes_on:
                # Another run's, which this one would take for its own once it is resumed.
                (self.out / depth.FILE).unlink(missing_ok=True)

    def take_up(self, path: Path) -> None:
        """Go on from this run's own checkpoint."""
        state = State.load(path, self.stepper.identity, self.device)
        if "start" in state.identity:
            # Its own checkpoint says from which other one it began.
            self.about["start"] = self.stepper.identity["start"] = state.identity["start"]
        try:
            self.stepper.take_up(state)
            self.stepper.take_up_schedule(state)
            self._take_rows(state)
        except FOREIGN:
            raise foreign(path) from None
        if self.profiled and self.leads:
            # Of a shorter run the middle and the end are those of this one no more.
            wanted = {epoch for epoch in self.profiled if epoch <= self.stepper.time}
            self.tables = {e: t for e, t in depth.load(path.parent).items() if e in wanted}

    def _start_from(self, path: Path) -> None:
        stepper = self.stepper
        state = State.load(path, {"data": stepper.identity["data"]}, self.device)
        if state.step:
            raise ValueError(
                f"`start` must be a checkpoint at the end of an epoch; {str(path)!r} is at batch "
                f"{state.step} of epoch {state.epoch}. Resume that run to its end first."
            )
        group = {k: v for k, v in stepper.optimizer.param_groups[0].items() if k != "params"}
        try:
            stepper.take_up(state)
            self._take_rows(state)
        except FOREIGN:
            raise ValueError(
                f"`start` must be a checkpoint of the same network; {str(path)!r} is of another."
            ) from None
        stepper.optimizer.param_groups[0].update(group)

    def _take_rows(self, state: State) -> None:
        # The last row of a shorter run may not be due in this one.
        self.rows = [row for row in state.rows if row["epoch"] in self.due]
        self._next = bisect_left(self.due, self.stepper.time)
        if self.rows and self.rows[-1]["epoch"] == self.stepper.time:
            self._next += 1

    def record(self, measured: dict[str, float]) -> None:
        """Append a row, and write it to the table and to TensorBoard."""
        super().record(measured)
        epoch = self.stepper.epoch
        if epoch in self.profiled:
            self.tables[epoch] = self.stepper.depth_profile()
            if self.leads and self.out is not None:
                depth.save(self.out, self.tables)
        if self.leads and self.out is not None:
            path = self.out / "run.csv"
            try:
                Trajectory(self._columns(), *self._nothing(), {}).to_csv(path)
            except OSError as error:
                raise OSError(
                    f"{str(path)!r} could not be written ({error.strerror or error}); what was "
                    "written before is whole. Make room and resume."
                ) from None
        if self.writer is not None:
            for name, value in measured.items():
                self.writer.add_scalar(f"collapse/{name}", value, self.stepper.epoch)

    def write(self, path: Path) -> None:
        """Write the checkpoint, on rank 0."""
        if self.leads:
            self.stepper.save(path, self.rows)

    def diverged(self, good: float, bad: float) -> Diverged:
        found = super().diverged(good, bad)
        if self.path is None or not self.path.exists():
            return found
        kept = f" The last checkpoint in {str(self.path.parent)!r} was left as it is."
        return Diverged(f"{found}{kept}", found.run)

    def trajectory(self, stopped: str) -> Trajectory:
        """The rows so far and the last layer; at the end of the run also the features."""
        about = {**self.about, **self.stepper.report(), "stopped": stopped}
        ended = stopped in ("callback", self.stepper.end)
        H, y = (self.stepper.H, self.y) if ended else self._nothing()[1:]
        return Trajectory(self._columns(), self.stepper.W, H, y, about, self.stepper.bias)

    def _nothing(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        W = self.stepper.W
        return W, np.empty((0, W.shape[1]), W.dtype), np.empty(0, np.int64)


def _named(start: Path) -> str:
    if not start.is_file():
        raise FileNotFoundError(f"`start` must be a checkpoint; there is no {str(start)!r}.")
    return seal_of(start)
