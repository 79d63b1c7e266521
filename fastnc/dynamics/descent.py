"""Descent on the mean loss for any number of epochs: section 4 of the paper, and other rules."""

from __future__ import annotations

import os
from typing import Any, Literal

from numpy.typing import NDArray

from fastnc._core import arrays
from fastnc._core.functions import check_function
from fastnc._core.serial import quiet
from fastnc._core.switches import check_flag
from fastnc.dynamics.checkpoint import checkpoint_path
from fastnc.dynamics.columns import NAMED, Columns, column_names, listed, own_columns
from fastnc.dynamics.composition import Composition, choose_stepper, composed
from fastnc.dynamics.loop import snapshot_epochs
from fastnc.dynamics.run import Callback, Run
from fastnc.dynamics.start import fingerprint, start
from fastnc.dynamics.trajectory import Trajectory

Schedule = Literal["constant", "loss-scaled"]


@quiet
def descend(
    model: Any,
    lr: Any = 5.0,
    epochs: int = 100_000,
    seed: int = 0,
    W: NDArray[Any] | None = None,
    H: NDArray[Any] | None = None,
    snapshots: int = 40,
    *,
    rule: Any = None,
    batch_size: int | None = None,
    replacement: bool = False,
    label_noise: float = 0.0,
    noise: float = 0.0,
    freeze: Literal["W", "H"] | None = None,
    dtype: Literal["float32", "float64"] | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    schedule: Schedule = "constant",
    measure: Any = (),
    callback: Callback | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 60.0,
    resume: bool = False,
    sharded: bool = False,
    progress: bool = False,
) -> Trajectory:
    """Descent on the mean loss of a model by any rule, measured at log-spaced epochs.

    `W <- W - lr dL/dW`, `H <- H - lr dL/dH` with L the objective (4) divided by N: the
    experiment of Figure 2. Equivalent to the obvious NumPy loop, with the tail of the loss kept
    exact and, in float32, compensated updates. Model, gradient (`batch_size`, `label_noise`,
    `noise`), `rule` and the schedule of its step size are chosen independently.

    Parameters
    ----------
    model : ULPM or another model of `fastnc.models`
    lr : float > 0, a pair (lr_W, lr_H), a schedule of `fastnc.rules`, or a function of the epoch
        Step size on the *mean* loss. With `rule` given, the rule has its own.
    epochs : int >= 1
    seed : int >= 0
        Of `model.init`, and of every later random draw.
    W, H : (K, d), (N, d) arrays, optional
        The start instead; they are copied. A bias starts at 0, and the other layers of a deep
        linear model as `seed` has them: its H is that of its first layer, not `run.H`, which is
        the input of the last one.
    snapshots : int >= 1
        Snapshots a decade of epochs; the epochs 0, 1 and the last are always among them.
    rule : one of `fastnc.rules`, or an object with `init(W, H)` and `update(...)`
        By default `GradientDescent(lr)`.
    batch_size : int >= 1, optional
        Most samples of a step; an epoch is N / batch_size steps, rounded up, of nearly equal size
        (12 samples in batches of 5 are three steps of 4). Samples outside a batch have a gradient
        of 0. ULPM only, as `label_noise`.
    replacement : bool
        Draw each batch from all samples; by default an epoch takes each sample once.
    label_noise : float in 0..1
        Probability with which a step replaces a label by another class.
    noise : float >= 0
        Standard deviation of Gaussian noise added to every entry of the gradient.
    freeze : "W" or "H", optional
        This factor does not move.
    dtype : "float32" or "float64", optional
        Of the run; by default that of `W` and `H`, else float64. In float32 each update's rounding
        error is added to the next update: measured, the margin is float64's to 1e-7 up to 1e9
        epochs.
    device : "cpu" or "cuda"
        Where epochs run, and the snapshots of large problems.
    schedule : "constant" or "loss-scaled"
        "loss-scaled" is short for `lr=fastnc.rules.LossScaled()`: the step size that section 5.3
        asks for, which grows as the loss falls.
    measure : "sharpness", "tangent_curvature", {"name": f(W, H, y) -> float}, or several
        Further columns, measured at every snapshot: the largest eigenvalue of the Hessian of the
        loss (4) of W and H alone, without a bias, the smallest on the sphere, or the value of a
        function. Not with `sharded`.
    callback : callable, optional
        Called with each snapshot, a dict of the columns; a true result stops the run.
    checkpoint : path, optional
        File to which the state is written every `checkpoint_every` seconds (0: at every
        opportunity) and at the end.
    resume : bool
        Go on from `checkpoint` if it exists; the end has the same bits as without a stop.
    sharded : bool
        Spread the rows of H over the ranks of `torch.distributed`, all of which call this: on
        CPUs, or on GPUs with NCCL; with the exact gradient and GradientDescent, Momentum, Adam or
        AdamW. `H` and the result's H and y are then the rank's own rows, and each rank writes
        checkpoints of its own.
    progress : bool
        Show a progress bar on a terminal.

    Returns
    -------
    Trajectory
        One row a snapshot; the first column is `"epoch"`. The loss is cross-entropy; it, margin and
        decisions are those of the logits `W h`, with a model's bias: its temperature, smoothing and
        penalties are in the column `"objective"`.

    Raises
    ------
    ValueError, TypeError
        Arguments that make no sense, or a checkpoint that is damaged or of another problem.
    Diverged
        W or H stopped being finite; `.run` holds what there was.
    Interrupted
        Ctrl-C; the checkpoint, if any, has been written, and `.run` holds what there was.

    Notes
    -----
    Cost: `6KNd` operations and N K exponentials an epoch of the exact gradient.

    Examples
    --------
    >>> import fastnc
    >>> run = fastnc.descend(fastnc.ULPM(5, 10, 20), epochs=1000)
    >>> bool(run["margin"][-1] > 0)
    True
    """
    checkpoint_every = arrays.check_at_least_zero("checkpoint_every", checkpoint_every)
    path = checkpoint_path(checkpoint, resume)
    measure = listed(measure)
    parts = composed(
        lr, rule, schedule, batch_size=batch_size, replacement=replacement,
        label_noise=label_noise, noise=noise, freeze=freeze, device=device,
    )  # fmt: skip
    if check_flag("sharded", sharded):
        if column_names(measure):
            raise ValueError(
                "`measure` and `sharded` do not go together: each rank has some rows of H, and a "
                "measurement takes all. Leave out one of them."
            )
        from fastnc.dynamics.sharding import prepare_sharded

        run: Run = prepare_sharded(model, parts, epochs, seed, W, H, snapshots, dtype, callback)
    else:
        run = prepare(model, parts, epochs, seed, W, H, snapshots, dtype, callback, measure)
    return run.go(path, checkpoint_every, resume, progress)


