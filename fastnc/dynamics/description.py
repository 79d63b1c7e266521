"""What tells rules and functions apart: texts that are the same in every process.

A resumed run must be of the same rule, and runs of other rules have medians of their own.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np

# Values that a function reads, and that its text has whole.
_PLAIN = (int, float, complex, str, bytes, type(None))
_DEEPEST = 4


def described(value: Any, depth: int = 0) -> str:
    """A value's `repr`, with the code of functions and the attributes of what has no `repr`."""
    if isinstance(value, FunctionType):
        return f"{value.__qualname__}#{_digest(value, depth)}"
    if depth > _DEEPEST:
        return type(value).__qualname__
    inner = partial(described, depth=depth + 1)
    match value:
        case MethodType():
            return f"{inner(value.__self__)}.{inner(value.__func__)}"
        case partial():
            named = value.keywords.items()
            parts = [value.func, *value.args, *(x for pair in sorted(named) for x in pair)]
            return f"partial({', '.join(map(inner, parts))})"
        case tuple() if type(value) is tuple:
            return f"({', '.join(map(inner, value))}{',' if len(value) == 1 else ''})"
        case np.ndarray():
            digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:8]
            return f"array{value.shape}#{digest}"
    if isinstance(value, type):
        return value.__qualname__
    kind = type(value)
    if is_dataclass(value):
        own = {f.name: getattr(value, f.name) for f in fields(value) if f.repr}
        return f"{kind.__qualname__}({_named(own, inner)})"
    if "__repr__" in {name for of in kind.__mro__[:-1] for name in vars(of)}:
        return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
    told = _named(getattr(value, "__dict__", {}), inner)
    return f"{kind.__module__}.{kind.__qualname__}" + (f"({told})" if told else "")


def _named(values: Mapping[str, Any], inner: Any) -> str:
    return ", ".join(f"{name}={inner(value)}" for name, value in values.items())


def _digest(function: FunctionType, depth: int) -> str:
    """Eight digits that change with the code, the defaults, and the values that it reads."""
    read = [cell.cell_contents for cell in function.__closure__ or () if _is_set(cell)]
    found = (function.__globals__.get(name) for name in function.__code__.co_names)
    read += [value for value in found if isinstance(value, _PLAIN)]
    read += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    parts = [*_code(function.__code__), *(described(value, depth + 1) for value in read)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _is_set(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # Of a name that is bound later.
        return False


def _code(code: CodeType) -> list[str]:
    """The operations, constants and names of a function and those within it, not their lines."""
    parts = [code.co_code.hex(), " ".join(code.co_names)]
    for constant in code.co_consts:
        if isinstance(constant, frozenset):  # Its order is another one in each process.
            parts += sorted(map(repr, constant))
        else:
            parts += _code(constant) if isinstance(constant, CodeType) else [repr(constant)]
    return parts
