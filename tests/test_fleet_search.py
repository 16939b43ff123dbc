"""FleetSearchCV finds what GridSearchCV finds, in fewer passes."""

import inspect
import warnings

import numpy as np
import pytest
from sklearn.base import clone, is_classifier
from sklearn.exceptions import FitFailedWarning
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    RandomizedSearchCV,
    StratifiedKFold,
)
from sklearn.neighbors import KNeighborsClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks
from test_estimators import KINDS, SGD_KINDS, make_data, make_pixels

import gpuclf
from gpuclf import FleetSearchCV, SoftmaxClassifier, Standardized, Streamed
from gpuclf.estimators import gradient_classifier
from gpuclf.estimators.fleet_fitting import fit_together
from gpuclf.estimators.fleet_tasks import FleetTask
from gpuclf.training import DivergedError

GRID = {
    "learning_rate": [1e-4, 3e-3, 3e-2],
    "reg": [0.0, 1e-2, 1.0],
    "schedule": ["one_cycle", "exponential"],
}
GRID_POINT = {"learning_rate": 3e-3, "reg": 1e-2, "schedule": "one_cycle"}
SMALL = {
    "learning_rate": [1e-4, 3e-2],
    "reg": [1e-2, 1.0],
    "schedule": ["one_cycle", "exponential"],
}
MIXED = [
    {"learning_rate": [1e-3, 1e-2], "batch_size": [10, 30], "momentum": [0.0, 0.9]},
    {"max_iter": [2, 4], "standardize": [True, False], "nesterov": [False]},
]


# scikit-learn's own checks that need pandas or polars skip themselves with a SkipTestWarning.
@pytest.mark.essential_cases(6)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.FitFailedWarning")
@pytest.mark.filterwarnings("ignore:scoring failed for")
@pytest.mark.filterwarnings("ignore:One or more of the test scores are non-finite")
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # within check_cv
@parametrize_with_checks(
    [FleetSearchCV(SoftmaxClassifier(batch_size=200, random_state=0), {"reg": [1e-3, 1e-2]}, cv=2)]
)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def accuracy_of_predictions(model, X, y, sample_weight=None):
    return model.score(X, y, sample_weight)


@pytest.fixture
def fleets(monkeypatch):
    """Numbers of the models that are trained together."""
    sizes, train_sgd = [], gradient_classifier.train_sgd

    def counted(model, members, *args, **options):
        if len(members) > 1:
            sizes.append(len(members))
        return train_sgd(model, members, *args, **options)

    monkeypatch.setattr(gradient_classifier, "train_sgd", counted)
    return sizes


def scores_of(search):
    return {key: value for key, value in search.cv_results_.items() if key.endswith("_score")}


def assert_same_search(found, expected, atol=1e-12):
    times = {"mean_fit_time", "std_fit_time", "mean_score_time", "std_score_time"}
    assert found.cv_results_.keys() == expected.cv_results_.keys()
    assert found.cv_results_["params"] == expected.cv_results_["params"]
    for key, value in expected.cv_results_.items():
        ours = found.cv_results_[key]
        if key in times:
            assert ours.shape == value.shape
            assert np.all(ours >= 0)
        elif key.startswith("param_"):
            np.testing.assert_array_equal(ours.mask, value.mask)
            assert ours.compressed().tolist() == value.compressed().tolist()
        elif key != "params":
            np.testing.assert_allclose(ours, value, rtol=0, atol=atol, err_msg=key)
    assert found.best_params_ == expected.best_params_
    assert found.best_index_ == expected.best_index_
    assert found.best_score_ == pytest.approx(expected.best_score_)
    assert found.n_splits_ == expected.n_splits_


