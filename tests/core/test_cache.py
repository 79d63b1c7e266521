"""Machine code on disk: never another function's, never of older sources, never half a file.

The package's cache is tried on a package of two small functions, in processes of their own.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "kernels" / "cpu"
CALLEE = """
from fastnc.kernels.cpu.options import INNER, njit
@njit(**INNER)
def part(x):
    return x * 2
"""
CALLER = """
from fastnc.kernels.cpu.callee import part
from fastnc.kernels.cpu.options import OPTIONS, njit
@njit(**OPTIONS)
def whole(x):
    return part(x[0]) + x.itemsize
"""
CALLS = """
import sys
import numpy as np
from fastnc.kernels.cpu.caller import whole
for dtype in sys.argv[1:]:
    print(whole(np.ones(1, dtype)))
print(sum(whole.stats.cache_hits.values()), "of the cache")
"""


@pytest.fixture
def package(tmp_path):
    """Two kernels, the second calling the first, beside the cache of the real ones."""
    folder = tmp_path / "site" / "fastnc" / "kernels" / "cpu"
    folder.mkdir(parents=True)
    for name in ("cache.py", "options.py", "threads.py"):
        shutil.copy(KERNELS / name, folder)
    (folder / "callee.py").write_text(CALLEE)
    (folder / "caller.py").write_text(CALLER)
    return folder


def start(package, *dtypes, before="", **environment):
    given = {
        **os.environ,
        "NUMBA_CACHE_DIR": str(package.parents[3] / "kept"),
        "PYTHONPATH": str(package.parents[2]),
        # Edited within a second to the same size, a file has the bytecode of before.
        "PYTHONDONTWRITEBYTECODE": "1",
        **environment,
    }
    return subprocess.Popen(
        [sys.executable, "-c", before + CALLS, *dtypes],
        env={name: value for name, value in given.items() if value is not None},
        cwd=package,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


COMPILING = "fastnc: compiling kernels, up to a minute; `fastnc cache` says where they are kept.\n"


def said(process):
    """Lines of stdout, and stderr but for the one word before a first compilation."""
    out, err = process.communicate()
    assert process.returncode == 0, err
    told, compiles = err.count(COMPILING), "0 of the cache" in out
    assert told == 1 if compiles else told <= 1, err
    return out.splitlines(), err.replace(COMPILING, "")


def kept(package):
    return sorted((package.parents[3] / "kept").glob("fastnc-kernels-*/*"))


def test_second_process_compiles_nothing(package):
    assert said(start(package, "float32", "float64")) == (
        ["6.0", "10.0", "0 of the cache"],
        "",
    )
    again = start(package, "float64", "float32").communicate()
    assert again == ("10.0\n6.0\n2 of the cache\n", "")


def test_edited_callee(package):
    """Numba's own cache keeps the caller, in which the callee is compiled."""
    assert said(start(package, "float64"))[0][0] == "10.0"
    (package / "callee.py").write_text(CALLEE.replace("x * 2", "x * 3"))
    assert said(start(package, "float64"))[0] == ["11.0", "0 of the cache"]
    (package / "callee.py").write_text(CALLEE)
    assert said(start(package, "float64"))[0] == ["10.0", "1 of the cache"]


def test_source_edited_while_it_runs(package):
    """What was compiled from a newer source is not kept under the hash of the older one."""
    edit = (
        "import fastnc.kernels.cpu.cache as c\n"
        "p = c.SOURCES / 'callee.py'; p.write_text(p.read_text().replace('* 2', '* 3'))\n"
    )
    assert said(start(package, "float64", before=edit))[0][0] == "11.0"
    assert kept(package) == []


def test_at_once(package):
    """Numbered files that each process believes free are overwritten with another's kernel."""
    orders = [("float32", "float64", "int32"), ("int32", "float64", "float32")] * 2
    right = {"float32": "6.0", "float64": "10.0", "int32": "6"}
    together = [said(process) for process in [start(package, *order) for order in orders]]
    for order, (lines, _) in zip(orders, together, strict=True):
        assert lines[:3] == [right[name] for name in order]
    assert said(start(package, *orders[0]))[0] == ["6.0", "10.0", "6", "3 of the cache"]
    assert all(path.suffix == ".kernel" for path in kept(package))


