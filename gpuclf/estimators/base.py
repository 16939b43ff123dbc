"""What all classifiers share: checks of samples and labels on any array library, and the score."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics import accuracy_score
from sklearn.utils import _safe_indexing, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, validate_data

from gpuclf.arrays import Array, array_namespace, library_name, refuse_odd_arrays, to_host
from gpuclf.devices.backends import to_device
from gpuclf.devices.cupy import on_its_device
from gpuclf.estimators.bases import BaseEstimator, ClassifierMixin
from gpuclf.estimators.image_samples import ImageSamples, without_graph
from gpuclf.estimators.keeping import Kept
from gpuclf.samples.sharded import gathered
from gpuclf.samples.short_floats import is_short_float
from gpuclf.samples.standardized import Standardized, check_total_weight, is_sharded, take_rows
from gpuclf.samples.streamed import Streamed
from gpuclf.validation import check_finite, check_label_count, check_samples, check_weights

__all__ = ["ArrayClassifier", "Part", "count_samples", "on_host", "select_rows"]

ACCEPTED_DTYPES = (np.float64, np.float32, np.uint8)
# What the command line adds to a classifier that it keeps; another fit makes it untrue.
OF_A_TRAINING = ("class_names_", "training_")


class ArrayClassifier(Kept, ImageSamples, ClassifierMixin, BaseEstimator):
    """Base of the classifiers: inputs are checked where they live, and stay there."""

    _keeps_short_floats = False  # a subclass whose model widens them block by block says so
    _accepted_dtypes: tuple[Any, ...] = ACCEPTED_DTYPES

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the share of right predictions, as a float on the host.

        Parameters
        ----------
        X : array-like of shape (N, D), or Standardized
        y : array-like of shape (N,)
            True labels.
        sample_weight : array-like of shape (N,), optional
        """
        predicted = to_host(self.predict(X))
        y, sample_weight = gathered(y), gathered(sample_weight)
        y, sample_weight = (to_host(v) if _is_checked_here(v) else v for v in (y, sample_weight))
        if sample_weight is not None:
            sample_weight = np.asarray(sample_weight, dtype=np.float64)
            check_total_weight(sample_weight)
        return float(accuracy_score(column_or_1d(y), predicted, sample_weight=sample_weight))

    def _labels(self, numbers: Array) -> Array:
        """Return the labels of numbered classes, in the library of the numbers."""
        if isinstance(numbers, np.ndarray):
            return self.classes_[numbers]
        if self.classes_.dtype.kind not in "iub":
            raise TypeError(
                f"the labels are of type {self.classes_.dtype}, which only NumPy arrays can hold: "
                "pass X by gpuclf.to_host(X), or fit with integer labels"
            )
        xp = array_namespace(numbers)
        return xp.take(to_device(self.classes_, like=numbers), numbers)

    @on_its_device
    def _winners(self, scores: Array) -> Array:
        """Return the labels of the highest scores, shape (N,), of equals the first."""
        return self._labels(array_namespace(scores).argmax(scores, axis=-1))

    def _check_samples(self, X: Any, *, reset: bool) -> Any:
        X = self._check_rows(self._as_rows(X, reset=reset), reset=reset)
        self._compare_values(X, reset=reset)
        return X

    def _check_rows(self, X: Any, *, reset: bool) -> Any:
        keeps = self._keeps(X)
        if not (keeps or _is_checked_here(X)):
            return validate_data(self, X, reset=reset, dtype=self._accepted_dtypes)
        X = X if keeps else _with_accepted_numbers(X)
        _, _, n_features = check_samples(X, short_floats=self._keeps_short_floats)
        if reset:
            self.n_features_in_ = n_features
            self.__dict__.pop("feature_names_in_", None)
        elif n_features != self.n_features_in_:
            raise ValueError(
                f"X has {n_features} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input"
            )
        check_finite(X)
        return X

    def _check_training_data(
        self, X: Any, y: Any, sample_weight: Any, *, reset: bool
    ) -> tuple[Any, Any, Array | None]:
        if is_sharded(X):
            from gpuclf.estimators.shards import check_training_shards

            return check_training_shards(self, X, y, sample_weight)
        refuse_odd_arrays(y, "y")
        refuse_odd_arrays(sample_weight, "sample_weight")
        X = self._as_rows(X, reset=reset)
        y, sample_weight = without_graph(y), without_graph(sample_weight)
        shape: tuple[int, ...] = tuple(getattr(y, "shape", None) or ())
        if len(shape) == 2 and shape[1] > 1:
            raise ValueError(
                f"y has shape {shape}, and several outputs for a sample are not supported: "
                "fit one classifier for each, sklearn.multioutput.MultiOutputClassifier("
                f"{type(self).__name__}())"
            )
        if not (self._keeps(X) or _is_checked_here(X)):
            for name, value in (("y", y), ("sample_weight", sample_weight)):
                if _is_checked_here(value):
                    array_namespace(**{"X": np.asarray(X), name: value})  # raises
            dtypes = self._accepted_dtypes
            X, y = validate_data(self, X, y, reset=reset, dtype=dtypes, multi_output=False)
            check_classification_targets(y)
            if sample_weight is not None:
                sample_weight = _check_sample_weight(
                    sample_weight, X, dtype=np.float64, ensure_non_negative=True
                )
                check_total_weight(sample_weight)
            self._compare_values(X, reset=reset)
            return X, y, sample_weight
        X = self._check_rows(X, reset=reset)
        self._compare_values(X, reset=reset)
        stored = X.X if isinstance(X, Standardized) else X
        if isinstance(stored, np.ndarray):
            y = np.asarray(y)
            sample_weight = None if sample_weight is None else np.asarray(sample_weight)
        xp = array_namespace(X=stored, y=y, sample_weight=sample_weight)
        check_label_count(y, int(stored.shape[0]))
        if xp is np:
            check_classification_targets(y)
        elif not xp.isdtype(y.dtype, ("bool", "integral")):
            library = library_name(y)
            numbers = "y.long()" if library == "torch" else f"{library}.astype(y, {library}.int64)"
            raise TypeError(f"labels on a device must be integers, got {y.dtype}: pass {numbers}")
        return X, y, check_weights(sample_weight, X, xp.float64)

    def _keeps(self, X: Any) -> bool:
        return self._keeps_short_floats and is_short_float(getattr(X, "dtype", None))

    def _number_classes(self, labels: Any) -> None:
        for name in OF_A_TRAINING:
            self.__dict__.pop(name, None)
        labels = labels if hasattr(labels, "dtype") else np.asarray(labels)
        host = isinstance(labels, np.ndarray)
        found = np.unique(labels) if host else array_namespace(labels).unique_values(labels)
        self.classes_ = np.sort(np.asarray(to_host(found)))

    def _targets(self, labels: Array) -> Array:
        """Return the number of each label's class."""
        if isinstance(labels, np.ndarray):
            unknown = ~np.isin(labels, self.classes_)
            if unknown.any():
                raise ValueError(
                    f"y has the label {labels[unknown].tolist()[0]!r}, which is not among the "
                    f"classes {self.classes_.tolist()}"
                )
            return np.searchsorted(self.classes_, labels)
        xp = array_namespace(labels)
        if labels.dtype == xp.bool:  # which have no order
            labels = xp.astype(labels, xp.uint8)
        classes = xp.astype(to_device(self.classes_, like=labels), labels.dtype)
        numbers = xp.searchsorted(classes, labels)
        last = int(classes.shape[0]) - 1
        nearest = xp.where(numbers > last, xp.asarray(last, device=labels.device), numbers)
        # An unknown label gets a number that no class has, which makes the loss NaN.
        return xp.where(xp.take(classes, nearest) == labels, nearest, last + 1)

    @contextmanager
    def _unchanged_if_it_fails(self) -> Iterator[None]:
        """Leave no half-trained model behind an error or an interruption."""
        before = dict(self.__dict__)
        # They go on in place: the model's own, and one that the caller handed in.
        restore = [_position_of(before.get(name)) for name in ("_rng", "random_state")]
        try:
            yield
        except BaseException:
            for put_back in restore:
                put_back()
            self.__dict__.clear()
            self.__dict__.update(before)
            raise


