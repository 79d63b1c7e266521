"""FashionMNIST's files: read, verified and resized, and a sentence for each that does not fit."""

import gzip
import os
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import small_training
import torch

import fastnc
from fastnc.training import data, idx_files

# The folder that holds `FashionMNIST/raw`, for whoever has the real files.
REAL = os.environ.get("FASTNC_FASHION_MNIST")


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """The folder of a small data set, whose facts stand for FashionMNIST's."""
    monkeypatch.setattr(idx_files, "FACTS", small_training.facts())
    monkeypatch.setattr(idx_files, "_SIDE", small_training.SIDE)
    return small_training.write_files(tmp_path)


def load(raw, **options):
    return data.fashion_mnist(raw.parent.parent, **options)


@pytest.mark.parametrize("packed", [True, False])
def test_reads_what_was_written(raw, packed):
    small_training.write_files(raw.parent.parent, packed)
    if not packed:
        for path in raw.glob("*.gz"):
            path.unlink()
    found = load(raw, image_size=small_training.SIDE)
    for split, n, seed in (("train", 60, 1), ("test", 20, 2)):
        x, y = small_training.images(n, seed)
        images, labels = getattr(found, f"{split}_images"), getattr(found, f"{split}_labels")
        assert images.dtype == torch.uint8 and labels.dtype == torch.int64
        assert np.array_equal(images[:, 0].numpy(), x) and np.array_equal(labels.numpy(), y)
    x = small_training.images(60, 1)[0] / 255.0
    # Sums of 2160 numbers below 1, in float64.
    assert found.mean == pytest.approx(x.mean(), abs=1e-13)
    assert found.std == pytest.approx(x.std(), abs=1e-13)


def test_resizing_keeps_a_constant_and_the_mean(raw):
    flat = data.resized(np.full((3, 1, 6, 6), 77, np.uint8), 9)
    assert flat.shape == (3, 1, 9, 9) and bool((flat == 77).all())
    found = load(raw, image_size=12)
    # Twice the size, bilinear: every pixel's weight is about 4, at an edge a little more.
    assert found.train_images.shape == (60, 1, 12, 12)
    assert found.mean == pytest.approx(small_training.facts()["train"].mean, abs=0.01)
    ramp = data.resized(np.arange(0, 36, dtype=np.uint8).reshape(1, 1, 6, 6) * 7, 3)[0, 0]
    assert bool((ramp[:, 1:] > ramp[:, :-1]).all() and (ramp[1:] > ramp[:-1]).all())


def test_a_subset_is_even_and_the_first_of_each_class(raw):
    found = load(raw, image_size=6, subset=25)
    counts = np.bincount(found.train_labels.numpy(), minlength=10)
    assert len(found.train_labels) == 25 and set(counts.tolist()) == {2, 3}
    assert len(found.test_labels) == 20
    # The small files hold the classes by turns, so the first of each are the first rows.
    assert np.array_equal(found.train_images[:, 0].numpy(), small_training.images(60, 1)[0][:25])


def test_evenly_takes_turns_in_unsorted_labels():
    labels = np.array([3] * 50 + list(range(10)) * 3, np.uint8)
    rows = data._evenly(labels, 20)
    assert np.bincount(labels[rows]).tolist() == [2] * 10
    assert rows[:2].tolist() == [0, 1] and (np.diff(rows) > 0).all()


def test_the_fingerprint_sees_every_byte(raw):
    found = load(raw, image_size=6)
    before = found.fingerprint()
    # What normalises the images too: a resumed network had other inputs.
    for change in ({"mean": found.mean + 0.1}, {"std": 2.0 * found.std}):
        assert replace(found, **change).fingerprint() != before
    assert before == load(raw, image_size=6).fingerprint()
    found.test_images[-1, 0, 0, 0] += 1
    assert found.fingerprint() != before
    found.test_images[-1, 0, 0, 0] -= 1
    found.train_labels[0] = 5
    assert found.fingerprint() != before


@pytest.mark.parametrize("options", [{"subset": 9}, {"subset": 61}, {"image_size": 0}])
def test_sizes_that_make_no_sense(raw, options):
    with pytest.raises(ValueError, match=r"`(subset|image_size)` must be"):
        load(raw, **options)


def test_a_missing_file_says_where_and_what_to_do(raw):
    (raw / "t10k-labels-idx1-ubyte.gz").unlink()
    sentence = "is not in '.*raw': there is no t10k-labels-idx1-ubyte or .*"
    with pytest.raises(FileNotFoundError, match=rf"{sentence}`root`, .*`download=True`\.$"):
        load(raw)
    # Of each door in its own words.
    with pytest.raises(FileNotFoundError, match=rf"{sentence}`data`, .*download=True\)`\.$"):
        fastnc.training.train(raw.parents[1], 1)


def test_a_packed_file_cut_short(raw):
    path = raw / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"train-images.*is damaged \(.*\): fetch it again"):
        load(raw)


