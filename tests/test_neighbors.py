import os
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from gpuclf import KNeighborsClassifier, MixedDevicesError, knn_vote, pairwise_distances
from gpuclf.datasets import load_cifar10
from gpuclf.kernels.nearest import on_cpu as neighbors_on_numpy
from gpuclf.models import neighbors
from gpuclf.models.distances import manhattan, squared_euclidean
from gpuclf.models.neighbors import cross_validate_k, k_neighbors, smallest_k
from gpuclf.naive import pairwise_distances_one_loop, pairwise_distances_two_loops
from gpuclf.samples import walk as row_blocks
from gpuclf.samples.standardized import Standardized

METRICS = ("l2", "l1")
DTYPES = (np.uint8, np.float32, np.float64)
every_metric = pytest.mark.parametrize("metric", METRICS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def exact_distances(A, B, metric):
    """Return the distances of integers: squares or sums in int64, where nothing is rounded."""
    difference = A.astype(np.int64)[:, None] - B.astype(np.int64)
    if metric == "l2":
        return np.sqrt((difference**2).sum(axis=-1))
    return np.abs(difference).sum(axis=-1)


def assert_exact(lib, found, expected):
    """Compare to the last bit; PyTorch's square root may be off by that one."""
    ulps = 1 if lib.name == "torch" else 0
    np.testing.assert_array_max_ulp(lib.to_numpy(found), expected.astype(np.float64), ulps)


def by_distance_and_index(distances, k):
    return np.array(
        [sorted(range(len(row)), key=lambda j, row=row: (row[j], j))[:k] for row in distances]
    )


def vote_in_loops(distances, y, k):
    labels = []
    for nearest in by_distance_and_index(distances, k):
        counts = Counter(int(y[j]) for j in nearest)
        labels.append(min(counts, key=lambda label: (-counts[label], label)))
    return np.array(labels)


def small_integers(n, m, n_features=5, highest=3, seed=0, dtype=np.uint8):
    """Return samples of few different distances, some of them equal."""
    rng = np.random.default_rng(seed)
    A, B = (rng.integers(0, highest, (size, n_features)).astype(dtype) for size in (n, m))
    return A, B


def pixels(n, m, n_features=70, seed=0):
    rng = np.random.default_rng(seed)
    A, B = (rng.integers(0, 256, (size, n_features), np.uint8) for size in (n, m))
    A[0], A[-1], B[0], B[-1] = 0, 255, 255, 0  # the largest distances there are
    return A, B


# Squared distances of bytes, on a matrix unit or by dot products.
L2_ON_MATRIX_UNIT = pytest.param("l2", True, marks=pytest.mark.amx)
L2_BY_DOT_PRODUCTS = pytest.param("l2", False, marks=pytest.mark.vnni)


@pytest.fixture
def compiled_only(monkeypatch):
    """Use the compiled distances however little there is to do."""
    pytest.importorskip("numba", reason="numba is not installed")
    monkeypatch.setattr(neighbors_on_numpy, "WORTH_COMPILED", 0)


# ------------------------------------------------------------------------------- distances


@every_metric
@every_dtype
def test_loops_give_the_exact_distances_of_integers(metric, dtype):
    A, B = (x.astype(dtype) for x in pixels(4, 6, 9))
    expected = exact_distances(A, B, metric)
    np.testing.assert_array_equal(pairwise_distances_two_loops(A, B, metric), expected)
    np.testing.assert_array_equal(pairwise_distances_one_loop(A, B, metric), expected)


@every_metric
@every_dtype
def test_distances_of_integers_are_exact_on_every_library(lib, metric, dtype):
    A, B = (x.astype(dtype) for x in pixels(7, 11))
    given = lib.asarray(A), lib.asarray(B)
    found = pairwise_distances(*given, metric)
    assert type(found) is type(given[0])
    assert found.dtype == lib.xp.float64
    assert_exact(lib, found, exact_distances(A, B, metric))
    np.testing.assert_array_equal(lib.to_numpy(given[0]), A)


@every_metric
def test_distances_of_long_bytes_are_exact(lib, metric):
    # More features than float32 can sum, and extremes that fill the chunks to the last digit.
    A, B = pixels(3, 4, 2501)  # 127 * 127 * 2501 is odd
    found = pairwise_distances(lib.asarray(A), lib.asarray(B), metric)
    assert_exact(lib, found, exact_distances(A, B, metric))


@every_metric
def test_distances_beyond_int32_are_exact(lib, metric):
    n_features = 2**31 // 255**2 + 1
    A, B = np.zeros((1, n_features), np.uint8), np.full((2, n_features), 255, np.uint8)
    found = pairwise_distances(lib.asarray(A), lib.asarray(B), metric)
    assert_exact(lib, found, exact_distances(A, B, metric))


@every_metric
@pytest.mark.parametrize("dtypes", [(np.uint8, np.float32), (np.float64, np.uint8)])
def test_dtypes_may_differ(lib, metric, dtypes):
    A, B = pixels(5, 4, 12)
    A, B = A.astype(dtypes[0]), B.astype(dtypes[1])
    found = pairwise_distances(lib.asarray(A), lib.asarray(B), metric)
    assert_exact(lib, found, exact_distances(A, B, metric))


@every_metric
@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.bool_])
def test_other_integers_are_computed_as_floats(lib, metric, dtype):
    A, B = small_integers(5, 4, dtype=dtype)
    found = pairwise_distances(lib.asarray(A), lib.asarray(B), metric)
    assert_exact(lib, found, exact_distances(A, B, metric))


