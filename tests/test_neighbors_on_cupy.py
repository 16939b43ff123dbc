"""Distances between bytes and the nearest neighbours, run on the CPU: every bit as on NumPy."""

import numpy as np
import pytest
from cuda_on_cpu import ORDERS, CudaOnCpuError, with_hidden_arrays
from cuda_on_cpu.compilation import compile_together

from gpuclf import KNeighborsClassifier, dispatch
from gpuclf.arrays import to_host
from gpuclf.devices.backends import to_device
from gpuclf.devices.cupy import probe_cupy
from gpuclf.kernels.building import cuda as cuda_modules
from gpuclf.kernels.nearest import on_gpu as neighbors_on_cupy
from gpuclf.kernels.nearest.on_gpu import (
    MAX_NEIGHBORS,
    manhattan_of_bytes,
    nearest_of_bytes,
    squared_euclidean_of_bytes,
)
from gpuclf.models import neighbors
from gpuclf.models.distances import manhattan, squared_euclidean
from gpuclf.models.neighbors import k_neighbors, nearest_in_tiles

DISTANCES = {
    "l2": (with_hidden_arrays(squared_euclidean_of_bytes), squared_euclidean.reference),
    "l1": (with_hidden_arrays(manhattan_of_bytes), manhattan.reference),
}


@pytest.fixture(params=["l2", "l1", "l2 without tensor cores"])
def metric(request, cuda_on_cpu):
    """Set the device up, and return the metric."""
    if request.param.endswith("cores"):
        cuda_on_cpu.limits = cuda_modules.DeviceLimits(75, 3, 64 << 10)
    return request.param[:2]


