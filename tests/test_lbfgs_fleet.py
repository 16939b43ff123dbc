"""L-BFGS of several models in lockstep: each ends where it ends alone, in shared passes."""

import threading
import tracemalloc
import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning, FitFailedWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from test_estimators import make_data, make_pixels
from test_fleet_search import assert_same_search

import gpuclf
from gpuclf import FleetSearchCV, SoftmaxClassifier, Standardized
from gpuclf.devices.backends import to_device
from gpuclf.estimators import fleet_fitting, gradient_classifier
from gpuclf.estimators.fleet_fitting import fit_together
from gpuclf.models import SOFTMAX, LinearModel
from gpuclf.training import DivergedError, LBFGSMember, lbfgs, minimize_lbfgs, train_lbfgs

D, C = 6, 3
REGS = [1e-4, 1e-3, 1e-2, 0.1, 1.0]


def start(dtype=np.float64):
    return {"W": np.zeros((D, C), dtype), "b": np.zeros(C, dtype)}


def members_of(params, regs=REGS, **options):
    options = {"max_iter": 500, "tol": 1e-6} | options
    return [LBFGSMember(params, reg, **options) for reg in regs]


class Watched(LinearModel):
    """The softmax model; notes how many models each pass has, and may spoil what it finds."""

    def __init__(self, spoil=None):
        super().__init__("watched", SOFTMAX.data_loss)
        object.__setattr__(self, "widths", [])
        object.__setattr__(self, "spoil", spoil)

    def objective(self, params, X, y, reg, *args, **options):
        self.widths.append(1 if params["W"].ndim == 2 else len(params["W"]))
        loss, grads = super().objective(params, X, y, reg, *args, **options)
        return (loss if self.spoil is None else self.spoil(loss, reg)), grads


@pytest.mark.essential_cases(1, in_ci=3)
@pytest.mark.parametrize("weighted", [False, True])
def test_each_member_ends_where_it_ends_alone(lib, weighted):
    X, y = make_data()
    weights = lib.asarray(np.arange(len(y)) % 4 + 0.5) if weighted else None
    X, y = lib.asarray(X), lib.asarray(y)
    params = to_device(start(), like=X)
    members = [
        *members_of(params),
        LBFGSMember(params, 1e-3, max_iter=4, tol=1e-6),
        LBFGSMember(params, 1e-3, max_iter=500, tol=1e-2),
    ]
    train_lbfgs(SOFTMAX, members, X, y, sample_weight=weights)
    for member in members:
        assert member.error is None
        own = {"reg": member.reg, "max_iter": member.max_iter, "tol": member.tol}
        alone, history, n_iter = minimize_lbfgs(SOFTMAX, params, X, y, sample_weight=weights, **own)
        assert member.n_iter == n_iter
        np.testing.assert_allclose(member.history.loss, history.loss, rtol=1e-12)
        assert member.history.reached_max_iter == history.reached_max_iter
        for name, value in alone.items():
            assert type(member.params[name]) is type(value)
            np.testing.assert_allclose(
                lib.to_numpy(member.params[name]), lib.to_numpy(value), rtol=0, atol=1e-9
            )
    assert len({member.n_iter for member in members}) > 3
    assert [m.history.reached_max_iter for m in members] == [False] * 5 + [True, False]
    assert all(float(abs(lib.to_numpy(value)).max()) == 0 for value in params.values())


def test_a_round_is_one_pass_and_members_leave():
    X, y = make_data()
    together, alone = Watched(), Watched()
    members = members_of(start())
    train_lbfgs(together, members, X, y)
    counts = []
    for member in members_of(start()):
        alone.widths.clear()
        train_lbfgs(alone, [member], X, y)
        counts.append(len(alone.widths))
    rounds = range(max(counts))
    assert together.widths == [sum(count > n for count in counts) for n in rounds]
    assert together.widths[0] == len(REGS)
    assert together.widths[-1] == 1


@pytest.mark.slow
def test_a_member_that_diverges_leaves_the_others_alone():
    X, y = make_data()
    spoilt = Watched(lambda loss, reg: np.where(np.asarray(reg) == 1e-2, np.nan, loss))
    members = members_of(start())
    train_lbfgs(spoilt, members, X, y)
    expected = members_of(start())
    train_lbfgs(SOFTMAX, expected, X, y)
    for member, other in zip(members, expected, strict=True):
        if member.reg == 1e-2:
            assert isinstance(member.error, DivergedError)
            np.testing.assert_array_equal(member.params["W"], start()["W"])
        else:
            assert member.error is None
            np.testing.assert_allclose(member.params["W"], other.params["W"], rtol=0, atol=1e-9)


