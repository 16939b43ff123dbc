import sys

import numpy as np
import pytest

pytest.importorskip("numba", reason="numba is not installed")

from gpuclf.kernels.building import machine_code as compilation
from gpuclf.kernels.linear_pass import loops as linear_loops
from gpuclf.kernels.linear_pass import on_cpu as compiled_linear
from gpuclf.kernels.linear_pass.on_cpu import compiled_linear_pass, linear_objective_by_blas
from gpuclf.losses import multiclass_hinge, softmax_cross_entropy
from gpuclf.models import SOFTMAX
from gpuclf.models.linear import linear_pass, penalized_linear_pass
from gpuclf.samples import walk as row_blocks
from gpuclf.samples.folding import FoldedSamples
from gpuclf.samples.standardized import Standardized

TOLERANCES = {np.float32: 5e-6, np.float64: 1e-13}
# Each dtype is compiled anew.
DTYPES = [np.float32, pytest.param(np.float64, marks=pytest.mark.slow)]


@pytest.fixture(autouse=True)
def nothing_is_too_small(monkeypatch):
    monkeypatch.setattr(compiled_linear, "MIN_MULTIPLICATIONS", 0)
    for name in ("FEATURES_OF_MODELS", "ROWS_OF_FLOATS", "ROWS_OF_BYTES"):
        monkeypatch.setattr(compiled_linear, f"MIN_{name}", 1)
    monkeypatch.setattr(compiled_linear, "MAX_ROWS_FOR_BLAS", 0)


def samples(kind, n, d, dtype, rng):
    if "bytes" in kind:
        X = rng.integers(0, 256, (n, d)).astype(np.uint8)
    else:
        X = (rng.standard_normal((n, d)) + 3).astype(dtype)
    return Standardized.fit(X) if "standardized" in kind else X


def arguments(n=170, d=70, c=10, dtype=np.float32, kind="floats", loss=softmax_cross_entropy):
    rng = np.random.default_rng(0)
    X = samples(kind, n, d, dtype, rng)
    W = (rng.standard_normal((d, c)) / d).astype(dtype)
    folded = FoldedSamples(X, c, dtype)
    return {
        "W": W,
        "b": rng.standard_normal(c).astype(dtype),
        "samples": folded,
        "y": rng.integers(0, c, n),
        "weights": rng.random(n).astype(dtype),
        "data_loss": loss,
    }


def assert_as_exact_as_the_shared_pass(given):
    exact = given | {name: given[name].astype(np.float64) for name in ("W", "b", "weights")}
    exact["samples"] = FoldedSamples(given["samples"].stored, 10, np.float64)
    truth, shared = linear_pass.reference(**exact), linear_pass.reference(**given)
    for ours, theirs, true in zip(compiled_linear_pass(**given), shared, truth, strict=True):
        allowed = 2 * np.linalg.norm(theirs - true) + 1e-6 * np.linalg.norm(true)
        assert np.linalg.norm(ours - true) <= allowed


def assert_agrees(given, dtype):
    found, expected = compiled_linear_pass(**given), linear_pass.reference(**given)
    assert found is not NotImplemented
    for ours, reference in zip(found, expected, strict=True):
        assert ours.dtype == reference.dtype
        assert ours.shape == reference.shape
        error = np.linalg.norm(ours - reference)
        assert error <= TOLERANCES[dtype] * np.linalg.norm(reference)


KINDS = ["floats", "bytes", "standardized floats", "standardized bytes"]


