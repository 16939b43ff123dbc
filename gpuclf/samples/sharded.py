"""Samples that no one machine holds: the chunks of a dask array, computed with where they lie.

One holder a worker, an actor of dask, keeps the worker's chunks and answers for each of them; what
is summed is summed here, chunk after chunk in the order of the rows, so that results depend on the
chunks and not on who holds them. A holder that is lost is made again by those workers that live,
from dask's graph, and only its chunks are asked for again. The same chunks can lie in this process
(a list of arrays): that needs no dask, and gives the same bits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, nullcontext
from itertools import accumulate
from pickle import PicklingError
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

import numpy as np

from gpuclf.arrays import Array, to_host
from gpuclf.devices.backends import to_device
from gpuclf.devices.cpu import blas_controller

__all__ = ["Chunk", "Sharded", "gathered", "is_dask"]

DTYPES = ("uint8", "float16", "float32", "float64")
TRIES = 3  # of a call whose holders are lost
TAKEN_BY = (
    "fit, predict and score of SoftmaxClassifier and TwoLayerNetClassifier with solver='lbfgs', "
    "fit of KNeighborsClassifier, Standardized.fit and gpuclf.training.train_lbfgs take it"
)


class Chunk(NamedTuple):
    """Consecutive samples, as functions of :meth:`Sharded.map` get them.

    Attributes
    ----------
    X : array of shape (n, D)
    start : int
        The number of the first sample.
    beside : tuple
        What :meth:`Sharded.beside` gave of these samples.
    """

    X: Array
    start: int
    beside: tuple[Any, ...] = ()


class Sharded:
    """Samples on the workers of a dask cluster, for what is a sum over samples, or a nearest one.

    Softmax regression and the two-layer net with ``solver="lbfgs"``, their ``predict`` and
    ``score``, k-nearest neighbours and ``Standardized.fit`` take them as X: parameters and labels
    travel, samples do not. Nothing is loaded before the first of these, and then it stays until
    :meth:`release`, or until there is no reference left.

    Parameters
    ----------
    X : dask array of shape (N, D), or list of NumPy arrays
        uint8, float16, float32 or float64; cut between samples only. A list is computed with in
        this process, chunk after chunk, without dask.
    backend : {"auto", "numpy", "cupy"}, default "auto"
        Where each worker computes; "auto" asks on the worker.
    timeout : float, default 60
        Seconds to wait for a worker where there is none.

    Attributes
    ----------
    lengths : tuple of int
        Samples of each chunk.
    shape, ndim, dtype
        As of the array that it stands for.

    Raises
    ------
    TypeError, ValueError
        If X is not such an array; the message has the remedy.

    Notes
    -----
    Labels and weights, as arrays of NumPy or dask of N values, are gathered in this process.
    Results are those of the same chunks in one process, bit for bit, where the workers compute
    with as many threads (`nthreads` of dask's worker) on the same kind of processor; how many
    workers there are does not matter. Each chunk gives a loss and a gradient of its own, so a
    chunk should have thousands of samples: 100 MB to 1 GB. A worker needs memory for its chunks
    and about 300 MB. docs/scaling.md says what is worth it.

    Examples
    --------
    >>> import gpuclf
    >>> X, y = gpuclf.datasets.make_synthetic(300)
    >>> shards = Sharded([X[:100], X[100:]])  # or a dask array
    >>> model = gpuclf.SoftmaxClassifier(solver="lbfgs", max_iter=100).fit(shards, y)
    >>> bool(model.score(shards, y) == model.score(X, y))
    True
    """

    ndim = 2
    device = "cpu"  # of what comes back

    def __init__(self, X: Any, backend: str = "auto", *, timeout: float = 60.0) -> None:
        if backend not in ("auto", "numpy", "cupy"):
            raise ValueError(f"backend must be 'auto', 'numpy' or 'cupy', got {backend!r}")
        self.lengths, n_features, self.dtype = _checked(X)
        self.shape = (sum(self.lengths), n_features)
        self._starts = tuple(accumulate(self.lengths, initial=0))
        self._beside: tuple[Any, ...] = ()
        self._lock = threading.RLock()
        make = _Cluster if is_dask(X) else _InProcess
        self._holders = make(X, backend, self._starts, timeout)

    def map(
        self,
        function: Callable[..., Any],
        *args: Any,
        merge: Callable[[list[Any]], Any] | None = None,
        only: int | None = None,
    ) -> list[Any]:
        """Return ``function(chunk, *args)`` of each chunk, on the host, in the order of the rows.

        Parameters
        ----------
        function : callable
            Of a module, for it is sent to the workers; gets a :class:`Chunk`.
        *args
            NumPy arrays and other things that can be pickled.
        merge : callable, optional
            Makes one result of the list of those of a worker, whichever chunks it has.
        only : int, optional
            The number of the one chunk that is asked for.

        Raises
        ------
        RuntimeError
            If workers were lost three times.
        TimeoutError
            If there is no worker.
        """
        with self._lock:
            return self._holders.map(function, args, merge, only, self._beside)

    @contextmanager
    def beside(self, *rows: np.ndarray | None) -> Iterator[None]:
        """Hand arrays of N values to the holders, for the calls within: labels and weights."""
        with self._lock:
            before, self._beside = self._beside, rows
            try:
                yield
            finally:
                self._beside = before

    def release(self) -> None:
        """Let the workers forget the samples; the next call loads them again."""
        with self._lock:
            self._holders.release()

    def place_of(self, row: int) -> tuple[int, int]:
        """Return the chunk that has a sample, and the sample's place in it."""
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return number, row - self._starts[number]

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        where = self._holders.describe()
        return f"Sharded({self.dtype} {self.shape}, {len(self.lengths)} chunks {where})"

    def __array_namespace__(self, api_version: str | None = None) -> ModuleType:
        return np

    def __deepcopy__(self, memo: dict[int, Any]) -> Sharded:
        return self

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(f"the samples are Sharded, which cannot be taken here: {TAKEN_BY}")

    # What would pull the samples here, or move or cut them.
    __getitem__ = __array__ = map_arrays = __reduce__ = _refuse
    flags = property(_refuse)


def is_dask(x: Any) -> bool:
    """Tell whether something is a collection of dask."""
    return type(x).__module__.partition(".")[0] in ("dask", "dask_expr")


def gathered(values: Any, n_samples: int | None = None, name: str = "y") -> Any:
    """Return labels or weights of dask as a NumPy array in this process, others as they are."""
    if not is_dask(values):
        return values
    found = np.asarray(values.compute())
    if n_samples is not None and found.shape != (n_samples,):
        raise ValueError(
            f"{name} must have shape ({n_samples},), one value for each row of X, got {found.shape}"
        )
    return found


def _checked(X: Any) -> tuple[tuple[int, ...], int, np.dtype[Any]]:
    """Return the lengths of the chunks, the number of features and the dtype."""
    if is_dask(X) and not hasattr(X, "chunks"):
        raise TypeError(
            f"X must be a dask array, got {type(X).__name__} of dask: a data frame's values are "
            "X.to_dask_array(lengths=True)"
        )
    if is_dask(X):
        lengths, columns = _lengths_of(X)
        dtype = np.dtype(X.dtype)
    else:
        chunks: list[Any] = [*X] if isinstance(X, list | tuple) else [None]
        if not all(isinstance(chunk, np.ndarray) and chunk.ndim == 2 for chunk in chunks):
            raise TypeError(
                f"X must be a dask array, or a list of NumPy arrays of shape (n, D), got "
                f"{type(X).__name__}: an array that fits here needs no Sharded, and "
                "dask.array.from_array(X, chunks=(10_000, -1)) cuts one"
            )
        lengths, columns = tuple(len(chunk) for chunk in chunks), {c.shape[1] for c in chunks}
        dtype = np.result_type(*chunks) if chunks else np.dtype(float)
        if len(columns) > 1 or any(chunk.dtype != dtype for chunk in chunks):
            found = ", ".join(f"{chunk.dtype} {chunk.shape}" for chunk in chunks)
            raise ValueError(f"all chunks must have the same features and dtype, got {found}")
    if not lengths or 0 in lengths:
        which = f"chunk {lengths.index(0)}" if lengths else "X"
        raise ValueError(
            f"{which} is empty: leave empty chunks out, "
            + (
                "X.rechunk({0: tuple(n for n in X.chunks[0] if n)})"
                if any(lengths)
                else "and give at least one sample"
            )
        )
    if dtype.name not in DTYPES:
        raise TypeError(
            f"X must be uint8, float16, float32 or float64, got {dtype}; convert it with "
            "X.astype('float32')"
        )
    return lengths, columns.pop(), dtype


def _lengths_of(X: Any) -> tuple[tuple[int, ...], set[int]]:
    """Return the lengths of a dask array's chunks and its number of features."""
    if X.ndim != 2:
        raise ValueError(
            f"X must have shape (N, D), one sample a row, got {X.shape}; flatten images with "
            "X.reshape(X.shape[0], -1)"
        )
    if any(np.isnan(n) for n in (*X.chunks[0], *X.chunks[1])):
        raise ValueError(
            "the lengths of X's chunks are not known: X.compute_chunk_sizes() finds them, or "
            "to_dask_array(lengths=True) of a data frame"
        )
    if X.numblocks[1] != 1:
        raise ValueError(
            f"X is cut between features, into {X.numblocks[1]} parts; cut between samples only: "
            "X.rechunk({1: -1})"
        )
    return tuple(map(int, X.chunks[0])), {int(X.shape[1])}


# ----------------------------------------------------------------------------------- holders


class Holder:
    """Chunks in one process, and the answers for each of them; an actor on dask's workers."""

    def __init__(
        self, numbers: Sequence[int], starts: Sequence[int], chunks: list[Any], backend: str,
        threads: int | None = None,
    ) -> None:  # fmt: skip
        self._chunks = {
            number: Chunk(to_device(chunk, backend), start)
            for number, start, chunk in zip(numbers, starts, chunks, strict=True)
        }
        self._threads = threads

    def take(self, beside: dict[int, tuple[Any, ...]]) -> None:
        """Keep what belongs to the samples of each chunk, where they are."""
        for number, rows in beside.items():
            chunk = self._chunks[number]
            there = tuple(None if r is None else to_device(r, like=chunk.X) for r in rows)
            self._chunks[number] = chunk._replace(beside=there)

    def apply(
        self, function: Callable[..., Any], args: tuple[Any, ...], merge: Any, only: int | None
    ) -> tuple[dict[int, Any], Exception | None]:
        """Return the results by the chunk's number, or the error: what is raised is dask's own."""
        limited = blas_controller().limit(limits=self._threads) if self._threads else nullcontext()
        numbers = sorted(self._chunks) if only is None else [only]
        try:
            with limited:  # dask starts its workers with one thread, however many they may use
                found = [_plain(function(self._chunks[n], *args)) for n in numbers]
                if merge is not None:
                    numbers, found = numbers[:1], [merge(found)]
        except Exception as error:
            return {}, error
        return dict(zip(numbers, found, strict=True)), None


def _plain(result: Any) -> Any:
    """Return a result with all its arrays on the host."""
    if isinstance(result, tuple):
        return tuple(map(_plain, result))
    return to_host(result) if isinstance(result, dict) or hasattr(result, "dtype") else result


class _InProcess:
    """The chunks of a list, in this process."""

    def __init__(self, chunks: Any, backend: str, starts: tuple[int, ...], timeout: float) -> None:
        self._given, self._backend, self._starts = chunks, backend, starts
        self._holder: Holder | None = None
        self._taken: Any = ()

    def map(
        self, function: Any, args: Any, merge: Any, only: int | None, beside: tuple[Any, ...]
    ) -> list[Any]:
        if self._holder is None:
            numbers = range(len(self._given))
            self._holder = Holder(numbers, self._starts[:-1], self._given, self._backend)
            self._taken = ()
        if beside is not self._taken:
            self._holder.take(_slices(beside, self._starts, range(len(self._given))))
            self._taken = beside
        found, error = self._holder.apply(function, args, merge, only)
        if error is not None:
            raise error
        return [found[number] for number in sorted(found)]

    def release(self) -> None:
        self._holder = None

    def describe(self) -> str:
        return "in this process"


def _slices(
    beside: tuple[Any, ...], starts: Sequence[int], numbers: Sequence[int]
) -> dict[int, tuple[Any, ...]]:
    return {
        n: tuple(r if r is None else r[starts[n] : starts[n + 1]] for r in beside) for n in numbers
    }


class _Shard(NamedTuple):
    """A holder on a worker."""

    actor: Any
    future: Any  # keeps the actor alive
    numbers: tuple[int, ...]
    worker: str


class _Cluster:
    """The chunks of a dask array, in holders on dask's workers."""

    def __init__(self, X: Any, backend: str, starts: tuple[int, ...], timeout: float) -> None:
        self._X, self._backend, self._starts, self._timeout = X, backend, starts, timeout
        self._shards: list[_Shard] = []
        self._taken: Any = ()

    def describe(self) -> str:
        return f"on {len(self._shards)} workers" if self._shards else "not loaded yet"

    def release(self) -> None:
        self._shards = []

    def map(
        self, function: Any, args: Any, merge: Any, only: int | None, beside: tuple[Any, ...]
    ) -> list[Any]:
        results: dict[int, Any] = {}
        done: set[int] = set()
        wanted = set(range(len(self._starts) - 1)) if only is None else {only}
        for attempt in range(TRIES):
            lost: list[tuple[_Shard, Exception]] = []
            try:
                self._load()
                if beside is not self._taken:
                    lost += self._take(self._shards, beside)
                asked = [s for s in self._shards if not done.issuperset(wanted & {*s.numbers})]
                gone = {id(shard) for shard, _ in lost}
                asked = [shard for shard in asked if id(shard) not in gone]
                pending = [(s, _call(s, "apply", function, args, merge, only)) for s in asked]
                for shard, answer in pending:
                    try:
                        found, error = answer()
                    except (TypeError, PicklingError):  # what was sent, not the way
                        raise
                    except Exception as transport:  # the function's own errors come back as values
                        lost.append((shard, transport))
                        continue
                    if error is not None:
                        raise error
                    results |= found
                    done |= {*shard.numbers}
            finally:
                gone = {id(shard) for shard, _ in lost}
                self._shards = [shard for shard in self._shards if id(shard) not in gone]
            if not lost:
                return [results[number] for number in sorted(results)]
            if attempt == TRIES - 1:
                workers = ", ".join(shard.worker for shard, _ in lost)
                raise RuntimeError(
                    f"workers were lost in each of {TRIES} tries, the last: {workers}. Most often "
                    "memory runs out: give the workers more of it, or more workers "
                    "(memory_limit= and n_workers= of dask's cluster); their logs say what it was"
                ) from lost[-1][1]
        raise AssertionError("not reached")

    def _take(
        self, shards: Sequence[_Shard], beside: tuple[Any, ...]
    ) -> list[tuple[_Shard, Exception]]:
        """Hand out what belongs to the samples; return the holders that were lost meanwhile."""
        lost: list[tuple[_Shard, Exception]] = []
        given = [(s, _call(s, "take", _slices(beside, self._starts, s.numbers))) for s in shards]
        for shard, answer in given:
            try:
                answer()
            except Exception as error:
                lost.append((shard, error))
        self._taken = beside
        return lost

    def _load(self) -> None:
        """Make holders of the chunks that have none, on the workers that there are."""
        held = {number for shard in self._shards for number in shard.numbers}
        missing = [n for n in range(len(self._starts) - 1) if n not in held]
        if not missing:
            return
        client = _client()
        facts = _facts_of(client, self._timeout)
        self._check_memory(facts, missing)
        try:
            by_worker = self._assigned(client, facts, missing)
            blocks = self._X.to_delayed().ravel()
            futures = client.compute([blocks[n] for n in missing])
        except CancelledError:
            raise _lost_samples(missing[0]) from None
        of_number = dict(zip(missing, futures, strict=True))
        made = [
            (
                client.submit(
                    Holder, numbers, [self._starts[n] for n in numbers],
                    [of_number[n] for n in numbers], self._backend, facts[worker]["threads"],
                    workers=[worker], allow_other_workers=True, actor=True, pure=False,
                ),
                numbers, worker,
            )
            for worker, numbers in by_worker.items()
        ]  # fmt: skip
        new = [
            _Shard(self._made(client, future, of_number), future, tuple(numbers), worker)
            for future, numbers, worker in made
        ]
        if self._taken:
            lost = {id(shard) for shard, _ in self._take(new, self._taken)}
            new = [shard for shard in new if id(shard) not in lost]
        self._shards += new

    def _made(self, client: Any, future: Any, chunks: dict[int, Any]) -> Any:
        """Wait for a holder; dask would wait for ever where no worker is left."""
        from distributed import wait

        while True:
            try:
                wait(future, timeout=self._timeout)
            except TimeoutError:
                if not client.nthreads():
                    raise _no_worker(self._timeout) from None
                continue
            except CancelledError:
                pass  # said below
            if future.status == "finished":
                return future.result()
            wrong = [n for n, chunk in chunks.items() if chunk.status in ("cancelled", "lost")]
            if wrong or future.status in ("cancelled", "lost"):
                raise _lost_samples((wrong or [*chunks])[0])
            future.result()  # raises what the graph, or dask, says

    def _assigned(
        self, client: Any, facts: dict[str, Any], missing: list[int]
    ) -> dict[str, list[int]]:
        """Return the chunks of each worker: where they are already, or stretches of equal rows."""
        from distributed import futures_of

        known = client.who_has(self._X) if futures_of(self._X) else {}
        keys = [key for row in self._X.__dask_keys__() for key in row]
        workers = sorted(facts)
        n_missing = sum(self._starts[n + 1] - self._starts[n] for n in missing)
        assigned: dict[str, list[int]] = {}
        before = 0
        for number in missing:
            length = self._starts[number + 1] - self._starts[number]
            place = int((before + length / 2) * len(workers) / n_missing)
            before += length
            there = [w for w in known.get(keys[number], ()) if w in facts]
            worker = there[0] if there else workers[min(place, len(workers) - 1)]
            assigned.setdefault(worker, []).append(number)
        return assigned

    def _check_memory(self, facts: dict[str, Any], missing: list[int]) -> None:
        limits = [fact["memory"] for fact in facts.values() if fact["memory"]]
        if not limits or len(limits) < len(facts):
            return  # a worker without a limit takes anything
        n_features, size = int(self._X.shape[1]), self._X.dtype.itemsize
        longest = max(missing, key=lambda n: self._starts[n + 1] - self._starts[n])
        n_rows = self._starts[longest + 1] - self._starts[longest]
        n_bytes = n_rows * n_features * size
        if n_bytes > max(limits):
            fits = max(1, max(limits) // (4 * n_features * size))
            raise ValueError(
                f"chunk {longest} of X has {n_bytes:,} bytes, and no worker may take more than "
                f"{max(limits):,}: cut shorter chunks, X.rechunk({{0: {fits}}}), or give the "
                "workers more, memory_limit= of dask's cluster"
            )
        total = self._starts[-1] * n_features * size
        if total > sum(limits) and self._backend == "numpy":
            raise ValueError(
                f"X has {total:,} bytes, and all workers together may take {sum(limits):,}: start "
                "more workers, or give them more memory, memory_limit= of dask's cluster"
            )


def _call(shard: _Shard, method: str, *args: Any) -> Callable[[], Any]:
    """Start a method of a holder; return what waits for its result."""
    try:
        answer = getattr(shard.actor, method)(*args)
    except Exception as error:  # dask knows already that the worker is gone
        lost = error

        def fail() -> NoReturn:
            raise lost

        return fail
    result: Callable[[], Any] = answer.result
    return result


def _client() -> Any:
    from distributed import default_client

    try:
        return default_client()
    except ValueError:
        raise ValueError(
            "there is no client of dask: from dask.distributed import Client; client = Client() "
            "starts workers here, Client('tcp://...:8786') finds a scheduler"
        ) from None


def _lost_samples(number: int) -> RuntimeError:
    return RuntimeError(
        f"chunk {number} of X is lost and cannot be made again: it was scattered, or persisted by "
        "a client that is gone. Make X from where the data lie, such as dask.array.from_zarr or "
        "from_delayed, and not of client.scatter"
    )


def _no_worker(timeout: float) -> TimeoutError:
    return TimeoutError(
        f"there is no worker after {timeout:g} seconds: start some, for example "
        "client.cluster.scale(2) or `dask worker SCHEDULER`, or wait longer, Sharded(X, timeout=)"
    )


def _versions_here() -> dict[str, str]:
    import gpuclf

    return {"gpuclf": gpuclf.__version__, "numpy": np.__version__}


def _facts_of(client: Any, timeout: float) -> dict[str, Any]:
    """Return what is known of each worker, once there is one, and check their versions."""
    try:
        client.wait_for_workers(1, timeout=timeout)
    except TimeoutError:
        raise _no_worker(timeout) from None

    def facts(dask_worker: Any) -> dict[str, Any]:  # sent by value: gpuclf may be missing there
        import numpy

        try:
            import gpuclf

            version = gpuclf.__version__
        except ImportError:
            version = "none"
        return {
            "versions": {"gpuclf": version, "numpy": numpy.__version__},
            "memory": dask_worker.memory_manager.memory_limit,
            "threads": dask_worker.state.nthreads,
        }

    found: dict[str, Any] = {}
    deadline = time.monotonic() + timeout
    while not found:  # those that have just been lost do not answer
        found = client.run(facts, on_error="ignore")
        if time.monotonic() > deadline:
            raise _no_worker(timeout)
    here = _versions_here()
    for worker, fact in found.items():
        for name, version in here.items():
            other = fact["versions"][name]
            if other != version:
                raise RuntimeError(
                    f"the worker {worker} has {name} {other}, and {version} is here: results would "
                    f"differ; install {name}=={version} there, or {other} here"
                )
    return found
