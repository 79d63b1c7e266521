"""What `fastnc metrics` refuses: damaged files, files that do not fit together, vain options."""

import pickle

import numpy as np
import pytest
from hostile import ALL, BIAS, Bomb, H, W, Y
from typer.testing import CliRunner

from fastnc.cli import build


def invoke(*arguments):
    return CliRunner().invoke(build(), ["metrics", *map(str, arguments)])


def spoilt(tmp_path, mistake):
    """Writes a file with that mistake and returns its path and what must be said."""
    path = tmp_path / "bad.npz"
    bad = {key: array.copy() for key, array in ALL.items()}
    if mistake == "nan":
        bad["features"][437, 5] = np.nan
    elif mistake == "label":
        bad["labels"][20] = 7
    elif mistake == "shape":
        bad["weight"] = W[:, :-1]
    elif mistake == "missing":
        del bad["labels"]
    elif mistake == "one class":
        bad["labels"][:] = 0
    elif mistake == "object":
        bad["features"] = np.array([{}, {}], dtype=object)
    np.savez(path, **bad)
    if mistake == "cut":
        path.write_bytes(path.read_bytes()[:3000])
    elif mistake == "text":
        path.write_text("features")
    elif mistake == "ending":
        path = path.rename(tmp_path / "bad.csv")
    elif mistake == "none":
        path.unlink()
    return path


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        ("nan", "`features` must be finite; got nan in sample 437, feature 5."),
        ("label", "`labels` must lie in 0..6 (7 classes were given); got 7 at index 20."),
        ("shape", "`weight` must have 13 columns; got shape (7, 12)."),
        (
            "missing",
            "must hold `features` and `labels`; labels missing, got bias, features",
        ),
        ("one class", "at least 2 classes must have samples; got only class 0."),
        ("object", "is not readable (Object arrays cannot be loaded"),
        ("cut", "is not readable (File is not a zip file); it is damaged"),
        ("text", "is not readable (File is not a zip file); it is damaged"),
        ("ending", "`FILE` must end in .npy, .npz, .pt, .pth, .safetensors; got"),
        ("none", "does not exist."),
    ],
)
def test_mistakes_are_told_in_a_line(tmp_path, mistake, sentence):
    path = spoilt(tmp_path, mistake)
    done = invoke(path, "--out", tmp_path / "out")
    assert done.exit_code == 2, done.output
    assert sentence in done.output and done.output.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("ending", [".npz", ".npy", ".pt", ".safetensors"])
def test_nothing_is_unpickled(tmp_path, ending):
    trap = tmp_path / "sprung"
    path = tmp_path / f"features{ending}"
    path.write_bytes(pickle.dumps({"features": Bomb(trap), "labels": Y}))
    done = invoke(path, "--out", tmp_path)
    assert done.exit_code == 2 and "is not readable" in done.output
    assert done.output.count("\n") == 1 and not trap.exists()
    pickle.loads(path.read_bytes())["features"].close()
    assert trap.exists()


def test_parts_that_are_no_parts(tmp_path):
    """A file that was given twice had twice the samples."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    one, layered = tmp_path / "one.npz", tmp_path / "layered.npz"
    np.savez(one, labels=y, features=rng.standard_normal((60, 4)))
    np.savez(layered, labels=y, first=rng.standard_normal((60, 4)))
    twice = invoke(one, tmp_path / "*e.npz", "--out", tmp_path / "o")
    assert twice.exit_code == 2 and "`FILE` must have different values; got" in twice.output
    other = invoke(one, "--test", layered, "--out", tmp_path / "o")
    assert other.exit_code == 2
    assert "the files must all hold features, or all hold layers; some hold each." in other.output
    np.savez(tmp_path / "second.npz", labels=y, second=rng.standard_normal((60, 4)))
    other = invoke(layered, "--test", tmp_path / "second.npz", "--out", tmp_path / "o")
    assert "every file must hold the layer 'second'; one does not." in other.output


def test_files_of_two_classifiers(tmp_path):
    """The first one was taken without a word."""
    half = {"features": H[::2], "labels": Y[::2]}
    rest = {"features": H[1::2], "labels": Y[1::2]}
    first, second, bare = (tmp_path / f"{name}.npz" for name in ("first", "second", "bare"))
    np.savez(first, **half, weight=W, bias=BIAS)
    np.savez(bare, **rest)
    for name, other in (
        ("weight", {"weight": W + 1.0, "bias": BIAS}),
        ("bias", {"bias": 2 * W[:, 0]}),
    ):
        np.savez(second, **rest, **other)
        for files in ([first, second], [first, "--about", second], [first, "--test", second]):
            done = invoke(*files, "--out", tmp_path / "o")
            assert done.exit_code == 2
            assert f"one classifier; two of them hold different `{name}`. Give" in done.output
    np.save(tmp_path / "weight.npy", W)
    np.save(tmp_path / "bias.npy", BIAS)
    given = ("--weight", tmp_path / "weight.npy", "--bias", tmp_path / "bias.npy")
    told = []
    for files in ([first, second, *given], [first, bare]):
        assert invoke(*files, "--out", tmp_path / "o").exit_code == 0
        told.append((tmp_path / "o" / "metrics.json").read_text())
    assert told[0] == told[1]
    for option in ("--about", "--test"):
        done = invoke(first, option, second, *given, "--out", tmp_path / "o")
        assert done.exit_code == 0, done.output


def test_options_that_say_nothing_of_the_files(tmp_path):
    """They were ignored without a word."""
    layered = tmp_path / "layers.npz"
    np.savez(layered, labels=Y, first=H, second=H[:, :5])
    np.save(tmp_path / "weight.npy", W)
    done = invoke(layered, "--weight", tmp_path / "weight.npy", "--out", tmp_path / "o")
    assert done.exit_code == 2
    assert "`--weight` and `--bias` must belong to features; the file holds layers." in done.output
    np.save(tmp_path / "features.npy", H)
    np.save(tmp_path / "labels.npy", Y)
    done = invoke(tmp_path / "features.npy", "--features-key", "X", "--out", tmp_path / "o")
    assert done.exit_code == 2
    assert "must name arrays of a file that has names; a .npy" in done.output
    done = invoke(layered, "--convention", "papyan", "--out", tmp_path / "o")
    assert done.exit_code == 0
    assert "own forms; layers.json has those of papyan." in done.output


@pytest.mark.parametrize("classifier", [True, False])
def test_negative_labels_are_told_in_the_words_of_options(tmp_path, classifier):
    """The way out was an argument of a function."""
    given = ALL if classifier else {"features": H, "labels": Y}
    np.savez(tmp_path / "a.npz", **given | {"labels": np.where(Y == 6, -100, Y)})
    done = invoke(tmp_path / "a.npz", "--out", tmp_path / "o")
    said = " ".join(done.output.split())
    assert done.exit_code == 2 and "ass `--ignore-index=-100` if such samples" in said
    assert "numpy" not in said and "ignore_index" not in said
