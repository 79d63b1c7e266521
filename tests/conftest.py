"""One compile cache for the whole suite, renewed whenever a kernel's source changes.

Numba's own cache does not notice that a function called from another file was edited, so the
cache's folder carries a hash of every kernel's source and of what changes the compiled code.
"""

import hashlib
import os
import tempfile
from pathlib import Path

if "NUMBA_CACHE_DIR" not in os.environ:
    kernels = Path(__file__).parent.parent / "kernels"
    digest = hashlib.sha256(os.environ.get("NUMBA_BOUNDSCHECK", "").encode())
    for source in sorted((kernels / "cpu").glob("*.py")):
        digest.update(source.read_bytes())
    os.environ["NUMBA_CACHE_DIR"] = str(
        Path(tempfile.gettempdir()) / f"fastnc-numba-{os.getuid()}-{digest.hexdigest()[:16]}"
    )
# Those run under Triton's interpreter, in a process that `test_gpu_kernels` starts, or on a GPU.
if "TRITON_INTERPRET" not in os.environ and "FASTNC_TEST_DEVICE" not in os.environ:
    collect_ignore_glob = ["test_*_gpu.py", "*/test_*_gpu.py"]
# Workers share the cores: a thread that waits for another must not keep one busy.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Figures are only ever written to files here.
os.environ.setdefault("MPLBACKEND", "Agg")
