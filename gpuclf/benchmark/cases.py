"""What is measured: operations and sizes, as data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from gpuclf.features import Standardized

__all__ = ["Case", "Inputs", "default_cases", "peer_cases"]

REG = 1e-3
LEARNING_RATE = 1e-4
MOMENTUM = 0.9
N_NEIGHBORS = 5


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


class Inputs:
    """The arrays that the cases run on: the same numbers for every implementation.

    Parameters
    ----------
    X : uint8 array of shape (N, D)
    y : integer array of shape (N,)
    dtype : {"float32", "float64"}
    seed : int
        Draws the parameters.
    """

    def __init__(self, X: Any, y: Any, dtype: str = "float32", seed: int = 0) -> None:
        self.dtype = np.dtype(dtype)
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
