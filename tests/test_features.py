import numpy as np
import pytest

from gpuclf import to_device, to_host
from gpuclf.arrays import MixedDevicesError
from gpuclf.models import SOFTMAX
from gpuclf.models.linear import linear_scores, softmax_loss_vectorized
from gpuclf.samples.folding import FoldedSamples
from gpuclf.samples.standardized import Standardized, take_rows

REG = 0.01


def make_bytes(n, d, *, low=0, high=256, seed=0):
    return np.random.default_rng(seed).integers(low, high, (n, d), np.uint8)


def make_statistics(d):
    return np.linspace(80.0, 150.0, d), np.linspace(20.0, 70.0, d)


def make_linear(d, c, *, dtype=np.float64, seed=1):
    rng = np.random.default_rng(seed)
    return {"W": rng.normal(size=(d, c)).astype(dtype), "b": rng.normal(size=c).astype(dtype)}


def evaluate(lib, params, X, y):
    """Return loss, dW, db and scores as NumPy arrays."""
    params = {name: lib.asarray(value) for name, value in params.items()}
    loss, grads = SOFTMAX.objective(params, X, lib.asarray(y), REG)
    results = (loss, grads["W"], grads["b"], linear_scores(params, X))
    return tuple(map(lib.to_numpy, results))


def relative_error(found, expected):
    return np.max(np.abs(found - expected)) / np.max(np.abs(expected))


# ------------------------------------------------------------- the same as writing it out


@pytest.mark.essential_cases(20)
@pytest.mark.parametrize("n", [1, 3, 10, 11, 70], ids=lambda n: f"{n} samples")
@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_standardising_in_the_pass_equals_writing_the_floats_out(lib, n, dtype):
    # Ten outputs: up to 10 samples are standardised directly, more are folded into W.
    X, (mean, scale) = make_bytes(n, 6).astype(dtype), make_statistics(6)
    params, y = make_linear(6, 10), np.arange(n) * 7 % 10
    found = evaluate(lib, params, Standardized(lib.asarray(X), mean, scale), y)
    expected = evaluate(lib, params, lib.asarray((X - mean) / scale), y)
    for ours, written in zip(found, expected, strict=True):
        assert relative_error(ours, written) < 1e-12  # float64, folded: some cancellation


@pytest.mark.parametrize("n", [160, 161], ids=["standardised directly", "folded"])
def test_raw_bytes_equal_raw_floats(lib, n):
    X, params, y = make_bytes(n, 6), make_linear(6, 10), np.arange(n) % 10
    params["W"] /= 100
    found = evaluate(lib, params, lib.asarray(X), y)
    expected = evaluate(lib, params, lib.asarray(X.astype(np.float64)), y)
    for ours, written in zip(found, expected, strict=True):
        assert relative_error(ours, written) < 1e-12


def test_both_branches_are_taken(lib):
    samples = Standardized(lib.asarray(make_bytes(32, 4)), 128.0, 50.0)
    W = lib.asarray(np.ones((4, 2)))
    b = lib.asarray(np.ones(2))
    few = FoldedSamples(samples, 2, lib.xp.float64)
    assert few.fold(W, b) == (W, b)
    many = FoldedSamples(samples, 1, lib.xp.float64)
    np.testing.assert_allclose(lib.to_numpy(many.fold(W, b)[0]), 1 / 50, rtol=1e-15)


@pytest.mark.essential_cases(15)
@pytest.mark.parametrize("n_outputs", [1, 50], ids=["folded", "standardised directly"])
@pytest.mark.parametrize("kind", ["uint8", "float64", "standardized uint8", "standardized float64"])
def test_folding_moves_between_equal_products(lib, kind, n_outputs):
    X, (mean, scale) = make_bytes(20, 5), make_statistics(5)
    stored = lib.asarray(X.astype(kind.rpartition(" ")[2]))
    written = X.astype(np.float64)
    if kind.startswith("standardized"):
        stored, written = Standardized(stored, mean, scale), (X - mean) / scale
    params = make_linear(5, 3)
    features = FoldedSamples(stored, n_outputs, lib.xp.float64)
    for b in (params["b"], None):
        W_, b_ = features.fold(lib.asarray(params["W"]), None if b is None else lib.asarray(b))
        for rows in (slice(0, 20), slice(7, 13)):
            product = lib.to_numpy(features.rows(rows)) @ lib.to_numpy(W_)
            product = product if b_ is None else product + lib.to_numpy(b_)
            expected = written[rows] @ params["W"] + (0 if b is None else b)
            np.testing.assert_allclose(product, expected, rtol=0, atol=1e-11)
    dscores = np.random.default_rng(3).normal(size=(20, 3))
    folded_dW = lib.to_numpy(features.rows(slice(0, 20))).T @ dscores
    dW = features.unfold(lib.asarray(folded_dW), lib.asarray(dscores.sum(axis=0)))
    np.testing.assert_allclose(lib.to_numpy(dW), written.T @ dscores, rtol=0, atol=1e-11)


