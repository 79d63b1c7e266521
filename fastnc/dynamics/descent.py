"""Gradient descent for as many epochs as one likes: section 4 of the paper and beyond."""

from __future__ import annotations

import os
from typing import Any, Literal

from numpy.typing import NDArray

from fastnc._core import arrays
from fastnc.dynamics.checkpoint import place
from fastnc.dynamics.loop import snapshot_epochs
from fastnc.dynamics.run import Callback, Run
from fastnc.dynamics.start import fingerprint, start
from fastnc.dynamics.steppers import Stepper
from fastnc.dynamics.trajectory import Trajectory
from fastnc.models import ULPM

Schedule = Literal["constant", "loss-scaled"]


def descend(
    model: Any,
    lr: float = 5.0,
    epochs: int = 100_000,
    seed: int = 0,
    W: NDArray[Any] | None = None,
    H: NDArray[Any] | None = None,
    snapshots: int = 40,
    *,
    dtype: Literal["float32", "float64"] | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    schedule: Schedule = "constant",
    noise: float = 0.0,
    callback: Callback | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 60.0,
    resume: bool = False,
    sharded: bool = False,
    progress: bool = False,
) -> Trajectory:
    """Gradient descent on the mean loss of a model, measured at log-spaced epochs.

    `W <- W - lr dL/dW`, `H <- H - lr dL/dH` with L the objective (4) divided by N: the
    experiment of Figure 2. Equivalent to the obvious NumPy loop, with the tail of the loss kept
    exact and, in float32, compensated updates.

    Parameters
    ----------
    model : ULPM or another model of `fastnc.models`
    lr : float > 0
        Step size on the *mean* loss.
    epochs : int >= 1
    seed : int >= 0
        Of `model.init`, and of the noise.
    W, H : (K, d), (N, d) arrays, optional
        Where to start instead; they are copied.
    snapshots : int >= 1
        Snapshots a decade of epochs; the epochs 0, 1 and the last are always among them.
    dtype : "float32" or "float64", optional
        Of the run; by default that of `W` and `H`, else float64. float32 carries what rounding
        takes from an update: measured, the margin is float64's to 1e-7 up to 1e9 epochs.
    device : "cpu" or "cuda"
        Where the epochs are made; snapshots are measured on the CPU.
    schedule : "constant" or "loss-scaled"
        "loss-scaled" ignores `lr` and takes the step of section 5.3's wish, which grows as the
        loss falls.
    noise : float >= 0
        Standard deviation of Gaussian noise added to every entry of the gradient.
    callback : callable, optional
        Is called with each snapshot, a dict of the columns; a true result stops the run.
    checkpoint : path, optional
        File to which the state is written every `checkpoint_every` seconds (0: at every
        opportunity) and at the end.
    resume : bool
        Go on from `checkpoint` if it exists; the end has the same bits as without a stop.
    sharded : bool
        Spread the rows of H over the ranks of `torch.distributed`, all of which call this: on
        a CPU, constant `lr`, no noise. `H` and the result's H and y are then the rank's own
        rows, and each rank keeps checkpoints of its own.
    progress : bool
        Show a progress bar on a terminal.

    Returns
    -------
    Trajectory
        One row a snapshot; the first column is `"epoch"`.

    Raises
    ------
    ValueError, TypeError
        Arguments that make no sense, or a checkpoint that is damaged or of another problem.
    Diverged
        W or H stopped being finite; `.run` holds what there was.
    Interrupted
        Ctrl-C; the checkpoint, if any, has been written, and `.run` holds what there was.

    Examples
    --------
    >>> import fastnc
    >>> run = fastnc.descend(fastnc.ULPM(5, 10, 20), epochs=1000)
    >>> bool(run["margin"][-1] > 0)
    True
    """
    arrays.check_at_least_zero("checkpoint_every", checkpoint_every)
    path = place(checkpoint, resume)
    if sharded:
        if (device, schedule, noise) != ("cpu", "constant", 0.0):
            raise ValueError(
                "`sharded` goes with device='cpu', schedule='constant' and noise=0 only; got "
                f"{device!r}, {schedule!r} and {noise!r}."
            )
        from fastnc.dynamics.sharding import prepare_sharded

        run: Run = prepare_sharded(model, lr, epochs, seed, W, H, snapshots, dtype, callback)
        return run.go(path, checkpoint_every, resume, progress)
    run = prepare(
        model, lr, epochs, seed, W, H, snapshots, dtype, device, schedule, noise, callback
    )
    return run.go(path, checkpoint_every, resume, progress)


def prepare(
    model: Any,
    lr: float,
    epochs: int,
    seed: int,
    W: NDArray[Any] | None,
    H: NDArray[Any] | None,
    snapshots: int,
    dtype: str | None,
    device: str = "cpu",
    schedule: str = "constant",
    noise: float = 0.0,
    callback: Callback | None = None,
) -> Run:
    """A run at its first epoch, its arguments checked as `descend` describes them."""
    arrays.check_positive("lr", lr)
    arrays.check_count("epochs", epochs, 1)
    arrays.check_count("snapshots", snapshots, 1)
    arrays.check_at_least_zero("noise", noise)
    arrays.check_choice("device", device, ("cpu", "cuda"))
    arrays.check_choice("schedule", schedule, ("constant", "loss-scaled"))
    W, H = start(model, seed, W, H, dtype)
    about = {
        "kind": "descent",
        "model": repr(model),
        "lr": float(lr),
        "seed": int(seed),
        "dtype": W.dtype.name,
        "device": device,
        "schedule": schedule,
        "noise": float(noise),
        "snapshots": int(snapshots),
        "start": fingerprint(W, H, model.y),
    }
    stepper = choose_stepper(model, W, H, lr, schedule, noise, seed, device)
    return Run(stepper, model.y, about, snapshot_epochs(epochs, snapshots), callback)


def choose_stepper(
    model: Any,
    W: NDArray[Any],
    H: NDArray[Any],
    lr: float,
    schedule: str,
    noise: float,
    seed: int,
    device: str,
) -> Stepper:
    """The way to make an epoch of `model` that was asked for; imports only that one."""
    plain = isinstance(model, ULPM)
    match (plain, device, schedule, noise > 0):
        case (True, "cpu", "constant", False):
            from fastnc.dynamics.steppers.plain import PlainDescent

            return PlainDescent(W, H, model.y, lr)
        case (True, "cpu", "constant", True):
            from fastnc.dynamics.steppers.noisy import NoisyDescent

            return NoisyDescent(W, H, model.y, lr, noise, seed)
        case (True, "cpu", "loss-scaled", False):
            from fastnc.dynamics.steppers.loss_scaled import LossScaledDescent

            return LossScaledDescent(W, H, model.y)
        case (True, "cuda", "constant", False):
            from fastnc.dynamics.steppers.cuda import CudaDescent

            return CudaDescent(W, H, model.y, lr)
        case (False, "cpu", "constant", False):
            from fastnc.dynamics.steppers.penalised import PenalisedDescent

            return PenalisedDescent(model, W, H, lr)
        case _:
            raise ValueError(
                f"no way to descend is known for device={device!r}, schedule={schedule!r}, "
                f"noise={noise!r} on {type(model).__name__}: `device` must be 'cpu' or 'cuda', "
                "`schedule` 'constant' or 'loss-scaled'; a schedule, noise and CUDA go neither "
                "together nor with a model other than the ULPM."
            )
