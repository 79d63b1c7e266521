"""Gradient flow of the model to any horizon: the paper's section 3.1.2 in log time.

`dW/dt = -dL/dW`, `dH/dt = -dL/dH` (section 2.2 prints a plus). Nothing happens on the scale of t,
everything on that of log t, and the loss leaves the floating-point range near t = 10^300. So the
independent variable is `x = asinh(log(1 + t))`, regular at t = 0 and log log t later, and the
right-hand side is formed of logarithms:

    d theta / dx = -cosh(x) exp(log(1 + t) + log L) grad log L,     log(1 + t) = sinh(x).

The system is stiff, with eigenvalues of the size of log t. scipy's Radau IIA method of order 5
steps over that and keeps the quantities that the flow conserves, `W^T W - H^T H` and the mean
classifier, to rounding; its Newton systems are solved by structure (`_flow_newton`). Snapshots
are ends of steps, never interpolated.
"""

from __future__ import annotations

import os
from typing import Any, Literal

from fastnc._core import arrays
from fastnc.dynamics.checkpoint import place
from fastnc.dynamics.integrator.run import FlowRun
from fastnc.dynamics.start import fingerprint, start
from fastnc.dynamics.trajectory import Trajectory
from fastnc.models import ULPM

Solver = Literal["auto", "direct", "krylov"]

# Above this many multiplications, one factorisation takes longer than a few hundred Hessian
# products: about a second.
_DIRECT_WORK = 2e10


def flow(
    model: ULPM,
    log10_time: float = 1000.0,
    seed: int = 0,
    W: Any = None,
    H: Any = None,
    snapshots: int = 40,
    *,
    rtol: float = 1e-8,
    solver: Solver = "auto",
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 60.0,
    resume: bool = False,
    progress: bool = False,
) -> Trajectory:
    """Gradient flow of the mean loss from t = 0 to t = 10^log10_time.

    The limit of `descend` as lr goes to 0, with `t = lr * epoch`; both return the same columns.

    Parameters
    ----------
    model : ULPM
        Any K, n, d, any class sizes.
    log10_time : float > 0
        Decimal logarithm of the last time: 1000, 100_000, 1e7, ...
    seed : int >= 0
        Of `model.init`.
    W, H : (K, d), (N, d) arrays, optional
        Where to start instead.
    snapshots : int >= 1
        Snapshots a decade of t from 0.1 to 10, and then a decade of log t.
    rtol : float
        Relative tolerance of a step, 1e-11 at least; at the default the columns are good to
        about 1e-8. Of logits of the size of log t it must not be much more than 1, so that
        the default goes to 10^8 or so, and the smallest to 10^10.
    solver : "auto", "direct" or "krylov"
        Of the Newton systems: "direct" eliminates the features and factorises K d unknowns
        (Radau IIA), "krylov" needs only Hessian products (BDF with MINRES), for large K d.
    checkpoint : path, optional
        File to which the state is written every `checkpoint_every` seconds (0: after every step)
        and at the end.
    resume : bool
        Go on from `checkpoint` if it exists, which may be of a nearer horizon. The end has the
        same bits as without a stop; after a nearer horizon that is no snapshot of this run, the
        same to `rtol`.
    progress : bool
        Show a progress bar on a terminal.

    Returns
    -------
    Trajectory
        Its first column is `log10_time`, -inf at t = 0. Beside the columns of every run it has
        `conserved_drift` (the largest change of an entry of `W^T W - H^T H`, over |W|^2) and
        the terms of `margin_decomposition`. `about` has the final drifts, the work done, and the
        `start_singular_values` (see `fastnc.flow_law.aligned_singular_values`), the smallest of
        which tells how long the start lingers.

    Raises
    ------
    ValueError, TypeError
        Arguments that make no sense, or a checkpoint that is damaged or of another problem.
    Diverged
        The integrator could not go on; the message says at which log10 t and why, and `.run`
        holds the snapshots until then.
    Interrupted
        Ctrl-C; the checkpoint, if any, has been written, and `.run` holds the snapshots until
        then.

    Notes
    -----
    Cost: at K=5, n=10, d=20, about 1 ms a step and 3 steps a snapshot, whatever the horizon.

    Examples
    --------
    >>> import fastnc
    >>> run = fastnc.flow(fastnc.ULPM(3, 2, 4), log10_time=100)
    >>> float(run["log10_time"][-1])
    100.0
    """
    if not isinstance(model, ULPM):
        raise TypeError(
            f"`model` must be a ULPM; got {type(model).__name__}. Penalised models have a minimum "
            "and no tail: use `descend` or `solve`."
        )
    arrays.check_positive("log10_time", log10_time)
    arrays.check_count("snapshots", snapshots, 1)
    arrays.check_at_least_zero("checkpoint_every", checkpoint_every)
    arrays.check_positive("rtol", rtol)
    if not 1e-11 <= rtol <= 1e-2:
        raise ValueError(f"`rtol` must lie in 1e-11..1e-2; got {rtol!r}.")
    path = place(checkpoint, resume)
    W, H = start(model, seed, W, H, "float64")
    largest = max(float(abs(W).max()), float(abs(H).max()))
    if not 0.0 < largest <= 1e100:
        raise ValueError(
            "the largest entry of `W` and `H` must lie in 0..1e100, 0 excluded, which the flow "
            f"never leaves; got {largest:g}. Scale them."
        )
    about: dict[str, Any] = {
        "kind": "flow",
        "model": repr(model),
        "seed": int(seed),
        "snapshots": int(snapshots),
        "rtol": float(rtol),
        "solver": _choose(solver, model),
        "start": fingerprint(W, H, model.y),
    }
    run = FlowRun(model, W, H, about, float(log10_time), path, checkpoint_every)
    return run.go(resume, progress)


def _choose(solver: str, model: ULPM) -> str:
    """The solver for a model of this size, or the one that was asked for."""
    match solver:
        case "direct" | "krylov":
            return solver
        case "auto":
            N, K = model.n_samples, model.n_classes
            d = min(model.dim, K + N)
            work = 2.0 * N * (K * d) ** 2 + (K * d) ** 3 / 3.0
            return "direct" if work <= _DIRECT_WORK else "krylov"
        case _:
            raise ValueError(f"`solver` must be 'auto', 'direct' or 'krylov'; got {solver!r}.")
