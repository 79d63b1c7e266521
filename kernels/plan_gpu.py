"""Which Triton kernels run on a problem of K classes, d features and N samples, and in what tiles.

Three regimes, chosen by shape; their tiles are smaller on GPUs with less shared memory, whose
tensor cores take their operands from registers:

- narrow: a row of K <= 128 logits is one tile. One pass over the samples; H is read from
  memory once. K <= 32 is bound by memory, larger K by the tensor cores.
- wide: everything else. Chunks of rows whose logits stay in L2; three matrix products.
- small (trajectory_gpu only): W and H fit the registers of one program, epochs run inside.

Tiers, for float32: "exact" forms the logits, whose error is exponentiated, from three bf16
parts of each number (bf16x6), and the products with the residual, which only need relative
accuracy, from two (bf16x3). "fast" is tf32 throughout. float64 is float64 in both.
"""

from typing import NamedTuple

EXACT, FAST = "exact", "fast"
# Two programs a multiprocessor of the H200: a constant, so that the bits do not depend on the GPU.
PROGRAMS = 264
SCRATCH_BYTES = 256 * 2**20
CHUNK_BYTES = 16 * 2**20


class Narrow(NamedTuple):
    """Tiles, products and grid of the kernels of narrow_gpu."""

    BN: int
    BK: int
    BD: int
    LOGITS: str
    PRODUCTS: str
    num_warps: int
    num_stages: int
    programs: int
    blocks: int

    @property
    def tiles(self) -> dict:
        """The compile-time arguments that all narrow kernels take."""
        return {"BN": self.BN, "BK": self.BK, "BD": self.BD, "LOGITS": self.LOGITS}

    @property
    def options(self) -> dict:
        return options(self.num_warps, self.num_stages)

    @property
    def hessian_options(self) -> dict:
        """In float64 r and dr together need the registers of twice as many warps."""
        warps = self.num_warps * 2 if self.LOGITS == "ieee" else self.num_warps
        return options(warps, self.num_stages)


class Wide(NamedTuple):
    """Rows a chunk, tile, products and the number of partials of dW of wide_gpu."""

    chunk: int
    BM: int
    BN: int
    BR: int
    LOGITS: str
    PRODUCTS: str
    num_warps: int
    num_stages: int
    splits: int

    @property
    def options(self) -> dict:
        return options(self.num_warps, self.num_stages)

    def step_width(self, compensated: bool) -> int:
        """Columns of a tile of H's step, whose compensation needs registers too."""
        return self.BN // 2 if compensated else self.BN


# (BN, BD, warps, stages) by the padded number of classes; chosen so that nothing spills.
_NARROW = {
    ("float32", EXACT): {
        16: (64, 64, 4, 1), 32: (64, 32, 4, 2), 64: (128, 32, 8, 2), 128: (64, 32, 8, 1)
    },
    ("float32", FAST): {
        16: (64, 64, 4, 1), 32: (64, 32, 4, 2), 64: (128, 32, 8, 2), 128: (64, 32, 8, 2)
    },
    ("float64", EXACT): {
        16: (32, 32, 4, 1), 32: (32, 32, 4, 1), 64: (32, 16, 4, 1), 128: (16, 16, 4, 1)
    },
}  # fmt: skip
_SMALL_NARROW = {
    ("float32", EXACT): {
        16: (64, 32, 4, 1), 32: (64, 32, 8, 1), 64: (64, 32, 8, 1), 128: (32, 16, 8, 1)
    },
    ("float32", FAST): {
        16: (64, 32, 4, 1), 32: (64, 32, 8, 1), 64: (64, 32, 8, 1), 128: (32, 32, 8, 1)
    },
    ("float64", EXACT): _NARROW["float64", EXACT],
}  # fmt: skip
# (BM, BN, BR, warps, stages): an output tile is BM x BN, its reduction goes in steps of BR.
_WIDE = {
    ("float32", EXACT): (128, 128, 32, 8, 2),
    ("float32", FAST): (128, 128, 32, 8, 3),
    ("float64", EXACT): (64, 64, 16, 4, 2),
}
_SMALL_WIDE = {
    ("float32", EXACT): (64, 64, 32, 4, 2),
    ("float32", FAST): (64, 128, 32, 8, 2),
    ("float64", EXACT): _WIDE["float64", EXACT],
}
PRODUCTS = {
    ("float32", EXACT): ("bf16x6", "bf16x3"),
    ("float32", FAST): ("tf32", "tf32"),
    ("float64", EXACT): ("ieee", "ieee"),
}


