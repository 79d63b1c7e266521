"""Gradient flow of the model to any horizon: the paper's section 3.1.2 in log time.

`dW/dt = -dL/dW`, `dH/dt = -dL/dH` (section 2.2 prints a plus). Nothing happens on the scale of t,
everything on that of log t, and the loss leaves the floating-point range near t = 10^300. So the
independent variable is `x = asinh(log(1 + t))`, regular at t = 0 and log log t later, and the
right-hand side is formed of logarithms:

    d theta / dx = -cosh(x) exp(log(1 + t) + log L) grad log L,     log(1 + t) = sinh(x).

The system is stiff, with eigenvalues of the size of log t. The Radau IIA method of order
5 steps over that and keeps the quantities that the flow conserves, `W^T W - H^T H` and the mean
classifier, to rounding; its Newton systems are solved by structure (`integrator/newton.py`).
Snapshots are ends of steps, never interpolated.

With weight decay there is a minimum, which the flow reaches at times of the order of the
reciprocal of the decays.
"""

from __future__ import annotations

import math
import os
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastnc._core import arrays
from fastnc._core.cuda import need_torch_and_triton
from fastnc._core.serial import quiet
from fastnc.dynamics.checkpoint import checkpoint_path
from fastnc.dynamics.integrator.equation import Decays
from fastnc.dynamics.integrator.objective import MOST_UNKNOWNS, ObjectiveFlow, Unknowns
from fastnc.dynamics.integrator.stepper import FlowStepper, stretched
from fastnc.dynamics.run import Run
from fastnc.dynamics.start import fingerprint, start
from fastnc.dynamics.trajectory import Trajectory
from fastnc.models import (
    ULPM,
    deep_linear,
    imbalanced,
    imbalanced_squared_error,
    squared_error,
    weight_decay,
)

Solver = Literal["auto", "direct", "krylov"]

# Up to this K d a factorisation costs at most a few Hessian products more than MINRES.
_DIRECT = 100
# A penalised flow is at rest after some dozen times the reciprocal of its smaller decay. Far
# beyond, t times the rounding of the vanishing gradient would change W and H again.
_AT_REST, _STILL_AT_REST = 1e3, 1e6


@quiet
def flow(
    model: Any,
    log10_time: float | None = None,
    seed: int = 0,
    W: Any = None,
    H: Any = None,
    snapshots: int = 40,
    *,
    rtol: float = 1e-8,
    solver: Solver = "auto",
    device: Literal["cpu", "cuda"] = "cpu",
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 60.0,
    resume: bool = False,
    progress: bool = False,
) -> Trajectory:
    """Gradient flow of the mean loss from t = 0 to t = 10^log10_time.

    The limit of `descend` as lr goes to 0, with `t = lr * epoch`; both return the same columns.

    Parameters
    ----------
    model : ULPM, models.deep_linear, or a model with weight decay and without a constraint
        Any K, n, d, any class sizes. Any other loss than the cross-entropy of W H^T, alone or with
        weight decay, needs a dense Jacobian, and may have 2000 unknowns at most.
    log10_time : float > 0, optional
        Decimal logarithm of the last time: 1000 (the default of a ULPM), 100_000, 1e7, ... With
        weight decays the flow comes to rest: by default it ends at 1000 over the smaller of them,
        at most at 1e6 over it. Other losses of a ULPM, and layers without decay: 4, at most 8.
    seed : int >= 0
        Of `model.init`.
    W, H : (K, d), (N, d) arrays, optional
        The start instead.
    snapshots : int >= 1
        Snapshots a decade of t from 0.1 to 10, and then a decade of log t.
    rtol : float in 1e-11..1e-2
        Relative tolerance; the margin and the loss of the exact law are within a tenth of it.
        Logits are of the size of log t, and `rtol` times log t must not be much more than 1: the
        default serves to log10 t = 10^8 or so, the smallest to 10^10.
    solver : "auto", "direct" or "krylov"
        Of the Newton systems: "direct" eliminates the features and factorises K d unknowns,
        "krylov" needs only Hessian products (MINRES). Both make the same steps, to `rtol`. "auto"
        is "direct" for a ULPM up to K d = 100, where it costs little more and keeps the conserved
        quantities to rounding at any horizon, else "krylov".
    device : "cpu" or "cuda"
        Where the flow is integrated, in float64; "cuda" needs "krylov". Snapshots of a large
        problem are measured there too: H is fetched for checkpoints and at the end.
    checkpoint : path, optional
        File to which the state is written every `checkpoint_every` seconds (0: as often as the
        run looks at its clock) and at the end.
    resume : bool
        Go on from `checkpoint` if it exists, which may have an earlier last time. The end has the
        same bits as without a stop; to `rtol` if that last time is no snapshot of this run.
    progress : bool
        Show a progress bar on a terminal.

    Returns
    -------
    Trajectory
        Its first column is `log10_time`, -inf at t = 0. Further columns of a ULPM:
        `conserved_drift` (the largest change of an entry of `W^T W - H^T H`, over |W|^2), the terms
        of `margin_decomposition`, and with unequal classes the distances to the limit
        (`theory.seli_distances`); of other models `objective`, and of a deep one `balancedness`.
        `about` has the final drifts, the work done, and the `start_singular_values` (see
        `fastnc.theory.rates.aligned_singular_values`): the smaller the last one, the longer the
        flow stays near a point of lower rank.

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
    Cost: some 800 steps to t = 10^1000 and 900 to 10^100000, each of 7 gradients of `6KNd`
    operations and 5 linear solves, on one thread; at K=5, n=10, d=20, half a second in all.

    Examples
    --------
    >>> import fastnc
    >>> run = fastnc.flow(fastnc.ULPM(3, 2, 4), log10_time=100)
    >>> float(run["log10_time"][-1])
    100.0
    """
    checkpoint_every = arrays.check_at_least_zero("checkpoint_every", checkpoint_every)
    path = checkpoint_path(checkpoint, resume)
    run = prepare_flow(model, log10_time, seed, W, H, snapshots, rtol, solver, device)
    return run.go(path, checkpoint_every, resume, progress)


