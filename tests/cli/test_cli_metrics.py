"""`fastnc metrics` as a user types it: every format, and the files that it writes."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from hostile import ALL, BIAS, FORMATS, H, W, Y, npy, npz
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
        assert (tmp_path / "out" / name).exists() and name in done.output


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


@pytest.mark.usefixtures("rendered")
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
    for name in ("metrics.png", "metrics.pdf"):
        assert (tmp_path / name).stat().st_size > 10_000


def test_labels_are_names_without_a_classifier(tmp_path):
    np.savez(tmp_path / "named.npz", features=H, labels=np.array([4, 5, 7, 8, 9, 10, 99])[Y])
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


def test_parts_of_one_set(tmp_path):
    whole = fastnc.collapse_metrics(H, Y, W, BIAS)
    for part, rows in enumerate(np.array_split(np.arange(len(Y)), 3)):
        held = {"features": H[rows], "labels": Y[rows]} | (
            {"weight": W, "bias": BIAS} if part else {}
        )
        np.savez(tmp_path / f"feats-{part}.npz", **held)
    for arguments in ([tmp_path / "feats-*.npz"], sorted(tmp_path.glob("feats-*.npz"))):
        done = invoke(*arguments, "--out", tmp_path / "out")
        assert done.exit_code == 0, done.output
        told = json.loads((tmp_path / "out" / "metrics.json").read_text())
        for name, value in whole.as_dict().items():
            # Sums of the same numbers in another order.
            assert told[name] == pytest.approx(value, rel=1e-11, abs=1e-13), name
    done = invoke(tmp_path / "none-*.npz")
    assert done.exit_code == 2 and "no file matches" in done.output


def test_names_that_people_use(tmp_path):
    whole = str(fastnc.collapse_metrics(H, Y, W))
    np.savez(tmp_path / "a.npz", embeddings=H, targets=Y, **{"fc.weight": W})
    done = invoke(tmp_path / "a.npz", "--out", tmp_path)
    assert done.exit_code == 0 and whole in done.output, done.output
    np.savez(tmp_path / "b.npz", mine=H, fine=Y % 2, coarse=Y, weight=W)
    done = invoke(
        tmp_path / "b.npz", "--features-key", "mine", "--labels-key", "coarse", "--out", tmp_path
    )
    assert done.exit_code == 0 and whole in done.output, done.output
    np.savez(tmp_path / "c.npz", X=H, embeddings=H, labels=Y)
    done = invoke(tmp_path / "c.npz")
    assert done.exit_code == 2 and "pass `--features-key`" in done.output
    done = invoke(tmp_path / "b.npz", "--features-key", "yours")
    assert (
        done.exit_code == 2 and "must hold 'yours'; got coarse, fine, mine, weight" in done.output
    )


@pytest.mark.parametrize("form", ["csv", "table", "pt"])
def test_labels_of_their_own(tmp_path, form):
    np.save(tmp_path / "f.npy", H)
    if form == "pt":
        torch = pytest.importorskip("torch")
        torch.save(torch.from_numpy(Y), tmp_path / "y.pt")
    elif form == "csv":
        (tmp_path / "y.csv").write_text("\n".join(map(str, Y)))
    else:
        rows = [f"img{i}.png,{y}" for i, y in enumerate(Y)]
        (tmp_path / "y.csv").write_text("\n".join(["file,label", *rows]))
    place = tmp_path / ("y.pt" if form == "pt" else "y.csv")
    done = invoke(tmp_path / "f.npy", "--labels", place, "--out", tmp_path)
    assert done.exit_code == 0 and str(fastnc.collapse_metrics(H, Y)) in done.output, done.output
    (tmp_path / "y.csv").write_text("a,b\n1,2\n")
    done = invoke(tmp_path / "f.npy", "--labels", tmp_path / "y.csv")
    assert done.exit_code == 2 and "no column of it is named labels; got a, b" in done.output


def test_other_features_of_each_layer(tmp_path):
    """NC5 of a layer is of that layer's features: all had those of one name."""
    layers = {"conv": H[:400], "fc": 2.0 * H[:400] + 1.0}
    others = {"conv": H[:9] + 1.0, "fc": H[:9] - 3.0}
    np.savez(tmp_path / "layers.npz", labels=Y[:400], **layers)
    np.savez(tmp_path / "ood.npz", features=H[:9], **others)
    done = invoke(tmp_path / "layers.npz", "--ood", tmp_path / "ood.npz", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "layers.json").read_text())
    for name, features in layers.items():
        wanted = fastnc.nc5(features, Y[:400], others[name])
        assert found[name]["nc5"] == pytest.approx(wanted, rel=1e-12)
        assert f"{wanted:.4g}" in re.search(rf"^{name} .*", done.output, re.MULTILINE)[0]
    np.savez(tmp_path / "ood.npz", features=H[:9], conv=H[:9])
    done = invoke(tmp_path / "layers.npz", "--ood", tmp_path / "ood.npz", "--out", tmp_path)
    assert done.exit_code == 2 and "must hold 'fc'; got conv, features" in done.output, done.output


