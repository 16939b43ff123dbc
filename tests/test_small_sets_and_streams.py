"""Defaults for few samples, streams of chunks, and what fits are given and fail by."""

import warnings

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning
from test_estimators import KINDS, C, N, every_sgd_kind, make_data

from gpuclf import LinearSVMClassifier, SoftmaxClassifier, Standardized, TwoLayerNetClassifier
from gpuclf.training import DivergedError


@every_sgd_kind
def test_a_call_of_partial_fit_is_no_epoch(kind):
    X, y = make_data()
    stream = KINDS[kind](learning_rate=0.01, learning_rate_decay=0.5, max_iter=2)
    for call in range(6):
        stream.partial_fit(X, y, classes=np.arange(C))
        if call == 4:
            stream.set_params(learning_rate=1e-3)
    rates = np.reshape(stream.history_.learning_rate, (6, -1))
    np.testing.assert_array_equal(rates[:5], 0.01)
    np.testing.assert_array_equal(rates[5], 1e-3)


CLASSES = [SoftmaxClassifier, LinearSVMClassifier, TwoLayerNetClassifier]


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("kind", CLASSES)
def test_a_stream_of_digits_learns_what_fit_learns(kind):
    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(1700)
    X, y = X[order], y[order]
    stream = kind(random_state=0)
    for _ in range(60):
        for first in range(0, 1700, 100):
            rows = slice(first, first + 100)
            stream.partial_fit(X[rows], y[rows], classes=np.arange(10))
    assert stream.score(X, y) >= max(0.97, kind(random_state=0).fit(X, y).score(X, y) - 0.01)


@pytest.mark.essential_cases(3)
@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("load", [load_iris, load_wine, load_breast_cancer, load_digits])
def test_the_defaults_serve_small_sets(load, kind):
    X, y = load(return_X_y=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = kind(random_state=0).fit(X, y)
    assert model.score(X, y) >= 0.96


@pytest.mark.parametrize(
    ("n", "wanted"), [(1, 16), (150, 16), (161, 17), (1990, 199), (1991, 200), (50_000, 200)]
)
def test_few_samples_get_small_batches(n, wanted):
    assert SoftmaxClassifier().samples_of_step(n) == wanted
    assert SoftmaxClassifier(batch_size=7).samples_of_step(n) == 7


RATES = [*zip(CLASSES, [0.003, 0.0003, 0.05], strict=True)]


@pytest.mark.essential_cases(4)
@pytest.mark.parametrize(("kind", "rate"), RATES)
@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize(("n_features", "factor"), [(4000, 1), (3072, 1), (192, 8), (12, 64)])
def test_the_learning_rate_follows_from_the_features(kind, rate, standardize, n_features, factor):
    X = np.random.default_rng(0).random((40, n_features))
    model = kind(standardize=standardize, schedule="exponential", max_iter=1).fit(X, X[:, 0] > 0.5)
    known = standardize and kind is not TwoLayerNetClassifier
    assert model.history_.learning_rate[0] == pytest.approx(rate * (factor if known else 1))


def test_training_that_ends_too_soon_says_so():
    X, y = load_digits(return_X_y=True)
    for options in ({"max_iter": 2}, {"batch_size": 2000}):
        with pytest.warns(ConvergenceWarning, match=r"SGD stopped at max_iter=\d+ after 20 steps"):
            model = SoftmaxClassifier(random_state=0, **options).fit(X, y)
        assert model.score(X, y) < 0.96
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for remedy in ({"max_iter": 20}, {"max_iter": 2, "batch_size": 4}):
            assert SoftmaxClassifier(random_state=0, **remedy).fit(X, y).score(X, y) > 0.96
        # Who ends it themselves needs no warning.
        SoftmaxClassifier(random_state=0).fit(X, y, callback=lambda epoch, history: epoch == 2)


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize(
    "weights", [np.zeros(N), np.full(N, 1e308)], ids=["0 everywhere", "their sum overflows"]
)
def test_weights_are_blamed_where_weights_are_at_fault(weights, standardize):
    X, y = make_data()
    for samples in (X, Standardized(X, 0.0, 1.0)):
        with pytest.raises(ValueError, match=r"sample_weight must be finite|Sample weights must"):
            KINDS["softmax"](standardize=standardize).fit(samples, y, weights)
    with pytest.raises(ValueError, match="sample_weight must be finite"):
        Standardized.fit(X, weights)


@pytest.mark.parametrize(
    "make",
    [np.random.default_rng, np.random.RandomState, np.random.PCG64],
    ids=lambda m: m.__name__,
)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_a_generator_handed_in_comes_back_as_it_was_when_a_fit_fails(make, method):
    X, y = make_data()
    state, untouched = make(3), make(3)
    model = KINDS["softmax"](random_state=state, learning_rate=1e300)
    options = {"classes": np.arange(C)} if method == "partial_fit" else {}
    with pytest.raises(DivergedError):
        getattr(model, method)(10 * X, y, **options)
    if make is np.random.PCG64:
        state, untouched = map(np.random.Generator, (state, untouched))
    np.testing.assert_array_equal(state.random(5), untouched.random(5))


@pytest.mark.parametrize("kind", ["list", "set", "pandas", "polars", "Index", "range"])
def test_classes_of_partial_fit_may_be_anything_that_holds_labels(kind):
    X, y = make_data()
    labels = y if kind == "range" else np.array(["ant", "cat", "dog"])[y]
    if kind in ("pandas", "Index"):
        pandas = pytest.importorskip("pandas", reason="pandas is not installed")
        classes = pandas.Series(labels).unique() if kind == "pandas" else pandas.Index(labels)
    elif kind == "polars":
        polars = pytest.importorskip("polars", reason="polars is not installed")
        classes = polars.Series(labels).unique()
    else:
        classes = range(C) if kind == "range" else {"list": list, "set": set}[kind](labels.tolist())
    model = KINDS["softmax"]()
    for _ in range(5):
        model.partial_fit(X, labels, classes=classes)
    assert model.classes_.tolist() == sorted(set(labels.tolist()))
    assert model.score(X, labels) > 0.8
