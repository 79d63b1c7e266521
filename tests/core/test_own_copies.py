"""A kernel runs its own copies of what it calls, whichever kernels the process has loaded before.

Two kernels with a copy each of a third, optimised apart, may add in different orders: the first
process, which compiled all three, had other last bits than the next, which loaded two.
"""

import numpy as np
from llvmlite.binding import Linkage

from fastnc.kernels.cpu.options import INNER, OPTIONS, REASSOCIATION, njit


@njit(fastmath=REASSOCIATION, **INNER)
def spread(H, low, high, mean):
    squares = 0.0
    for j in range(H.shape[1]):
        mean[j] = 0.0
        for i in range(low, high):
            x = H[i, j] - H[low, j]
            mean[j] += x
            squares += x * x
    for j in range(H.shape[1]):
        mean[j] = H[low, j] + mean[j] / (high - low)
    return squares


@njit(**OPTIONS)
def spread_of_halves(H, first, second):
    # Called from two places, so that it stays a function.
    half = len(H) // 2
    return spread(H, 0, half, first) + spread(H, half, len(H), second)


def test_nothing_that_a_kernel_calls_is_seen_by_another():
    for kernel in (spread, spread_of_halves):
        kernel._cache.disable()
    H = np.random.default_rng(0).standard_normal((50, 11))
    first, second = np.empty(11), np.empty(11)
    found = spread_of_halves(H, first, second)
    expected = sum(np.sum((half - half[0]) ** 2) for half in (H[:25], H[25:]))
    np.testing.assert_allclose(found, expected, rtol=1e-13)
    np.testing.assert_allclose(first, H[:25].mean(axis=0), rtol=0, atol=1e-15)
    np.testing.assert_allclose(second, H[25:].mean(axis=0), rtol=0, atol=1e-15)

    (compiled,) = spread_of_halves.overloads.values()
    linkage = {f.name: f.linkage for f in compiled.library.get_defined_functions()}
    seen = {name for name, kind in linkage.items() if kind != Linkage.internal}
    # Functions that count references keep the names by which Numba finds them.
    assert all("halves" in name or name.startswith("NRT_") for name in seen)


def test_what_is_linked_in_has_no_machine_code_of_its_own_and_can_be_kept():
    for kernel in (spread, spread_of_halves):
        kernel._cache.disable()
    spread_of_halves(np.zeros((4, 2)), np.empty(2), np.empty(2))
    compiled = next(iter(spread.overloads.values()))
    library, name = compiled.library, compiled.fndesc.mangled_name
    assert library.get_pointer_to_function(name) == 0
    kept = library.codegen.unserialize_library(library.serialize_using_object_code())
    assert any(one.name == name for one in kept._get_module_for_linking().functions)