def test_a_search_that_raises_leaves_the_others_alone():
    X, y = make_data()
    members = members_of(start())
    members[1].max_iter = "many"
    train_lbfgs(SOFTMAX, members, X, y)
    assert isinstance(members[1].error, TypeError)
    assert [member.error is None for member in members] == [True, False, True, True, True]
    assert all(member.n_iter > 3 for member in members if member.error is None)


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["objective", "on_iteration"])
def test_what_ends_all_is_raised_and_no_thread_stays(error, where):
    X, y = make_data()
    n_threads, calls = threading.active_count(), []

    def fail(*args):
        calls.append(args)
        if len(calls) == 7:
            raise error
        return args[0] if where == "objective" else None

    given = {"on_iteration": fail} if where == "on_iteration" else {}
    model = Watched(fail) if where == "objective" else SOFTMAX
    with pytest.raises(error):
        train_lbfgs(model, members_of(start()), X, y, **given)
    assert threading.active_count() == n_threads


def test_two_on_few_samples_take_turns_and_end_with_the_bits_they_have_alone(monkeypatch):
    X, y = make_data()
    model, pair = Watched(), members_of(start(), REGS[:2])
    train_lbfgs(model, pair, X, y)
    assert set(model.widths) == {1}
    for member, other in zip(pair, members_of(start(), REGS[:2]), strict=True):
        train_lbfgs(SOFTMAX, [other], X, y)
        np.testing.assert_array_equal(member.params["W"], other.params["W"])
    monkeypatch.setattr(lbfgs, "SMALL_PASS", 0)
    train_lbfgs(model, members_of(start(), REGS[:2]), X, y)
    assert 2 in model.widths


def test_one_of_two_that_raises_leaves_the_other_alone_and_a_pass_that_raises_ends_both():
    X, y = make_data()
    members = members_of(start(), REGS[:2])
    members[0].max_iter = "many"
    train_lbfgs(SOFTMAX, members, X, y)
    assert isinstance(members[0].error, TypeError)
    assert members[1].error is None
    assert members[1].n_iter > 3

    def fail(loss, reg):
        raise MemoryError

    with pytest.raises(MemoryError):
        train_lbfgs(Watched(fail), members_of(start(), REGS[:2]), X, y)


def test_iterations_are_told_by_the_caller_s_thread_in_order_and_end_one_member():
    X, y = make_data()
    caller, told = threading.current_thread(), []
    members = members_of(start())

    def stop_the_second(number, params):
        assert threading.current_thread() is caller
        loss, _ = SOFTMAX.objective(params, X, y, REGS[number])
        assert members[number].history.loss[-1] == pytest.approx(float(loss), rel=1e-12)
        told.append(number)
        return number == 1 and told.count(1) == 3

    train_lbfgs(SOFTMAX, members, X, y, on_iteration=stop_the_second)
    assert told[:4] == [0, 1, 2, 3]  # the strongest penalty needs a second evaluation
    assert members[1].n_iter == told.count(1) == 3
    assert [told.count(k) for k in range(5)] == [member.n_iter for member in members]
    assert members[0].n_iter > 3


@pytest.mark.slow
def test_warm_starts_end_within_the_tolerance_in_fewer_iterations():
    X, y = make_data()
    regs = np.logspace(-4, 0, 12)
    cold, warm = (members_of(start(), regs, tol=1e-5) for _ in range(2))
    train_lbfgs(SOFTMAX, cold, X, y)
    train_lbfgs(SOFTMAX, warm, X, y, penalty_path=True)
    for member, other in zip(warm, cold, strict=True):
        _, grads = SOFTMAX.objective(member.params, X, y, member.reg)
        assert max(abs(grads["W"]).max(), abs(grads["b"]).max()) <= 1e-5
        assert member.history.loss[-1] == pytest.approx(other.history.loss[-1], rel=1e-6)
    iterations = [sum(member.n_iter for member in fleet) for fleet in (warm, cold)]
    assert iterations[0] < 0.95 * iterations[1]
    strongest_first = [cold[k].n_iter == warm[k].n_iter for k in (11, 7, 3)]
    assert strongest_first == [True] * 3  # they start as they would alone
    one = members_of(start(), [0.0])
    train_lbfgs(SOFTMAX, one, X, y, penalty_path=True)
    assert one[0].n_iter > 3


