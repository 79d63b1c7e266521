"""How the Numba kernels are compiled: kept on disk, outside the interpreter's lock, IEEE errors."""

OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy"}
# Of functions that only compiled ones call: no way in from Python, which takes long to compile.
INNER = {**OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
