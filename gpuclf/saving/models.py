"""Classifiers in files: ``model.save(path)`` and :func:`gpuclf.load`."""

from __future__ import annotations

import inspect
import math
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpuclf.arrays import to_host
from gpuclf.estimators import (
    FleetEnsemble,
    KNeighborsClassifier,
    LinearSVMClassifier,
    SoftmaxClassifier,
    TwoLayerNetClassifier,
)
from gpuclf.estimators.base import ArrayClassifier
from gpuclf.estimators.gradient_classifier import GradientClassifier
from gpuclf.models import Model
from gpuclf.saving.container import read_container, refuse, write_container
from gpuclf.saving.values import LEFT_OUT, ValueReader, ValueWriter
from gpuclf.training.history import History

__all__ = ["load", "save"]

# A file names one of these; a class of one's own is pickled, for its code is in no file.
CLASSES: dict[str, type[ArrayClassifier]] = {
    kind.__name__: kind
    for kind in (
        *(FleetEnsemble, KNeighborsClassifier),
        *(LinearSVMClassifier, SoftmaxClassifier, TwoLayerNetClassifier),
    )
}


def save(model: Any, path: str | os.PathLike[str]) -> None:
    """Write a fitted classifier to a file, whole or not at all.

    Parameters
    ----------
    model : classifier of gpuclf, or a search that was refitted
        Of a search, its best classifier is written.
    path : str or path
        Any name; ".safetensors" tells other programs what it is.

    Raises
    ------
    TypeError
        If it is no such classifier, or holds what the file must have and cannot.
    ValueError
        If it is not fitted, or its parts do not fit together.

    Warns
    -----
    UserWarning
        If a hyper-parameter cannot be stored (a function for `augment` that is not gpuclf's own):
        the file then has its default.
    """
    if getattr(model, "refit", True):
        model = getattr(model, "best_estimator_", model)
    if hasattr(model, "refit"):
        raise TypeError(
            f"{type(model).__name__} has no best_estimator_ to save: fit it, with refit=True"
        )
    _check_class(model)
    model = to_host(model)
    check_fitted(model)
    writer = _ModelWriter()
    content = writer.write(model, "")
    write_container(Path(path), "model", content, writer.arrays)
    for where, value in writer.left_out.items():
        warnings.warn(
            f"{where}={value!r} cannot be stored: {path} is without it, and a hyper-parameter has "
            "its default there; set it again after loading, with set_params",
            stacklevel=3,
        )


