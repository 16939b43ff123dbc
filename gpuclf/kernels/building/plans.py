"""What calls with arrays of the same sizes, types and places share, kept from one to the next.

On a device no value is looked at before a launch. So whatever was checked, decided and computed on
the host for one call holds for every other of the same signature: its launches, their constants,
the arrays between them, and that nothing is wrong with its shapes and types. A call of a known
signature makes its results and queues its launches.

A plan knows no array and no stream. Each stream of each device has arrays of its own between the
launches, in each thread (:class:`Workspace`); they are given back when memory runs out.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

import numpy as np

from gpuclf.arrays import Array, library_name
from gpuclf.devices import cupy as cupy_device
from gpuclf.kernels.building import cuda
from gpuclf.kernels.building.cuda import (
    NULL,
    UINT8,
    VECTOR,
    ceil_div,
    fits_grid,
    null_for_none,
)

if TYPE_CHECKING:
    from gpuclf.samples.standardized import Standardized

__all__ = [
    "GradientBlocks",
    "PassPlan",
    "Plan",
    "Workspace",
    "gradient_blocks",
    "kept_plan",
    "key_of_pass",
    "signature",
]

KEPT_BYTES = 256 << 20  # of all workspaces
KEPT_PLANS = 1024  # each is some kilobytes
MAX_STRIPS = 8  # of a block of a product X^T G: a warp for each
Shapes: TypeAlias = Iterable[tuple[int | str, ...]]
AnyPlan = TypeVar("AnyPlan", bound="Plan")


class Plan(SimpleNamespace):
    """Launches and constants of a call, by name, and the memory that it needs.

    A call is ``plan(*arguments)``, the first of which is an array of the device to launch on.
    A subclass says in :meth:`queue` how it goes.

    Parameters
    ----------
    workspace, results : iterable of tuple
        The shape of each array, and then the name of its type: what lies between the launches,
        and what the call returns.
    **parts
        Launches and constants.
    """

    def __init__(self, workspace: Shapes, results: Shapes, **parts: Any) -> None:
        super().__init__(**parts)
        self.workspace, self.results = Workspace(*workspace), _shapes(results)

    def __call__(self, *arguments: Any) -> list[Array]:
        """Queue all launches on the current stream of the arrays' device; return the results."""
        with cupy_device.on_device_of(*arguments):
            between = self.workspace.beside(arguments[0])
            results = _new(arguments[0], self.results)
            self.queue(between, results, *arguments)
        return results

    def queue(self, between: list[Array], results: list[Array], *arguments: Any) -> None:
        """Launch the kernels, with the arrays between them and for the results."""
        raise NotImplementedError


class PassPlan(Plan):
    """A pass over bytes: ``plan(*params, X, standardized, y, weights, reg) -> [loss, *gradients]``.

    With `reg` for parameters on the features as they are, and their penalty; without, for folded
    ones. The first two arrays between the launches are what folding leaves for the last ones.
    A subclass says in :meth:`launch` how it goes.
    """

    def queue(self, between: list[Array], results: list[Array], *arguments: Any) -> None:
        """Launch the kernels, with the arrays between them and for the results."""
        *params, X, standardized, y, weights, reg = arguments
        mean = scale = NULL
        if reg is None:
            between = [NULL, NULL, *between[2:]]
        elif standardized is not None:
            mean, scale = standardized.mean, standardized.scale
        samples = X, cuda.int64_labels(y), null_for_none(weights)
        self.launch(between, results, params, samples, (mean, scale), np.float64(reg or 0))

    def launch(
        self, between: list[Array], results: list[Array], params: list[Array | None],
        samples: tuple[Any, ...], moments: tuple[Any, Any], penalty: np.float64,
    ) -> None:  # fmt: skip
        """Launch the kernels; `samples` are X, y and weights, `moments` the mean and the scale."""
        raise NotImplementedError


class GradientBlocks(NamedTuple):
    """How the blocks of a product X^T G share it: see :func:`gradient_blocks`.

    Attributes
    ----------
    strips : int
        Of columns of X, a warp each, of a block.
    shares : int
        Of the rows. Each has a partial sum of its own.
    grid : tuple of int
        Blocks of columns of G, blocks of strips, shares.
    shared_bytes : int
    """

    strips: int
    shares: int
    grid: tuple[int, int, int]
    shared_bytes: int


