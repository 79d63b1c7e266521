"""Many descents or flows at once, one a thread, each with the same bits as alone."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

from fastnc._core import arrays
from fastnc._core.interrupts import Diverged, Interrupted, deferred_interrupt
from fastnc._core.progress import Bar, SharedBar, progress_bar
from fastnc._core.serial import quiet
from fastnc.dynamics.checkpoint import checkpoint_path
from fastnc.dynamics.columns import column_names, listed, own_columns
from fastnc.dynamics.composition import Composition, composed
from fastnc.dynamics.descent import prepare
from fastnc.dynamics.flow import Solver, prepare_flow
from fastnc.dynamics.run import Run
from fastnc.dynamics.start import fingerprint
from fastnc.dynamics.sweep_store import Store
from fastnc.dynamics.trajectories import Trajectories
from fastnc.dynamics.trajectory import Trajectory

Problem = tuple[Any, Composition, int]

# Between two looks of the calling thread for Ctrl-C, finished runs and a due checkpoint.
_SECONDS_A_LOOK = 0.1


@quiet
def sweep(
    model: Any,
    lr: Any = 5.0,
    epochs: int = 100_000,
    seeds: Iterable[int] = range(256),
    snapshots: int = 40,
    *,
    rules: Any = None,
    batch_size: int | Iterable[int | None] | None = None,
    replacement: bool = False,
    label_noise: float = 0.0,
    noise: float = 0.0,
    freeze: Literal["W", "H"] | None = None,
    measure: Any = (),
    method: Literal["descend", "flow"] = "descend",
    log10_time: float | None = None,
    rtol: float = 1e-8,
    solver: Solver = "auto",
    dtype: Literal["float32", "float64"] | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    threads: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 60.0,
    resume: bool = False,
    progress: bool = False,
) -> Trajectories:
    """Descent from many seeds, by many rules or step sizes, with many batches, on many models.

    Equivalent to `[descend(m, r, epochs, s, batch_size=b) for m in models for r in lrs for b in
    batch_sizes for s in seeds]`, bit for bit, on any number of threads; with `rules`, `rule=r`;
    with `method="flow"` to `[flow(m, log10_time, s) for m in models for s in seeds]`.

    Parameters
    ----------
    model : a model, or several
        Of any sizes: so n, d and K can be swept.
    lr : float > 0, or several
        Step sizes of gradient descent.
    epochs : int >= 1
        Of each run.
    seeds : integers >= 0
    snapshots : int >= 1
        Snapshots a decade of epochs.
    rules : one of `fastnc.rules`, or several
        Instead of `lr`.
    batch_size : int >= 1 or None, or several
    replacement, label_noise, noise, freeze, measure
        Of every run, as `descend` has them.
    method : "descend" or "flow"
    log10_time, rtol, solver
        Of every flow, as `flow` has them.
    dtype : "float32" or "float64", optional
    device : "cpu" or "cuda"
        On a GPU all small problems of one shape run at once, others one after another; several
        GPUs share the problems. Each has the bits of `descend(..., device="cuda")`.
    threads : int >= 1, optional
        Runs at once; by default one for each usable core. Problems that use several threads
        themselves run one after another instead.
    checkpoint : path, optional
        File of the finished runs, written every `checkpoint_every` seconds and at the end.
        Unfinished runs that last longer write files beside it, which are deleted at their ends.
    resume : bool
        Go on from `checkpoint` if it exists.
    progress : bool
        Show a progress bar on a terminal.

    Returns
    -------
    Trajectories
        A list of `Trajectory`: models outermost, then rules or step sizes, then batch sizes, then
        seeds. A run that diverged has its snapshots until then, and "diverged" as its
        `.about["stopped"]`.

    Raises
    ------
    ValueError, TypeError
        Arguments that make no sense, or a checkpoint that is damaged or of another sweep.
    Interrupted
        Ctrl-C; the checkpoint, if any, has been written; `.run` holds the finished runs.

    Notes
    -----
    Cost: that of the runs, divided among `threads`.

    Examples
    --------
    >>> import fastnc
    >>> runs = fastnc.sweep(fastnc.ULPM(5, 10, 20), epochs=1000, seeds=range(4))
    >>> len(runs), len(runs.quantiles("margin", 0.5)[0]) == len(runs[0])
    (4, True)
    """
    models, sizes, measure = _several(model), _several(batch_size), listed(measure)
    # A pair (lr_W, lr_H) is one step size, a list of numbers is several.
    lrs = [lr] if isinstance(lr, tuple) and rules is not None else _several(lr)
    rules = None if rules is None else _several(rules)
    if not _is_several(seeds):
        raise TypeError(f"`seeds` must be several integers; got {seeds!r}. Give one as a list.")
    seeds = list(seeds)
    named = {"model": models, "lr": lrs, "rules": rules, "batch_size": sizes, "seeds": seeds}
    for name, values in named.items():
        if values is not None and not values:
            raise ValueError(f"`{name}` must hold at least one value; got none.")
    arrays.check_choice("method", method, ("descend", "flow"))
    of_descent: dict[str, tuple[Any, Any]] = {
        "lr": (lr, 5.0), "epochs": (epochs, 100_000), "rules": (rules, None),
        "batch_size": (batch_size, None), "replacement": (replacement, False),
        "label_noise": (label_noise, 0.0), "noise": (noise, 0.0), "freeze": (freeze, None),
        "measure": (measure, ()), "dtype": (dtype, None), "device": (device, "cpu"),
    }  # fmt: skip
    of_flow: dict[str, tuple[Any, Any]]
    of_flow = {"log10_time": (log10_time, None), "rtol": (rtol, 1e-8), "solver": (solver, "auto")}
    for name, (value, default) in (of_descent if method == "flow" else of_flow).items():
        if not (value is default or (isinstance(value, (int, float, str)) and value == default)):
            raise ValueError(f"`{name}` and method={method!r} do not go together; leave it out.")

    if replacement and not any(size is not None for size in sizes):
        raise ValueError("`replacement` must have batches to be drawn; give `batch_size`.")

    def setting(rate: Any, rule: Any, size: int | None) -> Composition:
        return composed(
            rate, rule, "constant", batch_size=size, replacement=replacement and size is not None,
            label_noise=label_noise, noise=noise, freeze=freeze, device=device,
        )  # fmt: skip

    steps: list[tuple[Any, Any]] = [(rate, None) for rate in lrs]
    if rules is not None:
        if not (isinstance(lr, (int, float)) and lr == 5.0):
            raise ValueError("`lr` and `rules` do not go together: a step size is the rule's own.")
        steps = [(5.0, rule) for rule in rules]
    settings = [setting(rate, rule, size) for rate, rule in steps for size in sizes]
    checkpoint_every = arrays.check_at_least_zero("checkpoint_every", checkpoint_every)
    path = checkpoint_path(checkpoint, resume)
    if threads is None:
        from fastnc.kernels.cpu.threads import n_threads

        threads = n_threads()
    threads = arrays.check_count("threads", threads, 1)

    def begin(problem: Problem) -> Run:
        one, parts, seed = problem
        if method == "flow":
            return prepare_flow(one, log10_time, seed, None, None, snapshots, rtol, solver)
        return prepare(one, parts, epochs, seed, None, None, snapshots, dtype, measure=measure)

    seeds = [arrays.check_count("seed", seed, 0) for seed in seeds]
    problems = list(itertools.product(models, settings, seeds))
    # Every argument is checked before the first epoch.
    totals, horizons, unit = [], [], "epochs"
    for one, parts in itertools.product(models, settings):
        run = begin((one, parts, seeds[0]))
        totals += [run.total] * len(seeds)
        horizons.append(run.due[-1])
        unit = run.stepper.unit
    about = {
        "kind": "sweep",
        "models": [f"{m!r}, N={len(m.y)}, labels {fingerprint(m.y)}" for m in models],
        "seeds": [int(s) for s in seeds],
        "snapshots": int(snapshots),
    }
    if method == "flow":
        about |= {"method": method, "log10_time": horizons, "rtol": rtol, "solver": solver}
    else:
        about |= {
            "settings": [parts.about() for parts in settings],
            "epochs": int(epochs),
            "dtype": dtype or "float64",
            "device": device,
            "measure": column_names(measure),
            "measured by": own_columns(measure),
        }
    store = Store(path, about)
    if resume:
        store.take_up()
    else:
        store.clear()
    from fastnc.kernels.cpu.threads import serial_blas

    # Snapshots too have the same bits on any number of a BLAS's threads.
    with serial_blas:
        sweeping = _Sweep(problems, begin, store, totals, unit, checkpoint_every)
        try:
            return sweeping.go(threads, progress)
        except OSError as error:
            error.run = store.runs()  # type: ignore[attr-defined]
            raise


def _several(value: Any) -> list[Any]:
    """A list of the values of an iterable, or of the one value that was given."""
    return list(value) if _is_several(value) else [value]


def _is_several(value: Any) -> bool:
    # An array without a dimension offers an iterator, and has none.
    alone = isinstance(value, (str, bytes, type)) or getattr(value, "shape", (1,)) == ()
    return isinstance(value, Iterable) and not alone


@dataclass
class _Sweep:
    """The problems of a sweep, handed to threads one by one."""

    problems: list[Problem]
    begin: Callable[[Problem], Run]
    store: Store
    totals: list[float]
    unit: str
    every: float

    def go(self, workers: int, progress: bool) -> Trajectories:
        from fastnc.dynamics.steppers.plain import stays_on_one_thread

        # One after another where the kernels themselves share the work among threads.
        left = [i for i in range(len(self.problems)) if i not in self.store.done]
        if self.store.about.get("device") == "cuda":
            return self._on_devices(left, progress)
        alone = {i: stays_on_one_thread(self.problems[i][0]) for i in left}
        with deferred_interrupt() as interrupted, self._bar(progress) as bar:
            self.store.save()
            for crew, numbers in (
                (workers, [i for i in left if alone[i]]),
                (1, [i for i in left if not alone[i]]),
            ):
                self._spread(iter(numbers), crew, interrupted, bar)
                if by := interrupted():
                    raise self._interrupted(by)
        return Trajectories(self.store.done[i] for i in range(len(self.problems)))

    def _bar(self, progress: bool) -> AbstractContextManager[Bar]:
        made = sum(self.totals[i] for i in self.store.done)
        return progress_bar(sum(self.totals), self.unit, "sweep", made, progress)

    def _on_devices(self, left: list[int], progress: bool) -> Trajectories:
        from fastnc.dynamics.device_sweep import on_devices

        with deferred_interrupt() as interrupted, self._bar(progress) as bar:
            self.store.save()
            try:
                on_devices(
                    left, lambda i: self.begin(self.problems[i]), self.store, self.every,
                    interrupted, bar,
                )  # fmt: skip
            except Interrupted:
                raise self._interrupted(interrupted()) from None
        return Trajectories(self.store.done[i] for i in range(len(self.problems)))

    def _spread(
        self, numbers: Iterator[int], crew: int, interrupted: Callable[[], str], bar: Bar
    ) -> None:
        """Runs of these numbers on `crew` threads, the checkpoint written meanwhile."""
        lock, over = threading.Lock(), threading.Event()
        counted = SharedBar(bar, lock)

        def stop() -> str:
            return interrupted() or ("an error elsewhere" if over.is_set() else "")

        def work() -> None:
            while not stop():
                with lock:
                    i = next(numbers, None)
                if i is None:
                    return
                try:
                    run = self._run(i, stop, counted)
                except Interrupted:
                    return
                with lock:
                    self.store.done[i] = run

        with ThreadPoolExecutor(crew, "fastnc-sweep") as pool:
            try:
                pending = {pool.submit(work) for _ in range(crew)}
                saved = time.monotonic()
                while pending:
                    ended, pending = wait(pending, _SECONDS_A_LOOK, FIRST_EXCEPTION)
                    for future in ended:
                        future.result()
                    if time.monotonic() - saved >= self.every:
                        with lock:
                            self.store.save()
                        saved = time.monotonic()
            finally:
                # Whatever ends this loop, also a second Ctrl-C, ends the threads after a slice.
                over.set()
        self.store.save()

    def _run(self, i: int, stop: Callable[[], str], bar: Bar) -> Trajectory:
        run, part = self.begin(self.problems[i]), self.store.part(i)
        if part is not None and part.exists():
            run.take_up(part)
            bar.update(run.done)
        try:
            return run.loop(part, self.every, stop, bar)
        except Diverged as diverged:
            bar.update(run.total - run.done)
            kept: Trajectory = diverged.run
            return kept

    def _interrupted(self, by: str) -> Interrupted:
        done, path = self.store.runs(), self.store.path
        saved = "" if path is None else f"; the state is in {str(path)!r}: resume to go on"
        return Interrupted(
            f"stopped by {by}: {len(done)} of {len(self.problems)} runs are done{saved}.", done
        )
