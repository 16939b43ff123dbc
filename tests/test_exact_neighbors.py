"""Neighbours of floats that are ranked in float32, with a bound, and settled in float64."""

import numpy as np
import pytest

from gpuclf.kernels.nearest import on_cpu
from gpuclf.models import neighbors
from gpuclf.models.neighbors import k_neighbors, nearest_of_floats

METRICS = ("l2", "l1", "cosine")


@pytest.fixture(autouse=True)
def compiled_only(monkeypatch):
    """Use the compiled search however little there is to do."""
    pytest.importorskip("numba", reason="numba is not installed")
    monkeypatch.setattr(on_cpu, "WORTH_COMPILED", 0)


@pytest.fixture
def bounded():
    from gpuclf.kernels.nearest import bounded

    return bounded


def float64_distances(A, B, metric):
    A, B = A.astype(np.float64), B.astype(np.float64)
    if metric == "cosine":
        A, B = (X / np.linalg.norm(X, axis=1, keepdims=True) for X in (A, B))
    differences = (a - B for a in A)
    if metric == "l1":
        return np.stack([np.abs(d).sum(axis=1) for d in differences])
    squares = np.stack([(d * d).sum(axis=1) for d in differences])
    return squares / 2 if metric == "cosine" else np.sqrt(squares)


def assert_nearest(A, B, k, metric, found, rtol=1e-12, atol=0.0):
    """The distances are float64's, and the samples have them; ties but for rounding may differ."""
    distances, indices = found
    expected = float64_distances(A, B, metric)
    np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :k], rtol=rtol, atol=atol)
    np.testing.assert_allclose(
        np.take_along_axis(expected, indices, axis=1), distances, rtol=rtol, atol=atol
    )
    assert all(len(set(row)) == k for row in indices.tolist())
    tied = np.diff(distances, axis=1) == 0
    assert (np.diff(indices, axis=1)[tied] > 0).all()


def assert_compiled(A, B, k, metric, **options):
    found = on_cpu.compiled_nearest_of_floats(A, B, k, metric, 64 << 20, lambda n: None)
    assert found is not NotImplemented
    assert_nearest(A, B, k, metric, found, **options)
    return found


