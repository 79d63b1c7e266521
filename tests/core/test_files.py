"""Atomic writes and the reader that unpickles nothing."""

import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest

import fastnc
from fastnc._core.files import atomic_write, locked, out_dir, read_npz, write_npz


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    atomic_write(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half of the n")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        atomic_write(path, fail)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_npz_round_trip_keeps_bits_and_types(tmp_path):
    arrays = {"x": np.array([1.5, np.nan, -0.0]), "k/y": np.arange(3, dtype=np.int32)}
    back = read_npz(write_npz(tmp_path / "a.npz", arrays), "the file")
    assert list(back) == list(arrays)
    for name, values in arrays.items():
        assert back[name].dtype == values.dtype
        assert back[name].tobytes() == values.tobytes()


@pytest.mark.parametrize("where", [0, 20, 60, -30])
def test_a_flipped_byte_is_noticed(tmp_path, where):
    path = write_npz(tmp_path / "a.npz", {"x": np.arange(64.0)})
    damaged = bytearray(path.read_bytes())
    damaged[where] ^= 0xFF
    path.write_bytes(damaged)
    try:
        back = read_npz(path, "the file")
    except ValueError as error:
        assert "is not readable" in str(error)
    else:
        # A byte that carries nothing, such as a time stamp: the contents must be whole.
        np.testing.assert_array_equal(back["x"], np.arange(64.0))


def test_pickles_and_truncated_files_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match=r"the file .* is not readable"):
        read_npz(path, "the file")
    write_npz(path, {"x": np.arange(64.0)})
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="is not readable"):
        read_npz(path, "the file")
    np.save(tmp_path / "b.npy", np.arange(3.0))
    with pytest.raises(ValueError, match="is not readable"):
        read_npz(tmp_path / "b.npy", "the file")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_npz(tmp_path / "none.npz", "the file")
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(ValueError, match="is a pipe or"):
        read_npz(tmp_path / "pipe.npz", "the file")


def test_out_dir_says_what_is_wrong(tmp_path):
    assert out_dir(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="`--out` must be a writable folder"):
        out_dir(tmp_path / "file")
    with pytest.raises(OSError, match="`--out` must be a writable folder"):
        out_dir(tmp_path / "file" / "below")


def test_a_column_that_is_lost_is_noticed(tmp_path):
    """The list of a zip file's members has no sum: one that a damaged byte renames is just gone."""
    path = write_npz(tmp_path / "a.npz", {"x": np.arange(3.0), "y": np.arange(4.0)})
    with np.load(path) as archive:
        arrays = dict(archive)
    for changed in ({"x", "__names__"}, {"x", "y", "__names__", "z"}):
        np.savez(path, **{name: arrays.get(name, arrays["x"]) for name in changed})
        with pytest.raises(ValueError, match="not the arrays that it was written with"):
            read_npz(path, "the file")


def test_a_member_of_other_bytes(tmp_path):
    path = write_npz(tmp_path / "a.npz", {"x": np.arange(3.0)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("y.npy", b"no array at all")
    with pytest.raises(ValueError, match="not every member is an array"):
        read_npz(path, "the file")


def test_nobody_elses_file_is_written_through(tmp_path):
    """A fixed temporary name may be a link, a pipe that nobody reads, or a user's own file."""
    path, other = tmp_path / "a.bin", tmp_path / "other"
    other.write_bytes(b"other's")
    (tmp_path / "a.bin.part").symlink_to(other)
    (tmp_path / ".fastnc-probe").write_bytes(b"mine")
    os.mkfifo(tmp_path / ".a.bin.0123456789ab.part")
    atomic_write(path, lambda file: file.write(b"new"))
    out_dir(tmp_path)
    assert path.read_bytes() == b"new" and other.read_bytes() == b"other's"
    assert (tmp_path / ".fastnc-probe").read_bytes() == b"mine"
    assert (tmp_path / "a.bin.part").is_symlink()


def test_links_stay_links(tmp_path):
    """The rename put a file in the place of a link, and its target kept the old content."""
    far = tmp_path / "far"
    far.mkdir()
    (tmp_path / "a.bin").symlink_to(far / "b.bin")
    for content in (b"first", b"second"):
        assert atomic_write(tmp_path / "a.bin", lambda f, c=content: f.write(c)).is_symlink()
        assert (far / "b.bin").read_bytes() == content
    assert [p.name for p in far.iterdir()] == ["b.bin"]


def test_no_pipe_and_no_device_is_replaced(tmp_path):
    """A rename would take the place of `/dev/null`, if its caller may write there."""
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    link = tmp_path / "link.csv"
    link.symlink_to(pipe)
    for path in (pipe, link):
        with pytest.raises(ValueError, match=r"`path` must be a file; '.*' is a pipe or"):
            atomic_write(path, lambda file: file.write(b"new"))
    assert pipe.is_fifo() and link.is_symlink()
    model = fastnc.ULPM(3, 2, 4)
    with pytest.raises(ValueError, match=r"`checkpoint` must be a file; '.*' is a pipe or"):
        fastnc.descend(model, epochs=2, checkpoint=pipe)
    with pytest.raises(ValueError, match=r"`checkpoint` must be a file; '/dev/full' is a pipe or"):
        fastnc.sweep(model, epochs=2, seeds=[0], checkpoint="/dev/full")


def test_what_a_killed_writer_left_is_removed(tmp_path):
    """Of a dead writer; what a living one holds is locked, and stays."""
    dead, alive = (tmp_path / f".a.bin.{digit * 12}.part" for digit in "01")
    dead.write_bytes(b"half")
    with open(alive, "wb") as file:
        assert locked(file.fileno())
        atomic_write(tmp_path / "a.bin", lambda file: file.write(b"new"))
        assert sorted(p.name for p in tmp_path.iterdir()) == [alive.name, "a.bin"]


def test_two_writers_of_one_file(tmp_path):
    """Both wrote one temporary file, and its two halves were of two calls, or it was gone."""
    code = (
        "import sys; from fastnc._core.files import atomic_write\n"
        "for _ in range(60):\n"
        "    atomic_write(sys.argv[1], lambda f: [f.write(sys.argv[2].encode()) for _ in '99'])"
    )
    path = tmp_path / "a.bin"
    writers = [subprocess.Popen([sys.executable, "-c", code, path, c * 9999]) for c in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert path.read_bytes() in {c * 9999 * 2 for c in (b"a", b"b")}
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_folder_that_is_gone_is_named(tmp_path):
    with pytest.raises(OSError, match=r"'.*a\.bin' cannot be written: No such file or directory\."):
        atomic_write(tmp_path / "gone" / "a.bin", lambda file: file.write(b"new"))


def test_nobody_is_told_to_unpickle(tmp_path):
    """NumPy's own message names the keyword that runs what a file holds."""
    path = tmp_path / "junk.npz"
    for content in (b"hello", b"\x80\x04N."):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"readable \(not an archive of arrays\)") as refused:
            read_npz(path, "the trajectory")
        assert "allow_pickle" not in str(refused.value)
