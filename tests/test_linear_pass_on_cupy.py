"""The linear pass on tensor cores, run on the CPU: wrapper and kernels, against float64."""

from copy import copy
from functools import partial

import numpy as np
import pytest
from cuda_on_cpu import ORDERS, CudaOnCpuError, hidden, with_hidden_arrays
from cuda_on_cpu.compilation import compile_together, compiler

from gpuclf.kernels.building import cuda as cuda_modules
from gpuclf.kernels.linear_pass import on_gpu as linear_pass_on_cupy
from gpuclf.kernels.linear_pass.on_gpu import (
    linear_objective_on_tensor_cores,
    linear_pass_on_tensor_cores,
)
from gpuclf.losses import multiclass_hinge, softmax_cross_entropy
from gpuclf.models import SOFTMAX
from gpuclf.models.linear import (
    linear_pass,
    penalized_linear_pass,
    softmax_loss_vectorized,
    svm_loss_vectorized,
)
from gpuclf.samples.folding import FoldedSamples
from gpuclf.samples.standardized import Standardized

pytestmark = pytest.mark.usefixtures("cuda_on_cpu")

LAUNCHES = ["pack_weights", "score_rows", "multiply_gradients", "sum_partials"]
TWO_READINGS = {"walks": ("backwards",)}


def arguments(n=200, d=96, c=10, loss=softmax_cross_entropy, seed=0, X=None):
    rng = np.random.default_rng(seed)
    # Columns, rows and classes of different sizes: what is swapped does not go unseen.
    if X is None:
        X = rng.integers(0, rng.integers(20, 256, d), (n, d)).astype(np.uint8)
    W = (rng.standard_normal((d, c)) * np.geomspace(0.3, 3, c) / d).astype(np.float32)
    return {
        "W": W,
        "b": rng.standard_normal(c).astype(np.float32),
        "samples": FoldedSamples(X, c, np.float32),
        "y": rng.integers(0, c, n),
        "weights": (rng.random(n) / n).astype(np.float32),
        "data_loss": loss,
    }


def in_float64(given):
    samples = given["samples"]
    X = samples.standardized or samples.stored
    wide = {name: given[name].astype(np.float64) for name in ("W", "b", "weights")}
    wide["samples"] = FoldedSamples(X, given["W"].shape[1], np.float64)
    return linear_pass.reference(**given | wide)


def assert_as_exact_as_float32(given, found):
    """Within twice the error of the shared body in float32, give or take ten roundings.

    The share that does not depend on the shared body is there because its error can be nearly 0 by
    luck, and because tensor cores truncate: the products in float32 of a GPU's BLAS have some
    3e-7 as well.
    """
    truth, reference = in_float64(given), linear_pass.reference(**given)
    # Of a loss or gradient that cancels, what it is the sum of counts.
    sizes = [np.abs(truth[0]), np.linalg.norm(truth[1]), np.sum(np.abs(given["weights"]))]
    for ours, theirs, exact, size in zip(found, reference, truth, sizes, strict=True):
        assert ours.shape == exact.shape
        assert ours.dtype == theirs.dtype
        allowed = 2 * np.linalg.norm(theirs - exact) + 6e-7 * size
        assert np.linalg.norm(ours - exact) <= allowed


def hidden_features(samples):
    found = copy(samples)
    found.stored = hidden(found.stored)
    if found.standardized is not None:
        found.standardized = copy(found.standardized)
        found.standardized.mean = hidden(found.standardized.mean)
        found.standardized.scale = hidden(found.standardized.scale)
    return found


def run(given, **options):
    given = given | {"samples": hidden_features(given["samples"])}
    found = with_hidden_arrays(linear_pass_on_tensor_cores)(**given, **TWO_READINGS | options)
    assert found is not NotImplemented
    return found


# Rows around a fragment (16), a group (64) and a block; columns around a chunk (64) and a strip
# (128), in copies of 16, 8 and 4 bytes; classes around tiles of 8 and 16, with and without tails
# beside heads; more strips than a block takes.
@pytest.mark.essential_cases(2)
@pytest.mark.parametrize(
    ("d", "c", "loss", "rows"),
    [
        (3072, 10, softmax_cross_entropy, [161]),
        (64, 16, multiclass_hinge, [257, 320]),
        (96, 2, softmax_cross_entropy, [33, 63, 64, 65]),
        (100, 10, multiclass_hinge, [161, 175, 177]),
        (64, 1, multiclass_hinge, [17, 130]),
        (136, 17, softmax_cross_entropy, [273, 300]),
        (1168, 13, softmax_cross_entropy, [209]),
        (72, 64, softmax_cross_entropy, [1025]),
    ],
)
def test_as_exact_as_the_shared_pass(cuda_on_cpu, d, c, loss, rows):
    for n in rows:
        for order in ORDERS if n == rows[0] and n < 1000 else ["forward"]:
            cuda_on_cpu.order = order
            given = arguments(n, d, c, loss)
            before = {name: np.copy(given[name]) for name in ("W", "b", "y", "weights")}
            assert_as_exact_as_float32(given, run(given))
            for name, value in before.items():
                np.testing.assert_array_equal(given[name], value)
    assert cuda_on_cpu.launches[-4:] == LAUNCHES


