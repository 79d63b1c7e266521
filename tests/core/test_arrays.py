"""Checks and their sentences, and where an array lives."""

import warnings

import numpy as np
import pytest

import fastnc
from fastnc._core import arrays
from fastnc._core.kernel_call import _labels

MODEL = fastnc.ULPM(n_classes=3, n_per_class=2, dim=4)
W, H = MODEL.init(seed=0)
# One entry of each is hidden, and what is hidden is nothing to compute with.
MASKED = {
    name: np.ma.masked_array(np.where(hidden, wrong, x), hidden)
    for name, x, wrong in (("W", W, 1e9), ("H", H, np.nan), ("y", MODEL.y, 999_999))
    for hidden in [np.arange(x.size).reshape(x.shape) == 2]
}


def test_home_and_names():
    torch = pytest.importorskip("torch")
    assert arrays.home(np.zeros(2)) == arrays.home(torch.zeros(2)) == "cpu"
    assert arrays.dtype_name(torch.zeros(2)) == arrays.dtype_name(np.zeros(2, "f4")) == "float32"
    with pytest.raises(ValueError, match=r"device 'meta' are not served; move them to 'cpu'"):
        arrays.home(torch.zeros(2, device="meta"))
    tensor = torch.zeros(2)
    arrays.as_numpy(tensor)[0] = 1.0
    assert tensor[0] == 1.0
    assert isinstance(arrays.like(np.zeros(2), tensor), torch.Tensor)
    assert isinstance(arrays.like(np.zeros(2), np.zeros(2)), np.ndarray)


def test_row_major_copies_only_where_it_must():
    x = np.zeros((3, 4))
    assert arrays.row_major(x) is x
    assert np.shares_memory(arrays.row_major(x[:2]), x)
    turned = arrays.row_major(x.T)
    assert turned.flags.c_contiguous and not np.shares_memory(turned, x)
    assert arrays.row_major(np.zeros(2, np.int32), np.int64).dtype == np.int64
    x.flags.writeable = False
    view = arrays.row_major(x)
    assert view.flags.writeable and np.shares_memory(view, x)


@pytest.mark.parametrize(
    ("x", "shape", "error", "sentence"),
    [
        (
            [[1.0]],
            (None, None),
            TypeError,
            r"`W` must be a NumPy array or a torch tensor; got list",
        ),
        (np.zeros(3), (None, None), ValueError, r"`W` must have 2 dimensions; got shape \(3,\)"),
        (np.zeros((2, 3)), (4, None), ValueError, r"`W` must have 4 rows; got shape \(2, 3\)"),
        (np.zeros((2, 3)), (None, 4), ValueError, r"`W` must have 4 columns; got shape \(2, 3\)"),
        (np.zeros((2, 0)), (None, None), ValueError, r"`W` must not be empty; got shape \(2, 0\)"),
        (np.zeros((2, 3), int), (None, None), TypeError, r"float32 or float64; got int64\. Conv"),
        (np.zeros((2, 3), "f2"), (None, None), TypeError, r"float32 or float64; got float16"),
    ],
)
def test_matrices(x, shape, error, sentence):
    with pytest.raises(error, match=sentence):
        arrays.check_matrix("W", x, shape)
    arrays.check_matrix("W", np.zeros((2, 3)), (2, 3))


@pytest.mark.parametrize(
    "call",
    [
        fastnc.loss,
        fastnc.loss_and_grads,
        lambda W, H, y: fastnc.hessian_vector_product(W, H, y, np.ones_like(W), np.ones_like(H)),
        lambda W, H, y: fastnc.gradient_step(W.copy(), H.copy(), y, lr=1.0),
        lambda W, H, y: fastnc.collapse_metrics(H, y, W),
        fastnc.margins,
        fastnc.margin_ratio,
        fastnc.kkt,
        fastnc.tangent_curvature,
        lambda W, H, y: fastnc.descend(fastnc.ULPM(3, dim=4, labels=y), W=W, H=H, epochs=1),
        lambda W, H, y: fastnc.flow(fastnc.ULPM(3, dim=4, labels=y), 1.0, W=W, H=H),
    ],
)
def test_masked_entries(call):
    for name, index in (("W", r"\(0, 2\)"), ("H", r"\(0, 2\)"), ("(y|labels)", "2")):
        sentence = rf"`{name}` must have no masked entry; got 1, the first at index {index}\. Fill"
        given = {"W": W, "H": H, "y": MODEL.y}
        key = name if name in given else "y"
        with pytest.raises(ValueError, match=sentence):
            call(**given | {key: MASKED[key]})


def test_masked_entries_of_batches_and_biases():
    statistics = fastnc.ClassStatistics(3, 4)
    for batch in ((MASKED["H"], MODEL.y), (H, MASKED["y"])):
        with pytest.raises(ValueError, match=r"`[Hy]` must have no masked entry; got 1, the first"):
            statistics.update(*batch)
    assert statistics.n_samples == 0
    bias = np.ma.masked_greater(np.arange(3.0), 0.5)
    sentence = (
        r"`bias` must have no masked entry; got 2, the first at index 1\. Fill them, or leave"
    )
    with pytest.raises(ValueError, match=sentence):
        fastnc.collapse_metrics(H, MODEL.y, W, bias)
    with pytest.raises(ValueError, match=sentence):
        fastnc.models.weight_decay(3, 2, 4, 0.1, 0.1, bias=True).objective(W, H, bias)


