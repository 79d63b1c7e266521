"""The store of features until they are measured: in memory, on their device, or in a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

# Rows that go to the accumulators at once: large enough to be efficient, small beside the data.
ROWS = 16_384
# A batch may take this share of the free memory; the network needs some too.
SHARE = 0.8
_PLACES = ("memory", "device", "nothing")


def check_keep(keep: Any) -> None:
    """`keep` must be a word or a path; a name with neither folder nor ending is a misspelt word."""
    rule = "`keep` must be 'memory', 'device', 'nothing' or a path"
    if not isinstance(keep, (str, os.PathLike)):
        # `open` takes a number for the descriptor of an open file.
        raise TypeError(f"{rule}; got {keep!r}.")
    bare = isinstance(keep, str) and os.sep not in keep and not Path(keep).suffix
    if bare and keep not in _PLACES:
        path = os.path.join(".", keep or "features")
        raise ValueError(f"{rule}; got {keep!r}. If that is a file, write {path!r}.")


class FeatureStore:
    """Rows (n, d) in the order in which they came, all of one width and dtype."""

    def __init__(self, keep: str | os.PathLike[str]) -> None:
        self.keep = keep
        self.dim: int | None = None
        self.dtype: torch.dtype | None = None
        self.n_rows = 0
        self._batches: list[Tensor] = []
        self._file: BinaryIO | None = None
        if keep not in ("memory", "device"):
            self._file = open(keep, "wb")  # noqa: SIM115

    def add(self, h: Tensor) -> None:
        """Copy rows; raises for another width or dtype, or without memory."""
        if self.dim is None:
            self.dim, self.dtype = h.shape[1], h.dtype
        elif (h.shape[1], h.dtype) != (self.dim, self.dtype):
            raise ValueError(
                f"every batch must bring {self.dim} features in {self.dtype}; got "
                f"{h.shape[1]} in {h.dtype}."
            )
        if self._file is not None:
            self._file.write(np.ascontiguousarray(_as_stored(h.cpu())).data)
        else:
            device = h.device if self.keep == "device" else torch.device("cpu")
            _check_room(h.nbytes, device)
            self._batches.append(h.to(device, copy=True))
        self.n_rows += len(h)

    def close(self) -> None:
        """Close the file, if there is one; the features remain."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def features(self) -> Tensor:
        """All rows (N, d); mapped from the file where there is one."""
        if not self.n_rows or self.dtype is None or self.dim is None:
            raise ValueError(
                "nothing entered the layer. Run the model inside the `with` block; of a compiled "
                "model, run the one that was given to `torch.compile`."
            )
        if self.keep in ("memory", "device"):
            if len(self._batches) > 1:
                self._batches = [torch.cat(self._batches)]
            return self._batches[0]
        if self._file is not None:
            self._file.flush()
        stored: Any = {torch.float64: "float64", torch.float32: "float32"}.get(self.dtype, "int16")
        mapped = np.memmap(self.keep, stored, "r+", shape=(self.n_rows, self.dim))
        rows: Tensor = torch.from_numpy(mapped)
        return rows.view(self.dtype) if stored == "int16" else rows

    def parts(self, n_rows: int) -> Iterator[Tensor]:
        """The first rows, some thousands at a time; small batches are put together."""
        if len(self._batches) <= 1:
            H = self.features()
            yield from (H[lo : min(lo + ROWS, n_rows)] for lo in range(0, n_rows, ROWS))
            return
        held: list[Tensor] = []
        size, left = 0, n_rows
        for batch in self._batches:
            held.append(batch[:left])
            size, left = size + len(held[-1]), left - len(held[-1])
            if size >= ROWS:
                yield torch.cat(held)
                held, size = [], 0
        if size:
            yield torch.cat(held)


def _as_stored(h: Tensor) -> np.ndarray[Any, Any]:
    # NumPy has no bfloat16: the 16 bits are stored as an integer.
    stored: np.ndarray[Any, Any] = (h.view(torch.int16) if h.element_size() == 2 else h).numpy()
    return stored


def _check_room(n_bytes: int, device: torch.device) -> None:
    """A copy must leave some of the memory free."""
    free = _free(device)
    if free is not None and n_bytes > SHARE * free:
        raise MemoryError(
            f"a batch of {n_bytes / 2**20:.0f} MiB of features no longer fits beside the "
            f"{free / 2**20:.0f} MiB that are free. Pass `keep='nothing'` to measure while the "
            'loop runs, `keep="features.bin"` for a file, or `features="mean"`.'
        )


def _free(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
