from functools import partial
from itertools import chain

import numpy as np
import pytest
from scipy.optimize import minimize

from gpuclf import SoftmaxClassifier, Standardized, to_device
from gpuclf.models import SOFTMAX, SVM, TWO_LAYER, Model
from gpuclf.training import DivergedError, History, Member, minimize_lbfgs, one_cycle, train_sgd

N, D, C = 47, 5, 3  # 47 = 4 batches of 10 and one of 7
BATCH = 10


def make_data(seed=0, n=N):
    rng = np.random.default_rng(seed)
    y = rng.integers(C, size=n)
    X = rng.standard_normal((n, D)) + 0.8 * np.eye(C, D)[y]
    return X, y


def make_params(seed=1):
    rng = np.random.default_rng(seed)
    return {"W": 0.1 * rng.standard_normal((D, C)), "b": 0.1 * rng.standard_normal(C)}


def make_two_layer_params(seed=1, hidden=4):
    rng = np.random.default_rng(seed)
    return {
        "W1": 0.5 * rng.standard_normal((D, hidden)),
        "b1": 0.1 * rng.standard_normal(hidden),
        "W2": 0.5 * rng.standard_normal((hidden, C)),
        "b2": 0.1 * rng.standard_normal(C),
    }


MODELS = {
    "softmax": (SOFTMAX, make_params),
    "two-layer": (TWO_LAYER, make_two_layer_params),
}


class Made(Model):
    """A model that has nothing but an objective."""

    def __init__(self, objective):
        super().__init__("made", None)
        object.__setattr__(self, "objective", objective)


def written_out_softmax(W, b, X, y, reg, weights=None):
    """Loss and gradients, independent of the library; `weights` sum to 1."""
    weights = np.full(len(X), 1 / len(X)) if weights is None else weights
    scores = X @ W + b
    scores = scores - scores.max(axis=1, keepdims=True)
    log_probs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    loss = -(weights * log_probs[np.arange(len(X)), y]).sum() + reg * (W**2).sum()
    dscores = (np.exp(log_probs) - np.eye(C)[y]) * weights[:, None]
    return loss, X.T @ dscores + 2 * reg * W, dscores.sum(axis=0)


def run_sgd(params, X, y, model=SOFTMAX, seed=7, on_epoch=None, **options):
    """Train one model; return its parameters, velocity and history."""
    own = {"rate": lambda step: 0.3, "reg": 0.01, "momentum": 0.9}
    own |= {name: options.pop(name) for name in (*own, "velocity", "history") if name in options}
    common = {"nesterov": False, "batch_size": BATCH, "epochs": 3}
    common |= {"rng": np.random.default_rng(seed)} | options
    member = Member(params, **own)
    if on_epoch is not None:
        common["on_epoch"] = lambda params, _: {0} if on_epoch(params, member.history) else None
    train_sgd(model, [member], X, y, **common)
    if member.error is not None:
        raise member.error
    return member.params, member.velocity, member.history


# ------------------------------------------------------------------------------ SGD's steps


def test_without_momentum_a_full_batch_is_plain_gradient_descent():
    X, y = make_data()
    params = make_params()
    found, _, history = run_sgd(params, X, y, momentum=0.0, batch_size=N, epochs=6)
    W, b = params["W"].copy(), params["b"].copy()
    losses = []
    for _ in range(6):
        loss, dW, db = written_out_softmax(W, b, X, y, 0.01)
        losses.append(loss)
        W, b = W - 0.3 * dW, b - 0.3 * db
    # Sums in another order, of numbers of size 1, in float64.
    np.testing.assert_allclose(history.loss, losses, rtol=1e-12)
    np.testing.assert_allclose(found["W"], W, rtol=0, atol=1e-13)
    np.testing.assert_allclose(found["b"], b, rtol=0, atol=1e-13)


