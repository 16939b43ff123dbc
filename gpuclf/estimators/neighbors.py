"""k-nearest neighbours as a scikit-learn classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from numbers import Integral
from typing import Any, Self

import numpy as np
from sklearn.utils.validation import check_is_fitted

from gpuclf.arrays import Array, array_namespace, values_are_on_host
from gpuclf.devices.cupy import on_its_device
from gpuclf.estimators.base import ACCEPTED_DTYPES, ArrayClassifier
from gpuclf.estimators.shards import nearest_in_shards
from gpuclf.models.distances import check_directions, metric_named
from gpuclf.models.neighbors import (
    MEMORY_BUDGET,
    Callback,
    check_n_neighbors,
    nearest_neighbors,
    take_entries,
    without_self,
)
from gpuclf.models.votes import count_votes, inverse_distances
from gpuclf.samples.sharded import Sharded
from gpuclf.samples.standardized import Standardized
from gpuclf.samples.streamed import Streamed

__all__ = ["KNeighborsClassifier"]


@dataclass(eq=False, repr=False)
class KNeighborsClassifier(ArrayClassifier):
    """Vote of the k nearest training samples, on the array library of the samples.

    Every query is compared with every training sample, in tiles that fit a memory budget. Of equal
    distances, the training sample with the smaller index is nearer; a tied vote goes to the
    smaller label. From bytes (uint8) and whole numbers, distances are exact and answers the same
    on every array library; from fractions, distances that tie may be rounded apart. On a CPU with
    numba, floats are searched in float32 and settled in float64: the answers are float64's.

    Parameters
    ----------
    n_neighbors : int, default 5
    weights : {"uniform", "distance"}, callable or None, default "uniform"
        How much a neighbour's vote counts: as any other's, also where None is given; the inverse of
        its distance (where some are at distance 0, they alone count); or what
        ``weights(distances)`` returns, for distances (N, k) an array of that shape. A callable gets
        and returns arrays of the library of X.
    metric : {"l2", "l1", "cosine"}, default "l2"
        "euclidean" and "manhattan" are other names of the first two. The cosine distance is
        1 - cos; it is not defined for samples that are all zeros, which are refused.
    memory_budget : int, default 256 MiB
        Bytes that a prediction may take, beside the samples and the result.
    verbose : bool, default False
        Show a progress bar while neighbours are searched.

    Attributes
    ----------
    classes_ : NumPy array of shape (C,)
    n_features_in_, n_samples_fit_ : int
    image_shape_, layout_, value_range_
        As :class:`gpuclf.SoftmaxClassifier` has them.

    See Also
    --------
    gpuclf.models.neighbors.k_neighbors : the search.
    gpuclf.models.neighbors.cross_validate_k : accuracies for several k from one search.

    Notes
    -----
    The training samples are kept where they are, without a copy. Samples to predict must live in
    the same array library, on the same device. Sparse samples, several labels a sample and
    missing values are not supported.

    To weigh by similarity, as evaluations of embeddings do, exp(cos / T):
    ``KNeighborsClassifier(20, metric="cosine", weights=lambda d: numpy.exp((1 - d) / 0.07))``.

    Examples
    --------
    >>> import numpy as np
    >>> X, y = np.array([[0.0], [1.0], [9.0], [10.0]]), np.array(["low", "low", "high", "high"])
    >>> KNeighborsClassifier(n_neighbors=2).fit(X, y).predict(np.array([[2.0], [8.0]]))
    array(['low', 'high'], dtype='<U4')
    """

    n_neighbors: int = 5
    _: KW_ONLY
    weights: str | Callable[[Array], Array] | None = "uniform"
    metric: str = "l2"
    memory_budget: int = MEMORY_BUDGET
    verbose: bool = False
    _accepted_dtypes = (*ACCEPTED_DTYPES, np.float16)

    @on_its_device
    def fit(self, X: Any, y: Any) -> Self:
        """Keep the training samples.

        Parameters
        ----------
        X : array-like of shape (N, D), or Sharded
            uint8, float16 (of NumPy), float32 and float64 are used as they are, on the device where
            X is; other numbers are converted to float64.
        y : array-like of shape (N,)
            Class labels; on a device, integers on the same device.

        Returns
        -------
        self
        """
        if not isinstance(self.n_neighbors, Integral) or self.n_neighbors < 1:
            raise ValueError(f"n_neighbors must be an integer, at least 1, got {self.n_neighbors}")
        metric = metric_named(self.metric)
        self._check_weights()
        with self._unchanged_if_it_fails():
            samples, labels, _ = self._check_training_data(X, y, None, reset=True)
            if metric == "cosine" and not isinstance(samples, Sharded):
                check_directions(samples, "X")
            self._number_classes(labels)
            self._fit_X: Array = samples
            self._y: Array = self._targets(labels)
            self.n_samples_fit_ = int(self._fit_X.shape[0])
        return self

    @on_its_device
    def kneighbors(
        self, X: Any = None, n_neighbors: int | None = None, return_distance: bool = True
    ) -> Any:
        """Find the nearest training samples.

        Parameters
        ----------
        X : array-like of shape (N, D), optional
            By default the training samples, none of which is its own neighbour.
        n_neighbors : int, optional
            By default as the estimator's.
        return_distance : bool, default True

        Returns
        -------
        distances : array of shape (N, n_neighbors), float64
            Only if `return_distance`.
        indices : array of shape (N, n_neighbors)
            Rows of the training samples, ordered by (distance, index).

        Raises
        ------
        gpuclf.MixedDevicesError
            If X lives elsewhere than the training samples.
        """
        check_is_fitted(self, "n_samples_fit_")
        metric = metric_named(self.metric)
        k = self.n_neighbors if n_neighbors is None else n_neighbors
        queries = self._fit_X
        if X is None and isinstance(queries, Sharded):
            raise TypeError(
                "the training samples are Sharded, and are not asked about as a whole: pass X, "
                "some of them at a time"
            )
        if X is None:
            check_n_neighbors(k, int(queries.shape[0]) - 1, "other training samples")
            k += 1
        else:
            queries = self._check_samples(X, reset=False)
            array_namespace(**{"X": queries, "the training set": self._fit_X})
            check_n_neighbors(k, int(self._fit_X.shape[0]))
            if metric == "cosine":
                check_directions(queries, "X")
        if isinstance(self._fit_X, Sharded):
            found = nearest_in_shards(queries, self._fit_X, k, metric, self.memory_budget)
            return found if return_distance else found[1]
        with self._progress() as callback:
            found = nearest_neighbors(
                queries, self._fit_X, int(k), metric, self.memory_budget, callback
            )
        distances, indices = without_self(*found) if X is None else found
        return (distances, indices) if return_distance else indices

    def predict(self, X: Any = None) -> Array:
        """Return the labels that most neighbours have, by weight, in the array library of X.

        Parameters
        ----------
        X : array-like of shape (N, D), optional
            By default the training samples, each left out of its own neighbours.

        Returns
        -------
        array of shape (N,)
        """
        return self._winners(self._votes(X))

    def predict_proba(self, X: Any = None) -> Array:
        """Return the share of the neighbours' votes for each class, shape (N, C), float64."""
        return _shares(self._votes(X))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the share of right predictions, as a float on the host.

        Parameters
        ----------
        X : array-like of shape (N, D), or None
            None: the training samples, each left out of its own neighbours.
        y : array-like of shape (N,)
            True labels.
        sample_weight : array-like of shape (N,), optional
        """
        return super().score(X, y, sample_weight)

    def _check_rows(self, X: Any, *, reset: bool) -> Any:
        if isinstance(X, Standardized):
            raise TypeError("X is Standardized; write the samples out: X.to_array()")
        if isinstance(X, Streamed):
            raise TypeError("X is Streamed; upload it whole: gpuclf.to_device(X)")
        if isinstance(X, Sharded):
            raise TypeError(
                "X is Sharded, and nearest neighbours are searched for samples that are here: pass "
                "parts of the dask array, block.compute() of its blocks"
            )
        return super()._check_rows(X, reset=reset)

    def _check_weights(self) -> None:
        named = isinstance(self.weights, str) and self.weights in ("uniform", "distance")
        if self.weights is not None and not named and not callable(self.weights):
            raise ValueError(
                "weights must be 'uniform', 'distance', None or a callable that takes distances, "
                f"got {self.weights!r}"
            )

    def _votes(self, X: Any) -> Array:
        self._check_weights()
        return self._counted(*self.kneighbors(X))

    @on_its_device
    def _counted(self, distances: Array, indices: Array) -> Array:
        xp = array_namespace(indices)
        labels = take_entries(self._y, indices)
        classes = xp.arange(len(self.classes_), dtype=labels.dtype, device=labels.device)
        if self.weights is None or self.weights == "uniform":
            return count_votes(labels, classes)
        if self.weights == "distance":
            return count_votes(labels, classes, inverse_distances(distances))
        assert callable(self.weights)
        weights = self.weights(distances)
        if getattr(weights, "shape", None) != distances.shape:
            raise ValueError(
                f"weights must return an array of the distances' shape {tuple(distances.shape)}, "
                f"got {getattr(weights, 'shape', type(weights).__name__)}"
            )
        votes = count_votes(labels, classes, xp.astype(weights, xp.float64))
        if values_are_on_host(votes):
            unknown = np.flatnonzero(np.isnan(votes).any(axis=1))
            if unknown.size:
                raise ValueError(
                    f"weights returned NaN for neighbors of X[{unknown[0]}]: let it return a "
                    "number for every distance, 0 included"
                )
            without = np.flatnonzero(~votes.any(axis=1))
            if without.size:
                raise ValueError(
                    f"all neighbors of some sample have weight 0, first of X[{without[0]}]: let "
                    "weights give one of them more, or ask for more neighbours"
                )
        return votes

    @contextmanager
    def _progress(self) -> Iterator[Callback | None]:
        if not self.verbose:
            yield None
            return
        from rich.progress import Progress

        with Progress(transient=True) as bar:
            task = bar.add_task(f"comparing samples ({self.metric})")
            yield lambda done, total: bar.update(task, completed=done, total=total)


@on_its_device
def _shares(votes: Array) -> Array:
    xp = array_namespace(votes)
    votes = xp.astype(votes, xp.float64)
    totals = xp.sum(votes, axis=1)[:, None]
    return votes / xp.where(totals == 0, xp.ones_like(totals), totals)
