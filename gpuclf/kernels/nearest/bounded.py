r"""Exact k nearest neighbours of floats on a CPU: bounds for all pairs, differences for few.

Ranks of all pairs are computed in float32, with a bound of their error; the samples that are open,
those that may be among a query's k nearest, are settled by their differences in float64. With u the
unit roundoff, a and b a query and a sample (less a centre, in units of a power of two), a stage
states its bound as :math:`|rank - distance| \le e \cdot rank + c (\|a\| + \|b\|) + \eta`:

- **products** (l2, cosine): :math:`b^2 - 2ab`, by BLAS, and :math:`a^2`, which is the same for all
  samples. The product, summed in any order, has an error of :math:`g \cdot 2 \sum |a_d b_d| \le
  g (a^2 + b^2)`, :math:`g = Du / (1 - Du)`; rounding a and b moves the square by
  :math:`2|a - b| u (|a| + |b|) \le 4u (a^2 + b^2)`; norms and their sums take 5 u, and the rest of
  the 16 is spare. So c = g + 16 u and e = 0; of whole numbers that float32 holds, c = 0.
- **differences**, of float32 and narrower: nothing cancels in a sum of positive terms. A difference
  is rounded once, its square once, each sum once: e = (D + 8) u. Rounding wider numbers to float32
  first takes c = 2 u in l1; of squares as much as products, which are faster.
- **differences in float64**, which are right by definition.

:math:`\eta` is for what underflows. A query for which more than one sample in `OPEN_SHARE` is open
goes to the next stage: there are groups so far apart that the centre does not help, and samples
that all tie. A look at some of the samples tells most of these before a stage begins. Of equal
samples, those that tie with k before them are left out of the search.

Cosines are those of samples of unit length: :math:`1 - \cos = |a - b|^2 / 2`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpuclf.devices.cpu import cpu_workers
from gpuclf.kernels.nearest import open_loops
from gpuclf.kernels.nearest.open_loops import (
    LANES,
    OPEN_SHARE,
    PANEL_BYTES,
    STRIPE,
    TILE_ROWS,
    Lists,
    Nearest,
    Samples,
)
from gpuclf.samples.walk import map_row_blocks, row_slices

__all__ = ["nearest_of_floats"]

# Fewer samples at a time cost the product; more of many features fall out of a cache on their way.
TILE_COLUMNS, TILE_BYTES = 1024, 4 << 20
MAX_QUERIES = 512 // TILE_ROWS * TILE_ROWS  # that share one conversion of the samples
A_BYTES = 128 << 10  # of queries that stay in L2 while the samples' differences pass
SPARE = 256  # open samples that a list has room for, beside the neighbours
FIRST_QUERIES, LOOK_QUERIES = 24, 120  # whole tiles of rows, looked at together
CHANCE = 4  # as many more may be open by the choice of the samples that are looked at
MANY_TILES = 16  # of samples: a few of all are then looked at first, to know what is far
LOOK_BYTES = 4 << 20
CENTRE_SAMPLES = 100


@dataclass(frozen=True)
class Stage:
    """How ranks are computed, and how wrong they may be."""

    dtype: Any
    products: bool
    centre: np.ndarray
    scale: float
    c: float
    e: float
    eta: float
    final: bool = False

    @property
    def step(self) -> float:
        """What is more than nothing: between two whole numbers, or two distances."""
        if self.final:
            return float(np.finfo(np.float64).tiny)
        return self.eta or 1.0


class Search:
    """The samples to search, what is known of their numbers, and the stages of the search."""

    def __init__(
        self, A: Any, B: Any, k: int, metric: str, workers: int,
        multipliers: tuple[Any, Any] | None = None,
    ) -> None:  # fmt: skip
        self.A, self.B, self.k = A, _bits(B), k
        self.absolute, self.metric = metric == "l1", metric
        self.workers, self.multipliers = workers, multipliers
        self.stages = self._stages()
        self.scale = self.stages[-1].scale

    def _stages(self) -> list[Stage]:
        D = self.A.shape[1]
        sample = self.B_floats(slice(0, len(self.B), len(self.B) // CENTRE_SAMPLES + 1))
        spread = float(sample.std()) or 1.0
        grid = 2.0 ** math.floor(math.log2(max(spread, 1e-300)))  # whole numbers stay whole
        centre = np.round(sample.mean(axis=0) / grid) * grid
        none, u = np.zeros(D), 2.0**-24
        narrow = self.multipliers is None and {self.A.dtype, self.B.dtype} <= {
            np.dtype(name) for name in ("float32", "float16", "uint16", "uint8")
        }
        largest, whole = 1.0, False
        if self.multipliers is None:
            largest, whole = self._look(bool((sample == np.rint(sample)).all()))
        largest += float(np.max(np.abs(centre)))
        exact = whole and 4 * D * largest**2 < 1 / u
        exponent = min(max(math.ceil(math.log2(max(largest, 1e-300))), -1000), 1000)
        scale = 1.0 if exact or self.multipliers is not None else 2.0**-exponent
        eta = 16 * D * float(np.finfo(np.float32).tiny)
        final = Stage(np.float64, False, none, scale, 0.0, 0.0, 0.0, final=True)
        e = (D + 8) * u
        if self.absolute:
            if narrow:
                return [Stage(np.float32, False, none, scale, 0.0, e, eta), final]
            return [Stage(np.float32, False, centre, scale, 2 * u, e, eta), final]
        if exact:
            return [Stage(np.float32, True, centre, scale, 0.0, 0.0, 0.0), final]
        c = D * u / (1 - D * u) + 16 * u
        stages = [Stage(np.float32, True, centre, scale, c, 0.0, eta)]
        if narrow:
            stages.append(Stage(np.float32, False, none, scale, 0.0, e, eta))
        return [*stages, final]

    def B_floats(self, rows: slice) -> Any:
        """Return some rows of B as float64, multiplied."""
        return _multiplied(self.B[rows], self.multipliers and self.multipliers[1][rows])

    def _look(self, whole: bool) -> tuple[float, bool]:
        """Return the largest size of a number, and whether all are whole."""
        largest = 0.0
        for X in (self.A, self.B):
            step = max(1, LOOK_BYTES // (4 * X.shape[1]))

            def look(rows: slice, X: Any = X, whole: bool = whole) -> tuple[float, float, bool]:
                part = X[rows]
                part = _floats(part) if part.dtype == np.uint16 else part
                is_whole = whole and (part.dtype.kind == "u" or bool((part == np.rint(part)).all()))
                return float(part.max()), float(part.min()), is_whole

            for most, least, is_whole in map_row_blocks(look, len(X), step, workers=self.workers):
                largest, whole = max(largest, most, -least), whole and is_whole
        return largest, whole

    def block(self, rows: slice, count: Callable[[int], None], columns: int) -> tuple[Any, Any]:
        """Return the ranks of the neighbours of some queries, and their rows."""
        queries = _multiplied(self.A[rows], self.multipliers and self.multipliers[0][rows])
        n = len(queries)
        ranks, indices = np.empty((n, self.k)), np.empty((n, self.k), np.int64)
        left = np.arange(n)
        for number, stage in enumerate(self.stages):
            found = Nearest(
                np.empty((len(left), self.k)),
                np.empty((len(left), self.k), np.int64),
                *np.zeros((2, len(left)), np.int64),
            )
            first = number == 0
            given_up = self._search(
                stage, queries[left], found, columns, count if first else None,
                not first or len(self.B) >= MANY_TILES * columns,
            )  # fmt: skip
            ranks[left], indices[left] = found.ranks, found.indices
            left = left[given_up]
            if not len(left):
                break
        return ranks, indices

    def _search(
        self, stage: Stage, queries: Any, found: Nearest, columns: int,
        count: Callable[[int], None] | None, seeded: bool,
    ) -> Any:  # fmt: skip
        """Search with one stage; return which queries were given up."""
        n, k, dtype, room = len(queries), self.k, stage.dtype, _room(self.k)
        multipliers = np.array([stage.scale]) if self.multipliers is None else self.multipliers[1]
        samples = Samples(queries * stage.scale, self.B, multipliers, self.absolute, stage.final)
        ranks = _Ranks(stage, samples.A, columns, self.absolute)
        lists = Lists(
            np.empty((n, room), dtype), np.empty((n, room), dtype), np.empty((n, room), np.int32),
            np.zeros(n, np.int64), np.full(n, max(16, 2 * k)), np.full(n, np.inf),
            stage.c * ranks.norms_A + stage.eta, ranks.norms_A * stage.products,
            np.array([1 + 2 * stage.e], dtype),
        )  # fmt: skip
        some = slice(0, len(self.B), max(MANY_TILES, len(self.B) // columns + 1))
        self._look_ahead(ranks, lists, multipliers, some, seeded)
        for tile in row_slices(len(self.B), columns):
            if lists.counts.max() >= 0:
                ranks.take(self.B, tile.start, tile.stop, multipliers)
            for group in ranks.groups(n):
                if lists.counts[group].max() < 0:
                    continue
                open_loops.select(
                    ranks.of(group), ranks.low, ranks.width, tile.start, columns, group.start,
                    group.stop - group.start, k, lists, found, samples,
                )  # fmt: skip
            if count is not None:
                count((tile.stop - tile.start) * n)
        open_loops.finish(n, k, lists, found, samples)
        return lists.counts < 0

    def _look_ahead(
        self, ranks: _Ranks, lists: Lists, multipliers: Any, some: slice, seeded: bool
    ) -> None:
        """Set thresholds by some of the samples; give up queries for which too many are open.

        Not to be `seeded` is to look for the first few queries only. If there is no hope for most
        of those, all are given up.
        """
        stage, k, eps = ranks.stage, self.k, np.finfo(ranks.C.dtype).eps
        own = multipliers if len(multipliers) == 1 else multipliers[some]
        m, n = ranks.take(self.B[some], 0, ranks.columns, own), len(lists.counts)
        low, width = ranks.low[:m], ranks.width[:m]
        expected = -(-k * m // len(self.B))  # of the k nearest, among these samples
        most_open = expected + CHANCE + m // OPEN_SHARE
        first = slice(0, min(n, FIRST_QUERIES))
        groups = row_slices(n, min(LOOK_QUERIES, len(ranks.C))) if seeded else []
        for group in (first, *groups):
            nearest = highs = ranks.of(group)[:, :m] + (low + width)
            slack, grow = 2 * lists.slacks[group], 1 + 4 * stage.e
            if k <= m:
                nearest = np.partition(highs, k - 1, axis=1)[:, :k]
                limit = (nearest[:, k - 1] + slack) * grow
                # Rounded up, beyond the k-th itself: what is not below is no neighbour.
                lists.thresholds[group] = limit + 8 * eps * abs(limit) + stage.step
            if stage.final:
                continue
            kth = np.partition(nearest, expected - 1, axis=1)[:, expected - 1]
            are_open = highs - width < ((kth + slack) * grow)[:, None]
            hopeless = np.count_nonzero(are_open, axis=1) > most_open
            lists.counts[group][hopeless] = -1
            if group is first and 2 * np.count_nonzero(hopeless) > len(hopeless):
                lists.counts[:] = -1
                break


class _Ranks:
    """Ranks of queries and a tile of samples, as a stage has them; its buffers are used again."""

    def __init__(self, stage: Stage, queries: Any, columns: int, absolute: bool) -> None:
        (n, D), dtype = queries.shape, np.dtype(stage.dtype)
        self.stage, self.absolute, self.columns = stage, absolute, columns
        self.centre = stage.centre * stage.scale
        self.a = np.zeros((n + -n % TILE_ROWS, D), dtype)
        self.b = np.zeros((columns, D), dtype)
        self.norms_A, self.norms_b = np.empty(n), np.empty(columns)
        open_loops.centred(queries, 0, n, np.ones(1), self.centre, absolute, self.a, self.norms_A)
        if stage.products:
            self.a *= -2
        lanes = PANEL_BYTES // dtype.itemsize
        self.panels = np.empty((0 if stage.products else columns // lanes, D, lanes), dtype)
        self.low, self.width = np.empty(columns, dtype), np.empty(columns, dtype)
        at_once = MAX_QUERIES
        if not stage.products:
            fit = A_BYTES // (D * dtype.itemsize) // TILE_ROWS * TILE_ROWS
            at_once = min(at_once, max(FIRST_QUERIES, fit))
        self.C = np.empty((min(at_once, len(self.a)), columns), dtype)

    def groups(self, n: int) -> list[slice]:
        """Return the queries whose ranks there is room for at a time."""
        return row_slices(n, len(self.C))

    def take(self, X: Any, start: int, stop: int, multipliers: Any) -> int:
        """Take samples; return how many there are."""
        m, c = min(stop, len(X)) - start, self.stage.c
        open_loops.centred(
            X, start, m, multipliers, self.centre, self.absolute, self.b, self.norms_b
        )
        norms = self.norms_b[:m]
        self.low[m:] = np.inf
        if self.stage.products:
            self.low[:m], self.width[:m] = norms * (1 - c), 2 * c * norms
        else:
            self.low[:m], self.width[:m] = -2 * c * norms, 4 * c * norms
            open_loops.packed(self.b, self.panels)
        return m

    def of(self, group: slice) -> Any:
        """Return the ranks of some queries, less `low`."""
        n = group.stop - group.start
        if self.stage.products:
            return np.matmul(self.a[group], self.b.T, out=self.C[:n])
        whole = n + -n % TILE_ROWS
        rows = self.a[group.start : group.start + whole]
        open_loops.differences(rows, self.panels, self.absolute, self.C[:whole])
        return self.C[:n]


def nearest_of_floats(
    A: Any, B: Any, k: int, metric: str, memory_budget: int, count: Callable[[int], None]
) -> Any:
    """Return distances and rows as :func:`gpuclf.models.neighbors.k_neighbors`, or decline."""
    if B.strides[1] != B.itemsize:
        if B.nbytes > memory_budget // 2:
            return NotImplemented
        memory_budget, B = memory_budget - B.nbytes, np.ascontiguousarray(B)
    kept, n_samples = None, len(B)
    if len(A) >= FIRST_QUERIES:  # fewer are answered before equal samples are found
        kept = _without_later_ties(B, k, memory_budget // 2)
    if kept is not None:
        B = B[kept]
        memory_budget -= B.nbytes
    A = np.ascontiguousarray(A)
    (n, D), room = A.shape, _room(k)
    per_query = 24 * D + 20 * room + 40 * k + 64
    per_column = 16 * D + 8 * MAX_QUERIES + 32
    columns = max(TILE_COLUMNS // 2, min(TILE_COLUMNS, TILE_BYTES // (4 * D) // STRIPE * STRIPE))
    columns = min(columns, len(B) + -len(B) % STRIPE)
    workers = min(cpu_workers(), -(-n // TILE_ROWS))
    while workers > 1 and memory_budget // workers < 2 * columns * per_column:
        workers -= 1
    memory = memory_budget // workers
    columns = min(columns, memory // (2 * per_column) // STRIPE * STRIPE)
    queries = min(MAX_QUERIES, (memory - columns * per_column) // per_query) if columns else 0
    if queries < TILE_ROWS:
        return NotImplemented
    multipliers = None
    if metric == "cosine":
        multipliers = inverse_lengths(A, workers), inverse_lengths(B, workers)
        if not all(np.isfinite(own).all() for own in multipliers):
            return NotImplemented  # subnormal lengths
    search = Search(A, B, k, metric, workers, multipliers)
    if kept is not None:
        count(n * (n_samples - len(kept)))  # no distance of those that are left out is needed
    step = -(-n // (workers * -(-n // (workers * queries))))
    parts = map_row_blocks(
        lambda rows: search.block(rows, count, columns), n, step, workers=workers
    )
    ranks, indices = (np.concatenate(part) for part in zip(*parts, strict=True))
    indices = indices if kept is None else kept[indices]
    if metric == "cosine":
        return ranks / 2, indices
    return (np.sqrt(ranks) if metric == "l2" else ranks) / search.scale, indices


def _without_later_ties(B: Any, k: int, most_bytes: int) -> Any:
    """Return the rows of the first k of equal samples, if that leaves out at least half.

    The others tie with k samples before them. They are looked for where they are many among a few.
    """
    some = B[:: len(B) // CENTRE_SAMPLES + 1]
    if 2 * len({sample.tobytes() for sample in some}) > len(some):
        return None
    times: dict[bytes, int] = {}
    kept = []
    for row, sample in enumerate(B):
        key = sample.tobytes()
        times[key] = times.get(key, 0) + 1
        if times[key] <= k:
            kept.append(row)
            if 2 * len(kept) > len(B) or len(kept) * sample.nbytes > most_bytes:
                return None
    return np.array(kept)


def inverse_lengths(X: Any, workers: int) -> Any:
    """Return what to multiply each sample by so that it has length 1."""
    bits, squares = _bits(X), np.empty(len(X))

    def sum_up(rows: slice) -> None:
        open_loops.norms(bits, rows.start, rows.stop, squares)

    map_row_blocks(sum_up, len(X), -(-len(X) // workers), workers=workers)
    lengths = np.sqrt(squares)
    odd = np.flatnonzero(~((squares > 1e-200) & (squares < 1e200)))
    if odd.size:
        rows = X[odd].astype(np.float64)
        largest = np.abs(rows).max(axis=1)
        lengths[odd] = np.linalg.norm(rows / largest[:, None], axis=1) * largest
    with np.errstate(over="ignore"):
        return 1 / lengths


def _room(k: int) -> int:
    """Return how long the lists of open samples are."""
    return 2 * max(16, 2 * k) + STRIPE + SPARE + LANES


def _bits(X: Any) -> Any:
    """Return an array that compiled loops can read: float16 as its bits."""
    return X.view(np.uint16) if X.dtype == np.float16 else X


def _floats(X: Any) -> Any:
    return X.view(np.float16).astype(np.float32) if X.dtype == np.uint16 else X


def _multiplied(X: Any, multipliers: Any) -> Any:
    X = np.array(_floats(X), np.float64, order="C")
    if multipliers is not None:
        X *= multipliers[:, None]
    return X
