"""Cross-entropy of linear logits on the CPU: equation (4), its gradients, and a fused step.

Letters: K classes, d features, N samples, `W (K, d)`, `H (N, d)`, `y (N,)` int64. Per sample,
with `D_j = <w_j - w_y, h>` and the residual `r = p - onehot` of `residual`:

    loss = log(1 + sum_{j != y} exp(D_j))       grad_W = r^T H       grad_H = r W

These are the launchers of `chunk_pass`, whose work `plan` divides.
`6KNd` operations and N K exponentials; H is read once (`4Nd` bytes in float32) and a step
writes it once. Bound by the multiply-add rate, by memory only where K is below about 8.
"""

import math

import numpy as np

from fastnc.kernels.cpu import few_classes
from fastnc.kernels.cpu import tile as tile_cpu
from fastnc.kernels.cpu.addresses import addresses
from fastnc.kernels.cpu.aligned import aligned, aligned_zeros
from fastnc.kernels.cpu.chunk_pass import (
    GRADS,
    LOG_GRADS,
    LOSS,
    STEP,
    add_in_parallel,
    add_serially,
    classes_divided,
    one_part,
    rescale,
    row_of_logits,
    samples_divided,
)
from fastnc.kernels.cpu.plan import plan
from fastnc.kernels.cpu.threads import one_thread

# Numbers that one thread adds in less time than it takes to wake a second.
SERIAL_SUMS = 1 << 17


def numbers(planned, dtype, at_once=False):
    """A plan's numbers, as `chunk_pass` takes them; a step may take both sums `at_once`."""
    found = addresses(planned.products == "blas", dtype, at_once)
    return planned.chunk, planned.block, int(planned.products != "dots"), *found


def without_options(dtype):
    """`options` of `chunk_pass` for equation (4) as it is."""
    nothing = np.empty(0, dtype)
    return nothing, nothing, nothing, 0.0, 1.0, np.ones(1, dtype)


class Run:
    """One pass over all samples: the parts' sums, and the results made of them.

    `grad_W` is the array that `gather` will be given, or one of no rows.
    """

    def __init__(self, mode, W, H, y, options, alpha, out, grad_W, rows_bias, losses_out):
        (K, d), N = W.shape, len(H)
        planned = plan(K, d, N, W.itemsize)
        self.parts = planned.parts if planned.divides == "samples" else 1
        self.chunk = planned.chunk
        padded = tile_cpu.padded(W)
        shape = self.parts, len(grad_W), padded.shape[1]
        if mode != STEP and shape == (1, *grad_W.shape):
            # The only part adds where its sums are wanted, and `gather` scales them there.
            grad_W[...] = 0
            self.sums = grad_W[None]
        else:
            self.sums = aligned_zeros(shape, W.dtype)
        self.bias_sums = np.zeros((self.parts, rows_bias))
        self.totals, self.shifts = np.empty(self.parts), np.empty(self.parts)
        # An upper bound: the parts' numbers of chunks differ by at most one.
        chunks = N // (self.parts * planned.chunk) + 2 if mode == LOG_GRADS else 0
        self.chunk_shifts = np.empty((self.parts, chunks))
        at_once = mode == STEP and few_classes.taken(planned, K, d, W.dtype)
        arguments = (
            numbers(planned, W.dtype, at_once), padded, H, y, options, W.dtype.type(alpha), out,
            self.sums, self.bias_sums, losses_out, self.totals, self.shifts, self.chunk_shifts,
        )  # fmt: skip
        if planned.divides == "classes":
            # Here and not where they are used, as NumPy asks for large pages.
            Z = aligned((K, row_of_logits(planned.chunk, W.itemsize)), W.dtype)
            ranges = min(planned.parts, -(-K // planned.block))
            height = planned.chunk if len(out) else 0
            range_sums = aligned((ranges, height, padded.shape[1]), W.dtype)
            classes_divided(mode, Z, range_sums, *arguments)
        elif planned.parts == 1:
            one_part(mode, *arguments)
        else:
            samples_divided(mode, planned.parts, *arguments)
        # Without samples every shift is -inf.
        self.top = max(self.shifts.max(), -np.finfo(np.float64).max)

    def loss(self):
        """The sum of all losses."""
        # In two steps, since e^shift itself may underflow.
        root = np.exp(0.5 * self.shifts)
        return float((self.totals * root * root).sum())

    def gather(self, factor, keep, out):
        """`out = factor r^T H`, added to `out` if `keep`; divided by e^top in the log domain."""
        top = 0.0 if self.chunk_shifts.size else self.top
        # Shifts of the parts are taken relative to `top` either way.
        add = add_serially if self.sums.size < SERIAL_SUMS else add_in_parallel
        add(self.sums, self.shifts - self.top, top, factor, keep, out)

    def gather_bias(self, out):
        """`out = sum of r`."""
        root = np.exp(0.5 * self.shifts)[:, None]
        out[:] = (self.bias_sums * root * root).sum(axis=0)


def _run(mode, W, H, y, alpha, out, grad_W):
    options = without_options(W.dtype)
    return Run(mode, W, H, y, options, alpha, out, grad_W, 0, options[0])


def loss(W, H, y, scale, loss_out):
    """`loss_out[0] = scale * sum of the losses`."""
    with one_thread():
        loss_out[0] = scale * _run(LOSS, W, H, y, 0.0, H[:0], W[:0]).loss()


def loss_and_grads(W, H, y, scale, loss_out, grad_W_out, grad_H_out):
    """The loss and both gradients, times `scale`."""
    with one_thread():
        run = _run(GRADS, W, H, y, scale, grad_H_out, grad_W_out)
        run.gather(scale, False, grad_W_out)
        loss_out[0] = scale * run.loss()


def log_loss_and_grads(W, H, y, log_loss_out, grad_W_out, grad_H_out):
    """log of the summed loss, and the gradients divided by the loss."""
    with one_thread():
        run = _run(LOG_GRADS, W, H, y, 1.0, grad_H_out, grad_W_out)
        total = float((np.exp(run.shifts - run.top) * run.totals).sum())
        log_loss_out[0] = run.top + math.log(total) if total > 0.0 else math.nan
        factor = 1.0 / total if total else math.nan
        run.gather(factor, False, grad_W_out)
        rescale(run.chunk, run.parts, grad_H_out, run.chunk_shifts, run.top, factor)


def gradient_step(W, H, y, scale, lr, loss_out):
    """`W -= lr * grad_W`, `H -= lr * grad_H` in place; the loss is that before the step.

    If the loss is not finite, W keeps its values, and so do the chunks of H that made it so.
    """
    with one_thread():
        run = _run(STEP, W, H, y, -lr * scale, H, W)
        loss_out[0] = scale * run.loss()
        if math.isfinite(loss_out[0]):
            run.gather(-lr * scale, True, W)
