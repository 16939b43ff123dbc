"""Sharded samples give what the whole gives: here, in this process; test_cluster.py has workers."""

import copy
import pickle

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from test_estimators import make_data, make_pixels

import gpuclf
from gpuclf import (
    FleetSearchCV,
    KNeighborsClassifier,
    LinearSVMClassifier,
    Sharded,
    SoftmaxClassifier,
    Standardized,
    TwoLayerNetClassifier,
)
from gpuclf.estimators.fleet_fitting import fit_together
from gpuclf.models import SOFTMAX
from gpuclf.models.neighbors import k_neighbors
from gpuclf.naive import softmax_loss_naive
from gpuclf.samples import holders
from gpuclf.training import LBFGSMember, train_lbfgs
from gpuclf.training.lbfgs import _sum_of_chunks

LENGTHS = (40, 1, 29, 20)  # uneven, and a single sample


def in_chunks(X, lengths=LENGTHS):
    return np.split(X, np.cumsum(lengths)[:-1])


def lbfgs(kind=SoftmaxClassifier, **options):
    options = {"max_iter": 300, "tol": 1e-7, "reg": 1e-2, "random_state": 0} | options
    return kind(solver="lbfgs", **options)


@pytest.mark.parametrize("n_models", [1, 3])
def test_the_parts_of_the_objective_are_the_whole(n_models):
    X, y = make_data()
    rng = np.random.default_rng(1)
    params = {"W": rng.standard_normal((n_models, 6, 3)), "b": rng.standard_normal((n_models, 3))}
    reg = np.linspace(0.1, 0.5, n_models)
    if n_models == 1:
        params, reg = {name: value[0] for name, value in params.items()}, 0.1
    shards = Sharded(in_chunks(X))
    with shards.beside(y, None):
        loss, grads = _sum_of_chunks(SOFTMAX, params, shards, y, reg, None, precision="float64")
    of_whole, expected = SOFTMAX.objective(params, X, y, reg)
    np.testing.assert_allclose(loss, of_whole, rtol=1e-14)
    for name in params:
        np.testing.assert_allclose(grads[name], expected[name], atol=1e-15)
    if n_models == 1:
        W = np.vstack([params["W"]])
        with shards.beside(y, None):
            loss, grads = _sum_of_chunks(
                SOFTMAX, {"W": W}, shards, y, 0.1, None, precision="float64"
            )
        naive_loss, naive_dW = softmax_loss_naive(W, X, y, 0.1)
        np.testing.assert_allclose(loss, naive_loss, rtol=1e-12)
        np.testing.assert_allclose(grads["W"], naive_dW, atol=1e-13)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("samples", [make_pixels, make_data])
def test_moments_are_those_of_the_whole(samples, weighted):
    X, _ = samples()
    weights = np.arange(len(X)) % 4 * 0.3 if weighted else None  # the first sample has none
    found = Standardized.fit(Sharded(in_chunks(X)), weights)
    expected = Standardized.fit(X, weights)
    if X.dtype == np.uint8 and not weighted:  # sums of whole numbers
        np.testing.assert_array_equal(found.mean, expected.mean)
        np.testing.assert_array_equal(found.scale, expected.scale)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(found.scale, expected.scale, rtol=1e-14)
    np.testing.assert_allclose(
        found.mean, np.average(X, axis=0, weights=weights), rtol=1e-13, atol=1e-13
    )


def test_a_sample_of_weight_0_is_no_origin_of_the_moments():
    X, _ = make_data()
    X[0] = 1e12  # about it, every digit of the others would be lost
    weights = np.r_[0.0, np.ones(89)]
    found = Standardized.fit(Sharded(in_chunks(X)), weights)
    np.testing.assert_allclose(found.scale, X[1:].std(axis=0), rtol=1e-12)


FITS = {
    "softmax": lbfgs,
    "bare": lambda: lbfgs(standardize=False),
    "balanced": lambda: lbfgs(class_weight="balanced"),
    "by class": lambda: lbfgs(class_weight={0: 3.0}),
    "two-layer": lambda: lbfgs(TwoLayerNetClassifier, hidden_size=4, max_iter=10),  # no convex loss
}


@pytest.mark.filterwarnings("ignore:L-BFGS stopped at max_iter=10 ")
@pytest.mark.essential_cases(4)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", FITS)
def test_a_converged_fit_is_that_of_the_whole(kind, weighted):
    X, y = make_data(n=90)
    weights = np.linspace(0.0, 2.0, len(y)) if weighted else None
    found = FITS[kind]().fit(Sharded(in_chunks(X)), y, weights)
    expected = FITS[kind]().fit(X, y, weights)
    for name, value in expected.params_.items():
        np.testing.assert_allclose(found.params_[name], value, atol=1e-5)
    assert found.score(Sharded(in_chunks(X)), y, weights) == expected.score(X, y, weights)
    later = X[:7] + 0.1
    np.testing.assert_array_equal(found.predict(later), expected.predict(later))