def test_masked_arrays_that_hide_nothing():
    plain = fastnc.loss_and_grads(W, H, MODEL.y)
    for mask in (np.ma.nomask, False):
        arrays = [np.ma.masked_array(x, mask) for x in (W, H, MODEL.y)]
        for found, expected in zip(fastnc.loss_and_grads(*arrays), plain, strict=True):
            assert np.array_equal(found, expected)
        assert fastnc.collapse_metrics(*arrays[1:]) == fastnc.collapse_metrics(H, MODEL.y)


def test_finite():
    x = np.zeros((3, 4))
    x[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"`H` must be finite; got nan at index \(1, 2\)"):
        arrays.check_finite("H", x)
    x[1, 2], x[2, 3] = np.inf, -np.inf
    with pytest.raises(ValueError, match=r"`H` must be finite; got inf at index \(1, 2\)"):
        arrays.check_finite("H", x)
    # Their sum overflows, they do not.
    arrays.check_finite("H", np.full((2, 2), np.finfo(np.float64).max))


@pytest.mark.parametrize(
    ("y", "error", "sentence"),
    [
        (np.zeros((2, 1), int), ValueError, r"`y` must have 1 dimension; got shape \(2, 1\)"),
        (np.zeros(2), TypeError, r"`y` must hold integers; got float64"),
        (np.zeros(3, int), ValueError, r"`y` must have one label a sample \(2\); got 3"),
        (np.array([0, 3]), ValueError, r"must lie in 0\.\.2 \(3 classes were given\); got 3 at in"),
        (np.array([-1, 0]), ValueError, r"got -1 at index 0\. Relabel, or give a `W` with more"),
    ],
)
def test_labels(y, error, sentence):
    with pytest.raises(error, match=sentence):
        arrays.check_labels(y, 2, 3)
    arrays.check_labels(np.array([0, 2], np.uint8), 2, 3)
    arrays.check_labels(np.array([-7, 900]), 2, None)


@pytest.mark.parametrize(
    ("y", "sentence"),
    [
        (
            np.array([0.0, 2.0]),
            r"got float64\. Convert them: `np\.asarray\(y\)\.astype\(int\)`, a t",
        ),
        (np.array([True, False]), r"got bool\. Convert them: `.*`, a tensor by `\.long\(\)`\."),
        # What is between two integers, or none at all, would be cut off.
        (
            np.array([0.0, 0.5]),
            r"got float64\. Relabel: `np\.unique\(y, return_inverse=True\)\[1\]`",
        ),
        (np.array([0.0, np.nan]), r"got float64\. Relabel: `np\.unique\(y"),
        (np.array([0.0, np.inf]), r"got float64\. Relabel: `np\.unique\(y"),
        (["cat", "dog"], r"got <U3\. Relabel: `np\.unique\(y, return_inverse=True\)\[1\]`"),
    ],
)
def test_labels_become_integers(y, sentence):
    for call in (
        lambda: arrays.check_labels(y, 2, 3),
        lambda: fastnc.collapse_metrics(np.zeros((2, 3)), y),
    ):
        with pytest.raises(TypeError, match=rf"`y` must hold integers; {sentence}"):
            call()
    with pytest.raises(TypeError, match=r"`class_sizes` must hold integers; got [^ ]*\.$"):
        fastnc.theory.limits(y, 4)


def test_a_layer_has_a_weight():
    nn = pytest.importorskip("torch.nn")
    for call in (
        lambda: fastnc.loss(nn.Linear(4, 3), H, MODEL.y),
        lambda: fastnc.collapse_metrics(H, MODEL.y, nn.Linear(4, 3)),
    ):
        with pytest.raises(
            TypeError, match=r"`W` must be a .*; got Linear\. Give its `\.weight`\."
        ):
            call()
    with pytest.raises(TypeError, match=r"got ReLU\.$"):
        fastnc.loss(nn.ReLU(), H, MODEL.y)


def test_numbers():
    for bad in (0.0, -1.0, np.inf, np.nan, "1", None):
        with pytest.raises((ValueError, TypeError), match=r"`lr` must be a positive number; got"):
            arrays.check_positive("lr", bad)
    for bad in (-1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match=r"`tol` must be a number of at least 0; got"):
            arrays.check_at_least_zero("tol", bad)
    for bad in (0, 1.0, True, "2"):
        with pytest.raises(ValueError, match=r"`n` must be an integer of at least 1; got"):
            arrays.check_count("n", bad, 1)
    assert arrays.check_count("n", np.int32(3), 1) == 3
    arrays.check_positive("lr", np.float32(0.5))
    arrays.check_at_least_zero("tol", 0)


