"""The losses without NumPy: loops over features too, one rung below the course's naive loops.

Lists and floats only, as somebody writes them who has no arrays; nothing is checked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from gpuclf.models import MODELS, Model, Params

__all__ = ["TWINS", "twin_of"]

Vector = list[float]
SampleLoss = Callable[[Vector, int], tuple[float, Vector]]


def linear_loss(
    sample_loss: SampleLoss, params: Params, X: Any, y: Any, reg: float
) -> tuple[float, Params]:
    """Loss and gradient of a linear classifier without bias."""
    W = params["W"].tolist()
    dW, no_bias = _zeros(W), [0.0] * len(W[0])
    loss = 0.0
    for x, label in zip(X.tolist(), y.tolist(), strict=True):
        added, dscores = sample_loss(_affine(x, W, no_bias), label)
        loss += added / len(y)
        _add_outer(dW, x, [value / len(y) for value in dscores])
    loss += _add_penalty(dW, W, reg)
    return loss, {"W": np.array(dW)}


def two_layer_loss(params: Params, X: Any, y: Any, reg: float) -> tuple[float, Params]:
    """Loss and gradients of the two-layer net."""
    W1, b1, W2, b2 = (params[name].tolist() for name in ("W1", "b1", "W2", "b2"))
    dW1, db1, dW2, db2 = _zeros(W1), [0.0] * len(b1), _zeros(W2), [0.0] * len(b2)
    loss = 0.0
    for x, label in zip(X.tolist(), y.tolist(), strict=True):
        hidden = [max(value, 0.0) for value in _affine(x, W1, b1)]
        added, dscores = cross_entropy(_affine(hidden, W2, b2), label)
        loss += added / len(y)
        dscores = [value / len(y) for value in dscores]
        _add_outer(dW2, hidden, dscores)
        dhidden = _affine(dscores, list(zip(*W2, strict=True)), [0.0] * len(hidden))
        dhidden = [value * (unit > 0) for value, unit in zip(dhidden, hidden, strict=True)]
        _add_outer(dW1, x, dhidden)
        _add_outer([db1], [1.0], dhidden)
        _add_outer([db2], [1.0], dscores)
    loss += _add_penalty(dW1, W1, reg) + _add_penalty(dW2, W2, reg)
    grads = {"W1": dW1, "b1": db1, "W2": dW2, "b2": db2}
    return loss, {name: np.array(value) for name, value in grads.items()}


def cross_entropy(scores: Vector, label: int) -> tuple[float, Vector]:
    """Softmax cross-entropy of a sample, and its gradient."""
    largest = max(scores)
    exponentials = [math.exp(score - largest) for score in scores]
    normaliser = sum(exponentials)
    dscores = [value / normaliser for value in exponentials]
    dscores[label] -= 1
    return math.log(normaliser) + largest - scores[label], dscores


def hinge(scores: Vector, label: int) -> tuple[float, Vector]:
    """Multiclass hinge of a sample, and its gradient."""
    loss, dscores = 0.0, [0.0] * len(scores)
    for c, score in enumerate(scores):
        margin = score - scores[label] + 1
        if c != label and margin > 0:
            loss += margin
            dscores[c] += 1
            dscores[label] -= 1
    return loss, dscores


def _affine(x: Vector, W: Sequence[Sequence[float]], b: Vector) -> Vector:
    scores = list(b)
    for c in range(len(b)):
        for d in range(len(x)):
            scores[c] += x[d] * W[d][c]
    return scores


def _zeros(like: list[Vector]) -> list[Vector]:
    return [[0.0] * len(row) for row in like]


def _add_outer(dW: list[Vector], x: Vector, dscores: Vector) -> None:
    for c in range(len(dscores)):
        for d in range(len(x)):
            dW[d][c] += dscores[c] * x[d]


def _add_penalty(dW: list[Vector], W: list[Vector], reg: float) -> float:
    total = 0.0
    for d in range(len(W)):
        for c in range(len(W[d])):
            total += W[d][c] ** 2
            dW[d][c] += 2 * reg * W[d][c]
    return reg * total


# By the names of models.
TWINS: dict[str, Callable[..., tuple[float, Params]]] = {
    "softmax": partial(linear_loss, cross_entropy),
    "svm": partial(linear_loss, hinge),
    "two-layer": two_layer_loss,
}


def twin_of(model: Model) -> Callable[..., tuple[float, Params]] | None:
    """Return the loops of one of the library's models; another may have the same name."""
    own = MODELS.get(model.name)
    is_own = own is not None and (type(own), own.data_loss) == (type(model), model.data_loss)
    return TWINS.get(model.name) if is_own else None
