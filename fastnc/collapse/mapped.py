"""Features that a file is mapped to, read piece by piece from the file itself.

A map whose file has become shorter ends the process with SIGBUS when it is touched; a read that
returns too little raises an error.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastnc._core.arrays import is_torch

# The attribute that `mark` sets on a tensor.
_PLACE = "_fastnc_place"


class MappedFile(NamedTuple):
    """The place in a file of the entry of row i and column j: `offset + i * row + j * column`."""

    path: str
    offset: int
    row: int
    column: int

    def read(self, first: int, piece: Any) -> Any:
        """The rows `piece` of the map, which begin with row `first`, in memory of their own."""
        with open(self.path, "rb", buffering=0) as file:
            start = self.offset + first * self.row
            if self.row >= self.column:
                out = self._bytes(file, start, piece.nbytes)
                if is_torch(piece):
                    import torch

                    return torch.from_numpy(out).view(piece.dtype).reshape(piece.shape)
                return out.view(piece.dtype).reshape(piece.shape)
            rows = np.empty(piece.shape, piece.dtype)
            for j in range(piece.shape[1]):
                column = self._bytes(file, start + j * self.column, len(piece) * self.row)
                rows[:, j] = column.view(piece.dtype)
            return rows

    def _bytes(self, file: BinaryIO, start: int, size: int) -> NDArray[np.uint8]:
        out = np.empty(size, np.uint8)
        file.seek(start)
        got = 0
        while got < size:
            count = file.readinto(out.data[got:])  # type: ignore[attr-defined]
            if not count:
                raise ValueError(
                    f"the file {self.path!r} ended before its last sample: it was cut while it "
                    "was read. Write it again."
                )
            got += count
        return out


def mapped_file(H: Any) -> MappedFile | None:
    """The file that `H` is mapped to, if its rows or columns are contiguous there; else None."""
    if is_torch(H):
        return _marked(H)
    base = H
    while isinstance(base, np.ndarray):
        # Changes to a map of mode "c" are in memory alone.
        if isinstance(base, np.memmap) and not isinstance(base.base, np.memmap):
            if base.filename is None or base.mode == "c" or H.ndim < 2:
                return None
            return _place(str(base.filename), base.offset + _address(H) - _address(base), H)
        base = base.base
    return None


def _place(path: str, offset: int, H: NDArray[Any]) -> MappedFile | None:
    if H.flags.c_contiguous:
        return MappedFile(path, offset, H.strides[0], H.itemsize)
    if H.ndim == 2 and H.flags.f_contiguous:
        return MappedFile(path, offset, H.itemsize, H.strides[1])
    return None


def mark(path: Path, tensor: Any) -> Any:
    """`tensor`, which a library has mapped to `path`: from now on it is read as a file.

    Only on Linux, which lists the maps of a process; elsewhere it stays a map, as do the numbers
    of a tensor that negates what it reads.
    """
    as_read = tensor.is_contiguous() and not tensor.is_neg()
    if sys.platform == "linux" and as_read and tensor.ndim > 1:
        for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
            span, _, offset, _, inode, *_ = line.split(maxsplit=5)
            low, high = (int(end, 16) for end in span.split("-"))
            if inode != "0" and low <= tensor.data_ptr() < high:
                start = int(offset, 16) + tensor.data_ptr() - low
                row = tensor.stride(0) * tensor.element_size()
                place = MappedFile(str(path), start, row, tensor.element_size())
                setattr(tensor, _PLACE, (place, tensor._version))
    return tensor


def marked_alike(rows: Any, H: Any) -> Any:
    """`rows`, which is the tensor `H` reshaped to (N, d), marked as `H` is."""
    place = _marked(H) if is_torch(H) else None
    if place is not None and rows.data_ptr() == H.data_ptr():
        row = rows.stride(0) * rows.element_size()
        setattr(rows, _PLACE, (place._replace(row=row), rows._version))
    return rows


def _marked(tensor: Any) -> MappedFile | None:
    """Where `mark` found the tensor, which has not been written to since: the file stays as is."""
    place, version = getattr(tensor, _PLACE, (None, None))
    return place if version == getattr(tensor, "_version", None) else None


def _address(array: NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