@pytest.mark.essential_cases(15)
@every_metric
@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_distances_of_floats_survive_a_common_offset(lib, metric, dtype, offset):
    rng = np.random.default_rng(0)
    A, B = ((rng.standard_normal((n, 30)) + offset).astype(dtype) for n in (8, 9))
    found = lib.to_numpy(pairwise_distances(lib.asarray(A), lib.asarray(B), metric))
    expected = pairwise_distances_two_loops(A, B, metric)
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_differences_in_pieces_are_the_same(lib, monkeypatch):
    monkeypatch.setattr("gpuclf.models.distances.CPU_DIFFERENCES_BYTES", 200)
    monkeypatch.setattr("gpuclf.models.distances.DEVICE_DIFFERENCES_BYTES", 200)
    A, B = pixels(7, 11, 30)
    for dtype in DTYPES:
        given = lib.asarray(A.astype(dtype)), lib.asarray(B.astype(dtype))
        found = lib.to_numpy(pairwise_distances(*given, "l1"))
        np.testing.assert_array_equal(found, exact_distances(A, B, "l1"))


@pytest.mark.parametrize(
    ("metric", "on_matrix_unit"), [("l1", False), L2_ON_MATRIX_UNIT, L2_BY_DOT_PRODUCTS]
)
@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 4, 64), (9, 70, 130), (17, 131, 3072)])
def test_compiled_distances_are_those_of_the_shared_body(
    metric, shape, on_matrix_unit, compiled_only, monkeypatch
):
    from gpuclf.kernels.nearest import loops as compiled_distances

    if not on_matrix_unit:
        monkeypatch.setattr(compiled_distances, "matrix_unit_is_usable", lambda: False)
    n, m, n_features = shape
    A, B = pixels(n, m, n_features)
    function = {"l2": squared_euclidean, "l1": manhattan}[metric]
    found = getattr(compiled_distances, function.__name__)(A, B)
    if found is NotImplemented and metric == "l1":
        pytest.skip("this processor has neither AVX2 nor AVX-512")
    np.testing.assert_array_equal(found, function.reference(A, B))
    for view in (A[:, ::2], np.asfortranarray(A), A[::-1]):
        other = B[:, : view.shape[1]]
        found = getattr(compiled_distances, function.__name__)(view, other)
        np.testing.assert_array_equal(found, function.reference(view, other))


def test_compiled_distances_beyond_int32_are_exact(compiled_only):
    n_features = 2**31 // 255**2 + 1
    A, B = np.zeros((1, n_features), np.uint8), np.full((2, n_features), 255, np.uint8)
    np.testing.assert_array_equal(pairwise_distances(A, B), exact_distances(A, B, "l2"))


