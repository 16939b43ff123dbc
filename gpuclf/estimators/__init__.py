"""scikit-learn estimators over the shared functions; the only place that imports scikit-learn."""

from gpuclf.estimators.fleet_ensemble import FleetEnsemble
from gpuclf.estimators.fleet_search import FleetSearchCV
from gpuclf.estimators.linear import LinearSVMClassifier, SoftmaxClassifier
from gpuclf.estimators.neighbors import KNeighborsClassifier
from gpuclf.estimators.two_layer import TwoLayerNetClassifier

__all__ = [
    "FleetEnsemble",
    "FleetSearchCV",
    "KNeighborsClassifier",
    "LinearSVMClassifier",
    "SoftmaxClassifier",
    "TwoLayerNetClassifier",
]
