"""The linear pass over bytes by dot products of bytes, held against integers and float64.

Where the processor lacks the instruction (AVX-512 VNNI), its arithmetic is spelled out: all lines
but that one run anywhere.
"""

import os
import platform
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("numba", reason="numba is not installed")

from gpuclf.kernels.building import machine_code
from gpuclf.kernels.byte_products import dot_loops
from gpuclf.kernels.byte_products import on_cpu as compiled_bytes
from gpuclf.kernels.byte_products.on_cpu import linear_pass_by_dots
from gpuclf.kernels.linear_pass import on_cpu as compiled_linear
from gpuclf.kernels.linear_pass.on_cpu import compiled_linear_pass
from gpuclf.losses import multiclass_hinge, softmax_cross_entropy
from gpuclf.models.linear import linear_pass
from gpuclf.samples.folding import FoldedSamples
from gpuclf.samples.standardized import Standardized


@pytest.fixture(autouse=True)
def every_processor_is_asked(monkeypatch):
    monkeypatch.setattr(compiled_bytes, "byte_dots_are_usable", lambda: True)
    monkeypatch.setattr(compiled_bytes, "MIN_MULTIPLICATIONS", 0)
    monkeypatch.setattr(compiled_bytes, "MIN_BYTES_BY_DOTS", 0)


def features(X, dtype=np.float32):
    made = FoldedSamples(Standardized(X, 120.0, 60.0), 0, dtype)
    made.folds = True
    return made


