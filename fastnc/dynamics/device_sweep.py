"""The problems of a sweep on CUDA devices: each device runs a share, small problems together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastnc._core.interrupts import Diverged, Interrupted
from fastnc._core.progress import Bar, SharedBar
from fastnc.dynamics.run import Run
from fastnc.dynamics.start import fingerprint
from fastnc.dynamics.sweep_store import Store
from fastnc.dynamics.together import Together

Begin = Callable[[int], Run]
Stop = Callable[[], str]


def on_devices(
    numbers: Sequence[int], begin: Begin, store: Store, every: float, stop: Stop, bar: Bar
) -> None:
    """Run all problems to their ends, into `store`; every visible device runs its own share.

    Each run has the same bits as alone, on whichever device.

    Raises
    ------
    Interrupted
        `stop` gave a reason; unfinished runs have been saved.
    """
    import torch

    lock, over = threading.Lock(), threading.Event()
    devices = max(1, min(torch.cuda.device_count(), len(numbers)))
    if devices == 1:
        _on_one(numbers, begin, store, every, stop, bar, lock)
        return

    def stopped() -> str:
        return stop() or ("an error elsewhere" if over.is_set() else "")

    def work(device: int) -> None:
        with torch.cuda.device(device):
            share = numbers[device::devices]
            try:
                _on_one(share, begin, store, every, stopped, bar, lock)
            except BaseException:
                over.set()
                raise

    with ThreadPoolExecutor(devices, "fastnc-device") as pool:
        pending = [pool.submit(work, device) for device in range(devices)]
    errors = [error for future in pending if (error := future.exception()) is not None]
    # The error that stopped the other devices, not their `Interrupted`.
    for error in sorted(errors, key=lambda error: isinstance(error, Interrupted)):
        raise error


def _on_one(
    numbers: Sequence[int],
    begin: Begin,
    store: Store,
    every: float,
    stop: Stop,
    bar: Bar,
    lock: threading.Lock,
) -> None:
    """A device's share: small problems of one kind together, all others one after another."""
    from fastnc.dynamics.steppers.cuda_together import CudaTogether, fits

    groups: dict[Any, list[tuple[int, Run]]] = {}
    for i in numbers:
        run, part = begin(i), store.part(i)
        if part is not None and part.exists():
            run.take_up(part)
            with lock:
                bar.update(run.done)
        kind: Any = i
        if fits(run.stepper):
            kind = fingerprint(run.y), run.stepper.W.shape, run.stepper.time
        groups.setdefault(kind, []).append((i, run))
    counted = SharedBar(bar, lock)
    for group in groups.values():
        runs = [run for _, run in group]
        parts = [store.part(i) for i, _ in group]
        try:
            if fits(runs[0].stepper):
                steppers: list[Any] = [run.stepper for run in runs]
                ends = Together(runs, CudaTogether(steppers), parts).go(every, stop, counted)
            else:
                ends = [runs[0].loop(parts[0], every, stop, counted)]
        except Diverged as diverged:
            ends = [diverged.run]
        except Interrupted:
            with lock:
                store.save()
            raise
        with lock:
            store.done.update(zip((i for i, _ in group), ends, strict=True))
            store.save()
