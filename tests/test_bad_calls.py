"""Thousands of calls with arguments that make no sense: a sentence, or the right answer.

Never a traceback from inside a kernel, never a crash, never a wrong number: what a call does
not refuse is compared with the reference in float64.
"""

from functools import partial

import numpy as np
import pytest
from hostile_arguments import (
    REFUSALS,
    SEEDS,
    agrees,
    biases,
    is_plain,
    labels,
    matrices,
    numbers,
    problem,
    refusal_or_result,
    spoil,
    wide,
)

import fastnc
from fastnc import models, reference

CALLS = 2000


@pytest.mark.parametrize("seed", SEEDS)
def test_objective(seed):
    rng = np.random.default_rng((seed, 0))
    answered = 0
    for _ in range(CALLS // 2):
        W, H, y = problem(rng)
        arguments = {"W": W, "H": H, "y": y, "reduction": "sum", "impl": None}
        choices = {
            "W": partial(matrices, rng, W), "H": partial(matrices, rng, H),
            "y": partial(labels, rng, y, len(W)),
            "reduction": partial(numbers, rng, "mean"), "impl": partial(numbers, rng, None),
        }  # fmt: skip
        name = str(rng.choice(["loss", "loss_and_grads", "log_loss_and_grads", "gradient_step"]))
        if name == "gradient_step":
            arguments["lr"], choices["lr"] = 0.1, partial(numbers, rng, 0.1)
        arguments = spoil(rng, arguments, choices)
        before = {key: wide(x) for key, x in arguments.items() if key in "WH" and is_plain(x)}
        result = refusal_or_result(getattr(fastnc, name), arguments)
        if result is None:
            continue
        answered += 1
        W64, H64, y64 = before["W"], before["H"], wide(arguments["y"]).astype(int)
        scale = 1.0 / len(H64) if arguments["reduction"] == "mean" else 1.0
        dtype = arguments["W"].dtype
        if name == "log_loss_and_grads":
            value, dW, dH = reference.log_loss_and_grads(W64, H64, y64)
            expected = (value + np.log(scale), dW, dH)
        else:
            value, dW, dH = reference.loss_and_grads(W64, H64, y64)
            expected = (scale * value, scale * dW, scale * dH)
        if name == "gradient_step":
            lr = float(arguments["lr"])
            found = (result, arguments["W"], arguments["H"])
            expected = (expected[0], W64 - lr * expected[1], H64 - lr * expected[2])
        else:
            found = result if isinstance(result, tuple) else (result,)
        for a, b in zip(found, expected, strict=False):
            assert agrees(a, b, dtype), (name, arguments)
    # The draw must reach both outcomes.
    assert 0.05 < answered / (CALLS // 2) < 0.9


@pytest.mark.parametrize("seed", SEEDS)
def test_margins_and_metrics(seed):
    rng = np.random.default_rng((seed, 1))
    answered = 0
    for _ in range(CALLS // 4):
        W, H, y = problem(rng)
        name = str(rng.choice(["margins", "margin_ratio", "kkt", "collapse_metrics"]))
        arguments = {"W": W, "H": H, "y": y}
        choices = {
            "W": partial(matrices, rng, W), "H": partial(matrices, rng, H),
            "y": partial(labels, rng, y, len(W)),
        }  # fmt: skip
        if name == "collapse_metrics":
            arguments["bias"], choices["bias"] = None, partial(biases, rng, W)
        arguments = spoil(rng, arguments, choices)
        result = refusal_or_result(getattr(fastnc, name), arguments)
        answered += result is not None
        if result is not None and name == "margins":
            expected = reference.margins(
                wide(arguments["W"]), wide(arguments["H"]), wide(arguments["y"]).astype(int)
            )
            assert agrees(result, expected, result.dtype)
    assert 0.1 < answered / (CALLS // 4) < 0.9


@pytest.mark.parametrize("seed", SEEDS)
def test_statistics_keep_what_they_gathered(seed):
    rng = np.random.default_rng((seed, 2))
    for _ in range(CALLS // 16):
        _, H, y = problem(rng)
        K = int(y.max()) + 1
        statistics = fastnc.ClassStatistics(n_classes=K, dim=H.shape[1])
        statistics.update(H, y)
        gathered = {k: np.copy(v) for k, v in statistics.state_dict().items()}
        choices = {"H": partial(matrices, rng, H), "y": partial(labels, rng, y, K)}
        arguments = spoil(rng, {"H": H, "y": y}, choices)
        update = statistics.update
        try:
            update(arguments["H"], arguments["y"])
        except REFUSALS as error:
            assert str(error).rstrip().endswith(".")
            for name, value in statistics.state_dict().items():
                np.testing.assert_array_equal(value, gathered[name])


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        (fastnc.ULPM, {"n_classes": 3, "n_per_class": 2, "dim": 3}),
        (
            models.weight_decay,
            {"n_classes": 3, "n_per_class": 2, "dim": 3, "weight_decay_W": 0.1,
             "weight_decay_H": 0.1},
        ),
        (models.norm_constrained,
         {"n_classes": 3, "n_per_class": 2, "dim": 3, "energy_W": 1.0, "energy_H": 1.0}),
        (models.normalized, {"n_classes": 3, "n_per_class": 2, "dim": 3, "temperature": 1.0}),
        (
            models.squared_error,
            {"n_classes": 3, "n_per_class": 2, "dim": 3, "weight_decay_W": 0.1,
             "weight_decay_H": 0.1},
        ),
        (
            models.imbalanced,
            {"class_sizes": [3, 1], "dim": 3, "weight_decay_W": 0.1, "weight_decay_H": 0.1},
        ),
        (fastnc.ClassStatistics, {"n_classes": 3, "dim": 2, "scatter": "full"}),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)  # fmt: skip
@pytest.mark.parametrize("seed", SEEDS)
def test_constructors(call, arguments, seed):
    rng = np.random.default_rng((seed, 3))
    for _ in range(CALLS // 32):
        choices = {name: partial(numbers, rng, value) for name, value in arguments.items()}
        refusal_or_result(call, spoil(rng, dict(arguments), choices))


@pytest.mark.parametrize("seed", SEEDS)
def test_runs(seed):
    rng = np.random.default_rng((seed, 4))
    model = fastnc.ULPM(n_classes=5, n_per_class=2, dim=3)
    W, H = model.init(seed=0)
    good = {"model": model, "lr": 1.0, "epochs": 3, "seed": 1, "snapshots": 2, "W": W, "H": H,
            "noise": 0.0, "device": "cpu", "schedule": "constant", "dtype": "float64"}  # fmt: skip
    for _ in range(CALLS // 32):
        choices = {name: partial(numbers, rng, value) for name, value in good.items()}
        choices |= {"W": partial(matrices, rng, W), "H": partial(matrices, rng, H)}
        run = refusal_or_result(fastnc.descend, spoil(rng, dict(good), choices))
        assert run is None or np.isfinite(run.W).all()
