"""The launchers of cross_entropy_gpu at the tf32 tier: twice the speed, 3 digits fewer.

A tier is a module, not an argument, so that every launcher keeps the signature of its CPU
twin. With tf32 a logit of 20 is off by 1e-2, and the residual with it: for training far from
the terminal phase only. float64 tensors are computed as in the exact tier.
"""

from fastnc.kernels.cross_entropy_gpu import run_grads, run_log_grads, run_loss, run_step
from fastnc.kernels.plan_gpu import FAST


def loss(W, H, y, scale, loss_out):
    """As cross_entropy_gpu.loss, in tf32."""
    run_loss(FAST, W, H, y, scale, loss_out)


def loss_and_grads(W, H, y, scale, loss_out, grad_W_out, grad_H_out):
    """As cross_entropy_gpu.loss_and_grads, in tf32."""
    run_grads(FAST, W, H, y, scale, loss_out, grad_W_out, grad_H_out)


def log_loss_and_grads(W, H, y, log_loss_out, grad_W_out, grad_H_out):
    """As cross_entropy_gpu.log_loss_and_grads, in tf32."""
    run_log_grads(FAST, W, H, y, log_loss_out, grad_W_out, grad_H_out)


def gradient_step(W, H, y, scale, lr, loss_out):
    """As cross_entropy_gpu.gradient_step, in tf32."""
    run_step(FAST, W, H, None, None, y, scale, lr, loss_out)
