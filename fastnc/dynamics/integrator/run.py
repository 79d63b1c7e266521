"""The loop around the flow's integrator: snapshots, checkpoints, Ctrl-C, failures, progress."""

from __future__ import annotations

import math
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import BDF, Radau
from scipy.sparse import csc_matrix

from fastnc._core.files import FOREIGN, scalar
from fastnc._core.interrupts import Diverged, Interrupted, deferred_interrupt
from fastnc._core.progress import progress_bar
from fastnc.dynamics.checkpoint import Checkpoint, foreign
from fastnc.dynamics.integrator.newton import DirectSolver, FlowJacobian, KrylovSolver
from fastnc.dynamics.integrator.state import integrator_state, restore_integrator
from fastnc.dynamics.trajectory import Trajectory
from fastnc.models import ULPM
from fastnc.theory.margin import TERMS, margin_decomposition
from fastnc.theory.rates import aligned_singular_values
from fastnc.theory.residuals import Residuals

# Up to this K N d the gradient is a matter of microseconds on one thread.
_SMALL = 200_000
# log of t times the loss: of the order of 0 wherever the classes become separated. Otherwise the
# gradient is a cancellation down to 1 / t, and its rounding, times t, is what shrinks the steps.
_LOG_VANISHING = 9.0
# Steps in x = log log t are of the size of 1e-2; this many in a row below that are a stall.
_TINY_STEP, _PATIENCE = 1e-4, 60
# Where a step's error is more than the loss forgives, steps are cut at random; so many of them
# together go further than this otherwise, by BDF at the strictest tolerance too.
_STEPS_A_LOOK, _LEAST_ADVANCE = 100, 0.1


def snapshot_times(log10_time: float, a_decade: int) -> NDArray[np.float64]:
    """log10 of the times after the start: `a_decade` a decade of t up to 10, of log t above."""
    early = np.arange(-a_decade, a_decade) / a_decade
    decades = max(math.log10(log10_time), 0.0)
    late = 10.0 ** (np.arange(math.floor(decades * a_decade + 1e-9) + 1) / a_decade)
    times = np.concatenate([early, late])
    # The last time replaces a neighbour that differs from it by rounding only.
    return np.append(times[times < log10_time - 1e-9 * max(1.0, log10_time)], log10_time)


