"""What is measured: operations and sizes, as data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from gpuclf.features import Standardized

__all__ = ["Case", "Inputs", "default_cases"]

HIDDEN_UNITS = 50
REG = 1e-3


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes
    ----------
    operation : {"softmax loss+gradient", "svm loss+gradient", "two-layer loss+gradient"}
    samples : int
    naive_samples : int
        How many of them the loops run on; their time is scaled to `samples`.
    rounds : int
        Turns of each implementation, if the time budget allows.
    calls_a_turn : int
        Timed calls in a turn. Short calls are made many in a row, as training makes them.
    """

    operation: str
    samples: int
    naive_samples: int
    rounds: int
    calls_a_turn: int = 1

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
        self.params = {
            "W1": self._normal(rng, n_features, HIDDEN_UNITS),
            "b1": np.zeros(HIDDEN_UNITS, self.dtype),
            "W2": self._normal(rng, HIDDEN_UNITS, n_classes) * 10,
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
