"""Grouped against plain products of many rows by ten columns: see gpuclf/kernels/on_numpy.py."""

import numpy as np
import pytest

from gpuclf.backend import single_threaded_blas
from gpuclf.layers import affine, affine_backward_params


@pytest.mark.parametrize("version", ["grouped", "plain"])
@pytest.mark.parametrize("n_rows", [128, 2048])
@pytest.mark.parametrize("product", ["forward", "backward"])
def test_product(benchmark, product, n_rows, version):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n_rows, 3072), dtype=np.float32)
    W = rng.standard_normal((3072, 10), dtype=np.float32)
    dY = rng.standard_normal((n_rows, 10), dtype=np.float32)
    function, arguments = {
        "forward": (affine, (X, W)),
        "backward": (affine_backward_params, (dY, X)),
    }[product]
    call = function if version == "grouped" else function.reference
    benchmark.group = f"{product}, {n_rows} x 3072 x 10, one thread"
    with single_threaded_blas():
        benchmark(call, *arguments)
