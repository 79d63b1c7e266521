"""What a CUDA call needs beyond fitting shapes: a GPU that can, the current device, memory."""

from __future__ import annotations

from typing import Any

CAPABILITY = (8, 0)


def serves(x: Any) -> bool:
    """Whether the Triton kernels can run on the tensor `x`: where torch's operations do as well."""
    import torch

    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return bool(x.is_cuda) and torch.cuda.get_device_capability(x.device) >= CAPABILITY


def need_gpu(argument: str) -> None:
    """There must be a GPU at all; `argument` is what asked for it.

    Raises
    ------
    ValueError
        There is none.
    """
    import torch

    if not torch.cuda.is_available():
        raise ValueError(f"`{argument}` must find a CUDA device; torch sees none. Use 'cpu'.")


def check_gpu(x: Any) -> None:
    """The GPU of the tensor `x` must run the kernels and be the current device.

    Raises
    ------
    ValueError
        It is below compute capability 8.0, or is not the current one.
    """
    import torch

    major, minor = torch.cuda.get_device_capability(x.device)
    if (major, minor) < CAPABILITY:
        raise ValueError(
            f"the GPU must have compute capability {CAPABILITY[0]}.{CAPABILITY[1]} or more; "
            f"{x.device} has {major}.{minor}. Move the tensors to the CPU."
        )
    current = torch.cuda.current_device()
    if x.device.index != current:
        raise ValueError(
            f"tensors must live on the current CUDA device, cuda:{current}; got {x.device}. "
            f"Call inside `with torch.cuda.device({x.device.index})`."
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

    from fastnc._arrays import dtype_name
    from fastnc.kernels.plan_gpu import EXACT, has_large_tiles, plan, scratch_bytes

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


def batch_moments(H: Any, y: Any, full: bool) -> tuple[Any, Any, Any, Any, Any]:
    """Of the P classes in a batch: labels, counts, means (P, d), squares, and S (d, d) or None.

    H (n, d) and int64 labels y (n,) on the device; everything returned is float64 there, but the
    labels. The device is waited for once, to learn P.
    """
    import torch

    from fastnc.kernels.scatter_gpu import centred_scatter, class_moments

    H = H.contiguous()
    labels, order = torch.sort(y, stable=True)
    present, counts = torch.unique_consecutive(labels, return_counts=True)
    starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    means = torch.empty((len(present), H.shape[1]), dtype=torch.float64, device=H.device)
    squares = torch.empty(len(present), dtype=torch.float64, device=H.device)
    within = None
    # Triton launches on the current device, which need not be that of H.
    with torch.cuda.device_of(H):  # type: ignore[no-untyped-call]
        class_moments(H, order, starts, means, squares)
        if full:
            within = torch.empty((H.shape[1],) * 2, dtype=torch.float64, device=H.device)
            centred_scatter(H, torch.searchsorted(present, y), means, within)
    return present, counts.double(), means, squares, within
