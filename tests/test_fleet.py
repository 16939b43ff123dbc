"""Every member of a fleet is the model that training alone gives."""

from functools import partial

import numpy as np
import pytest
from test_training import (
    MODELS,
    C,
    D,
    make_data,
    make_params,
    make_two_layer_params,
    run_sgd,
)

from gpuclf import Standardized, Streamed
from gpuclf.devices.backends import to_device
from gpuclf.kernels.elementwise import on_cpu as compiled_elementwise
from gpuclf.models import SOFTMAX, SVM, TWO_LAYER
from gpuclf.training import DivergedError, Member, one_cycle, train_sgd

K = 5
RTOL = {"float32": 1e-5, "float64": 1e-12}
COMPARED = (0, 3, 4)  # with the models trained alone: both schedules, both ends
MODELS = MODELS | {"svm": (SVM, make_params)}


def rates_of(k):
    """Decay for some, one-cycle for others, all at rates of their own."""
    if k % 2:
        return lambda step: 0.05 * (k + 1) * one_cycle(step, 15)
    return lambda step: 0.05 * (k + 1) * 0.9 ** (step // 5)


SETTINGS = {
    "rate": [rates_of(k) for k in range(K)],
    "reg": [0.0, 1e-3, 1e-2, 0.1, 0.3],
    "momentum": [0.9, 0.0, 0.5, 0.8, 0.9],
}
COMMON = {"nesterov": True, "batch_size": 10, "epochs": 2}


def stacked_start(make, dtype="float64"):
    """Starts that differ in scale, as (K, ...)."""
    one = make()
    scales = np.linspace(0.1, 2, K)
    return {n: np.stack([s * v for s in scales]).astype(dtype) for n, v in one.items()}


def train(model, start, X, y, *, velocity=None, history=None, on_epoch=None, **options):
    """Train K models together; `rate`, `reg` and `momentum` have one value for each."""
    options = COMMON | {"rng": np.random.default_rng(3)} | options
    own = {name: options.pop(name, values) for name, values in SETTINGS.items()}
    members = [
        Member({name: value[k, ...] for name, value in start.items()}, *settings)
        for k, settings in enumerate(zip(*own.values(), strict=True))
    ]
    for k, member in enumerate(members):
        member.velocity = None if velocity is None else velocity[k]
        member.history = member.history if history is None else history[k]
    if on_epoch is not None:
        options["on_epoch"] = lambda params, numbers: on_epoch(
            params, numbers, [members[k].history for k in numbers]
        )
    train_sgd(model, members, X, y, **options)
    return members


def alone(k, model, start, X, y, **options):
    own = {name: values[k] for name, values in SETTINGS.items()}
    given = COMMON | own | {"rng": np.random.default_rng(3)} | options
    return run_sgd({name: value[k, ...] for name, value in start.items()}, X, y, model, **given)


def assert_same(found, expected, rtol):
    for name, value in expected.items():
        scale = np.max(np.abs(value))
        np.testing.assert_allclose(found[name], value, rtol=0, atol=rtol * scale, err_msg=name)


def assert_is_the_model_alone(lib, member, expected, rtol):
    params, velocity, history = expected
    assert member.error is None
    for found, wanted in ((member.params, params), (member.velocity, velocity)):
        assert_same(*({n: lib.to_numpy(v) for n, v in d.items()} for d in (found, wanted)), rtol)
    np.testing.assert_allclose(member.history.loss, history.loss, rtol=rtol)
    np.testing.assert_allclose(member.history.learning_rate, history.learning_rate, rtol=1e-12)


@pytest.mark.essential_cases(4)
@pytest.mark.parametrize("dtype", RTOL)
@pytest.mark.parametrize("name", MODELS)
def test_members_are_the_models_trained_alone(lib, name, dtype):
    model, make = MODELS[name]
    X, y = make_data()
    X, y = lib.asarray(X.astype(dtype)), lib.asarray(y)
    start = {name: lib.asarray(value) for name, value in stacked_start(make, dtype).items()}
    members = train(model, start, X, y)
    assert len(members) == K
    for k in COMPARED:
        expected = alone(k, model, start, X, y)
        assert_is_the_model_alone(lib, members[k], expected, RTOL[dtype])


@pytest.mark.essential_cases(5)
@pytest.mark.parametrize("form", ["bytes", "standardized bytes", "standardized floats", "streamed"])
@pytest.mark.parametrize("name", MODELS)
def test_whatever_form_the_samples_have(lib, name, form):
    model, make = MODELS[name]
    X, y = make_data(n=230)
    pixels = np.clip(128 + 40 * X, 0, 255).astype(np.uint8)
    X, y = lib.asarray(X if "floats" in form else pixels), lib.asarray(y)
    if "standardized" in form:
        X = Standardized.fit(X)
    elif form == "streamed":
        X = Standardized.fit(Streamed(pixels, like=y))
    else:
        X = Standardized(X, 128.0, 64.0)
    start = {name: lib.asarray(value) for name, value in stacked_start(make).items()}
    # 100 rows fold one model, and not five.
    members = train(model, start, X, y, batch_size=100)
    for k in COMPARED:
        expected = alone(k, model, start, X, y, batch_size=100)
        assert_is_the_model_alone(lib, members[k], expected, 1e-10)


@pytest.mark.essential_cases(6)
@pytest.mark.parametrize("name", MODELS)
def test_members_may_have_sample_weights_of_their_own(lib, name):
    model, make = MODELS[name]
    X, y = make_data()
    weights = np.random.default_rng(5).integers(0, 3, (K, len(y))).astype(np.float64)
    start = {name: lib.asarray(value) for name, value in stacked_start(make).items()}
    X, y = lib.asarray(X), lib.asarray(y)
    members = train(model, start, X, y, sample_weight=lib.asarray(weights))
    for k in COMPARED:
        expected = alone(k, model, start, X, y, sample_weight=lib.asarray(weights[k]))
        assert_is_the_model_alone(lib, members[k], expected, 1e-12)


def test_samples_of_weight_zero_do_not_train():
    X, y = make_data()
    masks = np.ones((K, len(y)))
    masks[1, 20:] = 0
    spoilt = X.copy()
    spoilt[20:] += 100
    found = train(SOFTMAX, stacked_start(make_params), X, y, sample_weight=masks)[1]
    other = train(SOFTMAX, stacked_start(make_params), spoilt, y, sample_weight=masks)[1]
    assert_same(other.params, found.params, 1e-12)


@pytest.mark.essential_cases(3)
@pytest.mark.parametrize("dtype", RTOL)
@pytest.mark.parametrize("name", MODELS)
def test_a_member_that_diverges_is_set_aside_and_harms_nobody(lib, name, dtype):
    model, make = MODELS[name]
    X, y = make_data()
    X, y = lib.asarray(X.astype(dtype)), lib.asarray(y)
    start = {name: lib.asarray(value) for name, value in stacked_start(make, dtype).items()}
    rates = [*SETTINGS["rate"]]
    rates[2] = lambda step: 1e38 if dtype == "float32" else 1e300
    members = train(model, start, X, y, rate=rates)
    lost = members[2]
    assert lost.velocity is None
    for name, value in start.items():  # it keeps what it came with
        np.testing.assert_array_equal(lib.to_numpy(lost.params[name]), lib.to_numpy(value)[2])
    with pytest.raises(DivergedError) as caught:
        alone(2, model, start, X, y, rate=rates[2])
    assert str(lost.error) == str(caught.value)
    for k in COMPARED:
        expected = alone(k, model, start, X, y)
        assert_is_the_model_alone(lib, members[k], expected, RTOL[dtype])


def test_a_fleet_of_diverging_models_ends():
    X, y = make_data()
    members = train(SOFTMAX, stacked_start(make_params), X, y, reg=[1e300] * K, epochs=9)
    assert all(member.error is not None for member in members)
    assert {len(member.history.loss) for member in members} == {5}


def test_losers_leave_and_the_others_go_on_in_fewer_columns():
    X, y = make_data()
    start, seen = stacked_start(make_params), []

    def halve(params, numbers, histories):
        seen.append((numbers, params["W"].shape, [len(h.loss) for h in histories]))
        return {0: [1, 3], 1: [0], 2: [2]}.get(len(seen) - 1)

    weights = np.random.default_rng(1).random((K, len(y)))
    members = train(SOFTMAX, start, X, y, on_epoch=halve, sample_weight=weights, epochs=4)
    assert seen == [
        ([0, 1, 2, 3, 4], (5, D, C), [5] * 5),
        ([0, 2, 4], (3, D, C), [10] * 3),
        ([2, 4], (2, D, C), [15] * 2),
        ([4], (D, C), [20]),
    ]
    for k, epochs in enumerate((2, 1, 3, 1, 4)):
        expected = alone(k, SOFTMAX, start, X, y, epochs=epochs, sample_weight=weights[k])
        assert_same(members[k].params, expected[0], 1e-12)


@pytest.mark.essential_cases(6)
@pytest.mark.parametrize("dtype", RTOL)
@pytest.mark.parametrize("name", MODELS)
def test_a_fleet_goes_on_with_as_few_as_are_left(lib, name, dtype):
    model, make = MODELS[name]
    X, y = make_data()
    X, y = lib.asarray(X.astype(dtype)), lib.asarray(y)
    start = {name: lib.asarray(value) for name, value in stacked_start(make, dtype).items()}
    rng, left = np.random.default_rng(3), (0, 3)
    before = train(model, start, X, y, rng=rng, epochs=1)
    settings = {name: [values[k] for k in left] for name, values in SETTINGS.items()}
    members = [before[k] for k in left]
    members = train(
        *(model, {n: lib.xp.stack([m.params[n] for m in members]) for n in start}, X, y),
        **settings | {"rng": rng, "epochs": 1},
        velocity=[member.velocity for member in members],
        history=[member.history for member in members],
    )
    for k, member in zip(left, members, strict=True):
        expected = alone(k, model, start, X, y)
        assert_is_the_model_alone(lib, member, expected, RTOL[dtype])


@pytest.mark.parametrize("name", MODELS)
def test_a_fleet_of_one_is_the_model(name):
    model, make = MODELS[name]
    X, y = make_data()
    start = {name: value[:1] for name, value in stacked_start(make).items()}
    of_one = {name: values[:1] for name, values in SETTINGS.items()}
    (member,) = train(model, start, X, y, **of_one)
    params, _, history = alone(0, model, start, X, y)
    for found, expected in zip(member.params.values(), params.values(), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert member.history.loss == history.loss


def test_the_start_is_not_changed_and_members_own_their_arrays():
    X, y = make_data()
    start = stacked_start(make_two_layer_params)
    kept = {name: value.copy() for name, value in start.items()}
    first, second, *_ = train(TWO_LAYER, start, X, y)
    for name, value in start.items():
        np.testing.assert_array_equal(value, kept[name])
        assert not np.shares_memory(first.params[name], second.params[name])
        assert first.params[name].flags.c_contiguous


def test_augmented_batches_are_the_same_for_all():
    X, y = make_data()
    augment = lambda batch, rng: batch + 0.1 * rng.standard_normal(batch.shape)  # noqa: E731
    start = stacked_start(make_params)
    members = train(SOFTMAX, start, X, y, augment=augment)
    expected = alone(4, SOFTMAX, start, X, y, augment=augment)
    assert_same(members[4].params, expected[0], 1e-12)


# ------------------------------------------------------------------- at the size of images


@pytest.mark.essential_cases(3)
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("form", ["bytes", "float32", "float64"])
@pytest.mark.parametrize("loss", ["softmax", "svm"])
def test_images(loss, form, compiled, monkeypatch):
    """Wide enough for the kernels: products of bytes, updates of columns."""
    if not compiled:
        monkeypatch.setattr(compiled_elementwise, "_are_worth_it", lambda *_: False)
    rng = np.random.default_rng(0)
    y = rng.integers(10, size=450)
    X = np.clip(100 + 30 * rng.standard_normal((10, 768))[y] + 60 * rng.random((450, 768)), 0, 255)
    stored = X.astype(np.uint8) if form == "bytes" else X.astype(form)
    dtype = "float64" if form == "float64" else "float32"
    start = {"W": np.zeros((K, 768, 10), dtype), "b": np.zeros((K, 10), dtype)}
    rates = [partial(lambda k, step: 1e-4 * 3**k, k) for k in range(K)]
    rates[3] = lambda step: 1e30  # overflows float32 within the first epoch
    model = MODELS[loss][0]
    features = Standardized.fit(stored)
    given = {"batch_size": 150, "rate": rates}
    members = train(model, start, features, y, **given)
    for k in (0, 1, 2, 4):
        expected = alone(k, model, start, features, y, batch_size=150, rate=rates[k])
        assert_same(members[k].params, expected[0], RTOL[dtype])


def test_an_epoch_uploads_as_often_whatever_its_steps(monkeypatch):
    import opaque_arrays

    def crossings(batch_size):
        X, y = (opaque_arrays.asarray(v, device=opaque_arrays.DEVICE) for v in make_data())
        start = to_device(stacked_start(make_params), like=y)
        with opaque_arrays.counted() as counts:
            train(SOFTMAX, start, X, y, batch_size=batch_size)
            return {n: v for n, v in counts.items() if "bytes" not in n}

    assert crossings(5) == crossings(20)


@pytest.mark.parametrize("epochs", [1, 2], ids=["at the end", "where it stops early"])
def test_parameters_that_blow_up_in_the_last_step_are_noticed(lib, epochs):
    X, y = (lib.asarray(values) for values in make_data())
    start = {name: lib.asarray(value) for name, value in stacked_start(make_params).items()}
    rates = [lambda _: 0.1] * 3 + [lambda step: 1e300 if step == 4 else 0.1] + [lambda _: 0.1]
    options = {"rate": rates, "epochs": epochs, "reg": [0.0] * 3 + [1e10, 0.0]}
    members = train(SOFTMAX, start, X, y, on_epoch=lambda _, left, __: {3} & set(left), **options)
    assert [member.error is None for member in members] == [True, True, True, False, True]
    assert "the parameters became NaN or infinite" in str(members[3].error)
    assert members[3].velocity is None  # it keeps what it came with