def limit(monkeypatch, **constants):
    monkeypatch.setattr(linear_pass_on_cupy, "_plan", linear_pass_on_cupy._plan.__wrapped__)
    for name, value in constants.items():
        monkeypatch.setattr(linear_pass_on_cupy, name, value)


@pytest.mark.slow
def test_rows_of_several_blocks_and_shares(monkeypatch):
    limit(monkeypatch, MIN_SCORE_BLOCKS=0, MAX_GRADIENT_BLOCKS=3)  # blocks of 192 rows
    for n in (193, 800):
        given = arguments(n)
        assert_as_exact_as_float32(given, run(given))


@pytest.mark.slow
def test_a_second_walk_from_another_group_is_caught(cuda_on_cpu, monkeypatch):
    change = "share + (n_own_groups - 1) * n_shares;", "share;"
    with (
        cuda_on_cpu.broken("linear_pass.cu", change),
        pytest.raises((AssertionError, CudaOnCpuError)),
    ):
        test_rows_of_several_blocks_and_shares(monkeypatch)


@pytest.mark.parametrize("order", ORDERS)
def test_the_same_bits_in_any_order(cuda_on_cpu, order):
    given = arguments(400)
    expected = [value.tobytes() for value in run(given)]
    cuda_on_cpu.order = order
    for _ in range(2):
        assert [value.tobytes() for value in run(given)] == expected


@pytest.mark.slow
def test_tf32_has_eleven_bits():
    given = arguments()
    found, truth = run(given, precision="tf32"), in_float64(given)
    for ours, exact in zip(found[:2], truth[:2], strict=True):
        error = np.linalg.norm(ours - exact) / np.linalg.norm(exact)
        assert 1e-8 < error < 4e-4
    assert np.linalg.norm(found[1] - truth[1]) > 2e-5 * np.linalg.norm(truth[1])


def test_long_sums_keep_their_digits(monkeypatch):
    limit(monkeypatch, MAX_GRADIENT_BLOCKS=1)
    # One sign, so that whatever is cut off adds up.
    given = arguments(5000) | {"y": np.zeros(5000, int)}
    given["samples"].stored[:] = np.maximum(given["samples"].stored, 200)
    assert_as_exact_as_float32(given, run(given))


# ------------------------------------------------------------------------- difficult numbers


@pytest.mark.slow
@pytest.mark.parametrize("loss", [softmax_cross_entropy, multiclass_hinge])
def test_scores_far_apart_and_far_from_zero(loss):
    given = arguments(loss=loss)
    given["W"] *= 1000  # gaps of thousands
    given["b"] += 1000
    assert_as_exact_as_float32(given, run(given))
    given["W"][:] = 0
    given["b"][:] = [0, 1e4, *(8 * [-1e4])]
    assert_as_exact_as_float32(given, run(given))


def test_weights_of_very_different_size():
    given = arguments()
    given["weights"] *= np.geomspace(1e-12, 1, 200).astype(np.float32)
    given["weights"][::3] = 0
    given["W"] *= np.geomspace(1e-6, 1e2, 96).astype(np.float32)[:, None]
    assert_as_exact_as_float32(given, run(given))
    given["weights"][:] = 0
    assert all(not np.any(value) for value in run(given))


def test_columns_that_outweigh_the_others():
    given = arguments()
    given["samples"].stored[:, 5] = np.arange(200) % 2 * 255
    given["W"][5] = 30
    given["W"][70:] *= 1e-20
    assert_as_exact_as_float32(given, run(given))


def assert_ends_of_the_range_are_exact():
    given = arguments()
    given["W"][64:] = 1e-41  # a chunk of subnormal numbers
    assert_as_exact_as_float32(given, run(given))
    given["W"][5] = 1e37 * np.linspace(-1, 1, 10)
    given["samples"].stored[:, 5] = 129
    assert_as_exact_as_float32(given, run(given))
    given = arguments()
    given["weights"][:] = 1e-42
    # Subnormal gradients may become 0, but nothing else.
    for ours, exact in zip(run(given)[1:], in_float64(given)[1:], strict=True):
        assert np.max(np.abs(ours - exact)) < 1e-36


