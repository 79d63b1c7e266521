"""A digest of any value: its data, and the code that a user wrote for it, all the way down.

Two closures of one factory, two edits of a method, two lists that a function reads differ; the same
source has the same digits in every process of one Python. Code of installed packages is known by
its name, and so is what cannot be pickled: a lock, an open file, a callback of ctypes. What is read
by a name that is put together, as `globals()["rate"]`, is not seen.
"""

from __future__ import annotations

import dis
import gc
import hashlib
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from copyreg import dispatch_table
from functools import partial
from inspect import getattr_static
from operator import itemgetter
from types import (
    CodeType,
    FunctionType,
    GeneratorType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any

import numpy as np

# Of a class, what its text, its lines or its first use change, and not what it does.
_IDLE = {
    "__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__firstlineno__",
    "__static_attributes__", "__annotations__", "__annotate__", "__annotate_func__",
    "__annotations_cache__", "__abstractmethods__", "_abc_impl", "__parameters__",
}  # fmt: skip
_BUILT_IN = (int, float, complex, str, bytes, bool, type(None), type(...), range)
# One or two of these where there are equal ones in a source: as the compiler has it.
_SHARED = (tuple, frozenset, CodeType)
_READS = ("LOAD_GLOBAL", "LOAD_NAME")


def digest_of(value: Any, in_set: bool = False) -> str:
    """Eight hexadecimal digits of a value, which may be the member of a set.

    A walk without recursion: each object is told once, its parts after it, and where it comes
    again by its number, so that lists may hold themselves.
    """
    digest = hashlib.sha256()
    numbers: dict[int, int] = {}
    kept = []  # What a walk makes must live as long as its number.
    todo = [value]
    while todo:
        one = todo.pop()
        parts: list[Any] = []
        if type(one) in _BUILT_IN:
            text = f"{type(one).__name__} {one!r}"
        elif id(one) in numbers:
            text = f"again {numbers[id(one)]}"
        else:
            if type(one) not in _SHARED:
                numbers[id(one)] = len(numbers)
            kept.append(one)
            text, parts = _opened(one, in_set)
        digest.update(f"{len(text)} {len(parts)} {text}".encode(errors="surrogatepass"))
        todo += reversed(parts)
    return digest.hexdigest()[:8]


def is_own(value: type | FunctionType) -> bool:
    """Whether a user wrote this class or function, or a module of this name."""
    if isinstance(value, FunctionType):
        return _is_own_module(value.__globals__.get("__name__"))
    return _is_own_module(value.__module__)


def _is_own_module(name: Any) -> bool:
    if not isinstance(name, str):
        return True
    top = name.partition(".")[0]
    if top == "fastnc" or top in sys.stdlib_module_names:
        return False
    path = getattr(sys.modules.get(name), "__file__", None) or ""
    return not {"site-packages", "dist-packages"} & set(re.split(r"[/\\]", path))


def _opened(value: Any, in_set: bool) -> tuple[str, list[Any]]:
    """A text of the value alone, and its parts."""
    kind = type(value)
    match value:
        case FunctionType():
            return _function(value)
        case CodeType():
            return _code(value)
        case ModuleType():
            return f"module {value.__name__}", []
        case MethodType():
            return "method", [value.__func__, value.__self__]
        case classmethod() | staticmethod():
            return kind.__name__, [value.__func__]
        case property():
            return "property", [value.fget, value.fset, value.fdel]
        case partial() if kind is partial:
            return "partial", [value.func, *value.args, dict(value.keywords)]
        case type():
            return _class(value)
        case np.random.Generator():
            # By its seed: its state has gone on where a run is resumed in one process.
            return kind.__name__, [type(value.bit_generator), str(value.bit_generator.seed_seq)]
        case np.generic():
            return f"{value.dtype} {value!r}", []
        case MappingProxyType():
            return "mappingproxy", [dict(value)]
        case GeneratorType():
            return "generator", [value.gi_code]
        case memoryview():
            return "memoryview", [value.format, value.tobytes()]
        case np.ufunc():
            # That of `frompyfunc` holds a function, which no attribute shows.
            held = [x for x in gc.get_referents(value) if callable(x)]
            return f"ufunc {value.__name__}", held
    if kind in (set, frozenset):
        # Its order is another one in each process. A member may hold the set.
        told = map(without_address, value) if in_set else (digest_of(x, in_set=True) for x in value)
        return f"{kind.__name__} {sorted(told)}", []
    if kind in (list, tuple):
        return kind.__name__, list(value)
    if kind is dict:
        return "dict", [x for pair in value.items() for x in pair]
    if not is_own(kind):
        for inside in ("py_func", "__wrapped__"):  # Of Numba, and of caches.
            if callable(found := getattr_static(value, inside, None)):
                return kind.__qualname__, [found, getattr_static(value, "targetoptions", None)]
    array = _array(value)
    if array is not None:
        if array.dtype.hasobject:
            return f"array {array.shape}", array.ravel().tolist()
        data = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        return f"array {array.shape} {array.dtype} {data}", []
    return _instance(value)


def without_address(value: Any) -> str:
    """The `repr` of a value, without the place that it has in this process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _array(value: Any) -> np.ndarray[Any, Any] | None:
    """The numbers of an array or a tensor, None of anything else."""
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ndarray) or not hasattr(type(value), "__array__"):
        return None
    with suppress(Exception):
        numbers = value.detach().cpu() if hasattr(value, "detach") else value
        try:
            return np.asarray(numbers)
        except TypeError:  # A dtype that NumPy has not, as bfloat16.
            return np.asarray(numbers.float())
    return None


def _instance(value: Any) -> tuple[str, list[Any]]:
    """The class and the state of an object, as pickling would take them."""
    kind = type(value)
    # Whatever a class of the user's pickles of itself.
    held = [getattr(value, "__dict__", None)] if is_own(kind) else []
    try:
        taken: Any = dispatch_table.get(kind)
        reduced = taken(value) if taken else value.__reduce_ex__(4)
        if isinstance(reduced, str):
            return f"{kind.__qualname__} {value.__module__}.{reduced}", []
        parts = (list(x) if isinstance(x, Iterator) else x for x in reduced)
        return "object", [kind, *parts, *held]
    except Exception:  # A lock, a file: of these there is the kind alone.
        return "object", [kind, *held]


def _class(value: type) -> tuple[str, list[Any]]:
    name = f"class {value.__module__}.{value.__qualname__}"
    if not is_own(value):
        return name, []
    told = [
        (name, x)
        for name, x in sorted(vars(value).items(), key=itemgetter(0))
        if name not in _IDLE and not isinstance(x, (MemberDescriptorType, GetSetDescriptorType))
    ]
    return name, [type(value), *value.__bases__, *(x for pair in told for x in pair)]


def _function(value: FunctionType) -> tuple[str, list[Any]]:
    """Its code, what it closes over and has as defaults, and the globals that it reads."""
    name = f"function {value.__module__}.{value.__qualname__}"
    cells = [cell.cell_contents for cell in value.__closure__ or () if _is_set(cell)]
    defaults = [list(value.__defaults__ or ()), value.__kwdefaults__ or {}]
    parts: list[Any] = [cells, *defaults]
    if not is_own(value):
        # What `torch.compile` returns has numbers of its process.
        compiled = vars(value).get("_torchdynamo_orig_callable")
        return name, parts if compiled is None else [compiled]
    parts.append(vars(value))
    read: list[Any] = []
    names = _names(value.__code__)
    for reading in sorted(names[0]):
        if reading in value.__globals__:
            found = value.__globals__[reading]
            read += [reading, found]
            if isinstance(found, ModuleType) and _is_own_module(found.__name__):
                inside = vars(found)
                read += [x for of in sorted(names[1]) if of in inside for x in (of, inside[of])]
    return "function", [value.__code__, *parts, read]


def _is_set(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:  # Of a name that is bound later.
        return False
    return True


def _names(code: CodeType) -> tuple[set[str], set[str]]:
    """The globals that a function and those within it read, and all names, so of attributes."""
    read = {str(i.argval) for i in dis.get_instructions(code) if i.opname in _READS}
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            for mine, its in zip((read, names), _names(constant), strict=True):
                mine |= its
    return read, names


def _code(code: CodeType) -> tuple[str, list[Any]]:
    """The operations, constants and names of a function and those within it, not their lines."""
    text = f"code {code.co_code.hex()} {code.co_names} {code.co_freevars}"
    return text, list(code.co_consts)
