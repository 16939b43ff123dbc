import itertools
import os
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from gpuclf.devices.cpu import blas_controller, cpu_workers, single_threaded_blas
from gpuclf.models.linear import SOFTMAX, softmax_loss_vectorized
from gpuclf.naive import softmax_loss_naive
from gpuclf.samples import walk as row_blocks
from gpuclf.samples.folding import FoldedSamples
from gpuclf.samples.walk import block_rows, concat_row_blocks, row_slices, sum_over_row_blocks

LONG_S = 120  # no test waits so long, unless what it waits for never comes


@pytest.fixture
def many_threads(monkeypatch):
    """As many threads as there are shares, however few cores the machine has."""
    with ThreadPoolExecutor(8) as pool:
        monkeypatch.setattr(row_blocks, "_thread_pool", lambda: pool)
        yield


@pytest.fixture
def three_workers(many_threads, monkeypatch):
    monkeypatch.setattr(row_blocks, "cpu_workers", lambda: 3)


@pytest.fixture
def blas_of_two_threads():
    with threadpool_limits(limits=2, user_api="blas"):
        yield


def blas_threads():
    """Return how many threads NumPy's BLAS would use now, asked of BLAS itself."""
    numpy_s = [i for i in threadpool_info() if i["user_api"] == "blas" and "numpy" in i["filepath"]]
    (threads,) = {info["num_threads"] for info in numpy_s or threadpool_info()}
    return threads


# --------------------------------------------------------------------------------- slices


@pytest.mark.parametrize(("n", "step"), [(1, 1), (1, 9), (9, 9), (10, 9), (100, 7), (5, 1)])
def test_slices_cover_every_row_once_in_order(n, step):
    slices = row_slices(n, step)
    assert [i for rows in slices for i in range(n)[rows]] == list(range(n))
    assert all(rows.stop - rows.start == step for rows in slices[:-1])
    assert all(rows.stop <= n for rows in slices)


def test_a_pass_that_fits_is_one_block(lib):
    like = lib.asarray(np.zeros(1, np.float32))
    for converted in (False, True):
        assert block_rows(like, 1000, 3072, converted=converted) == 1000


def test_a_long_pass_is_cut_into_blocks_within_the_budget(lib, monkeypatch):
    monkeypatch.setattr(row_blocks, "CPU_BLOCK_BYTES", 1 << 20)
    monkeypatch.setattr(row_blocks, "DEVICE_BLOCK_BYTES", 1 << 20)
    for dtype, n_bytes in ((np.float32, 4), (np.float64, 8)):
        rows = block_rows(lib.asarray(np.zeros(1, dtype)), 10**7, 700, converted=False)
        assert rows % 32 == 0
        assert rows * 700 * n_bytes <= 1 << 20 < (rows + 32) * 700 * n_bytes


def test_blocks_of_converted_bytes_have_a_budget_of_their_own(monkeypatch):
    monkeypatch.setattr(row_blocks, "CPU_CONVERTED_BLOCK_BYTES", 2 << 20)
    rows = block_rows(np.zeros(1, np.float32), 10**7, 1024, converted=True)
    assert rows == 512


def test_blocks_never_get_shorter_than_the_least(lib):
    like = lib.asarray(np.zeros(1))
    for converted in (False, True):
        rows = block_rows(like, 10**9, 10**9, converted=converted)
        assert rows == row_blocks.MIN_BLOCK_ROWS


# ----------------------------------------------------------------------------------- sums


