import re
import sys

import numpy as np
import pytest

from gpuclf import extract_features
from gpuclf.arrays import MixedDevicesError
from gpuclf.models import SOFTMAX
from gpuclf.models.linear import softmax_loss_vectorized
from gpuclf.models.two_layer import two_layer_loss, two_layer_scores
from gpuclf.samples.standardized import Standardized
from gpuclf.validation import check_finite, check_weights

N, D, H, C = 6, 4, 5, 3


def make_X():
    return np.random.default_rng(0).normal(size=(N, D))


def make_y():
    return np.arange(N) % C


def make_params():
    rng = np.random.default_rng(1)
    shapes = {"W1": (D, H), "b1": (H,), "W2": (H, C), "b2": (C,)}
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def call(function, *, asarray=lambda a: a, **changed):
    """Call a loss with one argument changed; `changed` may be X, y or any parameter."""
    X, y = changed.pop("X", asarray(make_X())), changed.pop("y", asarray(make_y()))
    if function == "softmax":
        W = changed.get("W", asarray(np.random.default_rng(1).normal(size=(D, C))))
        return softmax_loss_vectorized(W, X, y, 0.1)
    params = {name: asarray(value) for name, value in make_params().items()}
    return two_layer_loss({**params, **changed}, X, y, 0.1)


FUNCTIONS = ["softmax", "two_layer"]

# ---------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("row", "value", "more"),
    [(2, 3, ""), (0, -1, ""), (5, 99, ""), (slice(1, 4), 7, " and 2 more")],
)
def test_labels_out_of_range_are_named_with_the_remedy(function, row, value, more):
    y = make_y()
    y[row] = value
    first = row.start if isinstance(row, slice) else row
    message = re.escape(
        f"labels must be in 0..2 (W has 3 columns), got y[{first}] = {value}{more}; "
        "number the classes from 0"
    )
    with pytest.raises(ValueError, match=message):
        call(function, y=y)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.uint64])
def test_labels_of_any_integer_type_are_checked(dtype):
    y = make_y().astype(dtype)
    loss, _ = call("softmax", y=y)
    assert loss == call("softmax")[0]
    y[4] = 100
    with pytest.raises(ValueError, match=r"got y\[4\] = 100"):
        call("softmax", y=y)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", ["float64", "bool"])
def test_labels_that_are_not_integers_are_refused_with_the_remedy(lib, function, dtype):
    y = lib.asarray(make_y().astype(dtype))
    with pytest.raises(TypeError, match=rf"integers 0\.\.2, got .*{dtype}; convert .* numpy.uniq"):
        call(function, asarray=lib.asarray, y=y)


def test_labels_that_are_words_are_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"got <U3; .*numpy\.unique\(y, return_inverse=True\)"):
        call("softmax", y=np.array(["cat"] * N))


@pytest.mark.essential_cases(20)
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("shape", [(N - 1,), (N + 1,), (N, 1), (1, N), (N, C), ()])
def test_labels_of_another_shape_are_refused(lib, function, shape):
    y = lib.asarray(np.zeros(shape, int))
    message = (
        rf"y must have shape \({N},\), one label for each row of X, got {re.escape(str(shape))}"
    )
    with pytest.raises(ValueError, match=message):
        call(function, asarray=lib.asarray, y=y)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_labels_may_be_a_list_a_tuple_or_a_range(lib, function):
    expected, _ = call(function, asarray=lib.asarray)
    for y in (make_y().tolist(), tuple(make_y().tolist())):
        loss, _ = call(function, asarray=lib.asarray, y=y)
        assert lib.to_numpy(loss) == lib.to_numpy(expected)
    X = lib.asarray(make_X()[:C])
    loss, _ = call(function, asarray=lib.asarray, X=X, y=range(C))
    assert np.isfinite(lib.to_numpy(loss))


def test_labels_on_a_device_are_not_looked_at_but_make_the_loss_nan(strict):
    y = strict.asarray(np.array([0, 1, 2, 3, 0, 1]))
    loss, _ = call("softmax", asarray=strict.asarray, y=y)
    assert np.isnan(strict.to_numpy(loss))


