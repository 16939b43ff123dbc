"""Samples of two bytes a number stay so, and give what the same numbers give in float64."""

import subprocess
import sys

import numpy as np
import pytest

from gpuclf import (
    KNeighborsClassifier,
    LinearSVMClassifier,
    SoftmaxClassifier,
    Standardized,
    Streamed,
    TwoLayerNetClassifier,
    softmax_loss_vectorized,
    svm_loss_vectorized,
    two_layer_loss,
    two_layer_scores,
)
from gpuclf.samples.short_floats import extremes, is_short_float, widened
from gpuclf.saving.checkpoints import fingerprint

N, D, C = 700, 80, 3
KINDS = {"softmax": SoftmaxClassifier, "svm": LinearSVMClassifier, "net": TwoLayerNetClassifier}
EPS = float(np.finfo(np.float32).eps)


def bfloat16():
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)


@pytest.fixture(params=["float16", "bfloat16"])
def short(request, lib):
    """Return what makes short floats of the library from float64, if it has them."""
    if lib.name.startswith("numpy"):
        dtype = np.dtype(request.param) if request.param == "float16" else bfloat16()
        return lambda X: lib.asarray(X.astype(dtype))
    dtype = getattr(lib.xp, request.param, None)
    if dtype is None:
        pytest.skip(f"{lib.name} has no {request.param}")
    return lambda X: lib.xp.astype(lib.asarray(X), dtype)


def make_data(seed=0, n=N):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % C
    return 5 + 2 * rng.standard_normal((n, D)) + 0.8 * np.eye(C, D)[y], y


def host64(lib, X):
    """Return the numbers of short floats of a library in float64."""
    wide = X.float() if lib.name == "torch" else X  # NumPy has no bfloat16 of PyTorch's
    return lib.to_numpy(wide).astype(np.float64)


def params_of(kind):
    rng = np.random.default_rng(3)
    if kind != "net":
        return {"W": 0.1 * rng.standard_normal((D, C)), "b": 0.1 * rng.standard_normal(C)}
    shapes = {"W1": (D, 20), "b1": (20,), "W2": (20, C), "b2": (C,)}
    return {name: 0.2 * rng.standard_normal(shape) for name, shape in shapes.items()}


