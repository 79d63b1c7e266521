"""Thousands of calls with arguments that make no sense: a sentence, or the right answer.

Never a traceback from inside a kernel, never a crash, never a wrong number: what a call does
not refuse is compared with the reference in float64.
"""

import traceback
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch

import fastnc
from fastnc import models, reference

CALLS, SEEDS = 2000, range(10)
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
    """`arguments` with one or two of them replaced by something from their `choices`."""
    for name in rng.choice(list(arguments), size=min(len(arguments), rng.integers(1, 3))):
        pool = choices[name]
        arguments[name] = pool[rng.integers(len(pool))]
    return arguments


def refusal_or_result(call, arguments):
    """The result, or None where the call was refused in a sentence of fastnc's own."""
    shown = {name: repr(value)[:200] for name, value in arguments.items()}
    try:
        return call(**arguments)
    except REFUSALS as error:
        frames = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
        where = frames[-1].resolve()
        # Python's own complaint about a missing or unknown argument is a sentence too.
        assert PACKAGE in where.parents or len(frames) == 1, f"{where}: {error!r}, {shown}"
        assert "kernels" not in where.parts, f"{where}: {error!r}, {shown}"
        assert str(error).rstrip().endswith("."), f"{error!r}, {shown}"
        return None
    except BaseException as error:
        raise AssertionError(f"{call.__name__}: {error!r} for {shown}") from error


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


