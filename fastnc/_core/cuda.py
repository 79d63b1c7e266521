"""What a CUDA call needs beyond fitting shapes: a capable GPU, its device, memory."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

CAPABILITY = (8, 0)


def serves(x: Any) -> bool:
    """Whether the Triton kernels can run on the tensor `x`: where torch's operations do as well."""
    import torch

    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return bool(x.is_cuda) and torch.cuda.get_device_capability(x.device) >= CAPABILITY


def need_torch_and_triton() -> None:
    """Whatever runs on a GPU needs both.

    Raises
    ------
    ImportError
        One of them cannot be imported.
    """
    try:
        import torch  # noqa: F401
        import triton  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "torch and triton are needed for `device='cuda'`: pip install 'fastnc[gpu]'."
        ) from error


def need_gpu(argument: str) -> None:
    """There must be a GPU; `argument` is the argument that needs it.

    Raises
    ------
    ValueError
        There is none.
    """
    import torch

    if not torch.cuda.is_available():
        raise ValueError(f"`{argument}` must find a CUDA device; torch sees none. Use 'cpu'.")


def on_device_of(x: Any) -> AbstractContextManager[Any]:
    """A context in which the device of `x` is the current one, on which kernels are started."""
    if isinstance(x, np.ndarray):
        return nullcontext()
    import torch

    return torch.cuda.device_of(x)  # type: ignore[no-untyped-call]


def check_gpu(x: Any) -> None:
    """The GPU of the tensor `x` must run the kernels; it need not be the current device.

    Raises
    ------
    ValueError
        It is below compute capability 8.0.
    """
    import torch

    major, minor = torch.cuda.get_device_capability(x.device)
    if (major, minor) < CAPABILITY:
        raise ValueError(
            f"the GPU must have compute capability {CAPABILITY[0]}.{CAPABILITY[1]} or more; "
            f"{x.device} has {major}.{minor}. Move the tensors to the CPU."
        )


def check_memory(x: Any, n_samples: int, beside: int = 0) -> None:
    """The scratch of one call on W = `x` and `n_samples` samples must fit the free memory.

    `beside` counts bytes that are yet to be moved to the device.

    Raises
    ------
    MemoryError
        It does not fit.
    """
    import torch

    from fastnc._core.arrays import dtype_name
    from fastnc.kernels.gpu.plan import EXACT, has_large_tiles, plan, scratch_bytes

    K, d = x.shape
    large = has_large_tiles(torch.cuda.get_device_capability(x.device))
    shape = plan(K, d, n_samples, dtype_name(x), EXACT, large)
    need = scratch_bytes(shape, K, d, x.element_size()) + beside
    free, _ = torch.cuda.mem_get_info(x.device)
    free += torch.cuda.memory_reserved(x.device) - torch.cuda.memory_allocated(x.device)
    if need > free:
        raise MemoryError(
            f"this needs {need / 2**20:.0f} MiB more on {x.device}, where "
            f"{free / 2**20:.0f} MiB are free. Free some, or pass fewer samples or classes at once."
        )
