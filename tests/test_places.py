"""Of two GPUs, the one that holds the arrays computes, whichever is CuPy's current one."""

import numpy as np
import placed_arrays
import pytest
from placed_arrays import Device, Placed, on

import gpuclf
from gpuclf import course, image_features, layers, preprocessing, training
from gpuclf.augment import horizontal_flip, random_shift
from gpuclf.devices.backends import Backend
from gpuclf.devices.cupy import on_device_of
from gpuclf.losses import (
    log_softmax,
    multiclass_hinge,
    one_hot,
    softmax,
    softmax_cross_entropy,
)
from gpuclf.models import SOFTMAX, SVM, TWO_LAYER, TwoLayerNet, check_model, distances, neighbors
from gpuclf.samples.holders import Holder, Place


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch):
    with placed_arrays.pretended(monkeypatch):
        yield


rng = np.random.default_rng(0)
N, D, H, C = 100, 12, 5, 3
pixels = rng.integers(0, 256, (N, D), dtype=np.uint8)
floats = rng.standard_normal((N, D)).astype(np.float32)
images = rng.integers(0, 256, (2, 3 * 8 * 8), dtype=np.uint8)
y = rng.integers(0, C, N)
numbers = rng.integers(0, 256, (N, D))
weights = rng.random(N)
linear = {"W": floats[:C].T.copy(), "b": np.ones(C, np.float32)}
net = {
    "W1": floats[:H].T.copy(), "b1": np.ones(H, np.float32),
    "W2": floats[:C, :H].T.copy(), "b2": np.ones(C, np.float32),
}  # fmt: skip
fleet = {"W": np.stack([linear["W"]] * 2), "b": np.stack([linear["b"]] * 2)}


def standardized(X):
    return gpuclf.Standardized.fit(X)


def streamed(X):
    return gpuclf.Streamed(X.get(), like=X, memory_budget=20_000) if isinstance(X, Placed) else X


def kept(X):
    return gpuclf.Standardized(X, X.get().mean(0) if isinstance(X, Placed) else X.mean(0), 2.0)


def by_sgd(params, X, y, sample_weight=None, n=1):
    members = [training.Member(params, lambda step: 0.1, 0.1 + k, momentum=0.9) for k in range(n)]
    options = {"batch_size": 16, "epochs": 2, "nesterov": True, "rng": np.random.default_rng(0)}
    training.train_sgd(SOFTMAX, members, X, y, sample_weight=sample_weight, **options)
    return [member.params for member in members]


def by_lbfgs(params, X, y, sample_weight=None, n=1):
    members = [training.LBFGSMember(params, 0.1 + k, max_iter=3, tol=1e-3) for k in range(n)]
    training.train_lbfgs(SOFTMAX, members, X, y, sample_weight=sample_weight)
    return [member.params for member in members]


def by_a_runner(params, X, y):
    with on_device_of(y):
        params = {name: value + 0 for name, value in params.items()}
        velocity = {name: 0 * value for name, value in params.items()}
    options = {"batch_size": 60, "reg": 0.1, "momentum": 0.9, "nesterov": True}
    run = training.epoch_runner(SOFTMAX, params, velocity, X, y, **options)
    return [run(np.arange(N), [0.1, 0.1]), params]


def fit(kind, X, y, **options):
    return kind(max_iter=2, random_state=0, **options).fit(X, y)


def knn(X, y, **options):
    return gpuclf.KNeighborsClassifier(3, **options).fit(X, y)


def ensemble(X, y, **options):
    members = [{"reg": 0.1}, {"reg": 0.2}]
    model = gpuclf.SoftmaxClassifier(max_iter=2, random_state=0)
    return gpuclf.FleetEnsemble(model, members, **options).fit(X, y)


def loss_of_standardized(params, X, y):
    return SOFTMAX.loss(params, standardized(X), y, 0.1)


def explained(model, X):
    return [gpuclf.explain(model, X[:1]).contributions]


def dropout_step(params, X, y):
    model = TwoLayerNet("net", softmax_cross_entropy, hidden_size=H, dropout=0.5)
    return model.objective(params, X, y, 0.1, rng=np.random.default_rng(0))


