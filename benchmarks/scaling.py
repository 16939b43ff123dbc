"""What a cluster of dask costs beside one process, and the model of it: docs/scaling.md.

python -m benchmarks.scaling --out scaling.json                       measures, in half a minute
python -m benchmarks.scaling --out scaling.json --workers 1 --trims   adds to it
python -m benchmarks.scaling --out tried.json --try                   on few rows
python -m benchmarks.scaling --tables scaling.json                    prints the tables

One evaluation of loss and gradient (softmax regression on bytes, what L-BFGS asks for) is timed in
this process, on one thread, and on local clusters of workers with a thread each, by turns.

`--link 0.005 1e8` adds what it takes over links that sleep: 5 ms each way to each holder, and
100 Mb/s that all messages of the client share.
"""

import argparse
import json
import time
from contextlib import contextmanager
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import psutil
from distributed import Client, LocalCluster
from threadpoolctl import threadpool_limits

from benchmarks.scaling_tables import CHUNKS, N_CLASSES, N_FEATURES, WORKERS, tables
from gpuclf import Sharded
from gpuclf.devices.machine import environment
from gpuclf.files import write_json
from gpuclf.models import SOFTMAX
from gpuclf.samples import holders
from gpuclf.samples.standardized import Standardized
from gpuclf.training.lbfgs import _sum_of_chunks

ROWS = (1_000, 10_000, 100_000, 1_000_000)
TURNS, EMPTY_CALLS = 5, 100
TRIM = "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_"


def nothing(chunk):
    return None


def samples(n_rows):
    """Return the same bytes whoever makes them: a dask array, and the chunks of it here."""

    def block(block_info=None):
        (start, stop), (_, n_features) = block_info[None]["array-location"]
        return np.random.default_rng(start).integers(0, 256, (stop - start, n_features), np.uint8)

    chunks = (-(-n_rows // CHUNKS), -1)
    rows = da.core.normalize_chunks(chunks, (n_rows, N_FEATURES))
    return da.map_blocks(block, chunks=rows, dtype=np.uint8)


class Case:
    """One evaluation over so many samples, here or on a cluster."""

    def __init__(self, shards, y):
        self.X = Standardized._unchecked(
            shards, np.full(N_FEATURES, 127.5), np.full(N_FEATURES, 74.0)
        )
        rng = np.random.default_rng(0)
        self.params = {"W": rng.standard_normal((N_FEATURES, N_CLASSES)).astype(np.float32)}
        self.beside = shards.beside(y, None)

    def __call__(self):
        """Return the seconds, and loss and gradient."""
        given = SOFTMAX, self.params, self.X, None, 0.1, None
        start = time.perf_counter()
        loss, grads = _sum_of_chunks(*given, precision="float32")
        return time.perf_counter() - start, (float(loss), grads["W"])


def measure(record, n_workers, rows, turns, trims=False, link=None):
    """Add to the record what a cluster of so many workers takes."""
    more = {"workers": n_workers} | ({"trims": True} if trims else {})
    more |= {"link": link} if link else {}
    trim = None if trims else 1 << 30
    with threadpool_limits(1), local_cluster(n_workers, trim) as client, sleeping(client, link):
        if not trims and not link:
            record["empty_call_s"][str(n_workers)] = empty_calls()
        for n_rows in rows[-1:] if trims else rows:
            record["rows"].append(by_turns(n_rows, turns) | more)
        resident = max(client.run(lambda: psutil.Process().memory_info().rss).values())
    if n_workers == 1 and not trims and not link:
        held = rows[-1] * (N_FEATURES + 8)
        record["worker_memory_bytes"] = {"resident": resident, "held": held}


@contextmanager
def local_cluster(n_workers, trim):
    """Give a client of workers with a thread each, as docs/scaling.md starts them."""
    with (
        dask.config.set({TRIM: str(trim)} if trim else {}),
        LocalCluster(n_workers, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


@contextmanager
def sleeping(client, link):
    """Let messages to holders, and their answers, take as long as on a link."""
    if link is None:
        yield
        return
    ask, delay, of_byte = holders._ask, link["delay_s"], 8 / link["bits_per_s"]

    def slow_holders():  # on a worker: they sleep at the same time
        from gpuclf.samples.holders import Holder

        answer = Holder.answer

        def late(holder, asked):
            time.sleep(2 * delay)
            return answer(holder, asked)

        Holder.answer = late

    def slow_link(shard, question):  # here: one message after another
        time.sleep(of_byte * len(question))
        answer = ask(shard, question)

        def late():
            found = answer()
            time.sleep(of_byte * len(found[0]))
            return found

        return late

    client.run(slow_holders)
    holders._ask = slow_link
    try:
        yield
    finally:
        holders._ask = ask


def empty_calls():
    few = Sharded(samples(CHUNKS), "numpy")
    few.map(nothing)
    times = []
    for _ in range(EMPTY_CALLS):
        start = time.perf_counter()
        few.map(nothing, merge=len)
        times.append(time.perf_counter() - start)
    return times


def by_turns(n_rows, turns):
    """Time an evaluation here and on the workers, and hold the bits against each other."""
    y, array = np.arange(n_rows) % N_CLASSES, samples(n_rows)
    blocks = [block.compute(scheduler="sync") for block in array.blocks]
    cases = {"here": Case(Sharded(blocks, "numpy"), y), "workers": Case(Sharded(array, "numpy"), y)}
    times, results = {name: [] for name in cases}, {}
    with cases["here"].beside, cases["workers"].beside:
        for turn in range(turns + 1):
            for name, case in cases.items():
                seconds, results[name] = case()
                if turn:  # the first one loads
                    times[name].append(seconds)
    for found, expected in zip(results["workers"], results["here"], strict=True):
        np.testing.assert_array_equal(found, expected)
    return {"samples": n_rows, "times_s": times}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tables", type=Path)
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS)
    parser.add_argument("--trims", action="store_true", help="with dask's own malloc setting")
    parser.add_argument("--try", dest="is_try", action="store_true")
    parser.add_argument("--link", type=float, nargs=2, metavar=("SECONDS", "BITS_PER_SECOND"))
    given = parser.parse_args()
    if given.tables:
        print(tables(json.loads(given.tables.read_text())), end="")
        return
    record = {"environment": environment(), "empty_call_s": {}, "rows": []}
    if given.out.exists():
        record = json.loads(given.out.read_text())
    sizes = (ROWS[:2], 2) if given.is_try else (ROWS[:3] if given.link else ROWS, TURNS)
    link = None
    if given.link:
        link = dict(zip(("delay_s", "bits_per_s"), given.link, strict=True))
    for n_workers in given.workers:
        measure(record, n_workers, *sizes, given.trims, link)
        write_json(given.out, record)


if __name__ == "__main__":
    main()
