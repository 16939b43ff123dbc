"""The two-layer net's full pass on tensor cores, run on the CPU: wrapper and kernels."""

from copy import copy

import numpy as np
import pytest
from cuda_on_cpu import ORDERS, CudaOnCpuError, hidden, with_hidden_arrays
from cuda_on_cpu.compilation import compile_together

from gpuclf import to_device, to_host
from gpuclf.devices.cupy import probe_cupy
from gpuclf.kernels.building import cuda as cuda_modules
from gpuclf.kernels.two_layer_pass import on_gpu as two_layer_pass_on_cupy
from gpuclf.kernels.two_layer_pass.on_gpu import two_layer_pass_on_tensor_cores
from gpuclf.losses import multiclass_hinge
from gpuclf.models.two_layer import two_layer_loss, two_layer_pass
from gpuclf.samples import folding as features_module
from gpuclf.samples.folding import FoldedSamples
from gpuclf.samples.standardized import Standardized
from gpuclf.samples.streamed import Streamed

NAMES = ("W1", "b1", "W2", "b2")
LAUNCHES = ["pack_weights", "project_rows", "second_layer", "multiply_gradients"]
LAUNCHES += ["sum_groups", "sum_partials"]


@pytest.fixture(autouse=True)
def few_rows_fold(monkeypatch):
    monkeypatch.setattr(features_module, "ROWS_TO_FOLD", 0)


def arguments(n=130, d=96, h=20, c=5, seed=0, weights=True, standardized=True):
    rng = np.random.default_rng([seed, n, d, h, c])
    # Columns, units, rows and classes of different sizes: what is swapped does not go unseen.
    X = rng.integers(0, rng.integers(120, 256, d), (n, d)).astype(np.uint8)
    params = {
        "W1": rng.standard_normal((d, h)) * np.geomspace(0.3, 3, h) / d**0.5,
        "b1": rng.standard_normal(h) * 0.3,
        "W2": rng.standard_normal((h, c)) * np.geomspace(0.5, 2, c) / h**0.5,
        "b2": rng.standard_normal(c) * 0.3,
    }
    if not standardized:
        params["W1"] /= 100
    return {name: value.astype(np.float32) for name, value in params.items()} | {
        "samples": FoldedSamples(Standardized.fit(X) if standardized else X, h, np.float32),
        "y": rng.integers(0, c, n),
        "sample_weight": (rng.random(n) / n).astype(np.float32) if weights else None,
        "reg": 0.02,
    }


def in_float64(given):
    samples, floats = given["samples"], (*NAMES, "sample_weight")
    wide = {k: given[k].astype(np.float64) for k in floats if given[k] is not None}
    X = samples.standardized or samples.stored
    wide["samples"] = FoldedSamples(X, given["W1"].shape[1], np.float64)
    return two_layer_pass.reference(**given | wide)


def assert_as_exact_as_float32(given, found):
    """Within twice the error of the shared body in float32, give or take ten roundings."""
    truth, shared = in_float64(given), two_layer_pass.reference(**given)
    for name, ours, theirs, exact in zip(("loss", *NAMES), found, shared, truth, strict=True):
        assert ours.shape == exact.shape
        assert ours.dtype == theirs.dtype
        allowed = 2 * np.linalg.norm(theirs - exact) + 6e-7 * np.linalg.norm(exact)
        assert np.linalg.norm(ours - exact) <= allowed, name


def run(given, **options):
    samples = copy(given["samples"])
    samples.stored = hidden(samples.stored)
    if samples.standardized is not None:
        given_to = samples.standardized
        samples.standardized = copy(given_to)
        samples.standardized.mean = hidden(given_to.mean)
        samples.standardized.scale = hidden(given_to.scale)
    found = with_hidden_arrays(two_layer_pass_on_tensor_cores)(
        **given | {"samples": samples}, **options
    )
    assert found is not NotImplemented
    return found


# Hidden units below a tile (8) and beyond a block (64), in blocks of unequal tiles; rows around a
# group (64) and within a fragment (16); columns around a chunk and a strip (64), in copies of 16, 8
# and 4 bytes, in more strips than a block takes.
@pytest.mark.essential_cases(1)
@pytest.mark.parametrize(
    ("n", "d", "h", "c"),
    [(130, 96, 20, 5), (66, 68, 65, 5), (49, 552, 9, 32)],
)
def test_as_exact_as_the_shared_pass(cuda_on_cpu, n, d, h, c):
    for standardized, order in zip((True, False, True), ORDERS, strict=True):
        cuda_on_cpu.order = order
        given = arguments(n, d, h, c, weights=order != "shuffled", standardized=standardized)
        before = {k: np.copy(v) for k, v in given.items() if isinstance(v, np.ndarray)}
        assert_as_exact_as_float32(given, run(given))
        for name, value in before.items():
            np.testing.assert_array_equal(given[name], value)
    assert cuda_on_cpu.launches[-6:] == LAUNCHES


