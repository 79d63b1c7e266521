"""Rules, measurements, callbacks of a user's: what they may not touch, what they must return."""

import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

import fastnc
from fastnc.dynamics.description import described
from fastnc.dynamics.run import Run

MODEL = fastnc.ULPM(3, 4, 5)


class Plain:
    """Gradient descent, as a user would write it."""

    lr = 0.5

    def init(self, *factors):
        return {}

    def update(self, factors, gradients, state, rates, step):
        return tuple(-r * g for r, g in zip(rates, gradients, strict=True))


def with_methods(**methods):
    return type("Own", (Plain,), methods)()


def test_a_measurement_may_overwrite_its_arguments_and_the_run_stays():
    def centred(W, H, y):
        W -= W.mean(axis=0)
        H *= 0.0
        y[:] = 0
        return float(np.linalg.norm(W))

    alone = fastnc.descend(MODEL, epochs=20)
    run = fastnc.descend(MODEL, epochs=20, measure={"centred": centred})
    assert np.array_equal(run.W, alone.W)
    assert np.array_equal(run.H, alone.H)
    assert np.array_equal(run["margin"], alone["margin"])
    want = np.linalg.norm(run.W - run.W.mean(axis=0))
    assert run["centred"][-1] == want


def test_a_callback_may_overwrite_its_dict_and_the_run_stays():
    def callback(row):
        row["margin"] = -99.0
        row.clear()

    run = fastnc.descend(MODEL, epochs=20, callback=callback)
    assert run["margin"][-1] == fastnc.neural_collapse_margin(run.W, run.H, run.y)


@pytest.mark.parametrize("name", ["margin", "epoch", "log_loss"])
def test_a_measurement_takes_no_other_columns_name(name):
    with pytest.raises(ValueError, match=f"`measure` must name new columns; a run has '{name}'"):
        fastnc.descend(MODEL, epochs=5, measure={name: lambda W, H, y: 0.0})


def test_a_rule_of_ones_own_goes_the_plain_loops_way():
    W, H = MODEL.init(0)
    run = fastnc.descend(MODEL, rule=Plain(), epochs=10)
    for _ in range(10):
        p = np.exp(H @ W.T)
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(12), MODEL.y] -= 1.0
        W, H = W - 0.5 * p.T @ H / 12, H - 0.5 * p @ W / 12
    # Ten steps of rounding 1e-16 each.
    np.testing.assert_allclose(run.W, W, rtol=1e-12, atol=1e-14)


def test_a_rule_that_writes_to_the_factors_is_stopped():
    def update(self, factors, gradients, state, rates, step):
        for x, g in zip(factors, gradients, strict=True):
            x -= self.lr * g
        return tuple(np.zeros_like(x) for x in factors)

    with pytest.raises(ValueError, match="read-only"):
        fastnc.descend(MODEL, rule=with_methods(update=update), epochs=3)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (with_methods(update=lambda *_: None), r"`rule.update` must return .* got NoneType"),
        (
            with_methods(update=lambda self, f, g, *_: g[:1]),
            r"added to each of W, H, of shapes \[\(3, 5\), \(12, 5\)\]; got \[\(3, 5\)\]",
        ),
        (with_methods(update=lambda self, f, g, *_: tuple(x[:2] for x in g)), r"got \[\(2, 5\)"),
        (with_methods(init=lambda *_: [1]), "`rule.init` must return arrays by name.*got list"),
        (
            with_methods(init=lambda *_: dict.fromkeys("ab", np.zeros(2))),
            "`rule.init` must return arrays of their own; 'a' and 'b' are one",
        ),
        (with_methods(init=lambda *_: {"t": 0}), "NumPy arrays by name.*got 't': int"),
        (with_methods(lr="x"), "`lr` must be a positive number; got 'x'"),
        (with_methods(lr=(1.0, 2.0, 3.0)), "`lr` must be one number or a pair"),
    ],
)
def test_what_a_rule_returns_is_looked_at(rule, message):
    with pytest.raises((TypeError, ValueError), match=message):
        fastnc.descend(MODEL, rule=rule, epochs=3)


