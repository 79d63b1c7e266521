"""Features that a file is mapped to, read piece by piece from the file itself."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class MappedFile:
    """Where the rows of a memory map stand in its file.

    A map whose file has become shorter ends the process with SIGBUS when it is touched; a read
    that comes back short is an error in a sentence.
    """

    def __init__(self, H: NDArray[Any], base: np.memmap[Any, Any]) -> None:
        self.path = base.filename
        self.in_order = H.flags.c_contiguous and self.path is not None
        self.offset = base.offset + _address(H) - _address(base)
        self.row = H.strides[0]

    def read(self, first: int, piece: NDArray[Any]) -> NDArray[Any]:
        """The rows `piece` of the map, which begin with row `first`, in memory of their own."""
        if not self.in_order:
            # Rows that do not stand in the file one after the other can only be mapped.
            return np.array(piece)
        out = np.empty(piece.shape, piece.dtype)
        with open(str(self.path), "rb", buffering=0) as file:
            file.seek(self.offset + first * self.row)
            into, got = memoryview(out.reshape(-1).view(np.uint8).data), 0
            while got < len(into):
                count = file.readinto(into[got:])
                if not count:
                    raise ValueError(
                        f"the file {str(self.path)!r} ended before its last sample: it was cut "
                        "while it was read. Write it again."
                    )
                got += count
        return out


def mapped_file(H: Any) -> MappedFile | None:
    """The file that `H` is mapped to, if there is one."""
    base = H
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap) and not isinstance(base.base, np.memmap):
            return MappedFile(H, base)
        base = base.base
    return None


def _address(array: NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
