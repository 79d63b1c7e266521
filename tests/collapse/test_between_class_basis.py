"""The two forms of a mean's directions against NumPy's pseudo-inverse, and the choice of one."""

import numpy as np
import pytest

from fastnc.collapse.between_class_basis import directions, whitening
from fastnc.collapse.conventions import sample_mean_gap


def centred(P, d, seed=0):
    C = np.random.default_rng(seed).standard_normal((P, d))
    return C - C.mean(axis=0), np.arange(1.0, P + 1)


def agree(found, C, sizes, tolerance):
    inverse = np.linalg.pinv(C.T @ C, rcond=1e-12, hermitian=True)
    got = (found.Q.T * found.weights) @ found.Q
    scale = np.abs(inverse).max()
    assert np.abs(got - inverse).max() <= tolerance * scale
    gap = sample_mean_gap(C, sizes)
    tilt, wanted = found.tilt @ found.Q, len(C) * inverse @ gap
    assert np.abs(tilt - wanted).max() <= tolerance * np.abs(wanted).max()
    assert abs(found.gain - (1 + gap @ wanted)) <= tolerance * found.gain


@pytest.mark.parametrize("P, d", [(2, 1), (2, 9), (7, 7), (60, 200), (8, 7), (300, 20)])
@pytest.mark.parametrize("find", [directions, whitening])
def test_the_pseudo_inverse(find, P, d):
    C, sizes = centred(P, d)
    # Some roundings times a condition number of at most 1e4; (8, 7) is square but for its centre.
    agree(find(C, sizes), C, sizes, 1e-9)


def test_a_well_conditioned_geometry_needs_no_eigenvectors():
    for P, d in ((60, 200), (300, 20)):
        found = whitening(*centred(P, d))
        assert found.A.shape == (0, len(found.Q)) and (found.weights == 1.0).all()


@pytest.mark.parametrize(
    "case", ["two means alike", "few dimensions", "long and short", "all alike"]
)
def test_others_have_them(case):
    C, sizes = centred(60, 200)
    match case:
        case "two means alike":
            C[1] = C[0]
        case "few dimensions":
            C = C[:, :5] @ np.random.default_rng(1).standard_normal((5, 200))
        case "long and short":
            C *= np.logspace(0, -9, 200)
        case "all alike":
            C[:] = 0.0
    C -= C.mean(axis=0)
    found, wanted = whitening(C, sizes), directions(C, sizes)
    assert len(found.A) == 60
    for a, b in zip(found, wanted, strict=True):
        assert np.array_equal(a, b)
