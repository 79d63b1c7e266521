"""Every public name explains itself, and every example in a docstring runs as written."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import fastnc

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(fastnc.__path__, "fastnc.")
    if not module.name.startswith(("fastnc.kernels", "fastnc.__main__"))
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        # A callback needs the library that it is for, which the tests do not.
        if not name.startswith("fastnc.nn.callbacks."):
            raise
        pytest.skip(str(error))
    failed, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0


@pytest.mark.parametrize("name", sorted(set(fastnc.__all__) - {"__version__", "kernels"}))
def test_public_names_explain_themselves(name):
    public = getattr(fastnc, name)
    text = inspect.getdoc(public) or ""
    assert text
    shows = callable(public) and not (inspect.isclass(public) and issubclass(public, BaseException))
    assert not shows or ">>> " in text, f"fastnc.{name} has no example"
