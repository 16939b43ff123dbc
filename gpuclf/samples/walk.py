"""The one walk over the samples: uploads, blocks of rows, threads, memory, the order of sums.

A full pass needs the rows of X twice, once for the scores and once for the gradient. In blocks, the
second time finds what the cache still holds, and no temporary is longer than a block. On a CPU each
core walks its own stretch of blocks with single-threaded BLAS inside, because BLAS's own threads
spend more time meeting each other than computing on such tall, thin products. Samples that stay on
the host come upload by upload. A model says what a block gives (:func:`sum_over_samples`,
:func:`concat_over_samples`); a mini-batch is one block, and the walk returns at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from gpuclf.arrays import Array, array_namespace
from gpuclf.devices.cpu import cpu_workers, single_threaded_blas
from gpuclf.devices.cupy import free_device_bytes, give_back
from gpuclf.devices.uploads import row_slices

if TYPE_CHECKING:
    from gpuclf.samples.folding import FoldedSamples, RowBlock

__all__ = [
    "block_rows",
    "concat_over_samples",
    "concat_row_blocks",
    "map_row_blocks",
    "row_slices",
    "sum_over_row_blocks",
    "sum_over_samples",
    "until_it_fits",
]

Result = TypeVar("Result")

# A block of floats is read where it lies. Blocks that fit L2 would be read from memory once, but
# the threads would meet at the interpreter's lock so often that it costs more than it saves;
# benchmarks/test_block_sizes.py measures both sizes.
CPU_BLOCK_BYTES = 24 << 20
# A block of bytes is first converted into floats, which should stay in L3 for thin products. For
# wide ones, packing W and adding up a gradient of its size for each block costs more.
CPU_CONVERTED_BLOCK_BYTES = 12 << 20
MAX_COLUMNS_FOR_CACHE = 200
# On a device a launch costs more than the cache saves until the kernels are fused, so a block is
# bounded by the memory that its temporaries may take.
DEVICE_BLOCK_BYTES = 1 << 30
MIN_BLOCK_ROWS = 32


def block_rows(like: Array, n_rows: int, floats_per_row: int, *, converted: bool) -> int:
    """Return how many rows a block should have.

    Parameters
    ----------
    like : array
        Tells the library, device and dtype that the pass computes in.
    n_rows : int
        Rows of the whole pass. A mini-batch is one block: BLAS's own threads then share the work,
        and there are no partial gradients to add up.
    floats_per_row : int
        How many numbers one row occupies while it is worked on.
    converted : bool
        Whether a block of X is converted before use, or read where it lies.
    """
    xp = array_namespace(like)
    itemsize = like.itemsize if xp is np else xp.finfo(like.dtype).bits // 8
    bytes_per_row: int = floats_per_row * itemsize
    budget = CPU_BLOCK_BYTES if xp is np else DEVICE_BLOCK_BYTES
    if n_rows * bytes_per_row <= budget:
        return n_rows
    if converted and xp is np:
        budget = CPU_CONVERTED_BLOCK_BYTES
    return max(MIN_BLOCK_ROWS, budget // bytes_per_row // 32 * 32)


class _NoRoomError(MemoryError):
    """The fewest rows were tried."""


def until_it_fits(work: Callable[[int], Result], rows_per_block: int) -> Result:
    """Return ``work(rows_per_block)``, with half the rows as often as memory runs out.

    Raises
    ------
    MemoryError
        If there is no room for the shortest blocks either; names the bytes wanted and free.
    """
    while True:
        try:
            return work(rows_per_block)
        except MemoryError as error:
            fewer = _fewer_rows(rows_per_block, error)
        # Outside the handler, whose error would keep alive what the failed attempt held.
        rows_per_block = fewer


def _fewer_rows(rows_per_block: int, error: MemoryError) -> int:
    if isinstance(error, _NoRoomError):
        raise error
    give_back()
    if rows_per_block > MIN_BLOCK_ROWS:
        return max(MIN_BLOCK_ROWS, rows_per_block // 2)
    free = free_device_bytes()
    known = "" if free is None else f"; {free:,} bytes are free on the device"
    raise _NoRoomError(
        f"there is no room for blocks of {rows_per_block} rows either ({error}{known}): delete "
        "other arrays, end other programs that use the memory, or leave the samples on the host "
        "(gpuclf.Streamed)"
    ) from error


def sum_over_samples(
    of_block: Callable[[RowBlock, slice], Sequence[Array]],
    samples: FoldedSamples,
    like: Array,
    width: int,
    of_part: Callable[[FoldedSamples, slice], Sequence[Array]] | None = None,
) -> Sequence[Array]:
    """Sum what ``of_block(block, rows)`` gives for all blocks of the samples, in a fixed order.

    Parameters
    ----------
    of_block : callable
        Takes a block of samples and the slice of their numbers, returns the arrays to be summed;
        those of the first block are summed into, so they must be fresh.
    samples : FoldedSamples
    like : array
        Tells the library and dtype that the pass computes in.
    width : int
        Columns of the first product.
    of_part : callable, optional
        ``of_part(part, rows)`` gives the sums over one upload of streamed samples; by default its
        blocks are walked.

    Returns
    -------
    sequence of array
        One sum for each array that `of_block` returns.
    """
    if samples.are_streamed:

        def walked(part: FoldedSamples, rows: slice) -> Sequence[Array]:
            def of_rows(block: RowBlock, within: slice) -> Sequence[Array]:
                return of_block(block, slice(rows.start + within.start, rows.start + within.stop))

            return sum_over_samples(of_rows, part, like, width)

        sums = of_part or walked
        return samples.over_uploads(
            lambda parts: _sum_in_order(sums(part, rows) for rows, part in parts), width
        )
    n_samples, step = samples.n_samples, _block_rows_of(samples, like, width)
    if step >= n_samples:
        whole = slice(0, n_samples)
        try:
            return of_block(samples.block(whole), whole)
        except MemoryError as error:
            step = _fewer_rows(step, error)
    return sum_over_row_blocks(
        lambda rows: of_block(samples.block(rows), rows),
        *(n_samples, step),
        parallel=array_namespace(like) is np,
    )


def concat_over_samples(
    of_block: Callable[[RowBlock], Array], samples: FoldedSamples, like: Array, width: int
) -> Array:
    """Put together what ``of_block(block)`` gives for all blocks, along the second last axis."""
    if samples.are_streamed:
        return samples.over_uploads(
            lambda parts: _concat_rows(
                [concat_over_samples(of_block, part, like, width) for _, part in parts]
            ),
            width,
        )
    step = _block_rows_of(samples, like, width)
    return concat_row_blocks(
        lambda rows: of_block(samples.block(rows)),
        *(samples.n_samples, step),
        parallel=array_namespace(like) is np,
    )


def _block_rows_of(samples: FoldedSamples, like: Array, width: int) -> int:
    floats_per_row = samples.floats_per_row(width)
    converted = samples.are_converted and width <= MAX_COLUMNS_FOR_CACHE
    return block_rows(like, samples.n_samples, floats_per_row, converted=converted)


def sum_over_row_blocks(
    partial: Callable[[slice], Sequence[Array]], n_rows: int, rows_per_block: int, *, parallel: bool
) -> list[Array]:
    """Sum ``partial(rows)`` over all blocks of rows, always in the same order.

    Parameters
    ----------
    partial : callable
        Takes a slice of rows, returns the arrays to be summed; the first block's arrays are
        summed into, so they must be fresh.
    n_rows, rows_per_block : int
    parallel : bool
        Share the blocks among CPU threads. The share depends on their number only, so the same
        machine gives the same bits on every run.

    Returns
    -------
    list of array
        One sum for each array that `partial` returns.
    """
    workers = cpu_workers() if parallel else 1

    def sums(rows_per_block: int) -> list[Array]:
        return _sum_in_order(
            _in_shares(
                lambda share: _sum_in_order(partial(rows) for rows in share),
                *(n_rows, rows_per_block, workers),
            )
        )

    return until_it_fits(sums, rows_per_block)


def map_row_blocks(
    part: Callable[[slice], Result], n_rows: int, rows_per_block: int, *, workers: int
) -> list[Result]:
    """Return what ``part(rows)`` gives for each block, in the order of the rows.

    At most `workers` CPU threads share the blocks.
    """
    shares = _in_shares(
        lambda share: [part(rows) for rows in share], n_rows, rows_per_block, workers
    )
    return [result for share in shares for result in share]


def _in_shares(
    work: Callable[[Sequence[slice]], Result], n_rows: int, rows_per_block: int, workers: int
) -> list[Result]:
    """Return ``work(blocks)`` for the blocks of each thread."""
    blocks = row_slices(n_rows, rows_per_block)
    workers = min(workers, len(blocks))
    if workers == 1:
        return [work(blocks)]
    with single_threaded_blas():
        # Shares of equal length: nobody should wait for the thread that has one block more.
        bounds = [n_rows * w // workers for w in range(workers + 1)]
        shares = [
            [slice(a + rows.start, a + rows.stop) for rows in row_slices(b - a, rows_per_block)]
            for a, b in pairwise(bounds)
        ]
        pending = _started(work, shares[1:])
        try:
            results = [work(share) for share in (shares[0], *shares[1 + len(pending) :])]
        finally:
            finished = [future.exception() for future in pending]
        for error in finished:
            if error is not None:
                raise error
        return [results[0], *(future.result() for future in pending), *results[1:]]


def _started(
    work: Callable[[Sequence[slice]], Result], shares: Sequence[Sequence[slice]]
) -> list[Future[Result]]:
    """Hand shares to the threads; fewer, or none, where the interpreter is ending."""
    started: list[Future[Result]] = []
    for share in shares:
        try:
            # A copied context carries numpy.errstate into the threads.
            started.append(_thread_pool().submit(copy_context().run, work, share))
        except RuntimeError:  # at interpreter exit no pool takes work and no thread starts
            break
    return started


def concat_row_blocks(
    part: Callable[[slice], Array], n_rows: int, rows_per_block: int, *, parallel: bool = False
) -> Array:
    """Put together what ``part(rows)`` gives for each block, along the second last axis."""
    workers = cpu_workers() if parallel else 1
    return until_it_fits(
        lambda step: _concat_rows(map_row_blocks(part, n_rows, step, workers=workers)),
        rows_per_block,
    )


def _concat_rows(parts: Sequence[Array]) -> Array:
    """Put arrays together along the second last axis."""
    return parts[0] if len(parts) == 1 else array_namespace(parts[0]).concat(parts, axis=-2)


def _sum_in_order(rounds: Iterable[Sequence[Array]]) -> list[Array]:
    """Sum corresponding arrays, into those of the first round."""
    remaining = iter(rounds)
    totals = list(next(remaining))
    for terms in remaining:
        for i, term in enumerate(terms):
            totals[i] += term
    return totals


@cache
def _thread_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="gpuclf")


# A forked child inherits the pool's bookkeeping but none of its threads, and would wait for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_thread_pool.cache_clear)