@pytest.mark.essential_cases(2)
@pytest.mark.parametrize(
    ("make", "grid"), [(make_data, SMALL), (make_pixels, MIXED)], ids=["grid", "mixed"]
)
@pytest.mark.parametrize("kind", SGD_KINDS)
def test_finds_what_grid_search_finds(kind, grid, make):
    X, y = make(n=60)
    y = np.array(["cat", "dog", "bird"])[y]
    options = {"cv": 2, "return_train_score": True}
    found = FleetSearchCV(KINDS[kind](), grid, **options).fit(X, y)
    expected = GridSearchCV(KINDS[kind](), grid, **options).fit(X, y)
    assert_same_search(found, expected)
    assert len(set(found.cv_results_["mean_test_score"])) > 1  # there is something to choose
    for name, value in expected.best_estimator_.params_.items():
        np.testing.assert_array_equal(found.best_estimator_.params_[name], value)
    np.testing.assert_array_equal(found.predict(X), expected.predict(X))
    assert found.score(X, y) == expected.score(X, y)
    assert found.classes_.tolist() == ["bird", "cat", "dog"]


@pytest.mark.essential_cases(1)
@pytest.mark.parametrize("scoring", ["accuracy", "f1_macro", "neg_log_loss"])
@pytest.mark.parametrize("cv", [KFold(4, shuffle=True, random_state=3), GroupKFold(3)])
def test_splitters_and_scorers(cv, scoring):
    X, y = make_data()
    groups = np.arange(len(y)) // 3 % 7 if isinstance(cv, GroupKFold) else None
    options = {"cv": cv, "scoring": scoring}
    found = FleetSearchCV(KINDS["softmax"](), SMALL, **options).fit(X, y, groups=groups)
    expected = GridSearchCV(KINDS["softmax"](), SMALL, **options).fit(X, y, groups=groups)
    assert_same_search(found, expected, atol=1e-9)


def test_distributions_are_drawn_as_scikit_learn_draws_them():
    X, y = make_data()
    given = {"learning_rate": [1e-3, 1e-2, 1e-1, 0.2], "reg": [0.0, 0.1, 1.0]}
    options = {"n_iter": 5, "cv": 3, "random_state": 4}
    found = FleetSearchCV(KINDS["svm"](), param_distributions=given, **options).fit(X, y)
    expected = RandomizedSearchCV(KINDS["svm"](), given, **options).fit(X, y)
    assert_same_search(found, expected)


def test_sample_weights_train_and_score():
    X, y = make_data()
    weights = np.random.default_rng(0).integers(0, 3, len(y)).astype(float)
    found = FleetSearchCV(KINDS["softmax"](), GRID, cv=3).fit(X, y, sample_weight=weights)
    expected = [
        clone(KINDS["softmax"](**GRID_POINT))
        .fit(X[train], y[train], weights[train])
        .score(X[test], y[test], weights[test])
        for train, test in StratifiedKFold(3).split(X, y)
    ]
    ours = [found.cv_results_[f"split{fold}_test_score"][8] for fold in range(3)]
    assert found.cv_results_["params"][8] == GRID_POINT
    assert ours == pytest.approx(expected, abs=1e-12)
    best = KINDS["softmax"](**found.best_params_).fit(X, y, weights)
    np.testing.assert_array_equal(found.best_estimator_.params_["W"], best.params_["W"])
    assert (best.params_["W"] != clone(best).fit(X, y).params_["W"]).any()
    one_by_one = FleetSearchCV(KINDS["softmax"](), GRID, cv=3, scoring=accuracy_of_predictions)
    assert_same_search(one_by_one.fit(X, y, sample_weight=weights), found)


def test_dropout_and_augmentation_are_those_of_the_estimator_alone():
    X, y = make_pixels()

    def augment(batch, rng):
        return batch.with_samples(batch.X[:, rng.permutation(batch.shape[1])])

    net = KINDS["two-layer"](dropout=0.4, augment=augment)
    grid = {"learning_rate": [1e-3, 1e-2, 5e-2], "hidden_size": [4, 8]}
    assert_same_search(
        FleetSearchCV(net, grid, cv=3).fit(X, y), GridSearchCV(net, grid, cv=3).fit(X, y)
    )


