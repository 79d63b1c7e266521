"""VGG-13 with a peeled last layer: torchvision's network, its start, and the fused loss."""

import sys

import pytest
import torch
from torch.nn import functional as F

from fastnc.training import network
from fastnc.training.network import PeeledLoss, Pixels, vgg13


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8), torch.tensor([0, 1, 2, 3, 9, 9])


@pytest.mark.parametrize("batch_norm", [False, True])
def test_it_is_torchvisions_but_for_the_first_and_the_hidden_layers(batch_norm):
    torchvision = network.torchvision()
    with torch.device("meta"):
        theirs = torchvision.models.vgg13_bn() if batch_norm else torchvision.models.vgg13()
    ours = vgg13(7, 16, batch_norm=batch_norm)
    want = {name: tuple(p.shape) for name, p in theirs.features.named_parameters()}
    want["0.weight"] = (64, 1, 3, 3)
    assert {name: tuple(p.shape) for name, p in ours.features.named_parameters()} == want
    widths = [tuple(p.shape) for p in ours.classifier.parameters()]
    assert widths == [(16, 512), (16,), (16, 16), (16,), (7, 16), (7,)]
    assert dict(ours.named_modules())[network.LAST_LAYER] is ours.classifier[-1]


def test_it_starts_as_he_and_others_say():
    torch.manual_seed(0)
    net = vgg13(10, 256)
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            want = (2.0 / (9 * module.out_channels)) ** 0.5
        elif isinstance(module, torch.nn.Linear):
            want = (2.0 / module.in_features) ** 0.5
        else:
            continue
        # n Gaussian numbers: their deviation is known to 1/sqrt(2n), four times that is allowed.
        n = module.weight.numel()
        assert float(module.weight.detach().std()) == pytest.approx(want, rel=4.0 / (2 * n) ** 0.5)
        assert not module.bias.detach().any()


def test_paper_size_without_drawing_it():
    with torch.device("meta"):
        net = vgg13(device=torch.device("meta"))
    widths = [tuple(p.shape) for p in net.classifier.parameters()]
    assert widths == [(4096, 512), (4096,), (4096, 4096), (4096,), (10, 4096), (10,)]


@pytest.mark.parametrize("side", [1, 8, 28, 33])
def test_any_image_size_ends_in_512_features(side):
    net = vgg13(10, 4).eval()
    with torch.no_grad():
        x = torch.zeros(1, 1, side, side)
        assert net.features(x).shape[1] == 512 and net(x).shape == (1, 10)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"n_classes": 1}, r"`n_classes` must be an integer of at least 2; got 1"),
        ({"feature_dim": 0}, r"`feature_dim` must be an integer of at least 1; got 0"),
        ({"dropout": 1.0}, r"`dropout` must lie in \[0, 1\); got 1.0"),
    ],
)
def test_sizes_that_make_no_sense(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        vgg13(**arguments)


def test_pixels_are_normalised(images):
    x = Pixels(0.25, 0.5)(images[0])
    assert x.dtype == torch.float32 and x.is_contiguous(memory_format=torch.channels_last)
    want = (images[0].double() / 255.0 - 0.25) / 0.5
    # One multiplication and one addition in float32, of numbers up to 2.
    torch.testing.assert_close(x.double(), want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_peeled_loss_is_cross_entropy_of_the_whole_network(images, batch_norm):
    torch.manual_seed(1)
    net, pixels = vgg13(10, 12, batch_norm=batch_norm), Pixels(0.3, 0.4)
    loss = PeeledLoss(net, pixels)(*images)
    loss.backward()
    ours = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    want = F.cross_entropy(net(pixels(images[0])), images[1])
    want.backward()
    assert float(want.detach()) > 0.5
    torch.testing.assert_close(loss, want, rtol=1e-5, atol=0)
    for mine, (name, p) in zip(ours, net.named_parameters(), strict=True):
        if batch_norm and name.startswith("features") and name.endswith("bias"):
            # A bias before a batch normalisation has no gradient but rounding.
            continue
        # float32 through thirteen layers: their rounding, relative to each tensor's largest.
        torch.testing.assert_close(mine, p.grad, rtol=0, atol=1e-4 * float(p.grad.abs().max()))


def test_bfloat16_trains_the_same_network_to_its_precision(images):
    torch.manual_seed(1)
    net, pixels = vgg13(10, 12, batch_norm=True), Pixels(0.3, 0.4)
    exact = PeeledLoss(net, pixels)(*images)
    half = PeeledLoss(net, pixels, "bfloat16")(*images)
    assert half.dtype == torch.float32
    # Eight bits of mantissa, over the thirteen layers that a batch normalisation keeps in scale.
    torch.testing.assert_close(half, exact, rtol=13 * 2.0**-8, atol=0)


def test_torchvision_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    sentence = r"needs torchvision, which is not installed; run `pip install 'fastnc\[train\]'`"
    with pytest.raises(ImportError, match=sentence):
        vgg13(10, 4)


def test_torchvision_of_another_build(monkeypatch):
    class Broken:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "torchvision":
                raise RuntimeError("operator torchvision::nms does not exist")

    for name in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken, *sys.meta_path])
    sentence = r"torchvision does not fit this torch .*nms does not exist\): both must be CPU"
    with pytest.raises(ImportError, match=sentence):
        vgg13(10, 4)
