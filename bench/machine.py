"""What a measurement ran on: processor, vector width, threads, each BLAS and its kernels."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

from numba import config, get_num_threads
from threadpoolctl import threadpool_info

from fastnc.kernels.cpu.processor import VECTOR_BYTES

# A BLAS that is told its processor does not ask the machine.
ORDERS = ("OPENBLAS_CORETYPE", "MKL_ENABLE_INSTRUCTIONS", "BLIS_ARCH_TYPE")


def processor() -> str:
    """The name that the processor gives itself; on Linux that of /proc/cpuinfo."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def blas_kernels() -> str:
    """Each BLAS of the process: its version, and the processor whose kernels it runs."""
    found = [library for library in threadpool_info() if library["user_api"] == "blas"]
    names = (
        f"{b['internal_api']} {b['version']} ({b.get('architecture', 'unknown')})" for b in found
    )
    return ", ".join(sorted(set(names)))


def commit() -> str:
    """The commit of the checkout, with a mark if files differ from it; empty outside of one."""
    folder = Path(__file__).parent
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def machine() -> dict[str, str]:
    """Facts by name, as they stand in a recorded file beside each number."""
    played = f" (played: Numba compiles for {config.CPU_NAME})" if config.CPU_NAME else ""
    return {
        "processor": processor(),
        "vector_bits": f"{8 * VECTOR_BYTES}{played}",
        "threads": f"{get_num_threads()} of {os.cpu_count()}",
        "blas": blas_kernels(),
        "commit": commit(),
    }


def warnings() -> list[str]:
    """A sentence for each environment variable that ties a BLAS to a processor."""
    return [
        f"{name}={os.environ[name]} is set: a BLAS runs that processor's kernels, not this one's. "
        "Unset it unless another processor is to be played."
        for name in ORDERS
        if name in os.environ
    ]
