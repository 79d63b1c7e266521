"""The objective (4), its gradients, steps and Hessian products: check, choose, call.

Where the arrays live decides what runs: NumPy arrays and CPU tensors run the Numba kernels,
CUDA tensors run the Triton kernels. NumPy in, NumPy out; torch in, torch out on the same device
and in the same dtype. `impl="reference"` forms every logit in float64 and is there to compare
with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fastnc import reference
from fastnc._core import arrays
from fastnc._core.kernel_call import Call
from fastnc._core.serial import quiet

Reduction = Literal["mean", "sum"]
Impl = Literal["reference", "cpu", "gpu"]
Precision = Literal["exact", "fast"]


def which(x: Any) -> str:
    """`"cpu"` or `"gpu"`: the kernels that would run on `x`.

    Parameters
    ----------
    x : NumPy array or torch tensor

    Raises
    ------
    ValueError, TypeError
        A tensor on a device that is neither the CPU nor CUDA; no array of numbers.

    Examples
    --------
    >>> import fastnc, numpy as np
    >>> fastnc.which(np.zeros(3))
    'cpu'
    """
    where = arrays.home(x)
    if not arrays.is_torch(x):
        arrays.check_array("x", x)
    return where


@dataclass(frozen=True)
class Arrangement:
    """The result of `plan`; printed, a table of what runs and why.

    Attributes
    ----------
    divides : "samples" or "classes", which are divided among threads
    products : "tiles", "dots" or "blas": register tiles; with logits by dot products of rows; with
        sums over samples by a BLAS
    parts : int, of the samples, or ranges of the classes
    chunk, block : int, samples and classes whose logits are formed at a time
    processor : dict, the properties of the processor that decide
    reasons : dict, a sentence for each of the first five
    """

    divides: str
    products: str
    parts: int
    chunk: int
    block: int
    processor: dict[str, int]
    reasons: dict[str, str]

    def __str__(self) -> str:
        facts = ", ".join(f"{name} {value:,}" for name, value in self.processor.items())
        rows = [f"{name:9}{getattr(self, name)!s:9}{why}" for name, why in self.reasons.items()]
        return "\n".join([f"processor: {facts}", *rows])


def plan(n_classes: int, dim: int, n_samples: int, dtype: Any = "float64") -> Arrangement:
    """How the CPU divides the objective of a problem of this shape, and why.

    Parameters
    ----------
    n_classes, dim, n_samples : int, K >= 2, d >= 1 and N >= 1
    dtype : "float32" or "float64", or NumPy's or torch's

    Returns
    -------
    Arrangement
        It depends on the shape and the processor alone, as the bits of the results do.

    Raises
    ------
    ValueError
        A count is too small, or the dtype neither of the two.

    Examples
    --------
    >>> import fastnc
    >>> plan = fastnc.plan(10, 64, 200_000, "float32")
    >>> plan.divides, plan.products, plan.chunk
    ('samples', 'tiles', 64)
    >>> print(plan)  # doctest: +ELLIPSIS
    processor: vector bytes ...
    divides  samples  ...
    """
    n_classes = arrays.check_count("n_classes", n_classes, 2)
    dim = arrays.check_count("dim", dim, 1)
    n_samples = arrays.check_count("n_samples", n_samples, 1)
    name = str(getattr(dtype, "__name__", dtype)).removeprefix("torch.")
    arrays.check_choice("dtype", name, ("float32", "float64"))
    from fastnc.kernels.cpu.plan import FACTS, plan, reasons

    planned = plan(n_classes, dim, n_samples, np.dtype(name).itemsize)
    why = reasons(planned, n_classes, dim, np.dtype(name).itemsize)
    return Arrangement(**planned._asdict(), processor=dict(FACTS), reasons=why)


@quiet
def loss(
    W: Any,
    H: Any,
    y: Any,
    reduction: Reduction = "mean",
    *,
    impl: Impl | None = None,
    precision: Precision = "exact",
) -> Any:
    """The cross-entropy of linear logits, equation (4).

    `sum_i log(1 + sum_{j != y_i} exp(<w_j - w_{y_i}, h_i>))`, divided by N when
    `reduction="mean"`. Equivalent to `torch.nn.functional.cross_entropy(H @ W.T, y)`, but with
    all its digits at any margin and without the N x K logits.

    Parameters
    ----------
    W : (K, d) float32 or float64, K >= 2
        One classifier a row.
    H : (N, d), dtype and library of `W`
        One sample a row.
    y : (N,) integers in 0..K-1
        Any order, any counts, absent classes allowed.
    reduction : "mean" or "sum"
    impl : None, "reference", "cpu" or "gpu"
        None: where the arrays live decides (see `which`).
    precision : "exact" or "fast"
        "fast" keeps two to three digits of the gradients of float32 tensors on a GPU, and five or
        more of the loss. Everywhere else it is "exact".

    Returns
    -------
    float, or for tensors a 0-d tensor
        Losses are summed in float64. No graph is recorded, here and below: autograd differentiates
        `fastnc.nn.linear_cross_entropy`.

    Raises
    ------
    TypeError, ValueError
        Shapes or dtypes that do not fit, labels out of range, NaN or infinity.
    OverflowError
        All entries are finite, but a logit is not.
    ImportError
        torch or triton is needed and is not installed.

    Notes
    -----
    Cost: `2KNd` operations and N exponentials a class; H is read once. On the GPU, NaN and
    infinity are not checked for, since that would wait for the device: they show in the loss.

    Examples
    --------
    >>> import fastnc, numpy as np
    >>> W, H, y = np.eye(2), np.array([[3.0, 1.0], [40.0, 0.0]]), np.array([0, 0])
    >>> print(f"{fastnc.loss(W, H, y, 'sum'):.6f}, {fastnc.loss(W, H[1:], y[1:]):.6e}")
    0.126928, 4.248354e-18

    The second sample's loss is e^-40; `logsumexp(z) - z_y` would be 0.
    """
    call = Call(W, H, y, reduction, impl, precision)
    out = call.scalar()
    match call.impl:
        case "reference":
            out[0] = call.scale * reference.loss(*call.wide())
        case _:
            call.run("cross_entropy", "loss", call.scale, out)
    return call.value(out)


@quiet
def loss_and_grads(
    W: Any,
    H: Any,
    y: Any,
    reduction: Reduction = "mean",
    *,
    impl: Impl | None = None,
    precision: Precision = "exact",
) -> tuple[Any, Any, Any]:
    """Equation (4) and both its gradients, `r^T H` and `r W` with the residuals `r = p - onehot`.

    Parameters, Raises: as `loss`.

    Returns
    -------
    loss, grad_W (K, d), grad_H (N, d)
        In the library, on the device and in the dtype of `W`.

    Notes
    -----
    Cost: `6KNd` operations. The residual's label entry is minus the sum of the others, so the
    gradients keep all digits where `p_y` rounds to 1. The bits do not depend on the threads.

    Examples
    --------
    >>> import fastnc, numpy as np
    >>> W, H, y = np.eye(2), np.array([[40.0, 0.0]]), np.array([0])
    >>> value, grad_W, grad_H = fastnc.loss_and_grads(W, H, y)
    >>> print(f"{grad_H[0, 0]:.6e} {grad_H[0, 1]:.6e}")
    -4.248354e-18 4.248354e-18
    """
    call = Call(W, H, y, reduction, impl, precision)
    out, grad_W, grad_H = call.scalar(), call.empty_like(0), call.empty_like(1)
    match call.impl:
        case "reference":
            out[0], dW, dH = reference.loss_and_grads(*call.wide())
            out *= call.scale
            grad_W[:], grad_H[:] = call.scale * dW, call.scale * dH
        case _:
            call.run("cross_entropy", "loss_and_grads", call.scale, out, grad_W, grad_H)
    return call.value(out), call.result(grad_W), call.result(grad_H)


@quiet
def log_loss_and_grads(
    W: Any,
    H: Any,
    y: Any,
    reduction: Reduction = "mean",
    *,
    impl: Impl | None = None,
    precision: Precision = "exact",
) -> tuple[Any, Any, Any]:
    """The logarithm of (4), and both gradients divided by the loss: finite at any margin.

    Every gap is shifted by a common maximum before it is exponentiated, so no digit is lost
    where the loss itself is far below the smallest number of the dtype.

    Parameters, Raises: as `loss`.

    Returns
    -------
    log_loss, grad_W / loss (K, d), grad_H / loss (N, d)
        The gradients are those of `log_loss`, the same for both reductions.

    Notes
    -----
    Cost: as `loss_and_grads`, and one more pass over grad_H.

    Examples
    --------
    >>> import fastnc, numpy as np
    >>> W, H, y = np.eye(2), np.array([[1e5, 0.0]]), np.array([0])
    >>> log_loss, _, direction = fastnc.log_loss_and_grads(W, H, y)
    >>> print(log_loss, direction)
    -100000.0 [[-1.  1.]]
    """
    call = Call(W, H, y, reduction, impl, precision)
    out, grad_W, grad_H = call.scalar(), call.empty_like(0), call.empty_like(1)
    match call.impl:
        case "reference":
            out[0], dW, dH = reference.log_loss_and_grads(*call.wide())
            grad_W[:], grad_H[:] = dW, dH
        case _:
            call.run("cross_entropy", "log_loss_and_grads", out, grad_W, grad_H)
    if reduction == "mean":
        out -= float(np.log(len(call.arrays[1])))
    return call.value(out), call.result(grad_W), call.result(grad_H)


@quiet
def hessian_vector_product(
    W: Any,
    H: Any,
    y: Any,
    dW: Any,
    dH: Any,
    reduction: Reduction = "mean",
    *,
    impl: Impl | None = None,
    precision: Precision = "exact",
) -> tuple[Any, Any]:
    """The Hessian of (4) times a direction: the derivative of both gradients along it.

    Parameters
    ----------
    W, H, y, reduction, impl, precision : as in `loss`
    dW : (K, d), dH : (N, d), dtype and library of `W`
        The direction.

    Returns
    -------
    HW (K, d), HH (N, d)

    Raises
    ------
    As `loss`.

    Notes
    -----
    Cost: `14KNd` operations, a little more than two evaluations of the gradients; exact in the tail
    as they are. For Definition 3.2 and Theorem 3.4 see `tangent_curvature`.

    Examples
    --------
    >>> import fastnc
    >>> model = fastnc.ULPM(n_classes=5, n_per_class=10, dim=20)
    >>> (W, H), (dW, dH) = model.init(seed=0), model.init(seed=1)
    >>> HW, HH = fastnc.hessian_vector_product(W, H, model.y, dW, dH)
    >>> HW.shape, HH.shape
    ((5, 20), (50, 20))
    """
    call = Call(W, H, y, reduction, impl, precision, direction=(dW, dH))
    HW, HH = call.empty_like(0), call.empty_like(1)
    match call.impl:
        case "reference":
            wide_HW, wide_HH = reference.hessian_vector_product(*call.wide())
            HW[:], HH[:] = call.scale * wide_HW, call.scale * wide_HH
        case _:
            call.run("hessian", "hessian_vector_product", call.scale, HW, HH)
    # A NaN or an infinity anywhere in H or dH reaches HW, since 0 times it is NaN.
    if isinstance(HW, np.ndarray) and not np.isfinite(HW).all():
        call.raise_culprit()
    return call.result(HW), call.result(HH)


@quiet
def gradient_step(
    W: Any,
    H: Any,
    y: Any,
    lr: float,
    reduction: Reduction = "mean",
    *,
    impl: Impl | None = None,
    precision: Precision = "exact",
) -> Any:
    """One step of gradient descent on (4), in place; the gradient of H is never formed.

    `W -= lr * grad_W; H -= lr * grad_H`, both gradients taken before the step.

    Parameters
    ----------
    W, H : as in `loss`, C-contiguous and writable, not overlapping
        Overwritten.
    y, reduction, impl, precision : as in `loss`
    lr : float > 0
        Step size; the paper's Figure 2 uses 5 with the mean.

    Returns
    -------
    The loss before the step, as `loss` returns it.

    Raises
    ------
    As `loss`; ValueError also where `W` or `H` cannot be overwritten, or `lr <= 0`. After a NaN, an
    infinity or an overflow `W` is unchanged, and so are the rows of `H` next to it; other rows may
    have been updated.

    Notes
    -----
    Cost: `6KNd` operations; H is read and written once. The memory it needs beside its
    arguments does not grow with N.

    Examples
    --------
    >>> import fastnc
    >>> model = fastnc.ULPM(n_classes=5, n_per_class=10, dim=20)
    >>> W, H = model.init(seed=0)
    >>> losses = [fastnc.gradient_step(W, H, model.y, lr=5.0) for _ in range(100)]
    >>> bool(losses[-1] < losses[0])
    True
    """
    lr = arrays.check_positive("lr", lr)
    call = Call(W, H, y, reduction, impl, precision, overwrites=True)
    out = call.scalar()
    match call.impl:
        case "reference":
            W64, H64, labels = call.wide()
            out[0], new_W, new_H = reference.gradient_step(W64, H64, labels, lr * call.scale)
            out *= call.scale
            if np.isfinite(out[0]):
                call.arrays[0][:], call.arrays[1][:] = new_W, new_H
        case _:
            call.run("cross_entropy", "gradient_step", call.scale, lr, out)
    value = call.value(out)
    call.write_back()
    return value
