import ast
import pickle
import re
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import gpuclf.models.two_layer
from gpuclf import (
    LinearSVMClassifier,
    MixedDevicesError,
    SoftmaxClassifier,
    Standardized,
    TwoLayerNetClassifier,
    two_layer_scores,
)
from gpuclf.training import DivergedError

N, D, C = 90, 6, 3

KINDS = {
    "softmax": lambda **options: SoftmaxClassifier(
        **{"max_iter": 5, "batch_size": 20, "learning_rate": 0.05, "random_state": 0} | options
    ),
    "softmax-lbfgs": lambda **options: SoftmaxClassifier(
        **{"solver": "lbfgs", "max_iter": 60, "random_state": 0} | options
    ),
    "svm": lambda **options: LinearSVMClassifier(
        **{"max_iter": 5, "batch_size": 20, "learning_rate": 0.01, "random_state": 0} | options
    ),
    "two-layer": lambda **options: TwoLayerNetClassifier(
        **{"hidden_size": 8, "max_iter": 5, "batch_size": 20, "random_state": 0} | options
    ),
}
SGD_KINDS = ["softmax", "svm", "two-layer"]
every_kind = pytest.mark.parametrize("kind", KINDS)
every_probabilistic_kind = pytest.mark.parametrize("kind", [k for k in KINDS if k != "svm"])
every_sgd_kind = pytest.mark.parametrize("kind", SGD_KINDS)


def make_data(seed=0, n=N, dtype=np.float64, n_classes=C):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    X = rng.standard_normal((n, D)) + 2 * np.eye(n_classes, D)[y]
    return X.astype(dtype), y


def make_pixels(seed=0, n=N):
    X, y = make_data(seed, n)
    return np.clip(128 + 30 * X, 0, 255).astype(np.uint8), y


