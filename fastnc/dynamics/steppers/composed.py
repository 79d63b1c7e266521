"""Descent composed of a source of gradients, an update rule and a schedule, in NumPy arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc._core import arrays
from fastnc._core.functions import check_function
from fastnc.dynamics.gradients import Found, Source, streams
from fastnc.dynamics.rules import LossScaled, Rule, Schedule, Standing
from fastnc.dynamics.steppers.epochs import HostEpochs

Array = NDArray[Any]
Arrays = tuple[Array, ...]


# What `update` of a rule is given.
_UPDATED = ("factors", "gradients", "state", "rates", "step")


class ComposedDescent(HostEpochs):
    """Each step adds the rule's change for the source's gradients and the schedule's step size.

    In float32 the rounding error of each update is added to the next one (Kahan), unless `retract`
    puts W and H back on a constraint.

    Parameters
    ----------
    source : the gradients
    rule : the changes for them
    W, H : the factors, overwritten; `bias` a third one, `further` ones by name
    y : the labels of `H`
    freeze : names of factors that stay constant
    retract : function that puts W and H on the model's constraint after a step
    guard : context manager around the epochs
    objective : function of W and H, the column `objective` of the snapshots
    """

    def __init__(
        self,
        source: Source,
        rule: Rule,
        W: Array,
        H: Array,
        y: NDArray[np.int64],
        *,
        bias: Array | None = None,
        further: Mapping[str, Array] = MappingProxyType({}),
        freeze: Sequence[str] = (),
        retract: Callable[[Array, Array], tuple[Array, Array]] | None = None,
        guard: Callable[[], AbstractContextManager[Any]] = nullcontext,
        objective: Callable[[Array, Array], float] | None = None,
    ) -> None:
        super().__init__(W, H, y)
        self.objective = objective
        self.source, self.rule, self.retract, self.guard = source, rule, retract, guard
        self.bias, self.freeze = bias, tuple(freeze)
        named = {"W": W, "H": H, **({} if bias is None else {"bias": bias}), **further}
        self.names, self.factors = tuple(named), tuple(named.values())
        compensated = W.dtype == np.float32 and retract is None
        empty = np.zeros((0, 0), W.dtype)
        self.low = tuple(np.zeros_like(x) if compensated else empty for x in self.factors)
        self.W_low, self.H_low = self.low[:2]
        # A rule of the user's sees the factors and does not write to them: what it returns moves
        # them.
        own = _is_own(rule)
        self.shown = self.factors if own else tuple(_read_only(x) for x in self.factors)
        if not own:
            check_function("rule.init", rule.init, *self.names)
            check_function("rule.update", rule.update, *_UPDATED)
        memory = rule.init(*self.shown)
        if not own:
            _check_memory(memory)
            # What it remembers of the start must not move with the factors.
            memory = {name: x.copy() for name, x in memory.items()}
        self.memory = {f"rule/{name}": x for name, x in memory.items()}
        self.lr = getattr(rule, "lr", 1.0)
        self.streams = streams(source)
        # Steps made, and the log of the gradients' unit in a scale-free rule's memory.
        self.counts = np.array([0.0, math.nan])
        looks = isinstance(self.lr, Schedule) and self.lr.of_log_loss
        self.of_log_loss = source.has_log and (looks or bool(getattr(rule, "scale_free", False)))
        # Whether a schedule that looks at gradients of L stands beside a rule that has log L's.
        sees = isinstance(self.lr, Schedule) and type(self.lr).at is not Schedule.at
        self.shows_loss = self.of_log_loss and sees and not looks
        self.residual = isinstance(self.lr, LossScaled)

    def make(self, epochs: int) -> None:
        """That many epochs."""
        with self.guard(), np.errstate(all="ignore"):
            for epoch in range(self.epoch, self.epoch + epochs):
                for rows in self.source.epoch():
                    self._step(epoch, rows)

    def _step(self, epoch: int, rows: Any) -> None:
        there = self.factors
        found = self._frozen(self.source.at(there, rows, self.of_log_loss, self.residual))
        if hasattr(self.rule, "climb"):
            there = tuple(
                x + c for x, c in zip(self.factors, self.rule.climb(found.gradients), strict=True)
            )
            found = self._frozen(self.source.at(there, rows, self.of_log_loss, self.residual))
        rates = self._rates(epoch, there, found)
        step, unit = self.counts
        if self.of_log_loss and hasattr(self.rule, "rescale") and math.isfinite(unit):
            self.rule.rescale(self._memory(), math.exp(min(unit - found.log_loss, 700.0)))
        self.counts[:] = step + 1, found.log_loss if self.of_log_loss else math.nan
        memory = self._memory()
        changes = self.rule.update(self.shown, found.gradients, memory, rates, int(step) + 1)
        if self.shown is not self.factors:
            _check_changes(changes, self.names, self.factors)
            _keep(memory, self._memory())
        for x, low, change, name in zip(self.factors, self.low, changes, self.names, strict=True):
            if name not in self.freeze:
                add_change(x, low, change if _is_own(self.rule) else real(name, change))
        if self.retract is not None:
            for x, new in zip((self.W, self.H), self.retract(self.W, self.H), strict=True):
                np.copyto(x, new)

    def _memory(self) -> dict[str, Array]:
        return {name.removeprefix("rule/"): x for name, x in self.memory.items()}

    def _frozen(self, found: Found) -> Found:
        """The gradients with 0 for the frozen factors, which then count in no norm."""
        if not self.freeze:
            return found
        return found._replace(
            gradients=tuple(
                np.zeros_like(g) if name in self.freeze else g
                for name, g in zip(self.names, found.gradients, strict=True)
            )
        )

    def _rates(self, epoch: int, there: Arrays, found: Found) -> tuple[Any, ...]:
        """The step size of each factor, in its dtype; W's for all but W and H."""
        kind = self.W.dtype.type
        pair = self.lr if isinstance(self.lr, tuple) else (self.lr, self.lr)
        gradients = found.gradients
        if self.shows_loss:
            # The rule has those of log L, whose scale does not matter to it.
            gradients = tuple(g * g.dtype.type(found.value) for g in gradients)
        standing = Standing(epoch, *found[:2], there, gradients, found.residual)
        rates = [kind(rate_at(lr, standing)) for lr in pair]
        return (*rates, *rates[:1] * (len(self.factors) - 2))

    def measure(self) -> dict[str, float]:
        """The columns of a run, and the model's objective where that is not (4)."""
        row = super().measure()
        if self.objective is not None:
            row["objective"] = self.objective(*self.wide())
        return row

    def arrays(self) -> dict[str, Array]:
        """The factors, their low parts, the rule's memory, the generators' states."""
        found = dict(zip(self.names, self.factors, strict=True))
        found |= {f"{n}_low": x for n, x in zip(self.names, self.low, strict=True)}
        found |= {f"random/{name}": stream.words() for name, stream in self.streams.items()}
        return {**found, **self.memory, "counts": self.counts}

    def put(self, arrays: dict[str, Array]) -> None:
        """Overwrite all of these."""
        for name, x in self.arrays().items():
            if not name.startswith("random/"):
                np.copyto(x, arrays[name])
        for name, stream in self.streams.items():
            stream.put(arrays[f"random/{name}"])


