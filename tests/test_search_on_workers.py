"""FleetSearchCV in joblib's workers finds what it finds here."""

import os
import pickle
import signal
import threading

import joblib
import numpy as np
import opaque_arrays
import pytest
from test_estimators import make_data

from gpuclf import FleetSearchCV, SoftmaxClassifier, Standardized, Streamed
from gpuclf.estimators import fleet_tasks

GRID = {"learning_rate": [1e-3, 3e-2], "reg": [1e-2, 1.0], "batch_size": [10, 30]}


def search(**options):
    options.setdefault("param_grid", GRID)
    model = options.pop("estimator", SoftmaxClassifier(max_iter=4, random_state=0))
    return FleetSearchCV(model, cv=3, return_train_score=True, **options)


def found_by(model, X, y, **fit):
    model.fit(X, y, **fit)
    scores = {k: v for k, v in model.cv_results_.items() if k.endswith("_score")}
    return scores, model.best_params_, model.cv_results_["params"]


def assert_found_the_same(found, expected):
    assert found[1:] == expected[1:]
    assert found[0].keys() == expected[0].keys()
    for name, values in expected[0].items():
        np.testing.assert_array_equal(found[0][name], values)


@pytest.mark.parametrize("factor", [None, 2])
def test_workers_find_what_is_found_here(factor):
    X, y = make_data(n=90)
    expected = found_by(search(factor=factor), X, y)
    with joblib.parallel_config("threading"):
        assert_found_the_same(found_by(search(factor=factor, n_jobs=2), X, y), expected)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [None, 2])
def test_processes_find_what_is_found_here(factor):
    X, y = make_data(n=90)
    options = {"factor": factor, "scoring": lambda model, X, y: model.score(X, y)}
    expected = found_by(search(**options), X, y)
    assert_found_the_same(found_by(search(n_jobs=2, **options), X, y), expected)


def test_a_joblib_context_spreads_a_search_and_one_job_does_not(monkeypatch):
    X, y = make_data(n=60)
    calls = []
    run = fleet_tasks.run_tasks
    monkeypatch.setattr(
        "gpuclf.estimators.fleet_search.run_tasks",
        lambda *args: calls.append(len(args[1])) or run(*args),
    )
    search().fit(X, y)
    search(n_jobs=1).fit(X, y)
    assert not calls
    with joblib.parallel_config("threading", n_jobs=2):
        search().fit(X, y)
        search(n_jobs=1).fit(X, y)
    assert calls == [6]  # three folds, two batch sizes


class Forms:
    """The samples in each form that a search takes."""

    bare = staticmethod(lambda X: X)
    nested = staticmethod(lambda X: X.tolist())
    standardized = staticmethod(lambda X: Standardized(X, 0.5, 2.0))
    streamed = staticmethod(lambda X: Streamed(X, "numpy"))
    both = staticmethod(lambda X: Standardized(Streamed(X, "numpy"), 0.5, 2.0))


@pytest.mark.essential_cases(2)
@pytest.mark.parametrize("form", ["bare", "nested", "standardized", "streamed", "both"])
def test_rows_are_chosen_and_moved_where_the_task_runs(form):
    X, y = make_data(n=60)
    X = getattr(Forms, form)(X)
    weights = np.linspace(0.5, 2.0, len(y))
    expected = found_by(search(), X, y, sample_weight=weights)
    with joblib.parallel_config("threading"):
        spread = search(n_jobs=2, worker_backend="numpy")
        assert_found_the_same(found_by(spread, X, y, sample_weight=weights), expected)


def test_tasks_survive_the_way_to_another_process():
    X, y = make_data(n=40)
    task = fleet_tasks.FleetTask(lambda_free_score, None, np.nan, False, False, "numpy")
    rows = np.arange(30), np.arange(30, 40)
    fleet = [SoftmaxClassifier(max_iter=2, reg=reg, random_state=0) for reg in (0.1, 1.0)]
    sent = pickle.loads(pickle.dumps((task, fleet, rows)))
    outcomes, models = sent[0](sent[1], sent[2], 1, X, y, None)
    assert [outcome["error"] for outcome in outcomes] == [None, None]
    back = pickle.loads(pickle.dumps(models))
    again, _ = task(back, rows, 2, X, y, None)
    alone = SoftmaxClassifier(max_iter=2, reg=0.1, random_state=0).fit(X[:30], y[:30])
    np.testing.assert_allclose(back[0].params_["W"], alone.params_["W"], atol=1e-12)
    assert again[0]["test_scores"] == alone.score(X[30:], y[30:])


def lambda_free_score(model, X, y):
    return model.score(X, y)


class PickyError(Exception):
    """Cannot be read by another process."""

    def __reduce__(self):
        return lambda_free_score, ()  # which wants more


def raises_picky(model, X, y):
    raise PickyError("1 and 2")


def test_an_error_that_no_process_can_read_is_told_by_its_message():
    X, y = make_data(n=40)
    task = fleet_tasks.FleetTask(raises_picky, None, np.nan, False, False, None)
    rows = np.arange(30), np.arange(30, 40)
    outcomes, _ = task([SoftmaxClassifier(max_iter=1)], rows, None, X, y, None)
    assert repr(outcomes[0]["score_error"]) == "RuntimeError('PickyError: 1 and 2')"


# ------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("n_jobs", [0, 1.5, True, "2"])
def test_impossible_numbers_of_jobs_are_refused(n_jobs):
    X, y = make_data(n=30)
    with pytest.raises(ValueError, match=f"n_jobs must be None, a number .* got {n_jobs!r}"):
        search(n_jobs=n_jobs).fit(X, y)
    with pytest.raises(ValueError, match="worker_backend must be None, 'auto', 'numpy' or 'cupy'"):
        search(n_jobs=2, worker_backend="gpu").fit(X, y)


class Unsendable:
    def __init__(self):
        self.lock = threading.Lock()

    def __call__(self, *args):
        return 1.0

    def __deepcopy__(self, memo):
        return self


def test_what_no_other_process_can_have_is_named():
    X, y = make_data(n=30)
    with pytest.raises(TypeError, match=r"scoring cannot be sent .*lock.* or leave n_jobs None"):
        search(n_jobs=2, scoring=Unsendable()).fit(X, y)
    model = SoftmaxClassifier(max_iter=1, augment=Unsendable())
    with pytest.raises(TypeError, match="augment cannot be sent to other processes"):
        search(n_jobs=2, estimator=model).fit(X, y)


def test_arrays_of_a_device_are_refused_with_what_to_do():
    X, y = make_data(n=30)
    there = opaque_arrays.OpaqueArray(X)
    with pytest.raises(TypeError, match=r"pass gpuclf.to_host\(X\); with worker_backend='cupy'"):
        search(n_jobs=2).fit(there, opaque_arrays.OpaqueArray(y))
    with pytest.raises(TypeError, match=r'pass gpuclf.Streamed\(X.host, "numpy"\)'):
        search(n_jobs=2).fit(Streamed(X, like=there), y)


def kills_its_process(model, X, y):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_process_is_an_error_that_names_n_jobs():
    X, y = make_data(n=30)
    with pytest.raises(ChildProcessError, match=r"a worker of n_jobs=2 was .* n_jobs=None"):
        search(n_jobs=2, scoring=kills_its_process).fit(X, y)
    # The next search has workers again.
    search(n_jobs=2, param_grid={"reg": [0.1]}).fit(X, y)
