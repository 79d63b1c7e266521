"""What somebody might pass for an argument, and whether a call answers it or refuses it well."""

import traceback
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import scipy.sparse
import torch

import fastnc

SEEDS = range(1, 11)
PACKAGE = Path(fastnc.__file__).parent
with warnings.catch_warnings():
    # Newer torches say that such tensors are on their way out; files hold them still.
    warnings.simplefilter("ignore")
    QUANTISED = torch.quantize_per_tensor(torch.ones(3, 2), 0.1, 0, torch.qint8)
REFUSALS = (ValueError, TypeError, OverflowError)


def matrices(rng, good):
    """What somebody might pass for a matrix, `good` itself included."""
    nan, inf, huge, read_only = (good.copy() for _ in range(4))
    nan.flat[rng.integers(nan.size)] = np.nan
    inf.flat[rng.integers(inf.size)] = rng.choice([np.inf, -np.inf])
    huge.flat[rng.integers(huge.size)] = 10.0 ** rng.integers(30, 38)
    read_only.flags.writeable = False
    wide = np.zeros((good.shape[0], 2 * good.shape[1]), good.dtype)
    wide[:, ::2] = good
    other = "float32" if good.dtype == np.float64 else "float64"
    return [
        good, good, good, np.asfortranarray(good), wide[:, ::2], good[::-1], read_only,
        nan, inf, huge, good[:, :-1], good[:-1], good[:0], good[0], good[None], good.T,
        good.astype(other), good.astype(np.float16), good.astype(np.longdouble),
        good.astype(complex), good.astype(int), good.astype(object), good.astype(str),
        good.tolist(), torch.from_numpy(good.copy()), torch.from_numpy(good.copy()).half(),
        torch.from_numpy(good.copy()).requires_grad_(), np.ma.masked_array(good, good > 0),
        None, "W", 3, 2.5, {}, [], (good, good), np.float64(1.0), np.array(None), good.view("V4"),
        *hostile(good),
    ]  # fmt: skip


def biases(rng, W):
    """What somebody might pass for the bias of a classifier `W`."""
    return [*matrices(rng, W[:, :1]), W[:, 0].copy()]


class Interface:
    """Has what NumPy reads an array from, and nothing that an array has."""

    def __init__(self, array):
        self.__array_interface__ = array.__array_interface__
        self.kept = array


class Disagreeing:
    """An array-like whose shape is not that of its array."""

    def __init__(self, array):
        self.array, self.dtype = array, array.dtype
        self.shape = (array.shape[0] + 9, *array.shape[1:])

    def __array__(self, dtype=None, copy=None):
        return self.array


class Sized:
    """Has a length, and nothing else."""

    def __len__(self):
        return 3


def hostile(good):
    """What other libraries, or nobody, would call a matrix of these numbers."""
    tensor = torch.from_numpy(np.ascontiguousarray(good))
    pairs = np.zeros(good.shape, [("a", good.dtype), ("b", "i4")])
    return [
        scipy.sparse.csr_array(good), tensor.to_sparse(), tensor.to("meta"),
        QUANTISED, torch._neg_view(tensor),
        pairs, Interface(good), Disagreeing(good), Sized(), np, np.ndarray, torch.Tensor,
        Fraction(1, 3), 10**400,
    ]  # fmt: skip


def labels(rng, good, n_classes):
    """What somebody might pass for labels."""
    negative, large = good.copy(), good.copy()
    negative[rng.integers(len(good))] = -rng.integers(1, 200)
    large[rng.integers(len(good))] = n_classes + rng.integers(0, 2**40)
    return [
        good, good, good, good.astype(np.int8), good.astype(np.uint64), good.tolist(), good[::-1],
        torch.from_numpy(good.copy()), negative, large, good[:-1], good[:0], good[:, None],
        good + 0.5, good.astype(float), good > 0, good.astype(str), good.astype(object),
        good.astype("timedelta64[s]"), None, "y", 0, np.nan, [None] * len(good), [[]], {0: 1},
        np.array([2**63], dtype=np.uint64), *hostile(good.astype(float)), [1, [2, 3]],
    ]  # fmt: skip


def numbers(rng, good):
    """What somebody might pass for a number, or for one of a few words."""
    return [
        good, good, good, 0, -1, 2.5, np.nan, np.inf, -np.inf, 1e400, 10**30, True, None, "five",
        "mean", "sum", "cpu", "reference", [], [good], np.array(good), np.array([1, 2]), 1j, b"",
        np.float32(1.5), torch.tensor(2.0), object(), 10**400, Fraction(10**400), np, int,
    ]  # fmt: skip


def problem(rng):
    K, d, N = (int(rng.integers(low, high)) for low, high in ((2, 6), (1, 6), (1, 12)))
    dtype = rng.choice(["float32", "float64"])
    W, H = (rng.standard_normal((rows, d)).astype(dtype) for rows in (K, N))
    return W, H, rng.integers(0, K, N)


def spoil(rng, arguments, choices):
    """`arguments` with one or two of them replaced by something from their `choices`.

    Those are functions: most of what they would make is not chosen.
    """
    for name in rng.choice(list(arguments), size=min(len(arguments), rng.integers(1, 3))):
        pool = [x for x in choices[name]() if not large(x)]
        arguments[name] = pool[rng.integers(len(pool))]
    return arguments


class Shown(dict):
    """Arguments in short; made only where an assertion fails, as tensors take long to be shown."""

    def __str__(self):
        return str({name: repr(value)[:200] for name, value in self.items()})


def refusal_or_result(call, arguments, *further):
    """The result, or None where the call was refused in a sentence of fastnc's own."""
    try:
        return call(**arguments)
    except (*REFUSALS, *further) as error:
        frames = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
        where = frames[-1].resolve()
        shown = Shown(arguments)
        # Python's own complaint about a missing or unknown argument is a sentence too.
        assert PACKAGE in where.parents or len(frames) == 1, f"{where}: {error!r}, {shown!s}"
        assert "kernels" not in where.parts, f"{where}: {error!r}, {shown!s}"
        assert str(error).rstrip().endswith("."), f"{error!r}, {shown!s}"
        return None
    except BaseException as error:
        raise AssertionError(f"{call.__name__}: {error!r} for {Shown(arguments)}") from error


def wide(x):
    x = x.detach().resolve_neg().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)
    return x.astype(np.float64)


def is_plain(x):
    """A dense array of floats, which a call may answer and may overwrite."""
    tensor = isinstance(x, torch.Tensor) and x.layout == torch.strided and not x.is_meta
    floats = str(getattr(x, "dtype", "")).endswith(("float32", "float64"))
    return floats and (tensor or isinstance(x, np.ndarray))


def agrees(found, expected, dtype):
    # A few rounding errors a term, of at most 12 samples and 6 classes, relative to the largest.
    tolerance = 1e-4 if "32" in str(dtype) else 1e-12
    expected = np.asarray(expected, dtype=np.float64)
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    return bool(np.abs(wide(found) - expected).max(initial=0.0) <= tolerance * scale)


def large(x):
    """Sizes that would be honoured, and take all memory or all day."""
    return isinstance(x, int) and not isinstance(x, bool) and 1000 < x < 10**20
