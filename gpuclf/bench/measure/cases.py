"""What is measured: operations and sizes, as data."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from gpuclf.bench.measure.roofline import Work
from gpuclf.datasets import make_embeddings
from gpuclf.models import SOFTMAX, SVM, TWO_LAYER, Model, TwoLayerNet
from gpuclf.samples.standardized import Standardized

__all__ = [
    "EPOCH",
    "LADDER",
    "LOSS",
    "NET",
    "PEERS_GROUP",
    "PROBES",
    "PROBE_KNN",
    "PROBE_LBFGS",
    "PROBE_SGD",
    "SCALING",
    "STEP",
    "Case",
    "Embeddings",
    "Inputs",
    "default_cases",
    "device_cases",
    "peer_cases",
    "probe_cases",
    "scaling_cases",
]

LOSS, STEP, EPOCH = "loss+gradient", "training step", "epoch"
# What a model can be timed at, and how often each parameter is read or written: gradients are
# written, and a step also reads and writes the velocity.
KINDS = {LOSS: 2, STEP: 4, EPOCH: 4}
METRICS = ("l2", "l1")
PROBE_LBFGS, PROBE_SGD, PROBE_KNN = "probe by L-BFGS", "probe by SGD", "probe by k-NN"
PROBES = (PROBE_LBFGS, PROBE_SGD, PROBE_KNN)
NET = replace(TWO_LAYER, hidden_size=50)
REG = 1e-3
LADDER, PEERS_GROUP = "ladder", "peers"
SCALING = ("samples", "batch size", "hidden units", "classes", "models")
LEARNING_RATE = 1e-3  # smaller, and the parameters' rounding shows in what a step adds to them
MOMENTUM = 0.9
N_NEIGHBORS = 5
MAX_COPIES = 256
LABEL_BYTES = 8


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes
    ----------
    model : Model or None
        None for the prediction by nearest neighbours, and for what is done with embeddings.
    kind : str
        What a call does. Of a model "loss+gradient" (of linear models without bias), "training
        step" (with Nesterov momentum) or "epoch" (such steps on all samples, batch by batch); of
        neighbours their metric, "l2" or "l1". Of embeddings "probe by L-BFGS" (a model for each
        penalty), "probe by SGD" (a head for each learning rate) or "probe by k-NN" (by weighted
        cosines): training on `samples`, and the labels of a fifth as many others.
    samples : int
        Rows of the pass; for k-NN, queries against the whole training set.
    naive_samples : int
        How many of them pure Python runs on, and the strict comparison in float64; the naive loops
        run on 16 times as many. Their times are scaled to `samples`.
    rounds : int
        Turns of each implementation, if the time budget allows.
    calls_a_turn : int
        Timed calls in a turn. Short calls are made many in a row, as training makes them.
    models : int
        Trained at once; of the linear models.
    classes : int or None
        With labels drawn at random; None takes the data's.
    batch_size : int
        Of an epoch's steps.
    epochs : int
        Of a probe by SGD; by L-BFGS, iterations.
    n_features : int or None
        Of embeddings made for the case; None takes the data's samples.
    group : str
        "ladder", "peers", "probe", the axis of a scaling curve, or the name of an acceptance's
        case.

    Raises
    ------
    ValueError
        If there is no such kind.
    """

    model: Model | None
    kind: str
    samples: int
    naive_samples: int
    rounds: int
    calls_a_turn: int = 1
    models: int = 1
    classes: int | None = None
    batch_size: int = 200
    epochs: int = 1
    n_features: int | None = None
    group: str = LADDER

    def __post_init__(self) -> None:
        """Refuse what nothing is known of."""
        known = (*METRICS, *PROBES) if self.model is None else tuple(KINDS)
        if self.kind not in known:
            of = "neighbours" if self.model is None else "a model"
            raise ValueError(f"no case of {of} is called {self.kind!r}; there are {known}")

    @property
    def operation(self) -> str:
        """The name in titles and records, such as "softmax loss+gradient" or "k-NN l2"."""
        if self.is_probe:
            return self.kind
        return f"{'k-NN' if self.model is None else self.model.name} {self.kind}"

    @property
    def title(self) -> str:
        """A line for people: the operation and its size."""
        title = f"{self.operation}, {self.samples:,} samples"
        if self.hidden_units not in (None, NET.hidden_size):
            title += f", {self.hidden_units} hidden units"
        if self.classes is not None:
            title += f", {self.classes} classes"
        return title if self.models == 1 else f"{title}, {self.models} models"

    @property
    def hidden_units(self) -> int | None:
        """Of a net; None for other models."""
        return getattr(self.model, "hidden_size", None)

    @property
    def is_prediction(self) -> bool:
        """Whether a call returns labels, and no loss."""
        return self.model is None

    @property
    def is_probe(self) -> bool:
        """Whether embeddings are made for it."""
        return self.kind in PROBES

    @property
    def is_epoch(self) -> bool:
        """Whether a call trains on all samples, batch by batch."""
        return self.kind == EPOCH

    @property
    def is_training(self) -> bool:
        """Whether a call moves the parameters."""
        return self.kind in (STEP, EPOCH)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values = {f.name: getattr(self, f.name) for f in fields(self)[2:]}
        return {"operation": self.operation, "hidden_units": self.hidden_units} | values

    def measured_samples(self, loops: int) -> int:
        """Return how many samples a call runs on: see :class:`Implementation`."""
        return min(loops * self.naive_samples or self.samples, self.samples)

    def work(self, inputs: Inputs, stored: str = "float") -> Work:
        """Count bytes and operations of one call.

        Parameters
        ----------
        inputs : Inputs
        stored : {"float", "uint8"}
            What X is stored as.

        Examples
        --------
        >>> inputs = Inputs(np.eye(4, 3, dtype=np.uint8), np.array([0, 1, 1, 0]))
        >>> Case(SOFTMAX, "loss+gradient", 4, 4, 1).work(inputs, "uint8")
        Work(bytes=92, operations=96)
        """
        width, n_features = inputs.dtype.itemsize, inputs.n_features
        sample_bytes = n_features * (1 if stored == "uint8" else width)
        if self.kind in (PROBE_LBFGS, PROBE_SGD):  # L-BFGS evaluates once an iteration at least
            products = 2 * self.epochs * self.models * n_features * inputs.n_classes
            return Work(self.samples * sample_bytes, 2 * self.samples * products)
        if self.is_probe:
            assert isinstance(inputs, Embeddings)
            compared = len(inputs.queries) * self.samples
            moved = (self.samples + len(inputs.queries)) * sample_bytes
            return Work(moved, 2 * compared * n_features)
        if self.is_prediction:
            train = len(inputs.y)
            moved = (self.samples + train) * sample_bytes + (train + self.samples) * LABEL_BYTES
            return Work(moved, 2 * self.samples * train * n_features)
        params = inputs.start(self).values()
        first, *later = (value.size for value in params if value.ndim > 1)
        # What a matrix is multiplied by is so twice; the later ones a third time for the gradient
        # of their input.
        products = 2 * first + 3 * sum(later)
        visited = KINDS[self.kind] * sum(value.size for value in params) * width
        moved = self.samples * (sample_bytes + LABEL_BYTES) + visited
        return Work(moved, 2 * self.samples * products)


