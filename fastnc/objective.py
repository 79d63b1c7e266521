"""The objective (4), its gradients, steps and Hessian products: check, choose, call.

Where the arrays live decides what runs: NumPy arrays and CPU tensors run the Numba kernels,
CUDA tensors run the Triton kernels. NumPy in, NumPy out; torch in, torch out on the same device
and in the same dtype. `impl="reference"` forms every logit in float64 and is there to compare
with.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Literal, NoReturn

import numpy as np

from fastnc import reference
from fastnc._arrays import (
    as_numpy,
    check_choice,
    check_finite,
    check_labels,
    check_matrix,
    check_positive,
    dtype_name,
    home,
    is_torch,
    row_major,
)

Reduction = Literal["mean", "sum"]
Impl = Literal["reference", "cpu", "gpu"]


def which(x: Any) -> str:
    """`"cpu"` or `"gpu"`: the kernels that would run on `x`.

    Parameters
    ----------
    x : NumPy array or torch tensor

    Raises
    ------
    ValueError
        A tensor on a device that is neither the CPU nor CUDA.
    """
    return home(x)


def loss(W: Any, H: Any, y: Any, reduction: Reduction = "mean", *, impl: Impl | None = None) -> Any:
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

    Returns
    -------
    float, or for tensors a 0-d tensor
        Losses are summed in float64.

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
    infinity are not looked for, since that would wait for the device: they show in the loss.
    """
    call = _Call(W, H, y, reduction, impl)
    out = call.scalar()
    match call.impl:
        case "reference":
            out[0] = call.scale * reference.loss(*call.wide())
        case "cpu" | "gpu":
            call.kernels("cross_entropy").loss(*call.arrays, call.scale, out)
        case other:
            _unknown(other)
    return call.value(out)


