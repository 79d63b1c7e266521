"""Where a result was made: versions, commit, processor, date."""

from __future__ import annotations

import functools
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = ("numpy", "scipy", "numba", "llvmlite", "torch", "triton")


def provenance() -> dict[str, str]:
    """The origin of a result, for its file, as text; the date is today's, in UTC.

    Examples
    --------
    >>> made = provenance()
    >>> sorted(made)
    ['commit', 'date', 'libraries', 'processor', 'python', 'system', 'version']
    """
    return {**_of_this_process(), "date": datetime.now(timezone.utc).date().isoformat()}


def provenance_line() -> str:
    """The same in one line, for what has room for a comment: figures and LaTeX."""
    made = provenance()
    parts = [f"fastnc {made.pop('version')}", *(f"{name} {at}" for name, at in made.items() if at)]
    return "; ".join(parts)


@functools.cache
def _of_this_process() -> dict[str, str]:
    found = {name: installed(name) for name in LIBRARIES}
    return {
        "version": own_version(),
        "commit": commit(),
        "processor": processor(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": ", ".join(f"{name} {at}" for name, at in found.items() if at),
    }


def own_version() -> str:
    """The version of the package."""
    import fastnc

    return fastnc.__version__


def installed(name: str) -> str:
    """The version of a distribution, "" if it is not installed; nothing is imported."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def commit() -> str:
    """The commit of the checkout that the package runs from, "+" if it was edited; else ""."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--dirty=+"]
    try:
        # A network file system may take for ever to say whether a file was edited.
        done = subprocess.run(
            [*command, "--exclude=*"], capture_output=True, text=True, check=True, timeout=5
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def processor() -> str:
    """The processor's name, and how many of its threads this process may use."""
    from os import cpu_count

    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    if sys.platform == "darwin":
        lines = [f"model name: {_sysctl('machdep.cpu.brand_string')}"]
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names and names[0] else name}, {cpu_count()} threads"


def _sysctl(name: str) -> str:
    try:
        return subprocess.run(
            ["sysctl", "-n", name], capture_output=True, text=True, timeout=5
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