@pytest.mark.parametrize(("metric", "on_matrix_unit"), [L2_ON_MATRIX_UNIT, L2_BY_DOT_PRODUCTS])
def test_the_largest_compiled_distances(metric, on_matrix_unit, compiled_only, monkeypatch):
    from gpuclf.kernels.nearest import loops as compiled_distances

    if not on_matrix_unit:
        monkeypatch.setattr(compiled_distances, "matrix_unit_is_usable", lambda: False)
    n_features = (2**31 - 1) // 255**2
    A, B = np.zeros((2, n_features), np.uint8), np.zeros((3, n_features), np.uint8)
    A[1], B[1:], B[2, 5] = 255, 255, 254
    found = compiled_distances.squared_euclidean(A, B)
    np.testing.assert_array_equal(found, exact_distances(A, B, metric))


def test_l1_beyond_int32_is_exact(lib):
    n_features = 2**31 // 255 + 1
    A, B = lib.asarray(np.zeros((1, n_features), np.uint8)), np.full((1, n_features), 255, np.uint8)
    assert lib.to_numpy(pairwise_distances(A, lib.asarray(B), "l1")) == [[255.0 * n_features]]


@every_metric
def test_the_compiled_distances_are_used_for_much_work(metric, compiled_only, monkeypatch):
    calls = []

    class Compiled:
        squared_euclidean = manhattan = staticmethod(lambda A, B: calls.append(1) or NotImplemented)

    monkeypatch.setattr(neighbors_on_numpy, "_compiled", lambda: Compiled)
    A, B = pixels(3, 4)
    pairwise_distances(A, B, metric)
    assert calls == [1]
    pairwise_distances(A.astype(np.float32), B, metric)
    assert calls == [1]


@every_metric
def test_without_numba_the_shared_body_runs(metric, compiled_only, monkeypatch):
    monkeypatch.setattr(neighbors_on_numpy, "numba_is_usable", lambda: False)
    neighbors_on_numpy._compiled.cache_clear()
    try:
        A, B = pixels(3, 4)
        np.testing.assert_array_equal(
            pairwise_distances(A, B, metric), exact_distances(A, B, metric)
        )
    finally:
        neighbors_on_numpy._compiled.cache_clear()


# ------------------------------------------------------------------------------- selection


@pytest.mark.essential_cases(20)
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float64])
@pytest.mark.parametrize("highest", [1, 3, 1000])
def test_the_smallest_are_ordered_by_distance_and_index(lib, dtype, highest):
    distances = np.random.default_rng(highest).integers(0, highest, (13, 40)).astype(dtype)
    for k in (1, 2, 7, 39, 40):
        found = lib.to_numpy(smallest_k(lib.asarray(distances), k))
        np.testing.assert_array_equal(found, by_distance_and_index(distances, k))


def test_nan_is_farther_than_infinity(lib):
    distances = np.array([[np.nan, np.inf, 1.0], [np.nan, np.nan, np.nan], [3.0, 2.0, 1.0]])
    for k in (1, 2, 3):
        found = lib.to_numpy(smallest_k(lib.asarray(distances), k))
        np.testing.assert_array_equal(found, [[2, 1, 0][:k], [0, 1, 2][:k], [2, 1, 0][:k]])


@pytest.mark.parametrize("k", [0, -1, 4, 1.0, True, None])
def test_a_number_of_neighbours_that_does_not_fit_is_refused(lib, k):
    distances, y = lib.asarray(np.zeros((3, 3))), lib.asarray(np.zeros(3, np.int64))
    message = "integer from 1 to the 3 training samples"
    with pytest.raises(ValueError, match=message):
        smallest_k(distances, k)
    with pytest.raises(ValueError, match=message):
        knn_vote(distances, y, k)
    with pytest.raises(ValueError, match=message):
        k_neighbors(distances, distances, k)


# ------------------------------------------------------------------------------------ vote


