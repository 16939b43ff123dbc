import math

import numpy as np
import pytest

from gpuclf.bench.measure import pure_python
from gpuclf.models import MODELS
from gpuclf.naive import softmax_loss_naive, svm_loss_naive, two_layer_loss_naive


def differences(function, x, step=1e-5):
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += step
        down[i] -= step
        gradient[i] = (function(up) - function(down)) / (2 * step)
    return gradient


def relative_error(found, expected):
    return np.max(np.abs(found - expected)) / np.max(np.abs(expected))


def make_net(d=4, h=5, c=3, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"W1": (d, h), "b1": (h,), "W2": (h, c), "b2": (c,)}
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def test_softmax_by_hand():
    # Scores 0 and log(3): probabilities 1/4 and 3/4.
    W, X = np.array([[0.0, math.log(3)]]), np.array([[1.0]])
    loss, dW = softmax_loss_naive(W, X, np.array([0]), reg=0.0)
    assert loss == pytest.approx(math.log(4))
    np.testing.assert_allclose(dW, [[-0.75, 0.75]], rtol=1e-15)
    loss, dW = softmax_loss_naive(W, X, np.array([1]), reg=2.0)
    assert loss == pytest.approx(math.log(4 / 3) + 2 * math.log(3) ** 2)
    np.testing.assert_allclose(dW, [[0.25, -0.25 + 4 * math.log(3)]], rtol=1e-15)


def test_two_layers_by_hand():
    # One hidden unit is on (value 2), one is off; scores 2 log 3 / 2 = log 3 and 0.
    params = {
        "W1": np.array([[1.0, -1.0]]),
        "b1": np.array([1.0, 0.0]),
        "W2": np.array([[math.log(3) / 2, 0.0], [5.0, 5.0]]),
        "b2": np.zeros(2),
    }
    loss, grads = two_layer_loss_naive(params, np.array([[1.0]]), np.array([1]), reg=0.0)
    assert loss == pytest.approx(math.log(4))
    np.testing.assert_allclose(grads["b2"], [0.75, -0.75])
    np.testing.assert_allclose(grads["W2"], [[1.5, -1.5], [0, 0]], atol=1e-15)
    np.testing.assert_allclose(grads["b1"], [0.75 * math.log(3) / 2, 0])
    np.testing.assert_allclose(grads["W1"], [[0.75 * math.log(3) / 2, 0]])


def test_softmax_gradient_is_the_centred_difference():
    rng = np.random.default_rng(1)
    W, X, y = rng.normal(size=(4, 3)), rng.normal(size=(6, 4)), rng.integers(0, 3, 6)
    _, dW = softmax_loss_naive(W, X, y, 0.3)
    # Truncation of order step**2 = 1e-10, rounding of order 1e-16 / step = 1e-11.
    assert relative_error(dW, differences(lambda v: softmax_loss_naive(v, X, y, 0.3)[0], W)) < 1e-7


@pytest.mark.parametrize("name", ["W1", "b1", "W2", "b2"])
def test_two_layer_gradients_are_the_centred_differences(name):
    rng = np.random.default_rng(2)
    params, X, y = make_net(), rng.normal(size=(6, 4)), rng.integers(0, 3, 6)
    assert np.min(np.abs(X @ params["W1"] + params["b1"])) > 1e-3  # no kink within a step
    _, grads = two_layer_loss_naive(params, X, y, 0.3)
    expected = differences(
        lambda v: two_layer_loss_naive({**params, name: v}, X, y, 0.3)[0], params[name]
    )
    assert relative_error(grads[name], expected) < 1e-7


def test_score_gaps_of_ten_thousand_stay_finite():
    loss, dW = softmax_loss_naive(
        np.array([[1e4, -1e4]]), np.array([[1.0], [1.0]]), np.array([1, 0]), 0.0
    )
    assert loss == 1e4
    np.testing.assert_array_equal(dW, [[0.5, -0.5]])


def test_inputs_are_left_alone():
    rng = np.random.default_rng(3)
    params, X, y = make_net(), rng.normal(size=(6, 4)), rng.integers(0, 3, 6)
    W = rng.normal(size=(4, 3))
    for array in (*params.values(), X, y, W):
        array.flags.writeable = False
    softmax_loss_naive(W, X, y, 0.1)
    two_layer_loss_naive(params, X, y, 0.1)


