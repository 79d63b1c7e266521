"""Compiles the Triton kernels for a GPU that need not be there, and reads their resources.

`configurations` lists every kernel in every form that a launcher can ask for; the tests take a
few of them, `bench/gpu.py --compile-only` takes all.
"""

import itertools
import math
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import triton
from operand_hazards import hazards
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastnc.kernels.gpu import deviations as deviations_gpu
from fastnc.kernels.gpu import hessian as hessian_gpu
from fastnc.kernels.gpu import narrow as narrow_gpu
from fastnc.kernels.gpu import one_pass as one_pass_gpu
from fastnc.kernels.gpu import parts as parts_gpu
from fastnc.kernels.gpu import plan as plan_gpu
from fastnc.kernels.gpu import reduce as reduce_gpu
from fastnc.kernels.gpu import scatter as scatter_gpu
from fastnc.kernels.gpu import trajectory as trajectory_gpu
from fastnc.kernels.gpu import trajectory_products as small_gpu
from fastnc.kernels.gpu import weighted_cross_entropy as weighted_cross_entropy_gpu
from fastnc.kernels.gpu import wide as wide_gpu
from fastnc.kernels.gpu import wide_products as products_gpu

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
# Shared memory that a program may have, in bytes, by the CUDA C++ Programming Guide: that of 8.6
# and 8.9 for all of compute capability 8.
SHARED = {80: 99 * 1024, 90: 227 * 1024}
# Arguments that are not pointers to the problem's floats.
DOUBLES = (
    "loss_parts", "shift_parts", "extent", "log_loss", "means", "squares", "chunk_means",
    "chunk_squares", "centre",
)  # fmt: skip
INTEGERS = ("y", "order", "starts", "first", "class_of", "nearest", "owner", "present")
SIZES = (
    "n_samples", "n_classes", "dim", "blocks", "n_rows", "n_tiles", "rows_per_split", "n_parts",
    "size", "n_means", "epochs", "n_directions", "width", "z_width", "n_columns",
)  # fmt: skip
# Bytes of a thread's state that may lie in memory: of the end of a tile, once a tile, and of small
# problems, where more warps were measured 40 % slower. The oldest Triton leaves most.
# For 8.0 the compiler leaves 16 of three forms: what the log domain adds after a block's products,
# and rows in float64 and nearest means, for which it takes 96 and 168 registers of its own accord.
LEFT = {"logits": 32, "narrow_hessian": 32, "slice_products": 256, "small_problems": 512}
LEFT |= {"block_residuals": 16, "weighted_rows": 16, "nearest_tiles": 16}
# The one pass of 32 classes is there to be timed; that of 16 fits.
LEFT |= {"block_gradients": 24, "block_gradients BK32": 544}
# Arguments that hold parts of floats, by kernel (parts_gpu).
HALF = {"logits": ("A", "B"), "split_rows": ("half",), "block_gradients": ("W_half",)}
BRAIN = {
    "split_rows": ("brain",),
    "block_losses": ("W",),
    "narrow_hessian": ("W", "dW"),
    "block_residuals": ("W", "R"),
    "block_gradients": ("W_brain",),
    "slice_products": ("W", "R"),
    "residual_rows": ("R",),
    "hessian_rows": ("R", "dR"),
    "weighted_rows": ("R",),
    "class_products": ("R", "A"),
    "sample_products": ("R", "B"),
}

# Operands that may be descriptors: rows and columns of their tiles, by kernel.
DESCRIPTORS = {
    "A": {"logits": ("BM", "BR"), "class_products": ("BR", "BN")},
    "B": {"logits": ("BN", "BR"), "sample_products": ("BR", "BN")},
    "R": {"class_products": ("BR", "BM"), "sample_products": ("BM", "BR")},
}


