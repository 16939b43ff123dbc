import numpy as np
import pytest

from gpuclf import (
    Standardized,
    grad_check,
    numeric_gradient,
    softmax_loss_vectorized,
    two_layer_loss,
)
from gpuclf.arrays import array_namespace
from gpuclf.losses import one_hot, softmax_cross_entropy
from gpuclf.models import MODELS, SOFTMAX, TWO_LAYER, LinearModel
from gpuclf.models import gradients as gradients_module
from gpuclf.models.gradients import all_gradients, check_model

POINT = {"W": np.array([[1.0, -2.0], [0.5, 3.0]]), "b": np.array([0.1, -0.7])}


def cubic(params):
    """sum W^3 + sum sin b + W[0, 0] b[1], whose gradient is written out below."""
    xp = array_namespace(**params)
    W, b = params["W"], params["b"]
    return xp.sum(W**3) + xp.sum(xp.sin(b)) + W[0, 0] * b[1]


def cubic_gradient(params):
    W, b = params["W"], params["b"]
    dW, db = 3 * W**2, np.cos(b)
    dW[0, 0] += b[1]
    db[1] += W[0, 0]
    return {"W": dW, "b": db}


def sum_of_relu(x):
    xp = array_namespace(x)
    return xp.sum(xp.where(x > 0, x, 0.0 * x))


# -------------------------------------------------------------------------- numeric_gradient


def test_the_numeric_gradient_is_that_of_a_function_differentiated_by_hand(lib):
    given = {name: lib.asarray(value) for name, value in POINT.items()}
    found = numeric_gradient(cubic, given)
    for name, expected in cubic_gradient(POINT).items():
        assert type(found[name]) is type(given[name])
        # Truncation h^2 = 1e-10 times f'''/6 = 1, and rounding of about 1e-15 / h.
        np.testing.assert_allclose(lib.to_numpy(found[name]), expected, rtol=0, atol=1e-9)
        np.testing.assert_array_equal(lib.to_numpy(given[name]), POINT[name])


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (2, 1, 3)])
def test_the_numeric_gradient_has_the_shape_of_x(lib, shape):
    x = np.random.default_rng(0).standard_normal(shape)
    found = numeric_gradient(lambda x: array_namespace(x).sum(x * x), lib.asarray(x))
    assert tuple(found.shape) == shape
    np.testing.assert_allclose(lib.to_numpy(found), 2 * x, rtol=0, atol=1e-9)


def test_the_numeric_gradient_of_float32_is_computed_in_float64(lib):
    x = lib.asarray(np.array([0.5, -2.0], dtype=np.float32))
    found = numeric_gradient(lambda x: array_namespace(x).sum(x * x), x)
    assert found.dtype == lib.xp.float64
    np.testing.assert_allclose(lib.to_numpy(found), [1.0, -4.0], rtol=0, atol=1e-9)


def test_a_function_that_changes_its_argument_does_no_harm():
    x = np.array([1.0, 2.0])

    def f(x):
        x *= x
        return x.sum()

    np.testing.assert_allclose(numeric_gradient(f, x), [2.0, 4.0], rtol=0, atol=1e-9)
    np.testing.assert_array_equal(x, [1.0, 2.0])


def test_the_difference_is_centred_and_has_the_step_h():
    # For x^3, a centred difference is 3 x^2 + h^2; a one-sided one would be off by 3 x h.
    found = numeric_gradient(lambda x: (x**3).sum(), np.array([2.0]), h=0.1)
    assert found[0] == pytest.approx(12.01, abs=1e-12)


@pytest.mark.parametrize(
    ("f", "x", "error", "message"),
    [
        (np.sum, [1.0, 2.0], TypeError, "convert it with numpy.asarray"),
        (np.sum, np.zeros((0, 3)), ValueError, "holds no numbers"),
        (lambda x: 2 * x, np.ones(3), ValueError, r"one number, got an array of shape \(3,\)"),
        (lambda x: (x.sum(), x), np.ones(3), TypeError, r"tuple of 2.*lambda x: f\(x\)\[0\]"),
    ],
)
def test_what_numeric_gradient_cannot_use_is_refused(f, x, error, message):
    with pytest.raises(error, match=message):
        numeric_gradient(f, x)


