"""Features, labels and a classifier from files: mapped where the format allows, never unpickled."""

from __future__ import annotations

import json as _json
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
from fastnc._core.files import check_file
from fastnc.collapse.label_column import label_column
from fastnc.collapse.mapped import mark

KEYS = ("features", "labels", "weight", "bias")
# Endings of files of one array, which options name.
_ONE_ARRAY = (".npy", ".pt", ".pth", ".csv", ".txt")
# Other common names of these arrays.
NAMES = {
    "features": ("feats", "feature", "embeddings", "embedding", "embeds", "H", "X", "x", "h"),
    "labels": ("label", "targets", "target", "y", "Y"),
    "weight": ("W", "fc.weight", "classifier.weight", "head.weight", "lm_head.weight"),
    "bias": ("b", "fc.bias", "classifier.bias", "head.bias", "lm_head.bias"),
}


class FeaturesFile(NamedTuple):
    """What a file holds: H (N, d), y (N,), and where there is a classifier W (K, d), bias (K,).

    `features` is a dictionary by name where the file has one array a layer.
    """

    features: Any
    labels: NDArray[Any]
    weight: Any | None
    bias: Any | None


def read_features(
    path: str | os.PathLike[str],
    labels: str | os.PathLike[str] | None = None,
    weight: str | os.PathLike[str] | None = None,
    bias: str | os.PathLike[str] | None = None,
    features_key: str | None = None,
    labels_key: str | None = None,
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
        Files that take the place of what `path` holds or has beside it: `.npy`, `.pt` of one
        tensor, and for labels `.csv` of one column or of a column named like labels.
    features_key, labels_key : str, optional
        The names of the arrays in `path`. By default other common names are found too:
        `embeddings`, `X`, `targets`, `y`, `fc.weight` and so on (`NAMES`).

    Returns
    -------
    FeaturesFile
        If no array has a name of features, all arrays with a row for each label, by their names:
        the layers of a network.

    Raises
    ------
    FileNotFoundError, ValueError, ImportError
        No such file; an ending that is not known; damaged, pickled or of another kind; a key
        missing; `.pt` without torch, `.safetensors` without safetensors. One sentence each.

    Cost
    ----
    Features of `.npy`, uncompressed `.npz`, `.pt` and (with torch) `.safetensors` are mapped:
    nothing of them is read here. A compressed `.npz`, a `.pt` of torch before 1.6 and bfloat16
    without torch are read into memory.

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
    reader = READERS.get(path.suffix)
    if reader is None:
        raise ValueError(
            f"`FILE` must end in {', '.join(READERS)}; got {str(path)!r}. Save the arrays "
            f"{', '.join(KEYS)} with `numpy.savez`."
        )
    held = _whole(reader, path)
    found = {key: _named(held, key, path) for key in KEYS}
    for key, name in (("features", features_key), ("labels", labels_key)):
        if name is not None and path.suffix != ".npy":
            if name not in held:
                raise ValueError(f"{str(path)!r} must hold {name!r}; got {_listed(held)}.")
            found[key] = held[name]
    for key, place in (("labels", labels), ("weight", weight), ("bias", bias)):
        if place is not None:
            _check_ending(key, Path(place))
            found[key] = _whole(_array, Path(place))
    if found["labels"] is not None and found["features"] is None:
        layers = _layers(held, found["labels"])
        found["features"] = layers or None
        for key, alias in (("weight", "W"), ("bias", "b")):
            if alias in layers and found[key] is held[alias]:
                found[key] = None
    missing = [key for key in KEYS[:2] if found[key] is None]
    if missing:
        where = ", or pass `--labels`" if labels is None and "labels" in missing else ""
        raise ValueError(
            f"{str(path)!r} must hold `features` and `labels`; {' and '.join(missing)} missing, "
            f"got {_listed(held)}. Name the arrays so, or pass `--features-key` or "
            f"`--labels-key`{where}."
        )
    for key in KEYS:
        value = found[key]
        if value is not None and not isinstance(value, dict) and not hasattr(value, "shape"):
            raise ValueError(
                f"`{key}` of {str(path)!r} must be an array; got {type(value).__name__}."
            )
    small = [None if found[key] is None else _copy(found[key]) for key in KEYS[1:]]
    return FeaturesFile(found["features"], as_numpy(small[0]), small[1], small[2])


def _check_ending(key: str, path: Path) -> None:
    """An option names a file of one array, not an archive of several."""
    if path.suffix not in _ONE_ARRAY:
        raise ValueError(
            f"`--{key}` must be a file of one array, {', '.join(_ONE_ARRAY)}; got {str(path)!r}. "
            f"An array of FILE is found there by its name, `{key}`."
        )


def _copy(value: Any) -> Any:
    """A copy in memory, which later changes to the file do not reach."""
    return value.clone() if hasattr(value, "clone") else np.array(value)


def read_unlabelled(path: str | os.PathLike[str], features_key: str | None = None) -> Any:
    """The features of a file that has no labels, as `read_features` finds them."""
    path = Path(path)
    if path.suffix not in READERS:
        raise ValueError(f"`FILE` must end in {', '.join(READERS)}; got {str(path)!r}.")
    held = _whole(READERS[path.suffix], path)
    found = _named(held, "features", path) if features_key is None else held.get(features_key)
    if not hasattr(found, "shape"):
        named = "`features`" if features_key is None else repr(features_key)
        raise ValueError(f"{str(path)!r} must hold {named}; got {_listed(held)}.")
    return found


def _named(held: dict[str, Any], key: str, path: Path) -> Any:
    """What a file holds under a key, or under the only other common name of it."""
    if key in held:
        return held[key]
    others = [name for name in NAMES[key] if name in held]
    if len(others) > 1:
        raise ValueError(
            f"{str(path)!r} must hold one array of {key}; {' and '.join(others[:2])} may be. "
            f"Name one `{key}`, or pass `--{key}-key`."
        )
    return held[others[0]] if others else None


def _layers(held: dict[str, Any], labels: Any) -> dict[str, Any]:
    """All arrays with a row for each label, by their names: `W` and `b` may be a layer's."""
    known = {*KEYS, *(name for names in NAMES.values() for name in names)} - {"W", "b"}
    return {
        name: value
        for name, value in held.items()
        if name not in known
        and len(getattr(value, "shape", ())) == 2
        and value.shape[0] == np.shape(labels)[0]
    }


def _listed(held: dict[str, Any]) -> str:
    """The names that a file holds: few, short and printable."""
    names = [ascii(name)[1:-1][:40] for name in sorted(held)]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") or (
        "nothing"
    )