# -------------------------------------------------------------------------- NaN and infinity


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_in_X_are_named_with_index_and_remedy(function, value):
    X = make_X()
    X[4, 1] = value
    message = re.escape("X has 1 NaN or infinite values, the first at X[4, 1]; remove or replace")
    with pytest.raises(ValueError, match=message):
        call(function, X=X)
    X[5, :] = np.nan
    with pytest.raises(ValueError, match=r"X has 5 NaN .* X\[4, 1\].*numpy\.nan_to_num\(X\)"):
        call(function, X=X)
    with pytest.raises(ValueError, match=r"X\[4, 1\]"):
        check_finite(X)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_in_W_are_named_with_the_index(value):
    W = np.ones((D, C), np.float64)
    W[3, 2] = value
    with pytest.raises(ValueError, match=r"W has 1 NaN .* W\[3, 2\]"):
        call("softmax", W=W)


@pytest.mark.parametrize("name", ["W1", "b1", "W2", "b2"])
def test_nan_in_a_two_layer_parameter_is_named_with_the_index(name):
    params = make_params()
    last = tuple(n - 1 for n in params[name].shape)
    params[name][last] = np.nan
    index = ", ".join(map(str, last))
    with pytest.raises(ValueError, match=rf"{name} has 1 NaN .* {name}\[{index}\]"):
        call("two_layer", **params)


def test_nan_in_one_of_several_models_is_named_with_the_index():
    W = np.zeros((2, D, C))
    W[1, 0, 2] = np.nan
    with pytest.raises(ValueError, match=r"W\[1, 0, 2\]"):
        call("softmax", W=W)


def test_infinity_that_relu_hides_is_found_too():
    X = make_X()
    X[4, 1] = np.inf
    with pytest.raises(ValueError, match=r"X\[4, 1\]"):
        call("two_layer", X=X, W1=-np.ones((D, H)))


def test_nan_inside_standardized_floats_is_found():
    X = make_X()
    X[2, 3] = np.nan
    with pytest.raises(ValueError, match=r"X\[2, 3\]"):
        call("softmax", X=Standardized(X, 0.0, 1.0))


def test_scores_that_overflow_are_told_from_bad_inputs():
    X, W = np.full((N, D), 1e30, np.float32), np.full((D, C), 1e30, np.float32)
    with pytest.raises(FloatingPointError, match=r"X and the parameters are finite: something ov"):
        call("softmax", X=X, W=W)


def test_finite_inputs_pass(lib):
    check_finite(lib.asarray(make_X()))
    check_finite(Standardized(lib.asarray(make_X()), 0.0, 1.0))
    check_finite(lib.asarray(np.zeros((2, 2), np.uint8)))


# ------------------------------------------------------------------------------ shapes of X


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("shape", [(0, D), (N, 0), (0, 0)])
def test_empty_X_is_refused_with_its_shape(lib, function, shape):
    X = lib.asarray(np.zeros(shape))
    with pytest.raises(ValueError, match=rf"X is empty: shape {re.escape(str(shape))}; at least"):
        call(function, asarray=lib.asarray, X=X)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("shape", [(D,), (2, 3, D), (N, 3, 32, 32)])
def test_X_that_is_no_matrix_is_refused_with_the_remedy(lib, function, shape):
    X = lib.asarray(np.zeros(shape))
    rows = "1" if len(shape) == 1 else r"len\(X\)"
    message = rf"shape \(N, D\), .* got {re.escape(str(shape))}; .* X\.reshape\({rows}, -1\)"
    with pytest.raises(ValueError, match=message):
        call(function, asarray=lib.asarray, X=X)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", ["int64", "int8", "bool", "complex128", "object", "longdouble"])
def test_X_of_another_dtype_is_refused_with_the_remedy(function, dtype):
    X = np.ones((N, D)).astype(dtype)
    message = rf"X must be uint8, .*float32 or float64, got {X.dtype}; .* X\.astype\('float32'\)"
    with pytest.raises(TypeError, match=message):
        call(function, X=X)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_whole_numbers_as_X_are_refused_in_every_library(lib, function):
    with pytest.raises(TypeError, match=r"X must be uint8, .*float32 or float64, got .*int64"):
        call(function, asarray=lib.asarray, X=lib.asarray(np.ones((N, D), np.int64)))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_is_no_array_is_refused(function):
    with pytest.raises(TypeError, match=r"expected an array .* got list; .*numpy\.asarray"):
        call(function, X=make_X().tolist())
    with pytest.raises(TypeError, match="at least one array"):
        call(function, X=None)
    name = "W" if function == "softmax" else "W1"
    with pytest.raises(TypeError, match=r"got list; convert it with numpy\.asarray"):
        call(function, **{name: np.ones((D, C)).tolist()})


