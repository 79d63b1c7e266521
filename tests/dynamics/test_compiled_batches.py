"""Minibatches in the compiled loop: the NumPy loop's steps, its draws, its bits in a sweep."""

import numpy as np
import pytest

import fastnc
from fastnc.dynamics.gradients import MiniBatch
from fastnc.dynamics.randomness import Draws
from fastnc.dynamics.steppers import batches

R = fastnc.rules
Y = np.array([3, 0, 3, 3, 1, 0, 3, 1, 1, 0, 3, 3, 1])
MODEL = fastnc.ULPM(4, dim=3, labels=Y)
# Rule, whether samples are drawn with replacement, dtype, and the tolerance of 60 epochs: up to 780
# steps of a few ulp; in float32 of what gradients round, which Adam divides by.
CASES = {
    "plain": (R.GradientDescent((R.Cosine(0.5, 60), 0.8)), False, "float64", 1e-11),
    "plain, drawn": (R.GradientDescent(0.5), True, "float32", 1e-5),
    "decayed": (R.GradientDescent(0.5, weight_decay=0.1), False, "float64", 1e-11),
    "heavy ball": (R.Momentum(R.Power(0.2, 0.5), 0.9), False, "float32", 1e-5),
    "nesterov, drawn": (R.Momentum((0.1, 0.2), 0.8, nesterov=True), True, "float64", 1e-11),
    "adam, drawn": (R.Adam(R.Cosine(1e-2, 60)), True, "float32", 1e-3),
    "adamw": (R.AdamW((1e-2, 2e-2), weight_decay=0.1), False, "float64", 1e-11),
}
case = pytest.mark.parametrize("name", CASES)


@case
def test_the_compiled_loop_and_the_numpy_one_agree(name, monkeypatch):
    """13 samples in batches of 1, of 4 or 5, of 9 and of all; an absent class; no whole vector."""
    rule, replacement, dtype, atol = CASES[name]
    for size in (1, 5, 9, 13):
        options = {
            "rule": rule, "epochs": 60, "batch_size": size, "dtype": dtype, "snapshots": 2,
            "seed": 4, "replacement": replacement,
        }  # fmt: skip
        assert batches.serves(MODEL, rule, MiniBatch(Y, size, replacement, 0))
        run = fastnc.descend(MODEL, **options)
        with monkeypatch.context() as patch:
            patch.setattr(batches, "serves", lambda model, rule, source: False)
            other = fastnc.descend(MODEL, **options)
        np.testing.assert_allclose(run.W, other.W, rtol=0, atol=atol)
        np.testing.assert_allclose(run.H, other.H, rtol=0, atol=atol)


@case
def test_stopped_runs_and_sweeps_have_the_bits_of_each_alone(name, tmp_path):
    rule, replacement, dtype, _ = CASES[name]
    options = {"batch_size": 5, "snapshots": 2, "dtype": dtype, "replacement": replacement}
    alone = fastnc.descend(MODEL, rule=rule, epochs=300, seed=7, **options)
    runs = fastnc.sweep(MODEL, rules=[rule], epochs=300, seeds=[0, 7], threads=2, **options)
    assert runs[1].W.tobytes() == alone.W.tobytes() and runs[1].H.tobytes() == alone.H.tobytes()
    path = tmp_path / "checkpoint.npz"
    for epochs in (1, 77, 300):
        again = fastnc.descend(
            MODEL, rule=rule, epochs=epochs, seed=7, **options, checkpoint=path, resume=True
        )
    assert again.W.tobytes() == alone.W.tobytes() and again.H.tobytes() == alone.H.tobytes()


@pytest.mark.parametrize("freeze", ["W", "H"])
def test_a_frozen_factor_stays(freeze):
    start = dict(zip("WH", MODEL.init(0, "float32"), strict=True))
    run = fastnc.descend(
        MODEL, rule=R.Momentum(0.5), epochs=30, freeze=freeze, batch_size=5, dtype="float32"
    )
    assert np.array_equal(getattr(run, freeze), start[freeze])


def test_draws_are_those_of_splitmix64():
    """Words, the upper half of their products and the shuffle, in Python's integers."""
    draws, n = Draws(5, 2), 1000
    mask = (1 << 64) - 1

    def word(count):
        z = int(draws.key) + (count + 1) * 0x9E3779B97F4A7C15 & mask
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        return z ^ z >> 31

    order = list(range(n))
    for i in range(n):
        j = word(i) * (i + 1) >> 64
        order[i], order[j] = order[j], i
    assert draws.order(n).tolist() == order and sorted(order) == list(range(n))
    drawn = draws.numbers(17, 50)
    assert drawn.tolist() == [word(n + i) * 17 >> 64 for i in range(50)]
    assert draws.words().tolist() == [n + 50]


def test_every_order_is_as_likely_as_another():
    """24 orders of four, 24,000 draws: chi-squared of 23 degrees of freedom."""
    draws = Draws(0, 2)
    codes = [int("".join(map(str, draws.order(4)))) for _ in range(24_000)]
    _, counts = np.unique(codes, return_counts=True)
    assert len(counts) == 24
    # One draw in a million is above 79.
    assert ((counts - 1000.0) ** 2 / 1000.0).sum() < 79.0


def test_one_that_diverges_says_after_which_epoch():
    with pytest.raises(fastnc.Diverged, match=r"not finite after epoch \d+: "):
        fastnc.descend(MODEL, 1e200, 50, batch_size=5)