def limit(monkeypatch, **constants):
    monkeypatch.setattr(two_layer_pass_on_cupy, "_plan", two_layer_pass_on_cupy._plan.__wrapped__)
    for name, value in constants.items():
        monkeypatch.setattr(two_layer_pass_on_cupy, name, value)


@pytest.mark.slow
def test_blocks_of_many_rows_and_the_same_bits_in_any_order(cuda_on_cpu, monkeypatch):
    limit(monkeypatch, MIN_ROW_BLOCKS=0, MAX_GRADIENT_BLOCKS=2)  # blocks of 192 rows
    given, bits = arguments(330, 40, 1, 1), set()
    for order in ORDERS:
        cuda_on_cpu.order = order
        found = run(given)
        bits.add(b"".join(value.tobytes() for value in found))
    assert len(bits) == 1
    assert_as_exact_as_float32(given, found)


@pytest.mark.slow
def test_tf32_has_eleven_bits(cuda_on_cpu):
    given = arguments()
    found, truth = run(given, precision="tf32"), in_float64(given)
    for ours, exact in zip(found, truth, strict=True):
        assert np.linalg.norm(ours - exact) < 1e-3 * np.linalg.norm(exact)
    assert np.linalg.norm(found[1] - truth[1]) > 1e-5 * np.linalg.norm(truth[1])


