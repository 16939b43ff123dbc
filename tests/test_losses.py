import math

import numpy as np
import pytest

from gpuclf.arrays import MixedDevicesError, array_namespace
from gpuclf.losses import one_hot, softmax, softmax_cross_entropy


def make_logits(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape) * 3, rng.integers(0, shape[-1], shape[-2])


def loops(logits, labels, weights):
    """Return the loss and its gradient from the definition, one sample after another."""
    loss, dlogits = 0.0, np.zeros_like(logits)
    for i, (row, label) in enumerate(zip(logits, labels, strict=True)):
        normaliser = math.fsum(math.exp(z - max(row)) for z in row)
        loss += weights[i] * (math.log(normaliser) + max(row) - row[label])
        for c, z in enumerate(row):
            dlogits[i, c] = weights[i] * (math.exp(z - max(row)) / normaliser - (c == label))
    return loss, dlogits


@pytest.mark.parametrize(("n", "c"), [(1, 1), (1, 2), (3, 1), (7, 10), (64, 3)])
def test_loss_and_gradient_are_those_of_the_definition(lib, n, c):
    logits, labels = make_logits(n, c)
    loss, dlogits = softmax_cross_entropy(lib.asarray(logits), lib.asarray(labels))
    expected, gradient = loops(logits, labels, [1 / n] * n)
    # float64: a few roundings of numbers up to 10.
    assert lib.to_numpy(loss) == pytest.approx(expected, rel=1e-13, abs=1e-14)
    np.testing.assert_allclose(lib.to_numpy(dlogits), gradient, rtol=1e-12, atol=1e-15)


def test_sample_weights_are_used_as_they_are(lib):
    logits, labels = make_logits(5, 3)
    weights = np.array([0.0, 2.0, 0.5, 1.0, 3.0])
    loss, dlogits = softmax_cross_entropy(*map(lib.asarray, (logits, labels, weights)))
    expected, gradient = loops(logits, labels, weights)
    assert lib.to_numpy(loss) == pytest.approx(expected, rel=1e-13)
    np.testing.assert_allclose(lib.to_numpy(dlogits), gradient, rtol=1e-12, atol=1e-15)


def test_model_axis_gives_what_each_model_gives_alone(lib):
    logits, labels = make_logits(4, 6, 3)
    weights = np.random.default_rng(1).random((4, 6))
    for w in (None, weights[0], weights):
        together = softmax_cross_entropy(
            lib.asarray(logits), lib.asarray(labels), None if w is None else lib.asarray(w)
        )
        assert tuple(together[0].shape) == (4,)
        for k in range(4):
            own = None if w is None else lib.asarray(np.broadcast_to(w, (4, 6))[k])
            loss, dlogits = softmax_cross_entropy(lib.asarray(logits[k]), lib.asarray(labels), own)
            np.testing.assert_allclose(lib.to_numpy(together[0])[k], lib.to_numpy(loss), rtol=1e-14)
            # One model alone may take a kernel that rounds its last bit differently.
            np.testing.assert_allclose(
                lib.to_numpy(together[1])[k], lib.to_numpy(dlogits), rtol=1e-13, atol=1e-16
            )


def test_equal_logits_give_the_logarithm_of_the_number_of_classes(lib):
    for c in (1, 2, 10):
        logits = lib.asarray(np.full((5, c), 3.25, np.float32))
        loss, _ = softmax_cross_entropy(logits, lib.asarray(np.arange(5) % c))
        assert lib.to_numpy(loss) == pytest.approx(math.log(c), rel=1e-7)  # float32 log


def test_gaps_of_ten_thousand_stay_finite_and_right_in_float32(lib):
    logits = np.array([[0, 1e4, -1e4], [1e4, 0, -1e4], [-1e4, 1e4, 1e4]], np.float32)
    labels = np.array([2, 0, 1])
    loss, dlogits = softmax_cross_entropy(lib.asarray(logits), lib.asarray(labels))
    expected, gradient = loops(logits.astype(np.float64), labels, [1 / 3] * 3)
    assert lib.to_numpy(loss) == pytest.approx(expected, rel=1e-7)  # one float32 rounding
    np.testing.assert_allclose(lib.to_numpy(dlogits), gradient, rtol=1e-6, atol=0)


