"""The files of a sweep: one of its finished runs, and one for each unfinished run."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastnc._core.files import FOREIGN, read_npz, write_npz
from fastnc.dynamics.checkpoint import check_same_problem
from fastnc.dynamics.trajectories import Trajectories
from fastnc.dynamics.trajectory import Trajectory


@dataclass
class Store:
    """The finished runs, and the files of the others."""

    path: Path | None
    about: dict[str, Any]
    done: dict[int, Trajectory] = field(default_factory=dict)
    written: int = 0

    def part(self, i: int) -> Path | None:
        """The file of run i while it is unfinished."""
        # A name of our own: "run-0.npz" beside "run.npz" may be a user's.
        return self.path and self.path.with_name(f"{self.path.stem}-underway{i}{self.path.suffix}")

    def runs(self) -> Trajectories:
        """The finished runs, in the order of their numbers."""
        return Trajectories(self.done[i] for i in sorted(self.done))

    def clear(self) -> None:
        """Delete the files of unfinished runs that another sweep left here."""
        if self.path is not None:
            stem = re.escape(f"{self.path.stem}-underway")
            ours = re.compile(rf"{stem}\d+{re.escape(self.path.suffix)}")
            for part in list(self.path.parent.iterdir()):
                if ours.fullmatch(part.name):
                    part.unlink()

    def save(self) -> None:
        """Write the finished runs, and delete the files that they had before."""
        if self.path is None or (self.written == len(self.done) and self.path.exists()):
            return
        numbers = sorted(self.done)
        arrays = self.runs().arrays()
        sweep = np.array(json.dumps(self.about))
        write_npz(self.path, {**arrays, "numbers": np.array(numbers), "sweep": sweep})
        self.written = len(numbers)
        for i in numbers:
            part = self.part(i)
            if part is not None:
                part.unlink(missing_ok=True)

    def take_up(self) -> None:
        """Read the runs of the checkpoint, if there is one, which must be of this sweep."""
        if self.path is None or not self.path.exists():
            return
        arrays = read_npz(self.path, "the checkpoint")
        if "problem" in arrays:
            raise ValueError(
                f"the checkpoint {str(self.path)!r} is that of one run, not of a sweep. Go on with "
                "`fastnc.descend` or `fastnc.flow`, or name another file."
            )
        try:
            found, numbers = json.loads(str(arrays["sweep"])), arrays["numbers"].tolist()
            runs = Trajectories.from_arrays(arrays)
            if not isinstance(found, dict) or len(numbers) != len(runs):
                raise ValueError
        except FOREIGN:
            raise ValueError(
                f"the checkpoint {str(self.path)!r} is not one that `sweep` wrote. "
                "Nothing was changed."
            ) from None
        check_same_problem(self.path, found, self.about)
        self.done = dict(zip(numbers, runs, strict=True))
        self.written = len(numbers)
