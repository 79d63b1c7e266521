"""The sums of the second pass over features, and the distance of a sample from the global mean."""

import numpy as np

from fastnc.kernels.cpu.options import INNER, OPTIONS, REASSOCIATION, njit

# Below this fraction of |x|^2 + |c|^2 the expansion of |x + c|^2 has cancelled too far.
CANCELLED = 1e-3

# In the order of `sums_out`; the last is a minimum.
N_SUMS = 9
(
    DEVIATION, DISTANCE, PROJECTED, TILTED, SQUARES, NEAREST, AGREEMENT, ACCURACY, MARGIN,
) = range(N_SUMS)  # fmt: skip


@njit(**OPTIONS)
def clear_sums(sums):
    """The sums before the first sample."""
    sums[:] = 0.0
    sums[MARGIN] = np.inf


@njit(**INNER)
def add_sums(blocks, sums_out):
    """Adds the blocks' sums in their order; the margin is the smallest."""
    for b in range(len(blocks)):
        for s in range(N_SUMS):
            if s == MARGIN:
                sums_out[s] = min(sums_out[s], blocks[b, s])
            else:
                sums_out[s] += blocks[b, s]


@njit(fastmath=REASSOCIATION, **INNER)
def distance_from(h, g):
    """`|h - g|^2`."""
    total = 0.0
    for j in range(len(g)):
        x = np.float64(h[j]) - g[j]
        total += x * x
    return total


@njit(**INNER)
def expanded_distances(H, order, owner, lo, n, g, squares, dots, squares_C, distances):
    """`|h - g|^2 = |x|^2 + 2 <x, c_y> + |c_y|^2`, directly where that cancels."""
    for i in range(n):
        scale = squares[i] + squares_C[owner[lo + i]]
        distances[i] = scale + 2.0 * dots[i]
        if not distances[i] > CANCELLED * scale:
            distances[i] = distance_from(H[order[lo + i]], g)