def _whole(read: Callable[[Path], Any], path: Path) -> Any:
    """What `read` finds in `path`; any damage is a ValueError of one sentence."""
    check_file("the file", path)
    try:
        # A shape that overflows raises an error: NumPy's warning would be a second message.
        with np.errstate(over="ignore"):
            return read(path)
    except ImportError:
        raise
    except Exception as error:
        # The readers of other libraries raise many kinds of errors on damaged files.
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
            held[key] = _mapped(path, archive, f"{key}.npy")
            if held[key] is None:
                held[key] = arrays[key] if _is_read(archive, key) else None
    return held


def _is_read(archive: zipfile.ZipFile, key: str) -> bool:
    """Whether a member that cannot be mapped is read: if its name is known, or it holds numbers."""
    names = {*KEYS, *(name for others in NAMES.values() for name in others)}
    if key in names:
        return True
    try:
        with archive.open(f"{key}.npy") as file:
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[np.lib.format.read_magic(file)]
            shape, _, dtype = read(file)
    except (KeyError, ValueError):
        return False
    return len(shape) <= 2 and dtype.kind in "fiu"


def _mapped(path: Path, archive: zipfile.ZipFile, name: str) -> NDArray[Any] | None:
    """A member of an archive as a memory map; None where it is compressed or cannot be mapped."""
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
            # Warnings about kinds of tensors that are refused below.
            warnings.simplefilter("ignore")
            # Files of torch before 1.6 are no zip archives, and cannot be mapped.
            mmap = zipfile.is_zipfile(path)
            held = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError:
        # Torch's own message explains how to unpickle such a file even so.
        raise ValueError("it holds more than tensors, or is none of torch's") from None
    if not isinstance(held, dict):
        raise ValueError(f"it must hold a dict of tensors; got {type(held).__name__}")
    for key, value in held.items():
        if isinstance(value, torch.Tensor):
            _check_plain(key, value)
            if mmap:
                mark(path, value)
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
    framework = _framework()
    with safe_open(path, framework=framework) as file:
        held = {}
        for key in file.keys():  # noqa: SIM118
            bits = framework == "np" and file.get_slice(key).get_dtype() == "BF16"
            held[key] = _bfloat16(path, key) if bits else file.get_tensor(key)
            if framework == "pt":
                mark(path, held[key])
    return held


def _bfloat16(path: Path, key: str) -> NDArray[np.float32]:
    """A bfloat16 tensor, a dtype that NumPy lacks, as float32: the same bits and sixteen zeros."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entry = _json.loads(file.read(size))[key]
        begin, end = entry["data_offsets"]
        file.seek(8 + size + begin)
        bits = np.frombuffer(file.read(end - begin), "<u2")
    wide = bits.astype(np.uint32) << np.uint32(16)
    return wide.view(np.float32).reshape(entry["shape"])


def _framework() -> str:
    """Torch maps tensors of any precision; NumPy reads those that it knows."""
    import importlib.util

    return "pt" if importlib.util.find_spec("torch") else "np"


def _array(path: Path) -> Any:
    """One array of a file: `.npy`, `.pt` of one tensor, or a column of a `.csv`."""
    if path.suffix == ".npy":
        return _npy(path)
    if path.suffix in (".pt", ".pth"):
        import torch

        value = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"it must hold one tensor; got {type(value).__name__}")
        return value
    return label_column(path, ("labels", *NAMES["labels"]))


READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    ".npy": _npy_set,
    ".npz": _npz,
    ".pt": _pt,
    ".pth": _pt,
    ".safetensors": _safetensors,
}
