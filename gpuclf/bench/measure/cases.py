"""What is measured: operations and sizes, as data."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from gpuclf.bench.measure.roofline import Work
from gpuclf.samples.standardized import Standardized

__all__ = [
    "LADDER",
    "PEERS_GROUP",
    "SCALING",
    "Case",
    "Inputs",
    "default_cases",
    "device_cases",
    "peer_cases",
    "scaling_cases",
]

REG = 1e-3
LADDER, PEERS_GROUP = "ladder", "peers"
SCALING = ("samples", "batch size", "hidden units", "classes", "models")
LEARNING_RATE = 1e-4
MOMENTUM = 0.9
N_NEIGHBORS = 5
MAX_COPIES = 256
LABEL_BYTES = 8


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes
    ----------
    operation : str
        "softmax loss+gradient", "svm loss+gradient", "two-layer loss+gradient",
        "two-layer training step" (with Nesterov momentum), "softmax epoch" and "two-layer epoch"
        (such steps on all samples, batch by batch), or "k-NN l2" and "k-NN l1" (prediction).
    samples : int
        Rows of the pass; for k-NN, queries against the whole training set.
    naive_samples : int
        How many of them the loops run on; their time is scaled to `samples`.
    rounds : int
        Turns of each implementation, if the time budget allows.
    calls_a_turn : int
        Timed calls in a turn. Short calls are made many in a row, as training makes them.
    hidden_units : int
        Of the two-layer net.
    models : int
        Trained at once; of the linear models.
    classes : int or None
        With labels drawn at random; None takes the data's.
    batch_size : int
        Of an epoch's steps.
    group : str
        "ladder", "peers", the axis of a scaling curve, or the name of an acceptance's case.
    """

    operation: str
    samples: int
    naive_samples: int
    rounds: int
    calls_a_turn: int = 1
    hidden_units: int = 50
    models: int = 1
    classes: int | None = None
    batch_size: int = 200
    group: str = LADDER

    @property
    def title(self) -> str:
        """A line for people: the operation and its size."""
        title = f"{self.operation}, {self.samples:,} samples"
        if self.operation.startswith("two-layer") and self.hidden_units != 50:
            title += f", {self.hidden_units} hidden units"
        if self.classes is not None:
            title += f", {self.classes} classes"
        return title if self.models == 1 else f"{title}, {self.models} models"

    @property
    def is_prediction(self) -> bool:
        """Whether a call returns labels, and no loss."""
        return self.operation.startswith("k-NN")

    @property
    def is_epoch(self) -> bool:
        """Whether a call trains on all samples, batch by batch."""
        return self.operation.endswith("epoch")

    @property
    def is_training(self) -> bool:
        """Whether a call moves the parameters."""
        return self.is_epoch or self.operation.endswith("step")

    def measured_samples(self, extrapolated: bool) -> int:
        """Return how many samples a call runs on."""
        return min(self.naive_samples, self.samples) if extrapolated else self.samples

    def work(self, inputs: Inputs, features: str = "float") -> Work:
        """Count bytes and operations of one call.

        Parameters
        ----------
        inputs : Inputs
        features : {"float", "uint8"}
            What X is stored as.

        Examples
        --------
        >>> inputs = Inputs(np.eye(4, 3, dtype=np.uint8), np.array([0, 1, 1, 0]))
        >>> Case("softmax loss+gradient", 4, 4, 1).work(inputs, "uint8")
        Work(bytes=92, operations=96)
        """
        width, n_features = inputs.dtype.itemsize, inputs.bytes_.shape[1]
        n_classes, models = inputs.n_classes, self.models
        sample_bytes = n_features * (1 if features == "uint8" else width)
        if self.is_prediction:
            train = len(inputs.y)
            moved = (self.samples + train) * sample_bytes + (train + self.samples) * LABEL_BYTES
            return Work(moved, 2 * self.samples * train * n_features)
        if self.operation.startswith("two-layer"):
            hidden = self.hidden_units
            params = (n_features + 1) * hidden + (hidden + 1) * n_classes
            # X and the hidden units are multiplied twice, W2 a third time for its input's gradient.
            products = 2 * n_features * hidden + 3 * hidden * n_classes
        else:
            params, products = models * n_features * n_classes, 2 * models * n_features * n_classes
        # Parameters are read and gradients written; a step also reads and writes the velocity.
        visits = 4 if self.is_training else 2
        moved = self.samples * (sample_bytes + LABEL_BYTES) + visits * params * width
        return Work(moved, 2 * self.samples * products)


def default_cases(n_samples: int, batch_size: int = 200) -> list[Case]:
    """Return the four cases of the main job: two models, full training set and mini-batch."""
    batch = min(batch_size, n_samples)
    return [
        Case("softmax loss+gradient", n_samples, 16, 15),
        Case("softmax loss+gradient", batch, 16, 20, calls_a_turn=20),
        Case("two-layer loss+gradient", n_samples, 4, 15),
        Case("two-layer loss+gradient", batch, 4, 20, calls_a_turn=20),
    ]


def peer_cases(n_samples: int, batch_size: int = 200) -> list[Case]:
    """Return the cases that other libraries are compared on; no loops, which would take hours."""
    batch = min(batch_size, n_samples)
    queries = min(1000, n_samples)
    return [
        Case("softmax loss+gradient", n_samples, 16, 9, group=PEERS_GROUP),
        Case("svm loss+gradient", n_samples, 16, 9, group=PEERS_GROUP),
        Case("softmax loss+gradient", batch, 16, 9, 20, group=PEERS_GROUP),
        Case("two-layer training step", batch, 4, 9, 20, group=PEERS_GROUP),
        Case("two-layer epoch", n_samples, 2 * batch, 5, batch_size=batch, group=PEERS_GROUP),
        Case("softmax epoch", n_samples, 2 * batch, 5, batch_size=batch, group=PEERS_GROUP),
        Case("two-layer loss+gradient", n_samples, 4, 7, 1, 100, group=PEERS_GROUP),
        Case("k-NN l2", queries, 16, 5, group=PEERS_GROUP),
        Case("k-NN l1", min(20, queries), 16, 3, group=PEERS_GROUP),
    ]


