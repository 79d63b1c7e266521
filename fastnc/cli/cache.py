"""`fastnc cache`: the folders of compiled kernels, their sizes, and their removal."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove all of them.")] = False,
) -> None:
    """Where compiled kernels are kept, of this and of earlier versions, and how large they are.

    A first call of a kernel compiles it, which takes up to half a minute; later processes load it.
    NUMBA_CACHE_DIR names another folder.
    """
    from fastnc.kernels.cpu.cache import folders, remove, writable_folder

    now = writable_folder()
    for folder in folders():
        sizes = kept_sizes(folder)
        what = "in use" if folder == now else "of other sources or versions"
        if clear:
            remove(folder)
            what = "removed"
        print(f"{folder}: {len(sizes)} kernels, {sum(sizes) / 1e6:.1f} MB, {what}")


def kept_sizes(folder: Path) -> list[int]:
    """Bytes of the kernels in a folder; other processes may remove them, and it, meanwhile."""
    sizes = []
    with suppress(FileNotFoundError):
        for path in folder.iterdir():
            with suppress(FileNotFoundError):
                sizes.append(path.stat().st_size)
    return sizes