def problem(n, d, c, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.integers(0, 256, (n, d)).astype(np.uint8)
    W = (rng.standard_normal((d, c)) / d).astype(np.float32)
    b, weights = rng.standard_normal(c).astype(np.float32), rng.random(n).astype(np.float32)
    return W, b, features(X), rng.integers(0, c, n), weights


def exact_pass(W, b, samples, y, weights, loss):
    given = W.astype(float), b.astype(float), features(samples.stored, float)
    return linear_pass.reference(*given, y, weights.astype(float), loss)


def in_float32(W, b, samples, y, weights, loss):
    return linear_pass.reference(W, b, samples, y, weights, loss)


def assert_no_worse_than_float32(
    given, loss=softmax_cross_entropy, other=in_float32, last_digits=2e-7
):
    """Check the error budget: what another pass in float32 loses, and two last digits."""
    found = linear_pass_by_dots(*given, loss is multiclass_hinge)
    exact, rounded = exact_pass(*given, loss), other(*given, loss)
    assert found[0] == pytest.approx(float(exact[0]), rel=1e-6, abs=1e-7)
    for ours, theirs, truth in zip(found[1:], rounded[1:], exact[1:], strict=True):
        assert ours.dtype == np.float32
        assert ours.shape == truth.shape
        budget = np.abs(theirs - truth).max() + last_digits * np.abs(truth).max()
        assert np.abs(ours - truth).max() <= budget


# Around threes and fours of rows, 48 of them, and blocks of 96; panels of 64 and strips of 192
# features; tiles of nine rows of digits.
SIZES = [(1, 64, 2), (11, 65, 3), (49, 191, 4), (95, 193, 5), (97, 64, 10), (130, 400, 17)]
SIZES += [(200, 3072, 10), (2500, 70, 10)]


@pytest.mark.essential_cases(0, in_ci=4)
@pytest.mark.slow
@pytest.mark.parametrize("loss", [softmax_cross_entropy, multiclass_hinge])
@pytest.mark.parametrize(("n", "d", "c"), SIZES)
def test_linear_pass(n, d, c, loss):
    assert_no_worse_than_float32(problem(n, d, c), loss)


@pytest.mark.essential_cases(0, in_ci=1)
@pytest.mark.slow
@pytest.mark.parametrize("loss", [softmax_cross_entropy, multiclass_hinge])
@pytest.mark.parametrize(("n", "d", "c"), [(100, 129, 50), (60, 70, 128)])
def test_many_classes_are_as_exact_as_of_widened_bytes(monkeypatch, n, d, c, loss):
    # The column that is taken from all others has the errors of all, there too.
    monkeypatch.setattr(compiled_linear, "MIN_MULTIPLICATIONS", 0)
    monkeypatch.setattr(compiled_linear, "MAX_CLASSES", 128)

    def widened(*given):
        return compiled_linear_pass(*given, widens_bytes=True)

    assert_no_worse_than_float32(problem(n, d, c), loss, widened, last_digits=4e-7)


def digits_of(rng, n_columns, n_items, lowest, highest):
    """Return rows of one digit that were not made of numbers, and the digits alone."""
    digits, begins, scales = dot_loops._room_in_tiles(n_columns, n_items, 1)
    one = rng.integers(lowest, highest, (n_columns, n_items), endpoint=True)
    for item in range(n_items):
        digits[item // 64, :n_columns, item % 64] = one[:, item]
    begins[:n_columns] = -128 * one.sum(axis=1)[:, None]
    scales[:] = 1
    return (digits, begins, scales), one


@pytest.mark.parametrize("pixels", [(0, 255), (0, 0), (255, 255)])
@pytest.mark.parametrize("signed", [(-127, 127), (-127, -127), (127, 127)])
def test_sums_are_those_of_integers(pixels, signed):
    rng = np.random.default_rng(0)
    n, d, c = 96, 200, 11
    X = rng.integers(*pixels, (n + 2, d), endpoint=True).astype(np.uint8)
    bytes_ = X[:n].astype(int) - 128
    W, one = digits_of(rng, c, d, *signed)
    room = dot_loops.room_for(W, c + 1, n)
    S, _, _, _, sums, parts, quads, _ = room
    dot_loops._write_scores(X, 0, n, W, 1, parts, sums, S)
    assert np.array_equal(S[:c], one @ bytes_.T)
    assert not S[c].any()
    G, one = digits_of(rng, c, n, *signed)
    dW = dot_loops.zeros_of_dW(c, d)
    dot_loops._add_columns(X, 0, n, G, 1, quads, sums, dW, n)
    assert np.array_equal(dot_loops.in_order(dW, d), one @ bytes_)


@pytest.mark.slow
def test_the_largest_sums_fit(monkeypatch):
    monkeypatch.setattr(compiled_bytes, "MIN_ROWS", 0)
    d = compiled_bytes.MAX_FEATURES - 1
    for pixel in (0, 255):
        X = np.full((4, d), pixel, np.uint8)
        W = np.zeros((d, 2), np.float32)
        W[:, 0] = 1e-8
        given = W, np.zeros(2, np.float32), features(X), np.zeros(4, int), np.ones(4, np.float32)
        assert_no_worse_than_float32(given)


@pytest.mark.parametrize("n_digits", [3, 4])
def test_digits_say_numbers(n_digits):
    rng = np.random.default_rng(0)
    G = rng.standard_normal((5, 130)).astype(np.float32)
    G[:, 7] *= np.array([1, 1e-30, 3e30, 0, 1], np.float32)  # and columns of any size
    G[3:] *= np.array([[0], [1e-38]], np.float32)
    left, room = np.zeros((5, 64), np.float32), dot_loops._room_in_tiles(5, 130, n_digits)
    dot_loops.digits_of_rows(G, 130, room, n_digits, dot_loops.BASE, 1, left)
    digits, begins, scales = room
    rows = digits.transpose(1, 0, 2).reshape(digits.shape[1], -1)[: 5 * n_digits]
    assert np.abs(rows.astype(int)).max() == 127
    assert np.array_equal(
        begins[: len(rows)], np.repeat(-128 * rows.sum(axis=1, dtype=int), 16).reshape(-1, 16)
    )
    places = 254.0 ** -np.arange(n_digits)
    found = np.einsum("mki,k,m->mi", rows.reshape(5, n_digits, -1), places, scales.astype(float))
    largest = np.maximum(np.abs(G).max(axis=1, keepdims=True), 127 * 2.0**-126)
    step = largest / 127 * places[-1]
    rounding = 2.0**-23 * np.abs(G)  # of float32
    assert (np.abs(found[:, :130] - G) <= 1.25 * step + rounding).all()
    # What is left goes on to the item 64 later: together they lose only what is left at the end.
    lost, roundings = (np.zeros((5, 192)) for _ in range(2))
    lost[:, :130], roundings[:, :130] = G - found[:, :130], rounding
    lost, roundings = (value.reshape(5, 3, 64).sum(axis=1) for value in (lost, roundings))
    assert (np.abs(left) <= 0.51 * step + roundings).all()
    assert (np.abs(lost - left) <= {3: 0.05, 4: 2}[n_digits] * step + roundings).all()
    assert not found[:, 130:].any()


def with_outliers(factor):
    W, b, samples, y, weights = problem(300, 3072, 10, 3)
    W[np.arange(0, 3000, 300), np.arange(10)] *= np.float32(factor)
    return W, b, samples, y, weights


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1, 1e2, 1e4])
def test_a_fourth_digit_where_a_large_number_costs_the_small_ones(monkeypatch, factor):
    given = with_outliers(factor)
    columns = np.ascontiguousarray((given[0][:, :9] - given[0][:, 9:]).T)
    needed = dot_loops.pack(columns)[1]
    assert needed == (3 if factor == 1 else 4)
    assert_no_worse_than_float32(given)
    if factor == 1e4:  # what the rule is for
        monkeypatch.setattr(dot_loops, "digits_needed", lambda columns: 3)
        with pytest.raises(AssertionError):
            assert_no_worse_than_float32(given)


