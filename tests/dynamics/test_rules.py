"""Each rule against a loop in NumPy and torch.optim; its bits after a stop; its refusals."""

import numpy as np
import pytest
from rule_loops import CASES, EPOCHS, MODEL, R, gradients, loop

import fastnc
from fastnc.dynamics.randomness import BATCHES, Draws

case = pytest.mark.parametrize("name", CASES)


@case
def test_a_thousand_epochs_are_those_of_the_plain_loop(name):
    rule, move = CASES[name]
    run = fastnc.descend(MODEL, rule=rule, epochs=EPOCHS, snapshots=3)
    # A few ulp an epoch. What divides by a gradient, entry by entry or by singular values, divides
    # its rounding too: gradients stay above 1e-5 of the largest, and so errors below 1e-9.
    for x, y in zip((run.W, run.H), loop(move), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-9)
    assert run.about["rule"].split("(")[0] == type(rule).__name__


@case
def test_stopped_and_resumed_runs_have_the_same_bits(name, tmp_path):
    rule, path = CASES[name][0], tmp_path / "checkpoint.npz"
    whole = fastnc.descend(MODEL, rule=rule, epochs=60, snapshots=3)
    for epochs in (1, 23, 60):
        run = fastnc.descend(
            MODEL, rule=rule, epochs=epochs, snapshots=3, checkpoint=path, resume=True
        )
    assert run.W.tobytes() == whole.W.tobytes() and run.H.tobytes() == whole.H.tobytes()
    for column in whole.columns:
        assert run[column].tobytes() == whole[column].tobytes(), column


@pytest.mark.parametrize("name", ["heavy ball", "nesterov", "adam", "adam, coupled", "adamw"])
def test_torch_optim_goes_the_same_way(name):
    torch = pytest.importorskip("torch")
    rule = CASES[name][0]
    theta = [torch.from_numpy(x).requires_grad_() for x in MODEL.init(0)]
    if isinstance(rule, R.Momentum):
        options = {"momentum": rule.momentum, "nesterov": rule.nesterov}
        optimiser = torch.optim.SGD(theta, rule.lr, **options)
    else:
        kind = torch.optim.AdamW if isinstance(rule, R.AdamW) else torch.optim.Adam
        options = {"betas": rule.betas, "eps": rule.eps, "weight_decay": rule.weight_decay}
        optimiser = kind(theta, rule.lr, **options)
    y = torch.from_numpy(MODEL.y.copy())
    for _ in range(EPOCHS):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(theta[1] @ theta[0].T, y).backward()
        optimiser.step()
    run = fastnc.descend(MODEL, rule=rule, epochs=EPOCHS, snapshots=3)
    for x, t in zip((run.W, run.H), theta, strict=True):
        # As against the plain loop.
        np.testing.assert_allclose(x, t.detach().numpy(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["heavy ball", "adam", "normalised", "spectral", "sign"])
def test_float32_stays_beside_float64(name):
    rule = CASES[name][0]
    single = fastnc.descend(MODEL, rule=rule, epochs=EPOCHS, snapshots=3, dtype="float32")
    double = fastnc.descend(MODEL, rule=rule, epochs=EPOCHS, snapshots=3)
    assert single.W.dtype == np.float32
    # Gradients are rounded to 6e-8 of the largest entry; a sign, and a singular direction of a
    # value down to 1e-6 of the largest, are made of what is left of them.
    assert single["margin"][-1] == pytest.approx(double["margin"][-1], rel=1e-2)


def test_small_steps_are_not_lost_in_float32():
    """Each step is below half an ulp of the entry it moves: without compensation nothing moves."""
    rule = R.SignDescent(1e-9)
    W, H = (x.astype(np.float32) for x in MODEL.init(0))
    W += 1.0
    run = fastnc.descend(MODEL, rule=rule, epochs=2000, W=W, H=H, snapshots=1)
    double = fastnc.descend(
        MODEL, rule=rule, epochs=2000, W=W.astype(float), H=H.astype(float), snapshots=1
    )
    # 2000 steps of 1e-9, held to an ulp of 1.
    np.testing.assert_allclose(run.W, double.W, rtol=0, atol=1.2e-7)
    assert np.abs(double.W - W).max() > 1e-6


def test_an_adam_without_epsilon_goes_on_where_the_loss_is_no_float_any_more():
    run = fastnc.descend(MODEL, rule=R.Adam(1e-2, (0.5, 0.5), 0.0), epochs=4000)
    assert run["log_loss"][-1] < -1000 and np.isfinite(run.W).all()
    assert (np.diff(run["margin"]) > 0)[run["epoch"][1:] > 10].all()


@pytest.mark.parametrize("freeze", ["W", "H"])
def test_a_frozen_factor_stays_and_counts_in_no_norm(freeze):
    start = dict(zip("WH", MODEL.init(0), strict=True))
    run = fastnc.descend(MODEL, rule=R.NormalizedDescent(0.01), epochs=50, freeze=freeze)
    free = {"W": "H", "H": "W"}[freeze]
    assert getattr(run, freeze).tobytes() == start[freeze].tobytes()
    x, (gW, gH) = start.copy(), (None, None)
    for _ in range(50):
        gW, gH = gradients(x["W"], x["H"], MODEL.y)
        g = {"W": gW, "H": gH}[free]
        x[free] = x[free] - 0.01 * g / np.linalg.norm(g)
    # 50 steps of a few ulp.
    np.testing.assert_allclose(getattr(run, free), x[free], rtol=0, atol=1e-12)


def test_a_step_size_for_each_factor():
    run = fastnc.descend(MODEL, lr=(2.0, 0.5), epochs=200)

    def move(t, theta, grads):
        return [x - lr * g for x, lr, g in zip(theta, (2.0, 0.5), grads, strict=True)]

    for x, y in zip((run.W, run.H), loop(move, 200), strict=True):
        # A few ulp an epoch.
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-11)