def test_answers_about_sharded_samples_come_in_their_order():
    X, y = make_pixels()
    names = np.array(["red", "green", "blue"])[y]
    model = lbfgs().fit(X, names)
    shards = Sharded(in_chunks(X))
    np.testing.assert_array_equal(model.predict(shards), model.predict(X))
    for answer in ("decision_function", "predict_proba", "class_scores"):
        found, expected = getattr(model, answer)(shards), getattr(model, answer)(X)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    scaled = Standardized(shards, model.mean_, model.scale_)
    np.testing.assert_array_equal(model.predict(scaled), model.predict(X))
    with pytest.raises(ValueError, match="X has 2 features, but SoftmaxClassifier is expecting 6"):
        model.predict(Sharded([X[:, :2]]))


def test_a_fleet_and_a_path_train_on_shards():
    X, y = make_data()
    regs = [1e-3, 1e-2, 0.1, 0.3, 1.0]
    fleets = [[lbfgs(reg=reg) for reg in regs] for _ in range(2)]
    assert fit_together(fleets[0], Sharded(in_chunks(X)), y, penalty_path=True) == [None] * 5
    fit_together(fleets[1], X, y)
    for found, expected in zip(*fleets, strict=True):
        np.testing.assert_allclose(found.params_["W"], expected.params_["W"], atol=1e-4)


def test_training_takes_shards_without_an_estimator():
    X, y = make_data()
    start = {"W": np.zeros((6, 3)), "b": np.zeros(3)}
    members = [LBFGSMember(start, 0.1, max_iter=100, tol=1e-8) for _ in range(2)]
    train_lbfgs(SOFTMAX, members[:1], Sharded(in_chunks(X)), y)
    train_lbfgs(SOFTMAX, members[1:], X, y)
    np.testing.assert_allclose(members[0].params["W"], members[1].params["W"], atol=1e-6)


def test_warnings_callbacks_and_warm_starts_are_as_ever():
    X, y = make_data()
    shards, seen = Sharded(in_chunks(X)), []
    model = lbfgs(max_iter=2)
    with pytest.warns(ConvergenceWarning, match="L-BFGS stopped at max_iter=2"):
        model.fit(shards, y, callback=lambda epoch, history: seen.append(epoch))
    assert seen == [1, 2]
    assert model.params_["W"].dtype == np.float64
    first = lbfgs(warm_start=True).fit(shards, y)
    n_first = first.n_iter_
    assert first.fit(shards, y).n_iter_ < n_first


# --------------------------------------------------------------------------------- neighbours


