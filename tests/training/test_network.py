"""torchvision's networks with a last layer that opens: their start, and the fused loss."""

import sys

import pytest
import torch
from torch.nn import functional as F

from fastnc.training import network as module
from fastnc.training.network import LastLayer, PeeledLoss, Pixels, last_layer, network
from fastnc.training.small_maps import SmallMapConv2d


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8), torch.tensor([0, 1, 2, 3, 9, 9])


@pytest.mark.parametrize("batch_norm", [False, True])
def test_it_is_torchvisions_but_for_the_first_and_the_hidden_layers(batch_norm):
    torchvision = module.torchvision()
    with torch.device("meta"):
        theirs = torchvision.models.vgg13_bn() if batch_norm else torchvision.models.vgg13()
    ours = network(n_classes=7, feature_dim=16, batch_norm=batch_norm)
    want = {name: tuple(p.shape) for name, p in theirs.features.named_parameters()}
    want["0.weight"] = (64, 1, 3, 3)
    assert {name: tuple(p.shape) for name, p in ours.features.named_parameters()} == want
    widths = [tuple(p.shape) for p in ours.classifier.parameters()]
    assert widths == [(16, 512), (16,), (16, 16), (16,), (7, 16), (7,)]
    assert last_layer(ours) == ("classifier.6", ours.classifier[-1])


def test_it_starts_as_he_and_others_say():
    torch.manual_seed(0)
    net = network(feature_dim=256)
    for layer in net.modules():
        if isinstance(layer, torch.nn.Conv2d):
            want = (2.0 / (9 * layer.out_channels)) ** 0.5
        elif isinstance(layer, torch.nn.Linear):
            want = (2.0 / layer.in_features) ** 0.5
        else:
            continue
        # n Gaussian numbers: their deviation is known to 1/sqrt(2n), four times that is allowed.
        n = layer.weight.numel()
        assert float(layer.weight.detach().std()) == pytest.approx(want, rel=4.0 / (2 * n) ** 0.5)
        assert not layer.bias.detach().any()


@pytest.mark.parametrize(
    ("model", "name", "dim", "head"),
    [
        ("vgg11", "classifier.0", 512, "linear"),
        ("resnet18", "fc", 512, "own"),
        ("mobilenet_v3_small", "classifier.3", 1024, "own"),
        ("mobilenet_v3_small", "classifier.0", 576, "linear"),
    ],
)
def test_other_models_have_an_open_last_layer(model, name, dim, head):
    net = network(model, 7, n_channels=1, head=head).eval()
    found, last = last_layer(net)
    assert (found, last.in_features, last.out_features) == (name, dim, 7)
    x = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        logits = net(x)
        last.opened = True
        h = net(x)
        last.opened = False
    assert logits.shape == (2, 7) and h.shape == (2, dim)
    torch.testing.assert_close(last(h), logits, rtol=0, atol=0)


def test_three_channels_keep_torchvisions_first_layer():
    assert network("resnet18", 10, n_channels=3).conv1.in_channels == 3


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_start_is_scaled_where_it_says(batch_norm):
    torch.manual_seed(0)
    plain = network(head="linear", batch_norm=batch_norm)
    torch.manual_seed(0)
    scaled = network(head="linear", batch_norm=batch_norm, feature_scale=0.5, classifier_scale=4.0)
    x = torch.rand(3, 1, 16, 16)
    for net in (plain, scaled):
        net.train()
        last_layer(net)[1].opened = True
    # The last normalisation, or the last convolution, makes features of that scale: a power of 2.
    torch.testing.assert_close(scaled(x), 0.5 * plain(x), rtol=1e-6, atol=0)
    assert torch.equal(last_layer(scaled)[1].weight, 4.0 * last_layer(plain)[1].weight)


