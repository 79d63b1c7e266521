"""Which Triton kernels run on a problem of K classes, d features and N samples, in which tiles.

Three regimes, chosen by shape; tiles are smaller on GPUs with less shared memory, whose tensor
cores take their operands from registers:

- narrow: a row of K <= 128 logits is one tile. Two passes over the samples, or one (`one_pass`).
- wide: everything else. Chunks of rows whose logits stay in L2; three matrix products.
- small (`trajectory` only): W and H fit the registers of one program, epochs run inside.

Tiers, for float32, differ in the number of terms of the products (`parts`). "exact": logits, whose
error is exponentiated, in all bits of float32 (6 terms of bf16, or 3 of scaled fp16); products with
the residual, which need relative accuracy only, in 16 bits (3 terms of bf16). "fast": these
products in 8 bits (1 term), and logits of K <= 128 in 16. float64 is the same in both.
"""

from typing import NamedTuple

EXACT, FAST = "exact", "fast"
# Two programs a multiprocessor of the H200: a constant, so that the bits do not depend on the GPU.
PROGRAMS = 264
SCRATCH_BYTES = 256 * 2**20
# Parts of a factor, by the terms of its products.
_PARTS = {0: 1, 1: 1, 3: 2, 6: 3}
CHUNK_BYTES, CHUNK_ROWS = 64 * 2**20, 2048


class Tile(NamedTuple):
    """An output tile (BM, BN) of a product whose reduction goes in steps of BR."""

    BM: int
    BN: int
    BR: int
    num_warps: int
    num_stages: int

    @property
    def blocks(self) -> dict:
        return {"BM": self.BM, "BN": self.BN, "BR": self.BR}

    @property
    def options(self) -> dict:
        return options(self.num_warps, self.num_stages)


class Narrow(NamedTuple):
    """The plan of `narrow`: blocks (BN, BK) of logits over slices of BD; the second pass's tile, of
    BM samples and BN features; rows a chunk; the number of partials of dW; whether logits take two
    scaled fp16 parts of each factor, in three terms, and not bf16's six."""

    BN: int
    BK: int
    BD: int
    num_warps: int
    num_stages: int
    slices: Tile
    LOGITS: int
    PRODUCTS: int
    chunk: int
    splits: int
    HALVES: bool = False

    @property
    def tiles(self) -> dict:
        """The compile-time arguments of the first pass."""
        return {
            "BN": self.BN, "BK": self.BK, "BD": self.BD, "LOGITS": self.LOGITS,
            "HALVES": self.HALVES,
        }  # fmt: skip

    @property
    def options(self) -> dict:
        return options(self.num_warps, self.num_stages)

    @property
    def W_halves(self) -> int:
        """The number of fp16 parts of W's scaled rows, for the logits."""
        return 2 if self.HALVES else 0

    @property
    def W_parts(self) -> int:
        """The number of bf16 parts of W, for the products, and without HALVES for the logits."""
        return self.R_parts if self.HALVES else max(_PARTS[self.LOGITS], self.R_parts)

    def of_logits(self, W_planes):
        """The planes of W for the logits."""
        return W_planes.half if self.HALVES else W_planes.brain

    @property
    def R_parts(self) -> int:
        """The number of parts of the residual, for the products."""
        return _PARTS[self.PRODUCTS]


class OnePass(NamedTuple):
    """The plan of `one_pass`: rows a block, padded classes, slices of 64 features, a warp each; the
    number of programs, which is that of partials of dW, and of blocks of each; the plan of the
    loss alone."""

    BN: int
    BK: int
    SLICES: int
    num_stages: int
    PRODUCTS: int
    programs: int
    blocks: int
    narrow: Narrow

    @property
    def tiles(self) -> dict:
        """The compile-time arguments."""
        return {
            "BN": self.BN, "BK": self.BK, "BD": SLICE, "SLICES": self.SLICES,
            "STAGES": self.num_stages, "PRODUCTS": self.PRODUCTS,
        }  # fmt: skip

    @property
    def options(self) -> dict:
        # All registers of a multiprocessor that runs one program of eight warps.
        return {**options(self.SLICES, self.num_stages), "maxnreg": 255}

    @property
    def W_parts(self) -> int:
        """The number of bf16 parts of W, for dH."""
        return _PARTS[self.PRODUCTS]


