"""The linear pass that reads X once, run on the CPU: wrapper and kernels, against float64."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cuda_on_cpu import ORDERS, CudaOnCpuError, with_hidden_arrays
from cuda_on_cpu.compilation import compiler, library, whole_source
from test_linear_pass_on_cupy import (
    arguments,
    assert_as_exact_as_float32,
    hidden_features,
)

from gpuclf.kernels.building import cuda as cuda_modules
from gpuclf.kernels.linear_pass import on_gpu as linear_pass_on_cupy
from gpuclf.kernels.linear_pass import single_on_gpu as single_pass_on_cupy
from gpuclf.kernels.linear_pass.on_gpu import (
    linear_objective_on_tensor_cores,
    linear_pass_on_tensor_cores,
)
from gpuclf.losses import multiclass_hinge
from gpuclf.models.linear import penalized_linear_pass, svm_loss_vectorized
from gpuclf.samples.folding import FoldedSamples
from gpuclf.samples.standardized import Standardized

pytestmark = pytest.mark.usefixtures("compiled", "cuda_on_cpu")

LAUNCHES = ["pack_digits", "walk_tiles", "sum_tiles"]
# Two chunks a strip, 16 columns in the last; the ring holds three or, with more memory, four.
WIDE = 528
SMALL = cuda_modules.DeviceLimits(80, 108, 100 << 10)


def run(given, **options):
    given = given | {"samples": hidden_features(given["samples"])}
    return with_hidden_arrays(linear_pass_on_tensor_cores)(**given, walks=("once",), **options)


@pytest.fixture(autouse=True)
def several_tiles_a_block(monkeypatch, cuda_on_cpu):
    monkeypatch.setattr(single_pass_on_cupy, "BLOCKS", 3)
    cuda_on_cpu.limits = SMALL


@pytest.fixture(scope="module")
def compiled():
    """Compile what the tests need side by side: one after another would be most of the time."""
    if compiler() is None:
        return
    source = whole_source("single_pass.cu")
    wide = {"FEATURES": WIDE, "CLASSES": 10, "HINGE": 0}
    wanted = [(source, wide | {"RING": ring}) for ring in (3, 4)]
    narrow = {"FEATURES": 96, "CLASSES": 11, "HINGE": 1, "RING": 2}
    wanted += [(text, narrow) for text in (source, source.replace(*BROKEN_DB))]
    wanted += [(source.replace(*change), wide | {"RING": 3}) for change in BROKEN.values()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(
            pool.map(lambda w: library("single_pass.cu", w[0], tuple(sorted(w[1].items()))), wanted)
        )


def same(found, expected):
    return all(
        ours.tobytes() == theirs.tobytes() for ours, theirs in zip(found, expected, strict=True)
    )


def test_as_exact_as_the_shared_pass(cuda_on_cpu):
    for n in (200, 257, 161):  # tiles of 32 for three blocks: 7, 9, 6; the last of 8 rows, of one
        given = arguments(n, WIDE)
        assert_as_exact_as_float32(given, run(given))
    assert cuda_on_cpu.launches == LAUNCHES * 3
    given = arguments(200, c=11, loss=multiclass_hinge)
    assert_as_exact_as_float32(given, run(given))
    assert same(run(given | {"b": None}), run(given | {"b": np.zeros(11, np.float32)}))


@pytest.mark.slow
def test_the_same_bits_in_any_order_and_with_any_ring(cuda_on_cpu):
    given = arguments(200, WIDE)
    expected = run(given)
    for order in ORDERS:
        cuda_on_cpu.order = order
        assert same(run(given), expected)
    cuda_on_cpu.limits = cuda_modules.DeviceLimits(90, 132, 227 << 10)
    assert same(run(given), expected)


def test_units_follow_the_numbers():
    given = arguments(200, c=11, loss=multiclass_hinge)
    given["weights"] *= np.geomspace(1e-12, 1, 200).astype(np.float32)
    given["weights"][::3] = 0
    given["W"] *= np.geomspace(1e-4, 1e2, 11).astype(np.float32)
    assert_as_exact_as_float32(given, run(given))
    given["W"][:, 2] = 2 - 2**-23  # rounds up to more than three digits hold
    given["W"][:, 3] = 1e-41
    given["samples"].stored[:, 5] = 129
    given["W"][5, 4] = 1e37
    assert_as_exact_as_float32(given, run(given))
    given["weights"][:] = 0
    assert all(not np.any(value) for value in run(given))


def test_pixels_of_0_and_255_only():
    given = arguments(200, c=11, loss=multiclass_hinge)
    given["samples"].stored[:] = given["samples"].stored % 2 * 255
    given["samples"].stored[::2] = 0
    given["W"][:] = np.abs(given["W"])
    assert_as_exact_as_float32(given, run(given))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_are_not_lost(value):
    given = arguments(200, WIDE)
    given["W"][400, 3] = value
    loss, dW, db = run(given)
    assert np.isnan(loss)
    assert np.isnan(dW).all()
    assert np.isnan(db).all()
    given = arguments(200, c=11, loss=multiclass_hinge)
    given["W"][40, 3] = value
    assert np.isnan(run(given)[0])


@pytest.mark.parametrize("label", [-1, 11, 2**32 + 3])
def test_labels_out_of_range_give_nan_and_nothing_else(label):
    given = arguments(200, c=11, loss=multiclass_hinge)
    given["y"][77] = label
    loss, dW, db = run(given)
    assert np.isnan(loss)
    assert np.isfinite(dW).all()
    assert np.isfinite(db).all()


def assert_objective_is_exact(cuda_on_cpu, standardized, weighted=False):
    given = arguments(c=11, loss=multiclass_hinge)
    X = given["samples"].stored
    X = Standardized.fit(X) if standardized else X
    weights = np.full(200, 1 / 200, np.float32) if weighted else None
    rest = (given["y"], weights, multiclass_hinge, 0.3)
    samples = hidden_features(FoldedSamples(X, 11, np.float32))
    objective = with_hidden_arrays(linear_objective_on_tensor_cores)
    found = objective(given["W"] * 5, given["b"], samples, *rest, walks=("once",))
    assert cuda_on_cpu.launches == LAUNCHES
    wide = (given["W"].astype(np.float64) * 5, given["b"].astype(np.float64))
    truth = penalized_linear_pass.reference(*wide, FoldedSamples(X, 11, np.float64), *rest)
    for ours, exact in zip(found, truth, strict=True):
        assert np.linalg.norm(ours - exact) <= 3e-6 * max(np.linalg.norm(exact), 1)


@pytest.mark.parametrize("standardized", [False, True])
def test_penalty_and_folding(cuda_on_cpu, standardized):
    assert_objective_is_exact(cuda_on_cpu, standardized)


def test_the_public_losses_read_once_by_default(cuda_on_cpu, monkeypatch):
    kernel = (linear_objective_on_tensor_cores,)
    given = arguments(200, c=11)
    W, X, y = given["W"], given["samples"].stored, given["y"]
    exact_loss, exact = svm_loss_vectorized(W.astype(np.float64), X, y, 0.1)
    monkeypatch.setitem(penalized_linear_pass.kernels, "numpy", kernel)
    loss, dW = svm_loss_vectorized(W, X, y, 0.1)
    assert cuda_on_cpu.launches == LAUNCHES
    assert float(loss) == pytest.approx(float(exact_loss), rel=5e-7)
    # Ones and tens of 1/200 in digits of a power of two would all be off the same way: by 6e-7.
    assert np.linalg.norm(dW - exact) <= 2e-7 * np.linalg.norm(exact)


def test_takes_two_walks_where_one_cannot_be(cuda_on_cpu, monkeypatch):
    class TwoReadings:
        def __call__(self, *_):
            return np.zeros(1), "two", "walks"

    def run(given):
        assert linear_pass_on_tensor_cores(**given, walks=("once",)) is NotImplemented
        found = linear_pass_on_tensor_cores(**given)
        return found if found is NotImplemented else " ".join(found[1:])

    monkeypatch.setattr(linear_pass_on_cupy, "_plan", lambda *_: TwoReadings())
    given = arguments(200, c=11)
    room = np.empty(200 * 96 + 32, np.uint8)
    room = room[-room.ctypes.data % 16 + 8 :]
    unaligned = FoldedSamples(room[: 200 * 96].reshape(200, 96), 11, np.float32)
    assert run(arguments(200, 100)) == "two walks"
    assert run(arguments(300, c=13)) == "two walks"
    assert run(arguments(200, 3088)) == "two walks"
    assert run(given | {"samples": unaligned}) == "two walks"
    assert run(given | {"y": np.zeros((200, 1), int)}) is NotImplemented
    cuda_on_cpu.limits = cuda_modules.DeviceLimits(80, 108, 44 << 10)
    assert run(given) == "two walks"
    cuda_on_cpu.limits = cuda_modules.DeviceLimits(75, 40, 227 << 10)
    assert run(given) is NotImplemented
    assert cuda_on_cpu.launches == []


BROKEN = {
    "barrier before the digits of G dropped": (
        "__syncthreads();\n\n        unsigned b[TILES][2];",
        "unsigned b[TILES][2];",
    ),
    "a wait for the ring dropped": ("wait_for_all_but<RING - 1>(RING - 1 - chunk);", ""),
    "a place of the ring too far": ("chunk + RING, place);", "chunk + RING, (place + 1) % RING);"),
    "rows of G in another order": ("tile_row / 8 % 2 * 2\n", "tile_row / 8 % 2\n"),
    "shares of a class not added": (
        "if (SHARED && i == FULL) score += __shfl_xor_sync(~0u, score, 1);",
        "",
    ),
}
BROKEN_DB = ("static_cast<double>(number) * unit", "values[i] * common")  # of G before its digits


@pytest.mark.slow
def test_db_of_other_numbers_than_dW_is_caught(cuda_on_cpu):
    with cuda_on_cpu.broken("single_pass.cu", BROKEN_DB), pytest.raises(AssertionError):
        assert_objective_is_exact(cuda_on_cpu, standardized=True, weighted=True)


@pytest.mark.essential_cases(1)
@pytest.mark.parametrize("name", BROKEN)
def test_broken_kernels_are_caught(cuda_on_cpu, name):
    given = arguments(200, WIDE)
    caught = False
    with cuda_on_cpu.broken("single_pass.cu", BROKEN[name]):
        for order in ORDERS:
            cuda_on_cpu.order = order
            try:
                assert_as_exact_as_float32(given, run(given))
            except (AssertionError, CudaOnCpuError):
                caught = True
                break
    assert caught
