"""Every kind of Triton kernel compiles for GPUs that are not here, within their resources.

All configurations are compiled by `bench/gpu.py --compile-only`; these are the largest of each
kernel, whose registers are nearest to running out.
"""

import subprocess

import pytest

pytest.importorskip("triton", reason="Triton is for Linux only")
import ahead_gpu

CONFIGURATIONS = {c.name: c for c in ahead_gpu.configurations(90)}
AMPERE = {c.name: c for c in ahead_gpu.configurations(80)}
# A name is that of its configuration: kernel, dtype, tiles, flags, warps.
CHOSEN = [
    "block_losses float32 BN64 BK128 BD32 LOGITS6 LOG warps4",
    "block_residuals float32 BN64 BK128 BD32 LOGITS6 PRODUCTS3 LOG warps4",
    "slice_products float32 BN64 BK16 BD64 PRODUCTS3 STEP COMPENSATED ADD warps4",
    "slice_products float32 BN128 BK128 BD64 PRODUCTS3 STEP COMPENSATED ADD warps8",
    "slice_products float64 BN16 BK128 BD32 PRODUCTS0 STEP ADD warps4",
    "narrow_hessian float32 BN128 BK64 BD32 LOGITS6 PRODUCTS3 warps8",
    "split_rows float32 BM16 BD128 HALF2 BRAIN2 SCALED warps8",
    "logits float32 BM64 BN128 BR32 LOGITS3 KEEP EPILOGUE warps4",
    "logits float64 BM64 BN64 BR16 LOGITS0 KEEP EPILOGUE warps4",
    "class_products float32 BM128 BN128 BR64 PRODUCTS3 ADD warps8",
    "sample_products float32 BM64 BN64 BR32 PRODUCTS3 STEP COMPENSATED warps4",
    "residual_rows float64 BM8 BN128 PRODUCTS0 LOG warps4",
    "hessian_rows float64 BM8 BN128 PRODUCTS0 warps4",
    "weighted_rows float64 BM8 BN128 PRODUCTS0 BIAS WEIGHT SMOOTH SCALES LOSSES GRADS KEEP warps4",
    "scatter_tiles float64 BN16 BD64 PRODUCTS0 warps8",
    "scatter_tiles float32 BN16 BD128 PRODUCTS6 warps8",
    "nearest_tiles float32 BN64 BK32 BD32 LOGITS6 warps4",
    "deviation_rows float32 BN64 BD32 PRODUCTS6 BR64 KEEP warps8",
    "decision_rows float64 BN32 BD32 PRODUCTS0 BK64 warps8",
    "merge_chunks float64 ROWS1024 BC32 BD64 warps4",
    "sum_extents float64 BLOCK512 warps4",
    "small_problems float32 K5 BN64 SLABS3 COMPENSATED warps1",
    "small_products float64 BN64 BK16 BD16 warps2",
    "block_residuals float32 BN64 BK128 BD32 LOGITS6 PRODUCTS3 HALVES warps4",
    "block_gradients float32 BN16 BK16 BD64 SLICES8 STAGES3 PRODUCTS3 STEP COMPENSATED warps8",
    "block_gradients float32 BN16 BK32 BD64 SLICES8 STAGES2 PRODUCTS3 STEP COMPENSATED warps8",
    "logits float32 BM64 BN128 BR64 LOGITS3 KEEP EPILOGUE TMA warps4",
    "logits float32 BM64 BN128 BR64 LOGITS3 KEEP EPILOGUE TMA CARRY warps4",
    "sample_products float32 BM64 BN64 BR64 PRODUCTS3 STEP COMPENSATED TMA warps4",
]


@pytest.mark.parametrize("name", CHOSEN)
def test_hopper(name, tmp_path):
    compile_and_check(CONFIGURATIONS[name], tmp_path, 90)


# Tensor cores that read registers: these have the fewest left, or the most shared memory.
SMALLER = [
    "slice_products float32 BN32 BK64 BD64 PRODUCTS3 STEP COMPENSATED ADD warps8",
    "block_residuals float32 BN64 BK128 BD32 LOGITS6 PRODUCTS3 warps8",
    "narrow_hessian float32 BN64 BK64 BD32 LOGITS6 PRODUCTS3 warps8",
    "scatter_tiles float32 BN16 BD64 PRODUCTS6 warps8",
    "nearest_tiles float32 BN64 BK32 BD32 LOGITS6 warps4",
    "deviation_rows float32 BN32 BD32 PRODUCTS6 BR64 KEEP warps8",
    "logits float32 BM64 BN64 BR32 LOGITS3 KEEP EPILOGUE warps4",
]


