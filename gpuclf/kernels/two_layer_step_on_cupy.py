"""Epochs of the two-layer net's SGD in three launches a step: see two_layer_step.cu."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from gpuclf.backend import array_namespace, to_device
from gpuclf.features import BYTE_CENTRE, Standardized, is_streamed
from gpuclf.kernels import cuda_modules
from gpuclf.kernels.cuda_modules import ceil_div, contiguous
from gpuclf.row_blocks import row_slices
from gpuclf.training import epoch_runner
from gpuclf.two_layer import two_layer_objective

__all__ = ["TwoLayerEpochs", "two_layer_epochs"]

MIN_CAPABILITY = 80
MAX_CLASSES = 32
MAX_BATCH = 1024
MAX_HIDDEN = 1024
VECTOR = 16  # bytes
# Sums are split by these, never by the device at hand, so that all devices give the same bits.
PROJECTION_BLOCKS = 192

# As in two_layer_step.cu.
CHUNK = 64
PROJECTION_ROWS = 64
HIDDEN_BLOCK = 64
SECOND_LAYER_ROWS = 2
NAMES = ("W1", "b1", "W2", "b2")


@epoch_runner.register("cupy")
def two_layer_epochs(
    y: Any, X: Any, params: Any, velocity: Any, *, objective: Any, batch_size: int, reg: float,
    momentum: float, nesterov: bool, shares: Any = None, augment: Any = None, rng: Any = None,
) -> Any:  # fmt: skip
    """Return what does an epoch of :func:`gpuclf.training.minimize_sgd` without waiting."""
    if shares is not None or augment is not None or not _is_two_layer(objective):
        return NotImplemented
    if not _fits(y, X, params, velocity, batch_size):
        return NotImplemented
    if cuda_modules.device_limits(y).capability < MIN_CAPABILITY:
        return NotImplemented
    return TwoLayerEpochs(y, X, params, velocity, batch_size, reg, momentum, nesterov)


class TwoLayerEpochs:
    """Epochs over the same arrays: ``(order, rates) -> losses``.

    All that the launches of an epoch read and write has its place from the beginning, so that they
    can be recorded once. The first epoch is launched one by one, which compiles and loads the
    kernels; the second is recorded where that is possible, and repeated from then on.

    Parameters
    ----------
    y, X, params, velocity
        As in :func:`gpuclf.training.minimize_sgd`; `params` and `velocity` change in place.
    batch_size, reg, momentum, nesterov
        The same.
    """

    def __init__(
        self, y: Any, X: Any, params: Any, velocity: Any, batch_size: int, reg: float,
        momentum: float, nesterov: bool,
    ) -> None:  # fmt: skip
        xp = array_namespace(y)
        stored = X.X if isinstance(X, Standardized) else X
        n_samples, n_features = (int(n) for n in stored.shape)
        n_hidden, n_classes = (int(n) for n in params["W2"].shape)
        batch_size = min(batch_size, n_samples)

        def empty(*shape: int, dtype: Any = xp.float32) -> Any:
            return xp.empty(shape, dtype=dtype, device=y.device)

        if isinstance(X, Standardized):
            shift, inverse = (X.mean - BYTE_CENTRE) / X.scale, xp.astype(1 / X.scale, xp.float32)
        else:
            shift = xp.full((n_features,), -BYTE_CENTRE, dtype=xp.float64, device=y.device)
            inverse = xp.ones((n_features,), dtype=xp.float32, device=y.device)
        labels = contiguous(xp.astype(y, xp.int64, copy=False))

        self._constants = {
            "FEATURES": n_features,
            "HIDDEN": n_hidden,
            "CLASSES": n_classes,
            "NESTEROV": int(nesterov),
        }
        self._batches = row_slices(n_samples, batch_size)
        n_chunks, n_blocks = ceil_div(n_features, CHUNK), ceil_div(n_hidden, HIDDEN_BLOCK)
        row_tiles = ceil_div(batch_size, PROJECTION_ROWS)
        self._hidden_blocks = n_blocks
        self._shares = min(n_chunks, max(1, PROJECTION_BLOCKS // (row_tiles * n_blocks)))
        n_others = n_hidden * n_classes + n_hidden + n_classes
        self._update_blocks = n_chunks * n_blocks + ceil_div(n_others, 32)
        self._update_threads = 32 * min(4, ceil_div(n_hidden, 16))
        self._batch_size, self._n_samples = batch_size, n_samples
        self._reg, self._momentum = reg, momentum

        self._X, self._labels, self._shift, self._inverse = stored, labels, shift, inverse
        self._params = [params[name] for name in NAMES]
        self._velocity = [velocity[name] for name in NAMES]
        self._order = empty(n_samples, dtype=xp.int64)
        self._rates = empty(len(self._batches))
        self._partials = empty(self._shares, batch_size, 8 * ceil_div(n_hidden, 8))
        self._hidden, self._dhidden = empty(batch_size, n_hidden), empty(batch_size, n_hidden)
        self._dscores = empty(batch_size, n_classes)
        self._row_losses = empty(n_samples, dtype=xp.float64)
        self._penalties = empty(len(self._batches), self._update_blocks, dtype=xp.float64)
        self._losses = empty(len(self._batches), dtype=xp.float64)
        self._n_epochs = 0
        self._repeat: Callable[[], None] | None = None

    def __call__(self, order: np.ndarray, rates: list[float]) -> Any:
        """Train for an epoch and return the loss of each step, as yet to be computed."""
        self._order[...] = to_device(order.astype(np.int64, copy=False), like=self._labels)
        self._rates[...] = to_device(np.asarray(rates, np.float32), like=self._labels)
        if self._n_epochs == 1:
            self._repeat = cuda_modules.recorded(self._labels, self._launch_epoch)
        (self._repeat or self._launch_epoch)()
        self._n_epochs += 1
        return self._losses

    def _launch(self, name: str, grid: Any, block: int, *args: Any) -> None:
        args = tuple(np.int32(arg) if isinstance(arg, int) else arg for arg in args)
        cuda_modules.kernel("two_layer_step.cu", name, **self._constants)(grid, block, args)

    def _launch_epoch(self) -> None:
        for step, rows in enumerate(self._batches):
            self._launch_step(step, rows.start, rows.stop - rows.start)
        self._launch(
            "sum_losses", len(self._batches), 32, self._row_losses, self._penalties, self._losses,
            self._n_samples, self._batch_size, self._update_blocks, np.float64(self._reg),
        )  # fmt: skip

    def _launch_step(self, step: int, first: int, n_rows: int) -> None:
        W1, b1, W2, b2 = self._params
        row_tiles = ceil_div(n_rows, PROJECTION_ROWS)
        self._launch(
            "project_batch", (self._shares, row_tiles, self._hidden_blocks), 128, self._X,
            self._order, W1, self._shift, self._inverse, self._partials, first, n_rows,
            self._batch_size,
        )  # fmt: skip
        self._launch(
            "second_layer", ceil_div(n_rows, SECOND_LAYER_ROWS), 32 * SECOND_LAYER_ROWS,
            self._partials, self._order, self._labels, b1, W2, b2, self._hidden, self._dscores,
            self._dhidden, self._row_losses, first, n_rows, self._batch_size, self._shares,
        )  # fmt: skip
        self._launch(
            "update_parameters", self._update_blocks, self._update_threads, self._X, self._order,
            self._shift, self._inverse, self._hidden, self._dscores, self._dhidden, self._rates,
            *self._params, *self._velocity, self._penalties, step, first, n_rows,
            np.float32(2 * self._reg), np.float32(self._momentum),
        )  # fmt: skip


def _is_two_layer(objective: Any) -> bool:
    """Tell whether it is the plain objective; a mask for dropout would be another keyword."""
    if isinstance(objective, partial):
        return (
            objective.func is two_layer_objective
            and not objective.args
            and set(objective.keywords) <= {"precision"}
            and objective.keywords.get("precision") != "float64"
        )
    return objective is two_layer_objective


def _fits(y: Any, X: Any, params: Any, velocity: Any, batch_size: int) -> bool:
    if is_streamed(X) or set(params) != set(NAMES):
        return False
    stored = X.X if isinstance(X, Standardized) else X
    floats = [*params.values(), *velocity.values()]
    array_namespace(y, stored, *floats)  # of one library and device
    return (
        stored.dtype.name == "uint8"
        and stored.ndim == 2
        and stored.shape[0] > 0
        and stored.shape[0] < 2**31
        and stored.shape[1] % VECTOR == 0
        and stored.flags.c_contiguous
        and cuda_modules.address(stored) % VECTOR == 0
        and y.ndim == 1
        and params["W1"].ndim == 2
        and params["W2"].shape[1] <= MAX_CLASSES
        and params["W2"].shape[0] <= MAX_HIDDEN
        and params["W1"].size < 2**31
        and min(batch_size, stored.shape[0]) <= MAX_BATCH
        and all(x.dtype.name == "float32" and x.flags.c_contiguous for x in floats)
    )
