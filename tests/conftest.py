"""What every test is run under: no GPU kernel without its interpreter, no figure on a screen."""

import gc
import os
import signal
import sys
from collections import Counter

import pytest

# Those run under Triton's interpreter, in a process that `test_gpu_kernels` starts, or on a GPU.
if "TRITON_INTERPRET" not in os.environ and "FASTNC_TEST_DEVICE" not in os.environ:
    collect_ignore_glob = ["test_*_gpu.py", "*/test_*_gpu.py"]
# Workers share the cores: a thread that waits for another must not keep one busy.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Figures are only ever written to files here.
os.environ.setdefault("MPLBACKEND", "Agg")
# What the terminal of whoever runs the tests is like, or a service that shows their output in
# colours, is not what a command prints: typer and rich ask for these when they are imported.
for name in ("GITHUB_ACTIONS", "FORCE_COLOR", "PY_COLORS", "CLICOLOR_FORCE", "TTY_COMPATIBLE",
             "TTY_INTERACTIVE", "TERMINAL_WIDTH", "LINES"):  # fmt: skip
    os.environ.pop(name, None)
os.environ["COLUMNS"] = "200"
# Compiling makes objects that stay: looking through them all again was a tenth of its time.
gc.set_threshold(20_000, 20, 50)
# What the tests start, some eighty processes, would each compile the package's modules anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Of a job that started the tests, and not of what they start.
for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "OMP_NUM_THREADS"):
    os.environ.pop(name, None)
# A shell's background job ignores Ctrl-C, and a job under `nohup` a lost terminal; so would what
# the tests start and then interrupt.
for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(
            number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        )


@pytest.fixture(autouse=True)
def same_numbers():
    """What torch draws in a test is the same in every run, whatever ran before it."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


# Long, in processes of their own. The second compiles for other processors: nothing that the first
# compiles at the same time.
FIRST = ("test_gpu_kernels", "test_processor_cpu")


def pytest_collection_modifyitems(items):
    """Long files first, by their number of tests: workers then end together."""
    tests = Counter(item.path for item in items)

    def place(item):
        stem = item.path.stem
        return FIRST.index(stem) if stem in FIRST else len(FIRST), -tests[item.path]

    items.sort(key=place)
