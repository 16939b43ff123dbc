import gc

import numpy as np
import pytest
from pretend_device import PretendDevice
from test_estimators import KINDS

from gpuclf import (
    KNeighborsClassifier,
    MixedDevicesError,
    Standardized,
    Streamed,
    pairwise_distances,
    softmax_loss_vectorized,
    svm_loss_vectorized,
    to_device,
    to_host,
    two_layer_loss,
    two_layer_scores,
)
from gpuclf.arrays import array_namespace, describe_location
from gpuclf.models import SOFTMAX
from gpuclf.models.linear import linear_scores
from gpuclf.samples import streamed as streaming
from gpuclf.samples import walk as row_blocks
from gpuclf.training import minimize_lbfgs

N, D, H, C = 300, 6, 4, 3
FORMS = ["bytes", "floats", "standardized bytes", "standardized floats"]


def samples(form, n=N):
    rng = np.random.default_rng(0)
    y = np.arange(n) % C
    pixels = np.clip(128 + 25 * rng.standard_normal((n, D)) + 60 * np.eye(C, D)[y], 0, 255)
    return pixels.astype(np.uint8) if "bytes" in form else pixels / 100 - 1, y


def make_params(lib, hidden=True):
    rng = np.random.default_rng(1)
    shapes = {"W1": (D, H), "b1": (H,), "W2": (H, C), "b2": (C,)}
    shapes = shapes if hidden else {"W": (D, C), "b": (C,)}
    return {name: lib.asarray(0.01 * rng.standard_normal(s)) for name, s in shapes.items()}


def streamed(lib, form, rows_per_block=64):
    """Return the samples on the device, and the same streamed in blocks of about so many rows."""
    X, y = samples(form)
    like = lib.asarray(np.zeros(1))
    # What a row takes: two places, and 2 * (D + 3 * H) numbers of 8 bytes for the net.
    budget = rows_per_block * (2 * D * X.itemsize + 16 * (D + 3 * H))
    there, passing = lib.asarray(X), Streamed(X, like=like, memory_budget=budget)
    if form.startswith("standardized"):
        there, passing = Standardized.fit(there), Standardized.fit(passing)
    return there, passing, lib.asarray(y)


@pytest.fixture
def uploads(monkeypatch):
    """The number of rows of each block that is uploaded."""
    found, blocks, take = [], Streamed._blocks, Streamed.take

    def recorded_blocks(self, n_rows):
        for rows, block in blocks(self, n_rows):
            found.append(int(block.shape[0]))
            yield rows, block

    def recorded_take(self, rows):
        found.append(len(rows))
        return take(self, rows)

    monkeypatch.setattr(Streamed, "_blocks", recorded_blocks)
    monkeypatch.setattr(Streamed, "take", recorded_take)
    return found


# ------------------------------------------------------------------------ the same results


@pytest.mark.essential_cases(8)
@pytest.mark.parametrize("form", FORMS)
def test_losses_gradients_and_scores_are_those_of_the_samples_on_the_device(lib, form, uploads):
    there, passing, y = streamed(lib, form)
    net, linear = make_params(lib), make_params(lib, hidden=False)
    for loss in (softmax_loss_vectorized, svm_loss_vectorized):
        for precision in ("float32", "float64"):
            W = lib.xp.astype(linear["W"], lib.xp.float32)
            expected = loss(W, there, y, 0.1, precision=precision)
            found = loss(W, passing, y, 0.1, precision=precision)
            # Blocks change the order of summation only.
            tolerance = 1e-12 if precision == "float64" else 1e-4
            for ours, theirs in zip(found, expected, strict=True):
                assert ours.dtype == theirs.dtype
                ours, theirs = lib.to_numpy(ours), lib.to_numpy(theirs)
                np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)
    weights = lib.asarray(np.linspace(0, 1, N))
    found, expected = (two_layer_loss(net, X, y, 0.1, weights) for X in (passing, there))
    np.testing.assert_allclose(lib.to_numpy(found[0]), lib.to_numpy(expected[0]), rtol=1e-12)
    for name in net:
        ours, theirs = lib.to_numpy(found[1][name]), lib.to_numpy(expected[1][name])
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    for scores, params in ((two_layer_scores, net), (linear_scores, linear)):
        ours, theirs = (lib.to_numpy(scores(params, X)) for X in (passing, there))
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    assert max(uploads) <= 160  # in blocks, never whole
    assert len(uploads) >= 2 * 7


