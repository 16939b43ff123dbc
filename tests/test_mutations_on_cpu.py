"""Every kernel that copies asynchronously, with copies that land early and late, and broken ones.

A copy that is made when it is waited for hides what overwrites a place that others still read; one
that is made at once hides a wait that is missing. The shapes have several warps a block and several
stages a warp: with fewer, there is nobody to overwrite.
"""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import test_linear_pass_on_cupy as linear
import test_neighbors_on_cupy as neighbors
import test_two_layer_pass_on_cupy as two_layer
from cuda_on_cpu import COPIES, ORDERS, CudaOnCpuError

from gpuclf.kernels.building import cuda as cuda_modules
from gpuclf.kernels.linear_pass import on_gpu as linear_on_gpu
from gpuclf.kernels.linear_pass import single_on_gpu
from gpuclf.kernels.nearest.on_gpu import squared_euclidean_of_bytes
from gpuclf.kernels.two_layer_pass import on_gpu as two_layer_on_gpu

pytestmark = pytest.mark.slow

SHARES = 3


def linear_pass():
    given = linear.arguments(800, 264)
    found = linear.run(given)
    linear.assert_as_exact_as_float32(given, found)
    return found


def single_pass():
    given = linear.arguments(300, 528)
    found = linear.run(given, walks=("once",))
    linear.assert_as_exact_as_float32(given, found)
    return found


def two_layer_pass():
    given = two_layer.arguments(800, 264)
    found = two_layer.run(given)
    two_layer.assert_as_exact_as_float32(given, found)
    return found


def distances():
    A, B = neighbors.samples(130, 259, 320)
    found = squared_euclidean_of_bytes(A, B)
    np.testing.assert_array_equal(found, neighbors.naive(A, B, "l2"))
    return (found,)


# The launches that have to have been made, and what makes them.
RUNS = {
    linear_pass: linear.LAUNCHES,
    single_pass: ["pack_digits", "walk_tiles", "sum_tiles"],
    two_layer_pass: two_layer.LAUNCHES,
    distances: ["squared_norms", "squared_norms", "multiply_bytes"],
}


@pytest.fixture(autouse=True)
def few_shares(monkeypatch, cuda_on_cpu):
    """Give a block several tiles, and a share several groups, for as few rows as these."""
    monkeypatch.setattr(two_layer.features_module, "ROWS_TO_FOLD", 0)
    monkeypatch.setattr(single_on_gpu, "BLOCKS", SHARES)
    for module in (linear_on_gpu, two_layer_on_gpu):
        monkeypatch.setattr(module, "_plan", module._plan.__wrapped__)
        monkeypatch.setattr(module, "MAX_GRADIENT_BLOCKS", SHARES)
    cuda_on_cpu.limits = cuda_modules.DeviceLimits(80, 108, 100 << 10)


def runs(device):
    """Go through the ways in which threads and copies may take their turns."""
    for device.copies in COPIES:
        for device.order in ORDERS:
            yield device.copies, device.order


def bits(found):
    return [np.asarray(x).tobytes() for x in found]


@pytest.mark.parametrize("run", RUNS)
def test_early_and_late_copies_give_the_same_bits(cuda_on_cpu, run):
    found = {way: bits(run()) for way in runs(cuda_on_cpu)}
    assert cuda_on_cpu.launches[-len(RUNS[run]) :] == RUNS[run]
    assert len(found) == 6
    assert len({tuple(x) for x in found.values()}) == 1


def is_caught(device, run):
    for way in runs(device):
        try:
            run()
        except (AssertionError, CudaOnCpuError):
            return way
    return None


BROKEN = {
    "linear: a stage is filled while others read it": (
        linear_pass,
        "linear_pass.cu",
        (
            "wait_for_copies<GRADIENT_STAGES - 2>();\n        __syncthreads();\n"
            "        start_stage();",
            "start_stage();\n        wait_for_copies<GRADIENT_STAGES - 1>();\n"
            "        __syncthreads();",
        ),
    ),
    "single: a place is filled before it is read": (
        single_pass,
        "single_pass.cu",
        ("            __syncwarp();\n            start_chunk(tile, chunk + RING, place);\n", ""),
        (
            "            // The branch also",
            "            start_chunk(tile, chunk + RING, place);\n            // The branch also",
        ),
    ),
    "distances: a barrier is missing": (
        distances,
        "neighbors.cu",
        (
            "wait_for_copies<STAGES - 2>();\n        __syncthreads();",
            "wait_for_copies<STAGES - 2>();",
        ),
    ),
    "two-layer: one group too many is left under way": (
        two_layer_pass,
        "two_layer_pass.cu",
        ("wait_for_copies<GRADIENT_STAGES - 2>", "wait_for_copies<GRADIENT_STAGES - 1>"),
    ),
    "single: the swizzle of the copy is another": (
        single_pass,
        "single_pass.cu",
        ("(member ^ copy_row / 2 % 4)", "(member ^ copy_row % 4)"),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_kernels_are_caught(cuda_on_cpu, name):
    run, file, *replacements = BROKEN[name]
    with cuda_on_cpu.broken(file, *replacements):
        assert is_caught(cuda_on_cpu, run) is not None


@pytest.mark.parametrize(
    ("name", "ways"),
    [
        ("linear: a stage is filled while others read it", {"at once"}),
        ("single: a place is filled before it is read", {"at once"}),
        ("two-layer: one group too many is left under way", {"when waited for"}),
    ],
)
def test_each_way_of_copying_sees_what_the_other_cannot(cuda_on_cpu, name, ways):
    run, file, *replacements = BROKEN[name]
    seen = set()
    with cuda_on_cpu.broken(file, *replacements):
        for copies, _ in runs(cuda_on_cpu):
            try:
                run()
            except (AssertionError, CudaOnCpuError):
                seen.add(copies)
    assert seen == ways


def test_a_grid_that_is_too_small_is_caught(cuda_on_cpu, monkeypatch):
    source = Path(linear_on_gpu.__file__).read_text()
    old, new = "* 4 + n_classes + 1", "* 4 + n_classes"
    assert source.count(old) == 1
    module = ModuleType("broken")
    monkeypatch.setitem(sys.modules, "broken", module)
    exec(compile(source.replace(old, new), "broken", "exec"), vars(module))
    monkeypatch.setattr(linear, "linear_pass_on_tensor_cores", module.linear_pass_on_tensor_cores)
    assert is_caught(cuda_on_cpu, linear_pass) is not None
