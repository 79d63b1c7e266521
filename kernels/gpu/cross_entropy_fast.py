"""The launchers of cross_entropy_gpu at the fast tier: products with the residual in 8 bits.

A tier is a module, not an argument, so that every launcher keeps the signature of its CPU twin.
Logits keep 16 bits (K <= 128) or all of float32, so that the loss has five digits at least and
the residual is right in the terminal phase too; gradients have two to three. float64 tensors are
computed as in the exact tier.
"""

from fastnc.kernels.gpu.cross_entropy import run_grads, run_log_grads, run_loss, run_step
from fastnc.kernels.gpu.plan import FAST


def loss(W, H, y, scale, loss_out):
    """As cross_entropy_gpu.loss, at the fast tier."""
    run_loss(FAST, W, H, y, scale, loss_out)


def loss_and_grads(W, H, y, scale, loss_out, grad_W_out, grad_H_out):
    """As cross_entropy_gpu.loss_and_grads, at the fast tier."""
    run_grads(FAST, W, H, y, scale, loss_out, grad_W_out, grad_H_out)


def log_loss_and_grads(W, H, y, log_loss_out, grad_W_out, grad_H_out):
    """As cross_entropy_gpu.log_loss_and_grads, at the fast tier."""
    run_log_grads(FAST, W, H, y, log_loss_out, grad_W_out, grad_H_out)


def gradient_step(W, H, y, scale, lr, loss_out):
    """As cross_entropy_gpu.gradient_step, at the fast tier."""
    run_step(FAST, W, H, None, None, y, scale, lr, loss_out)
