"""What a run returns: a column for each quantity, a row for each snapshot, and the last W and H."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastnc._core.arrays import as_numbers
from fastnc._core.environment import provenance
from fastnc._core.files import FOREIGN, atomic_write, check_name, describe, read_npz, write_npz
from fastnc._core.html_table import html_table
from fastnc._core.results import frames_of

_COLUMN, _LAYER = "column/", "layer/"


class Trajectory:
    """Snapshots of a run, its last W, H and bias, and what was run.

    `run["within_class"]` is a column; `run.columns` names them all, the time first: `"epoch"`
    (0 is the start) or, of a flow, `"log10_time"` (-inf at t = 0).

    Parameters
    ----------
    columns : mapping of str to (S,) array
        One row a snapshot, real numbers; the first column is the time.
    W, H, y : (K, d), (N, d), (N,) arrays
        At the end of the run, and its labels.
    about : mapping of JSON values
        What was run: model, lr, seed, ...; `provenance` (version, commit, processor, system,
        Python, libraries and date, as text) is added where it is not given.
    bias : (K,) array, optional
        At the end of the run, of a model or a network that has one.
    layers : sequence of arrays
        H_1, W_1, ..., W_M at the end of a run of `models.deep_linear`; W is then W_M, and H is the
        input of the last layer.

    Examples
    --------
    >>> import fastnc
    >>> run = fastnc.descend(fastnc.ULPM(5, 2, 5), epochs=1000)
    >>> run.columns[:2], int(run["epoch"][-1])
    (('epoch', 'log_loss'), 1000)
    >>> bool(run.at("margin", 3.0) == run["margin"][-1])
    True
    """

    def __init__(
        self,
        columns: Mapping[str, ArrayLike],
        W: NDArray[Any],
        H: NDArray[Any],
        y: NDArray[Any],
        about: Mapping[str, Any],
        bias: NDArray[Any] | None = None,
        layers: Sequence[NDArray[Any]] = (),
    ) -> None:
        self._columns = {name: np.asarray(values) for name, values in columns.items()}
        for name, values in self._columns.items():
            if values.dtype.kind == "b":
                self._columns[name] = values.astype(np.int64)
            elif values.dtype.kind not in "fiu":
                raise TypeError(
                    f"`columns` must hold real numbers; got {describe(name)} of {values.dtype}."
                )
        lengths = {name: np.shape(values) for name, values in self._columns.items()}
        if len(set(lengths.values())) != 1 or len(next(iter(lengths.values()))) != 1:
            raise ValueError(f"`columns` must be some, of one length; got {lengths}.")
        self.W, self.H, self.y, self.bias = W, H, y, bias
        self.layers = tuple(layers)
        self.about = {"provenance": provenance(), **about}

    def keys(self) -> tuple[str, ...]:
        """Names of the columns, the time first, as a mapping has them."""
        return tuple(self._columns)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, the time first."""
        return tuple(self._columns)

    @property
    def time(self) -> str:
        """Name of the first column: "epoch" or "log10_time"."""
        return self.columns[0]

    @property
    def log10_time(self) -> NDArray[np.float64]:
        """log10 of the time of every snapshot (S,), -inf at the start."""
        if self.time == "log10_time":
            return np.asarray(self["log10_time"], dtype=np.float64)
        with np.errstate(divide="ignore"):
            return np.log10(np.asarray(self[self.time], dtype=np.float64))

    def __getitem__(self, name: str) -> NDArray[Any]:
        try:
            return self._columns[name]
        except (KeyError, TypeError):
            known = ", ".join(self.columns)
            raise KeyError(f"no column {describe(name)}; this run has {known}.") from None

    def to_pandas(self) -> Any:
        """The columns as a `pandas.DataFrame`, a row a snapshot; `attrs` holds `about`."""
        frame = frames_of("pandas").DataFrame({name: self[name] for name in self.columns})
        frame.attrs.update(self.about)
        return frame

    def to_polars(self) -> Any:
        """The columns as a `polars.DataFrame`, a row a snapshot."""
        return frames_of("polars").DataFrame({name: self[name] for name in self.columns})

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._columns

    def __len__(self) -> int:
        return len(self._columns[self.time])

    def __repr__(self) -> str:
        K, d = self.W.shape
        last = f"{self.time}={self[self.time][-1]:g}" if len(self) else "no snapshot"
        return f"Trajectory(K={K}, d={d}, N={len(self.H)}, {len(self)} snapshots to {last})"

    def _repr_html_(self) -> str:
        """The first and last value of every column: the table for a notebook."""
        ends = (0, -1) if len(self) else ()
        rows = [[name, *(f"{self[name][i]:.6g}" for i in ends)] for name in self.columns]
        return html_table(repr(self), ["column", "first", "last"][: 1 + len(ends)], rows)

    def at(self, name: str, log10_time: ArrayLike) -> NDArray[Any]:
        """The column `name` at the last snapshots not after the given times, or at the first."""
        if not len(self):
            raise ValueError("the run has no snapshot.")
        times = as_numbers("log10_time", log10_time)
        index = np.searchsorted(self.log10_time, times + 1e-12, side="right") - 1
        return self[name][np.maximum(index, 0)]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write everything to one `.npz` (no pickle), atomically."""
        check_name(path, ".npz", "For a table there is `to_csv`.")
        arrays = {_COLUMN + name: values for name, values in self._columns.items()}
        about = np.array(json.dumps(self.about))
        arrays |= {"W": self.W, "H": self.H, "y": self.y, "about": about}
        arrays |= {f"{_LAYER}{i}": x for i, x in enumerate(self.layers)}
        try:
            return write_npz(path, arrays if self.bias is None else {**arrays, "bias": self.bias})
        except OSError as error:
            # So that the caller can save the run elsewhere.
            error.run = self  # type: ignore[attr-defined]
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trajectory:
        """Read what `save` wrote.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        IsADirectoryError
            It is a folder.
        ValueError
            The file is damaged or is not a trajectory.
        """
        arrays = read_npz(path, "the trajectory")
        try:
            columns = {
                name.removeprefix(_COLUMN): values
                for name, values in arrays.items()
                if name.startswith(_COLUMN)
            }
            about = json.loads(str(arrays["about"]))
            bias = arrays.get("bias")
            layers = layers_of(arrays)
            return cls.of_file(columns, arrays["W"], arrays["H"], arrays["y"], about, bias, layers)
        except FOREIGN:
            raise ValueError(
                f"{str(path)!r} is not a trajectory that `Trajectory.save` wrote."
            ) from None

    @classmethod
    def of_file(
        cls,
        columns: Mapping[str, NDArray[Any]],
        W: NDArray[Any],
        H: NDArray[Any],
        y: NDArray[Any],
        about: Any,
        bias: NDArray[Any] | None,
        layers: Sequence[NDArray[Any]] = (),
    ) -> Trajectory:
        """A trajectory of what a file held; ValueError where that does not fit together."""
        fits = (
            isinstance(about, dict)
            and (W.ndim, H.ndim, y.ndim) == (2, 2, 1)
            and (W.shape[1], len(y)) == H.shape[::-1]
            and (bias is None or bias.shape == W.shape[:1])
            and all(values.ndim == 1 and values.dtype.kind in "fiu" for values in columns.values())
        )
        if not columns or not fits:
            raise ValueError("not a trajectory")
        # A file without provenance must not get that of this process.
        return cls(columns, W, H, y, {"provenance": {}, **about}, bias, layers)

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write the columns as CSV with every digit, atomically."""
        check_name(path, ".csv", "Arrays are written by `save`.")
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(self.columns)
        writer.writerows(zip(*(c.tolist() for c in self._columns.values()), strict=True))
        return atomic_write(path, lambda file: file.write(text.getvalue().encode()))


def layers_of(arrays: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """The layers that a file holds, in their order."""
    return [arrays[f"{_LAYER}{i}"] for i in range(sum(name.startswith(_LAYER) for name in arrays))]
