"""Sums over samples for `products`, by the one-thread GEMM of SciPy's BLAS.

For long rows of a W above a quarter of the L2 cache. `sgemm` and `dgemm` are called through their
addresses in `scipy.linalg.cython_blas`, which leaves strides and accumulation (beta) to the caller.
The address is a run-time argument: compiled code that held it could not be cached.

Every call comes from inside a parallel loop; `threads.one_thread` keeps the BLAS serial there.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import get_cython_function_address, intrinsic

from fastnc.kernels.cpu.options import INNER, njit


def gemm_address(dtype):
    """The address of `sgemm` or `dgemm`, for the functions below."""
    name = "sgemm" if dtype.itemsize == 4 else "dgemm"
    return get_cython_function_address("scipy.linalg.cython_blas", name)


@intrinsic
def _gemm(typingctx, address, ta, tb, m, n, k, alpha, A, a, lda, B, b, ldb, beta, C, c, ldc):
    """Fortran's gemm on arrays or addresses, from flat indices a, b, c on; ta, tb: transposed."""

    def codegen(context, builder, signature, args):
        address, ta, tb, m, n, k, alpha, A_, a_, lda, B_, b_, ldb, beta, C_, c_, ldc = args
        byte, integer = ir.IntType(8), ir.IntType(32)

        def place(value):
            return cgutils.alloca_once_value(builder, value)

        def letter(flag):
            return place(
                builder.select(flag, ir.Constant(byte, ord("T")), ir.Constant(byte, ord("N")))
            )

        def size(value):
            return place(builder.trunc(value, integer))

        def matrix(kind, array, first):
            if not isinstance(kind, types.CPointer):
                array = context.make_array(kind)(context, builder, array).data
            return builder.gep(array, [first])

        arguments = [
            letter(ta),
            letter(tb),
            size(m),
            size(n),
            size(k),
            place(alpha),
            matrix(A, A_, a_),
            size(lda),
            matrix(B, B_, b_),
            size(ldb),
            place(beta),
            matrix(C, C_, c_),
            size(ldc),
        ]
        kind = ir.FunctionType(ir.VoidType(), [x.type for x in arguments])
        builder.call(builder.inttoptr(address, kind.as_pointer()), arguments)
        return context.get_dummy_value()

    kinds = (address, ta, tb, m, n, k, alpha, A, a, lda, B, b, ldb, beta, C, c, ldc)
    return types.none(*kinds), codegen


@njit(**INNER)
def class_sums(gemm, Z, low, n, H_at, D, rows, sums, place):
    """`sums_j += sum_i Z[j, i] h_i` of n classes from `low` on, whose sums start at `place`."""
    one, ld = sums.dtype.type(1.0), Z.shape[1]
    _gemm(
        gemm, False, False, D, n, rows, one, H_at, 0, D, Z, low * ld, ld, one, sums, place, D
    )  # fmt: skip
