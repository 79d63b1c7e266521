"""Features files that are damaged or hostile: a sentence, nothing executed, no array past its file.

A map of features carries no sum, so a flipped byte of a number is another number; one of a header
must not become another shape that reads beyond the array.
"""

import io
import pickle
import zipfile

import numpy as np
import pytest
from hostile import ALL, FORMATS, Bomb, H, Y, compressed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastnc
from fastnc.collapse.features_file import read_features

REFUSED = (ValueError, TypeError, OSError, OverflowError)


def refused_or_read(path):
    """Reads and measures; True if that was refused, in a sentence."""
    before = path.read_bytes()
    try:
        held = read_features(path)
        fastnc.collapse_metrics(held.features, held.labels, held.weight, held.bias)
    except REFUSED as error:
        text = str(error)
        assert text[-1] in ".)" and len(text) < 500 and "\x1b" not in text, text
        return True
    finally:
        assert path.read_bytes() == before
    return False


@pytest.mark.parametrize("write", FORMATS)
def test_truncated(write, tmp_path):
    path = write(tmp_path)
    assert not refused_or_read(path)
    whole = path.read_bytes()
    for length in (0, 1, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"is not readable \(.+\); it is damaged, pickled or"):
            read_features(path)


# A damaged number may be too large to square, which the metrics refuse, or may warn of on the way.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("write", FORMATS)
def test_flipped_bytes(write, tmp_path):
    path = write(tmp_path)
    whole = path.read_bytes()
    rng, refused = np.random.default_rng(0), 0
    # A third of them among the headers in front, a third among those behind.
    size = len(whole)
    for place in (*range(100), *rng.integers(size, size=100), *range(size - 100, size)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        refused += refused_or_read(path)
    # Of an array's bytes only the sums of a compressed archive tell.
    assert refused > (100 if write is compressed else 20)


@pytest.mark.parametrize("ending", [".npz", ".npy", ".pt", ".safetensors"])
def test_random_bytes(ending, tmp_path_factory):
    path = tmp_path_factory.mktemp("random") / f"features{ending}"
    start = [b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"\x80\x02", b"\x40" + b"\0" * 7 + b"{"]

    @settings(
        max_examples=60, deadline=None, database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )  # fmt: skip
    @given(st.sampled_from(start), st.binary())
    def random_bytes(start, rest):
        path.write_bytes(start + rest)
        with pytest.raises(ValueError, match=r"is not readable \(.+\); it is damaged, pickled or"):
            read_features(path)

    random_bytes()


def header(shape, descr="'<f8'", body=b""):
    """A `.npy` that claims that shape."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + body


def lying(folder, form, member):
    """A file whose features are `member`, with labels that are in order."""
    labels = io.BytesIO()
    np.save(labels, Y)
    if form == "npy":
        (folder / "labels.npy").write_bytes(labels.getvalue())
        path = folder / "features.npy"
        path.write_bytes(member)
        return path
    path = folder / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("features.npy", member)
        archive.writestr("labels.npy", labels.getvalue())
        archive.writestr("behind.npy", bytes(10_000))
    return path


@pytest.mark.parametrize("form", ["npy", "npz"])
@pytest.mark.parametrize(
    "shape",
    [
        "(501, 17)", "(-1,)", "(-501, -13)", "(4611686018427387904, 4)", "(10000000000000,)",
        "(2, 3", "(" * 3000 + ")" * 3000, "'x'", "(2**3,)", "(501, 13, 1, 2)",
    ],
    ids=lambda shape: shape[:12],
)  # fmt: skip
def test_headers_that_lie(form, shape, tmp_path):
    path = lying(tmp_path, form, header(shape, body=H.tobytes()))
    with pytest.raises(ValueError, match=r"is not readable \(.+\); it is damaged, pickled or"):
        read_features(path)


@pytest.mark.parametrize("form", ["npy", "npz"])
@pytest.mark.parametrize("descr", ["'|V8'", "'<U2'", "'<c8'", "'<M8[s]'", "[('a', '<f8')]", "'|O'"])
def test_arrays_that_hold_no_numbers(form, descr, tmp_path):
    path = lying(tmp_path, form, header("(501, 13)", descr, H.tobytes()))
    assert refused_or_read(path)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_tensors_without_rows_in_memory(tmp_path):
    torch = pytest.importorskip("torch")
    path, rows = tmp_path / "a.pt", torch.from_numpy(H)
    for kind, odd in (
        ("meta", rows.to("meta")),
        ("sparse_coo", rows.to_sparse()),
        ("nested", torch.nested.nested_tensor([rows[:3], rows[3:5]], layout=torch.strided)),
    ):
        for key in ("features", "labels", "weight"):
            held = {name: torch.from_numpy(array) for name, array in ALL.items()}
            torch.save({**held, key: odd}, path)
            with pytest.raises(ValueError, match=f"`{key}` must be a dense tensor in mem.*{kind}"):
                read_features(path)
    torch.save([rows], path)
    with pytest.raises(ValueError, match=r"it must hold a dict of tensors; got list"):
        read_features(path)
    torch.save({"features": [1.0], "labels": Y.tolist()}, path)
    with pytest.raises(ValueError, match=r"`features` of '.*a.pt' must be an array; got list."):
        read_features(path)


def test_pickles_within_are_not_opened(tmp_path):
    fuse = tmp_path / "exploded"
    bomb = np.empty(1, dtype=object)
    bomb[0] = Bomb(fuse)
    np.savez(tmp_path / "a.npz", features=bomb, labels=Y)
    np.save(tmp_path / "features.npy", bomb)
    np.save(tmp_path / "labels.npy", Y)
    paths = [tmp_path / "a.npz", tmp_path / "features.npy"]
    torch = pytest.importorskip("torch")
    torch.save({"features": Bomb(fuse), "labels": Y}, tmp_path / "a.pt")
    for path in [*paths, tmp_path / "a.pt"]:
        with pytest.raises(ValueError, match=r"is not readable"):
            read_features(path)
    assert not fuse.exists()
    # The bomb is live: unpickled by anyone else, it goes off.
    pickle.loads(pickle.dumps(bomb[0])).close()
    assert fuse.exists()


def test_many_names_and_names_that_a_terminal_obeys(tmp_path):
    """200,000 keys made a sentence of 1.7 MB; escape codes of a key reached the terminal."""
    names = {f"\x1b[2J{i:05d}": np.zeros(1) for i in range(3000)}
    np.savez(tmp_path / "f.npz", **names)
    with pytest.raises(ValueError, match=r"and 2988 more\. Name the arrays so, or pass") as told:
        read_features(tmp_path / "f.npz")
    assert len(str(told.value)) < 1000 and str(told.value).isprintable()
    torch = pytest.importorskip("torch")
    torch.save({f"\x1b]0;{i}\x07": torch.zeros(1) for i in range(50)}, tmp_path / "f.pt")
    with pytest.raises(ValueError, match="and 38 more") as told:
        read_features(tmp_path / "f.pt", features_key="\x1b[31mred")
    assert str(told.value).isprintable()


def test_member_names_are_not_paths(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    path = inside / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("../features.npy", "/labels.npy", "features/../../labels.npy"):
            archive.writestr(name, header("(501, 13)", body=H.tobytes()))
    with pytest.raises(ValueError, match=r"must hold `features` and `labels`"):
        read_features(path)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.npz", "inside"]
