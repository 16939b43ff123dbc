"""The names that scikit-learn's users look for, held against scikit-learn's own."""

import io

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.exceptions import NotFittedError
from sklearn.feature_selection import SelectFromModel
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    StratifiedKFold,
    cross_val_predict,
    cross_val_score,
    train_test_split,
)
from sklearn.multioutput import MultiOutputClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_class_weight
from test_estimators import KINDS, SGD_KINDS, D, N, assert_same_params, make_data, make_pixels

import gpuclf
from gpuclf import FleetEnsemble, FleetSearchCV, SoftmaxClassifier, Standardized
from gpuclf.estimators import watching

LINEAR = ["softmax", "softmax-lbfgs", "svm"]
MEMBERS = [{"reg": 1e-3}, {"reg": 1e-1}, {"random_state": 5}]
every_kind = pytest.mark.parametrize("kind", KINDS)

# ------------------------------------------------------------------------------- coefficients


@pytest.mark.essential_cases(4)
@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("kind", LINEAR)
def test_coefficients_act_on_raw_features(lib, kind, n_classes, standardize):
    X, y = make_data(n_classes=n_classes)
    X = 3 * X + np.arange(D)
    model = KINDS[kind](standardize=standardize, batch_size=30).fit(lib.asarray(X), lib.asarray(y))
    rows = 1 if n_classes == 2 else n_classes
    assert model.coef_.shape == (rows, D)
    assert model.intercept_.shape == (rows,)
    assert type(model.coef_) is type(lib.asarray(X))
    found = X @ lib.to_numpy(model.coef_).T + lib.to_numpy(model.intercept_)
    wanted = lib.to_numpy(model.decision_function(lib.asarray(X)))
    np.testing.assert_allclose(found.reshape(wanted.shape), wanted, rtol=0, atol=1e-10)


def test_coefficients_of_bytes():
    X, y = make_pixels()
    model = KINDS["softmax"]().fit(X, y)
    assert model.coef_.dtype == model.params_["W"].dtype == np.float32
    found = X @ model.coef_.astype(float).T + model.intercept_
    # Scores are sums of 6 products of up to 255, whose factors have 24 bits.
    np.testing.assert_allclose(found, model.decision_function(X), rtol=0, atol=1e-4)


def test_an_unfitted_classifier_and_the_net_have_no_coefficients():
    assert not hasattr(SoftmaxClassifier(), "coef_")
    with pytest.raises(NotFittedError):
        _ = SoftmaxClassifier().intercept_
    assert not hasattr(KINDS["two-layer"]().fit(*make_data()), "coef_")


def test_features_are_selected_by_coefficients():
    X, y = make_data()
    model = KINDS["softmax"]().fit(X, y)
    assert 0 < SelectFromModel(model, prefit=True).transform(X).shape[1] < D


REG = 1e-2


