"""Linear classifiers: one streamed pass over X gives the loss and every gradient."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from gpuclf import naive, textbook
from gpuclf.backend import Array, array_namespace, product_precision
from gpuclf.dispatch import fusable
from gpuclf.layers import affine_backward, apart, side_by_side
from gpuclf.losses import multiclass_hinge, softmax_cross_entropy
from gpuclf.models.model import DataLoss, Model, Params
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
)

__all__ = [
    "SOFTMAX",
    "SVM",
    "LinearModel",
    "add_penalty_gradient",
    "linear_loss",
    "linear_loss_only",
    "linear_pass",
    "linear_scores",
    "penalized_linear_pass",
    "softmax_loss_vectorized",
    "svm_loss_vectorized",
]


def linear_scores(
    params: dict[str, Array], X: Array | Standardized, *, precision: str = "float32"
) -> Array:
    """Return the scores ``X @ W + b``, block by block; inputs are not checked.

    Parameters
    ----------
    params : dict
        W of shape (..., D, C) and, optionally, b of shape (..., C).
    X : array of shape (N, D) or Standardized
    precision : {"float32", "tf32", "float64"}, default "float32"
        Whether a GPU may multiply float32 in TF32. The floats are those of W.

    Returns
    -------
    array of shape (..., N, C)
    """
    W, b, models = wide_parameters(params["W"], params.get("b"))
    samples = FoldedSamples(X, int(W.shape[-1]), W.dtype)
    folded = samples.fold(W, b)

    def scores(part: FoldedSamples) -> Array:
        return concat_row_blocks(
            lambda rows: block_affine(*folded, part.block(rows)),
            *(part.n_samples, _block_rows(W, part)),
        )

    with product_precision(W, precision):
        wide = samples.over_uploads(
            lambda parts: concat_rows([scores(part) for _, part in parts]),
            _floats_per_row(W, samples),
        )
    return apart(wide, models)


def linear_loss(
    data_loss: DataLoss,
    params: dict[str, Array],
    X: Array | Standardized,
    y: Array,
    reg: float,
    sample_weight: Array | None = None,
    *,
    precision: str = "float32",
) -> tuple[Array, dict[str, Array]]:
    """Loss and gradients of a linear classifier, whatever its data loss; inputs are not checked.

    K models are one wide product (N, D) x (D, K C): K products with C columns each would read X
    K times and leave most of a processor idle.

    Parameters
    ----------
    data_loss : callable
        For example :func:`gpuclf.losses.softmax_cross_entropy`.
    params : dict
        W of shape (..., D, C) and, optionally, b of shape (..., C). The bias is not penalised.
    X : array of shape (N, D) or Standardized
    y : integer array of shape (N,)
    reg : float, or array of shape (...)
    sample_weight : array of shape (N,) or (..., N), optional
        The factor of each sample's loss, used as it is; by default 1/N.
    precision : {"float32", "tf32", "float64"}, default "float32"
        Whether a GPU may multiply float32 in TF32. The floats are those of W.

    Returns
    -------
    loss : float64 array of shape (...)
    grads : dict
        The same keys and shapes as `params`.
    """
    W, b = params["W"], params.get("b")
    samples = FoldedSamples(X, math.prod(W.shape[:-2]) * int(W.shape[-1]), W.dtype)
    loss, dW, db = penalized_linear_pass(W, b, samples, y, sample_weight, data_loss, reg, precision)
    return loss, {"W": dW} if b is None else {"W": dW, "b": db}


@fusable(cupy="linear_pass.on_gpu:linear_objective_on_tensor_cores")
def penalized_linear_pass(
    W: Array,
    b: Array | None,
    samples: FoldedSamples,
    y: Array,
    sample_weight: Array | None,
    data_loss: DataLoss,
    reg: float,
    precision: str = "float32",
) -> tuple[Array, Array, Array]:
    """Add up data loss and penalty, with their gradients.

    Parameters
    ----------
    W : array of shape (..., D, C)
    b : array of shape (..., C), or None
        Both as the features are, not folded.
    samples : FoldedSamples
    y : integer array of shape (N,)
    sample_weight : array of shape (N,) or (..., N), or None for 1/N
    data_loss : callable
    reg : float, or array of shape (...)
    precision : {"float32", "tf32", "float64"}

    Returns
    -------
    loss : float64 array of shape (...)
    dW, db : array
        db also where b is None.
    """
    xp = array_namespace(W)
    wide_W, wide_b, models = wide_parameters(W, b)
    weights = mean_weights(sample_weight, samples.n_samples, W)
    data_loss, weights = of_models(data_loss, weights, models)
    folded = samples.fold(wide_W, wide_b)
    with product_precision(W, precision):
        loss, dW, db = samples.over_uploads(
            lambda parts: sum_in_order(
                linear_pass(*folded, part, y[rows], weights[..., rows], data_loss, precision)
                for rows, part in parts
            ),
            _floats_per_row(wide_W, samples),
        )
        loss = xp.reshape(loss, models) + reg * penalty(W)
    dW = apart(samples.unfold(dW, db), models)
    db = xp.reshape(db, (*models, int(W.shape[-1])))
    return loss, add_penalty_gradient(dW, W, reg), db


@fusable(
    numpy="linear_pass.on_cpu:compiled_linear_pass",
    cupy="linear_pass.on_gpu:linear_pass_on_tensor_cores",
)
def linear_pass(
    W: Array,
    b: Array | None,
    samples: FoldedSamples,
    y: Array,
    weights: Array,
    data_loss: DataLoss,
    precision: str = "float32",
) -> tuple[Array, Array, Array]:
    """Walk the samples once: the data loss and its gradients, without penalty.

    Parameters
    ----------
    W : array of shape (D, C)
    b : array of shape (C,), or None
        Both folded: they act on ``samples.rows``.
    samples : FoldedSamples
    y : integer array of shape (N,)
    weights : array of shape (..., N)
    data_loss : callable
        Of scores (N, C); that of several models side by side comes from :func:`of_models`.
    precision : {"float32", "tf32", "float64"}
        For kernels, which choose their own units; the body multiplies as the library does.

    Returns
    -------
    loss : float64 array, as `data_loss` gives it
    dW, db : array
        With respect to the folded parameters; db also where b is None.
    """

    def partial(rows: slice) -> tuple[Array, Array, Array]:
        block = samples.block(rows)
        loss, dscores = data_loss(block_affine(W, b, block), y[rows], weights[..., rows])
        return (loss, *block_affine_backward(dscores, block))

    parallel = array_namespace(W) is np
    loss, dW, db = sum_over_row_blocks(
        partial, samples.n_samples, _block_rows(W, samples), parallel=parallel
    )
    return loss, dW, db


def linear_loss_only(
    data_loss: DataLoss,
    params: dict[str, Array],
    X: Array | Standardized,
    y: Array,
    reg: float,
    sample_weight: Array | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Compute the loss of :func:`linear_loss` without gradients.

    Parameters
    ----------
    data_loss, params, X, y, reg, sample_weight
        As in :func:`linear_loss`.

    Returns
    -------
    loss : float64 array of shape (...)
    grads : dict
        Empty.
    """
    W, b, models = wide_parameters(params["W"], params.get("b"))
    xp = array_namespace(W)
    samples = FoldedSamples(X, int(W.shape[-1]), W.dtype)
    weights = mean_weights(sample_weight, samples.n_samples, W)
    data_loss, weights = of_models(data_loss, weights, models)
    folded = samples.fold(W, b)

    def loss_of(part: FoldedSamples, y: Array, weights: Array) -> list[Array]:
        def partial(rows: slice) -> tuple[Array]:
            scores = block_affine(*folded, part.block(rows))
            return (data_loss(scores, y[rows], weights[..., rows])[0],)

        step = _block_rows(W, part)
        return sum_over_row_blocks(partial, part.n_samples, step, parallel=xp is np)

    (loss,) = samples.over_uploads(
        lambda parts: sum_in_order(loss_of(part, y[r], weights[..., r]) for r, part in parts),
        _floats_per_row(W, samples),
    )
    return xp.reshape(loss, models) + reg * penalty(params["W"]), {}