def default_cases(n_samples: int, batch_size: int = 200) -> list[Case]:
    """Return the four cases of the main job: two models, full training set and mini-batch."""
    batch = min(batch_size, n_samples)
    return [
        Case(SOFTMAX, LOSS, n_samples, 16, 15),
        Case(SOFTMAX, LOSS, batch, 16, 20, calls_a_turn=20),
        Case(NET, LOSS, n_samples, 4, 15),
        Case(NET, LOSS, batch, 4, 20, calls_a_turn=20),
    ]


def peer_cases(n_samples: int, batch_size: int = 200) -> list[Case]:
    """Return the cases that other libraries are compared on; no loops, which would take hours."""
    batch, queries = min(batch_size, n_samples), min(1000, n_samples)
    cases = [
        Case(SOFTMAX, LOSS, n_samples, 16, 9),
        Case(SVM, LOSS, n_samples, 16, 9),
        Case(SOFTMAX, LOSS, batch, 16, 9, 20),
        Case(NET, STEP, batch, 4, 9, 20),
        Case(NET, EPOCH, n_samples, 2 * batch, 5, batch_size=batch),
        Case(SOFTMAX, EPOCH, n_samples, 2 * batch, 5, batch_size=batch),
        Case(net_of(100), LOSS, n_samples, 4, 7),
        Case(None, "l2", queries, 16, 5),
        Case(None, "l1", min(20, queries), 16, 3),
    ]
    return [replace(case, group=PEERS_GROUP) for case in cases]


