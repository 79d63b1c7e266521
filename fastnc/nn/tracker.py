"""What enters a layer during an ordinary evaluation loop, kept, and how far it has collapsed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

# Rows that go to the accumulators at once: large enough to be efficient, small beside the data.
_ROWS = 16_384


class CollapseTracker:
    """Keeps copies of what enters a layer while it is open, then measures them.

        model.eval()
        with torch.no_grad(), CollapseTracker(model, "classifier.6") as tracker:
            for images, labels in loader:
                tracker.labels(labels)
                model(images)
        print(tracker.metrics())

    Under `DistributedDataParallel` each rank tracks its own samples, and `metrics`, called on
    every rank, returns those of all samples together. (A `DistributedSampler` repeats samples
    to make the ranks even; those count twice.)

    Parameters
    ----------
    module : torch.nn.Module
        The model; a `DistributedDataParallel` or `torch.compile` wrapper is looked through.
    layer : str or torch.nn.Module
        The last layer, by its name in `module.named_modules()`: what enters it are the features
        h, and its weight and bias are the classifier. The default is that of torchvision's VGG.
    keep : "memory", "device" or a path
        Where the features stay: in CPU memory, on the model's device, or in a file of that name,
        which is overwritten, and mapped when it is read. They are copied at once in any case, so
        a model that works in place does no harm.

    Raises
    ------
    ValueError
        The module has no such layer.
    """

    def __init__(
        self,
        module: nn.Module,
        layer: str | nn.Module = "classifier.6",
        *,
        keep: str | os.PathLike[str] = "memory",
    ) -> None:
        self._module = _unwrapped(module)
        self._layer = _find(self._module, layer)
        self._keep = keep
        self._handle: Any = None
        self._file: BinaryIO | None = None
        self._batches: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._dim: int | None = None
        self._dtype: torch.dtype | None = None
        self._n_samples = 0

    def __enter__(self) -> CollapseTracker:
        if self._module.training:
            warnings.warn(
                "the tracked module is in training mode: dropout and batch normalisation change "
                "what enters the layer; call `module.eval()` first.",
                stacklevel=2,
            )
        if self._keep not in ("memory", "device"):
            self._file = open(self._keep, "wb")  # noqa: SIM115
        self._handle = self._layer.register_forward_pre_hook(self._entered)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._handle.remove()
        if self._file is not None:
            self._file.close()

    def labels(self, y: Tensor) -> None:
        """The labels of the batch that goes through the module next, or has just gone."""
        self._labels.append(torch.as_tensor(y).detach().reshape(-1).to(torch.int64, copy=True))

    @property
    def features(self) -> Tensor:
        """What entered the layer (N, d), in order; mapped from the file where there is one."""
        if not self._n_samples or self._dim is None or self._dtype is None:
            raise ValueError(
                "nothing entered the layer. Run the model inside the `with` block; of a compiled "
                "model, run the one that was given to `torch.compile`."
            )
        if self._keep in ("memory", "device"):
            if len(self._batches) > 1:
                self._batches = [torch.cat(self._batches)]
            return self._batches[0]
        shape = (self._n_samples, self._dim)
        stored = np.memmap(self._keep, _stored(self._dtype), mode="r+", shape=shape)
        return torch.from_numpy(stored)

    def targets(self) -> Tensor:
        """All labels given so far (N,)."""
        return torch.cat(self._labels) if self._labels else torch.empty(0, dtype=torch.int64)

    def metrics(self, y: Any = None) -> Any:
        """The neural-collapse metrics of what was kept, as `fastnc.collapse_metrics` has them.

        Parameters
        ----------
        y : (N,) integers, optional
            The labels, in the order of the samples; by default those given to `labels`.

        Returns
        -------
        fastnc.CollapseMetrics
            The layer's weight and bias, where it has a weight (K, d), are the classifier.

        Raises
        ------
        ValueError
            No features, or not one label a sample.
        """
        from fastnc import ClassDeviations, ClassStatistics

        H = self.features
        y = self.targets() if y is None else torch.as_tensor(y).reshape(-1).to(torch.int64)
        if len(y) != len(H):
            raise ValueError(
                f"there must be one label a sample: {len(H)} samples entered the layer, and "
                f"{len(y)} labels were given. Call `tracker.labels(y)` once a batch, or give all "
                "to `metrics`."
            )
        y = y.to(H.device)
        W, bias = self._classifier()
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        n_classes = len(W) if W is not None else _most(int(y.max()) + 1, several, H.device)
        statistics = ClassStatistics(n_classes=n_classes, dim=H.shape[1], scatter="trace")
        for h, label in _parts(H, y):
            statistics.update(h, label)
        if several:
            statistics.all_reduce()
        deviations = ClassDeviations(statistics, W, bias)
        for h, label in _parts(H, y):
            deviations.update(h, label)
        if several:
            deviations.all_reduce()
        return deviations.metrics()

    def _entered(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        h = inputs[0].detach()
        h = h.reshape(-1, h.shape[-1])
        if self._dim is None:
            self._dim, self._dtype = h.shape[1], h.dtype
        elif (h.shape[1], h.dtype) != (self._dim, self._dtype):
            raise ValueError(
                f"every batch must bring {self._dim} features in {self._dtype}; got "
                f"{h.shape[1]} in {h.dtype}."
            )
        self._n_samples += len(h)
        if self._file is not None:
            wide = h.float() if h.dtype == torch.bfloat16 else h
            self._file.write(np.ascontiguousarray(wide.cpu().numpy()).data)
            return
        target = h.device if self._keep == "device" else torch.device("cpu")
        self._batches.append(h.to(target, copy=True))

    def _classifier(self) -> tuple[Tensor | None, Tensor | None]:
        weight = getattr(self._layer, "weight", None)
        if not isinstance(weight, Tensor) or weight.shape[1:] != (self._dim,):
            return None, None
        bias = getattr(self._layer, "bias", None)
        device = self.features.device
        return (
            weight.detach().to(device),
            bias.detach().to(device) if isinstance(bias, Tensor) else None,
        )


def _unwrapped(module: nn.Module) -> nn.Module:
    if hasattr(module, "_orig_mod"):
        return _unwrapped(module._orig_mod)  # type: ignore[arg-type]
    if isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        return _unwrapped(module.module)
    return module


def _find(module: nn.Module, layer: str | nn.Module) -> nn.Module:
    known = dict(module.named_modules())
    if isinstance(layer, nn.Module):
        if not any(layer is other for other in known.values()):
            raise ValueError("`layer` must belong to `module`; got another module's.")
        return layer
    if layer not in known:
        near = [name for name, other in known.items() if isinstance(other, nn.Linear)][-3:]
        raise ValueError(
            f"`layer` must name a layer of the module; there is no {layer!r}. Its last linear "
            f"layers are {', '.join(map(repr, near)) or 'none'}."
        )
    return known[layer]


def _parts(H: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(H), _ROWS):
        yield H[start : start + _ROWS], y[start : start + _ROWS]


def _most(n: int, several: bool, device: torch.device) -> int:
    if not several:
        return n
    most = torch.tensor(n, device=device)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    return int(most)


def _stored(dtype: torch.dtype) -> str:
    return {torch.float64: "float64", torch.float16: "float16"}.get(dtype, "float32")
