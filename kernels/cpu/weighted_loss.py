"""The loss of weighted_cross_entropy_cpu by one C call, while W fits the register tiles.

From labels and options as torch has them to a loss in its dtype: labels are examined, the mean's
divisor is found, the smoothing's B is made, and then the parts run. Arrays come as addresses of
contiguous memory, because the array objects around a kernel cost more than a small kernel does:
K = 5, d = 20, N = 50 takes the kernel 5 us, and Numba 10 to take 17 arrays apart.
"""

import ctypes
from functools import lru_cache

import numpy as np
from numba import carray, types

from fastnc.kernels.cpu.options import OPTIONS, cfunc, njit
from fastnc.kernels.cpu.threads import forked
from fastnc.kernels.cpu.weighted_cross_entropy import (
    ALONE,
    add_parts,
    add_rows,
    all_parts,
    examine,
    one_part,
)

# What is there beside W, H and y, and what is wanted; the first three are `wanted`'s.
GRAD_H, GRAD_W, GRAD_BIAS, BIAS, WEIGHT, SCALE, LOSSES, MEAN = (1 << i for i in range(8))
# What a call returns where no label is wrong; else the place of the first that is.
DONE, SOME_IGNORED = -1, -2
N_POINTERS = 10


@njit(**OPTIONS)
def _in_tiles(
    chunk, n_parts, width, W, H, y, bias, weight, uniform, keep, scale, total_out, losses,
    grad_W, grad_H, grad_bias,
):  # fmt: skip
    """`loss_and_grads` by register tiles; on the calling thread where there is one part."""
    d = W.shape[1]
    # A literal 0 would compile everything below a second time.
    none, first = np.int64(0), np.int64(0)
    direct = n_parts == 1 and width == d
    sums = grad_W.reshape((1, len(grad_W), d))
    bias_sums = grad_bias.reshape((1, len(grad_bias)))
    totals = total_out
    if not direct:
        sums = np.empty((n_parts, len(grad_W), width), W.dtype)
        bias_sums = np.empty((n_parts, len(grad_bias)), W.dtype)
        totals = np.empty(n_parts)
    if n_parts == 1:
        one_part(
            none, first, chunk, W, H, y, bias, weight, uniform, keep, scale, losses, totals, sums,
            bias_sums, grad_H,
        )  # fmt: skip
    else:
        all_parts(
            none, chunk, W, H, y, bias, weight, uniform, keep, scale, losses, totals, sums,
            bias_sums, grad_H,
        )  # fmt: skip
    if direct:
        return
    total_out[0] = 0.0
    for part in range(n_parts):
        total_out[0] += totals[part]
        for j in range(len(grad_bias)):
            grad_bias[j] = bias_sums[part, j] + (grad_bias[j] if part else W.dtype.type(0.0))
    if sums.size > ALONE:
        add_parts(sums, grad_W)
    else:
        add_rows(sums, first, len(grad_W), grad_W)


def _loss(
    W_at, H_at, y_at, bias_at, weight_at, scale_at, loss_at, grad_W_at, grad_H_at, grad_bias_at,
    K, d, N, chunk, n_parts, width, flags, ignore_index, smoothing,
):  # fmt: skip
    W, H, y = carray(W_at, (K, d)), carray(H_at, (N, d)), carray(y_at, N)
    ignored, bad = examine(y, K, ignore_index)
    if bad >= 0:
        return bad
    if ignored > 0:
        return SOME_IGNORED
    bias = carray(bias_at, K if flags & BIAS else 0)
    weight = carray(weight_at, K if flags & WEIGHT else 0)
    real = W.dtype.type
    uniform = np.empty(K if smoothing > 0.0 else 0, W.dtype)
    for j in range(len(uniform)):
        uniform[j] = real(smoothing / K) * (weight[j] if len(weight) else real(1.0))
    inverse = 1.0
    if flags & MEAN:
        divisor = float(N)
        if len(weight):
            divisor = 0.0
            for i in range(N):
                divisor += weight[y[i]]
        inverse = 1.0 / divisor
    scale = np.empty(1, W.dtype)
    scale[0] = inverse
    if flags & SCALE:
        scale = carray(scale_at, N)
    losses = carray(loss_at, N if flags & LOSSES else 0)
    grad_W = carray(grad_W_at, (K if flags & GRAD_W else 0, d))
    grad_H = carray(grad_H_at, (N if flags & GRAD_H else 0, d))
    grad_bias = carray(grad_bias_at, K if flags & GRAD_BIAS else 0)
    total = np.empty(1)
    _in_tiles(
        chunk, n_parts, width, W, H, y, bias, weight, uniform, real(1.0 - smoothing), scale, total,
        losses, grad_W, grad_H, grad_bias,
    )  # fmt: skip
    if not flags & LOSSES:
        carray(loss_at, 1)[0] = total[0] * inverse
    return DONE


def loss_call(dtype):
    """The C function for W, H and all other floats of NumPy's `dtype`.

    `f(W, H, y, bias, weight, scale, loss, grad_W, grad_H, grad_bias, K, d, N, chunk, n_parts,
    width, flags, ignore_index, smoothing)`: addresses, of which `flags` says which are read or
    written, sizes, and what `arrangement` found. The loss is a number or, by LOSSES, (N,).
    Returns DONE, SOME_IGNORED if labels are `ignore_index` and nothing was done, or the place of
    the first label that fits nothing.
    """
    return _loss_call(dtype, forked())


@lru_cache
def _loss_call(dtype, _of_a_child):
    floats = types.CPointer(types.float32 if dtype.itemsize == 4 else types.float64)
    pointers = [floats] * N_POINTERS
    pointers[2] = types.CPointer(types.int64)
    n_sizes = 8
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
