"""Two ranks that run on devices, for `test_cuda_sharded_gpu`.

`python device_ranks.py FOLDER` starts two, of which rank 1 ends by SIGKILL after some epochs that
are in checkpoints, and then two that go on from them, make every other run and leave `rank0.pt` and
`rank1.pt`. Without two GPUs the CPU passes for both, and gloo for NCCL.
"""

import os
import signal
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace

import interpreted
import numpy as np
import torch

import fastnc
from fastnc._core.ranks import Workers
from fastnc.dynamics.composition import composed
from fastnc.dynamics.sharding import prepare_sharded
from fastnc.dynamics.steppers import cuda

R = fastnc.rules
# Rows of different shares; a row of logits that is one tile, and one that is not.
FEW = fastnc.ULPM(4, dim=4, labels=np.arange(11) % 4)
MANY = fastnc.ULPM(130, dim=3, labels=np.arange(133) % 130)
EPOCHS = 6
RUNS = {
    "few float64": (FEW, {"lr": 1.0, "dtype": "float64"}),
    "few float32": (FEW, {"lr": 1.0, "dtype": "float32"}),
    "momentum": (FEW, {"rule": R.Momentum(0.5, nesterov=True)}),
    "adamw float32": (FEW, {"rule": R.AdamW(R.Cosine(1e-2, EPOCHS)), "dtype": "float32"}),
}
WIDE = {
    "many float64": (MANY, {"lr": 50.0, "dtype": "float64"}),
    "many float32": (MANY, {"lr": 50.0, "dtype": "float32"}),
}


def options(name):
    """The model, the epochs and what else `descend` is told."""
    model, told = (RUNS | WIDE)[name]
    return model, {"epochs": 2 if name in WIDE else EPOCHS, "seed": 3, "snapshots": 2, **told}


def join(folder, rank, phase):
    """This process as one of two ranks; what it is told where they have no NCCL."""
    there = interpreted.DEVICE == "cuda"
    if there:
        torch.cuda.set_device(rank)
    torch.distributed.init_process_group(
        "nccl" if there else "gloo", init_method=f"file://{folder}/{phase}", rank=rank,
        world_size=2,
    )  # fmt: skip
    if there:
        return ""
    interpreted.play_a_gpu(setattr)
    try:
        fastnc.descend(FEW, device="cuda", sharded=True)
    except ValueError as error:
        Workers.on_devices = True
        return str(error)
    raise AssertionError("gloo was taken for NCCL")


def go_on(folder, rank, phase):
    """A run that saves at every slice; a kill ends rank 1 in the first phase."""
    seen = []

    def ended_by(row):
        seen.append(row["epoch"])
        if phase == "killed" and rank == 1 and row["epoch"] > 2:
            os.kill(os.getpid(), signal.SIGKILL)

    model, told = options("few float32")
    saved = {"checkpoint": folder / "checkpoint.npz", "checkpoint_every": 0, "resume": True}
    run = fastnc.descend(model, device="cuda", sharded=True, callback=ended_by, **saved, **told)
    return run, seen[0]


def sliced(rule, slices):
    """W after slices of epochs, of which two are a graph's; and how often one was replayed."""
    patch = SimpleNamespace(setattr=setattr)
    cuda.EPOCHS_A_GRAPH = 2
    parts = composed(5.0, rule, "constant", device="cuda")
    run = prepare_sharded(FEW, parts, 40, 3, None, None, 1, None)
    replays = interpreted.play_graphs(patch, type(run.stepper))
    for epochs in slices:
        run.stepper.advance(40, epochs)
    return torch.from_numpy(run.stepper.W), len(replays)


def main(folder, rank, phase):
    found = {"refused": join(folder, rank, phase)}
    run, found["resumed at"] = go_on(folder, rank, phase)
    found["resumed W"], found["resumed H"] = map(torch.from_numpy, (run.W, run.H))
    for name in RUNS | WIDE:
        model, told = options(name)
        run = fastnc.descend(model, device="cuda", sharded=True, **told)
        found[name] = {column: run[column].tolist() for column in run.columns}
        found[name + " W"], found[name + " H"] = map(torch.from_numpy, (run.W, run.H))
        found[name + " y"] = torch.from_numpy(run.y)
    try:
        fastnc.descend(FEW, 1e300, 6, device="cuda", sharded=True)
    except fastnc.Diverged as stop:
        found["diverged"] = str(stop)
    for name, rule in (("plain", None), ("rule", R.Adam(1e-2))):
        found[f"{name} at once"] = sliced(rule, [5])
        found[f"{name} one by one"] = sliced(rule, [1] * 5)
    torch.save(found, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


def both(folder, phase):
    """Both ranks of a phase, in children of this process, so that torch is loaded once."""
    children = []
    for rank in (0, 1):
        child = os.fork()
        if child == 0:
            try:
                main(folder, rank, phase)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


if __name__ == "__main__":
    codes = both(Path(sys.argv[1]), "killed")
    if codes[1] != -signal.SIGKILL or codes[0] == 0:
        sys.exit(f"the ranks to be killed ended with {codes}")
    codes = both(Path(sys.argv[1]), "whole")
    sys.exit(None if codes == [0, 0] else f"the ranks ended with {codes}")
