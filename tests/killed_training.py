"""Kills a training with SIGKILL at random moments; run by test_cli_train in a process of its own.

`killed_training.py FOLDER KILLS`: a run without a stop, then runs that are killed and resumed
until they end, in children of this process, so that torch is loaded once. Prints what happened;
its status is 0 if every run ended in the same bits.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import small_training
import torch

from fastnc.training import stepper
from fastnc.training.loop import Experiment, train

EXPERIMENT = Experiment(
    head="linear", batch_size=10, lr=0.02, batch_norm=True, snapshots=2, augment="shift-flip",
    feature_scale=0.5, classifier_scale=2.0, schedule="loss-scaled",
)  # fmt: skip
EPOCHS = 20


def run(folder):
    data = small_training.dataset()
    train(data, EPOCHS, EXPERIMENT, out=folder, checkpoint_every=0, resume=True)


def final(folder):
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    parts = [state["net"], *state["optimizer"]["state"].values()]
    numbers = b"".join(x.numpy().tobytes() for part in parts for x in part.values())
    return numbers, repr(state["rows"])


def wait(child, checkpoint, written):
    """Until the child has written so many checkpoints; false if it ended before."""
    seen, last = 0, checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
    while seen < written:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return False
        now = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        seen, last = seen + (now != last), now
        time.sleep(1e-4)
    return True


def main(folder, kills):
    stepper.network = small_training.network
    torch.set_num_threads(1)
    rng = random.Random(0)
    whole = folder / "whole"
    whole.mkdir()
    run(whole)
    want, made, ended, before_first = final(whole), 0, 0, 0
    while made < kills:
        cut = folder / f"cut{ended}"
        cut.mkdir()
        while True:
            child = os.fork()
            if child == 0:
                run(cut)
                os._exit(0)
            # After so many checkpoints of its own, or before the first, at any speed.
            if made < kills and wait(child, cut / "checkpoint.pt", rng.choice((0, 1, 2, 5))):
                os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            if status == 0:
                break
            if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
                print("a child ended with status", status)
                return 1
            made += 1
            before_first += not (cut / "checkpoint.pt").exists()
        if final(cut) != want:
            print("the bits differ after", made, "kills")
            return 1
        ended += 1
    print(f"{made} kills, {before_first} before a checkpoint, {ended} runs ended in the same bits")
    return 0 if ended and before_first < made else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
