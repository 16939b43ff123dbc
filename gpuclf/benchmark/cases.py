"""What is measured: operations and sizes, as data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from gpuclf.features import Standardized

__all__ = ["Case", "Inputs", "Work", "default_cases", "device_cases", "peer_cases"]

REG = 1e-3
LEARNING_RATE = 1e-4
MOMENTUM = 0.9
N_NEIGHBORS = 5
MAX_COPIES = 256
LABEL_BYTES = 8


@dataclass(frozen=True)
class Work:
    """The least that a call has to do, however it is written.

    Attributes
    ----------
    bytes : int
        To be moved through memory: each input read once, each output written once.
    operations : int
        Additions and multiplications of the products; what is done a score is not counted.
    """

    bytes: int
    operations: int


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes
    ----------
    operation : str
        "softmax loss+gradient", "svm loss+gradient", "two-layer loss+gradient",
        "two-layer training step" (with Nesterov momentum), or "k-NN l2" and "k-NN l1" (prediction).
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
    """

    operation: str
    samples: int
    naive_samples: int
    rounds: int
    calls_a_turn: int = 1
    hidden_units: int = 50

    @property
    def title(self) -> str:
        """A line for people: the operation and its size."""
        return f"{self.operation}, {self.samples:,} samples"

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
        n_classes = inputs.W.shape[1]
        sample_bytes = n_features * (1 if features == "uint8" else width)
        if self.operation.startswith("k-NN"):
            train = len(inputs.y)
            moved = (self.samples + train) * sample_bytes + (train + self.samples) * LABEL_BYTES
            return Work(moved, 2 * self.samples * train * n_features)
        if self.operation.startswith("two-layer"):
            hidden = self.hidden_units
            params = (n_features + 1) * hidden + (hidden + 1) * n_classes
            # X and the hidden units are multiplied twice, W2 a third time for its input's gradient.
            products = 2 * n_features * hidden + 3 * hidden * n_classes
        else:
            params, products = n_features * n_classes, 2 * n_features * n_classes
        # Parameters are read and gradients written; a step also reads and writes the velocity.
        visits = 4 if self.operation.endswith("step") else 2
        moved = self.samples * (sample_bytes + LABEL_BYTES) + visits * params * width
        return Work(moved, 2 * self.samples * products)


def default_cases(n_samples: int, batch_size: int = 200) -> list[Case]:
    """Return the four cases of the main job: two models, full training set and mini-batch."""
    return [
        Case("softmax loss+gradient", n_samples, 16, 9),
        Case("softmax loss+gradient", min(batch_size, n_samples), 16, 10, calls_a_turn=20),
        Case("two-layer loss+gradient", n_samples, 4, 7),
        Case("two-layer loss+gradient", min(batch_size, n_samples), 4, 10, calls_a_turn=20),
    ]


def peer_cases(n_samples: int, batch_size: int = 200) -> list[Case]:
    """Return the cases that other libraries are compared on; no loops, which would take hours."""
    batch = min(batch_size, n_samples)
    queries = min(1000, n_samples)
    return [
        Case("softmax loss+gradient", n_samples, 16, 9),
        Case("svm loss+gradient", n_samples, 16, 9),
        Case("softmax loss+gradient", batch, 16, 9, calls_a_turn=20),
        Case("two-layer training step", batch, 4, 9, calls_a_turn=20),
        Case("two-layer loss+gradient", n_samples, 4, 7, hidden_units=100),
        Case("k-NN l2", queries, 16, 5),
        Case("k-NN l1", min(20, queries), 16, 3),
    ]


def device_cases(n_samples: int, batch_size: int = 200) -> list[Case]:
    """Return the cases of a GPU's acceptance, the most important first."""
    batch = min(batch_size, n_samples)
    return [
        Case("softmax loss+gradient", n_samples, 16, 12, calls_a_turn=5),
        Case("two-layer training step", batch, 4, 12, calls_a_turn=20),
        Case("svm loss+gradient", n_samples, 16, 12, calls_a_turn=5),
        Case("two-layer loss+gradient", n_samples, 4, 12, calls_a_turn=3, hidden_units=100),
        Case("softmax loss+gradient", batch, 16, 12, calls_a_turn=20),
        Case("k-NN l2", min(1000, n_samples), 16, 5),
        Case("k-NN l1", min(20, n_samples), 16, 5),
    ]


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
    """

    def __init__(
        self,
        X: Any,
        y: Any,
        dtype: str = "float32",
        seed: int = 0,
        device: str = "cpu",
        cache_bytes: int = 0,
    ) -> None:
        self.dtype = np.dtype(dtype)
        self.device, self.cache_bytes = device, cache_bytes
        self.bytes_ = Standardized.fit(X)
        self.y = y
        rng = np.random.default_rng(seed)
        n_features, n_classes = X.shape[1], int(y.max()) + 1
        self.W = self._normal(rng, n_features, n_classes)
        self._seed, self._sizes = seed, (n_features, n_classes)

    def params(self, hidden_units: int) -> dict[str, Any]:
        """Return the parameters of a two-layer net; always the same numbers, in new arrays."""
        n_features, n_classes = self._sizes
        rng = np.random.default_rng([self._seed, hidden_units])
        return {
            "W1": self._normal(rng, n_features, hidden_units),
            "b1": np.zeros(hidden_units, self.dtype),
            "W2": self._normal(rng, hidden_units, n_classes) * 10,
            "b2": np.zeros(n_classes, self.dtype),
        }

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
