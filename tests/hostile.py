"""What no reader may set off, and features files in every format there is."""

import numpy as np
import oracles
import pytest

H, Y, W, BIAS = oracles.clouds(7, 13, 501)
ALL = {"features": H, "labels": Y, "weight": W, "bias": BIAS}


class Bomb:
    """Whoever unpickles this creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def npz(folder):
    np.savez(folder / "all.npz", **ALL, extra=np.array("kept out"))
    return folder / "all.npz"


def compressed(folder):
    np.savez_compressed(folder / "small.npz", **ALL)
    return folder / "small.npz"


def npy(folder):
    for key, array in ALL.items():
        np.save(folder / f"train-{key}.npy", array)
    return folder / "train-features.npy"


def pt(folder):
    torch = pytest.importorskip("torch")
    held = {key: torch.from_numpy(array) for key, array in ALL.items()}
    torch.save(held, folder / "all.pt")
    return folder / "all.pt"


def safetensors(folder):
    numpy = pytest.importorskip("safetensors.numpy")
    numpy.save_file(ALL, folder / "all.safetensors")
    return folder / "all.safetensors"


FORMATS = (npz, compressed, npy, pt, safetensors)
