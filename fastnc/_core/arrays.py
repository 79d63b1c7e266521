"""Checks of arguments: devices, shapes, dtypes and values of arrays; numbers and choices."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

FLOATS = ("float32", "float64")
# No count is larger: at a microsecond each, so many epochs take thirty years.
MOST = 10**15
# Most snapshots in a decade of time: no run has the time to measure more.
MOST_SNAPSHOTS = 10**6


def is_torch(x: Any) -> bool:
    """Whether `x` is a torch tensor; torch is not imported to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def home(x: Any) -> str:
    """`"cpu"` or `"gpu"`: the kernels that run on `x`, decided by where it lives."""
    if is_torch(x):
        match x.device.type:
            case "cpu":
                return "cpu"
            case "cuda":
                return "gpu"
            case other:
                raise ValueError(
                    f"tensors on the device {other!r} are not served; move them to 'cpu' or 'cuda'."
                )
    return "cpu"


def dtype_name(x: Any) -> str:
    """`"float32"` for an array or a tensor of that dtype, and so on."""
    return str(x.dtype).removeprefix("torch.")


def as_numpy(x: Any) -> np.ndarray:
    """`x` as a NumPy array, without a copy where it shares memory (a CPU tensor does)."""
    if is_torch(x):
        x = x.detach()
        # Zeros that are held in no memory.
        x = x.clone() if x._is_zerotensor() else x
        array: np.ndarray = x.cpu().resolve_neg().resolve_conj().numpy()
        return array
    return np.asarray(x)


def check_array(name: str, x: Any) -> None:
    """`x` must be an array with its numbers in memory; this is the only definition of that.

    NumPy's arrays, torch's strided tensors, and objects with a dtype and a shape that convert to a
    NumPy array of that shape, as JAX's arrays do.
    """
    if is_torch(x):
        lacking = _lacking(x)
        if lacking:
            raise TypeError(f"`{name}` must be a dense tensor of plain numbers; got {lacking}.")
        return
    if isinstance(x, np.ndarray):
        return
    offers = all(hasattr(x, name) for name in ("dtype", "shape", "__array__"))
    if isinstance(x, type) or not offers or _array_shape(x) != x.shape:
        way_out = next((f".{way}()" for way in _WAYS_OUT if hasattr(type(x), way)), "")
        # A linear layer's is an attribute of the object alone.
        way_out = way_out or (".weight" if hasattr(x, "weight") else "")
        raise TypeError(
            f"`{name}` must be a NumPy array or a torch tensor; got {type(x).__name__}."
            + (f" Give its `{way_out}`." if way_out else "")
        )


# Methods that make NumPy arrays: of SciPy's sparse arrays, of data frames.
_WAYS_OUT = ("toarray", "to_numpy")


def _lacking(x: Any) -> str:
    """Why a tensor is no array of plain numbers, and the way out; "" for one that is."""
    if x.is_nested:
        return "a nested one. Pad it: `.to_padded_tensor(0.0)`"
    if hasattr(x, "full_tensor"):
        return "a part of one that is spread over ranks. Gather it: `.full_tensor()`"
    if str(x.layout) != "torch.strided":
        return "a sparse one. Fill it: `.to_dense()`"
    if x.is_meta:
        return "one of the device 'meta', which has none. Move its module: `.to_empty()`"
    if x.is_quantized:
        return "a quantised one. Convert it: `.dequantize()`"
    return ""


def _array_shape(x: Any) -> tuple[int, ...] | None:
    """The shape of the array that another library's object converts to; None if it does not."""
    try:
        return np.asarray(x).shape
    # Whatever such an object raises: it is no array.
    except Exception:
        return None


def row_major(x: Any, dtype: Any = None) -> np.ndarray:
    """`x` in row order, as compiled code takes it: copied only where order or dtype differ.

    A kernel is compiled for each type of array, and a read-only array is a type of its own:
    so a read-only array is passed as a writable view. Kernels never write to their inputs.
    """
    return writable(np.ascontiguousarray(as_numpy(x), dtype=dtype))


def writable(array: np.ndarray) -> np.ndarray:
    """`array`, or a writable view of it where it is read-only; for kernels, which only read it."""
    return array if array.flags.writeable else np.asarray(_WritableView(array))


class _WritableView:
    """The memory of a read-only array as that of a writable one; keeps the array alive."""

    def __init__(self, array: np.ndarray) -> None:
        interface = array.__array_interface__
        self.array = array
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def like(result: np.ndarray, x: Any) -> Any:
    """`result` in the library and on the device of `x`."""
    if is_torch(x):
        import torch

        return torch.from_numpy(result).to(x.device)
    return result


