"""Cross-entropy with a bias, class weights, label smoothing and a scale for every sample.

Equation (4) as networks use it. Letters: K classes, d features, N samples, `W (K, d)`,
`H (N, d)`, `y (N,)` int64, b the bias, v the classes' weights, t the smoothing. With
`D_j = <w_j - w_y, h> + b_j - b_y`, S and den as in `residual`, `B_j = t v_j / K`, and the
sample's weight `A = (1 - t) v_y + sum_j B_j`:

    loss = A log(1 + sum_{j != y} e^{D_j}) - sum_{j != y} B_j D_j
    dloss / dz_j = A e_j / den - B_j,  j != y          the label's entry is minus their sum

so that at any margin nothing cancels but a probability near its smoothed target.
`grad_W = r^T H`, `grad_H = r W`, `grad_b = sum r`, with each sample's r multiplied by its scale.

The pass is that of cross_entropy; a bias reads a chunk's logits once more, smoothing twice more.
The bits do not depend on the number of threads.
"""

import numpy as np

from fastnc.kernels.cpu.chunk_pass import GRADS
from fastnc.kernels.cpu.cross_entropy import Run
from fastnc.kernels.cpu.options import INNER, OPTIONS, njit
from fastnc.kernels.cpu.threads import one_thread


@njit(**OPTIONS)
def examine(y, n_classes, ignore_index):
    """How many labels are `ignore_index`, and the index of the first invalid one, or -1."""
    ignored, bad = 0, -1
    for i in range(len(y)):
        if y[i] == ignore_index:
            ignored += 1
        elif (y[i] < 0 or y[i] >= n_classes) and bad < 0:
            bad = i
    return ignored, bad


@njit(**INNER)
def add_exactly(total, lost, term):
    """`total + term`, and `lost` with what its rounding loses: Knuth's sum of two numbers."""
    new = total + term
    part = new - total
    return new, lost + ((total - (new - part)) + (term - part))


@njit(**INNER)
def mean_factor(weight, y):
    """The mean over the sum of all losses: 1 over N, or over the sum of the labels' weights."""
    divisor, lost = float(len(y)), 0.0
    if len(weight):
        divisor = 0.0
        for i in range(len(y)):
            divisor, lost = add_exactly(divisor, lost, np.float64(weight[y[i]]))
    divisor += lost
    # Over labels of weight 0 the mean is 0 / 0, as torch has it.
    return 1.0 / divisor if divisor != 0.0 else np.nan


@njit(**INNER)
def options_of(K, bias, weight, smoothing, scale):
    """`options` of `chunk_pass`.

    A common part of all biases is subtracted first: a softmax does not depend on it, and a large
    one would take digits from the logits.
    """
    real = scale.dtype.type
    least, largest = np.inf, -np.inf
    for j in range(len(bias)):
        least, largest = min(least, bias[j]), max(largest, bias[j])
    common = real(least if least > 0.0 else largest if largest < 0.0 else 0.0)
    apart = np.empty(len(bias), bias.dtype)
    for j in range(len(bias)):
        apart[j] = bias[j] - common
    uniform, total = np.empty(K if smoothing > 0.0 else 0, scale.dtype), 0.0
    lost = 0.0
    for j in range(len(uniform)):
        mass = smoothing / K * (np.float64(weight[j]) if len(weight) else 1.0)
        uniform[j] = real(mass)
        total, lost = add_exactly(total, lost, mass)
    all_uniform = total + lost
    return apart, weight, uniform, all_uniform, 1.0 - smoothing, scale


@njit(**OPTIONS)
def _options(K, bias, weight, smoothing, scale):
    return options_of(K, bias, weight, smoothing, scale)


def loss_and_grads(
    W, H, y, bias, weight, smoothing, scale, total_out, losses_out, grad_W_out, grad_H_out,
    grad_bias_out,
):  # fmt: skip
    """The sum of all losses (float64), the losses, and gradients of `sum_i scale_i loss_i`.

    Of length 0 where there is none: `bias (K,)`, `weight (K,)`, and each output but the first
    that is not wanted. `scale` is (N,) or (1,).
    """
    options = _options(len(W), bias, weight, float(smoothing), scale)
    with one_thread():
        run = Run(
            GRADS, W, H, y, options, 1.0, grad_H_out, grad_W_out, len(grad_bias_out), losses_out
        )
        total_out[0] = run.loss()
        run.gather(1.0, False, grad_W_out)
    run.gather_bias(grad_bias_out)
