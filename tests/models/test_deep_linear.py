"""Deep linear unconstrained features: the closed form against BFGS, balancedness, refusals."""

import model_oracles as oracles
import numpy as np
import pytest
import torch

import fastnc
from fastnc import models as M


def objective(sizes, decays):
    """H_1, W_1, ..., W_M as torch blocks; the definition of the docstring."""
    y = oracles.labels(sizes)
    Y = torch.nn.functional.one_hot(y, len(sizes)).double()

    def of(H, *layers):
        Z = H
        for W in layers:
            Z = Z @ W.T
        loss = (Z - Y).square().sum() / (2 * len(Y))
        for decay, x in zip(decays, (H, *layers), strict=True):
            loss = loss + decay / 2 * x.square().sum()
        return loss

    return of


# Three and four factors of unequal decays; widths below K; a penalty that wins.
@pytest.mark.parametrize(
    ("K", "n", "widths", "decays"),
    [
        (3, 2, (3, 4), (2e-3, 3e-3, 1e-3)),
        (3, 1, (3, 3, 4), (5e-3, 1e-3, 2e-3, 1e-3)),
        (4, 1, (2, 6), (1e-3, 1e-3, 2e-3)),
        (3, 2, (4, 4), (0.3, 0.2, 0.1)),
    ],
)
def test_the_closed_form_is_what_bfgs_finds(K, n, widths, decays):
    model = M.deep_linear(K, n, widths, decays)
    optimum, plain = model.optimum(), objective([n] * K, decays)
    best, found = oracles.least(plain, model.shapes, starts=4)
    # BFGS ends at gradients of 1e-9 against a curvature of a decay.
    assert optimum.value == pytest.approx(best, rel=1e-9)
    assert oracles.value(plain, *optimum.layers) == pytest.approx(optimum.value, rel=1e-12)
    if min(widths) >= K:
        # Rotations of each width aside; errors of the point are of the gradient's over a decay.
        np.testing.assert_allclose(optimum.gram_W, found[-1] @ found[-1].T, atol=1e-4)
    assert np.array_equal(optimum.H, model.features(optimum.layers))
    assert fastnc.solve(model).gap < 1e-8


def test_one_layer_is_squared_error_and_gradients_are_torchs():
    model = M.deep_linear(4, 5, (6,), (2e-3, 7e-3))
    shallow = M.squared_error(4, 5, 6, 7e-3, 2e-3)
    assert model.optimum().value == pytest.approx(shallow.optimum().value, rel=1e-14)
    np.testing.assert_array_equal(model.init(3)[0], shallow.init(3)[0])
    model = M.deep_linear(3, 4, (5, 2, 6), (1e-2, 2e-2, 0.3, 4e-2))
    layers = model.start(1)
    value, gradients = model.value_and_gradients(layers)
    blocks = [torch.from_numpy(x).requires_grad_() for x in layers]
    loss = objective([4] * 3, model.weight_decays)(*blocks)
    loss.backward()
    # Rounding.
    assert value == pytest.approx(loss.item(), rel=1e-14)
    for mine, block in zip(gradients, blocks, strict=True):
        np.testing.assert_allclose(mine, block.grad.numpy(), atol=1e-14)


def test_without_decay_the_labels_are_met_and_a_number_is_everybodys_decay():
    free = M.deep_linear(3, 2, (4, 4), 0.0)
    assert free.optimum().value == 0.0 and fastnc.solve(free).value < 1e-20
    # Two of three directions fit: the third one's labels are lost.
    assert M.deep_linear(3, 2, (2, 4), 0).optimum().value == pytest.approx(1 / 6, rel=1e-14)
    assert M.deep_linear(3, 2, (4, 4), 0.1).weight_decays == (0.1, 0.1, 0.1)
    # Balanced where all decays are equal.
    best = M.deep_linear(3, 2, (4, 4), 1e-2)
    assert best.balancedness(best.optimum().layers) < 1e-14
    assert best.balancedness(best.start(0)) > 0.1