# ------------------------------------------------------------------------------ float32


def float32_scores_and_gradient(W, X, y):
    """Write the data loss's scores and gradient as the textbook does, in X's dtype."""
    scores = X @ W
    probs = np.exp(scores - scores.max(axis=1, keepdims=True))
    probs /= probs.sum(axis=1, keepdims=True)
    probs[np.arange(len(X)), y] -= 1
    return scores, X.T @ (probs / len(X))


def fold_without_centre(W, X, y, mean, scale):
    """Fold the standardisation relative to 0 instead of 128, otherwise as gpuclf does."""
    shift = mean / scale
    rows, inverse = X.astype(np.float32), (1 / scale).astype(np.float32)[:, None]
    scores = rows @ (W * inverse) - (shift @ W.astype(np.float64)).astype(np.float32)
    probs = np.exp(scores - scores.max(axis=1, keepdims=True))
    probs /= probs.sum(axis=1, keepdims=True)
    probs[np.arange(len(X)), y] -= 1
    probs /= len(X)
    return scores, (rows.T @ probs) * inverse - shift.astype(np.float32)[:, None] * probs.sum(0)


def errors(found, truth):
    return [np.max(np.abs(a - t)) for a, t in zip(found, truth, strict=True)]


def float32_case(low, high, mean, scale):
    # Weights of one sign: what the features have in common does not cancel by luck.
    X = make_bytes(400, 300, low=low, high=high, seed=5)
    mean, scale = np.full(300, mean), np.full(300, scale)
    W = np.abs(np.random.default_rng(6).normal(size=(300, 10)) / 20).astype(np.float32)
    y = np.random.default_rng(7).integers(0, 10, 400)
    standardised = (X - mean) / scale
    truth = float32_scores_and_gradient(W.astype(np.float64), standardised, y)
    textbook = float32_scores_and_gradient(W, standardised.astype(np.float32), y)
    return W, X, y, mean, scale, truth, errors(textbook, truth)


def our_scores_and_gradient(lib, W, X, y, mean, scale):
    samples = Standardized(lib.asarray(X), mean, scale)
    _, dW = softmax_loss_vectorized(lib.asarray(W), samples, lib.asarray(y), 0.0)
    assert dW.dtype == lib.xp.float32
    scores = linear_scores({"W": lib.asarray(W)}, samples)
    return lib.to_numpy(scores), lib.to_numpy(dW)


@pytest.mark.essential_cases(2)
@pytest.mark.parametrize(
    ("low", "high", "mean", "scale"),
    [(0, 256, 120.0, 65.0), (125, 132, 128.0, 1.5), (120, 137, 128.3, 1.5)],
    ids=["all bytes", "128 and 3 around it", "128 and 8 around it"],
)
def test_float32_errors_stay_within_a_few_times_the_textbook_s(lib, low, high, mean, scale):
    W, X, y, mean, scale, truth, textbook = float32_case(low, high, mean, scale)
    ours = errors(our_scores_and_gradient(lib, W, X, y, mean, scale), truth)
    for error, budget, exact in zip(ours, textbook, truth, strict=True):
        assert error <= 4 * budget + np.finfo(np.float32).eps * np.max(np.abs(exact))


@pytest.mark.essential_cases(1)
def test_float32_errors_far_from_128_are_those_of_the_numbers_that_are_added(lib):
    # Pixels of 248..252 and a scale of 1.5: what is added up is (252 - 128) / 1.5 = 83 times a
    # weight, where the written floats are 1.3 at most. Roundings of D terms grow as sqrt(D).
    W, X, y, mean, scale, truth, _ = float32_case(248, 253, 250.0, 1.5)
    ours = errors(our_scores_and_gradient(lib, W, X, y, mean, scale), truth)
    eps, factor = np.finfo(np.float32).eps, (252 - 128) / 1.5
    assert ours[0] <= np.sqrt(300) * eps * factor * np.max(np.sum(W, axis=0))
    probs = np.exp(truth[0] - truth[0].max(axis=1, keepdims=True))
    probs /= probs.sum(axis=1, keepdims=True)
    probs[np.arange(400), y] -= 1
    assert ours[1] <= np.sqrt(400) * eps * factor * np.max(np.mean(np.abs(probs), axis=0))