def check_matrix(name: str, x: Any, shape: tuple[int | None, int | None]) -> None:
    """`x` must be a 2-d float array whose sizes are those of `shape` (None: any, at least 1)."""
    check_array(name, x)
    if len(x.shape) != 2:
        raise ValueError(f"`{name}` must have 2 dimensions; got shape {tuple(x.shape)}.")
    for axis, want in enumerate(shape):
        if want is not None and x.shape[axis] != want:
            raise ValueError(
                f"`{name}` must have {want} {('rows', 'columns')[axis]}; "
                f"got shape {tuple(x.shape)}."
            )
        if x.shape[axis] == 0:
            raise ValueError(f"`{name}` must not be empty; got shape {tuple(x.shape)}.")
    if dtype_name(x) not in FLOATS:
        raise TypeError(
            f"`{name}` must be float32 or float64; got {dtype_name(x)}. Convert it first."
        )
    check_unmasked(name, x)


def fill(name: str, out: np.ndarray, x: Any) -> None:
    """Copies `x` into `out`; every entry must be finite in the dtype of `out`."""
    with np.errstate(over="ignore"):
        np.copyto(out, as_numpy(x), casting="same_kind")
    check_finite(name, out)


def check_unmasked(name: str, x: Any) -> None:
    """`x` may be a masked array if nothing in it is masked: kernels read only its memory."""
    # Like torch, NumPy's masked arrays are not imported to find out.
    ma = sys.modules.get("numpy.ma")
    if ma is not None and isinstance(x, ma.MaskedArray) and x.mask.any():
        where = tuple(int(i) for i in np.argwhere(x.mask)[0])
        raise ValueError(
            f"`{name}` must have no masked entry; got {int(x.mask.sum())}, the first at index "
            f"{where[0] if len(where) == 1 else where}. Fill them, or leave those samples out."
        )


def check_finite(name: str, x: np.ndarray) -> None:
    """`x` must hold neither NaN nor infinity; the first bad row is named."""
    # A sum is one pass without a temporary; it is not finite whenever an entry is not.
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.sum(x, dtype=np.float64)
    if not np.isfinite(total):
        bad = np.argwhere(~np.isfinite(x))
        if len(bad):
            where = tuple(int(i) for i in bad[0])
            index = where[0] if len(where) == 1 else where
            raise ValueError(f"`{name}` must be finite; got {x[where]} at index {index}.")


def copied(name: str, x: Any) -> np.ndarray:
    """A NumPy copy of `x`, an array or numbers in lists, of any dtype."""
    if not isinstance(x, (list, tuple, range)):
        check_array(name, x)
    check_unmasked(name, x)
    try:
        return np.array(as_numpy(x))
    except (ValueError, TypeError, OverflowError, RuntimeError):
        raise TypeError(
            f"`{name}` must be an array of numbers; got {type(x).__name__}, which is none."
        ) from None


def real_numbers(name: str, x: Any) -> NDArray[np.float64]:
    """A copy of `x`, an array or lists of finite real numbers, in float64 and of any shape."""
    # NumPy has no bfloat16.
    wide = is_torch(x) and x.is_floating_point() and not _lacking(x)
    found = copied(name, x.detach().double() if wide else x)
    if found.dtype.kind == "V" and np.can_cast(found.dtype, np.float64):
        found = found.astype(np.float64)
    if found.dtype.kind not in "fiu":
        raise TypeError(f"`{name}` must hold real numbers; got {found.dtype}.")
    with np.errstate(over="ignore"):
        found = found.astype(np.float64)
    check_finite(name, found)
    return found


def as_numbers(name: str, x: Any) -> NDArray[np.float64]:
    """A number, or numbers of any shape, in float64; infinities are numbers, NaN is none."""
    try:
        found = np.asarray(x, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"`{name}` must be a number or numbers; got {_shown(x)}.") from None
    if np.isnan(found).any():
        raise ValueError(f"`{name}` must be a number or numbers; got {_shown(x)}.")
    return found


def check_labels(
    y: Any,
    n_samples: int | None,
    n_classes: int | None,
    name: str = "y",
    more: str = "give a `W` with more rows",
) -> np.ndarray:
    """A copy of `y` in NumPy, which must be `n_samples` integers in 0..n_classes-1.

    Either may be None, and is then not checked.
    `more` is the alternative to relabelling that the error offers; "" if they are no labels.
    """
    # A copy: kernels use labels as indices, so nobody may change them after this check.
    labels = copied(name, y)
    if labels.ndim != 1:
        raise ValueError(f"`{name}` must have 1 dimension; got shape {labels.shape}.")
    # `np.integer` is a base of the timedelta too.
    if labels.dtype.kind not in "iu":
        way_out = _to_integers(name, labels) if more else "."
        raise TypeError(f"`{name}` must hold integers; got {labels.dtype}{way_out}")
    if n_samples is not None and len(labels) != n_samples:
        # Both counts are given where there are W (n_classes, d) and H (n_samples, d).
        swapped = ", as many as `W` has rows. Swap `W` and `H`" if len(labels) == n_classes else ""
        raise ValueError(
            f"`{name}` must have one label a sample ({n_samples}); got {len(labels)}{swapped}."
        )
    if (
        n_classes is not None
        and len(labels)
        and not (labels.min() >= 0 and labels.max() < n_classes)
    ):
        index = int(np.argmax((labels < 0) | (labels >= n_classes)))
        raise ValueError(
            f"`{name}` must lie in 0..{n_classes - 1} ({n_classes} classes were given); "
            f"got {labels[index]} at index {index}. Relabel, or {more}."
        )
    return labels