@pytest.mark.parametrize("h", [0.0, -1e-5, float("nan")])
def test_a_step_that_is_not_above_0_is_refused(h):
    with pytest.raises(ValueError, match="h must be above 0"):
        numeric_gradient(np.sum, np.ones(2), h=h)


# -------------------------------------------------------------------------------- grad_check


@pytest.mark.parametrize("mode", ["full", "sampled", "direction"])
def test_a_right_gradient_passes_in_every_mode(lib, mode):
    given = {name: lib.asarray(value) for name, value in POINT.items()}
    right = {name: lib.asarray(value) for name, value in cubic_gradient(POINT).items()}
    found = grad_check(cubic, given, right, mode=mode, n_checks=4)
    assert found.passed
    assert found.max_relative_error < 1e-9
    assert found.n_kinks == 0
    assert found.n_checked == {"full": 6, "sampled": 4, "direction": 1}[mode]


@pytest.mark.parametrize("mode", ["full", "sampled", "direction"])
@pytest.mark.parametrize("error", [1e-5, 1.0])
def test_one_wrong_value_fails_in_every_mode(lib, mode, error):
    wrong = cubic_gradient(POINT)
    wrong["W"][1, 1] += error
    given = {name: lib.asarray(value) for name, value in POINT.items()}
    found = grad_check(cubic, given, {k: lib.asarray(v) for k, v in wrong.items()}, mode=mode)
    assert not found.passed
    if mode == "direction":
        assert found.worst is None
    else:
        assert found.worst == ("W", (1, 1))
        assert found.analytic == pytest.approx(27 + error, rel=1e-12)
        assert found.numeric == pytest.approx(27, rel=1e-9)
        assert found.max_relative_error == pytest.approx(error / (54 + error), rel=1e-3)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_fails(broken):
    found = grad_check(np.sum, np.ones(3), np.array([1.0, broken, 1.0]))
    assert not found.passed
    assert found.worst == ("x", (1,))


def test_a_function_that_is_not_finite_fails():
    x = np.array([1.0, 1.0])
    assert not grad_check(lambda x: np.nan * x.sum(), x, np.ones(2)).passed


def test_relative_errors_do_not_depend_on_the_scale_of_the_function():
    x = np.random.default_rng(0).standard_normal(5)
    for scale in (1e-20, 1e20):
        f = lambda x, scale=scale: scale * np.sum(x**3)  # noqa: E731
        assert grad_check(f, x, scale * 3 * x**2).passed
        found = grad_check(f, x, scale * 3.003 * x**2)
        assert found.max_relative_error == pytest.approx(5e-4, rel=1e-2)


def test_what_rounding_leaves_in_the_difference_is_neither_an_error_nor_a_kink():
    x = np.array([1.0, 1e-3, -2.0])
    f = lambda x: 1e6 + np.sum(x * x)  # noqa: E731  # rounded to 1e-10: the difference to 1e-5
    found = grad_check(f, x, 2 * x)
    assert found.passed
    assert (found.n_checked, found.n_kinks) == (3, 0)
    assert not grad_check(f, x, 2 * x + [0, 0.01, 0]).passed
    assert grad_check(f, x, 2 * x, atol=0.0).n_checked < 3  # without the allowance


def test_zeros_that_agree_are_no_error():
    assert grad_check(lambda x: 0.0 * np.sum(x), np.ones(3), np.zeros(3)).max_relative_error == 0


def test_sampling_draws_distinct_coordinates_by_seed_and_no_more_than_there_are():
    x = np.random.default_rng(1).standard_normal(50)

    def drawn(**options):
        moved = set()

        def f(at):
            moved.update(np.flatnonzero(at != x).tolist())
            return np.sum(at)

        found = grad_check(f, x, np.ones(50), mode="sampled", **options)
        assert found.n_checked == len(moved)
        return moved

    assert len(drawn(n_checks=7)) == 7
    assert drawn(n_checks=7, seed=3) == drawn(n_checks=7, seed=3) != drawn(n_checks=7, seed=4)
    assert len(drawn(n_checks=200)) == 50


