"""k-nearest neighbours as a scikit-learn classifier."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from numbers import Integral
from typing import Any, Self

from sklearn.utils.validation import check_is_fitted

from gpuclf.arrays import Array, array_namespace
from gpuclf.estimators.base import ArrayClassifier
from gpuclf.models.distances import METRICS
from gpuclf.models.neighbors import MEMORY_BUDGET, Callback, count_votes, k_neighbors
from gpuclf.samples.standardized import Standardized
from gpuclf.samples.streamed import Streamed

__all__ = ["KNeighborsClassifier"]


@dataclass(eq=False, repr=False)
class KNeighborsClassifier(ArrayClassifier):
    """Vote of the k nearest training samples, on the array library of the samples.

    Every query is compared with every training sample, in tiles that fit a memory budget. Of equal
    distances, the training sample with the smaller index is nearer; a tied vote goes to the
    smaller label. From bytes (uint8) and whole numbers, distances are exact and answers the same
    on every array library; from fractions, distances that tie may be rounded apart. Bytes are also
    the fastest: the differences of floats are written out for l1.

    Parameters
    ----------
    n_neighbors : int, default 5
    metric : {"l2", "l1"}, default "l2"
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
    the same array library, on the same device.

    Examples
    --------
    >>> import numpy as np
    >>> X, y = np.array([[0.0], [1.0], [9.0], [10.0]]), np.array(["low", "low", "high", "high"])
    >>> KNeighborsClassifier(n_neighbors=2).fit(X, y).predict(np.array([[2.0], [8.0]]))
    array(['low', 'high'], dtype='<U4')
    """

    n_neighbors: int = 5
    _: KW_ONLY
    metric: str = "l2"
    memory_budget: int = MEMORY_BUDGET
    verbose: bool = False

    def fit(self, X: Any, y: Any) -> Self:
        """Keep the training samples.

        Parameters
        ----------
        X : array-like of shape (N, D)
            uint8, float32 and float64 are used as they are, on the device where X is; other
            numbers are converted to float64.
        y : array-like of shape (N,)
            Class labels; on a device, integers on the same device.

        Returns
        -------
        self
        """
        if not isinstance(self.n_neighbors, Integral) or self.n_neighbors < 1:
            raise ValueError(f"n_neighbors must be an integer, at least 1, got {self.n_neighbors}")
        if self.metric not in METRICS:
            raise ValueError(f"metric must be 'l2' or 'l1', got {self.metric!r}")
        with self._unchanged_if_it_fails():
            samples, labels, _ = self._check_training_data(X, y, None, reset=True)
            self._number_classes(labels)
            self._fit_X: Array = samples
            self._y: Array = self._targets(labels)
            self.n_samples_fit_ = int(self._fit_X.shape[0])
        return self

    def kneighbors(
        self, X: Any, n_neighbors: int | None = None, return_distance: bool = True
    ) -> Any:
        """Find the nearest training samples.

        Parameters
        ----------
        X : array-like of shape (N, D)
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
        X = self._check_samples(X, reset=False)
        k = self.n_neighbors if n_neighbors is None else n_neighbors
        array_namespace(**{"X": X, "the training set": self._fit_X})
        with self._progress() as callback:
            distances, indices = k_neighbors(
                *(X, self._fit_X, k, self.metric),
                memory_budget=self.memory_budget,
                callback=callback,
            )
        return (distances, indices) if return_distance else indices

    def predict(self, X: Any) -> Array:
        """Return the labels that most neighbours have, shape (N,), in the array library of X."""
        votes = self._votes(X)
        return self._labels(array_namespace(votes).argmax(votes, axis=1))

    def predict_proba(self, X: Any) -> Array:
        """Return the share of the neighbours in each class, shape (N, C), float64."""
        votes = self._votes(X)
        xp = array_namespace(votes)
        return xp.astype(votes, xp.float64) / self.n_neighbors

    def _check_samples(self, X: Any, *, reset: bool) -> Any:
        if isinstance(X, Standardized):
            raise TypeError("X is Standardized; write the samples out: X.to_array()")
        if isinstance(X, Streamed):
            raise TypeError("X is Streamed; upload it whole: gpuclf.to_device(X)")
        return super()._check_samples(X, reset=reset)

    def _votes(self, X: Any) -> Array:
        indices = self.kneighbors(X, return_distance=False)
        xp = array_namespace(indices)
        labels = xp.reshape(xp.take(self._y, xp.reshape(indices, (-1,))), indices.shape)
        classes = xp.arange(len(self.classes_), dtype=labels.dtype, device=labels.device)
        return count_votes(labels, classes)

    @contextmanager
    def _progress(self) -> Iterator[Callback | None]:
        if not self.verbose:
            yield None
            return
        from rich.progress import Progress

        with Progress(transient=True) as bar:
            task = bar.add_task(f"comparing samples ({self.metric})")
            yield lambda done, total: bar.update(task, completed=done, total=total)