@pytest.mark.essential_cases(12)
@every_metric
@every_dtype
def test_predictions_with_many_ties_are_the_same_everywhere(lib, metric, dtype):
    A, B = small_integers(23, 31, dtype=dtype)
    y = np.random.default_rng(1).integers(0, 4, len(B))
    distances = pairwise_distances_two_loops(A, B, metric)
    assert len(np.unique(distances)) < 20  # there are ties
    given = lib.asarray(A), lib.asarray(B)
    labels = lib.asarray(y)
    classifier = KNeighborsClassifier(metric=metric).fit(given[1], labels)
    for k in (1, 2, 5, 31):
        expected = vote_in_loops(distances, y, k)
        voted = knn_vote(pairwise_distances(*given, metric), labels, k)
        assert type(voted) is type(labels)
        np.testing.assert_array_equal(lib.to_numpy(voted), expected)
        predicted = classifier.set_params(n_neighbors=k).predict(given[0])
        np.testing.assert_array_equal(lib.to_numpy(predicted), expected)


def test_a_tied_vote_goes_to_the_smaller_label(lib):
    distances = lib.asarray(np.array([[1.0, 2.0, 3.0, 4.0]]))
    for y, k, expected in (
        ([7, 3, 5, 5], 3, 3),
        ([7, 3, 3, 7], 4, 3),
        ([9, -2, 9, -2], 4, -2),
        ([9, -2, 9, -2], 3, 9),
    ):
        assert lib.to_numpy(knn_vote(distances, lib.asarray(np.array(y)), k)).tolist() == [expected]


def test_labels_may_be_a_list():
    assert knn_vote(np.array([[1.0, 0.0]]), [4, 6], 1).tolist() == [6]


def test_labels_that_do_not_fit_are_refused(lib):
    distances = lib.asarray(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"y_train \(M,\).* got \(2, 3\) and \(2,\)"):
        knn_vote(distances, lib.asarray(np.array([0, 1])), 1)
    with pytest.raises(TypeError, match="y_train must hold integers, got"):
        knn_vote(distances, lib.asarray(np.zeros(3)), 1)


# ------------------------------------------------------------------------------ neighbours


@pytest.mark.essential_cases(5)
@every_metric
@every_dtype
@pytest.mark.parametrize("tile", [(5, 1), (4, 3), (100, 5), (3, 100)])
def test_neighbours_do_not_depend_on_the_tiles(lib, metric, dtype, tile, monkeypatch, small_blocks):
    tiles = neighbors._Tiles(*tile, workers=2, block_bytes=1 << 10)
    monkeypatch.setattr(neighbors, "_tiles", lambda *sizes: tiles)
    A, B = small_integers(11, 17, dtype=dtype)
    distances = exact_distances(A, B, metric)
    for k in (1, 6, 17):
        found = k_neighbors(lib.asarray(A), lib.asarray(B), k, metric)
        expected = by_distance_and_index(distances, k)
        np.testing.assert_array_equal(lib.to_numpy(found[1]), expected)
        assert_exact(lib, found[0], np.take_along_axis(distances, expected, axis=1))
        assert found[0].dtype == lib.xp.float64
        assert found[1].dtype == lib.xp.int64


@every_metric
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_floats_have_distance_0_and_the_smaller_index_first(lib, metric, dtype):
    rng = np.random.default_rng(0)
    half = (rng.standard_normal((40, 100)) * rng.uniform(0.1, 9, 100) + 50).astype(dtype)
    B = np.concatenate([half, half, half])
    distances, indices = k_neighbors(lib.asarray(half), lib.asarray(B), 3, metric)
    np.testing.assert_array_equal(lib.to_numpy(distances), np.zeros((40, 3)))
    expected = np.arange(40)[:, None] + [0, 40, 80]
    np.testing.assert_array_equal(lib.to_numpy(indices), expected)


