"""Triton kernels without a GPU: its interpreter, with a GPU's arithmetic put into it.

The interpreter runs a kernel on the CPU in NumPy. It does not know the fused multiply-add, nor
what a product of bf16 is, and digits hang on both; so they are made here as the hardware makes
them: "bf16x6" is the sum of six products of bf16 parts.

Whoever imports this has set TRITON_INTERPRET=1 before triton was imported: `test_gpu_kernels`
starts such a process. With FASTNC_TEST_DEVICE=cuda the same tests run on a GPU instead.
"""

import inspect
import os
import threading
from functools import cache
from types import FunctionType, SimpleNamespace

import numpy as np
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = os.environ.get("FASTNC_TEST_DEVICE", "cpu")
if not INTERPRETED and DEVICE == "cpu":
    import pytest

    pytest.skip("needs TRITON_INTERPRET=1, or FASTNC_TEST_DEVICE=cuda", allow_module_level=True)
# The parts that are multiplied, smallest first, and the bits of a part.
PRODUCTS = {
    "bf16x6": (((2, 0), (0, 2), (1, 1), (1, 0), (0, 1), (0, 0)), 8),
}


def keep_bits(x, bits):
    """float32 `x` rounded to `bits` bits of significand."""
    drop = 24 - bits
    words = x.view(np.uint32) + np.uint32(1 << (drop - 1))
    return (words >> drop << drop).view(np.float32)


def parts(x, bits, count):
    """`x` as a sum of `count` numbers of `bits` bits, up to the last one's rounding."""
    found = []
    for _ in range(count):
        found.append(keep_bits(np.ascontiguousarray(x), bits))
        x = x - found[-1]
    return found


def product(a, b, precision):
    """`a b` in the manner of the tensor cores."""
    if precision == "ieee":
        return a @ b
    pairs, bits = PRODUCTS[precision]
    count = 1 + max(i for i, _ in pairs)
    A, B = parts(a, bits, count), parts(b, bits, count)
    return sum(A[i] @ B[j] for i, j in pairs)


def install():
    """Puts the GPU's arithmetic into the interpreter."""
    import triton.language
    from triton._C.libtriton import ir
    from triton.runtime import interpreter

    enum = {name.lower(): value for name, value in ir.INPUT_PRECISION.__members__.items()}
    names = {int(enum[name]): name for name in ("ieee", *PRODUCTS)}
    options = interpreter.interpreter_builder.options
    object.__setattr__(options, "allowed_dot_input_precisions", ("ieee", *PRODUCTS))
    # Without `debug` the comparisons for it are made and nobody looks at them.
    object.__setattr__(options, "sanitize_overflow", False)

    def values(x):
        if x.dtype.scalar.is_bf16():
            # Kept as words, the upper halves of float32's.
            return (x.data.astype(np.uint32) << 16).view(np.float32)
        return x.data.astype(np.float32) if x.data.dtype == np.float16 else x.data

    general = interpreter._convert_float

    def convert(x, before, after, rounding):
        if after.is_bf16():
            # To the nearest, of two equally near the even one; the interpreter's own forgets to
            # carry. NaN of any pattern becomes the one that the hardware makes.
            words = np.frombuffer(x.tobytes(), np.uint32)
            near = (words + np.uint32(0x7FFF) + (words >> 16 & np.uint32(1))) >> 16
            near = np.where(np.isnan(x).ravel(), np.uint32(0x7FFF), near)
            return near.astype(np.uint16).reshape(x.shape)
        if before.is_bf16():
            return (x.astype(np.uint32) << 16).reshape(x.shape)
        return general(x, before, after, rounding)

    def create_dot(self, a, b, c, input_precision, max_num_imprecise_acc):
        made = product(values(a), values(b), names[int(input_precision)])
        return interpreter.TensorHandle(made + c.data, c.dtype.scalar)

    def create_fma(self, x, y, z):
        # The product of two float32 is exact in float64; ours of two float64 are exact anyway.
        wide = x.data.astype(np.float64) * y.data + z.data
        return interpreter.TensorHandle(wide.astype(z.data.dtype), z.dtype.scalar)

    def create_exp2(self, x):
        # ex2.approx.ftz of float32: what is no normal number is 0.
        made = np.exp2(x.data)
        if made.dtype == np.float32:
            made = np.where(made < np.finfo(np.float32).tiny, np.float32(0.0), made)
        return interpreter.TensorHandle(made, x.dtype.scalar)

    patch_tensor = interpreter._patch_lang_tensor

    def patch(tensor, scope):
        patch_tensor(tensor, scope)
        # Triton 3.6 takes int() of an array of one element, which NumPy 2.4 refuses.
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    launch, one_at_a_time = interpreter.GridExecutor.__call__, threading.RLock()

    def guarded(self, *arguments, **named):
        # A launch patches the language for the time that it takes: threads take turns.
        with one_at_a_time:
            return launch(self, *arguments, **named)

    interpreter.GridExecutor.__call__ = guarded
    interpreter._patch_lang_tensor = patch
    interpreter._convert_float = convert
    interpreter.InterpretedFunction.__call__ = lambda self, *a, **named: self.rewrite()(*a, **named)
    known, word = cache(interpreter._get_np_dtype), np.dtype(np.uint64)
    interpreter._get_np_dtype = lambda t: word if t.scalar.is_ptr() else known(t.scalar)
    interpreter.InterpreterBuilder.create_dot = create_dot
    interpreter.InterpreterBuilder.create_fma = create_fma
    interpreter.InterpreterBuilder.create_exp2 = create_exp2
    # Once, and not in every launch: this process compiles nothing. Both names are patched.
    language = FunctionType(install.__code__, {"tl": triton.language, "core": triton.language.core})
    interpreter._patch_lang(language)
    interpreter._patch_lang = lambda function: SimpleNamespace(restore=lambda: None)


