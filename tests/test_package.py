import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import gpuclf

PACKAGE = Path(gpuclf.__file__).parent
SOURCES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}


def run_python(script):
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def imported_modules(path):
    """Return the names of all modules that a file imports, also within functions and by name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module
        elif (
            isinstance(node, ast.Call)
            and getattr(node.func, "attr", getattr(node.func, "id", None))
            in ("import_module", "__import__")
            and isinstance(node.args[0], ast.Constant)
        ):
            yield node.args[0].value


def importers_of(package):
    return {
        name
        for name, path in SOURCES.items()
        if any(module.partition(".")[0] == package for module in imported_modules(path))
    }


def test_importing_gpuclf_imports_nothing_heavy():
    loaded = run_python("import gpuclf, sys; print(*sys.modules)").split()
    heavy = {"cupy", "sklearn", "scipy", "torch", "numba", "rich", "typer", "pooch", "jax"}
    assert "gpuclf" in loaded
    assert not heavy.intersection(loaded)


def test_the_losses_import_nothing_heavy_either():
    script = """
        import sys
        import numpy as np
        import gpuclf
        gpuclf.softmax_loss_vectorized(np.zeros((3, 2)), np.ones((4, 3)), np.array([0, 1, 1, 0]), 0)
        print(*sys.modules)
    """
    heavy = {"cupy", "sklearn", "torch", "numba", "rich", "typer", "pooch", "jax", "matplotlib"}
    assert not heavy.intersection(run_python(script).split())


def test_importing_gpuclf_takes_little_longer_than_numpy():
    script = """
        import time
        import numpy
        start = time.process_time()
        import gpuclf
        print(time.process_time() - start)
    """
    # The time of the processor, and the best of five: a busy machine makes runs slow, never fast.
    assert min(float(run_python(script)) for _ in range(5)) < 0.3


def test_every_public_name_resolves():
    assert len(set(gpuclf.__all__)) == len(gpuclf.__all__)
    for name in gpuclf.__all__:
        assert getattr(gpuclf, name) is not None


def test_public_names_are_the_same_objects_as_at_home():
    for name, home in gpuclf._HOMES.items():
        assert getattr(gpuclf, name) is getattr(sys.modules[home], name)


def test_star_import_gives_the_public_names():
    namespace = {}
    exec("from gpuclf import *", namespace)
    assert set(gpuclf.__all__) <= set(namespace)


def test_an_unknown_name_raises_attribute_error():
    with pytest.raises(AttributeError, match="module 'gpuclf' has no attribute 'nonesuch'"):
        _ = gpuclf.nonesuch
    assert not hasattr(gpuclf, "softmax_loss")


def test_dir_lists_the_names_before_they_are_loaded():
    listed = run_python("import gpuclf; print(*dir(gpuclf))").split()
    assert set(gpuclf.__all__) <= set(listed)


def test_every_module_s_all_resolves():
    for name in ("backend", "features", "layers", "losses", "linear", "two_layer", "validation"):
        module = __import__(f"gpuclf.{name}", fromlist=["*"])
        for public in module.__all__:
            assert hasattr(module, public), f"gpuclf.{name}.{public}"


def test_the_scan_of_imports_sees_all_forms(tmp_path):
    path = tmp_path / "sample.py"
    path.write_text(
        "import a.b\nfrom c.d import e\nfrom . import f\n"
        "def g():\n    import h\n    importlib.import_module('i')\n    __import__('j')\n",
        encoding="utf-8",
    )
    assert set(imported_modules(path)) == {"a.b", "c.d", "h", "i", "j"}


def test_only_backend_imports_cupy():
    assert importers_of("cupy") == {"backend.py"}


def test_only_the_estimators_and_the_benchmark_import_scikit_learn():
    allowed = {"sklearn.externals.array_api_compat"}  # backend.py, where there is no other copy
    places = {
        Path(name).parts[0]
        for name, path in SOURCES.items()
        for module in imported_modules(path)
        if module.partition(".")[0] == "sklearn" and module not in allowed
    }
    assert "estimators" in places
    assert places <= {"estimators", "benchmark"}


@pytest.mark.parametrize("module", ["losses.py", "layers.py", "linear.py", "two_layer.py"])
def test_the_maths_knows_nothing_of_what_is_built_on_it(module):
    above = ("estimators", "cli", "training", "benchmark", "datasets", "plots")
    for imported in imported_modules(SOURCES[module]):
        assert not imported.startswith(tuple(f"gpuclf.{name}" for name in above))