def wide_parameters(W: Array, b: Array | None) -> tuple[Array, Array | None, tuple[int, ...]]:
    """Return the parameters of all models side by side, (D, K C) and (K C,), and the model axes."""
    models = tuple(int(n) for n in W.shape[:-2])
    return side_by_side(W), b if b is None else array_namespace(b).reshape(b, (-1,)), models


def of_models(
    data_loss: DataLoss, weights: Array, models: tuple[int, ...]
) -> tuple[DataLoss, Array]:
    """Return the data loss of scores (N, K C), side by side, and weights (N,) or (K, N) for it.

    Parameters
    ----------
    data_loss : callable
        Of scores (..., N, C).
    weights : array of shape (N,) or (*models, N)
    models : tuple of int
        The model axes; their product is K.
    """
    xp = array_namespace(weights)
    n_models = math.prod(models)
    if n_models == 1:  # a fleet of one is a model, with every kernel that there is for one
        return data_loss, xp.reshape(weights, (-1,))
    if weights.ndim > 1:
        weights = xp.reshape(weights, (n_models, -1))

    def of_all(scores: Array, labels: Array, weights: Array) -> tuple[Array, Array]:
        loss, dscores = data_loss(apart(scores, (n_models,)), labels, weights)
        return loss, side_by_side(dscores)

    return of_all, weights