def _position_of(generator: Any) -> Callable[[], None]:
    """Return what takes a generator of random numbers back to where it is now."""
    if isinstance(generator, np.random.RandomState):
        return partial(generator.set_state, generator.get_state())
    if isinstance(generator, np.random.BitGenerator):
        return partial(setattr, generator, "state", generator.state)
    if isinstance(generator, np.random.Generator):
        return _position_of(generator.bit_generator)
    return lambda: None


class Part(NamedTuple):
    """Samples to train on, or to validate on."""

    samples: Any
    targets: Array
    weights: Array | None = None

    def spaced(self, count: int) -> Part:
        """Return about so many of the samples, evenly spaced, without weights."""
        rows = slice(None, None, max(1, int(self.targets.shape[0]) // max(1, count)))
        is_lazy = isinstance(self.samples, Standardized)
        return Part(self.samples[rows] if is_lazy else self.samples[rows, ...], self.targets[rows])


def _with_accepted_numbers(X: Any) -> Any:
    """Convert integers, booleans and short floats to float64, as scikit-learn does for NumPy."""
    if isinstance(X, Standardized):
        return X
    xp = array_namespace(X)
    if X.dtype in (xp.uint8, xp.float32, xp.float64):
        return X
    is_number = xp.isdtype(X.dtype, ("bool", "integral", "real floating"))
    return xp.astype(X, xp.float64) if is_number else X  # check_samples refuses the others


def _is_checked_here(X: Any) -> bool:
    """Tell the inputs that scikit-learn's checks would refuse or copy to the host."""
    if isinstance(X, Standardized):
        return True
    if isinstance(X, np.ndarray):
        return False
    root = type(X).__module__.partition(".")[0]
    return root in ("cupy", "torch") or hasattr(X, "__array_namespace__")


def select_rows(values: Any, numbers: np.ndarray) -> Any:
    """Return the samples, labels or weights of these numbers, where the others are."""
    if values is None:
        return None
    if not _is_checked_here(values):
        return _safe_indexing(values, numbers)
    stored = values.X if isinstance(values, Standardized) else values
    if isinstance(stored, Streamed):  # a fold may be as much too large for the device as the whole
        part = stored.select(numbers)
        return values.with_samples(part) if isinstance(values, Standardized) else part
    places: Array = to_device(numbers, like=stored)
    return take_rows(values, places)


def on_host(values: Any) -> Any:
    """Return labels or weights as a NumPy array, and None as it is."""
    if values is None:
        return None
    return np.asarray(to_host(values) if _is_checked_here(values) else values)


def count_samples(values: Any) -> int:
    """Return the number of samples, labels or weights."""
    refuse_odd_arrays(values)
    # Not sklearn.utils.check_consistent_length: it takes Standardized for an estimator.
    shape = getattr(values, "shape", None)
    return int(shape[0]) if shape else len(values)