class FlowRun:
    """One flow: its integrator, its conserved quantities, its snapshots and checkpoints."""

    def __init__(
        self,
        model: ULPM,
        W: NDArray[Any],
        H: NDArray[Any],
        about: dict[str, Any],
        log10_time: float,
        path: Path | None,
        every: float,
    ) -> None:
        self.y, self.N = model.y, model.n_samples
        self.about, self.path, self.every = about, path, every
        self.times = snapshot_times(log10_time, about["snapshots"])
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
        self.aligned = aligned_singular_values(W, H, self.y)
        self.rows: list[dict[str, float]] = []
        self.tiny_steps, self.looked_at = 0, -math.inf

    def go(self, resume: bool, progress: bool) -> Trajectory:
        """Integrate to each of the times in turn and measure there."""
        from fastnc.kernels.cpu.threads import few_threads

        # log(1 + t) for small t; for t above e^37 it is log t itself.
        with np.errstate(over="ignore"):
            grid = np.arcsinh(np.logaddexp(0.0, self.times * math.log(10.0)))
        with deferred_interrupt() as interrupted, few_threads(self.small):
            integrator = self._start(float(grid[0]), resume)
            measured = {row["log10_time"] for row in self.rows}
            due = [
                (x, log10_t)
                for x, log10_t in zip(grid.tolist(), self.times.tolist(), strict=True)
                if x >= integrator.t and log10_t not in measured
            ]
            saved, done = time.monotonic(), len(grid) - len(due)
            with progress_bar(len(grid), "snapshots", "flow", done, progress) as bar:
                for x, log10_t in due:
                    integrator.t_bound, integrator.status = x, "running"
                    while integrator.t < x:
                        if interrupted():
                            raise self._interrupted(integrator)
                        self._step(integrator)
                        if self.path is not None and time.monotonic() - saved >= self.every:
                            self._save(integrator)
                            saved = time.monotonic()
                    self._measure(log10_t)
                    bar.update(1)
            self._save(integrator)
        return self._trajectory("log10_time")

    def _start(self, bound: float, resume: bool) -> Any:
        """The integrator at t = 0, or where the checkpoint left it."""
        found = None
        if resume and self.path is not None and self.path.exists():
            found = Checkpoint.load(self.path, self.about)
        if self.path is None or found is None:
            self._measure(-math.inf)
        else:
            self.rows = found.rows(self.path, "log10_time", {-math.inf, *self.times.tolist()})
        try:
            integrator = self._integrator(bound)
        except (ArithmeticError, np.linalg.LinAlgError) as error:
            raise self._failed(0.0, str(error)) from None
        if self.path is not None and found is not None:
            try:
                restore_integrator(integrator, found.state, self.shape, self.y, integrator.lu)
                reached = float(scalar(found.state["log10_time"]))
                self.work = {name: int(scalar(found.state[f"work/{name}"])) for name in self.work}
            except (*FOREIGN, ArithmeticError, np.linalg.LinAlgError):
                raise foreign(self.path) from None
            self._check_horizon(reached)
            self.theta = integrator.y
        return integrator

    def _check_horizon(self, reached: float) -> None:
        if reached > self.times[-1] + 1e-9 * abs(reached):
            raise ValueError(
                f"`log10_time` must be at least the checkpoint's; {str(self.path)!r} is at "
                f"{reached:.6g}, got {self.times[-1]:g}."
            )

    def _save(self, integrator: Any) -> None:
        if self.path is not None and self.work["steps"]:
            state = integrator_state(integrator)
            state |= {f"work/{name}": np.array(count) for name, count in self.work.items()}
            state["log10_time"] = np.array(_log10(integrator.t))
            Checkpoint(self.about, state, self._columns()).save(self.path)

    def _interrupted(self, integrator: Any) -> Interrupted:
        saved = ""
        if self.path is not None:
            self._save(integrator)
            saved = f"; the state is in {str(self.path)!r}: resume to go on with the same bits"
        return Interrupted(
            f"stopped by Ctrl-C at log10 t = {_log10(integrator.t):.6g} of "
            f"{self.times[-1]:g}{saved}.",
            self._trajectory("interrupted"),
        )

    def _step(self, integrator: Any) -> None:
        try:
            # A stage that overshoots overflows to infinity, and the step is then made smaller.
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                message = integrator.step()
        except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
            raise self._failed(integrator.t, self._too_coarse(integrator.t) or str(error)) from None
        self.work["steps"] += 1
        if integrator.status == "failed" or not np.isfinite(integrator.y).all():
            why = self._too_coarse(integrator.t) or message or "W or H is not finite"
            raise self._failed(integrator.t, why)
        self.theta = integrator.y
        self._look_for_a_stall(integrator)
        self._look_for_a_crawl(integrator.t)

    def _look_for_a_crawl(self, x: float) -> None:
        """Ends a flow that hardly moves since its tolerance is none any more."""
        if self.work["steps"] % _STEPS_A_LOOK:
            return
        if x - self.looked_at < _LEAST_ADVANCE and self._too_coarse(x):
            raise self._failed(x, self._too_coarse(x))
        self.looked_at = x

    def _too_coarse(self, x: float) -> str:
        """What is wrong where `rtol` of the logits is no small number, or nothing."""
        rtol, log_t = self.about["rtol"], math.sinh(x)
        if rtol * log_t <= 1.0:
            return ""
        return (
            f"the logits are of the size of log t = {log_t:.3g}, of which `rtol`={rtol:g} is more "
            "than their loss forgives. Take a smaller one, of at least 1e-11, or a nearer "
            "`log10_time`"
        )

    def _look_for_a_stall(self, integrator: Any) -> None:
        """Ends a flow whose steps stay tiny while the loss does not vanish."""
        tiny = integrator.step_size < _TINY_STEP and integrator.t > 1.0
        self.tiny_steps = self.tiny_steps + 1 if tiny else 0
        if self.tiny_steps < _PATIENCE:
            return
        self.tiny_steps = 0
        at = Residuals(*self._split(self.theta), self.y)
        mean_log_loss = at.log_loss - math.log(self.N)
        if math.sinh(integrator.t) + mean_log_loss > _LOG_VANISHING:
            raise self._failed(
                integrator.t,
                f"the mean loss is still {math.exp(mean_log_loss):.3g} and does not vanish, as the "
                "classes are not separated, so that the gradient is rounding from here on",
            )

    def _failed(self, x: float, why: str) -> Diverged:
        return Diverged(
            f"the flow stopped at log10 t = {_log10(x):.8g}: {why.rstrip('.')}. The run holds the "
            "snapshots until then.",
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

        # A gap of size log t carries its rounding into every Newton residual, some hundred ulp of
        # the state: iterating below that would only halve the steps.
        least = 1e3 * float(np.finfo(np.float64).eps) / rtol
        integrator.newton_tol = max(integrator.newton_tol, least)
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
        from fastnc.kernels.cpu import cross_entropy as cross_entropy_cpu
        from fastnc.kernels.cpu import flow as flow_cpu

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
        from fastnc.dynamics.snapshot import measure

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
        about = {
            **self.about, **drifts, "log10_time": float(self.rows[-1]["log10_time"]),
            "start_singular_values": self.aligned.tolist(), "work": self.work, "stopped": stopped,
        }  # fmt: skip
        return Trajectory(self._columns(), W, H, self.y, about)

    def _columns(self) -> dict[str, NDArray[Any]]:
        return {name: np.array([row[name] for row in self.rows]) for name in self.rows[0]}


def _log10(x: float) -> float:
    """log10 t of the independent variable."""
    v = math.sinh(x)
    if v == 0.0:
        return -math.inf
    return (math.log(math.expm1(v)) if v < 30.0 else v) / math.log(10.0)