def test_numbers_at_the_ends_of_the_range():
    assert_ends_of_the_range_are_exact()


def test_pixels_of_0_and_255_only():
    given = arguments()
    given["samples"].stored[:] = given["samples"].stored % 2 * 255
    given["samples"].stored[::2] = 255
    assert_as_exact_as_float32(given, run(given))


@pytest.mark.slow
def test_a_margin_of_exactly_zero_has_no_gradient():
    given = arguments(loss=multiclass_hinge) | {"y": np.full(200, 5)}
    given["W"][:] = 0
    given["b"][:] = 0
    given["b"][3] = -1.0
    _, dW, db = run(given)
    assert not np.any(dW[:, 3])
    assert db[3] == 0


@pytest.mark.parametrize("loss", [softmax_cross_entropy, multiclass_hinge])
@pytest.mark.parametrize("label", [-1, 10, 2**32 + 3])
def test_labels_out_of_range_give_nan_and_nothing_else(loss, label):
    given = arguments(loss=loss)
    given["y"][77] = label
    found, expected = run(given), linear_pass.reference(**given)
    assert np.isnan(found[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[2], expected[2], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", [softmax_cross_entropy, multiclass_hinge])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_are_not_lost(loss, value):
    given = arguments(loss=loss)
    given["W"][40, 3] = value
    loss_found, dW, db = run(given)
    assert np.isnan(loss_found)
    if loss is softmax_cross_entropy:
        assert np.isnan(dW).all()
        assert np.isnan(db).all()


def test_labels_of_any_integer_type_and_stride():
    given = arguments()
    expected = run(given)
    for y in (given["y"].astype(np.uint8), np.repeat(given["y"], 2)[::2]):
        for ours, theirs in zip(run(given | {"y": y}), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_without_bias():
    given = arguments()
    expected = run(given | {"b": np.zeros(10, np.float32)})
    for ours, theirs in zip(run(given | {"b": None}), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_samples_at_addresses_of_any_alignment():
    given = arguments()
    expected = run(given)
    room = np.zeros(200 * 96 + 64, np.uint8)
    for offset, fits in ((4, True), (2, False), (1, False)):
        start = -room.ctypes.data % 16 + offset
        X = room[start : start + 200 * 96].reshape(200, 96)
        X[:] = given["samples"].stored
        samples = FoldedSamples(X, 10, np.float32)
        found = linear_pass_on_tensor_cores(**given | {"samples": samples}, **TWO_READINGS)
        assert (found is not NotImplemented) == fits
        if fits:
            assert found[1].tobytes() == expected[1].tobytes()


# --------------------------------------------------------------------------- the public path


KERNELS = {
    linear_pass: linear_pass_on_tensor_cores,
    penalized_linear_pass: linear_objective_on_tensor_cores,
}


@pytest.fixture(params=KERNELS, ids=lambda seam: seam.__name__)
def as_if_cupy(monkeypatch, request):
    calls = []

    def on_tensor_cores(*args, **kwargs):
        found = KERNELS[request.param](*args, **kwargs, **TWO_READINGS)
        assert found is not NotImplemented
        calls.append(request.param)
        return found

    monkeypatch.setitem(request.param.kernels, "numpy", (on_tensor_cores,))
    return calls


def reference(function, *args):
    """Call a public function with the shared bodies."""
    with pytest.MonkeyPatch.context() as patch:
        for seam in KERNELS:
            patch.setitem(seam.kernels, "numpy", ())
        return function(*args)


@pytest.mark.parametrize("public", [softmax_loss_vectorized, svm_loss_vectorized])
def test_public_losses(as_if_cupy, public):
    given = arguments()
    X, W, y = given["samples"].stored, given["W"], given["y"]
    loss, dW = public(W, X, y, 0.1)
    assert len(as_if_cupy) == 1
    exact_loss, exact_dW = reference(public, W.astype(np.float64), X, y, 0.1)
    assert float(loss) == pytest.approx(float(exact_loss), rel=5e-7)
    assert np.linalg.norm(dW - exact_dW) <= 5e-7 * np.linalg.norm(exact_dW)


@pytest.mark.parametrize("weights", [None, np.full(200, 0.3 / 200, np.float32)])
def test_standardised_samples_with_stressed_means(as_if_cupy, weights):
    # What is left after the means cancel varies by chance: the errors of six cases count together.
    errors = []
    for seed in range(6):
        given = arguments(seed=seed)
        X, y = given["samples"].stored, given["y"]
        X[:] = 240 + X % 4  # far from 128 for so small a scale
        samples = Standardized.fit(X)
        params = {"W": given["W"] * 20, "b": given["b"]}
        wide = {key: value.astype(np.float64) for key, value in params.items()}
        rest = samples, y, 0.01, weights
        found = SOFTMAX.objective(params, *rest)
        shared = reference(SOFTMAX.objective, params, *rest)
        truth = reference(SOFTMAX.objective, wide, *rest)
        for loss, grads in (found, shared):
            differences = [loss - truth[0], *(grads[key] - truth[1][key] for key in ("W", "b"))]
            errors.append([np.linalg.norm(difference) for difference in differences])
    assert len(as_if_cupy) == 6
    ours, theirs = np.sum(errors[::2], axis=0), np.sum(errors[1::2], axis=0)
    assert (ours <= 2 * theirs).all()


def assert_objective_is_exact(cuda_on_cpu, data_loss):
    for standardized in (False, True):
        for b in (None, np.linspace(-1, 1, 10, dtype=np.float32)):
            given = arguments()
            X = given["samples"].stored
            X = Standardized.fit(X) if standardized else X
            W, rest = given["W"] * 5, (given["y"], None, data_loss, 0.3)
            samples = hidden_features(FoldedSamples(X, 10, np.float32))
            objective = with_hidden_arrays(linear_objective_on_tensor_cores)
            found = objective(W, b, samples, *rest, **TWO_READINGS)
            assert cuda_on_cpu.launches[-4:] == LAUNCHES
            wide = [None if x is None else x.astype(np.float64) for x in (W, b)]
            truth = penalized_linear_pass.reference(*wide, FoldedSamples(X, 10, np.float64), *rest)
            for ours, exact in zip(found, truth, strict=True):
                assert np.linalg.norm(ours - exact) <= 3e-6 * max(np.linalg.norm(exact), 1)


@pytest.mark.parametrize("data_loss", [softmax_cross_entropy, multiclass_hinge])
def test_penalty_and_folding_in_the_same_launches(cuda_on_cpu, data_loss):
    assert_objective_is_exact(cuda_on_cpu, data_loss)
    assert len(cuda_on_cpu.launches) == 16


# ----------------------------------------------------------------------------------- declining


def declined(change=None, limits=None, **options):
    given = arguments(**options)
    given |= change(given) if change else {}
    answers = [linear_pass_on_tensor_cores(**given, walks=(w,)) for w in ("once", "backwards")]
    return all(answer is NotImplemented for answer in answers)


def test_declines_what_it_cannot_do(cuda_on_cpu):
    floats = np.zeros((200, 96), np.float32)
    columns = np.zeros((200, 200), np.uint8)[:, ::2]
    assert declined(lambda g: {"precision": "float64"})
    assert declined(lambda g: {"W": g["W"].astype(np.float64)})
    assert declined(lambda g: {"W": np.stack([g["W"]] * 2)})
    assert declined(lambda g: {"W": np.asfortranarray(g["W"])})
    assert declined(lambda g: {"weights": g["weights"].astype(np.float64)})
    assert declined(lambda g: {"b": g["b"][::-1]})
    assert declined(lambda g: {"data_loss": lambda *_: None})
    assert declined(lambda g: {"data_loss": partial(multiclass_hinge, margin=2.0)})
    assert declined(lambda g: {"models": (2,)})
    assert declined(lambda g: {"samples": FoldedSamples(floats, 10, np.float32)})
    assert declined(lambda g: {"samples": FoldedSamples(columns, 10, np.float32)})
    assert declined(n=160)  # not folded: too few rows
    assert declined(d=98)
    assert declined(n=2000, c=65)
    cuda_on_cpu.limits = cuda_modules.DeviceLimits(75, 40, 64 << 10)
    assert declined()
    assert cuda_on_cpu.launches == []


@pytest.mark.slow
def test_devices_with_less_shared_memory(cuda_on_cpu):
    given = arguments(161, 3072)
    expected = run(given)
    cuda_on_cpu.limits = cuda_modules.DeviceLimits(89, 128, 99 << 10)
    for ours, theirs in zip(run(given), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


# ------------------------------------------------------------------------------ broken kernels

BROKEN = {
    "pack: wrong columns in a fragment": ("i / 2 % 4 * 16 + step * 4", "i / 2 % 4 * 4 + step * 16"),
    "pack: barrier dropped": (
        "__syncthreads();\n    for (int i = 0; i < 8;",
        "for (int i = 0; i < 8;",
    ),
    "pack: tails dropped": ("is_tail ? tails : heads", "is_tail ? uint2{0, 0} : heads"),
    "scores: first wait dropped": ("wait_for_copies<SCORE_STAGES - 2>();", ""),
    "scores: barrier of a stage dropped": (
        "wait_for_copies<SCORE_STAGES - 2>();\n        __syncthreads();",
        "wait_for_copies<SCORE_STAGES - 2>();",
    ),
    "scores: wrong row maximum": ("largest = row_max<LANES>(largest);", "largest = values[0];"),
    "scores: rows of a fragment swapped": ("a[0][i / 2][i % 2],", "a[0][i / 2][1 - i % 2],"),
    "scores: tails beside heads not added": (
        "score += __shfl_xor_sync(~0u, score, 2);",
        "score += 0.0f;",
    ),
    "scores: rows beyond the last read": (
        "min(first_row + 8 * i + group, n_samples - 1)",
        "first_row + 8 * i + group",
    ),
    "scores: rows beyond the last counted": ("exists = row < n_samples;", "exists = true;"),
    "gradients: barrier of a stage dropped": (
        "wait_for_copies<GRADIENT_STAGES - 2>();\n        __syncthreads();",
        "wait_for_copies<GRADIENT_STAGES - 2>();",
    ),
    "gradients: rows beyond the last read": ("if (i < n_rows_left)", "if (true)"),
    "gradients: swizzle of the copy dropped": ("(lane % 8 ^ 2 * copy_row)", "lane % 8"),
    "gradients: rows in another order than G": (
        "interleave_bytes(pixels[2 * i][word], pixels[2 * i + 1][word]",
        "interleave_bytes(pixels[i][word], pixels[i + 2][word]",
    ),
    "gradients: tails dropped": ("int part = PARTS - 1; part >= 0;", "int part = 0; part >= 0;"),
    "sums: first share left out": (
        "int share = 0; share < n_shares;",
        "int share = 1; share < n_shares;",
    ),
    "sums: two columns swapped": (
        "lane % 4 * 32 + i * 16",
        "lane % 4 * 32 + 16 - i * 16",
    ),
}


BROKEN_FOLDING = {
    "scores: b not folded": (" - moved);", ");"),
    "sums: dW not unfolded": ("- factor_and_shift.y *", "- 0 * factor_and_shift.y *"),
    "sums: penalty without its factor": ("2.0 * penalty", "penalty"),
    "pack: squares of one warp only": ("for (int i = 1; i < 8; ++i) sum += squares[i];", ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN_FOLDING)
def test_broken_folding_is_caught(cuda_on_cpu, name):
    with (
        cuda_on_cpu.broken("linear_pass.cu", BROKEN_FOLDING[name]),
        pytest.raises((AssertionError, CudaOnCpuError)),
    ):
        assert_objective_is_exact(cuda_on_cpu, softmax_cross_entropy)


# As scale_exponent would be without its limits, or with too narrow ones.
BROKEN_SCALES = {
    "pack: no least exponent": (
        "scale_exponent(largest);\n    const float enlargement",
        "14 - ilogbf(largest);\n    const float enlargement",
    ),
    "pack: greatest exponent too small": (
        "scale_exponent(largest);\n    const float enlargement",
        "max(scale_exponent(largest), -86);\n    const float enlargement",
    ),
    "scores: no least exponent": (
        "scale_exponent(largest);\n    const float scale",
        "14 - ilogbf(largest);\n    const float scale",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN_SCALES)
def test_broken_scales_are_caught(cuda_on_cpu, name):
    with (
        cuda_on_cpu.broken("linear_pass.cu", BROKEN_SCALES[name]),
        pytest.raises(AssertionError),
    ):
        assert_ends_of_the_range_are_exact()


@pytest.fixture(scope="module")
def compiled():
    """Compile the broken kernels together: one after another would be half of the time."""
    if compiler() is None:
        return
    plan = linear_pass_on_cupy._plan(200, 72, 10, 2, 0, 8, 227 << 10)
    constants = tuple(sorted(plan.constants.items()))
    compile_together("linear_pass.cu", BROKEN.values(), constants)


@pytest.mark.slow
@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("name", BROKEN)
def test_broken_kernels_are_caught(cuda_on_cpu, name):
    given = arguments(200, 72)
    with cuda_on_cpu.broken("linear_pass.cu", BROKEN[name]):
        caught = False
        for order in ORDERS:
            cuda_on_cpu.order = order
            try:
                assert_as_exact_as_float32(given, run(given))
            except (AssertionError, CudaOnCpuError):
                caught = True
        assert caught
