"""`fastnc table1` as a user types it: what it writes, Ctrl-C, and one sentence for each mistake."""

import csv

import pytest
from typer.testing import CliRunner

from fastnc.cli import build
from fastnc.paper import table1


def invoke(*arguments):
    return CliRunner().invoke(build(), ["table1", *map(str, arguments)])


def lines(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("rendered")
def test_writes_the_table_and_both_figures(tmp_path):
    done = invoke("--n-per-class", 3, "--seed", 2, "--out", tmp_path / "new")
    assert done.exit_code == 0, done.output
    for name in ("table1.csv", "geometry.png", "geometry.pdf", "minority_collapse.png",
                 "minority_collapse.pdf"):  # fmt: skip
        assert (tmp_path / "new" / name).stat().st_size > 1000 and name in done.output
    tabular = (tmp_path / "new" / "table1.tex").read_text()
    assert tabular.startswith("\\begin{tabular}{ll") and tabular.count("\\\\\n") == 17
    assert "cross-entropy + decay, bias & " in tabular and "\\times 10^{-" in tabular
    table = lines(tmp_path / "new" / "table1.csv")
    assert len(table) == 16 and all(row["model"] in done.output for row in table)
    assert all(float(row["gap"]) < 1e-8 for row in table if row["gap"])
    assert "n_per_class=3" in table[1]["parameters"]


def test_ctrl_c_keeps_the_rows_that_are_done(tmp_path, monkeypatch):
    solve = table1.solve

    def interrupted(model, *options, **named):
        if isinstance(model, table1.M.norm_constrained):
            raise KeyboardInterrupt
        return solve(model, *options, **named)

    monkeypatch.setattr(table1, "solve", interrupted)
    done = invoke("--n-per-class", 2, "--out", tmp_path)
    assert done.exit_code == 130 and "Traceback" not in done.output
    assert "stopped by Ctrl-C after 4 of 16 rows; they are in" in done.output
    assert [row["model"] for row in lines(tmp_path / "table1.csv")] == [
        "ULPM", "sphere", "separation", "separation, unequal (SELI)"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--n-classes", 1], "`n_classes` must be an integer of at least 2; got 1"),
        (["--n-per-class", 0], "`n_per_class` must be an integer of at least 1; got 0"),
        (["--dim", 1], "`dim` must be an integer of at least 2; got 1"),
        (["--seed", -1], "`seed` must be an integer of at least 0; got -1"),
        (["--starts", 0], "`starts` must be an integer of at least 1; got 0"),
        (["--dim", "wide"], "--dim"),
    ],
)
def test_bad_options_are_told_in_a_sentence(tmp_path, arguments, sentence):
    done = invoke(*arguments, "--out", tmp_path)
    assert done.exit_code == 2 and sentence in done.output and "Traceback" not in done.output
    assert list(tmp_path.iterdir()) == []


def test_unwritable_out(tmp_path):
    (tmp_path / "file").write_text("mine")
    done = invoke("--out", tmp_path / "file")
    assert done.exit_code == 2 and "`--out` must be a writable folder" in done.output


def test_help_names_every_option():
    text = CliRunner().invoke(build(), ["table1", "--help"], env={"COLUMNS": "200"}).output
    for option in ["--n-classes", "--n-per-class", "--dim", "--seed", "--starts", "--out"]:
        assert option in text
