import math

import numpy as np
import pytest

from gpuclf.arrays import array_namespace
from gpuclf.models import SOFTMAX
from gpuclf.models.linear import linear_scores, softmax_loss_vectorized
from gpuclf.naive import softmax_loss_naive
from gpuclf.samples.standardized import Standardized

SIZES = [(1, 1, 1), (1, 3, 2), (3, 1, 2), (7, 5, 10), (33, 4, 3), (67, 2, 10), (2, 6, 2), (5, 3, 1)]
REG = 0.3


def make_problem(n, d, c, *, models=(), seed=0):
    """Return W, X, y in float64, with no symmetry that would hide a transposition."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) + np.linspace(-1, 2, d)
    return rng.normal(size=(*models, d, c)), X, rng.integers(0, c, n)


def textbook(W, X, y, reg):
    """Write the loss and gradient as NumPy expressions, in the dtype of X and W."""
    rows = np.arange(len(X))
    scores = X @ W
    scores -= scores.max(axis=1, keepdims=True)
    probs = np.exp(scores)
    normaliser = probs.sum(axis=1, keepdims=True)
    loss = np.mean(np.log(normaliser[:, 0]) - scores[rows, y]) + reg * np.sum(W * W)
    probs /= normaliser
    probs[rows, y] -= 1
    return loss, X.T @ (probs / len(X)) + 2 * reg * W


def differences(function, x, step=1e-5):
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += step
        down[i] -= step
        gradient[i] = (float(function(up)) - float(function(down))) / (2 * step)
    return gradient


def relative_error(found, expected):
    return np.max(np.abs(found - expected)) / np.max(np.abs(expected))


def run(lib, W, X, y, reg=REG):
    loss, dW = softmax_loss_vectorized(lib.asarray(W), lib.asarray(X), lib.asarray(y), reg)
    return lib.to_numpy(loss), lib.to_numpy(dW)


@pytest.mark.essential_cases(30)
@pytest.mark.parametrize(("n", "d", "c"), SIZES)
@pytest.mark.parametrize("reg", [0.0, REG])
def test_equals_the_loops(lib, n, d, c, reg):
    W, X, y = make_problem(n, d, c)
    loss, dW = run(lib, W, X, y, reg)
    expected, gradient = softmax_loss_naive(W, X, y, reg)
    # float64, another order of summation: some multiples of 1e-16 of the largest term.
    np.testing.assert_allclose(loss, expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(dW, gradient, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("n", "d", "c"), [(1, 1, 1), (3, 5, 10), (70, 4, 3)])
def test_raw_bytes_equal_the_loops_whether_folded_or_not(lib, n, d, c):
    rng = np.random.default_rng(3)
    W, X = rng.normal(size=(d, c)) / 100, rng.integers(0, 256, (n, d), np.uint8)
    y = rng.integers(0, c, n)
    loss, dW = run(lib, W, X, y)
    expected, gradient = softmax_loss_naive(W, X, y, REG)
    # Pixels up to 255 are taken relative to 128: sums some hundred times the gradient's size.
    np.testing.assert_allclose(loss, expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(dW, gradient, rtol=0, atol=1e-12 * 255)


def test_gradient_is_the_centred_difference(lib):
    W, X, y = make_problem(6, 5, 3)
    _, dW = run(lib, W, X, y)
    # Truncation is of order step**2 = 1e-10, rounding of order 1e-16 / step = 1e-11.
    assert relative_error(dW, differences(lambda v: run(lib, v, X, y)[0], W)) < 1e-7


@pytest.mark.essential_cases(6)
@pytest.mark.parametrize("form", ["floats", "bytes", "standardized bytes"])
def test_gradients_of_weights_and_bias_are_the_centred_differences(lib, form):
    W, X, y = make_problem(12, 4, 3)
    X = lib.asarray(X)
    if form != "floats":
        X = lib.asarray(np.random.default_rng(1).integers(0, 256, (12, 4), np.uint8))
    if form == "bytes":
        W = W / 100  # scores of order 1
    if form == "standardized bytes":
        X = Standardized(X, 120.0, np.linspace(40.0, 80.0, 4))
    b = np.array([0.5, -1.0, 0.25])

    def objective(W, b):
        params = {"W": lib.asarray(W), "b": lib.asarray(b)}
        return SOFTMAX.objective(params, X, lib.asarray(y), REG)

    _, grads = objective(W, b)
    assert set(grads) == {"W", "b"}
    step = 1e-7 if form == "bytes" else 1e-5  # X is a hundred times larger, so is the curvature
    tolerance = 1e-6 if form == "bytes" else 1e-7
    for name, expected in {
        "W": differences(lambda v: lib.to_numpy(objective(v, b)[0]), W, step),
        "b": differences(lambda v: lib.to_numpy(objective(W, v)[0]), b),
    }.items():
        assert relative_error(lib.to_numpy(grads[name]), expected) < tolerance


def test_bias_is_not_penalised(lib):
    W, X, y = make_problem(6, 5, 3)
    params = {"W": lib.asarray(W), "b": lib.asarray(np.array([3.0, -4.0, 5.0]))}
    X, y = lib.asarray(X), lib.asarray(y)
    without, grads = SOFTMAX.objective(params, X, y, 0.0)
    loss, penalised = SOFTMAX.objective(params, X, y, 2.0)
    difference = lib.to_numpy(loss) - lib.to_numpy(without)
    np.testing.assert_allclose(difference, 2 * np.sum(W * W), rtol=1e-13)
    np.testing.assert_array_equal(lib.to_numpy(grads["b"]), lib.to_numpy(penalised["b"]))
    np.testing.assert_allclose(
        lib.to_numpy(penalised["W"]) - lib.to_numpy(grads["W"]), 4 * W, rtol=1e-12, atol=1e-14
    )


def test_float32_errors_stay_within_a_few_times_the_textbook_expression(lib):
    rng = np.random.default_rng(5)
    X = (rng.normal(size=(300, 200)) + 0.5).astype(np.float32)
    X[::37, 3] = 60.0  # outliers
    W = (rng.normal(size=(200, 10)) / 10).astype(np.float32)
    y = rng.integers(0, 10, 300)
    truth = textbook(W.astype(np.float64), X.astype(np.float64), y, 0.01)
    for ours, plain, exact in zip(
        run(lib, W, X, y, 0.01), textbook(W, X, y, np.float32(0.01)), truth, strict=True
    ):
        budget = 3 * np.max(np.abs(plain - exact))
        spacing = np.finfo(np.float32).eps * np.max(np.abs(exact))
        assert np.max(np.abs(ours - exact)) <= budget + spacing


def test_float32_errors_on_raw_bytes_stay_within_a_few_times_the_textbook_expression(lib):
    rng = np.random.default_rng(6)
    X = rng.integers(0, 256, (300, 200), np.uint8)
    W = (rng.normal(size=(200, 10)) / 1000).astype(np.float32)
    y = rng.integers(0, 10, 300)
    truth = textbook(W.astype(np.float64), X.astype(np.float64), y, 0.01)
    plain = textbook(W, X.astype(np.float32), y, np.float32(0.01))
    for ours, textbooks, exact in zip(run(lib, W, X, y, 0.01), plain, truth, strict=True):
        budget = 3 * np.max(np.abs(textbooks - exact))
        spacing = np.finfo(np.float32).eps * np.max(np.abs(exact))
        assert np.max(np.abs(ours - exact)) <= budget + spacing


@pytest.mark.essential_cases(15)
@pytest.mark.parametrize("c", [1, 2, 10])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_loss_at_zero_weights_is_the_logarithm_of_the_number_of_classes(lib, c, dtype):
    rng = np.random.default_rng(0)
    X = rng.integers(0, 256, (20, 4)).astype(dtype)
    W = np.zeros((4, c), np.float32 if dtype == np.uint8 else dtype)
    loss, _ = run(lib, W, X, rng.integers(0, c, 20), reg=7.0)
    # With float32 weights 1/20 and the logarithm are rounded to 6e-8 of their size.
    assert loss == pytest.approx(math.log(c), rel=1e-12 if dtype == np.float64 else 3e-7)


def test_score_gaps_of_ten_thousand_in_float32_give_the_float64_results(lib):
    W = np.array([[1e4, 0.0, -1e4]], np.float32)
    X, y = np.array([[1.0], [1.0], [-1.0], [-1.0]], np.float32), np.array([0, 2, 1, 2])
    loss, dW = run(lib, W, X, y, 0.0)
    expected, gradient = softmax_loss_naive(*map(np.float64, (W, X)), y, 0.0)
    assert loss == pytest.approx(expected, rel=1e-7)  # every score is exact in float32
    np.testing.assert_allclose(dW, gradient, rtol=1e-6, atol=0)


def test_scores_shifted_by_a_constant_for_each_row_give_the_same_gradient(lib):
    W, X, y = make_problem(8, 5, 3)
    column = np.random.default_rng(9).normal(size=(5, 1))
    loss, dW = run(lib, W, X, y, 0.0)
    moved_loss, moved_dW = run(lib, W + 10 * column, X, y, 0.0)
    np.testing.assert_allclose(moved_loss, loss, rtol=1e-12)
    np.testing.assert_allclose(moved_dW, dW, rtol=1e-12, atol=1e-13)


def test_half_the_penalty_and_transposed_views_are_the_other_conventions(lib):
    W, X, y = make_problem(8, 5, 3)
    loss, dW = run(lib, W, X, y, REG)
    data_loss, data_dW = run(lib, W, X, y, 0.0)
    np.testing.assert_allclose(loss, data_loss + 0.5 * (2 * REG) * np.sum(W * W), rtol=1e-13)
    np.testing.assert_allclose(dW, data_dW + (2 * REG) * W, rtol=1e-12, atol=1e-14)
    by_rows, by_columns = lib.asarray(W.T.copy()), lib.asarray(X.T.copy())  # (C, D) and (D, N)
    loss_T, dW_T = softmax_loss_vectorized(by_rows.T, by_columns.T, lib.asarray(y), REG)
    np.testing.assert_allclose(lib.to_numpy(loss_T), loss, rtol=1e-13)
    np.testing.assert_allclose(lib.to_numpy(dW_T.T).T, dW, rtol=1e-12, atol=1e-14)


@pytest.mark.essential_cases(12)
@pytest.mark.parametrize("form", ["floats", "bytes", "standardized"])
@pytest.mark.parametrize("models", [(3,), (2, 2)])
def test_model_axes_give_what_each_model_gives_alone(lib, form, models):
    W, X, y = make_problem(14, 5, 3, models=models)
    X, y = lib.asarray(X), lib.asarray(y)
    if form != "floats":
        X = lib.asarray(np.random.default_rng(1).integers(0, 256, (14, 5), np.uint8))
        W = W / 100
    if form == "standardized":
        X = Standardized(X, np.linspace(90, 140, 5), np.linspace(30, 70, 5))
    b = np.random.default_rng(2).normal(size=(*models, 3))
    loss, dW = map(lib.to_numpy, softmax_loss_vectorized(lib.asarray(W), X, y, REG))
    scores = lib.to_numpy(linear_scores({"W": lib.asarray(W), "b": lib.asarray(b)}, X))
    assert (loss.shape, dW.shape, scores.shape) == (models, W.shape, (*models, 14, 3))
    for k in np.ndindex(models):
        own_W = lib.asarray(W[k])
        own_loss, own_dW = map(lib.to_numpy, softmax_loss_vectorized(own_W, X, y, REG))
        own_scores = linear_scores({"W": own_W, "b": lib.asarray(b[k])}, X)
        np.testing.assert_allclose(loss[k], own_loss, rtol=1e-13)
        np.testing.assert_allclose(dW[k], own_dW, rtol=0, atol=1e-12 * np.max(np.abs(own_dW)))
        np.testing.assert_allclose(scores[k], lib.to_numpy(own_scores), rtol=0, atol=1e-12)


def test_small_blocks_give_what_one_block_gives(lib, small_blocks):
    for X in (make_problem(45, 4, 3)[1], np.random.default_rng(1).integers(0, 256, (45, 4), "u1")):
        W, _, y = make_problem(45, 4, 3)
        W = W / 50
        loss, dW = run(lib, W, X, y)
        expected, gradient = textbook(W, X.astype(np.float64), y, REG)
        np.testing.assert_allclose(loss, expected, rtol=1e-13)
        np.testing.assert_allclose(dW, gradient, rtol=0, atol=1e-12)
        scores = lib.to_numpy(linear_scores({"W": lib.asarray(W)}, lib.asarray(X)))
        np.testing.assert_allclose(scores, X.astype(np.float64) @ W, rtol=0, atol=1e-12)


def test_scores_are_the_product_plus_bias(lib):
    W, X, _ = make_problem(9, 5, 3)
    b = np.array([1.0, -2.0, 3.0])
    scores = linear_scores({"W": lib.asarray(W)}, lib.asarray(X))
    np.testing.assert_allclose(lib.to_numpy(scores), X @ W, rtol=1e-12, atol=1e-13)
    scores = linear_scores({"W": lib.asarray(W), "b": lib.asarray(b)}, lib.asarray(X))
    np.testing.assert_allclose(lib.to_numpy(scores), X @ W + b, rtol=1e-12, atol=1e-13)


def test_sample_weights_scale_each_sample(lib):
    W, X, y = make_problem(6, 4, 3)
    weights = np.array([0.0, 1.0, 2.0, 0.5, 0.25, 3.0])
    args = (lib.asarray(X), lib.asarray(y), 0.0, lib.asarray(weights))
    loss, grads = SOFTMAX.objective({"W": lib.asarray(W)}, *args)
    each = [softmax_loss_naive(W, X[[i]], y[[i]], 0.0) for i in range(6)]
    expected = sum(w * own for w, (own, _) in zip(weights, each, strict=True))
    gradient = sum(w * own for w, (_, own) in zip(weights, each, strict=True))
    np.testing.assert_allclose(lib.to_numpy(loss), expected, rtol=1e-13)
    np.testing.assert_allclose(lib.to_numpy(grads["W"]), gradient, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("X_dtype", "W_dtype", "expected"),
    [
        ("uint8", "float32", "float32"),
        ("uint8", "float64", "float64"),
        ("float32", "float32", "float32"),
        ("float32", "float64", "float64"),
        ("float64", "float32", "float64"),
        ("float64", "float64", "float64"),
    ],
)
def test_results_lie_where_X_lies_in_the_documented_dtypes(lib, X_dtype, W_dtype, expected):
    X = lib.asarray(np.arange(15).reshape(5, 3).astype(X_dtype))
    W = lib.asarray(np.ones((3, 2), W_dtype))
    y = lib.asarray(np.array([0, 1, 1, 0, 1]))
    for samples in (X, Standardized(X, 5.0, 2.0)):
        loss, dW = softmax_loss_vectorized(W, samples, y, 0.1)
        assert loss.dtype == lib.xp.float64
        assert dW.dtype == getattr(lib.xp, expected)
        assert dW.device == X.device
        assert array_namespace(dW) is array_namespace(X)
        assert tuple(loss.shape) == ()


@pytest.mark.parametrize("reg", [0, 0.5, np.float32(0.5), np.float64(0.5)], ids=repr)
def test_the_penalty_does_not_change_the_dtype(reg):
    W, X, y = (a.astype(np.float32) for a in make_problem(5, 3, 2))
    loss, dW = softmax_loss_vectorized(W, X, y.astype(int), reg)
    assert (loss.dtype, dW.dtype) == (np.float64, np.float32)


@pytest.mark.parametrize("kind", ["uint8", "float32", "float64", "standardized"])
def test_inputs_keep_every_byte(lib, kind, small_blocks):
    rng = np.random.default_rng(4)
    X = lib.asarray(rng.integers(0, 256, (40, 5)).astype("u1" if kind == "standardized" else kind))
    arrays = {
        "X": X,
        "W": lib.asarray(rng.normal(size=(5, 3)).astype(np.float32)),
        "y": lib.asarray(rng.integers(0, 3, 40)),
    }
    samples = X
    if kind == "standardized":
        samples = Standardized(X, lib.asarray(np.full(5, 9.0)), lib.asarray(np.full(5, 3.0)))
        arrays |= {"mean": samples.mean, "scale": samples.scale}
    before = {name: lib.to_numpy(array).tobytes() for name, array in arrays.items()}
    softmax_loss_vectorized(arrays["W"], samples, arrays["y"], 0.5)
    linear_scores({"W": arrays["W"]}, samples)
    assert {name: lib.to_numpy(array).tobytes() for name, array in arrays.items()} == before


def test_views_of_rows_columns_and_other_orders_give_the_same(lib):
    W, X, y = make_problem(20, 6, 3)
    expected, gradient = softmax_loss_naive(W[::2], X[::3, ::2], y[::3], REG)
    loss, dW = softmax_loss_vectorized(
        lib.asarray(W)[::2, :], lib.asarray(X)[::3, ::2], lib.asarray(y)[::3], REG
    )
    np.testing.assert_allclose(lib.to_numpy(loss), expected, rtol=1e-12)
    np.testing.assert_allclose(lib.to_numpy(dW), gradient, rtol=1e-12, atol=1e-13)
    fortran = softmax_loss_vectorized(np.asfortranarray(W), np.asfortranarray(X), y, REG)[1]
    np.testing.assert_allclose(fortran, softmax_loss_naive(W, X, y, REG)[1], rtol=1e-12, atol=1e-13)


def test_numpy_and_strict_agree(strict):
    W, X, y = make_problem(40, 12, 10)
    loss, dW = softmax_loss_vectorized(W, X, y, REG)
    other_loss, other_dW = run(strict, W, X, y)
    assert other_loss == pytest.approx(loss, rel=1e-12)
    assert relative_error(other_dW, dW) < 1e-12


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_numpy_gives_the_same_bits_run_after_run(small_blocks, dtype):
    rng = np.random.default_rng(0)
    X = rng.integers(0, 256, (300, 40)).astype(dtype)
    W, y = rng.normal(size=(40, 10)).astype(np.float32) / 100, rng.integers(0, 10, 300)
    loss, dW = softmax_loss_vectorized(W, X, y, 0.1)
    for _ in range(5):
        again, again_dW = softmax_loss_vectorized(W, X, y, 0.1)
        assert again == loss
        np.testing.assert_array_equal(again_dW, dW)


def test_wrong_labels_on_a_device_make_the_loss_nan(strict):
    W, X, y = make_problem(6, 4, 3)
    y[2] = 3
    assert np.isnan(run(strict, W, X, y)[0])
