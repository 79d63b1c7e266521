"""Profiles of a network's layers: what is drawn is what the table says."""

import re

import numpy as np
import pytest

import fastnc
from fastnc import plots


def metrics(noise, n_classes=4):
    rng = np.random.default_rng(n_classes)
    y = np.arange(20 * n_classes) % n_classes
    H = rng.standard_normal((n_classes, 6))[y] + noise * rng.standard_normal((len(y), 6))
    return fastnc.collapse_metrics(H, y)


def test_one_line_a_table_and_one_panel_a_metric():
    first = {"conv": metrics(1.0), "fc": metrics(0.1)}
    last = {"conv": metrics(0.5), "fc": metrics(0.01)}
    figure = plots.layers({"epoch 1": first, "epoch 9": last}, ("nc1", "cdnv"), title="net")
    figure.draw_without_rendering()
    assert [axes.get_title() for axes in figure.axes] == ["nc1", "cdnv"]
    for axes, name in zip(figure.axes, ("nc1", "cdnv"), strict=True):
        drawn = [line.get_ydata().tolist() for line in axes.lines]
        assert drawn == [[getattr(m, name) for m in one.values()] for one in (first, last)]
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["conv", "fc"]
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["epoch 1", "epoch 9"]


def test_what_is_zero_by_symmetry_is_drawn_as_zero():
    figure = plots.layers({"a": metrics(1.0, 2), "b": metrics(0.1, 2)}, ("equiangular_features",))
    (axes,) = figure.axes
    assert axes.get_yscale() == "linear" and axes.lines[0].get_ydata().tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({}, "`table` must be a dict of a layer's name to its `CollapseMetrics`; got an empty one"),
        ([1], "`table` must be a dict of a layer's name to its `CollapseMetrics`; got list"),
        ({"a": 1}, "`table` must hold `CollapseMetrics`, or tables of them"),
    ],
)
def test_tables_that_are_none(table, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        plots.layers(table)


def test_tables_that_do_not_fit():
    m = metrics(1.0)
    with pytest.raises(ValueError, match="`table` must have the same layers, in one order"):
        plots.layers({"epoch 1": {"a": m}, "epoch 2": {"b": m}})
    with pytest.raises(ValueError, match="'nc4_agreement' is None in every layer"):
        plots.layers({"a": m}, ("nc4_agreement",))
