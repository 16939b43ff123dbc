import functools
import importlib
import inspect
import re
from pathlib import Path

import numpy as np
import pytest

from gpuclf import dispatch, layers
from gpuclf.dispatch import SEAMS, fusable, machine_code_of
from gpuclf.losses import softmax_cross_entropy


@pytest.fixture
def double():
    """Return a fusable function whose body and whose kernels leave a trace."""

    @fusable()
    def double(x, note=None):
        """Twice x."""
        double.calls.append(("reference", note))
        return x + x

    double.calls = []
    return double


def kernels(function, *results):
    """Return kernels that leave a trace: of each what it returns, or None for twice x."""

    def kernel(number, result):
        def call(x, note=None):
            function.calls.append((number, note))
            return x * 2 if result is None else result

        return call

    return tuple(kernel(number, result) for number, result in enumerate(results))


def test_without_a_kernel_the_body_runs(lib, double):
    assert lib.to_numpy(double(lib.asarray(np.ones(2)))).tolist() == [2, 2]
    assert double.calls == [("reference", None)]


def test_the_kernel_of_the_first_arguments_library_runs_instead(double):
    double.kernels["numpy"] = kernels(double, None)
    assert double(np.ones(2), note=5).tolist() == [2, 2]
    assert double.calls == [(0, 5)]


def test_where_all_decline_the_body_gets_the_same_arguments(double):
    double.kernels["numpy"] = kernels(double, NotImplemented, NotImplemented)
    assert double(np.ones(2), note=7).tolist() == [2, 2]
    assert double.calls == [(0, 7), (1, 7), ("reference", 7)]


def test_the_next_kernel_is_asked_when_one_declines(double):
    double.kernels["numpy"] = kernels(double, NotImplemented, None)
    assert double(np.ones(2), note=7).tolist() == [2, 2]
    assert double.calls == [(0, 7), (1, 7)]


def test_another_library_is_not_affected(double, strict):
    double.kernels |= {"numpy": kernels(double, None), "cupy": kernels(double, None)}
    double(strict.asarray(np.ones(2)))
    assert double.calls == [("reference", None)]


def test_the_reference_stays_callable_past_the_kernel(double):
    double.kernels["numpy"] = kernels(double, None)
    double.reference(np.ones(2))
    assert double.calls == [("reference", None)]


def test_an_exception_in_a_kernel_is_not_hidden(double):
    def broken(x, note=None):
        raise FloatingPointError("broken kernel")

    double.kernels["numpy"] = (broken,)
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


def test_the_argument_that_decides_may_be_another():
    @fusable(by="y")
    def pick(model, y):
        return "body"

    pick.kernels["numpy"] = (lambda model, y: "kernel",)
    assert pick(None, np.ones(1)) == pick(None, y=np.ones(1)) == "kernel"


def test_replacements_are_imported_at_the_first_use_of_their_library(monkeypatch, strict):
    loaded = []

    def import_module(name):
        loaded.append(name)
        return type("Module", (), {"f": staticmethod(lambda x: "kernel")})

    monkeypatch.setattr(dispatch.importlib, "import_module", import_module)
    monkeypatch.setattr(dispatch, "SEAMS", {})

    @fusable(array_api_strict="some.of_strict:f")
    def body(x):
        return "body"

    assert body(np.ones(2)) == "body"
    assert loaded == []
    assert [body(strict.asarray(np.ones(2))) for _ in range(2)] == ["kernel"] * 2
    assert loaded == ["gpuclf.kernels.some.of_strict"]
    assert dispatch.SEAMS["body"] is body


for _module in ("losses", "training", "models.linear", "models.two_layer", "models.neighbors"):
    importlib.import_module(f"gpuclf.{_module}")
NAMES = sorted(SEAMS)
REPLACEMENTS = [
    (seam, name) for seam, x in SEAMS.items() for names in x.replacements.values() for name in names
]


def test_the_design_s_table_has_every_seam():
    text = (Path(__file__).parents[1] / "docs" / "design.md").read_text()
    table = re.search(r"\| body \|.*?\n\n", text, re.DOTALL)[0]
    cells = [line.split("|")[1] for line in table.strip().splitlines()[2:]]
    named = [name for cell in cells for name in re.findall(r"`(?:\w+\.)*(\w+)`", cell)]
    assert sorted(named) == NAMES


@pytest.mark.parametrize(("seam", "name"), REPLACEMENTS)
def test_every_replacement_takes_what_its_body_takes(seam, name):
    kernel, body = (
        inspect.signature(x).parameters for x in (dispatch._imported(name), SEAMS[seam].reference)
    )
    positional = [
        [p.name for p in of.values() if p.kind is p.POSITIONAL_OR_KEYWORD] for of in (kernel, body)
    ]
    assert len(positional[0]) >= len(positional[1])
    for place, parameter in enumerate(positional[1]):  # they are called by place
        assert parameter not in positional[0] or positional[0].index(parameter) == place
    for shared in kernel.keys() & body.keys():
        assert kernel[shared].default == body[shared].default


def test_a_loss_that_wraps_one_is_not_taken_for_it():
    @functools.wraps(softmax_cross_entropy)
    def doubled(*args):
        loss, dscores = softmax_cross_entropy(*args)
        return 2 * loss, 2 * dscores

    assert machine_code_of(softmax_cross_entropy) == "softmax_cross_entropy"
    assert doubled.machine_code == "softmax_cross_entropy"
    assert machine_code_of(doubled) is None
    assert machine_code_of(lambda *args: None) is None
