"""Embeddings made in memory, and the page that says how to evaluate some."""

import numpy as np
import pytest

from gpuclf import KNeighborsClassifier
from gpuclf.datasets import make_embeddings


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_embeddings_have_the_shape_dtype_and_length_asked_for(dtype):
    X, y = make_embeddings(2000, 48, 7, dtype=dtype)
    assert (X.shape, X.dtype, y.shape) == ((2000, 48), np.dtype(dtype), (2000,))
    assert set(y.tolist()) == set(range(7))
    lengths = np.linalg.norm(X.astype(np.float64), axis=1)
    assert abs(lengths - 1).max() < 4 * np.finfo(dtype).eps


def test_embeddings_lie_around_their_centres_as_far_apart_as_asked():
    X, y = make_embeddings(60_000, 20, 3, class_sep=5.0, unit_length=False)
    for label in range(3):
        of_class = X[y == label].astype(np.float64)
        assert np.linalg.norm(of_class.mean(axis=0)) == pytest.approx(5.0, abs=0.1)
        assert abs(of_class.std(axis=0) - 1).max() < 0.03


def test_the_same_seed_gives_the_same_embeddings():
    X, y = make_embeddings(1500, 8, 3, seed=1)
    again, labels = make_embeddings(1500, 8, 3, seed=1)
    np.testing.assert_array_equal(X, again)
    np.testing.assert_array_equal(y, labels)
    assert not np.array_equal(X, make_embeddings(1500, 8, 3, seed=2)[0])
    assert len(np.unique(X, axis=0)) == 1500  # no block of rows is another's


def test_classes_that_are_further_apart_are_told_apart_more_often():
    accuracies = []
    for class_sep in (0.0, 3.0, 12.0):
        X, y = make_embeddings(1200, 32, 4, class_sep=class_sep)
        fitted = KNeighborsClassifier(5, metric="cosine").fit(X[:1000], y[:1000])
        accuracies.append(fitted.score(X[1000:], y[1000:]))
    assert accuracies[0] < 0.4 < accuracies[1] < accuracies[2] == 1


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"n_samples": 0}, ValueError, "n_samples must be at least 1, got 0"),
        ({"n_features": -2}, ValueError, "n_features must be at least 1, got -2"),
        ({"n_classes": 2.5}, TypeError, "float"),
        ({"class_sep": float("nan")}, ValueError, "class_sep must be a finite number"),
        ({"dtype": "uint8"}, ValueError, "dtype must be one of 'float16', 'float32', 'float64'"),
        ({"seed": -1}, ValueError, "seed must be 0 or more, got -1"),
    ],
)
def test_embeddings_that_cannot_be_made_are_refused(given, error, says):
    with pytest.raises(error, match=says):
        make_embeddings(**given)
