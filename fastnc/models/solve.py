"""Fit a model of Table 1 and compare what was found with its known optimum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnc._core.arrays import check_count
from fastnc._core.serial import quiet
from fastnc.kernels.cpu.threads import few_threads
from fastnc.models.column_generation import escape
from fastnc.models.constrained import Constrained
from fastnc.models.deep_linear import DeepLinear
from fastnc.models.layer_peeled import LayerPeeled, Optimum, UnknownOptimum
from fastnc.models.lbfgs import Floats, Minimum, minimise
from fastnc.models.minimum_norm import MinimumNorm
from fastnc.models.softmax_code import Code, SoftmaxCode
from fastnc.models.ulpm import ULPM
from fastnc.models.unequal import ReLUFeatures

TOLERANCE = 1e-8
# W (K, d), H (N, d) and the bias (K,), or None.
Point = tuple[Floats, Floats, "Floats | None"]


@dataclass(frozen=True, eq=False)
class Solution:
    """What `solve` found.

    Attributes
    ----------
    W, H : (K, d), (N, d) float64
        A point of the constraint.
    bias : (K,) float64, or None for a model without one
    value : float, the objective there
    gap : float, `(value - optimum) / optimum`, or None where no optimum is known
    reason : str
        Why the solver stopped, from how many starts, and what is unknown.
    optimum : Optimum, or None where none is known
    y : (N,) labels
    evaluations : int, of the objective and its gradients, over all starts
    layers : tuple of arrays
        H_1, W_1, ..., W_M of a deep model; W is then W_M, and H what enters it.
    """

    W: Floats = field(repr=False)
    H: Floats = field(repr=False)
    bias: Floats | None = field(repr=False)
    value: float
    gap: float | None
    reason: str
    optimum: Optimum | None = field(repr=False)
    y: NDArray[np.int64] = field(repr=False)
    evaluations: int
    layers: tuple[Floats, ...] = field(default=(), repr=False)


@quiet
def solve(
    model: Any,
    seed: int = 0,
    starts: int | None = None,
    *,
    beside: Sequence[Point] = (),
) -> Solution:
    """Minimise the objective of a model of Table 1 over W and H, from Gaussian starts.

    L-BFGS on the fused kernels, in scales of W and H with equal penalties. Constrained models are
    optimised over the directions of what they normalise, on the logarithm of the loss. For features
    that must not be negative there are bounds, and a local minimum is left along a direction in
    which the dual certificate fails. The separation problem is solved by an augmented Lagrangian. A
    known optimum is not used to find a minimum, only to decide whether another start is needed.

    Parameters
    ----------
    model : a model of `fastnc.models` other than the ULPM
    seed : int >= 0
        Of the first start; the next ones use `seed + 1, ...`.
    starts : int >= 1, optional
        How many starts at most; by default the `starts` of the model. Further starts are only made
        while the gap is above 1e-8, or unknown.
    beside : sequence of (W, H, bias), optional
        Further points to start from, before the Gaussian ones: from a minimum of a model that this
        one contains, the value is at most that model's. Not for models with a constraint.

    Returns
    -------
    Solution
        The best of all starts.

    Raises
    ------
    TypeError
        Not a model of `fastnc.models`.
    ValueError
        The ULPM, whose infimum is not attained.

    Notes
    -----
    Cost: `6KNd` operations an evaluation, some hundred evaluations a start. K = 100, n = 100,
    d = 128 with weight decay takes seconds.

    Examples
    --------
    >>> import fastnc
    >>> found = fastnc.solve(fastnc.models.weight_decay(4, 10, 3, 5e-3, 5e-3))
    >>> abs(found.gap) < 1e-8
    True
    """
    if isinstance(model, ULPM) and model.loss in ("squared", "smoothed"):
        raise ValueError(
            f"the unconstrained model with loss={model.loss!r} is solved by its `optimum()`. Use "
            "that, or follow it with `fastnc.descend`."
        )
    if isinstance(model, ULPM):
        raise ValueError(
            "the unconstrained model has no minimiser to find: its infimum 0 is not attained. "
            "Solve `fastnc.models.separation` or `fastnc.models.sphere`, or follow it with "
            "`fastnc.descend` or `fastnc.flow`."
        )
    if not isinstance(model, LayerPeeled):
        raise TypeError(f"`model` must be one of `fastnc.models`; got {type(model).__name__}.")
    seed = check_count("seed", seed, 0)
    at_most = model.starts if starts is None else check_count("starts", starts, 1)
    if not isinstance(beside, Sequence) or isinstance(beside, (str, bytes)):
        raise TypeError(f"`beside` must be a list of points; got {type(beside).__name__}.")
    for point in beside:
        _check_point(model, point)
    if isinstance(model, (DeepLinear, SoftmaxCode)):
        return _by_own_method(model, seed, at_most)
    try:
        optimum, unknown = model.optimum(), ""
    except UnknownOptimum as reason:
        optimum, unknown = None, f"; optimum unknown: {reason}"

    best: tuple[float, float, Point, str] | None = None
    evaluations = 0
    given = [*beside, *[None] * at_most]
    for start, at in enumerate(given, start=-len(beside)):
        with few_threads(model.is_small, blas=False):
            point, minimum = _fit(model, seed + max(start, 0), at)
        evaluations += minimum.evaluations
        # The logarithm distinguishes losses that are too small for a float.
        log_value = minimum.value if isinstance(model, Constrained) else -np.inf
        value = model.value_and_grads(*point).value if np.isfinite(minimum.value) else np.inf
        if best is None or (value, log_value) < best[:2]:
            where = f"start {start + 1}" if start >= 0 else "from a model that is contained"
            best = (value, log_value, point, f"{where}: {minimum.reason}")
        if optimum is not None and _relative_gap(*best[:2], optimum) <= TOLERANCE:
            break
    assert best is not None
    value, log_value, (W, H, bias), stopped = best
    made = f"{max(start + 1, 0)} of at most {at_most} starts made"
    landscape = f" ({model.landscape})" if model.landscape else ""
    return Solution(
        W=W,
        H=H,
        bias=bias,
        value=value,
        gap=None if optimum is None else _relative_gap(value, log_value, optimum),
        reason=f"{stopped}; {made}{landscape}{unknown}",
        optimum=optimum,
        y=model.y,
        evaluations=evaluations,
    )


def _check_point(model: LayerPeeled, point: Any) -> None:
    """One of `beside` must be W, H and a bias or None, of the model's sizes."""
    if not isinstance(point, (tuple, list)) or len(point) != 3:
        raise TypeError(
            f"`beside` must hold points (W, H, bias); got {type(point).__name__}. Give a model "
            "without a bias None for it."
        )
    model.objective(point[0], point[1], point[2] if model.has_bias else None)


