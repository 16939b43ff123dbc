import numpy as np
import pytest

from gpuclf.kernels.losses import on_cpu as on_numpy
from gpuclf.kernels.losses.on_cpu import (
    class_major_softmax_cross_entropy,
    grouped_affine,
    grouped_affine_backward_params,
)
from gpuclf.layers import affine, affine_backward_params, apart
from gpuclf.losses import multiclass_hinge, softmax_cross_entropy
from gpuclf.models.linear import softmax_loss_vectorized

# Rows, features, columns, rows in a group. 32 groups are summed at once.
SIZES = [
    (128, 5, 10, 64),  # two groups, nothing left over
    (131, 5, 10, 64),  # three rows left over
    (191, 7, 1, 64),  # one column
    (129, 1, 3, 64),  # one feature
    (64 * 32 + 5, 4, 3, 64),  # 32 groups and a remainder
    (64 * 70 + 63, 3, 2, 64),  # three rounds of groups and the longest remainder
    (77, 3072, 10, 32),  # CIFAR-10's sizes
    (40, 6250, 10, 16),  # the shortest groups
]
FEATURES, COLUMNS = 6, 4


@pytest.fixture(autouse=True)
def blas_with_small_kernels(monkeypatch):
    """Let grouping happen on every processor."""
    monkeypatch.setattr(on_numpy, "_small_products_pay", lambda: True)


@pytest.fixture
def group_of(monkeypatch):
    """Set the limit of a small product so that a group has so many rows."""

    def set_limit(rows, n_features=FEATURES, n_columns=COLUMNS):
        monkeypatch.setattr(on_numpy, "SMALL_PRODUCT", rows * n_features * n_columns)

    return set_limit


def whole_numbers(*shape, dtype, seed=0):
    """Return small whole numbers, whose products and sums are exact also in float32."""
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "d", "m", "rows"), SIZES)
def test_grouped_affine_is_exactly_the_reference(group_of, n, d, m, rows, dtype):
    group_of(rows, d, m)
    X, W, b = (
        whole_numbers(n, d, dtype=dtype),
        whole_numbers(d, m, dtype=dtype, seed=1),
        whole_numbers(m, dtype=dtype, seed=2),
    )
    for bias in (None, b):
        Y = grouped_affine(X, W, bias)
        assert Y is not NotImplemented
        assert Y.dtype == dtype
        np.testing.assert_array_equal(Y, affine.reference(X, W, bias))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "d", "m", "rows"), SIZES)
def test_grouped_gradients_are_exactly_the_reference(group_of, n, d, m, rows, dtype):
    group_of(rows, d, m)
    X, dY = whole_numbers(n, d, dtype=dtype), whole_numbers(n, m, dtype=dtype, seed=1)
    result = grouped_affine_backward_params(dY, X)
    assert result is not NotImplemented
    for found, expected in zip(result, affine_backward_params.reference(dY, X), strict=True):
        assert found.dtype == dtype
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("n", "d", "m"), [(131, 50, 10), (64 * 40 + 7, 20, 3)])
def test_float32_errors_stay_within_a_few_times_the_references(group_of, n, d, m):
    group_of(64, d, m)
    rng = np.random.default_rng(0)
    X, W, dY = (rng.normal(size=s).astype(np.float32) for s in ((n, d), (d, m), (n, m)))
    wide = [a.astype(np.float64) for a in (X, W, dY)]
    pairs = [
        (grouped_affine(X, W), affine.reference(X, W), wide[0] @ wide[1]),
        (
            grouped_affine_backward_params(dY, X)[0],
            affine_backward_params.reference(dY, X)[0],
            wide[0].T @ wide[2],
        ),
    ]
    for found, plain, truth in pairs:
        budget = 3 * np.max(np.abs(plain - truth))
        assert np.max(np.abs(found - truth)) <= budget + np.finfo(np.float32).eps * np.max(truth)


@pytest.mark.parametrize("order", ["C", "F", "strided"])
def test_weights_and_gradients_may_lie_in_any_order(group_of, order):
    group_of(64)

    def laid_out(array):
        if order == "strided":
            wide = np.zeros((array.shape[0], 2 * array.shape[1]), array.dtype)
            wide[:, ::2] = array
            return wide[:, ::2]
        return np.asarray(array, order=order)

    X = whole_numbers(200, 6, dtype=np.float32)
    W = laid_out(whole_numbers(6, 4, dtype=np.float32, seed=1))
    dY = laid_out(whole_numbers(200, 4, dtype=np.float32, seed=2))
    np.testing.assert_array_equal(grouped_affine(X, W), X @ W)
    np.testing.assert_array_equal(grouped_affine_backward_params(dY, X)[0], X.T @ dY)


