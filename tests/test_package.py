import ast
import graphlib
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import gpuclf

PACKAGE = Path(gpuclf.__file__).parent
SOURCES = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
# What the maths stands on, and what is built on it.
LOWER = (
    "arrays", "devices", "dispatch", "files", "validation", "samples", "augment", "preprocessing",
    "image_features", "losses", "layers", "kernels", "models", "naive", "textbook",
)  # fmt: skip
UPPER = (
    "training",
    "search",
    "datasets",
    "plots",
    "estimators",
    "saving",
    "evaluation",
    "explanation",
    "course",
    "bench",
    "cli",
)


def run_python(script):
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def statements(node, *, at_import):
    """Yield what is within a node; with `at_import` only what runs when a module is imported."""
    for child in ast.iter_child_nodes(node):
        later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not (at_import and (later or for_types)):
            yield child
            yield from statements(child, at_import=at_import)


def imported_modules(path, *, at_import=False):
    """Return the names that a file imports, by any form: modules, or what is taken from one."""
    for node in statements(ast.parse(path.read_text(encoding="utf-8")), at_import=at_import):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif (
            isinstance(node, ast.Call)
            and getattr(node.func, "attr", getattr(node.func, "id", None))
            in ("import_module", "__import__")
            and isinstance(node.args[0], ast.Constant)
        ):
            yield node.args[0].value


def own_imports(at_import):
    """Return for each module of the package which of the package's modules it imports."""
    modules = {
        "gpuclf." + name.removesuffix(".py").replace("/", ".").removesuffix(".__init__"): path
        for name, path in SOURCES.items()
        if name != "__init__.py"
    }
    return {
        module: {
            name if name in modules else name.rpartition(".")[0]
            for name in imported_modules(path, at_import=at_import)
        }
        & modules.keys() - {module}
        for module, path in modules.items()
    }


def importers_of(package):
    return {
        name
        for name, path in SOURCES.items()
        if any(module.partition(".")[0] == package for module in imported_modules(path))
    }


def test_importing_gpuclf_imports_nothing_heavy():
    loaded = run_python("import gpuclf, sys; print(*sys.modules)").split()
    heavy = {
        "cupy",
        "sklearn",
        "scipy",
        "torch",
        "numba",
        "rich",
        "typer",
        "pooch",
        "jax",
        "safetensors",
        "dask",
        "distributed",
        "joblib",
    }
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
    heavy |= {"safetensors", "dask", "distributed"}
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


@pytest.mark.slow
def test_type_checkers_know_the_names(tmp_path):
    pytest.importorskip("mypy", reason="mypy is not installed")
    script = tmp_path / "script.py"
    script.write_text(
        "import gpuclf\nreveal_type(gpuclf.SoftmaxClassifier())\n"
        "reveal_type(gpuclf.models.SOFTMAX.name)\ngpuclf.typo\n",
        encoding="utf-8",
    )
    run = subprocess.run(
        [sys.executable, "-m", "mypy", script], cwd=PACKAGE.parent, capture_output=True, text=True
    )
    classifier, name, typo, *_ = run.stdout.splitlines()
    assert 'Revealed type is "gpuclf.estimators.linear.SoftmaxClassifier"' in classifier
    assert 'Revealed type is "str"' in name.replace("builtins.", "")
    assert 'error: Module has no attribute "typo"' in typo


@pytest.mark.slow
def test_type_checkers_know_the_hyper_parameters(tmp_path):
    pytest.importorskip("mypy", reason="mypy is not installed")
    right = (
        "gpuclf.SoftmaxClassifier(reg=1, solver='lbfgs').fit([[0.0]], [0]).predict([[0.0]])",
        "gpuclf.TwoLayerNetClassifier(hidden_size=3).set_params(reg=0.0).get_params()",
        "gpuclf.FleetSearchCV(gpuclf.LinearSVMClassifier(), {}, cv=2).best_estimator_.coef_",
        "gpuclf.FleetEnsemble(gpuclf.SoftmaxClassifier(), [{}]).decision_function([[0.0]])",
        "gpuclf.SoftmaxClassifier().set_fit_request(sample_weight=True).set_callbacks().coef_.T",
    )
    wrong = (
        "gpuclf.SoftmaxClassifier(rge=1)",
        "gpuclf.LinearSVMClassifier(solver='sgd')",
        "gpuclf.TwoLayerNetClassifier(hidden_size='many')",
        "gpuclf.KNeighborsClassifier(neighbours=3)",
        "gpuclf.FleetSearchCV(gpuclf.SoftmaxClassifier(), {}, pre_dispatch=2)",
        "gpuclf.FleetEnsemble(gpuclf.SoftmaxClassifier())",
        "gpuclf.SoftmaxClassifier().predikt([[0.0]])",
    )
    script = tmp_path / "script.py"
    script.write_text("\n".join(("import gpuclf", *right, *wrong)), encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-m", "mypy", script], cwd=PACKAGE.parent, capture_output=True, text=True
    )
    lines = {int(found) for found in re.findall(r"script.py:(\d+): error", run.stdout)}
    assert lines == set(range(2 + len(right), 2 + len(right) + len(wrong))), run.stdout