NO_ARGUMENTS = r"`{}` must take what it is called with, `{}`; got one of the signature \(\)\."


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"callback": lambda: None}, NO_ARGUMENTS.format("callback", r"callback\(snapshot\)")),
        ({"callback": print}, None),
        ({"callback": max}, None),
        ({"lr": lambda: 1.0}, NO_ARGUMENTS.format("lr", r"lr\(epoch\)")),
        ({"lr": (1.0, lambda: 1.0)}, NO_ARGUMENTS.format("lr", r"lr\(epoch\)")),
        ({"lr": lambda epoch, *, factor: 1.0}, r"signature \(epoch, \*, factor\)\."),
        ({"lr": lambda epoch, factor=1.0: factor}, None),
        (
            {"measure": {"norm": lambda W: 0.0}},
            r"`measure\['norm'\]` must take what .*`measure\['norm'\]\(W, H, y\)`; got .* \(W\)\.",
        ),
        (
            {"rule": with_methods(update=lambda self, factors, gradients: gradients)},
            r"with, `update\(factors, gradients, state, rates, step\)`; got .* \(factors, grad",
        ),
        (
            {"rule": with_methods(init=lambda self: {})},
            NO_ARGUMENTS.format("rule.init", r"init\(W, H\)"),
        ),
    ],
)
def test_what_a_function_takes_is_looked_at_before_the_first_epoch(options, message, monkeypatch):
    if message is None:
        assert len(fastnc.descend(MODEL, epochs=2, **options))
        return
    monkeypatch.setattr(Run, "go", None)
    with pytest.raises(TypeError, match=message):
        fastnc.descend(MODEL, epochs=2, **options)


def test_a_function_that_computes_nothing():
    """The coroutine of a call is true: the run was at its end after the start, without a word."""

    async def later(snapshot):
        return False

    def bit_by_bit(snapshot):
        yield False

    async def both(snapshot):
        yield False

    class Called:
        async def __call__(self, snapshot):
            return False

    for callback in (later, bit_by_bit, both, Called()):
        with pytest.raises(TypeError, match=r"got an? .*, whose call computes nothing\."):
            fastnc.descend(MODEL, epochs=2, callback=callback)


def test_schedules_of_ones_own_go_downhill():
    """What a function returns was looked at, what a `Schedule` returned was not."""

    class Uphill(fastnc.rules.Schedule):
        def __call__(self, epoch):
            return 0.5 - epoch

    for lr in (Uphill(), fastnc.rules.WarmUp(Uphill(), 1), lambda epoch: 0.5 - epoch):
        for rule in (fastnc.rules.GradientDescent(lr), fastnc.rules.SignDescent(lr)):
            with pytest.raises(ValueError, match=r"\(1\)` must be a number of .*; got -0.5"):
                fastnc.descend(MODEL, epochs=5, rule=rule)
    with pytest.raises(TypeError, match=r"`then\(epoch\)`; got one of the signature \(\)\."):
        fastnc.rules.WarmUp(lambda: 1.0, 3)


def test_a_rule_on_top_of_a_built_in_one_is_ones_own():
    class Late(fastnc.rules.Momentum):
        def update(self, factors, gradients, state, rates, step):
            return None

    with pytest.raises(ValueError, match=r"`rule.update` must return .* got NoneType"):
        fastnc.descend(MODEL, rule=Late(1.0), epochs=3)


def test_a_callback_returns_something_true_or_false():
    for returned in (np.zeros(2), np.array([])):
        with pytest.raises(TypeError, match=r"`callback` must return something true, .* ndarray"):
            fastnc.descend(MODEL, epochs=2, callback=lambda row, x=returned: x)
    assert len(fastnc.descend(MODEL, epochs=20, callback=lambda row: np.float64(0.0))) > 3


def rated(rate):
    return lambda epoch: rate / (1.0 + epoch)


class Rated(Plain):
    def __init__(self, lr):
        self.lr = lr


