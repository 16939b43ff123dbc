"""The CPU's pass of several softmax models against the shared body."""

import numpy as np
import pytest

from gpuclf.kernels.building.machine_code import numba_is_usable
from gpuclf.kernels.linear_pass import fleet_on_cpu
from gpuclf.kernels.linear_pass.fleet_on_cpu import class_major_linear_pass
from gpuclf.kernels.losses.on_cpu import padded_length
from gpuclf.kernels.wide_products import on_cpu as wide_products
from gpuclf.kernels.wide_products.on_cpu import TiledBlock
from gpuclf.losses import multiclass_hinge, softmax_cross_entropy
from gpuclf.models import SOFTMAX, linear
from gpuclf.models.linear import linear_pass
from gpuclf.samples.folding import FoldedSamples
from gpuclf.samples.standardized import Standardized

TOLERANCES = {np.float32: 5e-6, np.float64: 1e-13}


@pytest.fixture(autouse=True, params=["compiled", "NumPy"])
def small_blocks(monkeypatch, request):
    for name in ("MIN_ROWS", "MAX_ROWS", "MIN_SAMPLES"):
        monkeypatch.setattr(fleet_on_cpu, name, 64)
    monkeypatch.setattr(fleet_on_cpu, "MIN_MULTIPLICATIONS", 0)
    if request.param == "NumPy":
        monkeypatch.setattr(fleet_on_cpu, "numba_is_usable", lambda: False)
    else:
        pytest.importorskip("numba", reason="numba is not installed")


def arguments(n=170, d=9, c=4, k=3, dtype=np.float64, kind="floats"):
    rng = np.random.default_rng(0)
    X = (rng.standard_normal((n, d)) + 3).astype(dtype)
    if "bytes" in kind:
        X = rng.integers(0, 256, (n, d)).astype(np.uint8)
    X = Standardized.fit(X) if "standardized" in kind else X
    return {
        "W": rng.standard_normal((d, k * c)).astype(dtype) / d,
        "b": rng.standard_normal(k * c).astype(dtype),
        "samples": FoldedSamples(X, k * c, dtype),
        "y": rng.integers(0, c, n),
        "weights": rng.random(n).astype(dtype),
        "data_loss": softmax_cross_entropy,
        "models": (k,),
    }


def assert_agrees(given, dtype):
    found, expected = class_major_linear_pass(**given), linear_pass.reference(**given)
    assert found is not NotImplemented
    for ours, reference in zip(found, expected, strict=True):
        assert ours.dtype == reference.dtype
        assert ours.shape == reference.shape
        scale = np.abs(reference).max()
        np.testing.assert_allclose(ours, reference, rtol=0, atol=TOLERANCES[dtype] * scale)


@pytest.mark.essential_cases(4)
@pytest.mark.parametrize("kind", ["floats", "bytes", "standardized floats", "standardized bytes"])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_finds_what_the_body_finds(kind, dtype):
    given = arguments(kind=kind, dtype=dtype)
    assert_agrees(given, dtype)
    assert_agrees(given | {"b": None}, dtype)
    of_each = np.random.default_rng(1).random((3, 170)).astype(dtype)
    assert_agrees(given | {"weights": of_each}, dtype)


@pytest.mark.parametrize("k", [1, 2, 7])
@pytest.mark.parametrize("c", [2, 5, 30])
def test_any_number_of_models_and_classes(k, c):
    assert_agrees(arguments(k=k, c=c), np.float64)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_a_single_model_of_many_classes(dtype):
    many = arguments(c=60, k=1, dtype=dtype) | {"models": ()}
    assert_agrees(many, dtype)
    assert_agrees(many | {"b": None}, dtype)
    for declined in (
        arguments(c=48, k=1) | {"models": ()},
        arguments(c=60, k=1, n=63) | {"models": ()},
    ):
        assert class_major_linear_pass(**declined) is NotImplemented


def test_bytes_are_multiplied_in_tiles(monkeypatch):
    monkeypatch.setattr(wide_products, "MIN_BLOCKS", 0)
    given = arguments(n=1000, d=130, c=9, k=3, kind="standardized bytes", dtype=np.float32)
    is_tiled = given["samples"].block(slice(0, 64)).__class__ is TiledBlock
    assert is_tiled is numba_is_usable()
    assert_agrees(given, np.float32)
    of_each = np.random.default_rng(1).random((3, 1000)).astype(np.float32)
    assert_agrees(given | {"weights": of_each}, np.float32)


