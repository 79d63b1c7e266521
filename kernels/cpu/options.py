"""How the Numba kernels are compiled: kept on disk, outside the interpreter's lock, IEEE errors.

`njit` and `cfunc` are Numba's, but for where the machine code is kept: see `cache`.
"""

import numba
from numba.core.ccallback import CFunc
from numba.core.sigutils import normalize_signature

from fastnc.kernels.cpu.cache import KernelCache

OPTIONS = {"nogil": True, "error_model": "numpy"}
# Of functions that only compiled ones call: no way in from Python, which takes long to compile.
INNER = {**OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def njit(**options):
    """Numba's `njit`, its machine code kept by a `KernelCache`."""

    def decorate(function):
        compiled = numba.njit(**options)(function)
        # Without the compiler (NUMBA_DISABLE_JIT) it is the function itself.
        if compiled is not function:
            compiled._cache = KernelCache(function)
        return compiled

    return decorate


def cfunc(signature, **options):
    """Numba's `cfunc`, its machine code kept by a `KernelCache`."""

    def decorate(function):
        normal = normalize_signature(signature)
        compiled = CFunc(function, normal, locals={}, options=options)
        compiled._cache = KernelCache(function)
        compiled.compile()
        return compiled

    return decorate