def assert_same_params(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


# scikit-learn's own checks that need pandas or polars skip themselves with a SkipTestWarning.
@pytest.mark.essential_cases(40)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks(
    [
        # Weights equal repetitions where the batch does not follow the number of rows.
        LinearSVMClassifier(batch_size=200),
        SoftmaxClassifier(batch_size=200),
        SoftmaxClassifier(solver="lbfgs", max_iter=200),
        TwoLayerNetClassifier(batch_size=200),
    ]
)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


# --------------------------------------------------------------- answers in the input's library


@pytest.mark.essential_cases(4)
@every_kind
@pytest.mark.parametrize("n_classes", [2, 3])
def test_answers_come_in_the_library_of_the_samples(lib, kind, n_classes):
    X, y = make_data(n_classes=n_classes)
    expected = KINDS[kind]().fit(X, y)
    given, labels = lib.asarray(X), lib.asarray(y)
    classifier = KINDS[kind]().fit(given, labels)
    assert isinstance(classifier.classes_, np.ndarray)
    for value in classifier.params_.values():
        assert type(value) is type(given)
    for method in ("predict", "predict_proba", "decision_function"):
        if kind == "svm" and method == "predict_proba":
            continue
        found = getattr(classifier, method)(given)
        assert type(found) is type(given), method
        if lib.name != "numpy":
            assert found.device == given.device
        wanted = getattr(expected, method)(X)
        assert tuple(found.shape) == wanted.shape
        # float64; 25 steps of SGD or up to 60 of L-BFGS may differ by rounding only.
        np.testing.assert_allclose(lib.to_numpy(found), wanted, rtol=0, atol=1e-6)
    assert isinstance(classifier.score(given, labels), float)
    assert classifier.score(given, labels) == expected.score(X, y) > 0.8
    np.testing.assert_array_equal(lib.to_numpy(given), X)


@pytest.mark.essential_cases(4)
@every_kind
def test_a_model_fitted_on_numpy_predicts_elsewhere_and_the_other_way_round(lib, kind):
    X, y = make_data()
    X_test, _ = make_data(seed=1)
    on_numpy = KINDS[kind]().fit(X, y)
    elsewhere = KINDS[kind]().fit(lib.asarray(X), lib.asarray(y))
    there = on_numpy.decision_function(lib.asarray(X_test))
    assert type(there) is type(lib.asarray(X_test))
    here = elsewhere.decision_function(X_test)
    assert isinstance(here, np.ndarray)
    wanted = on_numpy.decision_function(X_test)
    np.testing.assert_allclose(lib.to_numpy(there), wanted, rtol=0, atol=1e-12)
    np.testing.assert_allclose(here, wanted, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(
        lib.to_numpy(on_numpy.predict(lib.asarray(X_test))), on_numpy.predict(X_test)
    )


@pytest.mark.essential_cases(6)
@every_sgd_kind
def test_partial_fit_goes_on_where_the_samples_are(lib, kind):
    X, y = make_data()
    classifier = KINDS[kind]()
    classifier.partial_fit(X, y, classes=np.arange(C))
    classifier.partial_fit(lib.asarray(X), lib.asarray(y))
    expected = KINDS[kind]().partial_fit(X, y, classes=np.arange(C)).partial_fit(X, y)
    assert type(next(iter(classifier.params_.values()))) is type(lib.asarray(X))
    np.testing.assert_allclose(classifier.loss_history_, expected.loss_history_, rtol=1e-10)


def test_samples_on_a_device_may_be_weighted(lib):
    X, y = make_data()
    weights = np.random.default_rng(0).random(N)
    found = KINDS["softmax"]().fit(lib.asarray(X), lib.asarray(y), lib.asarray(weights))
    expected = KINDS["softmax"]().fit(X, y, weights)
    np.testing.assert_allclose(found.loss_history_, expected.loss_history_, rtol=1e-10)


def test_labels_on_a_device_need_not_be_0_to_C(lib):
    X, y = make_data()
    numbers = np.array([-4, 7, 90])
    classifier = KINDS["softmax-lbfgs"]().fit(lib.asarray(X), lib.asarray(numbers[y]))
    np.testing.assert_array_equal(classifier.classes_, numbers)
    found = lib.to_numpy(classifier.predict(lib.asarray(X)))
    assert np.mean(found == numbers[y]) > 0.8


# ------------------------------------------------------------------------------------- labels


@every_kind
def test_string_labels(kind):
    X, y = make_data()
    names = np.array(["dog", "ant", "cat"])  # the sorted order differs from the numbers'
    classifier = KINDS[kind]().fit(X, names[y])
    assert classifier.classes_.tolist() == ["ant", "cat", "dog"]
    predicted = classifier.predict(X)
    assert np.mean(predicted == names[y]) > 0.8
    assert classifier.score(X, names[y]) == np.mean(predicted == names[y])
    np.testing.assert_array_equal(
        classifier.classes_[classifier.decision_function(X).argmax(axis=1)], predicted
    )


@every_probabilistic_kind
def test_binary_labels(kind):
    X, y = make_data(n_classes=2)
    names = np.array(["no", "yes"])
    classifier = KINDS[kind]().fit(X, names[y])
    scores, probs = classifier.decision_function(X), classifier.predict_proba(X)
    assert scores.shape == (N,)
    assert probs.shape == (N, 2)
    np.testing.assert_array_equal(classifier.predict(X), names[(scores > 0).astype(int)])
    np.testing.assert_allclose(probs[:, 1], 1 / (1 + np.exp(-scores)), rtol=1e-9)
    assert classifier.score(X, names[y]) > 0.8


@every_probabilistic_kind
def test_probabilities_are_the_softmax_of_the_scores(kind):
    X, y = make_data()
    classifier = KINDS[kind]().fit(X, y)
    scores, probs = classifier.decision_function(X), classifier.predict_proba(X)
    expected = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probs, expected, rtol=1e-9)
    np.testing.assert_array_equal(classifier.predict(X), scores.argmax(axis=1))


def test_score_weighs_the_samples():
    X, y = make_data()
    classifier = KINDS["softmax"](max_iter=1).fit(X, y)
    right = classifier.predict(X) == y
    assert 0 < right.mean() < 1
    assert classifier.score(X, y) == right.mean()
    assert classifier.score(X, y, sample_weight=right.astype(float)) == 1.0
    assert classifier.score(X, y, sample_weight=1.0 - right) == 0.0


# ---------------------------------------------------------------------------- sample weights


def test_integer_sample_weights_are_repeated_samples():
    X, y = make_data()
    counts = np.random.default_rng(1).integers(0, 4, size=N)
    options = {"max_iter": 500, "tol": 1e-10}
    weighted = KINDS["softmax-lbfgs"](**options).fit(X, y, counts)
    repeated = KINDS["softmax-lbfgs"](**options).fit(
        np.repeat(X, counts, axis=0), np.repeat(y, counts)
    )
    plain = KINDS["softmax-lbfgs"](**options).fit(X, y)
    # Both stop close to the same optimum, within about the square root of L-BFGS's ftol.
    np.testing.assert_allclose(weighted.mean_, repeated.mean_, rtol=0, atol=1e-12)
    np.testing.assert_allclose(weighted.scale_, repeated.scale_, rtol=1e-12)
    np.testing.assert_allclose(
        weighted.decision_function(X), repeated.decision_function(X), rtol=0, atol=1e-5
    )
    assert np.abs(weighted.decision_function(X) - plain.decision_function(X)).max() > 1e-2


@every_kind
def test_the_scale_of_sample_weights_does_not_matter(kind):
    X, y = make_data()
    weights = np.random.default_rng(1).random(N)
    small = KINDS[kind]().fit(X, y, weights)
    large = KINDS[kind]().fit(X, y, 1024 * weights)  # a power of two: the same bits
    np.testing.assert_allclose(small.loss_history_, large.loss_history_, rtol=1e-10)


@pytest.mark.parametrize(
    "weights", [np.ones(N + 10), np.ones(N - 10), np.ones((N, 1)), -np.ones(N), np.zeros(N)]
)
@pytest.mark.parametrize("form", ["plain", "standardized"])
def test_sample_weights_that_do_not_fit_raise(form, weights):
    X, y = make_data()
    samples = X if form == "plain" else Standardized.fit(X)
    with pytest.raises(ValueError, match=r"(?i)sample.weight"):
        KINDS["softmax"]().fit(samples, y, weights)


@pytest.mark.parametrize("n_weights", [N + 10, N - 10])
@pytest.mark.parametrize("standardize", [False, True])
def test_sample_weights_of_another_length_raise_on_a_device(lib, n_weights, standardize):
    X, y = make_data()
    with pytest.raises(ValueError, match=r"(?i)sample.weight"):
        KINDS["softmax"](standardize=standardize).fit(
            lib.asarray(X), lib.asarray(y), lib.asarray(np.ones(n_weights))
        )


# -------------------------------------------------------------------------------- partial_fit


@every_sgd_kind
def test_partial_fit_on_the_same_samples_is_fit_epoch_by_epoch(kind):
    X, y = make_data()
    options = {"schedule": "exponential", "learning_rate_decay": 1.0, "max_iter": 4}
    at_once = KINDS[kind](**options).fit(X, y)
    in_parts = KINDS[kind](**options)
    for call in range(4):
        in_parts.partial_fit(X, y, classes=np.arange(C) if call == 0 else None)
        assert in_parts.n_iter_ == call + 1
    # Momentum, learning rate, order and (two-layer) initial parameters: all must go on.
    assert in_parts.loss_history_ == at_once.loss_history_
    np.testing.assert_allclose(
        in_parts.history_.learning_rate, at_once.history_.learning_rate, rtol=1e-12
    )
    assert_same_params(in_parts.params_, at_once.params_)


@every_sgd_kind
def test_partial_fit_needs_the_classes_first(kind):
    X, y = make_data()
    classifier = KINDS[kind]()
    with pytest.raises(ValueError, match="first call of partial_fit needs classes="):
        classifier.partial_fit(X, y)
    with pytest.raises(NotFittedError):
        classifier.predict(X)
    classifier.partial_fit(X, y, classes=np.arange(C))
    classifier.partial_fit(X, y)
    assert classifier.n_iter_ == 2


@pytest.mark.parametrize("classes", [["ant", "cat", "dog"], ("ant", "cat", "dog")])
def test_partial_fit_takes_classes_as_a_list(classes):
    X, y = make_data()
    classifier = KINDS["softmax"]().partial_fit(X, np.array(classes)[y], classes=classes)
    assert set(classifier.predict(X)) <= set(classes)


def test_partial_fit_may_start_with_some_of_the_classes():
    X, y = make_data()
    some = y != 1
    classifier = KINDS["softmax"]().partial_fit(X[some], y[some], classes=np.arange(C))
    assert classifier.predict_proba(X).shape == (N, C)
    for _ in range(5):
        classifier.partial_fit(X, y)
    assert 1 in classifier.predict(X)


@pytest.mark.parametrize("unseen", [-1, 1, 9])
def test_partial_fit_refuses_labels_that_are_not_among_the_classes(unseen):
    X, y = make_data()
    classifier = KINDS["softmax"]().partial_fit(X, 2 * y, classes=2 * np.arange(C))
    strange = 2 * y
    strange[5] = unseen
    with pytest.raises(ValueError, match=rf"label .*{unseen}.* not among the classes \[0, 2, 4\]"):
        classifier.partial_fit(X, strange)


def test_labels_on_a_device_that_are_not_among_the_classes_are_not_passed_over(lib):
    X, y = make_data()
    classifier = KINDS["softmax"]()
    classifier.partial_fit(lib.asarray(X), lib.asarray(2 * y), classes=2 * np.arange(C))
    strange = 2 * y
    strange[5] = 1
    # On the host the label is named; on a device the loss becomes NaN, which training reports.
    with pytest.raises((ValueError, DivergedError)):
        classifier.partial_fit(lib.asarray(X), lib.asarray(strange))


def test_partial_fit_keeps_the_first_standardization():
    X, y = make_data()
    classifier = KINDS["softmax"]().partial_fit(X, y, classes=np.arange(C))
    mean, scale = classifier.mean_.copy(), classifier.scale_.copy()
    np.testing.assert_allclose(mean, X.mean(axis=0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(scale, X.std(axis=0), rtol=1e-12)
    classifier.partial_fit(5 * X + 1, y)
    np.testing.assert_array_equal(classifier.mean_, mean)
    np.testing.assert_array_equal(classifier.scale_, scale)


# ------------------------------------------------------------------------- forms of the samples


@every_kind
def test_bytes_give_what_the_same_pixels_as_floats_give(kind):
    pixels, y = make_pixels()
    from_bytes = KINDS[kind]().fit(pixels, y)
    from_floats = KINDS[kind]().fit(pixels.astype(np.float32), y)
    # float32 with 24 bits, over 25 steps of SGD or to the optimum that float32 can tell.
    np.testing.assert_allclose(
        from_bytes.decision_function(pixels),
        from_floats.decision_function(pixels.astype(np.float32)),
        rtol=0,
        atol=2e-3 if kind == "softmax-lbfgs" else 2e-5,
    )
    assert from_bytes.params_[next(iter(from_bytes.params_))].dtype == np.float32


@pytest.mark.essential_cases(4)
@every_kind
@pytest.mark.parametrize("make", [make_data, make_pixels])
def test_standardized_samples_are_accepted(kind, make):
    X, y = make()
    X_test, _ = make(seed=1)
    by_itself = KINDS[kind]().fit(X, y)
    standardized = Standardized.fit(X)
    given = KINDS[kind]().fit(standardized, y)
    np.testing.assert_array_equal(given.mean_, standardized.mean)
    np.testing.assert_array_equal(given.scale_, standardized.scale)
    np.testing.assert_allclose(given.loss_history_, by_itself.loss_history_, rtol=1e-6)
    found = given.decision_function(standardized.apply(X_test))
    # Only float32's rounding: the same standardisation, learnt inside or outside.
    np.testing.assert_allclose(found, by_itself.decision_function(X_test), rtol=0, atol=1e-5)
    # Samples that come raw are standardised as the training samples were.
    np.testing.assert_allclose(given.decision_function(X_test), found, rtol=0, atol=1e-5)


def test_score_takes_what_fit_takes():
    X, y = make_data()
    classifier = KINDS["softmax"]().fit(X.tolist(), y.tolist())
    expected = np.mean(classifier.predict(X) == y)
    weights = np.linspace(0, 1, len(y))
    weighted = np.average(classifier.predict(X) == y, weights=weights)
    assert classifier.score(X.tolist(), y.tolist()) == pytest.approx(expected)
    assert classifier.score(X, y, weights.tolist()) == pytest.approx(weighted)


@pytest.mark.parametrize("labels", [lambda y: y[:1], lambda y: y[:10], lambda y: 0, lambda y: None])
def test_score_refuses_labels_that_are_not_one_for_each_sample(labels):
    X, y = make_data()
    classifier = KINDS["softmax"]().fit(X, y)
    with pytest.raises((ValueError, TypeError)):
        classifier.score(X, labels(y))


def test_a_fit_that_fails_leaves_the_model_before_it():
    X, y = make_data()
    classifier = KINDS["softmax"]().fit(X, y)
    before, params = dict(vars(classifier)), {k: v.copy() for k, v in classifier.params_.items()}

    def interrupt(epoch, history):
        raise KeyboardInterrupt

    for method in (
        lambda: classifier.fit(X[:, :2], y + 10, callback=interrupt),
        lambda: classifier.partial_fit(X, y + 10),
    ):
        with pytest.raises((KeyboardInterrupt, ValueError)):
            method()
        assert vars(classifier) == before
        for name, value in params.items():
            np.testing.assert_array_equal(classifier.params_[name], value)


def test_a_callback_may_keep_the_parameters_it_sees():
    X, y = make_data()
    kept = []
    classifier = KINDS["softmax"]()
    classifier.fit(X, y, callback=lambda *_: kept.append(classifier.params_["W"]))
    assert len({w.tobytes() for w in kept}) == classifier.max_iter


def test_two_layer_predicts_in_the_precision_asked_for():
    X, y = make_data()
    net = KINDS["two-layer"](precision="float32").fit(X, y)
    assert X.dtype == np.float64
    assert net.predict_proba(X).dtype == np.float32


def test_initial_weights_of_the_net_have_the_standard_deviation_of_he():
    net = TwoLayerNetClassifier(hidden_size=200)
    params = net.model.initial_params(500, 10, np.random.default_rng(0))
    assert params["W1"].std() == pytest.approx(np.sqrt(2 / 500), rel=0.01)
    assert params["W2"].std() == pytest.approx(np.sqrt(2 / 200), rel=0.05)


def test_partial_fit_refuses_other_classes_than_the_first_call_had():
    X, y = make_data()
    classifier = KINDS["softmax"]().partial_fit(X, y, classes=np.arange(C))
    with pytest.raises(ValueError, match="differ from those of the first call"):
        classifier.partial_fit(X, y, classes=np.arange(C + 2))


def test_standardize_false_leaves_the_features_alone():
    X, y = make_data()
    classifier = KINDS["softmax-lbfgs"](standardize=False).fit(X, y)
    assert classifier.mean_ is None
    expected = X @ classifier.params_["W"] + classifier.params_["b"]
    np.testing.assert_allclose(classifier.decision_function(X), expected, rtol=0, atol=1e-12)


def test_lists_are_accepted():
    X, y = make_data()
    classifier = KINDS["softmax"]().fit(X.tolist(), y.tolist())
    np.testing.assert_array_equal(classifier.predict(X.tolist()), classifier.predict(X))


@pytest.mark.essential_cases(6)
@every_kind
@pytest.mark.parametrize(
    ("dtype", "precision", "expected"),
    [
        (np.float64, None, np.float64),
        (np.float32, None, np.float32),
        (np.uint8, None, np.float32),
        (np.float64, "float32", np.float32),
        (np.float64, "tf32", np.float32),
        (np.uint8, "float64", np.float64),
    ],
)
def test_precision_of_the_model(kind, dtype, precision, expected):
    X, y = make_pixels()
    classifier = KINDS[kind](precision=precision).fit(X.astype(dtype), y)
    assert {value.dtype for value in classifier.params_.values()} == {np.dtype(expected)}
    assert classifier.score(X.astype(dtype), y) > 0.8


# -------------------------------------------------------------------- validation and callbacks


@every_kind
@pytest.mark.filterwarnings("ignore:L-BFGS stopped at max_iter")
def test_validation_accuracy_has_one_value_an_epoch(kind):
    X, y = make_data()
    X_val, y_val = make_data(seed=1)
    classifier = KINDS[kind](max_iter=4).fit(X, y, X_val=X_val, y_val=y_val)
    assert classifier.n_iter_ == 4
    assert len(classifier.val_accuracy_history_) == 4
    assert classifier.val_accuracy_history_[-1] == classifier.score(X_val, y_val)
    assert KINDS[kind](max_iter=4).fit(X, y).val_accuracy_history_ == []


def test_lbfgs_warns_where_it_was_called_if_it_stops_at_max_iter():
    X, y = make_data()
    with pytest.warns(ConvergenceWarning, match="max_iter=3 before it converged") as caught:
        stopped = KINDS["softmax-lbfgs"](max_iter=3).fit(X, y)
    assert [warning.filename for warning in caught] == [__file__]
    assert stopped.n_iter_ == 3
    assert KINDS["softmax-lbfgs"](max_iter=500).fit(X, y).n_iter_ < 500  # warnings are errors
    stopped_by_callback = KINDS["softmax-lbfgs"](max_iter=3)
    stopped_by_callback.fit(X, y, callback=lambda epoch, history: epoch == 3)


def test_validation_does_not_change_what_is_learnt():
    X, y = make_data()
    with_validation = KINDS["two-layer"](dropout=0.3).fit(X, y, X_val=X, y_val=y)
    assert_same_params(with_validation.params_, KINDS["two-layer"](dropout=0.3).fit(X, y).params_)


@pytest.mark.parametrize(
    ("X_val", "y_val", "message"),
    [
        (np.zeros((9, 5)), np.zeros(9, int), "X_val cannot be validated on: X has 5 features"),
        (np.full((9, D), np.nan), np.zeros(9, int), "X_val cannot be validated on: .*NaN"),
        (np.zeros((9, D)), np.zeros(8, int), r"y_val must have shape \(9,\)"),
        (np.zeros((9, D)), np.full(9, "0"), "y_val has no label of y"),
        (np.zeros((9, D)), np.full(9, 77), "y_val has no label of y"),
    ],
)
def test_what_cannot_be_validated_on_is_refused_before_the_first_step(X_val, y_val, message):
    X, y = make_data()
    steps = []

    def augment(X, rng):
        steps.append(1)
        return X

    with pytest.raises(ValueError, match=message):
        KINDS["softmax"](augment=augment).fit(X, y, X_val=X_val, y_val=y_val)
    assert not steps


@every_kind
def test_a_label_that_no_training_sample_has_counts_as_mistaken(kind):
    X, y = make_data()
    classifier = KINDS[kind]().fit(X, y, X_val=X, y_val=y)
    strange = np.where(np.arange(len(y)) % 2, y, 99)
    found = KINDS[kind]().fit(X, y, X_val=X, y_val=strange)
    assert found.val_accuracy_history_[-1] == found.score(X, strange)
    assert classifier.val_accuracy_history_[-1] > found.val_accuracy_history_[-1]


@every_kind
@pytest.mark.parametrize("given", ["X_val", "y_val"])
def test_half_a_validation_set_raises(kind, given):
    X, y = make_data()
    with pytest.raises(ValueError, match="X_val and y_val belong together"):
        KINDS[kind]().fit(X, y, **{given: X if given == "X_val" else y})


@every_kind
def test_callback_sees_each_epoch_and_stops(kind):
    X, y = make_data()
    epochs = []

    def stop_after_three(epoch, history):
        epochs.append(epoch)
        assert len(history.val_accuracy) == epoch
        assert np.isfinite(history.loss[-1])
        return epoch == 3

    classifier = KINDS[kind](max_iter=50).fit(X, y, X_val=X, y_val=y, callback=stop_after_three)
    assert epochs == [1, 2, 3]
    assert classifier.n_iter_ == 3
    assert len(classifier.val_accuracy_history_) == 3
    assert classifier.score(X, y) == classifier.val_accuracy_history_[-1]


@every_sgd_kind
def test_loss_history_has_one_value_a_step(kind):
    X, y = make_data()  # 90 samples: 4 batches of 20 and one of 10
    classifier = KINDS[kind](max_iter=3).fit(X, y)
    assert len(classifier.loss_history_) == 15
    assert np.mean(classifier.loss_history_[-5:]) < np.mean(classifier.loss_history_[:5])


# ------------------------------------------------------------------------------- randomness


@pytest.mark.essential_cases(5)
@every_kind
@pytest.mark.parametrize(
    "state", [lambda: 3, lambda: np.random.RandomState(3), lambda: np.random.default_rng(3)]
)
def test_fitting_twice_with_the_same_random_state_gives_the_same_bits(kind, state):
    X, y = make_data()
    options = {"dropout": 0.4} if kind == "two-layer" else {}
    first = KINDS[kind](random_state=state(), **options).fit(X, y)
    again = KINDS[kind](random_state=state(), **options).fit(X, y)
    assert first.loss_history_ == again.loss_history_
    assert_same_params(first.params_, again.params_)


@every_kind
def test_refitting_forgets_the_first_fit(kind):
    X, y = make_data()
    other_X, other_y = make_data(seed=5, n=60, n_classes=2)
    once = KINDS[kind]().fit(X, y)
    twice = KINDS[kind]().fit(other_X, other_y).fit(X, y)
    assert_same_params(once.params_, twice.params_)
    assert once.n_iter_ == twice.n_iter_
    assert once.loss_history_ == twice.loss_history_


@every_sgd_kind
def test_another_random_state_gives_another_model(kind):
    X, y = make_data()
    first = KINDS[kind](random_state=0).fit(X, y)
    other = KINDS[kind](random_state=1).fit(X, y)
    assert first.loss_history_ != other.loss_history_


# --------------------------------------------------------------------- dropout, augmentation


def masks_of(monkeypatch, dropout, **options):
    masks = []
    two_layer_pass = gpuclf.models.two_layer.two_layer_pass

    def spy(*args):
        masks.append(args[8])
        return two_layer_pass(*args)

    monkeypatch.setattr(gpuclf.models.two_layer, "two_layer_pass", spy)
    X, y = make_data()
    classifier = KINDS["two-layer"](dropout=dropout, hidden_size=64, **options).fit(X, y)
    return classifier, masks


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.8])
def test_dropout_leaves_out_its_share_and_keeps_the_expectation(monkeypatch, dropout):
    _, masks = masks_of(monkeypatch, dropout)
    assert [mask.shape for mask in masks[:5]] == [(20, 64)] * 4 + [(10, 64)]
    factors = np.concatenate([mask.ravel() for mask in masks])
    # 28,800 independent draws: four standard errors.
    spread = 4 * np.sqrt(dropout * (1 - dropout) / factors.size)
    assert np.mean(factors == 0) == pytest.approx(dropout, abs=spread)
    assert factors.mean() == pytest.approx(1.0, abs=spread / (1 - dropout))
    np.testing.assert_allclose(factors[factors > 0], 1 / (1 - dropout), rtol=1e-12)
    assert not np.array_equal(masks[0], masks[1])


def test_without_dropout_there_is_no_mask(monkeypatch):
    _, masks = masks_of(monkeypatch, 0.0)
    assert masks
    assert all(mask is None for mask in masks)


def test_dropout_is_for_training_only():
    X, y = make_data()
    classifier = KINDS["two-layer"](dropout=0.5, standardize=False).fit(X, y)
    scores = classifier.decision_function(X)
    np.testing.assert_array_equal(classifier.decision_function(X), scores)
    np.testing.assert_array_equal(scores, two_layer_scores(classifier.params_, X))


@every_sgd_kind
def test_augmentation_is_for_training_only(kind):
    X, y = make_data()
    shapes = []

    def record(X_batch, rng):
        assert isinstance(rng, np.random.Generator)
        shapes.append(X_batch.shape)
        return X_batch

    classifier = KINDS[kind](augment=record, max_iter=2).fit(X, y, X_val=X, y_val=y)
    assert shapes == ([(20, D)] * 4 + [(10, D)]) * 2
    classifier.predict(X)
    classifier.score(X, y)
    assert len(shapes) == 10
    assert_same_params(classifier.params_, KINDS[kind](max_iter=2).fit(X, y).params_)


def test_the_net_learns_what_is_not_linearly_separable():
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, (400, 2))
    y = (X[:, 0] * X[:, 1] > 0).astype(int)
    options = {"max_iter": 40, "batch_size": 40, "random_state": 0}
    net = TwoLayerNetClassifier(hidden_size=32, **options).fit(X, y)
    linear = SoftmaxClassifier(**options).fit(X, y)
    assert net.score(X, y) > 0.95
    assert linear.score(X, y) < 0.7


