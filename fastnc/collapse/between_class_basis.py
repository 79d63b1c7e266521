"""The directions of class means, onto which a second pass projects deviations, in two forms."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastnc.collapse.conventions import sample_mean_gap

Floats = NDArray[np.float64]
# An estimate of 1 / cond below which a Cholesky factor is not used: its solutions err by about
# cond times a rounding, and NC1 is to have ten digits.
LEAST_RCOND = 1e-5


class Directions(NamedTuple):
    """Of the centred class means C (P, d): the pseudo-inverse of C^T C is Q^T diag(weights) Q.

    If A has rows, C = A Q and Q is orthonormal; else neither need hold. `tilt` and
    `gain = 1 + gap^T Sigma_B^+ gap` correct NC1 for the mean of all samples as g.
    """

    Q: Floats
    weights: Floats
    A: Floats
    tilt: Floats
    gain: float


def directions(C: Floats, sizes: Floats) -> Directions:
    """The orthonormal directions of the centred means C (P, d) of classes with `sizes` (P,)."""
    from fastnc.kernels.cpu.basis import basis
    from fastnc.kernels.cpu.blas import gemm_address

    Q, weights, A = basis(gemm_address(C.dtype), C)
    return _tilted(C, sizes, Q, weights, A)


def whitening(C: Floats, sizes: Floats) -> Directions:
    """A Q with weights of 1 and no A, by Cholesky; `directions` where C is not well-conditioned.

    With `G = C C^T + s 11^T`, which restores the rank lost by centring C, `Q = G^{-1} C`: as
    `C^T 1 = 0`, any s > 0 gives `Q^T Q = (C^T C)^+`. With fewer features than classes it is
    `L^{-1}`, `L L^T = C^T C`. A third of the time of eigenvectors.
    """
    from fastnc.kernels.cpu.basis import unit_of

    unit = unit_of(C)
    found = _whitened(C / unit)
    if found is None:
        return directions(C, sizes)
    Q = found / unit
    return _tilted(C, sizes, Q, np.ones(len(Q)), np.empty((0, len(Q))))


def _whitened(C: Floats) -> Floats | None:
    """The Q of `whitening`, or None where C is not well-conditioned."""
    from scipy.linalg import blas, lapack

    P, d = C.shape
    # C.T is in Fortran's order, and needs no copy.
    gram = blas.dsyrk(1.0, C.T, trans=int(d >= P), lower=1)
    if d >= P:
        gram += np.trace(gram) / (P * (P - 1))
    lower = np.abs(np.tril(gram))
    norm = (lower.sum(axis=0) + lower.sum(axis=1) - lower.diagonal()).max()
    factor, failed = lapack.dpotrf(gram, lower=1)
    rcond = 0.0 if failed else lapack.dpocon(factor, norm, uplo="L")[0]
    if not rcond > LEAST_RCOND:
        return None
    if d >= P:
        half = blas.dtrsm(1.0, factor, C.T, side=1, lower=1, trans_a=1)
        Q = blas.dtrsm(1.0, factor, half, side=1, lower=1, overwrite_b=1).T
    else:
        Q = lapack.dtrtri(factor, lower=1)[0]
    return np.ascontiguousarray(Q)


def _tilted(C: Floats, sizes: Floats, Q: Floats, weights: Floats, A: Floats) -> Directions:
    along = Q @ sample_mean_gap(C, sizes)
    tilt = len(C) * weights * along
    return Directions(Q, weights, A, tilt, 1.0 + float(tilt @ along))
