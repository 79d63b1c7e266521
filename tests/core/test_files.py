"""Atomic writes and the reader that unpickles nothing."""

import numpy as np
import pytest

from fastnc._core.files import atomic_write, out_dir, read_npz, write_npz


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


def test_out_dir_says_what_is_wrong(tmp_path):
    assert out_dir(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="`--out` must be a writable folder"):
        out_dir(tmp_path / "file")
    with pytest.raises(OSError, match="`--out` must be a writable folder"):
        out_dir(tmp_path / "file" / "below")