class Lion:
    """A rule that fastnc has not: signs of a mean."""

    lr = 1e-3

    def init(self, W, H):
        return {"W": np.zeros_like(W), "H": np.zeros_like(H)}

    def update(self, factors, gradients, state, rates, step):
        changes = []
        for name, g, lr in zip("WH", gradients, rates, strict=True):
            changes.append(-lr * np.sign(0.9 * state[name] + 0.1 * g))
            state[name] *= 0.99
            state[name] += 0.01 * g
        return tuple(changes)


def test_a_rule_of_ones_own(tmp_path):
    path = tmp_path / "checkpoint.npz"
    whole = fastnc.descend(MODEL, rule=Lion(), epochs=100, snapshots=3)
    for epochs in (1, 30, 100):
        run = fastnc.descend(
            MODEL, rule=Lion(), epochs=epochs, snapshots=3, checkpoint=path, resume=True
        )
    assert run.W.tobytes() == whole.W.tobytes() and whole["margin"][-1] > whole["margin"][0]
    assert "Lion" in whole.about["rule"] and " at 0x" not in whole.about["rule"]
    with pytest.raises(ValueError, match=r"of another problem: its `rule` is .*Lion"):
        fastnc.descend(MODEL, rule=R.Adam(), epochs=100, snapshots=3, checkpoint=path, resume=True)


@pytest.mark.parametrize("replacement", [False, True])
def test_batches_deal_all_samples_out_or_draw_them(replacement, tmp_path):
    path = tmp_path / "checkpoint.npz"
    options = {"batch_size": 6, "replacement": replacement, "snapshots": 3, "seed": 3}
    run = fastnc.descend(MODEL, 1.0, 40, **options)
    # The steps of the batches and their means, written again; their draws: test_compiled_batches.
    draws = Draws(3, BATCHES)
    (W, H), n, y = MODEL.init(3), 20, MODEL.y
    for _ in range(40):
        order = draws.order(n) if not replacement else None
        for b in range(4):
            rows = draws.numbers(n, 6) if replacement else order[5 * b : 5 * b + 5]
            gW, gH = gradients(W, H[rows], y[rows])
            W = W - gW
            H = H.copy()
            for i, g in zip(rows, gH, strict=True):
                H[i] -= g
    # 160 steps of a few ulp.
    np.testing.assert_allclose(run.W, W, rtol=0, atol=1e-11)
    np.testing.assert_allclose(run.H, H, rtol=0, atol=1e-11)
    for epochs in (1, 17, 40):
        again = fastnc.descend(MODEL, 1.0, epochs, **options, checkpoint=path, resume=True)
    assert again.H.tobytes() == run.H.tobytes()


