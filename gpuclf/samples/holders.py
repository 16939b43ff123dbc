"""Who holds the chunks of Sharded samples: this process, or the workers of dask.

On a cluster one holder a worker, an actor, keeps the worker's chunks and answers for each of them.
A holder that is lost is made again by those workers that live, from dask's graph, and only its
chunks are asked for again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import numpy as np

from gpuclf.arrays import Array, to_host
from gpuclf.devices.backends import to_device
from gpuclf.devices.cpu import blas_controller
from gpuclf.devices.cupy import on_its_device

__all__ = ["Chunk", "Holder", "InProcess", "OnCluster", "Place", "facts_of"]

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


class Place(NamedTuple):
    """Where a chunk belongs, and what it must be like."""

    number: int
    start: int
    shape: tuple[int, int]
    dtype: np.dtype[Any]


class Holder:
    """Chunks in one process, and the answers for each of them; an actor on dask's workers."""

    def __init__(
        self, places: Sequence[Place], chunks: list[Any], backend: str, threads: int | None = None
    ) -> None:
        for place, chunk in zip(places, chunks, strict=True):
            shape, dtype = (getattr(chunk, name, None) for name in ("shape", "dtype"))
            if (shape, dtype) != place[2:]:
                raise ValueError(
                    f"chunk {place.number} of X is a {type(chunk).__name__} {dtype} {shape}, where "
                    f"X says {place.dtype} {place.shape}: say what is read, as in "
                    "dask.array.from_delayed(value, shape, dtype), or convert it when it is read"
                )
        self._chunks = {
            place.number: Chunk(to_device(chunk, backend), place.start)
            for place, chunk in zip(places, chunks, strict=True)
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
    ) -> dict[int, Any]:
        """Return the results by the chunk's number."""
        limited = blas_controller().limit(limits=self._threads) if self._threads else nullcontext()
        numbers = sorted(self._chunks) if only is None else [only]
        there = on_its_device(function)
        with limited:  # dask starts its workers with one thread, however many they may use
            found = [_plain(there(self._chunks[n], *args)) for n in numbers]
            if merge is not None:
                numbers, found = numbers[:1], [merge(found)]
        return dict(zip(numbers, found, strict=True))

    def answer(self, asked: bytes) -> tuple[bytes, bytes, str]:
        """Call a method for a client: a pickle of it to one of the result, or of the error.

        What a client or a worker of dask cannot read or write, it waits for without an end; what
        is raised looks as if the worker were lost.
        """
        from distributed.protocol.pickle import dumps, loads

        error = b""
        try:
            method, args = loads(asked)
            return dumps(getattr(self, method)(*args)), b"", ""
        except Exception as raised:
            with suppress(Exception):
                error = dumps(raised)
            return b"", error, f"{type(raised).__name__}: {raised}"


def _plain(result: Any) -> Any:
    """Return a result with all its arrays on the host."""
    if isinstance(result, tuple):
        return tuple(map(_plain, result))
    return to_host(result) if isinstance(result, dict) or hasattr(result, "dtype") else result


class InProcess:
    """The chunks of a list, in this process."""

    def __init__(self, chunks: Any, backend: str, places: Sequence[Place], timeout: float) -> None:
        self._given, self._backend, self._places = chunks, backend, places
        self._holder: Holder | None = None
        self._taken: Any = ()

    def map(
        self, function: Any, args: Any, merge: Any, only: int | None, beside: tuple[Any, ...]
    ) -> list[Any]:
        """Return the results of all chunks, or of all holders where they are merged."""
        if self._holder is None:
            self._holder = Holder(self._places, self._given, self._backend)
            self._taken = ()
        if beside is not self._taken:
            self._holder.take(_slices(beside, self._places))
            self._taken = beside
        found = self._holder.apply(function, args, merge, only)
        return [found[number] for number in sorted(found)]

    def release(self) -> None:
        """Forget the samples."""
        self._holder = None

    def describe(self) -> str:
        """Say where the chunks are."""
        return "in this process"


def _slices(beside: tuple[Any, ...], places: Sequence[Place]) -> dict[int, tuple[Any, ...]]:
    rows = {place.number: slice(place.start, place.start + place.shape[0]) for place in places}
    return {n: tuple(r if r is None else r[rows[n]] for r in beside) for n in rows}