def test_what_shares_mini_batches_is_one_fleet_a_fold(fleets):
    X, y = make_data()
    FleetSearchCV(KINDS["softmax"](), GRID, cv=3, refit=False).fit(X, y)
    assert fleets == [18] * 3


def test_what_does_not_is_grouped(fleets):
    X, y = make_data()
    FleetSearchCV(KINDS["softmax"](), MIXED, cv=2, refit=False).fit(X, y)
    assert fleets == [4, 4] * 2  # and four models of their own
    fleets.clear()
    solvers = {"solver": ["sgd", "lbfgs"], "reg": [1e-3, 1e-2, 1e-1]}
    search = FleetSearchCV(KINDS["softmax"](tol=0.5), solvers, cv=2).fit(X, y)
    assert fleets == [3] * 2
    assert_same_search(search, GridSearchCV(KINDS["softmax"](tol=0.5), solvers, cv=2).fit(X, y))


def test_a_generator_as_seed_does_not_split_the_fleet(fleets):
    X, y = make_data()
    softmax = KINDS["softmax"](random_state=np.random.RandomState(3))
    found = FleetSearchCV(clone(softmax), GRID, cv=2).fit(X, y)
    assert fleets == [18] * 2
    assert_same_search(found, GridSearchCV(clone(softmax), GRID, cv=2).fit(X, y))


def test_a_memory_budget_splits_the_fleet(fleets):
    X, y = make_data()
    whole = FleetSearchCV(KINDS["softmax"](), GRID, cv=2).fit(X, y)
    one = 8 * (8 * (6 * 3 + 3) + 6 * 20 * 3)  # bytes: parameters, and the rows of a mini-batch
    fleets.clear()
    split = FleetSearchCV(KINDS["softmax"](), GRID, cv=2, memory_budget=5 * one).fit(X, y)
    assert fleets == [5, 5, 5, 3] * 2
    assert_same_search(split, whole)
    FleetSearchCV(KINDS["softmax"](), GRID, cv=2, memory_budget=1).fit(X, y)


@pytest.mark.filterwarnings("ignore:One or more of the test scores are non-finite")
@pytest.mark.parametrize("kind", SGD_KINDS)
def test_candidates_that_diverge_or_are_impossible_are_reported_and_harm_nobody(kind):
    X, y = make_data()
    grid = {"learning_rate": [1e-3, 1e300, 1e-2, -1.0], "reg": [0.0, 1e-3]}
    with pytest.warns(FitFailedWarning, match="12 of 24 fits failed, the first: the loss became"):
        found = FleetSearchCV(KINDS[kind](), grid, cv=3).fit(X, y)
    with pytest.warns(FitFailedWarning):
        expected = GridSearchCV(KINDS[kind](), grid, cv=3).fit(X, y)
    assert_same_search(found, expected)
    with pytest.raises((DivergedError, ValueError), match="the loss became"):
        FleetSearchCV(KINDS[kind](), grid, cv=3, error_score="raise").fit(X, y)
    with pytest.raises(ValueError, match="3 of 3 fits failed, the first: reg must be"):
        FleetSearchCV(KINDS[kind](), {"reg": [-1.0]}, cv=3).fit(X, y)


@pytest.mark.filterwarnings("ignore:One or more of the test scores are non-finite")
def test_a_model_that_blows_up_in_its_last_step_does_not_win():
    X, y = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 3
    softmax = gpuclf.SoftmaxClassifier(
        max_iter=1, batch_size=100, schedule="exponential", precision="float32", random_state=0
    )
    with pytest.warns(FitFailedWarning, match="2 of 6 fits failed, the first: the parameters bec"):
        found = FleetSearchCV(softmax, {"learning_rate": [1e-4, 1e-2, 1e39]}, cv=2).fit(X, y)
    assert found.best_params_["learning_rate"] < 1
    with pytest.raises(DivergedError, match="the parameters became"):
        softmax.set_params(learning_rate=1e39).fit(X, y)


