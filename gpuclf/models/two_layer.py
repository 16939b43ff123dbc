"""The two-layer net: affine, ReLU, affine, softmax cross-entropy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gpuclf import naive, textbook
from gpuclf.backend import Array, array_namespace, product_precision, to_device
from gpuclf.dispatch import fusable
from gpuclf.layers import affine, affine_backward, apart, relu, relu_backward, side_by_side
from gpuclf.losses import softmax_cross_entropy
from gpuclf.models.linear import add_penalty_gradient, mean_weights, penalty, wide_parameters
from gpuclf.models.model import Model, Params
from gpuclf.samples.folding import FoldedSamples, block_affine, block_affine_backward
from gpuclf.samples.standardized import Standardized
from gpuclf.samples.walk import (
    block_rows,
    concat_row_blocks,
    concat_rows,
    sum_in_order,
    sum_over_row_blocks,
)
from gpuclf.validation import (
    check_labels,
    check_parameter,
    check_penalty,
    check_precision,
    check_result,
    check_samples,
    check_weights,
)

__all__ = [
    "TWO_LAYER",
    "TwoLayerNet",
    "two_layer_forward",
    "two_layer_loss",
    "two_layer_objective",
    "two_layer_pass",
    "two_layer_scores",
]

NAMES = ("W1", "b1", "W2", "b2")


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
    params = _check_params(params, X, precision)
    scores = two_layer_forward(params, X, precision=precision)
    check_result(scores, scores, X, **params)
    return scores


def two_layer_forward(
    params: dict[str, Array], X: Array | Standardized, *, precision: str = "float32"
) -> Array:
    """Compute :func:`two_layer_scores` without checking the inputs, in the parameters' dtype."""
    W1, b1, models = wide_parameters(params["W1"], params["b1"])
    samples = FoldedSamples(X, int(W1.shape[-1]), W1.dtype)
    W1, b1 = samples.fold(W1, b1)

    def scores(part: FoldedSamples) -> Array:
        def of_rows(rows: slice) -> Array:
            hidden = apart(relu(block_affine(W1, b1, part.block(rows))), models)
            return affine(hidden, params["W2"], params["b2"])

        return concat_row_blocks(of_rows, part.n_samples, _block_rows(params["W1"], part))

    with product_precision(W1, precision):
        return samples.over_uploads(
            lambda parts: concat_rows([scores(part) for _, part in parts]),
            _floats_per_row(params["W1"], samples),
        )


@np.errstate(over="ignore", invalid="ignore")  # check_result says it better
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
    params = _check_params(params, X, precision)
    y = check_labels(y, X, int(params["W2"].shape[-1]))
    check_penalty(reg)
    weights = check_weights(sample_weight, X, params["W1"].dtype)
    loss, grads = two_layer_objective(params, X, y, reg, weights, precision=precision)
    check_result(loss, grads["W1"], X, **params)
    return loss, grads


def two_layer_objective(
    params: dict[str, Array],
    X: Array | Standardized,
    y: Array,
    reg: float,
    sample_weight: Array | None = None,
    hidden_mask: Array | None = None,
    *,
    precision: str = "float32",
) -> tuple[Array, dict[str, Array]]:
    """Compute :func:`two_layer_loss` without checking the inputs.

    Parameters
    ----------
    params, X, y, reg
        As in :func:`two_layer_loss`.
    sample_weight : array of shape (N,), optional
        The factor of each sample's loss, used as it is; by default 1/N.
    hidden_mask : array of shape (..., N, H), optional
        Factors of the hidden units, as dropout needs them.
    precision : {"float32", "tf32", "float64"}, default "float32"
        Whether a GPU may multiply float32 in TF32. The floats are those of the parameters.
    """
    W1 = params["W1"]
    samples = FoldedSamples(X, math.prod(W1.shape[:-2]) * int(W1.shape[-1]), W1.dtype)
    of_names = (params[name] for name in NAMES)
    loss, *gradients = two_layer_pass(
        *of_names, samples, y, sample_weight, reg, hidden_mask, precision
    )
    return loss, dict(zip(NAMES, gradients, strict=True))


