"""Counts, means and scatter of classes in one pass over any batches: the first pass."""

from __future__ import annotations

import copy
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastnc._core.arrays import check_choice, check_count, check_labels, is_torch
from fastnc._core.serial import quiet
from fastnc.collapse.batch import check_batch, moments_of, scatter_rows
from fastnc.collapse.between_class_basis import whitening
from fastnc.collapse.class_means import ClassMeans, metrics_of_means, present_classes
from fastnc.collapse.classifier import check_classifier
from fastnc.collapse.cuda_moments import CudaMoments
from fastnc.collapse.labels import check_ignore_index
from fastnc.collapse.metrics import DECISIONS, CollapseMetrics
from fastnc.collapse.ranks import refuse_again, sum_over_ranks
from fastnc.collapse.state import arrays_of, check_state, plain, state_of

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Scatter = Literal["trace", "full"]


class ClassStatistics:
    """Class counts, means and scatter of features, gathered in one pass and mergeable.

    For each class k: `n_k`, the mean `m_k`, and `s_k = sum_{i: y_i = k} |h_i - m_k|^2`; with
    `scatter="full"` also `S = sum_i (h_i - m_{y_i})(h_i - m_{y_i})^T`. Batches of any size, in any
    order, from any number of workers, are merged by Chan's formula in float64: nothing is computed
    as `E[h h^T] - m m^T`, which loses everything once a class has collapsed. A class without a
    sample stays absent: it is not a mean of zero.

    Parameters
    ----------
    n_classes : int, K >= 1
        Labels lie in 0..K-1.
    dim : int, d >= 1
    scatter : "trace" | "full"
        "full" keeps the d x d matrix S, from which `metrics` has `nc1` without a second pass.
    ignore_index : int, optional
        Samples with that label, -100 say, are left out and counted. Any other label must be a
        class.

    Attributes
    ----------
    counts : (K,) int64, a copy as the next three
    means : (K, d) float64, rows of absent classes are NaN
    squares : (K,) float64, the s_k
    within : (d, d) float64, the S of `scatter="full"`; None with "trace"
    n_ignored : how many samples had the label `ignore_index`

    Raises
    ------
    ValueError, TypeError
        From `update`, one sentence for a batch that does not fit, for labels out of range, and
        for features that are not finite (which sample). The statistics stay as they were.
    RuntimeError
        From `all_reduce`, when called again: that would count every sample once more.

    Cost
    ----
    Memory K d (+ d^2). Time 4 N d bytes of reading in float32; N d^2 FLOP with "full".

    Examples
    --------
    >>> import numpy as np, fastnc
    >>> s = fastnc.ClassStatistics(n_classes=2, dim=1)
    >>> s.update(np.array([[1.0], [3.0], [7.0]]), np.array([0, 0, 1]))
    >>> s.means.tolist(), s.squares.tolist()
    ([[2.0], [7.0]], [2.0, 0.0])

    References
    ----------
    Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances" (1979).
    """

    def __init__(
        self,
        n_classes: int,
        dim: int,
        scatter: Scatter = "trace",
        ignore_index: int | None = None,
    ) -> None:
        self.n_classes = check_count("n_classes", n_classes, 1)
        self.dim = check_count("dim", dim, 1)
        check_choice("scatter", scatter, ("trace", "full"))
        self.scatter: Scatter = scatter
        self.ignore_index = check_ignore_index(ignore_index)
        self.n_ignored = 0
        self._counts: Counts = np.zeros(n_classes, np.int64)
        self._means: Floats = np.zeros((n_classes, dim))
        self._squares: Floats = np.zeros(n_classes)
        # Only the lower triangle is kept up to date; Fortran order lets a BLAS add in place.
        self._within: Floats | None = np.zeros((dim, dim), order="F") if scatter == "full" else None
        self._cuda: CudaMoments | None = None
        self._reduced = False
        self._torch = False

    def __repr__(self) -> str:
        return (
            f"ClassStatistics(n_classes={self.n_classes}, dim={self.dim}, "
            f"scatter={self.scatter!r}): {self.n_samples} samples"
        )

    def __copy__(self) -> ClassStatistics:
        # Of shared arrays an update of either would move both.
        return copy.deepcopy(self)

    @property
    def counts(self) -> Counts:
        self._fold()
        return self._counts.copy()

    @property
    def n_samples(self) -> int:
        """N, the number of samples seen."""
        return int(self.counts.sum())

    @property
    def means(self) -> Floats:
        self._fold()
        return np.where(self._counts[:, None] > 0, self._means, np.nan)

    @property
    def squares(self) -> Floats:
        self._fold()
        return self._squares.copy()

    @property
    def within(self) -> Floats | None:
        self._fold()
        if self._within is None:
            return None
        lower = np.tril(self._within)
        return lower + np.tril(lower, -1).T

    def update(self, H: Any, y: Any) -> None:
        """Adds a batch: features H (n, d) in half, single or double precision, labels y (n,).

        Or H (B, T, d) and y (B, T), a sample at every place; labels may also be (n, 1).
        NumPy arrays and CPU tensors are read in place (half precision is widened first); CUDA
        tensors are summed on their device, in float64, and the sums stay there until they are read.
        """
        self.update_from(0, H, y)

    @quiet
    def update_from(self, first: int, H: Any, y: Any) -> None:
        """`update`, for a batch whose first sample has the number `first` in messages."""
        of_torch = is_torch(H)
        H, y = check_batch(H, y, self.n_classes, self.dim, first, self.ignore_index)
        ignored = int((y < 0).sum())
        if ignored < len(y):
            self._gather(H, y, first)
        self.n_ignored += ignored
        self._torch |= of_torch

    def _gather(self, H: Any, y: Counts, first: int) -> None:
        if is_torch(H):
            if self._cuda is None:
                self._cuda = CudaMoments(self.n_classes, self.dim, self.scatter, H.device)
            self._cuda.update(H, y, first)
            return
        self._merge(*moments_of(H, y, self.n_classes, self.scatter == "full", first))

    @quiet
    def merge(self, other: ClassStatistics) -> None:
        """Adds what `other` has gathered, as if its batches had been given to this one."""
        if not isinstance(other, ClassStatistics):
            raise TypeError(f"`other` must be ClassStatistics; got {type(other).__name__}.")
        if other is self:
            raise ValueError("`other` must be other statistics; got these, to be counted twice.")
        ours = (self.n_classes, self.dim, self.scatter)
        theirs = (other.n_classes, other.dim, other.scatter)
        if ours != theirs:
            raise ValueError(
                "`other` must have the same n_classes, dim and scatter; "
                f"got {theirs} to merge into {ours}."
            )
        self._fold()
        other._fold()
        self._torch |= other._torch
        present = np.flatnonzero(other._counts)
        within = None if other._within is None else other._within.copy(order="F")
        self.n_ignored += other.n_ignored
        self._reduced |= other._reduced
        self._merge(
            present, other._counts[present], other._means[present], other._squares[present], within
        )

    def _merge(
        self, present: Counts, counts: Counts, means: Floats, squares: Floats, within: Floats | None
    ) -> None:
        from fastnc.kernels.cpu.scatter import merge_moments

        if self._within is not None and within is not None:
            # With the difference D of the means, S gains D D^T n_a n_b / n for each class.
            ours = self._counts[present]
            share = ours * (counts / (ours + counts))
            gaps = (means - self._means[present]) * np.sqrt(share)[:, None]
            self._within += within
            scatter_rows(gaps, self._within)
        merge_moments(present, counts, means, squares, self._counts, self._means, self._squares)

    def _fold(self) -> None:
        """Merges the moments on a CUDA device into the arrays here."""
        if self._cuda is not None:
            moments, self._cuda = self._cuda.moments(), None
            self._merge(*moments)

    def state_dict(self) -> dict[str, Any]:
        """All that was gathered, as arrays and plain values; copies.

        The arrays are torch's where the features were, so that `torch.load` takes them back.
        """
        self._fold()
        state: dict[str, Any] = {
            "n_classes": self.n_classes,
            "dim": self.dim,
            "scatter": self.scatter,
            "n_ignored": self.n_ignored,
            "reduced": self._reduced,
            "counts": self._counts.copy(),
            "means": self._means.copy(),
            "squares": self._squares.copy(),
        }
        if self._within is not None:
            state["within"] = self.within
        return state_of(state, self._torch)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replaces what was gathered by what `state_dict` gave, for the same sizes."""
        shapes = {"counts": self._counts, "means": self._means, "squares": self._squares}
        if self._within is not None:
            shapes["within"] = self._within
        check_state(state)
        ours = {"n_classes": self.n_classes, "dim": self.dim, "scatter": self.scatter}
        theirs = {name: plain(state.get(name)) for name in ours}
        if not all(type(theirs[name]) is type(ours[name]) for name in ours) or ours != theirs:
            raise ValueError(f"`state` must be of {ours}; got {theirs!s:.200}.")
        found = arrays_of(state, shapes)
        self._torch = is_torch(state["counts"])
        self._cuda = None
        for name, like in shapes.items():
            like[...] = found[name]
        self.n_ignored = int(state.get("n_ignored", 0))
        self._reduced = bool(state.get("reduced", False))

    def all_reduce(self, group: Any = None) -> None:
        """Merges what all ranks of `torch.distributed` have gathered; each rank then has it all.

        To be called once, after the last batch.
        Two sums: of counts and `n_k m_k`, then of the scatter about the common means. With the
        `nccl` backend they travel through the current CUDA device.
        """
        refuse_again(self._reduced)
        self._fold()
        sums = self._means * self._counts[:, None]
        ignored = np.array([self.n_ignored])
        counts, sums, ignored = sum_over_ranks([self._counts, sums, ignored], group)
        means = sums / np.maximum(counts, 1)[:, None]
        gaps = (self._means - means) * np.sqrt(self._counts)[:, None]
        squares = self._squares + (gaps**2).sum(axis=1)
        parts: list[NDArray[Any]] = [squares]
        if self._within is not None:
            within = self._within.copy(order="F")
            scatter_rows(gaps, within)
            parts.append(within)
        parts = sum_over_ranks(parts, group)
        self._counts, self._means, self._squares = counts, means, parts[0]
        self.n_ignored, self._reduced = int(ignored[0]), True
        if self._within is not None:
            self._within = np.asfortranarray(parts[1])

    @quiet
    def metrics(
        self,
        W: ArrayLike | None = None,
        bias: ArrayLike | None = None,
        min_count: int = 1,
    ) -> CollapseMetrics:
        """The metrics of these sums; those that need a second pass (`ClassDeviations`) are None.

        That is everything about the means and the classifier, `nc1_quotient`, `cdnv`, and with
        `scatter="full"` also `nc1`, of the classes that have at least `min_count` samples (then
        not `nc1`: S is of all classes).
        """
        from fastnc.kernels.cpu.deviations import N_SUMS, PROJECTED, TILTED
        from fastnc.kernels.cpu.pairs import centre_of, centred

        of = self.class_means(min_count)
        classifier = check_classifier(W, bias, self.n_classes, self.dim)
        found = whitening(centred(of.means, centre_of(of.means)), of.sizes)
        sums = np.full(N_SUMS, np.nan)
        within = None if of.n_left_out else self.within
        unknown = {"within_class", *DECISIONS}
        if within is None:
            unknown |= {"nc1", "nc1_sample_mean"}
        elif len(found.weights):
            sums[PROJECTED] = found.weights @ ((found.Q @ within) * found.Q).sum(axis=1)
            tilt = found.tilt @ found.Q
            sums[TILTED] = tilt @ within @ tilt
        return metrics_of_means(of, classifier, found, sums, unknown)

    def class_means(self, min_count: int = 1) -> ClassMeans:
        """The means of the classes with at least `min_count` samples, and their other sums."""
        counts = self.counts
        present = present_classes(counts, check_count("min_count", min_count, 1))
        kept = np.zeros_like(counts)
        kept[present] = counts[present]
        return ClassMeans(
            means=np.ascontiguousarray(self._means[present]),
            present=present,
            sizes=counts[present].astype(np.float64),
            counts=kept,
            squares=self._squares[present],
            n_ignored=self.n_ignored,
            n_left_out=int((counts > 0).sum()) - len(present),
        )

    def resized(self, n_classes: int) -> ClassStatistics:
        """A copy for the classes 0..n_classes-1, which must include all that have samples."""
        more = ClassStatistics(n_classes, self.dim, self.scatter, self.ignore_index)
        more.n_ignored, more._torch, more._reduced = self.n_ignored, self._torch, self._reduced
        self._fold()
        if self._counts[n_classes:].any():
            highest = int(np.flatnonzero(self._counts)[-1])
            raise ValueError(
                f"`y` must lie in 0..{n_classes - 1} ({n_classes} classes were given); got "
                f"{highest}. Relabel, or give a classifier with more rows."
            )
        both = min(n_classes, self.n_classes)
        more._counts[:both] = self._counts[:both]
        more._means[:both] = self._means[:both]
        more._squares[:both] = self._squares[:both]
        if self._within is not None:
            more._within = self._within.copy(order="F")
        return more

    def of_classes(self, classes: Counts) -> ClassStatistics:
        """The statistics of some classes alone, renumbered from 0 in the order given."""
        classes = check_labels(classes, None, self.n_classes, "classes", "take `resized`")
        if len(np.unique(classes)) < len(classes):
            raise ValueError(f"`classes` must name each class once; got {classes.tolist()}.")
        self._fold()
        some = ClassStatistics(len(classes), self.dim, ignore_index=self.ignore_index)
        some._counts = self._counts[classes]
        some._means = self._means[classes]
        some._squares = self._squares[classes]
        some.n_ignored, some._torch, some._reduced = self.n_ignored, self._torch, self._reduced
        return some
