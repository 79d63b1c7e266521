"""What enters a layer during an ordinary evaluation loop, kept, and how far it has collapsed."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from fastnc._core.arrays import check_labels, check_unmasked
from fastnc.nn.loss import LinearCrossEntropyLoss

if TYPE_CHECKING:
    from fastnc.collapse.metrics import CollapseMetrics

# Rows that go to the accumulators at once: large enough to be efficient, small beside the data.
_ROWS = 16_384


class CollapseTracker:
    """Keeps copies of what enters a layer while it is open, then measures them.

    Under `DistributedDataParallel` each rank tracks its own samples, and `metrics`, called on
    every rank, returns those of all samples together. (A `DistributedSampler` repeats samples
    to make the ranks even; those count twice.) Opening it again starts afresh.

    Parameters
    ----------
    module : torch.nn.Module
        The model; a `DistributedDataParallel` or `torch.compile` wrapper is looked through.
    layer : str or torch.nn.Module
        The last layer, by its name in `module.named_modules()`: what enters it are the features
        h, (N, d) or, where it has a weight (K, d), (..., d) with a sample at every place; its
        weight and bias are the classifier. The default is that of torchvision's VGG.
    keep : "memory", "device" or a path
        Where the features stay: in CPU memory, on the model's device, or in a file of that name,
        which is overwritten, and mapped when it is read. They are copied at once in any case, so
        a model that works in place does no harm.

    Raises
    ------
    ValueError
        The module has no such layer; later, features that do not fit each other.
    TypeError
        `module` is no module, or `keep` neither a word nor a path.
    RuntimeError
        Opened while it is open.

    Cost
    ----
    A copy of every batch, N d numbers in the features' dtype (bfloat16 goes to a file as float32).

    Examples
    --------
    >>> import torch
    >>> from fastnc.nn import CollapseTracker
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> x, y = torch.randn(100, 4), torch.arange(100) % 2
    >>> with torch.no_grad(), CollapseTracker(model.eval(), "2") as tracker:
    ...     for batch, labels in zip(x.split(30), y.split(30)):
    ...         tracker.labels(labels)
    ...         _ = model(batch)
    >>> tracker.features.shape
    torch.Size([100, 8])
    >>> tracker.metrics().n_classes
    2
    """

    def __init__(
        self,
        module: nn.Module,
        layer: str | nn.Module = "classifier.6",
        *,
        keep: str | os.PathLike[str] = "memory",
    ) -> None:
        if not isinstance(keep, (str, os.PathLike)):
            # A number would be taken for a file that is open already.
            raise TypeError(f"`keep` must be 'memory', 'device' or a path; got {keep!r}.")
        if not isinstance(module, nn.Module):
            raise TypeError(f"`module` must be a torch.nn.Module; got {type(module).__name__}.")
        self._module = _unwrapped(module)
        self._layer = _find(self._module, layer)
        self._keep = keep
        self._handle: Any = None
        self._file: BinaryIO | None = None
        self._clear()

    def _clear(self) -> None:
        self._batches: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._dim: int | None = None
        self._dtype: torch.dtype | None = None
        self._n_samples = 0
        self._left: tuple[Any, ...] | None = None

    def __enter__(self) -> CollapseTracker:
        if self._handle is not None:
            raise RuntimeError("the tracker is open already; leave its `with` block first.")
        if self._module.training:
            warnings.warn(
                "the tracked module is in training mode: dropout and batch normalisation change "
                "what enters the layer; call `module.eval()` first.",
                stacklevel=2,
            )
        self._clear()
        if self._keep not in ("memory", "device"):
            self._file = open(self._keep, "wb")
        self._handle = self._layer.register_forward_pre_hook(self._entered, with_kwargs=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._handle.remove()
        self._handle = None
        # Training may go on before anybody asks for the metrics of what was kept.
        self._left = tuple(
            p.detach().clone() if isinstance(p, Tensor) else None
            for p in _weight_and_bias(self._layer)
        )
        if self._file is not None:
            self._file.close()
            self._file = None

    def labels(self, y: Any) -> None:
        """The labels of the batch that goes through the module next, or has just gone."""
        self._labels.append(_integers(y).clone())

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
        if self._file is not None:
            self._file.flush()
        shape = (self._n_samples, self._dim)
        return torch.from_numpy(np.memmap(self._keep, _stored(self._dtype), "r+", shape=shape))

    def targets(self) -> Tensor:
        """All labels given so far (N,)."""
        return torch.cat(self._labels) if self._labels else torch.empty(0, dtype=torch.int64)

    def metrics(self, y: Any = None) -> CollapseMetrics:
        """The neural-collapse metrics of what was kept, as `fastnc.collapse_metrics` has them.

        Parameters
        ----------
        y : (N,) integers, optional
            The labels, in the order of the samples; by default those given to `labels`. Rows of
            the classifier where the layer has one, any integers otherwise.

        Returns
        -------
        fastnc.CollapseMetrics
            The layer's weight and bias, where it has a weight (K, d), are the classifier.

        Raises
        ------
        ValueError
            No features, not one label a sample, or what `fastnc.ClassStatistics` and
            `fastnc.ClassDeviations` refuse; here or on another rank.
        """
        from fastnc import ClassDeviations, ClassStatistics

        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        with _all_or_none(several):
            H, y = self._checked(y)
        W, bias = self._classifier(H.device)
        if W is None:
            distinct = _distinct(y, several)
            y, n_classes = torch.searchsorted(distinct, y), len(distinct)
        else:
            n_classes = len(W)
        statistics = ClassStatistics(n_classes=n_classes, dim=H.shape[1], scatter="trace")
        with _all_or_none(several):
            for h, label in _parts(H, y):
                statistics.update(h, label)
        if several:
            statistics.all_reduce()
        deviations = ClassDeviations(statistics, W, bias)
        for h, label in _parts(H, y):
            deviations.update(h, label)
        if several:
            deviations.all_reduce()
        metrics: CollapseMetrics = deviations.metrics()
        return metrics

    def _checked(self, y: Any) -> tuple[Tensor, Tensor]:
        """Features and as many labels, on the same device."""
        H = self.features
        y = self.targets() if y is None else _integers(y)
        if len(y) != len(H):
            raise ValueError(
                f"there must be one label a sample: {len(H)} samples entered the layer, and "
                f"{len(y)} labels were given. Call `tracker.labels(y)` once a batch, or give all "
                "to `metrics`."
            )
        W, _ = self._classifier(y.device)
        if W is not None:
            check_labels(y, None, len(W), more="track a layer with more rows")
        return H, y.to(H.device)

    def _entered(self, layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        h = (*inputs, *named.values())[0].detach()
        if h.dim() != 2:
            W, _ = self._classifier(h.device)
            if h.dim() == 0 or (h.dim() > 2 and (W is None or W.shape[1] != h.shape[-1])):
                raise ValueError(
                    f"features must be (N, d); got {tuple(h.shape)}. Track a layer behind the "
                    "flattening, such as the last linear one."
                )
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

    def _classifier(self, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
        weight, bias = self._left or _weight_and_bias(self._layer)
        if not isinstance(weight, Tensor) or weight.dim() != 2:
            return None, None
        if self._dim is not None and weight.shape[1] != self._dim:
            return None, None
        return (
            weight.detach().to(device),
            bias.detach().to(device) if isinstance(bias, Tensor) else None,
        )


def _unwrapped(module: nn.Module) -> nn.Module:
    if hasattr(module, "_orig_mod"):
        return _unwrapped(module._orig_mod)  # type: ignore[arg-type]
    if isinstance(module, nn.DataParallel):
        raise ValueError(
            "`module` must not be a `DataParallel`, whose replicas come in any order; "
            "pass its `.module`, and run that."
        )
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return _unwrapped(module.module)
    return module


def _find(module: nn.Module, layer: str | nn.Module) -> nn.Module:
    known = dict(module.named_modules())
    if isinstance(layer, nn.Module):
        if not any(layer is other for other in known.values()):
            raise ValueError("`layer` must belong to `module`; got another module's.")
        return layer
    if layer not in known:
        linear = [name for name, other in known.items() if isinstance(other, nn.Linear)]
        near = difflib.get_close_matches(str(layer), [n for n in known if n], 3, 0.5) or linear[-3:]
        raise ValueError(
            f"`layer` must name a layer of the module; there is no {layer!r}. Near it are "
            f"{', '.join(map(repr, near)) or 'none'}; see `module.named_modules()`."
        )
    found: nn.Module = known[layer]
    return found


def _weight_and_bias(layer: nn.Module) -> tuple[Any, ...]:
    """Of a linear layer, or of a loss that holds one of its own."""
    losses = [LinearCrossEntropyLoss, getattr(nn, "LinearCrossEntropyLoss", LinearCrossEntropyLoss)]
    linear = layer.linear if isinstance(layer, tuple(losses)) else layer
    return getattr(linear, "weight", None), getattr(linear, "bias", None)


def _integers(y: Any) -> Tensor:
    check_unmasked("y", y)
    y = torch.as_tensor(y).detach()
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise ValueError(f"labels must be integers; got {y.dtype}.")
    labels: Tensor = y.reshape(-1).to(torch.int64)
    return labels


def _parts(H: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(H), _ROWS):
        yield H[start : start + _ROWS], y[start : start + _ROWS]


@contextmanager
def _all_or_none(several: bool) -> Iterator[None]:
    """What one rank refuses stops the others too, who would wait for it."""
    problem = None
    try:
        yield
    except ValueError as error:
        problem = error
    if several:
        bad = torch.tensor(int(problem is not None), device=_travels_on())
        torch.distributed.all_reduce(bad, torch.distributed.ReduceOp.MAX)
        if int(bad) and problem is None:
            raise ValueError(
                "another rank has no features, or not finite ones, or labels that do not fit; "
                "see there."
            )
    if problem is not None:
        raise problem


def _travels_on() -> torch.device:
    """Where a tensor must be for the ranks to exchange it."""
    nccl = torch.distributed.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")


def _distinct(y: Tensor, several: bool) -> Tensor:
    """The distinct labels, of all ranks where there are several, sorted."""
    ours: Tensor = torch.unique(y)
    if not several:
        return ours
    ours = ours.to(_travels_on())
    most = torch.tensor(len(ours), device=ours.device)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    # Filled up with a label that is there anyway.
    filled = torch.cat([ours, ours[:1].expand(int(most) - len(ours))])
    everyone = [torch.empty_like(filled) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(everyone, filled)
    all_labels: Tensor = torch.unique(torch.cat(everyone))
    return all_labels.to(y.device)


def _stored(dtype: torch.dtype) -> str:
    return {torch.float64: "float64", torch.float16: "float16"}.get(dtype, "float32")
