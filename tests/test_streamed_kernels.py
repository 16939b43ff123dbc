"""Streamed samples go through the fused linear pass, block by block."""

import numpy as np
import pytest
from pretend_device import PretendDevice

from gpuclf.kernels.linear_pass.on_gpu import linear_pass_on_tensor_cores
from gpuclf.models import SOFTMAX, SVM
from gpuclf.models.linear import linear_pass
from gpuclf.samples import streamed as streaming
from gpuclf.samples.standardized import Standardized


@pytest.mark.parametrize("model", [SOFTMAX, SVM])
def test_each_block_is_one_fused_pass(cuda_on_cpu, monkeypatch, model):
    rows, device = [], PretendDevice()

    def fused(W, b, samples, *rest):
        found = linear_pass_on_tensor_cores(W, b, samples, *rest)
        if found is not NotImplemented:  # as it is of samples on the host
            rows.append(samples.n_samples)
        return found

    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 256, (400, 96), np.uint8), rng.integers(0, 10, 400)
    params = {"W": (rng.standard_normal((96, 10)) / 96).astype(np.float32)}
    params["b"] = rng.standard_normal(10).astype(np.float32)
    wide = {name: value.astype(np.float64) for name, value in params.items()}
    truth, exact = model.objective(wide, Standardized.fit(X), y, 0.1)
    monkeypatch.setitem(linear_pass.kernels, "numpy", (fused,))
    monkeypatch.setattr(streaming, "transfers", lambda like: device)
    samples = Standardized.fit(streaming.Streamed(X, "numpy", memory_budget=160_000))
    found, grads = model.objective(params, samples, y, 0.1)
    assert rows == [128, 128, 128, 16]
    assert float(found) == pytest.approx(float(truth), rel=1e-6)
    for name, expected in exact.items():
        assert np.linalg.norm(grads[name] - expected) <= 1e-6 * np.linalg.norm(expected)
