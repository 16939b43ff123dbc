"""Every kernel, model and estimator on a device, held against NumPy in float64.

What is allowed is measured, not guessed: twice the error that the shared body makes on NumPy in the
same precision, and a few units in the last place.
"""

import importlib
import inspect
import math
import warnings
from functools import partial

import numpy as np
from sklearn.model_selection import KFold

import gpuclf
from gpuclf.augment import horizontal_flip
from gpuclf.bench.measure.agreement import on_host, share_of_allowed
from gpuclf.dispatch import SEAMS
from gpuclf.losses import multiclass_hinge, softmax_cross_entropy
from gpuclf.models import MODELS, SOFTMAX, TWO_LAYER
from gpuclf.models.distances import squared_euclidean
from gpuclf.models.linear import mean_weights
from gpuclf.models.neighbors import k_neighbors
from gpuclf.samples.folding import FoldedSamples
from gpuclf.samples.standardized import Standardized

SIZES = [(1, 48, 10), (33, 48, 2), (31, 64, 33), (200, 3072, 10), (1000, 3072, 10)]
SMALL_SIZES = [(70, 64, 3), (33, 48, 10)]  # with few classes the standardisation folds


class Problem:
    """Arrays for one size, without a symmetry that would hide a transposition.

    `put` takes an array to where it is to be used; floats are made in `dtype` from float32 numbers,
    so that every precision computes from the same values.
    """

    def __init__(self, put, dtype, size, seed=0):
        n, d, c = size
        rng = np.random.default_rng([seed, *size])
        self.put, self.dtype, self.size = put, np.dtype(dtype), size

        def floats(values):
            return put(values.astype(np.float32).astype(self.dtype))

        pixels = rng.integers(256, size=(n, d), dtype=np.uint8)
        self.pixels = put(pixels)
        self.X = floats(rng.normal(size=(n, d)) + np.linspace(-1, 2, d))
        self.more = put(rng.integers(256, size=(n + 5, d), dtype=np.uint8))
        self.W = floats(0.05 * rng.normal(size=(d, c)) * np.linspace(0.5, 2, c))
        self.b = floats(rng.normal(size=c))
        self.y = put(rng.integers(0, c, n))
        self.more_y = put(rng.integers(0, c, n + 5))
        self.weights = floats(rng.uniform(0.1, 1, n) / n)
        self.scores = floats(3 * rng.normal(size=(n, c)) + 1e3 * rng.normal(size=(n, 1)))
        self.images = put(rng.integers(256, size=(min(n, 50), 3072), dtype=np.uint8))
        self.params = {
            "W": self.W,
            "b": self.b,
            "W1": floats(0.05 * rng.normal(size=(d, 7))),
            "b1": floats(rng.normal(size=7)),
            "W2": floats(rng.normal(size=(7, c))),
            "b2": floats(rng.normal(size=c)),
        }
        self.few_rows = 40 * 3 * d * self.dtype.itemsize  # bytes: several blocks of them
        mean, scale = rng.uniform(90, 160, d), rng.uniform(20, 80, d)
        self.bytes_ = Standardized(self.pixels, mean, scale)

    def params_of(self, model):
        """Return the parameters of a model."""
        return {name: self.params[name] for name in model.axes}

    def copy(self, x):
        """Return a new array of the same library."""
        return x + 0


# ------------------------------------------------------------------ what dispatch can replace


def _momentum(function, p):
    value, velocity = p.copy(p.W), 0.1 * p.W
    function(value, 3 * p.W, velocity, 1e-2, 0.9, True)
    return value, velocity


def _linear(function, p, **options):
    results = []
    for X in (p.bytes_, p.X):
        for data_loss in (softmax_cross_entropy, multiclass_hinge):
            samples = FoldedSamples(X, int(p.W.shape[1]), p.W.dtype)
            W, b = (p.W, p.b) if options else samples.fold(p.W, p.b)
            weights = mean_weights(None, samples.n_samples, p.W, ())
            results.append(function(W, b, samples, p.y, weights, data_loss, **options))
    return results


def _two_layer(function, p):
    n_units = 7 if p.size[0] > 16 * 7 else 3  # the standardisation folds
    W1, b1, W2 = p.params["W1"][:, :n_units], p.params["b1"][:n_units], p.params["W2"][:n_units]
    results = []
    for X, scale in ((p.bytes_, 1), (p.pixels, 100), (p.X, 1)):  # scores of the same size
        samples = FoldedSamples(X, n_units, p.W.dtype)
        arrays = (W1 / scale, p.copy(b1), p.copy(W2), p.params["b2"], samples, p.y)
        results += [function(*arrays, weights, 0.3) for weights in (None, p.weights)]
    return results