# -------------------------------------------------------------------- scikit-learn's machinery


@every_sgd_kind
def test_help_names_every_parameter_and_every_fitted_attribute_once(kind):
    X, y = make_data()
    classifier = KINDS[kind]().fit(X, y)
    help_text = type(classifier).__doc__
    fitted = [name for name in vars(classifier) if name.endswith("_") and not name.startswith("_")]
    assert len(fitted) > 8
    described = [
        name.strip()
        for line in help_text.splitlines()
        if re.match(r"\w+(, \w+)* : ", line)
        for name in line.partition(" : ")[0].split(",")
    ]
    for name in (*classifier.get_params(), *fitted):
        assert described.count(name) == 1, name
    for name, value in classifier.__class__().get_params().items():
        if value is not None:
            default = re.search(rf"^{name} : .*default (\S+)$", help_text, re.MULTILINE)[1]
            assert ast.literal_eval(default) == value
    assert "**others" not in help_text


@every_kind
def test_clone_and_get_params(kind):
    classifier = KINDS[kind](reg=0.125).fit(*make_data())
    copy = clone(classifier)
    assert copy.get_params() == classifier.get_params()
    assert copy.get_params()["reg"] == 0.125
    assert not hasattr(copy, "params_")


@every_kind
def test_pickle_keeps_the_model(kind):
    X, y = make_data()
    classifier = KINDS[kind]().fit(X, y)
    restored = pickle.loads(pickle.dumps(classifier))
    np.testing.assert_array_equal(restored.decision_function(X), classifier.decision_function(X))
    if kind in SGD_KINDS:  # and the restored one goes on as the original does
        assert_same_params(restored.partial_fit(X, y).params_, classifier.partial_fit(X, y).params_)


