"""The torch loss, forward and backward, beside the fastest of torch's own on the same arrays."""

import subprocess
import sys
import time

import torch
import torch.nn.functional as F

from fastnc.nn import linear_cross_entropy

from .cases import CASES

NAMES = ["tiny", "middle", "thousand_classes"]
PEAK = """
import resource, sys
sys.path.insert(0, {here!r})
import torch
from cases import CASES
from fastnc.nn import linear_cross_entropy

def run(case, samples):
    W, H, y = map(torch.from_numpy, case.arrays())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    H = H[:samples].requires_grad_()
    linear_cross_entropy(H, W.requires_grad_(), y[:samples]).backward()
    return before

# Compiles and loads; then what the case itself takes.
run(CASES[{name!r}], 64)
before = run(CASES[{name!r}], None)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def eager(H, W, y):
    return F.cross_entropy(F.linear(H, W), y)


class LinearCrossEntropy:
    """Loss and both gradients in float32."""

    params = (NAMES,)
    param_names = ("case",)
    timeout = 300

    def setup(self, name):
        self.W, self.H, self.y = map(torch.from_numpy, CASES[name].arrays())
        self.W.requires_grad_()
        self.H.requires_grad_()
        ours, theirs = self.grads(linear_cross_entropy), self.grads(eager)
        for a, b in zip(ours, theirs, strict=True):
            # Sums of up to 2e5 numbers in float32, in another order, beside the largest entry.
            if not (a - b).abs().max() <= 1e-3 * b.abs().max():
                raise ArithmeticError(f"{name}: gradients differ from torch's")

    def grads(self, loss):
        return torch.autograd.grad(loss(self.H, self.W, self.y), [self.H, self.W])

    def time_forward_and_backward(self, name):
        self.grads(linear_cross_entropy)

    def track_share_of_eager(self, name):
        """Medians of interleaved rounds: what a noisy machine does, it does to both."""
        times = {linear_cross_entropy: [], eager: []}
        end = time.perf_counter() + 0.5
        while time.perf_counter() < end or len(times[eager]) < 3:
            for loss, found in times.items():
                start = time.perf_counter()
                self.grads(loss)
                found.append(time.perf_counter() - start)
        ours, theirs = (sorted(found)[len(found) // 2] for found in times.values())
        return ours / theirs

    track_share_of_eager.unit = "of the time of torch"


class Peak:
    """By how much the process grows, beside the logits that are not formed."""

    params = (["ten_thousand_classes"],)
    param_names = ("case",)
    timeout = 300

    def track_peak_beside_logits(self, name):
        code = PEAK.format(name=name, here=str(__file__).rsplit("/", 1)[0])
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        case = CASES[name]
        unit = 1 if sys.platform == "darwin" else 1024
        return float(done.stdout) * unit / (4 * case.n_classes * case.n_samples)

    track_peak_beside_logits.unit = "of N K float32"
