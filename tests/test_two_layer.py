import math

import numpy as np
import pytest

from gpuclf.arrays import array_namespace
from gpuclf.models.two_layer import two_layer_loss, two_layer_pass, two_layer_scores
from gpuclf.naive import two_layer_loss_naive
from gpuclf.samples.folding import FoldedSamples
from gpuclf.samples.standardized import Standardized

# samples, features, hidden units, classes
SIZES = [(1, 1, 1, 1), (1, 3, 4, 2), (5, 1, 3, 2), (7, 5, 1, 10), (33, 4, 6, 3), (6, 2, 9, 1)]
REG = 0.3
NAMES = ("W1", "b1", "W2", "b2")


def make_problem(n, d, h, c, *, models=(), seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"W1": (d, h), "b1": (h,), "W2": (h, c), "b2": (c,)}
    params = {name: rng.normal(size=(*models, *shape)) for name, shape in shapes.items()}
    return params, rng.normal(size=(n, d)) + np.linspace(-1, 1, d), rng.integers(0, c, n)


def textbook(params, X, y, reg):
    """Write the loss and gradients as NumPy expressions, in the dtype of the arguments."""
    W1, b1, W2, b2 = (params[name] for name in NAMES)
    rows = np.arange(len(X))
    hidden = np.maximum(X @ W1 + b1, 0)
    scores = hidden @ W2 + b2
    scores -= scores.max(axis=1, keepdims=True)
    probs = np.exp(scores)
    normaliser = probs.sum(axis=1, keepdims=True)
    loss = np.mean(np.log(normaliser[:, 0]) - scores[rows, y])
    probs /= normaliser
    probs[rows, y] -= 1
    dscores = probs / len(X)
    dhidden = dscores @ W2.T * (hidden > 0)
    return loss + reg * (np.sum(W1 * W1) + np.sum(W2 * W2)), {
        "W1": X.T @ dhidden + 2 * reg * W1,
        "b1": dhidden.sum(axis=0),
        "W2": hidden.T @ dscores + 2 * reg * W2,
        "b2": dscores.sum(axis=0),
    }


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


def put(lib, params):
    return {name: lib.asarray(value) for name, value in params.items()}


def run(lib, params, X, y, reg=REG, sample_weight=None):
    X = X if isinstance(X, Standardized) else lib.asarray(X)
    weights = None if sample_weight is None else lib.asarray(sample_weight)
    loss, grads = two_layer_loss(put(lib, params), X, lib.asarray(y), reg, weights)
    return lib.to_numpy(loss), {name: lib.to_numpy(value) for name, value in grads.items()}


@pytest.mark.essential_cases(24)
@pytest.mark.parametrize(("n", "d", "h", "c"), SIZES)
@pytest.mark.parametrize("reg", [0.0, REG])
def test_equals_the_loops(lib, n, d, h, c, reg):
    params, X, y = make_problem(n, d, h, c)
    loss, grads = run(lib, params, X, y, reg)
    expected, gradients = two_layer_loss_naive(params, X, y, reg)
    # float64, another order of summation.
    np.testing.assert_allclose(loss, expected, rtol=1e-12, atol=1e-14)
    assert set(grads) == set(NAMES)
    for name in NAMES:
        np.testing.assert_allclose(grads[name], gradients[name], rtol=1e-12, atol=1e-13)


@pytest.mark.essential_cases(8)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_the_centred_differences_away_from_kinks(lib, name):
    params, X, y = make_problem(6, 4, 5, 3)
    assert np.min(np.abs(X @ params["W1"] + params["b1"])) > 1e-3
    grads = run(lib, params, X, y)[1]
    expected = differences(lambda v: run(lib, {**params, name: v}, X, y)[0], params[name])
    # Truncation is of order step**2 = 1e-10, rounding of order 1e-16 / step = 1e-11.
    assert relative_error(grads[name], expected) < 1e-7


