"""Epochs of SGD over bytes in three launches a step, for any model: see sgd_over_bytes.cuh."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from gpuclf.arrays import array_namespace
from gpuclf.augment import CIFAR_SHAPE, draw_flips, horizontal_flip
from gpuclf.devices.backends import to_device
from gpuclf.devices.cupy import on_device_of
from gpuclf.kernels.building import cuda
from gpuclf.kernels.building.cuda import VECTOR, ceil_div, contiguous
from gpuclf.samples.standardized import BYTE_CENTRE, Standardized, is_streamed
from gpuclf.samples.walk import row_slices

__all__ = ["EpochsOverBytes", "are_bytes_for_epochs", "line_width"]

CHUNK, PROJECTION_ROWS, MAX_BATCH, MAX_CLASSES, MAX_TILES = cuda.numbers_in(
    "sgd_over_bytes.cuh", "CHUNK", "PROJECTION_ROWS", "MAX_BATCH", "MAX_CLASSES", "MAX_TILES"
)
MAX_OUTPUTS = 1024
WORD = 4
# Sums are split by this, never by the device at hand, so that all devices give the same bits.
PROJECTION_BLOCKS = 192


class EpochsOverBytes:
    """Epochs over the same arrays: ``(order, rates) -> losses``.

    All that the launches of an epoch read and write has its place from the beginning, so that they
    can be recorded once. The launches are planned once, with their arguments; the first epoch makes
    them one by one, which compiles and loads the kernels; the second is recorded where that is
    possible, and repeated from then on.

    A subclass gives its `file` and does :meth:`_launch_step`.

    Parameters
    ----------
    X, y, batch_size, reg, momentum, nesterov, shares, augment, rng
        As in :func:`gpuclf.training.epoch_runner`.
    n_outputs : int
        Columns of the first product, of all models.
    tiles : int
        Of 8 outputs, for a block.
    models : tuple of int
        (K,), or () for one model without an axis.
    **constants : int
        What else the kernels are compiled for.
    """

    file: str

    def __init__(
        self, X: Any, y: Any, *, batch_size: int, reg: Any, momentum: Any, nesterov: bool,
        n_outputs: int, tiles: int, shares: Any = None, augment: Any = None, rng: Any = None,
        models: tuple[int, ...] = (), **constants: int,
    ) -> None:  # fmt: skip
        xp = array_namespace(y)
        stored = X.X if isinstance(X, Standardized) else X
        n_samples, n_features = (int(n) for n in stored.shape)
        self._batch_size, self._n_samples = min(batch_size, n_samples), n_samples
        self._batches = row_slices(n_samples, self._batch_size)
        n_steps = len(self._batches)
        empty = partial(cuda.empty, y)

        self._models, self._n_models = models, math.prod(models)
        self._regs, self._momenta = empty(self._n_models, dtype="float64"), empty(self._n_models)
        self._regs[...], self._momenta[...] = reg, momentum
        if isinstance(X, Standardized):
            shift, inverse = (X.mean - BYTE_CENTRE) / X.scale, xp.astype(1 / X.scale, xp.float32)
        else:
            shift = xp.full((n_features,), -BYTE_CENTRE, dtype=xp.float64, device=y.device)
            inverse = xp.ones((n_features,), dtype=xp.float32, device=y.device)
        self._X, self._shift, self._inverse = stored, shift, inverse
        self._labels = cuda.int64_labels(y)
        self._shares = None if shares is None else contiguous(shares)
        self._flips, self._rng = augment is not None, rng

        self._constants = constants | {
            "FEATURES": n_features,
            "TILES": tiles,
            "NESTEROV": int(nesterov),
            "WIDTH": line_width(augment, n_features) or 0,
        }
        self._n_outputs = n_outputs
        unit_warps = ceil_div(tiles, 2)
        n_chunks, self._output_blocks = ceil_div(n_features, CHUNK), ceil_div(n_outputs, 8 * tiles)
        row_tiles = ceil_div(self._batch_size, PROJECTION_ROWS)
        n_shares = PROJECTION_BLOCKS // (row_tiles * self._output_blocks)
        self._column_shares = min(n_chunks, max(1, n_shares))
        self._update_blocks = n_chunks * self._output_blocks
        self._update_threads = 32 * unit_warps * (4 // unit_warps)

        self._order, self._rates = empty(n_samples, dtype="int64"), empty(n_steps, self._n_models)
        pitch = 8 * ceil_div(n_outputs, 8)
        self._partials = empty(self._column_shares, self._batch_size, pitch)
        self._row_losses = empty(n_samples, self._n_models, dtype="float64")
        self._squares = empty(n_chunks, n_outputs, dtype="float64")
        self._penalties = empty(n_steps, self._n_models, dtype="float64")
        self._losses = empty(n_steps, self._n_models, dtype="float64")
        self._launches: list[tuple[cuda.Launch, tuple[Any, ...]]] = []
        self._n_epochs = 0
        self._repeat: Callable[[], None] | None = None

    def __call__(self, order: np.ndarray, rates: Any) -> Any:
        """Train for an epoch and return the loss of each step, as yet to be computed."""
        order = order.astype(np.int64, copy=False)
        if self._flips:
            order = np.where(draw_flips(self._n_samples, self._rng), ~order, order)
        with on_device_of(self._labels):
            self._order[...] = to_device(order, like=self._labels)
            if isinstance(rates, list):
                rates = to_device(np.asarray(rates, np.float32)[:, None], like=self._labels)
            self._rates[...] = rates
            if not self._launches:
                self._plan_epoch()
            if self._n_epochs == 1:
                self._repeat = cuda.recorded(self._labels, self._launch_epoch)
            (self._repeat or self._launch_epoch)()
            self._n_epochs += 1
            return self._losses if self._models else self._losses[:, 0]

    @property
    def is_recorded(self) -> bool:
        """Whether epochs repeat a record, as from the second on where launches can be recorded."""
        return self._repeat is not None

    def _launch(self, name: str, grid: Any, block: int, *args: Any) -> None:
        """Add a launch to the plan of an epoch."""
        constants = tuple(self._constants.items())
        grid = grid if isinstance(grid, tuple) else (grid,)
        kept = cuda.kept_launch(self.file, constants, name, grid, (block,), 0)
        self._launches.append((kept, tuple(map(cuda.typed, args))))

    def _launch_epoch(self) -> None:
        for launch, arguments in self._launches:
            launch(*arguments)

    def _plan_epoch(self) -> None:
        for step, rows in enumerate(self._batches):
            self._launch_step(step, rows.start, rows.stop - rows.start)
        self._launch(
            "sum_losses", self._losses.shape, 32, self._row_losses, self._penalties, self._regs,
            self._losses, self._n_samples, self._batch_size,
        )  # fmt: skip

    def _launch_step(self, step: int, first: int, n_rows: int) -> None:
        raise NotImplementedError

    def _project(self, W: Any, first: int, n_rows: int) -> None:
        row_tiles = ceil_div(n_rows, PROJECTION_ROWS)
        self._launch(
            "project_batch", (self._column_shares, row_tiles, self._output_blocks), 128, self._X,
            self._order, W, self._shift, self._inverse, self._partials, self._squares,
            first, n_rows, self._batch_size, self._n_outputs,
        )  # fmt: skip

    def _row_weight(self, n_rows: int) -> np.float32:
        """Return the weight of each row of a batch, or the factor of those that it has."""
        return np.float32((1 if self._shares is None else self._n_samples) / n_rows)


def line_width(augment: Any, n_features: int) -> int | None:
    """Return how wide images are that may be mirrored, 0 if none is, or None for anything else."""
    if augment is None:
        return 0
    image_shape = CIFAR_SHAPE
    if isinstance(augment, partial) and not augment.args and [*augment.keywords] == ["image_shape"]:
        image_shape, augment = augment.keywords["image_shape"], augment.func
    fits = augment is horizontal_flip and math.prod(image_shape) == n_features
    return image_shape[-1] if fits and image_shape[-1] % WORD == 0 else None


def are_bytes_for_epochs(
    X: Any, y: Any, floats: Iterable[Any], batch_size: int, shares: Any = None,
    augment: Any = None, **_: Any,
) -> bool:  # fmt: skip
    """Tell whether the kernels can train on these samples, with these parameters and options."""
    if is_streamed(X):
        return False
    stored = X.X if isinstance(X, Standardized) else X
    floats = [*floats, *([] if shares is None else [shares])]
    array_namespace(y, stored, *floats)  # of one library and device
    return (
        stored.dtype.name == "uint8"
        and stored.ndim == 2
        and 0 < stored.shape[0] < 2**31
        and stored.shape[1] % VECTOR == 0
        and stored.flags.c_contiguous
        and cuda.address(stored) % VECTOR == 0
        and y.ndim == 1
        and min(batch_size, stored.shape[0]) <= MAX_BATCH
        and all(x.dtype.name == "float32" for x in floats)
        and line_width(augment, stored.shape[1]) is not None
        and cuda.device_limits(y).capability >= cuda.MIN_CAPABILITY
    )