@pytest.mark.essential_cases(4)
@pytest.mark.parametrize("n_models", [5, 7])  # 16 * 5 * C < N < 16 * 7 * C: folded and not
@pytest.mark.parametrize("form", FORMS)
def test_the_wide_product_of_many_models_is_streamed_too(lib, form, n_models):
    there, passing, y = streamed(lib, form)
    rng = np.random.default_rng(2)
    shapes = {"W": (n_models, D, C), "b": (n_models, C)}
    params = {name: lib.asarray(rng.standard_normal(s)) for name, s in shapes.items()}
    found, expected = (SOFTMAX.objective(params, X, y, 0.1)[0] for X in (passing, there))
    np.testing.assert_allclose(lib.to_numpy(found), lib.to_numpy(expected), rtol=1e-12)


@pytest.mark.essential_cases(2, in_ci=18)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["bytes", "standardized bytes"])
def test_classifiers_learn_and_predict_what_they_do_on_the_device(lib, kind, form):
    there, passing, y = streamed(lib, form)
    expected = KINDS[kind](precision="float64").fit(there, y, X_val=there, y_val=y)
    found = KINDS[kind](precision="float64").fit(passing, y, X_val=passing, y_val=y)
    np.testing.assert_allclose(found.loss_history_, expected.loss_history_, rtol=1e-7)
    assert found.val_accuracy_history_ == expected.val_accuracy_history_
    assert found.train_accuracy_history_ == expected.train_accuracy_history_
    for name, value in expected.params_.items():
        np.testing.assert_allclose(
            lib.to_numpy(found.params_[name]), lib.to_numpy(value), rtol=0, atol=1e-6
        )
    labels = found.predict(passing)
    assert type(labels) is type(y)
    np.testing.assert_array_equal(lib.to_numpy(labels), lib.to_numpy(expected.predict(there)))
    assert found.score(passing, y) == expected.score(there, y) > 0.8