# ---------------------------------------------------------------------------- parameters


@pytest.mark.parametrize("shape", [(D + 1, C), (D - 1, C), (1, C), (D, 0), (D,), ()])
def test_W_that_does_not_fit_X_is_refused_with_both_shapes(lib, shape):
    message = (
        rf"W must have shape \({D}, any\) to fit X of shape \({N}, {D}\).*"
        rf"got {re.escape(str(shape))}$"
    )
    with pytest.raises(ValueError, match=message):
        call("softmax", asarray=lib.asarray, W=lib.asarray(np.ones(shape)))


def test_a_transposed_W_is_recognised(lib):
    with pytest.raises(ValueError, match=rf"got \({C}, {D}\); it looks transposed: pass W\.T"):
        call("softmax", asarray=lib.asarray, W=lib.asarray(np.ones((C, D))))
    with pytest.raises(ValueError, match=rf"got \({H}, {D}\); it looks transposed: pass W1\.T"):
        call("two_layer", asarray=lib.asarray, W1=lib.asarray(np.ones((H, D))))


@pytest.mark.parametrize(
    ("name", "shape", "wanted"),
    [
        ("W1", (D + 1, H), rf"\({D}, any\)"),
        ("b1", (H + 1,), rf"\({H},\)"),
        ("b1", (), rf"\({H},\)"),
        ("W2", (H + 1, C), rf"\({H}, any\)"),
        ("b2", (C - 1,), rf"\({C},\)"),
    ],
)
def test_two_layer_parameters_that_do_not_fit_are_refused_by_name(lib, name, shape, wanted):
    message = rf"{name} must have shape {wanted} .*got {re.escape(str(shape))}"
    params = {name: lib.asarray(np.ones(shape))}
    with pytest.raises(ValueError, match=message):
        call("two_layer", asarray=lib.asarray, **params)


@pytest.mark.parametrize("dtype", ["int64", "bool", "uint8"])
def test_weights_that_are_not_floats_are_refused_with_the_remedy(lib, dtype):
    W = lib.asarray(np.ones((D, C), dtype))
    advice = {"torch": "W.to(torch.float32)", "array-api-strict": "array_api_strict.astype(W, "}
    remedy = re.escape(advice.get(lib.name, "W.astype('float32')"))
    message = rf"W must be float32 or float64, got .*{dtype}; .* {remedy}"
    with pytest.raises(TypeError, match=message):
        call("softmax", asarray=lib.asarray, W=W)
    with pytest.raises(TypeError, match=r"b2 must be float32 or float64"):
        call("two_layer", asarray=lib.asarray, b2=lib.asarray(np.ones(C, dtype)))


def test_half_precision_weights_are_refused():
    with pytest.raises(TypeError, match="W must be float32 or float64, got float16"):
        call("softmax", W=np.ones((D, C), np.float16))


@pytest.mark.parametrize("function", [two_layer_loss, two_layer_scores])
def test_missing_parameters_are_listed(function):
    params = {name: value for name, value in make_params().items() if name in ("W1", "b2")}
    arguments = (make_y(), 0.1) if function is two_layer_loss else ()
    with pytest.raises(ValueError, match=r"W1 \(D, H\), b1 \(H,\).*missing: b1, W2$"):
        function(params, make_X(), *arguments)


def test_scores_check_their_inputs_too():
    with pytest.raises(ValueError, match=r"W1 must have shape"):
        two_layer_scores(make_params(), np.ones((3, D + 1)))
    with pytest.raises(ValueError, match="X is empty"):
        two_layer_scores(make_params(), np.ones((0, D)))


# ---------------------------------------------------------------------------- sample weights


def test_sample_weights_are_scaled_to_sum_to_one(lib):
    weights = check_weights(
        lib.asarray(np.array([1, 2, 3, 0, 1, 1])), lib.asarray(make_X()), lib.xp.float32
    )
    assert weights.dtype == lib.xp.float32
    expected = np.array([1, 2, 3, 0, 1, 1]) / 8
    np.testing.assert_allclose(lib.to_numpy(weights), expected, rtol=1e-7)
    assert check_weights(None, lib.asarray(make_X()), lib.xp.float32) is None


