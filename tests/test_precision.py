"""Precision as an argument: what each value computes in, and what it switches on a GPU."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from test_estimators import KINDS, make_data, make_pixels

from gpuclf.devices import cupy as cupy_device
from gpuclf.devices.cupy import product_precision
from gpuclf.models import SOFTMAX, linear, two_layer
from gpuclf.models.linear import softmax_loss_vectorized, svm_loss_vectorized
from gpuclf.models.two_layer import two_layer_loss, two_layer_scores

N, D, H, C = 40, 6, 5, 3
SHAPES = {"W1": (D, H), "b1": (H,), "W2": (H, C), "b2": (C,)}


def values(kind, dtype=np.float32):
    """Parameters, samples and labels whose float32 results differ from those in float64."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((N, D)) if kind == "floats" else rng.integers(0, 256, (N, D))
    scale = 1 if kind == "floats" else 0.01
    params = {name: (rng.standard_normal(s) * scale).astype(dtype) for name, s in SHAPES.items()}
    W = (rng.standard_normal((D, C)) * scale).astype(dtype)
    return W, params, X.astype(np.uint8 if kind == "bytes" else dtype), np.arange(N) % C


def all_functions(lib, W, params, X, y, **precision):
    """Losses, gradients and scores of every public function, by name."""
    W, X, y = lib.asarray(W), lib.asarray(X), lib.asarray(y)
    params = {name: lib.asarray(value) for name, value in params.items()}
    softmax, d_softmax = softmax_loss_vectorized(W, X, y, 0.1, **precision)
    svm, d_svm = svm_loss_vectorized(W, X, y, 0.1, **precision)
    net, grads = two_layer_loss(params, X, y, 0.1, **precision)
    scores = two_layer_scores(params, X, **precision)
    found = {"softmax": softmax, "dW softmax": d_softmax, "svm": svm, "dW svm": d_svm, "net": net}
    found |= grads | {"scores": scores}
    return {name: lib.to_numpy(value) for name, value in found.items()}


@pytest.mark.parametrize("kind", ["floats", "bytes"])
def test_float64_computes_in_float64_whatever_comes_in(lib, kind):
    given = values(kind)
    W, params, X, y = given
    wide = {name: value.astype(np.float64) for name, value in params.items()}
    truth = all_functions(
        lib, W.astype(np.float64), wide, X if kind == "bytes" else X.astype(np.float64), y
    )
    found = all_functions(lib, *given, precision="float64")
    narrow = all_functions(lib, *given)
    for name, expected in truth.items():
        assert found[name].dtype == np.float64, name
        np.testing.assert_allclose(found[name], expected, rtol=1e-13, atol=1e-13)
    # Or float64 inputs would prove nothing.
    assert any(np.max(np.abs(narrow[name] - truth[name])) > 1e-9 for name in truth)


