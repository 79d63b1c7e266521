"""Every plan of the CPU kernels, for small problems too."""

import pytest
from kernel_problems import BY_SAMPLES, PLANS

from fastnc.kernels.cpu import cross_entropy, hessian


@pytest.fixture(params=PLANS)
def arrangement(request, monkeypatch):
    """A name of `PLANS`, which is what the objective's kernels follow meanwhile."""
    if PLANS[request.param] is not None:
        monkeypatch.setattr(cross_entropy, "plan", lambda *_: PLANS[request.param])
    return request.param


@pytest.fixture(params=BY_SAMPLES)
def by_samples(request, monkeypatch):
    """The same for products with the Hessian."""
    if PLANS[request.param] is not None:
        monkeypatch.setattr(hessian, "plan", lambda *_, **__: PLANS[request.param])
    return request.param
