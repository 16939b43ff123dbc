"""How large a row block should be, for the net: linear classifiers have a compiled pass."""

import numpy as np
import pytest

import gpuclf
from gpuclf.samples import walk as row_blocks


@pytest.mark.parametrize("block_mib", [3, 6, 12, 24, 48])
def test_float_blocks(benchmark, bench_inputs, monkeypatch, block_mib):
    monkeypatch.setattr(row_blocks, "CPU_BLOCK_BYTES", block_mib << 20)
    X, y, params = bench_inputs.floats, bench_inputs.y, bench_inputs.params(50)
    benchmark.group = f"two-layer, {len(y):,} float rows, by block size"
    loss, _ = benchmark(gpuclf.two_layer_loss, params, X, y, 1e-3)
    assert np.isfinite(loss)


@pytest.mark.parametrize("l2s", [0.75, 1.5, 3, 6, 12])
def test_byte_blocks(benchmark, bench_inputs, monkeypatch, l2s):
    monkeypatch.setattr(row_blocks, "CPU_CONVERTED_BLOCK_L2S", l2s)
    X, y, params = bench_inputs.bytes_, bench_inputs.y, bench_inputs.params(50)
    benchmark.group = f"two-layer, {len(y):,} uint8 rows, by converted block size in L2s"
    loss, _ = benchmark(gpuclf.two_layer_loss, params, X, y, 1e-3)
    assert np.isfinite(loss)
