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

import math
import warnings
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import BDF, Radau
from scipy.sparse import csc_matrix

from fastnc import _arrays
from fastnc._flow_newton import DirectSolver, FlowJacobian, KrylovSolver, Residuals
from fastnc._progress import Bar, progress_bar
from fastnc.descent import _fingerprint, start
from fastnc.margin import TERMS, margin_decomposition
from fastnc.models import ULPM
from fastnc.stopping import Diverged, Interrupted, deferred_interrupt
from fastnc.trajectory import Trajectory

Solver = Literal["auto", "direct", "krylov"]

# Above this many multiplications, one factorisation takes longer than a few hundred Hessian
# products: about a second.
_DIRECT_WORK = 2e10
# Up to this K N d the gradient is a matter of microseconds on one thread.
_SMALL = 200_000


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
        Relative tolerance of a step; at the default the columns are good to about 1e-8.
    solver : "auto", "direct" or "krylov"
        Of the Newton systems: "direct" eliminates the features and factorises K d unknowns
        (Radau IIA), "krylov" needs only Hessian products (BDF with MINRES), for large K d.
    progress : bool
        Show a progress bar on a terminal.

    Returns
    -------
    Trajectory
        Its first column is `log10_time`, -inf at t = 0. Beside the columns of every run it has
        `conserved_drift` (the largest change of an entry of `W^T W - H^T H`, over |W|^2) and
        the terms of `margin_decomposition`. `about` has the final drifts and the work done.

    Raises
    ------
    ValueError, TypeError
        Arguments that make no sense.
    Diverged
        The integrator could not go on; the message says at which log10 t and why, and `.run`
        holds the snapshots until then.
    Interrupted
        Ctrl-C; `.run` holds the snapshots until then.

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
    _arrays.check_positive("log10_time", log10_time)
    _arrays.check_count("snapshots", snapshots, 1)
    if not 1e-13 <= rtol <= 1e-2:
        raise ValueError(f"`rtol` must lie in 1e-13..1e-2; got {rtol!r}.")
    W, H = start(model, seed, W, H, "float64")
    about: dict[str, Any] = {
        "kind": "flow",
        "model": repr(model),
        "log10_time": float(log10_time),
        "seed": int(seed),
        "snapshots": int(snapshots),
        "rtol": float(rtol),
        "solver": _choose(solver, model),
        "start": _fingerprint(W, H, model.y),
    }
    run = _Flow(model, W, H, about)
    times = snapshot_times(float(log10_time), snapshots)
    with deferred_interrupt() as interrupted, progress_bar(
        len(times), "snapshots", "flow", show=progress
    ) as bar:
        return run.go(times, interrupted, bar)


def snapshot_times(log10_time: float, a_decade: int) -> NDArray[np.float64]:
    """log10 of the times after the start: `a_decade` a decade of t up to 10, of log t above."""
    early = np.arange(-a_decade, a_decade) / a_decade
    decades = max(math.log10(log10_time), 0.0)
    late = 10.0 ** (np.arange(math.floor(decades * a_decade + 1e-9) + 1) / a_decade)
    times = np.concatenate([early, late])
    # The last time replaces a neighbour that differs from it by rounding only.
    return np.append(times[times < log10_time - 1e-9 * max(1.0, log10_time)], log10_time)


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


