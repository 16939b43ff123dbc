import math

import joblib
import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.neighbors import KNeighborsClassifier

import gpuclf
from gpuclf import SoftmaxClassifier, Standardized, TwoLayerNetClassifier
from gpuclf.search import coarse_to_fine, train_candidates
from gpuclf.training import DivergedError

SPACE = {"learning_rate": (1e-6, 1e0), "reg": (1e-5, 1e1)}
NOTHING = (np.zeros((40, 1)), np.zeros(40), np.zeros((10, 1)), np.zeros(10))


class Peak(BaseEstimator):
    """Best at one known point; diverges above a learning rate."""

    fitted = ()  # of the class: clones report here

    def __init__(self, learning_rate=0.1, reg=0.1, limit=math.inf, kind="a"):
        self.learning_rate = learning_rate
        self.reg = reg
        self.limit = limit
        self.kind = kind

    def fit(self, X, y):
        Peak.fitted = (*Peak.fitted, len(X))
        if self.learning_rate > self.limit:
            raise DivergedError("the loss became inf")
        self.fitted_ = True
        return self

    def score(self, X, y):
        assert self.fitted_
        assert len(X) == len(y)
        away = math.log10(self.learning_rate / 1e-2) ** 2 + math.log10(self.reg / 1e-3) ** 2
        return (1 if len(X) == 10 and self.kind == "a" else 0.5) / (1 + away)


@pytest.fixture(autouse=True)
def nothing_fitted():
    Peak.fitted = ()


def distance(params):
    return math.hypot(math.log10(params["learning_rate"] / 1e-2), math.log10(params["reg"] / 1e-3))


@pytest.mark.parametrize("seed", range(5))
def test_later_rounds_come_closer_to_the_peak(seed):
    found = coarse_to_fine(Peak(), SPACE, *NOTHING, rounds=4, per_round=8, rng=seed)
    rows = found.results
    assert [row["round"] for row in rows] == [r for r in range(4) for _ in range(8)]
    typical = [np.median([distance(r["params"]) for r in rows if r["round"] == n]) for n in (0, 3)]
    assert typical[1] < typical[0] / 3
    assert distance(found.best_params) < 0.5
    assert found.best_val_accuracy == max(row["val_accuracy"] for row in rows)
    assert found.best_params == max(rows, key=lambda row: row["val_accuracy"])["params"]
    for row in rows:
        assert row["seconds"] >= 0
        assert row["diverged"] is False


def test_a_round_lies_in_the_narrowed_ranges_around_the_best_before_it():
    found = coarse_to_fine(Peak(), SPACE, *NOTHING, rounds=4, per_round=6, rng=0)
    for number in range(1, 4):
        before = [row for row in found.results if row["round"] < number]
        best = max(before, key=lambda row: row["val_accuracy"])["params"]
        for name, (low, high) in SPACE.items():
            reach = 0.4**number * math.log10(high / low) / 2
            values = [row["params"][name] for row in found.results if row["round"] == number]
            logs = np.log10(values)
            assert np.all(np.abs(logs - math.log10(best[name])) <= reach + 0.005)  # three digits
            assert low <= min(values) <= max(values) <= high
            assert np.ptp(logs) > reach / 2  # and they use it


def test_a_round_is_spread_over_the_whole_range():
    found = coarse_to_fine(Peak(), SPACE, *NOTHING, rounds=1, per_round=10, rng=3)
    for name, (low, high) in SPACE.items():
        shares = [
            math.log(row["params"][name] / low) / math.log(high / low) for row in found.results
        ]
        assert sorted(int(share * 10) for share in shares) == list(range(10))  # one in each tenth
    orders = [np.argsort([row["params"][name] for row in found.results]) for name in SPACE]
    assert not np.array_equal(*orders)  # not along a diagonal


def test_a_best_candidate_at_the_edge_does_not_leave_the_range():
    space = {"learning_rate": (1e-6, 1e-4), "reg": (1e-3, 1e-3)}
    found = coarse_to_fine(Peak(), space, *NOTHING, rounds=3, per_round=5, rng=0)
    rates = [row["params"]["learning_rate"] for row in found.results]
    assert max(rates) <= 1e-4
    assert found.best_params["learning_rate"] > 8e-5
    assert {row["params"]["reg"] for row in found.results} == {1e-3}


def test_values_have_three_digits():
    found = coarse_to_fine(Peak(), SPACE, *NOTHING, rounds=2, per_round=5, rng=0)
    for row in found.results:
        for value in row["params"].values():
            assert type(value) is float
            assert float(f"{value:.3g}") == value


