"""`fastnc train`: a network on images without weight decay; by default the paper's Figure 3."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional

import typer

from fastnc.cli._folder import HELP as OUT

if TYPE_CHECKING:
    from fastnc.dynamics.trajectory import Trajectory


def train(
    data: Annotated[
        Path,
        typer.Option(
            help="torchvision's root, which holds FashionMNIST/raw; of an ImageFolder, "
            "what holds train and test."
        ),
    ] = Path("data"),
    dataset: Annotated[
        str,
        typer.Option(help="FashionMNIST, MNIST, KMNIST, CIFAR10, CIFAR100, SVHN or ImageFolder."),
    ] = "FashionMNIST",
    download: Annotated[
        bool, typer.Option("--download", help="Let torchvision fetch missing files.")
    ] = False,
    subset: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            help="Train on this many images, evenly over the classes, and test on as many; "
            "default all."
        ),
    ] = None,
    image_size: Annotated[int, typer.Option(help="Pixels a side, resized once.")] = 32,
    augment: Annotated[
        Literal["none", "shift", "shift-flip"],
        typer.Option(
            metavar="<str>",
            help="none; shift: by up to an eighth of a side; shift-flip: mirror images too.",
        ),
    ] = "none",
    label_noise: Annotated[
        float, typer.Option(help="Share of training labels that are made wrong.")
    ] = 0.0,
    imbalance: Annotated[
        float, typer.Option(help="Largest class over smallest, falling geometrically.")
    ] = 1.0,
    model: Annotated[str, typer.Option(help="A classifier of torchvision's.")] = "vgg13",
    head: Annotated[
        Literal["own", "linear"],
        typer.Option(help="'linear': pooled features go straight into the last layer."),
    ] = "own",
    feature_dim: Annotated[int, typer.Option(help="Width d of a VGG's own hidden layers.")] = 4096,
    batch_norm: Annotated[
        bool, typer.Option("--batch-norm", help="A VGG's variant with it.")
    ] = False,
    dropout: Annotated[float, typer.Option(help="Of every dropout layer.")] = 0.0,
    feature_scale: Annotated[
        float, typer.Option(help="Of the last normalisation's weight at the start.")
    ] = 1.0,
    classifier_scale: Annotated[
        float, typer.Option(help="Of the last layer's weight at the start.")
    ] = 1.0,
    epochs: Annotated[int, typer.Option(help="Passes over the training set.")] = 600,
    batch_size: Annotated[int, typer.Option(help="Images a step, of all workers together.")] = 128,
    lr: Annotated[float, typer.Option(help="Learning rate of SGD.")] = 0.01,
    momentum: Annotated[float, typer.Option(help="Of SGD; there is no weight decay.")] = 0.9,
    schedule: Annotated[
        str,
        typer.Option(
            help="'constant'; 'loss-scaled': the step grows as the loss falls; or a class "
            "of torch's lr_scheduler, as StepLR."
        ),
    ] = "constant",
    schedule_args: Annotated[
        str, typer.Option(help='Its arguments in JSON, as {"step_size": 100}.')
    ] = "{}",
    seed: Annotated[int, typer.Option(help="Of the weights and of the order.")] = 0,
    precision: Annotated[
        Literal["float32", "tf32", "bfloat16"],
        typer.Option(
            metavar="<str>", help="float32, tf32 or bfloat16: of the training's products."
        ),
    ] = "float32",
    snapshots: Annotated[int, typer.Option(help="Measurements a decade of epochs.")] = 20,
    device: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="cpu or cuda; default cuda where there is one."),
    ] = None,
    deterministic: Annotated[
        bool, typer.Option(help="Deterministic algorithms only: needed for the same bits.")
    ] = True,
    compile: Annotated[
        bool, typer.Option("--compile", help="Let torch.compile have the training step.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write measurements for TensorBoard too.")
    ] = False,
    depth: Annotated[
        bool,
        typer.Option("--depth", help="Profiles through the layers at three epochs: depth.png."),
    ] = False,
    peel: Annotated[
        int, typer.Option(help="Epochs of gradient descent on the last W and H alone, after it.")
    ] = 0,
    out: Annotated[Path, typer.Option(help=OUT)] = Path("runs/train"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
    start: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Begin at another run's checkpoint, with the options of this one."),
    ] = None,
    checkpoint_every: Annotated[
        float, typer.Option(help="Seconds between checkpoints; 0: after every batch.")
    ] = 300.0,
) -> None:
    """Train a network far past zero error, and measure its collapse meanwhile.

    The defaults are the paper's: VGG-13 on FashionMNIST. Writes figure3.png, figure3.pdf, run.npz,
    run.csv and checkpoint.pt to --out; with --peel also peeled.npz, and peeled.png and .pdf, the
    network beside its layer-peeled model. Under torchrun all ranks train together. Without a
    terminal a line is printed at most once a minute.
    """
    import json
    from functools import partial
    from importlib import import_module

    try:
        import_module("torch")
    except ImportError:
        raise ImportError(
            "`fastnc train` needs torch, which is not installed; run `pip install 'fastnc[train]'`."
        ) from None
    from fastnc._core.interrupts import Diverged, Interrupted
    from fastnc._core.ranks import workers_of_torchrun
    from fastnc.cli._results import drawn, noted
    from fastnc.cli._typed import typed
    from fastnc.plots import figure3
    from fastnc.training.data import load_data
    from fastnc.training.experiment import Experiment
    from fastnc.training.loop import train as run_training
    from fastnc.training.state import CHECKPOINT

    # Any other value the network itself refuses.
    default = typed("feature_dim") and feature_dim == 4096
    if default and (head == "linear" or not model.startswith("vgg")):
        raise ValueError(
            "`--feature-dim` must be left out but for a VGG with --head own, which alone has "
            f"hidden layers of that width; got --model {model} and --head {head}."
        )
    try:
        options = json.loads(schedule_args)
        if not isinstance(options, dict):
            raise ValueError
    except ValueError:
        raise ValueError(
            f"`--schedule-args` must be a JSON object, as '{{\"step_size\": 100}}'; got "
            f"{schedule_args!r}."
        ) from None
    experiment = Experiment(
        model=model, head=head, feature_dim=feature_dim, batch_norm=batch_norm, dropout=dropout,
        augment=augment, feature_scale=feature_scale, classifier_scale=classifier_scale,
        batch_size=batch_size, lr=lr, momentum=momentum, schedule=schedule, schedule_args=options,
        seed=seed, precision=precision, snapshots=snapshots,
    )  # fmt: skip
    if start is not None and not resume and start.resolve().parent == out.resolve():
        raise ValueError(
            f"`--start` must not be in `--out`, whose earlier results are moved away; got {start}. "
            "Name another `--out`, or go on with --resume."
        )
    if peel < 0:
        raise ValueError(f"`--peel` must be 0, or a number of epochs; got {peel}.")
    with workers_of_torchrun(device) as workers:
        leads = workers.rank == 0
        try:
            images = load_data(
                data, dataset, image_size=image_size, subset=subset, label_noise=label_noise,
                imbalance=imbalance, seed=seed, download=download,
            )  # fmt: skip
        except FileNotFoundError as missing:
            # In the words of the options.
            said = str(missing).replace("`root`", "`--data`")
            said = said.replace("`download=True`", "`--download`")
            raise FileNotFoundError(said) from None
        checkpoint = out / CHECKPOINT
        if leads and resume and not checkpoint.exists():
            print(f"No checkpoint in {out}: starting afresh.")

        try:
            run = run_training(
                images, epochs, experiment, out=out, checkpoint_every=checkpoint_every,
                resume=resume, start=start, device=device, deterministic=deterministic,
                compile=compile, tensorboard=tensorboard, depth=depth, progress=leads,
            )  # fmt: skip
        except (Diverged, Interrupted) as stop:
            if leads and len(stop.run):
                so_far = [stop.run.to_csv(out / "run.csv"), stop.run.save(out / "run.npz")]
                print(f"The measurements so far are in {so_far[0]}.")
                noted(out, [*so_far, *drawn(partial(figure3, stop.run), out / "figure3")])
            if leads and isinstance(stop, Interrupted):
                print("Go on with the same command and --resume.")
            raise
    if not leads:
        return
    written = [checkpoint, run.save(out / "run.npz"), run.to_csv(out / "run.csv")]
    written += drawn(lambda: figure3(run), out / "figure3")
    if depth:
        from fastnc.plots import layers
        from fastnc.training.depth import load

        tables = {f"epoch {e}": t for e, t in load(out).items()}
        if len(tables) < min(3, len(run)):
            told = ", ".join(tables) or "none"
            print(f"Of the three profiles of --depth there are {told}: the run is past the others.")
        if tables:
            written += drawn(lambda: layers(tables), out / "depth")
    last = {name: run[name][-1] for name in run.columns}
    print(
        f"epoch {last['epoch']:.0f}: training accuracy {last['train_accuracy']:.4f}, test "
        f"{last['test_accuracy']:.4f} of {len(images.test_labels)} images, "
        f"loss {Decimal(last['log_loss']).exp():.3g}, within-class {last['within_class']:.3e}, "
        f"nc1 {last['nc1']:.3e}, margin {last['margin']:.3g}"
    )
    if peel:
        written += _peeled(run, peel, out)
    elif (peeled := out / "peeled.npz").exists():
        print(f"{peeled} goes on from an earlier end of this run: --peel makes it anew.")
    print("\nWritten:", *noted(out, written), sep="\n  ")


def _peeled(run: Trajectory, epochs: int, folder: Path) -> list[Path]:
    """Go on with the layer-peeled model alone, print a summary of it, and write it."""
    from fastnc.cli._results import drawn
    from fastnc.dynamics.peel import peel
    from fastnc.plots import peeled, peeled_summary

    alone = peel(run, epochs=epochs, progress=True)
    print(f"\nThe last layer and its features alone, from there on:\n{peeled_summary(run, alone)}")
    kept = alone.save(folder / "peeled.npz")
    return [kept, *drawn(lambda: peeled(run, alone), folder / "peeled")]
