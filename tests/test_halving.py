"""Successive halving drops losers and changes nothing for those that stay."""

import numpy as np
import pytest
from sklearn.exceptions import FitFailedWarning
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import HalvingGridSearchCV, StratifiedKFold
from test_estimators import KINDS, SGD_KINDS, make_data, make_pixels

from gpuclf import FleetSearchCV
from gpuclf.estimators import fleet_search, fleet_tasks
from gpuclf.estimators.fleet_fitting import fit_together

RATES = [1e-4, 1e-3, 3e-3, 1e-2, 2e-2, 5e-2]
GRID = {"learning_rate": RATES, "reg": [0.0, 1e-2, 0.3]}


def by_iteration_and_params(search, names):
    results = search.cv_results_
    rows = zip(results["iter"], results["params"], strict=True)
    places = {(i, *(params[name] for name in names)): n for n, (i, params) in enumerate(rows)}
    return {
        place: [results[f"split{fold}_test_score"][n] for fold in range(search.n_splits_)]
        for place, n in sorted(places.items())
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["softmax", "two-layer"])
def test_finds_what_scikit_learn_s_halving_finds(kind):
    X, y = make_data(n=60)
    # This schedule does not depend on max_iter: three epochs are the first three of nine.
    model = KINDS[kind](schedule="exponential", max_iter=9)
    options = {"factor": 3, "cv": StratifiedKFold(2), "scoring": "neg_log_loss"}
    found = FleetSearchCV(model, GRID, **options).fit(X, y)
    expected = HalvingGridSearchCV(
        model, GRID, resource="max_iter", max_resources=9, return_train_score=False, **options
    ).fit(X, y)
    assert found.n_candidates_ == expected.n_candidates_ == [18, 6, 2]
    assert found.n_resources_ == expected.n_resources_ == [1, 3, 9]
    assert found.n_iterations_ == expected.n_iterations_
    assert found.n_remaining_candidates_ == expected.n_remaining_candidates_
    assert found.cv_results_.keys() == expected.cv_results_.keys() - {"param_max_iter"}
    ours, theirs = (by_iteration_and_params(search, GRID) for search in (found, expected))
    assert ours.keys() == theirs.keys()
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-9)
    best = {name: expected.best_params_[name] for name in GRID}
    assert found.best_params_ == best
    assert found.best_score_ == pytest.approx(expected.best_score_)
    for name, value in expected.best_estimator_.params_.items():
        np.testing.assert_array_equal(found.best_estimator_.params_[name], value)


@pytest.mark.essential_cases(3)
@pytest.mark.parametrize("kind", SGD_KINDS)
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_survivors_are_the_models_trained_alone(kind, precision):
    X, y = make_pixels()
    options = {"precision": precision, "max_iter": 6, "schedule": "one_cycle"}
    options |= {"dropout": 0.3} if kind == "two-layer" else {}
    models = [KINDS[kind](learning_rate=rate, **options) for rate in RATES]
    for epochs, survivors in ((1, models), (2, models[1:5]), (4, models[2:3]), (6, models[2:3])):
        assert fit_together(survivors, X, y, epochs=epochs) == [None] * len(survivors)
        assert {model.n_iter_ for model in survivors} == {epochs}
    assert [model.n_iter_ for model in models] == [1, 2, 6, 2, 2, 1]
    found, alone = models[2], KINDS[kind](learning_rate=RATES[2], **options).fit(X, y)
    rtol = 1e-12 if precision == "float64" else 1e-5
    for _ in range(2):
        for name, value in alone.params_.items():
            scale = np.max(np.abs(value))
            np.testing.assert_allclose(found.params_[name], value, rtol=0, atol=rtol * scale)
        np.testing.assert_allclose(found.loss_history_, alone.loss_history_, rtol=rtol)
        assert found.history_.learning_rate == alone.history_.learning_rate
        found.partial_fit(X, y)  # and goes on in the same way
        alone.partial_fit(X, y)


def test_the_last_round_is_as_without_halving():
    X, y = make_data()
    model = KINDS["softmax"](max_iter=5)
    halved = FleetSearchCV(model, GRID, cv=3, factor=2).fit(X, y)
    assert halved.n_candidates_ == [18, 9, 5]
    assert halved.n_resources_ == [1, 2, 5]
    assert halved.cv_results_["iter"].tolist() == [0] * 18 + [1] * 9 + [2] * 5
    assert halved.cv_results_["n_resources"].tolist() == [1] * 18 + [2] * 9 + [5] * 5
    whole = FleetSearchCV(model, GRID, cv=3).fit(X, y)
    params, means = (whole.cv_results_[name] for name in ("params", "mean_test_score"))
    for row in range(27, 32):
        expected = means[params.index(halved.cv_results_["params"][row])]
        assert halved.cv_results_["mean_test_score"][row] == pytest.approx(expected, abs=1e-12)
    assert halved.best_index_ >= 27  # whatever the scores were before the end


@pytest.mark.essential_cases(3)
@pytest.mark.parametrize(
    ("n_candidates", "options", "candidates", "epochs"),
    [
        (9, {}, [9, 3, 1], [1, 3, 10]),
        (8, {}, [8, 3], [3, 10]),
        (2, {}, [2], [10]),
        (9, {"min_resources": 2}, [9, 3], [3, 10]),
        (9, {"factor": 2}, [9, 5, 3, 2], [1, 2, 5, 10]),
        (9, {"min_resources": 10}, [9], [10]),
    ],
)
def test_rounds(n_candidates, options, candidates, epochs):
    X, y = make_data(n=12)
    search = FleetSearchCV(
        KINDS["softmax"](max_iter=10),
        {"reg": np.geomspace(1e-5, 1, n_candidates).tolist()},
        **({"factor": 3, "cv": 2, "refit": False} | options),
    ).fit(X, y)
    assert (search.n_candidates_, search.n_resources_) == (candidates, epochs)


