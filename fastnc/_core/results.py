"""What functions of results are given, checked; the libraries of data frames that they return."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

Result = TypeVar("Result")


def check_result(name: str, given: Any, kind: type[Any], source: str) -> None:
    """`given` must be a `kind`, of which `source` says where one comes from."""
    if not isinstance(given, kind):
        raise TypeError(
            f"`{name}` must be a {kind.__name__}, as {source} returns; got {type(given).__name__}."
        )


def check_results(
    name: str, given: Any, kind: type[Result], source: str, least: int = 1
) -> list[Result]:
    """`given` as a list; it must be a sequence of at least so many `kind`, and of nothing else."""
    said = f"`{name}` must be a sequence of {kind.__name__}, as {source} returns"
    if isinstance(given, kind):
        raise TypeError(f"{said}; got a single one. Give it in a list, `[...]`.")
    several = listed(given)
    if several is None:
        raise TypeError(f"{said}; got {type(given).__name__}.")
    if len(several) < least:
        raise ValueError(f"`{name}` must hold at least one {kind.__name__}; got none.")
    for i, one in enumerate(several):
        if not isinstance(one, kind):
            raise TypeError(f"{said}; got {type(one).__name__} at index {i}.")
    return several


def check_names(name: str, given: Any, what: str) -> list[str]:
    """`given` as a list; it must be a sequence of at least one name, of what `what` says."""
    if isinstance(given, str):
        raise TypeError(f"`{name}` must be a sequence of {what}; got {given!r}. Give [{given!r}].")
    several = listed(given)
    if several is None:
        raise TypeError(f"`{name}` must be a sequence of {what}; got {type(given).__name__}.")
    if not several:
        raise ValueError(f"`{name}` must hold at least one of the {what}; got none.")
    for i, one in enumerate(several):
        if not isinstance(one, str):
            raise TypeError(
                f"`{name}` must be a sequence of {what}, which are strings; got "
                f"{type(one).__name__} at index {i}."
            )
    return several


def listed(given: Any) -> list[Any] | None:
    """What stands in a row; None of what is no row, as a word or a mapping."""
    if not isinstance(given, Iterable) or isinstance(given, (str, bytes, Mapping)):
        return None
    try:
        return list(given)
    except TypeError:
        return None


def frames_of(library: str) -> Any:
    """A library of data frames."""
    try:
        return importlib.import_module(library)
    except ImportError:
        raise ImportError(
            f"{library} is needed for `to_{library}`: pip install {library}."
        ) from None
