import numpy as np
import pytest

from gpuclf.kernels.elementwise import on_cpu as compiled_elementwise
from gpuclf.layers import apart
from gpuclf.models.linear import add_penalty_gradient
from gpuclf.samples.standardized import standardized_rows
from gpuclf.training import momentum_step

pytest.importorskip("numba", reason="numba is not installed")

ROUNDING = {np.float32: 3e-7, np.float64: 5e-16}
FUNCTIONS = {
    "standardized_rows": standardized_rows,
    "add_penalty_gradient": add_penalty_gradient,
    "momentum_step": momentum_step,
}


@pytest.fixture(autouse=True)
def nothing_is_too_small(monkeypatch):
    monkeypatch.setattr(compiled_elementwise, "MIN_ITEMS", 1)


def kernel(name):
    return getattr(compiled_elementwise, f"compiled_{name}")


def normal(*shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.essential_cases(8)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("stored", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (40, 33)])
def test_standardized_rows(shape, stored, dtype):
    X = np.random.default_rng(1).integers(0, 256, shape).astype(stored)
    X[0, 0] = 255
    shift, factor = normal(shape[1], dtype=dtype, seed=2), normal(shape[1], dtype=dtype, seed=3)
    found = compiled_elementwise.compiled_standardized_rows(X, shift, factor)
    expected = standardized_rows.reference(X, shift, factor)
    assert found.dtype == expected.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=10 * ROUNDING[dtype], atol=ROUNDING[dtype])


def test_bytes_count_from_128():
    X = np.array([[0, 128, 255]], np.uint8)
    found = compiled_elementwise.compiled_standardized_rows(X, np.zeros(3), np.ones(3))
    assert found.tolist() == [[-128.0, 0.0, 127.0]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1,), (7, 5), (2, 9, 4)])
def test_add_penalty_gradient(shape, dtype):
    dW, W = normal(*shape, dtype=dtype), normal(*shape, dtype=dtype, seed=1)
    before, expected = W.copy(), add_penalty_gradient.reference(dW.copy(), W, 0.3)
    found = compiled_elementwise.compiled_add_penalty_gradient(dW, W, 0.3)
    assert found is dW  # in place
    np.testing.assert_allclose(found, expected, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])
    np.testing.assert_array_equal(W, before)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1,), (7, 5), (2, 9, 4)])
def test_momentum_step(shape, dtype, nesterov):
    ours = [normal(*shape, dtype=dtype, seed=seed) for seed in range(3)]
    shared = [array.copy() for array in ours]
    for _ in range(3):
        gradient = normal(*shape, dtype=dtype, seed=9)
        ours[1][...] = shared[1][...] = gradient
        assert compiled_elementwise.compiled_momentum_step(*ours, 0.1, 0.9, nesterov) is None
        momentum_step.reference(*shared, 0.1, 0.9, nesterov)
    for name, found, expected in zip(("value", "", "velocity"), ours, shared, strict=True):
        if name:
            np.testing.assert_allclose(
                found, expected, rtol=10 * ROUNDING[dtype], atol=10 * ROUNDING[dtype]
            )


def test_the_two_kinds_of_momentum_differ():
    for nesterov, expected in ((False, -1.9), (True, -2.71)):
        value, gradient, velocity = np.zeros(1), np.ones(1), -np.ones(1)
        compiled_elementwise.compiled_momentum_step(value, gradient, velocity, 1.0, 0.9, nesterov)
        assert value[0] == pytest.approx(expected)
        assert velocity[0] == pytest.approx(-1.9)


ARGUMENTS = {
    "standardized_rows": lambda: [np.ones((8, 8), np.uint8), np.ones(8), np.ones(8)],
    "add_penalty_gradient": lambda: [np.ones((8, 8)), np.ones((8, 8)), 0.1],
    "momentum_step": lambda: [np.ones((8, 8)), np.ones((8, 8)), np.ones((8, 8)), 0.1, 0.9, True],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_declines_gaps_little_work_and_the_absence_of_numba(monkeypatch, name):
    arguments = ARGUMENTS[name]()
    with_gaps = [np.ones((16, 8), arguments[0].dtype)[::2], *arguments[1:]]
    assert kernel(name)(*with_gaps) is NotImplemented
    monkeypatch.setattr(compiled_elementwise, "MIN_ITEMS", 65)
    assert kernel(name)(*arguments) is NotImplemented
    monkeypatch.setattr(compiled_elementwise, "MIN_ITEMS", 64)
    assert kernel(name)(*ARGUMENTS[name]()) is not NotImplemented
    monkeypatch.setattr(compiled_elementwise, "numba_is_usable", lambda: False)
    assert kernel(name)(*arguments) is NotImplemented


@pytest.mark.parametrize("name", ["add_penalty_gradient", "momentum_step"])
def test_declines_mixed_floats(name):
    arguments = ARGUMENTS[name]()
    arguments[1] = arguments[1].astype(np.float32)
    assert kernel(name)(*arguments) is NotImplemented


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_shared_function_uses_it(monkeypatch, name):
    asked = []
    monkeypatch.setattr(compiled_elementwise, "_are_worth_it", lambda *arrays: asked.append(1))
    FUNCTIONS[name](*ARGUMENTS[name]())
    assert asked


# ------------------------------------------------------------------- several models at once


def models_side_by_side(*shape, dtype, seed):
    """Stacks (K, D, C) that lie as (D, K C)."""
    n_models, n_features, n_columns = shape
    return apart(normal(n_features, n_models * n_columns, dtype=dtype, seed=seed), (n_models,))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 3, 2), (4, 9, 3)])
def test_updates_with_a_factor_for_each_model(shape, dtype):
    value, gradient, velocity, W = (
        models_side_by_side(*shape, dtype=dtype, seed=seed) for seed in range(4)
    )
    rates, momenta = np.random.default_rng(9).random((2, shape[0], 1, 1)).astype(dtype)
    reg = np.linspace(0.1, 2, shape[0])
    close = {"rtol": 10 * ROUNDING[dtype], "atol": 10 * ROUNDING[dtype]}
    expected = add_penalty_gradient.reference(gradient.copy(), W, reg)
    assert compiled_elementwise.compiled_add_penalty_gradient(gradient, W, reg) is gradient
    np.testing.assert_allclose(gradient, expected, **close)
    np.testing.assert_allclose(
        compiled_elementwise.compiled_penalties_of_models(W),
        (W.astype(float) ** 2).sum((1, 2)),
        rtol=1e-14,
    )
    for nesterov in (True, False):
        copies = [array.copy() for array in (value, gradient, velocity)]
        factors = (rates, momenta, nesterov)
        assert (
            compiled_elementwise.compiled_momentum_step(value, gradient, velocity, *factors) is None
        )
        momentum_step.reference(*copies, *factors)
        np.testing.assert_allclose(value, copies[0], **close)
        np.testing.assert_allclose(velocity, copies[2], **close)


def test_models_that_do_not_lie_side_by_side_are_declined():
    stack, rates = np.ones((4, 9, 3)), np.ones((4, 1, 1))
    assert compiled_elementwise.compiled_penalties_of_models(stack) is NotImplemented
    declined = compiled_elementwise.compiled_momentum_step(stack, stack, stack, rates, rates, True)
    assert declined is NotImplemented
    np.testing.assert_array_equal(stack, 1)
