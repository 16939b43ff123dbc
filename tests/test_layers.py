import numpy as np
import pytest

from gpuclf.arrays import MixedDevicesError
from gpuclf.layers import affine, affine_backward, relu, relu_backward
from gpuclf.losses import softmax_cross_entropy

SIZES = [(1, 1, 1), (1, 4, 2), (5, 1, 3), (7, 5, 10), (131, 6, 3)]


def make_layer(n, d, m, *, models=(), seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(n, d)) + 0.5,
        rng.normal(size=(*models, d, m)),
        rng.normal(size=(*models, m)),
    )


def differences(function, x, step=1e-5):
    """Return the centred differences of a function of one array."""
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += step
        down[i] -= step
        gradient[i] = (float(function(up)) - float(function(down))) / (2 * step)
    return gradient


def relative_error(found, expected):
    return np.max(np.abs(found - expected)) / np.max(np.abs(expected))


@pytest.mark.parametrize(("n", "d", "m"), SIZES)
def test_affine_is_the_sum_over_features_plus_bias(lib, n, d, m):
    X, W, b = make_layer(n, d, m)
    expected = sum(X[:, [k]] * W[[k], :] for k in range(d))
    tolerance = {"rtol": 1e-12, "atol": 1e-13}  # float64, another order of summation
    np.testing.assert_allclose(
        lib.to_numpy(affine(lib.asarray(X), lib.asarray(W))), expected, **tolerance
    )
    np.testing.assert_allclose(
        lib.to_numpy(affine(*map(lib.asarray, (X, W, b)))), expected + b, **tolerance
    )


@pytest.mark.parametrize(("n", "d", "m"), SIZES)
def test_affine_backward_is_the_sum_over_samples(lib, n, d, m):
    X, W, _ = make_layer(n, d, m)
    dY = np.random.default_rng(1).normal(size=(n, m)) + 0.25
    dX, dW, db = affine_backward(*map(lib.asarray, (dY, X, W)))
    tolerance = {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(
        lib.to_numpy(dX), sum(dY[:, [k]] * W[:, k] for k in range(m)), **tolerance
    )
    outer = sum(np.outer(X[i], dY[i]) for i in range(n))
    np.testing.assert_allclose(lib.to_numpy(dW), outer, **tolerance)
    np.testing.assert_allclose(lib.to_numpy(db), sum(dY), **tolerance)


def test_affine_and_its_gradients_take_a_model_axis(lib):
    X, W, b = make_layer(9, 4, 3, models=(2,))
    Y = lib.to_numpy(affine(*map(lib.asarray, (X, W, b))))
    dY = np.random.default_rng(1).normal(size=Y.shape)
    dX, dW, db = map(lib.to_numpy, affine_backward(*map(lib.asarray, (dY, X, W))))
    assert dX.shape == (2, 9, 4)
    for k in range(2):
        np.testing.assert_allclose(Y[k], X @ W[k] + b[k], rtol=1e-13, atol=1e-14)
        np.testing.assert_allclose(dX[k], dY[k] @ W[k].T, rtol=1e-13, atol=1e-14)
        np.testing.assert_allclose(dW[k], X.T @ dY[k], rtol=1e-13, atol=1e-14)
        np.testing.assert_allclose(db[k], dY[k].sum(axis=0), rtol=1e-13, atol=1e-14)


def test_gradients_through_the_layer_are_the_centred_differences(lib):
    X, W, b = make_layer(5, 4, 3)
    y = np.array([0, 2, 1, 0, 0])

    def loss(X, W, b):
        return lib.to_numpy(
            softmax_cross_entropy(affine(*map(lib.asarray, (X, W, b))), lib.asarray(y))[0]
        )

    logits = affine(*map(lib.asarray, (X, W, b)))
    _, dlogits = softmax_cross_entropy(logits, lib.asarray(y))
    gradients = affine_backward(dlogits, lib.asarray(X), lib.asarray(W))
    dX, dW, db = map(lib.to_numpy, gradients)
    # Truncation is of order step**2 = 1e-10, rounding of order 1e-16 / step = 1e-11.
    assert relative_error(dX, differences(lambda v: loss(v, W, b), X)) < 1e-7
    assert relative_error(dW, differences(lambda v: loss(X, v, b), W)) < 1e-7
    assert relative_error(db, differences(lambda v: loss(X, W, v), b)) < 1e-7


def test_relu_keeps_the_positive_and_zeroes_the_rest(lib):
    Z = np.array([[-2.0, -0.0, 0.0, 1e-300, 3.0]])
    A = lib.to_numpy(relu(lib.asarray(Z)))
    np.testing.assert_array_equal(A, [[0, 0, 0, 1e-300, 3.0]])


def test_relu_passes_nan_on(lib):
    assert np.isnan(lib.to_numpy(relu(lib.asarray(np.array([np.nan, 1.0])))))[0]


def test_relu_backward_is_zero_at_and_below_zero_by_input_or_output(lib):
    Z = np.array([-1.0, 0.0, 2.0, 0.5], np.float32)
    dA = np.array([5.0, 6.0, 7.0, -8.0], np.float32)
    for seen in (Z, np.maximum(Z, 0)):
        dZ = relu_backward(lib.asarray(dA), lib.asarray(seen))
        np.testing.assert_array_equal(lib.to_numpy(dZ), [0, 0, 7, -8])
        assert dZ.dtype == lib.xp.float32


def test_gradient_of_relu_is_the_centred_difference_away_from_zero(lib):
    Z = np.array([[-0.7, 0.2, 1.5], [0.3, -0.1, 2.0]])
    weights = np.array([[1.0, 2.0, -3.0], [4.0, 5.0, 6.0]])
    dZ = relu_backward(lib.asarray(weights), relu(lib.asarray(Z)))
    expected = differences(
        lambda v: np.sum(weights * lib.to_numpy(relu(lib.asarray(v)))), Z, step=1e-3
    )
    np.testing.assert_allclose(lib.to_numpy(dZ), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_layers_keep_dtype_and_device(lib, dtype):
    X, W, b = (lib.asarray(a.astype(dtype)) for a in make_layer(3, 4, 2))
    Y = affine(X, W, b)
    for result in (Y, *affine_backward(Y, X, W), relu(Y), relu_backward(Y, Y)):
        assert result.dtype == X.dtype
        assert result.device == X.device


def test_arrays_on_two_devices_are_refused_by_name(strict, strict_on_cpu):
    X, W, _ = make_layer(3, 4, 2)
    dY = strict.asarray(np.ones((3, 2)))
    with pytest.raises(MixedDevicesError, match=r"dY is .*device1.* but X is .*CPU_DEVICE"):
        affine_backward(dY, strict_on_cpu.asarray(X), strict.asarray(W))
    with pytest.raises(MixedDevicesError, match=r"dA is .*device1.* but A is numpy on cpu"):
        relu_backward(dY, np.ones((3, 2)))
