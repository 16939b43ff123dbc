"""Products of bytes on a matrix unit, held against float64 and against what float32 loses."""

import os
import subprocess
import sys

import numpy as np
import pytest

from gpuclf.kernels.byte_products import on_cpu as compiled_bytes
from gpuclf.kernels.byte_products.on_cpu import (
    ByteBlock,
    are_multiplied,
    bytes_affine,
    bytes_affine_backward,
    linear_pass_of_bytes,
)
from gpuclf.kernels.linear_pass.on_cpu import compiled_linear_pass
from gpuclf.losses import multiclass_hinge, softmax_cross_entropy
from gpuclf.models import TWO_LAYER
from gpuclf.models.linear import linear_pass
from gpuclf.samples.folding import FoldedSamples, RowBlock, block_type
from gpuclf.samples.standardized import Standardized

pytestmark = pytest.mark.amx


@pytest.fixture(autouse=True)
def nothing_is_too_little(monkeypatch):
    monkeypatch.setattr(compiled_bytes, "MIN_MULTIPLICATIONS", 0)


def error(found, truth):
    """Return the largest error, in units of the largest number."""
    return float(np.abs(found - truth).max() / np.abs(truth).max())


def assert_no_worse_than_float32(found, in_float32, truth):
    """Check the error budget: what the same product in float32 loses, and one last digit."""
    assert found.dtype == np.float32
    assert found.shape == truth.shape
    assert error(found, truth) <= error(in_float32, truth) + 1e-7


def features(X, n_outputs, dtype):
    made = FoldedSamples(Standardized(X, 120.0, 60.0), n_outputs, dtype)
    assert made.folds
    return made