@pytest.mark.parametrize("name", SMALLER)
def test_ampere(name, tmp_path):
    compile_and_check(AMPERE[name], tmp_path, 80)


def compile_and_check(configuration, folder, capability):
    found = ahead_gpu.resources(ahead_gpu.compile_ahead(configuration, capability), folder)
    assert found["registers"] <= 255
    assert found["stack"] <= configuration.stack, "registers spill"
    assert found["shared"] <= ahead_gpu.SHARED[capability]
    assert found["hazards"] == 0
    if configuration.tensor_cores:
        assert found[configuration.core(capability)] > 0


def test_the_scan_finds_a_barrier_that_is_not_there():
    # Eight warps whose operands come through a ring of three buffers; registers are not scanned.
    configuration = CONFIGURATIONS["class_products float32 BM128 BN128 BR64 PRODUCTS3 ADD warps8"]
    ptx = ahead_gpu.compile_ahead(configuration).asm["ptx"]
    assert ahead_gpu.hazards(ptx) == []
    found = ahead_gpu.hazards(ptx.replace("bar.sync", "// bar.sync"))
    # The ring is filled again, and the end's tile goes where it was.
    assert {h.statement.split(".")[0] for h in found} == {"cp", "st"}
    assert all("no barrier follows the wait" in h.why for h in found)


def test_the_scan_knows_what_descriptors_write():
    configuration = CONFIGURATIONS[
        "class_products float32 BM128 BN128 BR64 PRODUCTS3 ADD TMA warps8"
    ]
    compiled = ahead_gpu.compile_ahead(configuration)
    ptx, messages = compiled.asm["ptx"], ahead_gpu.messages(compiled)
    # 64 numbers of 2 bytes are as many as a swizzle holds.
    assert messages == [64 * 64 * 2] * 2 and ahead_gpu.hazards(ptx, messages) == []
    found = ahead_gpu.hazards(ptx.replace("bar.sync", "// bar.sync"), messages)
    assert any("bulk.tensor" in h.statement for h in found)


@pytest.mark.parametrize("kernel", ["scatter_tiles", "nearest_tiles"])
def test_nothing_is_converted_at_an_eighth_of_the_rate(kernel, tmp_path):
    """F2F is a conversion of one number, to another width or to bf16 and back."""
    for name, configuration in CONFIGURATIONS.items():
        if name.startswith(f"{kernel} float32"):
            path = tmp_path / "kernel.cubin"
            path.write_bytes(ahead_gpu.compile_ahead(configuration).asm["cubin"])
            command = [str(ahead_gpu.CUOBJDUMP), "-sass", str(path)]
            code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            assert "HGMMA" in code and "F2F." not in code


def test_the_table_has_every_kernel():
    import ast
    from pathlib import Path

    kernels = Path(__file__).parent.parent.parent / "kernels"
    jitted = {
        node.name
        for path in (kernels / "gpu").glob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
        and any("jit" in ast.unparse(d) for d in node.decorator_list)
    }
    # What a kernel calls is compiled with it; only these are launched.
    launched = {
        node.value.id if isinstance(node.value, ast.Name) else node.value.attr
        for path in (kernels / "gpu").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Subscript) and isinstance(node.value, (ast.Name, ast.Attribute))
    } & jitted
    assert launched == {c.kernel.fn.__name__ for c in CONFIGURATIONS.values()}


def test_numbers_keep_their_width():
    # A Python float would become float32, a large count 32 bits, without these annotations.
    width = {"scale": "fp64", "lr": "fp64", "smoothing": "fp64", "n_samples": "i64", "size": "i64"}
    for configuration in CONFIGURATIONS.values():
        for parameter in configuration.kernel.params:
            small = parameter.name == "n_samples" and "small_pro" in configuration.name
            if parameter.name in width and not small:
                assert parameter.annotation_type == width[parameter.name]