def test_a_direction_takes_two_calls_and_one_for_the_size():
    calls = []
    grad_check(
        lambda x: calls.append(0) or np.sum(x), np.ones(1000), np.ones(1000), mode="direction"
    )
    assert len(calls) == 3


def test_a_gradient_in_float32_passes_at_its_tolerance_only(lib):
    x = np.random.default_rng(0).standard_normal(6).astype(np.float32)
    right = (3 * x.astype(np.float64) ** 2).astype(np.float32)
    f = lambda x: array_namespace(x).sum(x**3)  # noqa: E731
    assert grad_check(f, lib.asarray(x), lib.asarray(right), rtol=1e-3).passed
    wrong = right * np.float32(1.01)
    assert not grad_check(f, lib.asarray(x), lib.asarray(wrong), rtol=1e-3).passed


# ------------------------------------------------------------------------------------- kinks


@pytest.mark.essential_cases(30)
@pytest.mark.parametrize("distance", [0, 0.1, 2 / 7, 0.3, 1 / 3, 0.4, 0.5, 0.7, 0.95])
@pytest.mark.parametrize("side", [-1, 1])
def test_a_kink_anywhere_within_the_step_is_noticed(lib, distance, side):
    h = 1e-5
    x = np.array([side * distance * h, 1.0, -1.0])
    analytic = (x > 0).astype(float)
    found = grad_check(sum_of_relu, lib.asarray(x), lib.asarray(analytic), h=h)
    assert (found.n_kinks, found.n_checked) == (1, 2)
    assert found.passed


def test_a_kink_beyond_the_step_is_none():
    x = np.array([1.5e-5, -1.5e-5])
    found = grad_check(sum_of_relu, x, np.array([1.0, 0.0]))
    assert (found.n_kinks, found.n_checked) == (0, 2)


def test_a_kink_is_noticed_beside_a_smooth_part_and_along_a_direction():
    def f(x):
        return sum_of_relu(x) + np.sum(np.exp(x))

    x = np.array([0.0, 1.0])
    analytic = np.exp(x) + (x > 0)
    assert grad_check(f, x, analytic).n_kinks == 1
    assert grad_check(f, x, analytic, mode="direction").n_kinks == 1


def test_a_kink_does_not_excuse_an_error_larger_than_it():
    found = grad_check(sum_of_relu, np.array([0.0, 1.0]), np.array([9.0, 1.0]))
    assert not found.passed
    assert found.worst == ("x", (0,))


def test_a_strongly_curved_function_has_no_kink():
    x = np.array([0.3, 1.2])
    wrong = 50 * np.cos(50 * x) * 1.001
    found = grad_check(lambda x: np.sum(np.sin(50 * x)), x, wrong, h=1e-6)
    assert found.n_kinks == 0
    assert not found.passed


def test_where_everything_is_at_a_kink_nothing_has_passed():
    found = grad_check(sum_of_relu, np.zeros(3), np.zeros(3))
    assert (found.n_kinks, found.n_checked) == (3, 0)
    assert not found.passed
    assert "nothing could be judged" in str(found)


# ---------------------------------------------------------------------------- what it prints


