"""Every model's gradients, those with respect to X included, held against centred differences.

``gpuclf check`` and the tests run these rows. A model trains without the gradient of X; it is put
together here from the layers' backward passes, as a network in front of the model would need it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from gpuclf.backend import Array, array_namespace, to_device
from gpuclf.gradcheck import GradCheck, grad_check
from gpuclf.layers import affine, affine_backward, relu, relu_backward
from gpuclf.losses import multiclass_hinge, softmax_cross_entropy
from gpuclf.models.linear import DataLoss, linear_loss, linear_scores
from gpuclf.models.two_layer import two_layer_objective

__all__ = ["MODELS", "Model", "check_model", "linear_gradients", "two_layer_gradients"]

N_SAMPLES, N_FEATURES, N_HIDDEN, N_CLASSES = 12, 7, 6, 4
REG = 0.05
RTOL = {"float32": 1e-3, "float64": 1e-7}

Gradients = Callable[[dict[str, Array], Array, Array, float], tuple[Array, dict[str, Array]]]


@dataclass(frozen=True)
class Model:
    """A row of the check.

    Attributes
    ----------
    shapes : dict
        Of the parameters.
    gradients : callable
        ``(params, X, y, reg) -> (loss, gradients of the parameters and of X)``.
    """

    shapes: dict[str, tuple[int, ...]]
    gradients: Gradients


def linear_gradients(
    data_loss: DataLoss, params: dict[str, Array], X: Array, y: Array, reg: float
) -> tuple[Array, dict[str, Array]]:
    """Return loss and gradients of a linear classifier, "X" among them.

    Parameters
    ----------
    data_loss : callable
        For example :func:`gpuclf.losses.softmax_cross_entropy`.
    params : dict
        W (D, C) and b (C,).
    X : array of shape (N, D)
    y : integer array of shape (N,)
    reg : float
    """
    loss, grads = linear_loss(data_loss, params, X, y, reg)
    _, dscores = data_loss(linear_scores(params, X), y, None)
    dX, _, _ = affine_backward(dscores, X, params["W"])
    return loss, grads | {"X": dX}


def two_layer_gradients(
    params: dict[str, Array], X: Array, y: Array, reg: float
) -> tuple[Array, dict[str, Array]]:
    """Return loss and gradients of the two-layer net, "X" among them; see :mod:`gpuclf.models.two_layer`.

    Parameters
    ----------
    params : dict
        W1 (D, H), b1 (H,), W2 (H, C), b2 (C,).
    X : array of shape (N, D)
    y : integer array of shape (N,)
    reg : float
    """
    loss, grads = two_layer_objective(params, X, y, reg)
    hidden = relu(affine(X, params["W1"], params["b1"]))
    _, dscores = softmax_cross_entropy(affine(hidden, params["W2"], params["b2"]), y)
    dhidden, _, _ = affine_backward(dscores, hidden, params["W2"])
    dX, _, _ = affine_backward(relu_backward(dhidden, hidden), X, params["W1"])
    return loss, grads | {"X": dX}


_LINEAR_SHAPES = {"W": (N_FEATURES, N_CLASSES), "b": (N_CLASSES,)}
MODELS = {
    "softmax": Model(_LINEAR_SHAPES, partial(linear_gradients, softmax_cross_entropy)),
    "svm": Model(_LINEAR_SHAPES, partial(linear_gradients, multiclass_hinge)),
    "two-layer": Model(
        {
            "W1": (N_FEATURES, N_HIDDEN),
            "b1": (N_HIDDEN,),
            "W2": (N_HIDDEN, N_CLASSES),
            "b2": (N_CLASSES,),
        },
        two_layer_gradients,
    ),
}


def check_model(
    model: Model, *, like: Array, dtype: str = "float64", seed: int = 0
) -> dict[str, GradCheck]:
    """Check all gradients of a model at a random point.

    Parameters
    ----------
    model : Model
    like : array
        Its library and device do the work.
    dtype : {"float64", "float32"}
        Floats that the analytic gradients are computed in; the differences are always float64.
    seed : int

    Returns
    -------
    dict of GradCheck
        One for each parameter and for "X".

    Examples
    --------
    >>> list(check_model(MODELS["softmax"], like=np.zeros(1)))
    ['W', 'b', 'X']
    """
    rng = np.random.default_rng(seed)
    shapes = model.shapes | {"X": (N_SAMPLES, N_FEATURES)}
    host = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    y = to_device(rng.integers(N_CLASSES, size=N_SAMPLES), like=like)
    point: dict[str, Array] = to_device(host, like=like)
    wide = {k: array_namespace(v).astype(v, array_namespace(v).float64) for k, v in point.items()}

    def evaluate(values: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        params = {name: values[name] for name in model.shapes}
        return model.gradients(params, values["X"], y, REG)

    _, grads = evaluate(point)

    def check(name: str) -> GradCheck:
        def loss(value: Array) -> Array:
            return evaluate(wide | {name: value})[0]

        return grad_check(loss, point[name], grads[name], rtol=RTOL[dtype])

    return {name: check(name) for name in point}