@pytest.mark.essential_cases(20)
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize(("n", "step"), [(1, 4), (4, 4), (5, 4), (23, 4), (100, 7)])
def test_sums_over_blocks_equal_one_block(lib, three_workers, n, step, parallel):
    X = lib.asarray(np.random.default_rng(0).integers(-9, 9, (n, 3)).astype(np.float32))

    def partial(rows):
        return lib.xp.sum(X[rows, :], axis=0), lib.xp.sum(X[rows, :] * X[rows, :])

    whole, squares = sum_over_row_blocks(partial, n, step, parallel=parallel)
    # Whole numbers add without rounding in any order.
    np.testing.assert_array_equal(lib.to_numpy(whole), lib.to_numpy(X).sum(axis=0))
    np.testing.assert_array_equal(lib.to_numpy(squares), (lib.to_numpy(X) ** 2).sum())


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_the_order_of_additions_is_fixed_whichever_thread_ends_first(
    many_threads, monkeypatch, workers
):
    monkeypatch.setattr(row_blocks, "cpu_workers", lambda: workers)
    values = [1e16, 1.0, -1e16, 3.0, 1e-3, 1e16, 7.0, -1e16, 0.1, 1.0, 2.0]

    # Each worker adds its own stretch from left to right; then the stretches, from left to right.
    bounds = [len(values) * w // workers for w in range(workers + 1)]
    stretches = []
    for start, stop in pairwise(bounds):
        total = values[start]
        for value in values[start + 1 : stop]:
            total += value
        stretches.append(total)
    expected = stretches[0]
    for total in stretches[1:]:
        expected += total
    for order in (range(workers), range(workers)[::-1]):
        order_of_ends = []
        ended = [threading.Event() for _ in order]
        waits_for = dict(pairwise(order[::-1]))

        def partial(rows, ended=ended, waits_for=waits_for, order_of_ends=order_of_ends):
            (share,) = (w for w, a in enumerate(pairwise(bounds)) if a[0] <= rows.start < a[1])
            if share in waits_for:
                assert ended[waits_for[share]].wait(LONG_S)
            if rows.stop == bounds[share + 1]:
                order_of_ends.append(share)
                ended[share].set()
            return [np.array(values[rows.start])]

        (found,) = sum_over_row_blocks(partial, len(values), 1, parallel=True)
        assert order_of_ends == list(order)
        assert found == expected


def test_blocks_run_in_several_threads_only_when_asked(three_workers):
    for parallel, least in ((True, 2), (False, 1)):
        seen = set()
        gate = threading.Barrier(3 if parallel else 1)

        def partial(rows, seen=seen, gate=gate):
            seen.add(threading.get_ident())
            gate.wait(LONG_S)  # passes only if the threads really overlap
            return [np.zeros(1)]

        sum_over_row_blocks(partial, 3, 1, parallel=parallel)
        assert len(seen) >= least
        assert (len(seen) == 1) == (not parallel)


def test_inner_blas_is_single_threaded(three_workers, blas_of_two_threads):
    threads = []

    def partial(rows):
        threads.append(blas_threads())
        return [np.zeros(1)]

    sum_over_row_blocks(partial, 9, 1, parallel=True)
    assert threads == [1] * 9


def test_parts_are_put_together_along_the_rows(lib):
    X = lib.asarray(np.arange(2 * 11 * 3).reshape(2, 11, 3))
    for step, parallel in itertools.product((1, 4, 11, 50), (False, True)):
        together = concat_row_blocks(lambda rows: X[:, rows, :], 11, step, parallel=parallel)
        np.testing.assert_array_equal(lib.to_numpy(together), lib.to_numpy(X))


def test_scores_are_shared_by_threads_whose_products_have_one_each(three_workers, monkeypatch):
    monkeypatch.setattr(row_blocks, "CPU_BLOCK_BYTES", 1)
    together, of_blas = threading.Barrier(3), set()
    taken = FoldedSamples.block

    def block(samples, rows):
        if rows.start in (0, 100, 200):
            together.wait(LONG_S)
            # NumPy's: others, of faiss or SciPy, may have been loaded after they were looked for.
            of_blas.update(info["num_threads"] for info in blas_controller().info())
        return taken(samples, rows)

    monkeypatch.setattr(FoldedSamples, "block", block)
    X = np.random.default_rng(0).random((300, 5))
    np.testing.assert_array_equal(SOFTMAX.scores({"W": np.eye(5, 3)}, X), X[:, :3])
    assert of_blas == {1}


# ------------------------------------------------------------------------------ exceptions


@pytest.mark.parametrize("bad_row", [0, 4, 8])
def test_an_exception_in_any_thread_reaches_the_caller_and_blas_recovers(
    three_workers, blas_of_two_threads, bad_row
):
    ended, raised = [], threading.Event()
    bad_share = range(bad_row // 3 * 3, bad_row // 3 * 3 + 3)

    def partial(rows):
        if rows.start == bad_row:
            raised.set()
            raise KeyError(f"row {bad_row}")
        if rows.start not in bad_share:
            assert raised.wait(LONG_S)
            time.sleep(0.01)  # a caller who does not wait for us is caught
        ended.append(rows.start)
        return [np.zeros(1)]

    with pytest.raises(KeyError, match=f"row {bad_row}"):
        sum_over_row_blocks(partial, 9, 1, parallel=True)
    assert blas_threads() == 2
    # Nothing goes on behind the caller's back: the other shares are finished.
    assert sorted(ended) == [i for i in range(9) if i not in bad_share or i < bad_row]


# ------------------------------------------------------------------------------ BLAS threads


def test_the_callers_blas_threads_are_unchanged_after_a_call(small_blocks):
    X, y = np.ones((60, 4), np.float32), np.zeros(60, int)
    for limit in (1, 2):
        with threadpool_limits(limits=limit, user_api="blas"):
            softmax_loss_vectorized(np.zeros((4, 3), np.float32), X, y, 0.0)
            assert blas_threads() == limit


def test_overlapping_calls_leave_the_blas_threads_unchanged(blas_of_two_threads, three_workers):
    inside, early_is_over = threading.Barrier(2), threading.Event()

    def partial(rows):
        if rows.start == 0:
            inside.wait(LONG_S)  # both calls are in the middle
            if threading.current_thread().name == "late":
                assert early_is_over.wait(LONG_S)
        return [np.ones(1)]

    results = {}

    def call(name):
        (results[name],) = sum_over_row_blocks(partial, 9, 1, parallel=True)
        if name == "early":
            early_is_over.set()

    threads = [threading.Thread(target=call, args=(n,), name=n) for n in ("early", "late")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    assert {name: total.item() for name, total in results.items()} == {"early": 9, "late": 9}
    assert blas_threads() == 2


def test_single_threaded_blas_nests_and_recovers_from_exceptions(blas_of_two_threads):
    with single_threaded_blas():
        with pytest.raises(ZeroDivisionError), single_threaded_blas():
            1 / 0  # noqa: B018
        assert blas_threads() == 1
    assert blas_threads() == 2


def test_the_number_of_workers_is_the_same_within_a_limit_of_our_own(blas_of_two_threads):
    with single_threaded_blas():
        assert cpu_workers() == 2
    with threadpool_limits(limits=1, user_api="blas"), single_threaded_blas():
        assert cpu_workers() == 1


def test_many_callers_at_once_get_the_same_bits(small_blocks, blas_of_two_threads):
    rng = np.random.default_rng(0)
    X, W, y = rng.normal(size=(200, 6)), rng.normal(size=(6, 3)), rng.integers(0, 3, 200)
    expected, gradient = softmax_loss_vectorized(W, X, y, 0.1)
    np.testing.assert_allclose(expected, softmax_loss_naive(W, X, y, 0.1)[0], rtol=1e-12)
    failures = []

    def call():
        for _ in range(5):
            loss, dW = softmax_loss_vectorized(W, X, y, 0.1)
            if loss != expected or not np.array_equal(dW, gradient):
                failures.append(loss)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    assert not failures
    assert blas_threads() == 2


def test_a_call_gives_the_same_bits_while_another_is_running(blas_of_two_threads, monkeypatch):
    monkeypatch.setattr(row_blocks, "CPU_BLOCK_BYTES", 1)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(1000, 20)).astype(np.float32)
    W, y = rng.normal(size=(20, 10)).astype(np.float32), rng.integers(0, 10, 1000)
    alone, alone_dW = softmax_loss_vectorized(W, X, y, 0.1)
    with single_threaded_blas():  # as during another thread's call
        loss, dW = softmax_loss_vectorized(W, X, y, 0.1)
    assert loss == alone
    np.testing.assert_array_equal(dW, alone_dW)


# ------------------------------------------------------------------------ memory and forks


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_full_pass_over_cifar_takes_less_than_64_megabytes(dtype):
    X = np.zeros((50_000, 3072), dtype)  # zero pages: takes no memory until written to
    y, W = np.zeros(50_000, int), np.zeros((3072, 10), np.float32)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        loss, _ = softmax_loss_vectorized(W, X, y, 0.0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < 64e6
    assert loss == pytest.approx(np.log(10), rel=1e-6)  # float32 weights 1/N


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_can_compute_after_its_parent_did():
    script = """
        import os, signal, warnings
        import numpy as np
        from gpuclf.samples import walk as row_blocks
        from gpuclf.models.linear import softmax_loss_vectorized
        warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads, Python 3.12
        row_blocks.cpu_workers = lambda: 3
        row_blocks.CPU_BLOCK_BYTES = 1
        X = np.arange(800.0).reshape(200, 4) / 800
        W, y = np.arange(12.0).reshape(4, 3), np.arange(200) % 3
        loss, dW = softmax_loss_vectorized(W, X, y, 0.1)
        assert row_blocks._thread_pool.cache_info().currsize == 1  # the parent used the pool
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            again, again_dW = softmax_loss_vectorized(W, X, y, 0.1)
            same = again == loss and np.array_equal(again_dW, dW)
            os._exit(0 if same else 3)
        _, status = os.waitpid(child, 0)
        assert status == 0, status
        assert softmax_loss_vectorized(W, X, y, 0.1)[0] == loss  # the parent goes on
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=LONG_S,
        check=False,
    )
    assert run.returncode == 0, run.stderr


# ---------------------------------------------------------------------------- out of memory


def limited(most_rows, attempts):
    def part(rows):
        attempts.append(rows.stop - rows.start)
        if rows.stop - rows.start > most_rows:
            raise MemoryError("Out of memory allocating 9,000 bytes")
        return np.arange(rows.start, rows.stop, dtype=float)[:, None]

    return part


def test_blocks_are_halved_until_they_fit_the_memory():
    attempts = []
    part = limited(100, attempts)
    np.testing.assert_array_equal(concat_row_blocks(part, 400, 400)[:, 0], np.arange(400))
    assert attempts == [400, 200, 100, 100, 100, 100]
    for parallel in (False, True):
        (total,) = sum_over_row_blocks(
            lambda rows: (part(rows).sum(axis=0),), 400, 400, parallel=parallel
        )
        np.testing.assert_array_equal(total, [np.arange(400).sum()])


def test_where_the_shortest_blocks_do_not_fit_the_error_names_the_bytes(monkeypatch):
    monkeypatch.setattr(row_blocks, "free_device_bytes", lambda: 5_000)
    attempts = []
    message = r"32 rows either \(Out of memory allocating 9,000 bytes; 5,000 bytes are f"
    with pytest.raises(MemoryError, match=message) as caught:
        concat_row_blocks(
            lambda rows: concat_row_blocks(limited(8, attempts), rows.stop - rows.start, 64), 99, 99
        )
    assert attempts == [64, 32]  # the outer walk does not try what the inner one gave up
    assert str(caught.value).count("Out of memory") == 1


def test_other_errors_are_not_tried_again():
    attempts = []

    def part(rows):
        attempts.append(rows)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        concat_row_blocks(part, 400, 400)
    assert len(attempts) == 1


def test_a_pass_at_interpreter_exit_gives_what_it_gave_before():
    script = textwrap.dedent("""
        import atexit
        import numpy as np
        import gpuclf
        from gpuclf.samples import walk

        walk.CPU_BLOCK_BYTES = 1
        walk.cpu_workers = lambda: 3
        X, y = np.random.default_rng(0).random((200, 5)), np.arange(200) % 3

        def gradient():
            return gpuclf.softmax_loss_vectorized(np.zeros((5, 3)), X, y, 0.0)[1].tobytes()

        before = gradient()

        def compute():
            print("same" if gradient() == before else "different")

        atexit.register(compute)
    """)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (run.returncode, run.stdout.strip(), run.stderr) == (0, "same", "")


def test_shares_that_no_thread_takes_are_computed_in_their_order(monkeypatch):
    class Ended:
        def submit(self, *_):
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    monkeypatch.setattr(row_blocks, "_thread_pool", Ended)
    parts = row_blocks.map_row_blocks(lambda rows: rows.start, 90, 10, workers=3)
    assert parts == list(range(0, 90, 10))
