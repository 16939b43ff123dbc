import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from gpuclf import Standardized
from gpuclf.models import SOFTMAX
from gpuclf.models.linear import linear_scores
from gpuclf.preprocessing import add_bias_column, mean_image, split_bias, subtract_mean_image

DTYPES = [np.uint8, np.float32, np.float64]


def samples(dtype, n_samples=40, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n_samples, 6)).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_mean_image(lib, dtype):
    X = samples(dtype)
    mean = mean_image(lib.asarray(X))
    assert mean.dtype == lib.xp.float64
    np.testing.assert_allclose(lib.to_numpy(mean), X.mean(axis=0, dtype=np.float64), rtol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
def test_subtracting_the_mean_image(lib, dtype):
    X, X_new = samples(dtype), samples(dtype, 5, seed=1)
    train = subtract_mean_image(lib.asarray(X))
    new = train.apply(lib.asarray(X_new))
    expected = X.astype(np.float64) - X.mean(axis=0, dtype=np.float64)
    written = lib.to_numpy(train.to_array(lib.xp.float64))
    np.testing.assert_allclose(written, expected, atol=1e-12)
    np.testing.assert_allclose(written.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(
        lib.to_numpy(new.to_array(lib.xp.float64)),
        X_new.astype(np.float64) - X.mean(axis=0, dtype=np.float64),
        atol=1e-12,
    )


def test_subtracting_copies_nothing():
    X = samples(np.uint8)
    assert subtract_mean_image(X).X is X


@pytest.mark.parametrize("dtype", DTYPES)
def test_standardisation_is_that_of_scikit_learn(lib, dtype):
    X, X_new = samples(dtype), samples(dtype, 5, seed=1)
    X[:, 2] = 7  # a constant feature has scale 1
    scaler = StandardScaler().fit(X.astype(np.float64))
    lazy = Standardized.fit(lib.asarray(X))
    np.testing.assert_allclose(lib.to_numpy(lazy.mean), scaler.mean_, rtol=1e-13)
    np.testing.assert_allclose(lib.to_numpy(lazy.scale), scaler.scale_, rtol=1e-13)
    np.testing.assert_allclose(
        lib.to_numpy(lazy.apply(lib.asarray(X_new)).to_array(lib.xp.float64)),
        scaler.transform(X_new.astype(np.float64)),
        atol=1e-12,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bias_column(lib, dtype):
    X = samples(dtype)
    extended = add_bias_column(lib.asarray(X))
    assert extended.dtype == lib.asarray(X).dtype
    np.testing.assert_array_equal(lib.to_numpy(extended), np.hstack([X, np.ones((40, 1), dtype)]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bias_column_is_not_standardised(lib, dtype):
    lazy = Standardized.fit(lib.asarray(samples(dtype)))
    extended = add_bias_column(lazy)
    assert extended.X.dtype == lazy.X.dtype  # bytes stay bytes
    written = lib.to_numpy(extended.to_array(lib.xp.float64))
    np.testing.assert_allclose(written[:, :-1], lib.to_numpy(lazy.to_array(lib.xp.float64)))
    np.testing.assert_array_equal(written[:, -1], 1)


@pytest.mark.parametrize("models", [(), (3,)])
@pytest.mark.parametrize("prepare", [Standardized.fit, lambda X: X], ids=["standardised", "raw"])
def test_the_bias_trick_is_the_bias_but_for_its_penalty(lib, models, prepare):
    rng = np.random.default_rng(2)
    X = prepare(lib.asarray(rng.standard_normal((40, 6))))
    y = lib.asarray(rng.integers(0, 4, 40))
    extended_W = lib.asarray(rng.standard_normal((*models, 7, 4)))
    W, b = split_bias(extended_W)
    assert (W.shape, b.shape) == ((*models, 6, 4), (*models, 4))
    np.testing.assert_allclose(
        lib.to_numpy(linear_scores({"W": extended_W}, add_bias_column(X))),
        lib.to_numpy(linear_scores({"W": W, "b": b}, X)),
        rtol=1e-12,
    )

    reg = 0.1
    loss, grads = SOFTMAX.objective({"W": W, "b": b}, X, y, reg)
    trick_loss, trick_grads = SOFTMAX.objective({"W": extended_W}, add_bias_column(X), y, reg)
    b = lib.to_numpy(b)
    np.testing.assert_allclose(
        lib.to_numpy(trick_loss), lib.to_numpy(loss) + reg * np.sum(b * b, axis=-1)
    )
    dW, db = split_bias(trick_grads["W"])
    np.testing.assert_allclose(lib.to_numpy(dW), lib.to_numpy(grads["W"]), atol=1e-13)
    np.testing.assert_allclose(lib.to_numpy(db), lib.to_numpy(grads["b"]) + 2 * reg * b, atol=1e-13)


def test_split_bias_gives_views():
    W = np.zeros((4, 3))
    assert all(np.shares_memory(W, part) for part in split_bias(W))


@pytest.mark.parametrize("shape", [(5,), (1, 3), (2, 1, 3)])
def test_split_bias_needs_a_row_for_the_bias_and_one_for_a_feature(shape):
    with pytest.raises(ValueError, match=r"W must have shape \(..., D \+ 1, C\)"):
        split_bias(np.zeros(shape))


def test_add_bias_column_wants_samples_in_rows():
    with pytest.raises(ValueError, match=r"X must have shape \(N, D\).*got \(3,\)"):
        add_bias_column(np.zeros(3))


@pytest.mark.parametrize("function", [mean_image, subtract_mean_image, add_bias_column, split_bias])
def test_lists_are_refused(function):
    with pytest.raises(TypeError, match="convert it with"):
        function([[1.0, 2.0], [3.0, 4.0]])
