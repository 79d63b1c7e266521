"""The checks of the paper's claims: all hold, the table and files say so, and one can fail."""

import csv
import json
import math
import re

import numpy as np
import pytest
from typer.testing import CliRunner

from fastnc.cli import build
from fastnc.paper import verify
from fastnc.paper.verify import Finding, all_hold, dynamics, margins, saddles, table

CLAIMS = [
    "Lemma 3.1", "Remark 3.1", "Theorem 3.2", "Section 2.2", "Theorem 3.1", "Lemma 3.2",
    "Lemma 3.3", "Example 3.1 (7)", "Example 3.1 (8)", "Example 3.1 (9)",
    "Example 3.1 (10), (11)", "Theorem 3.3", "Theorem 3.4", "(13), (14)", "Remark 3.3",
    "Remark 3.3, SGD", "Conserved", "Exact law", "Rate of (b)", "Rates of (a), (c), (d)",
    "Constants", "d = K - 1", "Section 5.3",
]  # fmt: skip


def test_the_command_checks_every_claim_and_all_hold(tmp_path):
    done = CliRunner().invoke(build(), ["verify", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert f"All {len(CLAIMS)} hold." in done.output and "FAILS" not in done.output
    for name in ("verify.png", "verify.pdf"):
        assert (tmp_path / name).stat().st_size > 5000
    rows = json.loads((tmp_path / "verify.json").read_text())
    assert [row["claim"] for row in rows] == CLAIMS
    with open(tmp_path / "verify.csv", newline="") as file:
        assert [row["claim"] for row in csv.DictReader(file)] == CLAIMS
    misprints = {row["claim"] for row in rows if row["verdict"] == "misprint"}
    assert misprints == {
        "Section 2.2", "Lemma 3.2", "Remark 3.1", "Example 3.1 (9)", "Example 3.1 (10), (11)",
        "(13), (14)", "Remark 3.3", "Remark 3.3, SGD", "Rate of (b)",
    }  # fmt: skip
    assert all(row["error"] <= row["tolerance"] and row["why"] for row in rows)
    assert len(CLAIMS) == verify._COUNT


def finding(error, printed=""):
    return Finding("Lemma 0", "one is one", "1", error, 1e-3, "none", printed)


def test_a_finding_that_is_off_fails_and_so_does_the_whole():
    good, bad, misprint = finding(1e-4), finding(2e-3), finding(0.0, "one is two")
    assert (good.verdict, bad.verdict, misprint.verdict) == ("holds", "FAILS", "misprint")
    assert all_hold([good, misprint]) and not all_hold([good, bad]) and not all_hold([])
    assert not finding(math.nan).holds and not finding(math.inf).holds
    text = table([good, bad, misprint])
    assert "FAILS" in text and text.endswith("Lemma 0  one is two")


def test_the_command_fails_if_one_claim_does(tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "check", lambda *_, **__: [finding(1e-4), finding(math.inf)])
    done = CliRunner().invoke(build(), ["verify", "--out", str(tmp_path)])
    assert done.exit_code == 1 and "1 of 2 do not hold: Lemma 0." in done.output


def another_direction(W, H, y, r):
    """A tangent one, said to be of negative curvature."""
    dW, dH = W, -H * (np.vdot(W, W) / np.vdot(H, H))
    length = np.hypot(np.linalg.norm(dW), np.linalg.norm(dH))
    return -0.1, (dW / length, dH / length)


@pytest.mark.parametrize(
    ("module", "name", "wrong", "claims"),
    [
        (margins, "neural_collapse_margin", lambda W, H, y: 1.001, [margins._lemma_31]),
        (saddles, "optimal_loss", lambda *_: 0.5, [saddles._theorem_33]),
        (
            saddles,
            "tangent_curvature",
            another_direction,
            [lambda _: saddles._point_7(), lambda _: saddles._theorem_34()],
        ),
    ],
)
def test_a_wrong_library_is_found_out(monkeypatch, module, name, wrong, claims):
    monkeypatch.setattr(module, name, wrong)
    assert not any(claim(0).holds for claim in claims)


def test_other_seeds_hold_too():
    for seed in (1, 2):
        for found in (*verify.section_3_1_1(seed), saddles._theorem_33(seed)):
            assert found.holds, found
        assert dynamics._lemma_32(seed).holds


def test_a_bad_seed(tmp_path):
    done = CliRunner().invoke(build(), ["verify", "--seed", "-1", "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert re.search("`seed` must be an integer of at least 0; got -1", done.output)


def test_the_fit_without_room_is_no_matter_of_luck():
    """Seed 5 was off by .031 of .030 where the logarithm of the curve was not fitted beside it."""
    found = dynamics._no_room(5)
    # The worst of seeds 0 to 49 is off by .018 or less; this one by .0012.
    assert found.holds and found.error < 0.005


def test_a_seed_whose_flow_lingers_is_refused_with_the_reason():
    with pytest.raises(
        ValueError, match=r"`seed` must not be 274: of the start of ULPM\(n_classes=3"
    ):
        verify.check(274)
