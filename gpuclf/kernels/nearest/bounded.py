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

:math:`\eta` is for what underflows. A query for which a quarter of the samples is open goes to the
next stage: there are groups so far apart that the centre does not help, and samples that all tie.

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
    PANEL_BYTES,
    STRIPE,
    TILE_ROWS,
    Lists,
    Nearest,
    Samples,
)
from gpuclf.samples.walk import map_row_blocks, row_slices

__all__ = ["nearest_of_floats"]

# Queries and samples whose ranks stay in a cache, where the product is not most of the work.
GROUP, TILE_COLUMNS = 240, 512
MANY_FEATURES = 1024
MAX_QUERIES = 504  # that share one conversion of the samples
SPARE = 256  # open samples that a list has room for, beside the neighbours
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


class Search:
    """The samples to search, what is known of their numbers, and the stages of the search."""

    def __init__(
        self, A: Any, B: Any, k: int, metric: str, multipliers: tuple[Any, Any] | None, workers: int
    ) -> None:
        self.A, self.B, self.k = A, _bits(B), k
        self.absolute, self.metric = metric == "l1", metric
        self.multipliers, self.workers = multipliers, workers
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

    def B_floats(self, rows: slice) -> Any:  # noqa: N802
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
        found = Nearest(
            np.empty((n, self.k)), np.empty((n, self.k), np.int64), *np.zeros((2, n), np.int64)
        )
        left = np.arange(n)
        for number, stage in enumerate(self.stages):
            if not len(left):
                break
            part = found if number == 0 else Nearest(
                *(np.ascontiguousarray(values[left]) for values in found)
            )
            part.filled[:] = part.settled[:] = 0
            given_up = self._search(stage, queries[left], part, columns, count if not number else None)
            if number:
                for values, new in zip(found, part, strict=True):
                    values[left] = new
            left = left[given_up]
        return found.ranks, found.indices

    def _search(
        self, stage: Stage, queries: Any, found: Nearest, columns: int,
        count: Callable[[int], None] | None,
    ) -> Any:  # fmt: skip
        (n, D), k, dtype = queries.shape, self.k, stage.dtype
        samples = Samples(
            queries * stage.scale,
            self.B,
            np.array([stage.scale]) if self.multipliers is None else self.multipliers[1],
            self.absolute,
            stage.final,
        )
        a = np.zeros((n + -n % TILE_ROWS, D), dtype)
        b = np.zeros((columns, D), dtype)
        norms_a, norms_b = np.empty(n), np.empty(columns)
        one = np.ones(1)
        open_loops.centred(samples.A, 0, n, one, stage.centre * stage.scale, self.absolute, a, norms_a)
        if stage.products:
            a *= -2
        room = _room(k)
        lists = Lists(
            np.empty((n, room), dtype), np.empty((n, room), dtype), np.empty((n, room), np.int32),
            np.zeros(n, np.int64), np.full(n, max(16, 2 * k)), np.full(n, np.inf),
            stage.c * norms_a + stage.eta, norms_a if stage.products else np.zeros(n),
            np.array([1 + 2 * stage.e], dtype),
        )  # fmt: skip
        group = GROUP if D < MANY_FEATURES else MAX_QUERIES
        C = np.empty((min(group, len(a)), columns), dtype)
        panels = np.empty((0 if stage.products else columns * b.itemsize // PANEL_BYTES, D, PANEL_BYTES // b.itemsize), dtype)
        low, width = np.empty(columns, dtype), np.empty(columns, dtype)
        for tile in row_slices(len(self.B), columns):
            m = tile.stop - tile.start
            open_loops.centred(
                self.B, tile.start, m, samples.multipliers, stage.centre * stage.scale,
                self.absolute, b, norms_b,
            )  # fmt: skip
            low[m:] = np.inf
            if stage.products:
                low[:m], width[:m] = norms_b[:m] * (1 - stage.c), 2 * stage.c * norms_b[:m]
            else:
                low[:m], width[:m] = -2 * stage.c * norms_b[:m], 4 * stage.c * norms_b[:m]
                open_loops.packed(b, panels)
            for group in row_slices(len(a), len(C)):
                some = slice(group.start, min(group.stop, n))
                size = group.stop - group.start
                if found is not None and lists.counts[some].max() < 0:
                    continue
                if stage.products:
                    np.matmul(a[some], b.T, out=C[: some.stop - some.start])
                else:
                    open_loops.differences(a[group], panels, self.absolute, C[:size])
                open_loops.select(
                    C, low, width, tile.start, columns, some.start, some.stop - some.start, k,
                    lists, found, samples,
                )  # fmt: skip
            if count is not None:
                count(m * n)
        open_loops.finish(n, k, lists, found, samples)
        return lists.counts < 0


def nearest_of_floats(
    A: Any, B: Any, k: int, metric: str, memory_budget: int, count: Callable[[int], None],
    multipliers: tuple[Any, Any] | None = None,
) -> Any:  # fmt: skip
    """Return distances and rows as :func:`gpuclf.models.neighbors.k_neighbors`, or decline."""
    (n, D), room = A.shape, _room(k)
    per_query = 24 * D + 20 * room + 40 * k + 64
    per_column = 16 * D + 8 * MAX_QUERIES + 32
    columns = min(TILE_COLUMNS, len(B) + -len(B) % STRIPE)
    workers = min(cpu_workers(), -(-n // TILE_ROWS))
    while workers > 1 and memory_budget // workers < 2 * columns * per_column:
        workers -= 1
    memory = memory_budget // workers
    columns = min(columns, memory // (2 * per_column) // STRIPE * STRIPE)
    queries = min(MAX_QUERIES, (memory - columns * per_column) // per_query) if columns else 0
    if queries < TILE_ROWS:
        return NotImplemented
    search = Search(A, B, k, metric, multipliers, workers)
    step = -(-n // (workers * -(-n // (workers * queries))))
    parts = map_row_blocks(
        lambda rows: search.block(rows, count, columns), n, step, workers=workers
    )
    ranks, indices = (np.concatenate(part) for part in zip(*parts, strict=True))
    if metric == "cosine":
        return ranks / 2, indices
    return (np.sqrt(ranks) if metric == "l2" else ranks) / search.scale, indices


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
