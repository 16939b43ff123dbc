"""Streamed samples go through the fused linear pass, block by block."""

import numpy as np
import pytest
from pretend_device import PretendDevice

from gpuclf.models import LinearModel
from gpuclf.kernels.linear_pass.on_gpu import linear_pass_on_tensor_cores
from gpuclf.losses import multiclass_hinge, softmax_cross_entropy
from gpuclf.models import linear

from gpuclf.samples import streamed as streaming
from gpuclf.samples.standardized import Standardized


@pytest.mark.parametrize("loss", [softmax_cross_entropy, multiclass_hinge])
def test_each_block_is_one_fused_pass(cuda_on_cpu, monkeypatch, loss):
    rows, device = [], PretendDevice()

    def fused(W, b, features, *rest):
        rows.append(features.n_samples)
        found = linear_pass_on_tensor_cores(W, b, features, *rest)
        assert found is not NotImplemented
        return found

    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 256, (400, 96), np.uint8), rng.integers(0, 10, 400)
    params = {"W": (rng.standard_normal((96, 10)) / 96).astype(np.float32)}
    params["b"] = rng.standard_normal(10).astype(np.float32)
    wide = {name: value.astype(np.float64) for name, value in params.items()}
    truth, exact = LinearModel("any", loss).objective(wide, Standardized.fit(X), y, 0.1)
    monkeypatch.setattr(linear, "linear_pass", fused)
    monkeypatch.setattr(streaming, "transfers", lambda like: device)
    samples = Standardized.fit(streaming.Streamed(X, "numpy", memory_budget=160_000))
    found, grads = LinearModel("any", loss).objective(params, samples, y, 0.1)
    assert rows == [128, 128, 128, 16]
    assert float(found) == pytest.approx(float(truth), rel=1e-6)
    for name, expected in exact.items():
        assert np.linalg.norm(grads[name] - expected) <= 1e-6 * np.linalg.norm(expected)