def test_lbfgs_streams_each_evaluation(lib, uploads):
    _, passing, y = streamed(lib, "standardized bytes")
    params = make_params(lib, hidden=False)
    uploads.clear()
    minimize_lbfgs(SOFTMAX, params, passing, y, reg=0.01, max_iter=3, tol=1e-9)
    an_evaluation = -(-N // max(uploads))
    assert an_evaluation > 1
    assert len(uploads) % an_evaluation == 0
    assert len(uploads) >= 3 * an_evaluation


def test_a_mini_batch_uploads_its_rows_only(lib, uploads):
    _, passing, y = streamed(lib, "standardized bytes")
    KINDS["softmax"](batch_size=50, max_iter=2).fit(passing, y)
    assert uploads == [50] * 12


# -------------------------------------------------------------------------- what it looks like


def test_it_stands_for_an_array_on_the_device(lib):
    X, _ = samples("bytes")
    like = lib.asarray(np.zeros(1))
    passing = Streamed(X, like=like)
    assert array_namespace(passing, like) is lib.xp
    assert (passing.shape, passing.ndim, len(passing)) == ((N, D), 2, N)
    assert passing.dtype == lib.xp.uint8
    assert describe_location(like) in repr(passing)
    assert passing.host is X
    part = passing[10:50:2, :][3:]
    np.testing.assert_array_equal(part.host, X[10:50:2][3:])
    assert np.shares_memory(part.host, X)
    np.testing.assert_array_equal(lib.to_numpy(passing.take(np.array([3, 0]))), X[[3, 0]])


def test_moving_it_moves_all_the_samples(lib):
    X, _ = samples("bytes")
    like = lib.asarray(np.zeros(1))
    whole = to_device(Streamed(X, like=like), like=like)
    assert type(whole) is type(like)
    np.testing.assert_array_equal(lib.to_numpy(whole), X)
    assert to_host(Streamed(X, like=like)) is X
    back = to_host(Standardized.fit(Streamed(X, like=like)))
    assert isinstance(back.X, np.ndarray)
    np.testing.assert_array_equal(back.to_array(), Standardized.fit(X).to_array())


def test_standardising_it_weighs_the_samples(lib):
    X, _ = samples("floats")
    like, weights = lib.asarray(np.zeros(1)), np.linspace(0, 1, N)
    found = Standardized.fit(Streamed(X, like=like), lib.asarray(weights))
    expected = Standardized.fit(X, weights)
    assert array_namespace(found.mean, like) is lib.xp
    np.testing.assert_allclose(lib.to_numpy(found.mean), expected.mean, rtol=1e-12)
    np.testing.assert_allclose(lib.to_numpy(found.scale), expected.scale, rtol=1e-12)


def test_it_computes_on_numpy_where_that_is_asked_for():
    X, y = samples("bytes")
    W = np.zeros((D, C))
    found, expected = (softmax_loss_vectorized(W, v, y, 0.0) for v in (Streamed(X, "numpy"), X))
    np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize("key", [3, [1, 2], np.array([1, 2]), (slice(None), 0), (0, slice(None))])
def test_other_indices_are_refused(key):
    with pytest.raises(TypeError, match="slice of rows"):
        Streamed(samples("bytes")[0], "numpy")[key]


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        (np.zeros((3, 2), np.int64), TypeError, "float32 or float64, got ndarray of int64"),
        ([[1.0]], TypeError, "got list"),
        (np.zeros(3), ValueError, r"shape \(N, D\).* got \(3,\)"),
    ],
)
def test_other_samples_are_refused(X, error, message):
    with pytest.raises(error, match=message):
        Streamed(X, "numpy")


def test_labels_elsewhere_are_refused(strict):
    X, y = samples("bytes")
    passing = Streamed(X, like=strict.asarray(np.zeros(1)))
    with pytest.raises(MixedDevicesError, match="y is numpy"):
        softmax_loss_vectorized(strict.asarray(np.zeros((D, C))), passing, y, 0.0)
    with pytest.raises(MixedDevicesError, match="y is numpy"):
        KINDS["softmax"]().fit(passing, y)


def test_what_compares_samples_refuses_it_and_says_what_to_do(lib):
    X, y = samples("bytes")
    passing = Streamed(X, like=lib.asarray(np.zeros(1)))
    with pytest.raises(TypeError, match="A is Streamed; upload it whole"):
        pairwise_distances(passing, lib.asarray(X))
    with pytest.raises(TypeError, match="X is Streamed; upload it whole"):
        KNeighborsClassifier().fit(passing, lib.asarray(y))
    with pytest.raises(TypeError, match="streamed; upload them first"):
        Standardized(passing, 0.0, 1.0).to_array()


@pytest.mark.parametrize("budget", [0, 100])
def test_a_budget_below_one_row_is_refused(budget):
    X, y = samples("bytes")
    with pytest.raises(ValueError, match=rf"memory_budget={budget} bytes .* at least \d+"):
        softmax_loss_vectorized(
            np.zeros((D, C)), Streamed(X, "numpy", memory_budget=budget), y, 0.0
        )


# ------------------------------------------------------------------------------ on a device


@pytest.fixture
def on_device(monkeypatch):
    def install(**options):
        device = PretendDevice(**options)
        monkeypatch.setattr(streaming, "transfers", lambda like: device)
        return device

    return install


