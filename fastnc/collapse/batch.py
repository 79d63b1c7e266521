"""A batch of features and labels: what it must be, and its class moments, on CPU or CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastnc._core.arrays import as_numpy, check_labels, check_unmasked, dtype_name, home, is_torch

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
FEATURES = ("float16", "bfloat16", "float32", "float64")
BATCH_BYTES = 1 << 26


class Moments(NamedTuple):
    """Of the P classes in a batch: labels, counts, means (P, d), squares, and S (d, d) or None."""

    present: Counts
    counts: Counts
    means: Floats
    squares: Floats
    within: Floats | None


def check_features(H: Any, dim: int | None) -> None:
    """`H` must be (n, dim) in half, single or double precision."""
    if not hasattr(H, "dtype") or not hasattr(H, "shape"):
        raise TypeError(f"`H` must be a NumPy array or a torch tensor; got {type(H).__name__}.")
    if len(H.shape) != 2:
        raise ValueError(f"`H` must have 2 dimensions, one sample a row; got {tuple(H.shape)}.")
    if dim is not None and H.shape[1] != dim:
        raise ValueError(
            f"`H` must have {dim} columns, as the statistics have; got shape {tuple(H.shape)}."
        )
    if dtype_name(native(H[:0])) not in FEATURES:
        raise TypeError(f"`H` must hold floats ({', '.join(FEATURES)}); got {dtype_name(H)}.")
    check_unmasked("H", H)


def check_integers(y: Any, n_samples: int) -> NDArray[Any]:
    """`y` as a NumPy array; it must be one integer a sample."""
    if n_samples == 0 and as_numpy(y).shape == (0,):
        # An empty list is of no type.
        return as_numpy(y)
    return check_labels(y, n_samples, None)


def check_batch(H: Any, y: Any, n_classes: int, dim: int, first: int = 0) -> tuple[Any, Any]:
    """(H, y) ready to be summed: float32 or float64 rows and int64 labels, on one device.

    Messages count samples from `first` on.
    """
    check_features(H, dim)
    labels = check_integers(y, H.shape[0])
    if len(labels) and not (labels.min() >= 0 and labels.max() < n_classes):
        i = int(np.argmax((labels < 0) | (labels >= n_classes)))
        highest = int(labels.max())
        more = f", or pass `n_classes={highest + 1}`" if highest >= n_classes else ""
        raise ValueError(
            f"`y` must lie in 0..{n_classes - 1} ({n_classes} classes were given); "
            f"got {labels[i]} at index {first + i}. Relabel{more}."
        )
    labels = np.ascontiguousarray(labels, dtype=np.int64)
    H = native(H)
    if is_torch(H):
        H = H.detach()
        if dtype_name(H) in ("float16", "bfloat16"):
            H = H.float()
        if home(H) == "gpu":
            import torch

            return H, torch.from_numpy(labels).to(H.device)
        H = H.numpy()
    if H.dtype == np.float16:
        H = H.astype(np.float32)
    return _writable(np.ascontiguousarray(H)), labels


def native(x: Any) -> Any:
    """`x`, in the machine's order of bytes where it is a NumPy array."""
    if isinstance(x, np.ndarray) and not x.dtype.isnative:
        return x.astype(x.dtype.newbyteorder("="))
    return x


class _Memory:
    """The memory of a read-only array, offered as if it could be written."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array
        address, _ = array.__array_interface__["data"]
        self.__array_interface__ = {**array.__array_interface__, "data": (address, False)}


def _writable(array: NDArray[Any]) -> NDArray[Any]:
    # Kernels only read features, but would be compiled again for arrays that are read-only.
    return array if array.flags.writeable else np.asarray(_Memory(array))


def refuse_not_finite(H: NDArray[Any], first: int = 0) -> None:
    """Says which sample, counted from `first` on, made a sum not finite."""
    bad = ~np.isfinite(H)
    if bad.any():
        i, j = (int(v) for v in np.argwhere(bad)[0])
        raise ValueError(f"`H` must be finite; got {H[i, j]} in sample {first + i}, feature {j}.")
    raise ValueError("`H` is too large: its squares overflow. Divide the features by a constant.")


def moments_of(H: NDArray[Any], y: Counts, n_classes: int, full: bool, first: int = 0) -> Moments:
    """Moments of a NumPy batch by the row-parallel kernels."""
    from fastnc.kernels.cpu.scatter import class_moments, class_moments_serial, group

    order, present, starts = group(y, n_classes)
    means = np.empty((len(present), H.shape[1]))
    squares = np.empty(len(present))
    run = class_moments if H.size > 100_000 else class_moments_serial
    run(H, order, starts, means, squares)
    if not np.isfinite(squares.sum()):
        refuse_not_finite(H, first)
    within = None
    if full:
        dim = H.shape[1]
        within = np.zeros((dim, dim), order="F")
        owner = np.searchsorted(present, y)
        rows = max(BATCH_BYTES // (8 * dim), 1)
        for lo in range(0, len(H), rows):
            scatter_rows(H[lo : lo + rows] - means[owner[lo : lo + rows]], within)
    return Moments(present, np.diff(starts), means, squares, within)


def scatter_rows(X: Floats, S: Floats) -> None:
    """Adds X^T X to the lower triangle of S, which is in Fortran order."""
    from scipy.linalg.blas import dsyrk

    # The transpose of C-ordered rows is what Fortran reads without a copy.
    dsyrk(1.0, np.ascontiguousarray(X).T, beta=1.0, c=S, lower=1, overwrite_c=1)


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
        """Adds a batch; sums run over samples sorted by class, without atomics."""
        import torch

        from fastnc._core.cuda import serves
        from fastnc.collapse.batch import batch_moments

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
        if not bool(torch.stack([part[3].sum() for part in parts]).sum().isfinite()):
            refuse_not_finite(as_numpy(H), first)
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


def sum_over_ranks(arrays: list[NDArray[Any]], group: Any, smallest: bool = False) -> list[Any]:
    """The sums (or minima) of NumPy arrays over the ranks of `torch.distributed`."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        raise ValueError(
            "`all_reduce` needs an initialised process group; "
            "call `torch.distributed.init_process_group` first."
        )
    device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
    op = dist.ReduceOp.MIN if smallest else dist.ReduceOp.SUM
    out = []
    for array in arrays:
        tensor = torch.from_numpy(np.array(array, order="C")).to(device)
        dist.all_reduce(tensor, op=op, group=group)
        out.append(as_numpy(tensor))
    return out


def batches(H: Any, y: Any, pieces: bool = False) -> Iterator[tuple[int, Any, Any]]:
    """(number of the first sample, H, y): pieces of 64 MiB of what is on disk, else all at once.

    With `pieces`, arrays in memory come in pieces too.
    """
    base = H
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    if not (pieces or isinstance(base, np.memmap)):
        yield 0, H, y
        return
    row = H.nbytes // max(len(H), 1)
    rows = max(BATCH_BYTES // max(row, 1), 1)
    for lo in range(0, len(H), rows):
        part = H[lo : lo + rows]
        yield lo, part if is_torch(part) else np.asarray(part), y[lo : lo + rows]


def batch_moments(H: Any, y: Any, full: bool) -> tuple[Any, Any, Any, Any, Any]:
    """Of the P classes in a batch: labels, counts, means (P, d), squares, and S (d, d) or None.

    H (n, d) and int64 labels y (n,) on the device; everything returned is float64 there, but the
    labels. The device is waited for once, to learn P.
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