@fusable(cupy="two_layer_pass.on_gpu:two_layer_pass_on_tensor_cores")
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
) -> tuple[Array, Array, Array, Array, Array]:
    """Add up data loss and penalty, with their gradients, in one walk over the samples.

    Parameters
    ----------
    W1, b1, W2, b2 : array
        As in :func:`two_layer_loss`, not folded.
    samples : FoldedSamples
    y, sample_weight, reg, hidden_mask, precision
        As in :func:`two_layer_objective`.

    Returns
    -------
    loss : float64 array of shape (...)
    dW1, db1, dW2, db2 : array
    """
    wide_W1, wide_b1, models = wide_parameters(W1, b1)
    xp = array_namespace(W2)
    weights = mean_weights(sample_weight, samples.n_samples, W2)
    folded = samples.fold(wide_W1, wide_b1)

    def walk(part: FoldedSamples, start: int) -> list[Array]:
        def partial(rows: slice) -> tuple[Array, ...]:
            block = part.block(rows)
            rows = slice(start + rows.start, start + rows.stop)
            hidden = apart(relu(block_affine(*folded, block)), models)
            if hidden_mask is not None:
                hidden = hidden * hidden_mask[..., rows, :]
            loss, dscores = softmax_cross_entropy(
                affine(hidden, W2, b2), y[rows], weights[..., rows]
            )
            dhidden, dW2, db2 = affine_backward(dscores, hidden, W2)
            if hidden_mask is not None:
                dhidden = dhidden * hidden_mask[..., rows, :]
            wide = side_by_side(relu_backward(dhidden, hidden))
            dW1, db1 = block_affine_backward(wide, block)
            return loss, dW1, db1, dW2, db2

        return sum_over_row_blocks(
            partial, part.n_samples, _block_rows(W1, part), parallel=xp is np
        )

    with product_precision(W2, precision):
        loss, dW1, db1, dW2, db2 = samples.over_uploads(
            lambda parts: sum_in_order(walk(part, rows.start) for rows, part in parts),
            _floats_per_row(W1, samples),
        )
        loss = loss + reg * (penalty(W1) + penalty(W2))
    dW1 = add_penalty_gradient(apart(samples.unfold(dW1, db1), models), W1, reg)
    return loss, dW1, xp.reshape(db1, b1.shape), add_penalty_gradient(dW2, W2, reg), db2


def _check_params(
    params: dict[str, Array], X: Array | Standardized, precision: str
) -> dict[str, Array]:
    """Check the parameters and bring them to the one dtype to compute in."""
    _, _, n_features = check_samples(X)
    if not isinstance(params, dict):
        raise TypeError(f"params must be a dict of W1, b1, W2 and b2, got {type(params).__name__}")
    missing = [name for name in NAMES if name not in params]
    if missing:
        raise ValueError(
            f"params must hold W1 (D, H), b1 (H,), W2 (H, C) and b2 (C,); missing: "
            f"{', '.join(missing)}"
        )
    W1, b1, W2, b2 = (params[name] for name in NAMES)
    dtypes = [
        check_parameter("W1", W1, X, (n_features, -1)),
        check_parameter("b1", b1, X, (int(W1.shape[-1]),)),
        check_parameter("W2", W2, X, (int(W1.shape[-1]), -1)),
        check_parameter("b2", b2, X, (int(W2.shape[-1]),)),
    ]
    if not W1.shape[:-2] == b1.shape[:-1] == W2.shape[:-2] == b2.shape[:-1]:
        shapes = {name: tuple(params[name].shape) for name in ("W1", "b1", "W2", "b2")}
        raise ValueError(f"all parameters must have the same leading model axes, got {shapes}")
    xp = array_namespace(W1)
    dtype = check_precision(precision, xp.result_type(*dtypes), xp)
    return {
        name: xp.astype(value, dtype, copy=False)
        for name, value in {"W1": W1, "b1": b1, "W2": W2, "b2": b2}.items()
    }


def _floats_per_row(W1: Array, samples: FoldedSamples) -> int:
    floats_per_row: int = samples.n_features + 3 * math.prod(W1.shape[:-2]) * int(W1.shape[-1])
    return floats_per_row


def _block_rows(W1: Array, samples: FoldedSamples) -> int:
    floats_per_row = _floats_per_row(W1, samples)
    return block_rows(W1, samples.n_samples, floats_per_row, converted=samples.are_converted)


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

    def scores(
        self, params: Params, X: Array | Standardized, *, precision: str = "float32"
    ) -> Array:
        """Return ``relu(X @ W1 + b1) @ W2 + b2``: see :meth:`Model.scores`."""
        return two_layer_forward(params, X, precision=precision)

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
        return two_layer_objective(params, X, y, reg, sample_weight, mask, precision=precision)

    def _dropout_mask(self, n_samples: int, like: Array, rng: np.random.Generator) -> Array:
        xp = array_namespace(like)
        draws = rng.random((n_samples, self.hidden_size), dtype=np.float32)
        kept = to_device(draws >= self.dropout, like=like)
        return xp.astype(kept, like.dtype) / (1 - self.dropout)

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
