"""The multiclass hinge, in loops, vectorised, and class by class on NumPy."""

import numpy as np
import pytest

from gpuclf.arrays import MixedDevicesError, array_namespace
from gpuclf.kernels.losses.on_cpu import class_major_multiclass_hinge
from gpuclf.losses import multiclass_hinge
from gpuclf.models import SVM
from gpuclf.models.linear import svm_loss_vectorized
from gpuclf.naive import svm_loss_naive
from gpuclf.samples.standardized import Standardized

SIZES = [(1, 1, 1), (1, 3, 2), (3, 1, 2), (7, 5, 10), (67, 2, 10), (5, 3, 1)]
REG = 0.3


def make_problem(n, d, c, *, models=(), seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) + np.linspace(-1, 2, d)
    return rng.normal(size=(*models, d, c)), X, rng.integers(0, c, n)


def run(lib, W, X, y, reg=REG):
    loss, dW = svm_loss_vectorized(lib.asarray(W), lib.asarray(X), lib.asarray(y), reg)
    return lib.to_numpy(loss), lib.to_numpy(dW)


def loops(scores, labels, weights, margin=1.0):
    loss, dscores = 0.0, np.zeros_like(scores)
    for i, label in enumerate(labels):
        for j in range(scores.shape[1]):
            term = scores[i, j] - scores[i, label] + margin
            if j != label and term > 0:
                loss += weights[i] * term
                dscores[i, j] += weights[i]
                dscores[i, label] -= weights[i]
    return loss, dscores


def test_the_loops_by_hand():
    # Scores 3, 2.5 and 2: the second is half inside the margin, the third exactly at its edge.
    W, X = np.array([[3.0, 2.5, 2.0]]), np.array([[1.0]])
    loss, dW = svm_loss_naive(W, X, np.array([0]), 0.0)
    assert loss == 0.5
    np.testing.assert_array_equal(dW, [[-1, 1, 0]])
    loss, dW = svm_loss_naive(W, X, np.array([2]), 2.0)
    assert loss == 2 + 1.5 + 2 * (9 + 6.25 + 4)
    np.testing.assert_array_equal(dW, [[1 + 12, 1 + 10, -2 + 8]])


