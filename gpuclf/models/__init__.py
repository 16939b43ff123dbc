"""The models as values (:class:`Model`), and the functions that they are made of."""

from gpuclf.models.gradients import check_model
from gpuclf.models.linear import SOFTMAX, SVM, LinearModel
from gpuclf.models.model import DataLoss, Model, Params
from gpuclf.models.two_layer import TWO_LAYER, TwoLayerNet

__all__ = [
    "MODELS",
    "SOFTMAX",
    "SVM",
    "TWO_LAYER",
    "DataLoss",
    "LinearModel",
    "Model",
    "Params",
    "TwoLayerNet",
    "check_model",
]

MODELS = {model.name: model for model in (SOFTMAX, SVM, TWO_LAYER)}
