"""Every kernel on the GPU has the name, and the arguments in the order, of its twin on the CPU."""

import ast
from pathlib import Path

import pytest

KERNELS = Path(__file__).parent.parent / "kernels"
LAUNCHERS = {
    "cross_entropy": ("loss", "loss_and_grads", "log_loss_and_grads", "gradient_step"),
    "hessian": ("hessian_vector_product",),
    "scatter": ("class_moments",),
    "trajectory": ("descend",),
    "weighted_cross_entropy": ("loss_and_grads",),
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


@pytest.mark.parametrize("op", LAUNCHERS)
@pytest.mark.parametrize("tier", ["", "_fast"])
def test_twins_agree(op, tier):
    gpu = KERNELS / f"{op}{tier}_gpu.py"
    if tier and not gpu.exists():
        pytest.skip(f"{op} has one tier")
    cpu, gpu = functions(KERNELS / f"{op}_cpu.py"), functions(gpu)
    for name in LAUNCHERS[op]:
        assert gpu[name] == cpu[name]


def test_the_second_pass_asks_for_no_blas_on_the_gpu():
    cpu, gpu = (functions(KERNELS / f"deviations_{home}.py") for home in ("cpu", "gpu"))
    assert ["gemm", *gpu["deviations"]] == cpu["deviations"]


def test_no_public_twin_was_forgotten():
    for op, names in LAUNCHERS.items():
        cpu, gpu = (functions(KERNELS / f"{op}_{home}.py") for home in ("cpu", "gpu"))
        public = {n for n in cpu.keys() & gpu.keys() if not n.startswith("_")}
        # What shares a name must be a launcher, and is compared above.
        assert public == set(names)


def test_a_launcher_has_no_defaults():
    for path in KERNELS.glob("*_gpu.py"):
        assert defaults(path) == [], path.name
