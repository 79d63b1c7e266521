"""The processor that Numba compiles for: width and number of its vector registers, caches, cores.

The width is that of Numba's target, not of the machine alone, so that `NUMBA_CPU_NAME` and
`NUMBA_CPU_FEATURES` can select a narrower processor than the machine's (a name without features
counts as 16 bytes). Whatever writes vectors takes their width from here, and every rule for the
shape of a tile starts from these numbers. Bits depend on the shape and on this processor alone.
"""

import os
import platform
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
from numba import config


def _features():
    """Names of what the target can do, as LLVM writes them."""
    if config.CPU_FEATURES is not None:
        return {name[1:] for name in config.CPU_FEATURES.split(",") if name.startswith("+")}
    if config.CPU_NAME not in (None, llvm.get_host_cpu_name()):
        return set()
    return {name for name, present in llvm.get_host_cpu_features().items() if present}


def registers(features, machine):
    """(bytes of a vector register, how many there are) on `machine`, as `platform` names it."""
    if "avx512f" in features:
        return 64, 32
    if features & {"avx", "avx2"}:
        return 32, 16
    return 16, 32 if machine.lower() in ("aarch64", "arm64") else 16


VECTOR_BYTES, N_REGISTERS = registers(_features(), platform.machine())


def native_lanes(dtype):
    """Floats of `dtype`, or of the dtype of that name, in one vector register."""
    return VECTOR_BYTES // np.dtype(dtype).itemsize


def _from_sysfs(level):
    """Bytes of a core's data cache of that level, or 0 where Linux does not say."""
    try:
        for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
            kind, size = (index / "type").read_text(), (index / "size").read_text().strip()
            if int((index / "level").read_text()) == level and "Instruction" not in kind:
                return int(size.rstrip("K")) << 10
    except (OSError, ValueError):
        pass
    return 0


# The defaults are small: more is then left to a BLAS.
L1_BYTES = _from_sysfs(1) or 32 << 10
L2_BYTES = _from_sysfs(2) or 512 << 10
N_CORES = os.cpu_count() or 1