def loss_and_grads(
    W: Any, H: Any, y: Any, reduction: Reduction = "mean", *, impl: Impl | None = None
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
    """
    call = _Call(W, H, y, reduction, impl)
    out, grad_W, grad_H = call.scalar(), call.empty_like(0), call.empty_like(1)
    match call.impl:
        case "reference":
            out[0], dW, dH = reference.loss_and_grads(*call.wide())
            out *= call.scale
            grad_W[:], grad_H[:] = call.scale * dW, call.scale * dH
        case "cpu" | "gpu":
            kernels = call.kernels("cross_entropy")
            kernels.loss_and_grads(*call.arrays, call.scale, out, grad_W, grad_H)
        case other:
            _unknown(other)
    return call.value(out), call.result(grad_W), call.result(grad_H)


def log_loss_and_grads(
    W: Any, H: Any, y: Any, reduction: Reduction = "mean", *, impl: Impl | None = None
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
    """
    call = _Call(W, H, y, reduction, impl)
    out, grad_W, grad_H = call.scalar(), call.empty_like(0), call.empty_like(1)
    match call.impl:
        case "reference":
            out[0], dW, dH = reference.log_loss_and_grads(*call.wide())
            grad_W[:], grad_H[:] = dW, dH
        case "cpu" | "gpu":
            kernels = call.kernels("cross_entropy")
            kernels.log_loss_and_grads(*call.arrays, out, grad_W, grad_H)
        case other:
            _unknown(other)
    if reduction == "mean":
        out -= float(np.log(len(call.arrays[1])))
    return call.value(out), call.result(grad_W), call.result(grad_H)


def hessian_vector_product(
    W: Any,
    H: Any,
    y: Any,
    dW: Any,
    dH: Any,
    reduction: Reduction = "mean",
    *,
    impl: Impl | None = None,
) -> tuple[Any, Any]:
    """The Hessian of (4) times a direction: the derivative of both gradients along it.

    Parameters
    ----------
    W, H, y, reduction, impl : as in `loss`
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
    Cost: `12KNd` operations, about two evaluations of the gradients; exact in the tail as they
    are. Used by `tangent_curvature` (Definition 3.2, Theorem 3.4).
    """
    call = _Call(W, H, y, reduction, impl, dW=dW, dH=dH)
    HW, HH = call.empty_like(0), call.empty_like(1)
    match call.impl:
        case "reference":
            wide_HW, wide_HH = reference.hessian_vector_product(*call.wide())
            HW[:], HH[:] = call.scale * wide_HW, call.scale * wide_HH
        case "cpu" | "gpu":
            kernels = call.kernels("hessian")
            kernels.hessian_vector_product(*call.arrays, call.scale, HW, HH)
        case other:
            _unknown(other)
    # A NaN or an infinity anywhere in H or dH reaches HW, since 0 times it is NaN.
    if isinstance(HW, np.ndarray) and not np.isfinite(HW).all():
        call.raise_culprit()
    return call.result(HW), call.result(HH)


def gradient_step(
    W: Any,
    H: Any,
    y: Any,
    lr: float,
    reduction: Reduction = "mean",
    *,
    impl: Impl | None = None,
) -> Any:
    """One step of gradient descent on (4), in place; the gradient of H is never formed.

    `W -= lr * grad_W; H -= lr * grad_H`, both gradients taken before the step.

    Parameters
    ----------
    W, H : as in `loss`, C-contiguous and writable, not overlapping
        Overwritten.
    y, reduction, impl : as in `loss`
    lr : float > 0
        Step size; the paper's Figure 2 uses 5 with the mean.

    Returns
    -------
    The loss before the step, as `loss` returns it.

    Raises
    ------
    As `loss`; ValueError also where `W` or `H` cannot be overwritten, or `lr <= 0`. If a NaN, an
    infinity or an overflow is met, `W` is left as it was, and so are the rows of `H` around it;
    other rows may have moved.

    Notes
    -----
    Cost: `6KNd` operations; H is read and written once. The memory it needs beside its
    arguments does not grow with N.
    """
    check_positive("lr", lr)
    call = _Call(W, H, y, reduction, impl, overwrites=True)
    out = call.scalar()
    match call.impl:
        case "reference":
            W64, H64, labels = call.wide()
            out[0], new_W, new_H = reference.gradient_step(W64, H64, labels, lr * call.scale)
            out *= call.scale
            if np.isfinite(out[0]):
                call.arrays[0][:], call.arrays[1][:] = new_W, new_H
        case "cpu" | "gpu":
            kernels = call.kernels("cross_entropy")
            kernels.gradient_step(*call.arrays, call.scale, lr, out)
        case other:
            _unknown(other)
    value = call.value(out)
    call.write_back()
    return value


class _Call:
    """One checked call: its arrays where the chosen kernels want them, and how to hand back."""

    def __init__(
        self,
        W: Any,
        H: Any,
        y: Any,
        reduction: str,
        impl: str | None,
        *,
        dW: Any = None,
        dH: Any = None,
        overwrites: bool = False,
    ) -> None:
        given = {"W": W, "H": H} | ({} if dW is None and dH is None else {"dW": dW, "dH": dH})
        _check_together(given)
        check_choice("reduction", reduction, ("mean", "sum"))
        if impl is not None:
            check_choice("impl", impl, ("reference", "cpu", "gpu"))
        if overwrites:
            _check_overwritable(W, H)
        self.given = given
        self.impl = home(W) if impl is None else impl
        self.scale = 1.0 / len(H) if reduction == "mean" else 1.0
        place = _on_gpu if self.impl == "gpu" else row_major
        placed = {name: place(x) for name, x in given.items()}
        if self.impl != "gpu":
            for name in placed.keys() - {"H", "dH"}:
                check_finite(name, placed[name])
        labels = _labels(y, len(H), len(W), placed["W"])
        W_, H_, *direction = placed.values()
        self.arrays = (W_, H_, labels, *direction)

    def kernels(self, op: str) -> Any:
        """The module of `op` for the chosen implementation."""
        if self.impl == "gpu":
            _need("triton", "gpu")
        return import_module(f"fastnc.kernels.{op}_{self.impl}")

    def wide(self) -> tuple[Any, ...]:
        """The arrays in float64, labels as they are."""
        return tuple(a if a.dtype == np.int64 else a.astype(np.float64) for a in self.arrays)

    def scalar(self) -> Any:
        """Where the kernels leave the loss: float64, shape (1,)."""
        if self.impl == "gpu":
            import torch

            return torch.empty(1, dtype=torch.float64, device=self.arrays[0].device)
        return np.full(1, np.nan)

    def empty_like(self, index: int) -> Any:
        """Room for a result of the shape of one of the arrays."""
        x = self.arrays[index]
        if self.impl == "gpu":
            import torch

            return torch.empty_like(x)
        return np.empty_like(x)

    def result(self, x: Any) -> Any:
        """`x` in the library and on the device of the arguments."""
        return _like(x, self.given["W"])

    def value(self, out: Any) -> Any:
        """The loss as it is returned, and a sentence instead if it is not finite."""
        W = self.given["W"]
        if isinstance(out, np.ndarray):
            if not np.isfinite(out[0]):
                self.raise_culprit()
            if not is_torch(W):
                return float(out[0])
            import torch

            return torch.tensor(out[0], dtype=W.dtype, device=W.device)
        return out[0].to(W.dtype) if is_torch(W) else float(out[0])

    def raise_culprit(self) -> NoReturn:
        """The result is not finite: say which array, or that a logit overflowed."""
        for name, x in self.given.items():
            check_finite(name, as_numpy(x))
        raise OverflowError(
            f"a logit of `W` and `H` is beyond the range of {dtype_name(self.given['W'])}, though "
            "all entries are finite. A diverging run needs a smaller `lr`; scale down `W` or `H`."
        )

    def write_back(self) -> None:
        """Bring overwritten arrays home where the kernels worked on a copy elsewhere."""
        for x, new in zip((self.given["W"], self.given["H"]), self.arrays, strict=False):
            if is_torch(x) and (is_torch(new) or x.device.type != "cpu"):
                x.detach().copy_(_like(new, x))
            elif is_torch(new):
                x[:] = new.cpu().numpy()


def _check_together(given: dict[str, Any]) -> None:
    """Shapes, dtypes, libraries and devices that fit, or one sentence."""
    W, H = given["W"], given["H"]
    check_matrix("W", W, (None, None))
    check_matrix("H", H, (None, W.shape[1]))
    if W.shape[0] < 2:
        raise ValueError(f"`W` must have at least 2 rows, one a class; got shape {tuple(W.shape)}.")
    for name, of in (("dW", W), ("dH", H)):
        if name in given:
            check_matrix(name, given[name], tuple(of.shape))
    for name, x in given.items():
        if is_torch(x) != is_torch(W) or (is_torch(x) and x.device != W.device):
            raise TypeError(
                f"`{name}` must live where `W` does ({_place(W)}); got {_place(x)}. Move one."
            )
        if dtype_name(x) != dtype_name(W):
            raise TypeError(
                f"`{name}` must have the dtype of `W`, {dtype_name(W)}; got {dtype_name(x)}. "
                "Convert one of them."
            )


def _check_overwritable(W: Any, H: Any) -> None:
    """Both are updated in place: memory of their own, in row order, and writable."""
    for name, x in (("W", W), ("H", H)):
        tensor = is_torch(x)
        if not (x.is_contiguous() if tensor else x.flags.c_contiguous):
            raise ValueError(
                f"`{name}` must be C-contiguous, as it is overwritten; "
                f"got strides {x.stride() if tensor else x.strides}. Copy it first."
            )
        if not tensor and not x.flags.writeable:
            raise ValueError(f"`{name}` must be writable, as it is overwritten; copy it first.")
    if not is_torch(W) and np.may_share_memory(W, H):
        raise ValueError("`W` and `H` must not share memory, as both are overwritten; copy one.")


def _labels(y: Any, n_samples: int, n_classes: int, beside: Any) -> Any:
    """`y` as int64 where `beside` lives, in 0..n_classes-1."""
    if not isinstance(beside, np.ndarray):
        import torch

        tensor = y if is_torch(y) else torch.as_tensor(np.asarray(y))
        if tensor.is_floating_point() or tensor.ndim != 1 or len(tensor) != n_samples:
            check_labels(as_numpy(tensor), n_samples, n_classes)
        low, high = torch.aminmax(tensor)
        if low < 0 or high >= n_classes:
            check_labels(as_numpy(tensor), n_samples, n_classes)
        return tensor.to(device=beside.device, dtype=torch.int64).contiguous()
    labels = as_numpy(y)
    check_labels(labels, n_samples, n_classes)
    return row_major(labels, np.int64)


def _on_gpu(x: Any) -> Any:
    torch = _need("torch", "torch")
    if not torch.cuda.is_available():
        raise ValueError("`impl='gpu'` must find a CUDA device; torch sees none. Use 'cpu'.")
    tensor = x.detach() if is_torch(x) else torch.from_numpy(np.ascontiguousarray(x))
    return tensor.cuda().contiguous()


def _like(result: Any, x: Any) -> Any:
    """`result`, array or tensor, in the library and on the device of `x`."""
    if is_torch(x):
        import torch

        tensor = torch.from_numpy(result) if isinstance(result, np.ndarray) else result
        return tensor.to(x.device)
    return result if isinstance(result, np.ndarray) else result.cpu().numpy()


def _place(x: Any) -> str:
    return f"a torch tensor on {x.device}" if is_torch(x) else "a NumPy array"


def _need(module: str, extra: str) -> Any:
    """The module, or an ImportError that names the extra which brings it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module} is needed for this and is not installed: pip install 'fastnc[{extra}]'."
        ) from error


def _unknown(impl: Any) -> NoReturn:
    raise ValueError(f"`impl` must be None, 'reference', 'cpu' or 'gpu'; got {impl!r}.")
