"""Many trajectories as one: a list of them, their quantiles, and one file."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, overload
from zlib import crc32

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastnc._core.arrays import as_numbers
from fastnc._core.files import (
    FOREIGN,
    atomic_write,
    check_name,
    read_npz,
    scalar,
    write_npz,
)
from fastnc._core.results import check_results, frames_of
from fastnc.dynamics import rules
from fastnc.dynamics.trajectory import Trajectory, layers_of

# The default of `flow`, which a setting need not name.
_RTOL = 1e-8
# Options that have a column in a table of runs, of which some only where the runs differ in them.
_OPTIONS = (
    "model", "rule", "lr", "batch_size", "replacement", "label_noise", "noise", "freeze", "dtype",
    "rtol", "seed",
)  # fmt: skip
_ALWAYS = ("model", "rule", "lr", "batch_size", "seed")
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class Trajectories(Sequence[Trajectory]):
    """A list of trajectories that were measured at the same times.

    `runs[3]` is a `Trajectory`, `runs[:10]` some more of these; a run that ended early has the
    first rows of the others.

    Parameters
    ----------
    runs : iterable of Trajectory

    Examples
    --------
    >>> import fastnc
    >>> runs = fastnc.sweep(fastnc.ULPM(5, 2, 5), epochs=100, seeds=range(3))
    >>> len(runs), len(runs[:2]), bool((runs.quantiles("margin", 0.5) < 10).all())
    (3, 2, True)
    """

    def __init__(self, runs: Iterable[Trajectory]) -> None:
        source = "`fastnc.descend`"
        self._runs = tuple(check_results("runs", runs, Trajectory, source, least=0))

    @overload
    def __getitem__(self, index: int) -> Trajectory: ...
    @overload
    def __getitem__(self, index: slice) -> Trajectories: ...
    def __getitem__(self, index: int | slice) -> Trajectory | Trajectories:
        if isinstance(index, slice):
            return Trajectories(self._runs[index])
        return self._runs[index]

    def __len__(self) -> int:
        return len(self._runs)

    def __repr__(self) -> str:
        return f"Trajectories({len(self)} runs of {', '.join(self.settings()) or 'nothing'})"

    @property
    def longest(self) -> Trajectory:
        """The run with most snapshots, whose times hold those of all the others."""
        if not self._runs:
            raise ValueError("there is no run in these `Trajectories`.")
        return max(self._runs, key=len)

    def settings(self) -> dict[str, Trajectories]:
        """The runs by what they share beside their seed: shape, step size, dtype."""
        found: dict[str, list[Trajectory]] = {}
        for run in self._runs:
            found.setdefault(_setting(run), []).append(run)
        return {key: Trajectories(runs) for key, runs in found.items()}

    def stack(self, name: str) -> NDArray[np.float64]:
        """A column of every run (runs, snapshots), NaN where a run had ended or has none.

        Raises
        ------
        ValueError
            The runs were measured at different times.
        """
        out = np.full((len(self), len(self.longest)), np.nan)
        if not any(name in run for run in self._runs):
            self.longest[name]
        for i, run in enumerate(self._runs):
            if len(run) and name in run:
                self._check_times(i)
                out[i, : len(run)] = run[name]
        return out

    def _check_times(self, i: int) -> None:
        """The times of a run must be the first of the longest: rows would be of different times."""
        run, longest = self._runs[i], self.longest
        if run.time != longest.time:
            got = f"{run.time!r} where the longest has {longest.time!r}"
        elif np.array_equal(run[run.time], longest[run.time][: len(run)]):
            return
        else:
            j = int(np.argmax(run[run.time] != longest[run.time][: len(run)]))
            got = f"{run.time} {run[run.time][j]:.10g} at row {j}, where the longest has "
            got += f"{longest[run.time][j]:.10g}"
        raise ValueError(
            f"the runs must have been measured at the same times; run {i} has {got}. Give all the "
            "same `snapshots`, and take those with other ends, or of other models, apart."
        )

    def quantiles(self, name: str, q: ArrayLike = QUANTILES) -> NDArray[np.float64]:
        """Quantiles over the runs (len(q), snapshots) of a column, at the times of `longest`.

        Runs that had ended, or whose value is NaN, are left out; NaN where none is left.
        """
        levels = np.atleast_1d(as_numbers("q", q))
        if levels.ndim > 1:
            raise ValueError(f"`q` must be a number or a row of them; got shape {levels.shape}.")
        if not ((levels >= 0.0) & (levels <= 1.0)).all():
            raise ValueError(f"`q` must lie in 0..1; got {q!r}.")
        values = self.stack(name)
        out = np.full((len(levels), values.shape[1]), np.nan)
        some = ~np.isnan(values).all(axis=0)
        out[:, some] = np.nanquantile(values[:, some], levels, axis=0)
        return out

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write every run to one `.npz` (no pickle), atomically."""
        check_name(path, ".npz", "For a table there is `to_csv`.")
        try:
            return write_npz(path, self.arrays())
        except OSError as error:
            # So that the caller can save the runs elsewhere.
            error.run = self  # type: ignore[attr-defined]
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trajectories:
        """Read what `save` wrote.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        IsADirectoryError
            It is a folder.
        ValueError
            The file is damaged or holds no trajectories.
        """
        arrays = read_npz(path, "the trajectories")
        try:
            return cls.from_arrays(arrays)
        except FOREIGN:
            raise ValueError(
                f"{str(path)!r} does not hold trajectories that `Trajectories.save` wrote."
            ) from None

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write one line a snapshot, with the run's number, setting, sizes and seed, atomically."""
        check_name(path, ".csv", "Arrays are written by `save`.")
        text = io.StringIO(newline="")
        csv.writer(text).writerows(self._lines())
        return atomic_write(path, lambda file: file.write(text.getvalue().encode()))

    def to_pandas(self) -> Any:
        """The lines of `to_csv` as a `pandas.DataFrame`."""
        pandas = frames_of("pandas")
        names, *lines = self._lines()
        return pandas.DataFrame(lines, columns=list(names))

    def _lines(self) -> Iterator[tuple[Any, ...]]:
        """The names of the columns, then a line a snapshot; None where a run lacks a column."""
        # Runs of other models may have columns that the longest one lacks.
        names = dict.fromkeys((*self.longest.columns, *(n for r in self._runs for n in r.columns)))
        options = [name for name in _OPTIONS if name in _ALWAYS or self._differ_in(name)]
        heads = ["run", *options, "n_samples", "class_sizes"]
        # A training has a column `lr` too, and what is measured may have any name.
        yield *(f"{name} (setting)" if name in names else name for name in heads), *names
        for i, run in enumerate(self._runs):
            sizes = " ".join(map(str, np.bincount(run.y, minlength=len(run.W)).tolist()))
            about = (i, *(run.about.get(name) for name in options), len(run.y), sizes)
            if len(run):
                none = [None] * len(run)
                columns = (run[name].tolist() if name in run else none for name in names)
                yield from ((*about, *row) for row in zip(*columns, strict=True))

    def _differ_in(self, name: str) -> bool:
        """Whether the runs were given different values of an option."""
        return len({repr(run.about.get(name)) for run in self._runs}) > 1

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All runs as arrays by name: those of one shape and one y are stacked."""
        groups: dict[Any, list[int]] = {}
        for i, run in enumerate(self._runs):
            widest = [(name, run[name].dtype.str) for name in run.columns if len(run)]
            parts = [x for x in (run.W, run.H, run.y, run.bias, *run.layers) if x is not None]
            kinds = tuple((x.shape, x.dtype.str) for x in parts)
            key = (kinds, run.bias is None, run.y.tobytes(), tuple(widest))
            groups.setdefault(key, []).append(i)
        out: dict[str, NDArray[Any]] = {"n_groups": np.array(len(groups))}
        for g, members in enumerate(groups.values()):
            runs = [self._runs[i] for i in members]
            rows = max(len(run) for run in runs)
            group: dict[str, Any] = {
                "index": np.array(members),
                "rows": np.array([len(run) for run in runs]),
                "W": np.stack([run.W for run in runs]),
                "H": np.stack([run.H for run in runs]),
                "y": runs[0].y,
                "about": np.array(json.dumps([run.about for run in runs])),
            }
            if biases := [run.bias for run in runs if run.bias is not None]:
                group["bias"] = np.stack(biases)
            for i in range(len(runs[0].layers)):
                group[f"layer/{i}"] = np.stack([run.layers[i] for run in runs])
            for name in runs[0].columns:
                stacked = np.zeros((len(runs), rows), runs[0][name].dtype)
                for row, run in zip(stacked, runs, strict=True):
                    row[: len(run)] = run[name]
                group[f"column/{name}"] = stacked
            out |= {f"{g}/{name}": values for name, values in group.items()}
        return out

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Trajectories:
        """The runs of what `arrays` returned."""
        runs: dict[int, Trajectory] = {}
        for g in range(int(scalar(arrays["n_groups"]))):
            group = {
                name.removeprefix(f"{g}/"): values
                for name, values in arrays.items()
                if name.startswith(f"{g}/")
            }
            abouts = json.loads(str(group["about"]))
            for j, i in enumerate(group["index"].tolist()):
                columns = {
                    name.removeprefix("column/"): values[j, : group["rows"][j]]
                    for name, values in group.items()
                    if name.startswith("column/")
                }
                W, H = group["W"][j], group["H"][j]
                bias = group["bias"][j] if "bias" in group else None
                layers = [x[j] for x in layers_of(group)]
                runs[i] = Trajectory.of_file(columns, W, H, group["y"], abouts[j], bias, layers)
        return cls(runs[i] for i in sorted(runs))


def _short_rule(about: dict[str, Any]) -> str:
    """The rule in short, as `Adam(0.01)`, or the kind of the run where it has none.

    What a built-in rule has as its default is left out; two different rules differ here too.
    """
    rule = str(about.get("rule") or about.get("kind", "run"))
    found = re.fullmatch(r"(?:[\w.<>]+\.)?(\w+)(?:\((.*)\))?", rule, re.DOTALL)
    if found is None or found[2] is None:
        return found[1] if found else rule
    kind = getattr(rules, found[1], None)
    usual = {f"{f.name}={f.default!r}" for f in fields(kind)} if is_dataclass(kind) else set()
    told = []
    for argument in arguments(found[2]):
        lr = argument.removeprefix("lr=")
        if lr != argument:
            with suppress(ValueError):
                lr = _short(float(lr))
            told.append(lr)
        elif argument not in usual:
            told.append(argument)
    return f"{found[1]}({', '.join(told)})"


def is_plain_descent(about: dict[str, Any]) -> bool:
    """Whether a run's rule is gradient descent of a constant step size, without weight decay."""
    if "lr" not in about:
        return False
    return "rule" not in about or _short_rule(about) == f"GradientDescent({_short(about['lr'])})"


