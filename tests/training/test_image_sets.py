"""Data sets of torchvision's and folders of images: read, made noisy, unequal and shifted."""

from types import SimpleNamespace

import numpy as np
import pytest
import small_training
import torch

from fastnc.training import image_sets
from fastnc.training.augmentation import augmented
from fastnc.training.data import load_data

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def root(tmp_path, monkeypatch):
    small_training.put_in_place(monkeypatch.setattr)
    small_training.write_files(tmp_path)
    return tmp_path


@pytest.fixture
def folder(tmp_path):
    """Two classes of two images for training, one for the test; the second set has a colour."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 3), ("test", 2)):
        for name, value in (("cat", 40), ("dog", 200)):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(n):
                pixels = np.full((9 + i, 7), value, np.uint8) + rng.integers(0, 9, (9 + i, 7), "u1")
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    return tmp_path


def test_a_folder_of_grey_images(folder):
    data = load_data(folder, "ImageFolder", image_size=8)
    assert data.train_images.shape == (6, 1, 8, 8) and data.test_images.shape == (4, 1, 8, 8)
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1] and data.n_classes == 2
    # Values of 40 to 48 and of 200 to 208 are resized to such.
    assert int(data.train_images[:3].max()) < 50 and int(data.train_images[3:].min()) >= 200


def test_one_image_in_colour_makes_three_channels(folder):
    Image.new("RGB", (5, 5), (255, 0, 9)).save(folder / "train" / "cat" / "red.png")
    data = load_data(folder, "ImageFolder", image_size=4)
    assert data.train_images.shape == (7, 3, 4, 4) and data.test_images.shape == (4, 3, 4, 4)
    red = data.train_images[3]
    assert red[:, 0, 0].tolist() == [255, 0, 9]


def test_folders_that_do_not_fit(folder, tmp_path):
    (folder / "test" / "dog").rename(folder / "test" / "wolf")
    with pytest.raises(ValueError, match=r"must have the same classes; only .*'dog', 'wolf'"):
        load_data(folder, "ImageFolder")
    with pytest.raises(FileNotFoundError, match=r"must have a folder `train` and a folder `test`"):
        load_data(folder / "train", "ImageFolder")
    for path in (folder / "train" / "cat").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"must hold a folder of images for each class"):
        load_data(folder, "ImageFolder")
    with pytest.raises(ValueError, match=r"`download` must be False for an ImageFolder"):
        load_data(folder, "ImageFolder", download=True)


@pytest.mark.parametrize("name", image_sets.TORCHVISION)
def test_torchvisions_sets(tmp_path, monkeypatch, name):
    """Objects like torchvision's, of which each has its own layout."""
    rng = np.random.default_rng(0)
    layout = {"CIFAR10": (20, 4, 4, 3), "CIFAR100": (20, 4, 4, 3), "SVHN": (20, 3, 4, 4)}
    pixels = rng.integers(0, 256, layout.get(name, (20, 4, 4)), dtype=np.uint8)
    labels = np.arange(20) % 4
    asked = []

    def kind(root, download=False, **split):
        asked.append((root, download, split))
        if name == "SVHN":
            return SimpleNamespace(data=pixels, labels=labels)
        data = torch.from_numpy(pixels) if pixels.ndim == 3 else pixels
        return SimpleNamespace(data=data, targets=labels.tolist())

    fake = SimpleNamespace(datasets=SimpleNamespace(**{name: kind}))
    monkeypatch.setattr(image_sets, "torchvision", lambda: fake)
    data = load_data(tmp_path, name, image_size=4)
    first = pixels[0].transpose(2, 0, 1) if name.startswith("CIFAR") else pixels[0]
    assert np.array_equal(data.train_images[0].numpy(), first.reshape(-1, 4, 4))
    assert data.train_labels.tolist() == labels.tolist() and data.n_classes == 4
    splits = [{"split": "train"}, {"split": "test"}]
    if name != "SVHN":
        splits = [{"train": True}, {"train": False}]
    assert asked == [(str(tmp_path), False, split) for split in splits]
    load_data(tmp_path, name, image_size=4, download=True)
    assert [download for _, download, _ in asked[2:4]] == [True, True]