def play_a_gpu(put):
    """The CPU passes for a GPU of 8 GiB, by `put`, which is `setattr` or a monkeypatch's."""
    answers = {
        "is_available": lambda: True,
        "get_device_capability": lambda device=None: (9, 0),
        "device_count": lambda: 1,
        "current_device": lambda: None,
        "mem_get_info": lambda device=None: (2**33, 2**33),
        "memory_reserved": lambda device=None: 0,
        "memory_allocated": lambda device=None: 0,
    }
    for name, answer in answers.items():
        put(torch.cuda, name, answer)
    put(torch.Tensor, "cuda", lambda self: self.clone())


def relative(result, exact):
    """The largest error of a result in units of the largest entry of the exact one."""
    got = result.double().cpu().numpy()
    return float(np.abs(got - exact).max() / np.abs(exact).max())


def tensors(*arrays):
    """NumPy arrays as tensors of their own on the device."""
    return [torch.from_numpy(np.array(a)).to(DEVICE) for a in arrays]


def poison(*like):
    """Tensors of these shapes and dtypes full of NaN, so that an unwritten entry shows."""
    return [torch.full_like(x, float("nan")) for x in like]


def scalar():
    """Where a launcher leaves a loss."""
    return torch.full((1,), float("nan"), dtype=torch.float64, device=DEVICE)


if INTERPRETED:
    install()
    # As on a GPU: both sides of a `where` are computed, and infinity is a number.
    np.seterr(all="ignore")


def play_graphs(monkeypatch, stepper):
    """Without a GPU: `stepper.capture` gives what replays two epochs; returns the replays."""
    replays = []

    class Graph:
        def __init__(self, of):
            self.of = of

        def replay(self):
            replays.append(self)
            self.of.descend(2)

    if DEVICE != "cuda":
        monkeypatch.setattr(stepper, "capture", lambda self: Graph(self))
    return replays


def count_fetches(put, *ways):
    """By `put`, as above: a list that gains (way, numbers) of each copy of a tensor to the host."""
    fetched = []

    def counting(way, method):
        def count(self, *arguments, **options):
            # The interpreter's own handling of a launch is no copy of a GPU's.
            if not any("triton" in frame.filename for frame in inspect.stack()[1:6]):
                fetched.append((way, self.numel()))
            return method(self, *arguments, **options)

        return count

    for way in ways:
        put(torch.Tensor, way, counting(way, getattr(torch.Tensor, way)))
    return fetched
