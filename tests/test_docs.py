"""What is written beside the code agrees with it: the site's names, versions, Pythons."""

import importlib
import re
from pathlib import Path

import fastnc

ROOT = Path(__file__).parents[1]


def public_names():
    """Every name that a user types: those of `fastnc`, and of its public modules."""
    for name in fastnc.__all__:
        if name not in fastnc._MODULES and name != "__version__":
            yield f"fastnc.{name}"
    for module in ("models", "rules", "theory", "training", "nn", "nn.callbacks", "plots"):
        file = fastnc._MODULES.get(module, module)
        for name in importlib.import_module(f"fastnc.{file}").__all__:
            # Some of `theory` and `models` are at the top too, under that shorter name.
            yield f"fastnc.{name}" if name in fastnc._HOME else f"fastnc.{module}.{name}"


def defines(module, name):
    """Whether the module's file has the name; libraries that it needs may be missing."""
    file = ROOT / module.replace(".", "/")
    file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    return re.search(rf"^(def|class) {name}\b", file.read_text(), flags=re.MULTILINE)


def test_every_public_name_is_in_the_site():
    pages = "".join(path.read_text() for path in sorted((ROOT / "docs" / "api").glob("*.md")))
    shown = set(re.findall(r"heading: ([\w.]+)", pages))
    missing = set(public_names()) - shown
    assert not missing, sorted(missing)
    for path in re.findall(r"^::: ([\w.]+)$", pages, flags=re.MULTILINE):
        if path != "fastnc.reference":
            assert defines(*path.rsplit(".", 1)), path


def test_one_version():
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), flags=re.MULTILINE)
    newest = re.search(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert cited and newest and cited[1] == newest[1] == fastnc.__version__


def test_every_python_that_is_promised_is_tried():
    project = (ROOT / "pyproject.toml").read_text()
    promised = re.findall(r"Python :: (3\.\d+)\"", project)
    tried = (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    assert promised[0] == re.search(r"requires-python = \">=(3\.\d+)\"", project)[1]
    listed = ", ".join('"' + python + '"' for python in promised)
    assert f"python: [{listed}]" in tried
