"""Embeddings made in memory, and the page that says how to evaluate some."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_cases import make_inputs
from typer.testing import CliRunner

from gpuclf import KNeighborsClassifier
from gpuclf.bench import IMPLEMENTATIONS, PEERS, Implementation, probe_cases, run_case
from gpuclf.bench.measure.cases import PROBE_LBFGS, PROBE_SGD, PROBES
from gpuclf.bench.measure.implementations import gpuclf_floats
from gpuclf.cli import app
from gpuclf.datasets import make_embeddings


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_embeddings_have_the_shape_dtype_and_length_asked_for(dtype):
    X, y = make_embeddings(2000, 48, 7, dtype=dtype)
    assert (X.shape, X.dtype, y.shape) == ((2000, 48), np.dtype(dtype), (2000,))
    assert set(y.tolist()) == set(range(7))
    lengths = np.linalg.norm(X.astype(np.float64), axis=1)
    assert abs(lengths - 1).max() < 4 * np.finfo(dtype).eps


def test_embeddings_lie_around_their_centres_as_far_apart_as_asked():
    X, y = make_embeddings(60_000, 20, 3, class_sep=5.0, unit_length=False)
    for label in range(3):
        of_class = X[y == label].astype(np.float64)
        assert np.linalg.norm(of_class.mean(axis=0)) == pytest.approx(5.0, abs=0.1)
        assert abs(of_class.std(axis=0) - 1).max() < 0.03


def test_the_same_seed_gives_the_same_embeddings():
    X, y = make_embeddings(1500, 8, 3, seed=1)
    again, labels = make_embeddings(1500, 8, 3, seed=1)
    np.testing.assert_array_equal(X, again)
    np.testing.assert_array_equal(y, labels)
    assert not np.array_equal(X, make_embeddings(1500, 8, 3, seed=2)[0])
    assert len(np.unique(X, axis=0)) == 1500  # no block of rows is another's


def test_classes_that_are_further_apart_are_told_apart_more_often():
    accuracies = []
    for class_sep in (0.0, 3.0, 12.0):
        X, y = make_embeddings(1200, 32, 4, class_sep=class_sep)
        fitted = KNeighborsClassifier(5, metric="cosine").fit(X[:1000], y[:1000])
        accuracies.append(fitted.score(X[1000:], y[1000:]))
    assert accuracies[0] < 0.4 < accuracies[1] < accuracies[2] == 1


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"n_samples": 0}, ValueError, "n_samples must be at least 1, got 0"),
        ({"n_features": -2}, ValueError, "n_features must be at least 1, got -2"),
        ({"n_classes": 2.5}, TypeError, "float"),
        ({"class_sep": float("nan")}, ValueError, "class_sep must be a finite number"),
        ({"dtype": "uint8"}, ValueError, "dtype must be one of 'float16', 'float32', 'float64'"),
        ({"seed": -1}, ValueError, "seed must be 0 or more, got -1"),
    ],
)
def test_embeddings_that_cannot_be_made_are_refused(given, error, says):
    with pytest.raises(error, match=says):
        make_embeddings(**given)


# ------------------------------------------------------------------------- gpuclf bench's probes


def tiny_probes():
    small = {"samples": 300, "classes": 5, "n_features": 24, "naive_samples": 60, "rounds": 1}
    return [
        replace(case, models=min(3, case.models), batch_size=64, **small) for case in probe_cases()
    ]


PROBED = {  # what each has no function for
    "textbook NumPy": (),
    "gpuclf on NumPy": (),
    "gpuclf on NumPy, uint8": PROBES,
    "scikit-learn": (PROBE_SGD,),
    "PyTorch": (),
    "JAX": PROBES,
    "faiss": (PROBE_LBFGS, PROBE_SGD),
}
MODULES = {"PyTorch": "torch", "JAX": "jax", "faiss": "faiss"}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBED)
def test_all_give_the_labels_of_the_textbook_s_probe(name):
    pytest.importorskip(MODULES.get(name, "numpy"), reason=f"{name} is not installed")
    (implementation,) = (i for i in (*IMPLEMENTATIONS, *PEERS) if i.name == name)
    for case in tiny_probes():
        (row,) = run_case(case, make_inputs(), [implementation])
        expected = "unavailable" if case.kind in PROBED[name] else "timed"
        assert row.status == expected, (case.title, row.reason)
        assert row.operation == case.kind


def test_a_probe_that_gives_other_labels_is_wrong():
    def prepare(case, inputs):
        found = gpuclf_floats(case, inputs)()[1]
        return lambda: (0.0, (found + (np.arange(found.shape[-1]) % 10 == 0)) % 5)

    other = Implementation("other", "numpy", "float", prepare)
    for case in tiny_probes():
        (row,) = run_case(case, make_inputs(), [other])
        assert (row.status, "disagree on" in row.reason) == ("wrong", True)


def test_probes_are_measured_where_they_are_asked_for_only():
    def listed(*arguments):
        found = CliRunner().invoke(app, ["bench", "--list", "--backend", "numpy", *arguments])
        assert found.exit_code == 0
        return found.output

    for kind in PROBES:
        assert kind in listed("--only", "probe*")
        assert kind not in listed("--only", "softmax*")
    assert "faiss" in listed("--only", "probe*")


# ---------------------------------------------------------------------------- docs/embeddings.md

PAGE = Path(__file__).parent.parent / "docs" / "embeddings.md"


@pytest.mark.slow
def test_the_protocols_of_the_page_run_and_tell_the_classes_apart(capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert all(len(block.splitlines()) <= 10 for block in blocks)
    names = {}
    exec("\n".join(blocks), names)
    said = capsys.readouterr().out
    assert (len(names["penalties"]), len(names["heads"].cv_results_["params"])) == (96, 52)
    accuracies = [float(line.split()[-1]) for line in said.splitlines()]
    assert len(accuracies) == 6
    assert min(accuracies) > 0.9