def _by_own_method(model: DeepLinear | SoftmaxCode, seed: int, at_most: int) -> Solution:
    """The best of several starts of a model that has other unknowns than W, H and a bias."""
    optimum: Optimum = model.optimum()
    proven = not isinstance(optimum, Code) or optimum.proven
    best, best_gap, evaluations, made = None, np.inf, 0, 0
    for made in range(1, at_most + 1):
        with few_threads(model.is_small, blas=False):
            found = model.fit(seed + made - 1)
        evaluations += found.evaluations
        # A code's distance is maximised, an objective minimised.
        gap = (found.value - optimum.value) / (optimum.value or 1.0)
        gap = -gap if isinstance(model, SoftmaxCode) else gap
        if best is None or gap < best_gap:
            best, best_gap, first = found, gap, made
        if proven and best_gap <= TOLERANCE:
            break
    assert best is not None
    unknown = "" if proven else f"; optimum unknown: {optimum.source}"
    return Solution(
        W=best.W,
        H=best.H,
        bias=None,
        value=best.value,
        gap=best_gap if proven else None,
        reason=f"start {first}: {best.reason}; {made} of at most {at_most} starts made "
        f"({model.landscape}){unknown}",
        optimum=optimum if proven else None,
        y=model.y,
        evaluations=evaluations,
        layers=getattr(best, "layers", ()),
    )


