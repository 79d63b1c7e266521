"""Damaged, hostile and half-written files: a sentence, nothing executed, nothing lost."""

import errno
import io
import os
import pickle
import zipfile

import numpy as np
import pytest
from hostile import Bomb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastnc
from fastnc.dynamics.checkpoint import Checkpoint

REFUSED = (ValueError, OSError)


def trajectory():
    rng = np.random.default_rng(0)
    columns = {"epoch": np.arange(4), "log_loss": rng.standard_normal(4)}
    about = {"kind": "descent", "lr": 5.0}
    W, H = rng.standard_normal((3, 2)), rng.standard_normal((6, 2))
    return fastnc.Trajectory(columns, W, H, np.repeat(np.arange(3), 2), about)


def checkpoint():
    run = trajectory()
    columns = {name: run[name] for name in run.columns}
    return Checkpoint(dict(run.about), {"W": run.W, "H": run.H}, columns)


def content(loaded):
    """Everything a file held, to compare with."""
    if isinstance(loaded, fastnc.Trajectories):
        return {f"{i}/{k}": v for i, run in enumerate(loaded) for k, v in content(run).items()}
    if isinstance(loaded, Checkpoint):
        arrays = {**loaded.state, **loaded.columns}
        return {**arrays, "about": loaded.problem}
    arrays = {name: loaded[name] for name in loaded.columns}
    return {**arrays, "W": loaded.W, "H": loaded.H, "y": loaded.y, "about": loaded.about}


# What writes an example, and what reads it back.
READERS = {
    "trajectory": (lambda path: trajectory().save(path), fastnc.Trajectory.load),
    "checkpoint": (
        lambda path: checkpoint().save(path),
        lambda path: Checkpoint.load(path, checkpoint().problem),
    ),
    "trajectories": (
        lambda path: fastnc.Trajectories([trajectory(), trajectory()]).save(path),
        fastnc.Trajectories.load,
    ),
}


def refused_or_unchanged(name, path, expected):
    before = path.read_bytes()
    try:
        loaded = content(READERS[name][1](path))
    except REFUSED as error:
        assert str(path) in str(error)
        assert str(error).rstrip().endswith(".")
    else:
        assert loaded.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_array_equal(loaded[key], value)
    assert path.read_bytes() == before


@pytest.fixture(params=sorted(READERS))
def written(request, tmp_path):
    path = tmp_path / "file.npz"
    READERS[request.param][0](path)
    return request.param, path, content(READERS[request.param][1](path))


def test_flipped_bytes(written):
    name, path, expected = written
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.choice(len(whole), size=400, replace=False):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        refused_or_unchanged(name, path, expected)


def test_every_flipped_bit_of_an_entry_in_the_directory(written):
    # Flags, sizes, times, attributes: what no sum is taken of. One flag means "encrypted".
    name, path, expected = written
    whole = path.read_bytes()
    first = whole.index(b"PK\x01\x02")
    for bit in range(8 * first, 8 * whole.index(b"PK\x01\x02", first + 1)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        refused_or_unchanged(name, path, expected)


def test_flipped_bits_of_a_file_that_somebody_packed(written):
    name, path, expected = written
    with np.load(path) as archive:
        np.savez_compressed(path, **dict(archive))
    whole = path.read_bytes()
    for bit in np.random.default_rng(0).choice(8 * len(whole), size=200, replace=False):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << int(bit % 8)
        path.write_bytes(damaged)
        refused_or_unchanged(name, path, expected)


def test_truncated(written):
    name, path, expected = written
    whole = path.read_bytes()
    for length in {0, 1, 4, len(whole) // 2, len(whole) - 22, len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(REFUSED, match=r"is not readable|is not"):
            READERS[name][1](path)
        refused_or_unchanged(name, path, expected)


@pytest.mark.parametrize("name", sorted(READERS))
def test_random_bytes(name, tmp_path_factory):
    path = tmp_path_factory.mktemp("random") / "file.npz"

    @settings(
        max_examples=100,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(st.sampled_from([b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"\x80\x04"]), st.binary())
    def random_bytes(start, rest):
        path.write_bytes(start + rest)
        with pytest.raises(REFUSED) as refused:
            READERS[name][1](path)
        assert str(refused.value).rstrip().endswith(".")

    random_bytes()


@pytest.mark.parametrize("name", sorted(READERS))
def test_pickles_are_not_opened(name, tmp_path):
    fuse = tmp_path / "exploded"
    path = tmp_path / "file.npz"
    bomb = np.empty(1, dtype=object)
    bomb[0] = Bomb(fuse)
    for write in (
        lambda file: np.savez(file, epoch=bomb, W=bomb, about=bomb, problem=bomb),
        lambda file: np.save(file, bomb),
        lambda file: pickle.dump(bomb[0], file),
    ):
        with open(path, "wb") as file:
            write(file)
        with pytest.raises(REFUSED):
            READERS[name][1](path)
        assert not fuse.exists()


@pytest.mark.parametrize("name", sorted(READERS))
@pytest.mark.parametrize("shape", ["(10000000000000,)", "(-1,)", "(2, 3", "'x'"])
def test_headers_that_lie(name, shape, tmp_path):
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    body = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    path = tmp_path / "file.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for member in ("epoch.npy", "W.npy", "column/epoch.npy", "about.npy"):
            archive.writestr(member, body)
    with pytest.raises(REFUSED, match=r"\.$"):
        READERS[name][1](path)


@pytest.mark.parametrize("name", sorted(READERS))
def test_member_names_are_not_paths(name, tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    path = inside / "file.npz"
    array = io.BytesIO()
    np.save(array, np.ones(3))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../escaped.npy", array.getvalue())
        archive.writestr("column/../../escaped.npy", array.getvalue())
    with pytest.raises(REFUSED):
        READERS[name][1](path)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file.npz", "inside"]


@pytest.mark.parametrize("moment", ["open", "write", "fsync", "replace"])
def test_a_failed_write_keeps_the_old_file(written, moment, monkeypatch):
    name, path, expected = written

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    match moment:
        case "open":
            monkeypatch.setattr(os, "open", full)
        case "write":
            monkeypatch.setattr(np, "savez", full)
        case _:
            monkeypatch.setattr(os, moment, full)
    with pytest.raises(OSError, match="No space left"):
        READERS[name][0](path)
    monkeypatch.undo()
    refused_or_unchanged(name, path, expected)
    np.testing.assert_equal(content(READERS[name][1](path)), expected)
    assert [p.name for p in path.parent.iterdir()] == ["file.npz"]


def test_a_disk_that_fills_up_during_a_run_keeps_the_snapshots(tmp_path, monkeypatch):
    model = fastnc.ULPM(n_classes=5, n_per_class=2, dim=3)
    path = tmp_path / "checkpoint.npz"
    fastnc.descend(model, lr=1.0, epochs=10, checkpoint=path)
    before = path.read_bytes()

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        fastnc.descend(model, lr=1.0, epochs=20, checkpoint=path, resume=True)
    assert path.read_bytes() == before
