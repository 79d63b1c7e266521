"""From a trained network to its layer-peeled model: what W and H do without the network."""

from __future__ import annotations

import numpy as np

from fastnc.dynamics.descent import descend
from fastnc.dynamics.trajectory import Trajectory
from fastnc.models import ULPM


def peel(run: Trajectory, epochs: int = 100_000, lr: float | None = None) -> Trajectory:
    """The layer-peeled model from where a network stopped: gradient descent on its W and H alone.

    The bridge between the two halves of section 4: `fastnc.descend`, in float64, on the trained
    last layer and features, which the network no longer holds together. Its bias is left out,
    and features may become negative.

    Parameters
    ----------
    run : Trajectory
        What `train` returned.
    epochs : int >= 1
    lr : float > 0, optional
        On the mean loss. By default `2 N / (|W|_2^2 + |H|_2^2)` with the spectral norms at the
        start, below which each of W and H alone would descend.

    Returns
    -------
    Trajectory
        Of the layer-peeled model; its epochs begin at 0.

    Raises
    ------
    ValueError
        The run holds no features, as one that was interrupted.

    Examples
    --------
    Any run will do as the first half: what counts is where it stopped.

    >>> import fastnc
    >>> first = fastnc.descend(fastnc.ULPM(5, 2, 5), epochs=100)
    >>> bool(fastnc.peel(first, epochs=100)["log_loss"][-1] < first["log_loss"][-1])
    True
    """
    if not len(run.H):
        raise ValueError("`run` must hold features; it was stopped before. Train to the end.")
    if lr is None:
        squares = [float(np.linalg.norm(x.astype(np.float64), 2)) ** 2 for x in (run.W, run.H)]
        lr = 2.0 * len(run.H) / sum(squares)
    model = ULPM(len(run.W), dim=run.W.shape[1], labels=run.y)
    return descend(model, lr, epochs, W=run.W, H=run.H, dtype="float64")