@pytest.mark.essential_cases(1, in_ci=4)
@pytest.mark.parametrize("class_weight", [None, "balanced", "dict"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("load", [load_iris, load_wine, load_digits, load_breast_cancer])
def test_coefficients_are_those_of_logistic_regression(load, weighted, class_weight):
    X, y = load(return_X_y=True)
    X, y = X[::2][:400], y[::2][:400]
    n_classes = len(np.unique(y))
    if class_weight == "dict":
        class_weight = {0: 0.3, n_classes - 1: 2.5}
    given = np.random.default_rng(0).uniform(0.2, 3, len(y)) if weighted else None
    model = SoftmaxClassifier(
        solver="lbfgs", reg=REG, max_iter=2000, tol=1e-9, class_weight=class_weight
    ).fit(X, y, given)
    ones = np.ones(len(y)) if given is None else given
    options = {"sample_weight": ones} if class_weight == "balanced" else {}
    of_classes = compute_class_weight(class_weight, classes=model.classes_, y=y, **options)
    weights = ones * of_classes[y]
    scaler = StandardScaler().fit(X, sample_weight=weights)
    C = 1 / ((1 if n_classes == 2 else 2) * weights.sum() * REG)  # as the docstring derives it
    reference = LogisticRegression(
        C=C, class_weight=class_weight, solver="newton-cholesky", tol=1e-10, max_iter=500
    ).fit(scaler.transform(X), y, given)
    # Both are at the minimum; L-BFGS stops where the loss has no more digits, the square root of
    # which is what coefficients have.
    found, wanted = model.coef_ * scaler.scale_, reference.coef_
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())
    np.testing.assert_allclose(
        model.predict_log_proba(X), reference.predict_log_proba(scaler.transform(X)), atol=1e-4
    )


# ------------------------------------------------------------------------------- probabilities


@pytest.mark.essential_cases(5)
@pytest.mark.parametrize("kind", ["softmax", "softmax-lbfgs", "two-layer"])
def test_logarithms_of_probabilities(lib, kind):
    X, y = make_data()
    model = KINDS[kind]().fit(lib.asarray(X), lib.asarray(y))
    logs = lib.to_numpy(model.predict_log_proba(lib.asarray(X)))
    probs = lib.to_numpy(model.predict_proba(lib.asarray(X)))
    np.testing.assert_allclose(np.exp(logs), probs, rtol=1e-9)
    far = lib.to_numpy(model.predict_log_proba(lib.asarray(1e5 * X)))
    assert np.isfinite(far).all()
    assert far.min() < -1000
    assert not hasattr(KINDS["svm"](), "predict_log_proba")


# -------------------------------------------------------------------------------- class weights


@pytest.mark.essential_cases(3)
@every_kind
def test_class_weights_are_sample_weights(lib, kind):
    X, y = make_data()
    labels = np.array([-4, 7, 90])[y]
    weights = np.random.default_rng(0).uniform(0.5, 2, N)
    of_classes = {-4: 0.25, 90: 3.0}
    found = KINDS[kind](class_weight=of_classes).fit(
        *(lib.asarray(X), lib.asarray(labels), lib.asarray(weights))
    )
    by_hand = weights * np.array([of_classes.get(label, 1.0) for label in labels.tolist()])
    expected = KINDS[kind]().fit(*(lib.asarray(a) for a in (X, labels, by_hand)))
    np.testing.assert_allclose(found.loss_history_, expected.loss_history_, rtol=1e-10)
    assert not np.allclose(
        found.loss_history_[0], KINDS[kind]().fit(X, labels, weights).loss_history_[0]
    )


@pytest.mark.essential_cases(5)
@pytest.mark.parametrize("weighted", [False, True])
def test_balanced_class_weights_give_every_class_the_same_weight(lib, weighted):
    X, y = make_data()
    y = np.where(np.arange(N) < 60, 0, y)
    weights = np.random.default_rng(0).uniform(0.5, 2, N) if weighted else np.ones(N)
    totals = np.bincount(y, weights)
    by_hand = weights * (totals.sum() / (3 * totals))[y]
    given = (lib.asarray(weights),) if weighted else ()
    found = KINDS["softmax"](class_weight="balanced").fit(lib.asarray(X), lib.asarray(y), *given)
    expected = KINDS["softmax"]().fit(X, y, by_hand)
    np.testing.assert_allclose(found.loss_history_, expected.loss_history_, rtol=1e-9)


def test_class_weights_count_in_parts_too():
    X, y = make_data()
    labels = np.array(["ant", "bee", "cow"])
    model = KINDS["softmax"](class_weight={"bee": 5.0})
    model.partial_fit(X, labels[y], classes=labels)
    expected = KINDS["softmax"]().partial_fit(
        X, y, classes=np.arange(3), sample_weight=np.where(y == 1, 5.0, 1.0)
    )
    np.testing.assert_allclose(model.loss_history_, expected.loss_history_, rtol=1e-10)


def test_balanced_weights_in_parts_are_refused_with_a_remedy_that_works():
    X, y = make_data()
    model = KINDS["softmax"](class_weight="balanced")
    with pytest.raises(ValueError, match=r"must see all samples, .*: count once, set_params\("):
        model.partial_fit(X, y, classes=np.arange(3))
    weights = compute_class_weight("balanced", classes=np.arange(3), y=y)
    model.set_params(class_weight=dict(zip(np.arange(3), weights, strict=True)))
    assert model.partial_fit(X, y, classes=np.arange(3)).n_iter_ == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("auto", "class_weight must be a dict of finite weights .* got 'auto'"),
        ({0: -1.0}, "class_weight must be .* got {0: -1.0}"),
        ({0: np.nan}, "class_weight must be .* got {0: nan}"),
        ([1, 2, 3], r"class_weight must be .* got \[1, 2, 3\]"),
        ({7: 1.0}, r"has the label 7, which is not among the classes \[0, 1, 2\]"),
        ({0: 0, 1: 0, 2: 0}, "leaves no sample with a weight above 0"),
    ],
)
def test_wrong_class_weights_are_named(value, message):
    with pytest.raises(ValueError, match=message):
        KINDS["softmax"](class_weight=value).fit(*make_data())


