"""A batch of the second pass: sums about known class means, by the CPU, Triton or torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc._core.arrays import as_numpy, dtype_name, is_torch, row_major
from fastnc._core.cuda import serves
from fastnc.collapse.batch import kept_samples
from fastnc.collapse.between_class_basis import Directions, directions, whitening
from fastnc.collapse.class_means import ClassMeans

Floats = NDArray[np.float64]
# From this many directions on, single-precision features are multiplied in single precision
# (their deviations are formed in double): below it, memory is the bound, and double costs nothing.
WIDE = 48
# Class means of at most this many bytes stay in the cache, in whatever order samples come.
RESIDENT = 1 << 18
# The same of a GPU's level-2 cache.
RESIDENT_CUDA = 1 << 24


class SecondPass:
    """Class means and a classifier in the forms that the kernels of a second pass read.

    `row (K,)` is the place of each class among those present, negative where it is not.
    """

    def __init__(
        self, of: ClassMeans, row: NDArray[np.int64], W: Floats, bias: Floats, decides: bool
    ) -> None:
        from fastnc.kernels.cpu.pairs import centre_of, centred, squared_norms

        self.means, self.present, self.sizes = of.means, of.present, of.sizes
        self.row, self.W, self.bias = row, W, bias
        self.g = centre_of(self.means)
        self.squares_C = squared_norms(centred(self.means, self.g))
        few = min(len(self.means) - 1, self.means.shape[1]) < WIDE
        # Nearest means need orthonormal directions, which take longer to find where there are many.
        self.decides = decides or few or len(W) > 0
        self._found: dict[bool, Directions] = {}
        self._frames: dict[Any, tuple[Any, ...]] = {}

    def sums(self, H: Any, y: NDArray[np.int64]) -> Floats:
        """The kernels' sums over the samples whose label is not negative."""
        if not is_torch(H):
            return self._numpy_sums(H, y)
        kept = kept_samples(y)
        if kept is not None:
            import torch

            H, y = H[torch.from_numpy(kept).to(H.device)], y[kept]
        return self._triton_sums(H, y) if serves(H) else self._torch_sums(H, y)

    def directions(self) -> Directions:
        """The directions that the sums refer to."""
        return self._directions(orthonormal=True in self._found)

    def _directions(self, orthonormal: bool) -> Directions:
        """Directions of the means; many of them take less time if they need not be orthonormal."""
        from fastnc.kernels.cpu.pairs import centred

        orthonormal = orthonormal or self.decides
        if orthonormal not in self._found:
            find = directions if orthonormal else whitening
            self._found[orthonormal] = find(centred(self.means, self.g), self.sizes)
        return self._found[orthonormal]

    def _frame(self, dtype: Any, orthonormal: bool) -> tuple[Any, ...]:
        """The operands of the kernel, with products in `dtype`."""
        key = dtype, orthonormal
        if key not in self._frames:
            Q, weights, A, tilt, _ = self._directions(orthonormal)
            if not self.decides:
                A = A[:0]
            self._frames[key] = (
                self.means,
                self.g,
                Q.astype(dtype, copy=False),
                A.astype(dtype, copy=False),
                weights,
                tilt,
                self.squares_C,
                row_major(self.W, dtype),
                self.W @ self.g + self.bias,
            )
        return self._frames[key]

    def _product_dtype(self, H: Any, orthonormal: bool) -> Any:
        wide = len(self._directions(orthonormal).weights) >= WIDE and dtype_name(H) == "float32"
        return np.dtype(np.float32 if wide else np.float64)

    def _numpy_sums(self, H: NDArray[Any], y: NDArray[np.int64]) -> Floats:
        from fastnc.kernels.cpu.blas import gemm_address
        from fastnc.kernels.cpu.deviations import N_SUMS, clear_sums, deviations, owners
        from fastnc.kernels.cpu.scatter import group
        from fastnc.kernels.cpu.threads import one_thread

        order = kept_samples(y)
        if order is not None:
            y = y[order]
        if self.means.nbytes <= RESIDENT:
            owner = self.row[y]
            order = np.arange(len(y)) if order is None else order
        else:
            by_class, present, starts = group(y, len(self.row))
            owner = self.row[present][owners(starts)]
            order = by_class if order is None else order[by_class]
        dtype = self._product_dtype(H, orthonormal=False)
        frame = self._frame(dtype, orthonormal=False)
        sums = np.empty(N_SUMS)
        clear_sums(sums)
        with one_thread():
            deviations(gemm_address(dtype), H, order, owner, self.present, frame, sums)
        return sums

    def _triton_sums(self, H: Any, y: NDArray[np.int64]) -> Floats:
        """The same sums on the device of H, with the same precision of products."""
        import torch

        from fastnc.kernels.cpu.deviations import MARGIN, N_SUMS
        from fastnc.kernels.gpu.deviations import deviations

        frame, row, present = self._frame_on(H.device, self._product_dtype(H, orthonormal=True))
        owner, order = row[torch.from_numpy(y).to(H.device)], torch.arange(len(y), device=H.device)
        if self.means.nbytes > RESIDENT_CUDA:
            owner, order = torch.sort(owner, stable=True)
        sums = torch.zeros(N_SUMS, dtype=torch.float64, device=H.device)
        sums[MARGIN] = torch.inf
        with torch.cuda.device_of(H):  # type: ignore[no-untyped-call]
            deviations(H.contiguous(), order, owner, present, frame, sums)
        return as_numpy(sums)

    def _frame_on(self, device: Any, dtype: Any) -> tuple[tuple[Any, ...], Any, Any]:
        """As tensors on the device: the frame, the mean of each class, the class of each mean."""
        import torch

        key = dtype, device
        if key not in self._frames:
            frame = tuple(torch.from_numpy(a).to(device) for a in self._frame(dtype, True))
            row, present = (torch.from_numpy(a).to(device) for a in (self.row, self.present))
            self._frames[key] = frame, row, present
        return self._frames[key]

    def _torch_sums(self, H: Any, y: NDArray[np.int64]) -> Floats:
        """The same sums by torch operations in float64, where no kernel can run."""
        import torch

        from fastnc.kernels.cpu import deviations as sums_of

        frame, row, present = self._frame_on(H.device, np.dtype(np.float64))
        means, g, Q, A, weights, tilt, squares_C, W, offset = frame
        all_labels = torch.from_numpy(y).to(H.device)
        sums = torch.zeros(sums_of.N_SUMS, dtype=torch.float64, device=H.device)
        sums[sums_of.MARGIN] = torch.inf
        # Without a direction NC1 is not defined, without A there are no nearest means.
        sums[sums_of.PROJECTED] = 0.0 if len(weights) else torch.nan
        sums[sums_of.NEAREST] = 0.0 if len(A) else torch.nan
        rows = max((1 << 24) // (H.shape[1] + len(A) + len(W)), 1)
        for lo in range(0, len(H), rows):
            labels = all_labels[lo : lo + rows]
            owner = row[labels]
            h = H[lo : lo + rows].double()
            X, Y = h - means[owner], h - g
            T = X @ Q.T
            sums[sums_of.DEVIATION] += X.norm(dim=1).sum()
            sums[sums_of.SQUARES] += (X * X).sum()
            sums[sums_of.DISTANCE] += Y.norm(dim=1).sum()
            sums[sums_of.PROJECTED] += (T * T * weights).sum()
            sums[sums_of.TILTED] += ((T @ tilt) ** 2).sum()
            if len(A) == 0:
                continue
            nearest = ((T + A[owner]) @ A.T - 0.5 * squares_C).argmax(dim=1)
            sums[sums_of.NEAREST] += (nearest == owner).sum()
            if len(W) == 0:
                continue
            Z = Y @ W.T + offset
            decided = Z.argmax(dim=1)
            sums[sums_of.AGREEMENT] += (decided == present[nearest]).sum()
            sums[sums_of.ACCURACY] += (decided == labels).sum()
            own = Z.gather(1, labels[:, None])[:, 0]
            rival = Z.scatter(1, labels[:, None], -torch.inf).max(dim=1).values
            sums[sums_of.MARGIN] = torch.minimum(sums[sums_of.MARGIN], (own - rival).min())
        return as_numpy(sums)
