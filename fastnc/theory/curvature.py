"""The curvature of the loss on a sphere: Definition 3.2 and Theorem 3.4."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from fastnc._core import arrays
from fastnc._core.progress import progress_bar
from fastnc._core.serial import quiet
from fastnc.objective import Reduction
from fastnc.theory.residuals import Residuals

Floats = NDArray[np.float64]

# Up to this many unknowns all eigenvalues are computed, from the products with a basis.
_DENSE = 300
# Eigenvalues this close, relative to the largest, are one.
_SAME = 1e-10


class SphereHessian:
    """The Riemannian Hessian of (4) on the sphere |W|^2 + |H|^2 = const, by products only.

    `P (Hess L - <theta, grad L> / |theta|^2 I) P` with theta = (W, H) and P the projector on
    Definition 3.2's tangent space. The second term is the sphere's own curvature, which (13)
    leaves out: without it the Hessian is negative even at the optimum. At any point of the sphere
    the form is the second derivative of the loss along great circles.

    Raises
    ------
    TypeError, ValueError
        Shapes or dtypes that do not fit, NaN or infinity, a point at the origin, or a loss
        below 1e-290, whose Hessian leaves the range of float64.
    """

    def __init__(self, W: Any, H: Any, y: Any, reduction: Reduction = "mean") -> None:
        arrays.check_choice("reduction", reduction, ("mean", "sum"))
        self.W, self.H, self.y = arrays.checked_problem(W, H, y)
        self.theta = _flat(self.W, self.H)
        radius = float(np.linalg.norm(self.theta))
        if radius == 0.0:
            raise ValueError("`W` and `H` must not both be 0: there is no sphere through 0.")
        # Residuals and all products are those of the loss over the loss itself, so that a deep
        # tail is as easy as any other point; only the eigenvalue that is returned has a range.
        self._at = Residuals(self.W, self.H, self.y)
        log_loss = self._at.log_loss
        if not -667.0 < log_loss < 709.0:
            raise ValueError(
                f"the loss must be a normal number of float64; its logarithm is {log_loss:.4g}. "
                "Scale `W` and `H` down: a direction keeps its landscape."
            )
        self.loss = math.exp(log_loss) / (len(self.H) if reduction == "mean" else 1)
        self.unit = self.theta / radius
        r = self._at.residuals
        self.gradient = _flat(r.T @ self.H, r @ self.W)
        self.shift = -float(self.theta @ self.gradient) / radius**2
        self.products = 0
        self._room = np.empty_like(self.theta)

    def __call__(self, x: Floats) -> Floats:
        """The product with a tangent direction (K d + N d,), over the loss."""
        self.products += 1
        x = self.tangent(x.copy())
        out = self._at.hessian_product(x)
        x *= self.shift
        out += x
        return self.tangent(out)

    def tangent(self, x: Floats) -> Floats:
        """`x` minus its component along the point, in place."""
        return self.lift(x, -1.0)

    def lift(self, x: Floats, by: float) -> Floats:
        """`x` plus `by` times its component along the point, in place."""
        np.multiply(self.unit, by * float(self.unit @ x), out=self._room)
        x += self._room
        return x

    def split(self, x: Floats) -> tuple[Floats, Floats]:
        """A vector's parts for W (K, d) and for H (N, d)."""
        return x[: self.W.size].reshape(self.W.shape), x[self.W.size :].reshape(self.H.shape)


