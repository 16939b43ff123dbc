import pickle

import numpy as np
import pytest
import sklearn.neighbors
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from gpuclf import KNeighborsClassifier, MixedDevicesError, Standardized
from gpuclf.arrays import array_namespace
from gpuclf.models.neighbors import k_neighbors
from gpuclf.models.votes import count_votes

N, D, C = 60, 4, 3


def make_data(seed=0, n=N, dtype=np.float64):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % C
    X = 100 + 30 * (rng.standard_normal((n, D)) + 2 * np.eye(C, D)[y])
    return np.clip(X, 0, 255).astype(dtype), y


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks(
    [
        KNeighborsClassifier(),
        KNeighborsClassifier(metric="l1"),
        KNeighborsClassifier(weights="distance", metric="euclidean"),
    ]
)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@pytest.mark.essential_cases(5)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize(
    ("metric", "peer"), [("l2", "euclidean"), ("l1", "manhattan"), ("cosine", "cosine")]
)
def test_the_answers_are_those_of_scikit_learn(lib, dtype, metric, peer):
    X, y = make_data(dtype=dtype)
    X_test, y_test = make_data(seed=1, dtype=dtype)
    theirs = sklearn.neighbors.KNeighborsClassifier(4, metric=peer, algorithm="brute")
    theirs.fit(X.astype(float), y)
    ours = KNeighborsClassifier(4, metric=metric).fit(lib.asarray(X), lib.asarray(y))
    given = lib.asarray(X_test)
    distances, indices = ours.kneighbors(given)
    expected, _ = theirs.kneighbors(X_test.astype(float))
    np.testing.assert_allclose(lib.to_numpy(distances), expected, rtol=1e-12)
    for found in (distances, indices, ours.predict(given), ours.predict_proba(given)):
        assert type(found) is type(given)
    # scikit-learn promises no order among equal distances, of which bytes have some.
    if dtype is not np.uint8:
        _, theirs_indices = theirs.kneighbors(X_test.astype(float))
        np.testing.assert_array_equal(lib.to_numpy(indices), theirs_indices)
        probs = lib.to_numpy(ours.predict_proba(given))
        np.testing.assert_array_equal(probs, theirs.predict_proba(X_test.astype(float)))
        assert ours.score(given, lib.asarray(y_test)) == theirs.score(X_test.astype(float), y_test)


def test_a_tie_goes_to_the_smaller_label_and_shows_in_the_probabilities():
    X, y = np.array([[0.0], [2.0], [4.0]]), np.array(["b", "a", "b"])
    classifier = KNeighborsClassifier(2).fit(X, y)
    query = np.array([[1.0]])
    assert classifier.kneighbors(query, return_distance=False).tolist() == [[0, 1]]
    assert classifier.predict_proba(query).tolist() == [[0.5, 0.5]]
    assert classifier.predict(query).tolist() == ["a"]


def similarity(T):
    """Return weights exp(cos / T), in the library of the distances."""

    def weights(distances):
        xp = array_namespace(distances)
        return xp.exp((1 - distances) / T)

    return weights


@pytest.mark.essential_cases(12)
@pytest.mark.parametrize("metric", ["euclidean", "manhattan", "cosine"])
@pytest.mark.parametrize("weights", ["distance", similarity(30.0)])
def test_weighted_votes_are_those_of_scikit_learn(lib, metric, weights):
    X, y = make_data()
    queries = np.concatenate([make_data(seed=1)[0], X[:5]])  # some at distance 0
    theirs = sklearn.neighbors.KNeighborsClassifier(7, metric=metric, weights=weights)
    theirs.fit(X, y)
    ours = KNeighborsClassifier(7, metric=metric, weights=weights).fit(*map(lib.asarray, (X, y)))
    given = lib.asarray(queries)
    found = ours.predict_proba(given)
    assert type(found) is type(given)
    if metric == "cosine" and weights == "distance":  # theirs rounds distances of 0 to 1e-16
        queries, found = queries[:-5], found[:-5, :]
        np.testing.assert_allclose(lib.to_numpy(ours.predict_proba(given))[-5:], np.eye(C)[y[:5]])
    np.testing.assert_allclose(lib.to_numpy(found), theirs.predict_proba(queries), rtol=1e-9)
    labels = lib.to_numpy(ours.predict(given))[: len(queries)]
    np.testing.assert_array_equal(labels, theirs.predict(queries))


