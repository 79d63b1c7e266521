"""The launcher of hessian_gpu at the fast tier; see cross_entropy_fast_gpu for what it costs."""

from fastnc.kernels.gpu.hessian import run_hessian
from fastnc.kernels.gpu.plan import FAST


def hessian_vector_product(W, H, y, dW, dH, scale, HW_out, HH_out):
    """As hessian_gpu.hessian_vector_product, at the fast tier."""
    run_hessian(FAST, W, H, y, dW, dH, scale, HW_out, HH_out)