def test_every_flipped_bit_of_a_packed_file(raw):
    path = raw / "train-labels-idx1-ubyte.gz"
    whole, told = path.read_bytes(), set()
    content = gzip.decompress(whole)
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            # Bits of the packing's own, such as its time, are nobody's loss.
            assert idx_files._read_idx(raw, path.stem, (60,)).tobytes() == content[8:]
        except ValueError as error:
            assert str(error).endswith(": fetch it again.")
            told.add(str(error))
    assert any("while decompressing" in sentence for sentence in told)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: b"\0\0\x09" + content[3:],
        lambda content: content[:4] + (61).to_bytes(4, "big") + content[8:],
        lambda content: b"",
    ],
    ids=["short", "long", "magic", "count", "empty"],
)
def test_a_wrong_size_or_header(raw, change):
    path = raw / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))
    sentence = (
        r"must hold 60 x 6 x 6 bytes after a header of 16; got \d+ bytes( or more)? that begin"
    )
    with pytest.raises(ValueError, match=sentence):
        load(raw)


def test_a_packed_file_that_grows_without_end(raw):
    """Three gigabytes of zeros in three megabytes took twice that before they were refused."""
    path = raw / "train-images-idx3-ubyte.gz"
    start = gzip.decompress(path.read_bytes())[:16]
    path.write_bytes(gzip.compress(start) + gzip.compress(bytes(1 << 20)) * 64)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"after a header of 16; got 2177 bytes or more that"):
            load(raw)
        # What is unpacked at once is a buffer, not the file.
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("what", ["images-idx3", "labels-idx1"])
def test_halves_that_were_exchanged(raw, what):
    """Sizes, counts, mean and deviation stay; image and label belong together no more."""
    x, y = small_training.images(60, 1)
    # As in the real files the classes stand in no order, which halves would share.
    order = np.random.default_rng(0).permutation(60)
    held = {"images-idx3": x[order], "labels-idx1": y[order]}
    for kind, array in held.items():
        small_training.write_idx(raw / f"train-{kind}-ubyte.gz", array)
    load(raw)
    small_training.write_idx(raw / f"train-{what}-ubyte.gz", np.roll(held[what], 30, axis=0))
    with pytest.raises(ValueError, match=r"train images and labels .* do not belong together: \d"):
        load(raw)


@pytest.mark.parametrize("what", ["images-idx3", "labels-idx1", "both"])
def test_train_and_test_exchanged(raw, what):
    for kind in ("images-idx3", "labels-idx1"):
        if what in (kind, "both"):
            train, test = raw / f"train-{kind}-ubyte.gz", raw / f"t10k-{kind}-ubyte.gz"
            contents = train.read_bytes(), test.read_bytes()
            test.write_bytes(contents[0])
            train.write_bytes(contents[1])
    with pytest.raises(ValueError, match=r"train-.*must hold 60 .*bytes after a header of"):
        load(raw)


def test_other_images_of_the_same_size(raw):
    other = 255 - small_training.images(60, 1)[0]
    small_training.write_idx(raw / "train-images-idx3-ubyte.gz", other)
    with pytest.raises(ValueError, match=r"train images .* are not FashionMNIST's: their mean and"):
        load(raw)


@pytest.mark.parametrize("label", [0, 10, 255])
def test_labels_that_are_not_even(raw, label):
    labels = small_training.images(60, 1)[1]
    labels[5] = label
    small_training.write_idx(raw / "train-labels-idx1-ubyte.gz", labels)
    with pytest.raises(ValueError, match=r"train labels .* must be 6 of each of 10 classes; got"):
        load(raw)


def test_download_is_torchvisions_and_only_when_asked(raw, monkeypatch):
    from types import SimpleNamespace

    from fastnc.training import image_sets

    asked = []
    fake = SimpleNamespace(FashionMNIST=lambda *args, **options: asked.append((args, options)))
    monkeypatch.setattr(image_sets, "torchvision", lambda: SimpleNamespace(datasets=fake))
    load(raw)
    assert asked == []
    load(raw, download=True)
    assert asked == [((str(raw.parent.parent),), {"train": True, "download": True})]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"train_images": torch.rand(60, 1, 6, 6)}, r"`train_images` .* of bytes, .*\(255 \* im"),
        ({"test_images": torch.zeros(20, 6, 6).byte()}, r"`test_images` must be \(N, .*\(20, 6, 6"),
        ({"test_images": torch.zeros(0, 1, 6, 6).byte()}, r"`test_images` must be .*, one or more"),
        ({"train_labels": np.arange(60)}, r"`train_labels` must be a torch tensor; got ndarray"),
        ({"train_labels": torch.zeros(60)}, r"`train_labels` must hold integers; got float32"),
        ({"test_labels": torch.arange(3)}, r"`test_labels` must have one label a sample \(20\)"),
        ({"n_classes": 9}, r"`train_labels` must lie in 0..8 .* give a larger `n_classes`"),
        ({"std": 0.0}, r"`std` must be a positive number; got 0.0"),
        ({"mean": None}, r"`mean` must be a finite number; got None"),
        ({"title": 3}, "`title` must be a text; got int"),
    ],
)
def test_images_and_labels_of_ones_own_that_do_not_fit(change, sentence):
    good = small_training.dataset()
    with pytest.raises((TypeError, ValueError), match=sentence):
        replace(good, **change)


@pytest.mark.skipif(REAL is None, reason="FASTNC_FASHION_MNIST names no folder")
def test_the_real_files_pass():
    found = data.fashion_mnist(REAL, image_size=28, subset=1000)
    assert found.train_images.shape == (1000, 1, 28, 28)
    assert np.bincount(found.train_labels.numpy()).tolist() == [100] * 10
    assert len(found.test_labels) == 1000
