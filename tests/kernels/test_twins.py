"""Every kernel on the GPU has the name, and the arguments in the order, of its twin on the CPU."""

import ast
from pathlib import Path

import pytest

KERNELS = Path(__file__).parent.parent.parent / "kernels"
# What a plan is told, and what it chooses, is another matter on each device.
TWINS = {
    gpu.stem: cpu
    for gpu in sorted((KERNELS / "gpu").glob("*.py"))
    if gpu.stem != "plan" and (cpu := KERNELS / "cpu" / gpu.name).exists()
}


def functions(path):
    """Name to argument names of the functions a file defines at its top."""
    tree = ast.parse(path.read_text())
    return {
        node.name: [a.arg for a in node.args.posonlyargs + node.args.args]
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
    }


def defaults(path):
    return [
        node.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and (node.args.defaults or node.args.kwonlyargs)
    ]


@pytest.mark.parametrize("gpu", TWINS)
def test_twins_agree(gpu):
    cpu, gpu = functions(TWINS[gpu]), functions(KERNELS / "gpu" / f"{gpu}.py")
    # What shares a public name is a launcher.
    shared = {name for name in cpu.keys() & gpu.keys() if not name.startswith("_")}
    assert shared
    for name in shared:
        # The address of a BLAS is asked for on the CPU alone, the tier on the GPU alone.
        assert [a for a in gpu[name] if a != "tier"] == [a for a in cpu[name] if a != "gemm"]


def test_a_launcher_has_no_defaults():
    for path in (KERNELS / "gpu").glob("*.py"):
        assert defaults(path) == [], path.name