@pytest.mark.parametrize("side", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_small_maps_are_the_same_convolution(side, bias):
    torch.manual_seed(0)
    theirs = torch.nn.Conv2d(5, 7, 3, padding=1, bias=bias)
    theirs = theirs.to(torch.float64).to(memory_format=torch.channels_last)
    ours = SmallMapConv2d(5, 7, 3, padding=1, bias=bias)
    ours.weight, ours.bias = theirs.weight, theirs.bias
    x = torch.randn(4, 5, side, side, dtype=torch.float64)
    grads = []
    for conv in (ours, theirs):
        mine = x.clone().requires_grad_()
        y = conv(mine)
        found = torch.autograd.grad((y * y.detach().cos()).sum(), (mine, *conv.parameters()))
        grads.append((y.detach(), *found))
    for a, b in zip(*grads, strict=True):
        # Sums of at most 45 products of numbers of size 1, in float64.
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_every_padded_3_x_3_convolution_is_replaced_and_its_names_stay():
    net = network("resnet18", 10)
    kinds = {name: type(m) for name, m in net.named_modules() if isinstance(m, torch.nn.Conv2d)}
    assert kinds["layer4.1.conv2"] is SmallMapConv2d and kinds["conv1"] is torch.nn.Conv2d
    assert kinds["layer4.0.conv1"] is torch.nn.Conv2d  # of stride 2
    theirs = module.torchvision().models.resnet18(num_classes=10)
    assert list(net.state_dict()) == list(theirs.state_dict())
    assert isinstance(net.fc, LastLayer)


def test_paper_size_without_drawing_it():
    with torch.device("meta"):
        net = network(device=torch.device("meta"))
    widths = [tuple(p.shape) for p in net.classifier.parameters()]
    assert widths == [(4096, 512), (4096,), (4096, 4096), (4096,), (10, 4096), (10,)]


@pytest.mark.parametrize("side", [1, 8, 28, 33])
def test_any_image_size_ends_in_512_features(side):
    net = network(feature_dim=4).eval()
    with torch.no_grad():
        x = torch.zeros(1, 1, side, side)
        assert net.features(x).shape[1] == 512 and net(x).shape == (1, 10)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"n_classes": 1}, r"`n_classes` must be an integer of at least 2; got 1"),
        ({"feature_dim": 0}, r"`feature_dim` must be an integer of at least 1; got 0"),
        ({"dropout": 1.0}, r"`dropout` must lie in \[0, 1\); got 1.0"),
        ({"head": "straight"}, r"`head` must be 'own' or 'linear'; got 'straight'"),
        ({"feature_scale": 0.0}, r"`feature_scale` must be a positive number; got 0"),
        ({"classifier_scale": -1.0}, r"`classifier_scale` must be a positive number; got -1"),
        (
            {"model": "resnet81"},
            r"`model` must be .*; got 'resnet81'. The nearest names .*resnet18",
        ),
        (
            {"model": "squeezenet1_1"},
            r"must have a linear last layer; that of 'squeezenet1_1' is A",
        ),
        # They were ignored without a word.
        (
            {"model": "resnet18", "feature_dim": 16},
            r"`feature_dim` must be left out but for a VGG with head='own', .*; got 16 with",
        ),
        ({"model": "vgg11", "head": "linear", "feature_dim": 16}, "`feature_dim` must be left out"),
        (
            {"model": "resnet18", "dropout": 0.5},
            "`dropout` must be 0 for `model`='resnet18' with head='own', .*; got 0.5",
        ),
        ({"model": "vgg11", "head": "linear", "dropout": 0.5}, "`dropout` must be 0 for `model`="),
        ({"model": "resnet18", "batch_norm": True}, r"`batch_norm` must be False but for a VGG"),
    ],
)
def test_sizes_that_make_no_sense(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        network(**arguments)


def test_arguments_of_another_kind():
    with pytest.raises(ValueError, match=r"`model` must be a classifier of .*; got 3"):
        network(3)
    with pytest.raises(TypeError, match="`batch_norm` must be True or False; got 'no'"):
        network(batch_norm="no")


def test_pixels_are_normalised(images):
    x = Pixels(0.25, 0.5)(images[0])
    assert x.dtype == torch.float32 and x.is_contiguous(memory_format=torch.channels_last)
    want = (images[0].double() / 255.0 - 0.25) / 0.5
    # One multiplication and one addition in float32, of numbers up to 2.
    torch.testing.assert_close(x.double(), want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_peeled_loss_is_cross_entropy_of_the_whole_network(images, batch_norm):
    torch.manual_seed(1)
    net, pixels = network(feature_dim=12, batch_norm=batch_norm), Pixels(0.3, 0.4)
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
    net, pixels = network(feature_dim=12, batch_norm=True), Pixels(0.3, 0.4)
    exact = PeeledLoss(net, pixels)(*images)
    half = PeeledLoss(net, pixels, "bfloat16")(*images)
    assert half.dtype == torch.float32
    # Eight bits of mantissa, over the thirteen layers that a batch normalisation keeps in scale.
    torch.testing.assert_close(half, exact, rtol=13 * 2.0**-8, atol=0)


def test_torchvision_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    sentence = r"needs torchvision, which is not installed; run `pip install 'fastnc\[train\]'`"
    with pytest.raises(ImportError, match=sentence):
        network(feature_dim=4)


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
        network(feature_dim=4)