def options(num_warps: int, num_stages: int) -> dict:
    """What every launch says; `enable_fp_fusion` because its default differs between versions."""
    return {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}


def has_large_tiles(capability: tuple) -> bool:
    """Whether a GPU has 227 KB of shared memory a program: compute capability 9.0 and 10."""
    return capability[0] in (9, 10)


def plan(
    n_classes: int, dim: int, n_samples: int, dtype: str, tier: str, large: bool
) -> "Narrow | Wide":
    """The regime and the tiles of one problem; `dtype` is "float32" or "float64"."""
    key = (dtype, EXACT if dtype == "float64" else tier)
    word = 8 if dtype == "float64" else 4
    if n_classes <= 128:
        padded = max(16, 1 << (n_classes - 1).bit_length())
        BN, BD, num_warps, num_stages = (_NARROW if large else _SMALL_NARROW)[key][padded]
        n_blocks = cdiv(n_samples, BN)
        most = PROGRAMS if num_warps == 4 else PROGRAMS // 2
        if most * n_classes * dim * word <= SCRATCH_BYTES:
            blocks = cdiv(n_blocks, most)
            programs = cdiv(n_blocks, blocks)
            return Narrow(BN, padded, BD, *PRODUCTS[key], num_warps, num_stages, programs, blocks)
    return wide_plan(n_classes, dim, n_samples, dtype, tier, large)


def wide_plan(n_classes: int, dim: int, n_samples: int, dtype: str, tier: str, large: bool) -> Wide:
    """The wide regime's chunks and tiles for any number of classes."""
    key = (dtype, EXACT if dtype == "float64" else tier)
    word = 8 if dtype == "float64" else 4
    BM, BN, BR, num_warps, num_stages = (_WIDE if large else _SMALL_WIDE)[key]
    # A chunk's logits stay in L2, but W is read again for every chunk: at least 1024 rows.
    chunk = max(1024, CHUNK_BYTES // (word * n_classes))
    chunk = min(cdiv(n_samples, BM), cdiv(chunk, BM)) * BM
    tiles = cdiv(n_classes, BM) * cdiv(dim, BN)
    splits = max(1, min(PROGRAMS // 2 // tiles, cdiv(chunk, 4 * BR)))
    return Wide(chunk, BM, BN, BR, *PRODUCTS[key], num_warps, num_stages, splits)


def scratch_bytes(shape: "Narrow | Wide", n_classes: int, dim: int, word: int) -> int:
    """What one call of the gradients takes beside its arguments."""
    if isinstance(shape, Narrow):
        return shape.programs * n_classes * dim * word
    return (shape.splits * dim + shape.chunk) * n_classes * word


def shipped(large: bool):
    """Every (dtype, tier, plan) of a kind of GPU: what the tests compile ahead of time."""
    for key, table in (_NARROW if large else _SMALL_NARROW).items():
        for padded, (BN, BD, num_warps, num_stages) in table.items():
            yield *key, Narrow(BN, padded, BD, *PRODUCTS[key], num_warps, num_stages, 1, 1)
    for key, (BM, BN, BR, num_warps, num_stages) in (_WIDE if large else _SMALL_WIDE).items():
        yield *key, Wide(BM, BM, BN, BR, *PRODUCTS[key], num_warps, num_stages, 1)


def cdiv(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)
