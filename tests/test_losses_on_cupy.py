"""The fused losses, run on the CPU, against the shared bodies."""

import inspect

import numpy as np
import pytest
from cuda_on_cpu import ORDERS, CudaOnCpuError, with_hidden_arrays

from gpuclf import dispatch
from gpuclf.arrays import MixedDevicesError, to_host
from gpuclf.devices.backends import to_device
from gpuclf.devices.cupy import probe_cupy
from gpuclf.kernels.losses import on_gpu as losses_on_cupy
from gpuclf.kernels.losses.on_gpu import fused_multiclass_hinge, fused_softmax_cross_entropy
from gpuclf.losses import multiclass_hinge, softmax_cross_entropy

LOSSES = {
    "softmax": (with_hidden_arrays(fused_softmax_cross_entropy), softmax_cross_entropy.reference),
    "hinge": (with_hidden_arrays(fused_multiclass_hinge), multiclass_hinge.reference),
}
SIZES = [1, 31, 32, 33, 1000]


@pytest.fixture(params=LOSSES)
def name(request):
    return request.param


def make(n, c, dtype=np.float32, models=(), seed=0):
    """Return scores of very different rows, labels, and weights."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(*models, n, c)) * 3
    scores[..., ::3, :] += 1e3
    scores[..., 1::5, c // 2] = 1e4
    scores[..., 2::5, 0] = -1e4
    labels = rng.integers(0, c, n)
    return scores.astype(dtype), labels, rng.random((*models, n)).astype(dtype)


def check(device, name, scores, labels, weights=None, orders=ORDERS):
    """Compare with the shared body: no further from the truth than twice its error and 4 eps.

    Whatever the order of threads and blocks, no bit may change.
    """
    fused, reference = LOSSES[name]
    plain = reference(scores, labels, weights)
    wide = None if weights is None else weights.astype(np.longdouble)
    truth = reference(scores.astype(np.longdouble), labels, wide)
    eps = np.finfo(scores.dtype).eps
    first = None
    for order in orders:
        device.order = order
        found = fused(scores, labels, weights)
        assert found is not NotImplemented
        assert found[0].shape == scores.shape[:-2]
        assert found[0].dtype == np.float64
        assert found[1].shape == scores.shape
        assert found[1].dtype == scores.dtype
        for one, body, true in zip(found, plain, truth, strict=True):
            budget = 2 * np.max(np.abs(body - true)) + 4 * eps * np.max(np.abs(true))
            error = np.max(np.abs(one - true))
            assert error <= budget, f"{order}: error {error}, allowed {budget}"
        first = first or found
        for one, other in zip(found, first, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.essential_cases(3, in_ci=40)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("c", SIZES)
def test_loss_and_gradient_for_ragged_sizes(cuda_on_cpu, name, n, c, dtype):
    orders = ["reversed"] if n == c == 1000 else ORDERS
    check(cuda_on_cpu, name, *make(n, c, dtype)[:2], orders=orders)
    assert cuda_on_cpu.launches[-1] == "add_partials"


@pytest.mark.essential_cases(5)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("c", [10, 33, 1000])
def test_ordinary_scores_where_no_outlier_hides_an_error(cuda_on_cpu, name, c, dtype):
    rng = np.random.default_rng(c)
    scores = rng.normal(size=(100, c)).astype(dtype)
    check(cuda_on_cpu, name, scores, rng.integers(0, c, 100))
    check(cuda_on_cpu, name, scores + dtype(1e3), rng.integers(0, c, 100))


@pytest.mark.essential_cases(2)
@pytest.mark.parametrize("c", [2, 3, 5, 10, 17])
def test_rows_shared_by_few_lanes(cuda_on_cpu, name, c):
    check(cuda_on_cpu, name, *make(77, c, seed=c))


@pytest.mark.parametrize("models", [(3,), (2, 2)])
def test_model_axes_and_weights(cuda_on_cpu, name, models):
    scores, labels, weights = make(41, 10, models=models)
    for w in (None, weights, weights[(0,) * len(models)]):
        check(cuda_on_cpu, name, scores, labels, w)


def test_more_rows_than_the_grid_takes_at_once(cuda_on_cpu, monkeypatch, name):
    monkeypatch.setattr(losses_on_cupy, "MAX_BLOCKS", 3)
    scores, labels, weights = make(300, 10, models=(2,))
    check(cuda_on_cpu, name, scores, labels, weights)


@pytest.mark.essential_cases(2)
@pytest.mark.parametrize(
    "dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
)
def test_labels_of_any_integer_type(cuda_on_cpu, name, dtype):
    scores, labels, _ = make(20, 100)
    check(cuda_on_cpu, name, scores, labels.astype(dtype), orders=["forward"])


@pytest.mark.parametrize("wrong", [-1, 10, 99, 2**40])
def test_a_label_out_of_range_makes_the_loss_nan(cuda_on_cpu, name, wrong):
    fused, reference = LOSSES[name]
    scores, labels, _ = make(33, 10)
    labels[17] = wrong
    loss, gradient = fused(scores, labels)
    assert np.isnan(loss)
    np.testing.assert_allclose(gradient, reference(scores, labels)[1], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("column", [0, 5, 9])
def test_nan_in_the_scores_makes_the_loss_nan(cuda_on_cpu, name, column):
    fused, reference = LOSSES[name]
    scores, labels, _ = make(33, 10, models=(2,))
    scores[0, 20, column] = np.nan
    loss, gradient = fused(scores, labels)
    assert np.isnan(loss[0])
    assert np.isfinite(loss[1])  # of another model
    scores[0, 20] = 0  # in that row the shared body of the hinge gives another gradient
    expected = reference(scores, labels)[1]
    others = np.arange(33) != 20
    np.testing.assert_allclose(gradient[:, others], expected[:, others], rtol=1e-5, atol=1e-8)
    if name == "softmax":
        assert np.all(np.isnan(gradient[0, 20]))


def test_infinite_scores_give_no_plausible_loss(cuda_on_cpu, name):
    scores, labels, _ = make(8, 10)
    scores[3, (labels[3] + 1) % 10] = np.inf
    assert not np.isfinite(LOSSES[name][0](scores, labels)[0])


def test_repeated_runs_give_the_same_bits(cuda_on_cpu, name):
    scores, labels, _ = make(500, 10)
    results = [LOSSES[name][0](scores, labels) for _ in range(3)]
    for loss, gradient in results:
        assert loss.tobytes() == results[0][0].tobytes()
        assert gradient.tobytes() == results[0][1].tobytes()


def test_inputs_may_be_strided_and_read_only_and_stay_as_they_are(cuda_on_cpu, name):
    scores, labels, weights = make(40, 10)
    strided = [np.repeat(x, 2, axis=-1)[..., ::2] for x in (scores, labels, weights)]
    for x in strided:
        x.flags.writeable = False
    check(cuda_on_cpu, name, *strided)
    np.testing.assert_array_equal(strided[0], scores)


def test_many_classes_and_few_rows(cuda_on_cpu, name):
    check(cuda_on_cpu, name, *make(3, 5000, models=(2,)))


def test_the_shared_function_finds_its_kernel(cuda_on_cpu, monkeypatch, name):
    monkeypatch.setattr(dispatch, "library_name", lambda x: "cupy")
    function = {"softmax": softmax_cross_entropy, "hinge": multiclass_hinge}[name]
    scores, labels, weights = make(5, 4)
    first = next(iter(inspect.signature(function).parameters))
    found = function(**{first: scores}, labels=labels, sample_weight=weights)
    assert cuda_on_cpu.launches == [function.__name__, "add_partials"]
    for one, other in zip(found, LOSSES[name][0](scores, labels, weights), strict=True):
        np.testing.assert_array_equal(one, other)


def test_hinge_with_another_margin(cuda_on_cpu):
    scores, labels, _ = make(40, 10)
    loss, gradient = fused_multiclass_hinge(scores, labels, margin=2.5)
    expected = multiclass_hinge.reference(scores.astype(float), labels, margin=2.5)
    np.testing.assert_allclose(loss, expected[0], rtol=1e-6)
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-6)
    assert fused_multiclass_hinge(scores, labels, margin=np.ones(1)) is NotImplemented


def test_a_kink_has_the_subgradient_zero(cuda_on_cpu):
    scores = np.array([[3.0, 2.5, -1.0, 2.0]], np.float32)
    loss, gradient = fused_multiclass_hinge(scores, np.array([0]))
    assert loss == 0.5
    np.testing.assert_array_equal(gradient, [[-1, 1, 0, 0]])


def declined(scores, labels, weights):
    yield scores.astype(np.float16), labels, None
    yield scores[0], labels, None
    yield scores[:0], labels[:0], None
    yield scores, labels[:-1], None
    yield scores, labels.astype(np.float32), None
    yield scores, labels, weights.astype(np.float64)
    yield scores, labels, weights[:, None]
    yield np.zeros((2, 20_000), np.float32), labels[:2], None
    yield np.zeros((70_000, 1, 1), np.float32), labels[:1], None


def test_what_the_kernel_cannot_do_is_declined_before_a_launch(cuda_on_cpu, name):
    for arguments in declined(*make(5, 4)):
        assert LOSSES[name][0](*arguments) is NotImplemented
    assert cuda_on_cpu.launches == []


def test_arrays_of_two_libraries_are_refused(cuda_on_cpu, strict, name):
    scores, labels, _ = make(5, 4)
    with pytest.raises(MixedDevicesError):
        LOSSES[name][0](scores, strict.asarray(labels))


# Each is what could go wrong with a kernel of this kind; all must show in `check`.
BROKEN = {
    "both": {
        "no barrier before the block's sum": ("    __syncthreads();\n", ""),
        "one lane's share lost": ("step = width / 2; step > 0", "step = width / 2; step > 1"),
        "shuffles across rows": ("x, step, width)", "x, step ^ 16, 32)"),
        "rows past the end counted": ("if (row.exists && row.lane == 0)", "if (row.lane == 0)"),
        "rows past the end written": ("row.exists = i < n_samples;", "row.exists = true;"),
        "row of another model": ("(model * n_samples + i)", "(model + i)"),
        "weights of another model": ("weights[model * weights_of_a_model + i]", "weights[i]"),
        "label of another row": ("row.label = labels[i]", "row.label = labels[first]"),
        "blocks take the same rows": ("(blockIdx.x * WARPS + warp)", "(warp)"),
        "last partial left out": ("i < n_partials; i += 32", "i < n_partials - 1; i += 32"),
    },
    "softmax": {
        "first score for the maximum": ("maximum = maximum_over_lanes(maximum);", ""),
        "maximum of the first lane's classes": (
            "maximum = maximum_over_lanes(maximum);",
            "maximum = __shfl_sync(ALL, maximum, 0, LANES);",
        ),
        "smallest for the maximum": ("other > x ? other", "other < x ? other"),
        "no maximum": ("maximum = maximum_over_lanes(maximum);", "maximum = 0;"),
        "label not subtracted": ("probability - REAL(c == row.label)", "probability"),
        "label one off": ("REAL(c == row.label)", "REAL(c + 1 == row.label)"),
    },
    "hinge": {
        "label's own margin counted": ("excess > 0 && c != row.label", "excess > 0"),
        "slope of the label missing": ("0 - n_violated", "0"),
        "margin forgotten": (
            "row.scores[c] - label_score + margin > 0",
            "row.scores[c] - label_score > 0",
        ),
        "label score of the next class": (
            "row.scores[row.label]",
            "row.scores[(row.label + 1) % n_classes]",
        ),
    },
}


def variants(name):
    return {**BROKEN["both"], **BROKEN[name]}


@pytest.mark.slow
def test_broken_variants_are_caught(cuda_on_cpu, monkeypatch, name):
    monkeypatch.setattr(losses_on_cupy, "MAX_BLOCKS", 3)
    # Two models with weights of their own, rows that fill no block, one row past the last warp.
    scores, labels, weights = make(131, 10, models=(2,), seed=3)
    check(cuda_on_cpu, name, scores, labels, weights)
    missed = []
    for what, replacement in variants(name).items():
        with cuda_on_cpu.broken("losses.cu", replacement):
            try:
                check(cuda_on_cpu, name, scores, labels, weights)
            except (AssertionError, CudaOnCpuError):
                continue
        missed.append(what)
    assert missed == []


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "c"), [(1, 1), (31, 33), (1000, 10), (257, 1000), (50_000, 10)])
def test_a_gpu_gives_the_same_and_the_same_bits_each_time(name, n, c, dtype):
    if not probe_cupy().usable:
        pytest.skip(probe_cupy().reason)
    fused, reference = LOSSES[name]
    scores, labels, weights = make(n, c, dtype, models=(2,))
    for arrays in ((scores, labels, None), (scores, labels, weights)):
        on_device = [x if x is None else to_device(x, "cupy") for x in arrays]
        runs = [[to_host(x) for x in fused(*on_device)] for _ in range(20)]
        plain = reference(*arrays)
        wide = None if arrays[2] is None else arrays[2].astype(np.longdouble)
        truth = reference(scores.astype(np.longdouble), labels, wide)
        eps = np.finfo(dtype).eps
        for k, (body, true) in enumerate(zip(plain, truth, strict=True)):
            budget = 2 * np.max(np.abs(body - true)) + 8 * eps * np.max(np.abs(true))
            assert np.max(np.abs(runs[0][k] - true)) <= budget
            assert {run[k].tobytes() for run in runs} == {runs[0][k].tobytes()}
