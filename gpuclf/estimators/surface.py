"""What scikit-learn's users look for beside fit and predict: coefficients, class weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils.validation import check_is_fitted

from gpuclf.arrays import Array, array_namespace, refuse_odd_arrays
from gpuclf.devices.backends import to_device
from gpuclf.devices.cupy import on_device_of
from gpuclf.estimators.base import on_host
from gpuclf.models.model import Params

__all__ = [
    "LinearCoefficients",
    "Start",
    "check_class_weight",
    "check_classes",
    "check_partial",
    "labels_of",
    "weights_by_class",
]


class LinearCoefficients:
    """The parameters of a linear model, for features as they come."""

    params_: Params
    classes_: np.ndarray
    mean_: np.ndarray | None
    scale_: np.ndarray | None

    @property
    def coef_(self) -> Array:
        """Factors of the raw features, shape (C, D), for two classes (1, D).

        ``X @ coef_.T + intercept_`` is the :meth:`decision_function` of X: the standardisation is
        within, and of two classes the first one's are subtracted from the second one's. Computed
        from `params_` in float64, in their library and dtype.
        """
        return self._on_raw_features()[0]

    @property
    def intercept_(self) -> Array:
        """What is added to the products of `coef_`, shape (C,), for two classes (1,)."""
        return self._on_raw_features()[1]

    def _on_raw_features(self) -> tuple[Array, Array]:
        check_is_fitted(self, "params_")
        W, b = self.params_["W"], self.params_["b"]
        xp = array_namespace(W)
        with on_device_of(W):
            if len(self.classes_) == 2:
                W, b = W[:, 1:] - W[:, :1], b[1:] - b[:1]
            W, b = _restandardized(W, b, (self.mean_, self.scale_), (None, None))
            return xp.asarray(W.T, copy=True), b


class Start(NamedTuple):
    """What a fit with warm_start goes on from."""

    params: Params
    classes: np.ndarray
    mean: np.ndarray | None
    scale: np.ndarray | None

    @classmethod
    def of(cls, model: Any) -> Start | None:
        """Return that of a classifier, or None where it starts anew."""
        if not model.warm_start or not hasattr(model, "params_"):
            return None
        return cls(model.params_, model.classes_, model.mean_, model.scale_)

    def continued(self, model: Any, anew: Params) -> Params:
        """Return the parameters of the same function, for the standardisation of the new samples.

        Parameters
        ----------
        model : classifier
            With what it has learned from the new samples, but for the parameters.
        anew : dict of array
            Where it would start without the first fit: shapes, dtype and place.

        Raises
        ------
        ValueError
            If the new samples have other classes or features, or the model other parameters.
        """
        other = "; warm_start=False forgets the last fit"
        if not np.array_equal(self.classes, model.classes_):
            raise ValueError(
                f"warm_start=True goes on from the last fit, whose classes are "
                f"{self.classes.tolist()}, but y has {model.classes_.tolist()}{other}"
            )
        for name, value in anew.items():
            if value.shape != self.params[name].shape:
                raise ValueError(
                    f"warm_start=True goes on from the last fit, whose {name} has shape "
                    f"{tuple(self.params[name].shape)}, where {tuple(value.shape)} is needed{other}"
                )
        params: Params = {
            name: array_namespace(anew[name]).astype(
                to_device(value, like=anew[name]), anew[name].dtype
            )
            for name, value in self.params.items()
        }
        W, b, *_ = model.model.axes  # the first two multiply the samples, and are added
        params[W], params[b] = _restandardized(
            *(params[W], params[b]), (self.mean, self.scale), (model.mean_, model.scale_)
        )
        return params


Moments = tuple[Any, Any]  # mean and scale, or twice None


def _restandardized(W: Array, b: Array, before: Moments, after: Moments) -> tuple[Array, Array]:
    """Return W', b' with ``(x - mean') / scale' @ W' + b' == (x - mean) / scale @ W + b``."""
    if before[0] is None and after[0] is None:
        return W, b
    xp = array_namespace(W)
    n_features = int(W.shape[0])
    as_they_are = np.zeros(n_features), np.ones(n_features)
    (mean, scale), (new_mean, new_scale) = (
        as_they_are if pair[0] is None else pair for pair in (before, after)
    )
    factor, moved = (
        to_device(values, like=W) for values in (new_scale / scale, (new_mean - mean) / scale)
    )
    wide = xp.astype(W, xp.float64)
    shift = moved @ wide
    return (
        xp.astype(wide * factor[:, None], W.dtype),
        xp.astype(xp.astype(b, xp.float64) + shift, b.dtype),
    )


# --------------------------------------------------------------------------- labels and weights


def labels_of(classes: Any) -> Any:
    """Return classes= of partial_fit as an array: of lists, sets, pandas, polars, as any other."""
    refuse_odd_arrays(classes, "classes")
    if isinstance(classes, Set):  # keys of a dict too
        classes = list(classes)
    root = type(classes).__module__.partition(".")[0]
    if root in ("cupy", "torch") or hasattr(classes, "__array_namespace__"):
        return classes
    labels = np.asarray(classes)
    if (
        labels.ndim != 1
        or labels.size == 0
        or (labels.dtype.kind == "f" and np.isnan(labels).any())
    ):
        raise ValueError(
            "classes must be labels in one dimension, such as numpy.unique(y), none of them NaN, "
            f"got {classes!r}"
        )
    return labels


def check_classes(classes: Any, known: np.ndarray | None) -> None:
    """Raise a ValueError if classes= of partial_fit is missing at first, or another one later."""
    if known is None and classes is None:
        raise ValueError(
            "the first call of partial_fit needs classes=, all labels that will ever occur"
        )
    if known is not None and classes is not None:
        found = np.unique(on_host(classes))
        if not np.array_equal(found, known):
            raise ValueError(
                f"classes={found.tolist()} differ from those of the first call, {known.tolist()}"
            )


def check_class_weight(value: Any) -> bool:
    """Tell whether a value can be a class_weight; its labels are looked at in the fit."""
    if value is None or (isinstance(value, str) and value == "balanced"):
        return True
    return isinstance(value, Mapping) and all(
        isinstance(w, Real) and 0 <= float(w) < math.inf for w in value.values()
    )


def check_partial(class_weight: Any) -> None:
    """Raise a ValueError for class weights that a part of the samples cannot give."""
    if isinstance(class_weight, str):
        raise ValueError(
            f"class_weight={class_weight!r} must see all samples, and partial_fit sees a part: "
            "count once, set_params(class_weight=dict(zip(classes, sklearn.utils.class_weight."
            'compute_class_weight("balanced", classes=classes, y=y))))'
        )


def weights_by_class(
    class_weight: Any, classes: np.ndarray, targets: Array, weights: Array | None
) -> Array | None:
    """Return the samples' weights times those of their classes.

    Parameters
    ----------
    class_weight : dict, "balanced" or None
    classes : array of shape (C,)
        Labels in the order of their numbers.
    targets : integer array of shape (N,)
        Numbers of classes; a number that no class has gets a weight of NaN.
    weights : array of shape (N,), optional
    """
    if class_weight is None:
        return weights
    n_classes, labels = len(classes), classes.tolist()
    if isinstance(class_weight, str):
        of_samples = None if weights is None else on_host(weights)
        counts = np.bincount(on_host(targets), of_samples, minlength=n_classes)[:n_classes]
        with np.errstate(divide="ignore"):
            factors = np.where(counts > 0, counts.sum() / (np.sum(counts > 0) * counts), 1.0)
    else:
        unknown = [label for label in class_weight if label not in labels]
        if unknown:
            raise ValueError(
                f"class_weight has the label {unknown[0]!r}, which is not among the classes "
                f"{labels}"
            )
        factors = np.array([float(class_weight.get(label, 1.0)) for label in labels])
        counts = np.bincount(on_host(targets), minlength=n_classes)[:n_classes]
        if not np.any(factors * counts):
            raise ValueError(
                f"class_weight={class_weight!r} leaves no sample with a weight above 0: give one "
                "of the classes of y a weight"
            )
    xp = array_namespace(targets)
    of_classes = to_device(np.append(factors, np.nan), like=targets)
    of_targets = xp.take(of_classes, targets)
    return of_targets if weights is None else weights * of_targets