@quiet
def tangent_curvature(
    W: Any,
    H: Any,
    y: Any,
    reduction: Reduction = "mean",
    *,
    tol: float | None = None,
    seed: int = 0,
    progress: bool = False,
) -> tuple[float, tuple[Any, Any]]:
    """The smallest eigenvalue of the loss's Hessian on the sphere, and its direction.

    Theorem 3.4: at a direction that is stationary on the sphere but not optimal it is negative,
    and moving along the eigenvector (`along_sphere`) lowers the loss at an unchanged norm.

    Parameters
    ----------
    W : (K, d), H : (N, d) float32 or float64
    y : (N,) integers in 0..K-1
    reduction : "mean" or "sum"
    tol : float, optional
        Relative accuracy of the eigenvalue; by default 1e-12 with up to 20,000 unknowns and 1e-4
        above.
    seed : int
        Of the vector that the iteration starts from.
    progress : bool
        Show the count of Hessian products on a terminal.

    Returns
    -------
    eigenvalue : float
    (dW, dH) : (K, d), (N, d)
        Tangent, of norm 1 together, and pointing where the loss does not rise at first order;
        in the library, on the device and in the dtype of `W`.

    Raises
    ------
    TypeError, ValueError
        As `SphereHessian`.
    ArithmeticError
        The iteration did not converge; the message says after how many products.

    Notes
    -----
    Lanczos with restarts (scipy's `eigsh`) on Hessian products; a dense Hessian is formed only
    for up to 300 unknowns. Cost: some tens to hundreds of products, each `12KNd` operations, and
    20 vectors of (K + N) d numbers.

    Examples
    --------
    >>> import fastnc
    >>> example = fastnc.theory.Example31(C=1.0)
    >>> value, (dW, dH) = fastnc.tangent_curvature(example.W, example.H, example.y, "sum")
    >>> round(value, 9) == round(example.curvature, 9)
    True
    """
    if tol is not None:
        tol = arrays.check_positive("tol", tol)
    seed = arrays.check_count("seed", seed, 0)
    from fastnc.kernels.cpu.threads import serial_blas

    # A BLAS adds in another order on two threads; and on a busy machine a scalar product of 1e4
    # numbers waits for the second one longer than the product with the Hessian takes.
    with serial_blas:
        hessian = SphereHessian(W, H, y, reduction)
        value, vector = _least(hessian, len(hessian.theta), tol, seed, progress)
        vector = hessian.tangent(np.array(vector))
        vector /= np.linalg.norm(vector)
        if vector @ hessian.gradient > 0.0:
            vector = -vector
    dW, dH = (x.astype(arrays.dtype_name(W)) for x in hessian.split(vector))
    return value * hessian.loss, (arrays.like(dW, W), arrays.like(dH, W))


def _least(
    hessian: SphereHessian, size: int, tol: float | None, seed: int, progress: bool
) -> tuple[float, Floats]:
    """The least eigenvalue, over the loss, and its vector."""
    if size <= _DENSE:
        matrix = np.array([hessian(row) for row in np.eye(size)])
        # The point itself is an eigenvector outside the tangent space: its eigenvalue is raised.
        matrix += _bound(matrix) * np.outer(hessian.unit, hessian.unit)
        values, vectors = eigh(0.5 * (matrix + matrix.T), subset_by_index=(0, 0))
        return float(values[0]), vectors[:, 0]
    if tol is None:
        tol = 1e-12 if size <= 20_000 else 1e-4
    return _lanczos(hessian, size, tol, seed, progress)


def _bound(matrix: Floats) -> float:
    return 1.0 + float(np.abs(matrix).sum(axis=1).max())


def _lanczos(
    hessian: SphereHessian, size: int, tol: float, seed: int, progress: bool
) -> tuple[float, Floats]:
    rng = np.random.default_rng(seed)
    start = rng.standard_normal(size)
    hessian.tangent(start)
    # The largest eigenvalue, roughly, by a few power steps. By it the eigenvalue 0 of the point's
    # own direction, which is outside the tangent space, is raised.
    probe = start / np.linalg.norm(start)
    lift = 0.0
    for _ in range(5):
        image = hessian(probe)
        lift = float(np.linalg.norm(image))
        if lift == 0.0:
            return 0.0, start
        probe = image / lift
    with progress_bar(math.inf, "products", "curvature", show=progress) as bar:

        def product(x: Floats) -> Floats:
            bar.update(1)
            out = hessian(x)
            out += (lift * float(hessian.unit @ x)) * hessian.unit
            return out

        operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
        try:
            values, vectors = eigsh(
                operator, k=1, which="SA", v0=start, tol=tol, ncv=20, maxiter=1000
            )
        except ArpackNoConvergence as error:
            raise ArithmeticError(
                f"no eigenvalue converged within {hessian.products} Hessian products at "
                f"`tol`={tol:g}; take a larger one."
            ) from error
    return float(values[0]), vectors[:, 0]


