"""Other sources' conventions, as identities of this library's losses."""

import numpy as np
import pytest

from gpuclf.losses import softmax_cross_entropy
from gpuclf.models import SOFTMAX, SVM
from gpuclf.models.linear import softmax_loss_vectorized, svm_loss_vectorized
from gpuclf.models.two_layer import two_layer_loss

N, D, C, REG = 9, 5, 4, 0.3
LOSSES = {
    "softmax": (softmax_loss_vectorized, SOFTMAX),
    "svm": (svm_loss_vectorized, SVM),
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
    vectorized, model = losses
    W, X, y = problem
    by_rows, by_columns = lib.asarray(W.T.copy()), lib.asarray(X.T.copy())
    loss, dW = vectorized(by_rows.T, by_columns.T, lib.asarray(y), REG / 2)
    expected, gradient = source(model.data_loss, W.T, X.T, y, REG)
    np.testing.assert_allclose(lib.to_numpy(loss), expected, rtol=1e-13)
    np.testing.assert_allclose(lib.to_numpy(dW.T), gradient, rtol=1e-12, atol=1e-14)


def test_the_bias_trick_without_penalty_is_a_bias_apart(lib, losses, problem):
    vectorized, model = losses
    W, X, y = problem
    b = np.array([0.5, -1.0, 2.0, 0.25])
    extended_W, extended_X = np.vstack([W, b]), np.hstack([X, np.ones((N, 1))])
    loss, dW = vectorized(*map(lib.asarray, (extended_W, extended_X, y)), 0.0)
    params = {"W": lib.asarray(W), "b": lib.asarray(b)}
    expected, grads = model.loss(params, lib.asarray(X), lib.asarray(y), 0.0)
    np.testing.assert_allclose(lib.to_numpy(loss), lib.to_numpy(expected), rtol=1e-13)
    gradient = np.vstack([lib.to_numpy(grads["W"]), lib.to_numpy(grads["b"])])
    np.testing.assert_allclose(lib.to_numpy(dW), gradient, rtol=1e-12, atol=1e-14)


def source_net(W1, b1, W2, b2, X, y, reg):
    """Write a source's net out: W1 (H, D), W2 (C, H), X (D, N), 0.5 * reg on both W."""
    hidden = np.maximum(W1 @ X + b1[:, None], 0)
    loss, dscores = softmax_cross_entropy.reference((W2 @ hidden + b2[:, None]).T, y)
    dhidden = (W2.T @ dscores.T) * (hidden > 0)
    grads = {
        "W1": dhidden @ X.T + reg * W1,
        "b1": dhidden.sum(axis=1),
        "W2": dscores.T @ hidden.T + reg * W2,
        "b2": dscores.sum(axis=0),
    }
    return loss + 0.5 * reg * (np.sum(W1 * W1) + np.sum(W2 * W2)), grads


def test_half_the_penalty_and_transposed_views_of_the_two_layer_net(lib, problem):
    _, X, y = problem
    n_hidden, rng = 6, np.random.default_rng(1)
    theirs = {
        "W1": rng.normal(size=(n_hidden, D)),
        "b1": rng.normal(size=n_hidden),
        "W2": rng.normal(size=(C, n_hidden)),
        "b2": rng.normal(size=C),
    }
    ours = {
        name: lib.asarray(value).T if "W" in name else lib.asarray(value)
        for name, value in theirs.items()
    }
    loss, grads = two_layer_loss(ours, lib.asarray(X.T.copy()).T, lib.asarray(y), REG / 2)
    expected, gradients = source_net(**theirs, X=X.T, y=y, reg=REG)
    np.testing.assert_allclose(lib.to_numpy(loss), expected, rtol=1e-13)
    for name, gradient in gradients.items():
        found = grads[name].T if "W" in name else grads[name]
        np.testing.assert_allclose(lib.to_numpy(found), gradient, rtol=1e-12, atol=1e-14)