@pytest.mark.essential_cases(1)
def test_taking_pixels_relative_to_128_is_what_keeps_the_digits(lib):
    W, X, y, mean, scale, truth, _ = float32_case(125, 132, 128.0, 1.5)
    ours = errors(our_scores_and_gradient(lib, W, X, y, mean, scale), truth)
    uncentred = errors(fold_without_centre(W, X, y, mean, scale), truth)
    assert uncentred[0] > 10 * ours[0]
    assert uncentred[1] > 10 * ours[1]


def test_what_folding_moves_into_the_bias_is_summed_in_float64(lib):
    W, X, _, mean, scale, _, _ = float32_case(248, 253, 250.0, 1.5)
    features = FoldedSamples(Standardized(lib.asarray(X), mean, scale), 10, lib.xp.float32)
    _, moved = features.fold(lib.asarray(W), None)
    exact = -((mean - 128) / scale) @ W.astype(np.float64)
    assert moved.dtype == lib.xp.float32
    # One rounding, at the end: half a spacing of float32. A float32 sum of 300 terms has several.
    np.testing.assert_allclose(lib.to_numpy(moved), exact, rtol=6e-8)


# ------------------------------------------------------------------------- the container


def test_attributes_are_float64_where_X_is(lib):
    X = lib.asarray(make_bytes(5, 3))
    for mean, scale in [(1.5, 2), (np.ones(3), np.ones(3)), (lib.asarray(np.ones(3)), 1.0)]:
        samples = Standardized(X, mean, scale)
        assert samples.X is X
        for value in (samples.mean, samples.scale):
            assert value.dtype == lib.xp.float64
            assert tuple(value.shape) == (3,)
            assert value.device == X.device
    assert samples.shape == (5, 3)
    assert samples.ndim == 2
    assert len(samples) == 5
    assert "uint8" in repr(samples)
    assert "(5, 3)" in repr(samples)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_to_array_writes_the_standardised_floats(lib, dtype):
    X, (mean, scale) = make_bytes(8, 5), make_statistics(5)
    samples = Standardized(lib.asarray(X.astype(dtype)), mean, scale)
    written = samples.to_array()
    assert written.dtype == lib.xp.float32
    np.testing.assert_allclose(lib.to_numpy(written), (X - mean) / scale, rtol=0, atol=1e-6)
    exact = lib.to_numpy(samples.to_array(lib.xp.float64))
    np.testing.assert_allclose(exact, (X - mean) / scale, rtol=0, atol=1e-14)


def test_every_byte_value_is_standardised_right(lib):
    X = np.arange(256, dtype=np.uint8).reshape(64, 4)
    written = Standardized(lib.asarray(X), 0.0, 1.0).to_array(lib.xp.float64)
    np.testing.assert_array_equal(lib.to_numpy(written), X)


def test_mean_and_scale_given_as_arrays_are_not_shared():
    mean, scale = np.ones(3), np.full(3, 2.0)
    samples = Standardized(np.zeros((2, 3)), mean, scale)
    mean[0] = scale[0] = 9.0
    assert (samples.mean[0], samples.scale[0]) == (1.0, 2.0)


@pytest.mark.parametrize("rows", [slice(2, 5), slice(None, None, 3), slice(-2, None)], ids=repr)
def test_a_slice_of_rows_shares_the_statistics(lib, rows):
    X, (mean, scale) = make_bytes(9, 4), make_statistics(4)
    part = Standardized(lib.asarray(X), mean, scale)[rows]
    assert isinstance(part, Standardized)
    np.testing.assert_array_equal(lib.to_numpy(part.X), X[rows])
    np.testing.assert_array_equal(lib.to_numpy(part.mean), mean)
    np.testing.assert_array_equal(lib.to_numpy(part.scale), scale)


def test_gathered_rows_come_in_the_order_asked_for(lib):
    X, (mean, scale) = make_bytes(9, 4), make_statistics(4)
    rows = np.array([7, 0, 7, 3])
    samples = Standardized(lib.asarray(X), mean, scale)
    for part in (samples[lib.asarray(rows)], take_rows(samples, lib.asarray(rows))):
        np.testing.assert_array_equal(lib.to_numpy(part.X), X[rows])
        np.testing.assert_array_equal(lib.to_numpy(part.mean), mean)
    plain = take_rows(lib.asarray(X), lib.asarray(rows))
    np.testing.assert_array_equal(lib.to_numpy(plain), X[rows])