def test_damaged(package):
    """Numba's own cache hands such bytes to LLVM, which ends the process."""
    said(start(package, "float64"))
    for damage in ("empty", "cut", "bit", "foreign"):
        files = kept(package)
        assert len(files) == 2
        for path in files:
            whole = bytearray(path.read_bytes())
            cut, empty, foreign = whole[:-100], b"", b"x" * 9999
            whole[len(whole) // 2] ^= 1
            path.write_bytes({"empty": empty, "cut": cut, "bit": whole, "foreign": foreign}[damage])
        assert said(start(package, "float64")) == (["10.0", "0 of the cache"], ""), damage
    assert said(start(package, "float64"))[0] == ["10.0", "1 of the cache"]


def assert_one_line(error):
    assert error.count("\n") == 1, error
    assert "compiled kernels cannot be kept" in error
    assert "Set NUMBA_CACHE_DIR to a folder that can be written." in error


def test_nowhere_to_keep(package):
    """A file stands in each place: nobody, root neither, can make a folder there."""
    (package / "__pycache__").write_text("")
    nowhere = {"NUMBA_CACHE_DIR": None, "XDG_CACHE_HOME": "/dev/null", "HOME": "/dev/null"}
    lines, error = said(start(package, "float32", "float64", **nowhere))
    assert lines == ["6.0", "10.0", "0 of the cache"]
    assert_one_line(error)
    given = {"NUMBA_CACHE_DIR": "/dev/null"}
    lines, error = said(start(package, "float64", **given))
    assert lines == ["10.0", "0 of the cache"]
    assert_one_line(error)


def test_disk_full(package):
    """A limit on the size of a file stands for a disk with less room than a kernel takes."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (999, 999))\n"
    lines, error = said(start(package, "float32", "float64", before=limit))
    assert lines == ["6.0", "10.0", "0 of the cache"]
    assert_one_line(error)
    assert kept(package) == []


def test_own_folder_first(package):
    """Of the user, not of the machine: nobody else writes there what is unpickled here."""
    home = package.parents[3] / "home"
    said(start(package, "float64", NUMBA_CACHE_DIR=None, XDG_CACHE_HOME=str(home)))
    (folder,) = (home / "fastnc").iterdir()
    assert len(list(folder.iterdir())) == 2
    assert folder.stat().st_mode & 0o077 == 0


def test_old_sources_go(package):
    folder = package.parents[3] / "kept"
    for index in range(12):
        old = folder / f"fastnc-kernels-{index:02d}"
        old.mkdir(parents=True)
        os.utime(old, (index, index))
    said(start(package, "float64"))
    left = {path.name for path in folder.iterdir()}
    kept = {f"fastnc-kernels-{index:02d}" for index in range(4, 12)}
    # The folder of these sources is named by their hash.
    assert kept < left and len(left) == 9


def test_without_compiler(package):
    plain = (
        "import numpy as np, sys\n"
        "from fastnc.kernels.cpu.options import OPTIONS, njit\n"
        "print(njit(**OPTIONS)(lambda x: x[0] * 2 + x.itemsize)(np.ones(1)))\n"
        "sys.exit()\n"
    )
    assert said(start(package, before=plain, NUMBA_DISABLE_JIT="1"))[0] == ["10.0"]


def test_command(tmp_path):
    old = tmp_path / "fastnc-kernels-0" / "f.kernel"
    old.parent.mkdir()
    old.write_bytes(b"x" * 1_000_000)
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}

    def fastnc(*arguments):
        command = [sys.executable, "-m", "fastnc", "cache", *arguments]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout

    assert f"{old.parent}: 1 kernels, 1.0 MB, of other sources or versions\n" in fastnc()
    assert old.exists()
    assert f"{old.parent}: 1 kernels, 1.0 MB, removed\n" in fastnc("--clear")
    assert not any(tmp_path.iterdir())