@pytest.mark.essential_cases(4, in_ci=40)
@pytest.mark.parametrize("form", ["plain", "standardized", "one small batch"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("small_blocks")
def test_loss_and_gradient_are_those_of_the_same_numbers(lib, short, kind, form):
    X, y = make_data(n=20 if "batch" in form else N)
    X = short(X)
    exact = host64(lib, X)
    model = KINDS[kind]().model
    if form == "plain":
        samples, reference = X, exact
    else:
        samples, reference = Standardized.fit(X), Standardized.fit(exact)
        for found, expected in ((samples.mean, reference.mean), (samples.scale, reference.scale)):
            assert str(found.dtype).endswith("float64")
            np.testing.assert_allclose(lib.to_numpy(found), expected, rtol=1e-13)
    params = params_of(kind)
    narrow = {name: value.astype(np.float32) for name, value in params.items()}
    expected, grads = model.loss(
        {name: value.astype(np.float64) for name, value in narrow.items()}, reference, y, 1e-3
    )
    found, found_grads = model.loss(
        {name: lib.asarray(value) for name, value in narrow.items()}, samples, lib.asarray(y), 1e-3
    )
    np.testing.assert_allclose(lib.to_numpy(found), expected, rtol=20 * EPS)
    for name, value in grads.items():
        of_float32 = lib.to_numpy(found_grads[name])
        assert of_float32.dtype == np.float32
        atol = 100 * EPS * np.abs(value).max()
        np.testing.assert_allclose(of_float32, value, rtol=0, atol=atol, err_msg=name)


@pytest.mark.essential_cases(4)
def test_public_losses_take_them(lib, short):
    X, y = make_data()
    X, labels = short(X), lib.asarray(y)
    W = lib.asarray(params_of("softmax")["W"].astype(np.float32))
    net = {name: lib.asarray(v.astype(np.float32)) for name, v in params_of("net").items()}
    for function in (softmax_loss_vectorized, svm_loss_vectorized):
        loss, dW = function(W, X, labels, 0.0)
        assert np.isfinite(lib.to_numpy(loss))
        assert str(dW.dtype).endswith("float32")
    assert np.isfinite(lib.to_numpy(two_layer_loss(net, X, labels, 0.0)[0]))
    assert two_layer_scores(net, X).shape == (N, C)
    # float64 parameters compute in float64.
    W = lib.asarray(params_of("softmax")["W"])
    assert str(softmax_loss_vectorized(W, X, labels, 0.0)[1].dtype).endswith("float64")


@pytest.mark.essential_cases(2)
@pytest.mark.parametrize("kind", KINDS)
def test_classifiers_train_on_them_in_float32(lib, short, kind):
    X, y = make_data()
    X = short(X)
    options = {"max_iter": 3, "random_state": 0, "learning_rate": 0.01}
    model = KINDS[kind](**options).fit(X, lib.asarray(y))
    expected = KINDS[kind](**options).fit(host64(lib, X).astype(np.float32), y)
    assert model.loss_history_[-1] < model.loss_history_[0]
    for name, value in expected.params_.items():
        found = lib.to_numpy(model.params_[name])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, value, rtol=0, atol=2e-4 * np.abs(value).max())


def test_lbfgs_and_streams_take_them():
    X, y = make_data()
    short = X.astype(np.float16)
    options = {"solver": "lbfgs", "max_iter": 30}
    found = SoftmaxClassifier(**options).fit(short, y)
    expected = SoftmaxClassifier(**options).fit(short.astype(np.float64), y)
    np.testing.assert_allclose(found.loss_history_[-1], expected.loss_history_[-1], rtol=1e-4)
    streamed = Streamed(short, "numpy", memory_budget=1 << 19)
    assert streamed.dtype == np.float16
    one, two = (SoftmaxClassifier(max_iter=2, random_state=0).fit(v, y) for v in (streamed, short))
    np.testing.assert_array_equal(one.params_["W"], two.params_["W"])


def test_streams_of_them_go_to_a_device(lib):
    X, y = make_data()
    if not hasattr(lib.xp, "float16"):
        pytest.skip(f"{lib.name} has no float16")
    X = X.astype(np.float16)
    W = params_of("softmax")["W"].astype(np.float32)
    streamed = Streamed(X, like=lib.asarray(y), memory_budget=1 << 17)
    found, dW = softmax_loss_vectorized(lib.asarray(W), streamed, lib.asarray(y), 0.0)
    expected, of_numpy = softmax_loss_vectorized(W, X, y, 0.0)
    np.testing.assert_allclose(lib.to_numpy(found), expected, rtol=1e-6)
    np.testing.assert_allclose(
        lib.to_numpy(dW), of_numpy, rtol=0, atol=1e-6 * np.abs(of_numpy).max()
    )


def test_every_float16_is_widened_exactly():
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)]
    for dtype in (np.float32, np.float64):
        for values in (every, finite, finite.reshape(-1, 2)[:, 0], finite[:0]):
            found = widened(values, dtype)
            assert found.dtype == dtype
            np.testing.assert_array_equal(found, values.astype(dtype))
            of_sign = np.signbit(found), np.signbit(values)  # zeros too
            np.testing.assert_array_equal(*of_sign)