class _Flow:
    """One flow: its integrator, its conserved quantities, and its snapshots so far."""

    def __init__(
        self, model: ULPM, W: NDArray[Any], H: NDArray[Any], about: dict[str, Any]
    ) -> None:
        self.y, self.about, self.N = _arrays.row_major(model.y), about, model.n_samples
        # The flow never leaves the span of the rows it starts from, and nothing measured depends
        # on a rotation: with d > K + N, coordinates in that span are an exact reduction.
        self.basis: NDArray[Any] | None = None
        if W.shape[1] > len(W) + len(H):
            basis, coordinates = np.linalg.qr(np.concatenate([W, H]).T)
            self.basis = basis.T
            W, H = np.split(np.ascontiguousarray(coordinates.T), [len(W)])
        self.shape = W.shape
        self.small = H.size * len(W) <= _SMALL
        self.theta = np.concatenate([W.ravel(), H.ravel()])
        self.gram, self.mean = W.T @ W - H.T @ H, W.mean(axis=0)
        self.work = {"steps": 0, "evaluations": 0, "jacobians": 0, "factorisations": 0}
        self.rows: list[dict[str, float]] = []

    def go(self, times: NDArray[np.float64], interrupted: Any, bar: Bar) -> Trajectory:
        """Integrate to each of the times in turn and measure there."""
        log_times = times * math.log(10.0)
        # log(1 + t) for small t; for t above e^37 it is log t itself.
        grid = np.arcsinh(np.logaddexp(0.0, log_times))
        self._measure(-math.inf)
        try:
            integrator = self._integrator(float(grid[0]))
        except (ArithmeticError, np.linalg.LinAlgError) as error:
            raise self._failed(0.0, str(error)) from None
        for x, log10_t in zip(grid.tolist(), times.tolist(), strict=True):
            integrator.t_bound, integrator.status = x, "running"
            while integrator.status == "running":
                if interrupted():
                    where = _log10(integrator.t)
                    raise Interrupted(
                        f"stopped by Ctrl-C at log10 t = {where:.6g} of {times[-1]:g}.",
                        self._trajectory("interrupted"),
                    )
                self._step(integrator)
            self._measure(log10_t)
            bar.update(1)
        return self._trajectory("log10_time")

    def _step(self, integrator: Any) -> None:
        try:
            # A stage that overshoots overflows to infinity, and the step is then made smaller.
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                message = integrator.step()
        except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
            raise self._failed(integrator.t, str(error)) from None
        self.work["steps"] += 1
        if integrator.status == "failed" or not np.isfinite(integrator.y).all():
            raise self._failed(integrator.t, message or "W or H is not finite")
        self.theta = integrator.y

    def _failed(self, x: float, why: str) -> Diverged:
        return Diverged(
            f"the flow stopped at log10 t = {_log10(x):.8g}: {why.rstrip('.')}. The run holds the "
            "snapshots until then; a larger `rtol` may go further.",
            self._trajectory("failed"),
        )

    def _integrator(self, bound: float) -> Any:
        """scipy's integrator at x = 0, with our linear algebra in the place of its own."""
        direct = self.about["solver"] == "direct"
        make, rtol = (Radau if direct else BDF), self.about["rtol"]
        scale = float(np.sqrt(np.mean(self.theta**2)))
        size = len(self.theta)
        with np.errstate(all="ignore"):
            integrator: Any = make(
                self._derivative, 0.0, self.theta, bound, rtol=rtol, atol=1e-2 * rtol * scale,
                jac=csc_matrix((size, size)),
            )  # fmt: skip

        def factorise(system: FlowJacobian) -> DirectSolver | KrylovSolver:
            self.work["factorisations"] += 1
            return DirectSolver(system) if direct else KrylovSolver(system)

        integrator.I = 1.0
        integrator.jac = self._jacobian
        integrator.J = self._jacobian(0.0, self.theta)
        integrator.lu = factorise
        integrator.solve_lu = lambda factors, right: factors.solve(right)
        return integrator

    def _split(self, theta: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        K, d = self.shape
        return theta[: K * d].reshape(K, d), theta[K * d :].reshape(-1, d)

    def _speed(self, x: float, log_loss: float) -> float:
        """`dt/dx` times the mean loss, of logarithms: about log t / |theta|^2, never extreme."""
        # numpy's exponential overflows to infinity where math's raises.
        return float(math.cosh(x) * np.exp(math.sinh(x) + log_loss - math.log(self.N)))

    def _derivative(self, x: float, theta: NDArray[Any]) -> NDArray[Any]:
        from fastnc.kernels import cross_entropy_cpu, flow_cpu

        self.work["evaluations"] += 1
        out = np.empty_like(theta)
        if self.small:
            log_factor = math.log(math.cosh(x)) + math.sinh(x) - math.log(self.N)
            flow_cpu.derivative(theta, *self.shape, self.y, log_factor, out)
            return out
        log_loss = np.empty(1)
        arrays = *self._split(theta), self.y, log_loss, *self._split(out)
        cross_entropy_cpu.log_loss_and_grads(*arrays)
        out *= -self._speed(x, float(log_loss[0]))
        return out

    def _jacobian(self, x: float, theta: NDArray[Any], _: Any = None) -> FlowJacobian:
        self.work["jacobians"] += 1
        at = Residuals(*self._split(theta.copy()), self.y)
        return FlowJacobian(at, self._speed(x, at.log_loss))

    def _measure(self, log10_t: float) -> None:
        from fastnc.snapshot import measure

        W, H = self._split(self.theta)
        terms = margin_decomposition(W, H, self.y)
        row = {"log10_time": log10_t, **measure(W, H, self.y)}
        row["conserved_drift"] = self._drifts()["gram_drift"]
        self.rows.append(row | {name: float(getattr(terms, name)) for name in TERMS})

    def _drifts(self) -> dict[str, float]:
        """Changes of what the flow conserves: of `W^T W - H^T H` over |W|^2, of the mean."""
        W, H = self._split(self.theta)
        gram = float(np.abs(W.T @ W - H.T @ H - self.gram).max())
        return {
            "gram_drift": gram / float(np.vdot(W, W)) if gram else 0.0,
            "mean_drift": float(np.abs(W.mean(axis=0) - self.mean).max()),
        }

    def _trajectory(self, stopped: str) -> Trajectory:
        W, H = (np.array(x) for x in self._split(self.theta))
        drifts = self._drifts()
        if self.basis is not None:
            W, H = W @ self.basis, H @ self.basis
        columns = {name: np.array([row[name] for row in self.rows]) for name in self.rows[0]}
        about = {**self.about, **drifts, "work": self.work, "stopped": stopped}
        return Trajectory(columns, W, H, self.y, about)


def _log10(x: float) -> float:
    """log10 t of the independent variable."""
    v = math.sinh(x)
    if v == 0.0:
        return -math.inf
    return (math.log(math.expm1(v)) if v < 30.0 else v) / math.log(10.0)
