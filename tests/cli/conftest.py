"""Figures of commands: rendered where a test looks at them, a word in their place elsewhere."""

import pytest


@pytest.fixture
def rendered():
    """The figures of this test's commands are rendered."""


@pytest.fixture(autouse=True)
def figures(request, monkeypatch):
    """Figures are made and their files written; PNG and PDF take longer than all else of a run."""
    if "rendered" not in request.fixturenames:
        monkeypatch.setattr(
            "matplotlib.figure.Figure.savefig",
            lambda figure, file, **options: file.write(f"{options['format']} of {figure}".encode()),
        )
