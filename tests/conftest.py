"""What every test is run under: no GPU kernel without its interpreter, no figure on a screen."""

import os

# Those run under Triton's interpreter, in a process that `test_gpu_kernels` starts, or on a GPU.
if "TRITON_INTERPRET" not in os.environ and "FASTNC_TEST_DEVICE" not in os.environ:
    collect_ignore_glob = ["test_*_gpu.py", "*/test_*_gpu.py"]
# Workers share the cores: a thread that waits for another must not keep one busy.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Figures are only ever written to files here.
os.environ.setdefault("MPLBACKEND", "Agg")
