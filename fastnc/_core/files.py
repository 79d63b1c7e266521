"""Files that are replaced as a whole: a power failure leaves the old one or the new one."""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_NAMES = "__names__"
# Endings that promise a format, of which a file of another would be a lie.
_FORMATS = (
    ".npz", ".csv", ".tex", ".tsv", ".txt", ".json", ".npy", ".pt", ".pth", ".pkl", ".h5", ".hdf5",
    ".mat", ".parquet", ".xlsx", ".safetensors", ".png", ".pdf",
)  # fmt: skip
# What reading the expected arrays from a file of another kind may raise.
FOREIGN = (KeyError, IndexError, ValueError, TypeError, OverflowError, RecursionError)


def atomic_write(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> Path:
    """Call `write` on a file beside `path`, flush it to the disk, then rename it to `path`.

    Whatever happens before the rename, a full disk or a kill, leaves `path` as it was. The file
    beside it belongs to this call alone: two processes that write `path` leave one whole file. A
    link stays one, and the file that it names is replaced.

    Raises
    ------
    OSError
        It cannot be written; the message names the file and the reason.
    ValueError
        It is a pipe or a device, which the rename would replace by a file.
    """
    path = given = Path(path)
    part = None
    try:
        if path.is_symlink():
            path = Path(os.path.realpath(path))
        check_replaceable("path", path)
        _remove_abandoned(path)
        part, file = _part_of(path)
        with file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            # While the lock is held, so that no process removes the file as abandoned.
            os.replace(part, path)
        _sync_folder(path.parent)
    except BaseException as error:
        if part is not None:
            part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.strerror:
            said = type(error)(f"{str(given)!r} cannot be written: {error.strerror}.")
            said.strerror = error.strerror
            raise said from None
        raise
    return given


def _part_of(path: Path) -> tuple[Path, BinaryIO]:
    """A new, locked file beside `path`, neither a link nor another writer's."""
    while True:
        part = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
        file = os.fdopen(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666), "wb")
        locked(file.fileno())
        if os.fstat(file.fileno()).st_nlink:
            return part, file
        # Between its creation and its lock another process removed it as abandoned.
        file.close()


def _remove_abandoned(path: Path) -> None:
    """Remove what killed writers of `path` left: regular files of our names without a lock."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{12}}\.part")
    for part in path.parent.iterdir():
        if ours.fullmatch(part.name) and part.is_file() and not part.is_symlink():
            with suppress(OSError), open(part, "rb") as file:
                if locked(file.fileno()):
                    part.unlink()


def locked(handle: int) -> bool:
    """Lock an open file or folder until it is closed; False if another process has locked it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # Some network file systems have no locks.
        return True
    return True


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_replaceable(name: str, path: Path) -> None:
    """`path` must be no pipe and no device: a file would take its place."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError(
            f"`{name}` must be a file; {str(path)!r} is a pipe or a device, whose place it would "
            "take. Name a file, and copy that."
        )


def check_path(name: str, path: Any) -> None:
    """`path` must be that of a file or a folder."""
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise TypeError(f"`{name}` must be a path; got {type(path).__name__}.")


def check_name(path: str | os.PathLike[str], ending: str, elsewhere: str = "") -> None:
    """`path`, where a user's file of format `ending` is to be written, must not end as another's.

    `elsewhere` is a sentence on what writes the other one.
    """
    check_path("path", path)
    if not Path(path).name:
        raise ValueError(f"`path` must name a file; got {str(path)!r}.")
    suffix = Path(path).suffix
    # A table under the name of a text is one.
    text = "" if ending == ".npz" else ".txt"
    if suffix.lower() in _FORMATS and suffix.lower() not in (ending, text):
        raise ValueError(
            f"`path` must not end in {suffix!r}, since {ending!r} is written; got {str(path)!r}."
            + (f" {elsewhere}" if elsewhere else "")
        )


def write_npz(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> Path:
    """Write arrays as an uncompressed `.npz`, atomically.

    The names are written too: a zip file has a checksum for each array, but none for their list.
    """
    named = {**arrays, _NAMES: np.array(json.dumps(list(arrays)))}
    return atomic_write(path, lambda file: np.savez(file, **named))  # type: ignore[arg-type]


def check_file(what: str, path: Path) -> None:
    """Raise unless there is a file at `path`; `what` names it in the error."""
    if path.is_dir():
        raise IsADirectoryError(f"{what} {str(path)!r} is a folder; name the file in it.")
    if not path.exists():
        raise FileNotFoundError(f"{what} {str(path)!r} does not exist.")
    if not path.is_file():
        raise ValueError(f"{what} {str(path)!r} is a pipe or a device. Copy its content to a file.")


def read_npz(path: str | os.PathLike[str], what: str) -> dict[str, np.ndarray]:
    """Every array of an `.npz`, nothing unpickled; `what` names the file in the error.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    IsADirectoryError
        It is a folder.
    ValueError
        The file is not a whole `.npz`, or holds pickled objects.
    """
    check_path("path", path)
    path = Path(path)
    check_file(what, path)
    try:
        with open(path, "rb") as file:
            if not file.peek(1).startswith((b"PK", b"\x93NUMPY")):
                # NumPy takes it for a pickle, and tells how to load one.
                raise ValueError("not an archive of arrays")
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("not an archive of arrays")
            arrays = {name: archive[name] for name in archive.files}
        # NumPy returns a member that does not begin as an array as bytes.
        if not all(isinstance(values, np.ndarray) for values in arrays.values()):
            raise ValueError("not every member is an array")
        names = arrays.pop(_NAMES, None)
        if names is not None and json.loads(str(names)) != list(arrays):
            raise ValueError("not the arrays that it was written with")
        return arrays
    except (
        # A flag "encrypted" or an unknown compression raises a RuntimeError.
        *FOREIGN, EOFError, OSError, MemoryError, SyntaxError, RuntimeError,
        tokenize.TokenError, zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error,
    ) as error:  # fmt: skip
        raise ValueError(
            f"{what} {str(path)!r} is not readable ({error or type(error).__name__}); "
            "it is damaged or of another kind. Nothing was changed."
        ) from None


def scalar(values: np.ndarray) -> Any:
    """The value of an array without dimensions; `item` alone would take any array of one entry."""
    if values.ndim:
        raise ValueError("an array stands where a number should")
    return values.item()


def out_dir(path: str | os.PathLike[str]) -> Path:
    """The folder `path`, made if need be, and checked by writing into it.

    Raises
    ------
    OSError
        It cannot be made or written; the message is one sentence.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"`--out` must be a writable folder; {str(path)!r}: {reason}.") from None
    return path


def describe(value: Any) -> str:
    """A short form of a value for a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
