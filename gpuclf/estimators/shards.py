"""What the classifiers do with samples on a cluster (:mod:`gpuclf.samples.sharded`)."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.multiclass import check_classification_targets

from gpuclf.arrays import Array, array_namespace
from gpuclf.devices.backends import to_device
from gpuclf.models.neighbors import check_n_neighbors, k_neighbors
from gpuclf.samples.holders import Chunk
from gpuclf.samples.sharded import Sharded, gathered
from gpuclf.samples.standardized import Standardized
from gpuclf.validation import check_label_count, check_weights

__all__ = ["check_training_shards", "class_numbers", "class_scores", "nearest_in_shards"]


def check_training_shards(
    model: Any, X: Any, y: Any, sample_weight: Any
) -> tuple[Any, np.ndarray, np.ndarray | None]:
    """Check data to fit on; return samples, labels and weights, the last two in this process.

    Raises
    ------
    TypeError, ValueError
        If the model cannot be fitted on them, or the shapes do not fit.
    """
    name, solver = type(model).__name__, getattr(model, "solver", None)
    if solver == "sgd":
        instead = (
            "pass solver='lbfgs', whose passes over all samples are worth their network"
            if "solver" in model.get_params()
            else "take SoftmaxClassifier(solver='lbfgs'), or fit on a part of the samples, "
            "X[:100_000].compute() of the dask array"
        )
        raise ValueError(
            f"{name} would train Sharded samples by SGD, whose steps of a few hundred samples are "
            f"shorter than a message: {instead}"
        )
    if getattr(model, "n_iter_no_change", None) is not None:
        raise ValueError(
            "n_iter_no_change holds out samples, and Sharded ones are not cut into parts: leave it "
            "out, or raise tol"
        )
    n_samples, n_features = X.shape
    y = np.asarray(gathered(y, n_samples))
    check_label_count(y, n_samples)
    check_classification_targets(y)
    sample_weight = gathered(sample_weight, n_samples, "sample_weight")
    if sample_weight is not None:
        sample_weight = check_weights(np.asarray(sample_weight), X, np.float64)
    model.n_features_in_ = n_features
    model.__dict__.pop("feature_names_in_", None)
    model.image_shape_ = model.layout_ = model.value_range_ = model._value_kind = None
    return X, y, sample_weight


def class_scores(model: Any, X: Any, params: Any = None) -> np.ndarray:
    """Return the scores (..., N, C), computed where the samples are."""
    shards, scaling = _opened(model, X)
    return np.concatenate(shards.map(_scores_of_chunk, model, params, scaling), axis=-2)


def class_numbers(model: Any, X: Any) -> np.ndarray:
    """Return the number of the highest score, (N,), of which as few bytes travel as hold it."""
    shards, scaling = _opened(model, X)
    return np.concatenate(shards.map(_numbers_of_chunk, model, None, scaling)).astype(np.int64)


def _opened(model: Any, X: Any) -> tuple[Sharded, Any]:
    if X.shape[1] != model.n_features_in_:
        raise ValueError(
            f"X has {X.shape[1]} features, but {type(model).__name__} is expecting "
            f"{model.n_features_in_} features as input"
        )
    return (X.X, (X.mean, X.scale)) if isinstance(X, Standardized) else (X, None)


def _scores_of_chunk(chunk: Chunk, model: Any, params: Any, scaling: Any) -> Array:
    X = chunk.X if scaling is None else Standardized(chunk.X, *scaling)
    return model.class_scores(X, params)


def _numbers_of_chunk(chunk: Chunk, model: Any, params: Any, scaling: Any) -> Array:
    scores = _scores_of_chunk(chunk, model, params, scaling)
    xp = array_namespace(scores)
    small = xp.uint8 if len(model.classes_) <= 256 else xp.int32
    return xp.astype(xp.argmax(scores, axis=-1), small)


def nearest_in_shards(
    queries: np.ndarray, X: Sharded, k: int, metric: str, memory_budget: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k nearest samples: see :func:`gpuclf.models.neighbors.k_neighbors`."""
    check_n_neighbors(k, len(X))
    parts = X.map(_nearest_of_chunk, queries, int(k), metric, memory_budget, merge=_nearest_of_all)
    return _nearest_of_all([(int(k), *part[1:]) for part in parts])[1:]


# A chunk's result begins with k, for those that merge it.
Nearest = tuple[int, np.ndarray, np.ndarray]


def _nearest_of_chunk(
    chunk: Chunk, queries: np.ndarray, k: int, metric: str, memory_budget: int
) -> tuple[int, Array, Array]:
    of_chunk = min(k, int(chunk.X.shape[0]))
    distances, indices = k_neighbors(
        to_device(queries, like=chunk.X), chunk.X, of_chunk, metric, memory_budget=memory_budget
    )
    return k, distances, indices + chunk.start


def _nearest_of_all(parts: list[Nearest]) -> Nearest:
    """Merge neighbours by (distance, index), in any order of the chunks, with the same result."""
    k = parts[0][0]
    distances, indices = (
        np.concatenate([part[place] for part in parts], axis=1) for place in (1, 2)
    )
    order = np.lexsort((indices, distances), axis=1)[:, :k]
    return k, np.take_along_axis(distances, order, 1), np.take_along_axis(indices, order, 1)