@pytest.mark.essential_cases(4)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_through_standardised_bytes_are_the_centred_differences(lib, name):
    params, _, y = make_problem(12, 4, 5, 3)
    X = np.random.default_rng(1).integers(0, 256, (12, 4), np.uint8)
    mean, scale = np.array([90.0, 100, 130, 140]), np.array([40.0, 50, 60, 70])
    assert np.min(np.abs((X - mean) / scale @ params["W1"] + params["b1"])) > 1e-3
    samples = Standardized(lib.asarray(X), mean, scale)
    grads = run(lib, params, samples, y)[1]
    expected = differences(lambda v: run(lib, {**params, name: v}, samples, y)[0], params[name])
    assert relative_error(grads[name], expected) < 1e-7


@pytest.mark.parametrize("hidden", [3, 50], ids=["folded", "standardised directly"])
def test_standardised_bytes_equal_the_loops_over_the_written_floats(lib, hidden):
    params, _, y = make_problem(12, 4, hidden, 3)
    X = np.random.default_rng(1).integers(0, 256, (12, 4), np.uint8)
    mean, scale = np.array([90.0, 100, 130, 140]), np.array([40.0, 50, 60, 70])
    samples = Standardized(lib.asarray(X), mean, scale)
    loss, grads = run(lib, params, samples, y)
    expected, gradients = two_layer_loss_naive(params, (X - mean) / scale, y, REG)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    for name in NAMES:
        assert relative_error(grads[name], gradients[name]) < 1e-12


def test_float32_errors_stay_within_a_few_times_the_textbook_expression(lib):
    params, X, y = make_problem(300, 100, 40, 10, seed=1)
    params = {k: (v / 10 if k[0] == "W" else v).astype(np.float32) for k, v in params.items()}
    X = X.astype(np.float32)
    X[::37, 3] = 60.0  # outliers
    wide = {name: value.astype(np.float64) for name, value in params.items()}
    truth = textbook(wide, X.astype(np.float64), y, 0.01)
    hidden_inputs = X.astype(np.float64) @ wide["W1"] + wide["b1"]
    assert np.min(np.abs(hidden_inputs)) > 1e-5  # no unit that float32 could switch
    plain, ours = textbook(params, X, y, np.float32(0.01)), run(lib, params, X, y, 0.01)
    eps = np.finfo(np.float32).eps
    assert abs(ours[0] - truth[0]) <= 3 * abs(plain[0] - truth[0]) + eps * truth[0]
    for name in NAMES:
        exact = truth[1][name]
        budget = 3 * np.max(np.abs(plain[1][name] - exact)) + eps * np.max(np.abs(exact))
        assert np.max(np.abs(ours[1][name] - exact)) <= budget


@pytest.mark.parametrize("c", [1, 2, 10])
def test_loss_at_zero_weights_is_the_logarithm_of_the_number_of_classes(lib, c):
    params, X, y = make_problem(9, 4, 5, c)
    zeros = {name: np.zeros_like(value) for name, value in params.items()}
    assert run(lib, zeros, X, y)[0] == pytest.approx(math.log(c), rel=1e-12)


def test_score_gaps_of_ten_thousand_in_float32_give_the_float64_results(lib):
    params = {
        "W1": np.array([[1.0, -1.0]]),
        "b1": np.zeros(2),
        "W2": np.array([[1e4, 0.0, -1e4], [-1e4, 0.0, 1e4]]),
        "b2": np.zeros(3),
    }
    X, y = np.array([[1.0], [-1.0], [1.0], [-1.0]]), np.array([0, 1, 2, 2])
    expected, gradients = two_layer_loss_naive(params, X, y, 0.0)
    narrow = {name: value.astype(np.float32) for name, value in params.items()}
    loss, grads = run(lib, narrow, X.astype(np.float32), y, 0.0)
    assert loss == pytest.approx(expected, rel=1e-7)  # every score is exact in float32
    for name in NAMES:
        np.testing.assert_allclose(grads[name], gradients[name], rtol=1e-6, atol=0)


