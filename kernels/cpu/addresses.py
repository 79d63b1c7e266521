"""Kernels that are compiled separately and called by their addresses.

Numba compiles every function that a kernel calls by name again inside that kernel; tiles and
exponentials would be compiled ten times. So each is one C function, kept on disk, and its callers
receive a tuple of addresses:

    GEMM            a BLAS's product, or 0 where tiles are used    (blas)
    PRODUCT, DOTS, TRANSPOSE                                        (tile)
    BOTH            both sums of a step, or 0 where they are taken apart    (few_classes)
    EXPONENTIALS, COMBINE, RESIDUALS                                (residual)
    DERIVATIVES                                                     (derivatives)
"""

import threading
from functools import cache

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from fastnc.kernels.cpu import derivatives, few_classes, residual, tile
from fastnc.kernels.cpu.blas import gemm_address
from fastnc.kernels.cpu.options import cfunc

GEMM, PRODUCT, DOTS, TRANSPOSE, BOTH, EXPONENTIALS, COMBINE, RESIDUALS, DERIVATIVES = range(9)


@intrinsic
def call(typingctx, function, arguments):
    """Calls the C function at an address with a tuple of pointers and numbers; returns nothing."""

    def codegen(context, builder, signature, args):
        values = cgutils.unpack_tuple(builder, args[1])
        kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), values)
        return context.get_dummy_value()

    return types.none(function, arguments), codegen


def _exponentials(
    Z_at, n_classes, ld, low, y_at, rows, log, uniform_at, n_uniform, z_y_at, shift_at, S_at,
    moved_at, origin_at,
):  # fmt: skip
    Z, y, z_y = carray(Z_at, (n_classes, ld)), carray(y_at, rows), carray(z_y_at, ld)
    uniform = carray(uniform_at, n_uniform)
    shift, S, moved = carray(shift_at, ld), carray(S_at, (2, ld)), carray(moved_at, ld)
    origin = carray(origin_at, ld)
    residual.exponentials(Z, low, y, rows, log != 0, uniform, z_y, shift, S, moved, origin)


def _combine(
    y_at, rows, ld, n_blocks, block, running, weight_at, n_weight, uniform_at, n_uniform,
    all_uniform, keep, z_y_at, shifts_at, S_at, moved_at, factor_at, label_r_at, losses_at, c_at,
):  # fmt: skip
    y, z_y, shifts = carray(y_at, rows), carray(z_y_at, ld), carray(shifts_at, (n_blocks, ld))
    weight, uniform = carray(weight_at, n_weight), carray(uniform_at, n_uniform)
    S, moved = carray(S_at, (n_blocks, 2, ld)), carray(moved_at, (n_blocks, ld))
    factor, label_r = carray(factor_at, (n_blocks, ld)), carray(label_r_at, ld)
    losses, c = carray(losses_at, ld), carray(c_at, 1)
    c[0] = residual.combine(
        y, rows, block, running, weight, uniform, all_uniform, keep, z_y, shifts, S, moved,
        factor, label_r, losses,
    )  # fmt: skip


def _residuals(
    Z_at, n_classes, ld, low, y_at, rows, scale_at, n_scale, uniform_at, n_uniform, factor_at,
    label_r_at, term_at, sums_at, n_sums,
):  # fmt: skip
    Z, y = carray(Z_at, (n_classes, ld)), carray(y_at, rows)
    scale, uniform = carray(scale_at, n_scale), carray(uniform_at, n_uniform)
    factor, label_r, term = carray(factor_at, ld), carray(label_r_at, ld), carray(term_at, ld)
    sums = carray(sums_at, n_sums)
    residual.residuals(Z, low, y, rows, scale, uniform, factor, label_r, term)
    residual.add_row_sums(Z, rows, sums)


def _derivatives(
    Z_at, V_at, n_classes, ld, y_at, rows, c, shift_at, S_at, factor_at, label_r_at, losses_at,
    s_at, term_at,
):  # fmt: skip
    Z, V, y = carray(Z_at, (n_classes, ld)), carray(V_at, (n_classes, ld)), carray(y_at, rows)
    shift, S, factor = carray(shift_at, ld), carray(S_at, (2, ld)), carray(factor_at, ld)
    label_r, losses = carray(label_r_at, ld), carray(losses_at, ld)
    s, term = carray(s_at, ld), carray(term_at, ld)
    derivatives.derivatives(Z, V, y, rows, c, shift, S, factor, label_r, losses, s, term)


def _signatures(real):
    floats, doubles = types.CPointer(real), types.CPointer(types.float64)
    labels, size, double = types.CPointer(types.int64), types.int64, types.float64
    return tile.signatures(real) | {
        _exponentials: (
            floats, *[size] * 3, labels, size, size, floats, size, floats, *[doubles] * 3, floats,
        ),
        _combine: (
            labels, *[size] * 4, double, floats, size, floats, size, double, double, floats,
            *[doubles] * 7,
        ),
        _residuals: (
            floats, *[size] * 3, labels, size, floats, size, floats, size, doubles, doubles, floats,
            doubles, size,
        ),
        _derivatives: (
            floats, floats, size, size, labels, size, double, *[doubles] * 6, floats,
        ),
    }  # fmt: skip


_lock = threading.RLock()


@cache
def _compiled(signatures, itemsize):
    real = types.float32 if itemsize == 4 else types.float64
    return [
        cfunc(types.void(*kinds), error_model="numpy")(function)
        for function, kinds in signatures(real).items()
    ]


@cache
def addresses(blas, dtype, at_once=False):
    """The tuple for NumPy's `dtype`: with sums over samples by a BLAS, or both sums `at_once`."""
    itemsize = np.dtype(dtype).itemsize
    with _lock:
        product, dots, transpose, *others = _compiled(_signatures, itemsize)
        both = _compiled(few_classes.signatures, itemsize)[0].address if at_once else 0
    found = [one.address for one in (product, dots, transpose)]
    return (gemm_address(dtype) if blas else 0, *found, both, *(one.address for one in others))
