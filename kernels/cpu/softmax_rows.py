"""What a softmax's rows yield: losses, log-sum-exps, predictions, entropies, and residuals.

For the torch loss. Of logits z (N, K) in memory, row by row, with y the label, g the gap from z_y
to the largest of the others, and v, t, A, B of `weighted_cross_entropy`:

    S = e^g sum_{j != y} e^{z_j - max},  loss = A log(1 + S) - sum_j B_j D_j,
    lse = max_j z_j + log sum_j e^{z_j - max},  E = - sum_j p_j log p_j,
    r_j = u (A p_j - B_j) + s p_j - h p_j (log p_j + E)

u, s and h are what is upstream of the loss, of the lse and of the entropy; of a reduced loss with a
z-loss, `c sum lse^2`, u is its scale and s = 2 c lse. The label's own entry of the first is `-A S /
(1 + S)`, so that nothing cancels in the terminal phase. r takes the place of z.

Cost: one exponential and some ten operations for a logit, twice as many loads and stores, all in
float64 but z; where K is small, the processor's waiting for one row's logarithm and quotients.
"""

import ctypes
from functools import lru_cache

import numpy as np
from numba import carray, types

from fastnc.kernels.cpu.elementary import exp, log1p
from fastnc.kernels.cpu.options import INNER, REASSOCIATION, cfunc, njit
from fastnc.kernels.cpu.weighted_cross_entropy import add_exactly, examine, mean_factor
from fastnc.kernels.cpu.weighted_loss import DONE, SOME_IGNORED

# What is there, and what is wanted. ALONG: residuals are those of the sum of what is upstream.
MEAN, WEIGHT, LSE, PREDICTIONS, ENTROPIES, RESIDUALS, ALONG, BY_LOSS, BY_LSE, BY_ENTROPIES = (
    1 << i for i in range(10)
)
N_POINTERS = 11
# Numbers that are added in any order, before a sum that loses nothing.
SUMMED = 64


@njit(fastmath=REASSOCIATION, **INNER)
def _exponentials(z, largest, e):
    for j in range(len(z)):
        e[j] = exp(np.float64(z[j]) - largest)


@njit(fastmath=REASSOCIATION, **INNER)
def _block(x, start, stop):
    total = 0.0
    for j in range(start, stop):
        total += x[j]
    return total


@njit(**INNER)
def _sum(x):
    """By blocks, which are added exactly: no error that grows with the number of classes."""
    total, lost = 0.0, 0.0
    for start in range(0, len(x), SUMMED):
        stop = min(start + SUMMED, len(x))
        total, lost = add_exactly(total, lost, _block(x, start, stop))
    # What is not finite has lost what is not a number.
    return total + lost if lost == lost else total


@njit(**INNER)
def _spread(z, largest, B, terms):
    """`sum_j B_j D_j` from the largest logit on: of terms of one sign."""
    for j in range(len(z)):
        terms[j] = B[j] * (np.float64(z[j]) - largest)
    return _sum(terms)


@njit(**INNER)
def _largest(z, y):
    """The place of the largest logit, and of the largest but the label's; -1 if there is none."""
    at, rival = 0, -1
    for j in range(len(z)):
        # As torch has it, NaN is the largest of all.
        if z[j] > z[at] or (z[j] != z[j] and z[at] == z[at]):
            at = j
        if j != y and (rival < 0 or z[j] > z[rival] or z[j] != z[j]):
            rival = j
    return at, rival


@njit(**INNER)
def _entropy(z, y, largest, rest, e, factor, p_y, terms):
    for j in range(len(z)):
        log_p = np.float64(z[j]) - largest - rest
        p = p_y if j == y else e[j] * factor[0] * factor[1]
        terms[j] = 0.0 if log_p == -np.inf else -p * log_p
    return _sum(terms)


@njit(**INNER)
def _entropy_slopes(z, y, largest, rest, e, factor, p_y, E, by, out):
    """`- by p (log p + E)` into `out`: the entropy's part of the residual."""
    for j in range(len(z)):
        log_p = np.float64(z[j]) - largest - rest
        p = p_y if j == y else e[j] * factor[0] * factor[1]
        out[j] = 0.0 if log_p == -np.inf else -by * p * (log_p + E)


