"""Grids of very many rows and columns: no launch is beyond what CUDA takes. No memory is used."""

import numpy as np
import pytest

from gpuclf.kernels.building import cuda as cuda_modules
from gpuclf.kernels.building.cuda import MAX_GRID, fits_grid, launch
from gpuclf.kernels.linear_pass import on_gpu as linear
from gpuclf.kernels.losses.on_gpu import fused_softmax_cross_entropy
from gpuclf.kernels.nearest.on_gpu import nearest_of_bytes
from gpuclf.kernels.two_layer_pass import on_gpu as two_layer
from gpuclf.losses import softmax_cross_entropy
from gpuclf.samples.folding import FoldedSamples

LIMITS = cuda_modules.DeviceLimits(90, 132, 227 << 10)
MILLIONS = 13_000_000  # more than 65,535 blocks of 192 rows


def zeros(*shape, dtype="float32"):
    """Return an array that takes no memory until somebody writes to it."""
    return np.zeros(shape, dtype)


@pytest.fixture
def grids(monkeypatch):
    """Return where launches leave their grids; they do nothing else."""
    found = {}

    def build(file, name, constants):
        return lambda grid, block, args, shared_bytes: found.setdefault((file, name), grid)

    monkeypatch.setattr(cuda_modules, "build", build)
    monkeypatch.setattr(cuda_modules, "device_limits", lambda x: LIMITS)
    return found


@pytest.mark.parametrize("grid", [(1, 65_536), (1, 1, 65_536), 2**31, 0, (7, 0)])
def test_a_grid_that_no_device_takes_is_named_before_it_is_launched(grids, grid):
    with pytest.raises(ValueError, match=r"add_partials in losses.cu: a grid of .* 65535"):
        launch("losses.cu", {}, "add_partials", grid, 32)
    assert grids == {}
    launch("losses.cu", {}, "add_partials", MAX_GRID, 32)
    assert grids == {("losses.cu", "add_partials"): MAX_GRID}


def test_rows_of_all_sizes_have_blocks_along_x(grids):
    X, y = zeros(MILLIONS, 16, dtype="uint8"), zeros(MILLIONS, dtype="int64")
    samples = FoldedSamples(X, 9, np.dtype("float32"))
    params = zeros(16, 9), zeros(9), zeros(9, 3), zeros(3)
    two_layer.two_layer_pass_on_tensor_cores(*params, samples, y, None, 0.1)
    assert grids["two_layer_pass.cu", "project_rows"] == (-(-MILLIONS // 192),)
    assert len(grids) == 6
    arguments = zeros(16, 3), zeros(3), samples, y, None, softmax_cross_entropy
    for walk in ("backwards", "once"):
        linear.linear_pass_on_tensor_cores(*arguments, walks=(walk,))
    fused_softmax_cross_entropy(zeros(MILLIONS, 3), y)
    nearest_of_bytes(X, zeros(600, 16, dtype="uint8"), 3, "l2", 1, 1 << 20, lambda n: None)
    assert len(grids) == 6 + 4 + 3 + 2 + 3
    assert all(fits_grid(grid) for grid in grids.values())


def test_more_columns_than_a_grid_has_blocks_are_declined():
    assert linear._plan(100, 2**24 - 16, 10, 2, 0, 16, LIMITS.shared_bytes) is not None
    small = 64 << 10  # one strip a block
    assert linear._plan(100, 2**24 - 16, 10, 2, 0, 16, small) is None
    assert linear._plan(100, 2**22, 10, 2, 0, 16, small) is not None
    assert two_layer._plan(100, 4_194_240 + 64, 60, 10, 2, 16, 64 << 10) is None


def test_a_second_layer_that_no_block_can_hold_is_declined():
    small = 99 << 10  # of sm_86 and sm_89: two_layer_pass.cu names these sizes
    assert two_layer._plan(10_000, 3072, 416, 32, 2, 16, small) is not None
    assert two_layer._plan(10_000, 3072, 417, 32, 2, 16, small) is None
    assert two_layer._plan(10_000, 3072, 512, 32, 2, 16, LIMITS.shared_bytes) is not None
