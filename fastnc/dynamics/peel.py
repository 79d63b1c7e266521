"""From a trained network to its layer-peeled model: what W and H do without the network."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastnc._core import arrays
from fastnc._core.serial import quiet
from fastnc.dynamics.descent import descend
from fastnc.dynamics.loop import snapshot_epochs
from fastnc.dynamics.run import Run
from fastnc.dynamics.start import fingerprint, start
from fastnc.dynamics.steppers.biased import BiasedDescent
from fastnc.dynamics.trajectory import Trajectory
from fastnc.models import ULPM


@quiet
def peel(
    W: Trajectory | NDArray[Any],
    H: NDArray[Any] | None = None,
    y: ArrayLike | None = None,
    bias: NDArray[Any] | None = None,
    *,
    epochs: int = 100_000,
    lr: float | None = None,
    snapshots: int = 40,
    progress: bool = False,
) -> Trajectory:
    """The layer-peeled model from where a network stopped: gradient descent on W, H, b alone.

    This joins the two halves of section 4: descent on the mean loss, in float64, from the trained
    last layer and features, which are now free variables. Features may become negative.
    Equivalent to `fastnc.descend` where there is no bias.

    Parameters
    ----------
    W : Trajectory, or (K, d) array
        What `train` returned; or a classifier, with `H` and `y`.
    H, y : (N, d) and (N,) arrays, optional
        Features, and labels in 0..K-1.
    bias : (K,) array, optional
        Of the classifier; a trajectory brings its own.
    epochs : int >= 1
    lr : float > 0, optional
        On the mean loss. By default `2 N / (|W|_2^2 + |H|_2^2)` with the spectral norms at the
        start, the bias a column of W beside a feature 1: below it each of W and H alone would
        descend.
    snapshots : int >= 1
        Snapshots a decade of epochs.
    progress : bool
        Show a progress bar on a terminal.

    Returns
    -------
    Trajectory
        Of the layer-peeled model; its epochs begin at 0.

    Raises
    ------
    ValueError
        The run was stopped and holds no features, or the arrays do not fit.
    TypeError
        A trajectory was given and arrays beside it, or W without H and y.
    Diverged, Interrupted
        As of `fastnc.descend`.

    Examples
    --------
    Any run will do as the first half: what counts is where it stopped.

    >>> import fastnc
    >>> first = fastnc.descend(fastnc.ULPM(5, 2, 5), epochs=100)
    >>> bool(fastnc.peel(first, epochs=100)["log_loss"][-1] < first["log_loss"][-1])
    True
    """
    if isinstance(W, Trajectory):
        if not (H is None and y is None and bias is None):
            raise TypeError("`peel` takes a run alone, or `W`, `H`, `y` and `bias`; got both.")
        run = W
        if not len(run.H):
            raise ValueError("`run` must hold features; it was stopped before. Train to the end.")
        W, H, y, bias = run.W, run.H, run.y, run.bias
    elif H is None or y is None:
        raise TypeError("`peel` must have `H` and `y` beside `W`; or give it a run.")
    arrays.check_matrix("W", W, (None, None))
    arrays.check_matrix("H", H, (None, np.shape(W)[1]))
    model = ULPM(len(W), dim=np.shape(W)[1], labels=y)
    W, H = start(model, 0, W, H, "float64")
    if not W.any() and not H.any():
        raise ValueError("`W` and `H` must not both be 0: nothing would move.")
    if bias is None:
        lr = _longest(W, H) if lr is None else lr
        return descend(
            model, lr, epochs, W=W, H=H, dtype="float64", snapshots=snapshots, progress=progress
        )
    epochs = arrays.check_count("epochs", epochs, 1)
    snapshots = arrays.check_count("snapshots", snapshots, 1, arrays.MOST_SNAPSHOTS)
    bias = arrays.real_numbers("bias", bias)
    if bias.shape != (len(W),):
        raise ValueError(f"`bias` must have the shape {(len(W),)}; got {bias.shape}.")
    stepper = BiasedDescent(W, H, bias, model.y, 1.0)
    lr = _longest(stepper.W1, stepper.H1) if lr is None else lr
    stepper.lr = arrays.check_positive("lr", lr)
    about = {
        "kind": "peeled", "model": repr(model), "lr": float(stepper.lr),
        "start": fingerprint(W, H, bias, model.y),
    }  # fmt: skip
    descent = Run(stepper, model.y, about, snapshot_epochs(epochs, snapshots))
    return descent.go(None, 60.0, False, progress)


def _longest(W: NDArray[Any], H: NDArray[Any]) -> float:
    squares = [float(np.linalg.norm(x, 2)) ** 2 for x in (W, H)]
    return 2.0 * len(H) / sum(squares)
