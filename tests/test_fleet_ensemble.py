"""Members are the classifiers trained alone, and their vote is counted."""

import numpy as np
import pytest
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks
from test_estimators import KINDS, SGD_KINDS, make_pixels

from gpuclf import FleetEnsemble, FleetSearchCV, LinearSVMClassifier, SoftmaxClassifier
from gpuclf.estimators import gradient_classifier
from gpuclf.training import DivergedError

MEMBERS = [{"learning_rate": rate} for rate in (1e-3, 1e-2, 5e-2)] + [{"random_state": 7}]


# scikit-learn's own checks that need pandas or polars skip themselves with a SkipTestWarning.
@pytest.mark.essential_cases(8)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks(
    [
        FleetEnsemble(
            SoftmaxClassifier(batch_size=200, random_state=0), [{"reg": 1e-3}, {"reg": 1e-2}]
        ),
        FleetEnsemble(
            LinearSVMClassifier(batch_size=200, random_state=0), [{"reg": 1e-3}, {"reg": 1e-2}]
        ),
    ]
)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def by_hand(kind, X, y, voting):
    """Count the votes of members trained one by one, sample by sample."""
    models = [KINDS[kind](**params).fit(X, y) for params in MEMBERS]
    labels, winners = models[0].classes_, []
    for i in range(len(X)):
        votes = np.zeros(len(labels))
        for model in models:
            if voting == "soft":
                votes += model.predict_proba(X[i : i + 1])[0] / len(models)
            else:
                votes[labels.tolist().index(model.predict(X[i : i + 1])[0])] += 1
        winners.append(votes)
    return models, np.array(winners)


@pytest.mark.essential_cases(3)
@pytest.mark.parametrize(
    ("kind", "voting"),
    [("softmax", "soft"), ("softmax", "hard"), ("svm", "hard"), ("two-layer", None)],
)
def test_votes_are_counted(lib, kind, voting):
    X, y = make_pixels(n=45)
    y = 2 * y + 1
    X[::3] = 255 - X[::3]  # so that they disagree
    models, votes = by_hand(kind, X, y, voting or "soft")
    ensemble = FleetEnsemble(KINDS[kind](), MEMBERS, voting=voting)
    ensemble.fit(lib.asarray(X), lib.asarray(y))
    predicted = ensemble.predict(lib.asarray(X))
    assert type(predicted) is type(lib.asarray(y))
    np.testing.assert_array_equal(lib.to_numpy(predicted), models[0].classes_[votes.argmax(axis=1)])
    if voting == "hard":
        assert not hasattr(ensemble, "predict_proba")
        assert (np.sort(votes)[:, -1] < len(MEMBERS)).any()
    else:
        found = lib.to_numpy(ensemble.predict_proba(lib.asarray(X)))
        np.testing.assert_allclose(found, votes, atol=1e-5)
    expected = [model.score(X, y) for model in models]
    np.testing.assert_allclose(ensemble.member_scores(lib.asarray(X), lib.asarray(y)), expected)
    wins = np.mean(models[0].classes_[votes.argmax(axis=1)] == y)
    assert ensemble.score(lib.asarray(X), lib.asarray(y)) == wins


def test_members_that_see_the_same_mini_batches_are_trained_together(monkeypatch):
    sizes, train_sgd = [], gradient_classifier.train_sgd
    monkeypatch.setattr(
        gradient_classifier,
        "train_sgd",
        lambda model, members, *args, **options: (
            sizes.append(len(members)) or train_sgd(model, members, *args, **options)
        ),
    )
    X, y = make_pixels(n=30)
    FleetEnsemble(KINDS["softmax"](), MEMBERS).fit(X, y)
    assert sizes == [3, 1]  # the other seed alone


@pytest.mark.parametrize("options", [{}, {"factor": 2}])
def test_the_best_of_a_search(options):
    X, y = make_pixels(n=60)
    grid = {"learning_rate": [1e-4, 1e-3, 1e-2, 1e-1], "reg": [1e-3, 10.0]}
    search = FleetSearchCV(KINDS["svm"](), grid, cv=2, **options).fit(X, y)
    ensemble = FleetEnsemble.from_search(search, 2).fit(X, y)
    scores = search.cv_results_["mean_test_score"].tolist()
    first = len(scores) - search.n_candidates_[-1] if options else 0
    ranked = sorted(range(first, len(scores)), key=lambda n: -scores[n])
    assert ensemble.param_list == [search.cv_results_["params"][n] for n in ranked[:2]]
    assert ensemble.param_list[0] == search.best_params_
    np.testing.assert_allclose(
        ensemble.estimators_[0].params_["W"], search.best_estimator_.params_["W"], atol=1e-5
    )
    assert len(FleetEnsemble.from_search(search, 99).param_list) == len(scores) - first
    with pytest.raises(ValueError, match="n_estimators must be an integer, at least 1, got 0"):
        FleetEnsemble.from_search(search, 0)


