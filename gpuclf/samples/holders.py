"""Who holds the chunks of Sharded samples: this process, or the workers of dask.

On a cluster one holder a worker, an actor, keeps the worker's chunks and answers for each of them.
A holder that is lost is made again by those workers that live, from dask's graph, and only its
chunks are asked for again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from contextlib import nullcontext
from pickle import PicklingError
from typing import Any, NamedTuple, NoReturn

import numpy as np

from gpuclf.arrays import Array, to_host
from gpuclf.devices.backends import to_device
from gpuclf.devices.cpu import blas_controller
from gpuclf.devices.cupy import on_its_device

__all__ = ["Chunk", "Holder", "InProcess", "OnCluster"]

TRIES = 3  # of a call whose holders are lost


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
        there = on_its_device(function)
        try:
            with limited:  # dask starts its workers with one thread, however many they may use
                found = [_plain(there(self._chunks[n], *args)) for n in numbers]
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


class InProcess:
    """The chunks of a list, in this process."""

    def __init__(self, chunks: Any, backend: str, starts: tuple[int, ...], timeout: float) -> None:
        self._given, self._backend, self._starts = chunks, backend, starts
        self._holder: Holder | None = None
        self._taken: Any = ()

    def map(
        self, function: Any, args: Any, merge: Any, only: int | None, beside: tuple[Any, ...]
    ) -> list[Any]:
        """Return the results of all chunks, or of all holders where they are merged."""
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
        """Forget the samples."""
        self._holder = None

    def describe(self) -> str:
        """Say where the chunks are."""
        return "in this process"


def _slices(
    beside: tuple[Any, ...], starts: Sequence[int], numbers: Sequence[int]
) -> dict[int, tuple[Any, ...]]:
    return {
        n: tuple(r if r is None else r[starts[n] : starts[n + 1]] for r in beside) for n in numbers
    }


class Shard(NamedTuple):
    """A holder on a worker."""

    actor: Any
    future: Any  # keeps the actor alive
    numbers: tuple[int, ...]
    worker: str


class OnCluster:
    """The chunks of a dask array, in holders on dask's workers."""

    def __init__(self, X: Any, backend: str, starts: tuple[int, ...], timeout: float) -> None:
        self._X, self._backend, self._starts, self._timeout = X, backend, starts, timeout
        self._shards: list[Shard] = []
        self._taken: Any = ()

    def describe(self) -> str:
        """Say where the chunks are."""
        return f"on {len(self._shards)} workers" if self._shards else "not loaded yet"

    def release(self) -> None:
        """Forget the samples."""
        self._shards = []

    def map(
        self, function: Any, args: Any, merge: Any, only: int | None, beside: tuple[Any, ...]
    ) -> list[Any]:
        """Return the results of all chunks, or of all holders where they are merged."""
        results: dict[int, Any] = {}
        done: set[int] = set()
        wanted = set(range(len(self._starts) - 1)) if only is None else {only}
        for attempt in range(TRIES):
            lost: list[tuple[Shard, Exception]] = []
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
        self, shards: Sequence[Shard], beside: tuple[Any, ...]
    ) -> list[tuple[Shard, Exception]]:
        """Hand out what belongs to the samples; return the holders that were lost meanwhile."""
        lost: list[tuple[Shard, Exception]] = []
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
            Shard(self._made(client, future, of_number), future, tuple(numbers), worker)
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


def _call(shard: Shard, method: str, *args: Any) -> Callable[[], Any]:
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
