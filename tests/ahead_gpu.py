"""Compiles a Triton kernel for a GPU that need not be there, and reads its resources."""

import re
import subprocess
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
POINTER = {"float32": "*fp32", "float64": "*fp64", "int64": "*i64"}


def compile_ahead(kernel, arguments, constants, options, capability=90):
    """`arguments` maps each run-time name to a Triton type ("*fp32", "i32", ...).

    Pointers are taken to be aligned to 16 bytes, as torch's are; sizes to be any.
    """
    signature = {
        name: "constexpr" if name in constants else arguments[name] for name in kernel.arg_names
    }
    attrs = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*")
    }
    source = ASTSource(kernel, signature, constants, attrs)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"enable_fp_fusion": True, **options})


def resources(compiled, folder):
    """Registers a thread, stack and shared memory in bytes, tensor core instructions."""
    cubin = Path(folder) / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    report = subprocess.run(
        [str(CUOBJDUMP), "--dump-resource-usage", str(cubin)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    ptx = compiled.asm["ptx"]
    return {
        "registers": int(re.search(r"REG:(\d+)", report).group(1)),
        "stack": int(re.search(r"STACK:(\d+)", report).group(1)),
        "shared": int(compiled.metadata.shared),
        "wgmma": len(re.findall(r"wgmma\.mma_async", ptx)),
        "mma": len(re.findall(r"\bmma\.sync", ptx)),
    }
