"""One checked call of the objective: arguments to the kernels' device, results back."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NoReturn

import numpy as np

from fastnc._core.arrays import (
    as_numpy,
    check_array,
    check_choice,
    check_finite,
    check_labels,
    check_matrix,
    dtype_name,
    home,
    is_torch,
    row_major,
)
from fastnc._core.cuda import check_gpu, check_memory, need_gpu, on_device_of


class Call:
    """The checked arguments of a call, as the chosen kernels take them, and its results."""

    def __init__(
        self,
        W: Any,
        H: Any,
        y: Any,
        reduction: str,
        impl: str | None,
        precision: str = "exact",
        *,
        direction: tuple[Any, Any] | None = None,
        overwrites: bool = False,
    ) -> None:
        given = {"W": W, "H": H}
        if direction is not None:
            given |= {"dW": direction[0], "dH": direction[1]}
        _check_together(given)
        check_choice("reduction", reduction, ("mean", "sum"))
        if impl is not None:
            check_choice("impl", impl, ("reference", "cpu", "gpu"))
        check_choice("precision", precision, ("exact", "fast"))
        if overwrites:
            _check_overwritable(W, H)
        self.given = given
        self.impl = home(W) if impl is None else impl
        # What the launchers on a GPU take beyond those on the CPU.
        self.tier = (precision,) if self.impl == "gpu" else ()
        self.scale = 1.0 / len(H) if reduction == "mean" else 1.0
        place = _on_gpu if self.impl == "gpu" else row_major
        placed = {name: place(x) for name, x in given.items()}
        if self.impl != "gpu":
            for name in placed.keys() - {"H", "dH"}:
                check_finite(name, placed[name])
        labels = _labels(y, len(H), len(W), placed["W"])
        W_, H_, *along = placed.values()
        if self.impl == "gpu":
            check_gpu(W_)
            check_memory(W_, len(H_))
        self.arrays = (W_, H_, labels, *along)

    def run(self, op: str, name: str, *arguments: Any) -> None:
        """The launcher `name` of `op`, on the arrays, by the chosen implementation.

        Triton launches on the current device, which need not be that of the arrays.
        """
        if self.impl == "gpu":
            _need("triton", "gpu")
        launcher = getattr(import_module(f"fastnc.kernels.{self.impl}.{op}"), name)
        with on_device_of(self.arrays[0]):
            launcher(*self.arrays, *arguments, *self.tier)

    def wide(self) -> tuple[Any, ...]:
        """The arrays in float64, labels as they are."""
        return tuple(a if a.dtype == np.int64 else a.astype(np.float64) for a in self.arrays)

    def scalar(self) -> Any:
        """An output for the loss: float64, shape (1,)."""
        if self.impl == "gpu":
            import torch

            return torch.empty(1, dtype=torch.float64, device=self.arrays[0].device)
        return np.full(1, np.nan)

    def empty_like(self, index: int) -> Any:
        """An uninitialised result of the shape of one of the arrays."""
        x = self.arrays[index]
        if self.impl == "gpu":
            import torch

            return torch.empty_like(x)
        return np.empty_like(x)

    def result(self, x: Any) -> Any:
        """`x` in the library and on the device of the arguments."""
        return _like(x, self.given["W"])

    def value(self, out: Any) -> Any:
        """The loss as it is returned; on the CPU an error instead if it is not finite."""
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
        """Copy the updated W and H back where the kernels worked on copies elsewhere."""
        for x, new in zip((self.given["W"], self.given["H"]), self.arrays, strict=False):
            if is_torch(x) and (is_torch(new) or x.device.type != "cpu"):
                x.detach().copy_(_like(new, x))
            elif is_torch(new):
                x[:] = new.cpu().numpy()
            if is_torch(x) and not x.is_inference():
                import torch

                # Kernels write to memory; autograd must know that what it saved has changed.
                torch.autograd.graph.increment_version(x)


def _check_together(given: dict[str, Any]) -> None:
    """Shapes, dtypes, libraries and devices must fit together."""
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
        if tensor and (x.is_neg() or x.is_conj()):
            raise ValueError(
                f"`{name}` must not be a negated view, as it is overwritten; pass what its "
                "`.resolve_neg()` returns."
            )
        if tensor and x._is_zerotensor():
            raise ValueError(
                f"`{name}` must have memory, as it is overwritten; pass what its `.clone()` "
                "returns."
            )
        if not tensor and not x.flags.writeable:
            raise ValueError(f"`{name}` must be writable, as it is overwritten; copy it first.")
    if home(W) == "cpu" and np.may_share_memory(as_numpy(W), as_numpy(H)):
        raise ValueError("`W` and `H` must not share memory, as both are overwritten; copy one.")


def _labels(y: Any, n_samples: int, n_classes: int, beside: Any) -> Any:
    """`y` as int64 where `beside` lives, in 0..n_classes-1."""
    if not isinstance(beside, np.ndarray):
        import torch

        if not is_torch(y):
            labels = row_major(check_labels(y, n_samples, n_classes), np.int64)
            return torch.from_numpy(labels).to(beside.device)
        check_array("y", y)
        tensor = y
        number = tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool
        if number or tensor.ndim != 1 or len(tensor) != n_samples:
            check_labels(tensor, n_samples, n_classes)
        low, high = torch.aminmax(tensor)
        if low < 0 or high >= n_classes:
            check_labels(tensor, n_samples, n_classes)
        return tensor.to(device=beside.device, dtype=torch.int64).contiguous()
    return row_major(check_labels(y, n_samples, n_classes), np.int64)


def _on_gpu(x: Any) -> Any:
    torch = _need("torch", "torch")
    need_gpu("impl='gpu'")
    tensor = x.detach() if is_torch(x) else torch.from_numpy(np.ascontiguousarray(x))
    # A tensor on another GPU stays there.
    return (tensor if tensor.is_cuda else tensor.cuda()).contiguous()


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