def _to_integers(name: str, labels: np.ndarray) -> str:
    """How labels of another kind become integers: the end of a sentence."""
    whole = labels.dtype.kind == "b" or (
        labels.dtype.kind == "f" and bool((np.isfinite(labels) & (labels == np.rint(labels))).all())
    )
    if whole:
        return f". Convert them: `np.asarray({name}).astype(int)`, a tensor by `.long()`."
    return f". Relabel: `np.unique({name}, return_inverse=True)[1]`."


def _is_number(value: Any) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # A whole number beyond any float.
        return False


def plain(value: Any) -> float:
    """A real number as Python's own; integers stay integers.

    NumPy's scalars compute in their own precision: `np.sqrt` of an 8-bit count has three digits,
    and minus a `np.uint8` is no negative number. No check of a number returns one.
    """
    if type(value) in (int, float):
        return value  # type: ignore[no-any-return]
    return int(value) if isinstance(value, Integral) else float(value)


def keep_checked(record: Any, check: Callable[..., Any], *names: str, **limits: int) -> None:
    """Replace fields of a frozen dataclass by what `check(name, value)` returns for them."""
    for name in names:
        object.__setattr__(record, name, check(name, getattr(record, name), **limits))


def check_positive(name: str, value: Any) -> float:
    """`value` must be a finite number above zero."""
    if not (_is_number(value) and value > 0):
        raise ValueError(f"`{name}` must be a positive number; got {_shown(value)}.")
    return float(value)


def check_at_least_zero(name: str, value: Any) -> float:
    """`value` must be a finite number of at least zero."""
    if not (_is_number(value) and value >= 0):
        raise ValueError(f"`{name}` must be a number of at least 0; got {_shown(value)}.")
    return float(value)


def check_finite_number(name: str, value: Any) -> float:
    """`value` must be a finite number."""
    if not _is_number(value):
        raise ValueError(f"`{name}` must be a finite number; got {_shown(value)}.")
    return float(value)


def check_count(name: str, value: Any, least: int, most: int = MOST) -> int:
    """`value` must be an integer of at least `least`, and at most `most` if `least` > 0.

    A seed, with `least` 0, has no upper limit.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"`{name}` must be an integer of at least {least}; got {_shown(value)}.")
    if least > 0 and value > most:
        power = len(str(most)) - 1
        raise ValueError(f"`{name}` must be at most 10^{power}; got {_shown(value)}.")
    return int(value)


def _shown(value: Any) -> str:
    """A value for a message: Python does not print integers of thousands of digits."""
    try:
        text = repr(value)
    except ValueError:
        text = "an integer of more than 10^4299"
    return text if len(text) <= 200 else f"{text[:100]}... ({len(text)} characters)"


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """`value` must be one of a few words."""
    if not (isinstance(value, str) and value in choices):
        words = ", ".join(map(repr, choices[:-1])) + f" or {choices[-1]!r}"
        raise ValueError(f"`{name}` must be {words}; got {_shown(value)}.")
    return value


def float_dtype(dtype: Any) -> np.dtype[Any]:
    """`dtype` as NumPy's, which must be float32 or float64."""
    found: np.dtype[Any] | None
    try:
        found = np.dtype(dtype)
    except (TypeError, ValueError):
        found = None
    if found is None or found.name not in FLOATS:
        raise TypeError(f"`dtype` must be 'float32' or 'float64'; got {_shown(dtype)}.")
    return found


def checked_problem(
    W: Any, H: Any, y: Any
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """W, H in float64 and y in int64, C-contiguous NumPy arrays that fit together."""
    check_matrix("W", W, (None, None))
    check_matrix("H", H, (None, W.shape[1]))
    if W.shape[0] < 2:
        raise ValueError(f"`W` must have at least 2 rows, one a class; got shape {tuple(W.shape)}.")
    labels = check_labels(y, len(H), len(W))
    out = []
    for name, x in (("W", W), ("H", H)):
        array = row_major(x, np.float64)
        check_finite(name, array)
        out.append(array)
    return out[0], out[1], row_major(labels, np.int64)