@every_kind
def test_pipeline(kind):
    X, y = make_data()
    pipeline = make_pipeline(StandardScaler(), KINDS[kind](standardize=False)).fit(X, y)
    alone = KINDS[kind]().fit(X, y)
    # The same standardisation; the bias of a folded and a written-out mean differ by rounding.
    np.testing.assert_allclose(
        pipeline.decision_function(X), alone.decision_function(X), rtol=0, atol=1e-6
    )


def test_the_svm_tells_two_classes_apart_by_the_sign():
    X, y = make_data(n_classes=2)
    names = np.array(["ant", "bee"])
    classifier = KINDS["svm"]().fit(X, names[y])
    scores = classifier.decision_function(X)
    assert scores.shape == (N,)
    np.testing.assert_array_equal(classifier.predict(X), names[(scores > 0).astype(int)])
    assert classifier.score(X, names[y]) > 0.8


def test_the_svm_has_no_probabilities():
    assert not hasattr(LinearSVMClassifier(), "predict_proba")
    assert hasattr(SoftmaxClassifier(), "predict_proba")
    assert hasattr(TwoLayerNetClassifier(), "predict_proba")


def test_grid_search_of_the_svm_in_a_pipeline():
    X, y = make_data(n=150)
    pipeline = make_pipeline(StandardScaler(), KINDS["svm"](standardize=False))
    search = GridSearchCV(pipeline, {"linearsvmclassifier__reg": [1e-3, 1e-1]}, cv=3).fit(X, y)
    assert len(search.cv_results_["params"]) == 2
    assert search.best_score_ > 0.8
    assert clone(search.best_estimator_).get_params()["linearsvmclassifier__max_iter"] == 5