@pytest.mark.parametrize("nesterov", [False, True], ids=["momentum", "nesterov"])
def test_momentum_equals_the_update_written_out(nesterov):
    X, y = make_data()
    params = make_params()
    momentum = 0.8

    def rate(step):
        return 0.3 / (1 + step)

    found, velocity, history = run_sgd(
        params, X, y, rate=rate, momentum=momentum, nesterov=nesterov, epochs=3
    )
    W, b = params["W"].copy(), params["b"].copy()
    vW, vb = np.zeros_like(W), np.zeros_like(b)
    rng = np.random.default_rng(7)
    losses = []
    for _ in range(3):
        order = rng.permutation(N)
        for start in range(0, N, BATCH):
            batch = order[start : start + BATCH]
            loss, dW, db = written_out_softmax(W, b, X[batch], y[batch], 0.01)
            eta = rate(len(losses))
            losses.append(loss)
            old_vW, old_vb = vW, vb
            vW, vb = momentum * vW - eta * dW, momentum * vb - eta * db
            if nesterov:  # CS231n's form
                W = W - momentum * old_vW + (1 + momentum) * vW
                b = b - momentum * old_vb + (1 + momentum) * vb
            else:
                W, b = W + vW, b + vb
    # Rounding of float64, carried through 15 steps.
    np.testing.assert_allclose(history.loss, losses, rtol=1e-12)
    np.testing.assert_allclose(found["W"], W, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found["b"], b, rtol=0, atol=1e-12)
    np.testing.assert_allclose(velocity["W"], vW, rtol=0, atol=1e-12)
    np.testing.assert_allclose(velocity["b"], vb, rtol=0, atol=1e-12)


def test_every_sample_is_used_once_an_epoch_the_last_smaller_batch_included():
    X = np.arange(N, dtype=np.float64)[:, None]
    seen = []

    def objective(params, X_batch, y_batch, reg, weights, **_):
        np.testing.assert_array_equal(X_batch[:, 0], y_batch)  # labels move with their samples
        seen.append(X_batch[:, 0].astype(int).tolist())
        return np.float64(1.0), {"w": np.zeros(1)}

    minimize = partial(run_sgd, {"w": np.zeros(1)}, X, np.arange(N), Made(objective))
    minimize(epochs=2)
    assert [len(batch) for batch in seen] == [10, 10, 10, 10, 7] * 2
    first, second = list(chain(*seen[:5])), list(chain(*seen[5:]))
    assert sorted(first) == sorted(second) == list(range(N))
    assert first != second  # shuffled anew
    assert first != sorted(first)


def test_one_step_more_than_the_epochs_before_reaches_the_rate_of_the_next_step():
    X, y = make_data()
    asked = []

    def rate(step):
        asked.append(step)
        return 0.1 / (step + 1)

    _, _, history = run_sgd(make_params(), X, y, rate=rate, epochs=2)
    assert asked == list(range(10))
    assert history.learning_rate == [0.1 / (step + 1) for step in range(10)]
    assert len(history.loss) == 10


def test_training_in_two_parts_is_training_at_once():
    X, y = make_data()
    at_once, velocity_at_once, history_at_once = run_sgd(make_params(), X, y, epochs=3)
    rng = np.random.default_rng(7)
    params, velocity, history = run_sgd(make_params(), X, y, epochs=1, rng=rng)
    params, velocity, history = run_sgd(
        params, X, y, epochs=2, rng=rng, velocity=velocity, history=history
    )
    assert history.loss == history_at_once.loss
    assert history.learning_rate == history_at_once.learning_rate
    for name in params:
        np.testing.assert_array_equal(params[name], at_once[name])
        np.testing.assert_array_equal(velocity[name], velocity_at_once[name])


@pytest.mark.parametrize("name", MODELS)
def test_same_seed_gives_the_same_bits_and_another_seed_other_batches(name):
    model, make = MODELS[name]
    X, y = make_data()
    first, _, first_history = run_sgd(make(), X, y, model)
    again, _, again_history = run_sgd(make(), X, y, model)
    _, _, other_history = run_sgd(make(), X, y, model, seed=8)
    assert first_history.loss == again_history.loss
    assert first_history.loss != other_history.loss
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])


