"""descend on the rows of Table 1: the plain loop, the way down, the constraint, the bits."""

import numpy as np
import pytest
import torch

import fastnc
from fastnc import models as M
from fastnc._core.ranks import Alone
from fastnc.collapse.metrics import NAMES
from fastnc.dynamics import rank_snapshot
from fastnc.dynamics.snapshot import COLUMNS

ROWS = {
    "sphere": (M.sphere(4, 5, 6, 4.0), 2.0),
    "norm_constrained": (M.norm_constrained(4, 5, 3, 3.0, 2.0), 1.0),
    "normalized": (M.normalized(4, 5, 6, 3.0), 1.0),
    "weight_decay": (M.weight_decay(4, 5, 6, 0.02, 0.01), 1.0),
    "weight_decay, bias, smoothed": (M.weight_decay(4, 5, 6, 0.02, 0.01, True, 0.1), 1.0),
    "squared_error": (M.squared_error(4, 5, 6, 0.02, 0.01, bias=True), 0.5),
    "imbalanced_squared_error": (M.imbalanced_squared_error((9, 6, 3), 6, 0.02, 0.01), 0.5),
    "imbalanced": (M.imbalanced((9, 6, 3, 2), 6, 0.02, 0.01), 1.0),
    "relu_features": (M.relu_features((9, 6, 3), 6, 0.02, 0.01), 0.5),
}
row = pytest.mark.parametrize(("model", "lr"), ROWS.values(), ids=ROWS.keys())


@row
def test_goes_down_to_the_optimum_on_the_constraint(model, lr):
    seen = []
    run = fastnc.descend(model, lr=lr, epochs=6000, seed=1, snapshots=20, callback=seen.append)
    assert run.columns == ("epoch", *COLUMNS, "objective") and len(seen) == len(run)
    values = run["objective"]
    # Monotone for a step below the inverse curvature, to the rounding of two values, each a sum
    # near 1 over at most 20 samples, one rounding of 1.1e-16 a sample.
    assert np.diff(values).max() <= 4e-15
    best = model.optimum().value
    # The slowest direction, of curvature sqrt(lW lH) = 0.014 or more, shrinks by e^-40 or more;
    # rounding and the certificate are below 1e-12.
    assert values[-1] == pytest.approx(best, rel=1e-9) and values[-1] >= best - 1e-12
    assert model.violation(run.W, run.H) < 1e-14
    # What the last row says is of what the run returns, its bias among it.
    assert (run.bias is not None) == model.has_bias
    assert model.objective(run.W, run.H, run.bias) == values[-1]


@pytest.mark.parametrize("epochs", [1, 200])
def test_a_bias_is_in_the_loss_the_margin_and_the_decisions(epochs):
    """They were those of `W h` alone, so that a peeled run began beside where its run stopped."""
    model = M.weight_decay(4, 3, 6, 1e-3, 1e-3, bias=True)
    run = fastnc.descend(model, 1.0, epochs, seed=3)
    y, b = model.y, run.bias
    Z = run.H @ run.W.T + b
    own = Z[np.arange(len(y)), y][:, None]
    p = np.exp(Z - np.logaddexp.reduce(Z, axis=1)[:, None])
    gaps = np.where(np.eye(4, dtype=bool)[y], np.inf, own - Z)
    gradients = [x / len(y) for x in ((p - np.eye(4)[y]).T @ run.H, (p - np.eye(4)[y]) @ run.W)]
    g, theta = (np.concatenate([x.ravel() for x in xs]) for xs in (gradients, (run.W, run.H)))
    wanted = {
        "log_loss": np.log(np.mean(np.logaddexp.reduce(Z - own, axis=1))),
        "margin": gaps.min(),
        "grad_norm": np.linalg.norm(g),
        "beta": -(g @ theta) / np.linalg.norm(g) / np.linalg.norm(theta),
        "norm_W": np.linalg.norm(run.W),
    }
    assert {n: run[n][-1] for n in wanted} == pytest.approx(wanted, rel=1e-11)
    measured = fastnc.collapse_metrics(run.H, y, W=run.W, bias=b).as_dict()
    assert {n: run[n][-1] for n in NAMES} == pytest.approx({n: measured[n] for n in NAMES})
    peeled = fastnc.peel(run, epochs=1)
    rows = [[x[n][i] for n in COLUMNS] for x, i in ((peeled, 0), (run, -1))]
    np.testing.assert_array_equal(*rows)
    # As on a device, and as in the flow.
    W, H, b = map(torch.from_numpy, (run.W, run.H, b))
    chunks = rank_snapshot.measure(W, H, y, Alone(), bias=b)
    np.testing.assert_allclose([chunks[n] for n in COLUMNS], rows[1], rtol=1e-11)
    flow = fastnc.flow(model, 2.0)
    own = fastnc.collapse_metrics(flow.H, y, W=flow.W, bias=flow.bias)
    assert flow["margin"][-1] == pytest.approx(own.margin, rel=1e-12)


