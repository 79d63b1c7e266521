"""What tells rules and functions apart: texts that are the same in every process.

A resumed run must be of the same rule, and runs of other rules have medians of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import numpy as np

from fastnc.dynamics.digest import digest_of, is_own, without_address

_PLAIN = (int, float, complex, str, bytes, type(None), np.generic)
_DEEPEST = 4


def described(value: Any, depth: int = 0) -> str:
    """A value's `repr`, with a digest where code or more than the text has tells of it."""
    kind = type(value)
    if isinstance(value, _PLAIN) and kind.__module__ in ("builtins", "numpy"):
        return repr(value)
    if isinstance(value, FunctionType):
        return f"{value.__qualname__}#{digest_of(value)}"
    if depth > _DEEPEST:
        return kind.__qualname__
    inner = partial(described, depth=depth + 1)
    match value:
        case MethodType():
            return f"{inner(value.__self__)}.{inner(value.__func__)}"
        case partial():
            named = value.keywords.items()
            parts = [value.func, *value.args, *(x for pair in sorted(named) for x in pair)]
            return f"partial({', '.join(map(inner, parts))})"
        case tuple() if kind is tuple:
            return f"({', '.join(map(inner, value))}{',' if len(value) == 1 else ''})"
        case np.ndarray():
            return f"array{value.shape}#{digest_of(value)}"
    if is_dataclass(value) and not isinstance(value, type) and not is_own(kind):
        return f"{kind.__qualname__}({_fields(value, inner)})"
    return _marked(_told(value, inner), digest_of(value))


def _told(value: Any, inner: Any) -> str:
    """What can be read of an object: its fields, its `repr`, or its attributes."""
    if isinstance(value, type):
        return value.__qualname__
    kind = type(value)
    if kind is list:
        return f"[{', '.join(map(inner, value))}]"
    if kind is dict:
        return "{" + ", ".join(f"{inner(k)}: {inner(v)}" for k, v in value.items()) + "}"
    if kind in (set, frozenset):  # Its order is another one in each process.
        return f"{kind.__name__}({', '.join(sorted(map(inner, value)))})"
    if is_dataclass(value):
        return f"{kind.__qualname__}({_fields(value, inner)})"
    if "__repr__" in {name for of in kind.__mro__[:-1] for name in vars(of)}:
        return without_address(value)
    told = _named(getattr(value, "__dict__", {}), inner)
    return f"{kind.__module__}.{kind.__qualname__}" + (f"({told})" if told else "")


def _marked(text: str, mark: str) -> str:
    """The text of a call with the mark as its last argument; of anything else, after it."""
    if not text.endswith(")"):
        return f"{text}(#{mark})" if re.fullmatch(r"[\w.<>]+", text) else f"{text}#{mark}"
    return f"{text[:-1]}{'' if text.endswith('()') else ', '}#{mark})"


def _fields(value: Any, inner: Any) -> str:
    return _named({f.name: getattr(value, f.name) for f in fields(value) if f.repr}, inner)


def _named(values: Mapping[str, Any], inner: Any) -> str:
    return ", ".join(f"{name}={inner(value)}" for name, value in values.items())
