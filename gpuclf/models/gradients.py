"""Every gradient of a model, that of X included, held against centred differences."""

from __future__ import annotations

import numpy as np

from gpuclf.arrays import Array, array_namespace, to_host
from gpuclf.devices.backends import to_device
from gpuclf.devices.cupy import on_its_device
from gpuclf.gradcheck import GradCheck, grad_check
from gpuclf.models.model import Model

__all__ = ["RTOL", "all_gradients", "check_model"]

SIZES = {"N": 12, "D": 7, "H": 6, "C": 4}
REG = 0.05
RTOL = {"float32": 1e-3, "float64": 1e-7}


def all_gradients(
    model: Model, point: dict[str, Array], y: Array, reg: float
) -> tuple[Array, dict[str, Array]]:
    """Return a model's loss and gradients, that of X among them.

    Parameters
    ----------
    model : Model
    point : dict of array
        The parameters, and X of shape (N, D).
    y : integer array of shape (N,)
    reg : float
    """
    params, X = {name: point[name] for name in model.axes}, point["X"]
    loss, grads = model.objective(params, X, y, reg)
    return loss, grads | {"X": model.sample_gradients(params, X, y)}


@on_its_device
def check_model(
    model: Model, *, like: Array, dtype: str = "float64", seed: int = 0
) -> dict[str, GradCheck]:
    """Check all gradients of a model at a random point.

    A model trains without the gradient of X; a layer in front of it would need it.

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

    Raises
    ------
    ValueError
        If the data loss of all samples is not the sum of those of parts, with the same weights:
        passes call it for blocks of samples.

    Examples
    --------
    >>> from gpuclf.models import SOFTMAX
    >>> list(check_model(SOFTMAX, like=np.zeros(1)))
    ['W', 'b', 'X']
    """
    rng = np.random.default_rng(seed)
    axes = {**model.axes, "X": "ND"}
    shapes = {name: tuple(SIZES[letter] for letter in of) for name, of in axes.items()}
    host = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    y = to_device(rng.integers(SIZES["C"], size=SIZES["N"]), like=like)
    point: dict[str, Array] = to_device(host, like=like)
    wide = {k: array_namespace(v).astype(v, array_namespace(v).float64) for k, v in point.items()}
    _refuse_other_sums(model, point, y)
    _, grads = all_gradients(model, point, y, REG)

    def check(name: str) -> GradCheck:
        def loss(value: Array) -> Array:
            return all_gradients(model, wide | {name: value}, y, REG)[0]

        return grad_check(loss, point[name], grads[name], rtol=RTOL[dtype])

    return {name: check(name) for name in point}


def _refuse_other_sums(model: Model, point: dict[str, Array], y: Array) -> None:
    """Raise if the data loss does not multiply each sample's loss by its weight."""
    xp, n_samples = array_namespace(y), int(y.shape[0])
    params = {name: point[name] for name in model.axes}
    scores = model.scores(params, point["X"], precision="float32")
    weights = xp.full((n_samples,), 1 / n_samples, dtype=scores.dtype, device=scores.device)
    cut = n_samples // 3
    parts = (slice(0, cut), slice(cut, n_samples))
    whole, _ = model.data_loss(scores, y, None)
    of_parts = [model.data_loss(scores[rows, :], y[rows], weights[rows])[0] for rows in parts]
    found, wanted = float(to_host(of_parts[0] + of_parts[1])), float(to_host(whole))
    if not abs(found - wanted) <= 1e-5 * abs(wanted):
        raise ValueError(
            f"the data loss of {model.name!r} must multiply each sample's loss by its weight (1/N "
            f"where sample_weight is None) and add them up: two parts give {found:g}, all "
            f"{wanted:g}"
        )
    _refuse_single_models(model, xp.stack([scores, 2 * scores]), y, weights)


def _refuse_single_models(model: Model, scores: Array, y: Array, weights: Array) -> None:
    """Raise if the data loss of stacked scores is not that of each model: fleets call it so."""
    alone = [to_host(model.data_loss(scores[k, ...], y, weights)[0]) for k in range(2)]
    stacked = array_namespace(scores).stack([weights, weights])
    try:
        losses, dscores = model.data_loss(scores, y, stacked)
        fits = losses.shape == (2,) and dscores.shape == scores.shape
        fits = fits and np.allclose(to_host(losses), alone, rtol=1e-5)
        found = f"it returned shapes {tuple(losses.shape)} and {tuple(dscores.shape)}"
    except (IndexError, TypeError, ValueError) as error:
        fits, found = False, f"it raised {type(error).__name__}: {error}"
    if not fits:
        raise ValueError(
            f"the data loss of {model.name!r} must take the scores of several models, (..., N, C), "
            "with weights (..., N), and return losses (...) and their gradient (..., N, C), those "
            f"of each model alone: for {tuple(scores.shape)} {found}; sum over axis=-1, and "
            "choose scores by a mask of classes, gpuclf.losses.one_hot(y, C)"
        )