def of_course(model, X, y, *validation):
    np.random.seed(0)  # noqa: NPY002 - the course's
    model = model()
    model.train(X, y, *validation, num_iters=3, batch_size=20)
    loss, grads = model.loss(X, y, 0.1)
    return [model.predict(X), loss, *(grads.values() if isinstance(grads, dict) else [grads])]


def differences_of_course(W, X, y):
    def f(W):
        return SOFTMAX.loss({"W": W}, X, y, 0.1)[0]

    course.grad_check_sparse(f, W, SOFTMAX.loss({"W": W}, X, y, 0.1)[1]["W"], num_checks=2)
    whole = course.eval_numerical_gradient_array(lambda W: W * W, W, W)
    return course.eval_numerical_gradient(f, W, verbose=False), whole


def features_of_course(images):
    functions = [course.hog_feature, course.color_histogram_hsv]
    return [course.extract_features(images, functions), *(f(images[0]) for f in functions)]


SOFTMAX_FIT, SVM_FIT, NET_FIT = (
    gpuclf.SoftmaxClassifier, gpuclf.LinearSVMClassifier, gpuclf.TwoLayerNetClassifier
)  # fmt: skip
# What is computed from arrays, by name: all of them lie on one device, and so must all results.
CALLS = {
    "softmax loss": (gpuclf.softmax_loss_vectorized, linear["W"], floats, y, 0.1),
    "svm loss of bytes": (gpuclf.svm_loss_vectorized, linear["W"], pixels, y, 0.1),
    "net's loss": (gpuclf.two_layer_loss, net, floats, y, 0.1, weights),
    "loss, standardised": (loss_of_standardized, linear, floats, y),
    "loss, streamed": (lambda p, X, y: SVM.loss(p, streamed(X), y, 0.1), linear, pixels, y),
    "loss of a fleet": (lambda p, X, y: SOFTMAX.loss(p, X, y, 0.1), fleet, pixels, y),
    "objective": (lambda p, X, y: SOFTMAX.objective(p, kept(X), y, 0.1), linear, floats, y),
    "net's objective": (lambda p, X, y: TWO_LAYER.objective(p, kept(X), y, 0.1), net, floats, y),
    "dropout": (dropout_step, net, floats, y),
    "scores": (lambda p, X: SOFTMAX.scores(p, X), linear, pixels),
    "net's scores": (gpuclf.two_layer_scores, net, floats),
    "net's unchecked scores": (lambda p, X: TWO_LAYER.scores(p, X), net, pixels),
    "gradient of X": (lambda p, X, y: SOFTMAX.sample_gradients(p, X, y), linear, floats, y),
    "net's gradient of X": (TWO_LAYER.sample_gradients, net, floats, y),
    "check of a model": (lambda X: [c.passed for c in check_model(SVM, like=X).values()], floats),
    "cross-entropy": (softmax_cross_entropy, floats[:, :C], y),
    "hinge": (multiclass_hinge, floats[:, :C], y),
    "softmax": (softmax, floats),
    "logarithms of softmax": (log_softmax, floats),
    "one hot": (lambda y: one_hot(y, C, dtype=np.float32), y),
    "affine": (layers.affine, floats, linear["W"], linear["b"]),
    "affine, backward": (layers.affine_backward, floats[:, :C], floats, linear["W"]),
    "relu": (layers.relu, floats),
    "relu, backward": (layers.relu_backward, floats, floats),
    "side by side": (layers.side_by_side, fleet["W"]),
    "sgd": (by_sgd, linear, standardized(pixels), y, weights),
    "sgd of a fleet": (lambda p, X, y: by_sgd(p, X, y, n=2), linear, floats, y),
    "l-bfgs": (by_lbfgs, linear, standardized(floats), y, weights),
    "l-bfgs of a fleet": (lambda p, X, y: by_lbfgs(p, X, y, n=2), linear, floats, y),
    "epoch": (by_a_runner, linear, floats, y),
    "moments": (lambda X: vars(standardized(X)), pixels),
    "weighted moments": (lambda X, w: vars(gpuclf.Standardized.fit(X, w)), floats, weights),
    "standardised rows": (lambda X: kept(X).to_array(), pixels),
    "rows by number": (lambda X, n: kept(X)[n].X, pixels, y),
    "rows of a mask": (lambda X, m: kept(X)[m].X, pixels, y > 0),
    "distances": (gpuclf.pairwise_distances, floats, floats[:9]),
    "distances of bytes": (lambda A, B: gpuclf.pairwise_distances(A, B, "l1"), pixels, pixels[:9]),
    "cosines": (lambda A, B: gpuclf.pairwise_distances(A, B, "cosine"), floats, floats[:9]),
    "neighbours": (lambda A, B: neighbors.k_neighbors(A, B, 3), floats[:9], floats),
    "neighbours of bytes": (lambda A, B: neighbors.k_neighbors(A, B, 3), pixels[:9], pixels),
    "votes": (lambda d, y: gpuclf.knn_vote(d, y, 3), rng.random((9, N)), y),
    "folds": (lambda X, y: list(neighbors.cross_validate_k(X, y, [1, 3], 2).values()), floats, y),
    "squares": (distances.squared_euclidean, floats, floats[:9]),
    "knn": (lambda X, y: knn(X, y).predict(X), pixels, y),
    "knn by distance": (lambda X, y: knn(X, y, weights="distance").predict_proba(X), floats, y),
    "knn's own samples": (lambda X, y: knn(X, y).predict_proba(), floats, y),
    "knn's own labels": (lambda X, y: knn(X, y, metric="cosine").predict(), floats, y),
    "classifier": (lambda X, y: fit(SOFTMAX_FIT, X, y).predict_proba(X), pixels, y),
    "fit by l-bfgs": (lambda X, y: fit(SOFTMAX_FIT, X, y, solver="lbfgs").params_, floats, y),
    "integers": (lambda X, y, n: fit(SVM_FIT, X, y).predict(n), pixels, y, numbers),
    "knn of integers": (lambda X, y, n: knn(X, y).kneighbors(n[:9]), numbers, y, numbers),
    "two classes": (lambda X, y: fit(SVM_FIT, X, y).decision_function(X), floats, y % 2),
    "logarithms": (lambda X, y: fit(NET_FIT, X, y).predict_log_proba(X), pixels, y),
    "early stopping": (lambda X, y: fit(NET_FIT, X, y, n_iter_no_change=1).params_, floats, y),
    "class weights": (lambda X, y: fit(SVM_FIT, X, y, class_weight="balanced").params_, floats, y),
    "streamed classifier": (lambda X, y: fit(SOFTMAX_FIT, streamed(X), y).predict(X), pixels, y),
    "mirrored": (lambda X, y: fit(SVM_FIT, X, y, augment=_flip).params_, pixels, y),
    "coefficients": (lambda X, y: fit(SOFTMAX_FIT, X, y).coef_, floats, y % 2),
    "partial fit": (lambda X, y: SVM_FIT().partial_fit(X, y, classes=range(C)).params_, floats, y),
    "warm start": (lambda X, y: fit(SVM_FIT, X, y, warm_start=True).fit(X, y).params_, floats, y),
    "accuracy": (lambda X, y: [fit(SOFTMAX_FIT, X, y).score(X, y)], floats, y),
    "ensemble": (lambda X, y: ensemble(X, y).predict(X), floats, y),
    "ensemble's probabilities": (lambda X, y: ensemble(X, y).predict_proba(X), floats, y),
    "ensemble's logarithms": (lambda X, y: ensemble(X, y).predict_log_proba(X), floats, y),
    "hard votes": (lambda X, y: ensemble(X, y, voting="hard").decision_function(X), floats, y),
    "search": (lambda X, y: _searched(X, y).predict(X), floats, y),
    "explanation": (lambda X, y: explained(fit(NET_FIT, X, y), X), floats, y),
    "features": (lambda X: image_features.extract_features(X, (3, 8, 8)), images),
    "hog": (lambda X: image_features.hog(X, (3, 8, 8)), images),
    "hues": (lambda X: image_features.hue_histogram(X, (3, 8, 8)), images),
    "flip": (lambda X: horizontal_flip(X, np.random.default_rng(0), (3, 8, 8)), images),
    "shift": (lambda X: random_shift(X, np.random.default_rng(0), (3, 8, 8)), images),
    "mean image": (preprocessing.mean_image, pixels),
    "without the mean image": (lambda X: vars(preprocessing.subtract_mean_image(X)), pixels),
    "bias column": (preprocessing.add_bias_column, floats),
    "bias column, standardised": (lambda X: vars(preprocessing.add_bias_column(kept(X))), floats),
    "bias apart": (preprocessing.split_bias, floats),
    "course's svm": (lambda X, y: of_course(course.LinearSVM, X, y), floats, y),
    "course's net": (
        lambda X, y: of_course(lambda: course.TwoLayerNet(D, H, C), X, y, X, y), floats, y
    ),
    "course's differences": (differences_of_course, linear["W"].astype(float), floats, y),
    "course's features": (features_of_course, np.ones((2, 8, 8, 3))),
    "copy to a device": (lambda X: gpuclf.to_device({"X": X.get()}, like=X), floats),
}  # fmt: skip
ON_HOST = ("copy to a device",)


