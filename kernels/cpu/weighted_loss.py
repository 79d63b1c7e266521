"""The loss of weighted_cross_entropy by one C call, for problems of one thread.

From labels and options as torch has them to a loss in its dtype: labels are examined, the mean's
divisor is found, the smoothing's B is made, and then the pass runs. Arrays come as addresses of
contiguous memory, because array arguments cost more than a small kernel does: at K = 5, d = 20,
N = 50 the kernel takes 5 us, and unpacking 17 arrays would take Numba 10 us.
"""

import ctypes
from functools import lru_cache

import numpy as np
from numba import carray, types

from fastnc.kernels.cpu.chunk_pass import GRADS, add_rows, part_of_samples
from fastnc.kernels.cpu.options import INNER, cfunc, njit
from fastnc.kernels.cpu.processor import VECTOR_BYTES
from fastnc.kernels.cpu.weighted_cross_entropy import examine, mean_factor, options_of

# Flags: gradients to compute, inputs beside W, H and y, a loss for each sample, the mean.
GRAD_H, GRAD_W, GRAD_BIAS, BIAS, WEIGHT, SCALE, LOSSES, MEAN = (1 << i for i in range(8))
# What a call returns if no label is invalid; else it is the index of the first invalid one.
DONE, SOME_IGNORED = -1, -2
N_POINTERS = 11


@njit(**INNER)
def _in_whole_vectors(W):
    K, d = W.shape
    L = VECTOR_BYTES // W.itemsize
    if d % L == 0:
        return W
    out = np.zeros((K, (d + L - 1) // L * L), W.dtype)
    for j in range(K):
        for f in range(d):
            out[j, f] = W[j, f]
    return out


def _loss(
    W_at, H_at, y_at, bias_at, weight_at, scale_at, loss_at, grad_W_at, grad_H_at, grad_bias_at,
    plan_at, K, d, N, flags, ignore_index, smoothing,
):  # fmt: skip
    W, H, y = carray(W_at, (K, d)), carray(H_at, (N, d)), carray(y_at, N)
    ignored, bad = examine(y, K, ignore_index)
    if bad >= 0:
        return bad
    if ignored > 0:
        return SOME_IGNORED
    bias = carray(bias_at, K if flags & BIAS else 0)
    weight = carray(weight_at, K if flags & WEIGHT else 0)
    inverse = mean_factor(weight, y) if flags & MEAN else 1.0
    one_scale = np.full(1, inverse, W.dtype)
    scale = one_scale
    if flags & SCALE:
        scale = carray(scale_at, N)
    losses = carray(loss_at, N if flags & LOSSES else 0)
    grad_W = carray(grad_W_at, (K if flags & GRAD_W else 0, d))
    grad_H = carray(grad_H_at, (N if flags & GRAD_H else 0, d))
    grad_bias = carray(grad_bias_at, K if flags & GRAD_BIAS else 0)
    h = carray(plan_at, 11)
    planned = (h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7], h[8], h[9], h[10])
    padded = _in_whole_vectors(W)
    sums = np.zeros((1, len(grad_W), padded.shape[1]), W.dtype)
    bias_sums = np.zeros((1, len(grad_bias)))
    totals, shifts, chunk_shifts = np.empty(1), np.empty(1), np.empty((1, 0))
    # A literal 0 would compile everything below a second time.
    zero = np.int64(0)
    part_of_samples(
        GRADS, zero, zero + 1, planned, padded, H, y, options_of(K, bias, weight, smoothing, scale),
        W.dtype.type(1.0), grad_H, sums, bias_sums, losses, totals, shifts, chunk_shifts,
    )  # fmt: skip
    top, root = shifts[0], np.exp(0.5 * shifts[0])
    shifts[0] = 0.0
    add_rows(sums, shifts, top, 1.0, False, zero, len(grad_W), grad_W)
    for j in range(len(grad_bias)):
        grad_bias[j] = bias_sums[0, j] * root * root
    if not flags & LOSSES:
        carray(loss_at, 1)[0] = totals[0] * root * root * inverse
    return DONE


@lru_cache
def loss_call(dtype):
    """The C function for W, H and all other floats of NumPy's `dtype`.

    `f(W, H, y, bias, weight, scale, loss, grad_W, grad_H, grad_bias, plan, K, d, N, flags,
    ignore_index, smoothing)`: addresses, of which `flags` says which are read or written, `plan`
    that of the `numbers` of a plan with one part, and sizes. The loss is a number or, with LOSSES,
    (N,). Returns DONE, SOME_IGNORED if labels are `ignore_index` and nothing was done, or the
    index of the first invalid label.
    """
    floats = types.CPointer(types.float32 if dtype.itemsize == 4 else types.float64)
    pointers = [floats] * N_POINTERS
    pointers[2] = pointers[-1] = types.CPointer(types.int64)
    n_sizes = 5
    signature = types.int64(*pointers, *[types.int64] * n_sizes, types.float64)
    compiled = cfunc(signature, error_model="numpy")(_loss)
    kind = ctypes.CFUNCTYPE(
        ctypes.c_int64,
        *[ctypes.c_void_p] * N_POINTERS,
        *[ctypes.c_int64] * n_sizes,
        ctypes.c_double,
    )
    call = kind(compiled.address)
    # The machine code lives as long as its object.
    call.compiled = compiled
    return call
