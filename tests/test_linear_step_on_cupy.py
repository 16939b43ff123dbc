"""Epochs of the linear classifiers in three launches a step, run on the CPU, and all of
sgd_over_bytes.cuh, which the two-layer net shares."""

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

from gpuclf import FleetSearchCV, LinearSVMClassifier, SoftmaxClassifier
from gpuclf.augment import horizontal_flip
from gpuclf.kernels.building import cuda as cuda_modules
from gpuclf.kernels.epochs import on_gpu as sgd_over_bytes
from gpuclf.kernels.epochs.linear_on_gpu import linear_epochs
from gpuclf.layers import apart
from gpuclf.losses import multiclass_hinge, softmax_cross_entropy
from gpuclf.models import SOFTMAX, SVM, TWO_LAYER, LinearModel
from gpuclf.samples.standardized import Standardized
from gpuclf.samples.streamed import Streamed
from gpuclf.training import epoch_runner

LINEAR = [SOFTMAX, SVM]
STEP = ["project_batch", "score_losses", "update_parameters"]
N, BATCH = 205, 37  # six steps, the last of 20 rows
SHARES = np.random.default_rng(2).dirichlet(np.ones(N))
FLIPS = partial(horizontal_flip, image_shape=(2, 4, 12))  # 16 bytes are no whole lines


def problem(n=N, d=96, c=5, models=None, seed=0, standardized=True):
    rng = np.random.default_rng(seed)
    # Columns and classes of different sizes: what is swapped does not go unseen.
    X = rng.integers(0, rng.integers(120, 256, d), (n, d)).astype(np.uint8)
    wide = c * (models or 1)
    W = rng.standard_normal((d, wide)) * np.geomspace(0.3, 3, wide) / d**0.5
    W /= 1 if standardized else 200
    params = {"W": W, "b": rng.standard_normal(wide) * 0.3}
    velocity = {name: 0.01 * rng.standard_normal(p.shape) for name, p in params.items()}
    if not standardized:
        velocity["W"] /= 200
    if models:
        for arrays in (params, velocity):
            arrays["W"] = apart(arrays["W"], (models,))
            arrays["b"] = arrays["b"].reshape(models, c)
    return {
        "y": rng.integers(0, c, n),
        "X": Standardized.fit(X) if standardized else X,
        "params": copied(params),
        "velocity": copied(velocity),
    }


def options(model=SOFTMAX, **changes):
    return {
        "model": model,
        "batch_size": BATCH,
        "reg": 0.02,
        "momentum": 0.8,
        "nesterov": True,
    } | changes


def fleet_options(models, **changes):
    return options(**{
        "reg": np.geomspace(1e-4, 0.3, models),
        "momentum": np.linspace(0.1, 0.9, models),
    } | changes)  # fmt: skip


def assert_trains_right(given, model=SOFTMAX, epochs=1, rate=0.02, **changes):
    assert_as_exact_as_float32(
        linear_epochs, given, options(model, **changes), epochs=epochs, rate=rate
    )


# -------------------------------------------------------------------- each kernel, one step


def one_step(given, model):
    """Run one step of 37 rows; return what every kernel left, beside the same in float64."""
    given = given | {name: copied(given[name]) for name in ("params", "velocity")}
    params, velocity = (copied(given[name], np.float64) for name in ("params", "velocity"))
    given["X"] = given["X"].with_samples(given["X"].X[:BATCH])
    given["y"] = given["y"][:BATCH]
    order = np.random.default_rng(3).permutation(BATCH)
    epoch = linear_epochs(**given, **options(model))
    found = {"loss": np.array(epoch(order, [0.05]))}
    found["dscores"], found["row_losses"] = epoch._dscores, epoch._row_losses[:, 0]
    found["penalties"] = epoch._penalties.sum()
    n_classes = len(params["b"])
    found["XW"] = epoch._partials.astype(np.float64).sum(axis=0)[:, :n_classes]

    X, y, rows = given["X"].to_array(np.float64)[order], given["y"][order], np.arange(BATCH)
    truth = {"XW": X @ params["W"]}
    scores = truth["XW"] + params["b"]
    if model is SVM:
        margins = scores - scores[rows, y][:, None] + 1
        margins[rows, y] = 0
        truth["row_losses"] = np.maximum(margins, 0).sum(axis=1) / BATCH
        dscores = (margins > 0).astype(float)
        dscores[rows, y] = -dscores.sum(axis=1)
    else:
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        truth["row_losses"] = -np.log(p[rows, y]) / BATCH
        p[rows, y] -= 1
        dscores = p
    truth["dscores"] = dscores / BATCH
    truth["penalties"] = np.sum(params["W"] ** 2)
    truth["loss"] = np.array([truth["row_losses"].sum() + 0.02 * truth["penalties"]])
    gradients = {
        "W": X.T @ truth["dscores"] + 0.04 * params["W"],
        "b": truth["dscores"].sum(axis=0),
    }
    for name, gradient in gradients.items():
        truth[f"v{name}"] = 0.8 * velocity[name] - 0.05 * gradient
        truth[name] = params[name] + 0.8 * truth[f"v{name}"] - 0.05 * gradient
        found |= {name: given["params"][name], f"v{name}": given["velocity"][name]}
    return found, truth