@pytest.mark.essential_cases(3)
@pytest.mark.parametrize("form", ["array", "standardized"])
@pytest.mark.parametrize("kind", SGD_KINDS)
def test_searches_where_the_samples_are(lib, kind, form):
    X, y = make_pixels()
    expected = FleetSearchCV(KINDS[kind](), {"learning_rate": [1e-3, 1e-2]}, cv=2)
    given = lib.asarray(X), lib.asarray(y)
    if form == "standardized":
        X = Standardized.fit(X)
        given = Standardized.fit(given[0]), given[1]
    found = clone(expected).fit(*given)
    assert found.best_params_ == expected.fit(X, y).best_params_
    for name, scores in scores_of(expected).items():
        np.testing.assert_allclose(found.cv_results_[name], scores, atol=0.03, err_msg=name)
    for value in found.best_estimator_.params_.values():
        assert type(value) is type(given[1])


@pytest.mark.essential_cases(2)
@pytest.mark.parametrize("standardized", [True, False])
def test_streamed_folds_stay_on_the_host(lib, standardized, monkeypatch):
    X, y = make_pixels()
    taken, take = [], Streamed.take

    def counted(self, rows):
        taken.append(len(rows))
        return take(self, rows)

    monkeypatch.setattr(Streamed, "take", counted)
    streamed = Streamed(X, like=lib.asarray(y))
    streamed = Standardized.fit(streamed) if standardized else streamed
    search = FleetSearchCV(KINDS["softmax"](), {"learning_rate": [1e-3, 1e-2, 3e-2]}, cv=2)
    found = clone(search).fit(streamed, lib.asarray(y))
    assert max(taken) == 20  # mini-batches
    expected = search.fit(Standardized.fit(X) if standardized else X, y)
    assert found.best_params_ == expected.best_params_


def test_lists_and_data_frames_are_samples_too():
    X, y = make_data()
    of_lists = FleetSearchCV(KINDS["svm"](), GRID, cv=2).fit(X.tolist(), y.tolist())
    assert_same_search(of_lists, FleetSearchCV(KINDS["svm"](), GRID, cv=2).fit(X, y))


def test_refit_may_choose_or_be_left_out():
    X, y = make_data()
    search = FleetSearchCV(KINDS["svm"](), GRID, cv=2, refit=lambda results: 7).fit(X, y)
    assert search.best_params_ == search.cv_results_["params"][7]
    assert search.best_estimator_.get_params()["reg"] == search.best_params_["reg"]
    assert search.refit_time_ > 0
    unfitted = FleetSearchCV(KINDS["svm"](), GRID, cv=2, refit=False).fit(X, y)
    assert not hasattr(unfitted, "best_estimator_")
    assert unfitted.best_score_ > 0


def test_is_a_classifier_of_scikit_learn():
    search = FleetSearchCV(KINDS["softmax"](), GRID, cv=2)
    assert is_classifier(search)
    assert clone(search).get_params()["cv"] == 2
    assert gpuclf.FleetSearchCV is FleetSearchCV
    names = inspect.signature(GridSearchCV).parameters.keys() - {"n_jobs", "pre_dispatch"}
    assert names <= inspect.signature(FleetSearchCV).parameters.keys()


def test_progress_is_printed_if_wanted(capsys):
    X, y = make_data()
    FleetSearchCV(KINDS["softmax"](), GRID, cv=2, verbose=1).fit(X, y)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" in ")[0] for line in lines] == [
        "fold 1 of 2: 18 models",
        "fold 2 of 2: 18 models",
    ]


