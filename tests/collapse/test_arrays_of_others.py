"""Features as other libraries have them, and files and labels that change while they are read."""

import os
import threading

import numpy as np
import oracles
import pytest

import fastnc

H, Y, W, BIAS = oracles.clouds(4, 5, 60)


def test_bfloat16_and_smaller_of_ml_dtypes():
    """They ended in a typing error of twenty lines."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for dtype in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn):
        rounded = H.astype(dtype)
        wanted = fastnc.collapse_metrics(rounded.astype(np.float64), Y, W, BIAS)
        assert fastnc.collapse_metrics(rounded, Y, W, BIAS) == wanted
    weights = W.astype(ml_dtypes.bfloat16), BIAS.astype(ml_dtypes.bfloat16)
    wide = (x.astype(np.float64) for x in weights)
    assert fastnc.collapse_metrics(H, Y, *weights) == fastnc.collapse_metrics(H, Y, *wide)


def test_arrays_of_jax():
    jnp = pytest.importorskip("jax.numpy")
    rounded = jnp.asarray(H, dtype=jnp.bfloat16)
    wanted = fastnc.collapse_metrics(np.asarray(rounded).astype(np.float64), Y)
    assert fastnc.collapse_metrics(rounded, jnp.asarray(Y)) == wanted


def test_arrays_without_rows_in_memory():
    scipy_sparse = pytest.importorskip("scipy.sparse")
    torch = pytest.importorskip("torch")
    rows = torch.from_numpy(H)
    for odd in (scipy_sparse.csr_matrix(H), rows.to_sparse(), rows.to("meta")):
        with pytest.raises((TypeError, ValueError), match=r"`H` must be .*(array|tensor)"):
            fastnc.collapse_metrics(odd, Y)
    with pytest.raises(TypeError, match=r"`H` must hold floats .*; got \[\("):
        fastnc.collapse_metrics(np.zeros((3, 2), [("a", "f4")]), Y[:3])
    negated = torch._neg_view(rows)
    assert fastnc.collapse_metrics(negated, Y) == fastnc.collapse_metrics(-H, Y)


def test_labels_that_another_thread_changes():
    """Labels out of range led a kernel out of its arrays, and the process to its end."""
    rows = np.random.default_rng(0).standard_normal((20_000, 8), dtype=np.float32)
    y = np.arange(20_000) % 4
    known, done = fastnc.collapse_metrics(rows, y), threading.Event()

    def disturb():
        while not done.is_set():
            y[::7] = 10**9
            y[:] = np.arange(20_000) % 4

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(20):
            try:
                told = fastnc.collapse_metrics(rows, y, np.ones((4, 8)))
                assert told.n_classes == known.n_classes
            except ValueError as error:
                assert "`y` must lie in 0..3" in str(error)
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("layout", ["npy", "columns", "npz", "pt", "bfloat16", "safetensors"])
def test_a_mapped_file_that_is_cut_while_it_is_read(tmp_path, monkeypatch, layout):
    """Whoever touches such a map is ended by SIGBUS; the file says so in a sentence."""
    from fastnc.collapse.features_file import read_features

    rows = np.random.default_rng(0).standard_normal((4000, 16))
    y = np.arange(4000) % 4
    size = 2 if layout == "bfloat16" else 8
    monkeypatch.setattr("fastnc.collapse.batch.BATCH_BYTES", 1000 * 16 * size)
    if layout == "npy":
        np.save(tmp_path / "f.npy", rows)
        path = tmp_path / "f.npy"
        mapped = np.load(path, mmap_mode="r")
    elif layout == "columns":
        path = tmp_path / "f.npy"
        np.save(path, np.asfortranarray(rows))
        mapped = np.load(path, mmap_mode="r")
    else:
        path = tmp_path / f"f.{'pt' if layout == 'bfloat16' else layout}"
        held = {"features": rows, "labels": y}
        if layout == "npz":
            np.savez(path, **held)
        elif layout == "safetensors":
            pytest.importorskip("torch")
            pytest.importorskip("safetensors.numpy").save_file(held, path)
        else:
            torch = pytest.importorskip("torch")
            held = {name: torch.from_numpy(array) for name, array in held.items()}
            if layout == "bfloat16":
                held["features"] = held["features"].bfloat16()
                rows = held["features"].float().numpy()
            torch.save(held, path)
        mapped = read_features(path).features
    if isinstance(mapped, np.ndarray):
        assert isinstance(mapped, np.memmap)
        assert fastnc.collapse_metrics(mapped[::2], y[::2]).n_samples == 2000
        of_part = fastnc.collapse_metrics(mapped[5:], y[5:]).nc1
        assert of_part == pytest.approx(fastnc.collapse_metrics(rows[5:], y[5:]).nc1, rel=1e-12)
    whole = fastnc.collapse_metrics(mapped, y)
    # Pieces are merged in another order than one batch is summed in.
    assert whole.nc1 == pytest.approx(fastnc.collapse_metrics(rows, y).nc1, rel=1e-12)
    seen = []

    def cut(n):
        seen.append(n)
        if len(seen) == 2:
            os.truncate(path, 40_000)

    with pytest.raises(ValueError, match=r"ended before its last sample: it was cut while"):
        fastnc.collapse_metrics(mapped, y, progress=cut)


def test_ranks_that_reduce_twice():
    torch = pytest.importorskip("torch")
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        s = fastnc.ClassStatistics(4, 5)
        s.update(H, Y)
        s.all_reduce()
        t = fastnc.ClassDeviations(s, W)
        t.update(H, Y)
        t.all_reduce()
        for gathered in (s, t):
            with pytest.raises(RuntimeError, match=r"`all_reduce` must be called once: this holds"):
                gathered.all_reduce()
        again = fastnc.ClassStatistics(4, 5)
        again.load_state_dict(s.state_dict())
        with pytest.raises(RuntimeError, match=r"`all_reduce` must be called once"):
            again.all_reduce()
        assert t.metrics().n_samples == 60
    finally:
        torch.distributed.destroy_process_group()


def test_a_second_pass_of_other_samples():
    """Only the total was compared: NC1 7.25 where it is .0833."""
    s = fastnc.ClassStatistics(2, 1)
    s.update(np.array([[1.0], [3.0], [-2.0]]), np.array([0, 0, 1]))
    t = fastnc.ClassDeviations(s)
    t.update(np.array([[9.0], [-9.0], [0.0]]), np.array([1, 1, 0]))
    with pytest.raises(ValueError, match=r"of class 0 they have 2, it saw 1\. Give the same batch"):
        t.metrics()
    t = fastnc.ClassDeviations(s)
    t.update(np.array([[9.0], [-9.0], [0.0]]), np.array([0, 0, 1]))
    with pytest.raises(ValueError, match=r"add up to 2, and here to 174\. Give the same batches"):
        t.metrics()
    # Rounding of features that are computed anew is no other sample.
    t = fastnc.ClassDeviations(s)
    t.update(np.array([[1.0], [3.0000001], [-2.0]], np.float32), np.array([0, 0, 1]))
    assert t.metrics().nc1 == pytest.approx(0.0833, abs=1e-4)


def test_a_mapped_tensor_that_is_not_what_its_file_holds(tmp_path):
    """One that negates what it reads, and one that was written to: the file's numbers came."""
    torch = pytest.importorskip("torch")
    from fastnc.collapse.features_file import read_features

    rng = np.random.default_rng(0)
    H, y = torch.from_numpy(rng.standard_normal((4000, 20))), np.arange(4000) % 4
    path = tmp_path / "features.pt"
    negated = torch.complex(torch.zeros_like(H), -H).conj().imag
    assert negated.is_neg()
    torch.save({"features": negated, "labels": torch.from_numpy(y)}, path)
    W = rng.standard_normal((4, 20))
    read = read_features(path).features
    told = fastnc.collapse_metrics(read, y, W=W).margin
    assert told == fastnc.collapse_metrics(H, y, W=W).margin
    torch.save({"features": H, "labels": torch.from_numpy(y)}, path)
    read = read_features(path).features
    read *= -1.0
    assert fastnc.collapse_metrics(read, y, W=W).margin == pytest.approx(
        fastnc.collapse_metrics(-H, y, W=W).margin, rel=1e-12
    )