@pytest.mark.parametrize("n", [64, 65, 127, 128, 1000])
def test_any_number_of_samples(n):
    assert_agrees(arguments(n=n), np.float64)


def test_scores_far_apart_stay_finite():
    given = arguments()
    given["W"] *= 1e4
    assert_agrees(given, np.float64)


def test_a_model_that_is_not_finite_harms_no_other():
    given = arguments()
    expected = class_major_linear_pass(**given)
    given["W"][0, 4:8] = np.nan, np.inf, -np.inf, 1.0
    with np.errstate(invalid="ignore"):
        loss, dW, _ = class_major_linear_pass(**given)
    assert np.isnan(loss[1])
    np.testing.assert_array_equal(loss[[0, 2]], expected[0][[0, 2]])
    np.testing.assert_array_equal(dW[:, 8:], expected[1][:, 8:])


def test_what_it_declines():
    given = arguments()
    wrong = given["y"].copy()
    wrong[5] = 4
    for other in (
        {"data_loss": multiclass_hinge},
        {"models": ()},
        {"y": wrong},
        {"y": wrong - 5},
        {"weights": given["weights"].astype(np.float32)},
    ):
        assert class_major_linear_pass(**given | other) is NotImplemented
    loss, _ = SOFTMAX.objective({"W": np.zeros((2, 9, 4))}, np.ones((170, 9)), wrong, np.zeros(2))
    assert np.isnan(loss).all()


def test_mini_batches_are_taken_where_the_loss_is_compiled(monkeypatch):
    monkeypatch.setattr(fleet_on_cpu, "MIN_SAMPLES", 1000)
    given = arguments(d=200)
    if not fleet_on_cpu.numba_is_usable():
        assert class_major_linear_pass(**given) is NotImplemented
        return
    assert_agrees(given, np.float64)
    monkeypatch.setattr(fleet_on_cpu, "MIN_MULTIPLICATIONS", 1 << 40)
    assert class_major_linear_pass(**given) is NotImplemented


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_loss_has_the_last_digits(dtype):
    if fleet_on_cpu.numba_is_usable():
        from gpuclf.kernels.losses.loops import gradients_in_place
    else:
        gradients_in_place = fleet_on_cpu._softmax_gradients_in_place
    rng, eps = np.random.default_rng(0), np.finfo(dtype).eps
    K, C, n = 3, 5, 301
    scores = (rng.standard_normal((K, C, n)) * np.geomspace(0.1, 60, n)).astype(dtype)
    bias = rng.standard_normal((K, C)).astype(dtype)
    labels, weights = rng.integers(0, C, n), rng.random((K, n)).astype(dtype) + 0.5
    wide = (scores + bias[:, :, None]).astype(np.longdouble)
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    shares = powers / powers.sum(axis=1, keepdims=True)
    own = slice(None), labels, np.arange(n)
    losses, gradient = -np.log(shares[own]), shares.copy()
    gradient[own] -= 1
    found, totals = np.zeros(K), np.zeros((K, C))
    padded = np.full((K, C, padded_length(n)), np.nan, dtype)
    padded[..., :n] = scores
    gradients_in_place(padded, bias, labels, weights, found, totals, False)
    scores = padded[..., :n]
    assert abs(scores / weights[:, None] - gradient).max() < 4 * eps
    assert abs(found / (weights * losses).sum(axis=1) - 1).max() < 4 * eps
    sums = (weights[:, None] * gradient).sum(axis=-1)
    assert abs(totals - sums).max() < 4 * eps * n
    others = gradient > np.finfo(dtype).tiny * 1e3
    others[own] = False
    relative = abs(scores / weights[:, None] / np.where(others, gradient, 1) - 1)[others]
    rounded = (wide.max(axis=1, keepdims=True) - wide)[others]  # to so many units, as differences
    assert (relative / (4 + rounded)).max() < eps  # small probabilities too


def test_fleets_are_given_to_it(monkeypatch):
    given = arguments(n=300)
    calls = []

    def counted(*args, **options):
        calls.append(class_major_linear_pass(*args, **options))
        return calls[-1]

    monkeypatch.setitem(linear.linear_pass.kernels, "numpy", (counted,))
    W = np.zeros((3, 9, 4))
    loss, _ = SOFTMAX.objective({"W": W}, given["samples"].stored, np.arange(300) % 4, np.ones(3))
    assert loss == pytest.approx(np.log(4))
    assert len(calls) == 1
    assert calls[0] is not NotImplemented
    assert "linear_pass.fleet_on_cpu:class_major_linear_pass" in linear_pass.replacements["numpy"]