def _blocks(function, p):
    # An answer about the library, which may be the other one: its products tell.
    samples = FoldedSamples(p.bytes_, 0, p.W.dtype)
    block = function(p.pixels, 10, p.W.dtype)(samples, slice(0, p.size[0] - 1))
    return block.affine(p.W, p.b), block.affine_backward((p.scores / 1e3)[:-1])


def _epochs(function, p):
    flips = partial(horizontal_flip, image_shape=(1, p.size[1] // 16, 16))
    return [
        _three_epochs(function, p, TWO_LAYER, None),
        _three_epochs(function, p, SOFTMAX, flips),
    ]


def _three_epochs(function, p, model, augment):
    params = {name: p.copy(value) for name, value in p.params_of(model).items()}
    velocity = {name: 0.1 * value for name, value in params.items()}
    run = function(
        model, params, velocity, p.bytes_, p.y, batch_size=150, reg=0.1, momentum=0.9,
        nesterov=True, augment=augment, rng=np.random.default_rng(0),
    )  # fmt: skip
    n, losses = p.size[0], []
    for number in range(3):  # launched, recorded and repeated
        order = np.random.default_rng(number).permutation(n)
        losses.append(p.copy(run(order, [1e-3 * (i + 1) for i in range(-(-n // 150))])))
    return params, velocity, losses


KERNEL_RUNS = {  # by name, because not every library needs all of them
    "block_type": _blocks,
    "penalties_of_models": lambda f, p: f(p.W[None, ...]),
    "fold_into": lambda f, p: f(p.W, p.put(np.linspace(-1, 2, p.size[1])), p.X[0][:, None]),
    "unfold_from": lambda f, p: f(p.W, p.b, p.put(np.linspace(-1, 2, p.size[1])), p.X[0][:, None]),
    "standardized_rows": lambda f, p: f(p.pixels, p.X[0], p.X[0]),
    "add_penalty_gradient": lambda f, p: f(p.copy(p.W), p.W, 0.3),
    "penalized_linear_pass": partial(_linear, reg=0.3),
    "linear_pass": _linear,
    "two_layer_pass": _two_layer,
    "softmax_cross_entropy": lambda f, p: [f(p.scores, p.y), f(p.scores, p.y, p.weights)],
    "multiclass_hinge": lambda f, p: [f(p.scores, p.y), f(p.scores, p.y, p.weights)],
    "squared_euclidean": lambda f, p: f(p.pixels, p.more),
    "manhattan": lambda f, p: f(p.pixels, p.more),
    "smallest_k": lambda f, p: f(squared_euclidean(p.pixels, p.more), 5),
    "nearest_in_tiles": lambda f, p: [
        f(p.pixels, p.more, 5, metric, 100, 1 << 20, lambda n: None) for metric in ("l2", "l1")
    ],
    "nearest_of_floats": lambda f, p: [
        f(p.X[:10, :], p.X[10:, :], 3, metric, 1 << 24, lambda n: None)
        for metric in ("l2", "l1", "cosine")
    ],
    "count_votes": lambda f, p: f(
        p.y[:20].reshape(-1, 5), gpuclf.array_namespace(p.y).unique_values(p.y)
    ),
    "momentum_step": _momentum,
    "epoch_runner": _epochs,
}


class Recorder:
    """Call a kernel, count what it declines, and let the shared body do that instead."""

    def __init__(self, function, kernel):
        self.function, self.kernel = function, kernel
        self.taken = self.declined = 0

    def __call__(self, *args, **options):
        """Call the kernel, or else the shared body."""
        result = self.kernel(*args, **options)
        if result is NotImplemented:
            self.declined += 1
            return self.function.reference(*args, **options)
        self.taken += 1
        return result


def imported(name):
    """Return the function that is named for a seam, such as "losses.on_gpu:fused"."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(f"gpuclf.kernels.{module}"), function)


def registered(library):
    """Return {name: (function, kernel)} of what may replace a function for a library.

    What takes the samples in several ways, of which it would choose one, is there with each.
    """
    found = {}
    for name, function in SEAMS.items():
        kernels = function.kernels.get(library)
        if kernels is None:
            kernels = [imported(name) for name in function.replacements.get(library, ())]
        for kernel in kernels:
            label = name if len(kernels) == 1 else f"{name} {kernel.__name__}"
            walks = inspect.signature(kernel).parameters.get("walks")
            if walks is None:
                found[label] = function, kernel
            for walk in () if walks is None else walks.default:
                found[f"{label}, {walk}"] = function, partial(kernel, walks=(walk,))
    return found


# ------------------------------------------------------------------------ models and estimators

SGD = {"max_iter": 2, "batch_size": 100, "random_state": 0}


def model_run(model, p):
    """Return losses, gradients and scores of a model."""
    # Twice: the second time kernels repeat what they know of the first.
    losses = [model.loss(p.params_of(model), X, p.y, 0.1) for X in (p.bytes_, p.X) * 2]
    return losses, model.scores(p.params_of(model), p.X, precision=p.dtype.name)


def _streamed(p):
    samples = gpuclf.Streamed(on_host(p.X), like=p.W, memory_budget=p.few_rows)
    return SOFTMAX.loss({"W": p.W}, samples, p.y, 0.1)


def _trained(name, p, **options):
    estimator = getattr(gpuclf, name)(precision=p.dtype.name, **SGD, **options)
    return estimator.fit(p.more, p.more_y).decision_function(p.pixels)


def _neighbors(p):
    return gpuclf.KNeighborsClassifier(n_neighbors=3).fit(p.more, p.more_y).predict(p.pixels)


def _fleet_search(p):
    estimator = gpuclf.SoftmaxClassifier(precision=p.dtype.name, **SGD)
    grid = {"learning_rate": [1e-3, 1e-4], "reg": [0.0, 0.1]}
    search = gpuclf.FleetSearchCV(estimator, grid, cv=KFold(2))
    return search.fit(p.more, p.more_y).decision_function(p.pixels)


# Every other public operation is held against its twin by the tests that the acceptance runs.
OPERATION_RUNS = {
    "Streamed": _streamed,
    "extract_features": lambda p: gpuclf.extract_features(p.images),
    "k_neighbors": lambda p: k_neighbors(p.pixels, p.more, 4),
    "FleetSearchCV": _fleet_search,
    "KNeighborsClassifier": _neighbors,
    "LinearSVMClassifier": partial(_trained, "LinearSVMClassifier"),
    "SoftmaxClassifier": partial(_trained, "SoftmaxClassifier"),
    "TwoLayerNetClassifier": partial(_trained, "TwoLayerNetClassifier", hidden_size=20),
} | {f"model {name}": partial(model_run, model) for name, model in MODELS.items()}


# ------------------------------------------------------------------------------------- checks


def _on_numpy(array):
    return np.array(array)


def check_operation(run, put, sizes, trained=False):
    """Run an operation in float32 and float64 on the device; return a record."""
    worst = {"float32": 0.0, "float64": 0.0}
    for size in sizes:
        truth = run(Problem(_on_numpy, np.float64, size))
        for dtype in worst:
            unfused = run(Problem(_on_numpy, dtype, size))
            found = run(Problem(put, dtype, size))
            worst[dtype] = max(worst[dtype], share_of_allowed(found, unfused, truth, trained))
    passed = all(share <= 1 for share in worst.values())
    return {"passed": passed, "error_of_allowed": worst}


def check_kernel(function, kernel, put, sizes):
    """Run a kernel where its function would run; return a record with what it declined."""
    name = function.reference.__name__
    run = KERNEL_RUNS.get(name)
    if run is None:
        return {"passed": False, "message": f"no inputs for {name} in benchmarks/parity.py"}
    recorder, worst = Recorder(function, kernel), {"float32": 0.0, "float64": 0.0}
    for size in sizes:
        truth = run(function.reference, Problem(_on_numpy, np.float64, size))
        for dtype in worst:
            unfused = run(function.reference, Problem(_on_numpy, dtype, size))
            found = run(recorder, Problem(put, dtype, size))
            worst[dtype] = max(worst[dtype], share_of_allowed(found, unfused, truth))
    record = {"error_of_allowed": worst, "taken": recorder.taken, "declined": recorder.declined}
    if recorder.taken == 0:
        return {"passed": False, "message": "the kernel declined everything", **record}
    return {"passed": all(share <= 1 for share in worst.values()), **record}


def all_checks(put, library, sizes):
    """Return by name what checks every kernel of `library` and every operation."""
    return {
        f"kernel {name}": partial(check_kernel, *found, put, sizes)
        for name, found in registered(library).items()
    } | {
        name: partial(check_operation, run, put, sizes, name.endswith(("Classifier", "SearchCV")))
        for name, run in OPERATION_RUNS.items()
    }


def check_all(put, library, sizes, advance=lambda _: None, left_s=lambda: math.inf):
    """Return the records of all checks, in time."""
    records = {}
    warnings.simplefilter("ignore", UserWarning)  # that a few samples have as many classes
    for name, check in all_checks(put, library, sizes).items():
        if left_s() <= 0:
            break
        advance(name)
        try:
            records[name] = check()
        except Exception as error:  # the others are still worth knowing
            records[name] = {"passed": False, "message": f"{type(error).__name__}: {error}"}
    return records