@dataclass(eq=False)
class Shard:
    """A holder on a worker."""

    actor: Any
    future: Any  # keeps the actor alive
    places: list[Place]
    worker: str
    taken: Any = ()


class OnCluster:
    """The chunks of a dask array, in holders on dask's workers."""

    def __init__(self, X: Any, backend: str, places: Sequence[Place], timeout: float) -> None:
        self._X, self._backend, self._places, self._timeout = X, backend, places, timeout
        self._shards: list[Shard] = []

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
        from distributed.protocol.pickle import dumps

        results: dict[int, Any] = {}
        wanted = {place.number for place in self._places} if only is None else {only}
        asked = dumps(("apply", (function, args, merge, only)))
        for _ in range(TRIES):
            self._load()
            lost: list[tuple[str, Exception]] = []
            late = {
                shard: dumps(("take", (_slices(beside, shard.places),)))
                for shard in self._shards
                if shard.taken is not beside
            }
            for shard, _ in self._answers(late, lost):
                shard.taken = beside
            of_shards = {
                shard: asked
                for shard in self._shards
                if wanted.intersection(place.number for place in shard.places)
            }
            for shard, found in self._answers(of_shards, lost):
                results |= found
                wanted -= {place.number for place in shard.places}
            if not wanted:
                return [results[number] for number in sorted(results)]
        raise RuntimeError(
            f"workers were lost in each of {TRIES} tries, the last: "
            f"{', '.join(worker for worker, _ in lost)}. Most often memory runs out: give the "
            "workers more of it, or more workers (memory_limit= and n_workers= of dask's "
            "cluster); their logs say what it was"
        ) from lost[-1][1]

    def _answers(
        self, asked: dict[Shard, bytes], lost: list[tuple[str, Exception]]
    ) -> Iterator[tuple[Shard, Any]]:
        """Ask holders all at once; give the answers, and drop those that are lost."""
        pending = [(shard, _ask(shard, question)) for shard, question in asked.items()]
        for shard, answer in pending:
            try:
                found = answer()
            except Exception as transport:  # what the holder itself raises is an answer
                self._shards.remove(shard)
                lost.append((shard.worker, transport))
                continue
            yield shard, _result_of(*found)

    def _load(self) -> None:
        """Make holders of the chunks that have none, on the workers that there are."""
        held = {place.number for shard in self._shards for place in shard.places}
        missing = [place for place in self._places if place.number not in held]
        if not missing:
            return
        client = _client()
        facts = facts_of(client, self._timeout, self._backend)
        self._check_memory(facts, missing)
        made = []
        try:
            blocks = self._X.to_delayed().ravel()
            for worker, places in self._assigned(client, facts, missing).items():
                chunks = client.compute(
                    [blocks[place.number] for place in places],
                    workers=[worker], allow_other_workers=True,
                )  # fmt: skip
                holder = client.submit(
                    Holder, places, chunks, self._backend, facts[worker]["threads"],
                    workers=[worker], allow_other_workers=True, actor=True, pure=False,
                )  # fmt: skip
                made.append((holder, chunks, places, worker))
        except CancelledError:
            raise _lost_samples(missing[0].number) from None
        for holder, chunks, places, worker in made:
            numbers = [place.number for place in places]
            actor = self._made(client, holder, dict(zip(numbers, chunks, strict=True)))
            self._shards.append(Shard(actor, holder, places, worker))

    def _made(self, client: Any, future: Any, chunks: dict[int, Any]) -> Any:
        """Wait for a holder; dask would wait for ever where no worker is left."""
        from distributed import wait

        while True:
            try:
                wait(future, timeout=self._timeout)
            except TimeoutError:
                error = _nobody_works(client, self._timeout)
                if error is not None:
                    raise error from None
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
        self, client: Any, facts: dict[str, Any], missing: list[Place]
    ) -> dict[str, list[Place]]:
        """Return the chunks of each worker: where they are already, or stretches of equal rows."""
        from distributed import futures_of

        known = client.who_has(self._X) if futures_of(self._X) else {}
        keys = [key for row in self._X.__dask_keys__() for key in row]
        workers = sorted(facts)
        n_missing = sum(place.shape[0] for place in missing)
        assigned: dict[str, list[Place]] = {}
        before = 0
        for place in missing:
            nth = int((before + place.shape[0] / 2) * len(workers) / n_missing)
            before += place.shape[0]
            there = [w for w in known.get(keys[place.number], ()) if w in facts]
            worker = there[0] if there else workers[min(nth, len(workers) - 1)]
            assigned.setdefault(worker, []).append(place)
        return assigned

    def _check_memory(self, facts: dict[str, Any], missing: list[Place]) -> None:
        limits = [fact["memory"] for fact in facts.values() if fact["memory"]]
        if len(limits) < len(facts):
            return  # a worker without a limit takes anything
        of_row = missing[0].shape[1] * missing[0].dtype.itemsize
        longest = max(missing, key=lambda place: place.shape[0])
        n_bytes = longest.shape[0] * of_row
        if n_bytes > max(limits):
            raise ValueError(
                f"chunk {longest.number} of X has {n_bytes:,} bytes, and no worker may take more "
                f"than {max(limits):,}: cut shorter chunks, X.rechunk({{0: "
                f"{max(1, max(limits) // (4 * of_row))}}}), or give the workers more, "
                "memory_limit= of dask's cluster"
            )
        total = sum(place.shape[0] for place in missing) * of_row
        if total > sum(limits) and all(fact["on_host"] for fact in facts.values()):
            raise ValueError(
                f"X has {total:,} bytes, and all workers together may take {sum(limits):,}: start "
                "more workers, or give them more memory, memory_limit= of dask's cluster"
            )