@pytest.mark.essential_cases(1, in_ci=4)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees_with_the_shared_pass(dtype, kind):
    # Rows around blocks of 16, features around strips of 16 to 64.
    # Few rows of standardised samples are written out before the pass.
    for n in (11, 161, 175, 176, 177):
        for d in (64, 65, 95, 96, 127, 1030):
            assert_agrees(arguments(n, d, 10, dtype, kind), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees_with_the_shared_pass_on_the_hinge_loss(dtype):
    for kind in KINDS:
        assert_agrees(arguments(177, 65, 10, dtype, kind, multiclass_hinge), dtype)


def test_a_margin_of_exactly_zero_has_no_gradient():
    given = arguments(loss=multiclass_hinge) | {
        "W": np.zeros((70, 10), np.float32),
        "b": np.zeros(10, np.float32),
    }
    given["b"][3] = -1.0  # the margin of class 3 is 0 for all samples of other classes
    given["y"][:] = 5
    _, dW, db = compiled_linear_pass(**given)
    assert (dW[:, 3] == 0).all()
    assert db[3] == 0
    assert_agrees(given, np.float32)


def naive_pass(given):
    """The pass in loops over samples and classes, in float64."""
    W, y, weights = given["W"].astype(float), given["y"], given["weights"].astype(float)
    X = given["samples"].rows(slice(0, len(y))).astype(float)
    hinge = given["data_loss"] is multiclass_hinge
    loss, dW, db = 0.0, np.zeros_like(W), np.zeros(W.shape[1])
    for i, label in enumerate(y):
        scores = X[i] @ W + given["b"]
        dscores = np.zeros(W.shape[1])
        if hinge:
            for c, score in enumerate(scores):
                margin = score - scores[label] + 1
                if c != label and margin > 0:
                    loss += weights[i] * margin
                    dscores[c] += weights[i]
                    dscores[label] -= weights[i]
        else:
            scores = scores - scores.max()
            powers = np.exp(scores)
            loss += weights[i] * (np.log(powers.sum()) - scores[label])
            dscores = weights[i] * powers / powers.sum()
            dscores[label] -= weights[i]
        dW += np.outer(X[i], dscores)
        db += dscores
    return loss, dW, db


def assert_agrees_with_loops(given):
    for ours, exact in zip(compiled_linear_pass(**given), naive_pass(given), strict=True):
        assert np.linalg.norm(ours - exact) <= 3e-6 * np.linalg.norm(exact) + 1e-12


# Bytes of a vector register, and whether there are 32: AVX-512, AVX2, Arm and SSE2. LLVM cuts what
# this processor does not have.
PROCESSORS = {"avx512": (64, True), "avx2": (32, False), "arm": (16, True), "sse2": (16, False)}


@pytest.fixture(params=PROCESSORS)
def processor(request, monkeypatch):
    n_bytes, many = PROCESSORS[request.param]
    monkeypatch.setattr(linear_loops, "VECTOR_BYTES", n_bytes)
    monkeypatch.setattr(linear_loops, "HAS_32_REGISTERS", many)
    return request.param


@pytest.mark.essential_cases(0, in_ci=2)
@pytest.mark.slow
@pytest.mark.parametrize("c", [10, 1, 2, 3, 9, 11, 25, 100])
def test_tiles_of_every_processor(processor, c, monkeypatch):
    monkeypatch.setattr(compiled_linear, "MAX_CLASSES", 128)
    for kind, loss in ((KINDS[0], softmax_cross_entropy), (KINDS[3], multiclass_hinge)):
        for n, d in ((1, 64), (30, 70), (41, 193)):
            given = arguments(n, d, c, np.float32, kind, loss)
            if c > 1:
                assert_agrees_with_loops(given)
            assert_agrees(given, np.float32)


@pytest.mark.parametrize("large", [0, 4, 9])
def test_a_column_of_large_weights_costs_the_others_no_digits(large):
    # One column is taken from all the others: which one must not be the one with large numbers.
    given = arguments(400, 300, 10)
    given["W"][:, large] *= 1e5
    given["b"][large] -= 1e6  # never the likely one
    assert_as_exact_as_the_shared_pass(given)


def test_scores_between_the_smallest_exponentials():
    given = arguments(200, 70, 10)
    given["W"][:] = 0
    given["b"][:] = [0, -5, -20, -60, -86.9, -87.1, -88, -100, -104, -1000]
    loss, _, db = compiled_linear_pass(**given)
    truth = naive_pass(given)
    assert loss == pytest.approx(truth[0], rel=1e-6)
    np.testing.assert_allclose(db, truth[2], rtol=1e-5, atol=1e-30)


@pytest.mark.slow
def test_stretches_and_threads_add_up(monkeypatch):
    monkeypatch.setattr(compiled_linear, "MAX_STRETCH_ROWS", 20)
    monkeypatch.setattr(compiled_linear, "MIN_STRETCH_ROWS", 20)
    monkeypatch.setattr(row_blocks, "cpu_workers", lambda: 3)
    for kind in KINDS:
        assert_agrees(arguments(101, 70, 10, np.float64, kind), np.float64)


@pytest.mark.slow
def test_long_sums_keep_their_digits(monkeypatch):
    n, d = 40_000, 64
    X = np.full((n, d), 0.1, np.float32)
    given = arguments(n, d, 2, np.float32, loss=multiclass_hinge)
    given |= {"W": np.zeros((d, 2), np.float32), "b": np.zeros(2, np.float32)}
    given |= {"samples": FoldedSamples(X, 2, np.float32), "y": np.zeros(n, int)}
    given["weights"] = np.full(n, 1 / n, np.float32)
    _, dW, _ = compiled_linear_pass(**given)
    assert dW[:, 1] == pytest.approx(0.1, rel=3e-6)
    monkeypatch.setattr(compiled_linear, "block_rows", lambda row_bytes: 40_008)
    monkeypatch.setattr(compiled_linear, "MIN_STRETCH_ROWS", n)
    monkeypatch.setattr(compiled_linear, "MAX_STRETCH_ROWS", n)
    _, dW, _ = compiled_linear_pass(**given)
    assert dW[:, 1] != pytest.approx(0.1, rel=3e-6)  # what blocks and stretches are for


@pytest.mark.slow
def test_sums_of_many_stretches_keep_their_digits(monkeypatch):
    monkeypatch.setattr(compiled_linear, "MAX_STRETCH_ROWS", 24)
    monkeypatch.setattr(compiled_linear, "MIN_STRETCH_ROWS", 24)
    X = np.random.default_rng(0).standard_normal((12_000, 64)).astype(np.float32) + 1
    given = arguments(*X.shape, 5, np.float32) | {"samples": FoldedSamples(X, 5, np.float32)}
    exact = given | {name: given[name].astype(np.float64) for name in ("W", "b", "weights")}
    exact["samples"] = FoldedSamples(X.astype(np.float64), 5, np.float64)
    truth, found = linear_pass.reference(**exact)[1], compiled_linear_pass(**given)[1]
    # Of each column: the one that is taken from all others has the errors of all.
    assert (np.abs(found - truth).max(axis=0) / np.abs(truth).max(axis=0)).max() < 4e-7


def test_numba_that_cannot_be_imported_is_like_none(monkeypatch, caplog):
    caplog.set_level("WARNING", logger="gpuclf")
    monkeypatch.setattr(compilation, "find_spec", lambda name: name)  # as if it were there
    monkeypatch.setitem(sys.modules, "numba", None)
    compilation.numba_is_usable.cache_clear()
    try:
        assert compiled_linear_pass(**arguments()) is NotImplemented
        assert "cannot be imported" in caplog.text
    finally:
        compilation.numba_is_usable.cache_clear()


def test_without_bias():
    assert_agrees(arguments() | {"b": None}, np.float32)


@pytest.mark.slow
def test_mixed_floats_are_computed_in_the_dtype_of_the_parameters():
    given = arguments(dtype=np.float64)
    X = np.random.default_rng(1).standard_normal((170, 70)).astype(np.float32)
    assert_agrees(given | {"samples": FoldedSamples(X, 10, np.float64)}, np.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [64, 80, 1040])
def test_the_same_bits_wherever_the_samples_lie(d, dtype):
    given = arguments(177, d, 10, dtype)
    assert_agrees(given, dtype)
    X = given["samples"].stored
    expected = [np.asarray(value).tobytes() for value in compiled_linear_pass(**given)]
    for offset in (0, 8, 16, 40):
        room = np.zeros(X.nbytes + 128, np.uint8)
        first = -room.ctypes.data % 64 + offset
        moved = room[first : first + X.nbytes].view(dtype).reshape(X.shape)
        moved[...] = X
        found = compiled_linear_pass(**given | {"samples": FoldedSamples(moved, 10, dtype)})
        assert [np.asarray(value).tobytes() for value in found] == expected


@pytest.mark.parametrize("labels", [np.uint8, np.int32, np.int64])
def test_labels_of_any_integer_type(labels):
    given = arguments()
    assert_agrees(given | {"y": given["y"].astype(labels)}, np.float32)


@pytest.mark.nightly
@pytest.mark.slow
def test_read_only_arrays():
    given = arguments()
    for array in (given["W"], given["b"], given["samples"].stored, given["y"], given["weights"]):
        array.flags.writeable = False
    assert_agrees(given, np.float32)


@pytest.mark.parametrize("shift", [1e3, -1e3])
def test_scores_far_from_zero_lose_no_more_digits_than_the_shared_pass_does(shift):
    given = arguments(dtype=np.float32)
    given["b"] += np.float32(shift)
    assert_as_exact_as_the_shared_pass(given)


def test_one_sample():
    assert_agrees(arguments(n=1), np.float32)


def test_score_gaps_of_ten_thousand_stay_finite():
    given = arguments(dtype=np.float32)
    given["b"][0] = 1e4
    loss, dW, db = compiled_linear_pass(**given)
    others = given["weights"][given["y"] != 0]
    assert loss == pytest.approx(1e4 * others.sum(), rel=1e-3)
    assert np.isfinite(dW).all()
    assert np.isfinite(db).all()


@pytest.mark.parametrize("loss", [softmax_cross_entropy, multiclass_hinge])
@pytest.mark.parametrize("wrong", [-1, 10, 1 << 40])
def test_a_label_out_of_range_makes_the_loss_nan(wrong, loss):
    given = arguments(loss=loss)
    given["y"][17] = wrong
    loss, dW, _ = compiled_linear_pass(**given)
    assert np.isnan(loss)
    assert np.isnan(dW).all()


@pytest.mark.parametrize(
    ("value", "loss"),
    [
        (np.nan, softmax_cross_entropy),
        (np.inf, softmax_cross_entropy),
        (np.nan, multiclass_hinge),
    ],
)
def test_samples_that_are_not_finite_make_the_loss_nan(value, loss):
    given = arguments(loss=loss)
    given["samples"].stored[23, 5] = value
    assert np.isnan(compiled_linear_pass(**given)[0])


@pytest.mark.parametrize("value", [np.inf, -np.inf])
@pytest.mark.parametrize("loss", [softmax_cross_entropy, multiclass_hinge])
def test_an_infinite_difference_of_two_scores_is_no_sure_answer(value, loss):
    # Both scores are infinite; only their difference is computed, and could pass for a sure answer.
    given = arguments(c=2, loss=loss)
    given["samples"].stored[23, 5] = value
    for label in (0, 1):
        given["y"][23] = label
        assert np.isnan(compiled_linear_pass(**given)[0])


def test_the_same_bits_on_every_run():
    given = arguments(3000, 200, 10, np.float32)
    first, second = compiled_linear_pass(**given), compiled_linear_pass(**given)
    for a, b in zip(first, second, strict=True):
        assert a.tobytes() == b.tobytes()


def squared_hinge(scores, labels, weights):
    own = scores[np.arange(len(labels)), labels][:, None]
    margins = np.maximum(scores - own + 1, 0) * (np.arange(scores.shape[1]) != labels[:, None])
    dscores = 2 * margins
    dscores[np.arange(len(labels)), labels] -= dscores.sum(axis=1)
    loss = np.sum((margins**2).sum(axis=1) * weights, dtype=np.float64)
    return loss, dscores * weights[:, None]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("c", [10, *(pytest.param(c, marks=pytest.mark.nightly) for c in (1, 13))])
def test_a_loss_of_ones_own_stays_in_python_between_the_products(dtype, kind, c, monkeypatch):
    monkeypatch.setattr(compiled_linear, "OWN_LOSS_ROWS", 40)
    for n, d in ((11, 70), (41, 97), (177, 65), (1100, 70)):
        assert_agrees(arguments(n, d, c, dtype, kind, squared_hinge), dtype)


@pytest.mark.essential_cases(2, in_ci=5)
@pytest.mark.parametrize("loss", [softmax_cross_entropy, multiclass_hinge])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_several_models(dtype, kind, loss):
    rng = np.random.default_rng(1)
    for k, c in ((2, 10), (5, 2), (1, 4), (3, 1)):
        given = arguments(177, 65, k * c, dtype, kind, loss) | {"models": (k,)}
        given["y"] %= c
        assert_agrees(given, dtype)
        of_each = rng.random((k, 177)).astype(dtype)
        assert_agrees(given | {"b": None, "weights": of_each}, dtype)


def test_a_model_that_is_not_finite_harms_no_other():
    given = arguments() | {"models": (2,)}
    given["y"] %= 5
    expected = compiled_linear_pass(**given)
    given["W"][0, 5:9] = np.nan, np.inf, -np.inf, 1.0
    loss, dW, db = compiled_linear_pass(**given)
    assert np.isnan(loss[1])
    assert np.isnan(dW[:, 5:]).all()
    assert loss[0] == expected[0][0]
    np.testing.assert_array_equal(dW[:, :5], expected[1][:, :5])
    np.testing.assert_array_equal(db[:5], expected[2][:5])


DECLINED = {
    "models in several axes": {"models": (2, 5)},
    "models of a loss of one's own": {"models": (2,), "data_loss": squared_hinge},
    "many classes": {"W": np.zeros((70, compiled_linear.MAX_CLASSES_AVX512 + 2))},
    "rows that do not follow each other": {
        "samples": FoldedSamples(np.zeros((340, 70))[::2], 10, None)
    },
    "columns first": {"samples": FoldedSamples(np.zeros((70, 170)).T, 10, None)},
    "weights for each of other models": {"weights": np.ones((2, 170))},
}


@pytest.mark.parametrize("change", DECLINED)
def test_declines(change):
    assert compiled_linear_pass(**arguments()) is not NotImplemented
    assert compiled_linear_pass(**arguments() | DECLINED[change]) is NotImplemented


@pytest.mark.parametrize("limit", ["MIN_MULTIPLICATIONS", "MIN_FEATURES"])
def test_declines_what_is_too_small(monkeypatch, limit):
    size = {"MIN_MULTIPLICATIONS": 170 * 70 * 10, "MIN_FEATURES": 70}[limit]
    monkeypatch.setattr(compiled_linear, limit, size)
    assert compiled_linear_pass(**arguments()) is not NotImplemented
    monkeypatch.setattr(compiled_linear, limit, size + 1)
    assert compiled_linear_pass(**arguments()) is NotImplemented


def objectives(given, reg=0.1):
    """Return what BLAS and the compiled loss find for few rows, and what the body does."""
    rest = [given[name] for name in ("W", "b", "samples", "y", "weights", "data_loss")]
    found = linear_objective_by_blas(*rest, reg)
    return found, penalized_linear_pass.reference(*rest, reg)


@pytest.mark.essential_cases(1)
@pytest.mark.parametrize("loss", [softmax_cross_entropy, multiclass_hinge])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_products_of_blas_agree_with_the_shared_pass(monkeypatch, dtype, loss):
    monkeypatch.setattr(compiled_linear, "MAX_ROWS_FOR_BLAS", 512)
    for n, c in ((1, 2), (15, 10), (16, 1), (200, 10), (512, 40)):
        given = arguments(n, 40, c, dtype, loss=loss)
        for changed in ({}, {"b": None, "weights": None, "y": given["y"].astype(np.uint8)}):
            found, expected = objectives(given | changed)
            for ours, reference in zip(found, expected, strict=True):
                assert ours.dtype == reference.dtype
                assert ours.shape == reference.shape
                error = np.linalg.norm(ours - reference)
                assert error <= TOLERANCES[dtype] * np.linalg.norm(reference)
    assert np.isnan(objectives(given | {"y": np.full(512, 40)})[0][0])


NOT_FOR_BLAS = {
    "many rows": {"samples": FoldedSamples(np.zeros((151, 70), np.float32), 10, np.float32)},
    "other floats": {"W": np.zeros((70, 10))},
    "several models": {"W": np.zeros((1, 70, 10), np.float32)},
    "columns first": {"W": np.zeros((10, 70), np.float32).T},
    "weights for each model": {"weights": np.ones((1, 150), np.float32)},
    "a loss of one's own": {"data_loss": lambda *given: softmax_cross_entropy(*given)},
}


@pytest.mark.parametrize("change", NOT_FOR_BLAS)
def test_leaves_to_others_what_is_no_mini_batch(monkeypatch, change):
    monkeypatch.setattr(compiled_linear, "MAX_ROWS_FOR_BLAS", 150)
    given = arguments(150)
    assert objectives(given)[0] is not NotImplemented
    rest = given | NOT_FOR_BLAS[change]
    rest = [rest[name] for name in ("W", "b", "samples", "y", "weights", "data_loss")]
    assert linear_objective_by_blas(*rest, 0.1) is NotImplemented


@pytest.mark.parametrize("kind", KINDS)
def test_blas_multiplies_rows_that_are_standardised_before(monkeypatch, kind):
    monkeypatch.setattr(compiled_linear, "MAX_ROWS_FOR_BLAS", 200)
    for n in (150, 170):  # from 16 rows a column on, the body would fold
        found, expected = objectives(arguments(n, kind=kind))
        if kind == "bytes" and n == 170:
            assert found is NotImplemented
            continue
        for ours, reference in zip(found, expected, strict=True):
            assert np.linalg.norm(ours - reference) <= 5e-6 * np.linalg.norm(reference)


def test_declines_without_numba(monkeypatch):
    monkeypatch.setattr(compiled_linear, "numba_is_usable", lambda: False)
    assert compiled_linear_pass(**arguments()) is NotImplemented


@pytest.mark.slow
def test_training_uses_it(monkeypatch):
    assert linear_pass.replacements["numpy"][0] == "linear_pass.on_cpu:compiled_linear_pass"
    calls = []
    shared = compiled_linear.sum_over_row_blocks
    monkeypatch.setattr(
        compiled_linear, "sum_over_row_blocks", lambda *a, **k: calls.append(1) or shared(*a, **k)
    )
    X, y = np.ones((20, 70)), np.zeros(20, int)
    SOFTMAX.objective({"W": np.zeros((70, 3))}, X, y, 0.0)
    assert calls == [1]


@pytest.mark.nightly
@pytest.mark.slow
def test_its_parts_are_timed_by_the_benchmark():
    pytest.importorskip("rich", reason="rich, which the benchmark prints with, is not installed")
    from benchmarks.cpu_limit import Inputs, full_pass

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (200, 3072), dtype=np.uint8)
    for _, call, _, _ in full_pass(Inputs(pixels, rng.integers(0, 10, 200))):
        call()