def _short(number: float) -> str:
    """Six digits of a number, or all where these are not it."""
    return f"{number:g}" if float(f"{number:g}") == number else repr(float(number))


def arguments(text: str) -> list[str]:
    """The arguments of a call, or the parts of a setting: cut where no parentheses enclose."""
    depth, found = 0, [""]
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 0 and letter == ",":
            found.append("")
        else:
            found[-1] += letter
    return [argument.strip() for argument in found]


def _setting(run: Trajectory) -> str:
    """What was run, without the seed, in short; a flow has no step size."""
    (K, d), N, about = run.W.shape, len(run.H), run.about
    model = about.get("model")
    plain = model == f"ULPM(n_classes={K}, dim={d})"
    parts = [f"K={K}, N={N}, d={d}"] if plain or not model else [f"{model}, K={K}, N={N}, d={d}"]
    sizes = np.bincount(run.y, minlength=K)
    if "class_sizes=" not in str(model) and len(set(sizes.tolist())) > 1:
        # Of many classes the sizes are too long to be read.
        parts.append(
            f"sizes {sizes.tolist()}" if K <= 10 else f"sizes #{crc32(sizes.tobytes()):08x}"
        )
    plain = is_plain_descent(about)
    parts.append(f"lr={_short(about['lr'])}" if plain else _short_rule(about))
    if about.get("batch_size"):
        drawn = ", drawn with replacement" if about.get("replacement") else ""
        parts.append(f"batches of {about['batch_size']}{drawn}")
    if about.get("rtol", _RTOL) != _RTOL:
        parts.append(f"rtol {about['rtol']:g}")
    if about.get("schedule", "constant") != "constant":
        parts.append(str(about["schedule"]))
    parts += [
        f"{name.replace('_', ' ')} {about[name]}"
        for name in ("noise", "label_noise", "freeze")
        if about.get(name)
    ]
    return ", ".join([*parts, *([about["dtype"]] if "dtype" in about else [])])