def prepare(
    model: Any,
    parts: Composition,
    epochs: int,
    seed: int,
    W: NDArray[Any] | None,
    H: NDArray[Any] | None,
    snapshots: int,
    dtype: str | None,
    callback: Callback | None = None,
    measure: Any = (),
) -> Run:
    """A run at epoch 0; its arguments, those of `descend`, are checked."""
    epochs = arrays.check_count("epochs", epochs, 1)
    snapshots = arrays.check_count("snapshots", snapshots, 1, arrays.MOST_SNAPSHOTS)
    if callback is not None:
        check_function("callback", callback, "snapshot")
    W, H = start(model, seed, W, H, dtype)
    about = {
        "kind": "descent",
        "model": repr(model),
        **parts.about(),
        "seed": int(seed),
        "dtype": W.dtype.name,
        "snapshots": int(snapshots),
        "start": fingerprint(W, H, model.y),
    }
    if further := column_names(measure):
        about["measure"] = further
        if own := own_columns(measure):
            about["measured by"] = own
        if getattr(model, "logit_loss", None) is not None and set(further) & set(NAMED):
            raise ValueError(
                f"`measure` must hold functions of W, H and y where loss={model.loss!r}: "
                f"{' and '.join(NAMED)} are those of cross-entropy alone."
            )
    stepper = choose_stepper(model, W, H, parts, seed)
    due = snapshot_epochs(epochs, snapshots)
    return Run(stepper, model.y, about, due, callback, Columns(measure))
