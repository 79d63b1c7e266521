"""Gradient flow under the run loop: its clock log10 t, its snapshots, its error messages."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc.dynamics.checkpoint import check_state
from fastnc.dynamics.integrator.equation import Decays, FlowEquation
from fastnc.dynamics.integrator.radau import Radau, Vector
from fastnc.dynamics.snapshot import measure
from fastnc.dynamics.steppers import Failed
from fastnc.theory.margin import TERMS, margin_decomposition
from fastnc.theory.norm_margins import ratio_max
from fastnc.theory.rates import aligned_singular_values
from fastnc.theory.seli import seli_distances

Array = NDArray[Any]

# log of t times the loss, which is about 0 where the classes become separated. Otherwise the
# gradient cancels down to 1 / t, and its rounding, times t, makes the steps small.
_LOG_VANISHING = 9.0
# Steps in x = log log t are about 1e-2; so many in a row below `_TINY_STEP` are a stall.
_TINY_STEP, _PATIENCE = 1e-4, 60
# Where the error of a step changes the loss, steps are rejected at random. Elsewhere so many steps
# together advance by more than `_LEAST_ADVANCE`.
_STEPS_A_LOOK, _LEAST_ADVANCE = 100, 0.1


def stretched(log10_time: float) -> float:
    """`x = asinh(log(1 + t))` of log10 t."""
    # For t above e^37 log(1 + t) is log t itself.
    return float(np.arcsinh(np.logaddexp(0.0, log10_time * math.log(10.0))))


def log10_time(x: float) -> float:
    """log10 t of `x = asinh(log(1 + t))`."""
    v = math.sinh(x)
    if v == 0.0:
        return -math.inf
    return (math.log(math.expm1(v)) if v < 30.0 else v) / math.log(10.0)


class FlowStepper:
    """The flow from W (K, d) and H (N, d) at t = 0; a step is one of the integrator."""

    clock, unit, end = "log10_time", "of log log t", "log10_time"

    def __init__(
        self,
        W: Array,
        H: Array,
        model: Any,
        solver: str,
        rtol: float,
        decays: Decays,
    ) -> None:
        self.model, self.y, self.rtol, self.dim = model, model.y, rtol, W.shape[1]
        # The flow never leaves the span of the rows of its start: with d > K + N, coordinates in
        # that span are an exact reduction.
        self._basis: Vector | None = None
        basis = None
        if self.dim > len(W) + len(H):
            basis, coordinates = np.linalg.qr(np.concatenate([W, H]).T)
            W, H = np.split(np.ascontiguousarray(coordinates.T), [len(W)])
        self.equation = self._equation(W.shape, solver, decays)
        vectors = self.equation.vectors
        self.counts = np.bincount(self.y, minlength=len(W))
        is_unequal = 0 < self.counts.min() < self.counts.max()
        self._is_unequal = is_unequal and W.shape[1] >= len(W) - 1
        self._aligned = aligned_singular_values(W, H, self.y).tolist()
        theta = np.concatenate([W.ravel(), H.ravel()])
        # The error of stiff components is several times that of a step: steps with rtol / 6 keep
        # the exact law to rtol / 10.
        step_rtol = max(rtol / 6.0, 1e-11)
        atol = 1e-2 * step_rtol * float(np.sqrt(np.mean(theta**2)))
        with self._guard():
            if basis is not None:
                self._basis = vectors.placed(basis.T)
            placed = vectors.placed(theta)
            self._gram, self._mean = self._conserved(placed)
            self.method = Radau(self.equation, 0.0, placed, step_rtol, atol)
        self._time = -math.inf
        self._tiny_steps, self._looked_at = 0, -math.inf

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """One BLAS thread, so that no bit depends on their number; no warnings.

        A stage that overshoots overflows to infinity, and the step is then made smaller.
        """
        from fastnc.kernels.cpu.threads import few_threads, serial_blas

        with few_threads(self.equation.is_small), serial_blas, np.errstate(all="ignore"):
            yield

    @property
    def time(self) -> float:
        """log10 t, -inf at the start."""
        return self._time

    @property
    def done(self) -> float:
        """`asinh(log(1 + t))`, in which steps are of about one size."""
        return self.method.state.x

    def _equation(self, shape: tuple[int, int], solver: str, decays: Decays) -> FlowEquation:
        """What is integrated."""
        return FlowEquation(shape, self.y, solver, decays)

    @property
    def W(self) -> Array:
        """The classifier (K, d), in the coordinates it started in."""
        return self._fetched(0)

    @property
    def H(self) -> Array:
        """The features (N, d), in the coordinates they started in."""
        return self._fetched(1)

    def _fetched(self, factor: int) -> Array:
        """A copy of W or of H, in the coordinates of the start, on the host."""
        return np.array(self.equation.vectors.fetched(self._started(factor)))

    def _started(self, factor: int) -> Vector:
        """W or H in the coordinates of the start."""
        x = self.equation.split(self.method.state.theta)[factor]
        return x if self._basis is None else x @ self._basis

    def _split(self) -> tuple[Array, Array]:
        """W and H in the coordinates of the integration, on the host."""
        return self.equation.split(self.equation.vectors.fetched(self.method.state.theta))

    def advance(self, due: float, steps: int) -> int:
        """Make at most `steps` steps of the integrator, not beyond log10 t = `due`."""
        bound, made = stretched(due), 0
        with self._guard():
            while made < steps and self._time != due:
                self._step(bound)
                made += 1
                x = self.method.state.x
                self._time = due if x == bound else log10_time(x)
        return made

    def _step(self, bound: float) -> None:
        x = self.method.state.x
        try:
            self.method.step(bound)
        except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
            raise self._failed(
                x, self._too_coarse(x) or self._does_not_vanish() or str(error)
            ) from None
        self.equation.work["steps"] += 1
        self._look_for_a_stall(self.method.state.x - x)
        self._look_for_a_crawl(self.method.state.x)

    def _look_for_a_crawl(self, x: float) -> None:
        """Raise where the flow hardly advances because `rtol` is too large for its logits."""
        if self.equation.work["steps"] % _STEPS_A_LOOK:
            return
        if x - self._looked_at < _LEAST_ADVANCE and self._too_coarse(x):
            raise self._failed(x, self._too_coarse(x))
        self._looked_at = x

    def _too_coarse(self, x: float) -> str:
        """The message where `rtol` times the logits is not small, else an empty text."""
        log_t = math.sinh(x)
        if self.rtol * log_t <= 1.0 or self.equation.decays != (0.0, 0.0):
            return ""
        return (
            f"the logits are of the size of log t = {log_t:.3g}, of which `rtol`={self.rtol:g} is "
            "more than their loss forgives. Take a smaller one, of at least 1e-11, or a nearer "
            "`log10_time`"
        )

    def _look_for_a_stall(self, step: float) -> None:
        """Raise where steps stay tiny while the loss does not vanish."""
        tiny = step < _TINY_STEP and self.method.state.x > 1.0
        self._tiny_steps = self._tiny_steps + 1 if tiny else 0
        if self._tiny_steps >= _PATIENCE:
            self._tiny_steps = 0
            why = self._does_not_vanish()
            if why:
                raise self._failed(self.method.state.x, why)

    def _does_not_vanish(self) -> str:
        """The message where t times the loss is large, else an empty text."""
        s = self.method.state
        log_loss = self.equation.mean_log_loss(s.theta)
        if math.sinh(s.x) + log_loss <= _LOG_VANISHING or self.equation.decays != (0.0, 0.0):
            return ""
        return (
            f"the mean loss is still {math.exp(log_loss):.3g} and does not vanish, as the classes "
            "are not separated, so that the gradient is rounding from here on"
        )

    def _failed(self, x: float, why: str) -> Failed:
        return Failed(
            f"the flow stopped at log10 t = {log10_time(x):.8g}: {why.rstrip('.')}. The run holds "
            "the snapshots until then."
        )

    def finite(self) -> bool:
        """Always: a step that is not finite is not taken."""
        return True

    def keep(self, steps: int) -> bool:
        """False: nothing will be rolled back."""
        return False

    def roll_back(self) -> None:
        """Never called, as `keep` returns False."""
        raise NotImplementedError

    def why(self, good: float, bad: float) -> str:
        """That the start is too large: a step that is not finite is never taken."""
        return "the loss of the start is not finite: a logit overflows. Scale `W` and `H` down."

    def measure(self) -> dict[str, float]:
        """The columns of every run, the terms missing to collapse, and the conserved quantity."""
        with self._guard():
            row = self._columns()
            if self._basis is not None:
                # The one column that a rotation changes.
                largest = max(float(abs(self._started(factor)).max()) for factor in (0, 1))
                row["margin_ratio_max"] = ratio_max(row["margin"], self.counts, self.dim, largest)
            if self.equation.decays == (0.0, 0.0):
                row["conserved_drift"] = self._drifts()["gram_drift"]
                row |= self._terms()
            else:
                row["objective"] = self._objective()
        return row

    def _columns(self) -> dict[str, float]:
        """The columns of every run."""
        return measure(*self._split(), self.y)

    def _terms(self) -> dict[str, float]:
        """The terms missing to collapse; of unequal classes the distances to their limit too."""
        W, H = self._split()
        terms = margin_decomposition(W, H, self.y)
        row = {name: float(getattr(terms, name)) for name in TERMS}
        return row | (seli_distances(W, H, self.y) if self._is_unequal else {})

    def _objective(self) -> float:
        """That of a model with weight decay."""
        return float(self.model.objective(self.W, self.H))

    def _drifts(self) -> dict[str, float]:
        """Changes of the conserved quantities: `W^T W - H^T H` over |W|^2, the mean classifier."""
        theta = self.method.state.theta
        w = self.equation.split(theta)[0].reshape(-1)
        gram, mean = self._conserved(theta)
        drift = float(abs(gram - self._gram).max())
        return {
            "gram_drift": drift / float(w @ w) if drift else 0.0,
            "mean_drift": float(abs(mean - self._mean).max()),
        }

    def _conserved(self, theta: Vector) -> tuple[Vector, Vector]:
        """`W^T W - H^T H` and the mean classifier, where the unknowns are."""
        W, H = self.equation.split(theta)
        return W.T @ W - H.T @ H, W.mean(0)

    def state(self) -> dict[str, Array]:
        """The integrator's state, the work done, and the counters of stalls."""
        return {**self.method.state.arrays(self.equation.vectors), **self._counters()}

    def _counters(self) -> dict[str, Array]:
        """The work done, the time, and the counters of stalls."""
        return {
            **{f"work/{name}": np.array(count) for name, count in self.equation.work.items()},
            "log10_time": np.array(self._time),
            "tiny_steps": np.array(self._tiny_steps),
            "looked_at": np.array(self._looked_at),
        }

    def restore(self, state: dict[str, Array]) -> None:
        """Restore a state that `state` returned."""
        check_state(state, self.state())
        with self._guard():
            try:
                self.method.restore(state)
            except (ArithmeticError, np.linalg.LinAlgError) as error:
                raise ValueError("a state that no flow has") from error
        self.equation.work = {name: int(state[f"work/{name}"]) for name in self.equation.work}
        self._time = float(state["log10_time"])
        self._tiny_steps, self._looked_at = int(state["tiny_steps"]), float(state["looked_at"])

    def report(self) -> dict[str, Any]:
        """The drifts, the horizon reached, the start's singular values, the work done."""
        drifts = self._drifts() if self.equation.decays == (0.0, 0.0) else {}
        return {
            **drifts, "log10_time": self._time, "start_singular_values": self._aligned,
            "work": dict(self.equation.work),
        }  # fmt: skip

    def place(self, last: float) -> str:
        """The current log10 t and the last one."""
        return f"log10 t = {self._time:.6g} of {last:g}"
