"""Classic image classifiers, one implementation on NumPy and CuPy.

Names are loaded on first use, so that ``import gpuclf`` costs little more than NumPy and touches
neither CuPy nor scikit-learn.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "BackendUnavailableError": "gpuclf.backend",
    "MixedDevicesError": "gpuclf.backend",
    "array_namespace": "gpuclf.backend",
    "get_backend": "gpuclf.backend",
    "synchronize": "gpuclf.backend",
    "to_device": "gpuclf.backend",
    "to_host": "gpuclf.backend",
    "Standardized": "gpuclf.samples.folding",
    "Streamed": "gpuclf.samples.streamed",
    "extract_features": "gpuclf.image_features",
    "grad_check": "gpuclf.gradcheck",
    "numeric_gradient": "gpuclf.gradcheck",
    "knn_vote": "gpuclf.models.neighbors",
    "pairwise_distances": "gpuclf.models.distances",
    "softmax_loss_naive": "gpuclf.naive",
    "softmax_loss_vectorized": "gpuclf.models.linear",
    "svm_loss_naive": "gpuclf.naive",
    "svm_loss_vectorized": "gpuclf.models.linear",
    "two_layer_loss_naive": "gpuclf.naive",
    "two_layer_loss": "gpuclf.models.two_layer",
    "two_layer_scores": "gpuclf.models.two_layer",
    "FleetEnsemble": "gpuclf.estimators",
    "FleetSearchCV": "gpuclf.estimators",
    "KNeighborsClassifier": "gpuclf.estimators",
    "LinearSVMClassifier": "gpuclf.estimators",
    "SoftmaxClassifier": "gpuclf.estimators",
    "TwoLayerNetClassifier": "gpuclf.estimators",
}
_MODULES = (
    "augment",
    "backend",
    "datasets",
    "estimators",
    "features",
    "fleet",
    "image_features",
    "gradcheck",
    "layers",
    "linear",
    "losses",
    "naive",
    "neighbors",
    "optimizers",
    "plots",
    "preprocessing",
    "row_blocks",
    "search",
    "streaming",
    "training",
    "two_layer",
)

__all__ = ["__version__", *_HOMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(f"gpuclf.{name}")
    else:
        raise AttributeError(f"module 'gpuclf' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
