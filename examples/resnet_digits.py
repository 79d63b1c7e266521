"""ResNet-18 on another data set than the paper's: the same collapse, in minutes on a CPU.

The images are the 1,797 handwritten digits that come with scikit-learn, 8 x 8 pixels from the UCI
repository, written into the two folders of an ImageFolder: no other data set of images is in a
package that one installs, and nothing is downloaded. What is run is

    fastnc train --dataset ImageFolder --data DIGITS --model resnet18 --subset 200 \\
        --batch-size 50 --lr 0.01 --feature-scale 0.1 --classifier-scale 4 --epochs 60 \\
        --schedule loss-scaled --schedule-args '{"decrease": 0.3}' --snapshots 10 --depth

which takes two minutes of one core of an Intel Sapphire Rapids.

`python examples/resnet_digits.py [FOLDER]` writes the folder, trains, and asserts the direction in
which the quantities of Figure 3 have moved since there was no training error. (The norms of the
classifier are equal to 2 % by then, and stay so.)
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

import fastnc
from fastnc.plots import figure3, layers, save
from fastnc.training import Experiment, load_data, train
from fastnc.training.depth import load

SETTINGS = Experiment(
    model="resnet18", batch_size=50, lr=0.01, feature_scale=0.1, classifier_scale=4.0,
    schedule="loss-scaled", schedule_args={"decrease": 0.3}, snapshots=10,
)  # fmt: skip


def write_digits(root: Path) -> Path:
    """Every fifth image is a test image."""
    digits = load_digits()
    for i, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        folder = root / ("test" if i % 5 == 0 else "train") / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        # The values are 0 to 16.
        Image.fromarray(np.round(pixels * (255 / 16)).astype(np.uint8)).save(folder / f"{i}.png")
    return root


def check(run: fastnc.Trajectory) -> None:
    right = run["train_accuracy"] == 1.0
    assert right.any() and run["train_accuracy"][-1] == 1.0
    first = int(np.argmax(right))
    print(f"no training error from epoch {run['epoch'][first]} on")
    print(f"{'equinorm_classifier':>22}: {run['equinorm_classifier'][-1]:10.4g}")
    assert run["equinorm_classifier"][-1] < 0.1
    for name in (
        "equinorm_features", "within_class", "equiangular_features",
        "equiangular_classifier", "self_duality", "nc1", "cdnv", "test_cdnv", "log_loss",
    ):  # fmt: skip
        print(f"{name:>22}: {run[name][first]:10.4g} -> {run[name][-1]:10.4g}")
        assert run[name][-1] < run[name][first]
    for name in ("margin", "margin_ratio", "norm_W"):
        print(f"{name:>22}: {run[name][first]:10.4g} -> {run[name][-1]:10.4g}")
        assert run[name][-1] > run[name][first]
    print(f"{'test_accuracy':>22}: {run['test_accuracy'][-1]:10.4f}")
    assert run["test_accuracy"][-1] > 0.9


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        data = load_data(write_digits(out / "digits"), "ImageFolder", subset=200)
        run = train(data, 60, SETTINGS, out=out, depth=True, progress=True)
        print("written:", *save(figure3(run), out / "figure3"))
        table = {f"epoch {epoch}": found for epoch, found in load(out).items()}
        print("written:", *save(layers(table), out / "depth"), run.to_csv(out / "run.csv"))
        check(run)


if __name__ == "__main__":
    main()
