"""The Newton systems of the gradient flow: `sigma I + b Hess L / L`, solved by its structure.

An implicit step of the flow has to solve with the Hessian of equation (4), `(K + N) d` unknowns
on a side. Nothing of that size is ever formed. With S_i = diag(p_i) - p_i p_i^T and r_i the
residual of sample i, both divided by the loss, G = W W^T and c = b / sigma,

    h-block of sample i     P_i = I + c W^T S_i W,  P_i^-1 = I - c W^T T_i W,
                            T_i = (I + c S_i G)^-1 S_i
    Schur complement in W   (I - c^2 r^T r) x I_d
                            + c sum_i V_i^T T_i V_i,   V_i = I_K x h_i^T - c W x r_i^T

so a factorisation costs `N K^2 d^2 + (K d)^3 / 3` and a solve `N K d + (K d)^2`, in place of
`(K + N)^3 d^3 / 3`: 100 unknowns for 1100 at K = 5, n = 10, d = 20. Where `K d` is large, MINRES
with Hessian products replaces the factorisation, `sigma` complex or real.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import get_lapack_funcs

from fastnc.dynamics.integrator.radau import joined, parted
from fastnc.theory.residuals import Residuals

Array = NDArray[Any]

# The relative error of an iterative solve, and the most products it may take.
ERROR, MOST_PRODUCTS = 3e-3, 2000


class FlowJacobian(NamedTuple):
    """`J = -b Hess L / L - diag(pull_W, pull_H)` at a point, b the flow's speed."""

    at: Residuals
    b: float
    pull_W: float = 0.0  # of the weight decays
    pull_H: float = 0.0


class DirectSolver:
    """`sigma I - J` by the elimination of every h_i, then one LU of K d unknowns; no decays."""

    def __init__(self, jacobian: FlowJacobian, sigma: complex) -> None:
        at = jacobian.at
        W, H, r = at.W, at.H, at.residuals
        (K, d), N = W.shape, len(H)
        self.sigma = sigma
        c = jacobian.b / sigma
        S = at.curvatures()
        self.T = T = np.linalg.solve(np.eye(K) + c * (S @ (W @ W.T)), S + 0.0 * c)
        self.W, self.H, self.r = (x.astype(T.dtype) for x in (W, H, r))
        self.c = T.dtype.type(c)
        schur = np.zeros((K, d, K, d), T.dtype)
        rows = max(1, 2_000_000 // (d * d + K * d))
        for i in range(0, N, rows):
            chunk = slice(i, i + rows)
            h, r_i, T_i = H[chunk], r[chunk], T[chunk]
            hh = (h[:, :, None] * h[:, None, :]).reshape(-1, d * d)
            schur += _product(T_i.reshape(-1, K * K), hh).reshape(K, K, d, d).transpose(0, 2, 1, 3)
            rh = (r_i[:, :, None] * h[:, None, :]).reshape(-1, K * d)
            mixed = _product((T_i @ W).reshape(-1, K * d), rh).reshape(K, d, K, d)
            mixed = c * mixed.transpose(0, 3, 2, 1)
            schur -= mixed
            schur -= mixed.transpose(2, 3, 0, 1)
            rr = (r_i[:, :, None] * r_i[:, None, :]).reshape(-1, K * K)
            squared = _product(T_i.reshape(-1, K * K), rr).T.reshape(K * K, K, K)
            by_features = (W.T @ squared @ W).reshape(K, K, d, d)
            schur += (c * c) * by_features.transpose(0, 2, 1, 3)
        schur *= c
        diagonal = np.eye(K) - (c * c) * (r.T @ r)
        schur[:, np.arange(d), :, np.arange(d)] += diagonal
        matrix = schur.reshape(K * d, K * d)
        (factor,) = get_lapack_funcs(("getrf",), (matrix,))
        # Symmetric: its transpose is itself, and is in the order of columns that LAPACK wants.
        self._lu, self._pivots, singular = factor(matrix.T, overwrite_a=True)
        if singular:
            raise np.linalg.LinAlgError("the Schur complement of a step is singular")

    def solve(self, right: Array) -> Array:
        """The unknowns, in the order of a row of `right`: W by rows, then H by rows.

        As `S_i W P_i^-1 = T_i W`, neither way through the elimination needs S again:
        the right-hand side of the Schur complement is `b_W - c (T_b^T H + r^T P^-1 b_H)`.
        """
        from fastnc.kernels.cpu.flow import solve

        b = joined(right) / self.sigma
        out = np.empty_like(b)
        solve(self.W, self.H, self.r, self.T, self.c, self._lu, self._pivots, b, out)
        return parted(out)


class KrylovSolver:
    """`sigma I - J` by Hessian products only, sigma real or complex."""

    def __init__(self, jacobian: FlowJacobian, sigma: complex) -> None:
        self.jacobian, self.sigma = jacobian, sigma
        at, parts = jacobian.at, 2 if isinstance(sigma, complex) else 1
        shape = parts, at.W.size + at.H.size
        # Kept from solve to solve, as fresh memory costs as much as a product.
        self._room = np.empty((5, *shape))
        self._like_Z = np.empty((2, *at.residuals.shape))

    def solve(self, right: Array) -> Array:
        """The unknowns to a relative error of `ERROR`, which Newton's iteration reduces further.

        NaN where `MOST_PRODUCTS` products do not suffice: the step is then halved.
        """
        from fastnc.kernels.cpu.flow import minimal_residual

        at, b, pull_W, pull_H = self.jacobian
        out = np.empty_like(right)
        found = minimal_residual(
            at.W, at.H, at.y, at.scaled, at.weights, at.residuals, b, pull_W, pull_H,
            complex(self.sigma), right, ERROR, MOST_PRODUCTS, self._room, self._like_Z, out,
        )  # fmt: skip
        if not found:
            out[:] = np.nan
        return out


def _product(A: Array, B: Array) -> Array:
    """`A^T B` with B real: a complex A costs twice a real one, not four times."""
    if np.iscomplexobj(A):
        return np.asarray(A.real.T @ B + 1j * (A.imag.T @ B))
    return np.asarray(A.T @ B)
