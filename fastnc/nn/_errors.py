"""Errors of the loss that are torch's and Python's at once, so that either `except` finds them."""

from __future__ import annotations


class ShapeError(ValueError, RuntimeError):
    """Shapes, devices or layouts that do not fit: torch's RuntimeError, and a ValueError."""


class DtypeError(TypeError, RuntimeError):
    """Dtypes that do not fit: torch's RuntimeError, and a TypeError."""


class LabelError(ValueError, IndexError):
    """A label out of range: torch's IndexError, and a ValueError."""