@pytest.mark.parametrize("shared_kilobytes", [64, 99, 163, 227])
@pytest.mark.parametrize("n_hidden", [1, 50, 64, 512])
def test_launches_fit_into_shared_memory(shared_kilobytes, n_hidden):
    shared = shared_kilobytes << 10
    plan = two_layer_pass_on_cupy._plan(50_000, 3072, n_hidden, 10, 2, 16, shared)
    launches = plan.project, plan.second, plan.multiply
    assert max(launch.shared_bytes for launch in launches) <= shared - 1024
    assert plan.constants["PROJECT_STAGES"] >= 2
    assert plan.n_shares == max(1, 22 // -(-n_hidden // 64))  # of any device


# ------------------------------------------------------------------------- difficult numbers


def test_long_sums_keep_their_digits(cuda_on_cpu, monkeypatch):
    limit(monkeypatch, MAX_GRADIENT_BLOCKS=1)
    # One sign, so that whatever is cut off adds up.
    given = arguments(1200, standardized=False) | {"y": np.zeros(1200, int)}
    given["samples"].stored[:] = np.maximum(given["samples"].stored, 200)
    given["W1"][:] = np.abs(given["W1"]) / 10
    given["W2"][:] = [-0.1, 0.1, 0.1, 0.2, 0.3]
    assert_as_exact_as_float32(given, run(given))


def test_columns_far_from_the_centre_of_bytes(cuda_on_cpu):
    # What is left after the means cancel varies by chance: the errors of four cases count together.
    errors = []
    for seed in range(4):
        given = arguments(seed=seed)
        pixels = 240 + given["samples"].stored % 4  # some 110 standard deviations from 128
        given["samples"] = FoldedSamples(Standardized.fit(pixels), 20, np.float32)
        truth = in_float64(given)
        for found in (run(given), two_layer_pass.reference(**given)):
            pairs = zip(found, truth, strict=True)
            errors.append([np.linalg.norm(x - e) / np.linalg.norm(e) for x, e in pairs])
    assert (np.sum(errors[::2], axis=0) <= 2 * np.sum(errors[1::2], axis=0) + 1e-6).all()


def test_numbers_of_very_different_size(cuda_on_cpu):
    given = arguments()
    given["W1"] *= np.geomspace(1e-4, 3, 96).astype(np.float32)[:, None]
    given["W1"][70:] *= 1e-20
    given["W2"] *= np.geomspace(1e-3, 3, 20).astype(np.float32)[:, None]
    given["sample_weight"] *= np.geomspace(1e-12, 1, 130).astype(np.float32)
    given["sample_weight"][::3] = 0
    assert_as_exact_as_float32(given, run(given))


def test_scores_far_apart(cuda_on_cpu):
    given = arguments()
    given["W2"] *= 1000
    given["b2"] += 1000
    # The few rows whose classes come close decide about the gradients, by luck of the last digits.
    for ours, exact in zip(run(given), in_float64(given), strict=True):
        assert np.linalg.norm(ours - exact) <= 1e-4 * np.linalg.norm(exact)


def test_dead_units_and_zeros(cuda_on_cpu):
    given = arguments()
    given["b1"][::2] = -1e4  # these units are never above zero
    found = run(given)
    assert_as_exact_as_float32(given, found)
    assert not np.any(found[2][::2])
    given["b1"][:] = -1e4
    given["reg"] = 0.0
    assert not np.any(run(given)[1])
    given["W1"][:] = 0
    given["b1"][:] = 0  # exactly at the kink: no gradient
    assert not np.any(run(given)[2])
    given["sample_weight"][:] = 0
    assert all(not np.any(value) for value in run(given))


@pytest.mark.parametrize("label", [-1, 5, 2**32 + 1])
def test_labels_out_of_range_give_nan_and_nothing_else(cuda_on_cpu, label):
    given = arguments()
    given["y"][77] = label
    found, expected = run(given), two_layer_pass.reference(**given)
    assert np.isnan(found[0])
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", NAMES)
def test_nan_and_infinity_are_not_lost(cuda_on_cpu, name, value):
    given = arguments()
    given[name].reshape(-1)[3] = value
    found = run(given)
    assert not np.isfinite(found[0])
    assert np.isnan(found[1]).any()


def test_labels_of_any_integer_type_and_stride(cuda_on_cpu):
    given = arguments()
    expected = run(given)
    for y in (given["y"].astype(np.uint8), np.repeat(given["y"], 2)[::2]):
        for ours, theirs in zip(run(given | {"y": y}), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


# --------------------------------------------------------------------- public path, declining


@pytest.mark.parametrize("weights", [None, np.linspace(0.5, 1.5, 130)])
def test_the_public_loss(cuda_on_cpu, monkeypatch, weights):
    given = arguments()
    params, X = {name: given[name] for name in NAMES}, given["samples"].standardized
    wide = {name: value.astype(np.float64) for name, value in params.items()}
    truth = two_layer_loss(wide, X, given["y"], 0.1, weights)
    monkeypatch.setitem(two_layer_pass.kernels, "numpy", (two_layer_pass_on_tensor_cores,))
    loss, grads = two_layer_loss(params, X, given["y"], 0.1, weights)
    assert cuda_on_cpu.launches == LAUNCHES
    assert float(loss) == pytest.approx(float(truth[0]), rel=1e-6)
    for name, exact in truth[1].items():
        assert np.linalg.norm(grads[name] - exact) <= 2e-6 * np.linalg.norm(exact)


def test_declines_what_it_cannot_do(cuda_on_cpu, monkeypatch):
    def declined(changes=(), **options):
        given = arguments(**options) | dict(changes)
        return two_layer_pass_on_tensor_cores(**given) is NotImplemented

    def of(X):
        return {"samples": FoldedSamples(X, 20, np.float32)}

    given = arguments()
    X, W1 = given["samples"].stored, given["W1"]
    assert declined({"precision": "float64"})
    assert declined({"hidden_mask": np.ones((130, 20), np.float32)})
    assert declined({"data_loss": multiclass_hinge})
    assert declined({"data_loss": lambda *_: None})
    assert declined({"sample_weight": np.ones(130)})
    assert declined({"sample_weight": np.ones((1, 130), np.float32)})
    assert declined({"W2": given["W2"].astype(np.float64)})
    assert declined({"b1": given["b1"][::-1]})
    assert declined({"W1": np.asfortranarray(W1)})
    assert declined({name: given[name][None] for name in NAMES})
    assert declined(of(X.astype(np.float32)))
    assert declined(of(np.repeat(X, 2, axis=1)[:, ::2]))
    assert declined(of(Streamed(X, like=X)))
    assert declined(d=98)
    assert declined(c=33)
    assert declined(n=20, h=513)
    cuda_on_cpu.limits = cuda_modules.DeviceLimits(75, 40, 64 << 10)
    assert declined()
    cuda_on_cpu.limits = cuda_modules.DeviceLimits(90, 132, 16 << 10)
    assert declined()
    monkeypatch.setattr(features_module, "ROWS_TO_FOLD", 16)
    assert declined()
    assert cuda_on_cpu.launches == []


# ------------------------------------------------------------------------------ broken kernels

BROKEN = {
    "pack: wrong columns in a fragment": ("i / 2 % 4 * 16 + step * 4", "i / 2 % 4 * 4 + step * 16"),
    "pack: barrier dropped": ("__syncthreads();  // the warps' maxima and sums are there", ""),
    "pack: tails are heads": ("[place + TILES * 64] = tails", "[place + TILES * 64] = heads"),
    "project: barrier of a stage dropped": (
        "wait_for_copies<PROJECT_STAGES - 2>();\n        __syncthreads();",
        "wait_for_copies<PROJECT_STAGES - 2>();",
    ),
    "project: rows of a fragment swapped": ("a[0][i / 2][i % 2],", "a[0][i / 2][1 - i % 2],"),
    "project: rows beyond the last read": ("first_row + 8 * i + group < n_samples", "true"),
    "project: no ReLU": ("z < 0.0f ? 0.0f : z", "z"),
    "second: barrier for W2 dropped": ("__syncthreads();  // W2 is there", ""),
    "second: barrier for the tiles dropped": (
        "__syncthreads();  // the tiles and maxima are there",
        "",
    ),
    "second: barrier for the next units dropped": ("__syncthreads();  // the tiles are free", ";"),
    "second: ReLU passes everything back": ("units[j] > 0.0f ? 1.0f", "true ? 1.0f"),
    "gradients: barrier of a stage dropped": (
        "wait_for_copies<GRADIENT_STAGES - 2>();\n        __syncthreads();",
        "wait_for_copies<GRADIENT_STAGES - 2>();",
    ),
    "gradients: rows beyond the last read": ("copy_row + i < n_samples)", "copy_row < n_samples)"),
    "gradients: rows in another order than dH": ("8 * i + 4) * 8]", "8 * i + 5) * 8]"),
    "gradients: two columns swapped": ("8 * group + i;", "8 * group + 7 - i;"),
    "groups: barrier dropped": ("__syncthreads();  // the warps' sums are there", ""),
    "groups: penalty of W1 only": ("static_cast<double>(W2[i]) * W2[i]", "0"),
    "groups: some left out": ("int i = warp; i < n_groups;", "int i = warp + 1; i < n_groups;"),
    "partials: first share left out": (
        "share = 0; share < n_shares",
        "share = 1; share < n_shares",
    ),
    "partials: dW1 not unfolded": ("- factor_and_shift.y *", "- 0 * factor_and_shift.y *"),
    "partials: penalty without its factor": ("(2.0 * penalty) * W1", "(penalty) * W1"),
}
SIZES = {"n": 66, "d": 68, "h": 65, "c": 5}  # two stages, groups, shares and blocks of units


def caught(device, given):
    for order in ORDERS:
        device.order = order
        try:
            assert_as_exact_as_float32(given, run(given))
        except (AssertionError, CudaOnCpuError):
            return True
    return False


@pytest.mark.slow
def test_broken_kernels_are_caught(cuda_on_cpu):
    given = arguments(**SIZES)
    assert not caught(cuda_on_cpu, given)
    plan = two_layer_pass_on_cupy._plan(66, 68, 65, 5, 2, 4, cuda_on_cpu.limits.shared_bytes)
    constants = tuple(sorted(plan.constants.items()))
    compile_together("two_layer_pass.cu", BROKEN.values(), constants)
    missed = []
    for name, change in BROKEN.items():
        with cuda_on_cpu.broken("two_layer_pass.cu", change):
            if not caught(cuda_on_cpu, given):
                missed.append(name)
    assert missed == []


# ----------------------------------------------------------------------------------- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("n", "d", "h", "c"), [(130, 96, 20, 5), (3000, 3072, 50, 10), (30_000, 200, 128, 32)]
)
def test_a_gpu_is_as_exact(n, d, h, c):
    if not probe_cupy().usable:
        pytest.skip(probe_cupy().reason)
    given = arguments(n, d, h, c)
    params, X = {name: given[name] for name in NAMES}, given["samples"].standardized
    rest = given["y"], given["sample_weight"]
    on_device = [to_device(x, "cupy") for x in (params, X, *rest)]
    samples = FoldedSamples(on_device[1], h, np.float32)
    found = two_layer_pass_on_tensor_cores(
        *on_device[0].values(), samples, *on_device[2:], given["reg"]
    )
    assert_as_exact_as_float32(given, [to_host(x) for x in found])