@pytest.mark.parametrize("form", FORMS)
def test_full_passes_wait_for_what_they_need(on_device, form):
    device = on_device()
    X, y = samples(form)
    passing = Streamed(X, "numpy", memory_budget=20_000)
    there = X
    if form.startswith("standardized"):
        there, passing = Standardized.fit(X), Standardized.fit(passing)
    rng = np.random.default_rng(0)
    W, params = rng.standard_normal((D, C)), {"W1": rng.standard_normal((D, H)) / 50}
    params |= {"b1": np.ones(H), "W2": rng.standard_normal((H, C)), "b2": np.zeros(C)}
    pairs = [softmax_loss_vectorized(W, v, y, 0.1) for v in (passing, there)]
    pairs += [svm_loss_vectorized(W, v, y, 0.1) for v in (passing, there)]
    scores = [two_layer_scores(params, v) for v in (passing, there)]
    net = [two_layer_loss(params, v, y, 0.1) for v in (passing, there)]
    for ours, theirs in (pairs[:2], pairs[2:]):
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-12)
        np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(*scores, rtol=1e-9, atol=1e-10)
    for name in params:
        np.testing.assert_allclose(net[0][1][name], net[1][1][name], rtol=1e-9, atol=1e-10)
    assert device.queue == []
    row = D * X.itemsize
    assert set(device.allocations) == {64 * row, 32 * row} or max(device.allocations) < N * row / 2


def test_blocks_are_halved_until_they_fit_and_stay_so(on_device):
    X, y = samples("bytes")
    device = on_device(free_bytes=2 * 75 * D)
    passing = Streamed(X, "numpy")
    expected = softmax_loss_vectorized(np.zeros((D, C)), X, y, 0.0)
    found = softmax_loss_vectorized(np.zeros((D, C)), passing, y, 0.0)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-9, atol=1e-12)
    # 300 and 150 rows are too many; what failed has been given back.
    assert device.allocations[-2:] == [75 * D, 75 * D]
    device.allocations.clear()
    softmax_loss_vectorized(np.zeros((D, C)), passing, y, 0.0)
    assert device.allocations == [64 * D, 64 * D]
    gc.collect()
    assert device.free == 2 * 75 * D


def test_blocks_are_halved_where_computation_runs_out_of_memory(on_device):
    passing, tried = Streamed(samples("bytes")[0], "numpy"), []
    # One place of 300 rows, two of 150 or two of 75, and 150 rows for computation: the last fit,
    # if nothing of the passes before them is left.
    device = on_device(free_bytes=400 * D)

    def work(blocks):
        parts = []
        for _, block in blocks:
            tried.append(len(block))
            device.empty((150, D), np.uint8)
            parts.append(block.copy())
        return np.concatenate(parts)

    np.testing.assert_array_equal(passing.over_blocks(work, 8), passing.host)
    assert tried == [300, 150, 75, 75, 75, 75]


def test_where_nothing_fits_the_error_names_the_bytes_and_what_helps(on_device, monkeypatch):
    X, y = samples("bytes")
    on_device(free_bytes=100)
    monkeypatch.setattr(row_blocks, "free_device_bytes", lambda: 100)
    message = (
        r"no room for blocks of 32 rows either \(Out of memory allocating 192 bytes; "
        r"100 bytes are free on the device\)"
    )
    with pytest.raises(MemoryError, match=message):
        softmax_loss_vectorized(np.zeros((D, C)), Streamed(X, "numpy"), y, 0.0)


def test_other_errors_are_not_tried_again(on_device):
    device, tried = on_device(), []
    passing = Streamed(samples("bytes")[0], "numpy", memory_budget=5_000)

    def work(blocks):
        tried.append(next(blocks))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        passing.over_blocks(work, 8)
    assert len(tried) == 1
    assert device.queue == []  # while the error keeps the iterator alive
    assert caught.value.__traceback__ is not None