def _flip(X, rng):
    return horizontal_flip(X, rng, (3, 2, 2))


def _searched(X, y):
    model = SOFTMAX_FIT(max_iter=2, random_state=0)
    return gpuclf.FleetSearchCV(model, {"reg": [0.1, 0.2]}, cv=2).fit(X, y)


def moved(value):
    if isinstance(value, gpuclf.Standardized):
        return value.map_arrays(lambda a: on(1, a))
    return on(1, value) if isinstance(value, np.ndarray | dict) else value


def flat(value):
    if isinstance(value, dict):
        value = value.values()
    is_one = isinstance(value, np.ndarray | Placed | np.generic | float | bool)
    return [value] if is_one else [part for parts in value for part in flat(parts)]


@pytest.mark.parametrize(("free_mb", "mb"), [(141_000, 2048), (5_000, 1250), (700, 256)])
def test_a_search_takes_a_quarter_of_a_small_gpus_memory(monkeypatch, free_mb, mb):
    budgets, nearest = [], neighbors._nearest_of_bytes

    def noted(A, B, k, metric, memory_budget, count):
        budgets.append(memory_budget)
        return nearest(A, B, k, metric, memory_budget, count)

    monkeypatch.setattr(neighbors, "_nearest_of_bytes", noted)
    memory = placed_arrays.module.cuda.runtime
    monkeypatch.setattr(memory, "memGetInfo", lambda: (free_mb << 20, 1 << 40))
    A, B = moved(pixels[:2]), moved(pixels)
    neighbors.k_neighbors(A, B, 1)
    neighbors.k_neighbors(A, B, 1, memory_budget=100_000)
    assert budgets == [mb << 20, 100_000]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.essential_cases(12)
@pytest.mark.parametrize("name", CALLS)
def test_the_device_of_the_arrays_computes(name):
    function, *arguments = CALLS[name]
    results = flat(function(*map(moved, arguments)))
    assert placed_arrays.current == [0]
    for result in results:
        assert not isinstance(result, Placed) or result.device == Device(1)
    if name in ON_HOST:
        return
    expected = flat(function(*arguments))
    for result, value in zip(results, expected, strict=True):
        result = result.get() if isinstance(result, Placed) else result
        np.testing.assert_allclose(result, value, rtol=2e-3, atol=1e-4)


def test_chunks_of_sharded_samples_are_computed_with_where_they_are():
    there = Backend("cupy", placed_arrays.module, "pretended")
    with Device(1):  # as a worker that has set its device; its other threads have not
        chunks = floats[:60], floats[60:]
        places = [Place(n, 60 * n, chunk.shape, chunk.dtype) for n, chunk in enumerate(chunks)]
        holder = Holder(places, list(chunks), there)
    found = holder.apply(lambda chunk: (chunk.X * chunk.X).get(), (), None, None)
    np.testing.assert_array_equal(np.concatenate([found[0], found[1]]), floats * floats)
