"""A training's checkpoint, and torch's settings for a reproducible run."""

from __future__ import annotations

import hashlib
import os
import pickle
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from fastnc._core.files import FOREIGN, atomic_write
from fastnc.dynamics.checkpoint import apart

CHECKPOINT = "checkpoint.pt"
# After torch's archive, whose readers ignore it: the SHA-256 of the archive.
_SEAL = b"fastnc sha256 "
_PIECE = 1 << 24
_FILLING: Any = torch.utils.deterministic


@dataclass(frozen=True)
class State:
    """The state between two batches; `identity` holds JSON values that a resumed run must share.

    It has no generator's state: the order of an epoch and the dropout of a batch are drawn from the
    seed and their place in the run.
    """

    identity: dict[str, Any]
    epoch: int
    step: int
    loss_sum: torch.Tensor
    net: dict[str, Any]
    optimizer: dict[str, Any]
    schedule: dict[str, Any] | None
    rows: list[dict[str, float]]

    def save(self, path: Path) -> None:
        """Write one file atomically: a kill leaves the previous file or this one, complete.

        Raises
        ------
        OSError
            The file cannot be written, as on a full disk; the previous checkpoint is complete.
        """
        try:
            atomic_write(path, self._write)
        except (OSError, RuntimeError) as error:
            # torch's writer turns a full disk into a RuntimeError of its own.
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            kept = "the one before is whole" if path.exists() else "there is none before it"
            raise OSError(
                f"the checkpoint {str(path)!r} could not be written ({reason}); {kept}. Make room "
                "and resume."
            ) from None

    def _write(self, file: BinaryIO) -> None:
        summed = _Summed(file)
        torch.save(vars(self), summed)  # type: ignore[arg-type]
        file.write(_seal(summed.digest))

    @classmethod
    def load(cls, path: Path, identity: dict[str, Any], device: torch.device) -> State:
        """Read a checkpoint of the run with this `identity`.

        Raises
        ------
        ValueError
            The file is damaged, or of another run; the message says which value differs.
        """
        try:
            with open(path, "rb") as file:
                _check_sums(file)
                found = cls(**torch.load(file, map_location=device, weights_only=True))
            if not isinstance(found.identity, dict):
                raise TypeError("it holds no training")
        except (
            *FOREIGN, RuntimeError, EOFError, OSError, AttributeError, AssertionError,
            NotImplementedError, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error,
        ) as error:  # fmt: skip
            reason = (str(error) or type(error).__name__).splitlines()[0]
            if isinstance(error, pickle.UnpicklingError):
                # Torch's own message explains how to unpickle such a file.
                reason = "it holds more than tensors"
            raise ValueError(
                f"the checkpoint {str(path)!r} is not readable ({reason}); it "
                "is damaged or of another kind. Nothing was changed."
            ) from None
        # Files of before had no number of classes.
        theirs = {"n_classes": identity.get("n_classes"), **found.identity}
        for name in identity:
            if theirs.get(name) != identity[name]:
                was, now = apart(theirs.get(name), identity[name])
                way_out = "Give the same options, or another `--out`, or do not resume."
                if name == "data":
                    way_out = (
                        "The images or labels have changed since: restore them, or start anew."
                    )
                raise ValueError(
                    f"the checkpoint {str(path)!r} is of another run: its `{name}` is {was}, this "
                    f"run's is {now}. {way_out}"
                )
        return found


class _Summed:
    """A file whose SHA-256 is computed while it is written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _seal(digest: Any) -> bytes:
    return _SEAL + str(digest.hexdigest()).encode()


def seal_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 at the end of a checkpoint, which identifies it in a run that began from it."""
    with open(path, "rb") as file:
        size = 2 * hashlib.sha256().digest_size
        file.seek(max(os.fstat(file.fileno()).st_size - size, 0))
        return file.read().decode(errors="replace")


def _check_sums(file: BinaryIO) -> None:
    """Raise where a checkpoint's SHA-256, or in an older file a check sum of the archive, is wrong.

    Torch's reader ignores the archive's check sums, which do not cover its directory either: there
    one wrong bit can make an entry empty.
    """
    size = os.fstat(file.fileno()).st_size
    end = size - len(_SEAL) - 2 * hashlib.sha256().digest_size
    file.seek(max(end, 0))
    seal = file.read()
    file.seek(0)
    if seal.startswith(_SEAL):
        digest = hashlib.sha256()
        for start in range(0, end, _PIECE):
            digest.update(file.read(min(_PIECE, end - start)))
        if seal != _seal(digest):
            raise ValueError("its sum is wrong")
    else:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the sum of its part {damaged!r} is wrong")
    file.seek(0)


@contextmanager
def reproducible(
    seed: int, device: torch.device, precision: str, deterministic: bool
) -> Iterator[None]:
    """Seed torch and set its precision, algorithms and modes; all are restored at the end."""
    kind = torch.get_default_dtype()
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        _FILLING.fill_uninitialized_memory,
        torch.backends.cudnn.benchmark,
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
    )
    cuda = device.type == "cuda"
    if deterministic and cuda:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with (
        torch.random.fork_rng(devices=[device] if cuda else []),
        # A caller's modes: of `no_grad`, of tensors that are made elsewhere or in double precision.
        torch.inference_mode(False),
        torch.enable_grad(),
        nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu"),
    ):
        try:
            torch.set_default_dtype(torch.float32)
            # On CUDA torch calls poolings nondeterministic, though with windows that do not overlap
            # they are deterministic: it may warn, and must not raise.
            torch.use_deterministic_algorithms(deterministic, warn_only=cuda)
            _FILLING.fill_uninitialized_memory = False
            torch.backends.cudnn.benchmark = cuda and not deterministic
            torch.set_float32_matmul_precision("highest" if precision == "float32" else "high")
            torch.backends.cudnn.allow_tf32 = precision != "float32"
            torch.manual_seed(seed)
            yield
        finally:
            torch.set_default_dtype(kind)
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            _FILLING.fill_uninitialized_memory = before[2]
            torch.backends.cudnn.benchmark = before[3]
            torch.set_float32_matmul_precision(before[4])
            torch.backends.cudnn.allow_tf32 = before[5]
