"""Other sources' numbers, worked out by their own steps, and ours under their names."""

import oracles
import pytest

import fastnc
from fastnc.collapse.conventions import CONVENTIONS

# Unequal classes, a classifier that is not centred and a bias: where the sources differ most.
H, Y, W, BIAS = oracles.clouds(6, 9, 60)


@pytest.mark.parametrize(
    ("convention", "theirs"),
    [
        ("papyan", oracles.papyan_in_print(H, Y, W, BIAS)),
        ("papyan-notebook", oracles.papyan(H, Y, W, BIAS)),
        ("zhu", oracles.zhu(H, Y, W, BIAS)),
    ],
)
def test_their_numbers(convention, theirs):
    ours = fastnc.collapse_metrics(H, Y, W, BIAS).as_dict(convention)
    assert list(ours) == list(theirs)
    for label, value in theirs.items():
        # Their steps in float64 lose some digits to the inverse of Sigma_B: 1e-10 leaves room.
        assert ours[label] == pytest.approx(float(value), rel=1e-10), label


def test_their_numbers_without_a_bias():
    theirs = oracles.rhubarbwu(H, Y, W)
    ours = fastnc.collapse_metrics(H, Y, W).as_dict("rhubarbwu")
    # That needs features of another distribution; see `fastnc.nc5`.
    assert ours.pop("NC5: OOD deviation") is None
    assert list(ours) == list(theirs)
    for label, value in theirs.items():
        assert ours[label] == pytest.approx(float(value), rel=1e-10), label


def test_the_forms_do_differ():
    # Were they equal on these data, the tests above could not tell them apart.
    m = fastnc.collapse_metrics(H, Y, W, BIAS)
    for ours, theirs in (
        ("nc1", "nc1_sample_mean"),
        ("equinorm_classifier", "equinorm_classifier_raw"),
        ("equiangular_classifier", "equiangular_classifier_raw"),
        ("nc2_gram_classifier", "nc2_gram_classifier_raw"),
        ("nc3_gram", "nc3_gram_raw"),
        ("nc3_gram_raw", "nc3_gram_sample_mean"),
    ):
        assert abs(getattr(m, ours) / getattr(m, theirs) - 1) > 1e-4, (ours, theirs)


def test_the_paper_s_set_is_figure_2():
    m = fastnc.collapse_metrics(H, Y, W, BIAS)
    assert m.as_dict("paper") == dict(list(m.as_dict().items())[:6])


def test_what_sums_tell_of_them():
    s = fastnc.ClassStatistics(6, 9, scatter="full")
    s.update(H, Y)
    alone, both = s.metrics(W, BIAS), fastnc.collapse_metrics(H, Y, W, BIAS)
    # Sums of the same numbers in another order.
    assert alone.nc1_sample_mean == pytest.approx(both.nc1_sample_mean, rel=1e-12)
    for label, value in both.as_dict("zhu").items():
        assert alone.as_dict("zhu")[label] == pytest.approx(value, rel=1e-12)
    assert alone.as_dict("papyan")["NC4: mismatch"] is None


def test_every_name_of_the_table_is_an_attribute():
    m = fastnc.collapse_metrics(H, Y, W, BIAS)
    for table in CONVENTIONS.values():
        for name, _ in table.values():
            assert getattr(m, name) is not None or name == "nc5"


def test_unknown_convention():
    m = fastnc.collapse_metrics(H, Y)
    sentence = r"`convention` must be None or one of 'paper', .*'papyan-notebook', .*; got 'hui'"
    with pytest.raises(ValueError, match=sentence):
        m.as_dict("hui")