def _rows(
    z_at, y_at, weight_at, by_loss_at, by_lse_at, by_entropies_at, losses_at, lse_at,
    predictions_at, entropies_at, loss_at, N, K, flags, ignore_index, smoothing, z_loss_weight,
):  # fmt: skip
    z, y = carray(z_at, (N, K)), carray(y_at, N)
    ignored, bad = examine(y, K, ignore_index)
    if bad >= 0:
        return bad
    if ignored > 0:
        return SOME_IGNORED
    weight = carray(weight_at, K if flags & WEIGHT else 0)
    by_loss = carray(by_loss_at, N if flags & BY_LOSS else 0)
    by_lse = carray(by_lse_at, N if flags & BY_LSE else 0)
    by_entropies = carray(by_entropies_at, N if flags & BY_ENTROPIES else 0)
    losses = carray(losses_at, N)
    lses = carray(lse_at, N if flags & LSE else 0)
    predictions = carray(predictions_at, N if flags & PREDICTIONS else 0)
    entropies = carray(entropies_at, N if flags & ENTROPIES else 0)
    e, terms, slopes = np.empty(K), np.empty(K), np.empty(K if flags & BY_ENTROPIES else 0)
    B = np.empty(K if smoothing > 0.0 else 0)
    for j in range(len(B)):
        B[j] = smoothing / K * (np.float64(weight[j]) if len(weight) else 1.0)
    all_B = _sum(B)
    scale = mean_factor(weight, y) if flags & MEAN else 1.0
    by_z = z_loss_weight / N if flags & MEAN else z_loss_weight
    total, total_lost, squares, squares_lost = 0.0, 0.0, 0.0, 0.0
    factor = np.empty(2)
    for i in range(N):
        row, label = z[i], y[i]
        own = np.float64(weight[label]) if len(weight) else 1.0
        at, rival = _largest(row, label)
        z_y = np.float64(row[label])
        top = np.float64(row[rival]) if rival >= 0 else -np.inf
        g = top - z_y
        # Of one class, or of others that are masked, nothing is to be summed.
        alone = top == -np.inf
        _exponentials(row, z_y if alone else top, e)
        e[label] = 0.0
        e_top = 0.0 if alone else e[rival]
        if not alone:
            # Apart: where it is 1, the rest would lose digits beside it.
            e[rival] = 0.0
        S_rest = _sum(e)
        if not alone:
            e[rival] = e_top
        S = S_rest + e_top
        if g > 0.0 or g != g:
            largest, least = top, np.exp(-g)
            den = least + S
            rest = log1p(S_rest + least)
            m = g
            factor[0], factor[1] = 1.0, 1.0 / den
        else:
            root = np.exp(0.5 * g)
            S = S * root * root
            largest, least, m = z_y, 1.0, 0.0
            den = 1.0 + S
            rest = log1p(S)
            factor[0], factor[1] = root, root / den
        p_y = least / den
        A = own
        if smoothing > 0.0:
            own *= 1.0 - smoothing
            A = own + all_B
            B[label] += own
            each = A * rest - _spread(row, largest, B, terms)
        else:
            each = A * (m + rest)
        # A label's logit that is not finite shows.
        each += 0.0 * z_y
        lse = largest + rest
        total, total_lost = add_exactly(total, total_lost, each)
        squares, squares_lost = add_exactly(squares, squares_lost, lse * lse)
        losses[i] = each + z_loss_weight * lse * lse
        if len(lses):
            lses[i] = lse
        if len(predictions):
            predictions[i] = at
        E = 0.0
        if len(entropies) or len(by_entropies):
            E = _entropy(row, label, largest, rest, e, factor, p_y, terms)
        if len(entropies):
            entropies[i] = E
        if flags & RESIDUALS:
            u, s = scale, 2.0 * by_z * lse
            if flags & ALONG:
                u = np.float64(by_loss[i]) if len(by_loss) else 0.0
                s = np.float64(by_lse[i]) if len(by_lse) else 0.0
            if len(by_entropies):
                by = np.float64(by_entropies[i])
                _entropy_slopes(row, label, largest, rest, e, factor, p_y, E, by, slopes)
            label_r = -A * (S / den)
            if smoothing > 0.0:
                # Of two forms the one that cancels less.
                if p_y < 0.5:
                    label_r = A * p_y - B[label]
                else:
                    here, B[label] = B[label], 0.0
                    label_r += _sum(B)
                    B[label] = here
            label_r = u * label_r + s * p_y
            first, second = factor[0], factor[1] * (u * A + s)
            if smoothing > 0.0:
                for j in range(K):
                    row[j] = e[j] * first * second - u * B[j]
            else:
                for j in range(K):
                    row[j] = e[j] * first * second
            row[label] = label_r
            for j in range(len(slopes)):
                row[j] += slopes[j]
        if smoothing > 0.0:
            B[label] = smoothing / K * (np.float64(weight[label]) if len(weight) else 1.0)
    carray(loss_at, 1)[0] = (total + total_lost) * scale + (squares + squares_lost) * by_z
    return DONE


@lru_cache
def rows_call(dtype):
    """The C function for logits and all other floats of NumPy's `dtype`.

    `f(z, y, weight, by_loss, by_lse, by_entropies, losses, lse, predictions, entropies, loss, N, K,
    flags, ignore_index, smoothing, z_loss_weight)`: addresses, of which `flags` says which are read
    or written; labels and predictions are int64, the reduced loss is a float64. With RESIDUALS z
    becomes r: of the reduced loss with its z-loss or, ALONG, of what is upstream. Returns DONE,
    SOME_IGNORED if labels are `ignore_index` and nothing was done, or the place of the first
    label that fits nothing.
    """
    floats = types.CPointer(types.float32 if dtype.itemsize == 4 else types.float64)
    integers = types.CPointer(types.int64)
    pointers = [floats] * N_POINTERS
    pointers[1] = pointers[8] = integers
    pointers[-1] = types.CPointer(types.float64)
    signature = types.int64(*pointers, *[types.int64] * 4, types.float64, types.float64)
    compiled = cfunc(signature, error_model="numpy")(_rows)
    kind = ctypes.CFUNCTYPE(
        ctypes.c_int64,
        *[ctypes.c_void_p] * N_POINTERS,
        *[ctypes.c_int64] * 4,
        *[ctypes.c_double] * 2,
    )
    call = kind(compiled.address)
    # The machine code lives as long as its object.
    call.compiled = compiled
    return call