def gradient_blocks(
    n_samples: int, n_features: int, column_blocks: int, vectors: int, most_blocks: int,
    sizes: tuple[int, int, int], shared_bytes: int,
) -> GradientBlocks | None:  # fmt: skip
    """Plan a product X^T G over bytes; None for too little shared memory or too many columns.

    Parameters
    ----------
    n_samples, n_features : int
    column_blocks : int
        Blocks of columns of G.
    vectors : int
        That a stage of a block holds of G.
    most_blocks : int
        Sums are split by this, never by the device at hand.
    sizes : tuple of int
        Rows of a stage, columns of a strip, stages.
    shared_bytes : int
        That a block can have.
    """
    group, strip, stages = sizes
    n_strips = ceil_div(n_features, strip)
    most_strips = min(MAX_STRIPS, (shared_bytes // stages - VECTOR * vectors) // (group * strip))
    if most_strips < 1:
        return None
    strips = ceil_div(n_strips, ceil_div(n_strips, most_strips))
    shares = max(1, most_blocks // (ceil_div(n_strips, MAX_STRIPS) * column_blocks))
    shares = min(ceil_div(n_samples, group), shares)
    grid = column_blocks, ceil_div(n_strips, strips), shares
    stage_bytes = group * strip * strips + VECTOR * vectors
    return GradientBlocks(strips, shares, grid, stages * stage_bytes) if fits_grid(grid) else None


def signature(*arrays: Array | None) -> Hashable | None:
    """Return all that decides how a call goes, but for its options; None without a device.

    Kernels see sizes, types and the device, how an address is aligned, and no strides.
    """
    try:
        return tuple(
            [
                x if x is None else
                (x.shape, x.strides, x.dtype, x.data.device_id, x.data.ptr % VECTOR)
                for x in arrays
            ]
        )  # fmt: skip
    except AttributeError:  # not of a device, or no array: whoever checks it says it better
        return None


def key_of_pass(
    X: Any, standardized: Standardized | None, *arrays: Array | None, options: tuple[Any, ...]
) -> Hashable | None:
    """Return what names the plan of a pass over bytes; None without a device, or for no bytes."""
    dtype = getattr(X, "dtype", None)
    if not isinstance(dtype, np.dtype) or dtype != UINT8:
        return None
    moments = () if standardized is None else (standardized.mean, standardized.scale)
    found = signature(X, *arrays, *moments)
    return None if found is None else (found, options)


def kept_plan(
    key: Hashable | None, make: Callable[[], AnyPlan | None] | None = None
) -> AnyPlan | None:
    """Return the plan of a call, made where there is none; None where none can be made.

    Parameters
    ----------
    key : hashable or None
        The signature of the arrays and all options that decide. With None, nothing is kept.
    make : callable or None
        Checks everything and returns the plan, or None to decline.
    """
    plan = _plans.get(key) if key is not None else None
    if plan is None and make is not None:
        plan = make()
        if key is not None and plan is not None:
            if len(_plans) >= KEPT_PLANS:
                _plans.clear()
            _plans[key] = plan
    return plan


_plans: dict[Hashable, Any] = {}


class Workspace:
    """Arrays that lie between the kernels of a call, kept for the next call of the same sizes.

    Each stream of each device has arrays of its own, in each thread: calls that are queued one
    after another may use the same memory, others may not. What was used last is kept, up to
    `KEPT_BYTES` of all workspaces together; where streams are not known, nothing is, nor what is
    larger than that. All are given back when memory runs out: what is queued with them comes first,
    as CuPy's pool hands memory out in the order of a stream.

    Parameters
    ----------
    shapes : iterable of tuple
        The shape of each array, and then the name of its type.
    """

    def __init__(self, *shapes: tuple[int | str, ...]) -> None:
        self._shapes = _shapes(shapes)

    def beside(self, like: Array) -> list[Array]:
        """Return the arrays, on the device of `like`; what they hold is anything."""
        queue = cupy_device.queue_of(like)
        if queue is None:
            return _new(like, self._shapes)
        name, stream = queue
        key = id(self), name
        found = _workspaces.pop(key, None)
        if found is None:
            found = _new(like, self._shapes), (self, stream)
            if _bytes_of(found[0]) > KEPT_BYTES:
                return found[0]  # a pool has other use for so much
            _forget_old_workspaces(KEPT_BYTES - _bytes_of(found[0]))
        _workspaces[key] = found  # the last in order
        return found[0]


# With what their keys name, or another workspace or stream would get the name.
_workspaces: dict[Any, tuple[list[Array], Any]] = {}


def _forget_old_workspaces(most: int = 0) -> None:
    """Forget what was not used for longest until `most` bytes are kept."""
    kept = [(key, _bytes_of(arrays)) for key, (arrays, _) in [*_workspaces.items()]]
    total = sum(n_bytes for _, n_bytes in kept)
    for key, n_bytes in kept:
        if total <= most:
            break
        _workspaces.pop(key, None)
        total -= n_bytes


cupy_device.give_back_at_need(_forget_old_workspaces)


def _bytes_of(arrays: Iterable[Array]) -> int:
    return sum(int(x.nbytes) for x in arrays)


def _shapes(given: Shapes) -> list[tuple[tuple[Any, ...], np.dtype[Any]]]:
    return [(tuple(shape), np.dtype(str(dtype))) for *shape, dtype in given]


def _new(like: Array, shapes: list[tuple[tuple[Any, ...], np.dtype[Any]]]) -> list[Array]:
    if library_name(like) == "cupy":
        return cupy_device.new_arrays(shapes)
    return [cuda.empty(like, *shape, dtype=dtype.name) for shape, dtype in shapes]
