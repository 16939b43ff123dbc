"""Bytes and short floats times wide W in tiles, held against float64 and the shared bodies."""

import numpy as np
import pytest

from gpuclf.kernels.linear_pass.on_cpu import bits_of_short_floats, is_widened
from gpuclf.kernels.wide_products import on_cpu
from gpuclf.kernels.wide_products.on_cpu import TiledBlock, blocks_in_tiles
from gpuclf.models import SVM, TWO_LAYER
from gpuclf.samples import walk as row_blocks
from gpuclf.samples.folding import block_type
from gpuclf.samples.standardized import Standardized

pytest.importorskip("numba", reason="numba is not installed")
from gpuclf.kernels.wide_products import loops


@pytest.fixture(autouse=True)
def on_a_processor_without_a_matrix_unit(monkeypatch):
    monkeypatch.setitem(block_type.kernels, "numpy", (blocks_in_tiles,))
    monkeypatch.setattr(on_cpu, "MIN_BLOCKS", 0)


def bytes_and_parameters(n, d, h, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.integers(0, 256, (n, d)).astype(np.uint8)
    W, b, dY = (rng.standard_normal(shape).astype(np.float32) for shape in ((d, h), h, (n, h)))
    return X, W, b, dY


def error(found, truth):
    """Return the largest error, in units of the largest number."""
    assert found.dtype == np.float32
    assert found.shape == truth.shape
    return float(np.abs(found - truth).max() / np.abs(truth).max())


# Around tiles of 6 rows and 16 columns, blocks of 96 rows, panels of 256 features, strips of 32.
SIZES = [
    (1, 64, 1),
    (5, 95, 7),
    (6, 97, 8),
    (97, 255, 9),
    (96, 256, 16),
    (200, 257, 17),
    (7, 520, 25),
]


@pytest.mark.essential_cases(2)
@pytest.mark.parametrize(("n", "d", "h"), SIZES)
def test_products_lose_no_more_than_blas_does(n, d, h):
    X, W, b, dY = bytes_and_parameters(n, d, h)
    floats = X.astype(np.float32) - 128
    true = floats.astype(np.float64)
    truth = true @ W + b
    assert (
        error(loops.affine(X, None, loops.pack(W), b), truth) <= error(floats @ W + b, truth) + 3e-7
    )
    truth = true.T @ dY
    assert error(loops.gradient(X, None, dY), truth) <= error(floats.T @ dY, truth) + 3e-7


@pytest.mark.essential_cases(0, in_ci=1)
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float16, "bfloat16"])
@pytest.mark.parametrize("is_centred", [False, True])
def test_short_floats_are_widened_exactly(dtype, is_centred):
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed").bfloat16
    rng = np.random.default_rng(0)
    for n, d, h in SIZES[-3:]:
        _, W, b, dY = bytes_and_parameters(n, d, h)
        X = (rng.standard_normal((n, d)) * np.geomspace(1e-6, 1e3, d)).astype(dtype)
        if not is_widened(X):
            pytest.skip("this processor does not widen float16")
        centre = rng.standard_normal(d).astype(np.float32) if is_centred else None
        floats = X.astype(np.float32) - (0 if centre is None else centre)
        bits, true = bits_of_short_floats(X), floats.astype(np.float64)
        truth = true @ W + b
        found = loops.affine(bits, centre, loops.pack(W), b)
        assert error(found, truth) <= error(floats @ W + b, truth) + 3e-7
        truth = true.T @ dY
        found = loops.gradient(bits, centre, dY)
        assert error(found, truth) <= error(floats.T @ dY, truth) + 3e-7


def test_what_is_not_finite_stays_in_its_column():
    X, W, b, dY = bytes_and_parameters(20, 80, 11)
    W[3, 2] = dY[3, 2] = np.nan
    for found in (loops.affine(X, None, loops.pack(W), b), loops.gradient(X, None, dY)):
        assert np.isnan(found[:, 2]).all()
        assert np.isfinite(np.delete(found, 2, axis=1)).all()


@pytest.fixture
def products(monkeypatch):
    """The shapes of all forward products in tiles."""
    shapes, affine = [], loops.affine
    monkeypatch.setattr(loops, "affine", lambda *a: shapes.append(a[0].shape) or affine(*a))
    return shapes


def problem(model, n_classes, models=(), n=900, d=70):
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 256, (n, d)).astype(np.uint8), rng.integers(0, n_classes, n)
    sizes = {"D": d, "H": 12, "C": n_classes}
    params = {
        name: (rng.standard_normal((*models, *map(sizes.get, axes))) / 9).astype(np.float32)
        for name, axes in model.axes.items()
    }
    return params, X, y


@pytest.mark.essential_cases(1)
@pytest.mark.parametrize(
    ("model", "n_classes", "models"),
    [(TWO_LAYER, 4, ()), (TWO_LAYER, 4, (3,)), (SVM, 50, ()), (SVM, 5, (11,))],
)
def test_a_pass_finds_what_it_finds_in_floats(
    model, n_classes, models, small_blocks, products, monkeypatch
):
    params, X, y = problem(model, n_classes, models)
    halves = (X / 50 + 2).astype(np.float16)
    kinds = [X, Standardized.fit(X)]
    if is_widened(halves):
        kinds += [halves, Standardized.fit(halves)]
    for samples in kinds:
        monkeypatch.setitem(block_type.kernels, "numpy", (blocks_in_tiles,))
        products.clear()
        loss, grads = model.loss(params, samples, y, 0.01)
        assert sum(rows for rows, _ in products) == len(X)
        monkeypatch.setitem(block_type.kernels, "numpy", ())
        expected, reference = model.loss(params, samples, y, 0.01)
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
        for name in params:
            assert error(grads[name], reference[name].astype(np.float64)) < 3e-6


def test_w_is_packed_once_a_pass(small_blocks, products, monkeypatch):
    packed, pack = [], loops.pack
    monkeypatch.setattr(loops, "pack", lambda W: packed.append(1) or pack(W))
    monkeypatch.setattr(row_blocks, "cpu_workers", lambda: 1)
    TWO_LAYER.loss(problem(TWO_LAYER, 4)[0], *problem(TWO_LAYER, 4)[1:], 0.0)
    assert len(products) > 1 == len(packed)


@pytest.mark.parametrize("n_outputs", [9, 200])
def test_takes_bytes_for_the_widths_that_it_is_faster_at(n_outputs, monkeypatch):
    X, floats = np.zeros((20_000, 64), np.uint8), np.dtype(np.float32)
    monkeypatch.setattr(on_cpu, "MIN_BLOCKS", 0)
    assert blocks_in_tiles(X, n_outputs, floats) is TiledBlock
    for declined in (
        (X, 8, floats), (X, 201, floats), (X, n_outputs, np.dtype(np.float64)),
        (X.astype(np.float32), n_outputs, floats), (X[:, :63], n_outputs, floats),
        (X[:, ::2], n_outputs, floats), (X[: 16 * n_outputs], n_outputs, floats),
    ):  # fmt: skip
        assert blocks_in_tiles(*declined) is NotImplemented
    monkeypatch.setattr(on_cpu, "MIN_BLOCKS", 2)  # each thread needs a block
    assert blocks_in_tiles(X[:5000], n_outputs, floats) is NotImplemented
    monkeypatch.setattr(on_cpu, "numba_is_usable", lambda: False)
    assert blocks_in_tiles(np.zeros((10**6, 64), np.uint8), n_outputs, floats) is NotImplemented