@pytest.mark.slow
def test_warm_starts_take_penalties_of_0_and_members_that_fail():
    X, y = make_data()
    regs = [1.0, 0.5, 0.2, 0.1, 0.0]
    spoilt = Watched(lambda loss, reg: np.where(np.asarray(reg) == 1.0, np.nan, loss))
    members = members_of(start(), regs, tol=1e-3)
    train_lbfgs(spoilt, members, X, y, penalty_path=True)
    assert [member.error is None for member in members] == [False, True, True, True, True]
    every = members_of(start(), regs)
    train_lbfgs(Watched(lambda loss, reg: loss * np.nan), every, X, y, penalty_path=True)
    assert all(isinstance(member.error, DivergedError) for member in every)


def test_a_member_s_memory_is_within_what_searches_count_on():
    n_features, n_models = 500, 6
    X, y = np.random.default_rng(0).standard_normal((40, n_features)), np.arange(40) % 10
    params = {"W": np.zeros((n_features, 10)), "b": np.zeros(10)}

    def peak(n):
        members = members_of(params, np.logspace(-3, 0, n), max_iter=2)
        tracemalloc.start()
        train_lbfgs(SOFTMAX, members, X, y)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(n_models)  # what is imported, compiled and kept
    copies = (peak(n_models) - peak(3)) / (n_models - 3) / (8 * (n_features + 1) * 10)
    assert 35 < copies < fleet_fitting.COPIES_IN_LBFGS


# ------------------------------------------------------------------------------- estimators


@pytest.fixture
def lbfgs_fleets(monkeypatch):
    """Numbers of the models that are trained together."""
    sizes, train = [], gradient_classifier.train_lbfgs

    def counted(model, members, *args, **options):
        sizes.append(len(members))
        return train(model, members, *args, **options)

    monkeypatch.setattr(gradient_classifier, "train_lbfgs", counted)
    return sizes


def softmax(**options):
    return SoftmaxClassifier(**{"solver": "lbfgs", "max_iter": 500, "tol": 1e-6} | options)


@pytest.mark.nightly
@pytest.mark.slow
def test_a_fleet_search_finds_what_grid_search_finds(lbfgs_fleets):
    X, y = make_data()
    grid = {"reg": [0.0, 1e-3, 0.1, 10.0], "tol": [1e-2, 1e-6], "max_iter": [400, 500]}
    grid["standardize"] = [True, False]  # other samples, so a fleet of its own
    options = {"cv": 3, "return_train_score": True}
    found = FleetSearchCV(softmax(), grid, **options).fit(X, y)
    assert lbfgs_fleets == [16, 16] * 3 + [1]
    expected = GridSearchCV(softmax(), grid, **options).fit(X, y)
    assert_same_search(found, expected)
    assert len(set(found.cv_results_["mean_test_score"])) > 1
    assert found.best_estimator_.n_iter_ == expected.best_estimator_.n_iter_


@pytest.mark.essential_cases(1, in_ci=3)
@pytest.mark.parametrize("form", ["array", "standardized", "bytes"])
def test_members_are_what_they_are_alone(lib, form):
    X, y = make_pixels() if form == "bytes" else make_data()
    X = Standardized.fit(lib.asarray(X)) if form == "standardized" else lib.asarray(X)
    y = lib.asarray(y)
    fleet = [softmax(reg=reg, precision="float64") for reg in REGS]
    assert fit_together(fleet, X, y) == [None] * len(REGS)
    for model in fleet:
        alone = softmax(**model.get_params()).fit(X, y)
        for name, value in alone.params_.items():
            np.testing.assert_allclose(
                lib.to_numpy(model.params_[name]), lib.to_numpy(value), rtol=0, atol=1e-9
            )
        assert model.n_iter_ == alone.n_iter_
        assert model.loss_history_ == pytest.approx(alone.loss_history_, rel=1e-10)


@pytest.mark.slow
def test_members_are_scikit_learn_s():
    X, y = make_data()
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    fleet = [softmax(reg=reg, tol=1e-10, standardize=False) for reg in REGS]
    assert fit_together(fleet, X, y) == [None] * len(REGS)
    for model in fleet:
        peer = LogisticRegression(C=1 / (2 * len(X) * model.reg), tol=1e-10, max_iter=5000)
        peer.fit(X, y)
        np.testing.assert_allclose(model.params_["W"].T, peer.coef_, rtol=0, atol=1e-6)
        # Scores that all move by one number are the same model.
        moved = model.params_["b"] - model.params_["b"].mean()
        np.testing.assert_allclose(moved, peer.intercept_ - peer.intercept_.mean(), atol=1e-6)


