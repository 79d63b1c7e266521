"""`njit` and `cfunc` of the kernels: options, machine code on disk, and safe starts of threads.

They are Numba's, with four differences. Machine code is kept as `cache` says. Parallel kernels
that Python calls run one at a time: see `threads`. In a forked child, where the threads of the
parent are missing, a parallel kernel runs on one thread, compiled without parallel loops. And each
kernel runs its own copies of what it calls: with copies in many kernels, of which one process runs
the one and the next the other, the order of a sum and its last bits would differ.
"""

import functools
import hashlib
import types

import numba
from llvmlite.binding import Linkage, parse_assembly
from numba.core.bytecode import FunctionIdentity
from numba.core.ccallback import CFunc
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.dispatcher import Dispatcher
from numba.core.registry import CPUDispatcher
from numba.core.sigutils import normalize_signature

from fastnc.kernels.cpu import threads
from fastnc.kernels.cpu.cache import KernelCache

OPTIONS = {"nogil": True, "error_model": "numpy"}
# For functions that only compiled ones call: no wrapper for Python, which takes long to compile.
INNER = {**OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
# LLVM may fuse multiply-adds, divide by reciprocals and ignore the sign of 0; in plain sums it
# may also change the order. It must respect infinities and NaN everywhere.
NO_REASSOCIATION = {"contract", "nsz", "arcp"}
REASSOCIATION = NO_REASSOCIATION | {"reassoc"}


class _OwnCopies(JITCodeLibrary):
    """A kernel's machine code, in which what is linked in is seen by no other kernel."""

    def _optimize_final_module(self):
        defined = [one for one in self._final_module.functions if not one.is_declaration]
        own = min(one.name for one in defined if one.linkage == Linkage.external)
        suffix = hashlib.sha256(own.encode()).hexdigest()[:16]
        for one in defined:
            # Numba finds the functions that count references by their names.
            linked = one.linkage in (Linkage.linkonce_odr, Linkage.weak_odr)
            if linked and not one.name.startswith("NRT_"):
                # Renamed as well: LLVM's linker prefers another module's function of this name.
                one.name = f"{one.name}.{suffix}"
                one.linkage = Linkage.internal
        super()._optimize_final_module()


class _LinkedIn(JITCodeLibrary):
    """What kernels link in: optimised, without machine code of its own, which nothing would run."""

    def _finalize_final_module(self):
        self._finalize_dynamic_globals()
        self._verify_declare_only_symbols()
        # Numba writes the addresses of environments to variables of these names.
        names = [one.name for one in self._final_module.global_variables]
        environments = [name for name in names if name.startswith("_ZN08NumbaEnv")]
        variables = [f'@"{name}" = common global i64 0' for name in environments]
        self._codegen._add_module(parse_assembly("\n".join(variables)))
        self._finalized = True

    def serialize_using_object_code(self):
        return self.serialize_using_bitcode()


class _KernelCompiler(Compiler):
    """Numba's compiler, for a function that Python or C calls."""

    library = _OwnCopies

    def compile_extra(self, function):
        codegen = self.state.targetctx.codegen()
        name = FunctionIdentity.from_function(function).func_qualname
        self.state.library = self.library(codegen, name)
        self.state.library.enable_object_caching()
        return super().compile_extra(function)


class _InnerCompiler(_KernelCompiler):
    """Numba's compiler, for a function that only kernels call."""

    library = _LinkedIn


class _Parallel(CPUDispatcher):
    """A parallel kernel: called from Python, one at a time, with serial BLAS inside its loops."""

    def __call__(self, *arguments):
        with threads.one_thread():
            if threads.forked():
                return alone(self)(*arguments)
            with threads.at_most(threads.THREADS_GIVEN):
                return super().__call__(*arguments)


def njit(**options):
    """Numba's `njit`, its machine code kept by a `KernelCache`; parallel ones run one at a time."""

    compiler = _InnerCompiler if options.get("no_cpython_wrapper") else _KernelCompiler

    def decorate(function):
        compiled = numba.njit(**options, pipeline_class=compiler)(function)
        # Without the compiler (NUMBA_DISABLE_JIT) it is the function itself.
        if compiled is not function:
            compiled._cache = KernelCache(function)
            compiled._given_options = options
            if options.get("parallel"):
                compiled.__class__ = _Parallel
        return compiled

    return decorate


def cfunc(signature, **options):
    """Numba's `cfunc`, its machine code kept by a `KernelCache`; without threads if forked."""

    def decorate(function):
        if threads.forked():
            function = _without_threads(function)
        compiled = CFunc(
            function, normalize_signature(signature), locals={}, options=options,
            pipeline_class=_KernelCompiler,
        )  # fmt: skip
        compiled._cache = KernelCache(function)
        compiled.compile()
        return compiled

    return decorate


@functools.cache
def alone(kernel):
    """`kernel`, and all that it calls, without their threads: the same sums in the same order."""
    if not _reaches_threads(kernel):
        return kernel
    options = {**kernel._given_options, "parallel": False}
    return njit(**options)(_without_threads(kernel.py_func))


def _without_threads(function):
    """`function` with `alone` of each kernel that it calls."""
    names = {
        name: alone(value)
        for name, value in _called(function).items()
        if name in function.__globals__
    }
    copy = types.FunctionType(
        function.__code__,
        {**function.__globals__, **names},
        function.__name__,
        function.__defaults__,
        None if function.__closure__ is None else tuple(map(_cell, function.__closure__)),
    )
    copy.__qualname__ = function.__qualname__ + ".alone"
    copy.__module__ = function.__module__
    return copy


def _cell(cell):
    held = cell.cell_contents
    return types.CellType(alone(held) if isinstance(held, Dispatcher) else held)


def _called(function):
    """The kernels that a function may call, by name."""
    held = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    found = {name: function.__globals__.get(name) for name in function.__code__.co_names}
    found |= {name: cell.cell_contents for name, cell in held}
    return {name: value for name, value in found.items() if isinstance(value, Dispatcher)}


@functools.cache
def _reaches_threads(kernel):
    return isinstance(kernel, _Parallel) or any(
        _reaches_threads(other) for other in _called(kernel.py_func).values()
    )