def test_an_unknown_label_is_no_less_noticed_with_class_weights(lib):
    X, y = make_data()
    model = KINDS["softmax"](class_weight={0: 2.0})
    model.partial_fit(lib.asarray(X), lib.asarray(y), classes=np.arange(3))
    strange = y.copy()
    strange[5] = 9
    with pytest.raises((ValueError, gpuclf.training.DivergedError)):
        model.partial_fit(lib.asarray(X), lib.asarray(strange))


@pytest.mark.parametrize("weights", [{0: 2.0, 2: 0.5}, {np.int64(0): np.float64(2.0)}, "balanced"])
def test_class_weights_are_saved(tmp_path, weights):
    X, y = make_data()
    model = KINDS["softmax"](class_weight=weights, warm_start=True).fit(X, y)
    model.save(tmp_path / "model")
    again = gpuclf.load(tmp_path / "model")
    assert again.get_params() == model.get_params()
    assert_same_params(again.fit(X, y).params_, model.fit(X, y).params_)


# ---------------------------------------------------------------------------------- warm starts


@pytest.mark.essential_cases(4)
@pytest.mark.parametrize("standardize", [True, False])
@every_kind
def test_a_warm_start_begins_with_the_same_function(lib, kind, standardize):
    X, y = make_data()
    other, other_y = 2 * make_data(seed=3)[0] - 5, make_data(seed=3)[1]
    model = KINDS[kind](warm_start=True, standardize=standardize)
    model.fit(lib.asarray(X), lib.asarray(y))
    before = lib.to_numpy(model.class_scores(lib.asarray(X)))
    still = {"tol": 1e300} if kind == "softmax-lbfgs" else {"learning_rate": 1e-300, "max_iter": 1}
    model.set_params(**still)
    model.fit(lib.asarray(other), lib.asarray(other_y))
    found = lib.to_numpy(model.class_scores(lib.asarray(X)))
    np.testing.assert_allclose(found, before, rtol=0, atol=1e-9)


def test_a_warm_start_on_the_same_samples_is_at_the_minimum():
    X, y = make_data()
    model = KINDS["softmax-lbfgs"](warm_start=True).fit(X, y)
    n_first, scores = model.n_iter_, model.decision_function(X)
    assert model.fit(X, y).n_iter_ <= 2 < n_first
    np.testing.assert_allclose(model.decision_function(X), scores, atol=1e-3)
    assert model.set_params(warm_start=False).fit(X, y).n_iter_ == n_first


@pytest.mark.parametrize("kind", SGD_KINDS)
def test_a_warm_start_keeps_parameters_and_nothing_else(kind):
    X, y = make_data()
    model = KINDS[kind](warm_start=True).fit(X, y)
    cold = KINDS[kind]().fit(X, y)
    assert_same_params(model.params_, cold.params_)  # the first fit is as any
    model.fit(X, y)
    assert len(model.loss_history_) == len(cold.loss_history_)
    assert model.n_iter_ == cold.n_iter_
    assert model.history_.learning_rate == cold.history_.learning_rate
    assert np.mean(model.loss_history_[:5]) < np.mean(cold.loss_history_[:5])


