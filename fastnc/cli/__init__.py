"""The command line: `fastnc COMMAND`, one file a command, every error one line."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from fastnc._core.interrupts import Diverged
from fastnc.cli._folder import REPLACES, claimed, told_written
from fastnc.cli._results import rescued
from fastnc.cli._typed import Command

# Each is the function of that name in the file of that name.
COMMANDS = (
    "ulpm", "flow", "sweep", "compare", "train", "metrics", "verify", "table1", "plot", "info",
    "cache",
)  # fmt: skip
# The most characters of an error message: one that quotes a file may be very long.
LONGEST = 2000
# The power of ten that no whole number needs to exceed.
LARGEST = 400


def build() -> typer.Typer:
    """The application, with every command."""
    app = typer.Typer(
        help="Neural collapse and the unconstrained layer-peeled model, fast and exact.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    for name in COMMANDS:
        command = getattr(importlib.import_module(f"fastnc.cli.{name}"), name)
        app.command(name, cls=Command, help=_help(command))(
            _one_line_errors(_whole_numbers(command))
        )
    return app


def main() -> None:
    """Run the command line; exit status 0, 1 (it failed), 2 (bad input) or 130 (Ctrl-C)."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal may lack letters of a path; a closed stream is None.
        if stream is not None:
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        build()()
    except BrokenPipeError:
        raise
    except OSError as error:
        # Of help and of the version, whose words are not a command's.
        _say(_of_output(error))
        sys.exit(2)
    finally:
        # All is said: another Ctrl-C ends the process, and not in the words of what cleans up.
        if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _print_version(wanted: bool) -> None:
    if wanted:
        from fastnc import __version__

        print(f"fastnc {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="The version.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    pass


def _help(command: Callable[..., Any]) -> str | None:
    """The docstring, read from the file where Python was told to drop it (-OO)."""
    if command.__doc__ is None:
        tree = ast.parse(Path(inspect.getfile(command)).read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name == command.__name__:
                return ast.get_docstring(node)
    return command.__doc__


def whole_number(text: str) -> int:
    """The integer of a text such as `1000000` or `1e6`."""
    try:
        return int(text)
    except ValueError:
        pass
    # Not by way of a float, which has 16 digits.
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"{text!r} is not a number") from None
    if not value.is_finite() or value.adjusted() > LARGEST or value != value.to_integral_value():
        raise ValueError(f"{text!r} is not a whole number below 10^{LARGEST}")
    return int(value)


def _whole_numbers(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let each option that is a whole number be written as `1e6` too."""
    hints = get_type_hints(command, include_extras=True)
    for hint in hints.values():
        kind, *details = get_args(hint) or (hint,)
        if kind is int or kind == list[int]:
            for option in details:
                if isinstance(option, typer.models.OptionInfo) and option.parser is None:
                    option.parser = whole_number
                    option.metavar = option.metavar or "<int>"
    command.__annotations__ = hints
    return command


def _one_line_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> Any:
        # Figures are only saved here: no notebook's backend and no screen is needed.
        os.environ["MPLBACKEND"] = "Agg"
        folder: AbstractContextManager[object] = nullcontext()
        written = ""
        if replaced := REPLACES.get(command.__name__):
            folder = claimed(options["out"], None if options.get("resume") else replaced)
        try:
            with folder:
                try:
                    result = command(*args, **options)
                except (OSError, KeyboardInterrupt):
                    if replaced:
                        written = told_written(options["out"], replaced)
                    raise
            if sys.stdout is not None:
                # Not at the end of the process, which tells of a reader that has ended.
                sys.stdout.flush()
            return result
        except BrokenPipeError:
            # The reader of the output has ended, which is no error.
            raise
        except OSError as error:
            status, said = 2, _of_output(error) + written + rescued(error)
        except (ValueError, TypeError, ImportError) as error:
            status, said = 2, str(error)
        except NotImplementedError as error:
            if os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0"):
                raise
            said = (
                f"NUMBA_DISABLE_JIT is set, and the kernels need the compiler ({error}); unset it."
            )
            status = 2
        except (Diverged, MemoryError, RuntimeError) as error:
            status, said = 1, str(error) or "not enough memory."
        except KeyboardInterrupt as error:
            # Without words it is a second one, at which nothing more was saved.
            status, said = 130, str(error) or f"stopped by Ctrl-C.{written}"
            if not str(error) and "checkpoint" in written:
                said += " Go on with the same command and --resume."
        _say(said)
        raise typer.Exit(status)

    return run


def _say(said: str) -> None:
    if sys.stderr is not None:
        with suppress(OSError):
            print(f"fastnc: {_one_line(said)}", file=sys.stderr)


def _of_output(error: OSError) -> str:
    """The message of an error; that of a stream names nothing, and is of what is printed."""
    if error.errno is None or error.filename is not None:
        return str(error)
    # What is left in its buffer must not fail once more at the end of the process.
    sys.stdout = None
    return f"what is printed cannot be written: {error.strerror}."


def _one_line(said: str) -> str:
    """The text without line breaks and control characters, which names in a file may contain."""
    words = " ".join(said.split())
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in words[: LONGEST + 1])
    return shown if len(words) <= LONGEST else shown[:LONGEST] + "..."