@pytest.mark.parametrize("row", [0, np.int64(3)], ids=repr)
def test_a_single_row_is_refused_with_the_remedy(row):
    with pytest.raises(TypeError, match="with a slice or an array of rows"):
        Standardized(make_bytes(5, 3), 0.0, 1.0)[row]


@pytest.mark.parametrize("as_features", [True, False])
def test_a_mask_does_not_silently_mean_rows_zero_and_one(as_features):
    X = make_bytes(5, 3)
    mask = np.array([False, True, False, True, True])
    samples = Standardized(X, 0.0, 1.0) if as_features else X
    try:
        part = take_rows(samples, mask)
    except (TypeError, IndexError):
        return
    np.testing.assert_array_equal(part.X if as_features else part, X[mask])


def test_rows_chosen_by_another_library_are_refused(strict):
    samples = Standardized(strict.asarray(make_bytes(5, 3)), 0.0, 1.0)
    with pytest.raises(MixedDevicesError, match="indices is numpy on cpu"):
        samples[np.array([1, 2])]


def test_map_arrays_maps_samples_and_statistics():
    samples = Standardized(make_bytes(5, 3), 100.0, 2.0)
    seen = []
    mapped = samples.map_arrays(lambda array: seen.append(array) or array + 1)
    assert [id(array) for array in seen] == [id(samples.X), id(samples.mean), id(samples.scale)]
    np.testing.assert_array_equal(mapped.X, samples.X + 1)
    np.testing.assert_array_equal(mapped.mean, np.full(3, 101.0))
    np.testing.assert_array_equal(mapped.scale, np.full(3, 3.0))


def test_moves_to_a_device_and_back_unchanged(lib):
    X, (mean, scale) = make_bytes(5, 3), make_statistics(3)
    there = to_device(Standardized(X, mean, scale), like=lib.asarray(np.zeros(1)))
    assert isinstance(there, Standardized)
    for array in (there.X, there.mean, there.scale):
        assert array.device == lib.asarray(np.zeros(1)).device
    back = to_host(there)
    assert isinstance(back.X, np.ndarray)
    for found, expected in [(back.X, X), (back.mean, mean), (back.scale, scale)]:
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype


@pytest.mark.essential_cases(15)
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mean", np.zeros(4), r"mean must be a number or have shape \(3,\).*got \(4,\)"),
        ("scale", np.ones((3, 1)), r"scale must be a number or have shape \(3,\).*got \(3, 1\)"),
        ("mean", np.nan, "mean must be finite everywhere"),
        ("mean", np.array([0, np.inf, 0]), "mean must be finite everywhere"),
        ("scale", 0.0, "scale must be finite and above 0.*never varies use 1.0"),
        ("scale", np.array([1.0, -2.0, 1.0]), "scale must be finite and above 0"),
        ("scale", np.array([1.0, np.nan, 1.0]), "scale must be finite and above 0"),
        ("scale", np.inf, "scale must be finite and above 0"),
    ],
)
def test_bad_statistics_are_refused_by_name(lib, name, value, message):
    given = {"mean": 0.0, "scale": 1.0}
    given[name] = value if isinstance(value, float) else lib.asarray(value)
    with pytest.raises(ValueError, match=message):
        Standardized(lib.asarray(make_bytes(5, 3)), **given)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4)])
def test_samples_that_are_not_a_matrix_are_refused(shape):
    with pytest.raises(ValueError, match=rf"X must have shape \(N, D\), got \({shape[0]},"):
        Standardized(np.zeros(shape), 0.0, 1.0)


def test_a_list_is_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"got list; convert it with numpy\.asarray"):
        Standardized([[1.0, 2.0]], 0.0, 1.0)


# ------------------------------------------------------------------------------- fitting