@pytest.mark.slow
def test_grid_search_finds_the_better_penalty():
    X, y = make_data(n=150)
    kept = (y == 0) | (np.arange(150) < 60)  # at 1e4 the free bias alone decides: class 0
    search = GridSearchCV(KINDS["softmax-lbfgs"](), {"reg": [1e4, 1e-3]}, cv=3)
    search.fit(X[kept], y[kept])
    assert search.best_params_ == {"reg": 1e-3}
    assert search.best_score_ > 0.8


@every_kind
def test_cross_val_score(kind):
    X, y = make_data()
    scores = cross_val_score(KINDS[kind](max_iter=20), X, y, cv=3)
    assert scores.shape == (3,)
    assert scores.mean() > 0.75


# ------------------------------------------------------------------------------- wrong inputs

WRONG = [
    ("learning_rate", 0.0),
    ("learning_rate", -0.1),
    ("learning_rate", float("nan")),
    ("learning_rate", float("inf")),
    ("learning_rate_decay", 0.0),
    ("learning_rate_decay", 1.5),
    ("max_iter", 0),
    ("batch_size", 0),
    ("momentum", 1.0),
    ("momentum", -0.1),
    ("reg", -1.0),
    ("reg", float("nan")),
    ("schedule", "cosine"),
    ("precision", "float16"),
]


