"""A model as a value: all that training, checks, benchmarks and the command line know of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import numpy as np

from gpuclf.arrays import Array
from gpuclf.devices.cupy import other_device
from gpuclf.dispatch import REPEATED
from gpuclf.samples.standardized import Standardized
from gpuclf.validation import (
    PRECISIONS,
    check_label_values,
    check_labels,
    check_params,
    check_penalty,
    check_result,
    check_weights,
)

__all__ = ["DataLoss", "Model", "Params", "Twin"]

Params: TypeAlias = dict[str, Array]
DataLoss: TypeAlias = Callable[[Array, Array, Array | None], tuple[Array, Array]]
Twin: TypeAlias = Callable[..., tuple[Any, dict[str, Any]]]

# The number of classes of calls by what was checked of them: types and sizes. The checks would take
# a tenth of a mini-batch's loss.
_checked: dict[Any, int] = {}
KEPT_SIGNATURES = 1024


@dataclass(frozen=True)
class Model:
    """Parameters, scores and loss of one kind of classifier.

    A loss of one's own needs no class of its own: it is a :class:`gpuclf.models.LinearModel` or a
    :class:`gpuclf.models.TwoLayerNet` with another `data_loss` (examples/own_loss.py). Another
    architecture is a subclass with the three methods below.

    Attributes
    ----------
    name : str
    data_loss : callable
        ``data_loss(scores, labels, sample_weight) -> (loss, dscores)``, written with the array API
        for scores (..., N, C), labels (N,) and weights (N,), (..., N) or None (the mean), as in
        :mod:`gpuclf.losses`.
    naive, textbook : callable, optional
        ``(params, X, y, reg) -> (loss, grads)``: the same objective in loops, and vectorised as
        the course has it. Oracles of checks, and rungs of the benchmark.
    is_smooth : bool
        Whether the gradient has no jumps: only then L-BFGS may train it.
    has_logits : bool
        Whether a softmax of the scores gives the probabilities of the classes.
    axes : dict of str
        Of the class: the trailing axes of each parameter by letters, D features and C classes;
        the first parameter multiplies the samples.
    optional : tuple of str
        Of the class: parameters that may be missing.
    """

    name: str
    data_loss: DataLoss
    # Not compared: a function made by functools.partial is not equal to its own copy.
    naive: Twin | None = field(default=None, compare=False)
    textbook: Twin | None = field(default=None, compare=False)
    is_smooth: bool = True
    has_logits: bool = False
    axes: ClassVar[dict[str, str]]
    optional: ClassVar[tuple[str, ...]] = ()

    def initial_params(
        self, n_features: int, n_classes: int, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Return the parameters that training starts from, float64 on the host."""
        raise NotImplementedError

    def scores(self, params: Params, X: Array | Standardized, *, precision: str) -> Array:
        """Return the scores, shape (..., N, C); inputs are not checked.

        Parameters
        ----------
        params : dict of array
            With the same leading model axes, or none.
        X : array of shape (N, D), Standardized or Streamed
        precision : {"float32", "tf32", "float64"}
            Whether a GPU may multiply float32 in TF32. The floats are those of the parameters.
        """
        raise NotImplementedError

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
        """Return penalised loss and gradients; inputs are not checked.

        Parameters
        ----------
        params, X, precision
            As for :meth:`scores`.
        y : integer array of shape (N,), values in 0..C-1
        reg : float, or array of shape (...)
        sample_weight : array of shape (N,) or (..., N), optional
            The factor of each sample's loss, used as it is; by default 1/N.
        rng : numpy.random.Generator, optional
            For what a training step draws (dropout). Without it, nothing is drawn.

        Returns
        -------
        loss : float64 array of shape (...)
        grads : dict of array
            The keys and shapes of `params`.
        """
        raise NotImplementedError

    def loss(
        self,
        params: Params,
        X: Array | Standardized,
        y: Array,
        reg: float,
        sample_weight: Array | None = None,
        *,
        precision: str = "float32",
    ) -> tuple[Array, Params]:
        """Check everything, then compute :meth:`objective`.

        Parameters
        ----------
        params, X, y, reg, precision
            As for :meth:`objective`.
        sample_weight : array of shape (N,), optional
            The data loss is then the weighted mean.

        Returns
        -------
        loss : float64 array of shape (...)
        grads : dict of array
            The keys and shapes of `params`.

        Raises
        ------
        TypeError, ValueError
            As :func:`gpuclf.softmax_loss_vectorized`.
        """
        # First what costs a known call on a device the least: its plan has its device and checks.
        if sample_weight is None and type(self) in REPEATED and isinstance(params, dict):
            found = REPEATED[type(self)](self, params, X, y, reg, precision)
            if found is not NotImplemented:
                repeated: tuple[Array, Params] = found
                return repeated
        if type(y) is not np.ndarray and (device := other_device(X, params)) is not None:
            with device:
                return self.loss(params, X, y, reg, sample_weight, precision=precision)
        signature = _signature_on_host(type(self), precision, params, X, y)
        n_classes = _checked.get(signature)
        if n_classes is not None:
            check_label_values(y, n_classes)
        else:
            given = params
            params, n_classes = check_params(params, self.axes, X, precision, self.optional)
            y = check_labels(y, X, n_classes)
            if signature is not None and [*map(id, given.values())] == [*map(id, params.values())]:
                if len(_checked) >= KEPT_SIGNATURES:
                    _checked.clear()
                _checked[signature] = n_classes
        check_penalty(reg)
        first = next(iter(params))
        weights = check_weights(sample_weight, X, params[first].dtype)
        with np.errstate(over="ignore", invalid="ignore"):  # check_result says it better
            loss, grads = self.objective(params, X, y, reg, weights, precision=precision)
            check_result(loss, grads[first], X, **params)
        return loss, grads

    def sample_gradients(self, params: Params, X: Array, y: Array) -> Array:
        """Return the gradient of the mean data loss with respect to X, as a layer below needs it.

        Parameters
        ----------
        params : dict of array
            Without model axes.
        X : array of shape (N, D)
        y : integer array of shape (N,)
        """
        raise NotImplementedError


def _signature_on_host(kind: type[Model], precision: str, params: Any, X: Any, y: Any) -> Any:
    """Return all that checks depend on, but those of values; None for what is not all NumPy's."""
    if type(params) is not dict or precision not in PRECISIONS:
        return None
    found: list[Any] = [kind, precision, *params]
    for array in (X.X if type(X) is Standardized else X, y, *params.values()):
        if type(array) is not np.ndarray:
            return None
        found.append((array.shape, array.dtype))
    return tuple(found)
