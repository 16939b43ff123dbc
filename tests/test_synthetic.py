import hashlib

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from gpuclf.datasets import make_synthetic


def nearest_mean_accuracy(X, y, X_test, y_test):
    means = np.stack([X[y == label].mean(axis=0, dtype=np.float32) for label in range(10)])
    scores = X_test.astype(np.float32) @ means.T - 0.5 * (means**2).sum(axis=1)
    return np.mean(scores.argmax(axis=1) == y_test)


def test_shapes_and_types():
    X, y = make_synthetic(n=1000)
    assert X.shape == (1000, 3072)
    assert X.dtype == np.uint8
    assert y.shape == (1000,)
    assert y.dtype == np.int64
    assert set(y) == set(range(10))


def test_same_arguments_give_the_same_bytes_on_every_machine():
    X, y = make_synthetic(n=300, seed=5)
    digest = hashlib.sha256(X.tobytes() + y.astype("<i8").tobytes()).hexdigest()
    assert digest == "b9d91e6a637cc2626718b9f9bf9e2ddf9481f53c9dea7b62c63545b46b1b0f4f"


def test_seed_chooses_the_samples():
    X, y = make_synthetic(n=300, seed=0)
    other_X, other_y = make_synthetic(n=300, seed=1)
    assert not np.array_equal(y, other_y)
    assert not any(np.array_equal(a, b) for a, b in zip(X, other_X, strict=True))


@pytest.mark.parametrize("n", [0, 1, 255, 256, 257])
def test_fewer_samples_are_the_beginning_of_more(n):
    X, y = make_synthetic(n=600, seed=2)
    first_X, first_y = make_synthetic(n=n, seed=2)
    np.testing.assert_array_equal(first_X, X[:n])
    np.testing.assert_array_equal(first_y, y[:n])


def test_pixels_stay_within_the_bound_that_spares_clipping():
    X, _ = make_synthetic(n=5000)
    # A sum that wrapped around would reach both ends of the range.
    assert X.min() >= 8
    assert X.max() <= 248


def test_classes_are_shared_by_all_seeds_and_learnable_but_not_trivial():
    accuracy = nearest_mean_accuracy(*make_synthetic(8000, seed=0), *make_synthetic(1000, seed=9))
    assert 0.2 < accuracy < 0.7


def gaussian_accuracy(X, y, X_test, y_test, linear):
    """Return the accuracy of normal distributions fitted to the classes.

    With a covariance in common their decision is linear, with one each it is quadratic.
    """
    centred = [X[y == label] - X[y == label].mean(axis=0) for label in range(10)]
    if linear:
        centred = [np.concatenate(centred)] * 10
    scores = []
    for label in range(10):
        covariance = centred[label].T @ centred[label] / len(centred[label])
        deviation = X_test - X[y == label].mean(axis=0)
        distance = np.sum(deviation * np.linalg.solve(covariance, deviation.T).T, axis=1)
        scores.append(-distance - np.linalg.slogdet(covariance)[1])
    return np.mean(np.argmax(scores, axis=0) == y_test)


def test_a_part_of_the_class_information_is_not_linear():
    def features(X):
        # Means over 4 x 4 pixels: the fields are smooth, and 192 features are quick to fit.
        return X.reshape(-1, 3, 8, 4, 8, 4).mean(axis=(3, 5), dtype=np.float32).reshape(len(X), -1)

    (X, y), (X_test, y_test) = make_synthetic(8000, seed=0), make_synthetic(1000, seed=1)
    data = features(X).astype(float), y, features(X_test).astype(float), y_test
    with threadpool_limits(1):
        linear = gaussian_accuracy(*data, linear=True)
        quadratic = gaussian_accuracy(*data, linear=False)
    assert 0.3 < linear < 0.6
    assert quadratic > linear + 0.1


@pytest.mark.parametrize("arguments", [{"n": -1}, {"seed": -1}])
def test_negative_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="must be 0 or more, got -1"):
        make_synthetic(**arguments)


@pytest.mark.parametrize("arguments", [{"n": 10.0}, {"n": 10, "seed": "0"}])
def test_arguments_that_are_not_integers_are_refused(arguments):
    with pytest.raises(TypeError):
        make_synthetic(**arguments)