@pytest.mark.parametrize("kind", SGD_KINDS)
def test_is_a_classifier_of_scikit_learn(kind):
    X, y = make_pixels(n=30)
    labels = np.array(["cat", "dog", "bird"])[y]
    ensemble = FleetEnsemble(KINDS[kind](), MEMBERS)
    assert is_classifier(ensemble)
    assert clone(ensemble).get_params()["param_list"] == MEMBERS
    assert np.isfinite(cross_val_score(ensemble, X, labels, cv=2)).all()
    fitted = clone(ensemble).fit(X.tolist(), labels.tolist())
    assert fitted.predict(X).tolist() == clone(ensemble).fit(X, labels).predict(X).tolist()
    with pytest.raises(NotFittedError):
        ensemble.predict(X)


@pytest.mark.parametrize(
    ("kind", "members", "voting", "message"),
    [
        ("softmax", [], None, "at least one member"),
        ("softmax", MEMBERS, "loud", "voting must be 'soft', 'hard' or None, got 'loud'"),
        ("svm", MEMBERS, "soft", "LinearSVMClassifier has no probabilities: use voting='hard'"),
        ("svm", [{"reg": -1.0}], None, "reg must be"),
        ("svm", {"reg": 1.0}, None, "must be a list of dicts, .* got {'reg': 1.0}: a dict for one"),
        ("svm", "reg", None, "must be a list of dicts, .* got 'reg'"),
        ("svm", None, None, "must be a list of dicts, .* got None"),
        ("svm", [{"reg": 1.0}, "reg"], None, "must be a list of dicts, got one with 'reg'"),
    ],
)
def test_errors_say_what_to_do(kind, members, voting, message):
    with pytest.raises(ValueError, match=message):
        FleetEnsemble(KINDS[kind](), members, voting=voting).fit(*make_pixels(n=30))


@pytest.mark.parametrize(
    ("X", "message"),
    [(np.zeros(4), "Expected 2D array"), (np.zeros((0, 3)), "0 sample"), ([[]] * 4, "0 feature")],
)
def test_what_are_no_samples_is_refused(X, message):
    with pytest.raises(ValueError, match=message):
        FleetEnsemble(KINDS["softmax"](), MEMBERS).fit(X, np.arange(len(X)) % 2)


def test_a_member_that_diverges_is_an_error():
    with pytest.raises(DivergedError):
        FleetEnsemble(KINDS["svm"](), [{"learning_rate": 1e300}, {}]).fit(*make_pixels(n=30))


def test_estimators_that_are_not_trained_by_gradients_are_refused():
    with pytest.raises(TypeError, match="together, not KNeighborsClassifier: use"):
        FleetEnsemble(KNeighborsClassifier(), [{}]).fit(*make_pixels(n=30))


def test_members_may_come_from_a_generator():
    X, y = make_pixels(n=30)
    ensemble = FleetEnsemble(KINDS["softmax"](), ({"reg": reg} for reg in (0.0, 1.0)))
    assert len(clone(ensemble).fit(X, y).estimators_) == 2
    assert len(ensemble.fit(X, y).fit(X, y).estimators_) == 2


def test_sample_weights_train_members_and_score_them():
    X, y = make_pixels(n=45)
    weights = np.random.default_rng(0).integers(0, 4, len(y)).astype(float)
    ensemble = FleetEnsemble(KINDS["softmax"](), MEMBERS).fit(X, y, weights)
    alone = [KINDS["softmax"](**params).fit(X, y, weights) for params in MEMBERS]
    unweighted = KINDS["softmax"](**MEMBERS[1]).fit(X, y)
    assert not np.allclose(unweighted.params_["W"], alone[1].params_["W"], atol=1e-3)
    for found, expected in zip(ensemble.estimators_, alone, strict=True):
        np.testing.assert_allclose(found.params_["W"], expected.params_["W"], atol=1e-5)
    other = 9 * (ensemble.predict(X) != y) + 1.0  # counts the wrong ones
    expected = [model.score(X, y, other) for model in alone]
    np.testing.assert_allclose(ensemble.member_scores(X, y, other), expected)
    assert not np.allclose(ensemble.member_scores(X, y), expected)
