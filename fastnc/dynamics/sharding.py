"""A descent whose rows of H are spread over the ranks of `torch.distributed`."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastnc._core import arrays
from fastnc._core.cuda import need_gpu, need_torch_and_triton
from fastnc._core.files import FOREIGN, scalar
from fastnc._core.interrupts import ASKING
from fastnc._core.ranks import Workers
from fastnc.dynamics.checkpoint import Checkpoint, foreign
from fastnc.dynamics.composition import Composition, check_over_ranks
from fastnc.dynamics.loop import snapshot_epochs
from fastnc.dynamics.run import Callback, Run
from fastnc.dynamics.steppers.sharded import ShardedDescent
from fastnc.dynamics.trajectory import Trajectory
from fastnc.models import ULPM

# Entries of H that are drawn at a time: every rank draws all rows up to its own.
_BLOCK = 1 << 22


class RankedRun(Run):
    """A run of several ranks, which save and stop at the same step."""

    workers: Workers
    device: Any = "cpu"

    def seconds(self) -> float:
        """The clock of rank 0, so that all ranks decide alike."""
        now = torch.tensor(time.monotonic(), dtype=torch.float64, device=self.device)
        return float(self.workers.first(now))

    def stop_reason(self, interrupted: Callable[[], str]) -> str:
        """The reason of any rank to stop, empty if none has one."""
        names = ["", *ASKING.values()]
        reason = torch.tensor(names.index(interrupted()), device=self.device)
        return names[int(self.workers.largest(reason))]


class ShardedRun(RankedRun):
    """A run in which every rank makes the same epochs, and writes its state to its own files.

    A kill can leave the ranks' files at different epochs. So each rank writes to two files by
    turns, and a resumed run goes on from the latest epoch that all ranks have.
    """

    _saves = 0

    def go(self, path: Path | None, every: float, resume: bool, progress: bool) -> Trajectory:
        if resume and path is not None:
            self._take_up_common(path)
        return super().go(path, every, False, progress and self.workers.rank == 0)

    def _files(self, path: Path) -> list[Path]:
        name = f"{path.stem}-rank{self.workers.rank}of{self.workers.count}"
        return [path.with_name(f"{name}-{turn}{path.suffix}") for turn in (0, 1)]

    def write(self, path: Path) -> None:
        """Write to the file whose turn it is."""
        super().write(self._files(path)[self._saves % 2])
        self._saves += 1

    def _take_up_common(self, path: Path) -> None:
        files = self._files(path)
        epochs = torch.tensor([[self._epoch_of(f) for f in files]], device=self.device)
        everyones = self.workers.gathered(epochs).tolist()
        common = set(everyones[0]).intersection(*everyones) - {-1}
        if not common:
            return
        turn = everyones[self.workers.rank].index(max(common))
        self.take_up(files[turn])
        # The next save must not overwrite the file that was read.
        self._saves = turn + 1

    def _epoch_of(self, file: Path) -> int:
        """The epoch of a checkpoint of this run, -1 where there is none."""
        if not file.exists():
            return -1
        try:
            return int(scalar(Checkpoint.load(file, self.about).state["epoch"]))
        except FOREIGN as error:
            raise error if isinstance(error, ValueError) else foreign(file) from None


def prepare_sharded(
    model: Any,
    parts: Composition,
    epochs: int,
    seed: int,
    W: NDArray[Any] | None,
    H: NDArray[Any] | None,
    snapshots: int,
    dtype: str | None,
    callback: Callback | None = None,
) -> ShardedRun:
    """A sharded run at its first epoch; W and H, if given, are all of W and this rank's rows.

    Raises
    ------
    ValueError, TypeError
        Arguments that do not fit, or a model other than `fastnc.ULPM`.
    """
    if not isinstance(model, ULPM):
        raise TypeError(
            f"`model` must be a `fastnc.ULPM` to be sharded; got {type(model).__name__}."
        )
    if model.logit_loss is not None:
        raise ValueError(
            f"`sharded` and loss={model.loss!r} do not go together: ranks have kernels of "
            "cross-entropy alone. Leave out `sharded`."
        )
    check_over_ranks(parts)
    epochs = arrays.check_count("epochs", epochs, 1)
    snapshots = arrays.check_count("snapshots", snapshots, 1, arrays.MOST_SNAPSHOTS)
    workers = Workers()
    mine = workers.mine(model.n_samples)
    if workers.count > model.n_samples:
        raise ValueError(
            f"`model` must have a sample for each of the {workers.count} ranks; "
            f"got {model.n_samples}."
        )
    y = model.y[mine].copy()
    given = next((x for x in (W, H) if x is not None), None)
    kind = dtype or ("float64" if given is None else arrays.dtype_name(given))
    own = dict(zip("WH", start_rows(model, seed, kind, mine), strict=True))
    for name, x in (("W", W), ("H", H)):
        if x is not None:
            arrays.check_matrix(name, x, own[name].shape)
            arrays.fill(name, own[name], x)
    digest = hashlib.sha256()
    for array in (own["W"], own["H"], y):
        digest.update(array.data)
    about = {
        "kind": "descent",
        "model": repr(model),
        **parts.about(),
        "seed": int(seed),
        "dtype": kind,
        "snapshots": int(snapshots),
        "start": digest.hexdigest()[:32],
        "rank": workers.rank,
        "workers": workers.count,
    }
    stepper: Any
    if parts.device == "cuda":
        check_on_devices(workers)
        from fastnc.dynamics.steppers.cuda_sharded import sharded_stepper

        stepper = sharded_stepper(own["W"], own["H"], y, parts, model.n_samples, workers)
    else:
        stepper = ShardedDescent(
            own["W"], own["H"], y, parts.rule, parts.freeze, model.n_samples, workers
        )
    run = ShardedRun(stepper, y, about, snapshot_epochs(epochs, snapshots), callback)
    run.workers = workers
    if parts.device == "cuda":
        # NCCL exchanges tensors of a device only.
        run.device = stepper.labels.device
    return run


def check_on_devices(workers: Workers) -> None:
    """Ranks on GPUs must use NCCL: a captured CUDA graph can hold no other sums.

    Raises
    ------
    ImportError, ValueError
        torch or triton cannot be imported, there is no GPU, or the ranks use another backend.
    """
    need_torch_and_triton()
    need_gpu("device='cuda'")
    if workers.several and not workers.on_devices:
        raise ValueError(
            "`sharded` with device='cuda' must have a process group of NCCL; got "
            f"{torch.distributed.get_backend()!r}. Call "
            "`torch.distributed.init_process_group('nccl')`, a GPU to each rank."
        )


def start_rows(
    model: ULPM, seed: int, dtype: str, mine: slice
) -> tuple[NDArray[Any], NDArray[Any]]:
    """W and the rows `mine` of H as `model.init` draws them, without the others in memory."""
    W = ULPM(model.n_classes, dim=model.dim, labels=[0]).init(seed, dtype)[0]
    rng = np.random.default_rng(seed)
    rng.standard_normal(W.shape)
    H = np.empty((mine.stop - mine.start, model.dim), dtype)
    block, scale = max(1, _BLOCK // model.dim), 1.0 / np.sqrt(model.dim)
    for low in range(0, mine.stop, block):
        high = min(low + block, mine.stop)
        rows = rng.standard_normal((high - low, model.dim)) * scale
        if high > mine.start:
            first = max(low, mine.start)
            H[first - mine.start : high - mine.start] = rows[first - low :]
    return W, H