def test_from_three_factors_on_zero_is_a_local_minimum():
    model = M.deep_linear(3, 2, (4, 4), 1e-2)
    zero = tuple(np.zeros(shape) for shape in model.shapes)
    value = model.objective(zero)
    rng = np.random.default_rng(0)
    for _ in range(20):
        near = tuple(0.05 * rng.standard_normal(shape) for shape in model.shapes)
        assert model.objective(near) > value > model.optimum().value


def test_flow_conserves_the_balancedness_and_decays_shrink_it():
    model = M.deep_linear(2, 1, (2, 3), 0.0)
    run = fastnc.flow(model, 3, snapshots=5)
    # Ten times the tolerance of 1e-8.
    np.testing.assert_allclose(run["balancedness"], run["balancedness"][0], rtol=1e-7)
    assert run["objective"][-1] < 1e-20 and len(run.layers) == 3
    (H, W1, W2), (H0, V1, V2) = run.layers, model.start(0)
    np.testing.assert_allclose(W2.T @ W2 - W1 @ W1.T, V2.T @ V2 - V1 @ V1.T, atol=1e-7)
    np.testing.assert_allclose(W1.T @ W1 - H.T @ H, V1.T @ V1 - H0.T @ H0, atol=1e-7)

    model = M.deep_linear(2, 1, (2, 2), 1e-2)
    run = fastnc.flow(model, snapshots=5)
    expected = run["balancedness"][0] * np.exp(-0.02 * 10.0 ** run["log10_time"])
    # What is left of it at late times is rounding.
    np.testing.assert_allclose(run["balancedness"], expected, rtol=1e-6, atol=1e-7)
    assert run["objective"][-1] == pytest.approx(model.optimum().value, rel=1e-12)


def test_descent_reaches_the_optimum_stops_and_resumes(tmp_path):
    model, rule = M.deep_linear(3, 2, (4, 5), 1e-2), fastnc.rules.Momentum(0.2)
    path = tmp_path / "checkpoint.npz"
    run = fastnc.descend(model, rule=rule, epochs=2000, snapshots=2)
    assert run["objective"][-1] == pytest.approx(model.optimum().value, rel=1e-9)
    for epochs in (7, 500, 2000):
        again = fastnc.descend(
            model, rule=rule, epochs=epochs, snapshots=2, checkpoint=path, resume=True
        )
    for x, y in zip(run.layers, again.layers, strict=True):
        assert x.tobytes() == y.tobytes()
    kept = fastnc.Trajectory.load(again.save(tmp_path / "run.npz"))
    assert [x.shape for x in kept.layers] == list(model.shapes)
    # Logits from what is shown and from all layers.
    logits = kept.layers[0] @ kept.layers[1].T @ kept.layers[2].T
    np.testing.assert_allclose(kept.H @ kept.W.T, logits, atol=1e-14)
    frozen = fastnc.descend(model, rule=rule, epochs=5, snapshots=2, freeze="W")
    assert np.array_equal(frozen.W, model.start(0)[-1])
    assert not np.array_equal(frozen.layers[1], model.start(0)[1])
    single = fastnc.descend(model, rule=rule, epochs=2000, snapshots=2, dtype="float32")
    assert single["objective"][-1] == pytest.approx(model.optimum().value, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (((), 0.1), "`widths` must list at least one width; got none"),
        ((4, 0.1), "`widths` must list the width of each layer; got 4"),
        (((4, 0), 0.1), r"`widths\[1\]` must be an integer of at least 1; got 0"),
        (((4, 4), (0.1, 0.1)), "`weight_decays` must list 3 numbers, of the features and"),
        (((4,), (0.1, 0.0)), r"`weight_decays\[1\]` must be a positive number; got 0.0"),
        (((4,), -1.0), "`weight_decays` must be a number of at least 0; got -1.0"),
    ],
)
def test_refusals(arguments, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        M.deep_linear(3, 2, *arguments)


def test_starts_of_ones_own():
    model = M.deep_linear(3, 2, (4, 5), 1e-2)
    W, H = model.init(1)
    run = fastnc.descend(model, 0.1, 1, W=W, H=H)
    assert run.W.shape == (3, 5) and run.layers[0].shape == (6, 4)
    with pytest.raises(ValueError, match="`H` must have 4 columns; got shape"):
        fastnc.descend(model, 0.1, 1, W=W, H=np.zeros((6, 5)))