def scaling_cases(n_samples: int) -> list[Case]:
    """Return the cases of the curves: time against one size at a time."""
    few, batch = min(2000, n_samples), min(256, n_samples)
    of_axis = {
        "samples": [Case(SOFTMAX, LOSS, n, 16, 5, max(1, 4000 // n)) for n in (500, 4000, 32_000)],
        "batch size": [Case(NET, STEP, n, 4, 5, max(1, 1000 // n)) for n in (32, 256, 2048)],
        "hidden units": [Case(net_of(units), LOSS, few, 4, 5) for units in (16, 64, 256)],
        "classes": [Case(SOFTMAX, LOSS, few, 16, 5, 2, classes=n) for n in (2, 10, 100)],
        "models": [Case(SOFTMAX, LOSS, batch, 16, 5, max(1, 8 // k), k) for k in (1, 8, 64)],
    }
    known = {case.title for case in default_cases(n_samples)}
    return [
        replace(case, group=axis)
        for axis, cases in of_axis.items()
        for case in cases
        if case.samples <= n_samples and case.title not in known
    ]


def probe_cases(n_samples: int = 5000) -> list[Case]:
    """Return what embeddings are evaluated by, at sizes that take less than a second.

    Parameters
    ----------
    n_samples : int
        No more embeddings than these.
    """
    few, many = min(2000, n_samples), min(5000, n_samples)
    of: dict[str, Any] = {"model": None, "naive_samples": 256, "rounds": 5, "group": "probe"}
    small = {"samples": few, "classes": 20, "n_features": 256} | of
    return [
        Case(kind=PROBE_LBFGS, models=8, epochs=20, **small),
        Case(kind=PROBE_SGD, models=52, epochs=2, batch_size=256, **small),
        Case(kind=PROBE_KNN, samples=many, classes=100, n_features=384, **of),
    ]


def device_cases(n_samples: int, batch_size: int = 200) -> list[Case]:
    """Return the cases of a GPU's acceptance, the most important first; `group` names each."""
    batch, queries = min(batch_size, n_samples), min(10_000, n_samples)
    few = 2 * batch  # samples, in float64
    cases = {
        "softmax": Case(SOFTMAX, LOSS, n_samples, 16, 12, calls_a_turn=5),
        "net epoch": Case(NET, EPOCH, n_samples, few, 8, 3, batch_size=batch),
        "k-NN l2": Case(None, "l2", queries, 16, 5),
        "net step": Case(NET, STEP, batch, 4, 12, calls_a_turn=20),
        "softmax epoch": Case(SOFTMAX, EPOCH, n_samples, few, 8, 3, batch_size=batch),
        "svm": Case(SVM, LOSS, n_samples, 16, 12, calls_a_turn=5),
        "net": Case(net_of(100), LOSS, n_samples, 4, 12, 3),
        "softmax batch": Case(SOFTMAX, LOSS, batch, 16, 12, calls_a_turn=20),
        "k-NN l1": Case(None, "l1", min(20, n_samples), 16, 5),
    }
    return [replace(case, group=name) for name, case in cases.items()]


def net_of(hidden_units: int) -> TwoLayerNet:
    """Return the net with so many hidden units."""
    return replace(NET, hidden_size=hidden_units)


class Inputs:
    """The arrays that the cases run on: the same numbers for every implementation.

    Parameters
    ----------
    X : uint8 array of shape (N, D)
    y : integer array of shape (N,)
    dtype : {"float32", "float64"}
    seed : int
        Draws the parameters.
    device : {"cpu", "cuda"}
        Where the implementations that can choose put their arrays.
    cache_bytes : int
        A cache that no call should find its samples in; 0 if that does not matter.
    n_classes : int, optional
        By default one more than the largest label.
    """

    def __init__(
        self,
        X: Any,
        y: Any,
        dtype: str = "float32",
        seed: int = 0,
        device: str = "cpu",
        cache_bytes: int = 0,
        n_classes: int | None = None,
    ) -> None:
        self.dtype = np.dtype(dtype)
        self.device, self.cache_bytes = device, cache_bytes
        self.bytes_ = Standardized.fit(X)
        self._seed, self.n_features = seed, X.shape[1]
        self.y, self.n_classes = y, int(y.max()) + 1 if n_classes is None else n_classes

    def on(self, device: str) -> Inputs:
        """Return the same inputs for another device."""
        moved = copy.copy(self)
        moved.device = device
        return moved

    def first(self, n_samples: int, dtype: str) -> Inputs:
        """Return the first samples alone, on the CPU."""
        X, y = self.bytes_.X[:n_samples], self.y[:n_samples]
        return Inputs(X, y, dtype, self._seed, self.device, n_classes=self.n_classes)

    def of(self, case: Case) -> Inputs:
        """Return what a case runs on: these samples, or embeddings that are made for it."""
        if case.n_features is None:
            return self.with_classes(case.classes)
        assert case.classes is not None
        n_samples = case.samples
        X, y = make_embeddings(
            n_samples + max(1, n_samples // 5), case.n_features, case.classes,
            dtype=self.dtype.name, seed=self._seed,
        )  # fmt: skip
        made = X[:n_samples], y[:n_samples], X[n_samples:]
        return Embeddings(*made, self.dtype.name, self._seed, self.device, n_classes=case.classes)

    def with_classes(self, n_classes: int | None) -> Inputs:
        """Return the same samples with labels drawn from that many classes; None keeps them."""
        if n_classes is None:
            return self
        self.floats  # noqa: B018 - written out once for all
        labelled = copy.copy(self)
        rng = np.random.default_rng([self._seed, n_classes])
        labelled.y, labelled.n_classes = rng.integers(n_classes, size=len(self.y)), n_classes
        return labelled

    @property
    def W(self) -> Any:
        """The weights of a linear model, shape (D, C)."""
        return self.params(SOFTMAX)["W"]

    def params(self, model: Model) -> dict[str, Any]:
        """Return where a model begins, but no weights at 0; always the same, in new arrays."""
        rng = np.random.default_rng(self._seed)
        params = model.initial_params(self.n_features, self.n_classes, rng)
        for name, value in params.items():
            if value.ndim > 1 and not value.any():
                params[name] = 0.01 * rng.standard_normal(value.shape)
        return {name: value.astype(self.dtype) for name, value in params.items()}

    def start(self, case: Case) -> dict[str, Any]:
        """Return the parameters that a case begins with; always the same, in new arrays.

        Of K models those of linear ones, W of shape (K, D, C): side by side in memory, as a fleet
        keeps them.
        """
        assert case.model is not None
        if case.models > 1:
            rng = np.random.default_rng([self._seed, case.models])
            wide = 0.01 * rng.standard_normal((self.n_features, case.models, self.n_classes))
            return {"W": np.moveaxis(wide.astype(self.dtype), 1, 0)}
        params = self.params(case.model)
        if not case.is_training:
            params.pop("b", None)  # the course's losses have none
        return params

    def orders(self, n_samples: int) -> Iterator[np.ndarray]:
        """Yield the order of the samples of each epoch: two take turns."""
        rng = np.random.default_rng(self._seed)
        return itertools.cycle([rng.permutation(n_samples) for _ in range(2)])

    def copies(self, nbytes: int) -> int:
        """Return how many copies of samples must take turns to fall out of the cache between."""
        return min(1 + math.ceil(2 * self.cache_bytes / nbytes), MAX_COPIES)

    @cached_property
    def floats(self) -> Any:
        """The standardised samples written out as floats."""
        written = np.empty(self.bytes_.shape, self.dtype)
        for start in range(0, len(self.bytes_), 1024):
            rows = slice(start, start + 1024)
            written[rows] = self.bytes_[rows].to_array(self.dtype)
        return written

    @cached_property
    def float_pixels(self) -> Any:
        """The samples as they are stored, as floats: what other libraries search neighbours in."""
        return self.bytes_.X.astype(self.dtype)


class Embeddings(Inputs):
    """Embeddings in the place of pixels, and others whose labels are to be told.

    Parameters
    ----------
    X : array of shape (N, D)
        Floats.
    y : integer array of shape (N,)
    queries : array of shape (M, D)
    dtype, seed, device, n_classes
        As of :class:`Inputs`.
    """

    def __init__(
        self, X: Any, y: Any, queries: Any, dtype: str, seed: int, device: str, n_classes: int
    ) -> None:
        super().__init__(X, y, dtype, seed, device, n_classes=n_classes)
        self.queries = queries

    def first(self, n_samples: int, dtype: str) -> Embeddings:
        """Return the first samples alone, with all queries, on the CPU."""
        X, queries = self.floats[:n_samples].astype(dtype), self.queries.astype(dtype)
        y = self.y[:n_samples]
        return Embeddings(X, y, queries, dtype, self._seed, self.device, n_classes=self.n_classes)

    @cached_property
    def floats(self) -> Any:
        """The embeddings as they are."""
        return self.bytes_.X

    @property
    def float_pixels(self) -> Any:
        """The embeddings as they are."""
        return self.floats
