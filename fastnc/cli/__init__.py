"""The command line: `fastnc COMMAND`, one file a command, every error one line."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any

import typer

from fastnc._core.interrupts import Diverged

# Each is the function of that name in the file of that name.
COMMANDS = ("ulpm", "flow", "sweep", "train", "metrics", "verify", "table1", "cache")


def build() -> typer.Typer:
    """The application, with every command."""
    app = typer.Typer(
        help="Neural collapse and the unconstrained layer-peeled model, fast and exact.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(lambda: None)
    for name in COMMANDS:
        command = getattr(importlib.import_module(f"fastnc.cli.{name}"), name)
        app.command(name)(_one_line_errors(command))
    return app


def main() -> None:
    """Run the command line; exit status 0, 1 (it failed), 2 (bad input) or 130 (Ctrl-C)."""
    build()()


def _one_line_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> Any:
        try:
            return command(*args, **options)
        except (ValueError, TypeError, OSError, ImportError) as error:
            status, said = 2, str(error)
        except (Diverged, MemoryError) as error:
            status, said = 1, str(error) or "not enough memory."
        except KeyboardInterrupt as error:
            status, said = 130, str(error) or "stopped by Ctrl-C."
        print(f"fastnc: {' '.join(said.split())}", file=sys.stderr)
        raise typer.Exit(status)

    return run