@pytest.mark.essential_cases(24)
@pytest.mark.parametrize(("n", "d", "c"), SIZES)
@pytest.mark.parametrize("reg", [0.0, REG])
def test_equals_the_loops(lib, n, d, c, reg):
    W, X, y = make_problem(n, d, c)
    loss, dW = run(lib, W, X, y, reg)
    expected, gradient = svm_loss_naive(W, X, y, reg)
    # float64, another order of summation.
    np.testing.assert_allclose(loss, expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(dW, gradient, rtol=1e-12, atol=1e-13)


def test_blocks_and_bytes_equal_the_loops(lib, small_blocks):
    rng = np.random.default_rng(1)
    W, X = rng.normal(size=(4, 3)) / 50, rng.integers(0, 256, (45, 4), np.uint8)
    y = rng.integers(0, 3, 45)
    loss, dW = run(lib, W, X, y)
    expected, gradient = svm_loss_naive(W, X, y, REG)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    np.testing.assert_allclose(dW, gradient, rtol=0, atol=1e-12 * 255)


def test_gradients_away_from_kinks_are_the_centred_differences(lib):
    W, X, y = make_problem(12, 4, 3)
    b, step = np.array([0.5, -1.0, 0.25]), 1e-6
    scores = X @ W + b
    terms = scores - scores[np.arange(12), y][:, None] + 1
    terms[np.arange(12), y] = 1
    assert np.abs(terms).min() > 1e-3  # no step crosses a kink
    arguments = lib.asarray(X), lib.asarray(y), REG

    def loss_and_grads(params):
        params = {name: lib.asarray(value) for name, value in params.items()}
        return SVM.objective(params, *arguments)

    params = {"W": W, "b": b}
    _, grads = loss_and_grads(params)
    for name, value in params.items():
        for i in np.ndindex(value.shape):
            up, down = value.copy(), value.copy()
            up[i] += step
            down[i] -= step
            ends = [loss_and_grads(params | {name: v})[0] for v in (up, down)]
            slope = (float(lib.to_numpy(ends[0])) - float(lib.to_numpy(ends[1]))) / (2 * step)
            # The loss is quadratic here: only rounding, of order 1e-15 / step, is left.
            assert lib.to_numpy(grads[name])[i] == pytest.approx(slope, rel=1e-7, abs=1e-8)


@pytest.mark.essential_cases(15)
@pytest.mark.parametrize("c", [1, 2, 10])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_loss_at_zero_weights_is_the_number_of_wrong_classes(lib, c, dtype):
    rng = np.random.default_rng(0)
    X = rng.integers(0, 256, (20, 4)).astype(dtype)
    W = np.zeros((4, c), np.float32 if dtype == np.uint8 else dtype)
    loss, _ = run(lib, W, X, rng.integers(0, c, 20), reg=7.0)
    assert loss == pytest.approx(c - 1, rel=3e-7)  # 1/20 is rounded in float32


def test_model_axes_give_what_each_model_gives_alone(lib):
    W, X, y = make_problem(14, 5, 3, models=(2, 2))
    loss, dW = run(lib, W, X, y)
    assert (loss.shape, dW.shape) == ((2, 2), W.shape)
    for k in np.ndindex(2, 2):
        own_loss, own_dW = run(lib, W[k], X, y)
        np.testing.assert_allclose(loss[k], own_loss, rtol=1e-13)
        np.testing.assert_allclose(dW[k], own_dW, rtol=0, atol=1e-12)


@pytest.mark.parametrize("X_dtype", ["uint8", "float32", "float64"])
@pytest.mark.parametrize("W_dtype", ["float32", "float64"])
def test_results_lie_where_X_lies_in_the_wider_dtype(lib, X_dtype, W_dtype):
    X = lib.asarray(np.arange(15).reshape(5, 3).astype(X_dtype))
    W, y = lib.asarray(np.ones((3, 2), W_dtype)), lib.asarray(np.array([0, 1, 1, 0, 1]))
    for samples in (X, Standardized(X, 5.0, 2.0)):
        loss, dW = svm_loss_vectorized(W, samples, y, 0.1)
        assert loss.dtype == lib.xp.float64
        expected = "float64" if "float64" in (X_dtype, W_dtype) else "float32"
        assert dW.dtype == getattr(lib.xp, expected)
        assert dW.device == X.device
        assert array_namespace(dW) is array_namespace(X)


def test_inputs_are_left_alone(lib):
    arrays = [lib.asarray(a) for a in make_problem(8, 4, 3)]
    before = [lib.to_numpy(a).tobytes() for a in arrays]
    svm_loss_vectorized(*arrays, REG)
    multiclass_hinge(arrays[1], arrays[2])
    assert [lib.to_numpy(a).tobytes() for a in arrays] == before


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"y": np.array([0, 1, 3])}, ValueError, r"0\.\.2"),
        ({"y": np.array([0, 1])}, ValueError, "y must"),
        ({"W": np.ones((5, 3))}, ValueError, "W must"),
        ({"X": np.full((3, 4), np.nan)}, ValueError, "NaN"),
        ({"W": np.full((4, 3), np.nan)}, ValueError, "NaN"),
        ({"reg": -1.0}, ValueError, "reg must"),
        ({"W": np.ones((4, 3), int)}, TypeError, "W must"),
    ],
)
def test_wrong_inputs_are_named(change, error, message):
    right = {"W": np.ones((4, 3)), "X": np.ones((3, 4)), "y": np.array([0, 1, 2]), "reg": 0.1}
    with pytest.raises(error, match=message):
        svm_loss_vectorized(**(right | change))


def test_the_loops_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="must fit"):
        svm_loss_naive(np.zeros((3, 2)), np.zeros((4, 5)), np.zeros(4, int), 0.0)
    with pytest.raises(ValueError, match=r"0\.\.1, got 0\.\.2"):
        svm_loss_naive(np.zeros((2, 2)), np.zeros((3, 2)), np.array([0, 1, 2]), 0.0)


# ------------------------------------------------------------------------------ the data loss


@pytest.mark.essential_cases(30)
@pytest.mark.parametrize("margin", [1.0, 0.25])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("n", "c"), [(1, 1), (1, 2), (7, 10), (64, 3)])
def test_loss_and_gradient_are_those_of_the_definition(lib, n, c, weighted, margin):
    rng = np.random.default_rng(n)
    scores, labels, weights = rng.normal(size=(n, c)), rng.integers(0, c, n), rng.random(n)
    given = lib.asarray(weights) if weighted else None
    found = multiclass_hinge(lib.asarray(scores), lib.asarray(labels), given, margin)
    loss, dscores = loops(scores, labels, weights if weighted else [1 / n] * n, margin)
    assert lib.to_numpy(found[0]) == pytest.approx(loss, rel=1e-13)
    np.testing.assert_allclose(lib.to_numpy(found[1]), dscores, rtol=1e-12, atol=1e-16)


