"""Epochs of the two-layer net's SGD in three launches a step: see two_layer_step.cu."""

from __future__ import annotations

from typing import Any

from gpuclf.kernels.building import cuda
from gpuclf.kernels.building.cuda import ceil_div
from gpuclf.kernels.epochs.on_gpu import (
    MAX_CLASSES,
    MAX_OUTPUTS,
    MAX_TILES,
    EpochsOverBytes,
    are_bytes_for_epochs,
)
from gpuclf.models.two_layer import TwoLayerNet

__all__ = ["TwoLayerEpochs", "two_layer_epochs"]

NAMES = ("W1", "b1", "W2", "b2")
(ROWS_OF_A_BLOCK,) = cuda.numbers_in("two_layer_step.cu", "ROWS_OF_A_BLOCK")  # of second_layer


def two_layer_epochs(
    model: Any, params: Any, velocity: Any, X: Any, y: Any, *, precision: str = "float32",
    **options: Any,
) -> Any:  # fmt: skip
    """Return what does an epoch of :func:`gpuclf.training.epoch_runner` without waiting."""
    floats = [*params.values(), *velocity.values()]
    if not (
        type(model) is TwoLayerNet  # a subclass may compute something else
        and model.dropout == 0
        and cuda.hinge_macro(model.data_loss) == 0
        and precision != "float64"
        and set(params) == set(NAMES)
        and params["W1"].ndim == 2
        and params["W2"].shape[1] <= MAX_CLASSES
        and params["W2"].shape[0] <= MAX_OUTPUTS
        and params["W1"].size < 2**31
        and all(x.flags.c_contiguous for x in floats)
        and are_bytes_for_epochs(X, y, floats, **options)
    ):
        return NotImplemented
    return TwoLayerEpochs(params, velocity, X, y, **options)


class TwoLayerEpochs(EpochsOverBytes):
    """Epochs of one net: ``(order, rates) -> losses``.

    Parameters
    ----------
    params, velocity : dict of array
        They change in place.
    X, y, **options
        As for :class:`EpochsOverBytes`.
    """

    file = "two_layer_step.cu"

    def __init__(self, params: Any, velocity: Any, X: Any, y: Any, **options: Any) -> None:
        n_hidden, n_classes = (int(n) for n in params["W2"].shape)
        self._other_blocks = ceil_div(n_hidden * n_classes + n_classes, 32)
        super().__init__(
            X, y, n_outputs=n_hidden, tiles=min(MAX_TILES, ceil_div(n_hidden, 8)),
            HIDDEN=n_hidden, CLASSES=n_classes, **options,
        )  # fmt: skip
        self._params = [params[name] for name in NAMES]
        self._velocity = [velocity[name] for name in NAMES]
        self._hidden, self._dhidden, self._dscores = (
            cuda.empty(y, self._batch_size, n) for n in (n_hidden, n_hidden, n_classes)
        )

    def _launch_step(self, step: int, first: int, n_rows: int) -> None:
        W1, b1, W2, b2 = self._params
        self._project(W1, first, n_rows)
        self._launch(
            "second_layer", ceil_div(n_rows + 1, ROWS_OF_A_BLOCK), 32 * ROWS_OF_A_BLOCK,
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