@pytest.mark.parametrize("bad", [[-1.0] + [1.0] * 5, [0.0] * 6, [np.nan] * 6, [np.inf] + [1.0] * 5])
def test_bad_sample_weights_are_refused(bad):
    with pytest.raises(ValueError, match="sample_weight must be finite, at least 0, and not 0 ev"):
        check_weights(np.array(bad), make_X(), np.float32)


def test_sample_weights_of_another_shape_are_refused(lib):
    message = rf"sample_weight must have shape \({N},\), .*got \({N}, 1\)"
    with pytest.raises(ValueError, match=message):
        check_weights(lib.asarray(np.ones((N, 1))), lib.asarray(make_X()), lib.xp.float32)


# -------------------------------------------------------------------------------- devices


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("name", ["X", "y", "parameter"])
@pytest.mark.parametrize("other", ["numpy", "CPU_DEVICE"])
def test_one_argument_elsewhere_is_refused_naming_both_and_the_remedy(
    strict, strict_on_cpu, function, name, other
):
    stray = np.array if other == "numpy" else strict_on_cpu.asarray
    if name == "parameter":
        name = "W" if function == "softmax" else "W2"
    value = {"X": make_X(), "y": make_y(), "W": np.ones((D, C)), "W2": np.ones((H, C))}[name]
    with pytest.raises(MixedDevicesError) as caught:
        call(function, asarray=strict.asarray, **{name: stray(value)})
    message = str(caught.value)
    assert "device1" in message
    assert ("numpy on cpu" if other == "numpy" else "CPU_DEVICE") in message
    assert ("gpuclf.to_host(" in message) is (other == "numpy")  # else one would still be elsewhere
    assert "gpuclf.to_device(" in message
    assert f"{name} is " in message


# ------------------------------------------------------------------ no hidden host round trip


@pytest.fixture
def sealed(strict, monkeypatch):
    """Make arrays on device1 raise on everything that would bring a value to the host."""
    array_type = type(strict.asarray(np.zeros(1)))
    device1 = strict.xp.Device("device1")
    ways = ("bool", "float", "int", "index", "complex", "array", "buffer", "dlpack", "iter")
    for way in ways:
        name = f"__{way}__"
        original = getattr(array_type, name, None)

        def guarded(self, *args, _name=name, _original=original, **kwargs):
            if self.device == device1:
                raise AssertionError(f"hidden host round trip: {_name}")
            if _original is None:
                raise TypeError(f"no {_name}")
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(array_type, name, guarded, raising=False)
    return strict


@pytest.mark.parametrize("convert", [float, int, bool, complex, list, np.asarray, range])
def test_the_seal_notices_conversions(sealed, convert):
    scalar = sealed.asarray(np.array([1]) if convert is list else np.array(1))
    with pytest.raises((AssertionError, RuntimeError), match=r"round trip|Can't convert"):
        convert(scalar)


@pytest.mark.parametrize("dtype", ["uint8", "float64"])
@pytest.mark.parametrize("models", [(), (2,)])
def test_the_losses_never_bring_a_value_to_the_host(sealed, small_blocks, dtype, models):
    rng = np.random.default_rng(0)
    X = sealed.asarray((rng.random((30, D)) * 200).astype(dtype))
    y, weights = sealed.asarray(np.arange(30) % C), sealed.asarray(np.ones(30))
    statistics = sealed.asarray(np.full(D, 90.0)), sealed.asarray(np.full(D, 50.0))
    params = {
        name: sealed.asarray(np.broadcast_to(value, (*models, *value.shape)).copy())
        for name, value in make_params().items()
    }
    W = sealed.asarray(rng.normal(size=(*models, D, C)) / 100)
    # Checking mean and scale is one look at the host, when the features are made.
    samples = object.__new__(Standardized)
    samples.X, (samples.mean, samples.scale) = X, statistics
    for features in (X, samples, samples[3:20]):
        own_y, own_weights = y[: features.shape[0]], weights[: features.shape[0]]
        results = [
            softmax_loss_vectorized(W, features, own_y, 0.1),
            two_layer_loss(params, features, own_y, 0.1, own_weights),
        ]
        assert all(tuple(loss.shape) == models for loss, _ in results)


