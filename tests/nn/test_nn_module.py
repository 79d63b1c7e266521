"""The module in the ways modules are used: modes, state, moves, copies, pickles, options.

What torch's ModuleInfo tests of every module, written anew for this one.
"""

import copy
import io
import pickle

import pytest
import torch
from nn_problem import problem

from fastnc.nn import LinearCrossEntropyLoss

# Every option of the constructor, by itself.
OPTIONS = [
    {},
    {"bias": True},
    {"weight": torch.linspace(0.5, 2.0, 7, dtype=torch.float64)},
    {"reduction": "sum"},
    {"reduction": "none"},
    {"ignore_index": 3},
    {"label_smoothing": 0.2},
    {"z_loss_weight": 0.1},
    {"logit_scale": 0.7},
    {"softcap": 2.0},
    {"bias": True, "label_smoothing": 0.1, "z_loss_weight": 0.1, "softcap": 3.0},
]
NAMES = [" ".join(f"{k}" for k in options) or "plain" for options in OPTIONS]


def head(**options):
    torch.manual_seed(0)
    return LinearCrossEntropyLoss(5, 7, dtype=torch.float64, **options)


@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
def test_gradcheck_of_every_option(options):
    """By differences, in the features and every parameter, and the gradients' own derivatives."""
    module = head(**options)
    H, _, _, y, _ = problem(N=6)
    names = [name for name, _ in module.named_parameters()]

    def loss(H, *parameters):
        given = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(module, given, (H, y))

    leaves = (H, *module.parameters())
    assert torch.autograd.gradcheck(loss, leaves)
    assert torch.autograd.gradgradcheck(loss, leaves)


@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
def test_copies_pickles_and_states_have_the_same_bits(options):
    module = head(**options)
    H, _, _, y, _ = problem()
    wanted = module(H, y)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    fresh = LinearCrossEntropyLoss(5, 7, dtype=torch.float64, **options)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), fresh):
        assert torch.equal(other(H, y), wanted)
        assert repr(other) == repr(module)


@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
def test_modes_change_nothing(options):
    module = head(**options)
    H, _, _, y, _ = problem()
    assert torch.equal(module.train()(H, y), module.eval()(H, y))
    module.requires_grad_(False)
    assert not module(H.detach(), y).requires_grad
    with torch.inference_mode():
        assert torch.equal(module(H, y), module.train()(H, y))


def test_moves_take_parameters_and_weights_along():
    module = head(bias=True, weight=torch.linspace(0.5, 2.0, 7, dtype=torch.float64))
    assert {name for name, _ in module.named_buffers()} == {"weight"}
    H, _, _, y, _ = problem()
    wide = module(H, y)
    single = copy.deepcopy(module).float()
    assert {x.dtype for x in single.state_dict().values()} == {torch.float32}
    # Some ten roundings.
    torch.testing.assert_close(single(H.float(), y).double(), wide, rtol=1e-6, atol=0.0)
    meta = copy.deepcopy(module).to("meta")
    assert meta(H.to("meta"), y.to("meta")).is_meta
    empty = meta.to_empty(device="cpu")
    empty.load_state_dict(module.state_dict())
    assert torch.equal(empty(H, y), wide)


def test_device_and_dtype_are_the_factories():
    made = LinearCrossEntropyLoss(5, 7, bias=True, device="meta", dtype=torch.bfloat16)
    for parameter in made.parameters():
        assert parameter.is_meta and parameter.dtype == torch.bfloat16
    # As a linear layer of torch starts.
    torch.manual_seed(0)
    linear = torch.nn.Linear(5, 7, bias=True, dtype=torch.float64)
    assert torch.equal(head(bias=True).linear.weight, linear.weight)
    assert torch.equal(head(bias=True).linear.bias, linear.bias)


def test_a_repr_names_what_was_chosen():
    text = repr(head(reduction="sum", ignore_index=3, label_smoothing=0.2))
    for part in ("num_classes=7", "reduction='sum'", "ignore_index=3", "label_smoothing=0.2"):
        assert part in text


def test_hooks_see_the_loss():
    module, seen = head(), []
    H, _, _, y, _ = problem()
    module.register_forward_hook(lambda _, inputs, loss: seen.append((len(inputs), loss)))
    module.register_full_backward_hook(lambda _, grad_in, grad_out: seen.append(grad_out[0]))
    module(H, y).backward()
    assert seen[0][0] == 2 and seen[0][1].dim() == 0 and float(seen[1]) == 1.0