def test_one_epoch_is_the_formula():
    model = M.weight_decay(4, 5, 6, 0.02, 0.01)
    W, H = model.init(0)
    run = fastnc.descend(model, lr=0.3, epochs=3, W=W, H=H)
    Y = np.eye(4)[model.y]
    for _ in range(3):
        p = np.exp(H @ W.T)
        p = (p / p.sum(axis=1, keepdims=True) - Y) / len(Y)
        W, H = W - 0.3 * (p.T @ H + 0.02 * W), H - 0.3 * (p @ W + 0.01 * H)
    # A few ulp an epoch.
    np.testing.assert_allclose(run.W, W, atol=1e-14)
    np.testing.assert_allclose(run.H, H, atol=1e-14)


def test_the_sphere_keeps_what_the_ulpm_starts_from():
    # The same seed, up to the norm: runs of different rows can be laid side by side.
    free, bound = fastnc.ULPM(4, 5, 6), M.sphere(4, 5, 6, 7.0)
    (W, H), (V, G) = free.init(3), bound.init(3)
    scale = 7.0 / np.hypot(np.linalg.norm(W), np.linalg.norm(H))
    np.testing.assert_allclose(V, scale * W, rtol=1e-14)
    np.testing.assert_allclose(G, scale * H, rtol=1e-14)


@row
def test_resumed_and_single_precision_runs(model, lr, tmp_path):
    options = {"lr": lr, "seed": 2, "snapshots": 5}
    whole = fastnc.descend(model, epochs=60, **options)
    path = tmp_path / "checkpoint.npz"
    for epochs in (7, 31, 60):
        run = fastnc.descend(model, epochs=epochs, checkpoint=path, resume=True, **options)
    for name in ("W", "H", "bias") if model.has_bias else ("W", "H"):
        assert getattr(run, name).tobytes() == getattr(whole, name).tobytes()
    assert run["objective"].tobytes() == whole["objective"].tobytes()
    single = fastnc.descend(model, epochs=60, dtype="float32", **options)
    assert single.W.dtype == single.H.dtype == np.float32
    # 60 rounded epochs of a descent that does not amplify.
    assert single["objective"][-1] == pytest.approx(whole["objective"][-1], rel=1e-5)


def test_figure_2_of_a_row():
    from fastnc.plots import figure2

    run = fastnc.descend(ROWS["weight_decay"][0], lr=1.0, epochs=2000)
    assert len(figure2(run).axes) == 4
    # It collapses at a finite point, which the ULPM does not.
    assert run["within_class"][-1] < 1e-6 and run["norm_W"][-1] < 10


def test_a_step_that_is_too_large_is_told():
    with pytest.raises(fastnc.Diverged, match=r"the step `lr`=5000 is too large") as caught:
        fastnc.descend(M.weight_decay(4, 5, 6, 0.02, 0.01), lr=5000.0, epochs=2000)
    assert np.isfinite(caught.value.run["objective"]).all()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: fastnc.descend(M.separation(3, 2, 2)), "the separation problem has no gradient"),
        (lambda: fastnc.descend(M.seli((3, 2), 2)), "Use `fastnc.solve`, or descend on"),
        (lambda: fastnc.descend(ROWS["sphere"][0], batch_size=2), "`batch_size` and sphere do not"),
        (lambda: fastnc.descend(ROWS["sphere"][0], label_noise=0.1), "`label_noise` and sphere do"),
        (lambda: fastnc.descend(ROWS["sphere"][0], freeze="W"), "`freeze` and sphere do not go"),
        (lambda: fastnc.descend(ROWS["sphere"][0], schedule="loss-scaled"), "along log L, whose"),
    ],
)
def test_what_cannot_be_descended(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


@pytest.mark.parametrize("model", [M.norm_constrained(3, 2, 4, 3.0, 2.0), M.normalized(3, 2, 4, 5)])
def test_what_has_no_direction_cannot_be_given_a_length(model):
    W, H = model.init(0)
    H[:2] = 0.0
    if isinstance(model, M.norm_constrained):
        H[:] = 0.0
    with pytest.raises(ValueError, match=r"`H` must not be 0 where norm\w+ gives it a length"):
        fastnc.descend(model, epochs=10, W=W, H=H)