def test_units_at_exactly_zero_pass_no_gradient(lib):
    params, X, y = make_problem(4, 3, 5, 2)
    params |= {"W1": np.zeros((3, 5)), "b1": np.zeros(5)}
    _, grads = run(lib, params, X, y)
    assert not np.any(grads["W1"])
    assert not np.any(grads["b1"])
    assert np.any(grads["b2"])


def test_biases_are_not_penalised(lib):
    params, X, y = make_problem(6, 4, 5, 3)
    loss, grads = run(lib, params, X, y, 2.0)
    without, data_grads = run(lib, params, X, y, 0.0)
    squares = np.sum(params["W1"] ** 2) + np.sum(params["W2"] ** 2)
    assert loss - without == pytest.approx(2 * squares, rel=1e-12)
    for name in ("b1", "b2"):
        np.testing.assert_array_equal(grads[name], data_grads[name])


@pytest.mark.parametrize("form", ["floats", "standardized"])
def test_model_axis_gives_what_each_model_gives_alone(lib, form):
    params, X, y = make_problem(14, 4, 5, 3, models=(3,))
    if form == "standardized":
        X = np.random.default_rng(1).integers(0, 256, (14, 4), np.uint8)
        X = Standardized(lib.asarray(X), np.linspace(90, 140, 4), np.linspace(30, 70, 4))
    loss, grads = run(lib, params, X, y)
    samples = X if form == "standardized" else lib.asarray(X)
    scores = lib.to_numpy(two_layer_scores(put(lib, params), samples))
    assert (loss.shape, scores.shape) == ((3,), (3, 14, 3))
    for k in range(3):
        own = {name: value[k] for name, value in params.items()}
        own_loss, own_grads = run(lib, own, X, y)
        assert loss[k] == pytest.approx(own_loss, rel=1e-13)
        for name in NAMES:
            assert grads[name].shape == params[name].shape
            assert relative_error(grads[name][k], own_grads[name]) < 1e-12
        own_scores = lib.to_numpy(two_layer_scores(put(lib, own), samples))
        assert relative_error(scores[k], own_scores) < 1e-13