def test_labels_are_named_once(tmp_path):
    np.savez(tmp_path / "a.npz", features=H[:40], labels=Y[:40], fine=Y[:40] % 2)
    np.save(tmp_path / "b.npy", Y[:40])
    done = invoke(tmp_path / "a.npz", "--labels", tmp_path / "b.npy", "--labels-key", "fine")
    assert done.exit_code == 2 and "`--labels` and `--labels-key` must not both be" in done.output


def test_held_out_and_other_features(tmp_path):
    names = np.array([3, 4, 7, 8, 9, 10, 99])
    np.savez(tmp_path / "train.npz", features=H[:400], labels=names[Y[:400]])
    np.savez(tmp_path / "test.npz", features=H[400:], labels=names[Y[400:]])
    np.savez(tmp_path / "ood.npz", features=H[:9] + 1.0)
    s = fastnc.ClassStatistics(7, 13)
    s.update(H[:400], Y[:400])
    wanted = fastnc.collapse_metrics(H[400:], Y[400:], about=s)
    for arguments in (("test.npz", "--about", "train.npz"), ("train.npz", "--test", "test.npz")):
        first, option, second = arguments
        done = invoke(tmp_path / first, option, tmp_path / second, "--out", tmp_path)
        assert done.exit_code == 0 and str(wanted) in done.output, done.output
    done = invoke(
        tmp_path / "train.npz", "--ood", tmp_path / "ood.npz", "--convention", "rhubarbwu",
        "--out", tmp_path,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    told = json.loads((tmp_path / "metrics.json").read_text())["NC5: OOD deviation"]
    assert told == pytest.approx(fastnc.nc5(H[:400], Y[:400], H[:9] + 1.0), rel=1e-12)
    # Without a convention too: it was computed, and shown nowhere.
    done = invoke(tmp_path / "train.npz", "--ood", tmp_path / "ood.npz", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "metrics.json").read_text())["nc5"] == told
    assert f"{told:.6g}" in re.search(r"^nc5 .*", done.output, re.MULTILINE)[0]
    assert "nc5" in (tmp_path / "metrics.tex").read_text()
    # NC5 was of the classes that are left out, too.
    few = np.where(np.arange(400) < 3, Y[:400].max() + 1, Y[:400])
    np.savez(tmp_path / "few.npz", features=H[:400], labels=few)
    options = ("--ood", tmp_path / "ood.npz", "--min-count", 4, "--out", tmp_path)
    assert invoke(tmp_path / "few.npz", *options).exit_code == 0
    told = json.loads((tmp_path / "metrics.json").read_text())["nc5"]
    assert told == pytest.approx(fastnc.nc5(H[3:400], Y[3:400], H[:9] + 1.0), rel=1e-12)
    done = invoke(tmp_path / "train.npz", "--ood", tmp_path / "ood.npz", "--convention", "zhu")
    assert done.exit_code == 2 and "`--ood` must be shown as NC5, which --conve" in done.output
    done = invoke(tmp_path / "train.npz", "--about", "a.npz", "--test", "b.npz")
    assert done.exit_code == 2 and "`--about` and `--test` must not both be given" in done.output
    np.savez(tmp_path / "test.npz", features=H[400:], labels=Y[400:])
    done = invoke(tmp_path / "test.npz", "--about", tmp_path / "train.npz")
    assert done.exit_code == 2 and "must occur among the training labels; got" in done.output


