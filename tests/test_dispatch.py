import inspect

import numpy as np
import pytest

from gpuclf import dispatch, layers
from gpuclf.dispatch import fusable
from gpuclf.kernels.losses import on_cpu as on_numpy


@pytest.fixture
def double():
    """Return a fusable function whose body and whose kernel leave a trace."""

    @fusable
    def double(x, note=None):
        """Twice x."""
        double.calls.append(("reference", note))
        return x + x

    double.calls = []
    return double


def register_kernel(function, library, result=None):
    @function.register(library)
    def kernel(x, note=None):
        function.calls.append((library, note))
        return x * 2 if result is None else result

    return kernel


def test_without_a_kernel_the_body_runs(lib, double):
    assert lib.to_numpy(double(lib.asarray(np.ones(2)))).tolist() == [2, 2]
    assert double.calls == [("reference", None)]


def test_the_kernel_of_the_first_arguments_library_runs_instead(double):
    kernel = register_kernel(double, "numpy")
    assert double(np.ones(2), note=5).tolist() == [2, 2]
    assert double.calls == [("numpy", 5)]
    assert kernel(np.ones(1)).tolist() == [2]  # registering gives the kernel back


def test_a_kernel_that_declines_falls_back_with_the_same_arguments(double):
    register_kernel(double, "numpy", NotImplemented)
    assert double(np.ones(2), note=7).tolist() == [2, 2]
    assert double.calls == [("numpy", 7), ("reference", 7)]


def test_the_next_kernel_is_asked_when_one_declines(double):
    register_kernel(double, "numpy", NotImplemented)
    register_kernel(double, "numpy")
    assert double(np.ones(2), note=7).tolist() == [2, 2]
    assert double.calls == [("numpy", 7), ("numpy", 7)]


def test_another_library_is_not_affected(double, strict):
    register_kernel(double, "numpy")
    register_kernel(double, "cupy")
    double(strict.asarray(np.ones(2)))
    assert double.calls == [("reference", None)]


def test_a_kernel_serves_the_library_it_is_registered_for(double, strict):
    register_kernel(double, "array_api_strict")
    double(strict.asarray(np.ones(2)))
    double(np.ones(2))
    assert double.calls == [("array_api_strict", None), ("reference", None)]


def test_the_reference_stays_callable_past_the_kernel(double):
    register_kernel(double, "numpy")
    double.reference(np.ones(2))
    assert double.calls == [("reference", None)]


def test_an_exception_in_a_kernel_is_not_hidden(double):
    @double.register("numpy")
    def broken(x, note=None):
        raise FloatingPointError("broken kernel")

    with pytest.raises(FloatingPointError, match="broken kernel"):
        double(np.ones(2))
    assert double.calls == []


def test_name_and_documentation_are_those_of_the_body(double):
    assert double.__name__ == "double"
    assert double.__doc__ == "Twice x."
    assert list(inspect.signature(double).parameters) == ["x", "note"]


def test_something_that_is_no_array_is_refused(double):
    with pytest.raises(TypeError, match=r"expected an array .*, got list; convert it with"):
        double([1, 2])


def test_every_argument_may_be_passed_by_name():
    Y = layers.affine(X=np.ones((2, 3)), W=np.ones((3, 1)))
    assert Y.tolist() == [[3.0], [3.0]]


def test_kernel_modules_are_loaded_at_the_first_use_of_their_library(double, monkeypatch, strict):
    loaded = []
    monkeypatch.setattr(dispatch.importlib, "import_module", loaded.append)
    monkeypatch.setattr(
        dispatch, "KERNEL_MODULES", {"array_api_strict": ("kernels.of.strict", "more.of.them")}
    )
    dispatch._load_kernels.cache_clear()
    try:
        double(np.ones(2))
        assert loaded == []
        double(strict.asarray(np.ones(2)))
        double(strict.asarray(np.ones(2)))
        assert loaded == ["kernels.of.strict", "more.of.them"]
    finally:
        dispatch._load_kernels.cache_clear()


@pytest.mark.parametrize("name", [name for name in on_numpy.__all__ if name.startswith("grouped_")])
def test_kernels_have_the_signature_of_their_reference(name):
    kernel = inspect.signature(getattr(on_numpy, name)).parameters.values()
    reference = getattr(layers, name.removeprefix("grouped_")).reference
    expected = inspect.signature(reference).parameters.values()
    assert [(p.name, p.kind, p.default) for p in kernel] == [
        (p.name, p.kind, p.default) for p in expected
    ]


def test_the_layers_use_the_numpy_kernels(monkeypatch):
    monkeypatch.setattr(on_numpy, "_group_rows", lambda X, n_columns: 8)
    seen = []
    matmul = np.matmul
    monkeypatch.setattr(np, "matmul", lambda *a, **k: seen.append(a[0].ndim) or matmul(*a, **k))
    layers.affine(np.ones((20, 2)), np.ones((2, 3)))
    assert 3 in seen  # a stack of groups