def scaling_cases(n_samples: int) -> list[Case]:
    """Return the cases of the curves: time against one size at a time."""
    linear, net, step = (
        "softmax loss+gradient",
        "two-layer loss+gradient",
        "two-layer training step",
    )
    few, batch = min(2000, n_samples), min(256, n_samples)
    of_axis = {
        "samples": [Case(linear, n, 16, 5, max(1, 4000 // n)) for n in (500, 4000, 32_000)],
        "batch size": [Case(step, n, 4, 5, max(1, 1000 // n)) for n in (32, 256, 2048)],
        "hidden units": [Case(net, few, 4, 5, 1, hidden) for hidden in (16, 64, 256)],
        "classes": [Case(linear, few, 16, 5, 2, classes=classes) for classes in (2, 10, 100)],
        "models": [Case(linear, batch, 16, 5, max(1, 8 // k), models=k) for k in (1, 8, 64)],
    }
    known = {case.title for case in default_cases(n_samples)}
    return [
        replace(case, group=axis)
        for axis, cases in of_axis.items()
        for case in cases
        if case.samples <= n_samples and case.title not in known
    ]


def device_cases(n_samples: int, batch_size: int = 200) -> list[Case]:
    """Return the cases of a GPU's acceptance, the most important first; `group` names each."""
    batch, queries = min(batch_size, n_samples), min(10_000, n_samples)
    few = 2 * batch  # samples, in float64
    cases = {
        "softmax": Case("softmax loss+gradient", n_samples, 16, 12, calls_a_turn=5),
        "net epoch": Case("two-layer epoch", n_samples, few, 8, 3, batch_size=batch),
        "k-NN l2": Case("k-NN l2", queries, 16, 5),
        "net step": Case("two-layer training step", batch, 4, 12, calls_a_turn=20),
        "softmax epoch": Case("softmax epoch", n_samples, few, 8, 3, batch_size=batch),
        "svm": Case("svm loss+gradient", n_samples, 16, 12, calls_a_turn=5),
        "net": Case("two-layer loss+gradient", n_samples, 4, 12, 3, hidden_units=100),
        "softmax batch": Case("softmax loss+gradient", batch, 16, 12, calls_a_turn=20),
        "k-NN l1": Case("k-NN l1", min(20, n_samples), 16, 5),
    }
    return [replace(case, group=name) for name, case in cases.items()]


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
        self._label(y, int(y.max()) + 1 if n_classes is None else n_classes)

    def _label(self, y: Any, n_classes: int) -> None:
        self.y, self.n_classes = y, n_classes
        self.W = self._normal(np.random.default_rng(self._seed), self.n_features, n_classes)

    def on(self, device: str) -> Inputs:
        """Return the same inputs for another device."""
        moved = copy.copy(self)
        moved.device = device
        return moved

    def first(self, n_samples: int, dtype: str) -> Inputs:
        """Return the first samples alone, on the CPU."""
        X, y = self.bytes_.X[:n_samples], self.y[:n_samples]
        return Inputs(X, y, dtype, self._seed, self.device, n_classes=self.n_classes)

    def with_classes(self, n_classes: int | None) -> Inputs:
        """Return the same samples with labels drawn from that many classes; None keeps them."""
        if n_classes is None:
            return self
        self.floats  # noqa: B018 - written out once for all
        labelled = copy.copy(self)
        rng = np.random.default_rng([self._seed, n_classes])
        labelled._label(rng.integers(n_classes, size=len(self.y)), n_classes)
        return labelled

    def fleet(self, n_models: int) -> Any:
        """Return W of shape (K, D, C), side by side in memory as a fleet keeps them."""
        rng = np.random.default_rng([self._seed, n_models])
        wide = self._normal(rng, self.n_features, n_models * self.n_classes)
        return np.moveaxis(wide.reshape(self.n_features, n_models, self.n_classes), 1, 0)

    def params(self, hidden_units: int) -> dict[str, Any]:
        """Return the parameters of a two-layer net; always the same numbers, in new arrays."""
        n_features, n_classes = self.n_features, self.n_classes
        rng = np.random.default_rng([self._seed, hidden_units])
        return {
            "W1": self._normal(rng, n_features, hidden_units),
            "b1": np.zeros(hidden_units, self.dtype),
            "W2": self._normal(rng, hidden_units, n_classes) * 10,
            "b2": np.zeros(n_classes, self.dtype),
        }

    def start(self, case: Case) -> dict[str, Any]:
        """Return the parameters that training starts from; always the same, in new arrays."""
        if case.operation.startswith("two-layer"):
            return self.params(case.hidden_units)
        return {"W": self.W.copy(), "b": np.zeros(self.n_classes, self.dtype)}

    def orders(self, n_samples: int) -> Iterator[np.ndarray]:
        """Yield the order of the samples of each epoch: two take turns."""
        rng = np.random.default_rng(self._seed)
        return itertools.cycle([rng.permutation(n_samples) for _ in range(2)])

    def copies(self, nbytes: int) -> int:
        """Return how many copies of samples must take turns to fall out of the cache between."""
        return min(1 + math.ceil(2 * self.cache_bytes / nbytes), MAX_COPIES)

    def _normal(self, rng: np.random.Generator, rows: int, columns: int) -> Any:
        return (0.01 * rng.standard_normal((rows, columns))).astype(self.dtype)

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
