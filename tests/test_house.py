"""The layout that makes `kernels/` importable without an installed package of that name."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_kernels_are_reached_through_the_link_only():
    link = ROOT / "fastnc" / "kernels"
    assert link.is_symlink() and link.resolve() == ROOT / "kernels"
    assert not (ROOT / "kernels" / "__init__.py").exists()
    offending = [
        str(path)
        for folder in ("fastnc", "kernels", "bench", "tests", "examples")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"^\s*(import|from) kernels\b", path.read_text(), re.MULTILINE)
    ]
    assert offending == []


def test_import_is_light():
    code = (
        "import sys, fastnc, fastnc.cli; fastnc.cli.build();"
        "heavy = ('numba', 'torch', 'triton', 'matplotlib', 'scipy');"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_resolves():
    import fastnc

    for name in fastnc.__all__:
        assert getattr(fastnc, name) is not None
        assert name in dir(fastnc)
    with pytest.raises(AttributeError, match="no attribute 'lose'"):
        _ = fastnc.lose


def test_no_file_takes_the_place_of_a_function():
    """Whatever is imported first: no room has the name of a public function."""
    import fastnc

    rooms = {path.stem for path in (ROOT / "fastnc").iterdir()}
    assert rooms & {name for name in fastnc.__all__ if name in fastnc._HOME} == set()


def test_every_file_says_what_it_is_and_stays_readable():
    import ast

    for folder in ("fastnc", "kernels"):
        for path in (ROOT / folder).rglob("*.py"):
            if (ROOT / "fastnc" / "kernels") in path.parents:
                continue
            text = path.read_text()
            assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"
            assert len(text.splitlines()) <= 400, f"{path} has more than 400 lines"


def test_every_kernel_is_kept_in_our_own_cache():
    """Numba's knows one source file a function, and mixes kernels of two processes."""
    for path in (ROOT / "kernels" / "cpu").glob("*.py"):
        if path.name in ("options.py", "cache.py"):
            continue
        text = path.read_text()
        numbas = re.search(
            r"^from numba import .*\b(njit|jit|cfunc|vectorize)\b", text, re.MULTILINE
        )
        assert not numbas, f"{path.name}: take `njit` and `cfunc` from fastnc.kernels.cpu.options"
        assert "cache=True" not in text, path.name


def test_tests_stay_in_the_repository_and_away_from_clocks():
    """What holds here must hold on any machine: no folder beside it, no alarm for a run."""
    for path in (ROOT / "tests").rglob("*.py"):
        text = path.read_text() if path.name != "test_house.py" else ""
        climbs = re.findall(r"__file__\)((?:\.parent)+)", text)
        depth = len(path.relative_to(ROOT).parts)
        assert all(c.count(".parent") <= depth for c in climbs), path
        assert "setitimer" not in text and "signal.alarm" not in text, path
