"""Each rule against a loop in NumPy and torch.optim; its bits after a stop; its refusals."""

import numpy as np
import pytest

import fastnc
from fastnc.dynamics.randomness import BATCHES, Draws
from fastnc.dynamics.steppers import compiled

R = fastnc.rules
MODEL = fastnc.ULPM(n_classes=4, n_per_class=5, dim=6)
EPOCHS = 1000


def gradients(W, H, y):
    """dL/dW and dL/dH of the mean loss, from the definition."""
    Z = H @ W.T
    p = np.exp(Z - Z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(y)), y] -= 1.0
    p /= len(y)
    return [p.T @ H, p @ W]


def loop(move, epochs=EPOCHS, y=MODEL.y, model=MODEL):
    """`move(t, theta, grads)` returns theta; t counts from 1."""
    theta = list(model.init(0))
    for t in range(1, epochs + 1):
        theta = move(t, theta, gradients(*theta, y))
    return theta


def momentum(mu, lr, nesterov=False, decay=0.0):
    m = [0.0, 0.0]

    def move(t, theta, grads):
        for i, g in enumerate(grads):
            g = g + decay * theta[i]
            m[i] = mu * m[i] + g
            theta[i] = theta[i] - lr * (g + mu * m[i] if nesterov else m[i])
        return theta

    return move


def adam(lr, b1=0.9, b2=0.999, eps=1e-8, coupled=0.0, decoupled=0.0):
    m, v = [0.0, 0.0], [0.0, 0.0]

    def move(t, theta, grads):
        for i, g in enumerate(grads):
            g = g + coupled * theta[i]
            m[i] = b1 * m[i] + (1 - b1) * g
            v[i] = b2 * v[i] + (1 - b2) * g**2
            step = (m[i] / (1 - b1**t)) / (np.sqrt(v[i] / (1 - b2**t)) + eps)
            theta[i] = theta[i] - lr(t) * (step + decoupled * theta[i])
        return theta

    return move


def normalised(lr, per_factor):
    def move(t, theta, grads):
        norms = [np.linalg.norm(g) for g in grads]
        if not per_factor:
            norms = [np.hypot(*norms)] * 2
        return [x - lr * g / n for x, g, n in zip(theta, grads, norms, strict=True)]

    return move


def spectral(lr):
    def move(t, theta, grads):
        out = []
        for x, g in zip(theta, grads, strict=True):
            U, s, V = np.linalg.svd(g, full_matrices=False)
            keep = s > 1e-12 * s[0]
            out.append(x - lr * U[:, keep] @ V[keep])
        return out

    return move


def sharpness_aware(lr, radius):
    def move(t, theta, grads):
        norm = np.hypot(*(np.linalg.norm(g) for g in grads))
        there = [x + radius * g / norm for x, g in zip(theta, grads, strict=True)]
        return [x - lr * g for x, g in zip(theta, gradients(*there, MODEL.y), strict=True)]

    return move


def signs(lr):
    return lambda t, theta, grads: [x - lr * np.sign(g) for x, g in zip(theta, grads, strict=True)]


CASES = {
    "constant": (R.GradientDescent(2.0), momentum(0.0, 2.0)),
    "decayed": (R.GradientDescent(2.0, weight_decay=1e-3), momentum(0.0, 2.0, decay=1e-3)),
    "heavy ball": (R.Momentum(0.5, 0.9), momentum(0.9, 0.5)),
    "nesterov": (R.Momentum(0.5, 0.8, nesterov=True), momentum(0.8, 0.5, True)),
    "adam": (R.Adam(1e-2), adam(lambda t: 1e-2)),
    "adam, coupled": (R.Adam(1e-2, weight_decay=1e-3), adam(lambda t: 1e-2, coupled=1e-3)),
    "adam, no epsilon": (R.Adam(1e-3, (0.9, 0.99), 0.0), adam(lambda t: 1e-3, 0.9, 0.99, 0.0)),
    "adamw": (R.AdamW(1e-2, weight_decay=0.1), adam(lambda t: 1e-2, decoupled=0.1)),
    "sign": (R.SignDescent(1e-3), signs(1e-3)),
    "normalised": (R.NormalizedDescent(0.01), normalised(0.01, False)),
    "normalised, per factor": (R.NormalizedDescent(0.01, per_factor=True), normalised(0.01, True)),
    "spectral": (R.SpectralDescent(2e-3), spectral(2e-3)),
    "sharpness-aware": (R.SharpnessAware(0.5, radius=0.1), sharpness_aware(0.5, 0.1)),
    "cosine": (
        R.Adam(R.Cosine(1e-2, 900)),
        adam(lambda t: 0.005 * (1 + np.cos(np.pi * min((t - 1) / 900, 1.0)))),
    ),
    "power": (R.Adam(R.Power(1e-2, 0.5)), adam(lambda t: 1e-2 / np.sqrt(t))),
    "steps": (
        R.Adam(R.Steps(1e-2, (100, 500))),
        adam(lambda t: 1e-2 * 0.1 ** ((t > 100) + (t > 500))),
    ),
    "warm-up": (R.Adam(R.WarmUp(1e-2, 50)), adam(lambda t: 1e-2 * min(t / 50, 1))),
    "function": (R.Adam(lambda e: 1e-2 / (1 + e)), adam(lambda t: 1e-2 / t)),
}
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
        how = {"momentum": rule.momentum, "nesterov": rule.nesterov}
        optimiser = torch.optim.SGD(theta, rule.lr, **how)
    else:
        kind = torch.optim.AdamW if isinstance(rule, R.AdamW) else torch.optim.Adam
        how = {"betas": rule.betas, "eps": rule.eps, "weight_decay": rule.weight_decay}
        optimiser = kind(theta, rule.lr, **how)
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
    moved = {"W": "H", "H": "W"}[freeze]
    assert getattr(run, freeze).tobytes() == start[freeze].tobytes()
    x, (gW, gH) = start.copy(), (None, None)
    for _ in range(50):
        gW, gH = gradients(x["W"], x["H"], MODEL.y)
        g = {"W": gW, "H": gH}[moved]
        x[moved] = x[moved] - 0.01 * g / np.linalg.norm(g)
    # 50 steps of a few ulp.
    np.testing.assert_allclose(getattr(run, moved), x[moved], rtol=0, atol=1e-12)


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


