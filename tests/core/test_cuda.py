"""What a CUDA call asks of the GPU, told in one sentence each; GPUs are played by fakes."""

import types

import numpy as np
import pytest

import fastnc

torch = pytest.importorskip("torch")

from fastnc._core import cuda, kernel_call  # noqa: E402
from fastnc.cli import build  # noqa: E402


class Gpu:
    """A tensor on a GPU, as far as the checks look."""

    is_cuda = True
    dtype = torch.float32

    def __init__(self, index=0, shape=(1000, 512)):
        self.device = torch.device("cuda", index)
        self.shape = shape

    def element_size(self):
        return 4


@pytest.fixture
def gpu(monkeypatch):
    """torch with a GPU of capability 9.0 and 80 GB, whose properties may be changed."""
    has = types.SimpleNamespace(capability=(9, 0), free=80 * 2**30, current=0)
    answers = {
        "is_available": lambda: True,
        "get_device_capability": lambda device=None: has.capability,
        "current_device": lambda: has.current,
        "mem_get_info": lambda device=None: (has.free, 80 * 2**30),
        "memory_reserved": lambda device=None: 0,
        "memory_allocated": lambda device=None: 0,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    return has


def test_a_gpu_that_fits_is_taken(gpu):
    cuda.need_gpu("device='cuda'")
    cuda.check_gpu(Gpu())
    cuda.check_memory(Gpu(), 10_000)
    assert cuda.serves(Gpu())


def test_an_old_gpu(gpu):
    gpu.capability = (7, 5)
    with pytest.raises(
        ValueError, match=r"compute capability 8\.0 or more; cuda:0 has 7\.5\. Move"
    ):
        cuda.check_gpu(Gpu())
    assert not cuda.serves(Gpu())


def test_a_gpu_that_is_not_the_current_one_is_taken(gpu):
    assert gpu.current == 0
    cuda.check_gpu(Gpu(1))


def test_kernels_are_started_where_the_arrays_are(monkeypatch):
    """The current device is that of the arrays while a launcher runs, and only then."""
    within, seen = [], []

    class Device:
        def __init__(self, x):
            self.x = x

        def __enter__(self):
            within.append(self.x.device)

        def __exit__(self, *why):
            within.pop()

    monkeypatch.setattr(torch.cuda, "device_of", Device)
    W, H = torch.eye(2, dtype=torch.float64), torch.ones(3, 2, dtype=torch.float64)
    launch = types.SimpleNamespace(loss=lambda *arguments: seen.append(list(within)))
    monkeypatch.setattr(kernel_call, "import_module", lambda name: launch)
    call = kernel_call.Call(W, H, torch.zeros(3, dtype=torch.int64), "sum", None)
    call.arrays = (W, H, call.arrays[2])
    call.run("cross_entropy", "loss", 1.0, None)
    assert seen == [[W.device]] and within == []


def test_too_little_memory(gpu):
    gpu.free = 3 * 2**20
    with pytest.raises(
        MemoryError, match=r"this needs \d+ MiB more on cuda:0, where 3 MiB are free"
    ):
        cuda.check_memory(Gpu(), 10_000)
    # What torch has reserved and does not use is free as well.
    gpu.free = 2**33
    cuda.check_memory(Gpu(), 10_000)
    with pytest.raises(MemoryError, match="Free some, or pass fewer samples"):
        cuda.check_memory(Gpu(), 10_000, beside=2**33)


def test_where_no_triton_is_torch_serves(gpu, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "triton", None)
    assert not cuda.serves(Gpu())


def test_which_follows_the_device():
    assert fastnc.which(np.zeros(2)) == "cpu"
    assert fastnc.which(torch.zeros(2)) == "cpu"
    fake = types.SimpleNamespace(device=torch.device("cuda"))
    assert _which(fake) == "gpu"
    with pytest.raises(ValueError, match=r"on the device 'mps' are not served; move them to 'cpu'"):
        _which(types.SimpleNamespace(device=torch.device("mps")))


def _which(fake):
    """`which` of something that passes for a tensor."""
    from fastnc._core import arrays

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "is_torch", lambda x: True)
        return arrays.home(fake)


def test_mixed_devices():
    W, H, y = np.zeros((2, 3)), torch.zeros((4, 3), dtype=torch.float64), np.zeros(4, int)
    with pytest.raises(TypeError, match=r"`H` must (live where `W` does|be a dense tensor)"):
        fastnc.loss(W, H, y)
    with pytest.raises(TypeError, match=r"be a dense tensor"):
        fastnc.loss(torch.zeros((2, 3), dtype=torch.float64), H.to("meta"), y)


def test_precision_is_one_of_two():
    W, H, y = np.eye(2), np.eye(2), np.arange(2)
    with pytest.raises(ValueError, match="`precision` must be 'exact' or 'fast'; got 'half'"):
        fastnc.loss(W, H, y, precision="half")
    assert fastnc.loss(W, H, y, precision="fast") == fastnc.loss(W, H, y)


needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@needs_no_gpu
def test_without_a_gpu():
    W, H, y = np.eye(2), np.eye(2), np.arange(2)
    with pytest.raises(ValueError, match=r"`impl='gpu'` must find a CUDA device; torch sees none"):
        fastnc.loss(W, H, y, impl="gpu")
    with pytest.raises(
        ValueError, match=r"`device='cuda'` must find a CUDA device; torch sees none"
    ):
        fastnc.descend(fastnc.ULPM(2, 1, 2), epochs=1, device="cuda")


@needs_no_gpu
def test_the_command_line_without_a_gpu(tmp_path, capsys, monkeypatch):
    from typer.testing import CliRunner

    arguments = ["ulpm", "--device", "cuda", "--epochs", "1", "--out", str(tmp_path)]
    result = CliRunner().invoke(build(), arguments)
    assert result.exit_code == 2
    assert "`device='cuda'` must find a CUDA device" in result.output + result.stderr
