"""Checks of functions that a user gives, before anything is computed."""

from __future__ import annotations

import inspect
from typing import Any

from fastnc._core.arrays import _shown


def check_function(name: str, value: Any, *arguments: str) -> None:
    """`value` must be a function that takes these arguments, in this order.

    Where it has no signature, as some of compiled code, its first call will tell. A coroutine or a
    generator returns at once and computes nothing.
    """
    if not callable(value):
        raise TypeError(f"`{name}` must be a function; got {_shown(value)}.")
    call = value if inspect.isroutine(value) else getattr(value, "__call__", value)  # noqa: B004
    for kind, is_one in (
        ("a coroutine", inspect.iscoroutinefunction),
        ("a generator", inspect.isgeneratorfunction),
        ("an asynchronous generator", inspect.isasyncgenfunction),
    ):
        if is_one(value) or is_one(call):
            raise TypeError(
                f"`{name}` must be a function that returns its result; got {kind}, whose call "
                "computes nothing. Write it without `async` and `yield`."
            )
    try:
        signature = inspect.signature(value)
    except (ValueError, TypeError):
        return
    try:
        signature.bind(*arguments)
    except TypeError:
        called = f"{name.rpartition('.')[2]}({', '.join(arguments)})"
        raise TypeError(
            f"`{name}` must take what it is called with, `{called}`; got one of the signature "
            f"{signature}."
        ) from None
