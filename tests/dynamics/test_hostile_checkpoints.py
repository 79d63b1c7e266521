"""Checkpoints whose file is whole and whose contents are of something else: refused, untouched.

The kernels check nothing, so an array of another shape that reached one would be read past its
end. Every member of every kind of checkpoint is taken away, and replaced by arrays that do not
fit, one at a time.
"""

import json

import numpy as np
import pytest

import fastnc
from fastnc.dynamics.checkpoint import check_same_problem
from fastnc.models import weight_decay

MODEL = fastnc.ULPM(n_classes=3, n_per_class=2, dim=4)


def plain(path, dtype="float64", **more):
    return fastnc.descend(MODEL, lr=0.5, epochs=40, dtype=dtype, checkpoint=path, **more)


def noisy(path, **more):
    return fastnc.descend(MODEL, lr=0.5, epochs=40, noise=0.1, checkpoint=path, **more)


def decayed(path, **more):
    model = weight_decay(3, 2, 4, 5e-3, 5e-3, bias=True)
    return fastnc.descend(model, lr=0.5, epochs=40, checkpoint=path, **more)


def by_flow(path, solver="direct", **more):
    return fastnc.flow(MODEL, 3.0, solver=solver, checkpoint=path, **more)


def swept(path, **more):
    return fastnc.sweep(MODEL, lr=0.5, epochs=40, seeds=range(2), checkpoint=path, **more)


def composed(path, **more):
    rule = fastnc.rules.Adam(1e-2)
    return fastnc.descend(
        MODEL, epochs=20, rule=rule, batch_size=2, label_noise=0.1, checkpoint=path, **more
    )


RUNS = {
    "composed": composed,
    "plain": plain,
    "compensated": lambda path, **more: plain(path, dtype="float32", **more),
    "noisy": noisy,
    "decayed": decayed,
    "flow": by_flow,
    "flow, Krylov": lambda path, **more: by_flow(path, solver="krylov", **more),
    "sweep": swept,
}
# What takes the place of a member.
WRONG = {
    "gone": None,
    "empty": np.zeros(0),
    "short": np.ones(1),
    "long": np.ones((9, 9, 9)),
    "text": np.array("W"),
    "JSON": np.array(json.dumps({"W": [1, 2]})),
    "deep": np.array("[" * 100_000),
    "infinite": np.array(np.inf),
    "negative": np.array(-1),
}
TIMES = {"column/epoch", "column/log10_time"}


@pytest.mark.parametrize("name", RUNS)
def test_members_that_do_not_fit(name, tmp_path):
    path = tmp_path / "checkpoint.npz"
    end = RUNS[name](path)
    with np.load(path, allow_pickle=False) as archive:
        members = dict(archive)
    # A table may lack a quantity, if not its times.
    quantities = {member for member in members if "column/" in member} - TIMES
    # Nor need a file have the list of its names: others' files have none.
    quantities.add("__names__")
    resumed = RUNS[name](path, resume=True)
    for run, again in zip(*((x if name == "sweep" else [x]) for x in (end, resumed)), strict=True):
        assert run.W.tobytes() == again.W.tobytes() and run.H.tobytes() == again.H.tobytes()
    for member, right in members.items():
        for wrong in WRONG.values():
            held = {**members, member: wrong}
            if wrong is None:
                del held[member]
            elif wrong.shape == right.shape and "U" not in wrong.dtype.kind + right.dtype.kind:
                # Another value of the same kind is another checkpoint, not a damaged one.
                continue
            np.savez(path, **held)
            before = path.read_bytes()
            if wrong is None and member in quantities:
                continue
            with pytest.raises(
                ValueError, match=r"checkpoint.npz' is (not one|of another|not readable)"
            ) as told:
                RUNS[name](path, resume=True)
            assert str(told.value).endswith(".") and path.read_bytes() == before


@pytest.mark.parametrize(
    ("theirs", "ours", "told"),
    [
        (list(range(40)), list(range(41)), "is a list of 40, this run's is a list of 41"),
        (list(range(40)), [*range(39), 7], "is 39 at index 39, this run's is 7"),
        ([1, 2], [1, 3], r"is \[1, 2\], this run's is \[1, 3\]"),
    ],
)
def test_long_lists_are_told_apart(theirs, ours, told):
    """Both ended in dots before they differed."""
    with pytest.raises(ValueError, match=f"of another problem: its `seeds` {told}\\. Give the"):
        check_same_problem("checkpoint.npz", {"seeds": theirs}, {"seeds": ours})


def test_long_rules_are_told_apart(tmp_path):
    """Both were cut to "AdamW(lr=Cosine(rate=0.01, epochs=100000, ...", the same text."""
    made = [fastnc.rules.AdamW(fastnc.rules.Cosine(1e-2, 10**5), weight_decay=w) for w in (0.1, 2)]
    with pytest.raises(ValueError) as told:
        theirs, ours = ({"rule": repr(rule)} for rule in made)
        check_same_problem("checkpoint.npz", theirs, ours)
    told = str(told.value)
    theirs, ours = told.partition("its `rule` is ")[2].split(", this run's is ")
    assert "weight_decay=0.1" in theirs and "weight_decay=2" in ours, told


def test_a_sweeps_checkpoint_is_none_of_a_run(tmp_path):
    """They said that fastnc had not written it."""
    model, path = fastnc.ULPM(2, 2, 2), tmp_path / "checkpoint.npz"
    fastnc.sweep(model, epochs=3, seeds=range(2), checkpoint=path)
    before = path.read_bytes()
    for resumed in (fastnc.descend, fastnc.flow):
        with pytest.raises(ValueError, match=r"is that of a sweep\. Go on with `fastnc\.sweep`"):
            resumed(model, checkpoint=path, resume=True)
    assert path.read_bytes() == before
    fastnc.descend(model, epochs=3, checkpoint=path)
    with pytest.raises(ValueError, match=r"is that of one run, not of a sweep\. Go on with"):
        fastnc.sweep(model, epochs=3, seeds=range(2), checkpoint=path, resume=True)
