"""The spiral, and the case study of Stanford's CS231n that is told with it."""

import numpy as np
import pytest

from gpuclf import SoftmaxClassifier, TwoLayerNetClassifier
from gpuclf.datasets import make_spiral
from gpuclf.models import SOFTMAX, TWO_LAYER
from gpuclf.models.linear import linear_scores

softmax_loss = SOFTMAX.objective
REG = 1e-3 / 2  # the source writes 0.5 * reg * sum(W * W) with reg = 1e-3
STEP_SIZE = 1.0


def test_shapes_and_order():
    X, y = make_spiral(n_per_class=7, n_classes=4)
    assert (X.shape, X.dtype) == ((28, 2), np.float64)
    assert (y.shape, y.dtype) == ((28,), np.int64)
    np.testing.assert_array_equal(y, np.repeat([0, 1, 2, 3], 7))


def test_without_noise_it_is_the_curve():
    X, _ = make_spiral(n_per_class=5, n_classes=2, noise=0)
    expected = [
        [i / 4 * np.sin(4 * j + i), i / 4 * np.cos(4 * j + i)] for j in range(2) for i in range(5)
    ]
    np.testing.assert_allclose(X, expected, atol=1e-15)


def test_noise_turns_points_and_leaves_their_radius():
    X, _ = make_spiral(n_per_class=2000, n_classes=1, noise=0.3, seed=1)
    np.testing.assert_allclose(np.hypot(*X.T), np.linspace(0, 1, 2000), atol=1e-12)
    turned = np.arctan2(*X[1:].T) - np.linspace(0, 4, 2000)[1:]
    turned = (turned + np.pi) % (2 * np.pi) - np.pi
    assert abs(turned.mean()) < 0.03
    assert 0.28 < turned.std() < 0.32


def test_the_seed_decides():
    np.testing.assert_array_equal(make_spiral(seed=3)[0], make_spiral(seed=3)[0])
    assert not np.array_equal(make_spiral(seed=3)[0], make_spiral(seed=4)[0])


def test_one_point_a_class_is_the_origin():
    np.testing.assert_array_equal(make_spiral(n_per_class=1)[0], np.zeros((3, 2)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_per_class": 0}, "n_per_class .* got 0"),
        ({"n_classes": 0}, "n_classes must be at least 1, got 100 and 0"),
        ({"noise": -0.1}, r"noise .* got -0\.1"),
        ({"noise": float("nan")}, "noise .* got nan"),
        ({"seed": -1}, "seed .* got -1"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_spiral(**arguments)


@pytest.mark.parametrize("name", ["n_per_class", "n_classes", "seed"])
def test_counts_and_seed_are_integers(name):
    with pytest.raises(TypeError, match="integer"):
        make_spiral(**{name: 2.5})


def descend(objective, params, X, y, n_steps):
    """Full-batch gradient descent; return the losses before each step."""
    losses = []
    for _ in range(n_steps):
        loss, grads = objective(params, X, y, REG)
        losses.append(float(loss))
        for name, gradient in grads.items():
            params[name] -= STEP_SIZE * gradient
    return losses


@pytest.mark.essential_cases(4)
@pytest.mark.parametrize("seed", range(8))
def test_case_study_softmax(seed):
    """The source printed a loss of 0.786302 at step 190, and 49 % in the end."""
    X, y = make_spiral(seed=seed)
    W = 0.01 * np.random.default_rng(seed).standard_normal((2, 3))
    params = {"W": W, "b": np.zeros(3)}
    losses = descend(softmax_loss, params, X, y, 200)
    assert losses[0] == pytest.approx(np.log(3), abs=0.02)
    assert 0.73 <= losses[190] <= 0.80
    assert 0.48 <= np.mean(linear_scores(params, X).argmax(axis=1) == y) <= 0.55


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_case_study_two_layer(seed):
    """The source printed a loss of 0.245292 at step 9,000, and 98 % in the end."""
    X, y = make_spiral(seed=seed)
    X = X.astype(np.float32)
    rng = np.random.default_rng(seed)
    params = {
        "W1": 0.01 * rng.standard_normal((2, 100)),
        "b1": np.zeros(100),
        "W2": 0.01 * rng.standard_normal((100, 3)),
        "b2": np.zeros(3),
    }
    params = {name: value.astype(np.float32) for name, value in params.items()}
    losses = descend(TWO_LAYER.objective, params, X, y, 9001)
    assert losses[0] == pytest.approx(np.log(3), abs=0.01)
    assert 0.235 <= losses[9000] <= 0.255
    assert np.mean(TWO_LAYER.scores(params, X).argmax(axis=1) == y) >= 0.975


def test_the_estimators_learn_it():
    X, y = make_spiral(seed=5)
    X_new, y_new = make_spiral(seed=6)
    softmax = SoftmaxClassifier(max_iter=50, random_state=0).fit(X, y)
    assert 0.45 <= softmax.score(X, y) <= 0.6  # no straight lines part the arms
    net = TwoLayerNetClassifier(max_iter=200, batch_size=50, random_state=0).fit(X, y)
    assert net.score(X, y) >= 0.975
    assert net.score(X_new, y_new) >= 0.95