def test_errors_say_what_to_do():
    X, y = make_data()
    with pytest.raises(TypeError, match="together, not KNeighborsClassifier: use"):
        FleetSearchCV(KNeighborsClassifier(), {"n_neighbors": [1]}).fit(X, y)
    with pytest.raises(ValueError, match="either param_grid or param_distributions"):
        FleetSearchCV(KINDS["svm"]()).fit(X, y)
    with pytest.raises(ValueError, match="one metric"):
        FleetSearchCV(KINDS["svm"](), GRID, scoring=["accuracy", "f1_macro"]).fit(X, y)
    with pytest.raises(ValueError, match="Invalid parameter 'nonsense'"):
        FleetSearchCV(KINDS["svm"](), {"nonsense": [1]}).fit(X, y)


@pytest.mark.parametrize("size", [0, -1, "many"])
def test_a_net_that_cannot_be_is_reported_as_a_failed_candidate(size):
    X, y = make_data()
    grid = {"hidden_size": [size], "learning_rate": [1e-3, 1e-2]}
    with pytest.raises(ValueError, match="4 of 4 fits failed, the first: hidden_size must be"):
        FleetSearchCV(KINDS["two-layer"](), grid, cv=2).fit(X, y)


@pytest.mark.essential_cases(1)
@pytest.mark.filterwarnings("ignore:One or more of the (test|train) scores are non-finite")
@pytest.mark.parametrize("scoring", ["accuracy", "own"])
def test_a_score_that_fails_ends_no_search(scoring, monkeypatch):
    X, y = make_data(n=30)
    options = {"cv": 2, "scoring": scoring, "return_train_score": True}
    if scoring == "own":

        def picky(model, X, y):
            if model.reg == 1.0:
                raise RuntimeError("too strict")
            return model.score(X, y)

        options["scoring"] = picky
    else:  # what the whole fleet is scored with

        def fails(self, *_):
            raise RuntimeError("no memory")

        monkeypatch.setattr(FleetTask, "_accuracies", fails)
    search = FleetSearchCV(KINDS["softmax"](), SMALL, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        expected = GridSearchCV(KINDS["softmax"](), SMALL, **options).fit(X, y)
    if scoring == "accuracy":
        assert_same_search(search.fit(X, y), expected)
        return
    with pytest.warns(UserWarning, match="scoring failed for 8 of 16 fits, the first: RuntimeErr"):
        assert_same_search(search.fit(X, y), expected)
    with pytest.warns(UserWarning, match="their score is error_score=-1"):
        found = search.set_params(error_score=-1, factor=2).fit(X, y)
    assert min(found.cv_results_["mean_test_score"]) == -1
    assert found.best_params_["reg"] != 1.0
    with pytest.raises(RuntimeError, match="too strict"):
        search.set_params(error_score="raise").fit(X, y)


@pytest.mark.slow
def test_the_score_of_a_subclass_is_used():
    class Reversed(gpuclf.SoftmaxClassifier):
        def score(self, X, y, sample_weight=None):
            return -super().score(X, y, sample_weight)

    X, y = make_data(n=30)
    model = Reversed(max_iter=2, random_state=0)
    found = FleetSearchCV(model, SMALL, cv=2).fit(X, y)
    assert_same_search(found, GridSearchCV(model, SMALL, cv=2).fit(X, y))
    assert found.best_score_ < 0


@pytest.mark.filterwarnings("ignore:One or more of the test scores are non-finite")
def test_any_error_of_a_fit_is_that_fit_s_alone():
    def breaks(batch, rng):
        raise RuntimeError("no such image")

    X, y = make_data(n=30)
    grid = {"augment": [None, breaks], "reg": [0.0, 0.1]}
    with pytest.warns(FitFailedWarning, match="4 of 8 fits failed, the first: no such image"):
        found = FleetSearchCV(KINDS["softmax"](), grid, cv=2).fit(X, y)
    assert found.best_params_["augment"] is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sample_weight": np.ones(29)}, "X has 30 samples, but sample_weight has length 29"),
        ({"y": np.zeros(31, dtype=int)}, "X has 30 samples, but y has length 31"),
        ({"groups": [1, 2]}, "but groups has length 2"),
        ({"y": None}, "requires y to be passed, but the target y is None"),
    ],
)
def test_lengths_must_be_the_same(wrong, message):
    X, y = make_data(n=30)
    search = FleetSearchCV(KINDS["softmax"](), SMALL, cv=2)
    for samples in (X, X.tolist(), Standardized.fit(X)):
        with pytest.raises(ValueError, match=message):
            search.fit(samples, **{"y": y} | wrong)


