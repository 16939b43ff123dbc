"""Epochs of the linear classifiers' SGD in three launches a step: see linear_step.cu."""

from __future__ import annotations

from typing import Any

from gpuclf.kernels.building import cuda
from gpuclf.kernels.building.cuda import address, ceil_div
from gpuclf.kernels.epochs.on_gpu import (
    MAX_CLASSES,
    MAX_OUTPUTS,
    MAX_TILES,
    EpochsOverBytes,
    are_bytes_for_epochs,
)
from gpuclf.models.linear import LinearModel, wide_parameters

__all__ = ["LinearEpochs", "linear_epochs"]

(ROWS_OF_A_BLOCK,) = cuda.numbers_in("linear_step.cu", "ROWS_OF_A_BLOCK")  # of score_losses


def linear_epochs(
    model: Any, params: Any, velocity: Any, X: Any, y: Any, *, precision: str = "float32",
    **options: Any,
) -> Any:  # fmt: skip
    """Return what does an epoch of :func:`gpuclf.training.epoch_runner` without waiting."""
    hinge = cuda.hinge_macro(model.data_loss)
    if not (
        type(model) is LinearModel  # a subclass may compute something else
        and hinge is not None
        and precision != "float64"
        and set(params) == {"W", "b"}
        and params["W"].ndim <= 3
    ):
        return NotImplemented
    wide, wide_velocity = _wide(params), _wide(velocity)
    if wide is None or wide_velocity is None:
        return NotImplemented
    *models, _, n_classes = params["W"].shape
    if not (
        n_classes <= MAX_CLASSES
        and wide[0].shape[1] <= MAX_OUTPUTS
        and wide[0].size < 2**31
        and are_bytes_for_epochs(X, y, [*wide, *wide_velocity], **options)
    ):
        return NotImplemented
    return LinearEpochs(
        wide, wide_velocity, X, y, CLASSES=n_classes, HINGE=hinge, models=tuple(models), **options
    )


class LinearEpochs(EpochsOverBytes):
    """Epochs of one linear classifier, or of several side by side: ``(order, rates) -> losses``.

    Parameters
    ----------
    params, velocity : list of array
        W (D, K C) and b (K C,), contiguous; they change in place.
    X, y, models, **options
        As for :class:`EpochsOverBytes`.
    """

    file = "linear_step.cu"

    def __init__(
        self, params: list[Any], velocity: list[Any], X: Any, y: Any, *,
        models: tuple[int, ...] = (), shares: Any = None, **options: Any,
    ) -> None:  # fmt: skip
        n_outputs = int(params[0].shape[1])
        tiles = min(MAX_TILES, ceil_div(n_outputs, 8))
        if models:  # fleets shrink: do not compile for each size
            tiles = 1 << (tiles - 1).bit_length()
        super().__init__(
            X, y, models=models, n_outputs=n_outputs, tiles=tiles, shares=shares, **options
        )
        self._params, self._velocity = params, velocity
        self._dscores = cuda.empty(y, self._batch_size, n_outputs)
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
    wide: tuple[Any, ...] = wide_parameters(params["W"], params["b"])[:2]
    in_place = all(address(x) == address(params[name]) for x, name in zip(wide, "Wb", strict=True))
    return [*wide] if in_place and all(x.flags.c_contiguous for x in wide) else None