def test_images_with_the_colours_last_are_told_how_to_bring_the_planes_first(lib):
    images = np.zeros((2, 32, 32, 3), np.uint8)
    images[..., 1] = 7
    with pytest.raises(ValueError, match=r"the planes first") as caught:
        extract_features(lib.asarray(images))
    advice = re.search(r"with images\.(.*)$", str(caught.value))[1]
    assert advice == {"torch": "permute"}.get(lib.name, "transpose") + (
        "(0, 3, 1, 2).reshape(len(images), -1)"
    )
    if lib.xp is np:
        rows = eval(f"images.{advice}", {"images": images})
        assert (rows.reshape(2, 3, -1)[:, 1] == 7).all()


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 5, 5)])
def test_other_images_are_told_to_be_flattened(shape):
    with pytest.raises(ValueError, match=r"flatten images with X\.reshape\(len\(X\), -1\)"):
        softmax_loss_vectorized(np.zeros((4, 3)), np.zeros(shape), np.zeros(2, int), 0.0)


def test_the_advice_on_dtypes_is_what_the_library_has(lib):
    with pytest.raises(TypeError, match="convert it with ") as caught:
        softmax_loss_vectorized(
            lib.asarray(np.zeros((4, 3))),
            lib.asarray(np.zeros((2, 4), np.int64)),
            lib.asarray(np.zeros(2, np.int64)),
            0.0,
        )
    advice = re.search("convert it with (.*)$", str(caught.value))[1]
    X = lib.asarray(np.zeros((2, 4), np.int64))
    names = {"X": X, "torch": sys.modules.get("torch"), "array_api_strict": lib.xp}
    converted = eval(advice, names)
    assert converted.dtype == lib.xp.float32


def test_floats_of_the_other_byte_order_are_told_to_be_swapped():
    X = np.ones((2, 4), np.dtype(float).newbyteorder())
    with pytest.raises(TypeError, match=r"byte order.*X\.astype\('float64'\)$"):
        softmax_loss_vectorized(np.zeros((4, 3)), X, np.zeros(2, int), 0.0)


def test_calls_of_known_types_and_sizes_are_looked_at_for_their_values():
    params, X, y = {"W": np.ones((D, C)), "b": np.zeros(C)}, make_X(), make_y()
    expected = SOFTMAX.loss(params, X, y, 0.1)[0]
    assert SOFTMAX.loss(params, X, y, 0.1)[0] == expected
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.2"):
        SOFTMAX.loss(params, X, y + 1, 0.1)
    with pytest.raises(ValueError, match="reg must be"):
        SOFTMAX.loss(params, X, y, -1.0)
    with pytest.raises(ValueError, match="X has 24 NaN"):
        SOFTMAX.loss(params, X * np.nan, y, 0.1)
    with pytest.raises(ValueError, match="precision must be"):
        SOFTMAX.loss(params, X, y, 0.1, precision=[])


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("X", make_X()[:, 1:]),
        ("y", make_y()[1:]),
        ("y", make_y() > 0),
        ("W", np.ones((D + 1, C))),
        ("W", np.ones((D, C), np.int64)),
        ("b", None),
    ],
)
def test_other_types_and_sizes_than_the_known_ones_are_checked(name, other):
    given = {"W": np.ones((D, C)), "b": np.zeros(C), "X": make_X(), "y": make_y()}
    for changed in ({}, {name: other}):
        now = given | changed
        X, y = now.pop("X"), now.pop("y")
        if changed:
            with pytest.raises((TypeError, ValueError)):
                SOFTMAX.loss(now, X, y, 0.1)
        else:
            SOFTMAX.loss(now, X, y, 0.1)


def test_what_is_converted_is_converted_in_each_call():
    X, y = make_X().astype(np.float32), make_y()
    params = {"b": np.zeros(C), "W": np.ones((D, C), np.float32)}  # in another order too
    for _ in range(2):
        loss, grads = SOFTMAX.loss(params, X, y, 0.1)
        assert [*grads] == ["W", "b"]
        assert {grad.dtype.name for grad in grads.values()} == {"float64"}
        assert loss == pytest.approx(np.log(C) + 0.1 * D * C)
