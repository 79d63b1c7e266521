"""Features, labels and a classifier from files: mapped where the format allows, never unpickled."""

from __future__ import annotations

import math
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastnc._core.arrays import as_numpy

KEYS = ("features", "labels", "weight", "bias")


class FeaturesFile(NamedTuple):
    """What a file holds: H (N, d), y (N,), and where there is a classifier W (K, d), bias (K,)."""

    features: Any
    labels: NDArray[Any]
    weight: Any | None
    bias: Any | None


def read_features(
    path: str | os.PathLike[str],
    labels: str | os.PathLike[str] | None = None,
    weight: str | os.PathLike[str] | None = None,
    bias: str | os.PathLike[str] | None = None,
) -> FeaturesFile:
    """Features, labels and, if there is one, a classifier: from one file, or from a set of `.npy`.

    Parameters
    ----------
    path : path
        `.npz`, `.pt` or `.safetensors` with the keys `features` (N, d), `labels` (N,), `weight`
        (K, d), `bias` (K,), of which the last two may be missing. Or a `.npy` of features: then
        `labels.npy`, `weight.npy` and `bias.npy` beside `features.npy` are read, and for a name
        such as `train-features.npy`, `train-labels.npy` and so on.
    labels, weight, bias : path, optional
        `.npy` files that take the place of what `path` holds or has beside it.

    Raises
    ------
    FileNotFoundError, ValueError, ImportError
        No such file; an ending that is not known; damaged, pickled or of another kind; a key
        missing; `.pt` without torch, `.safetensors` without safetensors. One sentence each.

    Cost
    ----
    Features of `.npy`, uncompressed `.npz`, `.pt` and (with torch) `.safetensors` are mapped:
    nothing of them is read here. A compressed `.npz` is read into memory.

    Examples
    --------
    >>> import numpy as np, fastnc
    >>> from fastnc.collapse.features_file import read_features
    >>> np.savez("two.npz", features=np.array([[1.0], [3.0], [7.0]]), labels=np.array([0, 0, 1]))
    >>> held = read_features("two.npz")
    >>> round(fastnc.collapse_metrics(held.features, held.labels).nc1_quotient, 4)
    0.1067
    """
    path = Path(path)
    named = {"labels": labels, "weight": weight, "bias": bias}
    readers: dict[str, Callable[[Path], dict[str, Any]]] = {
        ".npy": _npy_set,
        ".npz": _npz,
        ".pt": _pt,
        ".pth": _pt,
        ".safetensors": _safetensors,
    }
    reader = readers.get(path.suffix)
    if reader is None:
        raise ValueError(
            f"`FILE` must end in {', '.join(readers)}; got {str(path)!r}. Save the arrays "
            f"{', '.join(KEYS)} with `numpy.savez`."
        )
    held = _whole(reader, path)
    for key, place in named.items():
        if place is not None:
            held[key] = _whole(_npy, Path(place))
    missing = [key for key in KEYS[:2] if key not in held]
    if missing:
        raise ValueError(
            f"{str(path)!r} must hold `features` and `labels`; {' and '.join(missing)} missing, "
            f"got {', '.join(sorted(held)) or 'nothing'}. Name the arrays so, or pass `--labels`."
        )
    for key in KEYS:
        if key in held and not hasattr(held[key], "shape"):
            raise ValueError(
                f"`{key}` of {str(path)!r} must be an array; got {type(held[key]).__name__}."
            )
    return FeaturesFile(
        held["features"], as_numpy(held["labels"]), held.get("weight"), held.get("bias")
    )


def _whole(read: Callable[[Path], Any], path: Path) -> Any:
    """What `read` finds in `path`; any damage is one sentence."""
    if not path.is_file():
        raise FileNotFoundError(f"the file {str(path)!r} does not exist.")
    try:
        # A shape that overflows must be refused, not warned of as well.
        with np.errstate(over="ignore"):
            return read(path)
    except ImportError:
        raise
    except Exception as error:
        # Readers of foreign files raise whatever the damage leads them to.
        why = " ".join(str(error).split())[:120] or type(error).__name__
        raise ValueError(
            f"the file {str(path)!r} is not readable ({why}); it is damaged, pickled or of "
            "another kind."
        ) from None


def _npy(path: Path) -> NDArray[Any]:
    # `np.load` would try it as a zip as well, and leave that open.
    array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
    return array


def _npy_set(path: Path) -> dict[str, Any]:
    held: dict[str, Any] = {"features": _npy(path)}
    if "features" in path.stem:
        for key in KEYS[1:]:
            beside = path.with_name(path.name.replace("features", key))
            if beside.is_file():
                held[key] = _npy(beside)
    return held


def _npz(path: Path) -> dict[str, Any]:
    held: dict[str, Any] = {}
    with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as arrays:
        for key in arrays.files:
            if key in KEYS:
                held[key] = _mapped(path, archive, f"{key}.npy")
                if held[key] is None:
                    held[key] = arrays[key]
            else:
                held[key] = None
    return held


def _mapped(path: Path, archive: zipfile.ZipFile, name: str) -> NDArray[Any] | None:
    """A member of an archive as a memory map, where it lies there as it is."""
    try:
        member = archive.getinfo(name)
    except KeyError:
        return None
    if member.compress_type != zipfile.ZIP_STORED:
        return None
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            return None
        shape, fortran, dtype = read(file)
        header = file.tell()
    if dtype.hasobject or 0 in shape or not shape:
        return None
    n_bytes = dtype.itemsize * math.prod(shape)
    if min(shape) < 0 or header + n_bytes != member.file_size:
        raise ValueError(f"`{name}` is not of the size that its header tells")
    with open(path, "rb") as file:
        # The local header's name and extra field may be longer than the directory says.
        file.seek(member.header_offset + 26)
        lengths = np.frombuffer(file.read(4), "<u2").astype(int)
    start = member.header_offset + 30 + int(lengths.sum()) + header
    mapped: NDArray[Any] = np.memmap(
        path, dtype, mode="r", offset=start, shape=shape, order="F" if fortran else "C"
    )
    return mapped


def _pt(path: Path) -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        raise ImportError("a `.pt` file needs torch: pip install 'fastnc[torch]'.") from None
    try:
        with warnings.catch_warnings():
            # Of kinds of tensors that are refused below.
            warnings.simplefilter("ignore")
            held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        # Torch's own message says how to load such a file all the same.
        raise ValueError("it holds more than tensors, or is none of torch's") from None
    if not isinstance(held, dict):
        raise ValueError(f"it must hold a dict of tensors; got {type(held).__name__}")
    for key, value in held.items():
        if key in KEYS and isinstance(value, torch.Tensor):
            _check_plain(key, value)
    return {str(key): value for key, value in held.items()}


def _check_plain(key: str, tensor: Any) -> None:
    """Nested, sparse and meta tensors have no rows in memory."""
    kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
    if tensor.device.type != "cpu" or kind != "strided":
        kind = kind if tensor.device.type == "cpu" else tensor.device.type
        raise ValueError(f"`{key}` must be a dense tensor in memory; it is of kind {kind}")


def _safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors import safe_open
    except ImportError:
        raise ImportError(
            "a `.safetensors` file needs safetensors: pip install 'fastnc[train]'."
        ) from None
    with safe_open(path, framework=_framework()) as file:
        return {key: file.get_tensor(key) if key in KEYS else None for key in file.keys()}  # noqa: SIM118


def _framework() -> str:
    """Torch maps tensors of any precision; NumPy reads those that it knows."""
    import importlib.util

    return "pt" if importlib.util.find_spec("torch") else "np"