def test_scores_are_the_layers_one_after_another(lib):
    params, X, _ = make_problem(9, 4, 5, 3)
    scores = lib.to_numpy(two_layer_scores(put(lib, params), lib.asarray(X)))
    W1, b1, W2, b2 = (params[name] for name in NAMES)
    expected = np.where(X @ W1 + b1 > 0, X @ W1 + b1, 0) @ W2 + b2
    np.testing.assert_allclose(scores, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", ["float64", "uint8"])
def test_small_blocks_give_what_one_block_gives(lib, small_blocks, dtype):
    params, X, y = make_problem(45, 4, 5, 3)
    if dtype == "uint8":
        X = np.random.default_rng(1).integers(0, 256, (45, 4), np.uint8)
        params["W1"] /= 50
    loss, grads = run(lib, params, X, y)
    expected, gradients = textbook(params, X.astype(np.float64), y, REG)
    assert loss == pytest.approx(expected, rel=1e-13)
    for name in NAMES:
        assert relative_error(grads[name], gradients[name]) < 1e-12
    scores = lib.to_numpy(two_layer_scores(put(lib, params), lib.asarray(X)))
    hidden = np.maximum(X.astype(np.float64) @ params["W1"] + params["b1"], 0)
    np.testing.assert_allclose(scores, hidden @ params["W2"] + params["b2"], rtol=0, atol=1e-12)


def test_whole_sample_weights_equal_repeated_rows(lib):
    params, X, y = make_problem(6, 4, 5, 3)
    repeats = np.array([1, 0, 3, 2, 1, 4])
    for weights in (repeats, repeats.astype(np.float64), repeats * 7.5):
        loss, grads = run(lib, params, X, y, sample_weight=weights)
        expected, gradients = run(lib, params, np.repeat(X, repeats, axis=0), np.repeat(y, repeats))
        assert loss == pytest.approx(expected, rel=1e-13)
        for name in NAMES:
            assert relative_error(grads[name], gradients[name]) < 1e-12


@pytest.mark.essential_cases(2)
def test_hidden_mask_multiplies_the_units_and_their_gradients(lib, small_blocks):
    params, X, y = make_problem(20, 4, 5, 3)
    mask = np.random.default_rng(8).choice([0.0, 2.0], size=(20, 5))
    samples = FoldedSamples(lib.asarray(X), 5, lib.xp.float64)

    def masked(params):
        of_names = put(lib, {name: params[name] for name in NAMES}).values()
        return two_layer_pass(*of_names, samples, lib.asarray(y), None, REG, lib.asarray(mask))

    def loss(name, value):
        return lib.to_numpy(masked({**params, name: value})[0])

    for name, gradient in zip(NAMES, masked(params)[1:], strict=True):
        expected = differences(lambda v, name=name: loss(name, v), params[name])
        assert relative_error(lib.to_numpy(gradient), expected) < 1e-7


@pytest.mark.parametrize(
    ("X_dtype", "dtype", "expected"),
    [
        ("uint8", "float32", "float32"),
        ("float32", "float32", "float32"),
        ("float32", "float64", "float64"),
        ("float64", "float32", "float64"),
    ],
)
def test_results_lie_where_X_lies_in_the_documented_dtypes(lib, X_dtype, dtype, expected):
    params, X, y = make_problem(9, 4, 5, 3)
    params = put(lib, {name: value.astype(dtype) for name, value in params.items()})
    X = lib.asarray(np.abs(X).astype(X_dtype))
    loss, grads = two_layer_loss(params, X, lib.asarray(y), 0.1)
    assert loss.dtype == lib.xp.float64
    assert tuple(loss.shape) == ()
    for result in (*grads.values(), two_layer_scores(params, X)):
        assert result.dtype == getattr(lib.xp, expected)
        assert result.device == X.device
        assert array_namespace(result) is array_namespace(X)


def test_one_float64_parameter_makes_every_gradient_float64():
    params, X, y = make_problem(9, 4, 5, 3)
    params = {k: v if k == "b2" else v.astype(np.float32) for k, v in params.items()}
    _, grads = two_layer_loss(params, X.astype(np.float32), y, 0.1)
    assert {value.dtype for value in grads.values()} == {np.dtype(np.float64)}


@pytest.mark.parametrize("kind", ["uint8", "float64", "standardized"])
def test_inputs_keep_every_byte(lib, kind, small_blocks):
    params, X, y = make_problem(40, 4, 5, 3)
    X = lib.asarray(np.abs(X * 50).astype("u1" if kind == "standardized" else kind))
    arrays = {**put(lib, params), "X": X, "y": lib.asarray(y), "w": lib.asarray(np.ones(40))}
    before = {name: lib.to_numpy(array).tobytes() for name, array in arrays.items()}
    samples = Standardized(X, 20.0, 30.0) if kind == "standardized" else X
    own = {name: arrays[name] for name in NAMES}
    two_layer_loss(own, samples, arrays["y"], REG, arrays["w"])
    two_layer_scores(own, samples)
    assert {name: lib.to_numpy(array).tobytes() for name, array in arrays.items()} == before


def test_numpy_and_strict_agree(strict):
    params, X, y = make_problem(40, 12, 7, 10)
    loss, grads = two_layer_loss(params, X, y, REG)
    other_loss, other_grads = run(strict, params, X, y)
    assert other_loss == pytest.approx(loss, rel=1e-12)
    for name in NAMES:
        assert relative_error(other_grads[name], grads[name]) < 1e-12


def test_numpy_gives_the_same_bits_run_after_run(small_blocks):
    params, X, y = make_problem(200, 20, 15, 10)
    loss, grads = two_layer_loss(params, X, y, REG)
    for _ in range(5):
        again, again_grads = two_layer_loss(params, X, y, REG)
        assert again == loss
        for name in NAMES:
            np.testing.assert_array_equal(again_grads[name], grads[name])


def test_wrong_labels_on_a_device_make_the_loss_nan(strict):
    params, X, y = make_problem(6, 4, 5, 3)
    y[3] = -1
    assert np.isnan(run(strict, params, X, y)[0])
