"""NumPy's scalars as arguments: they are numbers, and do not compute in their own few bits."""

import math
from fractions import Fraction

import numpy as np
import pytest

import fastnc
from fastnc import models, rules, theory

# All have an exact value in each of these types, so that results must agree to the last bit.
COUNTS = [np.uint8, np.int8, np.int32, np.uint64]
REALS = [np.float16, np.float32, np.float64, Fraction]


@pytest.mark.parametrize("count", COUNTS)
def test_counts_of_few_bits_give_optima_of_all_digits(count):
    """Zhu et al.'s closed form; `np.sqrt(np.uint8(100))` would have three digits."""
    K, n, lW, lH = 10, 100, 2.0**-10, 2.0**-11
    c = math.sqrt(n * lW * lH)
    a = math.log(1.0 / c - K + 1.0)
    want = math.log1p((K - 1) * math.exp(-a)) + c * (K - 1) * a
    model = models.weight_decay(count(K), count(n), count(20), lW, lH)
    # A dozen operations of rounding 1e-16 each.
    assert model.optimum().value == pytest.approx(want, rel=1e-14)
    assert repr(model) == repr(models.weight_decay(K, n, 20, lW, lH))
    squared = models.squared_error(count(K), count(n), count(20), lW, lH)
    assert squared.optimum().value == pytest.approx(K * (c - K * c * c / 2), rel=1e-14)


@pytest.mark.parametrize("count", COUNTS)
def test_counts_of_few_bits_elsewhere(count):
    model = fastnc.ULPM(3, 5, 4)
    W, H = model.init(1)
    # The dense Hessian by differences of gradients is accurate to 1e-7 or so.
    found = fastnc.hessian_spectrum(W, H, model.y, count(3))
    theta, step = np.concatenate([W.ravel(), H.ravel()]), 1e-5

    def gradient(x):
        grads = fastnc.loss_and_grads(x[:12].reshape(3, 4), x[12:].reshape(15, 4), model.y)[1:]
        return np.concatenate([g.ravel() for g in grads])

    dense = [
        (gradient(theta + step * e) - gradient(theta - step * e)) / (2 * step)
        for e in np.eye(len(theta))
    ]
    want = np.linalg.eigvalsh(0.5 * (np.array(dense) + np.array(dense).T))[::-1][:3]
    np.testing.assert_allclose(found, want, rtol=1e-6)
    # The norms of SELI means are those of any precision: sqrt(100) is not rounded here, sqrt(120)
    # is.
    sizes = np.array([100, 120, 3], count)
    assert theory.limits(sizes, count(20)) == theory.limits([100, 120, 3], 20)
    flow = theory.AlignedFlow(count(10), count(100), 0.5, 0.25)
    assert flow.conserved == 0.25 - 100 / 16


@pytest.mark.parametrize("real", REALS)
def test_reals_of_few_bits(real):
    example = theory.Example31(real(1.375))
    assert example.x == 2 * 1.375**2
    assert example.loss == pytest.approx(8 * math.log1p(math.exp(-2 * 1.375**2)), rel=1e-14)
    W, H, _ = theory.collapsed(real(7.5), 10, 100, 20)
    assert np.vdot(W, W) + np.vdot(H, H) == pytest.approx(7.5**2, rel=1e-14)
    schedule = rules.Cosine(real(0.375), 120, real(0.125))
    want = 0.125 + 0.125 * (1 + math.cos(math.pi * 7 / 120))
    assert schedule(7) == pytest.approx(want, rel=1e-15)
    power = rules.Power(real(0.375), real(0.5))
    assert power(7) == pytest.approx(0.375 / math.sqrt(8), rel=1e-15)
    assert rules.WarmUp(real(0.375), 100)(7) == pytest.approx(0.375 * 0.08, rel=1e-15)
    assert rules.Steps(real(0.375), (3, 9), real(0.5))(7) == 0.1875


