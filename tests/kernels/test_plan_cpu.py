"""The CPU's plans: what they choose and what they say of themselves."""

import numpy as np
import pytest

import fastnc
from fastnc.kernels.cpu.plan import plan


def test_every_plan_says_why():
    for shape in ((5, 20, 50), (10, 512, 1000), (1000, 512, 20_000), (50_000, 256, 1000)):
        planned = fastnc.plan(*shape, np.float32)
        assert tuple(plan(*shape, 4)) == (
            planned.divides, planned.products, planned.parts, planned.chunk, planned.block,
        )  # fmt: skip
        text = str(planned)
        assert "vector bytes" in text and "L2 bytes" in text
        assert all(f"{name} " in text for name in ("divides", "products", "parts", "chunk"))
    assert planned.divides == "classes"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 2, 3), "`n_classes` must be an integer of at least 2"),
        ((2, 0, 3), "`dim` must be an integer of at least 1"),
        ((2, 2, 0), "`n_samples` must be an integer of at least 1"),
        ((2, 2, 3, "float16"), "`dtype` must be 'float32' or 'float64'; got 'float16'"),
    ],
)
def test_what_has_no_plan(arguments, message):
    with pytest.raises(ValueError, match=message):
        fastnc.plan(*arguments)