@pytest.mark.usefixtures("rendered")
def test_one_array_a_layer(tmp_path):
    np.savez(tmp_path / "layers.npz", block1=H[:, :5], block2=H, labels=np.where(Y == 6, -100, Y))
    done = invoke(tmp_path / "layers.npz", "--ignore-index", -100, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    told = json.loads((tmp_path / "layers.json").read_text())
    wanted = fastnc.collapse_metrics(H, np.where(Y == 6, -100, Y), ignore_index=-100)
    assert (tmp_path / "layers.png").stat().st_size > 10_000 and "layers.pdf" in done.output
    assert told["block2"]["nc1"] == wanted.nc1 and told["block2"]["n_ignored"] == wanted.n_ignored
    assert [line.split()[0] for line in done.output.splitlines()[:3]] == [
        "layer",
        "block1",
        "block2",
    ]


def test_an_archive_is_no_file_of_one_array(tmp_path):
    np.savez(tmp_path / "a.npz", features=H, labels=Y, weight=H[:7])
    done = invoke(tmp_path / "a.npz", "--weight", tmp_path / "a.npz", "--out", tmp_path / "out")
    assert done.exit_code == 2 and "`--weight` must be a file of one array, .npy" in done.output


def test_layers_of_any_name_are_json(tmp_path):
    names = ['a"b', "c\\d", "\u00fc\n"]
    np.savez(tmp_path / "layers.npz", labels=Y, **dict.fromkeys(names, H))
    done = invoke(tmp_path / "layers.npz", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert list(json.loads((tmp_path / "layers.json").read_text())) == names


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_measured(tmp_path, monkeypatch):
    """An hour of reading ended in one sentence about the folder, and no table."""
    np.savez(tmp_path / "a.npz", features=H, labels=Y)
    monkeypatch.setattr("fastnc.collapse.measurement.measure", None)
    done = invoke(tmp_path / "a.npz", "--out", tmp_path / "a.npz" / "out")
    assert done.exit_code == 2 and "`--out` must be a writable folder" in done.output, done.output


def test_formats_by_what_can_be_read(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    save_file = pytest.importorskip("safetensors.torch").save_file
    halves = torch.from_numpy(H).bfloat16()
    save_file({"features": halves, "labels": torch.from_numpy(Y)}, tmp_path / "h.safetensors")
    wanted = fastnc.collapse_metrics(halves, Y)
    monkeypatch.setattr("fastnc.collapse.features_file._framework", lambda: "np")
    held = read_features(tmp_path / "h.safetensors")
    # As where torch is not installed: bfloat16 was called damaged.
    assert held.features.dtype == np.float32
    assert fastnc.collapse_metrics(held.features, held.labels) == wanted
    rows = {"features": torch.from_numpy(H), "labels": torch.from_numpy(Y)}
    torch.save(rows, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    held = read_features(tmp_path / "old.pt")
    assert fastnc.collapse_metrics(held.features, held.labels) == fastnc.collapse_metrics(H, Y)


def test_help_and_a_process_of_its_own(tmp_path):
    text = CliRunner().invoke(build(), ["metrics", "--help"], env={"COLUMNS": "200"}).output
    for option in ("FILE", "--labels", "--weight", "--bias", "--convention", "--out"):
        assert option in text
    command = [sys.executable, "-m", "fastnc", "metrics", str(tmp_path / "no.npz")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("fastnc: the file '") and done.stderr.count("\n") == 1


def test_features_too_small_for_their_squares(tmp_path):
    """nc1_quotient and cdnv were 0, and the figure a warning and no number."""
    rng = np.random.default_rng(0)
    H, y = rng.standard_normal((60, 8)), np.arange(60) % 3
    found = {}
    # A power of two, so that nothing rounds.
    for name, scale in (("one", 1.0), ("tiny", 2.0**-660)):
        np.savez(tmp_path / f"{name}.npz", features=H * scale, labels=y)
        done = invoke(tmp_path / f"{name}.npz", "--out", tmp_path / name)
        assert done.exit_code == 0, done.output
        found[name] = json.loads((tmp_path / name / "metrics.json").read_text())
    unknown = {"within_class", "nc1", "nc1_quotient", "cdnv", "nearest_mean_accuracy"}
    assert all(found["tiny"][name] is None for name in unknown)
    for name in found["one"].keys() - unknown:
        value, told = found["one"][name], found["tiny"][name]
        # The scales by which sums are divided are not the same, and their roundings of 1e-16 not.
        assert told == (value and pytest.approx(value, rel=1e-12)), name


def test_layers_by_the_names_of_a_classifier(tmp_path):
    """A layer named b was taken for the bias, and left out of the table."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    layers = {name: rng.standard_normal((60, 4)) for name in ("a", "b", "W")}
    np.savez(tmp_path / "layers.npz", labels=y, **layers)
    done = invoke(tmp_path / "layers.npz", "--out", tmp_path / "o")
    assert done.exit_code == 0, done.output
    told = json.loads((tmp_path / "o" / "layers.json").read_text())
    alone = {name: fastnc.collapse_metrics(H, y).nc1 for name, H in layers.items()}
    assert {name: layer["nc1"] for name, layer in told.items()} == alone


@pytest.mark.parametrize("ignored", [0, 3])
def test_held_out_samples_beside_an_ignored_class(tmp_path, ignored):
    """The ignored label is another class's number once the rest are numbered from 0 on."""
    rest = {"features": H[::2], "labels": Y[::2]}
    np.savez(tmp_path / "train.npz", features=H, labels=Y)
    np.savez(tmp_path / "test.npz", **rest)
    done = invoke(
        tmp_path / "train.npz", "--test", tmp_path / "test.npz", "--ignore-index", ignored,
        "--out", tmp_path,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    kept, held = ignored != Y, Y[::2] != ignored
    names, y = np.unique(Y[kept], return_inverse=True)
    about = fastnc.ClassStatistics(len(names), H.shape[1])
    about.update(H[kept], y)
    places = np.searchsorted(names, Y[::2][held])
    wanted = fastnc.collapse_metrics(H[::2][held], places, about=about)
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert (found["n_samples"], found["n_ignored"]) == (held.sum(), (~held).sum())
    assert found["nc1"] == pytest.approx(wanted.nc1, rel=1e-12)


def test_labels_of_a_spreadsheet_and_of_numpy(tmp_path):
    """The mark at a spreadsheet's beginning was part of a name; 3.0e+00 was no number."""
    np.save(tmp_path / "features.npy", H)
    for write in (
        lambda path: path.write_text("\n".join(["labels", *map(str, Y)]), encoding="utf-8-sig"),
        lambda path: path.write_text("\n".join(map(str, Y)), encoding="utf-8-sig"),
        lambda path: np.savetxt(path, Y),
    ):
        write(tmp_path / "y.csv")
        done = invoke(
            tmp_path / "features.npy", "--labels", tmp_path / "y.csv", "--out", tmp_path / "o"
        )
        assert done.exit_code == 0, done.output
        assert f"{len(Y)} samples, {len(np.unique(Y))} classes" in done.output
    np.savetxt(tmp_path / "y.csv", Y + 0.5)
    done = invoke(tmp_path / "features.npy", "--labels", tmp_path / "y.csv", "--out", tmp_path)
    assert done.exit_code == 2 and "labels must be whole numbers; got" in done.output