def test_a_warm_start_of_other_classes_or_features_is_refused():
    X, y = make_data()
    model = KINDS["softmax"](warm_start=True).fit(X, y)
    before = dict(vars(model))
    with pytest.raises(
        ValueError, match=r"classes are \[0, 1, 2\], but y has \[0, 1\]; warm_start=F"
    ):
        model.fit(X, y % 2)
    with pytest.raises(ValueError, match=r"whose W has shape \(6, 3\), where \(4, 3\) is needed"):
        model.fit(X[:, :4], y)
    assert vars(model) == before
    model.set_params(warm_start=False).fit(X[:, :4], y % 2)  # the remedy
    net = KINDS["two-layer"](warm_start=True).fit(X, y).set_params(hidden_size=4)
    with pytest.raises(ValueError, match="whose W1 has shape"):
        net.fit(X, y)


# ------------------------------------------------------------------------- progress, callbacks


class Clock:
    """Seconds that pass by one at each look."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        self.now += 1
        return self.now


@pytest.mark.parametrize("kind", ["softmax", "softmax-lbfgs"])
def test_verbose_says_a_line_after_two_seconds_where_there_is_no_terminal(
    monkeypatch, capsys, kind
):
    monkeypatch.setattr(watching, "time", Clock())
    X, y = make_data()
    model = KINDS[kind](verbose=1).fit(X, y)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert 1 <= len(lines) < model.n_iter_
    loss = model.loss_history_[1] if kind == "softmax-lbfgs" else np.mean(model.loss_history_[5:10])
    assert lines[0] == f"training SoftmaxClassifier: 2 of {model.max_iter}, loss {loss:.4g}"
    quiet = KINDS[kind]().fit(X, y)
    assert capsys.readouterr() == ("", "")
    assert_same_params(model.params_, quiet.params_)


def test_a_short_fit_says_nothing_where_there_is_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr(watching, "SECONDS_WITHOUT_A_WORD", 1e9)
    KINDS["softmax"](verbose=1).fit(*make_data())
    assert capsys.readouterr() == ("", "")


def test_verbose_shows_a_bar_with_the_loss_on_a_terminal(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    KINDS["softmax"](verbose=True).fit(*make_data())
    shown = terminal.getvalue()
    assert "training SoftmaxClassifier, loss 0." in shown
    assert shown.endswith("\x1b[2K")  # nothing is left behind


def needs_callbacks():
    reason = "scikit-learn has callbacks from version 1.9 on"
    return pytest.importorskip("sklearn.callback", reason=reason)


class Recorder:
    """A callback of scikit-learn's that writes down what it hears."""

    max_propagation_depth = None

    def __init__(self, stops_at=None):
        self.heard, self.stops_at, self.scores = [], stops_at, []

    def setup(self, estimator, context):
        self.heard.append("setup")

    def teardown(self, estimator, context):
        self.heard.append("teardown")

    def on_fit_task_begin(self, estimator, context):
        self.heard.append(f"begin {context.task_name}")

    def on_fit_task_end(self, estimator, context, *, X=None, y=None, fitted_estimator=None):
        self.heard.append(f"end {context.task_name}")
        if context.task_name == "epoch" and fitted_estimator is not None:
            self.scores.append(fitted_estimator.score(X, y))
        return context.task_name == "epoch" and len(self.scores) == self.stops_at


@every_kind
def test_scikit_learns_callbacks_see_each_epoch(kind):
    needs_callbacks()
    X, y = make_data()
    recorder, seen = Recorder(), []
    model = KINDS[kind]().set_callbacks(recorder)
    model.fit(X, y, callback=lambda *_: seen.append(model.score(X, y)))
    heard = recorder.heard
    assert heard[:3] == ["setup", "begin fit", "begin epoch"]
    assert heard[-2:] == ["end fit", "teardown"]
    extra = kind == "softmax-lbfgs"  # the iteration that converged before it began
    assert heard.count("begin epoch") == heard.count("end epoch") == model.n_iter_ + extra
    assert recorder.scores == seen
    assert_same_params(model.params_, KINDS[kind]().fit(X, y).params_)


