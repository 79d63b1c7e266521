"""A checkpoint: a stepper's state, the rows so far, and the problem they belong to, in one file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc._core.files import FOREIGN, check_replaceable, describe, read_npz, write_npz
from fastnc._core.switches import check_flag

_STATE, _COLUMN = "state/", "column/"
# Letters of two long texts that are shown before they differ.
_BEFORE = 25


@dataclass(frozen=True)
class Checkpoint:
    """A run at one time; `problem` holds JSON values that a resumed run must share."""

    problem: dict[str, Any]
    state: dict[str, NDArray[Any]]
    columns: dict[str, NDArray[Any]]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one `.npz` atomically: a kill leaves the previous file or this one, complete."""
        arrays = {_STATE + name: values for name, values in self.state.items()}
        arrays |= {_COLUMN + name: values for name, values in self.columns.items()}
        arrays["problem"] = np.array(json.dumps(self.problem))
        return write_npz(path, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str], problem: dict[str, Any]) -> Checkpoint:
        """Read a checkpoint of `problem`.

        Raises
        ------
        ValueError
            The file is damaged, or belongs to another problem; the message says which value
            differs. The file is left as it was.
        """
        arrays = read_npz(path, "the checkpoint")
        if "sweep" in arrays:
            raise ValueError(
                f"the checkpoint {str(path)!r} is that of a sweep. Go on with `fastnc.sweep`, or "
                "name another file."
            )
        try:
            found = json.loads(str(arrays["problem"]))
            state = _under(_STATE, arrays)
            columns = _under(_COLUMN, arrays)
            if not (isinstance(found, dict) and state and _is_table(columns)):
                raise ValueError
        except FOREIGN:
            raise foreign(path) from None
        check_same_problem(path, found, problem)
        return cls(found, state, columns)

    def rows(
        self, path: str | os.PathLike[str], time: str, due: Container[float]
    ) -> list[dict[str, Any]]:
        """The snapshots whose times are in `due`, one dict a row."""
        if time not in self.columns:
            raise foreign(path)
        lists = [values.tolist() for values in self.columns.values()]
        rows = [dict(zip(self.columns, values, strict=True)) for values in zip(*lists, strict=True)]
        return [row for row in rows if row[time] in due]


def checkpoint_path(path: str | os.PathLike[str] | None, resume: bool) -> Path | None:
    """The path of a checkpoint; raises before the run if no file can be written there."""
    check_flag("resume", resume)
    if path is None:
        if resume:
            raise ValueError("`resume` must have a file to go on from; give `checkpoint`.")
        return None
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"`checkpoint` must be a path; got {type(path).__name__}.")
    found = Path(path)
    if found.is_dir() or not found.parent.is_dir():
        raise ValueError(
            f"`checkpoint` must be a file in a folder that exists; got {str(found)!r}. Make the "
            "folder first, or name a file in it."
        )
    check_replaceable("checkpoint", found)
    return found


def check_state(state: Mapping[str, NDArray[Any]], own: Mapping[str, NDArray[Any]]) -> None:
    """`state` must have the names, shapes and dtypes of `own`, and no negative epoch.

    Kernels check nothing: arrays that do not fit must not reach them.
    """
    theirs, ours = ({k: (v.shape, v.dtype) for k, v in s.items()} for s in (state, own))
    if theirs != ours or ("epoch" in state and state["epoch"] < 0):
        raise ValueError("a state of another problem")


def foreign(path: str | os.PathLike[str]) -> ValueError:
    """The error for a readable file that is no checkpoint of such a run."""
    return ValueError(
        f"the checkpoint {str(path)!r} is not one that fastnc wrote. Nothing was changed."
    )


def check_same_problem(
    path: str | os.PathLike[str], found: dict[str, Any], problem: dict[str, Any]
) -> None:
    """A checkpoint's problem must be the one at hand; the message says which value differs."""
    # A difference of kind comes first, then one of the rule's name: they explain others.
    rules = {str(of.get("rule")).partition("(")[0] for of in (problem, found)}
    order = {"kind": 0, "rule": 1 if len(rules) > 1 else 2}
    for name in sorted(problem.keys() | found.keys(), key=lambda name: (order.get(name, 2), name)):
        if problem.get(name) != found.get(name):
            theirs, ours = apart(found.get(name), problem.get(name))
            raise ValueError(
                f"the checkpoint {str(path)!r} is of another problem: its `{name}` is "
                f"{theirs}, this run's is {ours}{_marked(found.get(name), problem.get(name))}. "
                "Give the same options, or another folder, or do not resume."
            )


def _marked(theirs: Any, ours: Any) -> str:
    """What it means that nothing but the marks of two texts differ."""
    texts = {re.sub(r"#[0-9a-f]{8}", "", str(value)) for value in (theirs, ours)}
    return ": the code, or what it reads, is another one" if len(texts) == 1 else ""


def apart(theirs: Any, ours: Any) -> tuple[str, str]:
    """Two values in short; of long ones what tells them apart."""
    told = describe(theirs), describe(ours)
    if told[0] != told[1]:
        return told
    if not (isinstance(theirs, list) and isinstance(ours, list)):
        texts = str(theirs), str(ours)
        apart = (i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b)
        first = max(next(apart, min(map(len, texts))) - _BEFORE, 0)
        return describe(f"...{texts[0][first:]}"), describe(f"...{texts[1][first:]}")
    if len(theirs) != len(ours):
        return f"a list of {len(theirs)}", f"a list of {len(ours)}"
    i = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
    return f"{describe(theirs[i])} at index {i}", describe(ours[i])


def _is_table(columns: dict[str, NDArray[Any]]) -> bool:
    """Whether these are columns of numbers, of one length."""
    numbers = all(values.ndim == 1 and values.dtype.kind in "fiu" for values in columns.values())
    return numbers and len({len(values) for values in columns.values()}) == 1


def _under(prefix: str, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