def test_extremes_are_the_least_and_the_largest():
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)]
    rng = np.random.default_rng(0)
    sets = [finite, finite[finite > 0], finite[finite < 0], finite[:1], finite[::2].reshape(-1, 2)]
    sets += [rng.choice(finite, n) for n in (1, 2, 3, 3, 3, 10)]
    for values in (*sets, finite.astype(np.float32)):
        assert extremes(values) == (float(values.min()), float(values.max()))
    for wrong in every[~np.isfinite(every)]:
        assert not np.isfinite(extremes(np.array([1, -1, wrong], np.float16))).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named(wrong):
    X, y = make_data()
    X = X.astype(np.float16)
    X[-1, 7] = wrong
    with pytest.raises(ValueError, match=rf"1 NaN or infinite values, the first at X\[{N - 1}, 7"):
        SoftmaxClassifier().fit(X, y)
    W = params_of("softmax")["W"].astype(np.float32)
    with pytest.raises(ValueError, match=rf"the first at X\[{N - 1}, 7"):
        softmax_loss_vectorized(W, X, y, 0.0)


def test_neighbours_and_others_convert_them_as_before():
    X, y = make_data()
    short = X.astype(np.float16)
    found = KNeighborsClassifier(3).fit(short, y).predict(short)
    np.testing.assert_array_equal(found, KNeighborsClassifier(3).fit(short * 1.0, y).predict(short))
    assert not is_short_float(np.dtype(">f2"))
    with pytest.raises(TypeError, match="float16, bfloat16, float32 or float64, got int16"):
        softmax_loss_vectorized(np.zeros((D, C)), X.astype(np.int16), y, 0.0)


@pytest.mark.essential_cases(4)
def test_they_can_be_gone_on_with(lib, short, tmp_path):
    X, y = make_data()
    X, y = short(X), lib.asarray(y)
    options = {"max_iter": 3, "random_state": 0}
    expected = SoftmaxClassifier(**options).fit(X, y, checkpoint=tmp_path)
    found = SoftmaxClassifier(**options).fit(X, y, checkpoint=tmp_path, resume=True)
    assert found.history_ == expected.history_
    other = short(make_data(seed=1)[0])
    assert fingerprint(X) != fingerprint(other)


MEMORY = """
    import resource
    import numpy as np
    from gpuclf import SoftmaxClassifier, TwoLayerNetClassifier
    rng = np.random.default_rng(0)
    X = np.empty(({n}, 768), np.float16)
    for start in range(0, len(X), 1000):
        X[start : start + 1000] = rng.standard_normal((1000, 768), dtype=np.float32)
    y = rng.integers(0, 10, len(X))
    kinds = (SoftmaxClassifier, {{}}), (SoftmaxClassifier, {{"solver": "lbfgs"}}), (
        TwoLayerNetClassifier, {{"hidden_size": 16}})
    def train(X, y):
        for kind, options in kinds:
            kind(max_iter=1, **options).fit(X, y).predict(X)
    train(X[:3000], y[:3000])  # what is imported and compiled is none of the samples' memory
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    train(X, y)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / X.nbytes)
"""


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="resource is for POSIX")
def test_training_takes_little_memory_beside_the_samples():
    import textwrap

    code = textwrap.dedent(MEMORY).format(n=100_000)
    command = [sys.executable, "-W", "ignore", "-c", code]
    grown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert float(grown) < 0.3


@pytest.mark.essential_cases(0, in_ci=1)
@pytest.mark.slow
@pytest.mark.parametrize("form", ["plain", "standardized"])
def test_the_compiled_pass_widens_them_as_it_reads(form):
    rng = np.random.default_rng(0)
    n_features = 83  # no whole number of vectors
    X = (1 + 2 * rng.standard_normal((1500, n_features))).astype(np.float16)
    y, W = rng.integers(0, 10, len(X)), rng.standard_normal((n_features, 10)).astype(np.float32)
    results = [
        softmax_loss_vectorized(W, Standardized.fit(v) if form == "standardized" else v, y, 1e-3)
        for v in (X, X.astype(np.float32))
    ]
    (found, dW), (expected, of_float32) = results
    np.testing.assert_allclose(found, expected, rtol=4 * EPS)
    np.testing.assert_allclose(dW, of_float32, rtol=0, atol=4 * EPS * np.abs(dW).max())