@pytest.mark.essential_cases(42)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize(("name", "value"), WRONG, ids=[f"{n}={v}" for n, v in WRONG])
@every_sgd_kind
def test_wrong_hyperparameters_are_named(kind, name, value, method):
    X, y = make_data()
    with pytest.raises(ValueError, match=rf"{name} must be .*got {value!r}"):
        getattr(KINDS[kind](**{name: value}), method)(X, y)


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (SoftmaxClassifier, "solver", "adam"),
        (TwoLayerNetClassifier, "hidden_size", 0),
        (TwoLayerNetClassifier, "dropout", 1.0),
        (TwoLayerNetClassifier, "dropout", -0.1),
    ],
)
def test_wrong_hyperparameters_of_one_model_are_named(make, name, value):
    X, y = make_data()
    with pytest.raises(ValueError, match=rf"{name} must be .*got {value!r}"):
        make(**{name: value}).fit(X, y)


@every_kind
def test_other_numbers_of_samples_and_labels_raise(lib, kind):
    X, y = make_data()
    with pytest.raises(ValueError, match=rf"(?s){N - 1}|inconsistent"):
        KINDS[kind]().fit(lib.asarray(X), lib.asarray(y[:-1]))


@pytest.mark.essential_cases(7)
@pytest.mark.parametrize("standardize", [False, True])
@every_kind
def test_nan_in_the_samples_raises(lib, kind, standardize):
    X, y = make_data()
    X[3, 2] = np.nan
    # On the host it is found first; on a device when statistics or losses are read.
    with pytest.raises((ValueError, DivergedError), match=r"NaN|infinity|finite"):
        KINDS[kind](standardize=standardize).fit(lib.asarray(X), lib.asarray(y))


