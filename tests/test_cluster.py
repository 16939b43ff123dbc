"""On dask's workers the bits are those of the same chunks in one process, whoever is lost."""

import json
import multiprocessing
import os
import pickle
import signal
import threading
from contextvars import copy_context

import joblib
import numpy as np
import pytest
import sklearn
from test_estimators import make_data, make_pixels
from test_search_on_workers import assert_found_the_same, found_by, search
from test_sharded import LENGTHS, in_chunks, lbfgs
from threadpoolctl import threadpool_limits
from typer.testing import CliRunner

import gpuclf
from gpuclf import KNeighborsClassifier, Sharded, SoftmaxClassifier, Standardized
from gpuclf import TwoLayerNetClassifier as Net
from gpuclf.cli import app
from gpuclf.estimators import fleet_tasks
from gpuclf.models import SOFTMAX
from gpuclf.samples import holders
from gpuclf.training.lbfgs import _sum_of_chunks

# Workers are forked from a process that has imported what they need; so one that is killed is soon
# back.
os.environ.setdefault("DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD", "forkserver")
da = pytest.importorskip("dask.array", reason="dask is not installed (extra cluster)")
distributed = pytest.importorskip("distributed", reason="distributed is missing (extra cluster)")

pytestmark = [
    # What dask leaves behind at its end is dask's.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def started(n_workers, **options):
    cluster = distributed.LocalCluster(
        n_workers=n_workers, threads_per_worker=1, dashboard_address=":0", **options
    )
    return cluster, distributed.Client(cluster, set_as_default=False)


@pytest.fixture(scope="module")
def processes():
    """Start two processes, once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["distributed", "gpuclf.cli", "gpuclf.search", "numba"])
    cluster, client = started(2, processes=True)
    with cluster, client:
        yield client


@pytest.fixture(scope="module")
def thread():
    """Start a worker that is a thread here, and is talked to as any other."""
    cluster, client = started(1, processes=False, protocol="tcp")
    with cluster, client:
        yield client


@pytest.fixture
def two_workers(processes):
    """Give a client of two processes, both alive."""
    processes.wait_for_workers(2, timeout=60)
    with processes.as_current():
        yield processes


@pytest.fixture
def one_worker(thread):
    """Give a client of one worker."""
    with thread.as_current():
        yield thread


@pytest.fixture
def workers(request):
    """Give a client of one worker or two."""
    return request.getfixturevalue(request.param)


one_and_two = pytest.mark.parametrize("workers", ["two_workers", "one_worker"], indirect=True)


def on_cluster(X, lengths=LENGTHS, **options):
    return Sharded(da.from_array(X, chunks=(lengths, -1)), "numpy", **options)


def bits_of(samples, X, y, queries):
    """Return what every use of sharded samples gives, with a thread a worker."""
    scaled = Standardized.fit(samples)
    params = {"W": np.linspace(-1, 1, 18).reshape(6, 3), "b": np.arange(3.0)}
    with samples.beside(y, None):
        args = SOFTMAX, params, scaled, y, 0.1, None
        loss, grads = _sum_of_chunks(*args, precision="float64")
    softmax, net = lbfgs(max_iter=10).fit(samples, y), lbfgs(Net, hidden_size=4, max_iter=5)
    net.fit(samples, y, np.linspace(0, 1, len(y)))
    neighbours = KNeighborsClassifier(35).fit(samples, y)  # longer than three of the chunks
    return [
        *(scaled.mean, scaled.scale, loss, *grads.values()),
        *(*softmax.params_.values(), *net.params_.values(), softmax.loss_history_),
        *(softmax.predict(samples), softmax.decision_function(samples)),
        *(softmax.score(samples, y), *neighbours.kneighbors(queries)),
        neighbours.predict(queries),
    ]


def assert_same_bits(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.filterwarnings("ignore:L-BFGS stopped at max_iter")
@one_and_two
@pytest.mark.parametrize("samples", [make_pixels, pytest.param(make_data, marks=pytest.mark.slow)])
def test_workers_give_the_bits_of_one_process(workers, samples):
    X, y = samples()
    queries = X[::7]
    with threadpool_limits(1):
        expected = bits_of(Sharded(in_chunks(X), "numpy"), X, y, queries)
        found = bits_of(on_cluster(X), X, y, queries)
    assert_same_bits(found, expected)


def test_labels_and_weights_may_be_of_dask_and_cut_otherwise(one_worker):
    X, y = make_data()
    weights = np.linspace(0.5, 1, len(y))
    of_dask = [da.from_array(values, chunks=13) for values in (y, weights)]
    found = lbfgs().fit(on_cluster(X), *of_dask)
    expected = lbfgs().fit(Sharded(in_chunks(X)), y, weights)
    np.testing.assert_allclose(found.params_["W"], expected.params_["W"], atol=1e-12)
    assert found.score(on_cluster(X), *of_dask) == expected.score(X, y, weights)
    model = KNeighborsClassifier(3).fit(on_cluster(X), of_dask[0])
    assert model.score(X, of_dask[0]) == KNeighborsClassifier(3).fit(X, y).score(X, y)
    with pytest.raises(ValueError, match=r"y must have shape \(90,\), one value .*got \(80,\)"):
        lbfgs().fit(on_cluster(X), of_dask[0][:80])


# ------------------------------------------------------------------------------ who is lost


def kill(client, place=0):
    """Kill one of the workers, as the kernel does where memory runs out."""
    pids = client.run(os.getpid, on_error="ignore")
    os.kill(sorted(pids.items())[place % len(pids)][1], signal.SIGKILL)


def dying_once(flag, then):
    """Return a function that kills its process first, sent by value: workers know no tests."""

    def function(*args):
        import os
        import signal

        if not os.path.exists(flag):  # noqa: PTH110
            open(flag, "w").close()  # noqa: PTH123
            os.kill(os.getpid(), signal.SIGKILL)
        return then(*args)

    return function


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [[2], pytest.param([2, 4], marks=pytest.mark.nightly)])
def test_a_worker_that_is_killed_in_a_fit_changes_no_bit(two_workers, epochs):
    X, y = make_data()
    with threadpool_limits(1):
        expected = lbfgs().fit(Sharded(in_chunks(X), "numpy"), y)
    model = lbfgs()
    killed = []

    def callback(epoch, history):
        if epoch in epochs:  # and what has taken its place, or the other
            kill(two_workers, place=len(killed))
            killed.append(epoch)

    model.fit(on_cluster(X), y, callback=callback)
    assert killed == epochs
    assert model.loss_history_ == expected.loss_history_
    assert_same_bits(model.params_.values(), expected.params_.values())


@pytest.mark.slow
def test_a_worker_that_dies_of_a_call_is_replaced(two_workers, tmp_path):
    X, _ = make_data()
    flag = tmp_path / "flag"
    found = on_cluster(X).map(dying_once(str(flag), lambda chunk: chunk.X))
    assert_same_bits(found, in_chunks(X))
    assert flag.exists()


@pytest.mark.parametrize("n_lost", [2, 3])
@pytest.mark.parametrize("what", ["take", "apply"])
def test_a_call_is_tried_three_times(one_worker, monkeypatch, what, n_lost):
    X, y = make_data()
    calls, ask = [], holders._ask

    def lost(shard, question):
        if pickle.loads(question)[0] == what:
            calls.append(what)
            if len(calls) <= n_lost:
                return unreachable
        return ask(shard, question)

    monkeypatch.setattr(holders, "_ask", lost)
    samples = on_cluster(X)
    with samples.beside(y):
        if n_lost < 3:
            assert_same_bits(samples.map(samples_of), in_chunks(X))
            n_calls = len(calls)
            samples.map(samples_of)
            assert len(calls) - n_calls == (what == "apply")  # labels are handed out once
            return
        with pytest.raises(RuntimeError, match=r"lost in each of 3 tries.*memory_limit="):
            samples.map(samples_of)


def unreachable():
    raise OSError("Unable to contact Actor's worker")


def samples_of(chunk):
    return chunk.X


@pytest.mark.slow
def test_samples_that_only_the_lost_worker_had_are_named(two_workers):
    X, y = make_data()
    worker = sorted(two_workers.nthreads())[0]
    future = two_workers.scatter(X, workers=[worker], hash=False)
    array = da.from_delayed(future, X.shape, X.dtype) + 0
    samples = Sharded(array.rechunk((LENGTHS, -1)), "numpy")
    model = lbfgs().fit(samples, y)
    pids = two_workers.run(os.getpid)
    for pid in pids.values():  # the holders too
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"of X is lost and cannot be made again.*from_zarr"):
        model.predict(samples)


@pytest.fixture
def no_workers():
    """Give a client that has nobody to ask."""
    cluster, client = started(0, processes=False)
    with cluster, client, client.as_current():
        yield client


def test_without_a_worker_nobody_waits_for_ever(no_workers, monkeypatch):
    X, y = make_data()
    with pytest.raises(TimeoutError, match=r"no worker after 0\.2 seconds: start"):
        on_cluster(X, timeout=0.2).map(len)
    monkeypatch.setattr(fleet_tasks, "SECONDS_FOR_WORKERS", 0.1)
    for n_jobs in (-1, None):
        with (
            joblib.parallel_config("dask", client=no_workers),
            pytest.raises(TimeoutError, match=r"no worker after 0\.1 seconds: start"),
        ):
            search(n_jobs=n_jobs).fit(X, y)


def become(dask_worker, name):
    dask_worker.memory_manager.memory_pause_fraction = 0.001 if name == "paused" else 0.8
    dask_worker.status = type(dask_worker.status)[name]


def read_and_pause():
    become(distributed.get_worker(), "paused")
    return np.ones((5, 2))


@pytest.mark.parametrize("when", ["before", "while loading"])
def test_while_all_workers_have_paused_nobody_waits_for_ever(one_worker, when):
    import dask

    X = da.from_delayed(dask.delayed(read_and_pause)(), (5, 2), float)
    samples = Sharded(X, "numpy", timeout=0.2)
    if when == "before":
        one_worker.run(become, name="paused")
    try:
        with pytest.raises(RuntimeError, match=r"all workers have paused.*memory_limit="):
            samples.map(len)
    finally:
        one_worker.run(become, name="running")
    assert on_cluster(make_data()[0]).map(samples_of)


class UnreadableError(Exception):
    def __reduce__(self):
        return fails, (None,)


def raises_unreadable(chunk):
    raise UnreadableError("as it is")


def raises_unsendable(chunk):
    error = OSError("as it is")
    error.lock = threading.Lock()
    raise error


def gives_a_lock(chunk):
    return threading.Lock()


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ([raises_unreadable], RuntimeError, "a worker raised UnreadableError: as it is"),
        ([raises_unsendable], RuntimeError, "a worker raised OSError: as it is"),
        ([gives_a_lock], TypeError, "lock"),
        ([len, threading.Lock()], TypeError, "lock"),
    ],
)
def test_what_cannot_be_sent_or_read_is_an_error_and_no_wait(one_worker, asked, error, message):
    samples, raised = on_cluster(make_data()[0]), []

    def ask():
        try:
            samples.map(*asked)
        except Exception as found:
            raised.append(found)

    with one_worker.as_current():
        thread = threading.Thread(target=copy_context().run, args=(ask,), daemon=True)
        thread.start()
        thread.join(60)
    assert [type(found) for found in raised] == [error]
    assert message in str(raised[0])


# ------------------------------------------------------------------------------------ searches


@one_and_two
@pytest.mark.parametrize("factor", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_a_search_on_workers_finds_what_is_found_here(workers, factor):
    X, y = make_data(n=90)
    weights = np.linspace(0.5, 1, len(y)) if factor else None
    expected = found_by(search(factor=factor), X, y, sample_weight=weights)

    def score(model, X, y, sample_weight=None):  # by value: workers know no tests
        import distributed
        import sklearn

        distributed.get_worker()  # raises where this is no worker
        assert sklearn.get_config()["assume_finite"]  # as where the search is
        return model.score(X, y, sample_weight)

    with joblib.parallel_config("dask"), sklearn.config_context(assume_finite=True):
        spread = search(factor=factor, n_jobs=None if factor else -1, scoring=score)
        assert_found_the_same(found_by(spread, X, y, sample_weight=weights), expected)


def test_a_search_on_other_workers_or_without_its_samples_says_so(one_worker, monkeypatch):
    X, y = make_data(n=90)
    monkeypatch.setattr(holders, "_versions_here", lambda: {"numpy": "9.9"})
    with (
        joblib.parallel_config("dask"),
        pytest.raises(RuntimeError, match=r"has numpy .*, and 9\.9 is here"),
    ):
        search(n_jobs=-1).fit(X, y)
    monkeypatch.undo()
    scatter = one_worker.scatter

    def forget(*args, **options):
        future = scatter(*args, **options)
        one_worker.cancel(future, force=True)
        return future

    monkeypatch.setattr(one_worker, "scatter", forget)
    with (
        joblib.parallel_config("dask"),
        pytest.raises(RuntimeError, match=r"the samples of the search are lost.*memory_limit="),
    ):
        search(n_jobs=-1).fit(X, y)


@pytest.mark.slow
def test_the_command_line_searches_on_a_scheduler(two_workers, tmp_path, monkeypatch):
    X, y = gpuclf.datasets.make_synthetic(300)
    few = gpuclf.datasets.ImageDataset(
        *(X, y, X, y), class_names=tuple("0123456789"), image_shape=(3, 32, 32)
    )
    monkeypatch.setattr(gpuclf.datasets, "load_dataset", lambda *_: few)
    sizes = ["--rounds", "1", "--candidates", "2", "--epochs", "1", "--samples", "200"]
    command = ["search", "softmax", "--data", "synthetic", "--backend", "numpy", *sizes]
    found = []
    for more in ([], ["--scheduler", two_workers.scheduler.address]):
        path = tmp_path / f"{len(more)}.json"
        ended = CliRunner().invoke(app, [*command, *more, "--json", str(path)])
        assert ended.exit_code == 0, ended.output
        rows = json.loads(path.read_text())["results"]
        found.append([(row["params"], row["val_accuracy"]) for row in rows])
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_search_outlives_a_worker(two_workers, tmp_path):
    X, y = make_data(n=90)
    flag = tmp_path / "flag"
    score = dying_once(str(flag), lambda model, X, y: model.score(X, y))
    expected = found_by(search(), X, y)
    with joblib.parallel_config("dask"):
        assert_found_the_same(found_by(search(n_jobs=-1, scoring=score), X, y), expected)
    assert flag.exists()


# ----------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("read", [(29, 6, "f8"), (1, 6, "f8"), (30, 5, "f8"), (30, 6, "i8")])
def test_chunks_that_are_not_what_x_says_are_named(one_worker, read):
    import dask

    *shape, dtype = read
    chunks = [
        da.from_delayed(dask.delayed(np.ones)(shape, dtype), (30, 6), np.float64)
        for shape, dtype in [((30, 6), "f8"), (shape, dtype)]
    ]
    said = rf"chunk 1 of X is a ndarray \w+ \({shape[0]}, {shape[1]}\), .* float64 \(30, 6\): say"
    with pytest.raises(ValueError, match=said):
        Sharded(da.concatenate(chunks), "numpy").map(samples_of)


def test_arrays_of_dask_that_are_cut_or_made_otherwise_are_refused():
    X, _ = make_data()
    whole = da.from_array(X, chunks=(40, -1))
    with pytest.raises(ValueError, match=r"cut between features, into 2 parts.*rechunk\(\{1: -1\}"):
        Sharded(whole.rechunk((40, 3)))
    Sharded(whole.rechunk((40, 3)).rechunk({1: -1}))
    unknown = whole[whole[:, 0] > 0]
    with pytest.raises(ValueError, match=r"not known: X.compute_chunk_sizes\(\) finds them"):
        Sharded(unknown)
    Sharded(unknown.compute_chunk_sizes())
    empty = whole.map_blocks(lambda X: X[:0], chunks=((0, 0, 0), 6))
    empty = da.Array(empty.dask, empty.name, ((40, 0, 50), (6,)), empty.dtype)
    with pytest.raises(ValueError, match=r"chunk 1 is empty: leave empty chunks out, X.rechunk"):
        Sharded(empty)
    Sharded(empty.rechunk({0: tuple(n for n in empty.chunks[0] if n)}))
    images = da.zeros((6, 2, 2, 3), chunks=(3, -1, -1, -1), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"flatten images with X.reshape\(X.shape\[0\], -1\)"):
        Sharded(images)
    assert Sharded(images.reshape(images.shape[0], -1)).shape == (6, 12)
    with pytest.raises(TypeError, match=r"got int64; convert it with X.astype\('float32'\)"):
        Sharded(whole.astype(np.int64))


def test_a_bare_array_of_dask_is_not_pulled_here():
    X, y = make_data()
    bare = da.from_array(X, chunks=(40, -1))
    for taken in (
        lambda: SoftmaxClassifier().fit(bare, y),
        lambda: KNeighborsClassifier().fit(bare, y),
        lambda: SoftmaxClassifier(max_iter=1).fit(X, y).predict(bare),
        lambda: Standardized.fit(bare),
        lambda: gpuclf.softmax_loss_vectorized(np.zeros((6, 3)), bare, y, 0.0),
    ):
        with pytest.raises(TypeError, match=r"of dask, and would be .* gpuclf.Sharded\("):
            taken()
    with pytest.raises(TypeError, match="y is of dask"):
        SoftmaxClassifier().fit(X, da.from_array(y))


def test_without_a_client_the_message_has_two():
    with pytest.raises(ValueError, match=r"no client of dask: .*client = Client\(\)"):
        on_cluster(make_data()[0]).map(len)


def test_workers_of_another_version_or_too_little_memory_are_refused(one_worker, monkeypatch):
    X, y = make_data()
    (fact,) = holders.facts_of(one_worker, 5.0).values()
    limits = one_worker.run(lambda dask_worker: dask_worker.memory_manager.memory_limit)
    assert [fact["memory"]] == [int(0.8 * limit) for limit in limits.values()]  # it pauses there
    assert fact["threads"] == 1
    assert fact["on_host"]
    small = {worker: fact | {"memory": 1500} for worker in limits}
    monkeypatch.setattr(holders, "facts_of", lambda *_: small)
    with pytest.raises(ValueError, match=r"chunk 0 of X has 1,920 bytes.*rechunk\(\{0: 7\}\)"):
        lbfgs().fit(on_cluster(X), y)
    with pytest.raises(ValueError, match=r"X has 4,320 bytes, and all workers together .* 1,500"):
        lbfgs().fit(on_cluster(X, (30, 30, 30)), y)
    for fact in small.values():  # what lies on GPUs is none of the host's
        fact["on_host"] = False
    assert on_cluster(X, (30, 30, 30)).map(samples_of)
    monkeypatch.undo()
    monkeypatch.setattr(holders, "_versions_here", lambda: {"numpy": "9.9"})
    with pytest.raises(RuntimeError, match=r"has numpy .*, and 9\.9 is here.*numpy==9\.9 there"):
        lbfgs().fit(on_cluster(X), y)


def test_an_error_of_the_samples_is_no_lost_worker(one_worker):
    def broken():
        raise OSError("no such file")

    import dask

    X = da.from_delayed(dask.delayed(broken)(), (5, 2), float)
    with pytest.raises(OSError, match="no such file"):
        Sharded(X, "numpy").map(len)
    X = da.from_array(np.full((5, 2), np.nan), chunks=(2, 2))
    with pytest.raises(ValueError, match="X has NaN"):
        Standardized.fit(Sharded(X, "numpy"))
    with pytest.raises(ZeroDivisionError):
        on_cluster(make_data()[0]).map(fails)


def fails(chunk):
    return 1 / 0


def test_chunks_are_read_by_those_that_hold_them(two_workers):
    import dask

    def moved(dask_worker):
        return sum(transfer["total"] for transfer in dask_worker.transfer_incoming_log)

    parts = [dask.delayed(np.full)((50, 6), float(n)) for n in range(8)]
    chunks = [da.from_delayed(part, (50, 6), np.float64) for part in parts]
    before = two_workers.run(moved)
    samples = Sharded(da.concatenate(chunks), "numpy")
    assert samples.map(len) == [3] * 8
    assert len(samples._holders._shards) == 2
    assert two_workers.run(moved) == before


@pytest.mark.nightly
@pytest.mark.slow
def test_persisted_chunks_are_held_where_they_are(two_workers):
    X, y = make_data()
    array = da.from_array(X, chunks=((45, 45), -1)).persist()
    distributed.wait(array)
    where = {key: set(at) for key, at in two_workers.who_has(array).items()}
    samples = Sharded(array, "numpy")
    lbfgs().fit(samples, y)
    for shard in samples._holders._shards:
        for number in shard.numbers:
            assert shard.worker in where[array.__dask_keys__()[number][0]]