@pytest.mark.parametrize("bad", [[True, False], [0.0, 1.0], [0j, 1j]])
def test_labels_beside_tensors(bad):
    # On a GPU the labels are looked at as a tensor, which has other ideas of an integer.
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"`y` must hold integers; got"):
        _labels(np.array(bad), 2, 2, torch.zeros(1))
    assert _labels(np.array([0, 1], np.uint8), 2, 2, torch.zeros(1)).dtype == torch.int64


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("sparse", r"a sparse one\. Fill it: `\.to_dense\(\)`"),
        ("meta", r"one of the device 'meta', which has none\. Move its module: `\.to_empty\(\)`"),
        ("quantised", r"a quantised one\. Convert it: `\.dequantize\(\)`"),
        ("nested", r"a nested one\. Pad it: `\.to_padded_tensor\(0\.0\)`"),
        ("spread", r"a part of one that is spread over ranks\. Gather it: `\.full_tensor\(\)`"),
    ],
)
def test_tensors_without_their_numbers_in_memory(kind, sentence):
    torch = pytest.importorskip("torch")

    class Spread(torch.Tensor):
        """What FSDP2 makes of a weight."""

        def full_tensor(self):
            return torch.zeros(2, 3)

    plain = torch.zeros(2, 3)
    with warnings.catch_warnings():
        # Newer torches say that some of these are on their way out, or prototypes.
        warnings.simplefilter("ignore")
        odd = {
            "sparse": plain.to_sparse, "meta": lambda: plain.to("meta"),
            "quantised": lambda: torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8),
            "nested": lambda: torch.nested.nested_tensor([plain]),
            "spread": lambda: plain.as_subclass(Spread),
        }[kind]()  # fmt: skip
    for call in (
        arrays.copied,
        arrays.real_numbers,
        lambda n, x: arrays.check_matrix(n, x, (2, 3)),
    ):
        with pytest.raises(TypeError, match=rf"`W` must be a dense .*; got {sentence}\."):
            call("W", odd)


@pytest.mark.parametrize(
    ("x", "error", "sentence"),
    [
        ([1, [2, 3]], TypeError, r"`b` must be an array of numbers; got list, which is none"),
        (["a"], TypeError, r"`b` must hold real numbers; got <U1"),
        ([1j], TypeError, r"`b` must hold real numbers; got complex128"),
        ([1.0, np.inf], ValueError, r"`b` must be finite; got inf at index 1"),
        (np.array([1e400], np.longdouble), ValueError, r"`b` must be finite; got inf at index 0"),
        ("abc", TypeError, r"`b` must be a NumPy array or a torch tensor; got str"),
        (np, TypeError, r"`b` must be a NumPy array or a torch tensor; got module"),
    ],
)
def test_real_numbers(x, error, sentence):
    with pytest.raises(error, match=sentence):
        arrays.real_numbers("b", x)
    torch = pytest.importorskip("torch")
    for good in ([1, 2], (1.0, 2.0), np.array([1, 2], np.int8), torch.tensor([1, 2]).bfloat16()):
        found = arrays.real_numbers("b", good)
        assert found.dtype == np.float64 and found.tolist() == [1.0, 2.0]


def test_functions_and_angles():
    for call in (
        lambda: fastnc.descend(MODEL, epochs=3, callback=3),
        lambda: fastnc.collapse_metrics(H, MODEL.y, progress=3),
    ):
        with pytest.raises(TypeError, match=r"`(callback|progress)` must be a function; got 3\."):
            call()
    with pytest.raises(ValueError, match=r"`angle` must be a finite number; got nan\."):
        arrays.check_finite_number("angle", np.nan)
    with pytest.raises(ValueError, match=r"`snapshots` must be at most 10\^6; got 1000001\."):
        fastnc.descend(MODEL, epochs=3, snapshots=10**6 + 1)


def test_numbers_without_an_end():
    with pytest.raises(
        ValueError, match=r"`epochs` must be at most 10\^15; got 10000000000000000\."
    ):
        arrays.check_count("epochs", 10**16, 1)
    with pytest.raises(ValueError, match=r"at most 10\^15; got an integer of more than 10\^4299\."):
        arrays.check_count("epochs", 10**5000, 1)
    with pytest.raises(
        ValueError, match=r"`lr` must be a positive number; got 1000+\.\.\. \(401 ch"
    ):
        arrays.check_positive("lr", 10**400)
    assert arrays.check_count("seed", 2**127, 0) == 2**127


def test_zeros_without_memory():
    """Torch's derivatives hand them on; they have no address, and none is written to."""
    torch = pytest.importorskip("torch")
    W, H = torch.randn(3, 4, dtype=torch.float64), torch.zeros(6, 4, dtype=torch.float64)
    y, none = torch.arange(6) % 3, torch._efficientzerotensor(6, 4, dtype=torch.float64)
    for a, e in zip(fastnc.loss_and_grads(W, none, y), fastnc.loss_and_grads(W, H, y), strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(e))
    assert np.array_equal(fastnc.margins(W, none, y), fastnc.margins(W, H, y))
    with pytest.raises(ValueError, match=r"`H` must have memory, as it is overwritten; .*clone"):
        fastnc.gradient_step(W, none, y, 0.1)
