"""`fastnc info`: the machine and the versions, for a bug report."""

from __future__ import annotations


def info() -> None:
    """Versions, processor, vector width, BLAS, threads, GPU and cache: for a bug report."""
    from threadpoolctl import threadpool_info

    from fastnc._core.environment import provenance
    from fastnc.cli.cache import kept_sizes
    from fastnc.kernels.cpu.cache import folders, writable_folder
    from fastnc.kernels.cpu.processor import VECTOR_BYTES
    from fastnc.kernels.cpu.threads import n_threads

    rows = provenance()
    rows["vectors"] = f"{8 * VECTOR_BYTES} bits"
    rows["threads"] = f"{n_threads()} ({_layer()})"
    rows["gpu"] = _gpu()
    rows["cache"] = str(writable_folder())
    kept = [size for folder in folders() for size in kept_sizes(folder)]
    rows["kernels"] = f"{len(kept)} kept, {sum(kept) / 1e6:.1f} MB"
    for library in threadpool_info():
        if library["user_api"] == "blas":
            rows[f"blas {library['prefix']}"] = (
                f"{library['internal_api']} {library['version']}, "
                f"{library.get('architecture', 'unknown architecture')}, "
                f"{library['num_threads']} threads"
            )
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:{width}}  {value or 'none'}")


def _layer() -> str:
    from numba.np.ufunc import parallel

    return f"Numba's layer {parallel._threading_layer}"


def _gpu() -> str:
    """The GPUs that torch sees, or why there is none."""
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    if not torch.cuda.is_available():
        return f"none that torch {torch.__version__} sees"
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return ", ".join(f"{p.name} ({p.total_memory / 2**30:.0f} GiB)" for p in found)