class Configuration(NamedTuple):
    """One kernel in one form; `tensor_cores` says that it claims them."""

    kernel: object
    dtype: str
    constants: dict
    options: dict
    tensor_cores: bool = False
    doubles: tuple = ()

    @property
    def stack(self):
        """Bytes a thread that may be left in memory; see LEFT."""
        name = self.kernel.fn.__name__
        return LEFT.get(f"{name} BK{self.constants.get('BK')}", LEFT.get(name, 0))

    @property
    def name(self):
        flags = [k for k, v in self.constants.items() if v is True]
        tiles = [f"{k}{v}" for k, v in self.constants.items() if not isinstance(v, bool)]
        words = [self.kernel.fn.__name__, self.dtype, *tiles, *flags]
        return " ".join([*words, f"warps{self.options['num_warps']}"])

    def core(self, capability):
        """The tensor cores' instruction: 16 samples are too few rows for that of 9.0."""
        few = self.kernel.fn.__name__ == "block_gradients"
        return "wgmma" if capability == 90 and not few else "mma"

    def tile(self, name):
        """Rows and columns of the tile of an operand."""
        rows, columns = DESCRIPTORS[name][self.kernel.fn.__name__]
        return f"{self.constants[rows]}, {self.constants[columns]}"

    def types(self):
        """The Triton type of every run-time argument."""
        types, single = {}, self.dtype == "float32"
        half, brain = (x.get(self.kernel.fn.__name__, ()) for x in (HALF, BRAIN))
        for parameter in self.kernel.params:
            name = parameter.name
            if name in self.constants:
                continue
            halves = name == "W" and self.constants.get("HALVES")
            if name in DESCRIPTORS and self.constants.get("TMA"):
                number = "fp16" if name in half else "bf16"
                types[name] = f"tensordesc<{number}[1, {self.tile(name)}]>"
            elif parameter.annotation_type:
                types[name] = parameter.annotation_type
            elif single and (name in half or halves):
                types[name] = "*fp16"
            elif single and name in brain:
                types[name] = "*bf16"
            elif name in SIZES:
                types[name] = "i32"
            elif name in INTEGERS:
                types[name] = "*i64"
            elif name in DOUBLES or name in self.doubles:
                types[name] = "*fp64"
            else:
                types[name] = "*fp32" if single else "*fp64"
        return types


def compile_ahead(configuration, capability=90, aligned=True):
    """The compiled kernel; `aligned`: sizes are multiples of 16, else they are any number."""
    kernel, constants = configuration.kernel, configuration.constants
    types = configuration.types()
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    attrs = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*")
        or (aligned and name in SIZES and not kernel.params[i].do_not_specialize)
    }
    source = ASTSource(kernel, signature, constants, attrs)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options=configuration.options)


def messages(compiled):
    """The bytes that a copy by each descriptor writes."""
    return [x["elem_size"] * math.prod(x["block_size"]) for x in compiled.metadata.tensordesc_meta]


def resources(compiled, folder):
    """Registers a thread, stack and shared memory in bytes, tensor core instructions, hazards."""
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
        "hazards": len(hazards(ptx, messages(compiled))) if "wgmma" in ptx else 0,
    }