@pytest.mark.parametrize("metric", ["l2", "l1"])
@pytest.mark.parametrize("k", [1, 5, 35, 90])  # longer than some chunks, than all, and everything
def test_neighbours_of_bytes_are_those_of_the_whole_ties_included(metric, k):
    rng = np.random.default_rng(0)
    X = rng.integers(0, 3, (90, 4), dtype=np.uint8)  # most distances tie
    queries = rng.integers(0, 3, (25, 4), dtype=np.uint8)
    y = rng.integers(0, 4, 90)
    expected = KNeighborsClassifier(k, metric=metric).fit(X, y)
    found = KNeighborsClassifier(k, metric=metric).fit(Sharded(in_chunks(X)), y)
    for one, other in zip(found.kneighbors(queries), expected.kneighbors(queries), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(found.predict(queries), expected.predict(queries))
    assert found.score(queries, y[:25]) == expected.score(queries, y[:25])


def test_neighbours_of_floats_are_those_of_the_whole():
    X, y = make_data()
    queries, _ = make_data(seed=1, n=12)
    names = np.array(["a", "b", "c"])[y]
    for metric in ("l2", "cosine"):
        found = KNeighborsClassifier(3, weights="distance", metric=metric)
        found.fit(Sharded(in_chunks(X)), names)
        distances, indices = k_neighbors(queries, X, 3, metric)
        np.testing.assert_array_equal(found.kneighbors(queries)[1], indices)
        np.testing.assert_allclose(found.kneighbors(queries)[0], distances, rtol=1e-12)
        assert found.predict(queries).tolist() == list(
            KNeighborsClassifier(3, weights="distance", metric=metric)
            .fit(X, names)
            .predict(queries)
        )


# ----------------------------------------------------------------------------- what is refused


def test_arrays_that_are_no_chunks_are_refused():
    X, _ = make_data()
    with pytest.raises(TypeError, match=r"a dask array, or a list of NumPy arrays.* got ndarray"):
        Sharded(X)
    with pytest.raises(TypeError, match=r"a list of NumPy arrays of shape \(n, D\)"):
        Sharded([X, X[0]])
    with pytest.raises(
        ValueError, match=r"same features and dtype, got float64 \(90, 6\), float32"
    ):
        Sharded([X, X.astype(np.float32)])
    with pytest.raises(ValueError, match="same features and dtype"):
        Sharded([X, X[:, :2]])
    with pytest.raises(ValueError, match="chunk 1 is empty: leave empty chunks out"):
        Sharded([X, X[:0]])
    with pytest.raises(ValueError, match="X is empty"):
        Sharded([])
    with pytest.raises(TypeError, match=r"got int64; convert it with X.astype\('float32'\)"):
        Sharded([X.astype(np.int64)])
    with pytest.raises(TypeError, match=r"got >f8; convert it with X.astype\('float64'\)"):
        Sharded([X.astype(">f8")])
    with pytest.raises(ValueError, match="backend must be"):
        Sharded([X], "gpu")


def test_models_that_steps_or_parts_train_say_what_to_use():
    X, y = make_data()
    shards = Sharded(in_chunks(X))
    with pytest.raises(ValueError, match=r"by SGD.*: pass solver='lbfgs'"):
        SoftmaxClassifier().fit(shards, y)
    with pytest.raises(ValueError, match=r"by SGD.*: pass solver='lbfgs'"):
        TwoLayerNetClassifier().fit(Standardized(shards, 0.0, 1.0), y)
    with pytest.raises(ValueError, match=r"by SGD.*: take SoftmaxClassifier\(solver='lbfgs'\)"):
        LinearSVMClassifier().fit(shards, y)
    with pytest.raises(ValueError, match="n_iter_no_change holds out samples"):
        lbfgs(n_iter_no_change=2).fit(shards, y)
    with pytest.raises(ValueError, match=r"dropout=0\.5 draws anew"):
        lbfgs(TwoLayerNetClassifier, dropout=0.5).fit(shards, y)
    for taken in (
        lambda: lbfgs().fit(shards, y, X_val=X, y_val=y),
        lambda: lbfgs().partial_fit(shards, y, classes=[0, 1, 2]),
        lambda: FleetSearchCV(lbfgs(), {"reg": [1.0]}).fit(shards, y),
        lambda: gpuclf.softmax_loss_vectorized(np.zeros((6, 3)), shards, y, 0.0),
        lambda: gpuclf.pairwise_distances(X, shards),
        lambda: np.asarray(shards),
        lambda: shards[:3],
        lambda: gpuclf.to_device(shards, "numpy"),
        lambda: pickle.dumps(shards),
    ):
        with pytest.raises(TypeError, match="Sharded, which cannot be taken here: fit, predict"):
            taken()
    assert copy.deepcopy(shards) is shards  # an estimator that holds it can be copied


def test_neighbours_are_asked_about_samples_that_are_here():
    X, y = make_data()
    model = KNeighborsClassifier(3).fit(Sharded(in_chunks(X)), y)
    with pytest.raises(TypeError, match="not asked about as a whole: pass X"):
        model.predict()
    with pytest.raises(TypeError, match="X is Sharded, and nearest neighbours are searched for"):
        model.predict(Sharded([X]))
    with pytest.raises(ValueError, match="from 1 to the 90 training samples"):
        model.set_params(n_neighbors=91).predict(X)


def test_labels_and_weights_must_fit():
    X, y = make_data()
    shards = Sharded(in_chunks(X))
    with pytest.raises(ValueError, match=r"y must have shape \(90,\)"):
        lbfgs().fit(shards, y[:-1])
    with pytest.raises(ValueError, match=r"sample_weight must have shape \(90,\)"):
        lbfgs().fit(shards, y, np.ones(3))
    with pytest.raises(ValueError, match="X has NaN, infinite or too large values"):
        lbfgs().fit(Sharded([np.full((3, 2), np.nan)]), [0, 1, 0])


def test_samples_are_loaded_once_and_released():
    X, y = make_data()
    shards = Sharded(in_chunks(X))
    made, holder = [], holders.Holder

    class Counted(holder):
        def __init__(self, *args):
            made.append(1)
            super().__init__(*args)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(holders, "Holder", Counted)
        model = lbfgs().fit(shards, y)
        model.score(shards, y)
        assert len(made) == 1
        shards.release()
        model.fit(shards, y)  # labels are handed out again
        assert len(made) == 2
    assert repr(shards) == "Sharded(float64 (90, 6), 4 chunks in this process)"


def test_the_two_layer_net_has_l_bfgs_as_softmax_has():
    X, y = make_data()
    net = lbfgs(TwoLayerNetClassifier, hidden_size=8, tol=1e-3, reg=0.1).fit(X, y)
    scaled = Standardized(X, net.mean_, net.scale_)
    loss, grads = gpuclf.models.TWO_LAYER.objective(net.params_, scaled, y, 0.1)
    assert net.loss_history_[-1] == pytest.approx(float(loss), rel=1e-12)
    assert max(abs(gradient).max() for gradient in grads.values()) <= 1e-3
    assert net.score(X, y) > 0.8