class Hessian(NamedTuple):
    """Tiles, products and grid of the kernel of `hessian` for K <= 128."""

    BN: int
    BK: int
    BD: int
    num_warps: int
    num_stages: int
    LOGITS: int
    PRODUCTS: int
    programs: int
    blocks: int

    @property
    def tiles(self) -> dict:
        """The compile-time arguments."""
        return {
            "BN": self.BN, "BK": self.BK, "BD": self.BD, "LOGITS": self.LOGITS,
            "PRODUCTS": self.PRODUCTS,
        }  # fmt: skip

    @property
    def options(self) -> dict:
        return options(self.num_warps, self.num_stages)

    @property
    def W_parts(self) -> int:
        """The number of parts of W, for the logits."""
        return _PARTS[self.LOGITS]


class Wide(NamedTuple):
    """The plan of `wide`: rows a chunk, tiles, products, the number of partials of dW; whether the
    products' operands are descriptors (TMA), and whether the rounding errors of the logits' sums
    are added up (CARRY)."""

    chunk: int
    logits: Tile
    classes: Tile
    samples: Tile
    compensated: Tile
    LOGITS: int
    PRODUCTS: int
    splits: int
    TMA: bool = False
    CARRY: bool = False

    @property
    def parts(self) -> int:
        """The number of parts of each factor, for the products with the residual."""
        return _PARTS[self.PRODUCTS]

    def step(self, compensated: bool) -> Tile:
        """The tile of H's step, whose compensation needs registers too."""
        return self.compensated if compensated else self.samples


# By the padded number of classes: (BN, BD, warps, stages) of the logits; tile of the second pass.
_NARROW = {
    ("float32", EXACT): {
        16: (64, 64, 4, 3, Tile(64, 64, 0, 4, 3)), 32: (64, 32, 4, 4, Tile(64, 64, 0, 4, 3)),
        64: (64, 32, 4, 3, Tile(64, 64, 0, 4, 3)), 128: (64, 32, 4, 2, Tile(128, 64, 0, 8, 2)),
    },
    ("float64", EXACT): {
        16: (32, 32, 4, 2, Tile(32, 32, 0, 4, 2)), 32: (32, 32, 4, 2, Tile(32, 32, 0, 4, 2)),
        64: (32, 16, 4, 2, Tile(16, 32, 0, 4, 2)), 128: (16, 16, 4, 2, Tile(16, 32, 0, 4, 1)),
    },
}  # fmt: skip
_NARROW["float32", FAST] = _NARROW["float32", EXACT]
_SMALL_NARROW = {
    ("float32", EXACT): {
        16: (64, 32, 4, 2, Tile(32, 64, 0, 4, 2)), 32: (64, 32, 4, 2, Tile(32, 64, 0, 4, 2)),
        64: (64, 32, 8, 1, Tile(32, 64, 0, 8, 2)), 128: (64, 32, 8, 1, Tile(32, 64, 0, 8, 1)),
    },
    ("float64", EXACT): _NARROW["float64", EXACT],
}  # fmt: skip
_SMALL_NARROW["float32", FAST] = _SMALL_NARROW["float32", EXACT]
# (BN, BD, warps, stages) of logits in scaled fp16, and the padded numbers of classes for which they
# are used: none until they are timed on a GPU. Interpreted, they are as exact as six terms from
# d = 256 on; at d = 8, where a logit sums few large products, their error is 2.5 times as large.
HALVES_TILES = {64: (64, 32, 4, 3), 128: (64, 32, 4, 3)}
SHIPPED_HALVES: frozenset = frozenset()
# Features a slice of the one pass, the most of all slices, rows a block, and stages by the padded
# number of classes; for which of these it is used: none until it is timed on a GPU.
SLICE, ONE_PASS_DIM, ONE_PASS_ROWS = 64, 512, 16
ONE_PASS_STAGES = {16: 3, 32: 2}
SHIPPED_ONE_PASS: frozenset = frozenset()
# (BN, BD, warps, stages).
_HESSIAN = {
    ("float32", EXACT): {
        16: (64, 64, 4, 1), 32: (64, 32, 4, 2), 64: (128, 32, 8, 2), 128: (128, 32, 8, 2)
    },
    ("float64", EXACT): {
        16: (32, 32, 8, 1), 32: (32, 32, 8, 1), 64: (32, 16, 8, 1), 128: (16, 16, 8, 1)
    },
}  # fmt: skip
_HESSIAN["float32", FAST] = _HESSIAN["float32", EXACT]
_SMALL_HESSIAN = {
    ("float32", EXACT): {
        16: (64, 32, 4, 1), 32: (64, 32, 8, 1), 64: (64, 32, 8, 1), 128: (32, 16, 8, 1)
    },
    ("float64", EXACT): _HESSIAN["float64", EXACT],
}  # fmt: skip
_SMALL_HESSIAN["float32", FAST] = _SMALL_HESSIAN["float32", EXACT]
# Tiles of the logits, of dW, of dH or H's step, and of a compensated step.
_WIDE = {
    ("float32", EXACT): (
        Tile(64, 128, 32, 4, 4), Tile(128, 128, 64, 8, 3), Tile(64, 128, 32, 4, 4),
        Tile(64, 64, 32, 4, 4),
    ),
    ("float64", EXACT): (Tile(64, 64, 16, 4, 3),) * 4,
}  # fmt: skip
_WIDE["float32", FAST] = _WIDE["float32", EXACT]
# The same of products whose operands are descriptors, and whether these are used: not until they
# are timed on a GPU.
DESCRIPTOR_TILES = (
    Tile(64, 128, 64, 4, 3), Tile(128, 128, 64, 8, 3), Tile(64, 128, 64, 4, 3),
    Tile(64, 64, 64, 4, 3),
)  # fmt: skip
SHIPPED_DESCRIPTORS = False
_SMALL_WIDE = {
    ("float32", EXACT): (
        Tile(64, 64, 32, 4, 2), Tile(64, 64, 32, 4, 2), Tile(64, 64, 32, 4, 2),
        Tile(64, 32, 32, 4, 2),
    ),
    ("float64", EXACT): _WIDE["float64", EXACT],
}  # fmt: skip
_SMALL_WIDE["float32", FAST] = _SMALL_WIDE["float32", EXACT]
# Terms of the logits and of the products with the residual: of one tile, and in the wide regime.
_TERMS = {("float32", EXACT): (6, 3), ("float32", FAST): (3, 1), ("float64", EXACT): (0, 0)}
_WIDE_TERMS = {("float32", EXACT): (3, 3), ("float32", FAST): (3, 1), ("float64", EXACT): (0, 0)}


