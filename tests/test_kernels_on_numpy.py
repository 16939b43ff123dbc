"""Losses with the classes as rows, held against the shared bodies."""

import numpy as np
import pytest

from gpuclf.kernels.losses import on_cpu as losses_on_cpu
from gpuclf.kernels.losses.on_cpu import (
    class_major_softmax_cross_entropy,
    two_layer_pass_with_compiled_loss,
)
from gpuclf.layers import apart
from gpuclf.losses import multiclass_hinge, softmax_cross_entropy
from gpuclf.models.two_layer import two_layer_pass
from gpuclf.samples.folding import FoldedSamples


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("label_dtype", [np.uint8, np.int64])
@pytest.mark.parametrize(("dtype", "rtol"), [(np.float32, 2e-6), (np.float64, 1e-14)])
@pytest.mark.parametrize(("n", "c"), [(1, 1), (1, 5), (7, 2), (33, 10), (500, 300)])
def test_class_major_softmax_is_the_reference(n, c, dtype, rtol, label_dtype, weighted):
    rng = np.random.default_rng(n)
    logits = (5 * rng.standard_normal((n, c))).astype(dtype)
    labels = rng.integers(0, min(c, 256), n).astype(label_dtype)
    weights = rng.random(n).astype(dtype) if weighted else None
    kept = logits.copy()
    loss, dlogits = class_major_softmax_cross_entropy(logits, labels, weights)
    expected, gradient = softmax_cross_entropy.reference(logits, labels, weights)
    np.testing.assert_array_equal(logits, kept)
    np.testing.assert_allclose(loss, expected, rtol=rtol, atol=rtol)
    # Probabilities next to 1 lose digits when 1 is subtracted, hence the absolute part.
    np.testing.assert_allclose(dlogits, gradient, rtol=rtol, atol=rtol / 10)
    assert dlogits.dtype == dtype
    assert loss.dtype == np.float64


@pytest.mark.parametrize("weight_shape", [None, (33,), (4, 33)])
@pytest.mark.parametrize("loss", [softmax_cross_entropy, multiclass_hinge])
def test_class_major_losses_of_several_models_are_the_reference(loss, weight_shape):
    rng = np.random.default_rng(0)
    scores = apart(rng.integers(-50, 50, (33, 40)) / 16, (4,))  # as a wide product leaves them
    labels = rng.integers(0, 10, 33)
    weights = None if weight_shape is None else rng.random(weight_shape)
    loss(scores, labels, weights)  # imports the kernel
    found = loss.kernels["numpy"][0](scores, labels, weights)
    expected = loss.reference(scores, labels, weights)
    assert found[0].shape == (4,)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(
    "change",
    [
        {"labels": np.array([0, 3, 1])},
        {"labels": np.array([0, -1, 1])},
        {"labels": np.array([0.0, 1.0, 1.0])},
        {"labels": np.array([0, 1])},
        {"logits": np.zeros((2, 2, 3, 3))},
        {"sample_weight": np.ones(3, np.float32)},
        {"sample_weight": np.ones((2, 3))},
    ],
)
def test_class_major_softmax_declines_what_it_was_not_written_for(change):
    arguments = {"logits": np.zeros((3, 3)), "labels": np.array([0, 1, 1]), "sample_weight": None}
    assert class_major_softmax_cross_entropy(**arguments) is not NotImplemented
    assert class_major_softmax_cross_entropy(**(arguments | change)) is NotImplemented


def two_layers(dtype, models=(), weight_shape=None, n=170):
    """Return the arguments of a pass, but for the loss."""
    rng = np.random.default_rng(0)
    shapes = (30, 20), (20,), (20, 5), (5,)
    params = [rng.standard_normal((*models, *shape)).astype(dtype) for shape in shapes]
    samples = FoldedSamples(rng.standard_normal((n, 30)).astype(dtype), 20, dtype)
    weights = None if weight_shape is None else rng.random(weight_shape).astype(dtype)
    return *params, samples, rng.integers(0, 5, n), weights, 0.1, None, "float32"


@pytest.mark.parametrize(("models", "weights"), [((), None), ((), (170,)), ((3,), (3, 170))])
@pytest.mark.parametrize("loss", [softmax_cross_entropy, multiclass_hinge])
@pytest.mark.parametrize(("dtype", "rtol"), [(np.float32, 1e-5), (np.float64, 1e-12)])
def test_a_net_s_pass_with_the_compiled_loss_is_the_reference(
    dtype, rtol, loss, models, weights, monkeypatch
):
    pytest.importorskip("numba", reason="numba is not installed")
    given = *two_layers(dtype, models, weights), loss
    assert two_layer_pass_with_compiled_loss(*given) is NotImplemented  # not worth numba
    monkeypatch.setattr(losses_on_cpu, "MIN_MULTIPLICATIONS", 1)
    found = two_layer_pass_with_compiled_loss(*given)
    for ours, theirs in zip(found, two_layer_pass.reference(*given), strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert np.linalg.norm(ours - theirs) <= rtol * np.linalg.norm(theirs)


def test_a_net_s_pass_declines_a_loss_of_ones_own(monkeypatch):
    monkeypatch.setattr(losses_on_cpu, "MIN_MULTIPLICATIONS", 1)
    given = two_layers(np.float64)
    assert two_layer_pass_with_compiled_loss(*given, lambda *of: None) is NotImplemented