def test_the_result_says_what_was_found():
    passed = grad_check(cubic, POINT, cubic_gradient(POINT))
    assert repr(passed).startswith("<GradCheck passed: max relative error ")
    assert repr(passed).endswith("tolerance 1e-07; 6 checked, 0 at kinks>")
    wrong = cubic_gradient(POINT)
    wrong["W"][1, 0] = 5
    failed = str(grad_check(cubic, POINT, wrong))
    assert failed.startswith("failed: max relative error 7.4e-01 at W[1, 0] (analytic 5, numeric")
    scalar = grad_check(lambda x: 2 * x, np.array(1.0), np.array(3.0))
    assert " at x (analytic 3" in str(scalar)
    direction = grad_check(cubic, POINT, cubic_gradient(POINT), mode="direction")
    assert "along a random direction" in str(direction)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "fast"}, "'full', 'sampled', 'direction', got 'fast'"),
        ({"mode": "sampled", "n_checks": 0}, "n_checks must be at least 1, got 0"),
        ({"rtol": 0.0}, "rtol must be above 0"),
        ({"h": 0.0}, "h must be above 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        grad_check(np.sum, np.ones(2), np.ones(2), **options)


def test_a_gradient_that_does_not_fit_x_is_refused():
    with pytest.raises(ValueError, match=r"shapes of x, \{'x': \(2,\)\}, got \{'x': \(3,\)\}"):
        grad_check(np.sum, np.ones(2), np.ones(3))
    with pytest.raises(ValueError, match="the shapes of x"):
        grad_check(cubic, POINT, {"W": POINT["W"]})
    with pytest.raises(TypeError, match="x is dict, the gradient ndarray"):
        grad_check(cubic, POINT, POINT["W"])


# ------------------------------------------------------------------------ the library's models


@pytest.mark.essential_cases(3)
@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_the_gradients_of_its_parameters_and_of_x(lib, model):
    like = lib.asarray(np.zeros(1))
    for name, found in check_model(MODELS[model], like=like).items():
        assert found.passed, f"{name}: {found}"
        assert found.max_relative_error < 1e-7
        assert found.n_checked > 3 * found.n_kinks


@pytest.mark.essential_cases(3)
@pytest.mark.parametrize("model", MODELS)
def test_every_model_agrees_to_1e_7_without_any_allowance_for_rounding(lib, model):
    # Of each gradient as a whole: single values near 0 have fewer digits in the difference.
    rng = np.random.default_rng(5)
    sizes = {"N": 12, "D": 7, "H": 6, "C": 4}
    axes = MODELS[model].axes | {"X": "ND"}
    shapes = {name: [sizes[letter] for letter in of] for name, of in axes.items()}
    point = {name: lib.asarray(rng.standard_normal(shape)) for name, shape in shapes.items()}
    y = lib.asarray(rng.integers(4, size=12))

    def evaluate(values):
        return all_gradients(MODELS[model], values, y, 0.05)

    numeric = numeric_gradient(lambda values: evaluate(values)[0], point)
    for name, gradient in evaluate(point)[1].items():
        a, n = lib.to_numpy(gradient), lib.to_numpy(numeric[name])
        assert np.linalg.norm(a - n) < 1e-7 * (np.linalg.norm(a) + np.linalg.norm(n)), name
        np.testing.assert_allclose(a, n, rtol=0, atol=1e-7 * np.abs(n).max())


@pytest.mark.essential_cases(3)
@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_its_gradients_in_float32(lib, model):
    for name, found in check_model(
        MODELS[model], like=lib.asarray(np.zeros(1)), dtype="float32"
    ).items():
        assert found.passed, f"{name}: {found}"


@pytest.mark.essential_cases(1)
@pytest.mark.parametrize("model", MODELS)
def test_a_model_with_a_wrong_gradient_fails(model, monkeypatch):
    for broken in (*MODELS[model].axes, "X"):

        def gradients(*args, broken=broken):
            loss, grads = all_gradients(*args)
            return loss, grads | {broken: 1.00001 * grads[broken]}

        monkeypatch.setattr(gradients_module, "all_gradients", gradients)
        found = check_model(MODELS[model], like=np.zeros(1))
        assert [name for name, result in found.items() if not result.passed] == [broken]


def make_public(lib, seed=0):
    rng = np.random.default_rng(seed)
    X, y = rng.standard_normal((9, 5)), rng.integers(3, size=9)
    params = {
        "W1": rng.standard_normal((5, 4)),
        "b1": rng.standard_normal(4),
        "W2": rng.standard_normal((4, 3)),
        "b2": rng.standard_normal(3),
    }
    W = lib.asarray(rng.standard_normal((5, 3)))
    return W, {k: lib.asarray(v) for k, v in params.items()}, lib.asarray(X), lib.asarray(y)


@pytest.mark.essential_cases(6)
@pytest.mark.parametrize("mode", ["full", "sampled", "direction"])
def test_the_public_losses_pass(lib, mode):
    W, params, X, y = make_public(lib)
    softmax = lambda W: softmax_loss_vectorized(W, X, y, 0.1)  # noqa: E731
    found = grad_check(lambda W: softmax(W)[0], W, softmax(W)[1], mode=mode, n_checks=8)
    assert found.passed, found
    net = lambda params: two_layer_loss(params, X, y, 0.1)  # noqa: E731
    found = grad_check(lambda p: net(p)[0], params, net(params)[1], mode=mode, n_checks=20)
    assert found.passed, found


@pytest.mark.essential_cases(3)
@pytest.mark.parametrize("n_samples", [3, 40], ids=["rows standardised", "folded"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_gradients_through_lazy_standardisation_pass(lib, dtype, n_samples):
    rng = np.random.default_rng(0)
    pixels = rng.integers(256, size=(n_samples, 6)).astype(dtype)
    mean, scale = rng.uniform(100, 150, 6), rng.uniform(20, 90, 6)
    X = Standardized(lib.asarray(pixels), lib.asarray(mean), lib.asarray(scale))
    y = lib.asarray(rng.integers(3, size=n_samples))
    shapes = {"W1": (6, 5), "b1": (5,), "W2": (5, 3), "b2": (3,), "W": (6, 3), "b": (3,)}
    values = {name: lib.asarray(rng.standard_normal(shape)) for name, shape in shapes.items()}

    def linear(params):
        return SOFTMAX.objective(params, X, y, 0.1)

    def net(params):
        return TWO_LAYER.objective(params, X, y, 0.1)

    for objective, names in ((linear, ("W", "b")), (net, ("W1", "b1", "W2", "b2"))):
        params = {name: values[name] for name in names}
        found = grad_check(lambda p, f=objective: f(p)[0], params, objective(params)[1])
        assert found.passed, found


@pytest.mark.parametrize("frequency", [300.0, 1e3])
def test_curvature_is_judged_and_not_taken_for_a_kink(frequency):
    x = np.linspace(0.1, 2.0, 15)

    def f(x):
        return np.sum(np.sin(frequency * x))

    right = frequency * np.cos(frequency * x)
    found = grad_check(f, x, right)
    assert found.passed
    assert (found.n_checked, found.n_kinks) == (15, 0)
    assert not grad_check(f, x, right + np.eye(15)[3] * 1e-3 * frequency).passed


def test_where_the_step_is_too_long_a_shorter_one_is_suggested():
    x = np.linspace(0.1, 2.0, 15)
    found = grad_check(lambda x: np.sum(np.sin(3e4 * x)), x, 3e4 * np.cos(3e4 * x))
    assert not found.passed
    assert "curved too strongly for the step" in str(found)
    assert "smaller h" in str(found)


def test_nothing_passes_where_most_could_not_be_judged():
    x = np.array([0.0, 0.0, 0.0, 1.0, 2.0])
    found = grad_check(sum_of_relu, x, np.array([0.0, 0, 0, 1, 1]))
    assert (found.n_checked, found.n_kinks) == (2, 3)
    assert not found.passed
    assert str(found).startswith("failed: only 2 of 5 could be judged")
    assert "smaller h" in str(found)
    assert grad_check(sum_of_relu, x[1:], np.array([0.0, 0, 1, 1])).passed


def test_a_loss_that_ignores_its_weights_is_refused():
    def unweighted(scores, labels, sample_weight=None):
        return softmax_cross_entropy(scores, labels)

    with pytest.raises(ValueError, match="must multiply each sample's loss by its weight"):
        check_model(LinearModel("unweighted", unweighted), like=np.zeros(1))


def squares_of_all(scores, labels, sample_weight=None):
    difference = scores - one_hot(labels, scores.shape[-1], dtype=scores.dtype)
    weights = np.full(len(labels), 1 / len(labels)) if sample_weight is None else sample_weight
    weighted = weights[..., None] * difference
    return np.sum(weighted * difference), 2 * weighted


def own_class_by_index(scores, labels, sample_weight=None):
    weights = np.full(len(labels), 1 / len(labels)) if sample_weight is None else sample_weight
    own = np.arange(len(labels)), labels
    dscores = np.zeros_like(scores)
    dscores[own] = -weights
    return -np.sum(weights * scores[own], axis=-1), dscores


@pytest.mark.parametrize("loss", [squares_of_all, own_class_by_index])
def test_a_loss_that_no_fleet_can_call_is_refused(loss):
    message = r"must take the scores of several models, \(\.\.\., N, C\)"
    with pytest.raises(ValueError, match=message):
        check_model(LinearModel(loss.__name__, loss), like=np.zeros(1))


# ------------------------------------------------------------------------ what rounding hides


def square_and(constant):
    return lambda x: constant + (x**2).sum()


@pytest.mark.parametrize("mode", ["auto", "full", "sampled", "direction"])
@pytest.mark.parametrize("slope", [-7.0, 0.0, 1.0, 300.0])
def test_a_wrong_gradient_that_rounding_hides_has_not_passed(mode, slope):
    found = grad_check(square_and(1e12), np.ones(3), np.full(3, slope), mode=mode)
    assert not found.passed
    assert (found.n_checked, found.n_kinks) == (0, 0)
    assert "nothing could be judged" in str(found)
    assert "take what does not depend on x out of f" in str(found)


def test_the_advice_for_a_large_constant_is_right():
    x = np.ones(3)
    found = grad_check(square_and(1e10), x, 2 * x)
    assert "or check with h=0.1" in str(found)
    assert not found.passed
    for f, h in ((square_and(0), 1e-5), (square_and(1e10), 0.1)):
        assert grad_check(f, x, 2 * x, h=h).passed
        assert not grad_check(f, x, -2 * x, h=h).passed


@pytest.mark.parametrize(
    "rounds", [np.float32, lambda v: float(np.float32(v))], ids=["f4", "float"]
)
def test_the_advice_for_a_function_rounded_to_float32_is_right(rounds):
    x = np.random.default_rng(0).uniform(0.5, 1, 6)
    f = square_and(1)
    found = grad_check(lambda x: rounds(f(x)), x, 2 * x)
    assert not found.passed
    message = str(found)
    assert "f is rounded to float32" in message
    assert "smaller h" not in message
    assert "let it compute in the float64 that it is called with, or check with h=0.01" in message
    assert grad_check(f, x, 2 * x).passed
    assert grad_check(lambda x: rounds(f(x)), x, 2 * x, h=0.01).passed
    assert not grad_check(lambda x: rounds(f(x)), x, 2.1 * x, h=0.01).passed


def test_zeros_are_judged_where_the_function_is_constant_and_where_the_gradient_is_large():
    x = np.ones(4)
    constant = grad_check(lambda x: 1e12 + 0 * x.sum(), x, np.zeros(4))
    assert constant.passed
    assert constant.n_checked == 4
    beside = grad_check(lambda x: 100 + x[0] + 1e-12 * x[1:].sum(), x, np.array([1.0, 0, 0, 0]))
    assert beside.passed
    assert beside.n_hidden == 0


def test_half_of_the_coordinates_may_be_hidden_and_no_more():
    weights = np.array([1e4, 1e4, 1.0, 1.0])
    found = grad_check(lambda x: 1e9 + weights @ x, np.ones(4), weights)
    assert (found.n_checked, found.n_hidden, found.passed) == (4, 0, True)  # small beside 1e4
    weights = np.array([10.0, 10.0, 0.1, 0.1, 0.1])
    found = grad_check(lambda x: 1e9 + weights @ x, np.ones(5), weights)
    assert (found.n_checked, found.n_hidden, found.passed) == (2, 3, False)
    assert "only 2 of 5 could be judged (2 checked, 0 at kinks, 3 not judged)" in str(found)


def test_many_coordinates_are_sampled_beside_a_direction_that_sees_all(capsys, monkeypatch):
    calls = []

    def f(x):
        calls.append(1)
        return (x**2).sum()

    x = np.linspace(1, 2, 1001)
    assert grad_check(f, x, 2 * x).n_checked == 101
    assert len(calls) == 2 * 101 + 1
    wrong = 2 * x
    wrong[np.random.default_rng(0).permutation(1001)[500]] += 1  # none of the sample
    found = grad_check(f, x, wrong)
    assert (found.passed, found.worst) == (False, None)
    assert grad_check(f, x[:1000], 2 * x[:1000]).n_checked == 1000
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert grad_check(f, x, 2 * x, mode="full").n_checked == 1001
    assert "checked 1,000 of 1,001 coordinates" in capsys.readouterr().err