def test_each_model_may_have_its_own_weights(lib):
    rng = np.random.default_rng(1)
    scores, labels, weights = rng.normal(size=(4, 6, 3)), rng.integers(0, 3, 6), rng.random((4, 6))
    loss, dscores = multiclass_hinge(*map(lib.asarray, (scores, labels, weights)))
    for k in range(4):
        expected, gradient = loops(scores[k], labels, weights[k])
        assert lib.to_numpy(loss)[k] == pytest.approx(expected, rel=1e-13)
        np.testing.assert_allclose(lib.to_numpy(dscores)[k], gradient, rtol=1e-12, atol=1e-16)


def test_a_margin_met_exactly_has_the_subgradient_zero(lib):
    scores, labels = np.array([[3.0, 2.0, 2.0]], np.float32), np.array([0])
    loss, dscores = multiclass_hinge(lib.asarray(scores), lib.asarray(labels))
    assert lib.to_numpy(loss) == 0
    np.testing.assert_array_equal(lib.to_numpy(dscores), 0 * scores)


def test_gaps_of_ten_thousand_stay_finite_and_right_in_float32(lib):
    scores = np.array([[0, 1e4, -1e4], [1e4, 0, -1e4], [-1e4, 1e4, 1e4]], np.float32)
    labels = np.array([2, 0, 1])
    loss, dscores = multiclass_hinge(lib.asarray(scores), lib.asarray(labels))
    expected, gradient = loops(scores.astype(np.float64), labels, [1 / 3] * 3)
    assert lib.to_numpy(loss) == pytest.approx(expected, rel=2e-7)
    np.testing.assert_allclose(lib.to_numpy(dscores), gradient, rtol=1e-6, atol=0)


@pytest.mark.parametrize("wrong", [-1, 3, 99])
def test_a_label_out_of_range_makes_the_loss_nan(lib, wrong):
    loss, _ = multiclass_hinge(lib.asarray(np.ones((3, 3))), lib.asarray(np.array([0, wrong, 1])))
    assert np.isnan(lib.to_numpy(loss))


@pytest.mark.parametrize(("c", "column"), [(3, 0), (3, 2), (1, 0)])
def test_one_nan_score_makes_the_loss_nan(lib, c, column):
    scores = np.zeros((3, c))
    scores[1, column] = np.nan
    loss, _ = multiclass_hinge(lib.asarray(scores), lib.asarray(np.zeros(3, int)))
    assert np.isnan(lib.to_numpy(loss))


def test_labels_of_one_byte_serve_more_classes_than_a_byte_counts(lib):
    scores, labels = np.random.default_rng(0).normal(size=(4, 300)), np.array([0, 3, 43, 255])
    expected, gradient = loops(scores, labels, [0.25] * 4)
    found = multiclass_hinge(lib.asarray(scores), lib.asarray(labels.astype("u1")))
    assert lib.to_numpy(found[0]) == pytest.approx(expected, rel=1e-13)
    np.testing.assert_allclose(lib.to_numpy(found[1]), gradient, rtol=1e-12)


def test_scores_and_labels_of_different_libraries_are_refused_by_name(strict):
    with pytest.raises(MixedDevicesError, match=r"scores is array_api_strict.*labels is numpy"):
        multiclass_hinge(strict.asarray(np.ones((3, 2))), np.array([0, 1, 0]))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("dtype", "rtol"), [(np.float32, 2e-6), (np.float64, 1e-14)])
@pytest.mark.parametrize(("n", "c"), [(1, 1), (7, 2), (33, 10), (500, 300)])
def test_class_major_hinge_is_the_reference(n, c, dtype, rtol, weighted):
    rng = np.random.default_rng(n)
    # Sixteenths: no rounding, so that the same terms are positive in either order.
    scores = (rng.integers(-50, 50, (n, c)) / 16).astype(dtype)
    labels = rng.integers(0, c, n)
    weights = rng.random(n).astype(dtype) if weighted else None
    loss, dscores = class_major_multiclass_hinge(scores, labels, weights)
    expected, gradient = multiclass_hinge.reference(scores, labels, weights)
    np.testing.assert_allclose(loss, expected, rtol=rtol)
    np.testing.assert_allclose(dscores, gradient, rtol=rtol, atol=rtol / 10)
    assert (loss.dtype, dscores.dtype) == (np.float64, dtype)


def test_class_major_hinge_declines_what_it_was_not_written_for():
    scores, labels = np.zeros((3, 3)), np.array([0, 1, 1])
    assert class_major_multiclass_hinge(scores, labels) is not NotImplemented
    assert class_major_multiclass_hinge(scores, np.array([0, 3, 1])) is NotImplemented
    assert class_major_multiclass_hinge(scores, labels, np.ones(3, "f4")) is NotImplemented
    assert class_major_multiclass_hinge(np.zeros((2, 2, 3, 3)), labels) is NotImplemented
