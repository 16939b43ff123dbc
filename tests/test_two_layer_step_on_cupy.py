"""Epochs of the two-layer net in three launches a step, run on the CPU: wrapper and kernels."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from cuda_on_cpu import ORDERS
from epoch_runs import (
    assert_a_gpu_learns_the_same,
    assert_as_exact_as_float32,
    assert_recording_changes_nothing,
    assert_training_goes_on,
    caught,
    copied,
    instead_of_the_loop,
    train,
)

from gpuclf import TwoLayerNetClassifier
from gpuclf.augment import horizontal_flip
from gpuclf.kernels.building import cuda as cuda_modules
from gpuclf.kernels.epochs import on_gpu as sgd_over_bytes
from gpuclf.kernels.epochs.two_layer_on_gpu import TwoLayerEpochs, two_layer_epochs
from gpuclf.losses import multiclass_hinge, softmax_cross_entropy
from gpuclf.models import SOFTMAX, TWO_LAYER, TwoLayerNet
from gpuclf.samples.standardized import Standardized
from gpuclf.samples.streamed import Streamed
from gpuclf.training import DivergedError, epoch_runner

NAMES = ("W1", "b1", "W2", "b2")
INTERMEDIATE = ("partials", "hidden", "dscores", "dhidden", "row_losses", "penalties")
STEP = ["project_batch", "second_layer", "update_parameters"]
N, BATCH = 205, 37  # six steps, the last of 20 rows
SIZES = {"d": 96, "h": 20, "c": 5}


def problem(n=N, d=96, h=20, c=5, seed=0, standardized=True):
    rng = np.random.default_rng(seed)
    # Columns, units and classes of different sizes: what is swapped does not go unseen.
    X = rng.integers(0, rng.integers(120, 256, d), (n, d)).astype(np.uint8)
    scale = 1 if standardized else 200
    params = {
        "W1": rng.standard_normal((d, h)) * np.geomspace(0.3, 3, h) / d**0.5 / scale,
        "b1": rng.standard_normal(h) * 0.3,
        "W2": rng.standard_normal((h, c)) * np.geomspace(0.5, 2, c) / h**0.5,
        "b2": rng.standard_normal(c) * 0.3,
    }
    velocity = {name: 0.01 * rng.standard_normal(p.shape) / scale for name, p in params.items()}
    return {
        "y": rng.integers(0, c, n),
        "X": Standardized.fit(X) if standardized else X,
        "params": {name: p.astype(np.float32) for name, p in params.items()},
        "velocity": {name: v.astype(np.float32) for name, v in velocity.items()},
    }


def options(**changes):
    given = {"model": TWO_LAYER, "batch_size": BATCH, "reg": 0.02}
    return given | {"momentum": 0.8, "nesterov": True} | changes


def assert_trains_right(given, epochs=1, rate=0.02, **changes):
    assert_as_exact_as_float32(
        two_layer_epochs, given, options(**changes), epochs=epochs, rate=rate
    )


# -------------------------------------------------------------------- each kernel, one step


def one_step(given, **changes):
    """Run one step of 37 rows; return what every kernel left, beside the same in float64."""
    given = given | {name: copied(given[name]) for name in ("params", "velocity")}
    before = {name: copied(given[name], np.float64) for name in ("params", "velocity")}
    given["X"] = given["X"].with_samples(given["X"].X[:BATCH])
    given["y"] = given["y"][:BATCH]
    order = np.random.default_rng(3).permutation(BATCH)
    epoch = two_layer_epochs(**given, **options(**changes))
    loss = np.array(epoch(order, [0.05]))
    found = {name: np.array(getattr(epoch, f"_{name}")) for name in INTERMEDIATE}
    found["Z"] = (
        found.pop("partials").astype(np.float64).sum(axis=0)[:, : len(before["params"]["b1"])]
    )
    found["penalties"] = found["penalties"].sum()
    found["loss"] = loss

    W1, b1, W2, b2 = (before["params"][name] for name in NAMES)
    X, y = given["X"].to_array(np.float64)[order], given["y"][order]
    Z = X @ W1
    hidden = np.maximum(Z + b1, 0)
    scores = hidden @ W2 + b2
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    rows = np.arange(BATCH)
    row_losses = -np.log(p[rows, y])
    p[rows, y] -= 1
    dscores = p / BATCH
    dhidden = dscores @ W2.T * (hidden > 0)
    penalties = np.sum(W1**2) + np.sum(W2**2)
    truth = {"Z": Z, "hidden": hidden, "dscores": dscores, "dhidden": dhidden}
    truth |= {"row_losses": row_losses[:, None] / BATCH, "penalties": penalties}
    truth["loss"] = np.array([row_losses.mean() + 0.02 * penalties])
    gradients = {
        "W1": X.T @ dhidden + 0.04 * W1,
        "b1": dhidden.sum(axis=0),
        "W2": hidden.T @ dscores + 0.04 * W2,
        "b2": dscores.sum(axis=0),
    }
    for name in NAMES:
        v = 0.8 * before["velocity"][name] - 0.05 * gradients[name]
        w = before["params"][name] + v
        if changes.get("nesterov", True):
            w = before["params"][name] + 0.8 * v - 0.05 * gradients[name]
        truth |= {name: w, f"v{name}": v}
        found |= {name: given["params"][name], f"v{name}": given["velocity"][name]}
    return found, truth


def assert_each_kernel_right(given, **changes):
    found, truth = one_step(given, **changes)
    for name, exact in truth.items():
        assert np.linalg.norm(found[name] - exact) <= 7e-7 * np.linalg.norm(exact), name


# Hidden units around a tile (8, 16), a block (64) and a warp; columns around a chunk (64).
@pytest.mark.essential_cases(1)
@pytest.mark.parametrize(
    ("d", "h", "c"),
    [
        (96, 20, 5),
        (16, 1, 1),
        (208, 64, 2),
        (80, 65, 32),
    ],
)
def test_each_kernel(cuda_on_cpu, d, h, c):
    assert_each_kernel_right(problem(d=d, h=h, c=c))
    assert cuda_on_cpu.launches == [*STEP, "sum_losses"]


def test_columns_far_from_the_centre_of_bytes(cuda_on_cpu):
    given = problem(d=208, h=64, c=2)
    pixels = 240 + given["X"].X % 4  # some 110 standard deviations from 128
    found, truth = one_step(given | {"X": Standardized.fit(pixels)})
    for name, exact in truth.items():
        assert np.linalg.norm(found[name] - exact) < 110 * 2e-7 * np.linalg.norm(exact)


def test_shares_of_several_columns(cuda_on_cpu, monkeypatch):
    monkeypatch.setattr(sgd_over_bytes, "PROJECTION_BLOCKS", 2)
    for order in ORDERS:
        cuda_on_cpu.order = order
        assert_each_kernel_right(problem(d=208, h=64, c=2))


# ------------------------------------------------------------------------------ whole epochs


@pytest.mark.parametrize("order", ORDERS)
def test_an_epoch_as_exact_as_the_shared_loop(cuda_on_cpu, order):
    cuda_on_cpu.order = order
    given = problem()
    before = {name: copied(given[name]) for name in ("params", "velocity")}
    assert_trains_right(given)
    assert cuda_on_cpu.launches == [*(6 * STEP), "sum_losses"]
    for name, arrays in before.items():
        for key, value in arrays.items():
            np.testing.assert_array_equal(given[name][key], value)


@pytest.mark.essential_cases(1)
@pytest.mark.parametrize(
    "changes",
    [
        {"nesterov": False},
        {"momentum": 0.0, "reg": 0.0},
        {"batch_size": 205},
        {"batch_size": 9999},
        {"augment": partial(horizontal_flip, image_shape=(3, 4, 8))},
        {"shares": np.random.default_rng(2).dirichlet(np.ones(N))},
    ],
)
def test_epochs_with_other_options(cuda_on_cpu, changes):
    assert_trains_right(problem(), epochs=2, **changes)


def test_pixels_as_they_are(cuda_on_cpu):
    assert_trains_right(problem(standardized=False), rate=1e-5)


@pytest.mark.slow
def test_more_rows_than_a_group_and_two_tiles(cuda_on_cpu):
    assert_trains_right(problem(n=300, d=32, h=9, c=3), batch_size=130)


@pytest.mark.slow
def test_the_same_bits_in_any_order(cuda_on_cpu):
    runs = set()
    for order in (*ORDERS, "shuffled"):
        cuda_on_cpu.order = order
        found = train(two_layer_epochs, problem(), options(), epochs=2)
        runs.add(b"".join(value.tobytes() for value in found.values()))
    assert len(runs) == 1


def test_weights_and_gradients_of_very_different_size(cuda_on_cpu):
    given = problem()
    given["params"]["W1"] *= np.geomspace(1e-4, 3, 96).astype(np.float32)[:, None]
    given["params"]["W2"] *= np.geomspace(1e-3, 3, 20).astype(np.float32)[:, None]
    assert_trains_right(given)


def test_dead_units_and_zeros(cuda_on_cpu):
    given = problem()
    given["params"]["b1"][:] = -1e4  # no unit is ever above zero: dH is 0 everywhere
    assert_trains_right(given)
    given["params"]["W1"][:] = 0
    given["params"]["b1"][:] = 0
    assert_trains_right(given)


@pytest.mark.parametrize("label", [-1, 5, 2**32 + 1])
def test_a_label_out_of_range_gives_nan(cuda_on_cpu, label):
    given = problem()
    given["y"][77] = label
    losses = train(two_layer_epochs, given, options())["losses"]
    assert np.isnan(losses).sum() == 1


@pytest.mark.essential_cases(1)
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", NAMES)
def test_nan_and_infinity_are_not_lost(cuda_on_cpu, name, value):
    given = problem()
    given["params"][name].reshape(-1)[0] = value
    losses = train(two_layer_epochs, given, options())["losses"]
    assert not np.isfinite(losses).any()


# ----------------------------------------------------------------------------------- recording


def test_recorded_epochs_make_the_same_launches(cuda_on_cpu, monkeypatch):
    given = problem()
    assert_recording_changes_nothing(two_layer_epochs, given, options(), cuda_on_cpu, monkeypatch)


def test_arrays_that_numpy_holds_are_not_recorded():
    assert cuda_modules.recorded(np.zeros(1), pytest.fail) is None


# -------------------------------------------------------------------------------- the public path


@pytest.fixture
def as_if_cupy(cuda_on_cpu, monkeypatch):
    return instead_of_the_loop(two_layer_epochs, monkeypatch)


def fitted(**changes):
    given = problem()
    settings = {"hidden_size": 20, "max_iter": 2, "batch_size": BATCH, "random_state": 0}
    net = TwoLayerNetClassifier(**settings | {"precision": "float32"} | changes)
    return net.fit(given["X"].X, given["y"])


@pytest.mark.parametrize("changes", [{}, {"nesterov": False, "schedule": "exponential"}])
def test_the_classifier_learns_the_same(as_if_cupy, changes):
    found = fitted(**changes)
    assert as_if_cupy == [True]
    epoch_runner.kernels["numpy"] = ()
    shared = fitted(**changes)
    exact = fitted(**changes, precision="float64")
    np.testing.assert_allclose(found.loss_history_, exact.loss_history_, rtol=1e-6)
    for name in NAMES:
        truth = exact.params_[name]
        allowed = 2 * np.linalg.norm(shared.params_[name] - truth) + 2e-6 * np.linalg.norm(truth)
        assert np.linalg.norm(found.params_[name] - truth) <= allowed


@pytest.mark.parametrize(
    ("changes", "taken"),
    [
        ({"dropout": 0.5}, False),
        ({"augment": lambda X, rng: X}, False),
        ({"precision": "float64"}, False),
        ({"precision": "tf32"}, True),
        ({"batch_size": 1000}, True),
    ],
)
def test_which_classifiers_it_trains(as_if_cupy, changes, taken):
    fitted(**changes)
    assert as_if_cupy == [taken]


def test_divergence_is_seen_at_the_end_of_the_epoch(as_if_cupy):
    with pytest.raises(DivergedError, match="smaller learning_rate"):
        fitted(learning_rate=1e6)
    assert as_if_cupy == [True]


def test_training_goes_on_with_a_velocity(as_if_cupy):
    assert_training_goes_on(TWO_LAYER, problem())
    assert as_if_cupy == [True] * 3


# ------------------------------------------------------------------------------------- declining


def test_declines_what_it_cannot_do(cuda_on_cpu):
    def declined(changes=(), **more):
        given = problem(n=60) | dict(changes)
        return two_layer_epochs(**given, **options(**more)) is NotImplemented

    given = problem(n=60)
    X = given["X"]
    assert not declined()
    assert not declined(precision="tf32")
    assert declined(precision="float64")
    assert declined(model=replace(TWO_LAYER, dropout=0.5))
    assert declined(model=replace(TWO_LAYER, data_loss=multiclass_hinge))
    assert declined(model=type("Own", (TwoLayerNet,), {})("own", softmax_cross_entropy))
    assert declined(model=SOFTMAX)
    assert declined(shares=np.ones(60) / 60)
    assert declined(augment=lambda X, rng: X)
    assert declined(augment=horizontal_flip)  # of images with more columns
    assert declined({"X": X.X.astype(np.float32)})
    assert declined({"X": X.with_samples(Streamed(X.X, like=X.X))})
    assert declined({"X": np.asfortranarray(X.X)})
    assert declined({"params": copied(given["params"], np.float64)})
    assert declined({"params": given["params"] | {"W3": given["params"]["W1"]}})
    assert declined({"velocity": given["velocity"] | {"W1": given["velocity"]["W1"].T.copy().T}})
    models = {name: np.stack([p, p]) for name, p in given["params"].items()}
    assert declined({"params": models})
    assert declined(problem(n=60, d=100))
    assert declined(problem(n=60, c=33))
    assert declined(problem(n=20, d=16, h=1025))
    assert declined(problem(n=1100, d=16), batch_size=1025)
    cuda_on_cpu.limits = cuda_modules.DeviceLimits(75, 40, 64 << 10)
    assert declined()
    assert cuda_on_cpu.launches == []


# ------------------------------------------------------------------------------- broken kernels

BROKEN = {
    "second: barrier for the units dropped": ("__syncwarp();  // the hidden units are there", ""),
    "second: barrier for the scores dropped": (
        "__syncwarp();  // the gradients of the scores are there",
        "",
    ),
    "second: ReLU passes everything back": ("hidden_of_row[unit] > 0.0f ? sum", "true ? sum"),
    "update: rate of the first step": ("rates + step, regs", "rates, regs"),
    "update: rate of the first step for W2": ("rates[step]", "rates[0]"),
    "update: momentum of W2 for b2": ("b2[i], velocity_b2[i]", "b2[i], velocity_W2[i]"),
    "update: barrier for the warps' shares dropped": (
        "__syncthreads();  // the warps' shares are there",
        "",
    ),
    "second: penalty of the first layer alone": (
        "HIDDEN, HIDDEN) + warp_sum(sum)",
        "HIDDEN, HIDDEN)",
    ),
}


@pytest.mark.essential_cases(1)
@pytest.mark.parametrize("name", BROKEN)
def test_broken_kernels_are_caught(cuda_on_cpu, monkeypatch, name):
    monkeypatch.setattr(sgd_over_bytes, "PROJECTION_BLOCKS", 1)
    assert caught(cuda_on_cpu, "two_layer_step.cu", both_checks, BROKEN[name])


def both_checks():
    assert_each_kernel_right(problem(n=90))
    assert_trains_right(problem(n=90))


def test_what_is_intact_is_not_caught(cuda_on_cpu, monkeypatch):
    monkeypatch.setattr(sgd_over_bytes, "PROJECTION_BLOCKS", 1)
    assert not caught(cuda_on_cpu, "two_layer_step.cu", both_checks)


def test_a_stale_step_is_caught(cuda_on_cpu, monkeypatch):
    launch_step = TwoLayerEpochs._launch_step

    def stale(self, step, first, n_rows):
        launch_step(self, 0, first, n_rows)

    monkeypatch.setattr(TwoLayerEpochs, "_launch_step", stale)
    with pytest.raises(AssertionError):
        assert_trains_right(problem(n=90))


# ----------------------------------------------------------------------------------- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("n", "d", "h", "c", "batch"),
    [(205, 96, 20, 5, 37), (1000, 3072, 50, 10, 200), (700, 3072, 512, 32, 256)],
)
def test_a_gpu_learns_the_same_recorded_or_not(monkeypatch, n, d, h, c, batch):
    given, asked = problem(n, d, h, c), options(batch_size=batch)
    assert_a_gpu_learns_the_same(two_layer_epochs, given, asked, monkeypatch)
