"""Training stops where validation accuracy no longer rises, alone and in a fleet."""

import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV, train_test_split
from test_estimators import KINDS, SGD_KINDS, make_data

from gpuclf import FleetSearchCV, Standardized
from gpuclf.estimators import gradient_classifier
from gpuclf.estimators.fleet_fitting import fit_together

RATES = [1e-3, 1e-2, 0.05, 0.3]
EARLY = {"n_iter_no_change": 2, "validation_fraction": 0.3, "max_iter": 12}


def make_hard(seed=1, n=120):
    """Classes that overlap: accuracies rise and fall."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    X = 128 + 40 * (rng.standard_normal((n, 6)) + 0.7 * np.eye(3, 6)[y])
    return np.clip(X, 0, 255).astype(np.uint8), y


def stop_of(accuracies, patience):
    """Number of epochs until so many have brought no new best, in a loop."""
    best, since = -1.0, 0
    for epoch, accuracy in enumerate(accuracies, 1):
        best, since = (accuracy, 0) if accuracy > best else (best, since + 1)
        if since == patience:
            return epoch
    return len(accuracies)


@pytest.mark.essential_cases(4)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("patience", [1, 3])
def test_stops_after_epochs_without_a_new_best(kind, patience):
    (X, y), (X_val, y_val) = make_hard(n=90), make_hard(seed=2, n=60)
    options = {"max_iter": 12, "learning_rate": 0.01} | (
        {"schedule": "exponential"} if kind != "softmax-lbfgs" else {}
    )
    whole = KINDS[kind](**options).fit(X, y, X_val=X_val, y_val=y_val)
    found = KINDS[kind](n_iter_no_change=patience, **options)
    found.fit(X, y, X_val=X_val, y_val=y_val)
    n_epochs = stop_of(whole.val_accuracy_history_, patience)
    assert 1 < n_epochs < 12  # there is something to stop
    assert found.n_iter_ == n_epochs
    assert found.val_accuracy_history_ == whole.val_accuracy_history_[:n_epochs]
    if kind != "softmax-lbfgs":
        shorter = KINDS[kind](**options | {"max_iter": n_epochs}).fit(X, y)
        for name, value in shorter.params_.items():
            np.testing.assert_array_equal(found.params_[name], value)


@pytest.mark.essential_cases(6)
@pytest.mark.parametrize("kind", SGD_KINDS)
@pytest.mark.parametrize("form", ["array", "standardized"])
def test_holds_samples_out_where_none_are_given(lib, kind, form):
    X, y = make_hard()
    labels = 3 * y - 1
    weights = np.random.default_rng(0).integers(1, 3, len(y)).astype(float)
    train, val = train_test_split(np.arange(len(y)), test_size=0.3, stratify=labels, random_state=0)
    train, val = np.sort(train), np.sort(val)
    features = Standardized.fit(X) if form == "standardized" else X
    expected = KINDS[kind](n_iter_no_change=2, max_iter=12, precision="float64").fit(
        *(features[train], labels[train], weights[train]),
        callback=lambda _, history: None,
        X_val=np.repeat(X[val], weights[val].astype(int), axis=0)
        if form == "array"
        else features[np.repeat(val, weights[val].astype(int))],
        y_val=np.repeat(labels[val], weights[val].astype(int)),
    )
    given = lib.asarray(X)
    given = Standardized.fit(given) if form == "standardized" else given
    found = KINDS[kind](**EARLY, precision="float64")
    found.fit(given, lib.asarray(labels), lib.asarray(weights))
    assert found.n_iter_ == expected.n_iter_
    np.testing.assert_allclose(found.val_accuracy_history_, expected.val_accuracy_history_)
    for name, value in expected.params_.items():
        np.testing.assert_allclose(lib.to_numpy(found.params_[name]), value, atol=1e-9)


@pytest.mark.essential_cases(2)
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("kind", SGD_KINDS)
def test_members_of_a_fleet_stop_as_if_alone(kind, precision, monkeypatch):
    X, y = make_hard()
    widths, run = [], gradient_classifier.train_sgd

    def watched(*args, on_epoch, **options):
        def note(params, numbers):
            widths.append(len(numbers))
            return on_epoch(params, numbers)

        return run(*args, on_epoch=note, **options)

    options = EARLY | {"precision": precision}
    options |= {"dropout": 0.2} if kind == "two-layer" else {}
    rates = [*RATES, 1e300]
    models = [KINDS[kind](learning_rate=rate, **options) for rate in rates]
    with monkeypatch.context() as watching:
        watching.setattr(gradient_classifier, "train_sgd", watched)
        errors = fit_together(models, X, y)
    assert [error is None for error in errors] == [True] * 4 + [False]
    rtol = 1e-12 if precision == "float64" else 1e-5
    for model, rate in zip(models[:4], rates, strict=False):
        alone = KINDS[kind](learning_rate=rate, **options).fit(X, y)
        assert vars(model).keys() == vars(alone).keys()
        assert model.n_iter_ == alone.n_iter_
        assert model.val_accuracy_history_ == alone.val_accuracy_history_
        assert model.train_accuracy_history_ == alone.train_accuracy_history_
        for _ in range(2):
            for name, value in alone.params_.items():
                scale = np.max(np.abs(value))
                np.testing.assert_allclose(model.params_[name], value, atol=rtol * scale)
            model.partial_fit(X, y)  # and goes on in the same way
            alone.partial_fit(X, y)
    epochs = [len(model.val_accuracy_history_) for model in models[:4]]
    assert len(set(epochs)) > 1  # they stop at different times
    assert widths == [sum(n > epoch for n in epochs) for epoch in range(max(epochs))]


def test_a_search_stops_early_as_scikit_learn_s_does():
    X, y = make_hard()
    model = KINDS["softmax"](**EARLY)
    found, expected = (
        kind(model, {"learning_rate": RATES}, cv=2).fit(X, y)
        for kind in (FleetSearchCV, GridSearchCV)
    )
    for fold in range(2):
        name = f"split{fold}_test_score"
        np.testing.assert_allclose(found.cv_results_[name], expected.cv_results_[name], atol=1e-12)
    halved = FleetSearchCV(model, {"learning_rate": RATES}, cv=2, factor=2).fit(X, y)
    scores = dict(zip(RATES, expected.cv_results_["mean_test_score"], strict=True))
    assert halved.best_score_ == pytest.approx(scores[halved.best_params_["learning_rate"]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_iter_no_change": 0}, "n_iter_no_change must be an integer, at least 1, or None"),
        ({"n_iter_no_change": 1.5}, "n_iter_no_change must be an integer"),
        (
            {"n_iter_no_change": 1, "validation_fraction": 1.0},
            "validation_fraction must be a number between 0 and 1, got 1.0",
        ),
    ],
)
def test_impossible_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        KINDS["softmax"](**options).fit(*make_data())


@pytest.mark.essential_cases(4)
@pytest.mark.parametrize(
    ("purpose", "fraction"), [("stop by", 0.1), ("train on", 0.9)], ids=["held out", "training"]
)
def test_weights_of_0_where_they_count_are_refused_before_training(lib, purpose, fraction):
    X, y = make_hard()
    options = {"n_iter_no_change": 2, "validation_fraction": fraction}
    numbers = train_test_split(np.arange(len(y)), test_size=fraction, stratify=y, random_state=0)
    weights = np.ones(len(y))
    weights[numbers[purpose == "stop by"]] = 0
    seen = []
    model = KINDS["softmax"](**options)
    arrays = [lib.asarray(v) for v in (X, y, weights)]
    with pytest.raises(ValueError, match=f"sample_weight is 0 for all 12 samples to {purpose}"):
        model.fit(*arrays, callback=lambda epoch, history: seen.append(epoch))
    assert not seen
    kept = np.flatnonzero(weights)
    model.fit(X[kept], y[kept], weights[kept])  # the remedies
    KINDS["softmax"](**options | {"validation_fraction": 0.5}).fit(X, y, weights)
    model.fit(*arrays, X_val=arrays[0], y_val=arrays[1])
    assert np.isfinite(model.val_accuracy_history_).all()