def _ask(shard: Shard, question: bytes) -> Callable[[], Any]:
    """Ask a holder; return what waits for its answer."""
    try:
        result: Callable[[], Any] = shard.actor.answer(question).result
    except Exception as error:  # dask knows already that the worker is gone
        lost = error

        def fail() -> NoReturn:
            raise lost

        return fail
    return result


def _result_of(result: bytes, error: bytes, text: str) -> Any:
    from distributed.protocol.pickle import loads

    if not text:
        return loads(result)
    raised: Exception = RuntimeError(f"a worker raised {text}")
    with suppress(Exception):  # such as one of a library that is not here
        raised = loads(error)
    raise raised


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


def _state(dask_worker: Any) -> str:
    return str(dask_worker.status.name)


def _nobody_works(client: Any, timeout: float) -> Exception | None:
    """Return why nothing is computed, if there are no workers that would."""
    states = {*client.run(_state, on_error="ignore").values()}
    if not states:
        return TimeoutError(
            f"there is no worker after {timeout:g} seconds: start some, for example "
            "client.cluster.scale(2) or `dask worker SCHEDULER`, or wait for them, "
            "client.wait_for_workers(1)"
        )
    if states == {"paused"}:
        return RuntimeError(
            "all workers have paused, for their memory is nearly full: release other samples, or "
            "give the workers more, memory_limit= of dask's cluster"
        )
    return None


def _versions_here() -> dict[str, str]:
    import gpuclf

    return {"gpuclf": gpuclf.__version__, "numpy": np.__version__}


def facts_of(client: Any, timeout: float, backend: str = "numpy") -> dict[str, Any]:
    """Return what is known of each worker of dask, once there is one, and check their versions.

    Raises
    ------
    TimeoutError
        If there is no worker.
    RuntimeError
        If a worker has another gpuclf or NumPy, or all have paused.
    """
    deadline = time.monotonic() + timeout
    with suppress(TimeoutError):  # said below
        client.wait_for_workers(1, timeout=timeout)

    def facts(dask_worker: Any) -> dict[str, Any]:  # sent by value: gpuclf may be missing there
        import numpy

        memory, on_host = dask_worker.memory_manager, backend == "numpy"
        try:
            import gpuclf

            version = gpuclf.__version__
            on_host = on_host or (backend == "auto" and gpuclf.get_backend().name == "numpy")
        except ImportError:
            version = "none"
        return {
            "versions": {"gpuclf": version, "numpy": numpy.__version__},
            # Above that it starts nothing more.
            "memory": int((memory.memory_limit or 0) * (memory.memory_pause_fraction or 1)),
            "threads": dask_worker.state.nthreads,
            "on_host": on_host,
        }

    found: dict[str, Any] = {}
    while not found:  # those that have just been lost do not answer
        if time.monotonic() > deadline:
            silent = TimeoutError(f"no worker answers within {timeout:g} seconds: see their logs")
            raise _nobody_works(client, timeout) or silent
        found = client.run(facts, on_error="ignore")
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