def test_read_only_inputs_are_enough_and_left_alone(group_of):
    group_of(64)
    X, W = whole_numbers(200, 6, dtype=np.float32), whole_numbers(6, 4, dtype=np.float32)
    b, dY = whole_numbers(4, dtype=np.float32), whole_numbers(200, 4, dtype=np.float32)
    for array in (X, W, b, dY):
        array.flags.writeable = False
    assert grouped_affine(X, W, b) is not NotImplemented
    assert grouped_affine_backward_params(dY, X) is not NotImplemented


def declined_cases():
    X, W = np.zeros((200, 6), np.float32), np.zeros((6, 4), np.float32)
    # Sixteen rows of 62,500 products are the million that a group may take.
    long, wide = np.zeros((40, 2500), np.float32), np.zeros((2500, 26), np.float32)
    return {
        "wide product": (long, wide),
        "fewer than two groups": (X[:127], W),
        "columns of X not contiguous": (np.asfortranarray(X), W),
        "rows of X not contiguous": (np.zeros((200, 12), np.float32)[:, :6], W),
        "every other row": (np.zeros((400, 6), np.float32)[::2], W),
        "float32 X, float64 W": (X, W.astype(np.float64)),
        "float64 X, float32 W": (X.astype(np.float64), W),
        "several models": (X, np.zeros((3, 6, 4), np.float32)),
        "stacked X": (np.zeros((2, 200, 6), np.float32), W),
    }


@pytest.mark.parametrize("case", declined_cases())
def test_declines(group_of, case):
    if case != "wide product":
        group_of(64)
    X, W = declined_cases()[case]
    assert grouped_affine(X, W) is NotImplemented
    dY = np.zeros((*W.shape[:-2], *X.shape[:-1], W.shape[-1]), W.dtype)
    assert grouped_affine_backward_params(dY, X) is NotImplemented


def test_declines_one_column_past_the_limit_and_not_at_it():
    X = np.zeros((40, 2500), np.float32)
    assert grouped_affine(X, np.zeros((2500, 25), np.float32)) is not NotImplemented
    assert grouped_affine(X, np.zeros((2500, 26), np.float32)) is NotImplemented


def test_declines_where_blas_has_no_small_kernels(monkeypatch, group_of):
    group_of(64)
    X, W = np.zeros((200, 6), np.float32), np.zeros((6, 4), np.float32)
    assert grouped_affine(X, W) is not NotImplemented
    monkeypatch.setattr(on_numpy, "_small_products_pay", lambda: False)
    assert grouped_affine(X, W) is NotImplemented
    assert grouped_affine_backward_params(np.zeros((200, 4), np.float32), X) is NotImplemented


@pytest.mark.parametrize(
    ("architectures", "expected"),
    [
        (["SkylakeX"], True),
        (["Haswell", "SapphireRapids"], True),
        (["Haswell"], False),
        ([], False),
    ],
)
def test_small_kernels_are_known_by_the_processor_kind(monkeypatch, architectures, expected):
    monkeypatch.undo()  # the real question, not the answer of this file's fixture
    monkeypatch.setattr(on_numpy, "blas_architectures", lambda: architectures)
    assert on_numpy._blas_has_small_kernels.__wrapped__() is expected


def test_declined_products_come_from_the_reference(group_of):
    group_of(64)
    for case, (X, W) in declined_cases().items():
        X, W = X + np.float32(1), W + np.float32(2)
        np.testing.assert_array_equal(affine(X, W), affine.reference(X, W), err_msg=case)


def test_the_bias_promotes_as_in_the_reference(group_of):
    group_of(64)
    X, W = np.zeros((200, 6), np.float32), np.zeros((6, 4), np.float32)
    for b in (np.full(4, 0.1), np.arange(12.0, dtype=np.float32).reshape(3, 4)):
        found, expected = affine(X, W, b), affine.reference(X, W, b)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_the_linear_loss_is_the_same_with_and_without_groups(monkeypatch, group_of, dtype):
    group_of(64, 30, 10)
    rng = np.random.default_rng(0)
    X = rng.integers(0, 256, (700, 30)).astype(dtype)
    W, y = rng.normal(size=(30, 10)) / 500, rng.integers(0, 10, 700)
    W = W.astype(np.float32 if dtype == "float32" else np.float64)
    loss, dW = softmax_loss_vectorized(W, X, y, 0.1)
    assert grouped_affine(X.astype(W.dtype), W) is not NotImplemented
    monkeypatch.setattr(on_numpy, "_small_products_pay", lambda: False)
    plain, plain_dW = softmax_loss_vectorized(W, X, y, 0.1)
    tolerance = 1e-5 if dtype == "float32" else 1e-12  # another order of summation
    assert loss == pytest.approx(plain, rel=tolerance)
    assert np.max(np.abs(dW - plain_dW)) <= tolerance * np.max(np.abs(plain_dW))


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
    found = loss.kernels["numpy"](scores, labels, weights)
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