def assert_each_kernel_right(given, model=SOFTMAX, allowed=7e-7):
    found, truth = one_step(given, model)
    for name, exact in truth.items():
        # A loss that is zero everywhere, as the hinge of one class, has to be exactly that.
        assert np.linalg.norm(found[name] - exact) <= allowed * np.linalg.norm(exact), name


# Classes around a tile (8, 16) and a warp; columns around a chunk (64).
@pytest.mark.essential_cases(2)
@pytest.mark.parametrize(
    ("d", "c", "model"),
    [
        (96, 5, SOFTMAX),
        (16, 2, SVM),
        (80, 32, SOFTMAX),
        (208, 17, SVM),
        (336, 4, SOFTMAX),
    ],
)
def test_each_kernel(cuda_on_cpu, d, c, model):
    assert_each_kernel_right(problem(d=d, c=c), model)
    assert cuda_on_cpu.launches == [*STEP, "sum_losses"]


@pytest.mark.slow
def test_columns_far_from_the_centre_of_bytes(cuda_on_cpu):
    given = problem(d=336, c=4)
    pixels = 240 + given["X"].X % 4  # some 110 standard deviations from 128
    assert_each_kernel_right(given | {"X": Standardized.fit(pixels)}, allowed=110 * 5e-7)


def test_shares_of_several_columns(cuda_on_cpu, monkeypatch):
    monkeypatch.setattr(sgd_over_bytes, "PROJECTION_BLOCKS", 2)
    for order in ORDERS:
        cuda_on_cpu.order = order
        assert_each_kernel_right(problem(d=336, c=4))


# ------------------------------------------------------------------------------ whole epochs


@pytest.mark.essential_cases(2)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("model", LINEAR)
def test_an_epoch_as_exact_as_the_shared_loop(cuda_on_cpu, order, model):
    cuda_on_cpu.order = order
    given = problem()
    before = {name: copied(given[name]) for name in ("params", "velocity")}
    assert_trains_right(given, model, augment=FLIPS)
    assert cuda_on_cpu.launches == [*(6 * STEP), "sum_losses"]
    for name, arrays in before.items():
        for key, value in arrays.items():
            np.testing.assert_array_equal(given[name][key], value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "changes"),
    [
        (SVM, {"nesterov": False, "augment": FLIPS}),
        (SOFTMAX, {"momentum": 0.0, "reg": 0.0}),
        (SVM, {"augment": partial(horizontal_flip, image_shape=(1, 3, 32))}),
        (SOFTMAX, {"batch_size": 9999, "augment": FLIPS}),
        *((model, {"shares": SHARES, "augment": FLIPS}) for model in LINEAR),
    ],
)
def test_three_epochs_with_other_options(cuda_on_cpu, model, changes):
    assert_trains_right(problem(), model, epochs=3, **changes)


def test_pixels_as_they_are(cuda_on_cpu):
    assert_trains_right(problem(standardized=False), rate=1e-5, augment=FLIPS)


@pytest.mark.parametrize(("d", "c"), [(96, 5), (80, 32)])  # four warps share the rows, and two
def test_more_rows_than_a_group_a_warp(cuda_on_cpu, d, c):
    assert_trains_right(problem(n=700, d=d, c=c), batch_size=340)