@pytest.mark.essential_cases(1, in_ci=4)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "dtype",
    [
        np.float32,
        pytest.param(np.float64, marks=pytest.mark.slow),
        pytest.param(np.float16, marks=pytest.mark.slow),
        pytest.param(np.uint8, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(("n", "m", "n_features", "k"), [(50, 3000, 17, 5), (7, 300, 64, 300)])
def test_the_neighbours_are_those_of_float64(metric, dtype, n, m, n_features, k):
    rng = np.random.default_rng(n)
    A, B = ((rng.standard_normal((rows, n_features)) * 30 + 100).astype(dtype) for rows in (n, m))
    assert_compiled(A, B, k, metric)


def hostile(seed):
    """Samples that rounding could mislead, of a kind that depends on the seed."""
    rng = np.random.default_rng(seed)
    n, m = 23, int(rng.integers(300, 3000))
    D = int(rng.choice([1, 2, 7, 33, 130]))

    def draw(*shape):
        return rng.standard_normal(shape)

    centres = draw(4, D) * 10.0 ** rng.integers(2, 7)
    spread = 10.0 ** rng.integers(-3, 1)
    which = rng.integers(0, 4, m)
    kinds = [
        lambda: (draw(n, D), draw(m, D)),
        lambda: (draw(n, D), np.repeat(draw(1, D), m, axis=0)),
        lambda: (draw(n, D), draw(7, D)[rng.integers(0, 7, m)]),
        lambda: (
            centres[rng.integers(0, 4, n)] + spread * draw(n, D),
            centres[which] + spread * draw(m, D),
        ),
        lambda: (
            centres[rng.integers(0, 4, n)] + spread * draw(n, D),
            centres[np.sort(which)] + spread * draw(m, D),
        ),
        lambda: (np.zeros((n, D)) + 1e-3, rng.permuted(np.repeat(draw(1, D), m, axis=0), axis=1)),
        lambda: (rng.integers(0, 3, (n, D)) / 10 + 0.1, rng.integers(0, 3, (m, D)) / 10 + 0.1),
        lambda: (rng.integers(0, 4, (n, D)) + 1, rng.integers(0, 4, (m, D)) + 1),
        lambda: (draw(n, D) + 1e4, draw(m, D) + 1e4),
        lambda: (draw(n, D) * 1e-30, draw(m, D) * 1e-30),
        lambda: (draw(n, D) * 1e30, draw(m, D) * 1e30),
        lambda: (draw(n, D), draw(m, D) * 10.0 ** rng.integers(-4, 5, (m, 1))),
    ]
    A, B = kinds[seed % len(kinds)]()
    B[rng.integers(0, m, 5)] = A[:5]
    return A, B


@pytest.mark.essential_cases(1, in_ci=2)
@pytest.mark.parametrize("seed", range(60))
def test_hostile_samples_have_the_neighbours_of_float64(seed):
    A, B = (X.astype((np.float32, np.float64)[seed // 12 % 2]) for X in hostile(seed))
    for metric in METRICS:
        for k in (1, 5, 100):
            # Where all is squeezed between two numbers, float64's own cosines are rounded.
            atol = 1e-15 if metric == "cosine" else 0.0
            assert_compiled(A, B, k, metric, rtol=1e-11, atol=atol)


@pytest.mark.slow
def test_each_stage_gives_up_and_the_last_one_ends(bounded, monkeypatch):
    # All samples at one distance but for rounding: neither products nor float32 can tell.
    rng = np.random.default_rng(0)
    A = np.zeros((9, 40), np.float32)
    B = rng.permuted(np.repeat(rng.standard_normal((1, 40)), 4000, axis=0), axis=1)
    ran = []
    search = bounded.Search._search

    def counted(self, stage, *given):
        given_up = search(self, stage, *given)
        ran.append((stage.products, np.dtype(stage.dtype).name, int(given_up.sum())))
        return given_up

    monkeypatch.setattr(bounded.Search, "_search", counted)
    monkeypatch.setattr(bounded, "cpu_workers", lambda: 1)
    assert_compiled(A, B.astype(np.float32), 3, "l2")
    assert ran == [(True, "float32", 9), (False, "float32", 9), (False, "float64", 0)]


def test_hopeless_stages_are_left_before_they_begin(bounded, monkeypatch):
    rng = np.random.default_rng(0)
    A = np.zeros((60, 40), np.float32)
    B = rng.permuted(np.repeat(rng.standard_normal((1, 40)), 4000, axis=0), axis=1)
    taken, take = [], bounded._Ranks.take

    def counted(self, *given):
        taken.append((self.stage.products, np.dtype(self.stage.dtype).name))
        return take(self, *given)

    monkeypatch.setattr(bounded._Ranks, "take", counted)
    monkeypatch.setattr(bounded, "cpu_workers", lambda: 1)
    done = []
    found = k_neighbors(A, B.astype(np.float32), 700, callback=lambda *counts: done.append(counts))
    assert_nearest(A, B.astype(np.float32), 700, "l2", found)
    assert taken[:2] == [(True, "float32"), (False, "float32")]  # only the looks ahead
    assert set(taken[2:]) == {(False, "float64")}
    assert done[-1] == (60 * 4000, 60 * 4000)


def test_queries_of_both_kinds_have_their_neighbours(bounded, monkeypatch):
    # Hopeless: those in the clusters; the first few are not typical.
    rng = np.random.default_rng(0)
    far = rng.standard_normal((4000, 20)) + 1e6 * (np.arange(4000) % 2)[:, None]
    B = np.concatenate([far, 1e3 * rng.standard_normal((4000, 20))])
    for start in (0, 1):
        A = np.roll(np.concatenate([far[:70], B[-70:]]), 70 * start, axis=0)
        assert_compiled(A.astype(np.float32), B.astype(np.float32), 7, "l2")


def test_what_is_looked_at_first_has_its_share_of_the_bound():
    # Its products cancel, and of 16 copies but for rounding the one that is looked at is not the
    # nearest: only the query's share of the bound, which is far longer, says so.
    rng = np.random.default_rng(0)
    v, w = rng.standard_normal((60, 32)), rng.standard_normal((40, 32))
    copies = np.repeat(np.concatenate([w, -w], axis=1), 16, axis=0)
    copies *= 1 + 2e-7 * rng.standard_normal(copies.shape)
    A, B = 300 * np.concatenate([v, v], axis=1), copies
    assert_compiled(A.astype(np.float32), B.astype(np.float32), 1, "l2")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fewer_neighbours_are_the_first_of_more(dtype):
    # Squares that differ in their last bits have one root, and tie. All k go to the last stage.
    rng = np.random.default_rng(0)
    row = np.repeat(rng.standard_normal((1, 33)), 600, axis=0)
    A, B = np.zeros((25, 33), dtype), rng.permuted(row, axis=1).astype(dtype)
    assert len(np.unique((B.astype(float) ** 2).sum(axis=1))) > 1
    of_many = assert_compiled(A, B, 200, "l2")
    for k in (1, 3, 40):
        np.testing.assert_array_equal(assert_compiled(A, B, k, "l2")[1], of_many[1][:, :k])


@pytest.mark.parametrize("metric", METRICS)
def test_equal_samples_beyond_k_are_left_out(metric, bounded):
    rng = np.random.default_rng(0)
    distinct = rng.standard_normal((6, 9)).astype(np.float32)
    which = rng.integers(0, 6, 900)
    A, B = np.concatenate([distinct, rng.standard_normal((25, 9))]).astype("f4"), distinct[which]
    first_four = np.sort(np.concatenate([np.flatnonzero(which == i)[:4] for i in range(6)]))
    np.testing.assert_array_equal(bounded._without_later_ties(B, 4, B.nbytes), first_four)
    assert bounded._without_later_ties(B, 4, 23 * B[0].nbytes) is None  # too little memory
    assert bounded._without_later_ties(B, 100, B.nbytes) is None  # two thirds would stay
    found = assert_compiled(A, B, 30, metric)
    seen = []
    k_neighbors(A, B, 30, metric, callback=lambda *done: seen.append(done))
    assert seen[-1] == (31 * 900, 31 * 900)
    # Equal samples are asked for: those with the smallest indices are the nearest, in order.
    for query in range(6):
        same = np.flatnonzero(which == query)[:30]
        np.testing.assert_array_equal(found[1][query], same)


@pytest.mark.parametrize("metric", METRICS)
def test_the_bound_holds_for_every_pair(metric, bounded):
    # What the search relies on: no rank is farther from the distance than its stage says.
    rng = np.random.default_rng(1)
    A, B = (rng.standard_normal((n, 300)).astype(np.float32) * 7 + 3 for n in (10, 512))
    units = tuple(bounded.inverse_lengths(X, 1) for X in (A, B))
    search = bounded.Search(A, B, 1, metric, 1, units if metric == "cosine" else None)
    multiplied = [search.multipliers[p] if search.multipliers else np.ones(n)
                  for p, n in enumerate((10, 512))]  # fmt: skip
    for stage in search.stages:
        queries = A.astype(float) * multiplied[0][:, None] * stage.scale
        samples = B.astype(float) * multiplied[1][:, None] * stage.scale
        own = multiplied[1] if search.multipliers else np.array([stage.scale])
        ranks = bounded._Ranks(stage, queries, 512, search.absolute)
        ranks.take(B, 0, 512, own)
        lows = (ranks.of(slice(0, 10)) + ranks.low).astype(float)
        highs = (lows + ranks.width) * (1 + 2 * stage.e)
        slack = (stage.c * ranks.norms_A + stage.eta)[:, None]
        true = np.stack([
            (np.abs(a - samples) if search.absolute else (a - samples) ** 2).sum(axis=1)
            for a in queries
        ])  # fmt: skip
        true -= ranks.norms_A[:, None] * stage.products
        rounding = 1e-12 * np.abs(true)
        assert (lows <= (true + slack) * (1 + 2 * stage.e) + rounding).all()
        assert (true <= highs + slack + rounding).all()


def test_a_bound_of_nothing_would_be_noticed(bounded, monkeypatch):
    # Clusters far from each other: the products' rounding is larger than a cluster.
    A, B = (X.astype(np.float32) for X in hostile(3))
    stages = bounded.Search._stages

    def overconfident(self):
        return [
            bounded.Stage(s.dtype, s.products, s.centre, s.scale, 0.0, 0.0, 0.0, s.final)
            for s in stages(self)
        ]

    monkeypatch.setattr(bounded.Search, "_stages", overconfident)
    with pytest.raises(AssertionError):
        assert_compiled(A, B, 5, "l2")


@pytest.mark.parametrize("metric", ["l2", "l1"])
def test_whole_numbers_have_the_exact_order(metric):
    rng = np.random.default_rng(0)
    A, B = (rng.integers(0, 3, (n, 6)).astype(np.float32) for n in (70, 2000))
    distances = float64_distances(A, B, metric)
    expected = np.argsort(distances, axis=1, kind="stable")
    for k in (1, 7, 500):
        found = k_neighbors(A, B, k, metric)
        np.testing.assert_array_equal(found[1], expected[:, :k])
        np.testing.assert_array_equal(found[0], np.take_along_axis(distances, found[1], axis=1))


@pytest.mark.slow
def test_large_whole_numbers_are_not_taken_for_exact():
    rng = np.random.default_rng(0)
    A, B = (
        (rng.integers(0, 9, (n, 3)) + rng.choice([0.0, 2e7], (n, 1))).astype(np.float64)
        for n in (40, 1200)
    )
    expected = np.argsort(float64_distances(A, B, "l2"), axis=1, kind="stable")[:, :3]
    np.testing.assert_array_equal(k_neighbors(A, B, 3)[1], expected)


@pytest.mark.essential_cases(1, in_ci=2)
@pytest.mark.slow
@pytest.mark.parametrize("view", ["every second", "Fortran", "backwards", "read-only"])
def test_views_are_read_as_they_are(view):
    rng = np.random.default_rng(0)
    A, B = (rng.standard_normal((n, 20)).astype(np.float32) for n in (30, 400))
    change = {
        "every second": lambda X: X[:, ::2],
        "Fortran": np.asfortranarray,
        "backwards": lambda X: X[::-1],
        "read-only": lambda X: np.broadcast_to(X, X.shape),
    }[view]
    A, B = change(A), change(B)
    assert_nearest(A, B, 4, "l2", k_neighbors(A, B, 4))


@pytest.mark.essential_cases(0, in_ci=1)
@pytest.mark.slow
@pytest.mark.parametrize("metric", METRICS)
def test_dtypes_may_differ(metric):
    rng = np.random.default_rng(0)
    A, B = rng.uniform(1, 9, (12, 33)), rng.uniform(1, 9, (600, 33))
    for dtypes in ((np.float16, np.float32), (np.uint8, np.float64), (np.float32, np.uint8)):
        a, b = (X.astype(dtype) for X, dtype in zip((A, B), dtypes, strict=True))
        assert_nearest(a, b, 6, metric, k_neighbors(a, b, 6, metric))


@pytest.mark.slow
def test_float16_reaches_to_its_least_and_its_largest_number():
    bits = np.arange(0, 0x7C00, 37, dtype=np.uint16)
    B = np.concatenate([bits, bits | 0x8000]).view(np.float16)[:, None]
    A = B[::50].copy()
    assert_nearest(A, B, 3, "l2", k_neighbors(A, B, 3))


@pytest.mark.parametrize("metric", METRICS)
def test_the_shared_body_finds_the_same(metric):
    rng = np.random.default_rng(0)
    A, B = (rng.standard_normal((n, 40)).astype(np.float32) for n in (40, 900))
    compiled = k_neighbors(A, B, 9, metric)
    shared = nearest_of_floats.reference(A, B, 9, metric, 1 << 20, lambda n: None)
    np.testing.assert_array_equal(compiled[1], shared[1])
    np.testing.assert_allclose(compiled[0], shared[0], rtol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_blocks_of_queries_and_samples_change_nothing(metric, bounded, monkeypatch):
    rng = np.random.default_rng(0)
    A, B = (rng.standard_normal((n, 13)).astype(np.float32) for n in (121, 1501))
    expected = k_neighbors(A, B, 20, metric)
    monkeypatch.setattr(bounded, "TILE_COLUMNS", 64)
    monkeypatch.setattr(bounded, "MAX_QUERIES", 2 * bounded.TILE_ROWS)
    seen = []
    found = k_neighbors(A, B, 20, metric, callback=lambda *done: seen.append(done))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert seen[-1] == (121 * 1501, 121 * 1501)


def test_a_small_budget_is_left_to_the_shared_body(monkeypatch):
    rng = np.random.default_rng(0)
    A, B = (rng.standard_normal((n, 50)) for n in (20, 300))
    declined = on_cpu.compiled_nearest_of_floats(A, B, 3, "l2", 50_000, lambda n: None)
    assert declined is NotImplemented
    assert_nearest(A, B, 3, "l2", k_neighbors(A, B, 3, memory_budget=50_000))


@pytest.mark.slow
def test_blocks_are_halved_when_memory_runs_out(monkeypatch):
    rng = np.random.default_rng(0)
    A, B = (rng.standard_normal((n, 8)) for n in (20, 300))
    expected, tried = k_neighbors(A, B, 3), []

    def scarce(A, B, k, metric, memory_budget, count):
        tried.append(memory_budget)
        if memory_budget > 300_000:
            raise MemoryError("none left")
        return nearest_of_floats.reference(A, B, k, metric, memory_budget, count)

    monkeypatch.setattr(neighbors, "nearest_of_floats", scarce)
    found = k_neighbors(A, B, 3, memory_budget=1 << 20)
    np.testing.assert_array_equal(found[1], expected[1])
    assert tried == [1 << 20, 1 << 19, 1 << 18]

    def nothing(*given):
        raise MemoryError("none left")

    monkeypatch.setattr(neighbors, "nearest_of_floats", nothing)
    with pytest.raises(MemoryError, match=r"\(none left\), although memory_budget=1048576 was"):
        k_neighbors(A, B, 3, memory_budget=1 << 20)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_zero_vector_has_no_cosine(compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(on_cpu, "WORTH_COMPILED", 1 << 60)
    A, B = np.ones((4, 3)), np.ones((5, 3))
    B[2] = 0
    with pytest.raises(ValueError, match=r"B\[2\] is a zero vector, .* by B\[B.any\(axis=1\)\]"):
        k_neighbors(A, B, 1, "cosine")
    assert k_neighbors(A, B[B.any(axis=1)], 1, "cosine")[1].tolist() == [[0]] * 4
    B[2] = 1e-310  # not zero, and squares to zero
    B[2, 1] = -1e-310
    assert k_neighbors(B[2:3], B, 1, "cosine")[1].tolist() == [[2]]


@pytest.mark.parametrize(("n_training", "compiled"), [(63, False), (64, True)])
def test_one_query_of_many_samples_is_compiled(n_training, compiled, bounded, monkeypatch):
    monkeypatch.setattr(on_cpu, "WORTH_COMPILED", 1 << 60)
    monkeypatch.setattr(on_cpu, "WORTH_KEEPING", 64 * 3)
    calls, search = [], bounded.nearest_of_floats
    monkeypatch.setattr(
        bounded, "nearest_of_floats", lambda *given: calls.append(given) or search(*given)
    )
    B = np.random.default_rng(0).standard_normal((n_training, 3))
    assert k_neighbors(B[5:6], B, 1)[1].tolist() == [[5]]
    assert bool(calls) == compiled