@pytest.mark.parametrize(
    ("W_shape", "X_shape"), [((3, 2), (4, 5)), ((3,), (4, 3)), ((3, 2), (3,)), ((3, 2), (0, 3))]
)
def test_sizes_that_do_not_fit_are_refused_by_shape(W_shape, X_shape):
    with pytest.raises(ValueError, match=rf"must fit.*{X_shape[0]}.*{W_shape[0]}"):
        softmax_loss_naive(np.zeros(W_shape), np.zeros(X_shape), np.zeros(X_shape[0], int), 0.0)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.array([0, 1, 2]), r"0\.\.1, got 0\.\.2; number the classes from 0"),
        (np.array([0, -1, 1]), r"0\.\.1, got -1\.\.1"),
        (np.array([0, 1]), r"y must hold 3 integers, one for each row of X, got int64 \(2,\)"),
        (np.array([0.0, 1.0, 1.0]), r"got float64"),
        (np.array([[0], [1], [1]]), r"got int64 \(3, 1\)"),
    ],
)
def test_wrong_labels_are_refused_by_value(y, message):
    with pytest.raises(ValueError, match=message):
        softmax_loss_naive(np.zeros((2, 2)), np.zeros((3, 2)), y, 0.0)
    with pytest.raises(ValueError, match=message):
        two_layer_loss_naive(make_net(2, 3, 2), np.zeros((3, 2)), y, 0.0)


LOSSES = {
    "softmax": softmax_loss_naive,
    "svm": svm_loss_naive,
    "two-layer": lambda W, X, y, reg: two_layer_loss_naive(make_net(3, 2, 2), X, y, reg),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("reg", [None, -1.0, math.nan, math.inf, "1"])
def test_a_penalty_that_is_none_is_refused(name, reg):
    with pytest.raises(ValueError, match="reg must be a finite number, at least 0, got"):
        LOSSES[name](np.zeros((3, 2)), np.ones((2, 3)), np.array([0, 1]), reg)


@pytest.mark.parametrize("name", LOSSES)
def test_labels_may_be_a_list(name):
    W, X = np.ones((3, 2)), np.ones((2, 3))
    assert LOSSES[name](W, X, [0, 1], 0.1)[0] == LOSSES[name](W, X, np.array([0, 1]), 0.1)[0]
    with pytest.raises(ValueError, match=r"y must hold 2 integers.*got float64 \(2,\)"):
        LOSSES[name](W, X, [0.0, 1.0], 0.1)
    with pytest.raises(ValueError, match="y must hold 2 integers"):
        LOSSES[name](W, X, None, 0.1)


@pytest.mark.parametrize("name", LOSSES)
def test_pure_python_and_the_vectorised_loss_agree(name):
    rng = np.random.default_rng(4)
    X, y, model = rng.normal(size=(50, 31)), rng.integers(0, 10, 50), MODELS[name]
    params = model.initial_params(31, 10, rng)
    params = {"W": rng.normal(size=(31, 10))} if "W" in params else params
    loss, grads = model.naive(params, X, y, 0.3)
    for other in (pure_python.TWINS[name], model.objective):
        other_loss, other_grads = other(params, X, y, 0.3)
        assert loss == pytest.approx(float(other_loss), rel=1e-12)
        assert grads.keys() == other_grads.keys()
        for key, gradient in grads.items():
            assert relative_error(gradient, other_grads[key]) < 1e-12


@pytest.mark.parametrize("name", ["softmax", "svm"])
def test_floats_are_summed_in_float64(name):
    rng = np.random.default_rng(5)
    W, X = (rng.normal(size=shape).astype(np.float32) for shape in ((31, 10), (50, 31)))
    y = rng.integers(0, 10, 50)
    loss, dW = LOSSES[name](W, X, y, 0.3)
    expected, gradient = LOSSES[name](W.astype(np.float64), X.astype(np.float64), y, 0.3)
    assert loss == expected
    np.testing.assert_array_equal(dW, gradient.astype(np.float32))
