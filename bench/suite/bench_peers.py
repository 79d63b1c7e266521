"""asv: the gradients beside every peer, in turns and in one process, as `compare.py` does."""

from __future__ import annotations

import time

from compare import measure
from peers import PEERS

from .cases import CASES

ROUNDS = 3


class Peers:
    """A hundred classes in float32; a peer that is not installed is skipped."""

    params = (list(PEERS),)
    param_names = ("peer",)
    timeout = 300

    def setup_cache(self):
        case = CASES["hundred_classes"]
        _, rows, absent = measure(case, list(PEERS), "float32", ROUNDS, time.perf_counter)
        print(*absent, sep="\n")
        found = {name: numbers for name, *numbers in rows}
        # Without ours there is nothing to compare: the reason is printed above.
        assert "fastnc" in found
        return found

    setup_cache.timeout = 300

    def setup(self, found, peer):
        if peer not in found:
            raise NotImplementedError(f"{peer} did not take part")
        _, self.rate, _, self.share, self.memory, self.error = found[peer]

    def track_rate(self, found, peer):
        return self.rate

    track_rate.unit = "GFLOP/s"

    def track_times_as_long(self, found, peer):
        return self.share

    track_times_as_long.unit = "of the time of fastnc"

    def track_extra_memory(self, found, peer):
        return self.memory

    track_extra_memory.unit = "MB"

    def track_terminal_error(self, found, peer):
        """1 means that nothing of the label's entry is left."""
        return self.error

    track_terminal_error.unit = "relative"