@pytest.mark.essential_cases(6)
@pytest.mark.parametrize("distance", [1e3, 1e6, 1e7])
def test_neighbours_in_groups_that_lie_far_apart(lib, distance, small_blocks):
    # The expansion's rounding is as large as the differences within a group.
    rng = np.random.default_rng(0)
    centres = np.array([[0.0], [distance]])
    A, B = (
        np.repeat(centres, n, axis=0) + 1e-2 * rng.standard_normal((2 * n, 3)) for n in (20, 60)
    )
    expected = by_distance_and_index(pairwise_distances_two_loops(A, B), 3)
    found = k_neighbors(lib.asarray(A), lib.asarray(B), 3, memory_budget=50_000)
    np.testing.assert_array_equal(lib.to_numpy(found[1]), expected)


@pytest.mark.parametrize("decimals", [0, 2])
def test_what_the_expansion_rounds_is_compared_by_differences(decimals, monkeypatch):
    # Whole numbers and quarters are expanded exactly, however many of them tie.
    A, B = (x / (4 if decimals else 1) for x in small_integers(20, 300, dtype=float))
    by_differences = []
    differences = neighbors.squared_differences
    monkeypatch.setattr(
        neighbors,
        "squared_differences",
        lambda *given: by_differences.append(1) or differences(*given),
    )
    found = k_neighbors(A, B, 3)[1]
    expected = by_distance_and_index(pairwise_distances_two_loops(A, B), 3)
    np.testing.assert_array_equal(found, expected)
    assert not by_differences
    np.testing.assert_array_equal(k_neighbors(A / 10, B / 10, 3)[1].shape, (20, 3))
    assert by_differences


def test_large_whole_numbers_are_not_taken_for_exact():
    rng = np.random.default_rng(0)
    A, B = (rng.integers(0, 9, (n, 3)) + rng.choice([0.0, 2e9], (n, 1)) for n in (40, 120))
    expected = by_distance_and_index(pairwise_distances_two_loops(A, B), 3)
    np.testing.assert_array_equal(k_neighbors(A, B, 3)[1], expected)


@every_metric
@pytest.mark.parametrize("divisor", [10, 3])
def test_neighbours_of_tied_fractions_are_those_of_the_loops_on_numpy(metric, divisor):
    A, B = (x / divisor for x in small_integers(150, 200, 7, highest=4))
    expected = by_distance_and_index(pairwise_distances_two_loops(A, B, metric), 5)
    np.testing.assert_array_equal(k_neighbors(A, B, 5, metric)[1], expected)


@every_metric
def test_progress_counts_every_distance(metric, small_blocks, monkeypatch):
    monkeypatch.setattr("gpuclf.models.distances.CPU_DIFFERENCES_BYTES", 100)
    A, B = pixels(40, 50, 20)
    seen = []
    k_neighbors(A, B, 3, metric, memory_budget=30_000, callback=lambda *done: seen.append(done))
    assert len(seen) > 5
    assert seen[-1] == (2000, 2000)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def peak_bytes(*args, **options):
    tracemalloc.start()
    try:
        k_neighbors(*args, **options)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.essential_cases(2)
@every_metric
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("budget", [6 << 20, 12 << 20])
def test_memory_stays_within_the_budget(metric, dtype, budget, monkeypatch):
    monkeypatch.setattr(neighbors_on_numpy, "_compiled", lambda: None)
    for module in (neighbors, row_blocks):
        monkeypatch.setattr(module, "cpu_workers", lambda: 4)
    rng = np.random.default_rng(0)
    A, B = (rng.integers(0, 256, (n, 1100), np.uint8).astype(dtype) for n in (120, 900))
    k_neighbors(A[:5], B[:9], 1, metric)  # thread pools and imports
    peak = peak_bytes(A, B, 5, metric, memory_budget=budget)
    assert peak <= budget


@pytest.mark.essential_cases(1)
@pytest.mark.parametrize(("metric", "dtype"), [("l1", np.uint8), ("l1", float), ("l2", float)])
@pytest.mark.parametrize("budget", [400_000, 1_600_000])
def test_a_budget_below_that_of_the_differences_is_kept_too(metric, dtype, budget, monkeypatch):
    # One thread, and so many samples that the budget alone bounds the tiles.
    monkeypatch.setattr(neighbors_on_numpy, "_compiled", lambda: None)
    monkeypatch.setattr(neighbors, "cpu_workers", lambda: 1)
    A, B = small_integers(300, 3000, 50, dtype=dtype)
    k_neighbors(A[:5], B[:9], 1, metric)
    peak = peak_bytes(A, B, 1, metric, memory_budget=budget)
    assert peak <= budget


