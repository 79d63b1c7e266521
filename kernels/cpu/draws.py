"""Which samples a step takes: a generator that counts, and the orders that it deals.

SplitMix64 (Steele, Lea and Flood 2014): word c of a key is the mixture of `key + c gamma`, so that
words wait for no earlier ones, and its whole state is how many were drawn. A number below n is the
upper half of a word times n, each of them to within n / 2^64 as likely as another.
"""

import numpy as np

from fastnc.kernels.cpu.options import INNER, OPTIONS, njit

GAMMA = np.uint64(0x9E3779B97F4A7C15)
FIRST, SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
HALF, LOWER = np.uint64(32), np.uint64(0xFFFFFFFF)


@njit(forceinline=True, **INNER)
def word(key, count):
    """The word `count` of a key, both np.uint64."""
    z = key + (count + np.uint64(1)) * GAMMA
    z = (z ^ (z >> np.uint64(30))) * FIRST
    z = (z ^ (z >> np.uint64(27))) * SECOND
    return z ^ (z >> np.uint64(31))


@njit(forceinline=True, **INNER)
def below(drawn, n):
    """A word as a number of 0..n - 1; n below 2^32."""
    m = np.uint64(n)
    return np.int64(((drawn >> HALF) * m + (((drawn & LOWER) * m) >> HALF)) >> HALF)


@njit(**OPTIONS)
def deal(key, count, order):
    """A permutation of 0..n - 1 by n words: Fisher and Yates's shuffle, from the inside out."""
    for i in range(len(order)):
        j = below(word(key, count + np.uint64(i)), i + 1)
        order[i] = order[j]
        order[j] = i


@njit(**OPTIONS)
def draw(key, count, n, out):
    """As many numbers of 0..n - 1 as `out` has room for, a word each."""
    for i in range(len(out)):
        out[i] = below(word(key, count + np.uint64(i)), n)