def options(num_warps: int, num_stages: int) -> dict:
    """The options of a launch; `enable_fp_fusion` because its default differs between versions."""
    return {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}


def has_large_tiles(capability: tuple) -> bool:
    """Whether a GPU has 227 KB of shared memory a program: compute capability 9.0 and 10."""
    return capability[0] in (9, 10)


def plan(
    n_classes: int, dim: int, n_samples: int, dtype: str, tier: str, large: bool
) -> "Narrow | OnePass | Wide":
    """The regime and the tiles of one problem; `dtype` is "float32" or "float64"."""
    if n_classes > 128:
        return wide_plan(n_classes, dim, n_samples, dtype, tier, large)
    key, padded = _key(dtype, tier), _padded(n_classes)
    tiles = (_NARROW if large else _SMALL_NARROW)[key][padded]
    word = _word(dtype)
    chunk = min(n_samples, SCRATCH_BYTES // (padded * word))
    rows, width, *_ = tiles[-1]
    splits = max(1, min(PROGRAMS // cdiv(dim, width), cdiv(chunk, 4 * rows)))
    shape = Narrow(tiles[0], padded, *tiles[1:], *_TERMS[key], chunk, splits)
    if large and word == 4:
        if padded in SHIPPED_ONE_PASS and dim <= ONE_PASS_DIM:
            return in_one_pass(shape, dim, n_samples)
        if padded in SHIPPED_HALVES:
            return in_halves(shape)
    return shape


def in_halves(shape: Narrow) -> Narrow:
    """The same plan with logits in scaled fp16, in their own tiles."""
    BN, BD, warps, stages = HALVES_TILES[shape.BK]
    return shape._replace(BN=BN, BD=BD, num_warps=warps, num_stages=stages, HALVES=True)


def in_one_pass(shape: Narrow, dim: int, n_samples: int) -> OnePass:
    """The same problem in one pass: as many programs as run at a time, or fewer of four blocks."""
    slices = 1 << (cdiv(dim, SLICE) - 1).bit_length()
    n_blocks = cdiv(n_samples, ONE_PASS_ROWS)
    blocks = max(4, cdiv(n_blocks, 4 * PROGRAMS // slices))
    return OnePass(
        ONE_PASS_ROWS, shape.BK, slices, ONE_PASS_STAGES[shape.BK], shape.PRODUCTS,
        cdiv(n_blocks, blocks), blocks, shape._replace(HALVES=True),
    )  # fmt: skip


def wide_plan(n_classes: int, dim: int, n_samples: int, dtype: str, tier: str, large: bool) -> Wide:
    """The wide regime's chunks and tiles for any number of classes."""
    key = _key(dtype, tier)
    tiles = (_WIDE if large else _SMALL_WIDE)[key]
    # A chunk's logits and its rows' parts should stay in L2, but W is read again for every chunk.
    chunk = max(CHUNK_ROWS, CHUNK_BYTES // (_word(dtype) * max(n_classes, dim)))
    BM = tiles[0].BM
    chunk = min(cdiv(n_samples, BM), cdiv(chunk, BM)) * BM
    n_tiles = cdiv(n_classes, tiles[1].BM) * cdiv(dim, tiles[1].BN)
    splits = max(1, min(PROGRAMS // 2 // n_tiles, cdiv(chunk, 4 * tiles[1].BR)))
    shape = Wide(chunk, *tiles, *_WIDE_TERMS[key], splits)
    return in_descriptors(shape) if SHIPPED_DESCRIPTORS and large and shape.LOGITS else shape


def in_descriptors(shape: Wide) -> Wide:
    """The same plan with operands that are descriptors, in their own tiles."""
    logits, classes, samples, compensated = DESCRIPTOR_TILES
    return shape._replace(
        logits=logits, classes=classes, samples=samples, compensated=compensated, TMA=True
    )


def hessian_plan(
    n_classes: int, dim: int, n_samples: int, dtype: str, tier: str, large: bool
) -> "Hessian | Wide":
    """The plan of the Hessian: one pass for K <= 128 if its partials fit, else `wide`."""
    if n_classes <= 128:
        key, padded = _key(dtype, tier), _padded(n_classes)
        BN, *rest = (_HESSIAN if large else _SMALL_HESSIAN)[key][padded]
        n_blocks = cdiv(n_samples, BN)
        blocks = cdiv(n_blocks, PROGRAMS if rest[1] == 4 else PROGRAMS // 2)
        programs = cdiv(n_blocks, blocks)
        if programs * n_classes * dim * _word(dtype) <= SCRATCH_BYTES:
            return Hessian(BN, padded, *rest, *_TERMS[key], programs, blocks)
    return wide_plan(n_classes, dim, n_samples, dtype, tier, large)


def scratch_bytes(shape: "Narrow | OnePass | Wide", n_classes: int, dim: int, word: int) -> int:
    """The scratch memory of one call of the gradients."""
    if isinstance(shape, OnePass):
        return (shape.programs + 2) * n_classes * dim * word
    parts_of_W = (shape.splits + 2) * n_classes * dim
    if isinstance(shape, Narrow):
        return (shape.chunk * shape.BK + parts_of_W) * word
    # Logits and residual, two kinds of parts of H and of W, partials of dW.
    return (shape.chunk * (2 * n_classes + 2 * dim) + parts_of_W) * word


def shipped(large: bool):
    """Every (dtype, tier, plan) of a kind of GPU, which the tests compile ahead of time."""
    for key, table in (_NARROW if large else _SMALL_NARROW).items():
        for padded, tiles in table.items():
            narrow = Narrow(tiles[0], padded, *tiles[1:], *_TERMS[key], 1, 1)
            yield *key, narrow
            if large and key == ("float32", EXACT) and padded in HALVES_TILES:
                yield *key, in_halves(narrow)
            if large and key[0] == "float32" and padded in ONE_PASS_STAGES:
                for slices in (1, 2, 4, 8):
                    yield *key, in_one_pass(narrow, slices * SLICE, 1)
    for key, table in (_HESSIAN if large else _SMALL_HESSIAN).items():
        for padded, (BN, *rest) in table.items():
            yield *key, Hessian(BN, padded, *rest, *_TERMS[key], 1, 1)
    for key, tiles in (_WIDE if large else _SMALL_WIDE).items():
        wide = Wide(tiles[0].BM, *tiles, *_WIDE_TERMS[key], 1)
        yield *key, wide
        if large and key == ("float32", EXACT):
            yield *key, in_descriptors(wide)
            yield *key, in_descriptors(wide)._replace(CARRY=True)


def cdiv(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)


def _key(dtype: str, tier: str) -> tuple[str, str]:
    return dtype, EXACT if dtype == "float64" else tier


def _word(dtype: str) -> int:
    return 8 if dtype == "float64" else 4


def _padded(n_classes: int) -> int:
    return max(16, 1 << (n_classes - 1).bit_length())
