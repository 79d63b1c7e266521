"""Neural regression collapse against its definitions, step by step."""

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.optimize import minimize_scalar

import fastnc


def problem(N=60, d=8, n=3, seed=0):
    rng = np.random.default_rng(seed)
    Y = rng.standard_normal((N, n)) @ rng.standard_normal((n, n))
    # Not about 0: whether the directions are centred tells the definitions apart.
    H = Y @ rng.standard_normal((n, d)) + 0.3 * rng.standard_normal((N, d)) + 0.2
    return H, Y, rng.standard_normal((n, d))


def definitions(H, Y, W):
    X = H - H.mean(axis=0)
    E = H / np.linalg.norm(H, axis=1, keepdims=True)
    n = Y.shape[1]
    vectors = np.linalg.eigh(X.T @ X)[1][:, -n:]
    P, P_W = vectors @ vectors.T, W.T @ np.linalg.inv(W @ W.T) @ W
    covariance = (Y - Y.mean(axis=0)).T @ (Y - Y.mean(axis=0)) / len(Y)
    A = W @ W.T / np.linalg.norm(W @ W.T)
    S = sqrtm(covariance).real

    def distance(g):
        B = S - np.sqrt(g) * np.eye(n)
        return ((A - B / np.linalg.norm(B)) ** 2).sum()

    top = np.linalg.eigvalsh(covariance)[0]
    # The least of 400 starts, each refined: the function has one minimum or ends at a border.
    grid = np.linspace(0.0, top, 400)
    best = grid[np.argmin([distance(g) for g in grid])]
    near = minimize_scalar(
        distance, bounds=(max(best - top / 400, 0), min(best + top / 400, top)), method="bounded",
        options={"xatol": 1e-12},
    )  # fmt: skip
    return {
        "nrc1": ((E - E @ P) ** 2).sum(axis=1).mean(),
        "nrc2": ((E - E @ P_W) ** 2).sum(axis=1).mean(),
        "nrc3": min(near.fun, distance(0.0), distance(top)),
    }


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("n", [2, 3])
def test_the_definitions(seed, n):
    H, Y, W = problem(n=n, seed=seed)
    told = fastnc.regression_metrics(H, Y, W)
    for name, value in definitions(H, Y, W).items():
        # The oracle inverts and searches; its minimum is flat to some 1e-9.
        assert told.as_dict()[name] == pytest.approx(value, rel=1e-7, abs=1e-9), name
    assert (told.n_samples, told.dim, told.n_targets) == (60, 8, n)


def test_collapse_is_zero():
    """W W^T proportional to Sigma^(1/2) - c I, and features in the span of its rows."""
    _, Y, _ = problem()
    covariance = np.cov(Y.T, bias=True)
    values, vectors = np.linalg.eigh(covariance)
    c = 0.5 * np.sqrt(values[0])
    W = np.zeros((3, 8))
    W[:, :3] = (vectors * np.sqrt(np.sqrt(values) - c)) @ vectors.T
    told = fastnc.regression_metrics((Y - Y.mean(axis=0)) @ W, Y, W)
    # Rounding of vectors of norm 1, squared; of the quotient of two matrices, squared.
    assert told.nrc1 < 1e-28 and told.nrc2 < 1e-28 and told.nrc3 < 1e-28
    assert told.nrc3_gamma == pytest.approx(c * c, rel=1e-6)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("scale", [1.0, 1e30])
def test_features_that_vary_in_fewer_directions_than_there_are_targets(dtype, scale):
    """P is on the one that there is, in whichever coordinates they are given."""
    rng = np.random.default_rng(2)
    u, at, Y = np.array([1.0, 2.0, 0.0, 0.0]), np.array([0, 0, 1.0, 3.0]), rng.normal(size=(30, 2))
    H = rng.normal(size=(30, 1)) * u + at
    # What is orthogonal to u: the mean, of length sqrt(10).
    wanted = (10.0 / (H**2).sum(axis=1)).mean()
    for seed in range(3):
        Q = np.linalg.qr(np.random.default_rng(seed).normal(size=(4, 4)))[0]
        told = fastnc.regression_metrics((scale * H @ Q).astype(dtype), Y).nrc1
        # Rounding of the features: 6e-8 of numbers of 10, beside directions of length 1.
        assert told == pytest.approx(wanted, rel=1e-12 if dtype == "float64" else 1e-5)


def test_one_target_torch_and_no_classifier():
    torch = pytest.importorskip("torch")
    H, Y, W = problem(n=1)
    told = fastnc.regression_metrics(H, Y[:, 0], W)
    assert told.nrc3 == pytest.approx(0.0, abs=1e-30)
    again = fastnc.regression_metrics(*map(torch.from_numpy, (H, Y, W)))
    assert again == told
    bare = fastnc.regression_metrics(H, Y)
    assert bare.nrc2 is None and bare.flat("r/") == {"r/nrc1": told.nrc1}


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ((np.zeros(3), np.zeros(3)), ValueError, r"`H` must have 2 dimensions"),
        ((np.ones((1, 2)), np.ones(1)), ValueError, r"with at least 2 samples; got \(1, 2\)"),
        (
            (np.eye(3), np.ones(2)),
            ValueError,
            r"`targets` must have shape \(3, 'any'\); got",
        ),
        ((np.eye(3), np.eye(3)[:, :1], np.eye(3)), ValueError, r"`W` must have shape \(1, 3\)"),
        (
            (np.eye(3), np.array(["a", "b", "c"])),
            TypeError,
            r"`targets` must hold real",
        ),
        ((np.eye(3), np.ones(3), np.ones((1, 3))), ValueError, r"vary in every direction"),
        ((np.eye(3)[:, :1], np.eye(3)), ValueError, r"`targets` must have at most 1 columns"),
        ((np.eye(3) * np.nan, np.ones(3)), ValueError, r"`H` must be finite"),
    ],
)
def test_one_sentence_for_each_mistake(arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        fastnc.regression_metrics(*arguments)


def test_nrc3_does_not_depend_on_the_length_of_w():
    rng = np.random.default_rng(0)
    H, targets, W = (rng.normal(size=s) for s in ((40, 5), (40, 2), (2, 5)))
    wanted = fastnc.regression_metrics(H, targets, W).nrc3
    for scale in (1e-150, 1e-80, 1e80, 1e150):
        # A product and a quotient more.
        assert fastnc.regression_metrics(H, targets, scale * W).nrc3 == pytest.approx(wanted, 1e-12)