def test_the_same_bits_in_any_order(cuda_on_cpu):
    runs = set()
    for order in (*ORDERS, "shuffled"):
        cuda_on_cpu.order = order
        found = train(linear_epochs, problem(), options(augment=FLIPS), epochs=2)
        runs.add(b"".join(value.tobytes() for value in found.values()))
    assert len(runs) == 1


@pytest.mark.essential_cases(1)
@pytest.mark.parametrize("model", LINEAR)
def test_what_is_wrong_is_not_lost(cuda_on_cpu, model):
    given = problem()
    given["y"][77] = 2**32 + 1
    assert np.isnan(train(linear_epochs, given, options(model))["losses"]).sum() == 1
    for name in ("W", "b"):
        for value in (np.nan, np.inf):
            given = problem()
            given["params"][name].reshape(-1)[0] = value
            losses = train(linear_epochs, given, options(model))["losses"]
            assert not np.isfinite(losses).any()


def test_recorded_epochs_make_the_same_launches(cuda_on_cpu, monkeypatch):
    given, asked = problem(), options(augment=FLIPS)
    assert_recording_changes_nothing(linear_epochs, given, asked, cuda_on_cpu, monkeypatch)


# -------------------------------------------------------------------------------------- fleets


@pytest.mark.essential_cases(1)
@pytest.mark.parametrize(
    ("models", "c", "model", "shares"),
    [
        (1, 5, SOFTMAX, SHARES),
        (3, 5, SOFTMAX, np.random.default_rng(2).dirichlet(np.ones(N), 3)),
        (9, 10, SVM, None),  # 90 outputs: two blocks
    ],
)
def test_several_models_side_by_side(cuda_on_cpu, models, c, model, shares):
    given = problem(models=models, c=c)
    asked = fleet_options(models, model=model, augment=FLIPS, shares=shares)
    rate = np.geomspace(1e-3, 0.05, models)
    assert_as_exact_as_float32(linear_epochs, given, asked, epochs=2, rate=rate)
    assert cuda_on_cpu.launches == [*(6 * STEP), "sum_losses"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("value", [np.inf, 1e30])
def test_a_model_that_diverges_does_not_disturb_the_others(cuda_on_cpu, value):
    runs = {}
    for wrong in (1.0, value):
        given = problem(models=3)
        given["params"]["W"][1, 3, 2] = wrong
        asked = fleet_options(3, augment=FLIPS)
        runs[wrong] = train(linear_epochs, given, asked, rate=np.full(3, 0.02))
    for name in ("W", "b", "vW", "vb"):
        for k in (0, 2):
            assert runs[1.0][name][k].tobytes() == runs[value][name][k].tobytes()


def test_a_fleet_gives_what_it_gives_without_kernels(cuda_on_cpu, monkeypatch):
    from gpuclf.training import Member, train_sgd

    def trained():
        members = [
            Member({name: p[k] for name, p in given["params"].items()}, rate, reg, 0.9)
            for k, (rate, reg) in enumerate(zip(rates, (0.1, 0.2, 0.0), strict=True))
        ]
        train_sgd(
            SOFTMAX, members, given["X"], given["y"], batch_size=BATCH, epochs=3, nesterov=True,
            rng=np.random.default_rng(1), augment=FLIPS,
            on_epoch=lambda params, numbers: [2] if len(members[0].history.loss) == 12 else [],
        )  # fmt: skip
        return members

    given = problem(models=3)
    rates = [lambda step, k=k: 0.002 * (k + 1) / (1 + step) for k in range(3)]
    rates[1] = lambda step: 1e30  # its loss is infinite after the first epoch
    taken = instead_of_the_loop(linear_epochs, monkeypatch)
    found = trained()
    assert taken == [True] * 3  # for three models, for two, and for one
    epoch_runner.kernels["numpy"] = ()
    for ours, theirs in zip(found, trained(), strict=True):
        assert (ours.error is None) == (theirs.error is None)
        if theirs.error is None:
            assert len(ours.history.loss) == len(theirs.history.loss)
            np.testing.assert_allclose(ours.history.loss, theirs.history.loss, rtol=1e-5)
            np.testing.assert_allclose(ours.params["W"], theirs.params["W"], rtol=1e-3, atol=1e-6)


# -------------------------------------------------------------------------------- the public path


@pytest.fixture
def as_if_cupy(cuda_on_cpu, monkeypatch):
    return instead_of_the_loop(linear_epochs, monkeypatch)


def fitted(classifier, sample_weight=None, **changes):
    given = problem()
    settings = {"max_iter": 3, "batch_size": BATCH, "random_state": 0, "precision": "float32"}
    model = classifier(**settings | changes)
    return model.fit(given["X"].X, given["y"], sample_weight)


@pytest.mark.parametrize(
    ("classifier", "changes"),
    [
        (SoftmaxClassifier, {"augment": FLIPS, "sample_weight": np.linspace(0, 2, N)}),
        (LinearSVMClassifier, {"augment": FLIPS, "nesterov": False, "schedule": "exponential"}),
    ],
)
def test_classifiers_learn_the_same(as_if_cupy, classifier, changes):
    found = fitted(classifier, **changes)
    assert as_if_cupy == [True]
    epoch_runner.kernels["numpy"] = ()
    shared = fitted(classifier, **changes)
    exact = fitted(classifier, **changes | {"precision": "float64"})
    np.testing.assert_allclose(found.loss_history_, exact.loss_history_, rtol=1e-6)
    for name, truth in exact.params_.items():
        allowed = 2 * np.linalg.norm(shared.params_[name] - truth) + 2e-6 * np.linalg.norm(truth)
        assert np.linalg.norm(found.params_[name] - truth) <= allowed
    assert found._rng.random() == exact._rng.random()


@pytest.mark.parametrize(
    ("changes", "taken"),
    [
        ({"augment": lambda X, rng: X}, False),
        ({"augment": FLIPS, "precision": "float64"}, False),
        ({"augment": FLIPS, "precision": "tf32"}, True),
        ({"augment": FLIPS, "standardize": False}, True),
    ],
)
def test_which_classifiers_it_trains(as_if_cupy, changes, taken):
    fitted(SoftmaxClassifier, **{"learning_rate": 1e-6} | changes)
    assert as_if_cupy == [taken]


def test_a_search_trains_its_fleet(as_if_cupy):
    given = problem()
    estimator = SoftmaxClassifier(max_iter=2, batch_size=BATCH, random_state=0, augment=FLIPS)
    fold = np.arange(99), np.arange(99, N)
    search = FleetSearchCV(estimator, {"learning_rate": [1e-3, 1e-2]}, cv=[fold])
    search.fit(given["X"].X, given["y"])
    assert as_if_cupy == [True, True]  # the fleet, and the best model on all samples


def test_training_goes_on_with_a_velocity(as_if_cupy):
    assert_training_goes_on(SOFTMAX, problem(), augment=FLIPS)
    assert as_if_cupy == [True] * 3


# ------------------------------------------------------------------------------------- declining


def test_declines_what_it_cannot_do(cuda_on_cpu):
    def declined(changes=(), **more):
        given = problem(n=60) | dict(changes)
        return linear_epochs(**given, **options(**more)) is NotImplemented

    given = problem(n=60)
    X, params = given["X"], given["params"]
    assert not declined()
    assert not declined(model=SVM)
    assert not declined(precision="tf32")
    assert not declined({"X": X.X})
    assert declined(precision="float64")
    assert declined(model=LinearModel("own", partial(multiclass_hinge, margin=2.0)))
    assert declined(model=LinearModel("own", lambda *args: softmax_cross_entropy(*args)))
    assert declined(model=type("Own", (LinearModel,), {})("own", softmax_cross_entropy))
    assert declined(model=TWO_LAYER)
    assert declined(shares=np.ones(60) / 60)
    assert declined({"X": X.X.astype(np.float32)})
    assert declined({"X": X.with_samples(Streamed(X.X, like=X.X))})
    assert declined({"X": np.asfortranarray(X.X)})
    shifted = np.concatenate([X.X.reshape(-1), X.X[0]])[1 : 1 + X.X.size].reshape(X.X.shape)
    assert declined({"X": shifted})  # on a GPU, a copy of 16 bytes from there is an error
    assert declined({"params": copied(params, np.float64)})
    assert declined({"params": {"W": params["W"]}, "velocity": {"W": params["W"]}})
    assert declined({"params": params | {"W": np.asfortranarray(params["W"])}})
    # Models that do not lie side by side would have to be copied.
    assert declined({"params": copied({"W": np.stack([params["W"]] * 2), "b": np.zeros((2, 5))})})
    assert declined(problem(n=60, d=100))
    assert declined(problem(n=60, c=33))
    assert declined(problem(n=60, d=16, c=32, models=33))
    assert declined(problem(n=1100, d=16), batch_size=1025)
    cuda_on_cpu.limits = cuda_modules.DeviceLimits(75, 40, 64 << 10)
    assert declined()
    assert cuda_on_cpu.launches == []


def test_which_augmentation_it_does():
    width = sgd_over_bytes.line_width
    assert width(None, 3072) == 0
    assert width(horizontal_flip, 3072) == 32
    assert width(partial(horizontal_flip, image_shape=(1, 28, 28)), 784) == 28
    assert width(horizontal_flip, 784) is None  # the shared loop says what is wrong
    assert width(partial(horizontal_flip, image_shape=(1, 16, 30)), 480) is None
    assert width(partial(horizontal_flip, rng=None), 3072) is None
    assert width(lambda X, rng: X, 3072) is None


# ------------------------------------------------------------------------------- broken kernels

BROKEN = {
    "project: barrier for the maxima dropped": ("__syncthreads();  // the maxima are there", ""),
    "project: barrier for the fragments dropped": (
        "__syncthreads();  // the fragments are there",
        "",
    ),
    "project: tails dropped": ("int part = 1; part >= 0;", "int part = 0; part >= 0;"),
    "project: mean not subtracted": ("-shifted[unit]", "0.0f"),
    "flips: words where they were": ("is_mirrored ? opposite : at", "at"),
    "flips: bytes where they were": ("is_mirrored ? 0x0123 : 0x3210", "0x3210"),
    "losses: half of the shares": ("i = lane / LANES;", "i = 2 * (lane / LANES);"),
    "losses: margin to oneself": ("lane != label && margin", "margin"),
    "update: barrier for the entries dropped": (
        "__syncthreads();  // the entries are there",
        "",
    ),
    "update: barrier for the rows' shares dropped": (
        "__syncthreads();  // the shares of the rows are there",
        "",
    ),
    "update: tails dropped": ("mma_m16n8k16(sums[4 * word + i], tails, b[i]);", ";"),
    "update: another order of columns": ("16 * member + k;", "16 * member + (k ^ 8);"),
    "update: rate of the first step": ("rates + step * n_models", "rates"),
    "losses: squares of a part of the columns": ("CHUNKS * outputs_of_a_model", "32"),
    "sums: penalties of the first step": ("penalties[place]", "penalties[model]"),
    "sums: rows of the first step": ("row_losses[static_cast<long long>(first + i)",
                                     "row_losses[static_cast<long long>(i)"),
    "sums: a full last batch": ("min(batch_size, n_samples - first)", "batch_size"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_broken_kernels_are_caught(cuda_on_cpu, monkeypatch, name):
    monkeypatch.setattr(sgd_over_bytes, "PROJECTION_BLOCKS", 2)  # of one chunk, and of two
    assert caught(cuda_on_cpu, "linear_step.cu", check_of_two_chunks, BROKEN[name])


def check_of_two_chunks():
    flips = partial(horizontal_flip, image_shape=(2, 8, 12))
    assert_trains_right(problem(n=90, d=192), SVM, augment=flips)


def test_what_is_intact_is_not_caught(cuda_on_cpu, monkeypatch):
    monkeypatch.setattr(sgd_over_bytes, "PROJECTION_BLOCKS", 2)
    assert not caught(cuda_on_cpu, "linear_step.cu", check_of_two_chunks)


# ----------------------------------------------------------------------------------- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("model", LINEAR)
@pytest.mark.parametrize(
    ("n", "d", "c", "batch", "models"),
    [(205, 96, 5, 37, None), (1000, 3072, 10, 200, None), (1000, 3072, 10, 200, 9)],
)
def test_a_gpu_learns_the_same_recorded_or_not(monkeypatch, model, n, d, c, batch, models):
    flips = partial(horizontal_flip, image_shape=(1, d // 32, 32))
    asked = options(model, batch_size=batch, augment=flips)
    assert_a_gpu_learns_the_same(linear_epochs, problem(n, d, c, models), asked, monkeypatch)