@pytest.mark.essential_cases(1)
@pytest.mark.parametrize(("metric", "dtype"), [("l1", np.uint8), ("l1", float), ("l2", float)])
def test_the_least_budget_of_long_samples_is_kept(metric, dtype, monkeypatch):
    monkeypatch.setattr(neighbors, "cpu_workers", lambda: 1)
    A, B = small_integers(5, 40, 100_000, dtype=dtype)
    with pytest.raises(ValueError, match="too small") as raised:
        k_neighbors(A, B, 1, metric, memory_budget=1)
    least = int(str(raised.value).split()[-3])
    peak = peak_bytes(A, B, 1, metric, memory_budget=least)
    assert peak <= least + 50_000  # for what does not grow with the samples


@every_metric
@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_small_samples_need_little_on_a_machine_of_many_cores(metric, dtype, monkeypatch):
    for module in (neighbors, row_blocks):
        monkeypatch.setattr(module, "cpu_workers", lambda: 256)
    A, B = small_integers(3, 4, dtype=dtype)
    expected = by_distance_and_index(exact_distances(A, B, metric), 2)
    for options in ({}, {"memory_budget": 1000}):
        _, indices = k_neighbors(A, B, 2, metric, **options)
        np.testing.assert_array_equal(indices, expected)


def test_memory_stays_within_the_budget_of_compiled_distances(compiled_only):
    A, B = pixels(300, 2000, 1100)
    for metric in METRICS:
        k_neighbors(A[:5], B[:9], 1, metric)
        peak = peak_bytes(A, B, 5, metric, memory_budget=4 << 20)
        assert peak <= 4 << 20


def test_a_budget_that_is_too_small_names_the_least():
    A, B = pixels(5, 5, 100)
    with pytest.raises(ValueError, match=r"memory_budget=1000 .* at least (\d+) are") as raised:
        k_neighbors(A, B, 1, memory_budget=1000)
    least = int(str(raised.value).split()[-3])
    k_neighbors(A, B, 1, memory_budget=least)
    with pytest.raises(ValueError, match="too small"):
        k_neighbors(A, B, 1, memory_budget=least - 1)


def test_an_error_in_the_callback_reaches_the_caller(small_blocks):
    A, B = pixels(40, 50, 20)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        k_neighbors(A, B, 3, callback=stop)


# -------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("function", [pairwise_distances, lambda A, B, m: k_neighbors(A, B, 1, m)])
def test_what_does_not_fit_is_refused(lib, function):
    A, B = lib.asarray(np.zeros((2, 3))), lib.asarray(np.zeros((4, 3)))
    with pytest.raises(
        ValueError, match=r"same number of features, got shapes \(2, 3\) and \(4, 2"
    ):
        function(A, B[:, :2], "l2")
    with pytest.raises(ValueError, match=r"A must have shape \(N, D\).* got \(2,\)"):
        function(A[:, 0], B, "l2")
    with pytest.raises(ValueError, match=r"B is empty"):
        function(A, B[:0, :], "l2")
    with pytest.raises(ValueError, match=r"metric must be 'l2' .* got 'chebyshev'"):
        function(A, B, "chebyshev")
    with pytest.raises(TypeError, match=r"B is Standardized; .*to_array"):
        function(A, Standardized(B, 0.0, 1.0), "l2")
    if lib.xp is not np:
        with pytest.raises(MixedDevicesError, match=r"A is .* but B is numpy"):
            function(A, np.zeros((4, 3)), "l2")


def test_nan_is_refused_by_name():
    A, B = np.zeros((2, 3)), np.zeros((4, 3))
    B[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"B has 1 NaN .* B\[1, 2\]"):
        pairwise_distances(A, B)