@pytest.mark.essential_cases(8)
@pytest.mark.parametrize("precision", ["float32", "tf32"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_others_leave_the_floats_of_the_inputs(lib, dtype, precision):
    given = values("floats", dtype)
    expected = all_functions(lib, *given)
    found = all_functions(lib, *given, precision=precision)
    for name in expected:
        assert found[name].dtype == expected[name].dtype
        np.testing.assert_array_equal(found[name], expected[name])
    assert found["dW softmax"].dtype == dtype


@pytest.mark.parametrize("precision", ["float16", "FLOAT32", "", None, 32, np.float64])
def test_other_precisions_are_refused_with_the_choices(lib, precision):
    message = "precision must be 'float32', 'tf32' or 'float64', got "
    W, params, X, y = values("floats")
    W, X, y = lib.asarray(W), lib.asarray(X), lib.asarray(y)
    params = {name: lib.asarray(value) for name, value in params.items()}
    for call in (
        lambda: softmax_loss_vectorized(W, X, y, 0.1, precision=precision),
        lambda: svm_loss_vectorized(W, X, y, 0.1, precision=precision),
        lambda: two_layer_loss(params, X, y, 0.1, precision=precision),
        lambda: two_layer_scores(params, X, precision=precision),
    ):
        with pytest.raises(ValueError, match=message):
            call()


# ---------------------------------------------------------------------- what reaches the GPU


class PretendCupy:
    """CuPy's private switch, as a process-wide value that tests can read."""

    def __init__(self, compute_capability="90", compute_type=cupy_device.CUPY_DEFAULT):
        self.compute_type = compute_type
        self._core = SimpleNamespace(get_compute_type=self._get, set_compute_type=self._set)
        device = SimpleNamespace(compute_capability=compute_capability)
        self.array = SimpleNamespace(device=device)

    def _get(self, dtype):
        assert dtype == np.float32
        return self.compute_type

    def _set(self, dtype, compute_type):
        assert dtype == np.float32
        self.compute_type = compute_type


@pytest.fixture
def pretend(monkeypatch):
    def install(**options):
        cupy = PretendCupy(**options)
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        monkeypatch.setattr(cupy_device, "library_name", lambda x: "cupy")
        return cupy

    return install


@pytest.mark.parametrize("before", [cupy_device.CUPY_DEFAULT, cupy_device.CUPY_TF32])
@pytest.mark.parametrize(
    ("precision", "capability", "expected"),
    [
        ("float32", "90", cupy_device.CUPY_DEFAULT),  # also if CUPY_TF32=1 has switched it on
        ("float64", "90", cupy_device.CUPY_DEFAULT),
        ("tf32", "90", cupy_device.CUPY_TF32),
        ("tf32", "80", cupy_device.CUPY_TF32),
        ("tf32", "120", cupy_device.CUPY_TF32),
        ("tf32", "75", cupy_device.CUPY_DEFAULT),
    ],
)
def test_the_switch_is_set_inside_and_restored(pretend, before, precision, capability, expected):
    cupy = pretend(compute_capability=capability, compute_type=before)
    with product_precision(cupy.array, precision):
        assert cupy.compute_type == expected
    assert cupy.compute_type == before


def test_the_switch_is_restored_after_an_error(pretend):
    cupy = pretend(compute_type=cupy_device.CUPY_TF32)
    with pytest.raises(ZeroDivisionError), product_precision(cupy.array, "float32"):
        raise ZeroDivisionError
    assert cupy.compute_type == cupy_device.CUPY_TF32


def test_a_cupy_without_the_private_switch_is_left_alone(pretend):
    cupy = pretend()
    for broken in (SimpleNamespace(), None):
        cupy._core = broken
        with product_precision(cupy.array, "tf32"):
            pass
    del cupy._core
    with product_precision(cupy.array, "tf32"):
        pass


def test_other_libraries_are_left_alone(lib, monkeypatch):
    cupy = PretendCupy()
    if lib.name != "cupy":
        monkeypatch.setitem(sys.modules, "cupy", cupy)
    with product_precision(lib.asarray(np.zeros(1)), "tf32"):
        assert cupy.compute_type == cupy_device.CUPY_DEFAULT


def test_the_installed_cupy_has_the_private_switch():
    core = pytest.importorskip("cupy", reason="CuPy is not installed")._core
    from cupy._core import _routines_linalg as numbers

    core.set_compute_type(np.float32, numbers.COMPUTE_TYPE_DEFAULT)
    assert core.get_compute_type(np.float32) == cupy_device.CUPY_DEFAULT
    assert numbers.COMPUTE_TYPE_TF32 == cupy_device.CUPY_TF32


@pytest.fixture
def seen(monkeypatch):
    """The precisions that products ran in, and those that linear_pass was told."""
    products, passes = [], []

    def recorded(like, precision):
        products.append(precision)
        return product_precision(like, precision)

    reference = linear.linear_pass

    def linear_pass(*args):
        passes.append(args[6])
        return reference(*args)

    for module in (linear, two_layer):
        monkeypatch.setattr(module, "product_precision", recorded)
    monkeypatch.setattr(linear, "linear_pass", linear_pass)
    return SimpleNamespace(products=products, passes=passes)


@pytest.mark.essential_cases(7)
@pytest.mark.parametrize(
    ("precision", "expected"),
    [("tf32", "tf32"), ("float64", "float64"), ("float32", "float32"), (None, "float32")],
)
@pytest.mark.parametrize("kind", KINDS)
def test_estimators_train_and_predict_in_their_precision(seen, kind, precision, expected):
    X, y = make_pixels()
    classifier = KINDS[kind](precision=precision).fit(X, y)
    assert set(seen.products) == {expected}
    assert set(seen.passes) == (set() if kind == "two-layer" else {expected})
    seen.products.clear()
    classifier.predict(X)
    assert seen.products == [expected]


def test_the_unchecked_objective_hands_the_precision_on(seen):
    X, y = make_data()
    SOFTMAX.objective({"W": np.zeros((D, C))}, X, y, 0.0, precision="tf32")
    assert seen.passes == seen.products == ["tf32"]
