"""Gradient descent with a constant step on the mean loss (4), all epochs on a CUDA device."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc._core.cuda import check_gpu, check_memory, need_gpu
from fastnc.dynamics.snapshot import measure

EPOCHS_A_GRAPH = 64
# From this many K N d on an epoch takes so long that its launches are hidden behind it.
LARGE = 10**10


class CudaDescent:
    """`W -= lr dL/dW`, `H -= lr dL/dH` without a word to the host between snapshots.

    A small problem makes its epochs inside one kernel; one whose epochs are short replays a
    captured CUDA graph of 64 of them, and takes the rest one by one. In float32 both W and H
    carry what rounding took from their updates: the state is the sum of `W` and `W_low`.
    """

    def __init__(self, W: NDArray[Any], H: NDArray[Any], y: NDArray[np.int64], lr: float) -> None:
        try:
            import torch
            import triton  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "torch and triton are needed for `device='cuda'`: pip install 'fastnc[gpu]'."
            ) from error
        need_gpu("device='cuda'")
        self.y, self.lr = y, lr
        compensated = W.dtype == np.float32
        self._W = torch.from_numpy(np.array(W, order="C")).cuda()
        check_gpu(self._W)
        check_memory(self._W, len(H), y.nbytes + H.nbytes * (2 if compensated else 1))
        self._H, self._y = (torch.from_numpy(np.array(x, order="C")).cuda() for x in (H, y))
        shapes = (self._W.shape, self._H.shape) if compensated else ((0, 0), (0, 0))
        self._W_low, self._H_low = (self._W.new_zeros(shape) for shape in shapes)
        self._graph: Any = None

    @property
    def W(self) -> NDArray[Any]:
        """The current classifier (K, d), fetched from the device."""
        return self._fetch(self._W)

    @property
    def H(self) -> NDArray[Any]:
        """The current features (N, d), fetched from the device."""
        return self._fetch(self._H)

    def advance(self, epochs: int) -> None:
        from fastnc.kernels.gpu.trajectory import is_small

        worth = self._W.numel() * len(self._H) < LARGE and epochs >= EPOCHS_A_GRAPH
        if worth and not is_small(self._W, self._H, self._W_low):
            if self._graph is None:
                # A first epoch compiles the kernels, which a capture must not do.
                self._descend(1)
                epochs -= 1
                self._graph = self._capture()
            for _ in range(epochs // EPOCHS_A_GRAPH):
                self._graph.replay()
            epochs %= EPOCHS_A_GRAPH
        self._descend(epochs)

    def measure(self) -> dict[str, float]:
        if self._W_low.numel():
            W, H = (
                np.add(x, low, dtype=np.float64)
                for x, low in (
                    (self.W, self._fetch(self._W_low)),
                    (self.H, self._fetch(self._H_low)),
                )
            )
            return measure(W, H, self.y)
        return measure(self.W, self.H, self.y)

    def state(self) -> dict[str, NDArray[Any]]:
        return {name: self._fetch(x) for name, x in self._tensors().items()}

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        import torch

        for name, values in state.items():
            # In place: a captured graph holds these addresses.
            self._tensors()[name].copy_(torch.from_numpy(values))

    def _descend(self, epochs: int) -> None:
        from fastnc.kernels.gpu.trajectory import descend

        W, H, W_low, H_low = self._tensors().values()
        descend(W, H, W_low, H_low, self._y, 1.0 / len(self.y), self.lr, epochs)

    def _capture(self) -> Any:
        import torch

        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._descend(EPOCHS_A_GRAPH)
        return graph

    def _tensors(self) -> dict[str, Any]:
        return {"W": self._W, "H": self._H, "W_low": self._W_low, "H_low": self._H_low}

    @staticmethod
    def _fetch(x: Any) -> NDArray[Any]:
        return np.asarray(x.cpu().numpy()).copy()
