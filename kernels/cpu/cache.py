"""Compiled kernels on disk: a file for each overload, named by all its machine code depends on.

Numba's own cache knows one source file a function, so an edited callee leaves a stale caller; it
numbers its files in an index, so two processes that compile at once overwrite each other's; and it
does not check what it reads, so a truncated file aborts the process. Here

- the folder's name is a hash of the sources of all kernels and of the versions of what compiles;
- the file's name is a hash of the function, its types, its closure, the processor and the settings
  of the compiler: two processes that write it at once write the same, and there is no index;
- the file begins with the hash of its content: what is damaged counts as absent;
- where nothing can be written, kernels are compiled for this process alone, and one line says so.
"""

import contextlib
import functools
import hashlib
import logging
import os
import pickle
import re
import shutil
import sys
import tempfile
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm
import numba
from numba.core import config
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

SOURCES = Path(__file__).parent
PREFIX, SUFFIX = "fastnc-kernels-", ".kernel"
# Folders of earlier sources that are kept, for a return to an earlier branch.
KEPT = 8
# The settings of Numba that change machine code, beside the processor's name and features.
SETTINGS = ("BOUNDSCHECK", "DEBUGINFO_DEFAULT", "LOOP_VECTORIZE", "OPT", "SLP_VECTORIZE")
_DIGEST = hashlib.sha256().digest_size
_log = logging.getLogger("fastnc")


def source_hash():
    """Hash of all kernels' sources and of the compilers' versions; None without sources."""
    digest = hashlib.sha256(repr((numba.__version__, llvmlite.__version__, sys.version)).encode())
    sources = sorted(SOURCES.glob("*.py"))
    for source in sources:
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:24] if sources else None


_STAMP = source_hash()


def user_cache():
    """The user's folder for files that can be made again."""
    if sys.platform == "darwin":
        return Path("~/Library/Caches/fastnc").expanduser()
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if os.path.isabs(given) else Path("~/.cache").expanduser()) / "fastnc"


def roots():
    """Where kernels may be kept, best first: NUMBA_CACHE_DIR, else the user's cache or here."""
    if config.CACHE_DIR:
        return [Path(config.CACHE_DIR).absolute()]
    try:
        return [user_cache(), SOURCES / "__pycache__"]
    except RuntimeError:  # There is no home.
        return [SOURCES / "__pycache__"]


def folders():
    """Every folder of kernels, of earlier sources too, that any of the roots holds."""
    return [path for root in roots() if root.is_dir() for path in sorted(root.glob(PREFIX + "*"))]


def remove(folder):
    """Delete one of `folders()`; a process that uses it compiles again, and makes it again."""
    shutil.rmtree(folder)


@functools.cache
def writable_folder():
    """The folder in the first of the roots that can be written; None, with a warning, without."""
    refused = []
    for root in roots():
        folder = root / f"{PREFIX}{_STAMP}"
        try:
            new = not folder.is_dir()
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
            if new:
                _remove_old(root)
            return folder
        except OSError as error:
            refused.append(f"{root}: {error.strerror or error}")
    _say_once("; ".join(refused))
    return None


def _age(folder):
    # Another process may remove it meanwhile.
    with contextlib.suppress(OSError):
        return folder.stat().st_mtime
    return 0.0


def _remove_old(root):
    by_age = sorted(root.glob(PREFIX + "*"), key=_age)
    for folder in by_age[: -KEPT - 1]:
        shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def _say_once(why):
    _log.warning(
        "fastnc: compiled kernels cannot be kept (%s), and every process compiles them anew. "
        "Set NUMBA_CACHE_DIR to a folder that can be written.",
        why,
    )


@functools.cache
def _say_compiling():
    """Says so before the first compilation of a process; all of them may take a minute."""
    _log.warning(
        "fastnc: compiling kernels, up to a minute; `fastnc cache` says where they are kept."
    )


class KernelCache(_Cache):
    """The cache in which a dispatcher of Numba looks for machine code before it compiles."""

    def __init__(self, function):
        self._function = function
        self._enabled = True
        module = Path(function.__code__.co_filename).stem
        self._name = re.sub(r"[^\w.]", "", f"{module}.{function.__qualname__}")

    @property
    def cache_path(self):
        return str(writable_folder())

    def enable(self):
        self._enabled = True

    def disable(self):
        self._enabled = False

    def flush(self):
        for folder in folders():
            for file in folder.glob(f"{self._name}-*{SUFFIX}"):
                file.unlink(missing_ok=True)

    def load_overload(self, sig, target_context):
        target_context.refresh()
        if not (self._enabled and _STAMP):
            return None
        name = self._file_name(sig, target_context.codegen())
        for root in roots():
            content = _read(root / f"{PREFIX}{_STAMP}" / name)
            if content is not None:
                return CompileResult._rebuild(target_context, *pickle.loads(content))
        _say_compiling()
        return None

    def save_overload(self, sig, data):
        # Machine code of newer sources must not be kept under the hash of older ones.
        if not self._enabled or _STAMP is None or source_hash() != _STAMP:
            return
        if data.library.has_dynamic_globals or not all(part.can_cache for part in data.lifted):
            return
        folder = writable_folder()
        if folder is None:
            return
        name = self._file_name(sig, data.codegen)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write(folder / name, dumps(data._reduce()))
        except OSError as error:
            _say_once(f"{folder}: {error.strerror or error}")

    @functools.cached_property
    def _identity(self):
        """Two functions of one name differ by their line, or by what they close over."""
        cells = tuple(cell.cell_contents for cell in self._function.__closure__ or ())
        code = self._function.__code__
        return code.co_firstlineno, hashlib.sha256(code.co_code + dumps(cells)).hexdigest()

    def _file_name(self, sig, codegen):
        settings = [(name, getattr(config, name, None)) for name in SETTINGS]
        types = [(type(t).__name__, repr(t)) for t in (sig if isinstance(sig, tuple) else [sig])]
        processor = (codegen.magic_tuple(), llvm.get_host_cpu_features().flatten())
        depends = (self._name, self._identity, types, processor, settings)
        return f"{self._name}-{hashlib.sha256(repr(depends).encode()).hexdigest()[:32]}{SUFFIX}"


def _read(path):
    """The content of a file; None if the file is absent or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, content = content[:_DIGEST], content[_DIGEST:]
    return content if hashlib.sha256(content).digest() == digest else None


def _write(path, content):
    """Replaces the file at once: a reader finds the old one or the new one, never a part."""
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    try:
        with open(handle, "wb") as file:
            file.write(hashlib.sha256(content).digest() + content)
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
