"""What a CUDA image has is enough: NumPy, SciPy, scikit-learn, CuPy, pytest, rich and typer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_on_cpu import missing
from cuda_on_cpu.compilation import compiler

ROOT = Path(__file__).resolve().parents[1]
HIDDEN = """
from importlib.machinery import PathFinder

NAMES = {
    "PIL", "array_api_compat", "array_api_strict", "hypothesis", "jax", "jaxlib", "llvmlite",
    "matplotlib", "numba", "pandas", "pooch", "pytest_benchmark", "torch", "xdist",
}
find_spec = PathFinder.find_spec

class FindOthers:  # no function, which pytest would take for a method of its own
    def __call__(self, name, path=None, target=None):
        return None if name.partition(".")[0] in NAMES else find_spec(name, path, target)

PathFinder.find_spec = FindOthers()
"""


@pytest.fixture
def bare(tmp_path):
    """Return what runs Python in a checkout where nothing else is installed."""
    (tmp_path / "sitecustomize.py").write_text(HIDDEN)
    environment = os.environ | {
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # those that are hidden would fail to load
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "GPUCLF_DATA": "",
    }
    environment.pop("GPUCLF_REQUIRE_COMPILERS", None)

    def run(*arguments):
        return subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True,
            check=False, timeout=1200,
        )  # fmt: skip

    return run


def test_the_modules_are_hidden(bare):
    done = bare("-c", "import pooch")
    assert "No module named 'pooch'" in done.stderr


@pytest.mark.nightly
@pytest.mark.slow
def test_training_needs_no_pooch(bare):
    done = bare(
        "-m", "gpuclf", "train", "softmax", "--data", "synthetic", "--epochs", "1"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-1500:]
    assert "accuracy" in done.stdout


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("options", [["--first-contact"], ["--time-budget", "900"]])
def test_both_rehearsals_pass(bare, tmp_path, options):
    if compiler() is None:
        missing("no C++ compiler to run CUDA kernels on the CPU")
    done = bare(
        "-m", "benchmarks.acceptance", "--dry-run", "--out", str(tmp_path / "out"), *options
    )
    (path,) = (tmp_path / "out").glob("*.json")
    steps = json.loads(path.read_text())["steps"]
    assert {step["status"] for step in steps} == {"passed"}, [
        (step["name"], step["message"]) for step in steps if step["status"] != "passed"
    ]
    assert done.returncode == 0
