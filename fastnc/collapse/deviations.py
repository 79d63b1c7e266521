"""Norms, projections and decisions about known class means: the second sweep over features."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastnc._core.arrays import as_numpy, dtype_name, is_torch
from fastnc._core.cuda import serves
from fastnc.collapse.batch import check_batch, refuse_not_finite
from fastnc.collapse.between_class_basis import Directions, directions, whitening
from fastnc.collapse.class_means import metrics_of_means, present_classes
from fastnc.collapse.classifier import check_classifier
from fastnc.collapse.metrics import CollapseMetrics
from fastnc.collapse.ranks import sum_over_ranks
from fastnc.collapse.statistics import ClassStatistics

Floats = NDArray[np.float64]
# From this many directions on, single-precision features are multiplied in single precision
# (their deviations are formed in double): below it, memory is what limits, and double is free.
WIDE = 48
# Class means of at most this many bytes stay in the cache, in whatever order samples come.
RESIDENT = 1 << 18
# The same of a GPU's level-2 cache.
RESIDENT_CUDA = 1 << 24


class ClassDeviations:
    """The second pass over features whose class statistics are known: it tells every metric.

    With `x_i = h_i - m_{y_i}` it sums `|x_i|`, `|h_i - g|` and `|Sigma_B^{-1/2} x_i|^2` (NC1, by
    projection on the at most K-1 directions of Sigma_B: eigenvectors of the smaller of the K x K
    Gram matrix and the d x d Sigma_B, or its Cholesky factor where it is large and well-conditioned
    and no decision is asked for; no pseudo-inverse is formed), and with a classifier counts how
    often its decision is the nearest class mean, and keeps the smallest margin.

    Parameters
    ----------
    statistics : ClassStatistics
        Of the same samples, complete. It is read once, here.
    W : (K, d), optional
        The classifier's rows; NumPy or torch.
    bias : (K,), optional

    Raises
    ------
    ValueError, TypeError
        Fewer than two classes with samples; W or bias that do not fit; from `update`, a batch that
        does not fit, a label whose class the statistics have never seen, features that are not
        finite (which sample): what was gathered before is kept whole. From `metrics`, if not all
        samples of the statistics have been seen.

    Cost
    ----
    Memory K d + min(K, d)^2. Time 2 N d (r + K) + 2 N r K FLOP, r <= min(K - 1, d); without a
    classifier 2 N d r. Products are in float64, except for half and single precision features
    where r >= 48: their centred rows are multiplied in float32. `metrics` takes 2 K^2 d FLOP
    (with a classifier 10 K^2 d) by tiles: no K x K array is ever held.

    Examples
    --------
    >>> import numpy as np, fastnc
    >>> H, y = np.array([[1.0], [3.0], [-2.0]]), np.array([0, 0, 1])
    >>> batches = [(H[:2], y[:2]), (H[2:], y[2:])]
    >>> first = fastnc.ClassStatistics(n_classes=2, dim=1)
    >>> for H, y in batches:
    ...     first.update(H, y)
    >>> second = fastnc.ClassDeviations(first, W=np.array([[1.0], [-1.0]]))
    >>> for H, y in batches:
    ...     second.update(H, y)
    >>> second.metrics().margin, second.metrics().nc4_agreement
    (2.0, 1.0)
    """

    def __init__(
        self,
        statistics: ClassStatistics,
        W: ArrayLike | None = None,
        bias: ArrayLike | None = None,
    ) -> None:
        from fastnc.kernels.cpu.deviations import N_SUMS, clear_sums
        from fastnc.kernels.cpu.pairs import centre_of, centred, squared_norms

        if not isinstance(statistics, ClassStatistics):
            raise TypeError(
                f"`statistics` must be ClassStatistics; got {type(statistics).__name__}."
            )
        self.n_classes = statistics.n_classes
        self.dim = statistics.dim
        self.counts = statistics.counts.copy()
        self.present = present_classes(self.counts)
        self.means = np.ascontiguousarray(statistics.means[self.present])
        self.squares = statistics.squares[self.present]
        self.W, self.bias = check_classifier(W, bias, self.n_classes, self.dim)
        self._row = np.full(self.n_classes, -1)
        self._row[self.present] = np.arange(len(self.present))
        self._g = centre_of(self.means)
        self._squares_C = squared_norms(centred(self.means, self._g))
        self._found: dict[bool, Directions] = {}
        self._frames: dict[Any, tuple[Any, ...]] = {}
        self._sums = np.empty(N_SUMS)
        clear_sums(self._sums)
        self.n_samples = 0

    def __repr__(self) -> str:
        return f"ClassDeviations: {self.n_samples} of {self.counts.sum()} samples"

    def update(self, H: Any, y: Any) -> None:
        """Adds a batch of the samples that the statistics were gathered from."""
        self.update_from(0, H, y)

    def update_from(self, first: int, H: Any, y: Any) -> None:
        """`update`, for a batch whose first sample has that number in what messages say."""
        H, y = check_batch(H, y, self.n_classes, self.dim, first)
        labels = as_numpy(y)
        unseen = self._row[labels] < 0
        if unseen.any():
            i = int(np.argmax(unseen))
            raise ValueError(
                f"`y` must name classes that the statistics have seen; got {labels[i]} at index "
                f"{first + i}, of which they have no sample. Gather them from the same samples."
            )
        if len(labels) == 0:
            return
        if is_torch(H):
            sums = self._triton_sums(H, y) if serves(H) else self._torch_sums(H, y)
        else:
            sums = self._numpy_sums(H, y)
        if not np.isfinite(sums[:2].sum()):
            refuse_not_finite(as_numpy(H), first)
        self._add(sums, len(labels))

    def merge(self, other: ClassDeviations) -> None:
        """Adds what `other`, made from the same statistics and classifier, has gathered."""
        if not isinstance(other, ClassDeviations):
            raise TypeError(f"`other` must be ClassDeviations; got {type(other).__name__}.")
        same = (
            np.array_equal(self.counts, other.counts)
            and np.array_equal(self.means, other.means)
            and np.array_equal(self.W, other.W)
            and np.array_equal(self.bias, other.bias)
        )
        if not same:
            raise ValueError(
                "`other` must come from the same statistics and classifier; these differ. "
                "Merge or reduce the statistics first, then make both from the result."
            )
        self._add(other._sums, other.n_samples)

    def all_reduce(self, group: Any = None) -> None:
        """Merges what all ranks of `torch.distributed` have gathered; each rank then has it all."""
        (total,) = sum_over_ranks([np.append(self._sums[:-1], self.n_samples)], group)
        (margin,) = sum_over_ranks([self._sums[-1:]], group, smallest=True)
        self._sums = np.append(total[:-1], margin)
        self.n_samples = int(total[-1])

    def state_dict(self) -> dict[str, Any]:
        """What was gathered; the statistics have a state of their own."""
        return {"n_samples": self.n_samples, "sums": self._sums.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replaces what was gathered by what `state_dict` gave."""
        missing = [name for name in ("n_samples", "sums") if name not in state]
        if missing:
            raise ValueError(
                f"`state` must hold what `state_dict` gave; {missing[0]!r} is missing."
            )
        sums = np.asarray(state["sums"], dtype=np.float64)
        if sums.shape != self._sums.shape:
            raise ValueError(
                f"`state['sums']` must have shape {self._sums.shape}; got {sums.shape}."
            )
        self._sums, self.n_samples = sums.copy(), int(state["n_samples"])

    def metrics(self) -> CollapseMetrics:
        """Every metric; those that need a classifier are None where none was given."""
        if self.n_samples != self.counts.sum():
            raise ValueError(
                f"the second pass must see the statistics' {self.counts.sum()} samples; "
                f"got {self.n_samples}. Call `update` with each batch once."
            )
        return metrics_of_means(
            self.means,
            self.present,
            self.counts,
            self.squares,
            (self.W, self.bias),
            self._directions(orthonormal=True in self._found),
            self._sums,
        )

    def _add(self, sums: Floats, n_samples: int) -> None:
        self._sums[:-1] += sums[:-1]
        self._sums[-1] = min(self._sums[-1], sums[-1])
        self.n_samples += n_samples

    def _directions(self, orthonormal: bool) -> Directions:
        """Of the means; those that are not orthonormal are found sooner where there are many."""
        from fastnc.kernels.cpu.pairs import centred

        few = min(len(self.means) - 1, self.dim) < WIDE
        orthonormal = orthonormal or few or len(self.W) > 0
        if orthonormal not in self._found:
            find = directions if orthonormal else whitening
            sizes = self.counts[self.present].astype(np.float64)
            self._found[orthonormal] = find(centred(self.means, self._g), sizes)
        return self._found[orthonormal]

    def _frame(self, dtype: Any, orthonormal: bool) -> tuple[Any, ...]:
        """The operands of the kernel, with products in `dtype`."""
        key = dtype, orthonormal
        if key not in self._frames:
            Q, weights, A, tilt, _ = self._directions(orthonormal)
            offset = self.W @ self._g + self.bias
            self._frames[key] = (
                self.means,
                self._g,
                Q.astype(dtype),
                A.astype(dtype),
                weights,
                tilt,
                self._squares_C,
                self.W.astype(dtype),
                offset,
            )
        return self._frames[key]

    def _product_dtype(self, H: Any, orthonormal: bool) -> Any:
        wide = len(self._directions(orthonormal).weights) >= WIDE and dtype_name(H) == "float32"
        return np.dtype(np.float32 if wide else np.float64)

    def _numpy_sums(self, H: NDArray[Any], y: NDArray[np.int64]) -> Floats:
        from fastnc.kernels.cpu.blas import gemm_address
        from fastnc.kernels.cpu.deviations import clear_sums, deviations, owners
        from fastnc.kernels.cpu.scatter import group
        from fastnc.kernels.cpu.threads import one_thread

        if self.means.nbytes <= RESIDENT:
            order, owner = np.arange(len(y)), self._row[y]
        else:
            order, present, starts = group(y, self.n_classes)
            owner = self._row[present][owners(starts)]
        dtype = self._product_dtype(H, orthonormal=False)
        frame = self._frame(dtype, orthonormal=False)
        sums = np.empty_like(self._sums)
        clear_sums(sums)
        with one_thread():
            deviations(gemm_address(dtype), H, order, owner, self.present, frame, sums)
        return sums

    def _triton_sums(self, H: Any, y: Any) -> Floats:
        """The same sums on the device of H, with the same precision of products."""
        import torch

        from fastnc.kernels.gpu.deviations import deviations

        frame, row, present = self._frame_on(H.device, self._product_dtype(H, orthonormal=True))
        owner, order = row[y], torch.arange(len(y), device=H.device)
        if self.means.nbytes > RESIDENT_CUDA:
            owner, order = torch.sort(owner, stable=True)
        sums = torch.zeros(len(self._sums), dtype=torch.float64, device=H.device)
        sums[-1] = torch.inf
        with torch.cuda.device_of(H):  # type: ignore[no-untyped-call]
            deviations(H.contiguous(), order, owner, present, frame, sums)
        return as_numpy(sums)

    def _frame_on(self, device: Any, dtype: Any) -> tuple[tuple[Any, ...], Any, Any]:
        """As tensors there: the frame, the mean of each class, the class of each mean."""
        import torch

        key = dtype, device
        if key not in self._frames:
            frame = tuple(torch.from_numpy(a).to(device) for a in self._frame(dtype, True))
            row, present = (torch.from_numpy(a).to(device) for a in (self._row, self.present))
            self._frames[key] = frame, row, present
        return self._frames[key]

    def _torch_sums(self, H: Any, y: Any) -> Floats:
        """The same sums by torch operations in float64, where no kernel can run."""
        import torch

        frame, row, present = self._frame_on(H.device, np.dtype(np.float64))
        means, g, Q, A, weights, tilt, squares_C, W, offset = frame
        zero = torch.zeros((), dtype=torch.float64, device=H.device)
        # Without a direction NC1 is not defined.
        projected = zero if len(weights) else zero + torch.nan
        sums = [zero, zero, projected, zero, zero, zero + torch.inf]
        rows = max((1 << 24) // (H.shape[1] + len(A) + len(W)), 1)
        for lo in range(0, len(H), rows):
            labels = y[lo : lo + rows]
            owner = row[labels]
            h = H[lo : lo + rows].double()
            X, Y = h - means[owner], h - g
            T = X @ Q.T
            sums[0] = sums[0] + X.norm(dim=1).sum()
            sums[1] = sums[1] + Y.norm(dim=1).sum()
            sums[2] = sums[2] + (T * T * weights).sum()
            sums[3] = sums[3] + ((T @ tilt) ** 2).sum()
            if len(W) == 0:
                continue
            nearest = ((T + A[owner]) @ A.T - 0.5 * squares_C).argmax(dim=1)
            Z = Y @ W.T + offset
            sums[4] = sums[4] + (Z.argmax(dim=1) == present[nearest]).sum()
            own = Z.gather(1, labels[:, None])
            rivals = Z.scatter(1, labels[:, None], -torch.inf)
            sums[5] = torch.minimum(sums[5], (own[:, 0] - rivals.max(dim=1).values).min())
        return as_numpy(torch.stack(sums))
