"""Linear classifiers: one streamed pass over X gives the loss and every gradient."""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar

import numpy as np

from gpuclf import naive, textbook
from gpuclf.arrays import Array, array_namespace
from gpuclf.devices.cupy import on_its_device, product_precision
from gpuclf.dispatch import fusable
from gpuclf.layers import affine_backward, apart, side_by_side
from gpuclf.losses import multiclass_hinge, softmax_cross_entropy
from gpuclf.models.model import DataLoss, Model, Params
from gpuclf.samples.folding import FoldedSamples, RowBlock
from gpuclf.samples.standardized import Standardized
from gpuclf.samples.walk import concat_over_samples, sum_over_samples

__all__ = [
    "SOFTMAX",
    "SVM",
    "LinearModel",
    "add_penalty_gradient",
    "linear_pass",
    "linear_scores",
    "penalized_linear_pass",
    "softmax_loss_vectorized",
    "svm_loss_vectorized",
]


@on_its_device
def linear_scores(params: Params, X: Array | Standardized, *, precision: str = "float32") -> Array:
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
    width = int(W.shape[-1])
    samples = FoldedSamples(X, width, W.dtype)
    folded = samples.fold(W, b)
    with product_precision(W, precision):
        wide = concat_over_samples(lambda block: block.affine(*folded), samples, W, width)
    return apart(wide, models)


@fusable(
    numpy="linear_pass.on_cpu:linear_objective_by_blas",
    cupy="linear_pass.on_gpu:linear_objective_on_tensor_cores",
)
def penalized_linear_pass(
    W: Array,
    b: Array | None,
    samples: FoldedSamples,
    y: Array,
    sample_weight: Array | None,
    data_loss: DataLoss,
    reg: float | Array,
    precision: str = "float32",
) -> tuple[Array, Array, Array]:
    """Add up data loss and penalty, with their gradients.

    Replaced as a whole on a device: folding, penalty and weights are small, but each would be a
    launch of its own there.

    Parameters
    ----------
    W : array of shape (..., D, C)
    b : array of shape (..., C), or None
        Both as the samples are, not folded.
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
    axes = () if math.prod(models) == 1 else (math.prod(models),)  # a fleet of one is a model
    weights = mean_weights(sample_weight, samples.n_samples, W, axes)
    folded = samples.fold(wide_W, wide_b)
    with product_precision(W, precision):
        loss, dW, db = linear_pass(*folded, samples, y, weights, data_loss, precision, axes)
        if models:
            loss = xp.reshape(loss, models)
        loss = loss + reg * penalty(W)
    dW = add_penalty_gradient(apart(samples.unfold(dW, db), models), W, reg)
    return loss, dW, xp.reshape(db, (*models, -1)) if models else db


@fusable(
    numpy=(
        "linear_pass.on_cpu:compiled_linear_pass",
        "linear_pass.fleet_on_cpu:class_major_linear_pass",
    ),
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
    models: tuple[int, ...] = (),
) -> tuple[Array, Array, Array]:
    """Walk the samples: the data loss and its gradients, without penalty.

    Parameters
    ----------
    W : array of shape (D, K C)
    b : array of shape (K C,), or None
        Both folded: they act on the rows of the samples.
    samples : FoldedSamples
        Of streamed samples, each upload is a pass of its own.
    y : integer array of shape (N,)
    weights : array of shape (N,) or (*models, N)
    data_loss : callable
    precision : {"float32", "tf32", "float64"}
        For kernels, which choose their own units; the body multiplies as the library does.
    models : tuple of int
        The model axes, whose product is K; () for one model.

    Returns
    -------
    loss : float64 array of shape models
    dW, db : array
        With respect to the folded parameters; db also where b is None.
    """

    def of_block(block: RowBlock, rows: slice) -> tuple[Array, Array, Array]:
        scores = apart(block.affine(W, b), models)
        loss, dscores = data_loss(scores, y[rows], weights[..., rows])
        return (loss, *block.affine_backward(side_by_side(dscores)))

    def of_part(part: FoldedSamples, rows: slice) -> tuple[Array, Array, Array]:
        given = y[rows], weights[..., rows], data_loss, precision, models
        found: tuple[Array, Array, Array] = linear_pass(W, b, part, *given)
        return found

    loss, dW, db = sum_over_samples(of_block, samples, W, int(W.shape[-1]), of_part)
    return loss, dW, db


def wide_parameters(W: Array, b: Array | None) -> tuple[Array, Array | None, tuple[int, ...]]:
    """Return the parameters of all models side by side, (D, K C) and (K C,), and the model axes."""
    if W.ndim == 2:
        return W, b, ()
    models = tuple(int(n) for n in W.shape[:-2])
    return side_by_side(W), b if b is None else array_namespace(b).reshape(b, (-1,)), models


def mean_weights(
    sample_weight: Array | None, n_samples: int, like: Array, models: tuple[int, ...]
) -> Array:
    """Return weights (N,) or (*models, N), by default the 1/N that make the sum a mean."""
    xp = array_namespace(like)
    if sample_weight is not None:
        if sample_weight.ndim == 1:
            return sample_weight
        return xp.reshape(sample_weight, (*models, -1))
    return xp.full((n_samples,), 1 / n_samples, dtype=like.dtype, device=like.device)


def penalty(W: Array) -> Array:
    """Return the sum of squares of W over its last two axes, shape (...)."""
    if W.ndim > 2:
        return penalties_of_models(W)
    xp = array_namespace(W)
    flat = W.reshape(-1) if xp is np else xp.reshape(W, (-1,))  # which takes NumPy three functions
    return xp.asarray(flat @ flat, dtype=xp.float64)


@fusable(numpy="elementwise.on_cpu:compiled_penalties_of_models")
def penalties_of_models(W: Array) -> Array:
    """Compute :func:`penalty` of a stack (..., D, C), in one pass over the models side by side."""
    xp = array_namespace(W)
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


class LinearModel(Model):
    """Scores ``X @ W + b`` under any data loss; parameters W (D, C) and, optionally, b (C,).

    K models are one wide product (N, D) x (D, K C): K products with C columns each would read X
    K times and leave most of a processor idle. The bias is not penalised.
    """

    axes: ClassVar = {"W": "DC", "b": "C"}
    optional: ClassVar = ("b",)

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
        W, b = params["W"], params.get("b")
        samples = FoldedSamples(X, math.prod(W.shape[:-2]) * int(W.shape[-1]), W.dtype)
        loss, dW, db = penalized_linear_pass(
            W, b, samples, y, sample_weight, self.data_loss, reg, precision
        )
        return loss, {"W": dW} if b is None else {"W": dW, "b": db}

    @on_its_device
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
    The bias trick, a column of ones in X and a row b in W, gives the loss of ``SOFTMAX.loss``
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
    loss, grads = SOFTMAX.loss({"W": W}, X, y, reg, precision=precision)
    return loss, grads["W"]


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
    loss, grads = SVM.loss({"W": W}, X, y, reg, precision=precision)
    return loss, grads["W"]
