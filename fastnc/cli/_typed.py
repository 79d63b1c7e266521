"""Which options were typed: with its default, too, one of them may contradict another."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import typer
from typer.core import TyperCommand

_TYPED: ContextVar[frozenset[str]] = ContextVar("typed", default=frozenset())


class Command(TyperCommand):
    """A command that notes which of its options were typed."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
        token = _TYPED.set(
            frozenset(
                name for name, source in sources.items()
                if source is not None and source.name == "COMMANDLINE"
            )
        )  # fmt: skip
        try:
            return super().invoke(ctx)
        finally:
            _TYPED.reset(token)


def typed(name: str) -> bool:
    """Whether the option of this name, as `n_classes`, was typed."""
    return name in _TYPED.get()
