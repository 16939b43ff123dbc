"""Epochs of the linear classifiers' SGD in three launches a step: see linear_step.cu."""

from __future__ import annotations

from typing import Any

from gpuclf.arrays import array_namespace
from gpuclf.kernels.building.cuda import address, ceil_div
from gpuclf.kernels.epochs import on_gpu as sgd_over_bytes
from gpuclf.kernels.epochs.on_gpu import (
    MAX_CLASSES,
    MAX_OUTPUTS,
    MAX_TILES,
    EpochsOverBytes,
    are_bytes_for_epochs,
    is_objective,
)
from gpuclf.losses import multiclass_hinge, softmax_cross_entropy
from gpuclf.models.linear import wide_parameters

__all__ = ["LinearEpochs", "linear_epochs"]

MIN_CAPABILITY = sgd_over_bytes.MIN_CAPABILITY
NAMES = ("W", "b")
ROWS_OF_A_BLOCK = 2  # of score_losses, as in linear_step.cu


def linear_epochs(
    y: Any, X: Any, params: Any, velocity: Any, *, objective: Any, batch_size: int, reg: Any,
    momentum: Any, nesterov: bool, shares: Any = None, augment: Any = None, rng: Any = None,
) -> Any:  # fmt: skip
    """Return what does an epoch of :func:`gpuclf.training.epoch_runner` without waiting."""
    if not is_objective(objective, linear_loss, softmax_cross_entropy, multiclass_hinge):
        return NotImplemented
    if set(params) != set(NAMES) or params["W"].ndim > 3:
        return NotImplemented
    wide, wide_velocity = _wide(params), _wide(velocity)
    if wide is None or wide_velocity is None:
        return NotImplemented
    *models, _, n_classes = params["W"].shape
    if not (
        n_classes <= MAX_CLASSES
        and wide[0].shape[1] <= MAX_OUTPUTS
        and wide[0].size < 2**31
        and are_bytes_for_epochs(y, X, [*wide, *wide_velocity], shares, batch_size, augment)
    ):
        return NotImplemented
    return LinearEpochs(
        y, X, wide, wide_velocity, batch_size, reg, momentum, nesterov, shares, augment, rng,
        n_classes, models=tuple(models), hinge=objective.args[0] is multiclass_hinge,
    )  # fmt: skip


class LinearEpochs(EpochsOverBytes):
    """Epochs of one linear classifier, or of several side by side: ``(order, rates) -> losses``.

    Parameters
    ----------
    y, X, batch_size, reg, momentum, nesterov, shares, augment, rng
        As in :func:`gpuclf.training.epoch_runner`.
    params, velocity : list of array
        W (D, K C) and b (K C,), contiguous; they change in place.
    n_classes : int
    models : tuple of int
        (K,), or () for one model without an axis.
    hinge : bool
        Whether the loss is the hinge, or softmax cross-entropy.
    """

    file = "linear_step.cu"

    def __init__(
        self, y: Any, X: Any, params: list[Any], velocity: list[Any], batch_size: int, reg: Any,
        momentum: Any, nesterov: bool, shares: Any, augment: Any, rng: Any, n_classes: int, *,
        models: tuple[int, ...], hinge: bool,
    ) -> None:  # fmt: skip
        n_outputs = int(params[0].shape[1])
        tiles = min(MAX_TILES, ceil_div(n_outputs, 8))
        if models:  # fleets shrink: do not compile for each size
            tiles = 1 << (tiles - 1).bit_length()
        super().__init__(
            y, X, batch_size, reg, momentum, shares, augment, rng, models=models,
            n_outputs=n_outputs, tiles=tiles, CLASSES=n_classes, HINGE=int(hinge),
            NESTEROV=int(nesterov),
        )  # fmt: skip
        xp = array_namespace(y)
        self._params, self._velocity = params, velocity
        shape = (self._batch_size, n_outputs)
        self._dscores = xp.empty(shape, dtype=xp.float32, device=y.device)
        has_own_weights = shares is not None and shares.ndim > 1
        self._weights_of_a_model = self._n_samples if has_own_weights else 0

    def _launch_step(self, step: int, first: int, n_rows: int) -> None:
        W, b = self._params
        self._project(W, first, n_rows)
        self._launch(
            "score_losses", ceil_div((n_rows + 1) * self._n_models, ROWS_OF_A_BLOCK),
            32 * ROWS_OF_A_BLOCK, self._partials, self._order, self._labels, self._shares, b,
            self._squares, self._dscores, self._row_losses, self._penalties,
            self._row_weight(n_rows), self._weights_of_a_model, step, first,
            n_rows, self._batch_size, self._column_shares, self._n_models,
        )  # fmt: skip
        self._launch(
            "update_parameters", self._update_blocks, self._update_threads, self._X, self._order,
            self._shift, self._inverse, self._dscores, self._rates, self._regs, self._momenta,
            *self._params, *self._velocity, step, first, n_rows, self._n_models,
        )  # fmt: skip


def _wide(params: Any) -> list[Any] | None:
    """Return W (D, K C) and b (K C,) of all models side by side, or None if that takes a copy."""
    W, b, _ = wide_parameters(params["W"], params["b"])
    wide = [W, b]
    in_place = all(address(wide[i]) == address(params[name]) for i, name in enumerate(NAMES))
    return wide if in_place and all(x.flags.c_contiguous for x in wide) else None