@pytest.mark.parametrize("loops", [pairwise_distances_one_loop, pairwise_distances_two_loops])
def test_the_loops_refuse_what_does_not_fit(loops):
    with pytest.raises(ValueError, match=r"must fit, got \(2, 3\) and \(2, 4\)"):
        loops(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match="metric must be"):
        loops(np.zeros((2, 3)), np.zeros((2, 3)), "l3")


# ------------------------------------------------------------------------- cross-validation


@every_metric
def test_cross_validation_is_that_of_one_k_after_another(lib, metric):
    rng = np.random.default_rng(0)
    X, y = small_integers(43, 1, dtype=np.uint8)[0], rng.integers(0, 3, 43)
    ks = [5, 1, 8]
    found = cross_validate_k(lib.asarray(X), lib.asarray(y), ks, n_folds=4, metric=metric)
    assert list(found) == ks
    bounds = [43 * i // 4 for i in range(5)]
    for k in ks:
        for fold in range(4):
            own = np.arange(bounds[fold], bounds[fold + 1])
            rest = np.setdiff1d(np.arange(43), own)
            distances = exact_distances(X[own], X[rest], metric)
            expected = np.mean(vote_in_loops(distances, y[rest], k) == y[own])
            assert found[k][fold] == expected
            assert isinstance(found[k][fold], float)


def test_cross_validation_reports_progress_over_all_folds():
    X, y = small_integers(20, 1)[0], np.arange(20) % 3
    seen = []
    cross_validate_k(X, y, [1], n_folds=4, callback=lambda *done: seen.append(done))
    assert seen[-1] == (300, 300)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_cross_validation_refuses_what_does_not_fit():
    X, y = np.zeros((6, 2)), np.arange(6) % 2
    with pytest.raises(ValueError, match="from 1 to the 3 training samples"):
        cross_validate_k(X, y, [1, 4], n_folds=2)
    for wrong in (y[:-1], np.arange(8), y[:, None]):
        with pytest.raises(ValueError, match=r"y must have shape \(6,\), one label .* got \("):
            cross_validate_k(X, wrong, [1], n_folds=2)
    with pytest.raises(TypeError, match="y must hold integers, got float64"):
        cross_validate_k(X, y / 2, [1], n_folds=2)
    assert cross_validate_k(X, list(y), [1], 2) == cross_validate_k(X, y, [1], 2)
    with pytest.raises(ValueError, match="ks is empty"):
        cross_validate_k(X, y, [])
    for n_folds in (1, 7, 2.5):
        with pytest.raises(ValueError, match=f"n_folds must be from 2 to the 6 .* {n_folds}"):
            cross_validate_k(X, y, [1], n_folds=n_folds)


# --------------------------------------------------------------------------- the real pixels


@pytest.mark.real_data
@pytest.mark.parametrize(("metric", "accuracy"), [("l2", 0.3539), ("l1", 0.3859)])
def test_the_accuracies_of_nearest_neighbour_on_real_cifar10(metric, accuracy):
    data = load_cifar10(Path(os.environ["GPUCLF_DATA"]), download=False)
    if metric == "l1":
        pytest.importorskip("numba", reason="takes minutes without numba")
    classifier = KNeighborsClassifier(n_neighbors=1, metric=metric).fit(data.X_train, data.y_train)
    assert classifier.score(data.X_test, data.y_test) == accuracy


@pytest.mark.real_data
@every_metric
def test_real_pixels_have_the_same_neighbours_in_loops(metric):
    data = load_cifar10(Path(os.environ["GPUCLF_DATA"]), download=False)
    A, B = data.X_test[:40], data.X_train[:3000]
    distances = pairwise_distances_one_loop(A, B, metric)
    expected = by_distance_and_index(distances, 10)
    for dtype in DTYPES:
        found, indices = k_neighbors(A.astype(dtype), B.astype(dtype), 10, metric)
        np.testing.assert_array_equal(indices, expected)
        np.testing.assert_array_equal(found, np.take_along_axis(distances, expected, axis=1))