def test_a_callback_of_scikit_learns_may_stop_and_is_torn_down_after_an_error(tmp_path):
    needs_callbacks()
    X, y = make_data()
    recorder = Recorder(stops_at=2)
    model = KINDS["softmax"]().set_callbacks(recorder).fit(X, y)
    assert model.n_iter_ == 2
    assert recorder.heard.count("begin epoch") == 2
    before = dict(vars(model))
    for wrong in (lambda: model.fit(X, y[:-1]), lambda: model.set_params(reg=-1.0).fit(X, y)):
        with pytest.raises(ValueError, match=r"reg|inconsistent"):
            wrong()
    assert vars(model) == before | {"reg": -1.0}
    assert recorder.heard.count("setup") == recorder.heard.count("teardown") == 2
    model.set_params(reg=0.0).save(tmp_path / "model")
    assert gpuclf.load(tmp_path / "model").fit(X, y).n_iter_ == 5


@pytest.mark.parametrize("factor", [None, 2])
def test_scikit_learns_callbacks_see_a_search(factor):
    needs_callbacks()
    X, y = make_data()
    recorder = Recorder()
    grid = {"reg": [0.0, 1e-3], "batch_size": [20, 30]}
    search = FleetSearchCV(KINDS["softmax"](), grid, cv=2, factor=factor)
    search.set_callbacks(recorder).fit(X, y)
    heard = recorder.heard
    rounds = 1 if factor is None else len(search.n_candidates_)
    assert heard[:3] == ["setup", "begin fit", "begin fold"]
    assert heard.count("begin fold") == heard.count("end fold") == 2 * rounds
    assert heard.count("begin epoch") == heard.count("end epoch")
    if factor is None:  # two batch sizes of five epochs in two folds, and the refit
        assert heard.count("end epoch") == 2 * 2 * 5 + 5
    assert (heard.count("setup"), heard.count("teardown")) == (1, 1)
    assert len(recorder.scores) == 5  # of the refit
    expected = FleetSearchCV(KINDS["softmax"](), grid, cv=2, factor=factor).fit(X, y)
    np.testing.assert_array_equal(
        search.cv_results_["mean_test_score"], expected.cv_results_["mean_test_score"]
    )


def test_the_progress_bar_of_scikit_learn(capsys):
    bar = needs_callbacks().ProgressBar
    X, y = make_data()
    KINDS["softmax"]().set_callbacks(bar()).fit(X, y)
    assert "SoftmaxClassifier - fit" in capsys.readouterr().out
    FleetSearchCV(KINDS["svm"](), {"reg": [0.0, 1.0]}, cv=2).set_callbacks(bar()).fit(X, y)
    shown = capsys.readouterr().out
    assert "FleetSearchCV - fold #1" in shown
    assert "100%" in shown
    FleetEnsemble(KINDS["softmax"](), MEMBERS).set_callbacks(bar()).fit(X, y)
    assert "FleetEnsemble - members #0" in capsys.readouterr().out


def test_callbacks_that_a_fleet_cannot_call_are_not_passed_over():
    needs_callbacks()
    X, y = make_data()
    model = KINDS["softmax"]().set_callbacks(Recorder())
    for owner in (FleetSearchCV(model, {"reg": [0.0, 1.0]}, cv=2), FleetEnsemble(model, MEMBERS)):
        with pytest.warns(UserWarning, match="callbacks are not called .* set them on the search"):
            owner.fit(X, y)


# ----------------------------------------------------------------------------------- ensembles


