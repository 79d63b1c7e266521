"""`fastnc metrics` as a user types it: every format, the files it writes, one line a mistake."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hostile import ALL, BIAS, FORMATS, Bomb, H, W, Y, npy, npz
from typer.testing import CliRunner

import fastnc
from fastnc.cli import build
from fastnc.collapse.features_file import read_features


def invoke(*arguments):
    return CliRunner().invoke(build(), ["metrics", *map(str, arguments)])


@pytest.mark.parametrize("write", FORMATS)
def test_every_format_gives_the_same_metrics(tmp_path, write):
    path = write(tmp_path)
    done = invoke(path, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    whole = fastnc.collapse_metrics(H, Y, W, BIAS)
    assert str(whole) in done.output
    assert (tmp_path / "out" / "metrics.json").read_text() == whole.json() + "\n"
    for name in ("metrics.png", "metrics.pdf"):
        assert (tmp_path / "out" / name).stat().st_size > 10_000
        assert name in done.output


def test_what_can_be_mapped_is(tmp_path):
    assert isinstance(read_features(npy(tmp_path)).features, np.memmap)
    held = read_features(npz(tmp_path))
    assert isinstance(held.features, np.memmap)
    for key, array in ALL.items():
        assert np.array_equal(getattr(held, key), array), key
    np.savez(tmp_path / "f.npz", features=np.asfortranarray(H), labels=Y)
    assert np.array_equal(read_features(tmp_path / "f.npz").features, H)


def test_half_precision_everywhere(tmp_path):
    torch = pytest.importorskip("torch")
    save_file = pytest.importorskip("safetensors.torch").save_file
    held = {key: torch.from_numpy(array) for key, array in ALL.items()}
    for key in ("features", "weight", "bias"):
        held[key] = held[key].bfloat16()
    save_file(held, tmp_path / "b.safetensors")
    torch.save(held, tmp_path / "b.pt")
    for name in ("b.safetensors", "b.pt"):
        done = invoke(tmp_path / name, "--out", tmp_path)
        assert done.exit_code == 0, done.output
    halves = {key: array.astype(np.float16) for key, array in ALL.items()}
    np.savez(tmp_path / "h.npz", **(halves | {"labels": Y}))
    assert invoke(tmp_path / "h.npz", "--out", tmp_path).exit_code == 0


def test_options_name_the_other_arrays(tmp_path):
    for key, array in ALL.items():
        np.save(tmp_path / f"{key[0]}.npy", array)
    done = invoke(
        tmp_path / "f.npy", "--labels", tmp_path / "l.npy", "--weight", tmp_path / "w.npy",
        "--bias", tmp_path / "b.npy", "--convention", "zhu", "--out", tmp_path,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    told = fastnc.collapse_metrics(H, Y, W, BIAS).as_dict("zhu")
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert {name: written[name] for name in told} == told
    assert all(name in done.output for name in told)


def test_labels_are_names_without_a_classifier(tmp_path):
    np.savez(tmp_path / "named.npz", features=H, labels=np.array([-4, 0, 7, 8, 9, 10, 99])[Y])
    done = invoke(tmp_path / "named.npz", "--out", tmp_path)
    assert done.exit_code == 0 and str(fastnc.collapse_metrics(H, Y)) in done.output


def test_the_figure_of_many_classes(tmp_path):
    from fastnc.plots import collapse_figure

    y = np.arange(2000) % 1000
    s = fastnc.ClassStatistics(1000, 3)
    s.update(np.random.default_rng(0).standard_normal((2000, 3)), y)
    figure = collapse_figure(s.metrics(), s)
    assert "400 of 1000 classes" in figure.axes[0].get_title()
    assert figure.axes[0].get_images()[0].get_array().shape == (400, 400)


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
        ("nan", "`H` must be finite; got nan in sample 437, feature 5."),
        ("label", "`y` must lie in 0..6 (7 classes were given); got 7 at index 20."),
        ("shape", "`W` must have 13 columns; got shape (7, 12)."),
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


def test_help_and_a_process_of_its_own(tmp_path):
    text = CliRunner().invoke(build(), ["metrics", "--help"], env={"COLUMNS": "200"}).output
    for option in ("FILE", "--labels", "--weight", "--bias", "--convention", "--out"):
        assert option in text
    command = [sys.executable, "-m", "fastnc", "metrics", str(tmp_path / "no.npz")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("fastnc: the file '") and done.stderr.count("\n") == 1
