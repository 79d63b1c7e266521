"""The objective (4), its gradients and steps on CUDA tensors, in Triton.

The same names and arguments as on the CPU, and one more: `tier`, "exact" or "fast". In the fast
tier products with the residual have 8 bits; logits have 16 bits (K <= 128) or all of float32, so
that the loss has five digits at least and the residual is right in the terminal phase too;
gradients have two to three digits. In float64 both tiers are the same.

Nothing here waits for the device: `loss_out` is a float64 tensor of one element there. Scratch
memory is from torch's caching allocator, so that a CUDA graph can capture a call: residuals of a
chunk and partials of dW (narrow), partials alone (one pass), or logits and residuals of a chunk
and partials (wide). Formulas: `softmax`. Bytes and flops: `narrow`, `one_pass` and `wide`. Choice
between them: `plan`.
"""

import torch

from fastnc.kernels.gpu import narrow as narrow_gpu
from fastnc.kernels.gpu import one_pass as one_pass_gpu
from fastnc.kernels.gpu import wide as wide_gpu
from fastnc.kernels.gpu.plan import Narrow, OnePass, Wide, has_large_tiles, options, plan
from fastnc.kernels.gpu.reduce import sum_extents, sum_losses, sum_parts
from fastnc.kernels.gpu.softmax import DOWN

_BLOCK = 512
_REGIMES = {Narrow: narrow_gpu, OnePass: one_pass_gpu, Wide: wide_gpu}


def loss(W, H, y, scale, loss_out, tier):
    """`loss_out[0] = scale * sum of the losses`."""
    parts, _ = _losses(tier, W, H, y, False)
    _add_losses(parts, loss_out, scale)


def loss_and_grads(W, H, y, scale, loss_out, grad_W_out, grad_H_out, tier):
    """The loss and both gradients, all times `scale`; no loss where `loss_out` is None."""
    loss_parts, W_parts = _gradients(tier, W, H, None, y, scale, 1.0, grad_H_out, None, False, None)
    _add_losses(loss_parts, loss_out, scale)
    reduce_W(W_parts, W, None, grad_W_out, scale, 1.0, False)


def log_loss_and_grads(W, H, y, log_loss_out, grad_W_out, grad_H_out, tier):
    """The logarithm of the sum of the losses, and the gradients of that logarithm.

    Two passes: the shift and the loss in its units, then the gradients over both.
    """
    extent = torch.empty(2, dtype=torch.float64, device=W.device)
    loss_parts, shift_parts = _losses(tier, W, H, y, True)
    sum_extents[(1,)](
        loss_parts, shift_parts, extent, log_loss_out, len(loss_parts),
        BLOCK=_BLOCK, **options(4, 1),
    )  # fmt: skip
    _, W_parts = _gradients(tier, W, H, None, y, 1.0, 1.0, grad_H_out, extent, False, None)
    reduce_W(W_parts, W, None, grad_W_out, 1.0, 1.0, False)


def gradient_step(W, H, y, scale, lr, loss_out, tier):
    """`W, H -= lr * scale * gradient` in place; the loss and both gradients are before the step."""
    step(W, H, None, None, y, scale, lr, loss_out, tier)


def step(W, H, W_low, H_low, y, scale, lr, loss_out, tier):
    """A step; with W_low and H_low, its rounding errors are added to the next one's (`trajectory`).

    If `loss_out` is None the losses of blocks are not added up, which saves a launch.
    """
    loss_parts, W_parts = _gradients(tier, W, H, H_low, y, scale, lr, H, None, True, None)
    _add_losses(loss_parts, loss_out, scale)
    reduce_W(W_parts, W, W_low, W, scale, lr, True)


def grads_over_ranks(W, H, y, scale, shared, grad_H_out, begin, tier):
    """`scale` times the gradients: of all ranks in `shared` (K, d), of this one in `grad_H_out`.

    Each rank has all of W and some of the samples. `shared` is float64. `begin(shared)` starts the
    sum of all ranks' `shared`, in place, and returns a function that waits for it.
    """
    _over_ranks(tier, W, H, None, y, scale, 1.0, grad_H_out, False, shared, begin)


def step_over_ranks(W, H, W_low, H_low, y, scale, lr, shared, begin, tier):
    """A step of W, the same on every rank, and of this rank's H; `shared`, `begin` as above."""
    _over_ranks(tier, W, H, H_low, y, scale, lr, H, True, shared, begin)
    low = W if W_low is None else W_low
    sum_parts[(-(-W.numel() // 256),)](
        shared, W, low, W, 1, W.numel(), 1.0, lr,
        STEP=True, COMPENSATED=W_low is not None, BLOCK=256, **options(4, 1),
    )  # fmt: skip


def _over_ranks(tier, W, H, H_low, y, scale, lr, H_out, step, shared, begin):
    """dW of all ranks in `shared`, exchanged while the last rows of `H_out` are written."""
    waits = []

    def dW_done(W_parts):
        reduce_W(W_parts, W, None, shared, scale, 1.0, False)
        waits.append(begin(shared))

    _gradients(tier, W, H, H_low, y, scale, lr, H_out, None, step, dW_done)
    waits[0]()


def reduce_W(W_parts, W, W_low, out, scale, lr, step):
    """The second stage for dW: `out = scale * sum of the lifted partials`, or W stepped by it."""
    scale = scale * DOWN.value
    sum_parts[(-(-W.numel() // 256),)](
        W_parts, W, W if W_low is None else W_low, out, len(W_parts), W.numel(), scale, lr,
        STEP=step, COMPENSATED=W_low is not None, BLOCK=256, **options(4, 1),
    )  # fmt: skip


def _add_losses(parts, out, scale):
    """`out[0] = scale sum(parts)`, unless `out` is None."""
    if out is not None:
        sum_losses[(1,)](parts, out, len(parts), scale, BLOCK=_BLOCK, **options(4, 1))


def problem(W, H, tier):
    """The arguments of `plan`: K, d, N, the dtype's name, the tier, whether the GPU is large."""
    large = not W.is_cuda or has_large_tiles(torch.cuda.get_device_capability(W.device))
    return *W.shape, len(H), str(W.dtype).removeprefix("torch."), tier, large


def _regime(tier, W, H):
    """The module of kernels for a problem, and its plan."""
    shape = plan(*problem(W, H, tier))
    return _REGIMES[type(shape)], shape


def _losses(tier, W, H, y, log):
    """Partial sums of the losses; with `log` in units of `e^shift`, and the shifts."""
    regime, shape = _regime(tier, W, H)
    return regime.losses(shape, W, H, y, log)


def _gradients(tier, W, H, H_low, y, scale, lr, H_out, extent, step, dW_done):
    """Partials of the loss and of dW; writes `H_out`. With `extent`, in the log domain.

    `dW_done`, unless None, is called with the partials of dW as soon as they are complete.
    """
    regime, shape = _regime(tier, W, H)
    return regime.gradients(shape, W, H, H_low, y, scale, lr, H_out, extent, step, dW_done)