def _floats_per_row(W: Array, samples: FoldedSamples) -> int:
    scores_per_row = 3 * int(W.shape[-1])  # and what loss makes of them
    floats_per_row: int = samples.n_features + scores_per_row
    return floats_per_row


def _block_rows(W: Array, samples: FoldedSamples) -> int:
    floats_per_row = _floats_per_row(W, samples)
    return block_rows(W, samples.n_samples, floats_per_row, converted=samples.are_converted)


def mean_weights(sample_weight: Array | None, n_samples: int, like: Array) -> Array:
    """Return the sample weights, or the 1/N that make the weighted sum a mean."""
    if sample_weight is not None:
        return sample_weight
    xp = array_namespace(like)
    return xp.full((n_samples,), 1 / n_samples, dtype=like.dtype, device=like.device)


@fusable(numpy="elementwise.on_cpu:compiled_penalty")
def penalty(W: Array) -> Array:
    """Return the sum of squares of W over its last two axes, shape (...)."""
    xp = array_namespace(W)
    if W.ndim == 2:
        flat = xp.reshape(W, (-1,))
        return xp.astype(flat @ flat, xp.float64)
    wide = side_by_side(W)
    of_columns = xp.sum(wide * wide, axis=0, dtype=xp.float64)
    return xp.sum(xp.reshape(of_columns, (*W.shape[:-2], -1)), axis=-1)


@fusable(numpy="elementwise.on_cpu:compiled_add_penalty_gradient")
def add_penalty_gradient(dW: Array, W: Array, reg: float | Array) -> Array:
    """Add the gradient of ``reg * penalty(W)`` to dW, in place, and return it.

    Parameters
    ----------
    dW, W : array of shape (..., D, C)
    reg : float, or array of shape (...)
    """
    if getattr(reg, "ndim", 0):
        reg = array_namespace(W).astype(reg, W.dtype)[..., None, None]
    dW += (2 * reg) * W
    return dW


def softmax_loss_vectorized(
    W: Array, X: Array | Standardized, y: Array, reg: float, *, precision: str = "float32"
) -> tuple[Array, Array]:
    r"""Softmax loss and gradient of a linear classifier without bias.

    .. math:: L = \frac{1}{N} \sum_i -\log p_{i y_i} + \lambda \sum_{d,c} W_{dc}^2

    Parameters
    ----------
    W : array of shape (D, C), or (..., D, C) for several models at once, float32 or float64
    X : array of shape (N, D), uint8, float32 or float64, or Standardized
    y : integer array of shape (N,), values in 0..C-1
    reg : float
        The penalty :math:`\lambda`. A source that writes ``0.5 * reg`` means half of this one.
    precision : {"float32", "tf32", "float64"}, default "float32"
        "float32": products of float32 have its accuracy. "tf32": a GPU may take its faster units,
        which keep 10 bits behind the point; on a CPU the same as "float32". "float64": everything
        is computed in float64. Where X or W is float64, the first two compute in float64 as well.

    Returns
    -------
    loss : float64 array of shape (...)
    dW : array of the shape of W
        ``X^T @ (p - onehot(y)) / N + 2 * reg * W``.

    Raises
    ------
    TypeError
        If a dtype does not fit, or the arrays live on different devices.
    ValueError
        If shapes do not fit, labels are out of range, or X or W has NaN (the values are checked
        for NumPy arrays; on a device the loss is NaN instead).

    See Also
    --------
    gpuclf.naive.softmax_loss_naive : the same in loops.

    Notes
    -----
    For a source with W (C, D) and X (D, N), pass ``W.T`` and ``X.T`` and transpose the gradient.
    The bias trick, a column of ones in X and a row b in W, gives the loss of :func:`linear_loss`
    with a bias b apart if reg is 0; otherwise it penalises b too. X is walked in
    blocks of rows: see :mod:`gpuclf.samples.walk`. Source: Stanford
    CS231n, assignment 1, softmax exercise.

    Examples
    --------
    >>> import numpy as np
    >>> X, y = np.ones((4, 3)), np.array([0, 1, 1, 0])
    >>> loss, dW = softmax_loss_vectorized(np.zeros((3, 2)), X, y, reg=0.0)
    >>> round(float(loss), 6), dW.shape  # log(2) at W = 0
    (0.693147, (3, 2))
    """
    return _checked_linear_loss(softmax_cross_entropy, W, X, y, reg, precision)