@pytest.mark.parametrize("seed", SEEDS)
def test_objective(seed):
    rng = np.random.default_rng((seed, 0))
    answered = 0
    for _ in range(CALLS // 2):
        W, H, y = problem(rng)
        arguments = {"W": W, "H": H, "y": y, "reduction": "sum", "impl": None}
        choices = {
            "W": matrices(rng, W), "H": matrices(rng, H), "y": labels(rng, y, len(W)),
            "reduction": numbers(rng, "mean"), "impl": numbers(rng, None),
        }  # fmt: skip
        name = str(rng.choice(["loss", "loss_and_grads", "log_loss_and_grads", "gradient_step"]))
        if name == "gradient_step":
            arguments["lr"], choices["lr"] = 0.1, numbers(rng, 0.1)
        arguments = spoil(rng, arguments, choices)
        before = {key: wide(x) for key, x in arguments.items() if key in "WH" and is_plain(x)}
        result = refusal_or_result(getattr(fastnc, name), arguments)
        if result is None:
            continue
        answered += 1
        W64, H64, y64 = before["W"], before["H"], wide(arguments["y"]).astype(int)
        scale = 1.0 / len(H64) if arguments["reduction"] == "mean" else 1.0
        dtype = arguments["W"].dtype
        if np.abs(H64 @ W64.T).max() > 1e12:
            # The reference takes gaps from the label, and of a logit of 1e12 the others lose
            # their digits there; the kernels take them from the largest.
            continue
        if name == "log_loss_and_grads":
            value, dW, dH = reference.log_loss_and_grads(W64, H64, y64)
            expected = (value + np.log(scale), dW, dH)
        else:
            value, dW, dH = reference.loss_and_grads(W64, H64, y64)
            expected = (scale * value, scale * dW, scale * dH)
        if name == "gradient_step":
            lr = float(arguments["lr"])
            found = (result, arguments["W"], arguments["H"])
            expected = (expected[0], W64 - lr * expected[1], H64 - lr * expected[2])
        else:
            found = result if isinstance(result, tuple) else (result,)
        for a, b in zip(found, expected, strict=False):
            assert agrees(a, b, dtype), (name, arguments)
    # The draw must reach both outcomes.
    assert 0.05 < answered / (CALLS // 2) < 0.9


@pytest.mark.xfail(reason="some hostile classifiers still meet another library's message")
@pytest.mark.parametrize("seed", SEEDS)
def test_margins_and_metrics(seed):
    rng = np.random.default_rng((seed, 1))
    answered = 0
    for _ in range(CALLS // 4):
        W, H, y = problem(rng)
        name = str(rng.choice(["margins", "margin_ratio", "kkt", "collapse_metrics"]))
        arguments = {"W": W, "H": H, "y": y}
        choices = {
            "W": matrices(rng, W), "H": matrices(rng, H), "y": labels(rng, y, len(W)),
        }  # fmt: skip
        if name == "collapse_metrics":
            arguments["bias"], choices["bias"] = None, [*matrices(rng, W[:, :1]), W[:, 0]]
        arguments = spoil(rng, arguments, choices)
        result = refusal_or_result(getattr(fastnc, name), arguments)
        answered += result is not None
        if result is not None and name == "margins":
            expected = reference.margins(
                wide(arguments["W"]), wide(arguments["H"]), wide(arguments["y"]).astype(int)
            )
            assert agrees(result, expected, result.dtype)
    assert 0.1 < answered / (CALLS // 4) < 0.9


@pytest.mark.parametrize("seed", SEEDS)
def test_statistics_keep_what_they_gathered(seed):
    rng = np.random.default_rng((seed, 2))
    for _ in range(CALLS // 16):
        _, H, y = problem(rng)
        K = int(y.max()) + 1
        statistics = fastnc.ClassStatistics(n_classes=K, dim=H.shape[1])
        statistics.update(H, y)
        gathered = {k: np.copy(v) for k, v in statistics.state_dict().items()}
        arguments = spoil(rng, {"H": H, "y": y}, {"H": matrices(rng, H), "y": labels(rng, y, K)})
        update = statistics.update
        try:
            update(arguments["H"], arguments["y"])
        except REFUSALS as error:
            assert str(error).rstrip().endswith(".")
            for name, value in statistics.state_dict().items():
                np.testing.assert_array_equal(value, gathered[name])


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        (fastnc.ULPM, {"n_classes": 3, "n_per_class": 2, "dim": 3}),
        (
            models.weight_decay,
            {"n_classes": 3, "n_per_class": 2, "dim": 3, "weight_decay_W": 0.1,
             "weight_decay_H": 0.1},
        ),
        (models.norm_constrained,
         {"n_classes": 3, "n_per_class": 2, "dim": 3, "energy_W": 1.0, "energy_H": 1.0}),
        (models.normalized, {"n_classes": 3, "n_per_class": 2, "dim": 3, "temperature": 1.0}),
        (
            models.squared_error,
            {"n_classes": 3, "n_per_class": 2, "dim": 3, "weight_decay_W": 0.1,
             "weight_decay_H": 0.1},
        ),
        (
            models.imbalanced,
            {"class_sizes": [3, 1], "dim": 3, "weight_decay_W": 0.1, "weight_decay_H": 0.1},
        ),
        (fastnc.ClassStatistics, {"n_classes": 3, "dim": 2, "scatter": "full"}),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)  # fmt: skip
@pytest.mark.parametrize("seed", SEEDS)
def test_constructors(call, arguments, seed):
    rng = np.random.default_rng((seed, 3))
    for _ in range(CALLS // 32):
        choices = {
            name: [x for x in numbers(rng, value) if not _large(x)]
            for name, value in arguments.items()
        }
        refusal_or_result(call, spoil(rng, dict(arguments), choices))


@pytest.mark.parametrize("seed", SEEDS)
def test_runs(seed):
    rng = np.random.default_rng((seed, 4))
    model = fastnc.ULPM(n_classes=5, n_per_class=2, dim=3)
    W, H = model.init(seed=0)
    good = {"model": model, "lr": 1.0, "epochs": 3, "seed": 1, "snapshots": 2, "W": W, "H": H,
            "noise": 0.0, "device": "cpu", "schedule": "constant", "dtype": "float64"}  # fmt: skip
    for _ in range(CALLS // 32):
        choices = {
            name: [x for x in numbers(rng, value) if not _large(x)] for name, value in good.items()
        }
        choices |= {"W": matrices(rng, W), "H": matrices(rng, H)}
        run = refusal_or_result(fastnc.descend, spoil(rng, dict(good), choices))
        assert run is None or np.isfinite(run.W).all()


def _large(x):
    """Sizes that would be honoured, and take all memory or all day."""
    return isinstance(x, int) and not isinstance(x, bool) and x > 1000
