"""The examples run, and what they assert of the paper holds; their figures are not written."""

import importlib.util
from pathlib import Path

import pytest
from matplotlib.figure import Figure

EXAMPLES = Path(__file__).parents[1] / "examples"
# `your_network` and `resnet_digits` train for longer than all of these take.
QUICK = (
    "figure2", "figure3", "implicit_bias", "long_horizon", "minority_collapse", "s3_1_margin",
    "s3_2_saddle", "sgd_escape", "table1",
)  # fmt: skip


@pytest.mark.parametrize("name", QUICK)
def test_an_example_asserts_what_it_shows(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [name])
    specification = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    example = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(example)
    if hasattr(example, "RESULTS"):
        for recorded in example.RESULTS.glob("figure3*.csv"):
            (tmp_path / recorded.name).write_bytes(recorded.read_bytes())
        example.RESULTS = tmp_path
    drawn = []
    monkeypatch.setattr(example, "save", lambda figure, stem: drawn.append(figure) or [stem],
                        raising=False)  # fmt: skip
    example.main()
    assert all(isinstance(figure, Figure) for figure in drawn)
    assert len(capsys.readouterr().out.splitlines()) > 3