RULES = {
    "constants of a lambda": (lambda: lambda epoch: 1.0, lambda: lambda epoch: 2.0),
    "what a function closes over": (lambda: rated(1.0), lambda: rated(2.0)),
    "defaults": (lambda: lambda epoch, a=1.0: a, lambda: lambda epoch, a=2.0: a),
    "a pair": (lambda: (lambda epoch: 1.0, 1.0), lambda: (lambda epoch: 2.0, 1.0)),
    "after a warm-up": (
        lambda: fastnc.rules.WarmUp(lambda epoch: 1.0, 3),
        lambda: fastnc.rules.WarmUp(lambda epoch: 2.0, 3),
    ),
    "a partial function": (
        lambda: partial(lambda a, epoch: a, 1.0), lambda: partial(lambda a, epoch: a, 2.0)
    ),
    "a rule without a repr": (lambda: Rated(1.0), lambda: Rated(2.0)),
}  # fmt: skip


def as_rule(given):
    return given if isinstance(given, Rated) else fastnc.rules.GradientDescent(given)


@pytest.mark.parametrize("name", RULES)
def test_functions_and_rules_of_one_name_are_told_apart(name, tmp_path):
    """A resumed run went on with another one, and a sweep's medians were of both."""
    first, second = RULES[name]
    path = tmp_path / "checkpoint.npz"
    options = {"checkpoint": path, "resume": True}
    fastnc.descend(MODEL, rule=as_rule(first()), epochs=5, **options)
    # The same code again is the same rule.
    fastnc.descend(MODEL, rule=as_rule(first()), epochs=6, **options)
    with pytest.raises(ValueError, match="is of another problem: its `rule` is "):
        fastnc.descend(MODEL, rule=as_rule(second()), epochs=7, **options)
    rules = [as_rule(first()), as_rule(second())]
    runs = fastnc.sweep(MODEL, rules=rules, epochs=5, seeds=range(2))
    assert [len(group) for group in runs.settings().values()] == [2, 2]


def test_a_measurement_of_one_name_is_told_apart(tmp_path):
    path = tmp_path / "checkpoint.npz"

    def measured(value, epochs):
        one = {"value": lambda W, H, y: value}
        return fastnc.descend(MODEL, epochs=epochs, measure=one, checkpoint=path, resume=True)

    measured(1.0, 5)
    assert set(measured(1.0, 7)["value"]) == {1.0}
    with pytest.raises(ValueError, match=r"of another problem: its `measured by` is "):
        measured(2.0, 9)


def test_descriptions_are_the_same_in_every_process():
    """Addresses and the hashes of strings are not."""
    code = (
        "from functools import partial; from fastnc.dynamics.description import described\n"
        "class A:\n"
        "    def __init__(self): self.a = (1, 'z')\n"
        "    def at(self, epoch): return self.a\n"
        "def f(epoch, *, b=2.5): return [c in {'a', 'b', 'c', 'd'} for c in 'ab'] and (lambda: b)\n"
        "print(described(A()), described(A().at), described(f), described(partial(f, b=A())))"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(told) == 1 and " at 0x" not in told.pop()
    assert described(fastnc.rules.Momentum((1.0, 2.0))) == repr(fastnc.rules.Momentum((1.0, 2.0)))


def test_what_a_rule_remembers_may_be_written_or_replaced():
    """`state["m"] = ...` was lost without a word, and what was kept of the start moved with W."""

    def init(self, *factors):
        return {"m": np.zeros_like(factors[0]), "start": factors[0]}

    def written(self, factors, gradients, state, rates, step):
        state["m"] += gradients[0]
        return -rates[0] * (state["m"] + 0.1 * (factors[0] - state["start"])), -gradients[1]

    def replaced(self, factors, gradients, state, rates, step):
        state["m"] = state["m"] + gradients[0]
        return -rates[0] * (state["m"] + 0.1 * (factors[0] - state["start"])), -gradients[1]

    runs = [
        fastnc.descend(MODEL, rule=with_methods(init=init, update=update), epochs=30)
        for update in (written, replaced)
    ]
    assert np.array_equal(runs[0].W, runs[1].W)
    W, H = MODEL.init(0)
    start, m = W.copy(), 0.0
    for _ in range(30):
        p = np.exp(H @ W.T)
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(12), MODEL.y] -= 1.0
        m = m + p.T @ H / 12
        W, H = W - 0.5 * (m + 0.1 * (W - start)), H - p @ W / 12
    # Thirty steps of rounding 1e-16 each, of weights that grow.
    np.testing.assert_allclose(runs[0].W, W, rtol=1e-9, atol=1e-12)