def samples(n, m, d, seed=0):
    """Return two sets of bytes in which rows and columns differ, with some rows in common."""
    rng = np.random.default_rng([seed, n, m, d])
    A, B = (rng.integers(0, rng.integers(2, 257, d), (rows, d)).astype(np.uint8) for rows in (n, m))
    B[:: max(2, m // 5)] = A[0]
    return A, B


def extremes(n, m, d):
    """Return all zeros or all 255, and rows that are nearly so."""
    rng = np.random.default_rng(0)
    A, B = (np.where(rng.random((rows, 1)) < 0.5, 255, 0) for rows in (n, m))
    A, B = (np.repeat(x, d, axis=1).astype(np.uint8) for x in (A, B))
    A[0], B[-1], B[0] = 255, 0, 255
    A[-1, 0] ^= 1
    return A, B


def naive(A, B, metric):
    differences = np.abs(A[:, None, :].astype(np.int64) - B[None, :, :])
    return (differences**2 if metric == "l2" else differences).sum(axis=-1)


def check_distances(device, metric, A, B, orders=ORDERS):
    fast, reference = DISTANCES[metric]
    expected = reference(A, B)
    for order in orders:
        device.order = order
        found = fast(A, B)
        assert found.dtype == expected.dtype == np.int32
        np.testing.assert_array_equal(found, expected)


def nearest(A, B, k, metric, tile=7, count=lambda n: None):
    return with_hidden_arrays(nearest_of_bytes)(A, B, k, metric, tile, 1 << 20, count)


def check_nearest(device, metric, A, B, k, tile=7, orders=ORDERS):
    """Compare with sorting the whole matrix; `tile` * 8 columns are taken at a time."""
    matrix = naive(A, B, metric)
    indices = np.argsort(matrix, axis=1, kind="stable")[:, :k]
    ranks = np.take_along_axis(matrix, indices, axis=1)
    body = nearest_in_tiles.reference(A, B, k, metric, tile, 1 << 20, lambda n: None)
    for order in orders:
        device.order = order
        for found, expected, of_body in zip(
            nearest(A, B, k, metric, tile), (ranks, indices), body, strict=True
        ):
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(of_body, expected)


def test_norms_are_computed_once_for_all_queries(cuda_on_cpu, monkeypatch):
    A, B = samples(40, 60, 64)
    monkeypatch.setitem(nearest_in_tiles.kernels, "numpy", (nearest_of_bytes,))
    monkeypatch.setattr(neighbors, "cpu_workers", lambda: 1)
    found = k_neighbors(A, B, 3, memory_budget=60_000)
    launches = cuda_on_cpu.launches
    blocks, tiles = 2, 1
    assert launches.count("multiply_bytes") == blocks * tiles
    assert launches.count("squared_norms") == blocks + tiles  # of queries, of training samples
    monkeypatch.setitem(nearest_in_tiles.kernels, "numpy", ())
    for ours, theirs in zip(found, k_neighbors(A, B, 3), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("given", "free", "expected"),  # in MiB
    [(256, 100 << 10, 2 << 10), (256, 4 << 10, 1 << 10), (256, 0, 256), (255, 100 << 10, 255)],
)
def test_a_gpu_gives_bytes_a_larger_budget_unless_one_is_asked_for(
    monkeypatch, given, free, expected
):
    given, free, expected = given << 20, free << 20, expected << 20
    budgets = []
    tiles = neighbors._tiles
    monkeypatch.setattr(neighbors, "_tiles", lambda *a: budgets.append(a[-1]) or tiles(*a))
    monkeypatch.setattr(neighbors, "library_name", lambda x: "cupy")
    monkeypatch.setattr(neighbors, "free_device_bytes", lambda like: free)
    for dtype in (np.uint8, np.float32):
        k_neighbors(*(x.astype(dtype) for x in samples(3, 4, 16)), 2, memory_budget=given)
    assert budgets == [expected, given]


# ------------------------------------------------------------------------------- distances


@pytest.mark.essential_cases(4)
@pytest.mark.parametrize(
    ("n", "m", "d"),
    [
        (1, 1, 1),
        (1, 2, 16),
        (3, 257, 48),
        (129, 5, 33),
        (33, 65, 63),
        (64, 130, 64),
        (17, 255, 65),
        (40, 30, 80),
        (130, 259, 320),
    ],
)
def test_distances_of_ragged_sizes(cuda_on_cpu, metric, n, m, d):
    orders = ORDERS if n * m * d < 1 << 20 else ["reversed"]
    check_distances(cuda_on_cpu, metric, *samples(n, m, d), orders=orders)


def test_the_kernel_for_the_device_is_launched(cuda_on_cpu):
    A, B = samples(3, 4, 16)
    for limits, kernel in [
        (cuda_modules.DeviceLimits(75, 40, 64 << 10), "squared_distances"),
        (cuda_modules.DeviceLimits(80, 108, 163 << 10), "multiply_bytes"),
        (cuda_modules.DeviceLimits(120, 84, 99 << 10), "multiply_bytes"),
        (cuda_modules.DeviceLimits(90, 132, 64 << 10), "squared_distances"),
    ]:
        cuda_on_cpu.limits = limits
        squared_euclidean_of_bytes(A, B)
        assert cuda_on_cpu.launches[-1] == kernel
    manhattan_of_bytes(A, B)
    assert cuda_on_cpu.launches[-1] == "absolute_distances"


def test_the_largest_distances_of_cifar_images(cuda_on_cpu, metric):
    A, B = extremes(3, 6, 3072)
    expected = 3072 * (255**2 if metric == "l2" else 255)
    assert DISTANCES[metric][1](A, B).max() == expected
    check_distances(cuda_on_cpu, metric, A, B, orders=["forward"])


@pytest.mark.slow
def test_norms_beyond_31_bits_cancel(cuda_on_cpu):
    # 33,000 * 255**2 is just below 2**31, so both norms together are beyond an int32.
    A, B = extremes(2, 3, 33_000)
    for capability in (75, 90):
        cuda_on_cpu.limits = cuda_modules.DeviceLimits(capability, 3, 227 << 10)
        check_distances(cuda_on_cpu, "l2", A, B, orders=["shuffled"])


def test_rows_at_any_address_and_stride(cuda_on_cpu, metric):
    A, B = samples(9, 20, 64)
    raw = np.zeros(9 * 64 + 16, np.uint8)
    shifted = raw[5 : 5 + 9 * 64].reshape(9, 64)
    shifted[:] = A
    strided = np.repeat(B, 2, axis=1)[:, ::2]
    for X in (shifted, strided):
        X.flags.writeable = False
    check_distances(cuda_on_cpu, metric, shifted, strided)
    columns_first = [np.asfortranarray(x[:, :63]) for x in (A, B)]  # one byte short of a vector
    check_distances(cuda_on_cpu, metric, *columns_first)


# ----------------------------------------------------------------------------- the nearest


def test_tiles_of_every_metric(cuda_on_cpu, metric):
    check_nearest(cuda_on_cpu, metric, *samples(6, 90, 40), k=33, tile=5, orders=["shuffled"])
    check_nearest(cuda_on_cpu, metric, *samples(2, 40, 20), k=3, orders=["reversed"])


# Distances of either metric are merged by the same kernel; L1 takes the CPU the least time.


@pytest.mark.essential_cases(3)
@pytest.mark.parametrize("k", [1, 2, 31, 32, 33, 64, 65, 100, 128])
def test_nearest_of_random_bytes(cuda_on_cpu, k):
    check_nearest(cuda_on_cpu, "l1", *samples(6, 300, 40), k, tile=11, orders=["shuffled"])


@pytest.mark.essential_cases(2)
@pytest.mark.parametrize("tile", [1, 4, 5, 100])
def test_tiles_smaller_and_larger_than_k(cuda_on_cpu, tile):
    check_nearest(cuda_on_cpu, "l1", *samples(5, 77, 20), 12, tile=tile)


@pytest.mark.parametrize("m", [1, 2, 40, 128])
def test_all_samples_in_order(cuda_on_cpu, m):
    check_nearest(cuda_on_cpu, "l1", *samples(7, m, 24), k=m, tile=5)


def test_equal_images_come_by_index(cuda_on_cpu):
    A, B = np.full((3, 32), 7, np.uint8), np.full((300, 32), 7, np.uint8)
    check_nearest(cuda_on_cpu, "l1", A, B, k=40)
    B[::2] = 9
    check_nearest(cuda_on_cpu, "l1", A, B, k=100)


@pytest.mark.parametrize("falling", [True, False])
def test_sorted_distances(cuda_on_cpu, falling):
    values = np.arange(255, dtype=np.uint8)
    B = np.repeat((values[::-1] if falling else values)[:, None], 16, axis=1)
    check_nearest(cuda_on_cpu, "l1", np.zeros((2, 16), np.uint8), B, k=50, tile=9)


@pytest.mark.slow
def test_few_different_distances(cuda_on_cpu):
    rng = np.random.default_rng(1)
    A, B = (rng.integers(0, 2, (rows, 5), dtype=np.uint8) for rows in (10, 600))
    check_nearest(cuda_on_cpu, "l1", A, B, k=90, tile=13)


def test_extremes(cuda_on_cpu):
    check_nearest(cuda_on_cpu, "l1", *extremes(2, 40, 3072), k=33, tile=3, orders=["forward"])


@pytest.mark.parametrize(("d", "pairs"), [(32, 8), (33, 1)])
def test_memory_is_what_the_tiles_may_take(cuda_on_cpu, monkeypatch, d, pairs):
    A, B = samples(10, 200, d)
    allocated, counts = [], []
    empty = cuda_on_cpu.empty

    def recorded(*args, **options):
        allocated.append(empty(*args, **options))
        return allocated[-1]

    monkeypatch.setattr(cuda_on_cpu, "empty", recorded)
    nearest(A, B, 3, "l2", tile=5, count=counts.append)
    assert max(array.nbytes for array in allocated) <= 10 * 5 * neighbors.PAIR_BYTES
    assert counts == [10 * 5 * pairs] * (200 // (5 * pairs))  # rows that are padded are copied


# ------------------------------------------------------------------------ through dispatch


@pytest.fixture
def as_cupy(cuda_on_cpu, monkeypatch):
    """Let dispatch take NumPy arrays for CuPy's, and look at what NumPy would have found."""
    monkeypatch.setattr(dispatch, "library_name", lambda x: "cupy")
    monkeypatch.setattr(neighbors, "cpu_workers", lambda: 1)
    return cuda_on_cpu


def test_k_neighbors_finds_the_kernels(as_cupy, metric):
    A, B = samples(37, 150, 33)
    budgets = [neighbors.MEMORY_BUDGET, 40_000]
    matrix = naive(A, B, metric)
    indices = np.argsort(matrix, axis=1, kind="stable")[:, :9]
    ranks = np.take_along_axis(matrix, indices, axis=1).astype(float)
    counts = []
    for budget in budgets:
        counts.clear()
        found = k_neighbors(
            *(A, B, 9, metric), memory_budget=budget, callback=lambda *done: counts.append(done)
        )
        assert found[0].dtype == np.float64
        assert found[1].dtype == np.int64
        np.testing.assert_array_equal(found[0], np.sqrt(ranks) if metric == "l2" else ranks)
        np.testing.assert_array_equal(found[1], indices)
        assert counts[-1] == (37 * 150, 37 * 150)
    assert len(counts) > 1
    assert {"merge_nearest"} <= set(as_cupy.launches)


def test_the_classifier_predicts_the_same(as_cupy, metric, monkeypatch):
    X, y = samples(60, 20, 48)[0], np.arange(60) % 4
    classifier = KNeighborsClassifier(n_neighbors=5, metric=metric).fit(X, y)
    found = classifier.predict(X[::3])
    assert as_cupy.launches[-1] == "merge_nearest"
    monkeypatch.setattr(dispatch, "library_name", lambda x: "numpy")
    np.testing.assert_array_equal(found, classifier.predict(X[::3]))


def declined(A, B):
    yield A.astype(np.float32), B
    yield A, B.astype(np.float64)
    yield A.view(np.int8), B.view(np.int8)
    yield A[0], B
    yield A[:0], B
    yield A, B[:0]


def test_what_the_kernels_cannot_do_is_declined_before_a_launch(cuda_on_cpu, monkeypatch):
    A, B = samples(4, 200, 16)
    for name, (fast, _) in DISTANCES.items():
        for pair in declined(A, B):
            assert fast(*pair) is NotImplemented
            assert nearest(*pair, 1, name) is NotImplemented
    assert nearest(A, B, MAX_NEIGHBORS + 1, "l2") is NotImplemented
    wide = np.zeros((1, 33_026), np.uint8)
    assert squared_euclidean_of_bytes(wide, wide) is NotImplemented
    assert nearest(wide, wide, 1, "l2") is NotImplemented
    monkeypatch.setattr(neighbors_on_cupy, "MAX_COLUMNS", 100)
    assert manhattan_of_bytes(A, B) is NotImplemented
    assert cuda_on_cpu.launches == []
    check_nearest(cuda_on_cpu, "l1", A, B, 5, tile=1000)  # takes smaller tiles


# ------------------------------------------------------------------------------- broken

BROKEN = {
    "multiply_bytes": {
        "signed bytes": ("mma_m16n8k32_unsigned(", "mma_m16n8k32("),
        "barrier of a stage dropped": (
            "wait_for_copies<STAGES - 2>();\n        __syncthreads();",
            "wait_for_copies<STAGES - 2>();",
        ),
        "one copy too few waited for": (
            "wait_for_copies<STAGES - 2>", "wait_for_copies<STAGES - 1>",
        ),
        "features past the end not zero": (
            "zeros[i * COPY_ROWS * CHUNK / 16] = make_uint4(0, 0, 0, 0)", "(void)zeros",
        ),
        "halves of a fragment swapped": ("vector_of_a = lane / 16", "vector_of_a = 1 - lane / 16"),
        "columns past the end written": (
            "if (column >= n_columns) continue;\n            const int*", "const int*",
        ),
        "odd rows written in pairs": ("n_columns % 2 == 0;", "true;"),
        "norms of other samples": ("const unsigned norm_a = norms_A[row];\n        int* to",
                                   "const unsigned norm_a = norms_A[first_row];\n        int* to"),
    },
    "squared_distances": {
        "barrier dropped": ("        __syncthreads();\n        if (chunk + 1 < n_chunks) fetch",
                            "        if (chunk + 1 < n_chunks) fetch"),
        "features past the end": ("exists ? from[i][chunk * WORDS / 4] : make_uint4(0, 0, 0, 0)",
                                  "from[i][chunk * WORDS / 4]"),
        "norm of the row forgotten": ("SQUARED ? norms_A[row] : 0", "0"),
    },
    "merge_nearest": {
        "ties by the larger index": ("distance[slot] <= candidate", "distance[slot] < candidate"),
        "limit of another entry": ("last_lane = (k - 1) % 32", "last_lane = (k - 2) % 32"),
        "lists of a tile alone": ("first_column > 0 && entry < k", "false"),
        "index within the tile": ("first_column + start + 32 * i", "start + 32 * i"),
        "no carry between slots": ("lane == 0 ? carried : moved", "moved"),
        "last columns left out": ("start < n_columns; start += 32 * AHEAD",
                                  "start + 32 * AHEAD <= n_columns; start += 32 * AHEAD"),
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kernel", BROKEN)
def test_broken_variants_are_caught(cuda_on_cpu, kernel):
    if kernel == "squared_distances":
        cuda_on_cpu.limits = cuda_modules.DeviceLimits(75, 3, 64 << 10)
    # Odd rows and columns, more than one chunk of features with a part of one.
    A, B = samples(21, 71, 368, seed=2)
    # Few ties, and no row without them.
    some = np.random.default_rng(3).integers(0, 256, (200, 5), dtype=np.uint8)
    many = np.concatenate([some, some[::-1]])
    rising = np.arange(60, dtype=np.uint8)[:, None]

    def check():
        if kernel == "merge_nearest":
            check_nearest(cuda_on_cpu, "l1", many[:9], many, 39, tile=17)
            check_nearest(cuda_on_cpu, "l1", rising[:1], rising, 39, tile=3)
        else:
            check_distances(cuda_on_cpu, "l2", A, B)

    check()
    missed, file = [], "merge_nearest.cu" if kernel == "merge_nearest" else "neighbors.cu"
    constants = (("SLOTS", 2),) if kernel == "merge_nearest" else ()
    compile_together(file, BROKEN[kernel].values(), constants)
    for what, replacement in BROKEN[kernel].items():
        with cuda_on_cpu.broken(file, replacement):
            try:
                check()
            except (AssertionError, CudaOnCpuError):
                continue
        missed.append(what)
    assert missed == []


# ------------------------------------------------------------------------------ on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("metric", ["l2", "l1"])
@pytest.mark.parametrize(
    ("n", "m", "d", "k"),
    [(1, 1, 1, 1), (33, 257, 100, 33), (300, 5000, 3072, 5), (64, 900, 33, 128)],
)
def test_a_gpu_gives_the_same_bits(metric, n, m, d, k):
    if not probe_cupy().usable:
        pytest.skip(probe_cupy().reason)
    A, B = samples(n, m, d)
    expected = k_neighbors(A, B, k, metric)
    on_device = [to_device(x, "cupy") for x in (A, B)]
    for budget in (neighbors.MEMORY_BUDGET, 2 << 20):
        found = k_neighbors(*on_device, k, metric, memory_budget=budget)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(to_host(one), other)