def prepare_flow(
    model: Any,
    log10_time: float | None,
    seed: int,
    W: Any,
    H: Any,
    snapshots: int,
    rtol: float,
    solver: Solver,
    device: str = "cpu",
) -> Run:
    """A flow at t = 0; its arguments, those of `flow`, are checked."""
    decays = _decays(model)
    log10_time = _horizon(log10_time, model, decays)
    log10_time = arrays.check_positive("log10_time", log10_time)
    snapshots = arrays.check_count("snapshots", snapshots, 1, arrays.MOST_SNAPSHOTS)
    rtol = arrays.check_positive("rtol", rtol)
    if not 1e-11 <= rtol <= 1e-2:
        raise ValueError(f"`rtol` must lie in 1e-11..1e-2; got {rtol!r}.")
    W, H = start(model, seed, W, H, "float64")
    if not W.any() and not H.any():
        raise ValueError(
            "`W` and `H` must not both be 0: there every gradient vanishes, and nothing would "
            "move. Leave them out for the model's own start."
        )
    largest = max(float(abs(W).max()), float(abs(H).max()))
    if largest > 1e100:
        raise ValueError(
            f"the largest entry of `W` and `H` must be at most 1e100; got {largest:g}. Scale them."
        )
    about: dict[str, Any] = {
        "kind": "flow",
        "model": repr(model),
        "seed": int(seed),
        "snapshots": int(snapshots),
        "rtol": float(rtol),
        "solver": _chosen(solver, model, decays, device),
        "start": fingerprint(W, H, model.y),
    }
    if device != "cpu":
        about["device"] = device
    try:
        if about["solver"] == "dense":
            unknowns, theta = Unknowns.of(model, seed, W, H)
            if len(theta) > MOST_UNKNOWNS:
                raise ValueError(
                    f"`model` must have at most {MOST_UNKNOWNS} numbers to move, as the flow of "
                    f"this one forms a matrix of their square; got {len(theta)}. Use `descend`."
                )
            stepper: FlowStepper = ObjectiveFlow(unknowns, theta, float(rtol))
        else:
            stepper = _stepper(device)(W, H, model, about["solver"], float(rtol), decays)
    except (ArithmeticError, np.linalg.LinAlgError) as error:
        raise ValueError(f"no flow starts at these `W` and `H`: {error}.") from None
    due = [-math.inf, *snapshot_times(float(log10_time), int(snapshots)).tolist()]
    return _FlowRun(stepper, model.y, about, due)