@pytest.mark.slow
def test_a_memory_budget_counts_scipy_s_workspace(lbfgs_fleets):
    X, y = make_data()
    one = 8 * 48 * (D * C + C)  # bytes
    grid = {"reg": np.logspace(-3, 0, 7)}
    whole = FleetSearchCV(softmax(), grid, cv=2, refit=False).fit(X, y)
    lbfgs_fleets.clear()
    split = FleetSearchCV(softmax(), grid, cv=2, refit=False, memory_budget=3 * one).fit(X, y)
    assert lbfgs_fleets == [3, 3, 1] * 2
    np.testing.assert_array_equal(
        split.cv_results_["mean_test_score"], whole.cv_results_["mean_test_score"]
    )


def test_those_that_stop_at_max_iter_warn_alone():
    X, y = make_data()
    fleet = [softmax(reg=1e-4, max_iter=3), softmax(), softmax(reg=1e-3, max_iter=2)]
    with pytest.warns(ConvergenceWarning) as caught:
        assert fit_together(fleet, X, y) == [None] * 3
    messages = [str(warning.message) for warning in caught]
    assert [message[:46] for message in messages] == [
        "L-BFGS stopped at max_iter=3 before it converg",
        "L-BFGS stopped at max_iter=2 before it converg",
    ]
    assert "(reg=0.0001)" in messages[0]
    assert [model.n_iter_ for model in fleet][::2] == [3, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        errors = fit_together(fleet, X, y)
    assert [type(error) for error in errors] == [ConvergenceWarning, type(None), ConvergenceWarning]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:One or more of the test scores are non-finite")
def test_impossible_members_are_reported_alone():
    X, y = make_data()
    grid = {"reg": [1e-3, -1.0, 1e-2]}
    with pytest.warns(FitFailedWarning, match="2 of 6 fits failed, the first: reg must be"):
        found = FleetSearchCV(softmax(), grid, cv=2).fit(X, y)
    assert np.isfinite(found.cv_results_["mean_test_score"]).tolist() == [True, False, True]


@pytest.mark.slow
def test_warm_starts_are_by_asking(lbfgs_fleets):
    X, y = make_data()
    grid = {"reg": np.logspace(-3, 0, 8)}
    search = FleetSearchCV(softmax(), grid, cv=2)
    assert search.penalty_path is False
    cold, warm = (
        FleetSearchCV(softmax(), grid, cv=2, penalty_path=asked).fit(X, y)
        for asked in (False, True)
    )
    np.testing.assert_allclose(
        warm.cv_results_["mean_test_score"], cold.cv_results_["mean_test_score"], atol=0.03
    )
    fleets = [[softmax(reg=reg) for reg in grid["reg"]] for _ in range(2)]
    for fleet, asked in zip(fleets, (False, True), strict=True):
        fit_together(fleet, X, y, penalty_path=asked)
    totals = [sum(model.n_iter_ for model in fleet) for fleet in fleets]
    assert totals[1] < totals[0]


def test_a_callback_counts_the_iterations_of_the_farthest_and_ends_all():
    X, y = make_data()
    told = []

    def stop_at_5(epoch):
        told.append(epoch)
        return epoch == 5

    fleet = [softmax(reg=reg) for reg in REGS]
    assert fit_together(fleet, X, y, callback=stop_at_5) == [None] * len(REGS)
    assert told == [1, 2, 3, 4, 5]
    assert all(model.n_iter_ in (4, 5, 6) for model in fleet)


def test_early_stopping_is_each_member_s_own():
    X, y = make_data(n=200)
    fleet = [softmax(reg=reg, n_iter_no_change=2) for reg in (1e-5, 1.0)]
    assert fit_together(fleet, X, y) == [None, None]
    for model in fleet:
        alone = softmax(**model.get_params()).fit(X, y)
        assert model.n_iter_ == alone.n_iter_
        assert model.val_accuracy_history_ == alone.val_accuracy_history_


@pytest.mark.slow
def test_coarse_to_fine_trains_lbfgs_candidates_together(lbfgs_fleets):
    X, y = make_data(n=80)
    epochs = []
    found = gpuclf.search.coarse_to_fine(
        softmax(), {"reg": (1e-4, 1.0)}, X[:60], y[:60], X[60:], y[60:], rounds=2, per_round=4,
        rng=0, on_epoch=lambda count, epoch: epochs.append((count, epoch)), refit=False,
    )  # fmt: skip
    assert lbfgs_fleets == [4, 4]
    assert len(found.results) == 8
    assert epochs[:3] == [(4, 1), (4, 2), (4, 3)]