def test_the_body_counts_votes_as_numpy_does(lib):
    rng = np.random.default_rng(0)
    labels, weights = rng.integers(0, 4, (30, 9)) * 3 - 5, rng.random((30, 9))
    weights[3, 4] = np.inf
    classes = np.unique(labels)
    for given in ((labels, classes), (labels, classes, weights)):
        expected = count_votes(*given)
        found = count_votes.reference(*map(lib.asarray, given))
        np.testing.assert_array_equal(lib.to_numpy(found), expected)
        counted = weights if len(given) == 3 else np.ones(labels.shape)
        in_loops = [
            [w[row == c].sum() for c in classes] for row, w in zip(labels, counted, strict=True)
        ]
        np.testing.assert_allclose(expected, in_loops, rtol=1e-14)


def test_weights_of_the_wrong_shape_or_of_0_are_named():
    X, y = make_data()
    wrong = KNeighborsClassifier(3, weights=lambda d: d[:, :2]).fit(X, y)
    with pytest.raises(ValueError, match=r"weights must return .* \(60, 3\), got \(60, 2\)"):
        wrong.predict(X)
    nothing = KNeighborsClassifier(3, weights=lambda d: 0 * d).fit(X, y)
    with pytest.raises(ValueError, match=r"have weight 0, first of X\[0\]: let weights give"):
        nothing.predict_proba(X)


@pytest.mark.essential_cases(5)
@pytest.mark.parametrize("metric", ["l2", "l1", "cosine"])
def test_without_samples_each_training_sample_is_left_out(lib, metric):
    X, y = make_data()
    X[7:12] = X[7]  # more equal ones than neighbours
    ours = KNeighborsClassifier(3, metric=metric).fit(lib.asarray(X), lib.asarray(y))
    distances, indices = (lib.to_numpy(a) for a in ours.kneighbors())
    for i in range(N):
        others = np.delete(np.arange(N), i)
        expected = k_neighbors(X[i : i + 1], X[others], 3, metric)
        np.testing.assert_array_equal(indices[i], others[expected[1][0]])
        np.testing.assert_allclose(distances[i], expected[0][0], rtol=1e-9, atol=1e-15)
    np.testing.assert_array_equal(lib.to_numpy(ours.kneighbors(None, 3, False)), indices)
    assert ours.predict(None).shape == (N,)
    with pytest.raises(ValueError, match=r"from 1 to the 59 other training samples .* got 60"):
        ours.kneighbors(n_neighbors=60)


def test_a_zero_vector_is_refused_by_name_for_cosines(lib):
    X, y = make_data()
    X[4] = 0
    with pytest.raises(ValueError, match=r"X\[4\] is a zero vector, whose cosine"):
        KNeighborsClassifier(metric="cosine").fit(lib.asarray(X), lib.asarray(y))
    classifier = KNeighborsClassifier(metric="cosine").fit(lib.asarray(X[5:]), lib.asarray(y[5:]))
    with pytest.raises(ValueError, match=r"X\[1\] is a zero vector, whose cosine"):
        classifier.predict(lib.asarray(X[3:5]))