@pytest.mark.essential_cases(4)
@pytest.mark.parametrize("value", [np.nan, np.inf])
@every_kind
def test_nan_or_infinity_in_host_samples_is_named(kind, value):
    X, y = make_data()
    classifier = KINDS[kind]().fit(X, y)
    X[3, 2] = value
    for call in (lambda: KINDS[kind]().fit(X, y), lambda: classifier.predict(X)):
        with pytest.raises(ValueError, match=r"NaN|infinity"):
            call()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_in_standardized_samples_raises(value):
    X, y = make_data()
    X[3, 2] = value
    with pytest.raises(ValueError, match=r"X has 1 NaN or infinite values, the first at X\[3, 2\]"):
        KINDS["softmax"]().fit(Standardized(X, 0.0, 1.0), y)


@pytest.mark.essential_cases(4)
@every_kind
def test_another_number_of_features_raises(lib, kind):
    X, y = make_data()
    classifier = KINDS[kind]().fit(X, y)
    message = rf"X has {D - 1} features, but \w+ is expecting {D} features"
    for form in (lib.asarray, lambda a: Standardized(lib.asarray(a), 0.0, 1.0)):
        with pytest.raises(ValueError, match=message):
            classifier.predict(form(X[:, :-1]))
    if kind in SGD_KINDS:
        with pytest.raises(ValueError, match=message):
            classifier.partial_fit(lib.asarray(X[:, :-1]), lib.asarray(y))


def test_an_unfitted_classifier_says_so(lib):
    X, _ = make_data()
    for make in KINDS.values():
        with pytest.raises(NotFittedError):
            make().predict(lib.asarray(X))


MIXED = SimpleNamespace(
    strict=lambda a: pytest.importorskip("array_api_strict").asarray(
        a, device=pytest.importorskip("array_api_strict").Device("device1")
    ),
    torch=lambda a: pytest.importorskip("torch").asarray(a),
    numpy=np.asarray,
)


@pytest.mark.parametrize(
    ("of_X", "of_y"),
    [("strict", "numpy"), ("torch", "numpy"), ("numpy", "strict"), ("numpy", "torch")],
)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@every_sgd_kind
def test_samples_and_labels_on_different_devices_raise_and_name_both(kind, method, of_X, of_y):
    X, y = make_data()
    X, y = getattr(MIXED, of_X)(X), getattr(MIXED, of_y)(y)
    with pytest.raises(MixedDevicesError) as caught:
        getattr(KINDS[kind](), method)(X, y)
    message = str(caught.value)
    libraries = {"strict": "array_api_strict on", "torch": "torch on", "numpy": "numpy on cpu"}
    assert f"X is {libraries[of_X]}" in message
    assert f"y is {libraries[of_y]}" in message
    there, here = ("y", "X") if of_X == "numpy" else ("X", "y")
    assert f"gpuclf.to_host({there}) brings" in message
    assert f"gpuclf.to_device({here}, like={there}) takes" in message


@pytest.mark.parametrize("of_X", ["strict", "torch"])
def test_sample_weights_on_another_device_raise_and_name_both(of_X):
    X, y = make_data()
    place = getattr(MIXED, of_X)
    with pytest.raises(MixedDevicesError, match=r"X is .* but sample_weight is numpy on cpu"):
        KINDS["softmax"]().fit(place(X), place(y), np.ones(N))


def test_diverging_raises_without_a_warning():
    X, y = make_data()
    with pytest.raises(DivergedError, match=r"smaller learning_rate \(it was 1e\+06\)"):
        KINDS["softmax"](learning_rate=1e6, reg=1.0, max_iter=30, learning_rate_decay=1.0).fit(X, y)


@pytest.mark.parametrize("kind", [SoftmaxClassifier, TwoLayerNetClassifier])
def test_after_a_failed_partial_fit_the_next_one_draws_as_if_it_had_not_been(kind):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 5)), rng.integers(0, 3, 40)

    def interrupted(X_batch, rng):
        raise KeyboardInterrupt

    one, other = (
        kind(batch_size=7, random_state=0).partial_fit(X, y, classes=[0, 1, 2]) for _ in range(2)
    )
    one.augment = interrupted
    with pytest.raises(KeyboardInterrupt):
        one.partial_fit(X, y)
    one.augment = None
    assert one.partial_fit(X, y).loss_history_ == other.partial_fit(X, y).loss_history_


