"""Copies of a device's tensors on the host, made while the device goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray


class HostCopies:
    """Page-locked memory of the host, one array a name, which later copies use again."""

    def __init__(self) -> None:
        self._pinned: dict[str, Any] = {}

    def begin(self, tensors: Mapping[str, Any]) -> Callable[[], dict[str, NDArray[Any]]]:
        """Start the copies; returns a function that waits for them.

        The host does not wait, and what the device is told later comes after the copies in its
        queue. The arrays are valid until the next call.
        """
        import torch

        first = next(iter(tensors.values()))
        for name, x in tensors.items():
            if name not in self._pinned:
                self._pinned[name] = torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda)
            self._pinned[name].copy_(x, non_blocking=True)
        done: Any = torch.cuda.Event() if first.is_cuda else None  # type: ignore[no-untyped-call]
        if done is not None:
            done.record(torch.cuda.current_stream(first.device))

        def finish() -> dict[str, NDArray[Any]]:
            if done is not None:
                done.synchronize()
            return {name: self._pinned[name].numpy() for name in tensors}

        return finish