def svm_loss_vectorized(
    W: Array, X: Array | Standardized, y: Array, reg: float, *, precision: str = "float32"
) -> tuple[Array, Array]:
    r"""Multiclass SVM loss and (sub)gradient of a linear classifier without bias.

    .. math::

        L = \frac{1}{N} \sum_i \sum_{j \ne y_i} \max(0, s_{ij} - s_{i y_i} + 1)
            + \lambda \sum_{d,c} W_{dc}^2, \qquad s = X W

    Parameters
    ----------
    W : array of shape (D, C), or (..., D, C) for several models at once, float32 or float64
    X : array of shape (N, D), uint8, float32 or float64, or Standardized
    y : integer array of shape (N,), values in 0..C-1
    reg : float
        The penalty :math:`\lambda`. A source that writes ``0.5 * reg`` means half of this one.
    precision : {"float32", "tf32", "float64"}, default "float32"
        "float32": products of float32 have its accuracy. "tf32": a GPU may take its faster units,
        which keep 10 bits behind the point; on a CPU the same as "float32". "float64": everything
        is computed in float64. Where X or W is float64, the first two compute in float64 as well.

    Returns
    -------
    loss : float64 array of shape (...)
    dW : array of the shape of W
        A margin that is met exactly adds nothing: see :func:`gpuclf.losses.multiclass_hinge`.

    Raises
    ------
    TypeError, ValueError
        As :func:`softmax_loss_vectorized`.

    See Also
    --------
    gpuclf.naive.svm_loss_naive : the same in loops.

    Notes
    -----
    Layouts, penalties and bias of other sources: see :func:`softmax_loss_vectorized`. Source:
    Stanford CS231n, assignment 1, SVM exercise.

    Examples
    --------
    >>> import numpy as np
    >>> X, y = np.ones((4, 3)), np.array([0, 1, 2, 0])
    >>> loss, dW = svm_loss_vectorized(np.zeros((3, 3)), X, y, reg=0.0)
    >>> float(loss), dW.shape  # C - 1 at W = 0
    (2.0, (3, 3))
    """
    return _checked_linear_loss(multiclass_hinge, W, X, y, reg, precision)


@np.errstate(over="ignore", invalid="ignore")  # check_result says it better
def _checked_linear_loss(
    data_loss: DataLoss, W: Array, X: Array | Standardized, y: Array, reg: float, precision: str
) -> tuple[Array, Array]:
    _, _, n_features = check_samples(X)
    dtype = check_parameter("W", W, X, (n_features, -1))
    y = check_labels(y, X, int(W.shape[-1]))
    check_penalty(reg)
    xp = array_namespace(W)
    dtype = check_precision(precision, dtype, xp)
    params = {"W": xp.astype(W, dtype, copy=False)}
    loss, grads = linear_loss(data_loss, params, X, y, reg, precision=precision)
    check_result(loss, grads["W"], X, W=W)
    return loss, grads["W"]


class LinearModel(Model):
    """Scores ``X @ W + b`` under any data loss; parameters W (D, C) and b (C,)."""

    def initial_params(
        self, n_features: int, n_classes: int, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Return zeros: the objective is convex, so any start is as good, and the same anywhere."""
        return {"W": np.zeros((n_features, n_classes)), "b": np.zeros(n_classes)}

    def scores(
        self, params: Params, X: Array | Standardized, *, precision: str = "float32"
    ) -> Array:
        """Return ``X @ W + b``: see :meth:`Model.scores`."""
        return linear_scores(params, X, precision=precision)

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
        return linear_loss(self.data_loss, params, X, y, reg, sample_weight, precision=precision)

    def sample_gradients(self, params: Params, X: Array, y: Array) -> Array:
        """Return the gradient with respect to X: see :meth:`Model.sample_gradients`."""
        _, dscores = self.data_loss(linear_scores(params, X), y, None)
        dX, _, _ = affine_backward(dscores, X, params["W"])
        return dX


SOFTMAX = LinearModel(
    "softmax",
    softmax_cross_entropy,
    naive=naive.softmax_objective,
    textbook=partial(textbook.linear_objective, textbook.cross_entropy),
    has_logits=True,
)
SVM = LinearModel(
    "svm",
    multiclass_hinge,
    naive=naive.svm_objective,
    textbook=partial(textbook.linear_objective, textbook.hinge),
    is_smooth=False,
)
