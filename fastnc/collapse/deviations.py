"""Norms, projections and decisions about known class means: the second pass over features."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastnc._core.arrays import as_numpy, is_torch
from fastnc._core.serial import quiet
from fastnc.collapse.batch import check_batch, epsilon, kept_samples, refuse_not_finite
from fastnc.collapse.class_means import ClassMeans, metrics_of_means
from fastnc.collapse.classifier import check_classifier
from fastnc.collapse.labels import IGNORED
from fastnc.collapse.metrics import CollapseMetrics
from fastnc.collapse.ranks import refuse_again, sum_over_ranks
from fastnc.collapse.second_pass import SecondPass
from fastnc.collapse.state import arrays_of, state_of
from fastnc.collapse.statistics import ClassStatistics

Floats = NDArray[np.float64]
# Places of classes that have no mean: without a sample, or left out.
UNSEEN, LEFT_OUT = -2, -1


class ClassDeviations:
    """The second pass over features whose class statistics are known: it gives every metric.

    With `x_i = h_i - m_{y_i}` it sums `|x_i|`, `|h_i - g|` and `|Sigma_B^{-1/2} x_i|^2` (NC1, by
    projection on the at most K-1 directions of Sigma_B: eigenvectors of the smaller of the K x K
    Gram matrix and the d x d Sigma_B, or its Cholesky factor where it is large and well-conditioned
    and no decision is needed; no pseudo-inverse is formed), and with a classifier counts how
    often its decision is the nearest class mean, and keeps the smallest margin.

    Parameters
    ----------
    statistics : ClassStatistics
        Of the same samples, complete. It is read once, here.
    W : (K, d), optional
        The classifier's rows; NumPy or torch. One row (1, d), of two classes, means [0, w].
    bias : (K,), optional
    held_out : bool
        The samples are not those of the statistics, and are measured about the statistics' means.
    min_count : int
        Classes of which the statistics have fewer samples are left out.

    Raises
    ------
    ValueError, TypeError
        Fewer than two classes with samples; W or bias that do not fit; from `update`, a batch that
        does not fit, a label whose class has no sample in the statistics, features that are not
        finite (which sample): the sums stay as they were. From `metrics`, if the counts of the
        classes or the sum of all squared deviations show that the samples are not those of the
        statistics.
    RuntimeError
        From `all_reduce`, when called again.

    Cost
    ----
    Memory K d + min(K, d)^2. Time 2 N d (r + K) + 2 N r K FLOP, r <= min(K - 1, d); without a
    classifier 2 N d r. Products are in float64, except for half and single precision features
    where r >= 48: their centred rows are multiplied in float32. `metrics` takes 2 K^2 d FLOP
    (with a classifier 10 K^2 d) by blocks: no K x K array is ever held.

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

    @quiet
    def __init__(
        self,
        statistics: ClassStatistics,
        W: ArrayLike | None = None,
        bias: ArrayLike | None = None,
        held_out: bool = False,
        min_count: int = 1,
    ) -> None:
        from fastnc.kernels.cpu.deviations import N_SUMS, clear_sums

        if not isinstance(statistics, ClassStatistics):
            raise TypeError(
                f"`statistics` must be ClassStatistics; got {type(statistics).__name__}."
            )
        self.n_classes, self.dim = statistics.n_classes, statistics.dim
        self.ignore_index = statistics.ignore_index
        self._of = statistics.class_means(min_count)
        # Copies: batches, decided by one classifier, may come while a training changes it.
        rows, offsets = check_classifier(W, bias, self.n_classes, self.dim)
        self.W, self.bias = np.array(rows), np.array(offsets)
        row = np.where(statistics.counts > 0, LEFT_OUT, UNSEEN)
        row[self._of.present] = np.arange(len(self._of.present))
        self._pass = SecondPass(self._of, row, self.W, self.bias, held_out)
        self._sums = np.empty(N_SUMS)
        clear_sums(self._sums)
        self._seen = np.zeros(self.n_classes, np.int64)
        self._held = ClassStatistics(self.n_classes, self.dim) if held_out else None
        self.n_ignored = 0
        self._least_eps = 0.0
        self._reduced = self._torch = False

    def __repr__(self) -> str:
        if self._held is not None:
            return f"ClassDeviations: {self.n_samples} held-out samples"
        return f"ClassDeviations: {self.n_samples} of {self._of.counts.sum()} samples"

    def __copy__(self) -> ClassDeviations:
        # Of shared arrays an update of either would move both.
        return copy.deepcopy(self)

    @property
    def n_samples(self) -> int:
        """How many samples were measured."""
        return int(self._seen.sum())

    def update(self, H: Any, y: Any) -> None:
        """Adds a batch of the samples that the statistics were gathered from, or of held-out ones.

        Shapes are those of `ClassStatistics.update`; samples with its `ignore_index` and of classes
        that were left out are skipped.
        """
        self.update_from(0, H, y)

    @quiet
    def update_from(self, first: int, H: Any, y: Any) -> None:
        """`update`, for a batch whose first sample has the number `first` in messages."""
        eps, of_torch = epsilon(H), is_torch(H)
        H, labels = check_batch(H, y, self.n_classes, self.dim, first, self.ignore_index)
        place = np.where(labels < 0, LEFT_OUT, self._pass.row[labels])
        if (place == UNSEEN).any():
            i = int(np.argmax(place == UNSEEN))
            raise ValueError(
                f"`y` must name classes that the statistics have seen; got {labels[i]} at index "
                f"{first + i}, of which they have no sample. Gather them from the same samples"
                f"{', or leave these out' if self._held is not None else ''}."
            )
        ignored = int((labels < 0).sum())
        labels[place < 0] = IGNORED
        kept = labels[labels >= 0]
        if len(kept):
            sums = self._pass.sums(H, labels)
            if not np.isfinite(sums[:2].sum()):
                refuse_not_finite(as_numpy(H), first, kept_samples(labels))
            if self._held is not None:
                self._held._gather(H, labels, first)
            self._add(sums)
            self._seen += np.bincount(kept, minlength=self.n_classes)
        self.n_ignored += ignored
        self._least_eps = max(self._least_eps, eps)
        self._torch |= of_torch

    def merge(self, other: ClassDeviations) -> None:
        """Adds what `other`, made from the same statistics and classifier, has gathered."""
        if not isinstance(other, ClassDeviations):
            raise TypeError(f"`other` must be ClassDeviations; got {type(other).__name__}.")
        if other is self:
            raise ValueError("`other` must be other deviations; got these, to be counted twice.")
        same = (
            np.array_equal(self._of.counts, other._of.counts)
            and np.array_equal(self._of.means, other._of.means)
            and np.array_equal(self.W, other.W)
            and np.array_equal(self.bias, other.bias)
            and (self._held is None) == (other._held is None)
        )
        if not same:
            raise ValueError(
                "`other` must come from the same statistics and classifier; these differ. "
                "Merge or reduce the statistics first, then make both from the result."
            )
        if self._held is not None and other._held is not None:
            self._held.merge(other._held)
        self._add(other._sums)
        self._torch |= other._torch
        self._seen += other._seen
        self.n_ignored += other.n_ignored
        self._reduced |= other._reduced
        self._least_eps = max(self._least_eps, other._least_eps)

    def all_reduce(self, group: Any = None) -> None:
        """Merges what all ranks of `torch.distributed` have gathered; each rank then has it all.

        To be called once, after the last batch.
        """
        refuse_again(self._reduced)
        if self._held is not None:
            self._held.all_reduce(group)
        ignored = np.array([self.n_ignored])
        parts = sum_over_ranks([self._sums[:-1], self._seen, ignored], group)
        smallest = sum_over_ranks([self._sums[-1:], np.array([-self._least_eps])], group, True)
        self._sums = np.append(parts[0], smallest[0])
        self._seen, self.n_ignored = parts[1], int(parts[2][0])
        self._least_eps, self._reduced = -float(smallest[1][0]), True

    def state_dict(self) -> dict[str, Any]:
        """What was gathered; the statistics have a state of their own.

        The arrays are torch's where the features were, so that `torch.load` takes them back.
        """
        state: dict[str, Any] = {
            "sums": self._sums.copy(),
            "seen": self._seen.copy(),
            "n_ignored": self.n_ignored,
            "eps": self._least_eps,
            "reduced": self._reduced,
        }
        if self._held is not None:
            held = self._held.state_dict()
            state |= {f"held_{name}": value for name, value in held.items()}
        return state_of(state, self._torch)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replaces what was gathered by what `state_dict` gave."""
        found = arrays_of(state, {"sums": self._sums, "seen": self._seen})
        self._torch = is_torch(state["sums"])
        if self._held is not None:
            held = {k.removeprefix("held_"): v for k, v in state.items() if k.startswith("held_")}
            self._held.load_state_dict(held)
        self._sums, self._seen = found["sums"], found["seen"]
        self.n_ignored = int(state.get("n_ignored", 0))
        self._least_eps = float(state.get("eps", 0.0))
        self._reduced = bool(state.get("reduced", False))

    @quiet
    def metrics(self) -> CollapseMetrics:
        """Every metric; those that need a classifier are None where none was given."""
        of = self._of
        if self._held is None:
            self._refuse_other_samples()
        else:
            of = self._about(self._held)
        found = self._pass.directions()
        return metrics_of_means(of, (self.W, self.bias), found, self._sums)

    def _add(self, sums: Floats) -> None:
        self._sums[:-1] += sums[:-1]
        self._sums[-1] = min(self._sums[-1], sums[-1])

    def _about(self, held: ClassStatistics) -> ClassMeans:
        """The class means, with the held-out samples about them instead of their own."""
        if self.n_samples == 0:
            raise ValueError("no held-out sample was given; call `update` with some.")
        present = self._of.present
        counts = self._seen[present]
        means = np.where(counts[:, None] > 0, held.means[present], 0.0)
        own = held.squares[present]
        gaps = np.where(counts[:, None] > 0, means - self._of.means, 0.0)
        return self._of._replace(
            counts=self._seen,
            squares=own + counts * (gaps**2).sum(axis=1),
            energy=float(own.sum() + counts @ (means**2).sum(axis=1)),
            held_out=True,
            n_ignored=self.n_ignored,
        )

    def _refuse_other_samples(self) -> None:
        """The counts and squared deviations of both passes must be the same."""
        from fastnc.kernels.cpu.deviations import SQUARES

        of = self._of
        if self.n_samples != of.counts.sum():
            raise ValueError(
                f"the second pass must see the statistics' {of.counts.sum()} samples; "
                f"got {self.n_samples}. Call `update` with each batch once, or pass "
                "`held_out=True` for other samples."
            )
        if not np.array_equal(self._seen, of.counts):
            k = int(np.argmax(self._seen != of.counts))
            raise ValueError(
                f"the second pass must see the statistics' samples; of class {k} they have "
                f"{of.counts[k]}, it saw {self._seen[k]}. Give the same batches, or pass "
                "`held_out=True` for other samples."
            )
        first, second = float(of.squares.sum()), float(self._sums[SQUARES])
        energy = first + float(of.sizes @ (of.means**2).sum(axis=1))
        # Features that are computed again may differ by a few roundings each.
        noise = max(2.0 * self._least_eps, 1e-13)
        allowed = 1e-6 * first + 2.0 * noise * np.sqrt(first * energy) + noise**2 * energy
        # Below the smallest normal number squares have lost digits of their own.
        allowed += np.finfo(np.float64).tiny
        if not abs(first - second) <= allowed:
            raise ValueError(
                "the second pass must see the statistics' samples; their squared deviations from "
                f"the class means add up to {first:.6g}, and here to {second:.6g}. Give the same "
                "batches (no shuffled augmentation, `model.eval()`), or pass `held_out=True` for "
                "other samples."
            )