def test_a_constant_added_to_a_row_changes_no_bit(lib):
    # Sixteenths and whole numbers below 2**20 add without rounding in float32.
    rng = np.random.default_rng(2)
    logits = (rng.integers(-100, 100, (6, 4)) / 16).astype(np.float32)
    shift = rng.integers(-10_000, 10_000, (6, 1)).astype(np.float32)
    labels = lib.asarray(rng.integers(0, 4, 6))
    plain = softmax_cross_entropy(lib.asarray(logits), labels)
    moved = softmax_cross_entropy(lib.asarray(logits + shift), labels)
    for a, b in zip(plain, moved, strict=True):
        np.testing.assert_array_equal(lib.to_numpy(a), lib.to_numpy(b))


def test_gradient_rows_sum_to_zero(lib):
    logits, labels = make_logits(50, 7)
    _, dlogits = softmax_cross_entropy(lib.asarray(logits), lib.asarray(labels))
    np.testing.assert_allclose(lib.to_numpy(dlogits).sum(axis=1), 0, atol=1e-16)
    assert np.all(lib.to_numpy(dlogits)[np.arange(50), labels] < 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_loss_is_float64_and_gradient_has_the_dtype_of_the_logits(lib, dtype):
    logits, labels = make_logits(4, 3)
    logits = lib.asarray(logits.astype(dtype))
    for weights in (None, lib.asarray(np.ones(4, dtype))):
        loss, dlogits = softmax_cross_entropy(logits, lib.asarray(labels), weights)
        assert loss.dtype == lib.xp.float64
        assert dlogits.dtype == logits.dtype
        assert dlogits.device == logits.device
        assert array_namespace(dlogits) is array_namespace(logits)


@pytest.mark.parametrize("wrong", [-1, 3, 99])
def test_a_label_out_of_range_makes_the_loss_nan(lib, wrong):
    logits, _ = make_logits(3, 3)
    loss, _ = softmax_cross_entropy(lib.asarray(logits), lib.asarray(np.array([0, wrong, 1])))
    assert np.isnan(lib.to_numpy(loss))


def test_one_nan_logit_makes_the_loss_nan(lib):
    logits, labels = make_logits(3, 3)
    logits[1, 2] = np.nan
    loss, _ = softmax_cross_entropy(lib.asarray(logits), lib.asarray(labels))
    assert np.isnan(lib.to_numpy(loss))


def test_labels_may_be_of_any_integer_type(lib):
    logits, labels = make_logits(6, 4)
    expected, _ = softmax_cross_entropy(logits, labels)
    for dtype in (np.uint8, np.int8, np.int16, np.int32, np.int64):
        loss, _ = softmax_cross_entropy(lib.asarray(logits), lib.asarray(labels.astype(dtype)))
        assert lib.to_numpy(loss) == pytest.approx(expected, rel=1e-14)


def test_labels_of_one_byte_serve_more_classes_than_a_byte_counts(lib):
    logits, _ = make_logits(4, 300)
    labels = np.array([0, 3, 43, 255])
    expected = softmax_cross_entropy(logits, labels)
    loss, dlogits = softmax_cross_entropy(lib.asarray(logits), lib.asarray(labels.astype("u1")))
    assert lib.to_numpy(loss) == pytest.approx(expected[0], rel=1e-13)
    np.testing.assert_allclose(lib.to_numpy(dlogits), expected[1], rtol=1e-12, atol=1e-17)


def test_one_hot_rows(lib):
    matrix = one_hot(lib.asarray(np.array([2, 0, 1, 2])), 3, dtype=lib.xp.float32)
    np.testing.assert_array_equal(
        lib.to_numpy(matrix), [[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
    )
    assert matrix.dtype == lib.xp.float32


def test_softmax_is_the_normalised_exponential(lib):
    logits, _ = make_logits(2, 5, 4)
    expected = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(
        lib.to_numpy(softmax(lib.asarray(logits))), expected, rtol=1e-13, atol=0
    )
    extreme = lib.asarray(np.array([[-1e4, 0.0, 1e4]], np.float32))
    np.testing.assert_array_equal(lib.to_numpy(softmax(extreme)), [[0, 0, 1]])


def test_logits_and_labels_of_different_libraries_are_refused_by_name(strict):
    logits, labels = make_logits(3, 2)
    with pytest.raises(MixedDevicesError, match=r"logits is array_api_strict.*labels is numpy"):
        softmax_cross_entropy(strict.asarray(logits), labels)
