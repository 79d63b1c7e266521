"""The model's sizes, labels and start."""

import numpy as np
import pytest

from fastnc import ULPM


def test_balanced_labels_and_sizes():
    model = ULPM(n_classes=3, n_per_class=2, dim=4)
    assert model.y.tolist() == [0, 0, 1, 1, 2, 2] and model.n_samples == 6
    assert model.class_sizes.tolist() == [2, 2, 2]
    assert ULPM(3, dim=4, labels=[2, 0, 2]).class_sizes.tolist() == [1, 0, 2]
    assert ULPM(labels=[0, 4, 2]).n_classes == ULPM(n_per_class=1).n_classes == 5


def test_the_start_has_variance_one_over_dim_and_is_the_seeds():
    model = ULPM(n_classes=200, n_per_class=5, dim=50)
    W, H = model.init(seed=3)
    # 10,000 and 50,000 entries: the sample variance is within 5 standard errors of 1/d.
    assert W.var() == pytest.approx(1 / 50, rel=5 * np.sqrt(2 / W.size))
    assert H.var() == pytest.approx(1 / 50, rel=5 * np.sqrt(2 / H.size))
    again_W, again_H = model.init(seed=3)
    assert np.array_equal(W, again_W) and np.array_equal(H, again_H)
    assert not np.array_equal(W, model.init(seed=4)[0])
    assert np.array_equal(model.init(3, "float32")[0], W.astype("float32"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"n_classes": 1, "n_per_class": 2}, "`n_classes` must be an integer of at least 2; got 1"),
        ({"n_per_class": 0}, "`n_per_class` must be an integer of at least 1; got 0"),
        ({"n_per_class": 2, "dim": 0}, "`dim` must be an integer of at least 1; got 0"),
        ({"n_per_class": 2, "dim": 2.5}, "`dim` must be an integer of at least 1; got 2.5"),
        ({}, "exactly one of `n_per_class` and `labels`"),
        ({"n_per_class": 2, "labels": [0]}, "exactly one of `n_per_class` and `labels`"),
        ({"labels": []}, "`labels` must hold at least one label"),
        (
            {"n_classes": 5, "labels": [0, 5]},
            r"`labels` must lie in 0..4 \(5 classes were given\); got 5 at index 1. Relabel, or "
            "give more `n_classes`",
        ),
        # A problem of five classes, two of them absent, was solved without a word.
        (
            {"labels": [0, 1, 2]},
            "`n_classes` must be given with `labels` of other than 5 classes; got labels up to 2. "
            "Give `n_classes=3`, or more",
        ),
        ({"labels": [0, 5]}, "got labels up to 5. Give `n_classes=6`, or more"),
        ({"labels": np.int64(3)}, r"`labels` must have 1 dimension; got shape \(\)"),
        ({"labels": "abc"}, "`labels` must be a NumPy array or a torch tensor; got str"),
        ({"labels": [0.5]}, "`labels` must hold integers; got float64"),
        ({"labels": [[0]]}, "must have 1 dimension"),
    ],
)
def test_bad_sizes_and_labels(arguments, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        ULPM(**arguments)


def test_bad_starts():
    model = ULPM(5, 2, 3)
    with pytest.raises(ValueError, match="`seed` must be an integer of at least 0"):
        model.init(seed=-1)
    with pytest.raises(TypeError, match="`dtype` must be 'float32' or 'float64'; got 'float16'"):
        model.init(dtype="float16")


def test_models_are_equal_whose_problems_are():
    model = ULPM(3, 2, 4)
    assert model == ULPM(3, labels=[0, 0, 1, 1, 2, 2], dim=4)
    assert hash(model) == hash(ULPM(3, 2, 4))
    others = [
        ULPM(3, 3, 4),
        ULPM(3, 2, 5),
        ULPM(3, labels=[0, 1, 2, 0, 1, 2], dim=4),
        ULPM(3, 2, 4, loss="focal"),
        ULPM(3, 2, 4, loss="focal", gamma=1.0),
    ]
    assert len({model, *others}) == 6
    assert model != "ULPM"
