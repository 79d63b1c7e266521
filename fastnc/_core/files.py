"""Files that are either the old ones or the new ones, whole, whenever the power fails."""

from __future__ import annotations

import os
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

# What looking for one's own arrays in a file of another kind may raise.
FOREIGN = (KeyError, IndexError, ValueError, TypeError, OverflowError, RecursionError)


def atomic_write(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> Path:
    """Call `write` on a file beside `path`, flush it to the disk, then rename it to `path`.

    Whatever happens before the rename, a full disk or a kill, leaves `path` as it was.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return path


def write_npz(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> Path:
    """Write arrays as an uncompressed `.npz`, atomically."""
    return atomic_write(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


def read_npz(path: str | os.PathLike[str], what: str) -> dict[str, np.ndarray]:
    """Every array of an `.npz`, nothing unpickled; `what` names the file in the error.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is not a whole `.npz`, or holds pickled objects.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{what} {str(path)!r} does not exist.")
    try:
        with open(path, "rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("not an archive of arrays")
            return {name: archive[name] for name in archive.files}
    except (
        # A bit that says "encrypted", or a packing that is not known, is a RuntimeError.
        *FOREIGN, EOFError, OSError, MemoryError, SyntaxError, RuntimeError,
        tokenize.TokenError, zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error,
    ) as error:  # fmt: skip
        raise ValueError(
            f"{what} {str(path)!r} is not readable ({error or type(error).__name__}); "
            "it is damaged or of another kind. Nothing was changed."
        ) from None


def scalar(values: np.ndarray) -> Any:
    """The value of an array without dimensions, of which some NumPys make one of any array."""
    if values.ndim:
        raise ValueError("an array stands where a number should")
    return values.item()


def out_dir(path: str | os.PathLike[str]) -> Path:
    """The folder `path`, made if need be, tried by writing into it.

    Raises
    ------
    OSError
        It cannot be made or written; the message is one sentence.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".fastnc-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"`--out` must be a writable folder; {str(path)!r}: {reason}.") from None
    return path


def describe(value: Any) -> str:
    """A short form of a value for a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