def test_star_import_gives_the_public_names():
    namespace = {}
    exec("from gpuclf import *", namespace)
    assert set(gpuclf.__all__) <= set(namespace)


def test_an_unknown_name_raises_attribute_error():
    with pytest.raises(AttributeError, match="No gpuclf attribute nonesuch"):
        _ = gpuclf.nonesuch
    assert not hasattr(gpuclf, "softmax_loss")


def test_dir_lists_the_names_before_they_are_loaded():
    listed = run_python("import gpuclf; print(*dir(gpuclf))").split()
    assert set(gpuclf.__all__) <= set(listed)


def test_every_public_module_s_all_resolves():
    modules = [
        value for name in gpuclf.__all__ if isinstance(value := getattr(gpuclf, name), ModuleType)
    ]
    assert gpuclf.arrays in modules
    for module in modules:
        for public in getattr(module, "__all__", ()):
            assert hasattr(module, public), f"{module.__name__}.{public}"


def test_the_scan_of_imports_sees_all_forms(tmp_path):
    path = tmp_path / "sample.py"
    path.write_text(
        "import a.b\nfrom c.d import e\nfrom . import f\nif TYPE_CHECKING:\n    import g\n"
        "def h():\n    import i\n    importlib.import_module('j')\n    __import__('k')\n",
        encoding="utf-8",
    )
    assert set(imported_modules(path)) == {"a.b", "c.d.e", "g", "i", "j", "k"}
    assert set(imported_modules(path, at_import=True)) == {"a.b", "c.d.e"}


def test_one_module_imports_cupy():
    assert importers_of("cupy") == {"devices/cupy.py"}


def test_only_the_estimators_and_the_benchmark_import_scikit_learn():
    allowed = {"sklearn.externals.array_api_compat"}  # arrays.py, where there is no other copy
    places = {
        Path(name).parts[0]
        for name, path in SOURCES.items()
        for module in imported_modules(path)
        if module.partition(".")[0] == "sklearn" and module not in allowed
    }
    assert "estimators" in places
    assert places <= {"estimators", "bench"}


def test_no_import_goes_round_in_a_circle():
    graph = own_imports(at_import=True)
    assert "gpuclf.arrays" in graph["gpuclf.devices.backends"]
    list(graphlib.TopologicalSorter(graph).static_order())  # or a CycleError with the circle


def test_the_maths_knows_nothing_of_what_is_built_on_it():
    for module, imported in own_imports(at_import=False).items():
        rooms = {name.split(".")[1] for name in imported}
        if (room := module.split(".")[1]) in LOWER:
            assert not rooms & set(UPPER), module
        assert room != "arrays" or not rooms
        assert room != "devices" or rooms <= {"arrays", "devices"}, module


ROOT = PACKAGE.parent


@pytest.mark.skipif(not (ROOT / ".ci").exists(), reason="no checkout: there are no bounds to read")
def test_the_lowest_versions_that_are_tested_are_those_that_are_allowed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    allowed = [*project["dependencies"], *extras["test"][1:]]
    for extra in re.findall(r"\w+", extras["test"][0])[1:]:
        allowed += extras[extra]
    bounds = dict(re.fullmatch(r"([\w-]+)>=([\w.]+)", each).groups() for each in allowed)
    lines = (ROOT / ".ci" / "lowest.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(re.match(r"([\w-]+)==([\w.]+)", line).groups() for line in lines[1:])

    def numbers(version):
        return [*map(int, f"{version}.0.0".split("."))][:3]

    assert {name: numbers(tested[name]) for name in bounds} == {
        name: numbers(version) for name, version in bounds.items()
    }


def test_recipe_and_citation_say_what_pyproject_says():
    root = PACKAGE.parent
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    recipe = (root / "conda" / "recipe.yaml").read_text(encoding="utf-8")
    listed = {
        part: {line.strip(" -").replace(" ", "") for line in lines.splitlines()}
        for part, lines in re.findall(r"^  (run|run_constraints):\n((?:    - .*\n)+)", recipe, re.M)
    }
    wanted = {*project["dependencies"], f"python{project['requires-python']}"}
    assert listed["run"] == wanted
    extras = project["optional-dependencies"]
    bounds = {*extras["fast"], *extras["plots"], *extras["images"]}
    assert {
        bound.replace("matplotlib-base", "matplotlib") for bound in listed["run_constraints"]
    } > bounds
    assert f'version: "{gpuclf.__version__}"' in recipe
    citation = (root / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {gpuclf.__version__}\n" in citation
    assert f"license: {project['license']}\n" in citation
    assert f"abstract: {project['description']}" in citation
    assert f"summary: {project['description']}\n" in recipe