def _stepper(device: str) -> type[FlowStepper]:
    """The stepper of a device."""
    if device == "cpu":
        return FlowStepper
    need_torch_and_triton()
    from fastnc.dynamics.integrator.device_flow import DeviceFlow

    return DeviceFlow


class _FlowRun(Run):
    """A run whose progress is counted in log log t."""

    @property
    def total(self) -> float:
        return stretched(self.due[-1])


def snapshot_times(log10_time: float, a_decade: int) -> NDArray[np.float64]:
    """log10 of the times after the start: `a_decade` a decade of t up to 10, of log t above."""
    early = np.arange(-a_decade, a_decade) / a_decade
    decades = max(math.log10(log10_time), 0.0)
    late = 10.0 ** (np.arange(math.floor(decades * a_decade + 1e-9) + 1) / a_decade)
    times = np.concatenate([early, late])
    # The last time replaces a neighbour that differs from it by rounding only.
    return np.append(times[times < log10_time - 1e-9 * max(1.0, log10_time)], log10_time)


def _decays(model: Any) -> Decays:
    """The weight decays of W and H; of a deep model the least and the largest decay."""
    match model:
        case ULPM():
            return Decays()
        case weight_decay() | imbalanced() | squared_error() | imbalanced_squared_error():
            return Decays(model.weight_decay_W, model.weight_decay_H)
        case deep_linear():
            return Decays(min(model.weight_decays), max(model.weight_decays))
        case _:
            raise TypeError(
                "`model` must be a ULPM, `models.deep_linear` or a model with weight decay and "
                f"without a constraint; got {model!r:.200}. Use `descend` or `solve`."
            )


def _structured(model: Any) -> bool:
    """Whether the Newton systems of its flow are those of cross-entropy of W H^T."""
    match model:
        case ULPM():
            return model.logit_loss is None
        case weight_decay(bias=False, label_smoothing=0.0) | imbalanced():
            return True
    return False


def _horizon(log10_time: float | None, model: Any, decays: Decays) -> float:
    """The last time, or the default of the model."""
    if decays == (0.0, 0.0):
        if _structured(model):
            return 1000.0 if log10_time is None else log10_time
        least, most, why = 4.0, 8.0, f"of {model!r:.200}"
    else:
        smaller = math.log10(min(decays))
        least, most = math.log10(_AT_REST) - smaller, math.log10(_STILL_AT_REST) - smaller
        why = "with these weight decays"
    if log10_time is None:
        return least
    log10_time = arrays.check_positive("log10_time", log10_time)
    if log10_time > most:
        raise ValueError(
            f"`log10_time` must be at most {most:.4g} {why}; got {log10_time:g}. The flow comes to "
            "rest long before, or what it has left to do is rounding."
        )
    return log10_time


def _chosen(solver: str, model: Any, decays: Decays, device: str = "cpu") -> str:
    """The solver that `solver` names, or the default, which was measured to be the faster."""
    arrays.check_choice("solver", solver, ("auto", "direct", "krylov"))
    arrays.check_choice("device", device, ("cpu", "cuda"))
    if not _structured(model):
        if device != "cpu":
            raise ValueError(f"`device` must be 'cpu' for {model!r:.200}; got {device!r}.")
        if solver != "auto":
            raise ValueError(f"`solver` must be 'auto' for {model!r:.200}; got {solver!r}.")
        return "dense"
    if device == "cuda":
        if solver == "direct":
            raise ValueError("`solver` must be 'krylov' with device='cuda'; got 'direct'.")
        return "krylov"
    if solver == "direct" and decays != (0.0, 0.0):
        raise ValueError("`solver` must be 'krylov' for a model with weight decay; got 'direct'.")
    if solver != "auto":
        return solver
    unknowns = model.n_classes * min(model.dim, model.n_classes + model.n_samples)
    return "direct" if unknowns <= _DIRECT and decays == (0.0, 0.0) else "krylov"
