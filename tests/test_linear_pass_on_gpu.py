"""The linear pass on tensor cores, on a GPU."""

import functools

import numpy as np
import pytest
from test_linear_pass_on_cupy import arguments, assert_as_exact_as_float32, in_float64

from gpuclf.arrays import to_host
from gpuclf.devices.backends import to_device
from gpuclf.devices.cupy import probe_cupy
from gpuclf.kernels.linear_pass.on_gpu import linear_pass_on_tensor_cores
from gpuclf.losses import multiclass_hinge, softmax_cross_entropy
from gpuclf.samples.folding import FoldedSamples

pytestmark = pytest.mark.gpu

SIZES = [(161, 100, 10), (1025, 72, 64), (777, 1168, 17), (50_000, 3072, 10), (300_000, 784, 2)]


@functools.lru_cache(maxsize=1)  # the losses take turns with the same pixels
def pixels(n, d):
    """Draw bytes as bytes: in int64, with a bound for each column, it would take seconds."""
    rng = np.random.default_rng([n, d])
    X = rng.integers(0, 256, (n, d), dtype=np.uint8)
    X %= rng.integers(20, 256, d, dtype=np.uint8)
    X.flags.writeable = False
    return X


@pytest.mark.parametrize("loss", [softmax_cross_entropy, multiclass_hinge])
@pytest.mark.parametrize(("n", "d", "c"), SIZES)
def test_as_exact_as_float32_and_the_same_bits_each_time(n, d, c, loss):
    if not probe_cupy().usable:
        pytest.skip(probe_cupy().reason)
    given = arguments(n, d, c, loss, X=pixels(n, d))
    names = ("W", "b", "y", "weights")
    on_device = given | {name: to_device(given[name], "cupy") for name in names}
    X = to_device(given["samples"].stored, "cupy")
    on_device["samples"] = FoldedSamples(X, c, on_device["W"].dtype)
    runs = [[to_host(x) for x in linear_pass_on_tensor_cores(**on_device)] for _ in range(20)]
    assert_as_exact_as_float32(given, runs[0])
    for k in range(3):
        assert {run[k].tobytes() for run in runs} == {runs[0][k].tobytes()}
    quick = linear_pass_on_tensor_cores(**on_device, precision="tf32")
    exact = in_float64(given)[1]
    assert np.linalg.norm(to_host(quick[1]) - exact) <= 1e-3 * np.linalg.norm(exact)


@pytest.mark.parametrize("loss", [softmax_cross_entropy, multiclass_hinge])
def test_one_walk_is_as_exact_and_gives_the_same_bits_each_time(loss):
    if not probe_cupy().usable:
        pytest.skip(probe_cupy().reason)
    given = arguments(50_000, 3072, 10, loss, X=pixels(50_000, 3072))
    on_device = given | {key: to_device(given[key], "cupy") for key in ("W", "b", "y", "weights")}
    X = to_device(given["samples"].stored, "cupy")
    on_device["samples"] = FoldedSamples(X, 10, on_device["W"].dtype)
    once = {**on_device, "walks": ("once",)}
    runs = [[to_host(x) for x in linear_pass_on_tensor_cores(**once)] for _ in range(10)]
    assert_as_exact_as_float32(given, runs[0])
    for k in range(3):
        assert {run[k].tobytes() for run in runs} == {runs[0][k].tobytes()}