def load(path: str | os.PathLike[str]) -> Any:
    """Read a classifier that ``model.save(path)`` wrote.

    Parameters
    ----------
    path : str or path

    Returns
    -------
    classifier
        With arrays on the host; :func:`gpuclf.to_device` moves them. Its predictions have the bits
        of the one that was saved.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If the file is of a newer format, was cut off, damaged or changed, or is no model. Nothing
        in a file is executed, and what is read takes no more memory than the file is long, but for
        a small factor.

    Examples
    --------
    >>> import tempfile
    >>> import gpuclf
    >>> X, y = np.array([[0.0], [1.0], [9.0], [10.0]]), np.array(["low", "low", "high", "high"])
    >>> model = gpuclf.SoftmaxClassifier(random_state=0).fit(X, y)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save(f"{folder}/model.safetensors")
    ...     again = gpuclf.load(f"{folder}/model.safetensors")
    >>> again.predict(np.array([[2.0], [8.0]]))
    array(['low', 'high'], dtype='<U4')
    """
    content, arrays = read_container(Path(path), "model")
    reader = _ModelReader(arrays)
    try:
        model = reader.read(content)
        reader.finish()
        if not isinstance(model, ArrayClassifier):
            raise ValueError(f"it describes a {type(model).__name__}, not a classifier")
        check_fitted(model)
    except ValueError as error:
        refuse(Path(path), str(error))
    except (LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        refuse(Path(path), f"its description of a classifier is incomplete or wrong ({error!r})")
    return model


class _ModelWriter(ValueWriter):
    """Writes classifiers too: hyper-parameters, and all that they learned."""

    def write_other(self, value: Any, where: str) -> Any:
        if isinstance(value, ArrayClassifier):
            return self._estimator(value, where, vars(value))
        return super().write_other(value, where)

    def _estimator(self, value: Any, where: str, attributes: Mapping[str, Any]) -> Any:
        _check_class(value)
        names = _parameters_of(type(value))
        prefix = f"{where}." if where else ""
        params = {
            # The estimator of an ensemble is there to be cloned, whatever it may have learned.
            name: self._estimator(v, prefix + name, {})
            if isinstance(v := getattr(value, name), ArrayClassifier)
            else self.write(v, prefix + name)
            for name in names
        }
        # By no list of names: an attribute that is added later is stored, or named in a warning.
        # Callbacks watch a fit, and are no part of what it made.
        learned = {k: v for k, v in attributes.items() if k not in {*names, "_skl_callbacks"}}
        fitted = {name: self.write(v, prefix + name) for name, v in learned.items()}
        needed = [prefix + name for name in REQUIRED[_base_of(type(value))]]
        for place, odd in self.left_out.items():
            if any(f"{place}.".startswith(f"{name}.") for name in needed):
                raise TypeError(f"{place} holds what a file cannot: {odd!r}")
        parts = {"params": params, "fitted": fitted}
        return {"is": "estimator", "class": type(value).__name__} | {
            part: {name: node for name, node in nodes.items() if node is not LEFT_OUT}
            for part, nodes in parts.items()
        }


class _ModelReader(ValueReader):
    """Reads classifiers too."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        super().__init__(arrays)
        self.kinds["estimator"] = self._read_estimator

    def _read_estimator(self, node: Any) -> ArrayClassifier:
        kind = CLASSES.get(node["class"])
        if kind is None:
            raise ValueError(f"unknown class {node['class']!r}")
        wrong = node["params"].keys() - _parameters_of(kind).keys()
        if wrong:
            raise ValueError(f"{kind.__name__} has no hyper-parameters {sorted(wrong)}")
        model = kind(**{name: self.read(value) for name, value in node["params"].items()})
        for name, value in node["fitted"].items():
            hidden = getattr(kind, name, None)
            is_name = name.isidentifier() and "__" not in name
            if not is_name or callable(hidden) or isinstance(hidden, property | Model):
                raise ValueError(f"{kind.__name__} has no attribute {name!r} to fill")
            setattr(model, name, self.read(value))
        return model


def _check_class(model: Any) -> None:
    if type(model) is not CLASSES.get(type(model).__name__):
        raise TypeError(
            f"{type(model).__name__} is none of gpuclf's classifiers ({', '.join(CLASSES)}), and a "
            "file holds no code: use pickle or joblib, and load where its class can be imported"
        )


def _parameters_of(kind: type[ArrayClassifier]) -> dict[str, inspect.Parameter]:
    return {k: v for k, v in inspect.signature(kind.__init__).parameters.items() if k != "self"}


DICTS = ("split", "data_sha256")  # of training_
F4, F8 = np.dtype(np.float32), np.dtype(np.float64)

# --------------------------------------------------- what a fitted classifier must look like


def check_fitted(model: Any, where: str = "") -> None:
    """Raise a ValueError if a classifier's parts do not fit together.

    Saving checks what loading checks: what was written can be read.
    """
    base = _base_of(type(model))
    missing = [name for name in REQUIRED[base] if name not in vars(model)]
    if missing:
        raise ValueError(f"{where}{type(model).__name__} is without {', '.join(missing)}")
    try:
        if type(model.n_features_in_) is not int or model.n_features_in_ < 1:
            raise ValueError(f"n_features_in_ must be an integer above 0: {model.n_features_in_!r}")
        _check_classes(model)
        _check_descriptions(model)
        CHECKS[base](model)
    except ValueError as error:
        raise ValueError(f"{where}{error}") from None


def _base_of(kind: type[Any]) -> type[Any]:
    return next(base for base in REQUIRED if issubclass(kind, base))


def _check_classes(model: Any) -> None:
    classes = model.classes_
    _check_array("classes_", classes, (None,), "biufUO")
    if not len(classes) or not np.array_equal(np.unique(classes), classes):
        raise ValueError("classes_ must be labels in ascending order, each once")
    names = vars(model).get("feature_names_in_")
    if names is not None:
        _check_array("feature_names_in_", names, (model.n_features_in_,), "O")
        if not all(isinstance(name, str) for name in names):
            raise ValueError("feature_names_in_ must hold strings")


def _check_descriptions(model: Any) -> None:
    """Check what the command line reads of a model that it kept."""
    shape = vars(model).get("image_shape_")
    if shape is not None:
        numbers = list(shape) if isinstance(shape, tuple | list) else []
        is_shape = len(numbers) == 3 and all(type(n) is int and n > 0 for n in numbers)
        if not is_shape or math.prod(numbers) != model.n_features_in_:
            raise ValueError(
                "image_shape_ must be (channels, height, width) of "
                f"{model.n_features_in_} values, got {shape!r}"
            )
    names = vars(model).get("class_names_")
    if names is not None and not (
        isinstance(names, tuple | list) and all(isinstance(name, str) for name in names)
    ):
        raise ValueError("class_names_ must be a list of strings")
    training = vars(model).get("training_", {})
    parts = [training] if not isinstance(training, dict) else [training, *map(training.get, DICTS)]
    if not all(part is None or isinstance(part, dict) for part in parts) or training is None:
        raise ValueError(f"training_ must be a dict, with dicts for {', '.join(DICTS)}")


def _check_gradient_classifier(model: Any) -> None:
    model.check_hyperparameters()
    for name, default in (("_velocity", None), ("_rng", np.random.default_rng())):
        vars(model).setdefault(name, default)  # where no file could hold a generator of one's own
    sizes = {"D": model.n_features_in_, "C": len(model.classes_)}
    axes, params = model.model.axes, model.params_
    for name in ("params_", "_velocity"):
        of = getattr(model, name)
        if of is None and name == "_velocity":
            continue
        if not isinstance(of, dict) or [*of] != [*axes]:
            raise ValueError(f"{name} must hold {', '.join(axes)}")
        for key, value in of.items():
            _check_array(f"{name}[{key}]", value, tuple(map(sizes.get, axes[key])), "f")
            sizes |= zip(axes[key], value.shape, strict=True)
    if {value.dtype for value in params.values()} not in ({F4}, {F8}):
        raise ValueError("params_ must all be float32 or all be float64")
    for name in ("mean_", "scale_"):
        value = getattr(model, name)
        if (value is None) != (model.mean_ is None):
            raise ValueError("mean_ and scale_ must both be arrays or both be None")
        if value is not None:
            _check_array(name, value, (model.n_features_in_,), "f")
            if name == "scale_" and not (value > 0).all():
                raise ValueError("scale_ must be above 0 everywhere")
    if type(model.n_iter_) is not int or model.n_iter_ < 0:
        raise ValueError(f"n_iter_ must be an integer, at least 0, got {model.n_iter_!r}")
    if not isinstance(model.history_, History):
        raise ValueError("history_ must be a History")
    for name in ("loss_history_", "val_accuracy_history_", "train_accuracy_history_"):
        if not isinstance(getattr(model, name), list):
            raise ValueError(f"{name} must be a list")
    if not isinstance(model._rng, np.random.Generator):
        raise ValueError("_rng must be a generator of random numbers")


def _check_neighbors(model: Any) -> None:
    n_samples = model.n_samples_fit_
    _check_array("_fit_X", model._fit_X, (n_samples, model.n_features_in_), "uf")
    _check_array("_y", model._y, (n_samples,), "iu")
    if model._fit_X.dtype not in (np.uint8, np.float16, np.float32, np.float64):
        raise ValueError(
            f"_fit_X must be uint8, float16, float32 or float64, got {model._fit_X.dtype}"
        )
    if model._y.min() < 0 or model._y.max() >= len(model.classes_):
        raise ValueError(f"_y must be numbers of the {len(model.classes_)} classes")


def _check_ensemble(model: Any) -> None:
    members = model.estimators_
    if not isinstance(members, list) or not members:
        raise ValueError("estimators_ must be a list of classifiers")
    if not isinstance(model.estimator, GradientClassifier):
        raise ValueError(f"estimator must be trained by gradients, got {model.estimator!r}")
    if model.voting not in (None, "soft", "hard"):
        raise ValueError(f"voting must be 'soft', 'hard' or None, got {model.voting!r}")
    for n, member in enumerate(members):
        if type(member) is not type(model.estimator):
            raise ValueError(f"estimators_[{n}] is no {type(model.estimator).__name__}")
        check_fitted(member, f"estimators_[{n}]: ")
        if member.n_features_in_ != model.n_features_in_ or not np.array_equal(
            member.classes_, model.classes_
        ):
            raise ValueError(f"estimators_[{n}] has other features or classes than the ensemble")


def _check_array(name: str, value: Any, shape: tuple[int | None, ...], kinds: str) -> None:
    """Check shape and kind of numbers, and that they are finite."""
    if not isinstance(value, np.ndarray):
        raise ValueError(f"{name} must be an array, got {type(value).__name__}")
    fits = len(value.shape) == len(shape)
    if not fits or any(of not in (None, n) for n, of in zip(value.shape, shape, strict=True)):
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{name} must have shape ({wanted}), got {value.shape}")
    if value.dtype.kind not in kinds:
        raise ValueError(f"{name} must not be of type {value.dtype}")
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise ValueError(f"{name} has NaN or infinite values")


REQUIRED: dict[type[Any], tuple[str, ...]] = {
    GradientClassifier: (
        *("n_features_in_", "classes_", "params_", "mean_", "scale_", "n_iter_", "history_"),
        *("loss_history_", "val_accuracy_history_", "train_accuracy_history_"),
    ),
    KNeighborsClassifier: ("n_features_in_", "classes_", "_fit_X", "_y", "n_samples_fit_"),
    FleetEnsemble: ("n_features_in_", "classes_", "estimators_"),
}
CHECKS: dict[type[Any], Callable[[Any], None]] = {
    GradientClassifier: _check_gradient_classifier,
    KNeighborsClassifier: _check_neighbors,
    FleetEnsemble: _check_ensemble,
}
