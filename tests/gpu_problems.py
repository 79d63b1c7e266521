"""Problems, shapes and small tiles that the tests of the Triton kernels share."""

import numpy as np

from fastnc import reference
from fastnc.kernels.gpu.plan import _TERMS, _WIDE_TERMS, Hessian, Narrow, OnePass, Tile, Wide

# Relative to the largest entry. float64: a few roundings a sum. float32: the factors of a
# product with the residual keep 16 bits (two of bf16), so that it is off by 2^-16 at most.
TOLERANCE = {"float64": 1e-14, "float32": 2.0**-16}
# The fewest classes, features and samples; one class and one feature beyond a tile; primes;
# all aligned; several blocks a program, and two chunks (N = 70).
CASES = [
    ("narrow", (2, 1, 1), "float32"),
    ("narrow", (2, 3, 5), "float64"),
    ("narrow", (16, 32, 64), "float32"),
    ("narrow", (17, 33, 70), "float64"),
    ("narrow", (67, 2, 3), "float32"),
    ("narrow", (67, 5, 9), "float64"),
    ("wide", (2, 1, 1), "float64"),
    ("wide", (32, 32, 32), "float64"),
    ("wide", (33, 33, 70), "float32"),
    ("wide", (67, 5, 9), "float64"),
]
# Logits in scaled fp16: more slices than one, and rows of 0 beyond W's.
IN_HALVES = [("halves", (17, 33, 70), "float32"), ("halves", (67, 5, 9), "float32")]
# One program whose last block is empty; slices of features that end early; two slices of none.
IN_ONE_PASS = [
    ("one pass", (2, 1, 1), "float32"),
    ("one pass", (17, 70, 50), "float32"),
    ("one pass", (10, 130, 40), "float32"),
]
# Ranges of rows that end within a slice, fewer rows than ranges, several slices.
IN_DESCRIPTORS = [("descriptors", (33, 33, 70), "float32"), ("descriptors", (2, 1, 1), "float32")]
IN_DESCRIPTORS += [("carried", (33, 40, 40), "float32")]
# Narrow with logits in bf16 or in scaled fp16, in one pass; wide, by addresses and descriptors, and
# with the rounding of the logits' sums carried along.
REGIMES = ["narrow", "halves", "one pass", "wide", "descriptors", "carried"]
# In float64 there are two of them.
IN_DOUBLE = ["narrow", "wide"]


def use_small_tiles(monkeypatch, module, regime, *names):
    """Whatever of these plans of `module` is asked for is the regime's, in small tiles."""

    def small(n_classes, dim, n_samples, dtype, tier, large):
        key = dtype, "exact" if dtype == "float64" else tier
        if regime in ("wide", "descriptors", "carried"):
            tma = regime != "wide" and dtype == "float32"
            carry = regime == "carried" and dtype == "float32"
            return Wide(64, *[Tile(32, 32, 16, 4, 1)] * 4, *_WIDE_TERMS[key], 3, tma, carry)
        padded = max(16, 1 << (n_classes - 1).bit_length())
        if "hessian_plan" in names:
            blocks = -(-n_samples // 16)
            each = -(-blocks // 3)
            return Hessian(16, padded, 32, 4, 1, *_TERMS[key], -(-blocks // each), each)
        halves = regime == "halves" and dtype == "float32"
        narrow = Narrow(16, padded, 32, 4, 1, Tile(16, 32, 0, 4, 1), *_TERMS[key], 40, 2, halves)
        if regime == "one pass" and dtype == "float32":
            slices = 1 << (-(-dim // 64) - 1).bit_length()
            alone = narrow._replace(HALVES=True)
            return OnePass(16, padded, slices, 1, _TERMS[key][1], -(-n_samples // 32), 2, alone)
        return narrow

    for name in names or ("plan",):
        monkeypatch.setattr(module, name, small)


def problem(K, d, N, dtype, scale=1.0, seed=0):
    """Gaussian W and H; some class is absent where N allows it."""
    rng = np.random.default_rng([seed, K, d, N])
    W = (scale * rng.standard_normal((K, d))).astype(dtype)
    H = (scale * rng.standard_normal((N, d))).astype(dtype)
    return W, H, rng.integers(0, max(K - 1, 1), N)


def collapsed(K, n, margin, dtype, seed=0):
    """Separated by about `margin`: a simplex in K dimensions, a little noise, y in no order."""
    rng = np.random.default_rng(seed)
    M = reference.simplex_etf(K)
    a = np.sqrt(margin * (K - 1) / K)
    y = rng.permutation(np.repeat(np.arange(K), n))
    W = a * (M + 0.01 * rng.standard_normal(M.shape))
    H = a * (M[y] + 0.01 * rng.standard_normal((len(y), K)))
    return W.astype(dtype), H.astype(dtype), y


def wide(*arrays):
    return [a if a.dtype == np.int64 else a.astype(np.float64) for a in arrays]
