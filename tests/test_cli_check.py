import json
import sys

import pytest
from rich.console import Console
from typer.testing import CliRunner

import gpuclf.cli.output
from gpuclf.cli import app
from gpuclf.devices.cupy import CupyProbe
from gpuclf.models import MODELS
from gpuclf.models import gradients as model_gradients


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(
        "gpuclf.devices.cupy.probe_cupy", lambda: CupyProbe(False, "no CuPy in tests")
    )


def run(*arguments):
    return CliRunner().invoke(app, ["check", *map(str, arguments)])


@pytest.mark.essential_cases(2)
@pytest.mark.parametrize("arguments", [[], ["all"], *([model] for model in MODELS)], ids=str)
def test_every_gradient_passes_and_is_listed(tmp_path, arguments):
    path = tmp_path / "check.json"
    result = run(*arguments, "--json", path)
    assert result.exit_code == 0, result.output
    found = json.loads(path.read_text())
    asked = [m for m in MODELS if arguments in ([], ["all"], [m])]
    assert [(row["model"], row["gradient"]) for row in found["rows"]] == [
        (model, name) for model in asked for name in (*MODELS[model].axes, "X")
    ]
    assert found["passed"] is True
    assert found["settings"] == {"library": "numpy on cpu", "dtype": "float64", "seed": 0}
    for row in found["rows"]:
        assert row["passed"]
        assert 0 < row["max_relative_error"] < row["rtol"] == 1e-7
        assert row["n_checked"] > 0
    assert result.output.count("passed") == len(found["rows"])


def test_a_wrong_gradient_ends_with_1_and_shows_where(monkeypatch, tmp_path):
    right = model_gradients.all_gradients

    def broken(model, *args):
        loss, grads = right(model, *args)
        return loss, grads | {"b": -grads["b"]} if model.name == "softmax" else grads

    monkeypatch.setattr(model_gradients, "all_gradients", broken)
    path = tmp_path / "check.json"
    result = run("--json", path)
    assert result.exit_code == 1
    assert result.output.count("failed") == 1
    found = json.loads(path.read_text())
    assert found["passed"] is False
    failed = [row for row in found["rows"] if not row["passed"]]
    assert [(row["model"], row["gradient"]) for row in failed] == [("softmax", "b")]


@pytest.mark.essential_cases(1)
@pytest.mark.parametrize("library", ["numpy", "torch", "array-api-strict"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_other_libraries_and_floats(library, dtype):
    pytest.importorskip(library.replace("-", "_"), reason=f"{library} is not installed")
    result = run("softmax", "--library", library, "--dtype", dtype)
    assert result.exit_code == 0, result.output
    where = library.replace("-", "_")
    assert f"analytic gradients in {dtype} on {where} on" in " ".join(result.output.split())


def test_a_seed_checks_at_another_point(tmp_path):
    errors = []
    for seed in (1, 1, 2):
        run("softmax", "--seed", seed, "--json", tmp_path / "check.json")
        rows = json.loads((tmp_path / "check.json").read_text())["rows"]
        errors.append([row["analytic"] for row in rows])
    assert errors[0] == errors[1] != errors[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "cupy"], "no CuPy in tests"),
        (["--library", "cupy"], "no CuPy in tests"),
        (["--library", "torch"], "torch is not installed: pip install torch"),
        (
            ["--library", "array-api-strict"],
            "array-api-strict is not installed: pip install array-api-strict",
        ),
    ],
    ids=str,
)
def test_a_missing_library_ends_with_the_remedy(monkeypatch, capfd, arguments, message):
    for name in ("torch", "array_api_strict"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(sys, "argv", ["gpuclf", "check", *arguments])
    monkeypatch.setattr(gpuclf.cli.output, "console", Console())
    with pytest.raises(SystemExit) as ended:
        gpuclf.cli.main()
    _, err = capfd.readouterr()
    assert ended.value.code == 1
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1


def test_two_libraries_at_once_are_refused():
    result = run("--library", "torch", "--backend", "numpy")
    assert result.exit_code == 2
    assert "--library torch and --backend numpy" in " ".join(result.output.split())
    assert run("softmax", "--library", "numpy", "--backend", "numpy").exit_code == 0
