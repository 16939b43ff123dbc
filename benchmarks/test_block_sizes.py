"""How large a row block should be, for the net: linear classifiers have a compiled pass."""

import numpy as np
import pytest

from gpuclf.bench.measure.cases import NET
from gpuclf.samples import walk


@pytest.mark.parametrize("block_mib", [3, 6, 12, 24, 48])
def test_float_blocks(benchmark, bench_inputs, monkeypatch, block_mib):
    monkeypatch.setattr(walk, "CPU_BLOCK_BYTES", block_mib << 20)
    time_net(benchmark, bench_inputs, bench_inputs.floats, "float rows, by block size")


@pytest.mark.parametrize("block_mib", [1.5, 3, 6, 12, 24])
def test_byte_blocks(benchmark, bench_inputs, monkeypatch, block_mib):
    monkeypatch.setattr(walk, "CPU_CONVERTED_BLOCK_BYTES", int(block_mib * 2**20))
    what = "uint8 rows, by converted block size"
    time_net(benchmark, bench_inputs, bench_inputs.bytes_, what)


def time_net(benchmark, inputs, X, what):
    benchmark.group = f"two-layer, {len(inputs.y):,} {what}"
    loss, _ = benchmark(NET.loss, inputs.params(NET), X, inputs.y, 1e-3)
    assert np.isfinite(loss)
