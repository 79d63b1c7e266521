"""Many small descents on a CUDA device at once: one program each, epochs inside the kernel."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc._core.interrupts import Diverged, Interrupted
from fastnc._core.progress import Bar
from fastnc.dynamics.run import Run
from fastnc.dynamics.snapshot import measure
from fastnc.dynamics.trajectory import Trajectory

# Ctrl-C and the clock of the checkpoints are looked at between slices of about this long.
_SECONDS_A_SLICE = 0.2


def fit_together(run: Run) -> bool:
    """Whether the run's stepper is one of CUDA whose problem fits a program's registers."""
    from fastnc.dynamics.steppers.cuda import CudaDescent
    from fastnc.kernels.gpu.trajectory import is_small

    s = run.stepper
    return isinstance(s, CudaDescent) and is_small(s._W, s._H, s._W_low)


def descend_together(
    runs: Sequence[Run],
    paths: Sequence[Path | None],
    every: float,
    stop: Callable[[], bool],
    bar: Bar,
) -> list[Trajectory]:
    """All runs to their ends, each with the bits that it has alone.

    The runs must be of one shape, label vector, dtype and number of epochs, at the same epoch,
    and `fit_together`. Snapshots are measured on the CPU; a run that diverges is replayed alone
    to find its epoch. States go to `paths` every `every` seconds, and when stopped.

    Raises
    ------
    Interrupted
        `stop` said so; `.run` is the first run's rows until then.
    """
    batch = _Batch(runs)
    ended: dict[int, Trajectory] = {}
    saved, slice_epochs = time.monotonic(), 1
    first = runs[0]
    epoch = first.epoch
    while True:
        if epoch in first.due:
            batch.snapshot(epoch, ended)
        if epoch == first.epochs or len(ended) == len(runs):
            return [ended.get(b) or run._trajectory("epochs") for b, run in enumerate(runs)]
        now = time.monotonic()
        stopping = stop()
        if stopping or now - saved >= every:
            for b, (run, path) in enumerate(zip(runs, paths, strict=True)):
                if path is not None and b not in ended:
                    run._save(path)
            saved = now
        if stopping:
            raise Interrupted("stopped by Ctrl-C.", first._trajectory("interrupted"))
        made = min(slice_epochs, first.due[bisect_right(first.due, epoch)] - epoch)
        batch.advance(made, ended)
        epoch += made
        bar.update(made * len(runs))
        seconds = time.monotonic() - now
        if seconds > _SECONDS_A_SLICE:
            slice_epochs = max(1, slice_epochs // 2)
        elif made == slice_epochs and seconds < 0.5 * _SECONDS_A_SLICE:
            slice_epochs *= 2


class _Batch:
    """The runs' states in one tensor each, of which every run's stepper keeps its part."""

    def __init__(self, runs: Sequence[Run]) -> None:
        import torch

        self.runs = runs
        steppers: list[Any] = [run.stepper for run in runs]
        self.y = steppers[0]._y
        self.state = {
            name: torch.stack([s._tensors()[name] for s in steppers])
            for name in ("W", "H", "W_low", "H_low")
        }
        for b, s in enumerate(steppers):
            s._W, s._H, s._W_low, s._H_low = (x[b] for x in self.state.values())
        rates = [s.lr for s in steppers]
        self.rates = torch.tensor(rates, dtype=torch.float64, device=self.y.device)

    def advance(self, epochs: int, ended: dict[int, Trajectory]) -> None:
        """That many epochs of all; runs that stopped being finite end where they did so."""
        from fastnc.kernels.gpu.trajectory import descend_many

        before = {name: x.clone() for name, x in self.state.items()}
        descend_many(*self.state.values(), self.y, 1.0 / len(self.y), self.rates, epochs)
        finite = self.state["W"].sum(dim=(1, 2)).isfinite().cpu().numpy()
        for b, run in enumerate(self.runs):
            if b in ended:
                continue
            if finite[b]:
                run.epoch += epochs
                continue
            for name, x in before.items():
                self.state[name][b].copy_(x[b])
            try:
                run._advance(epochs)
            except Diverged as diverged:
                ended[b] = diverged.run

    def snapshot(self, epoch: int, ended: dict[int, Trajectory]) -> None:
        """A row for each run; what is resumed at a snapshot has it already."""
        W, H = self._wide("W"), self._wide("H")
        for b, run in enumerate(self.runs):
            if b in ended or (run.rows and run.rows[-1]["epoch"] == epoch):
                continue
            with np.errstate(all="ignore"):
                row = {"epoch": epoch, **measure(W[b], H[b], run.y)}
            if np.isfinite(row["log_loss"]):
                run.rows.append(row)
            else:
                ended[b] = run._diverged(epoch).run

    def _wide(self, name: str) -> NDArray[Any]:
        """The state with what rounding took from it, fetched in one piece."""
        x, low = self.state[name], self.state[f"{name}_low"]
        both = x.double() + low.double() if low.numel() else x
        return np.asarray(both.cpu().numpy())
