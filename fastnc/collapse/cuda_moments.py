"""Class moments on the CUDA device of the batches: by Triton, or by torch where it cannot run."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastnc._core.arrays import as_numpy
from fastnc._core.cuda import serves
from fastnc.collapse.batch import BATCH_BYTES, Moments, kept_samples, refuse_not_finite


class CudaMoments:
    """Running class moments in float64 on the device of the batches, by Triton or torch."""

    def __init__(self, n_classes: int, dim: int, scatter: str, device: Any) -> None:
        import torch

        zeros = {"dtype": torch.float64, "device": device}
        self.counts = torch.zeros(n_classes, **zeros)
        self.means = torch.zeros((n_classes, dim), **zeros)
        self.squares = torch.zeros(n_classes, **zeros)
        self.within = torch.zeros((dim, dim), **zeros) if scatter == "full" else None

    def update(self, H: Any, y: Any, first: int = 0) -> None:
        """Adds a batch; sums run over samples sorted by class, without atomics.

        `y` are NumPy labels, of which the negative ones are left out.
        """
        import torch

        kept, given = kept_samples(y), H
        if kept is not None:
            H, y = H[torch.from_numpy(kept).to(H.device)], y[kept]
        y = torch.from_numpy(y).to(H.device)
        rows = max(BATCH_BYTES // (8 * H.shape[1]), 1)
        parts = [batch_moments(H, y, self.within is not None)] if serves(H) else []
        for lo in range(len(H) if parts else 0, len(H), rows):
            labels, order = torch.sort(y[lo : lo + rows], stable=True)
            present, counts = torch.unique_consecutive(labels, return_counts=True)
            X = H[lo : lo + rows][order].double()
            means = torch.segment_reduce(X, "sum", lengths=counts, axis=0) / counts[:, None]
            X -= torch.repeat_interleave(means, counts, dim=0)
            squares = torch.segment_reduce((X * X).sum(1), "sum", lengths=counts, axis=0)
            within = None if self.within is None else X.T @ X
            parts.append((present, counts.double(), means, squares, within))
        # A class's single sample has deviation 0 even if it is infinite: its mean shows it.
        total = torch.stack([part[3].sum() + 0.0 * part[2].sum() for part in parts]).sum()
        if not bool(total.isfinite()):
            refuse_not_finite(as_numpy(given), first, kept)
        for part in parts:
            self.merge(*part)

    def merge(self, present: Any, counts: Any, means: Any, squares: Any, within: Any) -> None:
        """Chan's formula for the rows `present`."""
        ours = self.counts[present]
        total = ours + counts
        gaps = means - self.means[present]
        share = ours * counts / total
        if self.within is not None:
            scaled = gaps * share.sqrt()[:, None]
            self.within += within + scaled.T @ scaled
        self.squares[present] += squares + (gaps * gaps).sum(1) * share
        self.means[present] += gaps * (counts / total)[:, None]
        self.counts[present] = total

    def moments(self) -> Moments:
        """What was gathered, as NumPy arrays."""
        counts = as_numpy(self.counts).astype(np.int64)
        present = np.flatnonzero(counts)
        within = None if self.within is None else np.asfortranarray(as_numpy(self.within))
        return Moments(
            present,
            counts[present],
            as_numpy(self.means)[present],
            as_numpy(self.squares)[present],
            within,
        )


def batch_moments(H: Any, y: Any, full: bool) -> tuple[Any, Any, Any, Any, Any]:
    """Of the P classes in a batch: labels, counts, means (P, d), squares, and S (d, d) or None.

    H (n, d) and int64 labels y (n,) on the device; all results but the labels are float64 there.
    It waits for the device once, for P.
    """
    import torch

    from fastnc.kernels.gpu.scatter import centred_scatter, class_moments

    H = H.contiguous()
    labels, order = torch.sort(y, stable=True)
    present, counts = torch.unique_consecutive(labels, return_counts=True)
    starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    means = torch.empty((len(present), H.shape[1]), dtype=torch.float64, device=H.device)
    squares = torch.empty(len(present), dtype=torch.float64, device=H.device)
    within = None
    # Triton launches on the current device, which need not be that of H.
    with torch.cuda.device_of(H):  # type: ignore[no-untyped-call]
        class_moments(H, order, starts, means, squares)
        if full:
            within = torch.empty((H.shape[1],) * 2, dtype=torch.float64, device=H.device)
            centred_scatter(H, torch.searchsorted(present, y), means, within)
    return present, counts.double(), means, squares, within
