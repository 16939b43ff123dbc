"""Epochs of the two-layer net's SGD in three launches a step: see two_layer_step.cu."""

from __future__ import annotations

from typing import Any

from gpuclf.arrays import array_namespace
from gpuclf.kernels.building.cuda import ceil_div
from gpuclf.kernels.epochs import on_gpu as sgd_over_bytes
from gpuclf.kernels.epochs.on_gpu import (
    MAX_CLASSES,
    MAX_OUTPUTS,
    MAX_TILES,
    EpochsOverBytes,
    are_bytes_for_epochs,
    is_objective,
)

__all__ = ["TwoLayerEpochs", "two_layer_epochs"]

MIN_CAPABILITY = sgd_over_bytes.MIN_CAPABILITY
NAMES = ("W1", "b1", "W2", "b2")
SECOND_LAYER_ROWS = 2  # as in two_layer_step.cu


def two_layer_epochs(
    y: Any, X: Any, params: Any, velocity: Any, *, objective: Any, batch_size: int, reg: Any,
    momentum: Any, nesterov: bool, shares: Any = None, augment: Any = None, rng: Any = None,
) -> Any:  # fmt: skip
    """Return what does an epoch of :func:`gpuclf.training.minimize_sgd` without waiting."""
    if not is_objective(objective, two_layer_objective) or set(params) != set(NAMES):
        return NotImplemented
    floats = [*params.values(), *velocity.values()]
    if not (
        params["W1"].ndim == 2
        and params["W2"].shape[1] <= MAX_CLASSES
        and params["W2"].shape[0] <= MAX_OUTPUTS
        and params["W1"].size < 2**31
        and all(x.flags.c_contiguous for x in floats)
        and are_bytes_for_epochs(y, X, floats, shares, batch_size, augment)
    ):
        return NotImplemented
    return TwoLayerEpochs(
        y, X, params, velocity, batch_size, reg, momentum, nesterov, shares, augment, rng
    )


class TwoLayerEpochs(EpochsOverBytes):
    """Epochs of one net: ``(order, rates) -> losses``.

    Parameters
    ----------
    y, X, params, velocity, batch_size, reg, momentum, nesterov, shares, augment, rng
        As in :func:`gpuclf.training.epoch_runner`; `params` and `velocity` change in place.
    """

    file = "two_layer_step.cu"

    def __init__(
        self, y: Any, X: Any, params: Any, velocity: Any, batch_size: int, reg: float,
        momentum: float, nesterov: bool, shares: Any, augment: Any, rng: Any,
    ) -> None:  # fmt: skip
        n_hidden, n_classes = (int(n) for n in params["W2"].shape)
        self._other_blocks = ceil_div(n_hidden * n_classes + n_classes, 32)
        super().__init__(
            y, X, batch_size, reg, momentum, shares, augment, rng, n_outputs=n_hidden,
            tiles=min(MAX_TILES, ceil_div(n_hidden, 8)),
            HIDDEN=n_hidden, CLASSES=n_classes, NESTEROV=int(nesterov),
        )  # fmt: skip
        xp = array_namespace(y)
        self._params = [params[name] for name in NAMES]
        self._velocity = [velocity[name] for name in NAMES]
        self._hidden, self._dhidden, self._dscores = (
            xp.empty((self._batch_size, n), dtype=xp.float32, device=y.device)
            for n in (n_hidden, n_hidden, n_classes)
        )

    def _launch_step(self, step: int, first: int, n_rows: int) -> None:
        W1, b1, W2, b2 = self._params
        self._project(W1, first, n_rows)
        self._launch(
            "second_layer", ceil_div(n_rows + 1, SECOND_LAYER_ROWS), 32 * SECOND_LAYER_ROWS,
            self._partials, self._order, self._labels, self._shares, b1, W2, b2, self._squares,
            self._hidden, self._dscores, self._dhidden, self._row_losses, self._penalties,
            self._row_weight(n_rows), step, first,
            n_rows, self._batch_size, self._column_shares,
        )  # fmt: skip
        self._launch(
            "update_parameters", self._update_blocks + self._other_blocks, self._update_threads,
            self._X, self._order, self._shift, self._inverse, self._hidden, self._dscores,
            self._dhidden, self._rates, self._regs, self._momenta, *self._params, *self._velocity,
            step, first, n_rows,
        )  # fmt: skip