def _relative_gap(value: float, log_value: float, optimum: Optimum) -> float:
    """`(value - optimum) / optimum`, from logarithms where the objective was minimised in them."""
    if optimum.log_value is not None:
        return float(np.expm1(min(log_value - optimum.log_value, 700.0)))
    return (value - optimum.value) / optimum.value


def _fit(model: LayerPeeled, seed: int, at: Point | None) -> tuple[Point, Minimum]:
    """One start, from the point `at` or a Gaussian one: a feasible point, and the minimum found."""
    K, d, N = model.n_classes, model.dim, model.n_samples
    W, H = model.init(seed)
    match model:
        case MinimumNorm():
            from fastnc.models.augmented_lagrangian import separate

            W, H, minimum = separate(W, H, model.y)
            return (W, H, None), minimum
        case Constrained():
            return _fit_constrained(model, W, H)

    # W and H have the same penalty in these scales, and a start of equal norms.
    sizes = (K * d, N * d, K if model.has_bias else 0)
    scales = np.repeat([model.balance, 1.0 / model.balance, 1.0], sizes)

    def split(x: Floats) -> Point:
        W, H, bias = np.split(x * scales, np.cumsum(sizes)[:2])
        return W.reshape(K, d), H.reshape(N, d), bias if model.has_bias else None

    def objective(x: Floats) -> tuple[float, Floats]:
        g = model.value_and_grads(*split(x))
        blocks = (g.W, g.H) if g.bias is None else (g.W, g.H, g.bias)
        return g.value, np.concatenate([block.ravel() for block in blocks]) * scales

    x = np.concatenate([W.ravel(), H.ravel() * np.sqrt(K / N), np.zeros(sizes[2])])
    if at is not None:
        bias = np.zeros(K) if at[2] is None else at[2]
        x = np.concatenate([at[0].ravel(), at[1].ravel(), bias[: sizes[2]]]) / scales
    lower = None
    if model.non_negative:
        lower = np.full(len(x), -np.inf)
        lower[K * d : K * d + N * d] = 0.0
    minimum = minimise(objective, x, model.modulus, lower=lower)
    if isinstance(model, ReLUFeatures):
        for _ in range(4 * K):
            better = escape(model, *split(minimum.x)[:2])
            if better is None:
                break
            x = np.concatenate([block.ravel() for block in better]) / scales
            again = minimise(objective, x, model.modulus, lower=lower)
            minimum = again._replace(evaluations=minimum.evaluations + again.evaluations)
    return split(minimum.x), minimum


def _fit_constrained(model: Constrained, W: Floats, H: Floats) -> tuple[Point, Minimum]:
    """Minimises the logarithm of the loss over the directions of W and H."""
    cut, shapes = W.size, (W.shape, H.shape)

    def split(x: Floats) -> tuple[Floats, Floats]:
        return x[:cut].reshape(shapes[0]), x[cut:].reshape(shapes[1])

    def objective(x: Floats) -> tuple[float, Floats]:
        raw = split(x)
        g = model.log_value_and_grads(*model.retract(*raw))
        grad_W, grad_H = model.pullback(*raw, g.W, g.H)
        return g.value, np.concatenate([grad_W.ravel(), grad_H.ravel()])

    x = np.concatenate([W.ravel(), H.ravel()])
    # For small logit gaps the curvature is proportional to their square, over |x|^2.
    modulus = 1e-3 * min(1.0, model.etf_gap) ** 2 / float(x @ x)
    minimum = minimise(objective, x, modulus, relative=False)
    W, H = model.retract(*split(minimum.x))
    return (W, H, None), minimum