@pytest.mark.essential_cases(2)
@pytest.mark.parametrize("budget", [0, -1e9, "1 GiB", None, np.nan, np.inf, True])
def test_a_memory_budget_is_a_number_of_bytes(budget):
    X, y = make_data(n=30)
    search = FleetSearchCV(KINDS["softmax"](), {"reg": [0.0, 0.1]}, cv=2, memory_budget=budget)
    with pytest.raises(ValueError, match=f"memory_budget must be .* such as 1e9, got {budget!r}"):
        search.fit(X, y)
    assert search.set_params(memory_budget=1e9).fit(X, y).n_splits_ == 2


# --------------------------------------------------------------------------- fit_together


@pytest.mark.essential_cases(1)
@pytest.mark.parametrize("kind", SGD_KINDS)
def test_models_fitted_together_are_as_if_fitted_alone(kind):
    X, y = make_pixels()
    rates = [1e-3, 1e-2, 3e-2]
    models, alone = ([KINDS[kind](learning_rate=rate) for rate in rates] for _ in range(2))
    assert fit_together(models, X, y) == [None] * 3
    for model, other in zip(models, alone, strict=True):
        other.fit(X, y)
        assert vars(model).keys() == vars(other).keys()
        for name, value in other.params_.items():
            np.testing.assert_allclose(model.params_[name], value, rtol=0, atol=1e-5)
        assert model.n_iter_ == other.n_iter_
        assert model.history_.learning_rate == pytest.approx(other.history_.learning_rate)
        model.partial_fit(X, y)  # and goes on in the same way
        other.partial_fit(X, y)
        for name, value in other.params_.items():
            np.testing.assert_allclose(model.params_[name], value, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (KINDS["svm"](), "must be of one kind, got SoftmaxClassifier, LinearSVMClassifier"),
        (KINDS["softmax"](random_state=5), "must have the same random_state, got 0 and 5"),
        (KINDS["softmax"](max_iter=9), "the same max_iter, got [0-9]+ and 9: fit them one by one"),
        (KINDS["softmax"](batch_size=9), "the same batch_size"),
        (KINDS["softmax"](solver="lbfgs"), "the same solver, got 'sgd' and 'lbfgs'"),
    ],
)
def test_models_that_differ_are_not_fitted_together(other, message):
    X, y = make_data(n=30)
    with pytest.raises(ValueError, match=message):
        fit_together([KINDS["softmax"](), other], X, y)


def test_copies_that_cannot_be_compared_are_fitted_together():
    class Augment:
        turn = staticmethod(lambda batch: batch)  # cannot be pickled

        def __call__(self, batch, rng):
            return batch

    X, y = make_data(n=30)
    softmax = KINDS["softmax"](augment=Augment())
    assert FleetSearchCV(softmax, SMALL, cv=2, error_score="raise").fit(X, y).n_splits_ == 2


def test_a_fit_that_is_impossible_for_all_says_so_for_each():
    X, y = make_data()
    X[3, 2] = np.nan
    errors = fit_together([KINDS["svm"](), KINDS["svm"]()], X, y)
    assert ["NaN" in str(error) for error in errors] == [True, True]


@pytest.mark.slow
def test_nothing_warns_on_the_way():
    X, y = make_data()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FleetSearchCV(KINDS["svm"](), GRID, cv=2).fit(X, y)