@pytest.mark.parametrize("real", REALS)
def test_step_sizes_are_one_number_in_any_type(real):
    """One step in NumPy: the kernels knew no type for half precision."""
    model = fastnc.ULPM(3, 4, 5)
    W, H = model.init(2)
    logits = H @ W.T
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    p[np.arange(12), model.y] -= 1.0
    want = W - 0.375 * (p.T @ H) / 12
    fastnc.gradient_step(W, H, model.y, real(0.375))
    np.testing.assert_allclose(W, want, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("real", REALS)
def test_rules_are_the_same_text_in_any_type(real, tmp_path):
    """A checkpoint knows its rule by its text: numpy's scalars must not be in it."""
    path = tmp_path / "checkpoint.npz"
    model = fastnc.ULPM(3, 4, 5)
    given = rules.Adam(real(0.25), (real(0.75), real(0.875)), real(0.125), real(0.5))
    assert repr(given) == repr(rules.Adam(0.25, (0.75, 0.875), 0.125, 0.5))
    fastnc.descend(model, rule=given, epochs=5, checkpoint=path)
    plain = rules.Adam(0.25, (0.75, 0.875), 0.125, 0.5)
    whole = fastnc.descend(model, rule=plain, epochs=9)
    gone_on = fastnc.descend(model, rule=plain, epochs=9, checkpoint=path, resume=True)
    assert np.array_equal(whole.W, gone_on.W)


def test_the_second_argument_of_sharpness_awareness_is_its_radius():
    model = fastnc.ULPM(3, 4, 5)
    W, H = model.init(0)

    def gradients(W, H):
        p = np.exp(H @ W.T)
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(12), model.y] -= 1.0
        return p.T @ H / 12, p @ W / 12

    up_W, up_H = gradients(W, H)
    length = math.hypot(np.linalg.norm(up_W), np.linalg.norm(up_H))
    step = gradients(W + 0.2 * up_W / length, H + 0.2 * up_H / length)[0]
    run = fastnc.descend(model, rule=rules.SharpnessAware(0.5, 0.2), epochs=1)
    np.testing.assert_allclose(run.W, W - 0.5 * step, rtol=1e-13, atol=1e-15)


def test_widths_and_decays_of_a_deep_model_may_be_arrays():
    model = models.deep_linear(3, 2, np.array([4, 5]), np.full(3, 0.25))
    assert model == models.deep_linear(3, 2, (4, 5), 0.25)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rules.Polyak(least=-1.0), "`least` must be a number of at least 0"),
        (lambda: rules.Power(0.1, math.nan), "`exponent` must be a finite number"),
        (lambda: rules.Steps(0.1, (3.7,)), "`at_epochs` must be an integer of at least 0; got 3.7"),
        (lambda: rules.Steps(0.1, 7), "`at_epochs` must list epochs; got 7"),
        (lambda: theory.Example31().path(math.nan), "`t` must be a finite number"),
        (lambda: theory.Example31().printed_path("x"), "`beta` must be a finite number"),
        (lambda: theory.AlignedFlow(3, 2, 1.0, 1.0).gap(math.inf), "`log_time` must be a finite"),
        (lambda: theory.AlignedFlow(3, 2, 1.0, 1.0).log_time(math.nan), "`gap` must be a finite"),
        (lambda: theory.AlignedFlow(3, 2, 1.0, 1.0).point(2.5), "`dim` must be an integer"),
    ],
)
def test_what_is_no_number_is_refused(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


@pytest.mark.parametrize(
    ("frozen", "message"),
    [
        (np.zeros((6, 3)), r"`frozen` must have shape \(6, 2\); got \(6, 3\)"),
        (np.full((6, 2), np.nan), "`frozen` must be finite"),
        ("x", "`frozen` must"),
    ],
)
def test_frozen_coordinates_are_looked_at(frozen, message):
    flow = theory.AlignedFlow(3, 2, 1.0, 1.0)
    assert flow.point(4, [[0.0, 0.0]] * 6)[1].shape == (6, 4)
    with pytest.raises((TypeError, ValueError), match=message):
        flow.point(4, frozen)