def test_the_same_seed_finds_the_same():
    def params(rng):
        found = coarse_to_fine(Peak(), SPACE, *NOTHING, rounds=2, per_round=4, rng=rng)
        return [row["params"] for row in found.results]

    assert params(1) == params(1) == params(np.random.default_rng(1))
    assert params(1) != params(2)


def test_candidates_that_diverge_are_kept_as_such_and_the_search_goes_on():
    found = coarse_to_fine(Peak(limit=1e-3), SPACE, *NOTHING, rounds=3, per_round=8, rng=0)
    assert len(found.results) == 24
    for row in found.results:
        assert row["diverged"] is (row["params"]["learning_rate"] > 1e-3)
        if row["diverged"]:
            assert row["val_accuracy"] is row["train_accuracy"] is None
    assert any(row["diverged"] for row in found.results)
    assert found.best_params["learning_rate"] <= 1e-3


def test_a_round_in_which_all_diverge_is_followed_by_another_draw():
    peak = Peak(limit=3e-6)  # of six decades half a one
    found = coarse_to_fine(peak, SPACE, *NOTHING, rounds=30, per_round=1, rng=0)
    first = next(i for i, row in enumerate(found.results) if not row["diverged"])
    assert first > 0


def test_where_all_diverge_the_remedy_is_said():
    with pytest.raises(DivergedError, match=r"all 4 candidates diverged \(learning_rate in "):
        coarse_to_fine(Peak(limit=1e-9), SPACE, *NOTHING, rounds=2, per_round=2)


def test_other_errors_are_not_swallowed():
    with pytest.raises(ValueError, match="learning_rate must be"):
        coarse_to_fine(SoftmaxClassifier(), {"learning_rate": [-1.0]}, *NOTHING)


def test_lists_are_tried_in_every_combination_once():
    space = {"learning_rate": [1e-2, 1e-1], "kind": ["b", "a"]}
    found = coarse_to_fine(Peak(reg=1e-3), space, *NOTHING, rounds=3, per_round=2)
    assert [row["params"] for row in found.results] == [
        {"learning_rate": rate, "kind": kind} for rate in (1e-2, 1e-1) for kind in ("b", "a")
    ]
    assert found.best_params == {"learning_rate": 1e-2, "kind": "a"}


def test_lists_beside_ranges_are_drawn_from():
    space = SPACE | {"kind": ["a", "b", "c"]}
    found = coarse_to_fine(Peak(), space, *NOTHING, rounds=2, per_round=20, rng=0)
    assert {row["params"]["kind"] for row in found.results} == {"a", "b", "c"}
    assert found.best_params["kind"] == "a"


def test_of_equals_the_first_is_the_best():
    found = coarse_to_fine(Peak(), {"limit": [3.0, 2.0]}, *NOTHING)
    assert found.best_params == {"limit": 3.0}


def test_the_callback_sees_the_rows_so_far_and_may_stop():
    seen = []

    def callback(results):
        seen.append([row["params"] for row in results])
        return len(results) == 5

    found = coarse_to_fine(Peak(), SPACE, *NOTHING, rounds=2, per_round=4, rng=0, callback=callback)
    assert [len(rows) for rows in seen] == [1, 2, 3, 4, 5]
    assert len(found.results) == 5
    assert seen[-1] == [row["params"] for row in found.results]
    assert [row["round"] for row in found.results] == [0, 0, 0, 0, 1]