def test_the_accuracy_on_training_samples_is_recorded_beside_the_validation_s(lib):
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 256, (90, 5), np.uint8), rng.integers(0, 3, 90)
    X_val, y_val = X[:30] // 2, y[:30]
    seen = []

    def callback(epoch, history):
        seen.append(classifier.score(X[::3], y[::3]))
        assert len(history.train_accuracy) == len(history.val_accuracy) == epoch

    classifier = SoftmaxClassifier(max_iter=3, batch_size=20, learning_rate=0.3, random_state=0)
    moved = [lib.asarray(a) for a in (X, y, X_val, y_val)]
    classifier.fit(*moved[:2], X_val=moved[2], y_val=moved[3], callback=callback)
    assert classifier.train_accuracy_history_ == classifier.history_.train_accuracy == seen
    assert len(set(seen)) > 1
    assert SoftmaxClassifier(max_iter=1).fit(X, y).train_accuracy_history_ == []


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.bool_])
def test_other_numbers_are_converted_in_every_library(lib, dtype):
    X = np.arange(40).reshape(20, 2) % 7 > 3 if dtype is np.bool_ else np.arange(40).reshape(20, 2)
    X, y = X.astype(dtype), np.arange(20) // 4 % 2
    classifier = SoftmaxClassifier(max_iter=2, random_state=0).fit(lib.asarray(X), lib.asarray(y))
    assert classifier.params_["W"].dtype == lib.xp.float64
    expected = SoftmaxClassifier(max_iter=2, random_state=0).fit(X.astype(float), y)
    scores = lib.to_numpy(classifier.decision_function(lib.asarray(X)))
    np.testing.assert_allclose(scores, expected.decision_function(X.astype(float)), atol=1e-15)


# ------------------------------------------------------------------------- losses of one's own


def squared_error(scores, labels, sample_weight=None):
    """Half the squared distance of the scores from one-hot labels."""
    xp = gpuclf.array_namespace(scores)
    errors = scores - gpuclf.losses.one_hot(labels, int(scores.shape[-1]), dtype=scores.dtype)
    weights = 1 / scores.shape[-2] if sample_weight is None else sample_weight[..., None]
    loss = xp.sum(weights * errors * errors, axis=(-2, -1), dtype=xp.float64) / 2
    return loss, weights * errors


class LeastSquares(SoftmaxClassifier):
    model = gpuclf.models.LinearModel("least squares", squared_error)


def least_squares(X, y, reg):
    """Return W and b of the minimum, by the normal equations."""
    ones = np.c_[X, np.ones(len(X))]
    penalty = 2 * reg * np.diag([1.0] * X.shape[1] + [0.0])
    return np.linalg.solve(ones.T @ ones / len(X) + penalty, ones.T @ np.eye(C)[y] / len(X))


@pytest.mark.essential_cases(4)
@pytest.mark.parametrize("solver", ["sgd", "lbfgs"])
def test_a_loss_of_one_s_own_trains_by_both_solvers(lib, solver):
    X, y = make_data()
    options = {"max_iter": 300, "learning_rate": 0.1, "reg": 0.01, "tol": 1e-9}
    model = LeastSquares(solver=solver, batch_size=N, standardize=False, **options)
    model.fit(lib.asarray(X), lib.asarray(y))
    found = np.r_[lib.to_numpy(model.params_["W"]), lib.to_numpy(model.params_["b"])[None]]
    np.testing.assert_allclose(found, least_squares(X, y, 0.01), rtol=0, atol=1e-3)
    assert not hasattr(model, "predict_proba")  # its scores are not logits


def test_a_loss_of_one_s_own_trains_in_parts_and_in_fleets():
    X, y = make_pixels()
    options = {"random_state": 0, "max_iter": 3, "batch_size": 20}
    rates = [1e-3, 1e-2, 3e-2]
    options["learning_rate_decay"] = 1.0
    in_parts = LeastSquares(schedule="exponential", **options)
    for _ in range(3):
        in_parts.partial_fit(X, y, classes=np.arange(C))
    at_once = LeastSquares(schedule="exponential", **options).fit(X, y)
    for name, value in at_once.params_.items():
        np.testing.assert_allclose(in_parts.params_[name], value, rtol=0, atol=1e-6)
    alone = [LeastSquares(learning_rate=rate, **options).fit(X, y) for rate in rates]
    members = [{"learning_rate": rate} for rate in rates]
    ensemble = gpuclf.FleetEnsemble(LeastSquares(**options), members).fit(X, y)
    for member, expected in zip(ensemble.estimators_, alone, strict=True):
        for name, value in expected.params_.items():
            np.testing.assert_allclose(member.params_[name], value, rtol=0, atol=1e-5)
    search = {"param_grid": {"learning_rate": rates}, "cv": 2}
    found = gpuclf.FleetSearchCV(LeastSquares(**options), **search).fit(X, y)
    expected = GridSearchCV(LeastSquares(**options), **search).fit(X, y)
    np.testing.assert_allclose(
        found.cv_results_["mean_test_score"], expected.cv_results_["mean_test_score"]
    )


def test_lbfgs_refuses_a_loss_of_one_s_own_that_has_kinks():
    class Kinked(SoftmaxClassifier):
        model = gpuclf.models.SVM

    with pytest.raises(ValueError, match="use SGD"):
        Kinked(solver="lbfgs").fit(*make_data())


def test_a_net_of_ones_own_keeps_its_hyper_parameters():
    class HingeNet(gpuclf.TwoLayerNetClassifier):
        net = gpuclf.models.TwoLayerNet("hinge net", gpuclf.losses.multiclass_hinge)

    X, y = make_data()
    fitted = HingeNet(hidden_size=7, max_iter=1, random_state=0).fit(X, y)
    assert fitted.params_["W1"].shape[1] == 7
    assert not hasattr(fitted, "predict_proba")
    with pytest.raises(TypeError, match="call it net instead"):
        type("Wrong", (gpuclf.TwoLayerNetClassifier,), {"model": HingeNet.net})
