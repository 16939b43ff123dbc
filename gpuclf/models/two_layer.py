"""The two-layer net: affine, ReLU, affine, softmax cross-entropy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gpuclf import naive, textbook
from gpuclf.arrays import Array, array_namespace
from gpuclf.devices.backends import to_device
from gpuclf.devices.cupy import on_its_device, product_precision
from gpuclf.dispatch import fusable
from gpuclf.layers import affine, affine_backward, apart, relu, relu_backward, side_by_side
from gpuclf.losses import softmax_cross_entropy
from gpuclf.models.linear import add_penalty_gradient, mean_weights, penalty, wide_parameters
from gpuclf.models.model import DataLoss, Model, Params
from gpuclf.samples.folding import FoldedSamples, RowBlock
from gpuclf.samples.standardized import Standardized
from gpuclf.samples.walk import concat_over_samples, sum_over_samples
from gpuclf.validation import check_params, check_result

__all__ = ["TWO_LAYER", "TwoLayerNet", "two_layer_loss", "two_layer_pass", "two_layer_scores"]


@fusable(
    numpy="losses.on_cpu:two_layer_pass_with_compiled_loss",
    cupy="two_layer_pass.on_gpu:two_layer_pass_on_tensor_cores",
)
def two_layer_pass(
    W1: Array,
    b1: Array,
    W2: Array,
    b2: Array,
    samples: FoldedSamples,
    y: Array,
    sample_weight: Array | None,
    reg: float,
    hidden_mask: Array | None = None,
    precision: str = "float32",
    data_loss: DataLoss = softmax_cross_entropy,
) -> tuple[Array, Array, Array, Array, Array]:
    """Add up data loss and penalty, with their gradients, in one walk over the samples.

    Parameters
    ----------
    W1, b1, W2, b2 : array
        As in :func:`two_layer_loss`, not folded.
    samples : FoldedSamples
    y, sample_weight, reg, hidden_mask, precision
        As in :meth:`TwoLayerNet.objective`; the mask holds factors of the hidden units,
        (N, H) or (..., N, H).

    Returns
    -------
    loss : float64 array of shape (...)
    dW1, db1, dW2, db2 : array
    """
    wide_W1, wide_b1, models = wide_parameters(W1, b1)
    weights = mean_weights(sample_weight, samples.n_samples, W2, models)
    folded = samples.fold(wide_W1, wide_b1)

    def of_block(block: RowBlock, rows: slice) -> tuple[Array, ...]:
        hidden = apart(relu(block.affine(*folded)), models)
        if hidden_mask is not None:
            hidden = hidden * hidden_mask[..., rows, :]
        loss, dscores = data_loss(affine(hidden, W2, b2), y[rows], weights[..., rows])
        dhidden, dW2, db2 = affine_backward(dscores, hidden, W2)
        if hidden_mask is not None:
            dhidden = dhidden * hidden_mask[..., rows, :]
        dW1, db1 = block.affine_backward(side_by_side(relu_backward(dhidden, hidden)))
        return loss, dW1, db1, dW2, db2

    with product_precision(W2, precision):
        loss, dW1, db1, dW2, db2 = sum_over_samples(of_block, samples, W1, int(wide_W1.shape[-1]))
        loss = loss + reg * (penalty(W1) + penalty(W2))
    dW1 = add_penalty_gradient(apart(samples.unfold(dW1, db1), models), W1, reg)
    db1 = array_namespace(b1).reshape(db1, b1.shape) if models else db1
    return loss, dW1, db1, add_penalty_gradient(dW2, W2, reg), db2


@dataclass(frozen=True)
class TwoLayerNet(Model):
    """Affine, ReLU, affine: parameters W1 (D, H), b1 (H,), W2 (H, C) and b2 (C,).

    Attributes
    ----------
    hidden_size : int
        H.
    dropout : float
        Probability that a hidden unit is left out of a training step; the others are scaled up.
    """

    hidden_size: int = 100
    dropout: float = 0.0
    axes: ClassVar = {"W1": "DH", "b1": "H", "W2": "HC", "b2": "C"}

    def initial_params(
        self, n_features: int, n_classes: int, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        r"""Draw W from normal distributions of :math:`\sqrt{2 / \text{inputs}}`; biases are 0.

        Source: He et al., "Delving deep into rectifiers" (2015).
        """
        H = self.hidden_size
        return {
            "W1": rng.standard_normal((n_features, H)) * np.sqrt(2 / n_features),
            "b1": np.zeros(H),
            "W2": rng.standard_normal((H, n_classes)) * np.sqrt(2 / H),
            "b2": np.zeros(n_classes),
        }

    @on_its_device
    def scores(
        self, params: Params, X: Array | Standardized, *, precision: str = "float32"
    ) -> Array:
        """Return ``relu(X @ W1 + b1) @ W2 + b2``: see :meth:`Model.scores`."""
        W1, b1, models = wide_parameters(params["W1"], params["b1"])
        width = int(W1.shape[-1])
        samples = FoldedSamples(X, width, W1.dtype)
        folded = samples.fold(W1, b1)

        def of_block(block: RowBlock) -> Array:
            hidden = apart(relu(block.affine(*folded)), models)
            return affine(hidden, params["W2"], params["b2"])

        with product_precision(W1, precision):
            return concat_over_samples(of_block, samples, W1, width)

    def objective(
        self,
        params: Params,
        X: Array | Standardized,
        y: Array,
        reg: float | Array,
        sample_weight: Array | None = None,
        *,
        precision: str = "float32",
        rng: np.random.Generator | None = None,
    ) -> tuple[Array, Params]:
        """Return penalised loss and gradients: see :meth:`Model.objective`."""
        mask = None
        if self.dropout and rng is not None:
            mask = self._dropout_mask(int(y.shape[0]), params["W2"], rng)
        W1 = params["W1"]
        samples = FoldedSamples(X, math.prod(W1.shape[:-2]) * int(W1.shape[-1]), W1.dtype)
        loss, *gradients = two_layer_pass(
            *map(params.__getitem__, self.axes), samples, y, sample_weight, reg, mask, precision,
            self.data_loss,
        )  # fmt: skip
        return loss, dict(zip(self.axes, gradients, strict=True))

    @on_its_device
    def _dropout_mask(self, n_samples: int, like: Array, rng: np.random.Generator) -> Array:
        xp = array_namespace(like)
        draws = rng.random((n_samples, self.hidden_size), dtype=np.float32)
        kept = to_device(draws >= self.dropout, like=like)
        return xp.astype(kept, like.dtype) / (1 - self.dropout)

    @on_its_device
    def sample_gradients(self, params: Params, X: Array, y: Array) -> Array:
        """Return the gradient with respect to X: see :meth:`Model.sample_gradients`."""
        hidden = relu(affine(X, params["W1"], params["b1"]))
        _, dscores = self.data_loss(affine(hidden, params["W2"], params["b2"]), y, None)
        dhidden, _, _ = affine_backward(dscores, hidden, params["W2"])
        dX, _, _ = affine_backward(relu_backward(dhidden, hidden), X, params["W1"])
        return dX


TWO_LAYER = TwoLayerNet(
    "two-layer",
    softmax_cross_entropy,
    naive=naive.two_layer_loss_naive,
    textbook=textbook.two_layer_loss,
    has_logits=True,
)


@np.errstate(over="ignore", invalid="ignore")  # check_result says it better
def two_layer_scores(
    params: dict[str, Array], X: Array | Standardized, *, precision: str = "float32"
) -> Array:
    """Return the scores ``relu(X @ W1 + b1) @ W2 + b2``.

    Parameters
    ----------
    params : dict
        W1 (D, H), b1 (H,), W2 (H, C), b2 (C,), each with the same leading model axes.
    X : array of shape (N, D) or Standardized
    precision : {"float32", "tf32", "float64"}, default "float32"
        As in :func:`gpuclf.softmax_loss_vectorized`.

    Returns
    -------
    array of shape (..., N, C)

    Examples
    --------
    >>> import numpy as np
    >>> params = {"W1": np.eye(2), "b1": np.zeros(2), "W2": np.ones((2, 1)), "b2": np.zeros(1)}
    >>> two_layer_scores(params, np.array([[3.0, -5.0]]))
    array([[3.]])
    """
    params, _ = check_params(params, TWO_LAYER.axes, X, precision)
    scores = TWO_LAYER.scores(params, X, precision=precision)
    check_result(scores, scores, X, **params)
    return scores


def two_layer_loss(
    params: dict[str, Array],
    X: Array | Standardized,
    y: Array,
    reg: float,
    sample_weight: Array | None = None,
    *,
    precision: str = "float32",
) -> tuple[Array, dict[str, Array]]:
    r"""Loss and gradients of the two-layer net.

    .. math:: L = \frac{1}{N} \sum_i -\log p_{i y_i} + \lambda (\|W_1\|^2 + \|W_2\|^2)

    Parameters
    ----------
    params : dict
        W1 (D, H), b1 (H,), W2 (H, C), b2 (C,), each with the same leading model axes.
    X : array of shape (N, D) or Standardized
    y : integer array of shape (N,), values in 0..C-1
    reg : float
        The penalty :math:`\lambda`; biases are not penalised.
    sample_weight : array of shape (N,), optional
        The data loss is then the weighted mean.
    precision : {"float32", "tf32", "float64"}, default "float32"
        As in :func:`gpuclf.softmax_loss_vectorized`.

    Returns
    -------
    loss : float64 array of shape (...)
    grads : dict
        The same keys and shapes as `params`.

    Raises
    ------
    TypeError, ValueError
        As :func:`gpuclf.softmax_loss_vectorized`.

    Notes
    -----
    Source: Stanford CS231n, assignment 1, two-layer network exercise.

    Examples
    --------
    >>> import numpy as np
    >>> params = {"W1": np.zeros((3, 5)), "b1": np.zeros(5), "W2": np.zeros((5, 2)),
    ...           "b2": np.zeros(2)}
    >>> loss, grads = two_layer_loss(params, np.ones((4, 3)), np.array([0, 1, 1, 0]), reg=0.0)
    >>> round(float(loss), 6), sorted(grads)  # log(2) at W = 0
    (0.693147, ['W1', 'W2', 'b1', 'b2'])
    """
    return TWO_LAYER.loss(params, X, y, reg, sample_weight, precision=precision)