# Four classes are one pass of the compiled loop on processors with few registers too.
@pytest.mark.parametrize("name", ["heavy ball", "nesterov", "adam, coupled", "adamw", "decayed"])
def test_the_compiled_loop_and_the_numpy_one_agree(name, monkeypatch):
    rule = CASES[name][0]
    for dtype, atol in (("float64", 1e-11), ("float32", 2e-4)):
        run = fastnc.descend(MODEL, rule=rule, epochs=300, snapshots=2, dtype=dtype)
        with monkeypatch.context() as patch:
            patch.setattr(compiled, "serves", lambda model, rule: False)
            other = fastnc.descend(MODEL, rule=rule, epochs=300, snapshots=2, dtype=dtype)
        # 300 epochs of a few ulp of numbers up to 10; Adam's quotients amplify a float32's.
        np.testing.assert_allclose(run.W, other.W, rtol=0, atol=atol)
        np.testing.assert_allclose(run.H, other.H, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_lanes_that_hold_no_sample_stay_out_of_it(dtype):
    """13 samples, 3 features: lanes to spare in every vector; an absent class among the labels."""
    y = np.array([3, 0, 3, 3, 1, 0, 3, 1, 1, 0, 3, 3, 1])
    model = fastnc.ULPM(4, dim=3, labels=y)
    rule = R.AdamW((1e-2, 2e-2), weight_decay=0.1)
    assert compiled.serves(model, rule)
    run = fastnc.descend(model, rule=rule, epochs=200, dtype=dtype, snapshots=3)
    m, v = [0.0, 0.0], [0.0, 0.0]
    theta = [x.astype(np.float64) for x in model.init(0, dtype)]
    for t in range(1, 201):
        for i, g in enumerate(gradients(*theta, y)):
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = 0.999 * v[i] + 0.001 * g**2
            theta[i] = theta[i] - (1e-2, 2e-2)[i] * (
                m[i] / (1 - 0.9**t) / (np.sqrt(v[i] / (1 - 0.999**t)) + 1e-8) + 0.1 * theta[i]
            )
    # A few ulp an epoch, of float32 with what its gradients round.
    atol = 1e-11 if dtype == "float64" else 1e-4
    for x, other in zip((run.W, run.H), theta, strict=True):
        np.testing.assert_allclose(x, other, rtol=0, atol=atol)


@pytest.mark.parametrize("count", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_adam_multiplies_with_is_within_eight_ulp(count, dtype):
    """c / (sqrt(v) + e) of vectors together; from estimates of 14 bits, where there are some."""
    from fastnc.kernels.cpu.adam import rates_of_adam
    from fastnc.kernels.cpu.options import OPTIONS, njit
    from fastnc.kernels.cpu.processor import native_lanes
    from fastnc.kernels.cpu.simd import zeros
    from fastnc.kernels.cpu.simd_blocks import load_members, store_members

    rng = np.random.default_rng(0)
    lanes, single = native_lanes(dtype), dtype == "float32"

    @njit(**OPTIONS)
    def rates(v, e, c, out):
        for i in range(0, v.size, count * lanes):
            some = load_members(v, i, lanes, zeros(v, count, lanes))
            store_members(out, i, lanes, rates_of_adam(some, e, c))

    n = 64 * lanes
    v = (10.0 ** rng.uniform(-20 if single else -200, 10, n)).astype(dtype)
    # The least that the loop gives it.
    v[:lanes] = 1e-36 if single else 1e-290
    (e, c), out = np.array([1e-8, 1e-3], dtype), np.empty_like(v)
    wide = np.float64 if single else np.longdouble
    rates(v, e, c, out)
    exact = wide(c) / (np.sqrt(v.astype(wide)) + wide(e))
    error = np.abs(out - exact) / exact / np.finfo(dtype).eps
    assert error.max() < 8.0
    if count == 8 and not single and lanes == 8:
        # A product of eight that is no float must not pass for a rate of 0.
        rates(np.full(n, 1e77), e, c, out)
        assert np.isnan(out).all()