@pytest.mark.slow
@pytest.mark.parametrize("n", [64, 2000])  # within a block, and several
def test_rows_of_one_gradient_do_not_all_lose_the_same(n):
    W, b, samples, y, _ = problem(n, 100, 10)
    samples = features(samples.stored // 4)  # most bytes are dark, and so the sums are large
    given = 0 * W, 0 * b, samples, y, np.full(n, 1 / n, np.float32)
    loss = softmax_cross_entropy
    passes = linear_pass_by_dots(*given, False), in_float32(*given, loss), exact_pass(*given, loss)
    ours, theirs, truth = (dW[:, 1:] for _, dW, _ in passes)  # the first is taken from the others
    budget = np.abs(theirs - truth).max() + 1e-7 * np.abs(truth).max()
    assert np.abs(ours - truth).max() <= budget


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("loss", [softmax_cross_entropy, multiclass_hinge])
def test_weights_that_learnt_from_images(loss):
    from gpuclf import SoftmaxClassifier
    from gpuclf.datasets import load_dataset

    data = load_dataset("cifar10")
    X, y = data.X_train[:1000], data.y_train[:1000]
    model = SoftmaxClassifier(solver="lbfgs", reg=1e-4, max_iter=30, tol=1e-2).fit(X, y)
    W, b = np.ascontiguousarray(model.coef_.T), model.intercept_
    samples = features(X)
    samples.standardized = Standardized.fit(X)
    W, b = samples.fold(W.astype(np.float32), b.astype(np.float32))
    for factor in (1, 1000):
        W[100, 3] *= np.float32(factor)
        given = W, b, samples, y.astype(int), np.full(1000, 1e-3, np.float32)
        assert_no_worse_than_float32(given, loss)


@pytest.mark.slow
def test_threads_stretches_and_blocks_add_up(monkeypatch):
    given = problem(700, 70, 10)
    one = linear_pass_by_dots(*given, False)
    monkeypatch.setattr(compiled_bytes, "MIN_STRETCH_ROWS", 1)
    monkeypatch.setattr(compiled_bytes, "MAX_STRETCH_BLOCKS", 1)
    monkeypatch.setattr(compiled_bytes, "cpu_workers", lambda: 3)
    monkeypatch.setattr(compiled_bytes, "cache_bytes", lambda: 1)
    several = linear_pass_by_dots(*given, False)
    for ours, theirs in zip(several, one, strict=True):
        assert np.abs(ours - theirs).max() <= 1e-6 * np.abs(theirs).max()


@pytest.mark.slow
def test_the_same_bits_wherever_the_samples_lie():
    W, b, samples, y, weights = problem(177, 65, 10)

    def bits(X):
        found = linear_pass_by_dots(W, b, features(X), y, weights, False)
        return [np.asarray(value).tobytes() for value in found]

    X = samples.stored
    expected = bits(X)
    for offset in (0, 1, 33):
        room = np.full(X.size + 64, 77, np.uint8)
        moved = room[offset : offset + X.size].reshape(X.shape)
        moved[:] = X
        assert bits(moved) == expected


@pytest.mark.slow
@pytest.mark.parametrize("loss", [softmax_cross_entropy, multiclass_hinge])
def test_what_is_not_finite(loss):
    hinge = loss is multiclass_hinge
    W, b, samples, y, weights = problem(200, 70, 4)
    y[150] = 4
    loss, dW, db = linear_pass_by_dots(W, b, samples, y, weights, hinge)
    assert np.isnan(loss)
    assert np.isnan(dW).all()
    assert np.isnan(db).all()
    for value in (np.nan, np.inf):
        broken = W.copy()
        broken[3, 2] = value
        assert linear_pass_by_dots(broken, b, samples, y, weights, hinge) is NotImplemented
    broken[3, :2] = [3e38, -3e38]
    assert linear_pass_by_dots(broken, b, samples, y, weights, hinge) is NotImplemented
    assert linear_pass_by_dots(W, b * np.inf, samples, y, weights, hinge) is NotImplemented


@pytest.mark.slow
def test_declines(monkeypatch):
    W, b, samples, y, weights = problem(100, 70, 3)
    rest = samples, y, weights, False
    assert linear_pass_by_dots(W, b, *rest) is not NotImplemented
    assert linear_pass_by_dots(W[:, :1], b[:1], *rest) is NotImplemented
    assert linear_pass_by_dots(W.astype(float), b, *rest) is NotImplemented
    assert linear_pass_by_dots(W[None], b, *rest) is NotImplemented
    monkeypatch.setattr(compiled_bytes, "MIN_BYTES_BY_DOTS", 100 * 70)
    assert linear_pass_by_dots(W, b, *rest) is not NotImplemented
    monkeypatch.setattr(compiled_bytes, "MIN_BYTES_BY_DOTS", 100 * 70 + 1)
    assert linear_pass_by_dots(W, b, *rest) is NotImplemented
    monkeypatch.setattr(compiled_bytes, "MIN_BYTES_BY_DOTS", 0)
    monkeypatch.setattr(compiled_bytes, "byte_dots_are_usable", lambda: False)
    assert linear_pass_by_dots(W, b, *rest) is NotImplemented


@pytest.mark.slow
def test_the_compiled_pass_hands_bytes_over_or_widens_them(monkeypatch):
    monkeypatch.setattr(compiled_linear, "MIN_MULTIPLICATIONS", 0)
    monkeypatch.setattr(compiled_bytes, "matrix_unit_is_usable", lambda: False)
    given = problem(200, 70, 4)
    by_dots = linear_pass_by_dots(*given, False)
    handed = compiled_linear_pass(*given, softmax_cross_entropy)
    assert np.array_equal(handed[1], by_dots[1])
    widened = compiled_linear_pass(*given, softmax_cross_entropy, widens_bytes=True)
    assert not np.array_equal(widened[1], by_dots[1])
    assert np.abs(widened[1] - by_dots[1]).max() <= 1e-6 * np.abs(widened[1]).max()


@pytest.mark.slow
def test_one_command_times_both_ways(monkeypatch, capsys):
    pytest.importorskip("rich", reason="rich, which the command prints with, is not installed")
    from benchmarks import cpu_limit

    given = ["cpu_limit", "--only-bytes", "--data", "synthetic", "--samples", "600"]
    monkeypatch.setattr(sys, "argv", given)
    cpu_limit.main()
    said = " ".join(capsys.readouterr().out.split())
    assert f"multiplied as this processor does: {machine_code.vector_unit()} (dW differs" in said
    assert "ms widened to floats (dW differs by" in said


UNITS = {
    "AVX-512, AMX for bytes": (["avx512f", "avx512bw", "avx512vnni"], True),
    "AVX-512, VNNI for bytes": (["avx512f", "avx512bw", "avx512vnni"], False),
    "AVX-512": (["avx512f", "avx512bw"], False),
    "AVX2": (["avx2"], False),
}


@pytest.mark.parametrize("name", UNITS)
def test_the_unit_is_named(monkeypatch, name):
    features, has_tiles = UNITS[name]
    monkeypatch.setattr(machine_code, "processor_features", lambda: dict.fromkeys(features, True))
    monkeypatch.setattr(machine_code, "matrix_unit_is_usable", lambda: has_tiles)
    usable, named = machine_code.byte_dots_are_usable, machine_code.vector_unit
    try:
        usable.cache_clear()
        named.cache_clear()
        assert usable() is ("avx512vnni" in features)
        assert named() == name
    finally:
        usable.cache_clear()
        named.cache_clear()


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="compiles for an x86 processor")
@pytest.mark.parametrize(
    "processor", ["icelake-server", pytest.param("znver4", marks=pytest.mark.nightly)]
)
def test_the_instruction_is_emitted(tmp_path, processor):
    code = """
import numpy as np, numba
from gpuclf.kernels.byte_products import dot_loops, loops
loops.byte_dots_are_usable = lambda: True  # it is compiled, and not called
W, X = dot_loops._room_in_tiles(9, 64, 3), np.zeros((96, 64), np.uint8)
S, _, _, _, sums, parts, _, _ = dot_loops.room_for(W, 10, 96)
given = X, 0, 96, W, 3, parts, sums, S
dot_loops._write_scores.compile(tuple(map(numba.typeof, given)))
assembly = dot_loops._write_scores.inspect_asm()
assert next(iter(assembly.values())).count("vpdpbusd") >= 27
"""
    features = "+avx,+avx2,+fma,+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512cd,+avx512vnni"
    given = {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": features}
    given["NUMBA_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | given,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