@pytest.mark.filterwarnings("ignore:One or more of the test scores are non-finite")
def test_candidates_that_fail_leave_first():
    X, y = make_data()
    grid = {"learning_rate": [1e300, 1e-2, -1.0, 1e-3, 1e299, 3e-3, 2e-2, 1e298, 1e297]}
    model = KINDS["softmax"](max_iter=9)
    with pytest.warns(FitFailedWarning, match="10 of 26 fits failed, the first: the loss became"):
        found = FleetSearchCV(model, grid, cv=2, factor=3, error_score=2.0).fit(X, y)
    assert found.n_candidates_ == [9, 3, 1]
    assert found.best_params_["learning_rate"] in (1e-2, 1e-3, 3e-3, 2e-2)
    with pytest.raises(ValueError, match="18 of 18 fits failed"):
        FleetSearchCV(model, {"reg": [-1.0] * 9}, cv=2, factor=3).fit(X, y)


@pytest.mark.filterwarnings("ignore:One or more of the test scores are non-finite")
@pytest.mark.parametrize("error_score", [np.nan, 0.0, 5.0])
def test_the_best_is_of_the_last_round_that_anybody_survived(error_score, monkeypatch):
    X, y = make_data()
    model = KINDS["softmax"](max_iter=4)
    real = fleet_tasks.fit_together

    def all_fail_at_the_end(models, *args, epochs, **options):
        errors = real(models, *args, epochs=epochs, **options)
        return [RuntimeError("late")] * len(models) if epochs == 4 else errors

    monkeypatch.setattr(fleet_tasks, "fit_together", all_fail_at_the_end)
    grid = {"learning_rate": [1e-4, 1e-2, 3e-2, 1e300]}
    search = FleetSearchCV(model, grid, cv=2, factor=2, refit=False, error_score=error_score)
    with pytest.warns(FitFailedWarning, match="late|the loss became"):
        search.fit(X, y)
    assert search.n_resources_[-1] == 4
    assert search.cv_results_["iter"][search.best_index_] == 1
    assert 0 < search.best_score_ <= 1
    ranked = search.cv_results_["mean_test_score"][search.cv_results_["iter"] == 1]
    assert search.best_score_ == max(ranked)


def test_rounds_are_counted_as_in_scikit_learn():
    X, y = make_data(n=12)
    grid = {"reg": np.geomspace(1e-5, 1, 9).tolist()}
    search = FleetSearchCV(KINDS["softmax"](max_iter=30), grid, cv=2, factor=3).fit(X, y)
    assert (search.n_required_iterations_, search.n_possible_iterations_) == (3, 4)
    assert (search.min_resources_, search.max_resources_) == (3, 30)
    search.set_params(min_resources=4).fit(X, y)
    assert (search.n_required_iterations_, search.n_possible_iterations_) == (3, 2)
    search.set_params(factor=None).fit(X, y)
    assert [name for name in fleet_search.OF_HALVING if hasattr(search, name)] == []


def test_who_failed_in_one_fold_does_not_go_on(monkeypatch):
    X, y = make_data()
    real, n_calls = fleet_tasks.fit_together, []

    def fails_once(models, *args, epochs, **options):
        errors = real(models, *args, epochs=epochs, **options)
        n_calls.append(epochs)
        return [RuntimeError("once"), *errors[1:]] if len(n_calls) == 1 else errors

    monkeypatch.setattr(fleet_tasks, "fit_together", fails_once)
    model = KINDS["softmax"](max_iter=4)
    grid = {"learning_rate": [1e-3, 1e-2, 3e-2, 1e-4]}
    search = FleetSearchCV(model, grid, cv=2, factor=2, error_score=9.0)  # above all others
    with pytest.warns(FitFailedWarning, match="the first: once"):
        search.fit(X, y)
    later = np.asarray(search.cv_results_["params"])[search.cv_results_["iter"] > 0]
    assert {"learning_rate": 1e-3} not in later.tolist()
    assert search.best_score_ <= 1


def test_a_search_may_be_split_and_halved():
    X, y = make_data()
    grid = {"learning_rate": RATES, "batch_size": [10, 30]}
    search = FleetSearchCV(KINDS["svm"](max_iter=4), grid, cv=2, factor=2)
    whole = search.fit(X, y).cv_results_["mean_test_score"]
    split = search.set_params(memory_budget=20_000).fit(X, y).cv_results_["mean_test_score"]
    np.testing.assert_allclose(split, whole, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 1}, "factor must be a number above 1, or None, got 1"),
        ({"min_resources": 0}, "min_resources must be at least 1 and at most max_iter=5 epochs"),
        ({"min_resources": 6}, "at most max_iter=5 epochs, got 6"),
        ({"param_grid": {"max_iter": [2, 3]}}, "max_iter cannot be searched"),
        ({"param_grid": {"solver": ["sgd", "lbfgs"]}}, "solver='sgd' only"),
    ],
)
def test_what_cannot_be_halved_is_refused(options, message):
    X, y = make_data()
    with pytest.raises(ValueError, match=message):
        FleetSearchCV(KINDS["softmax"](), **({"param_grid": GRID, "factor": 3} | options)).fit(X, y)