@pytest.mark.essential_cases(20)
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
@pytest.mark.parametrize("n", [1, 2, 300, 1000])
def test_fit_takes_mean_and_deviation_of_the_columns(lib, n, dtype):
    X = make_bytes(n, 5, low=200).astype(dtype)
    samples = Standardized.fit(lib.asarray(X))
    wide = X.astype(np.float64)
    deviation = wide.std(axis=0)
    # Moments in float64; the variance loses what the first sample is away from the mean.
    np.testing.assert_allclose(lib.to_numpy(samples.mean), wide.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(
        lib.to_numpy(samples.scale), np.where(deviation > 0, deviation, 1.0), rtol=1e-11
    )


@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_fit_sums_over_many_blocks(lib, small_blocks, dtype):
    X = make_bytes(600, 5).astype(dtype)
    samples = Standardized.fit(lib.asarray(X))
    np.testing.assert_allclose(lib.to_numpy(samples.mean), X.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(lib.to_numpy(samples.scale), X.std(axis=0), rtol=1e-11)


def test_fit_is_exact_for_the_largest_differences_of_bytes():
    # Squared differences of 255**2: a float32 sum over more than 256 of them would round.
    X = np.full((5000, 3), 255, np.uint8)
    X[0] = 0
    samples = Standardized.fit(X)
    np.testing.assert_allclose(samples.mean, X.mean(axis=0, dtype=np.float64), rtol=1e-15)
    np.testing.assert_allclose(samples.scale, X.std(axis=0, dtype=np.float64), rtol=1e-10)


def test_fit_keeps_the_digits_of_features_far_from_zero(lib):
    X = 1e6 + np.random.default_rng(0).normal(size=(500, 3))
    samples = Standardized.fit(lib.asarray(X))
    np.testing.assert_allclose(lib.to_numpy(samples.scale), X.std(axis=0), rtol=1e-9)


def test_fit_does_not_take_seconds_of_the_day_for_a_constant():
    X = 1.7e9 + np.linspace(-30, 30, 500)[:, None]  # a minute of Unix time, exact to 2e-7
    np.testing.assert_allclose(Standardized.fit(X).scale, X.std(axis=0), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_fit_with_whole_weights_equals_repeated_rows(lib, dtype):
    X = make_bytes(40, 5).astype(dtype)
    repeats = np.random.default_rng(1).integers(0, 4, 40)
    weighted = Standardized.fit(lib.asarray(X), lib.asarray(repeats.astype(np.float64)))
    repeated = Standardized.fit(lib.asarray(np.repeat(X, repeats, axis=0)))
    for name in ("mean", "scale"):
        np.testing.assert_allclose(
            lib.to_numpy(getattr(weighted, name)),
            lib.to_numpy(getattr(repeated, name)),
            rtol=1e-12,
        )


@pytest.mark.essential_cases(15)
@pytest.mark.parametrize("value", [0.0, 7.0, 0.1, 1e8 + 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_constant_feature_gets_scale_one(lib, value, weighted):
    X = np.random.default_rng(0).normal(size=(77, 3))
    X[:, 1] = value
    weights = lib.asarray(np.random.default_rng(1).random(77)) if weighted else None
    samples = Standardized.fit(lib.asarray(X), weights)
    scale = lib.to_numpy(samples.scale)
    assert scale[1] == 1.0
    assert np.all(scale[[0, 2]] != 1.0)
    written = lib.to_numpy(samples.to_array(lib.xp.float64))
    np.testing.assert_allclose(written[:, 1], 0, atol=1e-7)


def test_a_constant_pixel_gets_scale_one(lib):
    X = make_bytes(300, 3)
    X[:, 1] = 255
    samples = Standardized.fit(lib.asarray(X))
    assert lib.to_numpy(samples.scale)[1] == 1.0
    assert lib.to_numpy(samples.mean)[1] == 255.0


def test_apply_uses_the_statistics_of_the_training_set(lib):
    train, test = make_bytes(50, 4), make_bytes(7, 4, seed=9)
    fitted = Standardized.fit(lib.asarray(train))
    applied = fitted.apply(lib.asarray(test))
    expected = (test - train.mean(axis=0)) / train.std(axis=0)
    np.testing.assert_allclose(
        lib.to_numpy(applied.to_array(lib.xp.float64)), expected, rtol=0, atol=1e-11
    )
    with pytest.raises(ValueError, match=r"mean must be a number or have shape \(5,\)"):
        fitted.apply(lib.asarray(make_bytes(7, 5)))


def test_fit_leaves_its_inputs_alone(lib):
    X, weights = lib.asarray(make_bytes(50, 4)), lib.asarray(np.ones(50))
    before = lib.to_numpy(X).tobytes(), lib.to_numpy(weights).tobytes()
    Standardized.fit(X, weights).to_array()
    assert (lib.to_numpy(X).tobytes(), lib.to_numpy(weights).tobytes()) == before


def test_numpy_writes_standardised_samples_out_where_it_is_asked_to(lib):
    lazy = Standardized.fit(lib.asarray(np.array([[0, 100], [200, 100]], dtype=np.uint8)))
    if lib.name in ("cupy", "array-api-strict", "opaque"):  # not silently from a device
        with pytest.raises((TypeError, RuntimeError)):
            np.asarray(lazy)
        return
    np.testing.assert_array_equal(np.asarray(lazy), [[-1, 0], [1, 0]])
    assert np.asarray(lazy, dtype=np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="copy"):
        np.asarray(lazy, copy=False)