def _read_only(x: Array) -> Array:
    view = x.view()
    view.flags.writeable = False
    return view


def _check_memory(memory: Any) -> None:
    """What `init` of a user's rule returned must be arrays by name: checkpoints hold them."""
    if not isinstance(memory, Mapping):
        raise TypeError(
            f"`rule.init` must return arrays by name, {{}} for none; got {type(memory).__name__}."
        )
    for name, x in memory.items():
        if not isinstance(name, str) or not isinstance(x, np.ndarray):
            raise TypeError(
                "`rule.init` must return NumPy arrays by name, of which checkpoints are made; got "
                f"{name!r}: {type(x).__name__}. Write a number as `np.zeros(1)`."
            )
    names = dict[int, str]()
    for name, x in memory.items():
        other = names.setdefault(x.ctypes.data, name)
        if x.size and other != name:
            raise ValueError(
                f"`rule.init` must return arrays of their own; {other!r} and {name!r} are one."
            )


def _keep(left: dict[str, Array], memory: dict[str, Array]) -> None:
    """Overwrite the memory by what `update` put in its place: `state["m"] = ...` is one way."""
    kept = {}
    for name in sorted(left.keys() | memory.keys()):
        old, new = memory.get(name), left.get(name)
        if new is old:
            continue
        if old is None or new is None or np.shape(new) != old.shape:
            had = "none" if old is None else f"one of shape {old.shape}"
            got = "none" if new is None else f"one of shape {np.shape(new)}"
            raise ValueError(
                "`rule.update` must leave in `state` the arrays that `rule.init` made; of "
                f"{name!r} it made {had}, got {got}."
            )
        # Two of them may have been exchanged: none is written before all are read.
        kept[name] = real(f"state[{name!r}]", new).copy()
    for name, new in kept.items():
        np.copyto(memory[name], new, casting="unsafe")


def real(name: str, x: Any) -> Array:
    """What a user's rule returned, as an array of real numbers."""
    arrays.check_unmasked(f"rule.update: {name}", x)
    found: Array = arrays.as_numpy(x)
    if found.dtype.kind not in "fiub":
        raise TypeError(f"`rule.update` must return real numbers; got {name} of {found.dtype}.")
    return found


def _check_changes(changes: Any, names: Sequence[str], factors: Arrays) -> None:
    """What `update` of a user's rule returned must be an array of each factor's shape."""
    shapes = [x.shape for x in factors]
    if not isinstance(changes, (tuple, list)) or [np.shape(x) for x in changes] != shapes:
        got = (
            [np.shape(x) for x in changes]
            if isinstance(changes, (tuple, list))
            else type(changes).__name__
        )
        raise ValueError(
            f"`rule.update` must return what is added to each of {', '.join(names)}, of shapes "
            f"{shapes}; got {got}."
        )


def rate_at(lr: Any, standing: Standing) -> float:
    """The step size of a number, a schedule or a function of the epoch, at `standing`."""
    if isinstance(lr, Schedule):
        rate = lr.at(standing)
        if _is_own(lr):
            return rate
    elif callable(lr):
        rate = lr(standing.epoch)
    else:
        return float(lr)
    return arrays.check_at_least_zero(f"lr({standing.epoch})", rate)


def _is_own(part: Any) -> bool:
    """Whether a rule or a schedule is one of fastnc, not a user's."""
    return type(part).__module__.startswith("fastnc.")


def add_change(x: Array, low: Array, change: Array) -> None:
    """x + low += change, the large part in `x` and the rest in `low`, if there is one."""
    if not low.size:
        x += change.astype(x.dtype, copy=False)
        return
    low += change.astype(x.dtype, copy=False)
    before = x.copy()
    x += low
    low -= x - before