@pytest.mark.essential_cases(2)
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize(
    ("kind", "voting"), [("softmax", None), ("softmax", "hard"), ("svm", None), ("two-layer", None)]
)
def test_the_decision_function_of_an_ensemble_is_its_vote(lib, kind, voting, n_classes):
    X, y = make_data(n_classes=n_classes)
    X[::3] *= -1  # so that they disagree
    ensemble = FleetEnsemble(KINDS[kind](), MEMBERS, voting=voting)
    ensemble.fit(lib.asarray(X), lib.asarray(y))
    found = lib.to_numpy(ensemble.decision_function(lib.asarray(X)))
    members = [lib.to_numpy(model.predict(lib.asarray(X))) for model in ensemble.estimators_]
    votes = np.mean([np.eye(n_classes)[labels] for labels in members], axis=0)
    if hasattr(ensemble, "predict_proba"):
        votes = lib.to_numpy(ensemble.predict_proba(lib.asarray(X)))
        logs = lib.to_numpy(ensemble.predict_log_proba(lib.asarray(X)))
        np.testing.assert_allclose(np.exp(logs), votes, rtol=1e-9)
    else:
        assert not hasattr(ensemble, "predict_log_proba")
    expected = votes[:, 1] - votes[:, 0] if n_classes == 2 else votes
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    winners = found > 0 if n_classes == 2 else found.argmax(axis=1)
    np.testing.assert_array_equal(lib.to_numpy(ensemble.predict(lib.asarray(X))), winners)


def test_log_probabilities_of_an_ensemble_are_finite():
    X, y = make_data()
    ensemble = FleetEnsemble(KINDS["softmax"](), MEMBERS).fit(X, y)
    assert np.isfinite(ensemble.predict_log_proba(1e5 * X)).all()


def test_names_of_columns_are_known_everywhere():
    pd = pytest.importorskip("pandas", reason="pandas is not installed")
    X, y = make_data()
    frame = pd.DataFrame(X, columns=list("abcdef"))
    search = FleetSearchCV(KINDS["softmax"](), {"reg": [0.1, 0.01]}, cv=2)
    for model in (KINDS["svm"](), search, FleetEnsemble(KINDS["softmax"](), MEMBERS)):
        assert list(model.fit(frame, y).feature_names_in_) == list("abcdef")
        assert model.predict(frame).shape == (N,)
        assert not hasattr(model.fit(X, y), "feature_names_in_") or model is search
        with pytest.warns(UserWarning, match="does not have valid feature names"):
            model.fit(frame, y).predict(X)


# --------------------------------------------------------------------------- forms of the input


def forms_of(labels):
    yield from (labels, tuple(labels), set(labels), frozenset(labels), np.array(labels))
    yield np.array(labels, dtype=object)
    yield dict.fromkeys(labels).keys()
    for name in ("pandas", "polars"):
        try:
            library = __import__(name)
        except ImportError:
            continue
        yield library.Series(labels)
        yield library.Series(labels).unique()


@pytest.mark.parametrize("labels", [["dog", "ant", "cat"], [7, -2, 30]])
def test_classes_of_partial_fit_in_all_forms(labels):
    X, y = make_data()
    y = np.array(labels)[y]
    expected = KINDS["softmax"]().partial_fit(X, y, classes=np.unique(y))
    for classes in forms_of(labels):
        model = KINDS["softmax"]().partial_fit(X, y, classes=classes)
        assert model.classes_.tolist() == sorted(labels), type(classes)
        assert_same_params(model.params_, expected.params_)
        model.partial_fit(X, y, classes=classes)
        assert set(model.predict(X).tolist()) <= set(labels)


def test_classes_that_are_not_in_one_dimension_are_refused():
    X, y = make_data()
    with pytest.raises(
        ValueError, match=r"classes must be labels in one dimension, .* got \[\[0, 1"
    ):
        KINDS["softmax"]().partial_fit(X, y, classes=[[0, 1, 2]])


