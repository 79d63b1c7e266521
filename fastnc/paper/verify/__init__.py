"""Every lemma and theorem of the paper, checked numerically, one finding each.

    >>> from fastnc import verify
    >>> [finding.claim for finding in verify.section_3_1_1(seed=0)]
    ['Lemma 3.1', 'Remark 3.1', 'Theorem 3.2']

A misprint holds if the corrected claim was found to hold *and* the printed one not to.
"""

from __future__ import annotations

from collections.abc import Iterator

from fastnc._core.progress import progress_bar
from fastnc.paper.verify._finding import Finding, all_hold, table, write_csv, write_json
from fastnc.paper.verify.dynamics import beyond, check_starts, section_3_1_2
from fastnc.paper.verify.margins import section_3_1_1
from fastnc.paper.verify.saddles import section_3_2

__all__ = [
    "Finding", "all_hold", "beyond", "check", "section_3_1_1", "section_3_1_2", "section_3_2",
    "table", "write_csv", "write_json",
]  # fmt: skip

# For the progress bar only.
_COUNT = 23


def check(seed: int = 0, progress: bool = False) -> list[Finding]:
    """All findings, in the paper's order.

    Parameters
    ----------
    seed : int >= 0
        Of every random point and start. With each of the seeds 0 to 49 all claims held.
    progress : bool
        Show a progress bar on a terminal.

    Raises
    ------
    ValueError
        The flow from this seed's start has not reached its rates where they are measured.

    Notes
    -----
    Cost: some seconds once the kernels are compiled.
    """
    check_starts(seed)
    findings = []
    with progress_bar(_COUNT, "claims", "verify", show=progress) as bar:
        for finding in _all(seed):
            findings.append(finding)
            bar.update(1)
    return findings


def _all(seed: int) -> Iterator[Finding]:
    yield from section_3_1_1(seed)
    yield from section_3_1_2(seed)
    yield from section_3_2(seed)
    yield from beyond(seed)