def configurations(capability):
    """Every form of every kernel on such a GPU, each once."""
    for dtype, tier, shape in plan_gpu.shipped(plan_gpu.has_large_tiles((capability // 10, 0))):
        yield from _REGIMES[type(shape)](dtype, tier, shape)
    yield from _parts()
    for dtype in ("float32", "float64"):
        yield from _sums(dtype)
        yield from _classes(dtype, plan_gpu.has_large_tiles((capability // 10, 0)))
    yield from _deviations(plan_gpu.has_large_tiles((capability // 10, 0)))
    yield from _small()


def _parts():
    for half, brain in ((0, 3), (0, 2), (2, 0), (0, 1), (2, 2), (2, 1)):
        constants = {
            "BM": parts_gpu.BM,
            "BD": parts_gpu.BD,
            "HALF": half,
            "BRAIN": brain,
            "SCALED": half > 0,
        }
        options = plan_gpu.options(parts_gpu.WARPS, 1)
        yield Configuration(parts_gpu.split_rows, "float32", constants, options)


def _forms(dtype, tier):
    """(LOG, STEP, COMPENSATED) of the gradients; only float32 at the exact tier is compensated."""
    for log, step, low in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 1, 1)):
        if not low or (dtype == "float32" and tier == plan_gpu.EXACT):
            yield bool(log), bool(step), bool(low)


def _narrow(dtype, tier, shape):
    single = dtype == "float32"
    for log in (False, True):
        constants = {**shape.tiles, "LOG": log}
        yield Configuration(narrow_gpu.block_losses, dtype, constants, shape.options, single)
        constants = {**shape.tiles, "PRODUCTS": shape.PRODUCTS, "LOG": log}
        yield Configuration(narrow_gpu.block_residuals, dtype, constants, shape.options, single)
    tile = shape.slices
    tiles = {"BN": tile.BM, "BK": shape.BK, "BD": tile.BN, "PRODUCTS": shape.PRODUCTS}
    for log, step, low in _forms(dtype, tier):
        for add in (False, True) if not log else ():
            constants = {**tiles, "STEP": step, "COMPENSATED": low, "ADD": add}
            yield Configuration(narrow_gpu.slice_products, dtype, constants, tile.options, single)


def _one_pass(dtype, tier, shape):
    for log in (False, True) if shape.SLICES == 1 else ():
        constants = {**shape.narrow.tiles, "LOG": log}
        options = shape.narrow.options
        yield Configuration(narrow_gpu.block_losses, dtype, constants, options, True)
    for log, step, low in _forms(dtype, tier):
        constants = {**shape.tiles, "LOG": log, "STEP": step, "COMPENSATED": low}
        yield Configuration(one_pass_gpu.block_gradients, dtype, constants, shape.options, True)


def _hessian(dtype, tier, shape):
    kernel, single = hessian_gpu.narrow_hessian, dtype == "float32"
    yield Configuration(kernel, dtype, shape.tiles, shape.options, single)


def _wide(dtype, tier, shape):
    single = dtype == "float32"
    products = {"PRODUCTS": shape.PRODUCTS}
    tma = {"TMA": shape.TMA}
    for keep, add, epilogue in ((0, 0, 1), (1, 0, 1), (1, 0, 0), (1, 1, 0)):
        flags = {"KEEP": bool(keep), "ADD": bool(add), "EPILOGUE": bool(epilogue)}
        constants = {**shape.logits.blocks, "LOGITS": shape.LOGITS, **flags, **tma}
        constants["CARRY"] = shape.CARRY
        options = shape.logits.options if not add else plan_gpu.options(8, shape.logits.num_stages)
        yield Configuration(products_gpu.logits, dtype, constants, options, single)
    if shape.CARRY:
        return
    for add in (False, True):
        constants = {**shape.classes.blocks, **products, "ADD": add, **tma}
        options = shape.classes.options
        yield Configuration(products_gpu.class_products, dtype, constants, options, single)
    for step, low, add in ((0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 1, 0)):
        if not low or (single and tier == plan_gpu.EXACT):
            tile = shape.step(bool(low))
            flags = {"STEP": bool(step), "COMPENSATED": bool(low), "ADD": bool(add)}
            constants = {**tile.blocks, **products, **flags, **tma}
            yield Configuration(
                products_gpu.sample_products, dtype, constants, tile.options, single
            )
    if shape.TMA:
        return
    rows, four = {"BM": wide_gpu.ROWS, "BN": wide_gpu.COLUMNS}, plan_gpu.options(4, 1)
    for log in (False, True):
        constants = {**rows, **products, "LOG": log}
        yield Configuration(wide_gpu.residual_rows, dtype, constants, four)
    yield Configuration(hessian_gpu.hessian_rows, dtype, {**rows, **products}, four)
    if tier == plan_gpu.EXACT:
        for log in (False, True):
            constants = {"BM": wide_gpu.ROWS, "LOG": log}
            yield Configuration(wide_gpu.row_extents, dtype, constants, four)
        yield from _weighted(dtype, {**rows, **products}, four)


def _weighted(dtype, rows, options):
    names = ("BIAS", "WEIGHT", "SMOOTH", "SCALES", "LOSSES", "GRADS", "KEEP")
    for flags in (
        (0, 0, 0, 0, 0, 0, 0), (0, 0, 0, 0, 0, 1, 0), (1, 0, 0, 1, 1, 1, 1), (1, 1, 1, 1, 1, 1, 1),
    ):  # fmt: skip
        constants = {**rows, **dict(zip(names, map(bool, flags), strict=True))}
        yield Configuration(weighted_cross_entropy_gpu.weighted_rows, dtype, constants, options)
    for add in (False, True):
        constants = {"BM": 64, "BN": 64, "ADD": add}
        kernel = weighted_cross_entropy_gpu.column_sums
        yield Configuration(kernel, dtype, constants, options, doubles=("parts",))


def _sums(dtype):
    four = plan_gpu.options(4, 1)
    if dtype == "float64":
        yield Configuration(reduce_gpu.sum_losses, dtype, {"BLOCK": 512}, four)
        yield Configuration(reduce_gpu.sum_extents, dtype, {"BLOCK": 512}, four)
    for step, low in itertools.product((False, True), repeat=2):
        if step or not low:
            constants = {"STEP": step, "COMPENSATED": low, "BLOCK": 256}
            yield Configuration(reduce_gpu.sum_parts, dtype, constants, four)
    if dtype == "float32":
        # What ranks share is float64: one's own sum, and the step by everyone's.
        for step, double in ((False, "out"), (True, "parts")):
            constants = {"STEP": step, "COMPENSATED": step, "BLOCK": 256}
            kernel = reduce_gpu.sum_parts
            yield Configuration(kernel, dtype, constants, four, doubles=(double,))


def _classes(dtype, large):
    four = plan_gpu.options(4, 1)
    rows, tile = scatter_gpu.ROWS, 64
    constants = {"ROWS": rows, "BN": scatter_gpu.BLOCK, "BD": tile}
    yield Configuration(scatter_gpu.chunk_moments, dtype, constants, plan_gpu.options(2, 1))
    constants = {"ROWS": rows, "BC": 32, "BD": tile}
    if dtype == "float64":
        yield Configuration(scatter_gpu.merge_chunks, dtype, constants, four)
    products = 6 if dtype == "float32" else 0
    single = dtype == "float32"
    for dim in (64, 128) if single and large else (64,):
        scatter_rows, wide, warps = scatter_gpu.scatter_tile(dim, 4 if single else 8, large)
        constants = {"BN": scatter_rows, "BD": wide, "PRODUCTS": products}
        options = plan_gpu.options(warps, 1)
        yield Configuration(scatter_gpu.scatter_tiles, dtype, constants, options, single)
    constants = {"BN": 64, "BK": 32, "BD": 32, "LOGITS": products}
    yield Configuration(scatter_gpu.nearest_tiles, dtype, constants, four, dtype == "float32")


def _deviations(large):
    numbers = ("g", "weights", "tilt", "offset", "parts")
    # Features, products, and widths: single-precision products are for many directions only.
    forms = (
        ("float32", False, (64,)),
        ("float32", True, (16, 32, 64)),
        ("float64", True, (16, 32, 64)),
    )
    for dtype, double, widths in forms:
        doubles = numbers + (("Q", "A", "W", "projections") if double else ())
        tiles = {"BN": deviations_gpu.rows_of(double, large), "BD": 32}
        tiles["PRODUCTS"] = 0 if double else 6
        for wide, keep in itertools.product(widths, (False, True)):
            constants = {**tiles, "BR": wide, "KEEP": keep}
            kernel = deviations_gpu.deviation_rows
            options = deviations_gpu.spread(wide)
            yield Configuration(kernel, dtype, constants, options, not double, doubles)
        for wide in widths:
            constants = {**tiles, "BK": wide}
            kernel = deviations_gpu.decision_rows
            options = deviations_gpu.spread(wide)
            yield Configuration(kernel, dtype, constants, options, not double, doubles)


# (K, d, N): the paper's problem, the least, and some of the largest in each direction.
SMALL = [(5, 20, 50), (2, 1, 1), (2, 88, 64), (3, 64, 32), (5, 32, 64), (3, 8, 512), (10, 16, 64)]
SMALL += [(12, 8, 64), (4, 40, 40), (5, 20, 128), (10, 10, 128), (8, 16, 64)]


def _small():
    for K, d, N in SMALL:
        tile = small_gpu.product_tile(K, d, N)
        if tile is not None:
            constants = dict(zip(("BN", "BK", "BD"), tile, strict=True))
            yield Configuration(
                small_gpu.small_products, "float64", constants,
                trajectory_gpu.small_options(small_gpu.WARPS),
            )  # fmt: skip
        for dtype, low in (("float64", False), ("float32", True)):
            BN, slabs, num_warps = trajectory_gpu.small_tile(K, d, N, dtype == "float64")
            constants = {"K": K, "BN": BN, "SLABS": slabs, "COMPENSATED": low}
            yield Configuration(
                trajectory_gpu.small_problems, dtype, constants,
                trajectory_gpu.small_options(num_warps), doubles=("rates",),
            )  # fmt: skip


_REGIMES = {
    plan_gpu.Narrow: _narrow, plan_gpu.OnePass: _one_pass, plan_gpu.Hessian: _hessian,
    plan_gpu.Wide: _wide,
}  # fmt: skip
