"""Other sources' conventions, as identities of the two linear losses."""

import numpy as np
import pytest

from gpuclf.linear import linear_loss, softmax_loss_vectorized, svm_loss_vectorized
from gpuclf.losses import multiclass_hinge, softmax_cross_entropy

N, D, C, REG = 9, 5, 4, 0.3
LOSSES = {
    "softmax": (softmax_loss_vectorized, softmax_cross_entropy),
    "svm": (svm_loss_vectorized, multiclass_hinge),
}


@pytest.fixture(params=LOSSES)
def losses(request):
    return LOSSES[request.param]


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    return rng.normal(size=(D, C)), rng.normal(size=(N, D)), rng.integers(0, C, N)


def source(data_loss, W, X, y, reg):
    """Write a source's loss out: W (C, D), X (D, N), the penalty 0.5 * reg * sum(W * W)."""
    loss, dscores = data_loss.reference((W @ X).T, y)
    return loss + 0.5 * reg * np.sum(W * W), dscores.T @ X.T + reg * W


def test_half_the_penalty_and_transposed_views(lib, losses, problem):
    vectorized, data_loss = losses
    W, X, y = problem
    by_rows, by_columns = lib.asarray(W.T.copy()), lib.asarray(X.T.copy())
    loss, dW = vectorized(by_rows.T, by_columns.T, lib.asarray(y), REG / 2)
    expected, gradient = source(data_loss, W.T, X.T, y, REG)
    np.testing.assert_allclose(lib.to_numpy(loss), expected, rtol=1e-13)
    np.testing.assert_allclose(lib.to_numpy(dW.T), gradient, rtol=1e-12, atol=1e-14)


def test_the_bias_trick_without_penalty_is_a_bias_apart(lib, losses, problem):
    vectorized, data_loss = losses
    W, X, y = problem
    b = np.array([0.5, -1.0, 2.0, 0.25])
    extended_W, extended_X = np.vstack([W, b]), np.hstack([X, np.ones((N, 1))])
    loss, dW = vectorized(*map(lib.asarray, (extended_W, extended_X, y)), 0.0)
    params = {"W": lib.asarray(W), "b": lib.asarray(b)}
    expected, grads = linear_loss(data_loss, params, lib.asarray(X), lib.asarray(y), 0.0)
    np.testing.assert_allclose(lib.to_numpy(loss), lib.to_numpy(expected), rtol=1e-13)
    gradient = np.vstack([lib.to_numpy(grads["W"]), lib.to_numpy(grads["b"])])
    np.testing.assert_allclose(lib.to_numpy(dW), gradient, rtol=1e-12, atol=1e-14)
