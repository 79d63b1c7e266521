"""VGG-13 on FashionMNIST, without weight decay, past zero training error: the paper's Figure 3."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from fastnc._core import arrays
from fastnc._core.files import check_path
from fastnc._core.functions import check_function
from fastnc._core.switches import check_flag
from fastnc.dynamics.loop import snapshot_epochs
from fastnc.dynamics.run import Callback
from fastnc.dynamics.trajectory import Trajectory
from fastnc.training.data import Dataset, fashion_mnist
from fastnc.training.experiment import Experiment as Experiment
from fastnc.training.run import TrainingRun
from fastnc.training.state import CHECKPOINT, reproducible
from fastnc.training.stepper import TrainingStepper


def train(
    data: Dataset | str | os.PathLike[str] = "data",
    epochs: int = 600,
    experiment: Experiment | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 300.0,
    resume: bool = False,
    start: str | os.PathLike[str] | None = None,
    device: str | None = None,
    deterministic: bool = True,
    compile: bool = False,
    tensorboard: bool = False,
    depth: bool = False,
    callback: Callback | None = None,
    progress: bool = False,
) -> Trajectory:
    """Train a classifier far past zero error, and measure the collapse of its last features.

    Section 4 of the paper, "Realistic Training". At log-spaced epochs the whole training set
    passes the network in evaluation mode, and every metric of `fastnc.collapse_metrics` is measured
    on its last features, with the columns of a layer-peeled run, so that the same plots and readers
    serve both. `fastnc.peel(run)` goes on from there without the network.

    Parameters
    ----------
    data : Dataset, or the folder that holds `FashionMNIST/raw`
        A folder is read by `fastnc.training.fashion_mnist` with its defaults.
    epochs : int >= 1
    experiment : Experiment, optional
        By default the paper's.
    out : path, optional
        An existing folder for `checkpoint.pt` and `run.csv`.
    checkpoint_every : float, seconds
        0: after every batch.
    resume : bool
        Go on from the checkpoint in `out`, if there is one; on the same machine and build, with
        as many threads, the end has the same bits as without a stop.
    start : path, optional
        Another run's checkpoint of the same network and data: this run begins with its weights,
        momentum, epoch and measurements, and has its own step size, schedule and batches. Resumed,
        it needs `start` no more.
    device : str, optional
        By default CUDA where there is one.
    deterministic : bool
        Use deterministic algorithms only.
    compile : bool
        Compile the training step with `torch.compile`.
    tensorboard : bool
        Also write the measurements for TensorBoard.
    depth : bool
        At the first, middle and last measurement, write the metrics of every layer's features to
        `depth.json` in `out`; of a run with a `start` those that are still to come.
    callback : callable, optional
        Called with each measurement; a true result stops the run.
    progress : bool
        Show a progress bar on a terminal.

    Returns
    -------
    Trajectory
        One row a measurement; further columns are `balance`, `train_accuracy`, `test_accuracy`,
        metrics of test images about the training means (`test_...`) and `lr`.
        Several workers all return the same.

    Raises
    ------
    ValueError, TypeError, OSError
        Arguments, data or a checkpoint that do not fit, or a disk that cannot be written.
    Diverged
        The loss or a weight stopped being finite; `.run` holds the measurements until then.
    Interrupted
        Ctrl-C, or another signal to stop; the checkpoint has been written, and `.run` holds the
        measurements until then.

    Notes
    -----
    Cost: that of the epochs, and one pass over training and test images a measurement.
    """
    epochs = arrays.check_count("epochs", epochs, 1)
    checkpoint_every = arrays.check_at_least_zero("checkpoint_every", checkpoint_every)
    if not isinstance(experiment, Experiment | None):
        raise TypeError(f"`experiment` must be an Experiment; got {type(experiment).__name__}.")
    experiment = experiment or Experiment()
    for name, flag in (
        ("resume", resume), ("deterministic", deterministic), ("compile", compile),
        ("tensorboard", tensorboard), ("depth", depth), ("progress", progress),
    ):  # fmt: skip
        check_flag(name, flag)
    if callback is not None:
        check_function("callback", callback, "measured")
    for name, path in (("out", out), ("start", start)):
        if path is not None:
            check_path(name, path)
    if not isinstance(data, Dataset | str | os.PathLike):
        raise TypeError(
            "`data` must be a `fastnc.training.Dataset` or the folder of FashionMNIST; got "
            f"{type(data).__name__}."
        )
    if out is not None and not Path(out).is_dir():
        raise ValueError(f"`out` must be an existing folder; got {str(out)!r}. Make it first.")
    if depth and out is None:
        raise ValueError("`depth` must have a folder to write to; give `out`.")
    if resume and out is None:
        raise ValueError("`resume` must have a folder to go on from; give `out`.")
    try:
        dataset = data if isinstance(data, Dataset) else fashion_mnist(data)
    except FileNotFoundError as missing:
        said = str(missing).replace("`root`", "`data`")
        said = said.replace("`download=True`", "`fashion_mnist(data, download=True)`")
        raise FileNotFoundError(said) from None
    place = _device(device)
    with reproducible(experiment.seed, place, experiment.precision, deterministic):
        stepper = TrainingStepper(dataset, epochs, experiment, place, compile)
        due = snapshot_epochs(epochs, experiment.snapshots)
        folder = None if out is None else Path(out)
        began = None if start is None else Path(start)
        run = TrainingRun(stepper, due, folder, began, callback, depth)
        run.begin(resume)
        # Its folder is made at once: only of a run that begins.
        writer = _tensorboard(folder) if tensorboard and stepper.workers.rank == 0 else None
        run.writer = writer
        try:
            checkpoint = None if folder is None else folder / CHECKPOINT
            return run.go(checkpoint, checkpoint_every, False, progress)
        finally:
            if writer is not None:
                writer.close()


def _device(device: str | None) -> torch.device:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device if not isinstance(device, int) else str(device))
    except (RuntimeError, TypeError):
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
