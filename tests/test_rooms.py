"""Imports point downward: no cycle, no upward arrow, no reach for another room's private names.

Every import counts: at the top of a file, inside a function, for type checkers only, and by name
through `import_module`.
"""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {
    "reference": 0, "kernels": 0,
    "_core": 1,
    "objective": 2,
    "collapse": 3, "theory": 3, "models": 3,
    "dynamics": 4,
    "nn": 5, "training": 5,
    "paper": 6,
    "plots": 7, "cli": 7,
}  # fmt: skip
# What names the rooms to a user, and what starts the command line, stand outside the house.
OUTSIDE = {"fastnc", "fastnc.__main__"}


def read():
    """Name to syntax tree of every module of the package, its kernels included."""
    found = {}
    for top, prefix in ((ROOT / "fastnc", "fastnc"), (ROOT / "kernels", "fastnc.kernels")):
        for path in sorted(top.rglob("*.py")):
            if prefix == "fastnc" and (top / "kernels") in path.parents:
                continue
            parts = path.relative_to(top).with_suffix("").parts
            name = ".".join((prefix, *(p for p in parts if p != "__init__")))
            found[name] = ast.parse(path.read_text())
    return found


MODULES = read()


def room(module):
    return module.split(".")[1]


def targets(module, name):
    """The module of the package that `from module import name` loads."""
    return f"{module}.{name}" if f"{module}.{name}" in MODULES else module


def imports(tree):
    """(module, name or None) of everything that a file takes from the package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            # The constant part of an f-string names a folder of files that it chooses from.
            what = node.args[0]
            first = what.values[0] if isinstance(what, ast.JoinedStr) else what
            if isinstance(first, ast.Constant):
                folder = first.value.rstrip(".")
                yield from ((m, None) for m in MODULES if m == folder or m.startswith(folder + "."))


ARROWS = {
    module: {targets(*found) for found in imports(tree) if targets(*found) in MODULES}
    - {module, *OUTSIDE}
    for module, tree in MODULES.items()
    if module not in OUTSIDE
}


def assert_no_cycle(arrows):
    try:
        tuple(TopologicalSorter(arrows).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_every_room_has_a_floor():
    assert {room(module) for module in ARROWS} == FLOORS.keys()


@pytest.mark.parametrize("module", sorted(ARROWS))
def test_no_arrow_points_upward(module):
    floor = FLOORS[room(module)]
    assert {target for target in ARROWS[module] if FLOORS[room(target)] > floor} == set()


def test_no_file_waits_for_itself():
    assert_no_cycle(ARROWS)


def test_no_room_waits_for_itself():
    rooms = {}
    for module, found in ARROWS.items():
        rooms.setdefault(room(module), set()).update({room(t) for t in found} - {room(module)})
    assert_no_cycle(rooms)


def private_names(module, tree):
    """What `module` takes of other rooms' private names, by import or as an attribute."""
    elsewhere = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("fastnc."):
            for alias in node.names:
                target = targets(node.module, alias.name)
                if room(target) == room(module):
                    continue
                names = target.split(".")[2:] + [alias.name] * (target == node.module)
                if any(name.startswith("_") for name in names):
                    yield f"from {node.module} import {alias.name}"
                if target != node.module:
                    elsewhere.add(alias.asname or alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            private = node.attr.startswith("_") and not node.attr.startswith("__")
            if private and node.value.id in elsewhere:
                yield ast.unparse(node)


@pytest.mark.parametrize("module", sorted(ARROWS))
def test_private_names_stay_in_their_room(module):
    """`_core` is a room of the whole package, and only its own private names are private."""
    assert list(private_names(module, MODULES[module])) == []