def problem(n, d, m, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.integers(0, 256, (n, d)).astype(np.uint8)
    W = rng.standard_normal((d, m)) / d * np.geomspace(1, 1e3, m)  # no two columns alike
    return X, W, rng.standard_normal(m), rng.standard_normal((n, m))


# Around tiles of 16 rows and columns, panels of 64 features and rows, blocks of 256 rows.
SIZES = [(1, 1, 1), (15, 63, 17), (16, 64, 16), (17, 65, 15), (64, 128, 33), (67, 200, 50)]
SIZES += [(255, 70, 3), (256, 64, 10), (257, 130, 10), (600, 3072, 20)]


@pytest.mark.parametrize(("n", "d", "m"), SIZES)
def test_both_products(n, d, m):
    X, W, b, dY = problem(n, d, m)
    block = features(X, m, np.float32).block(slice(0, n))
    truth = features(X, 0, np.float64).block(slice(0, n))
    in_float32 = features(X, 0, np.float32).block(slice(0, n))
    W32, b32, dY32 = (value.astype(np.float32) for value in (W, b, dY))
    W, b, dY = (value.astype(np.float64) for value in (W32, b32, dY32))
    found = bytes_affine(W32, b32, block)
    assert_no_worse_than_float32(found, in_float32.affine(W32, b32), truth.affine(W, b))
    expected = truth.affine_backward(dY)
    rounded = in_float32.affine_backward(dY32)
    for ours, theirs, exact in zip(
        bytes_affine_backward(dY32, block), rounded, expected, strict=True
    ):
        assert_no_worse_than_float32(ours, theirs, exact)


def test_shares_of_the_columns(monkeypatch):
    X, W, b, dY = (v.astype(np.float32) if v.dtype == float else v for v in problem(70, 65, 70))
    block = features(X, 70, np.float32).block(slice(0, 70))
    whole = bytes_affine(W, b, block), *bytes_affine_backward(dY, block)
    monkeypatch.setattr(compiled_bytes, "MULTIPLICATIONS_FOR_A_THREAD", 1)
    monkeypatch.setattr(compiled_bytes, "cpu_workers", lambda: 3)
    shared = bytes_affine(W, b, block), *bytes_affine_backward(dY, block)
    for ours, theirs in zip(shared, whole, strict=True):
        assert np.array_equal(ours, theirs)
    W[3, 69] = np.nan
    dY[3, 69] = np.nan
    assert bytes_affine(W, b, block) is NotImplemented
    assert bytes_affine_backward(dY, block) is NotImplemented


@pytest.mark.parametrize("loss", [softmax_cross_entropy, multiclass_hinge])
@pytest.mark.parametrize(("n", "d", "c"), [*SIZES, (1300, 100, 10)])
def test_linear_pass(n, d, c, loss):
    X, W, b, _ = problem(n, d, c)
    rng = np.random.default_rng(1)
    y, weights = rng.integers(0, c, n), rng.random(n).astype(np.float32)
    W32, b32 = W.astype(np.float32), b.astype(np.float32)
    hinge = loss is multiclass_hinge
    found = linear_pass_of_bytes(W32, b32, features(X, c, np.float32), y, weights, hinge)
    as_float64 = W32.astype(float), b32.astype(float), features(X, 0, np.float64), y
    expected = linear_pass.reference(*as_float64, weights.astype(float), loss)
    assert found[0] == pytest.approx(float(expected[0]), rel=1e-5, abs=1e-6)
    scale = np.abs(expected[1]).max() + 1e-30
    assert np.abs(found[1] - expected[1]).max() <= 3e-6 * scale
    assert np.abs(found[2] - expected[2]).max() <= 3e-6 * np.abs(weights).sum()


def test_threads_and_blocks_add_up(monkeypatch):
    X, W, b, _ = problem(700, 70, 10)
    y, weights = np.arange(700) % 10, np.full(700, 1 / 700, np.float32)
    given = W.astype(np.float32), b.astype(np.float32), features(X, 10, np.float32), y, weights
    one = linear_pass_of_bytes(*given, False)
    monkeypatch.setattr(compiled_bytes, "MIN_STRETCH_ROWS", 100)
    monkeypatch.setattr(compiled_bytes, "cpu_workers", lambda: 3)
    several = linear_pass_of_bytes(*given, False)
    for ours, theirs in zip(several, one, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pixel", [0, 128, 255])
def test_the_largest_sums_fit(pixel):
    n_features = compiled_bytes.MAX_FEATURES - 1
    X = np.full((20, n_features), pixel, np.uint8)
    for sign in (1, -1):
        W = np.full((n_features, 1), sign * 127 / 128, np.float32)
        block = features(X, 1, np.float32).block(slice(0, 20))
        found = bytes_affine(W, np.zeros(1, np.float32), block)
        np.testing.assert_allclose(found, (pixel - 128) * W[0, 0] * n_features, rtol=1e-6)
        dW, _ = bytes_affine_backward(np.full((20, 1), sign * 127 / 128, np.float32), block)
        np.testing.assert_allclose(dW, (pixel - 128) * W[0, 0] * 20, rtol=1e-6)


def test_columns_of_any_size():
    X, W, _, _ = problem(40, 100, 9)
    W = (W / np.abs(W).max(axis=0)).astype(np.float32)
    W *= np.array([0, 1e-35, 1e-30, 1e-10, 1, 1e10, 1e30, 3e34, 1e-39], np.float32)
    block = features(X, 9, np.float32).block(slice(0, 40))
    found = bytes_affine(W, np.zeros(9, np.float32), block)
    exact = (X.astype(float) - 128) @ W.astype(float)
    for column in range(8):
        largest = np.abs(exact[:, column]).max()
        assert np.abs(found[:, column] - exact[:, column]).max() <= 1e-6 * largest
    largest = np.abs(exact[:, 8]).max()  # denormal numbers keep the digits that they have left
    assert np.abs(found[:, 8] - exact[:, 8]).max() <= 1e-3 * largest


def test_an_outlier_costs_the_rest_of_its_column_few_digits():
    X, W, _, _ = problem(64, 300, 3)
    W = W.astype(np.float32)
    W[7] *= 100
    X[:, 7] = 128  # so that the outlier adds nothing itself
    block = features(X, 3, np.float32).block(slice(0, 64))
    found = bytes_affine(W, np.zeros(3, np.float32), block)
    exact = (X.astype(float) - 128) @ W.astype(float)
    assert error(found, exact) < 1e-6


@np.errstate(invalid="ignore")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_goes_to_the_shared_body(value):
    X, W, b, dY = (v.astype(np.float32) if v.dtype == float else v for v in problem(200, 65, 18))
    block = features(X, 18, np.float32).block(slice(0, 200))
    y, weights = np.arange(200) % 18, np.ones(200, np.float32)
    for place in ((0, 0), (64, 17)):
        broken = W.copy()
        broken[place] = value
        assert bytes_affine(broken, b, block) is NotImplemented
        given = broken, b, block.samples, y, weights
        assert linear_pass_of_bytes(*given, False) is NotImplemented
        assert not np.isfinite(linear_pass(*given, softmax_cross_entropy)[0])
    b[3] = value
    assert bytes_affine(W, b, block) is NotImplemented
    assert linear_pass_of_bytes(W, b, block.samples, y, weights, True) is NotImplemented
    dY[199, 17] = value
    assert bytes_affine_backward(dY, block) is NotImplemented


@pytest.mark.parametrize("hinge", [False, True])
def test_a_label_out_of_range_gives_nan(hinge):
    X, W, b, _ = problem(200, 64, 4)
    y = np.zeros(200, int)
    y[150] = 4
    given = W.astype(np.float32), b.astype(np.float32), features(X, 4, np.float32), y
    loss, dW, db = linear_pass_of_bytes(*given, np.ones(200, np.float32), hinge)
    assert np.isnan(loss)
    assert np.isnan(dW).all()
    assert np.isnan(db).all()


def test_the_same_bits_wherever_the_samples_lie():
    X, W, b, _ = problem(200, 100, 10)
    y, weights = np.arange(200) % 10, np.ones(200, np.float32)

    def bits(samples):
        given = W.astype(np.float32), b.astype(np.float32), features(samples, 10, np.float32)
        found = linear_pass_of_bytes(*given, y, weights, False)
        return [np.asarray(value).tobytes() for value in found]

    expected = bits(X)
    for offset in (0, 1, 40):
        room = np.zeros(X.size + 128, np.uint8)
        moved = room[offset : offset + X.size].reshape(X.shape)
        moved[:] = X
        assert bits(moved) == expected


def test_declines(monkeypatch):
    X, W, b, dY = (v.astype(np.float32) if v.dtype == float else v for v in problem(40, 64, 5))
    whole = slice(0, 40)
    assert are_multiplied(X, 5, np.dtype(np.float32))
    assert not are_multiplied(X, 5, np.dtype(np.float64))
    assert not are_multiplied(X.astype(np.float32), 5, np.dtype(np.float32))
    assert not are_multiplied(np.asfortranarray(X), 5, np.dtype(np.float32))
    too_long = np.zeros((1, compiled_bytes.MAX_FEATURES), np.uint8)
    assert not are_multiplied(too_long, 5, np.dtype(np.float32))
    few, many = np.zeros((511, 3072), np.uint8), np.zeros((512, 3072), np.uint8)
    monkeypatch.setattr(compiled_bytes, "cache_bytes", lambda: 1 << 20)
    assert are_multiplied(few, 40, np.dtype(np.float32))
    assert not are_multiplied(few, 50, np.dtype(np.float32))
    assert are_multiplied(many, 50, np.dtype(np.float32))
    assert block_type.reference(X, 5, np.dtype(np.float32)) is RowBlock
    assert block_type(X, 5, np.dtype(np.float32)) is ByteBlock
    block = features(X, 5, np.float32).block(whole)
    assert bytes_affine(np.stack([W, W]), np.stack([b, b]), block) is NotImplemented
    assert bytes_affine(W.astype(float), b.astype(float), block) is NotImplemented
    floats = FoldedSamples(Standardized(X.astype(np.float32), 120.0, 60.0), 0, np.float32)
    assert bytes_affine(W, b, ByteBlock(floats, whole)) is NotImplemented
    assert bytes_affine_backward(dY, ByteBlock(floats, whole)) is NotImplemented


def test_the_compiled_pass_hands_bytes_over(monkeypatch):
    X, W, b, _ = problem(200, 70, 4)
    given = W.astype(np.float32), b.astype(np.float32), features(X, 4, np.float32)
    given = *given, np.arange(200) % 4, np.ones(200, np.float32), softmax_cross_entropy
    monkeypatch.setattr("gpuclf.kernels.linear_pass.on_cpu.MIN_MULTIPLICATIONS", 0)
    of_bytes = linear_pass_of_bytes(*given[:5], False)
    for ours, theirs in zip(compiled_linear_pass(*given), of_bytes, strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("n", [9, 200])
def test_two_layer_net(n):
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 256, (n, 150)).astype(np.uint8), rng.integers(0, 10, n)
    samples = Standardized.fit(rng.integers(0, 256, (99, 150)).astype(np.uint8))
    samples = Standardized(X, samples.mean, samples.scale)
    shapes = {"W1": (150, 20), "b1": (20,), "W2": (20, 10), "b2": (10,)}
    params = {k: 0.1 * rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
    in_float64 = {key: value.astype(float) for key, value in params.items()}
    loss, grads = TWO_LAYER.objective(params, samples, y, 0.1)
    expected_loss, expected = TWO_LAYER.objective(in_float64, samples, y, 0.1)
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-6)
    for name, gradient in expected.items():
        assert grads[name].flags.c_contiguous
        assert error(grads[name], gradient) < 3e-6


def test_numba_that_compiles_for_another_processor():
    code = """
import numpy as np, gpuclf
from gpuclf.models.neighbors import k_neighbors
X, W, y = np.ones((300, 600), np.uint8), np.zeros((600, 10), np.float32), np.arange(300) % 10
assert not matrix_unit_is_usable()
gpuclf.softmax_loss_vectorized(W, X, y, 0.0)
from gpuclf.kernels.nearest import on_cpu as neighbors_on_numpy
neighbors_on_numpy.WORTH_COMPILED = 0
k_neighbors(X[:20], X, 2)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"NUMBA_CPU_NAME": "generic"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