def test_a_set_that_is_not_there(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=r"CIFAR10 is not in '.*' \(Dataset not found.*`root`, .*`download=True`",
    ):
        load_data(tmp_path, "CIFAR10")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"name": "CIFAR11"}, r"`name` must be one of .*; got 'CIFAR11'. The nearest .* CIFAR1"),
        ({"label_noise": 1.0}, r"`label_noise` must lie in \[0, 1\); got 1.0"),
        ({"name": 3}, r"`name` must be one of .*; got 3"),
        ({"label_noise": "a"}, r"`label_noise` must lie in \[0, 1\); got 'a'"),
        ({"imbalance": "a"}, r"`imbalance` must be a number of at least 1; got 'a'"),
        ({"seed": -1}, r"`seed` must be an integer of at least 0; got -1"),
        ({"imbalance": 0.5}, r"`imbalance` must be a number of at least 1; got 0.5"),
        ({"imbalance": float("nan")}, r"`imbalance` must be a number of at least 1; got nan"),
        ({"imbalance": 100.0}, r"`imbalance` must leave an image in every class, of 6 in .* 100"),
        ({"subset": 61}, r"`subset` must be at most the 60 training images; got 61"),
    ],
)
def test_options_that_make_no_sense(root, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_data(root, **options)


def test_options_of_another_kind(root):
    with pytest.raises(TypeError, match="`download` must be True or False; got 'x'"):
        load_data(root, download="x")
    with pytest.raises(TypeError, match="`root` must be a path; got int"):
        load_data(3)


def test_wrong_labels_are_as_many_as_asked_and_of_another_class(root):
    clean = load_data(root, image_size=6)
    noisy = load_data(root, image_size=6, label_noise=0.25)
    wrong = clean.train_labels != noisy.train_labels
    assert int(wrong.sum()) == 15 and torch.equal(clean.test_labels, noisy.test_labels)
    assert torch.equal(clean.train_images, noisy.train_images)
    assert len(noisy.train_labels[wrong].unique()) > 4
    assert clean.title == "FashionMNIST" and noisy.title == "FashionMNIST, label noise 0.25"
    again, other = (load_data(root, image_size=6, label_noise=0.25, seed=s) for s in (0, 1))
    assert torch.equal(again.train_labels, noisy.train_labels)
    assert not torch.equal(other.train_labels, noisy.train_labels)


def test_unequal_classes_fall_geometrically(root):
    data = load_data(root, image_size=6, imbalance=6.0)
    want = np.round(6 * 6.0 ** (-np.arange(10) / 9)).astype(int).tolist()
    assert np.bincount(data.train_labels.numpy()).tolist() == want and want[-1] == 1
    assert data.title == "FashionMNIST, imbalance 6"
    assert np.bincount(data.test_labels.numpy()).tolist() == [2] * 10


def test_classes_that_are_unequal_already_have_the_ratio_too(folder):
    """Of three images of class 0 and five of class 1 the larger class was class 1 before."""
    for i in (3, 4):
        Image.new("L", (5, 5), 200).save(folder / "train" / "dog" / f"{i}.png")
    data = load_data(folder, "ImageFolder", image_size=4, imbalance=3.0)
    assert np.bincount(data.train_labels.numpy()).tolist() == [3, 1]
    data = load_data(folder, "ImageFolder", image_size=4, subset=5, imbalance=1.5)
    assert np.bincount(data.train_labels.numpy()).tolist() == [3, 2]


@pytest.mark.parametrize("augment", ["shift", "shift-flip"])
def test_shifts_and_mirrors(augment):
    x = torch.arange(1, 2 * 3 * 16 * 16 + 1).reshape(2, 3, 16, 16) % 251 + 1
    x = x.to(torch.uint8).repeat(40, 1, 1, 1)
    y = augmented(x, augment, np.random.SeedSequence(3))
    assert y.shape == x.shape and y.dtype == x.dtype
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    seen = set()
    for i in range(len(x)):
        found = [
            (row, column, flip)
            for row in range(5) for column in range(5) for flip in (False, True)
            if torch.equal(
                y[i], (lambda p: p.flip(2) if flip else p)(
                    padded[i, :, row : row + 16, column : column + 16]
                ),
            )
        ]  # fmt: skip
        assert len(found) == 1
        seen.add(found[0])
    assert {flip for *_, flip in seen} == ({False} if augment == "shift" else {False, True})
    assert {row for row, *_ in seen} == {column for _, column, _ in seen} == set(range(5))
    again = augmented(x, augment, np.random.SeedSequence(3))
    assert torch.equal(again, y) and augmented(x, "none", np.random.SeedSequence(3)) is x
