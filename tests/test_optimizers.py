"""The ladder of examples/optimizers.py: each rung does what its name says."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gpuclf.models import SOFTMAX
from gpuclf.training import Member, minimize_lbfgs, train_sgd

example = SimpleNamespace(
    **runpy.run_path(str(Path(__file__).parents[1] / "examples" / "optimizers.py"))
)
N, D, C = 47, 5, 3


def make_data(seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(C, size=N)
    return rng.standard_normal((N, D)) + 0.8 * np.eye(C, D)[y], y


def make_params(seed=1):
    rng = np.random.default_rng(seed)
    return {"W": rng.standard_normal((D, C)), "b": rng.standard_normal(C)}


def loss_at(params, X, y):
    return float(SOFTMAX.objective(params, X, y, example.REG)[0])


def test_losses_of_many_models_are_those_of_the_models_one_by_one():
    X, y = make_data()
    models = example.moved(make_params(), 0.7, np.random.default_rng(3), (2, 4))
    losses = example.losses_of(models, X, y)
    assert losses.shape == (2, 4)
    for place in np.ndindex(2, 4):
        one = {name: value[place] for name, value in models.items()}
        assert losses[place] == pytest.approx(loss_at(one, X, y), rel=1e-12)


def test_random_search_keeps_the_best_of_its_candidates():
    X, y = make_data()
    best, lowest = example.random_search(make_params(), X, y, 20, 0.7, np.random.default_rng(7))
    drawn = example.moved(make_params(), 0.7, np.random.default_rng(7), (20,))
    one_by_one = [loss_at({n: v[k] for n, v in drawn.items()}, X, y) for k in range(20)]
    assert int(np.argmin(one_by_one)) > 0  # or the first would do
    np.testing.assert_allclose(lowest, np.minimum.accumulate(one_by_one), rtol=1e-12)
    assert loss_at(best, X, y) == pytest.approx(min(one_by_one), rel=1e-12)


def test_local_search_takes_the_steps_that_lead_down_and_only_those():
    X, y = make_data()
    found, losses = example.random_local_search(
        make_params(), X, y, 60, 0.1, np.random.default_rng(7)
    )
    steps = np.diff(losses)
    assert len(losses) == 61
    assert np.all(steps <= 0)  # never up
    assert np.any(steps == 0)  # some were refused
    assert np.any(steps < 0)  # some were taken
    assert losses[0] == pytest.approx(loss_at(make_params(), X, y), rel=1e-12)
    assert losses[-1] == pytest.approx(loss_at(found, X, y), rel=1e-12)
    rng, here = np.random.default_rng(7), make_params()  # the same walk, written out
    for _ in range(60):
        there = {name: v + 0.1 * rng.standard_normal(v.shape) for name, v in here.items()}
        here = there if loss_at(there, X, y) < loss_at(here, X, y) else here
    for name, value in here.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-12)


def test_gradient_descent_is_sgd_with_all_samples_and_no_momentum():
    X, y = make_data()
    found, losses = example.gradient_descent(make_params(), X, y, 8, 0.3)
    member = Member(make_params(), lambda step: 0.3, example.REG, momentum=0.0)
    common = {"nesterov": False, "rng": np.random.default_rng(0)}
    train_sgd(SOFTMAX, [member], X, y, batch_size=N, epochs=8, **common)
    # SGD shuffles the samples: sums in another order.
    np.testing.assert_allclose(losses, member.history.loss, rtol=1e-12)
    for name, value in found.items():
        np.testing.assert_allclose(member.params[name], value, rtol=0, atol=1e-12)


def test_each_rung_of_the_ladder_ends_below_the_one_before():
    (X, y), rng = make_data(), np.random.default_rng(7)
    start = {name: 0 * value for name, value in make_params().items()}
    searched, _ = example.random_search(start, X, y, 50, 0.7, rng)
    local, _ = example.random_local_search(start, X, y, 50, 0.1, rng)
    descended, _ = example.gradient_descent(start, X, y, 50, 0.3)
    best, _, _ = minimize_lbfgs(SOFTMAX, start, X, y, reg=example.REG, max_iter=50, tol=1e-8)
    losses = [loss_at(params, X, y) for params in (searched, local, descended, best)]
    assert losses == sorted(losses, reverse=True)