def test_float16_stays_float16():
    X, y = make_data(dtype=np.float16)
    classifier = KNeighborsClassifier(3).fit(X, y)
    assert classifier._fit_X.dtype == np.float16
    assert np.shares_memory(classifier._fit_X, X)
    wide = KNeighborsClassifier(3).fit(X.astype(float), y)
    for found, expected in zip(classifier.kneighbors(X), wide.kneighbors(X), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_labels_are_any_integers_on_a_device(lib):
    X, y = make_data()
    numbers = np.array([-4, 7, 90])
    classifier = KNeighborsClassifier(1).fit(lib.asarray(X), lib.asarray(numbers[y]))
    np.testing.assert_array_equal(lib.to_numpy(classifier.predict(lib.asarray(X))), numbers[y])


def test_fewer_or_more_neighbours_may_be_asked_for():
    X, y = make_data()
    classifier = KNeighborsClassifier(3).fit(X, y)
    indices = classifier.kneighbors(X, 7, return_distance=False)
    np.testing.assert_array_equal(indices, k_neighbors(X, X, 7)[1])
    with pytest.raises(ValueError, match=f"from 1 to the {N} training samples .* got {N + 1}"):
        classifier.kneighbors(X, N + 1)


def test_the_memory_budget_reaches_the_search():
    X, y = make_data()
    classifier = KNeighborsClassifier(memory_budget=10).fit(X, y)
    with pytest.raises(ValueError, match="memory_budget=10 bytes is too small"):
        classifier.predict(X)


def test_verbose_changes_nothing():
    X, y = make_data()
    quiet, loud = KNeighborsClassifier().fit(X, y), KNeighborsClassifier(verbose=True).fit(X, y)
    np.testing.assert_array_equal(loud.predict(X), quiet.predict(X))


def test_samples_elsewhere_than_the_training_set_are_refused(strict):
    X, y = make_data()
    classifier = KNeighborsClassifier().fit(X, y)
    with pytest.raises(MixedDevicesError, match=r"X is array_api_strict .* the training set is"):
        classifier.predict(strict.asarray(X))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_neighbors": 0}, "n_neighbors must be an integer, at least 1, got 0"),
        (
            {"weights": "near"},
            "weights must be 'uniform', 'distance', None or a callable .* got 'near'",
        ),
        ({"n_neighbors": 2.5}, "n_neighbors must be an integer, at least 1, got 2.5"),
        ({"metric": "chebyshev"}, r"metric must be 'l2' .* got 'chebyshev'"),
    ],
)
def test_a_hyper_parameter_out_of_range_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        KNeighborsClassifier(**options).fit(*make_data())


def test_standardized_samples_are_refused_with_the_remedy():
    X, y = make_data()
    with pytest.raises(TypeError, match="X is Standardized; write the samples out"):
        KNeighborsClassifier().fit(Standardized.fit(X), y)
    with pytest.raises(TypeError, match="is Standardized; write the samples out"):
        KNeighborsClassifier().fit(X, y).predict(Standardized.fit(X))


def test_a_failed_fit_leaves_the_estimator_as_it_was():
    X, y = make_data()
    classifier = KNeighborsClassifier().fit(X, y)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        classifier.fit(X[:, :2], y[:-1])
    np.testing.assert_array_equal(
        classifier.predict(X), KNeighborsClassifier().fit(X, y).predict(X)
    )
    with pytest.raises(NotFittedError):
        KNeighborsClassifier().predict(X)


# ------------------------------------------------------------------- among scikit-learn's tools


def test_grid_search_pipeline_cross_validation_clone_and_pickle():
    X, y = make_data()
    search = GridSearchCV(KNeighborsClassifier(), {"n_neighbors": [1, 5], "metric": ["l1", "l2"]})
    assert search.fit(X, y).best_score_ > 0.7
    pipeline = make_pipeline(StandardScaler(), KNeighborsClassifier(3)).fit(X, y)
    assert pipeline.score(X, y) > 0.8
    assert cross_val_score(KNeighborsClassifier(3), X, y, cv=3).mean() > 0.7
    fitted = KNeighborsClassifier(2, metric="l1", memory_budget=10**6).fit(X, y)
    assert clone(fitted).get_params() == fitted.get_params()
    assert not hasattr(clone(fitted), "n_samples_fit_")
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict(X), fitted.predict(X))


def test_weights_of_none_are_uniform():
    X, y = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40) % 3
    uniform, none = (
        KNeighborsClassifier(weights=weights).fit(X, y) for weights in ("uniform", None)
    )
    np.testing.assert_array_equal(none.predict_proba(X), uniform.predict_proba(X))
