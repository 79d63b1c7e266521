"""Kills `fastnc train` with SIGKILL; run by test_cli_train in a process of its own.

`killed_training.py FOLDER`: for each of `cases`, the command without a stop, then the same command
killed and resumed until it ends, in children of this process, so that torch is loaded once. A child
kills itself at a place in its own work, so that it is the same place on any machine: "step",
when the weights have moved and nothing has saved them; "write", with half a checkpoint written;
"saved", when one is there. A line a case says what happened; the status is 0 if every run ended in
the same bits.
"""

import contextlib
import io
import os
import signal
import sys
from functools import partial
from pathlib import Path

import small_training
import torch
from PIL import Image

from fastnc.cli import _results, build
from fastnc.dynamics import loop
from fastnc.training import network, stepper
from fastnc.training.state import State

TINY = ["--image-size", "6", "--feature-dim", "12", "--lr", "0.02", "--snapshots", "2"]
PLACES = {
    "step": (torch.optim.SGD, "step"),
    "write": (State, "_write"),
    "saved": (State, "save"),
}
SCALED = ["--schedule", "loss-scaled", "--schedule-args", '{"decrease": 0.5, "batches": 3}']


def cases(folder):
    """Of each: its options, and where its children are killed: at which step, write or save."""
    tiny = ["--data", folder / "data", *TINY]
    normed = ["--batch-norm", "--feature-scale", "0.5", "--classifier-scale", "2"]
    return {
        "plain": (
            [*tiny, "--batch-size", "20", "--epochs", "6"],
            [("step", 1), ("write", 1), ("step", 5), ("write", 4)],
        ),
        "linear, loss-scaled, augmented": (
            [*tiny, "--batch-size", "10", "--epochs", "10", "--head", "linear", *normed, *SCALED,
             "--augment", "shift-flip", "--depth"],
            [("saved", 1), ("step", 2), ("write", 3), ("step", 20), ("write", 12), ("saved", 9)],
        ),
        "noisy, unequal, bfloat16": (
            [*tiny, "--batch-size", "10", "--epochs", "6", "--label-noise", "0.1",
             "--imbalance", "3", "--precision", "bfloat16", "--augment", "shift",
             "--dropout", "0.2", "--schedule", "CosineAnnealingLR"],
            [("step", 3), ("write", 2), ("saved", 9), ("step", 10)],
        ),
        "started, compiled": (
            [*tiny, "--batch-size", "30", "--epochs", "9", "--start",
             folder / "run0" / "checkpoint.pt", "--compile", *SCALED],
            [("step", 1), ("write", 2), ("saved", 2)],
        ),
        "ResNet-18 of a folder": (
            ["--dataset", "ImageFolder", "--data", folder / "images", "--model", "resnet18",
             "--head", "linear", "--image-size", "8", "--subset", "10", "--batch-size", "5",
             "--epochs", "2", "--lr", "0.01", "--feature-scale", "0.1", *SCALED],
            [("saved", 1), ("step", 2)],
        ),
    }  # fmt: skip


def put_in_place(folder):
    """Small files, and the small network where a VGG stands; figures are another test's."""
    small_training.put_in_place()
    small_training.write_files(folder / "data")
    for split, n, seed in (("train", 10, 1), ("test", 4, 2)):
        for i, (pixels, label) in enumerate(zip(*small_training.images(n, seed, 2), strict=True)):
            path = folder / "images" / split / str(label) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    small = small_training.network

    def either(model="vgg13", *arguments, **options):
        made = small if model == "vgg13" else network.network
        return made(model, *arguments, **options)

    stepper.network = either
    # One batch, then a checkpoint, however fast the machine is.
    loop._SECONDS_A_SLICE = 0.0
    _results.drawn = lambda draw, stem: []
    # Its code is another test's; here it is what stands around the module.
    torch.compile = partial(torch.compile, backend="eager")


def run(options, out):
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        command = ["train", *options, "--out", out, "--checkpoint-every", "0", "--resume"]
        build()(list(map(str, command)), standalone_mode=False)


def final(folder):
    """All that a run leaves, as bits or text."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    schedule = state["schedule"] or {}
    parts = [state["net"], *state["optimizer"]["state"].values()]
    numbers = b"".join(x.numpy().tobytes() for part in parts for x in part.values())
    files = [folder / name for name in ("run.csv", "depth.json")]
    told = [file.read_bytes() for file in files if file.exists()]
    return numbers, repr(sorted(schedule.items())), repr(state["rows"]), told


def kill_at(what, count):
    """Let this process end at the `count`th step, write or save from here on."""
    home, name = PLACES[what]
    original, seen = getattr(home, name), []

    def counted(self, *arguments, **options):
        seen.append(what)
        last = len(seen) == count
        if last and what == "write":
            file = io.BytesIO()
            original(self, file)
            arguments[0].write(file.getvalue()[: file.tell() // 2])
            arguments[0].flush()
        else:
            original(self, *arguments, **options)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(home, name, counted)


def killed(options, out, places):
    """Run, killed at each of the places, and resumed to the end."""
    for place in [*places, None]:
        child = os.fork()
        if child == 0:
            if place is not None:
                kill_at(*place)
            run(options, out)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if place is None:
            ended = status == 0
        else:
            ended = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        if not ended:
            raise SystemExit(f"a child ended with status {status} at {place}")


def main(folder):
    torch.set_num_threads(1)
    put_in_place(folder)
    for number, (name, (options, places)) in enumerate(cases(folder).items()):
        whole, cut = folder / f"run{number}", folder / f"cut{number}"
        run(options, whole)
        killed(options, cut, places)
        if final(cut) != final(whole):
            print(f"{name}: the bits differ", flush=True)
            return 1
        print(f"{name}: {len(places)} kills, the same bits", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