def test_the_best_is_trained_again_if_wanted():
    peak = Peak(kind="b")
    found = coarse_to_fine(peak, SPACE, *NOTHING, rounds=1, per_round=3)
    assert len(Peak.fitted) == 4
    assert found.best_estimator.get_params() == peak.get_params() | found.best_params
    assert found.best_estimator.fitted_
    without = coarse_to_fine(peak, SPACE, *NOTHING, rounds=1, per_round=3, refit=False)
    assert without.best_estimator is None
    assert len(Peak.fitted) == 7
    assert not hasattr(peak, "fitted_")
    assert peak.get_params() == Peak(kind="b").get_params()


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [
        ({}, {}, "at least one"),
        ({"momentum": (0.1, 0.9)}, {}, "Peak has no hyper-parameter 'momentum'; it has kind"),
        ({"reg": (0.0, 1.0)}, {}, r"reg must be .* got \(0.0, 1.0\)"),
        ({"reg": (2.0, 1.0)}, {}, r"got \(2.0, 1.0\)"),
        ({"reg": (1.0, math.inf)}, {}, r"got \(1.0, inf\)"),
        ({"reg": (1.0, math.nan)}, {}, r"got \(1.0, nan\)"),
        ({"reg": (1.0, 2.0, 3.0)}, {}, r"got \(1.0, 2.0, 3.0\)"),
        ({"reg": []}, {}, r"got \[\]"),
        ({"reg": 0.1}, {}, "got 0.1"),
        (SPACE, {"rounds": 0}, "rounds must be at least 1, got 0"),
        (SPACE, {"per_round": 0}, "per_round must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_training(space, options, message):
    with pytest.raises(ValueError, match=message):
        coarse_to_fine(Peak(), space, *NOTHING, **options)
    assert Peak.fitted == ()


# ------------------------------------------------------------------------ real classifiers


def make_data(n, seed):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    return rng.standard_normal((n, 6)) + 2 * np.eye(3, 6)[y], y


@pytest.mark.essential_cases(1)
def test_rows_are_what_training_by_hand_gives(lib):
    (X, y), (X_val, y_val) = make_data(90, 0), make_data(30, 1)
    classifier = SoftmaxClassifier(max_iter=2, batch_size=20, random_state=0)
    candidates = [{"learning_rate": rate, "reg": 10.0} for rate in (1e-4, 0.05, 1e60)]
    rows = train_candidates(
        classifier, candidates, *map(lib.asarray, (X, y)), *map(lib.asarray, (X_val, y_val))
    )
    for row, params in zip(rows, candidates, strict=True):
        assert row["params"] == params
        assert row["diverged"] is (params["learning_rate"] == 1e60)
        if not row["diverged"]:
            alone = SoftmaxClassifier(max_iter=2, batch_size=20, random_state=0, **params)
            alone.fit(X, y)
            assert row["val_accuracy"] == alone.score(X_val, y_val)
            assert row["train_accuracy"] == alone.score(X[::3], y[::3])
    assert not hasattr(classifier, "params_")


def test_standardized_samples_are_searched_as_they_are():
    (X, y), (X_val, y_val) = make_data(90, 0), make_data(30, 1)
    classifier = SoftmaxClassifier(max_iter=2, batch_size=20, random_state=0)
    options = {"rounds": 1, "per_round": 3, "rng": 0}
    space = {"learning_rate": (1e-3, 1e-1)}
    plain = coarse_to_fine(classifier, space, X, y, X_val, y_val, **options)
    once = coarse_to_fine(classifier, space, Standardized.fit(X), y, X_val, y_val, **options)
    for a, b in zip(plain.results, once.results, strict=True):
        times = {"seconds": 0, "fit_seconds": 0}
        assert a | times == b | times
    assert once.best_estimator.score(X_val, y_val) == once.best_val_accuracy


def test_neighbours_are_searched_over_a_list():
    (X, y), (X_val, y_val) = make_data(90, 0), make_data(60, 1)
    found = coarse_to_fine(KNeighborsClassifier(), {"n_neighbors": [1, 9, 90]}, X, y, X_val, y_val)
    accuracies = [
        KNeighborsClassifier(n_neighbors=k).fit(X, y).score(X_val, y_val) for k in (1, 9, 90)
    ]
    assert [row["val_accuracy"] for row in found.results] == accuracies
    assert found.best_val_accuracy == max(accuracies) > accuracies[-1]


def test_lists_of_samples_are_accepted():
    (X, y), (X_val, y_val) = make_data(90, 0), make_data(30, 1)
    found = coarse_to_fine(
        *(KNeighborsClassifier(), {"n_neighbors": [1, 9]}),
        *(X.tolist(), y.tolist(), X_val.tolist(), y_val.tolist()),
    )
    assert len(found.results) == 2


# ------------------------------------------------------------------- whole numbers, failures


def test_ranges_of_whole_numbers_give_whole_numbers():
    (X, y), (X_val, y_val) = make_data(90, 0), make_data(30, 1)
    net = TwoLayerNetClassifier(max_iter=1, random_state=0)
    space = {"hidden_size": (10, 100), "learning_rate": (1e-3, 1e-1)}
    found = coarse_to_fine(net, space, X, y, X_val, y_val, rounds=3, per_round=4, rng=0)
    sizes = [row["params"]["hidden_size"] for row in found.results]
    assert all(type(size) is int for size in sizes)
    assert 10 <= min(sizes) < max(sizes) <= 100
    assert len(set(sizes)) > 6
    assert type(found.results[0]["params"]["learning_rate"]) is float


def test_a_range_with_whole_ends_of_a_float_gives_floats():
    found = coarse_to_fine(Peak(), {"reg": (1, 10)}, *NOTHING, rounds=1, per_round=5, rng=0)
    assert {type(row["params"]["reg"]) for row in found.results} == {float}


def test_candidates_that_are_impossible_are_kept_as_failed_and_the_search_goes_on():
    (X, y), (X_val, y_val) = make_data(20, 0), make_data(30, 1)
    space = {"n_neighbors": [3, 50, 5]}
    found = coarse_to_fine(gpuclf.KNeighborsClassifier(), space, X, y, X_val, y_val)
    assert [row["val_accuracy"] is None for row in found.results] == [False, True, False]
    failed = found.results[1]
    assert failed["diverged"] is False
    assert "got 50" in failed["error"]
    assert found.results[0]["error"] is None
    assert found.best_params["n_neighbors"] in (3, 5)


def test_rows_tell_the_time_to_fit():
    found = coarse_to_fine(Peak(), SPACE, *NOTHING, rounds=1, per_round=2)
    assert all(0 <= row["fit_seconds"] <= row["seconds"] for row in found.results)


def test_candidates_that_see_the_same_mini_batches_are_trained_together(monkeypatch):
    from gpuclf.estimators import gradient_classifier

    sizes, train_sgd = [], gradient_classifier.train_sgd

    def counted(model, members, *args, **options):
        sizes.append(len(members))
        return train_sgd(model, members, *args, **options)

    monkeypatch.setattr(gradient_classifier, "train_sgd", counted)
    X, y = gpuclf.datasets.make_synthetic(120)
    net = gpuclf.TwoLayerNetClassifier(max_iter=3, random_state=0)
    space = {"learning_rate": [1e-3, 1e300, 1e-2], "hidden_size": [3, 4]}
    found = coarse_to_fine(net, space, X[:80], y[:80], X[80:], y[80:], refit=False)
    assert sizes == [3, 3]
    assert [row["diverged"] for row in found.results] == [False, True, False] * 2
    sizes_of_rows = [row["params"]["hidden_size"] for row in found.results]
    assert sizes_of_rows == [3, 3, 3, 4, 4, 4]  # in the order of training
    for row in (row for row in found.results if not row["diverged"]):
        alone = gpuclf.TwoLayerNetClassifier(max_iter=3, random_state=0, **row["params"])
        assert row["val_accuracy"] == alone.fit(X[:80], y[:80]).score(X[80:], y[80:])


def test_epochs_are_told_while_candidates_are_trained():
    (X, y), (X_val, y_val) = make_data(90, 0), make_data(30, 1)
    epochs = []
    coarse_to_fine(
        *(SoftmaxClassifier(max_iter=2, batch_size=20, random_state=0), {"reg": (1e-3, 1.0)}),
        *(X, y, X_val, y_val),
        **{"rounds": 2, "per_round": 3, "rng": 0, "refit": False},
        on_epoch=lambda count, epoch: epochs.append((count, epoch)),
    )
    assert epochs == [(3, 1), (3, 2)] * 2


# --------------------------------------------------------------------------------------- workers


@pytest.mark.parametrize("classifier", ["together", "one by one"])
def test_workers_find_what_is_found_here(classifier):
    X, y = gpuclf.datasets.make_synthetic(120)
    model, space = SoftmaxClassifier(max_iter=2, random_state=0), {"reg": (1e-4, 1e-1)}
    if classifier == "one by one":
        model, space = gpuclf.KNeighborsClassifier(), {"n_neighbors": [1, 3, 200, 5]}
    given = model, space, X[:80], y[:80], X[80:], y[80:]
    options = {"rounds": 2, "per_round": 4, "rng": 0, "refit": False}
    expected = coarse_to_fine(*given, **options)
    with joblib.parallel_config("threading"):
        found = coarse_to_fine(*given, **options, n_jobs=2, worker_backend="numpy")
    timeless = [
        [{k: v for k, v in row.items() if "seconds" not in k} for row in result.results]
        for result in (found, expected)
    ]
    assert timeless[0] == timeless[1]
    assert found.best_params == expected.best_params
    with pytest.raises(ValueError, match="n_jobs must be None"):
        coarse_to_fine(*given, **options, n_jobs=0)