@pytest.mark.essential_cases(8)
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("name", MODELS)
def test_a_training_run_is_the_same_on_every_array_library(lib, name, weighted):
    model, make = MODELS[name]
    X, y = make_data()
    weights = np.arange(1.0, N + 1) if weighted else None

    def train(place):
        return run_sgd(
            {name: place(value) for name, value in make().items()},
            Standardized.fit(place(X)),
            place(y),
            model,
            nesterov=True,
            sample_weight=None if weights is None else place(weights),
        )

    expected, _, expected_history = train(np.asarray)
    found, velocity, history = train(lib.asarray)
    # Step by step in float64: only the order of sums may differ.
    np.testing.assert_allclose(history.loss, expected_history.loss, rtol=1e-12)
    for name, value in found.items():
        assert type(value) is type(velocity[name]) is type(lib.asarray(X))
        np.testing.assert_allclose(lib.to_numpy(value), expected[name], rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", MODELS)
def test_what_the_caller_passes_is_not_changed(lib, name):
    model, make = MODELS[name]
    X, y = make_data()
    weights = np.linspace(1, 2, N)
    velocity = {name: 0.1 * np.ones_like(value) for name, value in make().items()}
    given = {
        "params": {name: lib.asarray(value) for name, value in make().items()},
        "velocity": {name: lib.asarray(value) for name, value in velocity.items()},
        "data": {"X": lib.asarray(X), "y": lib.asarray(y), "weights": lib.asarray(weights)},
    }
    found, moved, _ = run_sgd(
        given["params"],
        given["data"]["X"],
        given["data"]["y"],
        model,
        velocity=given["velocity"],
        sample_weight=given["data"]["weights"],
    )
    before = {
        "params": make(),
        "velocity": velocity,
        "data": {"X": X, "y": y, "weights": weights},
    }
    for group, arrays in before.items():
        for name, value in arrays.items():
            np.testing.assert_array_equal(lib.to_numpy(given[group][name]), value)
    for name, value in found.items():  # and yet something was learnt
        assert not np.array_equal(lib.to_numpy(value), before["params"][name])
        assert not np.array_equal(lib.to_numpy(moved[name]), velocity[name])


# --------------------------------------------------------------------------- sample weights


def test_the_scale_of_sample_weights_does_not_matter():
    X, y = make_data()
    weights = np.random.default_rng(2).random(N) + 0.1
    small, _, small_history = run_sgd(make_params(), X, y, sample_weight=weights)
    large, _, large_history = run_sgd(make_params(), X, y, sample_weight=1000 * weights)
    # 1000 is not a power of two, so the normalised weights differ by a rounding.
    np.testing.assert_allclose(small_history.loss, large_history.loss, rtol=1e-12)
    np.testing.assert_allclose(small["W"], large["W"], rtol=0, atol=1e-13)


def test_equal_sample_weights_are_no_sample_weights():
    X, y = make_data()
    plain, _, plain_history = run_sgd(make_params(), X, y)
    equal, _, equal_history = run_sgd(make_params(), X, y, sample_weight=np.full(N, 3.0))
    np.testing.assert_allclose(equal_history.loss, plain_history.loss, rtol=1e-12)
    np.testing.assert_allclose(equal["W"], plain["W"], rtol=0, atol=1e-13)


def test_mini_batches_weigh_a_sample_by_its_weight_over_the_mean_weight():
    X, y = make_data()
    weights = np.random.default_rng(2).random(N)
    _, _, history = run_sgd(make_params(), X, y, sample_weight=weights, epochs=1)
    batch = np.random.default_rng(7).permutation(N)[:BATCH]
    params = make_params()
    expected, _, _ = written_out_softmax(
        params["W"], params["b"], X[batch], y[batch], 0.01, weights[batch] / weights.mean() / BATCH
    )
    assert history.loss[0] == pytest.approx(expected, rel=1e-12)


def train_by(solver, X, y, sample_weight=None):
    if solver == "sgd":
        return run_sgd(make_params(), X, y, batch_size=10_000, sample_weight=sample_weight)[0]
    return minimize_lbfgs(
        SOFTMAX,
        make_params(),
        X,
        y,
        reg=0.01,
        max_iter=200,
        tol=1e-9,
        sample_weight=sample_weight,
    )[0]


@pytest.mark.parametrize("solver", ["sgd", "lbfgs"])
def test_integer_sample_weights_equal_repeated_samples_in_full_batches(solver):
    X, y = make_data()
    counts = np.random.default_rng(3).integers(0, 4, size=N)
    weighted = train_by(solver, X, y, counts)
    repeated = train_by(solver, np.repeat(X, counts, axis=0), np.repeat(y, counts))
    plain = train_by(solver, X, y)
    # SGD: rounding. L-BFGS: both stop within about sqrt(4 eps) of the same optimum.
    atol = 1e-12 if solver == "sgd" else 1e-6
    for name in weighted:
        np.testing.assert_allclose(weighted[name], repeated[name], rtol=0, atol=atol)
    assert np.abs(weighted["W"] - plain["W"]).max() > 1e-2


# -------------------------------------------------------------- callbacks and augmentation


def test_on_epoch_sees_each_epoch_and_can_stop():
    X, y = make_data()
    lengths = []

    def stop_after_two(params, history):
        assert set(params) == {"W", "b"}
        lengths.append(len(history.loss))
        return len(lengths) == 2

    _, _, history = run_sgd(make_params(), X, y, epochs=9, on_epoch=stop_after_two)
    assert lengths == [5, 10]
    assert len(history.loss) == 10


def test_the_augmented_batch_is_what_is_trained_on():
    X, y = make_data()
    generators = []

    def to_zero(X_batch, rng):
        generators.append(rng)
        return 0 * X_batch

    rng = np.random.default_rng(7)
    found, _, history = run_sgd(
        {"W": np.zeros((D, C)), "b": np.zeros(C)}, X, y, augment=to_zero, rng=rng
    )
    assert len(generators) == len(history.loss) == 15
    assert all(generator is rng for generator in generators)
    np.testing.assert_array_equal(found["W"], np.zeros((D, C)))
    assert np.abs(found["b"]).max() > 0.01


# --------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize("total", [1, 2, 3, 7, 10, 100, 1001])
@pytest.mark.parametrize("warmup", [0.0, 0.2, 0.5, 1.0])
def test_one_cycle_rises_then_falls_and_stays_within_0_and_1(total, warmup):
    factors = np.array([one_cycle(step, total, warmup) for step in range(total)])
    assert np.all(factors > 0)  # a factor of 0 would waste the step
    assert np.all(factors <= 1)
    peak = int(factors.argmax())
    assert np.all(np.diff(factors[: peak + 1]) >= 0)
    assert np.all(np.diff(factors[peak:]) <= 0)
    assert abs(peak - warmup * total) <= 1.0


@pytest.mark.parametrize("warmup", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("total", [10, 100, 1000])
def test_one_cycle_has_the_area_of_its_triangle(total, warmup):
    area = sum(one_cycle(step, total, warmup) for step in range(total))
    # Two straight lines between 0 and 1: half the steps, but for the sampling of the rise.
    assert abs(area - total / 2) <= 1.0


def test_one_cycle_is_linear_on_both_sides():
    factors = [one_cycle(step, 100, 0.2) for step in range(100)]
    np.testing.assert_allclose(factors[:20], np.arange(1, 21) / 20, rtol=1e-12)
    np.testing.assert_allclose(factors[20:], (1 - (np.arange(20, 100) + 0.5) / 100) / 0.8)


def test_exponential_schedule_decays_once_an_epoch():
    X, y = make_data()
    classifier = SoftmaxClassifier(
        schedule="exponential",
        learning_rate=0.1,
        learning_rate_decay=0.5,
        batch_size=BATCH,
        max_iter=3,
        random_state=0,
    ).fit(X, y)
    assert classifier.history_.learning_rate == [0.1] * 5 + [0.05] * 5 + [0.025] * 5


def test_one_cycle_schedule_spans_all_steps_of_all_epochs():
    X, y = make_data()
    classifier = SoftmaxClassifier(
        schedule="one_cycle", learning_rate=0.1, batch_size=BATCH, max_iter=4, random_state=0
    ).fit(X, y)
    expected = [0.1 * one_cycle(step, 20) for step in range(20)]
    assert classifier.history_.learning_rate == expected


# -------------------------------------------------------------------------------- divergence


@pytest.mark.essential_cases(8)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", MODELS)
def test_diverging_names_the_learning_rate_and_the_remedy(lib, name, dtype):
    model, make = MODELS[name]
    X, y = make_data()
    params = {name: lib.asarray(value.astype(dtype)) for name, value in make().items()}
    with pytest.raises(DivergedError) as caught:
        run_sgd(
            params,
            lib.asarray(X.astype(dtype)),
            lib.asarray(y),
            model,
            rate=lambda _: 12345.0,
            reg=1e3,
            epochs=60,
        )
    message = str(caught.value)
    assert "smaller learning_rate (it was 12345)" in message
    assert "Standardized" in message
    assert "nan" in message or "inf" in message


def test_a_loss_that_is_infinite_for_one_batch_only_is_reported():
    X, y = make_data()
    steps = []

    def objective(params, X_batch, y_batch, reg, weights, **_):
        steps.append(len(steps))
        return np.float64(np.inf if len(steps) == 2 else 1.0), {"w": np.zeros(1)}

    with pytest.raises(DivergedError, match="inf"):
        run_sgd({"w": np.zeros(1)}, X, y, Made(objective), epochs=1)


def test_lbfgs_reports_a_loss_that_is_not_finite():
    X, y = make_data()

    def objective(params, X, y, reg, weights, **_):
        return np.float64(np.nan), {"w": np.zeros(1)}

    with pytest.raises(DivergedError, match="smaller learning_rate, a smaller reg"):
        minimize_lbfgs(Made(objective), {"w": np.zeros(1)}, X, y, reg=0.0, max_iter=5, tol=1e-6)


# ------------------------------------------------------------------------------------ L-BFGS


def run_lbfgs(X, y, params=None, **options):
    options = {"reg": 0.01, "max_iter": 500, "tol": 1e-8} | options
    params = make_params() if params is None else params
    return minimize_lbfgs(SOFTMAX, params, X, y, **options)


def test_lbfgs_reaches_the_optimum_of_an_independent_objective(lib):
    X, y = make_data()
    given = {name: lib.asarray(value) for name, value in make_params().items()}
    found, history, _ = run_lbfgs(lib.asarray(X), lib.asarray(y), given)

    def flat_objective(flat):
        loss, dW, db = written_out_softmax(flat[: D * C].reshape(D, C), flat[D * C :], X, y, 0.01)
        return loss, np.concatenate([dW.ravel(), db])

    best = minimize(flat_objective, np.zeros(D * C + C), jac=True, method="BFGS", tol=1e-9)
    # The loss is flat at the optimum: its error is the square of that of the parameters.
    assert history.loss[-1] == pytest.approx(best.fun, abs=1e-10)
    np.testing.assert_allclose(
        lib.to_numpy(found["W"]), best.x[: D * C].reshape(D, C), rtol=0, atol=1e-5
    )
    for name, value in make_params().items():  # the start is not changed
        np.testing.assert_array_equal(lib.to_numpy(given[name]), value)


def test_lbfgs_keeps_the_dtype_of_the_parameters(lib):
    X, y = make_data()
    params = {name: lib.asarray(v.astype(np.float32)) for name, v in make_params().items()}
    found, history, _ = run_lbfgs(lib.asarray(X.astype(np.float32)), lib.asarray(y), params)
    assert all(value.dtype == lib.xp.float32 for value in found.values())
    _, wide_history, _ = run_lbfgs(X, y)
    assert history.loss[-1] == pytest.approx(wide_history.loss[-1], rel=1e-5)  # float32


def test_lbfgs_history_decreases_and_has_one_loss_an_iteration_and_one_at_the_end():
    X, y = make_data()
    found, history, n_iter = run_lbfgs(X, y)
    assert len(history.loss) == n_iter + 1
    assert 3 < n_iter < 500
    assert np.all(np.diff(history.loss) <= 0)
    final, _, _ = written_out_softmax(found["W"], found["b"], X, y, 0.01)
    assert history.loss[-1] == pytest.approx(final, rel=1e-12)
    assert history.learning_rate == []


def test_lbfgs_stops_at_max_iter():
    X, y = make_data()
    _, history, n_iter = run_lbfgs(X, y, max_iter=2)
    assert n_iter == 2
    assert len(history.loss) == 3


def test_lbfgs_stops_at_a_small_gradient():
    X, y = make_data()
    found, _, coarse_iterations = run_lbfgs(X, y, tol=1e-2)
    _, dW, db = written_out_softmax(found["W"], found["b"], X, y, 0.01)
    assert max(np.abs(dW).max(), np.abs(db).max()) <= 1e-2
    _, _, fine_iterations = run_lbfgs(X, y, tol=1e-8)
    assert coarse_iterations < fine_iterations


def test_lbfgs_on_iteration_sees_the_parameters_and_can_stop():
    X, y = make_data()
    seen = []

    def stop_after_two(params, history):
        loss, _, _ = written_out_softmax(params["W"], params["b"], X, y, 0.01)
        assert history.loss[-1] == pytest.approx(loss, rel=1e-12)
        seen.append(params)
        return len(seen) == 2

    found, history, n_iter = run_lbfgs(X, y, on_iteration=stop_after_two)
    assert n_iter == len(seen) == 2
    assert isinstance(history, History)
    np.testing.assert_array_equal(found["W"], seen[-1]["W"])


def test_lbfgs_refuses_a_loss_with_kinks():
    X, y = make_data()
    with pytest.raises(ValueError, match="the loss of 'svm' does not have: use SGD"):
        minimize_lbfgs(SVM, make_params(), X, y, reg=0.01, max_iter=5, tol=1e-6)


def test_lbfgs_works_where_the_parameters_are(lib):
    X, y = make_data()
    params = to_device(make_params(), like=lib.asarray(X))
    found, _, _ = run_lbfgs(lib.asarray(X), lib.asarray(y), params, max_iter=3)
    expected, _, _ = run_lbfgs(X, y, max_iter=3)
    assert type(found["W"]) is type(lib.asarray(X))
    np.testing.assert_allclose(lib.to_numpy(found["W"]), expected["W"], rtol=0, atol=1e-10)