class Wrapped:
    """What has numbers, and tells by __array__ alone."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype=dtype)


def test_fleets_take_what_tells_its_numbers_by_array_alone():
    X, y = make_data()
    weights = np.random.default_rng(0).random(N)
    for make in (
        lambda: FleetSearchCV(KINDS["softmax"](), {"reg": [0.0, 1.0]}, cv=2),
        lambda: FleetEnsemble(KINDS["softmax"](), MEMBERS),
    ):
        found = make().fit(Wrapped(X), Wrapped(y), sample_weight=Wrapped(weights))
        expected = make().fit(X, y, sample_weight=weights)
        np.testing.assert_array_equal(found.decision_function(X), expected.decision_function(X))


@pytest.mark.parametrize("form", ["csr_matrix", "csr_array", "coo_array"])
def test_sparse_samples_are_refused_by_name(form):
    sparse = pytest.importorskip("scipy.sparse")
    X, y = make_data()
    given = getattr(sparse, form)(X)
    for model in (
        FleetSearchCV(KINDS["softmax"](), {"reg": [0.0, 1.0]}, cv=2),
        FleetEnsemble(KINDS["softmax"](), MEMBERS),
        KINDS["softmax"](),
    ):
        with pytest.raises(TypeError, match=r"(?i)sparse.*\.toarray\(\)"):
            model.fit(given, y)
        model.fit(given.toarray(), y)  # the remedy


@pytest.mark.essential_cases(2)
def test_several_outputs_are_refused_with_a_remedy_that_works(lib):
    X, y = make_data()
    both = np.stack([y, y[::-1]], axis=1)
    with pytest.raises(ValueError, match=r"y has shape \(90, 2\).*MultiOutputClassifier"):
        KINDS["softmax"]().fit(lib.asarray(X), lib.asarray(both))
    found = MultiOutputClassifier(KINDS["softmax"]()).fit(X, both).predict(X)
    np.testing.assert_array_equal(found[:, 0], KINDS["softmax"]().fit(X, y).predict(X))


# ------------------------------------------------------------------- Standardized in splitters


@pytest.mark.parametrize("make", [make_data, make_pixels])
def test_standardized_samples_are_split_as_arrays_are(make):
    X, y = make()
    given = Standardized.fit(X)
    train, test, y_train, y_test = train_test_split(given, y, stratify=y, random_state=0)
    X_train, X_test, *labels = train_test_split(X, y, stratify=y, random_state=0)
    for found, expected in ((train, X_train), (test, X_test)):
        assert isinstance(found, Standardized)
        assert len(found) == len(expected)
        np.testing.assert_array_equal(found.X, expected)
        np.testing.assert_array_equal(found.mean, given.mean)
    np.testing.assert_array_equal(y_train, labels[0])
    np.testing.assert_array_equal(y_test, labels[1])
    for rows in (np.array([3, 1]), [3, 1], slice(2, 9, 3), y == 1, slice(None)):
        np.testing.assert_array_equal(given[rows, ...].X, X[rows])
        np.testing.assert_array_equal(given[rows, :].X, X[rows])
    for wrong in ((slice(None), 0), (slice(None), [1, 2]), (0, 1, 2), 3):
        with pytest.raises(TypeError, match="index Standardized"):
            given[wrong]


def test_cross_validation_takes_standardized_samples():
    X, y = make_data()
    given = Standardized.fit(X)
    model, cv = KINDS["softmax"](), StratifiedKFold(3)
    by_hand = [
        clone(model).fit(given[train], y[train]).score(given[test], y[test])
        for train, test in cv.split(X, y)
    ]
    np.testing.assert_array_equal(cross_val_score(model, given, y, cv=cv), by_hand)
    assert cross_val_predict(model, given, y, cv=cv).shape == (N,)
    search = GridSearchCV(model, {"reg": [0.0, 1e-3]}, cv=cv).fit(given, y)
    fleet = FleetSearchCV(model, {"reg": [0.0, 1e-3]}, cv=cv).fit(given, y)
    np.testing.assert_allclose(*(found.cv_results_["mean_test_score"] for found in (search, fleet)))


def test_fit_of_standardized_is_called_on_the_class():
    given = Standardized.fit(make_data()[0])
    assert not hasattr(given, "fit")
    with pytest.raises(AttributeError, match=r"on the class: gpuclf\.Standardized\.fit\(X\)"):
        given.fit(given.X)