def test_label_noise_keeps_a_loss_that_labels_without_noise_do_not():
    clean = fastnc.descend(MODEL, 1.0, 3000, snapshots=3)
    noisy = fastnc.descend(MODEL, 1.0, 3000, snapshots=3, label_noise=0.2)
    # No logits fit a label that is another one in a fifth of the steps.
    assert clean["log_loss"][-1] < -5 < -3 < noisy["log_loss"][-1]


def test_polyak_needs_no_step_size_and_knows_a_least_value():
    free = fastnc.descend(MODEL, R.Polyak(), 300, snapshots=3)
    assert free["log_loss"][-1] < -100
    model = fastnc.models.weight_decay(4, 5, 6, 0.02, 0.01)
    least = model.optimum().value
    run = fastnc.descend(model, R.Polyak(least=least), 3000, snapshots=3)
    # Down to the rounding of a value of about 1.
    assert 0 <= run["objective"][-1] - least + 1e-15 < 1e-10


def test_a_rule_that_diverges_says_after_which_epoch():
    with pytest.raises(fastnc.Diverged, match=r"not finite after epoch \d+: the steps of `lr`=Pow"):
        fastnc.descend(MODEL, rule=R.Momentum(R.Power(1.0, -9.0)), epochs=2000)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: R.Momentum(-1.0), "`lr` must be a positive number; got -1.0"),
        (lambda: R.Momentum((1.0, 2.0, 3.0)), r"`lr` must be one number or a pair \(lr_W, lr_H\)"),
        (lambda: R.Momentum(1.0, 1.0), "`momentum` must be below 1; got 1.0"),
        (lambda: R.Adam(1.0, (0.9,)), r"`betas` must be a pair \(beta1, beta2\); got \(0.9,\)"),
        (lambda: R.Adam(1.0, (0.9, 1.5)), "`betas` must be below 1; got 1.5"),
        (lambda: R.Adam(eps=-1.0), "`eps` must be a number of at least 0"),
        (lambda: R.SharpnessAware(1.0, radius=0.0), "`radius` must be a positive number"),
        (lambda: R.Cosine(1.0, 0), "`epochs` must be an integer of at least 1"),
        (lambda: R.WarmUp(R.Polyak(), 5), "`then` must be a number or a schedule of the epoch"),
        (lambda: fastnc.descend(MODEL, rule=R.Adam), "`rule` must be made first; got the class Ad"),
        (lambda: fastnc.descend(MODEL, rule="adam"), "`rule` must be one of `fastnc.rules` or ha"),
        (lambda: fastnc.descend(MODEL, 0.1, rule=R.Adam()), "`lr` and `schedule` belong to the r"),
        (lambda: fastnc.descend(MODEL, (R.Polyak(), 1.0)), r"a pair \(lr_W, lr_H\) must hold num"),
        (lambda: fastnc.descend(MODEL, lambda e: -1.0, 5), r"`lr\(0\)` must be a number of at le"),
        (lambda: fastnc.descend(MODEL, batch_size=0), "`batch_size` must be an integer of at lea"),
        (lambda: fastnc.descend(MODEL, batch_size=21), "at most the number of samples, 20; got 21"),
        (lambda: fastnc.descend(MODEL, replacement=True), "`replacement` must have batches to be"),
        (lambda: fastnc.descend(MODEL, label_noise=1.5), "`label_noise` must lie in 0..1"),
        (lambda: fastnc.descend(MODEL, freeze="b"), "`freeze` must be 'W' or 'H'; got 'b'"),
        (
            lambda: fastnc.descend(MODEL, rule=R.Momentum(R.LossScaled(), weight_decay=1.0)),
            "`weight_decay` of Momentum and the schedule LossScaled.* do not go together: the dec",
        ),
        (
            lambda: fastnc.descend(fastnc.models.sphere(3, 2, 4, 1.0), device="cuda"),
            "device='cuda' and sphere do not go together: on a device there are `fastnc.ULPM` and",
        ),
        (
            lambda: fastnc.descend(MODEL, device="cuda", rule=R.SpectralDescent()),
            "device='cuda' and SpectralDescent do not go together: on a device there are",
        ),
    ],
)  # fmt: skip
def test_refusals(make, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        make()


class Both(fastnc.rules.Schedule):
    """A step size of the epoch, and another one of where the descent stands, which counts."""

    def __call__(self, epoch):
        return 1.0

    def at(self, standing):
        assert np.isfinite(standing.log_loss) and len(standing.factors) == 2
        return 5.0 if standing.log_loss > -1.0 else 0.5


class OfLogLoss(fastnc.rules.Schedule):
    of_log_loss = True

    def __call__(self, epoch):
        return 0.3


def test_own_schedules_that_look_do_so_on_small_problems():
    """The compiled loop gave `at` an empty standing, and took gradients of L for those of log L."""
    small = fastnc.ULPM(4, 3, 5)
    alone = type("Alone", (fastnc.rules.Schedule,), {"at": Both.at})()
    for rule in (fastnc.rules.GradientDescent, fastnc.rules.Adam):
        runs = [fastnc.descend(small, rule=rule(lr), epochs=30) for lr in (Both(), alone)]
        assert np.array_equal(runs[0].W, runs[1].W)
    W, H = small.init(3)
    run = fastnc.descend(small, rule=fastnc.rules.GradientDescent(OfLogLoss()), epochs=12, seed=3)
    for _ in range(12):
        _, dW, dH = fastnc.log_loss_and_grads(W, H, small.y)
        W, H = W - 0.3 * dW, H - 0.3 * dH
    np.testing.assert_allclose(run.W, W, rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", [Both(), OfLogLoss()])
def test_schedules_that_look_are_in_no_pair_and_no_warm_up(schedule):
    with pytest.raises(ValueError, match=r"a pair \(lr_W, lr_H\) must hold numbers or schedules"):
        fastnc.descend(fastnc.ULPM(4, 3, 5), lr=(schedule, schedule), epochs=2)
    with pytest.raises(ValueError, match="`then` must be a number or a schedule of the epoch"):
        fastnc.rules.WarmUp(schedule, 3)


@pytest.mark.parametrize(
    "model",
    [
        fastnc.models.normalized(4, 3, 5, 6.0),
        fastnc.models.sphere(4, 3, 5, 3.0),
        fastnc.models.norm_constrained(4, 3, 5, 1.0, 1.0),
    ],
)
def test_a_step_uphill_beside_a_constraint(model):
    """Its gradient there was one of no function."""
    W, H = model.retract(*model.init(1))
    start = fastnc.descend(model, 0.1, 1, W=W, H=H, callback=lambda row: True)
    run = fastnc.descend(model, rule=fastnc.rules.SharpnessAware(0.1, 2.0), epochs=1, W=W, H=H)

    def value(x):
        return model.objective(
            *model.retract(x[: W.size].reshape(W.shape), x[W.size :].reshape(H.shape))
        )

    def slope(x):
        found = np.empty_like(x)
        for i in range(len(x)):
            step = np.zeros_like(x)
            step[i] = 1e-5
            found[i] = (value(x + step) - value(x - step)) / 2e-5
        return found

    x = np.concatenate([start.W.ravel(), start.H.ravel()])
    g = slope(x)
    moved = x - 0.1 * slope(x + 2.0 * g / np.linalg.norm(g))
    wanted = model.retract(moved[: W.size].reshape(W.shape), moved[W.size :].reshape(H.shape))
    for found, right in zip((run.W, run.H), wanted, strict=True):
        # Differences of 1e-5 have errors of 1e-10.
        np.testing.assert_allclose(found, right, rtol=0, atol=1e-8)