def _flat(dW: Floats, dH: Floats) -> Floats:
    return np.concatenate([dW.ravel(), dH.ravel()])


@quiet
def hessian_spectrum(
    W: Any, H: Any, y: Any, k: int = 1, reduction: Reduction = "mean", *, seed: int = 0
) -> Floats:
    """The k largest eigenvalues of the Hessian of the loss (4), the largest of them the sharpness.

    Parameters
    ----------
    W : (K, d), H : (N, d) float32 or float64
    y : (N,) integers in 0..K-1
    k : int >= 1
        Fewer than the (K + N) d unknowns.
    reduction : "mean" or "sum"
    seed : int
        Of the vector that the iteration starts from.

    Returns
    -------
    (k,) float64, descending

    Raises
    ------
    TypeError, ValueError
        Shapes or dtypes that do not fit, NaN or infinity, or too large a `k`.
    ArithmeticError
        The iteration did not converge.

    Notes
    -----
    Lanczos with restarts (scipy's `eigsh`) on Hessian products, each of `12KNd` operations, again
    beside what was found until every multiple eigenvalue is complete; all eigenvalues of the dense
    Hessian for up to 300 unknowns. Relative to the loss, the products are
    exact at any margin; eigenvalues below the range of float64 are 0.

    Examples
    --------
    >>> import numpy as np, fastnc
    >>> values = fastnc.hessian_spectrum(np.zeros((2, 1)), np.ones((1, 1)), np.array([0]), k=2)
    >>> [abs(round(float(v), 6)) for v in values]
    [1.0, 0.0]
    """
    arrays.check_choice("reduction", reduction, ("mean", "sum"))
    k = arrays.check_count("k", k, 1)
    seed = arrays.check_count("seed", seed, 0)
    W64, H64, labels = arrays.checked_problem(W, H, y)
    size = W64.size + H64.size
    if k >= size:
        raise ValueError(f"`k` must be less than the {size} unknowns; got {k}.")
    from fastnc.kernels.cpu.threads import serial_blas

    at = Residuals(W64, H64, labels)
    scale = math.exp(min(at.log_loss, 709.0)) / (len(H64) if reduction == "mean" else 1)
    with serial_blas:
        if size <= _DENSE or k > size // 4:
            matrix = np.array([at.hessian_product(row) for row in np.eye(size)])
            found = eigh(0.5 * (matrix + matrix.T), eigvals_only=True)[-k:]
        else:
            try:
                found = _largest(at.hessian_product, size, k, np.random.default_rng(seed))
            except ArpackNoConvergence as error:
                raise ArithmeticError(f"{k} eigenvalues did not converge: {error}.") from error
    return np.sort(np.asarray(found, dtype=np.float64))[::-1] * scale


def _largest(
    product: Callable[[Floats], Floats], size: int, k: int, rng: np.random.Generator
) -> Floats:
    """The k largest eigenvalues, each as often as it is one.

    A Krylov space of one vector holds one vector of each eigenspace, and rounding alone brings in
    others. At collapse nearly all eigenvalues are multiple. So the iteration is run again beside
    the vectors that were found, until it finds nothing larger than the last of them.
    """
    values, vectors = np.empty(0), np.empty((size, 0))
    lowered = 0.0

    def beside(x: Floats) -> Floats:
        x = x.reshape(-1)
        along = vectors.T @ x
        out = product(x - vectors @ along)
        # Orthogonal to what was found, which is brought below all other eigenvalues.
        return np.asarray(out - vectors @ (vectors.T @ out + lowered * along))

    operator = LinearOperator((size, size), matvec=beside, dtype=np.float64)
    while True:
        more, directions = eigsh(
            operator, k=k, which="LA", v0=rng.standard_normal(size), ncv=max(20, 2 * k + 1),
            maxiter=1000, tol=1e-12,
        )  # fmt: skip
        lowered = max(lowered, 4.0 * float(np.abs(more).max()))
        if len(values) and more.max() <= values[-1] + _SAME * abs(values[0]):
            return values
        values = np.concatenate([values, more])
        kept = np.argsort(-values, kind="stable")[:k]
        values = values[kept]
        vectors = np.linalg.qr(np.hstack([vectors, directions])[:, kept])[0]
        if k == 1:
            return values