def test_arrays_of_a_rule_s_memory_may_change_places():
    """Each was written into the place of the other before that was read; the hash of their names
    chose which, so that two processes went two ways."""
    seen = []

    def init(self, *factors):
        return {"a": np.zeros(1), "b": np.ones(1), "c": np.full(1, 2.0)}

    def update(self, factors, gradients, state, rates, step):
        seen.append([float(state[name][0]) for name in "abc"])
        state["a"], state["b"], state["c"] = state["b"], state["c"], state["a"]
        return tuple(-g for g in gradients)

    fastnc.descend(MODEL, rule=with_methods(init=init, update=update), epochs=4)
    assert seen == [[0.0, 1.0, 2.0], [1.0, 2.0, 0.0], [2.0, 0.0, 1.0], [0.0, 1.0, 2.0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state.update(m=np.zeros(2)),
            r"of 'm' it made one of shape \(3, 5\), got one",
        ),
        (lambda state: state.pop("m"), r"of 'm' it made one of shape \(3, 5\), got none\."),
        (lambda state: state.update(new=np.zeros(2)), r"of 'new' it made none, got one of shape"),
        (
            lambda state: state.update(m=1j * state["m"]),
            r"real numbers; got state\['m'\] of complex",
        ),
    ],
)
def test_what_a_rule_leaves_of_its_memory(change, message):
    def update(self, factors, gradients, state, rates, step):
        change(state)
        return tuple(-g for g in gradients)

    rule = with_methods(init=lambda self, W, H: {"m": np.zeros_like(W)}, update=update)
    with pytest.raises((ValueError, TypeError), match=message):
        fastnc.descend(MODEL, rule=rule, epochs=3)


def test_changes_are_real_numbers():
    """An imaginary part was dropped with NumPy's warning, a mask without a word."""
    with pytest.raises(TypeError, match=r"must return real numbers; got W of complex128\."):
        own = with_methods(update=lambda self, f, g, *_: tuple(1j * x for x in g))
        fastnc.descend(MODEL, rule=own, epochs=3)
    with pytest.raises(ValueError, match=r"`rule.update: W` must have no masked entry; got \d+"):
        own = with_methods(update=lambda self, f, g, *_: tuple(np.ma.masked_less(x, 0) for x in g))
        fastnc.descend(MODEL, rule=own, epochs=3)


def test_measurements_of_one_name():
    """The last one stood for both."""
    first, second = {"a": lambda W, H, y: 1.0}, {"a": lambda W, H, y: 2.0}
    for measure in ([first, second], ["sharpness", {"sharpness": lambda W, H, y: 1.0}]):
        with pytest.raises(ValueError, match="`measure` must have one function a name; got two of"):
            fastnc.descend(MODEL, epochs=2, measure=measure)
    assert "a" in fastnc.descend(MODEL, epochs=2, measure=[first, first])


def test_a_measurement_with_a_graph():
    torch = pytest.importorskip("torch")
    one = {"a": lambda W, H, y: torch.tensor(2.0, requires_grad=True) * 1.5}
    assert set(fastnc.descend(MODEL, epochs=2, measure=one)["a"]) == {3.0}


def test_a_rule_that_counts_its_calls_is_one_setting():
    class Counting(Plain):
        def __init__(self):
            self.calls = 0

        def update(self, *arguments):
            self.calls += 1
            return super().update(*arguments)

    rule = Counting()
    runs = fastnc.sweep(MODEL, rules=[rule], epochs=4, seeds=range(3), threads=1)
    assert rule.calls == 12
    ((name, group),) = runs.settings().items()
    assert len(group) == 3 and "calls=0" in name
